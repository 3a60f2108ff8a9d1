//! The engine `elasticsearch`.
//!
//! ```text
//! ALIAS ──▶ ALIAS-1763770000000    what clients search; its mapping's `_meta` holds our state
//!           ALIAS-1763779999999    half a build, until one call of _aliases swaps them
//! ```
//! Each is written through an alias of its own, which names the writer's epoch: see `claim`.
//!
//! The state is in the mapping and not among the documents, where a search would find it. Elasticsearch
//! commits no documents together with it, so the order does: how much of the database's history has been seen
//! is written before the documents, and up to which watermark it is complete after them. What a crash
//! in between leaves is read and written once more, to the same effect.

mod bulk;
mod claim;
mod error;
mod http;
mod written;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use hyper::Method;
use serde_json::{Value, json};
use understudy_config::{Elasticsearch, Rows};
use understudy_replication::epoch::Epoch;
use understudy_replication::wall_time::WallTime;

pub use self::error::ElasticError;
use self::http::{Answer, Http};
use super::keeper::{Index, percent};
use super::payload::Payload;
use super::search::{Hit, SearchError, SearchResult};

/// Of each document beside its columns, which hold no `-`.
const KEY: &str = "understudy-key";
const HASH: &str = "understudy-hash";
const MARK: &str = "understudy-mark";

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
    /// The epoch in which it is written.
    epoch: Epoch,
    columns: Vec<String>,
    /// The state as it was written last.
    state: Mutex<Payload>,
}

/// What Elasticsearch tells of one of our indexes.
struct Meta {
    /// The epochs that it is claimed for.
    writers: BTreeSet<Epoch>,
    columns: Vec<String>,
    state: String,
}

fn reason(error: &Value) -> String {
    let said = match error["reason"].as_str() {
        Some(reason) => reason.to_owned(),
        None => error.to_string(),
    };
    said.chars().take(300).collect()
}

/// Returns whether an index is one that was made to stand behind this alias.
fn is_made_for(alias: &str, name: &str) -> bool {
    let rest = name.strip_prefix(alias);
    let made = rest.and_then(|rest| rest.strip_prefix('-'));
    made.is_some_and(|made| !made.is_empty() && made.bytes().all(|it| it.is_ascii_digit()))
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
        let path = format!("/{}-*", self.alias);
        let found = self.ask(what, Method::GET, &path, None).await?;
        let found = found.as_object().ok_or(ElasticError::Answer { what })?;
        let meta = |(name, index): (&String, &Value)| {
            let meta = &index["mappings"]["_meta"]["understudy"];
            // The alias of another appliance may begin as ours does, and its index be named like ours.
            if meta["index"].as_str()? != self.owner || !is_made_for(&self.alias, name) {
                return None;
            }
            let columns = meta["columns"].as_array()?.iter();
            let aliases = index["aliases"].as_object()?.keys();
            let meta = Meta {
                writers: aliases
                    .filter_map(|alias| claim::epoch_of(name, alias))
                    .collect(),
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

    fn index(
        self: &Arc<Self>,
        name: String,
        epoch: &Epoch,
        columns: Vec<String>,
        state: Payload,
    ) -> ElasticIndex {
        ElasticIndex {
            elastic: self.clone(),
            name,
            epoch: epoch.clone(),
            columns,
            state: Mutex::new(state),
        }
    }

    /// Returns the index that clients search, if it is whole and of these rows, claimed for this epoch.
    pub(super) async fn current(
        self: &Arc<Self>,
        rows: &Rows,
        epoch: &Epoch,
    ) -> Result<Option<(Arc<ElasticIndex>, Payload)>, ElasticError> {
        // Before its state is read: nobody else changes that any more.
        self.claim(epoch).await?;
        let Some(name) = self.aliased().await?.pop() else {
            return Ok(None);
        };
        let Some(meta) = self.list().await?.remove(&name) else {
            return Ok(None);
        };
        let payload = Payload::parse(&meta.state, rows).filter(Payload::is_ready);
        Ok(payload.map(|payload| {
            let index = self.index(name, epoch, meta.columns, payload.clone());
            (Arc::new(index), payload)
        }))
    }

    /// Returns half a build of these rows, claimed for this epoch.
    pub(super) async fn half(
        self: &Arc<Self>,
        rows: &Rows,
        epoch: &Epoch,
    ) -> Result<Option<(Arc<ElasticIndex>, Payload)>, ElasticError> {
        self.claim(epoch).await?;
        let aliased = self.aliased().await?;
        let ours = self.list().await?;
        let half = ours.into_iter().rev().find_map(|(name, meta)| {
            let payload = Payload::parse(&meta.state, rows)?;
            let is_half = !payload.is_ready() && !aliased.contains(&name);
            is_half.then_some((name, meta, payload))
        });
        Ok(half.map(|(name, meta, payload)| {
            let index = self.index(name, epoch, meta.columns, payload.clone());
            (Arc::new(index), payload)
        }))
    }

    /// Begins a new index of these columns; half of another is removed.
    pub(super) async fn begin(
        self: &Arc<Self>,
        epoch: &Epoch,
        columns: &[String],
        payload: &Payload,
    ) -> Result<Arc<ElasticIndex>, ElasticError> {
        self.claim(epoch).await?;
        self.clean(epoch, &self.aliased().await?).await?;
        let mut properties = serde_json::Map::new();
        for (at, column) in columns.iter().enumerate() {
            let of_type = if at == 0 { "keyword" } else { "text" };
            properties.insert(column.clone(), json!({ "type": of_type }));
        }
        for name in [KEY, HASH, MARK] {
            properties.insert(name.to_owned(), json!({ "type": "keyword" }));
        }
        let name = format!("{}-{}", self.alias, WallTime::now().0);
        let index = self.index(name, epoch, columns.to_vec(), payload.clone());
        let mappings = json!({
            "dynamic": "strict",
            "_meta": index.meta(payload),
            "properties": properties,
        });
        let body = json!({ "aliases": { index.writer(): {} }, "mappings": mappings });
        let path = format!("/{}", index.name);
        self.ask("make an index", Method::PUT, &path, Some(body))
            .await?;
        Ok(Arc::new(index))
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

#[cfg(test)]
mod tests {
    use super::is_made_for;

    #[test]
    fn an_index_of_another_alias_that_begins_alike_is_not_ours() {
        assert!(is_made_for("catalog", "catalog-1763770000000"));
        for other in [
            "catalog-test-1763770000000",
            "catalog-",
            "catalog",
            "other-1",
        ] {
            assert!(!is_made_for("catalog", other), "{other}");
        }
    }
}
