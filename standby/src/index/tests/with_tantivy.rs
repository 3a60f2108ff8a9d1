//! Indexes of the rows of a real Postgres.

use super::postgres::Postgres;
use std::sync::Mutex;
use understudy_replication::error_chain;

use understudy_replication::store::{Progress, Unit};

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
    let indexes = place.open(&configs(), postgres.database());
    let diary = Diary::default();
    assert_eq!(indexes.rebuild("search", &diary).await.unwrap(), 2501);
    let told = diary.0.lock().unwrap().clone();
    assert_eq!(told.first().unwrap(), "index search of None");
    assert!(
        told.contains(&"index search of Some(2501)".to_owned()),
        "{told:?}"
    );
    assert_eq!(told[told.len() - 2..], ["2501", "2501 documents"]);
    drop(indexes);
    let indexes = place.open(&configs(), postgres.database());
    assert_eq!(states(&indexes), [IndexState::Ready]);
    let result = indexes.search("search", "turtle", 10).await.unwrap();
    assert_eq!(result.total, 1);
    let fields = [("id", "0"), ("title", "A slow Turtle")];
    let fields = fields.map(|(name, text)| (name.to_owned(), text.to_owned()));
    assert_eq!(result.hits[0].fields, fields.into());
    let result = indexes.search("search", "fox", 7).await.unwrap();
    assert_eq!((result.total, result.hits.len()), (2500, 7));
    assert_eq!(
        indexes.search("search", "fox", 0).await.unwrap().total,
        2500
    );
    let result = indexes.search("search", "id:17", 10).await.unwrap();
    assert_eq!(result.hits[0].fields["price"], "17.5");
    let router = routes(indexes, Arc::new(|| Ok(())));
    let (status, json) = ask(router, "/index/search/search?q=title:turtle").await;
    assert_eq!(
        (status, &json["hits"][0]["fields"]["id"]),
        (200, &"0".into())
    );
}

#[tokio::test]
async fn the_old_index_is_searched_until_the_new_one_is_whole() {
    let (postgres, place) = (articles(10).await, Place::new());
    let indexes = place.open(&configs(), postgres.database());
    indexes.rebuild("search", &NoProgress).await.unwrap();
    postgres
        .execute("UPDATE article SET title = 'A fast Hare' WHERE id = 0")
        .await;
    assert_eq!(
        indexes.search("search", "turtle", 1).await.unwrap().total,
        1
    );
    // A rebuild that cannot go on: the rows are locked away.
    let locker = (postgres.database().connect)(None).await.unwrap();
    locker
        .batch_execute("BEGIN; LOCK TABLE article")
        .await
        .unwrap();
    let running = indexes.clone();
    let running = tokio::spawn(async move { running.rebuild("search", &NoProgress).await });
    let waiting = async {
        while states(&indexes) != [IndexState::Rebuilding] {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), waiting)
        .await
        .unwrap();
    assert_eq!(
        indexes.search("search", "turtle", 1).await.unwrap().total,
        1
    );
    locker.batch_execute("ROLLBACK").await.unwrap();
    running.await.unwrap().unwrap();
    assert_eq!(
        indexes.search("search", "turtle", 1).await.unwrap().total,
        0
    );
    assert_eq!(indexes.search("search", "hare", 1).await.unwrap().total, 1);
    let mut builds: Vec<PathBuf> = fs::read_dir(place.path("index/search"))
        .unwrap()
        .map(|e| e.unwrap().path())
        .collect();
    builds.sort();
    assert_eq!(
        builds,
        ["2", "current"].map(|name| place.path("index/search").join(name))
    );
}

#[tokio::test]
async fn a_rebuild_that_takes_too_long_is_given_up_and_the_old_index_stays() {
    let (postgres, place) = (articles(10).await, Place::new());
    let indexes = place.open(&configs(), postgres.database());
    indexes.rebuild("search", &NoProgress).await.unwrap();
    let mut slow = tantivy_index(
        "search",
        "SELECT id, pg_sleep(100)::text AS nap FROM article",
    );
    slow.timeout = Duration::from_millis(300);
    let indexes = place.open(&[slow], postgres.database());
    assert!(indexes.rebuild("search", &NoProgress).await.is_err());
    assert_eq!(states(&indexes), [IndexState::Failed]);
    assert_eq!(
        indexes.search("search", "turtle", 1).await.unwrap().total,
        1
    );
}

#[tokio::test]
async fn a_source_that_cannot_be_read_is_told_as_the_database_tells_it() {
    let (postgres, place) = (articles(1).await, Place::new());
    let table = [
        (
            "SELECT nothing FROM nowhere",
            "relation \"nowhere\" does not exist",
        ),
        (
            "SELECT 1",
            "column 1 of the index's source is called `?column?`",
        ),
        ("SELECT id, id FROM article", "has two columns `id`"),
        ("SELECT id FROM article WHERE id = $1", "has parameters"),
        ("DELETE FROM article RETURNING id", "syntax error"),
        (
            "WITH x AS (DELETE FROM article RETURNING id) SELECT id FROM x",
            "data-modifying",
        ),
        ("SELECT nextval('s') AS id", "relation \"s\" does not exist"),
    ];
    for (source, expected) in table {
        let indexes = place.open(&[tantivy_index("search", source)], postgres.database());
        let error = indexes.rebuild("search", &NoProgress).await.unwrap_err();
        let told = error_chain(&error);
        assert!(told.contains(expected), "{source}: {told}");
        assert_eq!(indexes.status()[0].message.as_ref(), Some(&told));
    }
    let missing = Engine::Tantivy {
        rows: Rows {
            database: Some("elsewhere".to_owned()),
            ..rows("SELECT id FROM article")
        },
    };
    let index = Index {
        engine: missing,
        ..tantivy_index("search", "")
    };
    let indexes = place.open(&[index], postgres.database());
    let told = error_chain(&indexes.rebuild("search", &NoProgress).await.unwrap_err());
    assert!(
        told.contains("database \"elsewhere\" does not exist"),
        "{told}"
    );
}

#[tokio::test]
async fn a_bad_query_is_refused_and_a_deep_one_costs_nothing() {
    let (postgres, place) = (articles(1).await, Place::new());
    let indexes = place.open(&configs(), postgres.database());
    indexes.rebuild("search", &NoProgress).await.unwrap();
    let message = async |query: &str| match indexes.search("search", query, 1).await {
        Err(SearchError::Query { message }) => message,
        other => panic!("{query}: {other:?}"),
    };
    assert_eq!(
        message("nofield:x").await,
        "Field does not exist: 'nofield'"
    );
    assert_eq!(message("\"open").await, "Syntax Error: \"open");
    assert_eq!(
        message(&"(".repeat(100)).await,
        "its parentheses are nested too deep"
    );
    assert_eq!(message(&"x".repeat(5000)).await, "it is too long");
    for query in [
        format!("{}x{}", "(".repeat(16), ")".repeat(16)),
        format!("{}x", "NOT ".repeat(1000)),
        format!("{}x", "+".repeat(4000)),
        format!("{}x", "-(".repeat(16)),
    ] {
        let searching = indexes.search("search", &query, 1);
        drop(
            tokio::time::timeout(Duration::from_secs(10), searching)
                .await
                .unwrap(),
        );
    }
}

#[tokio::test]
async fn half_a_build_that_cannot_be_read_is_built_anew() {
    let (postgres, place) = (articles(1).await, Place::new());
    let half = place.path("index/search/1");
    fs::create_dir_all(&half).unwrap();
    fs::write(half.join("meta.json"), "{").unwrap();
    let indexes = place.open(&configs(), postgres.database());
    assert_eq!(states(&indexes), [IndexState::Absent]);
    assert_eq!(indexes.rebuild("search", &NoProgress).await.unwrap(), 2);
}

#[tokio::test]
async fn a_damaged_index_does_not_keep_the_node_from_starting() {
    let (postgres, place) = (articles(1).await, Place::new());
    let indexes = place.open(&configs(), postgres.database());
    indexes.rebuild("search", &NoProgress).await.unwrap();
    drop(indexes);
    fs::write(place.path("index/search/1/meta.json"), "{").unwrap();
    let indexes = place.open(&configs(), postgres.database());
    assert_eq!(states(&indexes), [IndexState::Failed]);
    indexes.rebuild("search", &NoProgress).await.unwrap();
    assert_eq!(states(&indexes), [IndexState::Ready]);
}
