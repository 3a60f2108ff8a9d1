//! One index of an Elasticsearch: its documents and its state.

use std::collections::BTreeMap;
use std::sync::PoisonError;

use hyper::Method;
use serde_json::{Value, json};

use super::error::ElasticError;
use super::{ElasticIndex, HASH, KEY, MARK};
use crate::index::engine::Manner;
use crate::index::payload::Payload;
use crate::index::row::{Applied, Change, Entry};

/// How many documents are asked for by their keys at once.
const KEYS_MAX: usize = 1000;

/// The state that documents were seen in, by their keys: Elasticsearch's number of the last change, and of the
/// copy that made it.
pub(super) type Seen = BTreeMap<String, (u64, u64)>;

impl ElasticIndex {
    pub(super) fn meta(&self, payload: &Payload) -> Value {
        json!({ "understudy": {
            "index": self.elastic.owner,
            "columns": self.columns,
            "state": payload.text(),
        }})
    }

    fn state(&self) -> Payload {
        self.state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    async fn keep(&self, payload: &Payload) -> Result<(), ElasticError> {
        if self.state() == *payload {
            return Ok(());
        }
        let path = format!("/{}/_mapping", self.writer());
        let body = json!({ "_meta": self.meta(payload) });
        let asking = self
            .elastic
            .ask("keep our state", Method::PUT, &path, Some(body));
        asking.await.map_err(ElasticError::of_writer)?;
        *self.state.lock().unwrap_or_else(PoisonError::into_inner) = payload.clone();
        Ok(())
    }

    /// Makes changes, and keeps the state.
    pub(in crate::index) async fn apply(
        &self,
        changes: Vec<Change>,
        manner: Manner,
        payload: &Payload,
        must: bool,
    ) -> Result<Applied, ElasticError> {
        // Of several changes to one key the last one counts.
        let mut by_key: BTreeMap<String, Change> = BTreeMap::new();
        for change in changes {
            by_key.insert(change.key().to_owned(), change);
        }
        let seen = match manner {
            Manner::Replace => self.drop_unchanged(&mut by_key).await?,
            Manner::Add => Seen::default(),
        };
        let has_changes = !by_key.is_empty();
        let mut applied = Applied::default();
        if has_changes {
            let mut before = self.state();
            before.stamp.clone_from(&payload.stamp);
            self.keep(&before).await?;
            applied = self.bulk(by_key, &seen).await?;
        }
        if has_changes || must {
            self.keep(payload).await?;
        }
        Ok(applied)
    }

    /// Leaves out what is as it should be already. Returns what is there of the rest.
    async fn drop_unchanged(
        &self,
        changes: &mut BTreeMap<String, Change>,
    ) -> Result<Seen, ElasticError> {
        let what = "tell what documents hold";
        let mut seen = Seen::default();
        let keys: Vec<String> = changes.keys().cloned().collect();
        for keys in keys.chunks(KEYS_MAX) {
            let path = format!("/{}/_mget?_source_includes={HASH},{MARK}", self.name);
            let asking = self
                .elastic
                .ask(what, Method::POST, &path, Some(json!({ "ids": keys })));
            let answer = asking.await?;
            let documents = answer["docs"]
                .as_array()
                .ok_or(ElasticError::Answer { what })?;
            if documents.len() != keys.len() {
                return Err(ElasticError::Answer { what });
            }
            for (key, document) in keys.iter().zip(documents) {
                // What is away for now is not what is not there.
                if document["error"].is_object() {
                    return Err(ElasticError::Answer { what });
                }
                let is_there = document["found"].as_bool() == Some(true);
                let is_right = match changes.get(key) {
                    Some(Change::Put(row)) => {
                        is_there
                            && document["_source"][HASH].as_str()
                                == Some(row.hash().to_string().as_str())
                    }
                    Some(Change::Remove(_)) => !is_there,
                    None => true,
                };
                if is_right {
                    drop(changes.remove(key));
                } else if is_there {
                    let number = |name: &str| document[name].as_u64();
                    let state = number("_seq_no").zip(number("_primary_term"));
                    let state = state.ok_or(ElasticError::Answer { what })?;
                    seen.insert(key.clone(), state);
                }
            }
        }
        Ok(seen)
    }

    /// Returns the documents beyond a key, in the order of the bytes of their keys.
    pub(in crate::index) async fn entries(
        &self,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<Entry>, ElasticError> {
        let what = "list documents";
        let mut body = json!({
            "size": limit,
            "sort": [{ KEY: "asc" }],
            "_source": [KEY, HASH, MARK],
            "query": { "match_all": {} },
        });
        if let (Some(after), Some(body)) = (after, body.as_object_mut()) {
            body.insert("search_after".to_owned(), json!([after]));
        }
        let path = format!("/{}/_search", self.name);
        let asking = self.elastic.ask(what, Method::POST, &path, Some(body));
        let answer = asking.await?;
        check_whole(what, &answer)?;
        let hits = answer["hits"]["hits"]
            .as_array()
            .ok_or(ElasticError::Answer { what })?;
        let entry = |hit: &Value| {
            let number = |name: &str| hit["_source"][name].as_str()?.parse().ok();
            Some(Entry {
                key: hit["_id"].as_str()?.to_owned(),
                hashes: number(HASH).zip(number(MARK)),
            })
        };
        let entries: Option<Vec<Entry>> = hits.iter().map(entry).collect();
        entries.ok_or(ElasticError::Answer { what })
    }

    /// Makes what was written visible to searches.
    pub(in crate::index) async fn refresh(&self) -> Result<(), ElasticError> {
        let what = "make documents visible";
        let path = format!("/{}/_refresh", self.name);
        self.elastic
            .ask(what, Method::POST, &path, None)
            .await
            .map(drop)
    }

    /// Returns how many documents are visible.
    pub(in crate::index) async fn count(&self) -> Result<u64, ElasticError> {
        let what = "count documents";
        let path = format!("/{}/_count", self.name);
        let answer = self.elastic.ask(what, Method::GET, &path, None).await?;
        check_whole(what, &answer)?;
        answer["count"]
            .as_u64()
            .ok_or(ElasticError::Answer { what })
    }

    /// Makes this the index that clients search, in one call; the one before it is removed after. It has
    /// `found` documents, which are to be as many as were written.
    pub(in crate::index) async fn publish(
        &self,
        found: u64,
        expected: Option<u64>,
    ) -> Result<(), ElasticError> {
        if let Some(expected) = expected.filter(|expected| *expected != found) {
            return Err(ElasticError::Count {
                index: self.name.clone(),
                found,
                expected,
            });
        }
        let elastic = &self.elastic;
        // It tells who has superseded this writer; that it was not since is made sure by the swap itself.
        elastic.claim(&self.epoch).await?;
        let before = elastic.aliased().await?;
        elastic.swap(&self.epoch, &self.name, &before).await?;
        let new = std::slice::from_ref(&self.name);
        elastic.clean(&self.epoch, new).await
    }
}

/// Makes sure that an answer is of all shards: one of some would be taken for all that there is.
fn check_whole(what: &'static str, answer: &Value) -> Result<(), ElasticError> {
    let failed = answer["_shards"]["failed"].as_u64().unwrap_or(0);
    if failed > 0 || answer["timed_out"].as_bool() == Some(true) {
        return Err(ElasticError::Answer { what });
    }
    Ok(())
}
