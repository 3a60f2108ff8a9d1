//! Indexes of a real Postgres, and of commands.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::Body;
use axum::http::Request;
use understudy_config::{Engine, Index};
use understudy_replication::event::Events;
use understudy_replication::settings::told;
use understudy_replication::status::IndexState;
use understudy_replication::store::{NoProgress, Progress, Unit};

use super::*;

fn command_index(name: &str, script: &str, timeout: Duration) -> Index {
    let command = ["sh", "-c", script].map(str::to_owned).to_vec();
    Index { name: name.parse().unwrap(), engine: Engine::Command { command }, timeout }
}

fn tantivy_index(name: &str, source: &str) -> Index {
    let engine = Engine::Tantivy { source: source.to_owned(), database: None };
    Index { name: name.parse().unwrap(), engine, timeout: Duration::from_secs(60) }
}

fn no_database() -> Connect {
    Arc::new(|_| Box::pin(async { Err("no database".into()) }))
}

struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn open(&self, configs: &[Index], connect: Connect) -> Arc<Indexes> {
        let env = vec![("UNDERSTUDY_NODE".to_owned(), "a".to_owned())];
        let events = Events::open(&self.path("events")).unwrap();
        Arc::new(Indexes::open(configs, self.path("index"), connect, env, events))
    }
}

fn states(indexes: &Indexes) -> Vec<IndexState> {
    indexes.status().into_iter().map(|status| status.state).collect()
}

#[tokio::test]
async fn a_command_builds_its_index_and_that_is_remembered() {
    let place = Place::new();
    let script = format!("echo $UNDERSTUDY_INDEX $UNDERSTUDY_NODE >{}", place.path("ran").display());
    let configs = [command_index("solr", &script, Duration::from_secs(20))];
    let indexes = place.open(&configs, no_database());
    assert_eq!(states(&indexes), [IndexState::Absent]);
    indexes.rebuild("solr", &NoProgress).await.unwrap();
    assert_eq!(fs::read_to_string(place.path("ran")).unwrap(), "solr a\n");
    assert_eq!(states(&place.open(&configs, no_database())), [IndexState::Ready]);
    let changed = [command_index("solr", "true", Duration::from_secs(20))];
    let status = place.open(&changed, no_database()).status().remove(0);
    assert_eq!(status.message.unwrap(), "its source has changed since; rebuild it");
    let error = indexes.search("solr", "x", 1).await.unwrap_err();
    assert!(matches!(error, SearchError::Elsewhere { .. }), "{error:?}");
}

#[tokio::test]
async fn a_command_that_hangs_is_killed_and_told() {
    let place = Place::new();
    let configs = [command_index("solr", "sleep 1000", Duration::from_millis(200))];
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
    let indexes =
        place.open(&[command_index("solr", &script, Duration::from_secs(60))], no_database());
    let running = indexes.clone();
    let running = tokio::spawn(async move { running.rebuild("solr", &NoProgress).await });
    let waiting = async {
        while !begun.exists() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), waiting).await.unwrap();
    let error = indexes.rebuild("solr", &NoProgress).await.unwrap_err();
    assert!(matches!(error, RebuildError::AlreadyRunning { .. }), "{error:?}");
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
    assert_eq!(told(&error), "cannot connect to the database: no database");
    let error = indexes.search("search", "x", 10).await.unwrap_err();
    assert_eq!(error.to_string(), "index search has not been built on this node");
}

async fn ask(router: axum::Router, path: &str) -> (u16, serde_json::Value) {
    use tower::ServiceExt;
    let request = Request::get(path).body(Body::empty()).unwrap();
    let response = router.oneshot(request).await.unwrap();
    let status = response.status().as_u16();
    let bytes = axum::body::to_bytes(response.into_body(), 1 << 20).await.unwrap();
    (status, serde_json::from_slice(&bytes).unwrap())
}

#[tokio::test]
async fn refusals_over_http_say_why_and_where_to_ask() {
    let place = Place::new();
    let indexes = place.open(&[tantivy_index("search", "SELECT 1 AS id")], no_database());
    let standby = routes(indexes.clone(), Arc::new(|| Err("a at 10.0.0.1".to_owned())));
    let (status, json) = ask(standby, "/index/search/search?q=x").await;
    assert_eq!((status, json["primary"].as_str()), (503, Some("a at 10.0.0.1")));
    let primary = routes(indexes, Arc::new(|| Ok(())));
    let table = [
        ("/index/search/search?q=x", 503, "index search has not been built on this node"),
        ("/index/other/search?q=x", 404, "there is no index `other`"),
        ("/index/search/search", 400, "the query is missing (?q=…)"),
        ("/index/search/search?q=x&limit=x", 400, "`limit` is not a number"),
        ("/index/search/search?q=x&limit=1001", 400, "at most 1000 hits can be asked for, not 1001"),
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
    let indexes = place.open(&[tantivy_index("search", "SELECT 1 AS id")], postgres.connect());
    let error = indexes.rebuild("search", &NoProgress).await.unwrap_err();
    let expected = "cannot build it: this program was built without the feature `tantivy`";
    assert_eq!(told(&error), expected);
}

mod postgres {
    use understudy_replication::command::{Command, OsUser};

    use super::*;

    /// A Postgres of the test's own, on a Unix socket only; stopped when dropped.
    pub(super) struct Postgres {
        folder: tempfile::TempDir,
    }

    impl Postgres {
        pub(super) async fn start() -> Self {
            let folder = tempfile::Builder::new().prefix("pg").tempdir_in("/tmp").unwrap();
            let user = OsUser::find("postgres").unwrap();
            std::os::unix::fs::chown(folder.path(), Some(user.uid), Some(user.gid)).unwrap();
            let postgres = Self { folder };
            let place = postgres.folder.path().display().to_string();
            let run = async |line: String| {
                let script = format!("PATH=/usr/lib/postgresql/15/bin:$PATH; {line}");
                Command::new(["sh", "-c", &script]).user(&user).run().await.unwrap();
            };
            run(format!("initdb -D {place}/data -A trust -U postgres --no-sync")).await;
            let options = format!("-k {place} -c listen_addresses= -c fsync=off");
            run(format!("pg_ctl -D {place}/data -w -l {place}/log -o '{options}' start")).await;
            postgres
        }

        pub(super) fn connect(&self) -> Connect {
            let place = self.folder.path().to_owned();
            Arc::new(move |database| {
                let place = place.clone();
                Box::pin(async move { Ok(connect(&place, database.as_deref()).await?) })
            })
        }

        pub(super) async fn execute(&self, sql: &str) {
            let client = connect(self.folder.path(), None).await.unwrap();
            client.batch_execute(sql).await.unwrap();
        }
    }

    async fn connect(
        place: &Path,
        database: Option<&str>,
    ) -> Result<tokio_postgres::Client, tokio_postgres::Error> {
        let mut config = tokio_postgres::Config::new();
        config.host_path(place).user("postgres").dbname(database.unwrap_or("postgres"));
        let (client, connection) = config.connect(tokio_postgres::NoTls).await?;
        // Ends when the client is dropped.
        tokio::spawn(connection);
        Ok(client)
    }

    impl Drop for Postgres {
        fn drop(&mut self) {
            let pid_file = self.folder.path().join("data/postmaster.pid");
            let Ok(text) = fs::read_to_string(&pid_file) else { return };
            let pid = text.lines().next().and_then(|line| line.parse().ok());
            let Some(pid) = pid.and_then(rustix::process::Pid::from_raw) else { return };
            // SIGQUIT: stop at once. Nothing of it is needed any more.
            drop(rustix::process::kill_process(pid, rustix::process::Signal::QUIT));
            for _ in 0..500 {
                if !pid_file.exists() {
                    return;
                }
                std::thread::sleep(Duration::from_millis(10));
            }
        }
    }
}

#[cfg(feature = "tantivy")]
mod with_tantivy {
    use super::postgres::Postgres;
    use super::*;

    const SOURCE: &str = "SELECT id, title, body, price FROM article -- every one";

    async fn articles(count: u32) -> Postgres {
        let postgres = Postgres::start().await;
        let sql = format!(
            "CREATE TABLE article (id bigint PRIMARY KEY, title text, body text, price numeric);
             INSERT INTO article SELECT n, 'Number ' || n, 'the quick fox jumps', n + 0.5
             FROM generate_series(1, {count}) n;
             INSERT INTO article VALUES (0, 'A slow Turtle', NULL, NULL);"
        );
        postgres.execute(&sql).await;
        postgres
    }

    fn configs() -> [Index; 1] {
        // The comment must not swallow what is written after it.
        [tantivy_index("search", SOURCE)]
    }

    /// Remembers what it was told.
    #[derive(Default)]
    struct Diary(Mutex<Vec<String>>);

    impl Progress for Diary {
        fn start(&self, what: &str, total: Option<u64>, _: Unit) {
            self.0.lock().unwrap().push(format!("{what} of {total:?}"));
        }

        fn at(&self, done: u64) {
            self.0.lock().unwrap().push(done.to_string());
        }

        fn end(&self, outcome: &str) {
            self.0.lock().unwrap().push(outcome.to_owned());
        }
    }

    #[tokio::test]
    async fn an_index_is_built_in_batches_and_searched_and_survives_a_restart() {
        let (postgres, place) = (articles(2500).await, Place::new());
        let indexes = place.open(&configs(), postgres.connect());
        let diary = Diary::default();
        assert_eq!(indexes.rebuild("search", &diary).await.unwrap(), 2501);
        let expected = [
            "index search of None",
            "index search of Some(2501)",
            "0",
            "1000",
            "2000",
            "2501",
            "2501 documents",
        ];
        assert_eq!(*diary.0.lock().unwrap(), expected);
        let indexes = place.open(&configs(), postgres.connect());
        assert_eq!(states(&indexes), [IndexState::Ready]);
        let result = indexes.search("search", "turtle", 10).await.unwrap();
        assert_eq!(result.total, 1);
        let fields = [("id", "0"), ("title", "A slow Turtle")];
        let fields = fields.map(|(name, text)| (name.to_owned(), text.to_owned()));
        assert_eq!(result.hits[0].fields, fields.into());
        let result = indexes.search("search", "fox", 7).await.unwrap();
        assert_eq!((result.total, result.hits.len()), (2500, 7));
        assert_eq!(indexes.search("search", "fox", 0).await.unwrap().total, 2500);
        let result = indexes.search("search", "id:17", 10).await.unwrap();
        assert_eq!(result.hits[0].fields["price"], "17.5");
        let router = routes(indexes, Arc::new(|| Ok(())));
        let (status, json) = ask(router, "/index/search/search?q=title:turtle").await;
        assert_eq!((status, &json["hits"][0]["fields"]["id"]), (200, &"0".into()));
    }

    #[tokio::test]
    async fn the_old_index_is_searched_until_the_new_one_is_whole() {
        let (postgres, place) = (articles(10).await, Place::new());
        let indexes = place.open(&configs(), postgres.connect());
        indexes.rebuild("search", &NoProgress).await.unwrap();
        postgres.execute("UPDATE article SET title = 'A fast Hare' WHERE id = 0").await;
        assert_eq!(indexes.search("search", "turtle", 1).await.unwrap().total, 1);
        // A rebuild that cannot go on: the rows are locked away.
        let locker = postgres.connect()(None).await.unwrap();
        locker.batch_execute("BEGIN; LOCK TABLE article").await.unwrap();
        let running = indexes.clone();
        let running = tokio::spawn(async move { running.rebuild("search", &NoProgress).await });
        let waiting = async {
            while states(&indexes) != [IndexState::Rebuilding] {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), waiting).await.unwrap();
        assert_eq!(indexes.search("search", "turtle", 1).await.unwrap().total, 1);
        locker.batch_execute("ROLLBACK").await.unwrap();
        running.await.unwrap().unwrap();
        assert_eq!(indexes.search("search", "turtle", 1).await.unwrap().total, 0);
        assert_eq!(indexes.search("search", "hare", 1).await.unwrap().total, 1);
        let mut builds: Vec<PathBuf> =
            fs::read_dir(place.path("index/search")).unwrap().map(|e| e.unwrap().path()).collect();
        builds.sort();
        assert_eq!(builds, ["2", "current"].map(|name| place.path("index/search").join(name)));
    }

    #[tokio::test]
    async fn a_rebuild_that_takes_too_long_is_given_up_and_the_old_index_stays() {
        let (postgres, place) = (articles(10).await, Place::new());
        let indexes = place.open(&configs(), postgres.connect());
        indexes.rebuild("search", &NoProgress).await.unwrap();
        let mut slow = tantivy_index("search", "SELECT id, pg_sleep(100)::text AS nap FROM article");
        slow.timeout = Duration::from_millis(300);
        let indexes = place.open(&[slow], postgres.connect());
        assert!(indexes.rebuild("search", &NoProgress).await.is_err());
        assert_eq!(states(&indexes), [IndexState::Failed]);
        assert_eq!(indexes.search("search", "turtle", 1).await.unwrap().total, 1);
    }

    #[tokio::test]
    async fn a_source_that_cannot_be_read_is_told_as_the_database_tells_it() {
        let (postgres, place) = (articles(1).await, Place::new());
        let table = [
            ("SELECT nothing FROM nowhere", "relation \"nowhere\" does not exist"),
            ("SELECT 1", "column 1 of the index's source is called `?column?`"),
            ("SELECT id, id FROM article", "has two columns `id`"),
            ("SELECT id FROM article WHERE id = $1", "has parameters"),
            ("DELETE FROM article RETURNING id", "syntax error"),
            ("WITH x AS (DELETE FROM article RETURNING id) SELECT id FROM x", "data-modifying"),
            ("SELECT nextval('s') AS id", "relation \"s\" does not exist"),
        ];
        for (source, expected) in table {
            let indexes = place.open(&[tantivy_index("search", source)], postgres.connect());
            let error = indexes.rebuild("search", &NoProgress).await.unwrap_err();
            let told = told(&error);
            assert!(told.contains(expected), "{source}: {told}");
            assert_eq!(indexes.status()[0].message.as_ref(), Some(&told));
        }
        let missing = Engine::Tantivy {
            source: "SELECT id FROM article".to_owned(),
            database: Some("elsewhere".to_owned()),
        };
        let index = Index { engine: missing, ..tantivy_index("search", "") };
        let indexes = place.open(&[index], postgres.connect());
        let told = told(&indexes.rebuild("search", &NoProgress).await.unwrap_err());
        assert!(told.contains("database \"elsewhere\" does not exist"), "{told}");
    }

    #[tokio::test]
    async fn a_bad_query_is_refused_and_a_deep_one_costs_nothing() {
        let (postgres, place) = (articles(1).await, Place::new());
        let indexes = place.open(&configs(), postgres.connect());
        indexes.rebuild("search", &NoProgress).await.unwrap();
        let message = async |query: &str| match indexes.search("search", query, 1).await {
            Err(SearchError::Query { message }) => message,
            other => panic!("{query}: {other:?}"),
        };
        assert_eq!(message("nofield:x").await, "Field does not exist: 'nofield'");
        assert_eq!(message("\"open").await, "Syntax Error: \"open");
        assert_eq!(message(&"(".repeat(100)).await, "its parentheses are nested too deep");
        assert_eq!(message(&"x".repeat(5000)).await, "it is too long");
        for query in [
            format!("{}x{}", "(".repeat(16), ")".repeat(16)),
            format!("{}x", "NOT ".repeat(1000)),
            format!("{}x", "+".repeat(4000)),
            format!("{}x", "-(".repeat(16)),
        ] {
            let searching = indexes.search("search", &query, 1);
            drop(tokio::time::timeout(Duration::from_secs(10), searching).await.unwrap());
        }
    }

    #[tokio::test]
    async fn what_a_crash_left_half_built_is_removed_at_the_next_start() {
        let place = Place::new();
        let half = place.path("index/search/3");
        fs::create_dir_all(&half).unwrap();
        fs::write(half.join("meta.json"), "{").unwrap();
        let indexes = place.open(&configs(), no_database());
        assert_eq!(states(&indexes), [IndexState::Absent]);
        assert!(!half.exists());
    }

    #[tokio::test]
    async fn a_damaged_index_does_not_keep_the_node_from_starting() {
        let (postgres, place) = (articles(1).await, Place::new());
        let indexes = place.open(&configs(), postgres.connect());
        indexes.rebuild("search", &NoProgress).await.unwrap();
        fs::write(place.path("index/search/1/meta.json"), "{").unwrap();
        let indexes = place.open(&configs(), postgres.connect());
        assert_eq!(states(&indexes), [IndexState::Failed]);
        indexes.rebuild("search", &NoProgress).await.unwrap();
        assert_eq!(states(&indexes), [IndexState::Ready]);
    }
}
