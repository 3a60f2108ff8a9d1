//! A strict model of the part of Elasticsearch's API that is used, over real HTTP.
//!
//! It refuses what Elasticsearch refuses: a body that is no JSON, an unknown field, a column that the mapping
//! has not, an old version, a document that has changed since it was seen, an alias that has to exist and does
//! not. A search and a count see what was refreshed, and no more.

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
    /// Which change of the index it is of.
    seq_no: u64,
}

/// Something that is done once, right before a request.
pub(super) type Before = (&'static str, fn(&mut World));

#[derive(Debug, Default)]
pub(super) struct Idx {
    mappings: Value,
    pub(super) documents: BTreeMap<String, Document>,
    visible: BTreeMap<String, Document>,
    /// Versions of what was deleted.
    graves: BTreeMap<String, i64>,
    changes: u64,
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
    /// What others do before the next request that has this in it.
    pub(super) before: Option<Before>,
    /// Documents that were not deleted, since they had changed.
    pub(super) conflicts: u32,
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
    let request = format!("{method} {path}");
    if let Some((_, act)) = world.before.take_if(|(part, _)| request.contains(*part)) {
        act(&mut world);
    }
    world.requests.push(request);
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

/// What a bulk request comes to that goes through an alias that is none: each document is refused.
fn bulk_of_none(name: &str, text: &str) -> (u16, Value) {
    let mut lines = text.lines();
    let mut items = Vec::new();
    while let Some(line) = lines.next() {
        let action: Value = serde_json::from_str(line).unwrap();
        let (verb, what) = action.as_object().unwrap().iter().next().unwrap();
        if verb == "index" {
            lines.next().unwrap();
        }
        let reason = format!("no such index [{name}] and [require_alias] request flag is [true]");
        let error = json!({ "type": "index_not_found_exception", "reason": reason });
        items.push(json!({ verb: { "_id": what["_id"], "status": 404, "error": error } }));
    }
    (200, json!({ "took": 1, "errors": true, "items": items }))
}

impl World {
    /// Has the node of another epoch claim everything.
    pub(super) fn claim(&mut self, epoch: &str) {
        self.alias.retain(|alias, _| !alias.contains("-writer-"));
        for name in self.indexes.keys() {
            self.alias
                .insert(format!("{name}-writer-{epoch}"), name.clone());
        }
    }

    /// Writes a document, as another does.
    pub(super) fn rewrite(&mut self, index: &str, id: &str, title: &str) {
        let idx = self.indexes.get_mut(index).unwrap();
        idx.changes += 1;
        let seq_no = idx.changes;
        let document = idx.documents.get_mut(id).unwrap();
        document.source["title"] = title.into();
        document.seq_no = seq_no;
    }

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
            ("GET", [pattern]) => {
                let start = pattern.strip_suffix('*').unwrap();
                let found = self
                    .indexes
                    .iter()
                    .filter(|(name, _)| name.starts_with(start));
                let found: serde_json::Map<String, Value> = found
                    .map(|(name, idx)| {
                        let of_it = self.alias.iter().filter(|(_, index)| *index == name);
                        let aliases: serde_json::Map<String, Value> =
                            of_it.map(|(alias, _)| (alias.clone(), json!({}))).collect();
                        let told = json!({ "aliases": aliases, "mappings": idx.mappings });
                        (name.clone(), told)
                    })
                    .collect();
                (200, found.into())
            }
            ("PUT", [name]) => self.create(name, &parsed()),
            ("POST", ["_aliases"]) => self.swap(&parsed()),
            ("POST", [alias, "_search"]) if self.alias.contains_key(*alias) => {
                self.find(alias, &parsed())
            }
            (_, [name, rest @ ..]) => {
                let index = self.alias.get(*name).map_or(*name, String::as_str);
                let is_alias = self.alias.contains_key(*name);
                if rest == ["_bulk"] {
                    // Without this a name that is nothing would become an index.
                    assert_eq!(query, "require_alias=true");
                }
                if rest == ["_bulk"] && !is_alias {
                    return bulk_of_none(name, std::str::from_utf8(body).unwrap());
                }
                let Some(idx) = self.indexes.get_mut(index) else {
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
                        let conflicts = &mut self.conflicts;
                        idx.bulk(text, is_half, poison.as_deref(), busy, conflicts)
                    }
                    _ => refuse(405, "method", format!("{method} {parts:?}")),
                }
            }
            _ => refuse(405, "method", format!("{method} {parts:?}")),
        }
    }

    fn create(&mut self, name: &str, body: &Value) -> (u16, Value) {
        only(body, &["aliases", "mappings"]);
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
        for (alias, options) in body["aliases"].as_object().unwrap() {
            only(options, &[]);
            let before = self.alias.insert(alias.clone(), name.to_owned());
            assert_eq!(
                before, None,
                "an alias of several indexes cannot be written"
            );
        }
        (200, json!({ "acknowledged": true, "index": name }))
    }

    /// All of the actions, or none. What is to be removed and is not there is passed over, unless it must be there
    /// or there is nothing else to do. Indexes are removed before all else.
    fn swap(&mut self, body: &Value) -> (u16, Value) {
        only(body, &["actions"]);
        let mut alias = self.alias.clone();
        let mut gone = Vec::new();
        let mut is_anything = false;
        let actions = body["actions"].as_array().unwrap().iter();
        let actions: Vec<(&str, &Value)> = actions
            .map(|action| {
                only(action, &["add", "remove", "remove_index"]);
                let (verb, what) = action.as_object().unwrap().iter().next().unwrap();
                (verb.as_str(), what)
            })
            .collect();
        for (_, what) in actions.iter().filter(|(verb, _)| *verb == "remove_index") {
            only(what, &["index"]);
            gone.push(what["index"].as_str().unwrap().to_owned());
            is_anything = true;
        }
        for (verb, what) in actions.iter().filter(|(verb, _)| *verb != "remove_index") {
            only(what, &["index", "alias", "must_exist"]);
            let index = what["index"].as_str().unwrap().to_owned();
            let name = what["alias"].as_str().unwrap().to_owned();
            if !self.indexes.contains_key(&index) || gone.contains(&index) {
                return refuse(404, "index_not_found_exception", index);
            }
            if *verb == "add" {
                let before = alias.insert(name, index.clone());
                assert!(
                    before.is_none_or(|before| before == index),
                    "of several indexes"
                );
                is_anything = true;
            } else if alias.get(&name) == Some(&index) {
                alias.remove(&name);
                is_anything = true;
            } else if what["must_exist"] == true {
                return refuse(404, "aliases_not_found_exception", name);
            }
        }
        if !is_anything {
            return refuse(404, "aliases_not_found_exception", "aliases are missing");
        }
        for index in gone {
            if self.indexes.remove(&index).is_none() {
                return refuse(404, "index_not_found_exception", index);
            }
            alias.retain(|_, of| *of != index);
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
    /// Returns what the mapping keeps for us.
    pub(super) fn meta(&self) -> Value {
        self.mappings["_meta"].clone()
    }

    fn get_many(&self, body: &Value, query: &str) -> (u16, Value) {
        only(body, &["ids"]);
        assert_eq!(query, "_source_includes=understudy-hash,understudy-mark");
        let document = |id: &Value| match self.documents.get(id.as_str().unwrap()) {
            Some(document) => json!({
                "_id": id, "found": true, "_source": document.source, "_version": document.version,
                "_seq_no": document.seq_no, "_primary_term": 1,
            }),
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
        conflicts: &mut u32,
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
            *conflicts += u32::from(verb == "delete" && status == 409);
            items.push(json!({ verb: { "_id": what["_id"], "status": status, "error": error } }));
        }
        (200, json!({ "took": 1, "items": items }))
    }

    fn one(&mut self, what: &Value, document: Option<&str>, poison: Option<&str>) -> (u16, Value) {
        match document {
            Some(_) => only(what, &["_id", "version", "version_type"]),
            None => only(what, &["_id", "if_seq_no", "if_primary_term"]),
        }
        let id = what["_id"].as_str().unwrap().to_owned();
        assert!(!id.is_empty() && id.len() <= 512, "id is too long");
        let before = self.documents.get(&id).map(|it| it.version);
        let before = before.or_else(|| self.graves.get(&id).copied());
        self.changes += 1;
        let Some(document) = document else {
            if let Some(wanted) = what.get("if_seq_no") {
                assert_eq!(what["if_primary_term"], 1);
                let found = self.documents.get(&id).map(|it| it.seq_no);
                if found != wanted.as_u64() {
                    return (409, json!({ "type": "version_conflict_engine_exception" }));
                }
            }
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
        let document = Document {
            source,
            version,
            seq_no: self.changes,
        };
        self.documents.insert(id, document);
        (201, Value::Null)
    }
}
