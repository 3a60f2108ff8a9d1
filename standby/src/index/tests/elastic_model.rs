//! A strict model of the part of Elasticsearch's API that is used, over real HTTP.
//!
//! It refuses what Elasticsearch refuses: a body that is no JSON, an unknown field, a column that the mapping
//! has not, an old version. A search and a count see what was refreshed, and no more.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

const LOGIN: &str = "Basic dW5kZXJzdHVkeTpzZWNyZXQ="; // understudy:secret

#[derive(Clone, Debug, Default)]
pub(super) struct Document {
    pub(super) source: Value,
    version: i64,
}

#[derive(Debug, Default)]
pub(super) struct Idx {
    mappings: Value,
    pub(super) documents: BTreeMap<String, Document>,
    visible: BTreeMap<String, Document>,
    /// Versions of what was deleted.
    graves: BTreeMap<String, i64>,
}

#[derive(Debug, Default)]
pub(super) struct World {
    pub(super) indexes: BTreeMap<String, Idx>,
    pub(super) alias: BTreeMap<String, String>,
    /// The next requests, or documents, for which there is no time.
    pub(super) busy: u32,
    pub(super) busy_documents: u32,
    /// The next bulk requests that are carried out by half, after which the connection breaks.
    pub(super) breaks: u32,
    /// Documents that cannot be taken.
    pub(super) poison: Option<String>,
    pub(super) requests: Vec<String>,
}

/// A server that is gone when dropped.
pub(super) struct Model {
    pub(super) port: u16,
    world: Arc<Mutex<World>>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Model {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Model {
    pub(super) async fn start() -> Self {
        let world = Arc::new(Mutex::new(World::default()));
        let router = Router::new()
            .fallback(answer)
            .layer(axum::extract::DefaultBodyLimit::max(8 << 20))
            .with_state(world.clone());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let task = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { port, world, task }
    }

    pub(super) fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap()
    }

    /// Returns the one index behind the alias.
    pub(super) fn current(&self, alias: &str) -> String {
        self.world().alias[alias].clone()
    }
}

fn refuse(status: u16, kind: &str, reason: impl Into<String>) -> (u16, Value) {
    let error = json!({ "type": kind, "reason": reason.into() });
    (status, json!({ "error": error, "status": status }))
}

async fn answer(
    State(world): State<Arc<Mutex<World>>>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let mut world = world.lock().unwrap();
    let path = uri.path().to_owned();
    world.requests.push(format!("{method} {path}"));
    let (status, body) = if headers.get("authorization").is_none_or(|it| it != LOGIN) {
        refuse(
            401,
            "security_exception",
            "missing authentication credentials",
        )
    } else if world.busy > 0 {
        world.busy -= 1;
        refuse(429, "es_rejected_execution_exception", "too busy")
    } else {
        let parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
        let of_type = headers["content-type"].to_str().unwrap();
        let expected = match parts.last() {
            Some(&"_bulk") => "application/x-ndjson",
            _ => "application/json",
        };
        if of_type == expected {
            world.route(&method, &parts, uri.query().unwrap_or(""), &body)
        } else {
            refuse(406, "content_type_header_exception", of_type)
        }
    };
    if world.breaks > 0 && path.ends_with("/_bulk") {
        world.breaks -= 1;
        return StatusCode::BAD_GATEWAY.into_response();
    }
    let status = StatusCode::from_u16(status).unwrap();
    (status, axum::Json(body)).into_response()
}

/// Refuses keys that the API does not know.
fn only(value: &Value, keys: &[&str]) {
    for key in value.as_object().unwrap().keys() {
        assert!(keys.contains(&key.as_str()), "unknown key {key} in {value}");
    }
}

impl World {
    fn route(
        &mut self,
        method: &Method,
        parts: &[&str],
        query: &str,
        body: &Bytes,
    ) -> (u16, Value) {
        let parsed = || serde_json::from_slice::<Value>(body).unwrap();
        match (method.as_str(), parts) {
            ("GET", ["_alias", alias]) => match self.alias.get(*alias) {
                Some(index) => (200, json!({ index: { "aliases": { *alias: {} } } })),
                None => refuse(404, "aliases_not_found_exception", "alias is missing"),
            },
            ("GET", [pattern, "_mapping"]) => {
                let start = pattern.strip_suffix('*').unwrap();
                let found = self
                    .indexes
                    .iter()
                    .filter(|(name, _)| name.starts_with(start));
                let found: serde_json::Map<String, Value> = found
                    .map(|(name, idx)| (name.clone(), json!({ "mappings": idx.mappings })))
                    .collect();
                (200, found.into())
            }
            ("PUT", [name]) => self.create(name, &parsed()),
            ("DELETE", [name]) => match self.indexes.remove(*name) {
                Some(_) => {
                    self.alias.retain(|_, index| index != name);
                    (200, json!({ "acknowledged": true }))
                }
                None => refuse(404, "index_not_found_exception", "no such index"),
            },
            ("POST", ["_aliases"]) => self.swap(&parsed()),
            ("POST", [alias, "_search"]) if self.alias.contains_key(*alias) => {
                self.find(alias, &parsed())
            }
            (_, [name, rest @ ..]) => {
                let Some(idx) = self.indexes.get_mut(*name) else {
                    return refuse(
                        404,
                        "index_not_found_exception",
                        format!("no such index [{name}]"),
                    );
                };
                match (method.as_str(), rest) {
                    ("PUT", ["_mapping"]) => {
                        let body = parsed();
                        only(&body, &["_meta"]);
                        idx.mappings["_meta"] = body["_meta"].clone();
                        (200, json!({ "acknowledged": true }))
                    }
                    ("POST", ["_refresh"]) => {
                        idx.visible = idx.documents.clone();
                        (200, json!({ "_shards": {} }))
                    }
                    ("GET", ["_count"]) => (200, json!({ "count": idx.visible.len() })),
                    ("POST", ["_mget"]) => idx.get_many(&parsed(), query),
                    ("POST", ["_search"]) => idx.list(&parsed()),
                    ("POST", ["_bulk"]) => {
                        let text = std::str::from_utf8(body).unwrap();
                        let is_half = self.breaks > 0;
                        let poison = self.poison.clone();
                        let busy = &mut self.busy_documents;
                        idx.bulk(text, is_half, poison.as_deref(), busy)
                    }
                    _ => refuse(405, "method", format!("{method} {parts:?}")),
                }
            }
            _ => refuse(405, "method", format!("{method} {parts:?}")),
        }
    }

    fn create(&mut self, name: &str, body: &Value) -> (u16, Value) {
        only(body, &["mappings"]);
        let mappings = &body["mappings"];
        only(mappings, &["dynamic", "_meta", "properties"]);
        for property in mappings["properties"].as_object().unwrap().values() {
            only(property, &["type"]);
            assert!(property["type"] == "keyword" || property["type"] == "text");
        }
        assert!(!name.contains(|c: char| c.is_ascii_uppercase() || "\\/*?\"<>| ,#:".contains(c)));
        if self.indexes.contains_key(name) {
            return refuse(400, "resource_already_exists_exception", "it exists");
        }
        let idx = Idx {
            mappings: mappings.clone(),
            ..Idx::default()
        };
        self.indexes.insert(name.to_owned(), idx);
        (200, json!({ "acknowledged": true, "index": name }))
    }

    /// All of the actions, or none.
    fn swap(&mut self, body: &Value) -> (u16, Value) {
        only(body, &["actions"]);
        let mut alias = self.alias.clone();
        for action in body["actions"].as_array().unwrap() {
            only(action, &["add", "remove"]);
            for (verb, what) in action.as_object().unwrap() {
                only(what, &["index", "alias"]);
                let index = what["index"].as_str().unwrap().to_owned();
                let name = what["alias"].as_str().unwrap().to_owned();
                if !self.indexes.contains_key(&index) {
                    return refuse(404, "index_not_found_exception", index);
                }
                if verb == "add" {
                    alias.insert(name, index);
                } else if alias.remove(&name) != Some(index) {
                    return refuse(404, "aliases_not_found_exception", name);
                }
            }
        }
        self.alias = alias;
        (200, json!({ "acknowledged": true }))
    }

    fn find(&self, alias: &str, body: &Value) -> (u16, Value) {
        only(body, &["query", "size", "track_total_hits"]);
        let query = body["query"]["query_string"]["query"].as_str().unwrap();
        if query.contains('"') && query.matches('"').count() % 2 == 1 {
            return refuse(
                400,
                "search_phase_execution_exception",
                "Failed to parse query",
            );
        }
        let idx = &self.indexes[&self.alias[alias]];
        let is_hit = |document: &&Document| {
            let texts = document.source.as_object().unwrap().values();
            let mut texts = texts.map(|text| text.as_str().unwrap().to_lowercase());
            texts.any(|text| text.split_whitespace().any(|word| word == query))
        };
        let hits: Vec<Value> = idx
            .visible
            .iter()
            .filter(|(_, document)| query == "*" || is_hit(document))
            .map(|(id, document)| json!({ "_id": id, "_score": 1.0, "_source": document.source }))
            .collect();
        let size = usize::try_from(body["size"].as_u64().unwrap()).unwrap();
        let total = json!({ "value": hits.len(), "relation": "eq" });
        let hits: Vec<Value> = hits.into_iter().take(size).collect();
        (
            200,
            json!({ "took": 1, "hits": { "total": total, "hits": hits } }),
        )
    }
}

impl Idx {
    fn get_many(&self, body: &Value, query: &str) -> (u16, Value) {
        only(body, &["ids"]);
        assert_eq!(query, "_source_includes=understudy-hash,understudy-mark");
        let document = |id: &Value| match self.documents.get(id.as_str().unwrap()) {
            Some(document) => json!({ "_id": id, "found": true, "_source": document.source }),
            None => json!({ "_id": id, "found": false }),
        };
        let ids = body["ids"].as_array().unwrap();
        (
            200,
            json!({ "docs": ids.iter().map(document).collect::<Vec<_>>() }),
        )
    }

    fn list(&self, body: &Value) -> (u16, Value) {
        only(body, &["size", "sort", "_source", "query", "search_after"]);
        assert_eq!(body["sort"], json!([{ "understudy-key": "asc" }]));
        let size = usize::try_from(body["size"].as_u64().unwrap()).unwrap();
        assert!(size <= 10_000, "Result window is too large");
        let after = body["search_after"][0].as_str();
        let key = |document: &Document| {
            document.source["understudy-key"]
                .as_str()
                .unwrap()
                .to_owned()
        };
        let hits: Vec<Value> = self
            .visible
            .iter()
            .filter(|(_, document)| after.is_none_or(|after| key(document).as_str() > after))
            .take(size)
            .map(|(id, document)| json!({ "_id": id, "_source": document.source }))
            .collect();
        (200, json!({ "took": 1, "hits": { "hits": hits } }))
    }

    fn bulk(
        &mut self,
        text: &str,
        is_half: bool,
        poison: Option<&str>,
        busy: &mut u32,
    ) -> (u16, Value) {
        assert!(
            text.ends_with('\n'),
            "The bulk request must be terminated by a newline"
        );
        assert!(text.len() < 6 << 20, "it is too long");
        let mut lines = text.lines();
        let mut items = Vec::new();
        while let Some(line) = lines.next() {
            let action: Value = serde_json::from_str(line).unwrap();
            only(&action, &["index", "delete"]);
            let (verb, what) = action.as_object().unwrap().iter().next().unwrap();
            let document = (verb == "index").then(|| lines.next().unwrap());
            let (status, error) = if is_half && items.len() % 2 == 1 {
                (503, Value::Null)
            } else if *busy > 0 {
                *busy -= 1;
                (
                    429,
                    json!({ "type": "es_rejected_execution_exception", "reason": "busy" }),
                )
            } else {
                self.one(what, document, poison)
            };
            items.push(json!({ verb: { "_id": what["_id"], "status": status, "error": error } }));
        }
        (200, json!({ "took": 1, "items": items }))
    }

    fn one(&mut self, what: &Value, document: Option<&str>, poison: Option<&str>) -> (u16, Value) {
        only(what, &["_id", "version", "version_type"]);
        let id = what["_id"].as_str().unwrap().to_owned();
        assert!(!id.is_empty() && id.len() <= 512, "id is too long");
        let before = self.documents.get(&id).map(|it| it.version);
        let before = before.or_else(|| self.graves.get(&id).copied());
        let Some(document) = document else {
            let status = if self.documents.remove(&id).is_some() {
                200
            } else {
                404
            };
            self.graves.insert(id, before.unwrap_or(0) + 1);
            return (status, Value::Null);
        };
        let version = match what.get("version") {
            None => before.unwrap_or(0) + 1,
            Some(version) => {
                assert_eq!(what["version_type"], "external_gte");
                let version = version.as_i64().unwrap();
                if before.is_some_and(|before| version < before) {
                    return (409, json!({ "type": "version_conflict_engine_exception" }));
                }
                version
            }
        };
        let source: Value = serde_json::from_str(document).unwrap();
        for (field, value) in source.as_object().unwrap() {
            if self.mappings["properties"].get(field).is_none() {
                let reason = format!("introduction of [{field}] is not allowed");
                return (
                    400,
                    json!({ "type": "strict_dynamic_mapping_exception", "reason": reason }),
                );
            }
            if poison.is_some_and(|poison| value == poison) {
                return (
                    400,
                    json!({ "type": "document_parsing_exception", "reason": "poison" }),
                );
            }
        }
        self.graves.remove(&id);
        self.documents.insert(id, Document { source, version });
        (201, Value::Null)
    }
}
