//! The key-value store on the monitor port: its figures for anybody, its keys and values where the
//! configuration says so.
//!
//! Whoever reaches the monitor port is not asked who he is, so data is shown only with `view = true`.

use std::sync::Arc;

use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::{StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use understudy_replication::kv::glob;
use understudy_replication::kv::keyspace::{Keyspace, Refusal, Standing};
use understudy_replication::kv::shown::{Content, Shown};
use understudy_replication::position::Position;
use understudy_replication::status::{RoleName, StatusSource, StoreStatus};
use understudy_replication::store::{Durability, StoreKind};

use crate::router::uncached;

/// How much of what is at a key is told, in bytes.
const CONTENT_BYTES_MAX: usize = 64 << 10;

/// How many keys are looked at for one answer, at most and unless told.
const KEYS_MAX: usize = 1000;
const KEYS_DEFAULT: usize = 100;

/// So many keys are looked at before their size is looked at.
const KEYS_AT_ONCE: usize = 64;

/// An answer of keys ends once they have so many bytes.
const KEYS_BYTES_MAX: usize = 1 << 20;

/// The path of a key, before the key.
const KEY_PATH: &str = "/kv/key/";

/// What can tell of the key-value store at any moment.
pub trait KvSource: StatusSource {
    /// Returns whether the configuration has a store; `None` without one, and whether it shows keys and
    /// values here with one.
    fn kv_view(&self) -> Option<bool>;

    /// Returns the store, while it is open.
    fn keyspace(&self) -> Option<Arc<dyn Keyspace>>;
}

type Source = Arc<dyn KvSource>;

/// Returns the routes that tell of the key-value store. It has no fallback, so it can be merged with
/// [`router`](crate::router()).
pub fn kv_router(source: Arc<dyn KvSource>) -> Router {
    Router::new()
        .route("/kv", get(figures))
        .route("/kv/keys", get(keys))
        .route("/kv/key/{key}", get(key))
        .layer(axum::middleware::map_response(uncached))
        .with_state(source)
}

/// Why a request is not answered, as the rest of the monitor tells it.
#[derive(Debug, Serialize)]
struct Error {
    error: String,
}

/// A refusal on the way out.
struct Refused(StatusCode, String);

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let Self(code, error) = self;
        (code, Json(Error { error })).into_response()
    }
}

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Self {
        Self(StatusCode::SERVICE_UNAVAILABLE, refusal.to_string())
    }
}

fn keyspace(source: &Source) -> Result<Arc<dyn Keyspace>, Refused> {
    if source.kv_view().is_none() {
        let reason = "there is no [kv] in the configuration";
        return Err(Refused(StatusCode::NOT_FOUND, reason.to_owned()));
    }
    source.keyspace().ok_or_else(|| {
        let reason = "the store is not open on this node now";
        Refused(StatusCode::SERVICE_UNAVAILABLE, reason.to_owned())
    })
}

/// Returns the store if its keys and values may be shown.
fn viewed(source: &Source) -> Result<Arc<dyn Keyspace>, Refused> {
    if source.kv_view() == Some(false) {
        let reason = "keys and values are not shown here: whoever reaches this port would see them. To show \
                      them, set `view = true` in [kv] of understudy.toml; or use `understudy kv` on the node";
        return Err(Refused(StatusCode::FORBIDDEN, reason.to_owned()));
    }
    keyspace(source)
}

/// What is told of the store as a whole.
#[derive(Debug, Serialize)]
struct Figures {
    node: String,
    role: RoleName,
    /// The primary, where this node is none and knows it.
    primary: Option<String>,
    /// What is visible here.
    position: Position,
    /// `standby-first`, `degraded`, `standalone` or `async`.
    durability: &'static str,
    /// Whether what is acknowledged is on a standby, and since when not.
    promise: Option<Durability>,
    /// The standbys that follow, and what is durable there.
    standbys: Vec<Follower>,
    memory_bytes_max: u64,
    /// Keys and values are shown.
    view: bool,
    /// What else the store tells of itself, in base units.
    gauges: std::collections::BTreeMap<String, u64>,
    problems: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Follower {
    node: String,
    position: Position,
}

async fn figures(State(source): State<Source>) -> Result<Response, Refused> {
    let keyspace = keyspace(&source)?;
    let Standing {
        is_primary: _,
        primary,
        position,
        standbys,
        durability,
        memory_bytes_max,
        allows_flush: _,
    } = keyspace.standing();
    let status = source.status();
    let store = status
        .stores
        .into_iter()
        .find(|store| store.id.kind == StoreKind::Kv);
    let (gauges, problems, promise) = match store {
        Some(StoreStatus {
            gauges,
            problems,
            durability,
            ..
        }) => (gauges, problems, durability),
        None => Default::default(),
    };
    let followers = standbys.into_iter();
    let figures = Figures {
        node: status.node.to_string(),
        role: status.role,
        primary,
        position,
        durability,
        promise,
        standbys: followers
            .map(|(node, position)| Follower { node, position })
            .collect(),
        memory_bytes_max,
        view: source.kv_view() == Some(true),
        gauges,
        problems,
    };
    Ok(Json(figures).into_response())
}

/// Which keys are asked for.
#[derive(Debug, Deserialize)]
struct Asked {
    r#match: Option<String>,
    cursor: Option<String>,
    count: Option<usize>,
}

/// Some of the keys.
#[derive(Debug, Serialize)]
struct Keys {
    /// Where to go on; `"0"` at the end. It is a string: JSON's numbers are too small for it.
    cursor: String,
    keys: Vec<Key>,
}

#[derive(Debug, Serialize)]
struct Key {
    key: Shown,
    r#type: String,
}

async fn keys(
    State(source): State<Source>,
    asked: Result<Query<Asked>, QueryRejection>,
) -> Result<Response, Refused> {
    let keyspace = viewed(&source)?;
    let bad = |reason: String| Refused(StatusCode::BAD_REQUEST, reason);
    let Query(asked) = asked.map_err(|rejection| bad(rejection.body_text()))?;
    let mut cursor: u64 = match &asked.cursor {
        None => 0,
        Some(cursor) => {
            let reason = || bad(format!("`{}` is not a cursor", cut(cursor)));
            cursor.parse().map_err(|_| reason())?
        }
    };
    let count = asked.count.unwrap_or(KEYS_DEFAULT);
    if !(1..=KEYS_MAX).contains(&count) {
        return Err(bad(format!(
            "count is {count}, and 1 to {KEYS_MAX} are allowed"
        )));
    }
    let (mut found, mut bytes, mut seen) = (Vec::new(), 0_usize, 0_usize);
    loop {
        let at_once = KEYS_AT_ONCE.min(count - seen);
        keyspace.read(&mut |space| {
            cursor = space.scan(cursor, at_once, &mut |key, kind| {
                let pattern = asked.r#match.as_deref();
                if pattern.is_none_or(|pattern| glob::matches(pattern.as_bytes(), key)) {
                    bytes = bytes.saturating_add(key.len());
                    found.push(Key {
                        key: key.into(),
                        r#type: kind.to_string(),
                    });
                }
            });
        })?;
        seen += at_once;
        if cursor == 0 || seen >= count || bytes >= KEYS_BYTES_MAX {
            break;
        }
    }
    let keys = Keys {
        cursor: cursor.to_string(),
        keys: found,
    };
    Ok(Json(keys).into_response())
}

/// A key beside what is there.
#[derive(Debug, Serialize)]
struct Found {
    key: Shown,
    #[serde(flatten)]
    content: Content,
}

async fn key(State(source): State<Source>, uri: Uri) -> Result<Response, Refused> {
    let keyspace = viewed(&source)?;
    let written = uri.path().strip_prefix(KEY_PATH).unwrap_or_default();
    let key = percent_decoded(written).ok_or_else(|| {
        let reason = format!("`{}` is not percent-encoded", cut(written));
        Refused(StatusCode::BAD_REQUEST, reason)
    })?;
    let mut content = Content::None;
    keyspace.read(&mut |space| content = Content::of(space, &key, CONTENT_BYTES_MAX))?;
    let code = match &content {
        Content::None => StatusCode::NOT_FOUND,
        Content::String { .. } | Content::Hash { .. } => StatusCode::OK,
    };
    let found = Found {
        key: Shown(key),
        content,
    };
    Ok((code, Json(found)).into_response())
}

/// Returns the bytes that a part of a path stands for: keys need not be text.
fn percent_decoded(text: &str) -> Option<Vec<u8>> {
    let mut bytes = text.bytes();
    let mut decoded = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        decoded.push(match byte {
            b'%' => {
                let digits = [bytes.next()?, bytes.next()?];
                let digits = std::str::from_utf8(&digits).ok()?;
                let is_hex = digits.bytes().all(|digit| digit.is_ascii_hexdigit());
                u8::from_str_radix(digits, 16).ok().filter(|_| is_hex)?
            }
            byte => byte,
        });
    }
    Some(decoded)
}

fn cut(text: &str) -> String {
    text.chars().take(40).collect()
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use axum::http::Request;
    use http_body_util::BodyExt;
    use tower::ServiceExt;
    use understudy_replication::kv::memory::MemoryKeyspace;
    use understudy_replication::status::Status;
    use understudy_replication::wall_time::WallTime;

    use super::*;
    use crate::example;

    struct Told {
        view: Option<bool>,
        keyspace: Option<Arc<MemoryKeyspace>>,
    }

    impl StatusSource for Told {
        fn status(&self) -> Status {
            example::primary()
        }
    }

    impl KvSource for Told {
        fn kv_view(&self) -> Option<bool> {
            self.view
        }

        fn keyspace(&self) -> Option<Arc<dyn Keyspace>> {
            let keyspace = self.keyspace.clone()?;
            Some(keyspace)
        }
    }

    fn store() -> Arc<MemoryKeyspace> {
        let keyspace = MemoryKeyspace::new(WallTime(100));
        keyspace.change(|space| {
            space.set(b"user:1", b"ann", Some(WallTime(1100))).unwrap();
            space.set(b"user:2", b"bob", None).unwrap();
            space.set(b"a/b \xff", b"\x00\xfe", None).unwrap();
            space.end_atom();
            let large = vec![b'x'; CONTENT_BYTES_MAX + 1];
            space.set(b"large", &large, None).unwrap();
            space.hash_set(b"hash", &[(b"f", b"1")]).unwrap();
        });
        Arc::new(keyspace)
    }

    fn shown() -> Told {
        Told {
            view: Some(true),
            keyspace: Some(store()),
        }
    }

    /// Returns the code and the body.
    async fn ask(told: Told, path: &str) -> (u16, String) {
        let request = Request::builder().uri(path).body(Body::empty()).unwrap();
        let router = kv_router(Arc::new(told));
        let response = router.oneshot(request).await.unwrap();
        assert_eq!(response.headers()["cache-control"], "no-store");
        let code = response.status().as_u16();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (code, String::from_utf8(body.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn keys_and_values_are_refused_unless_the_configuration_shows_them() {
        for path in ["/kv/keys", "/kv/key/user:1", "/kv/keys?match=user:*"] {
            let told = Told {
                view: Some(false),
                ..shown()
            };
            let (code, body) = ask(told, path).await;
            assert_eq!(code, 403);
            assert!(body.contains("`view = true` in [kv]"), "{body}");
            assert!(!body.contains("ann") && !body.contains("user"), "{body}");
        }
    }

    #[tokio::test]
    async fn the_figures_are_for_anybody() {
        let told = Told {
            view: Some(false),
            ..shown()
        };
        let (code, body) = ask(told, "/kv").await;
        assert_eq!(code, 200);
        insta::assert_snapshot!(body, @r#"{"node":"a","role":"primary","primary":null,"position":5,"durability":"async","promise":{"state":"held"},"standbys":[{"node":"b","position":0}],"memory_bytes_max":1073741824,"view":false,"gauges":{"at_risk_operations":0,"keys":12000,"log_bytes":8388608},"problems":[]}"#);
    }

    #[tokio::test]
    async fn a_key_is_told_whatever_bytes_it_and_its_value_are() {
        let told = [
            ask(shown(), "/kv/key/user%3A1").await,
            ask(shown(), "/kv/key/a%2fb%20%FF").await,
            ask(shown(), "/kv/key/hash").await,
            ask(shown(), "/kv/key/none").await,
            ask(shown(), "/kv/key/a%2").await,
            ask(shown(), "/kv/key/%zz").await,
        ];
        let told: Vec<String> = told.map(|(code, body)| format!("{code} {body}")).into();
        insta::assert_snapshot!(told.join("\n"), @r#"
        200 {"key":"user:1","type":"string","value":"ann","length":3,"truncated":false,"ttl_ms":1000}
        200 {"key":{"base64":"YS9iIP8="},"type":"string","value":{"base64":"AP4="},"length":2,"truncated":false}
        200 {"key":"hash","type":"hash","fields":[{"field":"f","value":"1"}],"length":1,"truncated":false}
        404 {"key":"none","type":"none"}
        400 {"error":"`a%2` is not percent-encoded"}
        400 {"error":"`%zz` is not percent-encoded"}
        "#);
    }

    #[tokio::test]
    async fn a_large_value_is_cut_and_says_so() {
        let (code, body) = ask(shown(), "/kv/key/large").await;
        let body: serde_json::Value = serde_json::from_str(&body).unwrap();
        assert_eq!(code, 200);
        assert_eq!(body["truncated"], true);
        assert_eq!(body["length"], 65_537);
        assert_eq!(body["value"].as_str().unwrap().len(), 65_536);
    }

    #[tokio::test]
    async fn every_key_comes_once_while_the_cursor_is_followed() {
        let (mut cursor, mut found) = ("0".to_owned(), Vec::new());
        loop {
            let path = format!("/kv/keys?count=2&cursor={cursor}");
            let (code, body) = ask(shown(), &path).await;
            assert_eq!(code, 200);
            let body: serde_json::Value = serde_json::from_str(&body).unwrap();
            found.extend(
                body["keys"]
                    .as_array()
                    .unwrap()
                    .iter()
                    .map(|key| key["key"].to_string()),
            );
            cursor = body["cursor"].as_str().unwrap().to_owned();
            if cursor == "0" {
                break;
            }
        }
        found.sort();
        let expected = [
            r#""hash""#,
            r#""large""#,
            r#""user:1""#,
            r#""user:2""#,
            r#"{"base64":"YS9iIP8="}"#,
        ];
        assert_eq!(found, expected);
        let (_, body) = ask(shown(), "/kv/keys?match=user:*").await;
        assert_eq!(body.matches("user:").count(), 2, "{body}");
    }

    #[tokio::test]
    async fn what_is_asked_wrongly_and_what_is_not_there_is_told_apart() {
        let with = |view, keyspace| Told { view, keyspace };
        let refusing = store();
        refusing.refuse(Some(Refusal::NotHere {
            primary: Some("a".to_owned()),
        }));
        let told = [
            ask(with(None, None), "/kv").await,
            ask(with(None, None), "/kv/keys").await,
            ask(with(Some(true), None), "/kv/key/k").await,
            ask(with(Some(true), Some(refusing)), "/kv/key/k").await,
            ask(shown(), "/kv/keys?cursor=x").await,
            ask(shown(), "/kv/keys?count=0").await,
            ask(shown(), "/kv/keys?count=1001").await,
            ask(shown(), "/kv/keys?count=many").await,
        ];
        let told: Vec<String> = told.map(|(code, body)| format!("{code} {body}")).into();
        insta::assert_snapshot!(told.join("\n"), @r#"
        404 {"error":"there is no [kv] in the configuration"}
        404 {"error":"there is no [kv] in the configuration"}
        503 {"error":"the store is not open on this node now"}
        503 {"error":"READONLY This node is a standby and does not answer reads; the primary is a."}
        400 {"error":"`x` is not a cursor"}
        400 {"error":"count is 0, and 1 to 1000 are allowed"}
        400 {"error":"count is 1001, and 1 to 1000 are allowed"}
        400 {"error":"Failed to deserialize query string: count: invalid digit found in string"}
        "#);
    }
}
