//! Indexes that follow the changes of a real Postgres.

use std::collections::BTreeMap;

use super::postgres::Postgres;
use super::*;
use understudy_replication::store::Stopper;

const SOURCE: &str = "SELECT id, title, is_gone, mark FROM article WHERE title <> 'hidden' -- all";

/// Changes are read from the watermark on as soon as they are seen.
const NONE: Duration = Duration::from_millis(1);

/// Longer than any transaction of a test, however slow the machine.
const LONG: Duration = Duration::from_secs(600);

const PATIENCE: Duration = Duration::from_secs(60);

async fn articles(count: u32) -> Postgres {
    let postgres = Postgres::start().await;
    let sql = format!(
        "CREATE SEQUENCE mark;
         CREATE TABLE article (id text PRIMARY KEY, title text, is_gone boolean DEFAULT false,
           mark bigint NOT NULL DEFAULT nextval('mark'));
         CREATE INDEX ON article (mark);
         INSERT INTO article SELECT 'k' || n, 'Number ' || n FROM generate_series(1, {count}) n;"
    );
    postgres.execute(&sql).await;
    postgres
}

fn config(warm: Warm) -> [Index; 1] {
    let rows = Rows {
        warm: Some(warm),
        ..rows(SOURCE)
    };
    [Index {
        engine: Engine::Tantivy { rows },
        ..tantivy_index("search", "")
    }]
}

fn following(overlap: Duration) -> [Index; 1] {
    config(watermark("mark", overlap))
}

/// With tombstones.
fn burying(overlap: Duration) -> [Index; 1] {
    config(Warm {
        deleted: Some("is_gone".to_owned()),
        sweep: None,
        ..watermark("mark", overlap)
    })
}

async fn catch_up(indexes: &Indexes) -> u64 {
    match indexes.catch_up("search", PATIENCE, &NoProgress).await {
        Ok(CaughtUp::Ready { documents, .. }) => documents,
        other => panic!("{other:?}"),
    }
}

/// Returns every document.
async fn documents(indexes: &Indexes) -> BTreeMap<String, BTreeMap<String, String>> {
    let found = indexes.search("search", "*", LIMIT_MAX).await.unwrap();
    assert_eq!(found.total, u64::try_from(found.hits.len()).unwrap());
    let by_key = |hit: Hit| (hit.fields["id"].clone(), hit.fields);
    let documents: BTreeMap<_, _> = found.hits.into_iter().map(by_key).collect();
    assert_eq!(
        u64::try_from(documents.len()).unwrap(),
        found.total,
        "twins"
    );
    documents
}

/// An index that has been caught up is equal to one that is built from nothing.
async fn assert_equal(indexes: &Indexes, configs: &[Index], postgres: &Postgres, when: &str) {
    let count = catch_up(indexes).await;
    let place = Place::new();
    let cold = place.open(configs, postgres.database());
    cold.rebuild("search", &NoProgress).await.unwrap();
    let (warm, cold) = (documents(indexes).await, documents(&cold).await);
    assert_eq!(warm, cold, "{when}");
    assert_eq!(count, u64::try_from(warm.len()).unwrap(), "{when}");
}

/// Returns the watermark from which the index reads on.
async fn safe_mark(indexes: &Indexes) -> Option<String> {
    let keeper = indexes.index("search").take().await;
    keeper.current.as_ref()?.payload.marks.safe.clone()
}

/// Has every watermark of now counted as read.
async fn mature(indexes: &Indexes, postgres: &Postgres) {
    let last = postgres.value("SELECT max(mark) FROM article").await;
    for round in 0..1000 {
        // A refresh looks only when something has changed.
        postgres.execute("SELECT txid_current()").await;
        catch_up(indexes).await;
        if safe_mark(indexes).await.as_ref() == Some(&last) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(2 * round)).await;
    }
    panic!("{last} is not read");
}

#[tokio::test]
async fn changes_are_read_from_the_watermark_on_and_equal_rows_are_not_written() {
    let (postgres, place) = (articles(50).await, Place::new());
    let configs = following(NONE);
    let indexes = place.open(&configs, postgres.database());
    assert_eq!(catch_up(&indexes).await, 50);
    mature(&indexes, &postgres).await;
    let written = || fs::read(place.path("index/search/1/meta.json")).unwrap();
    let before = written();
    // What is read again is not written again.
    postgres
        .execute("UPDATE article SET title = title WHERE id = 'k1'")
        .await;
    catch_up(&indexes).await;
    assert_eq!(written(), before);
    postgres
        .execute(
            "UPDATE article SET title = 'Turtle', mark = nextval('mark') WHERE id = 'k2';
             INSERT INTO article VALUES ('new', 'Hare'); DELETE FROM article WHERE id = 'k3'",
        )
        .await;
    assert_equal(&indexes, &configs, &postgres, "changed").await;
    assert_ne!(written(), before);
    let status = indexes.status().remove(0);
    assert_eq!(
        (status.state, status.documents, status.is_warm),
        (IndexState::Ready, 50, true)
    );
    assert!(status.behind_seconds.unwrap() < 60);
}

#[tokio::test]
async fn a_transaction_that_commits_out_of_order_is_not_missed() {
    let (postgres, place) = (articles(5).await, Place::new());
    // Long enough that what is seen does not count as read at once, which the next reading would notice.
    let configs = following(Duration::from_secs(2));
    let indexes = place.open(&configs, postgres.database());
    mature(&indexes, &postgres).await;
    let early = (postgres.database().connect)(None).await.unwrap();
    early
        .batch_execute("BEGIN; INSERT INTO article VALUES ('early', 'Tortoise')")
        .await
        .unwrap();
    postgres
        .execute("INSERT INTO article VALUES ('late', 'Hare')")
        .await;
    assert_eq!(catch_up(&indexes).await, 6);
    early.batch_execute("COMMIT").await.unwrap();
    // One goes as one comes: the count alone would not tell.
    postgres
        .execute("DELETE FROM article WHERE id = 'k1'")
        .await;
    catch_up(&indexes).await;
    assert!(documents(&indexes).await.contains_key("early"));
}

/// The name of the type without its length means one letter.
#[tokio::test]
async fn keys_of_a_fixed_length_are_found_again() {
    let (postgres, place) = (Postgres::start().await, Place::new());
    postgres
        .execute(
            "CREATE SEQUENCE mark;
             CREATE TABLE article (id char(8) PRIMARY KEY, title text, is_gone boolean DEFAULT false,
               mark bigint NOT NULL DEFAULT nextval('mark'));
             INSERT INTO article SELECT 'A' || n, 'Number ' || n FROM generate_series(11, 40) n",
        )
        .await;
    let configs = following(NONE);
    let indexes = place.open(&configs, postgres.database());
    assert_eq!(catch_up(&indexes).await, 30);
    mature(&indexes, &postgres).await;
    // Too late to be read by their watermarks: the number of rows tells that they are missing.
    postgres
        .execute("INSERT INTO article VALUES ('A10', 'Late', false, -1), ('A9', 'Late', false, -2)")
        .await;
    assert_equal(&indexes, &configs, &postgres, "late").await;
    assert_eq!(catch_up(&indexes).await, 32);
}

#[tokio::test]
async fn rows_that_a_policy_hides_are_told() {
    let (postgres, place) = (articles(5).await, Place::new());
    postgres
        .execute(
            "ALTER TABLE article ENABLE ROW LEVEL SECURITY;
             CREATE ROLE reader; GRANT pg_read_all_data, pg_monitor TO reader; ALTER ROLE postgres SET role = reader",
        )
        .await;
    let indexes = place.open(&following(NONE), postgres.database());
    let error = indexes.rebuild("search", &NoProgress).await.unwrap_err();
    let told = error_chain(&error);
    assert!(told.contains("row-level security"), "{told}");
}

#[tokio::test]
async fn tombstones_are_no_documents() {
    let (postgres, place) = (articles(10).await, Place::new());
    postgres
        .execute("UPDATE article SET is_gone = true WHERE id = 'k7'")
        .await;
    let configs = burying(NONE);
    let indexes = place.open(&configs, postgres.database());
    assert_eq!(catch_up(&indexes).await, 9);
    mature(&indexes, &postgres).await;
    postgres
        .execute("UPDATE article SET is_gone = true, mark = nextval('mark') WHERE id = 'k1'")
        .await;
    assert_equal(&indexes, &configs, &postgres, "buried").await;
    postgres
        .execute("UPDATE article SET is_gone = false, mark = nextval('mark') WHERE id = 'k1'")
        .await;
    assert_equal(&indexes, &configs, &postgres, "risen").await;
    let hits = indexes.search("search", "id:k1", 1).await.unwrap().hits;
    assert!(!hits[0].fields.contains_key("is_gone"));
}

#[tokio::test]
async fn whatever_happens_an_index_that_caught_up_equals_a_cold_one() {
    for (seed, configs) in [
        (1, following(NONE)),
        (2, following(LONG)),
        (3, burying(NONE)),
    ] {
        let (postgres, place) = (articles(30).await, Place::new());
        let mut indexes = place.open(&configs, postgres.database());
        let mut random: u64 = seed;
        // A linear congruence mixes happenings well enough, and the same on every machine.
        let mut next = move |below: u64| {
            random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (random >> 33) % below
        };
        let slow = (postgres.database().connect)(None).await.unwrap();
        let mut is_open = false;
        for round in 0..60 {
            let key = format!("k{}", next(40));
            let happening = next(9);
            match happening {
                0 | 1 => {
                    let sql = format!(
                        "INSERT INTO article VALUES ('{key}', 'Round {round}') ON CONFLICT (id)
                         DO UPDATE SET title = 'Again {round}', mark = nextval('mark')"
                    );
                    postgres.execute(&sql).await;
                }
                2 => {
                    let sql = format!("DELETE FROM article WHERE id = '{key}'");
                    postgres.execute(&sql).await;
                }
                3 => {
                    let sql = format!(
                        "UPDATE article SET title = 'hidden', mark = nextval('mark') WHERE id = '{key}'"
                    );
                    postgres.execute(&sql).await;
                }
                // Transactions that last, where the watermark allows for it.
                4 if seed == 2 && !is_open => {
                    let sql = format!("BEGIN; INSERT INTO article VALUES ('slow{round}', 'Slow')");
                    slow.batch_execute(&sql).await.unwrap();
                    is_open = true;
                }
                5 if is_open => {
                    slow.batch_execute("COMMIT").await.unwrap();
                    is_open = false;
                }
                // The program is killed, wherever it is, and started again.
                6 => {
                    let (stopper, stop) = Stopper::new();
                    let keeping = tokio::spawn(indexes.clone().keep_warm(stop));
                    tokio::time::sleep(Duration::from_millis(next(40))).await;
                    keeping.abort();
                    drop(keeping.await);
                    drop(stopper);
                    drop(indexes);
                    indexes = place.open(&configs, postgres.database());
                }
                7 => drop(catch_up(&indexes).await),
                _ => {
                    let sql = format!(
                        "UPDATE article SET is_gone = NOT is_gone, mark = nextval('mark')
                         WHERE id = '{key}'"
                    );
                    postgres.execute(&sql).await;
                }
            }
            if round % 7 == 0 {
                assert_equal(&indexes, &configs, &postgres, &format!("{seed}, {round}")).await;
            }
        }
        assert_equal(
            &indexes,
            &configs,
            &postgres,
            &format!("{seed}, at the end"),
        )
        .await;
    }
}

#[tokio::test]
async fn a_row_whose_watermark_is_of_the_future_hides_no_changes() {
    let (postgres, place) = (Postgres::start().await, Place::new());
    postgres
        .execute(
            "CREATE TABLE article (id int PRIMARY KEY, title text, mark timestamptz DEFAULT now());
             INSERT INTO article VALUES (1, 'Now', now()), (2, 'Far', '2999-01-01')",
        )
        .await;
    let rows = Rows {
        warm: Some(watermark("mark", NONE)),
        ..rows("SELECT id, title, mark FROM article")
    };
    let configs = [Index {
        engine: Engine::Tantivy { rows },
        ..tantivy_index("search", "")
    }];
    let indexes = place.open(&configs, postgres.database());
    for round in 0..5 {
        let sql = format!("UPDATE article SET title = 'Round {round}', mark = now() WHERE id = 1");
        postgres.execute(&sql).await;
        assert_equal(&indexes, &configs, &postgres, &format!("{round}")).await;
    }
    assert!(!safe_mark(&indexes).await.unwrap().contains("2999"));
}

#[tokio::test]
async fn what_is_no_watermark_is_refused() {
    let (postgres, place) = (articles(1).await, Place::new());
    let table = [
        (
            watermark("none", NONE),
            "has no column `none`, which is its `watermark`",
        ),
        (
            watermark("title", NONE),
            "is of type text, and `watermark` has to be a timestamp",
        ),
        (
            Warm {
                deleted: Some("title".to_owned()),
                ..watermark("mark", NONE)
            },
            "is of type text, and `deleted` has to be boolean",
        ),
    ];
    for (warm, expected) in table {
        let indexes = place.open(&config(warm), postgres.database());
        let error = indexes.catch_up("search", PATIENCE, &NoProgress).await;
        let told = error_chain(&error.unwrap_err());
        assert!(told.contains(expected), "{told}");
    }
}

#[tokio::test]
async fn l11_a_build_goes_on_from_its_last_key_and_searches_say_how_far_it_is() {
    let (postgres, place) = (Postgres::start().await, Place::new());
    // Numbers: their order is not that of their texts.
    postgres
        .execute(
            "CREATE SEQUENCE mark; CREATE TABLE article (id int PRIMARY KEY, title text,
               is_gone boolean, mark bigint NOT NULL DEFAULT nextval('mark'));
             INSERT INTO article SELECT n, 'Number ' || n FROM generate_series(1, 25000) n",
        )
        .await;
    for configs in [following(LONG), [tantivy_index("search", SOURCE)]] {
        // Killed in the middle, wherever that is.
        let indexes = place.open(&configs, postgres.database());
        let building = indexes.clone();
        let building = tokio::spawn(async move { building.rebuild("search", &NoProgress).await });
        let waiting = async {
            loop {
                let status = indexes.status().remove(0);
                let is_half = status.state == IndexState::Rebuilding;
                if is_half && status.documents >= 10_000 {
                    return status;
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        let status = tokio::time::timeout(PATIENCE, waiting).await.unwrap();
        if !place.path("index/search/current").exists() {
            let percent = status.percent.unwrap();
            assert!((40..100).contains(&percent), "{percent}");
            let (code, json) = ask(
                routes(indexes.clone(), Arc::new(|| Ok(()))),
                "/index/search/search?q=x",
            )
            .await;
            assert_eq!(
                (code, &json["state"]),
                (503, &"rebuilding".into()),
                "{json}"
            );
            assert!(json["percent"].as_u64().unwrap() >= 40, "{json}");
            let error = indexes
                .search("search", "x", 1)
                .await
                .unwrap_err()
                .to_string();
            assert!(
                error.starts_with("index search is not ready: rebuilding "),
                "{error}"
            );
        }
        building.abort();
        drop(building.await);
        indexes.abort();
        drop(indexes);
        // The row that the build has read is changed, another is deleted.
        postgres
            .execute(
                "UPDATE article SET title = 'Turtle ' || clock_timestamp(), mark = nextval('mark')
                 WHERE id = (SELECT min(id) FROM article);
                 DELETE FROM article WHERE id = (SELECT id FROM article ORDER BY id OFFSET 5 LIMIT 1)",
            )
            .await;
        let indexes = place.open(&configs, postgres.database());
        let diary = Diary::default();
        indexes.rebuild("search", &diary).await.unwrap();
        let read: Vec<u64> = diary.numbers();
        let first = read.iter().find(|read| **read > 0).unwrap();
        assert!(*first >= 10_000, "{read:?}");
        let count = postgres.value("SELECT count(*) FROM article").await;
        let found = indexes.search("search", "*", 0).await.unwrap().total;
        assert_eq!(found.to_string(), count);
        assert_eq!(
            indexes.search("search", "turtle", 0).await.unwrap().total,
            1
        );
    }
}

/// Remembers how far it was told to be.
#[derive(Default)]
struct Diary(std::sync::Mutex<Vec<u64>>);

impl Diary {
    fn numbers(&self) -> Vec<u64> {
        self.0.lock().unwrap().clone()
    }
}

impl understudy_replication::store::Progress for Diary {
    fn start(&self, _: &str, _: Option<u64>, _: understudy_replication::store::Unit) {}

    fn at(&self, done: u64) {
        self.0.lock().unwrap().push(done);
    }

    fn end(&self, _: &str) {}
}

#[tokio::test]
async fn a_catch_up_waits_no_longer_than_it_may() {
    let (postgres, place) = (articles(10).await, Place::new());
    let locker = (postgres.database().connect)(None).await.unwrap();
    locker
        .batch_execute("BEGIN; LOCK TABLE article")
        .await
        .unwrap();
    let indexes = place.open(&following(NONE), postgres.database());
    let patience = Duration::from_millis(50);
    let caught_up = indexes.catch_up("search", patience, &NoProgress).await;
    assert_eq!(
        caught_up.unwrap(),
        CaughtUp::RebuildingInBackground { percent: 0 }
    );
    locker.batch_execute("ROLLBACK").await.unwrap();
    // It goes on without anybody.
    let waiting = async {
        while states(&indexes) != [IndexState::Ready] {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.unwrap();
}

#[tokio::test]
async fn an_index_is_kept_warm_without_being_asked_and_while_postgres_comes_and_goes() {
    let (postgres, place) = (articles(10).await, Place::new());
    let mut warm = watermark("mark", NONE);
    warm.refresh = Duration::from_millis(20);
    let indexes = place.open(&config(warm), postgres.database());
    let (stopper, stop) = Stopper::new();
    let keeping = tokio::spawn(indexes.clone().keep_warm(stop));
    let until = async |count: u64| {
        let waiting = async {
            while indexes.status()[0].documents != count || states(&indexes) != [IndexState::Ready]
            {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, waiting).await.unwrap();
    };
    until(10).await;
    postgres
        .execute("INSERT INTO article VALUES ('a', 'A')")
        .await;
    until(11).await;
    postgres.stop("fast").await;
    let waiting = async {
        while indexes.status()[0].message.is_none() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.unwrap();
    assert_eq!(states(&indexes), [IndexState::Ready]);
    postgres.run().await;
    postgres
        .execute("INSERT INTO article VALUES ('b', 'B')")
        .await;
    until(12).await;
    assert_eq!(indexes.status()[0].message, None);
    stopper.stop();
    tokio::time::timeout(PATIENCE, keeping)
        .await
        .unwrap()
        .unwrap();
}

/// What it costs: with `UNDERSTUDY_INDEX_ROWS=100000` it tells the figures of the documentation.
#[tokio::test]
async fn what_is_kept_warm_catches_up_by_its_changes_alone() {
    let count = std::env::var("UNDERSTUDY_INDEX_ROWS").map_or(2000, |text| text.parse().unwrap());
    let (postgres, place) = (articles(count).await, Place::new());
    let indexes = place.open(&following(NONE), postgres.database());
    let start = std::time::Instant::now();
    catch_up(&indexes).await;
    eprintln!("cold: {:?} for {count} documents", start.elapsed());
    mature(&indexes, &postgres).await;
    let sql = format!(
        "UPDATE article SET title = 'Turtle', mark = nextval('mark')
         WHERE id IN (SELECT 'k' || n FROM generate_series(1, {count}, {}) n)",
        count / 1000
    );
    postgres.execute(&sql).await;
    let start = std::time::Instant::now();
    catch_up(&indexes).await;
    eprintln!("catch_up: {:?} for 1000 changes", start.elapsed());
    let start = std::time::Instant::now();
    catch_up(&indexes).await;
    eprintln!("catch_up: {:?} for none", start.elapsed());
    assert_eq!(
        indexes.search("search", "turtle", 0).await.unwrap().total,
        1000
    );
    postgres
        .execute("DELETE FROM article WHERE id = 'k1'")
        .await;
    let start = std::time::Instant::now();
    catch_up(&indexes).await;
    eprintln!(
        "catch_up: {:?} for a deletion, which is looked for",
        start.elapsed()
    );
    assert_eq!(
        indexes.search("search", "turtle", 0).await.unwrap().total,
        999
    );
}
