//! Indexes of databases that are promoted, rewound and restarted.

use super::postgres::Postgres;
use super::*;
use understudy_replication::store::Stopper;

const PATIENCE: Duration = Duration::from_secs(60);

fn config() -> [Index; 1] {
    let rows = Rows {
        warm: Some(watermark("mark", Duration::from_secs(600))),
        ..rows("SELECT id, title, mark FROM article")
    };
    [Index {
        engine: Engine::Tantivy { rows },
        ..tantivy_index("search", "")
    }]
}

async fn pair() -> (Postgres, Postgres) {
    let a = Postgres::start().await;
    a.execute(
        "CREATE TABLE article (id int PRIMARY KEY, title text, mark bigint);
         INSERT INTO article SELECT n, 'Number ' || n, n FROM generate_series(1, 100) n",
    )
    .await;
    let b = a.standby().await;
    (a, b)
}

async fn catch_up(indexes: &Indexes) -> u64 {
    match indexes.catch_up("search", PATIENCE, &NoProgress).await {
        Ok(CaughtUp::Ready { documents, .. }) => documents,
        other => panic!("{other:?}"),
    }
}

async fn hits(indexes: &Indexes, query: &str) -> u64 {
    indexes.search("search", query, 0).await.unwrap().total
}

fn events(place: &Place) -> String {
    fs::read_to_string(place.path("events")).unwrap()
}

#[tokio::test]
async fn a_standby_keeps_its_own_index_and_a_promotion_only_catches_up() {
    let ((a, b), place) = (pair().await, Place::new());
    let indexes = place.open(&config(), b.database());
    assert_eq!(catch_up(&indexes).await, 100);
    a.execute("INSERT INTO article VALUES (101, 'Hare', 101); DELETE FROM article WHERE id = 1")
        .await;
    b.follow(&a).await;
    a.stop("immediate").await;
    b.promote().await;
    b.execute("INSERT INTO article VALUES (102, 'Turtle', 102)")
        .await;
    assert_eq!(catch_up(&indexes).await, 101);
    assert_eq!(
        (hits(&indexes, "hare").await, hits(&indexes, "turtle").await),
        (1, 1)
    );
    // Nothing was built: it is the folder of the first build.
    assert!(place.path("index/search/1").exists());
    assert!(
        !events(&place).contains("index_parted"),
        "{}",
        events(&place)
    );
}

#[tokio::test]
async fn what_a_promotion_did_not_wait_to_compare_is_compared_by_the_next_refresh() {
    let ((a, b), place) = (pair().await, Place::new());
    let [mut index] = config();
    if let Engine::Tantivy { rows } = &mut index.engine {
        rows.warm = Some(watermark("mark", Duration::ZERO));
    }
    let indexes = place.open(&[index], b.database());
    assert_eq!(catch_up(&indexes).await, 100);
    // From now on it is known from which watermark on there may be news.
    for id in [201, 202] {
        a.execute(&format!("UPDATE article SET mark = {id} WHERE id = 100"))
            .await;
        b.follow(&a).await;
        assert_eq!(catch_up(&indexes).await, 100);
    }
    // As many rows as before, and no watermark that tells of it.
    a.execute("DELETE FROM article WHERE id = 1; INSERT INTO article VALUES (101, 'Hare', 1)")
        .await;
    b.follow(&a).await;
    a.stop("immediate").await;
    b.promote().await;
    assert_eq!(catch_up(&indexes).await, 100);
    assert_eq!(hits(&indexes, "hare").await, 0);
    let (stopper, stop) = Stopper::new();
    let keeping = tokio::spawn(indexes.clone().keep_warm(stop));
    let found = async {
        while hits(&indexes, "hare").await == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, found).await.unwrap();
    stopper.stop();
    keeping.await.unwrap();
    assert_eq!(catch_up(&indexes).await, 100);
}

#[tokio::test]
async fn a_rewound_nodes_index_forgets_what_the_primary_never_had() {
    let ((a, b), place) = (pair().await, Place::new());
    let indexes = place.open(&config(), a.database());
    b.follow(&a).await;
    // What b never gets: it is promoted while a lives on.
    b.promote().await;
    a.execute(
        "INSERT INTO article VALUES (101, 'Lost', 101); DELETE FROM article WHERE id = 1;
         UPDATE article SET title = 'Lost', mark = 102 WHERE id = 2",
    )
    .await;
    assert_eq!(catch_up(&indexes).await, 100);
    assert_eq!(hits(&indexes, "lost").await, 2);
    // The watermarks of b are those that a has had already.
    b.execute("INSERT INTO article VALUES (101, 'Kept', 101); UPDATE article SET title = 'Kept', mark = 102 WHERE id = 2")
        .await;
    a.stop("fast").await;
    drop(indexes);
    a.rewind(&b).await;
    a.follow(&b).await;
    let indexes = place.open(&config(), a.database());
    assert_eq!(catch_up(&indexes).await, 101);
    assert_eq!(
        (hits(&indexes, "lost").await, hits(&indexes, "kept").await),
        (0, 2)
    );
    assert_eq!(hits(&indexes, "id:1").await, 1);
    assert!(events(&place).contains("index_parted"));
    // Once is enough.
    b.execute("INSERT INTO article VALUES (103, 'More', 103)")
        .await;
    a.follow(&b).await;
    assert_eq!(catch_up(&indexes).await, 102);
    assert_eq!(events(&place).matches("index_parted").count(), 1);
}

#[tokio::test]
async fn what_a_crash_takes_from_the_server_it_takes_from_the_index() {
    let ((a, _b), place) = (pair().await, Place::new());
    let indexes = place.open(&config(), a.database());
    assert_eq!(catch_up(&indexes).await, 100);
    // Committed, visible, and not durable.
    for setting in [
        "synchronous_commit = off",
        "wal_writer_delay = '10s'",
        "wal_writer_flush_after = '1GB'",
    ] {
        a.execute(&format!("ALTER SYSTEM SET {setting}")).await;
    }
    a.stop("fast").await;
    a.run().await;
    a.execute("INSERT INTO article VALUES (101, 'Lost', 101)")
        .await;
    catch_up(&indexes).await;
    let seen = hits(&indexes, "lost").await;
    a.stop("immediate").await;
    a.run().await;
    let kept = a.value("SELECT count(*) FROM article WHERE id = 101").await;
    // Whether it was lost depends on the moment; the index agrees in any case.
    a.execute("INSERT INTO article SELECT n, 'More', 50 FROM generate_series(200, 300) n")
        .await;
    catch_up(&indexes).await;
    assert_eq!(hits(&indexes, "lost").await.to_string(), kept, "{seen}");
    let count = a.value("SELECT count(*) FROM article").await;
    assert_eq!(hits(&indexes, "*").await.to_string(), count);
}
