//! The engine `elasticsearch`.
//!
//! ```text
//! ALIAS ──▶ ALIAS-1763770000000    what clients search; its mapping's `_meta` holds our state
//!           ALIAS-1763779999999    half a build, until one call of _aliases swaps them
//! ```
//! The state is in the mapping and not among the documents, where a search would find it. Elasticsearch
//! commits no documents together with it, so the order does: how much of the database's history has been seen
//! is written before the documents, and up to which watermark it is complete after them. What a crash
//! in between leaves is read and written once more, to the same effect.

mod bulk;
mod error;
mod http;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use hyper::Method;
use serde_json::{Value, json};
use understudy_config::{Elasticsearch, Rows};
use understudy_replication::wall_time::WallTime;

pub use self::error::ElasticError;
use self::http::{Answer, Http};
use super::engine::Manner;
use super::keeper::{Index, percent};
use super::payload::Payload;
use super::row::{Applied, Change, Entry};
use super::search::{Hit, SearchError, SearchResult};

/// Of each document beside its columns, which hold no `-`.
const KEY: &str = "understudy-key";
const HASH: &str = "understudy-hash";
const MARK: &str = "understudy-mark";

/// How many documents are asked for by their keys at once.
const KEYS_MAX: usize = 1000;

/// An Elasticsearch, as one index uses it.
pub(super) struct Elastic {
    http: Http,
    alias: String,
    /// The index's name in our configuration.
    owner: String,
}

/// One index of an Elasticsearch.
pub(super) struct ElasticIndex {
    elastic: Arc<Elastic>,
    name: String,
    columns: Vec<String>,
    /// The state as it was written last.
    state: Mutex<Payload>,
}

/// What the mapping of one of our indexes says.
struct Meta {
    columns: Vec<String>,
    state: String,
}

fn reason(error: &Value) -> String {
    let said = match &error["reason"] {
        Value::String(reason) => reason.clone(),
        _ => error.to_string(),
    };
    said.chars().take(300).collect()
}

fn refused(what: &'static str, answer: &Answer) -> ElasticError {
    ElasticError::Refused {
        what,
        status: answer.status,
        reason: reason(&answer.body["error"]),
    }
}

impl Elastic {
    pub(super) fn open(place: &Elasticsearch, owner: &str) -> Result<Self, ElasticError> {
        Ok(Self {
            http: Http::open(place)?,
            alias: place.alias.clone(),
            owner: owner.to_owned(),
        })
    }

    /// Asks, and expects it to be done.
    async fn ask(
        &self,
        what: &'static str,
        method: Method,
        path: &str,
        body: Option<Value>,
    ) -> Result<Value, ElasticError> {
        let body = body.map_or_else(Bytes::new, |body| Bytes::from(body.to_string()));
        let answer = self.http.ask(what, method, path, body).await?;
        match answer.status {
            200 | 201 => Ok(answer.body),
            _ => Err(refused(what, &answer)),
        }
    }

    /// Returns the indexes that are ours.
    async fn list(&self) -> Result<BTreeMap<String, Meta>, ElasticError> {
        let what = "list its indexes";
        let path = format!("/{}-*/_mapping", self.alias);
        let found = self.ask(what, Method::GET, &path, None).await?;
        let found = found.as_object().ok_or(ElasticError::Answer { what })?;
        let meta = |(name, index): (&String, &Value)| {
            let meta = &index["mappings"]["_meta"]["understudy"];
            if meta["index"].as_str()? != self.owner {
                return None;
            }
            let columns = meta["columns"].as_array()?.iter();
            let meta = Meta {
                columns: columns
                    .filter_map(|column| Some(column.as_str()?.to_owned()))
                    .collect(),
                state: meta["state"].as_str()?.to_owned(),
            };
            Some((name.clone(), meta))
        };
        Ok(found.iter().filter_map(meta).collect())
    }

    /// Returns the indexes that clients search.
    async fn aliased(&self) -> Result<Vec<String>, ElasticError> {
        let what = "tell what the alias stands for";
        let path = format!("/_alias/{}", self.alias);
        let answer = self
            .http
            .ask(what, Method::GET, &path, Bytes::new())
            .await?;
        match (answer.status, answer.body.as_object()) {
            (200, Some(found)) => Ok(found.keys().cloned().collect()),
            (404, _) => Ok(Vec::new()),
            _ => Err(refused(what, &answer)),
        }
    }

    fn index(self: &Arc<Self>, name: String, columns: Vec<String>, state: Payload) -> ElasticIndex {
        ElasticIndex {
            elastic: self.clone(),
            name,
            columns,
            state: Mutex::new(state),
        }
    }

    /// Returns the index that clients search, if it is whole and of these rows.
    pub(super) async fn current(
        self: &Arc<Self>,
        rows: &Rows,
    ) -> Result<Option<(Arc<ElasticIndex>, Payload)>, ElasticError> {
        let Some(name) = self.aliased().await?.pop() else {
            return Ok(None);
        };
        let Some(meta) = self.list().await?.remove(&name) else {
            return Ok(None);
        };
        let payload = Payload::parse(&meta.state, rows).filter(Payload::is_ready);
        Ok(payload.map(|payload| {
            let index = self.index(name, meta.columns, payload.clone());
            (Arc::new(index), payload)
        }))
    }

    /// Returns half a build of these rows.
    pub(super) async fn half(
        self: &Arc<Self>,
        rows: &Rows,
    ) -> Result<Option<(Arc<ElasticIndex>, Payload)>, ElasticError> {
        let aliased = self.aliased().await?;
        let ours = self.list().await?;
        let half = ours.into_iter().rev().find_map(|(name, meta)| {
            let payload = Payload::parse(&meta.state, rows)?;
            let is_half = !payload.is_ready() && !aliased.contains(&name);
            is_half.then_some((name, meta, payload))
        });
        Ok(half.map(|(name, meta, payload)| {
            let index = self.index(name, meta.columns, payload.clone());
            (Arc::new(index), payload)
        }))
    }

    /// Removes every index of ours that clients do not search.
    async fn clean(&self, aliased: &[String]) -> Result<(), ElasticError> {
        for name in self.list().await?.into_keys() {
            if !aliased.contains(&name) {
                let path = format!("/{name}");
                self.ask("remove an old index", Method::DELETE, &path, None)
                    .await?;
            }
        }
        Ok(())
    }

    /// Begins a new index of these columns; half of another is removed.
    pub(super) async fn begin(
        self: &Arc<Self>,
        columns: &[String],
        payload: &Payload,
    ) -> Result<Arc<ElasticIndex>, ElasticError> {
        self.clean(&self.aliased().await?).await?;
        let mut properties = serde_json::Map::new();
        for (at, column) in columns.iter().enumerate() {
            let of_type = if at == 0 { "keyword" } else { "text" };
            properties.insert(column.clone(), json!({ "type": of_type }));
        }
        for name in [KEY, HASH, MARK] {
            properties.insert(name.to_owned(), json!({ "type": "keyword" }));
        }
        let name = format!("{}-{}", self.alias, WallTime::now().0);
        let index = self.index(name, columns.to_vec(), payload.clone());
        let mappings = json!({
            "dynamic": "strict",
            "_meta": index.meta(payload),
            "properties": properties,
        });
        let body = json!({ "mappings": mappings });
        let path = format!("/{}", index.name);
        self.ask("make an index", Method::PUT, &path, Some(body))
            .await?;
        Ok(Arc::new(index))
    }
}

impl ElasticIndex {
    fn meta(&self, payload: &Payload) -> Value {
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
        let path = format!("/{}/_mapping", self.name);
        let body = json!({ "_meta": self.meta(payload) });
        let asking = self
            .elastic
            .ask("keep our state", Method::PUT, &path, Some(body));
        asking.await?;
        *self.state.lock().unwrap_or_else(PoisonError::into_inner) = payload.clone();
        Ok(())
    }

    /// Makes changes, and keeps the state.
    pub(super) async fn apply(
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
        if manner == Manner::Replace {
            self.drop_unchanged(&mut by_key).await?;
        }
        let has_changes = !by_key.is_empty();
        let mut applied = Applied::default();
        if has_changes {
            let mut before = self.state();
            before.stamp.clone_from(&payload.stamp);
            self.keep(&before).await?;
            applied = self.bulk(by_key).await?;
        }
        if has_changes || must {
            self.keep(payload).await?;
        }
        Ok(applied)
    }

    /// Leaves out what is as it should be already.
    async fn drop_unchanged(
        &self,
        changes: &mut BTreeMap<String, Change>,
    ) -> Result<(), ElasticError> {
        let what = "tell what documents hold";
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
                }
            }
        }
        Ok(())
    }

    /// Returns the documents beyond a key, in the order of the bytes of their keys.
    pub(super) async fn entries(
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
    pub(super) async fn refresh(&self) -> Result<(), ElasticError> {
        let what = "make documents visible";
        let path = format!("/{}/_refresh", self.name);
        self.elastic
            .ask(what, Method::POST, &path, None)
            .await
            .map(drop)
    }

    /// Returns how many documents are visible.
    pub(super) async fn count(&self) -> Result<u64, ElasticError> {
        let what = "count documents";
        let path = format!("/{}/_count", self.name);
        let answer = self.elastic.ask(what, Method::GET, &path, None).await?;
        answer["count"]
            .as_u64()
            .ok_or(ElasticError::Answer { what })
    }

    /// Makes this the index that clients search, in one call; the one before it is removed after. It has
    /// `found` documents, which are to be as many as were written.
    pub(super) async fn publish(
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
        let before = elastic.aliased().await?;
        let mut actions: Vec<Value> = before
            .iter()
            .filter(|name| **name != self.name)
            .map(|name| json!({ "remove": { "index": name, "alias": elastic.alias } }))
            .collect();
        actions.push(json!({ "add": { "index": self.name, "alias": elastic.alias } }));
        let body = json!({ "actions": actions });
        elastic
            .ask("swap the alias", Method::POST, "/_aliases", Some(body))
            .await?;
        elastic.clean(std::slice::from_ref(&self.name)).await
    }
}

/// Searches the alias.
pub(super) async fn search(
    index: &Index,
    query: &str,
    limit: usize,
) -> Result<SearchResult, SearchError> {
    let name = index.name().to_owned();
    let failed = |source: ElasticError| SearchError::Elastic {
        name: name.clone(),
        source,
    };
    let elastic = match index.elastic() {
        Ok(elastic) => elastic,
        Err(error) => {
            return Err(SearchError::Unusable {
                name,
                why: error.chain(),
            });
        }
    };
    let what = "search";
    let body = json!({
        "query": { "query_string": { "query": query } },
        "size": limit,
        "track_total_hits": true,
    });
    let path = format!("/{}/_search", elastic.alias);
    let asking = elastic
        .http
        .ask(what, Method::POST, &path, Bytes::from(body.to_string()));
    let answer = asking.await.map_err(failed)?;
    let building = index.face().building;
    match answer.status {
        200 => {}
        400 => {
            return Err(SearchError::Query {
                message: reason(&answer.body["error"]),
            });
        }
        404 => {
            return Err(match building {
                Some((read, total)) => SearchError::Rebuilding {
                    name,
                    percent: total.map(|total| percent(read, total)),
                },
                None => SearchError::Absent { name },
            });
        }
        _ => return Err(failed(refused(what, &answer))),
    }
    let result = parse(&answer.body);
    result.ok_or_else(|| failed(ElasticError::Answer { what }))
}

fn parse(answer: &Value) -> Option<SearchResult> {
    let hit = |hit: &Value| {
        let fields = hit["_source"].as_object()?.iter();
        let ours = [KEY, HASH, MARK];
        let fields = fields.filter(|(name, _)| !ours.contains(&name.as_str()));
        Some(Hit {
            score: serde_json::from_value(hit["_score"].clone()).unwrap_or_default(),
            fields: fields
                .filter_map(|(name, value)| Some((name.clone(), value.as_str()?.to_owned())))
                .collect(),
        })
    };
    let hits = answer["hits"]["hits"].as_array()?.iter();
    Some(SearchResult {
        took_ms: answer["took"].as_u64()?,
        total: answer["hits"]["total"]["value"].as_u64()?,
        hits: hits.map(hit).collect::<Option<_>>()?,
    })
}
