//! Indexes of a real Postgres, and of commands.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::Request;
use understudy_config::{Engine, Index, Rows, Warm};
use understudy_replication::error_chain;
use understudy_replication::event::Events;
use understudy_replication::status::IndexState;
use understudy_replication::store::NoProgress;

use super::*;

#[cfg(feature = "tantivy")]
mod cut_short;
mod elastic;
mod elastic_model;
mod postgres;
#[cfg(feature = "tantivy")]
mod rewound;
#[cfg(feature = "tantivy")]
mod warm;
#[cfg(feature = "tantivy")]
mod with_tantivy;

fn command_index(name: &str, script: &str, timeout: Duration) -> Index {
    let command = ["sh", "-c", script].map(str::to_owned).to_vec();
    Index {
        name: name.parse().unwrap(),
        engine: Engine::Command { command },
        timeout,
    }
}

fn tantivy_index(name: &str, source: &str) -> Index {
    let engine = Engine::Tantivy { rows: rows(source) };
    Index {
        name: name.parse().unwrap(),
        engine,
        timeout: Duration::from_secs(60),
    }
}

fn rows(source: &str) -> Rows {
    Rows {
        query: source.to_owned(),
        database: None,
        warm: None,
    }
}

/// A watermark that is looked at when somebody asks.
fn watermark(column: &str, overlap: Duration) -> Warm {
    Warm {
        watermark: column.to_owned(),
        deleted: None,
        refresh: Duration::from_secs(3600),
        overlap,
        sweep: Some(Duration::from_secs(3600)),
    }
}

fn no_database() -> Database {
    Database {
        connect: Arc::new(|_| Box::pin(async { Err("no database".into()) })),
        ancestry: Arc::new(|| Err("no database".into())),
        tenure: Arc::new(|| Err("no database".into())),
    }
}

struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn open(&self, configs: &[Index], database: Database) -> Arc<Indexes> {
        let env = vec![("UNDERSTUDY_NODE".to_owned(), "a".to_owned())];
        let events = Events::open(&self.path("events")).unwrap();
        Arc::new(Indexes::open(
            configs,
            self.path("index"),
            database,
            env,
            events,
        ))
    }
}

fn states(indexes: &Indexes) -> Vec<IndexState> {
    indexes
        .status()
        .into_iter()
        .map(|status| status.state)
        .collect()
}

#[tokio::test]
async fn a_command_builds_its_index_and_that_is_remembered() {
    let place = Place::new();
    let script = format!(
        "echo $UNDERSTUDY_INDEX $UNDERSTUDY_NODE >{}",
        place.path("ran").display()
    );
    let configs = [command_index("solr", &script, Duration::from_secs(20))];
    let indexes = place.open(&configs, no_database());
    assert_eq!(states(&indexes), [IndexState::Absent]);
    indexes.rebuild("solr", &NoProgress).await.unwrap();
    assert_eq!(fs::read_to_string(place.path("ran")).unwrap(), "solr a\n");
    assert_eq!(
        states(&place.open(&configs, no_database())),
        [IndexState::Ready]
    );
    let changed = [command_index("solr", "true", Duration::from_secs(20))];
    let status = place.open(&changed, no_database()).status().remove(0);
    assert_eq!(
        status.message.unwrap(),
        "its source has changed since; rebuild it"
    );
    let error = indexes.search("solr", "x", 1).await.unwrap_err();
    assert!(matches!(error, SearchError::Elsewhere { .. }), "{error:?}");
}

#[tokio::test]
async fn a_command_that_hangs_is_killed_and_told() {
    let place = Place::new();
    let configs = [command_index(
        "solr",
        "sleep 1000",
        Duration::from_millis(200),
    )];
    let indexes = place.open(&configs, no_database());
    assert!(indexes.rebuild("solr", &NoProgress).await.is_err());
    let status = indexes.status().remove(0);
    assert_eq!((status.state, status.built), (IndexState::Failed, None));
    assert!(status.message.is_some());
}

#[tokio::test]
async fn an_index_is_rebuilt_once_at_a_time() {
    let place = Place::new();
    let (begun, go) = (place.path("begun"), place.path("go"));
    let script = format!(
        "touch {}; while ! test -e {}; do sleep 0.05; done",
        begun.display(),
        go.display()
    );
    let indexes = place.open(
        &[command_index("solr", &script, Duration::from_secs(60))],
        no_database(),
    );
    let running = indexes.clone();
    let running = tokio::spawn(async move { running.rebuild("solr", &NoProgress).await });
    let waiting = async {
        while !begun.exists() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), waiting)
        .await
        .unwrap();
    let error = indexes.rebuild("solr", &NoProgress).await.unwrap_err();
    assert!(
        matches!(error, RebuildError::AlreadyRunning { .. }),
        "{error:?}"
    );
    assert_eq!(states(&indexes), [IndexState::Rebuilding]);
    fs::write(go, "").unwrap();
    running.await.unwrap().unwrap();
    assert_eq!(states(&indexes), [IndexState::Ready]);
    let error = indexes.rebuild("other", &NoProgress).await.unwrap_err();
    assert_eq!(error.to_string(), "there is no index `other`");
}

#[tokio::test]
async fn a_database_that_is_away_is_told_and_nothing_is_searched() {
    let place = Place::new();
    let indexes = place.open(&[tantivy_index("search", "SELECT 1 AS id")], no_database());
    let error = indexes.rebuild("search", &NoProgress).await.unwrap_err();
    assert_eq!(
        error_chain(&error),
        "cannot connect to the database: no database"
    );
    let error = indexes.search("search", "x", 10).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "index search has not been built on this node"
    );
}

async fn ask(router: axum::Router, path: &str) -> (u16, serde_json::Value) {
    use tower::ServiceExt;
    let request = Request::get(path).body(Body::empty()).unwrap();
    let response = router.oneshot(request).await.unwrap();
    let status = response.status().as_u16();
    let bytes = axum::body::to_bytes(response.into_body(), 1 << 20)
        .await
        .unwrap();
    (status, serde_json::from_slice(&bytes).unwrap())
}

#[tokio::test]
async fn refusals_over_http_say_why_and_where_to_ask() {
    let place = Place::new();
    let indexes = place.open(&[tantivy_index("search", "SELECT 1 AS id")], no_database());
    let standby = routes(
        indexes.clone(),
        Arc::new(|| Err("a at 10.0.0.1".to_owned())),
    );
    let (status, json) = ask(standby, "/index/search/search?q=x").await;
    assert_eq!(
        (status, json["primary"].as_str()),
        (503, Some("a at 10.0.0.1"))
    );
    let primary = routes(indexes, Arc::new(|| Ok(())));
    let absent = serde_json::json!({
        "error": "index search has not been built on this node",
        "state": "absent",
        "retry_after": 2,
    });
    let answer = ask(primary.clone(), "/index/search/search?q=x").await;
    assert_eq!(answer, (503, absent));
    let table = [
        ("/index/other/search?q=x", 404, "there is no index `other`"),
        ("/index/search/search", 400, "the query is missing (?q=…)"),
        (
            "/index/search/search?q=x&limit=x",
            400,
            "`limit` is not a number",
        ),
        (
            "/index/search/search?q=x&limit=1001",
            400,
            "at most 1000 hits can be asked for, not 1001",
        ),
    ];
    for (path, status, error) in table {
        let expected = (status, serde_json::json!({ "error": error }));
        assert_eq!(ask(primary.clone(), path).await, expected, "{path}");
    }
}

#[cfg(not(feature = "tantivy"))]
#[tokio::test]
async fn a_program_without_the_engine_says_so() {
    let postgres = postgres::Postgres::start().await;
    let place = Place::new();
    let indexes = place.open(
        &[tantivy_index("search", "SELECT 1 AS id")],
        postgres.database(),
    );
    let error = indexes.rebuild("search", &NoProgress).await.unwrap_err();
    let expected = "cannot build it: this program was built without the feature `tantivy`";
    assert_eq!(error_chain(&error), expected);
}
