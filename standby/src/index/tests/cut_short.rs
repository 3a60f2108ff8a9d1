//! Commits that go on, or fail, when whoever waits for them is gone: no key is in an index twice.

use super::postgres::Postgres;
use super::*;
use crate::index::engine::{Manner, Searchable, Written};
use crate::index::row::{Change, Row};

const PATIENCE: Duration = Duration::from_secs(60);

fn put(key: &str, title: &str) -> Vec<Change> {
    vec![Change::Put(Row {
        values: vec![Some(key.to_owned()), Some(title.to_owned())],
        mark: None,
        is_believed: true,
        is_deleted: false,
        version: None,
    })]
}

fn begin(place: &Place) -> Written {
    let columns = ["id", "title"].map(str::to_owned);
    Written::begin(&place.path(""), &columns, "empty").unwrap()
}

fn open(place: &Place) -> Arc<Searchable> {
    Arc::new(Searchable::open(&place.path("")).unwrap())
}

#[test]
fn an_index_is_written_on_from_the_last_commit_and_not_from_the_one_it_was_opened_at() {
    let place = Place::new();
    let before = begin(&place);
    let searchable = open(&place);
    // What a build was doing when it was cut short, and ends after that.
    before
        .apply(put("k1", "Hare"), Manner::Add, "k1", true)
        .unwrap();
    drop(before);
    let written = Written::open(searchable).unwrap();
    assert_eq!(written.state().unwrap().as_deref(), Some("k1"));
    assert_eq!(written.searchable.documents(), 1);
    written
        .apply(put("k1", "Turtle"), Manner::Replace, "k1", false)
        .unwrap();
    assert_eq!(written.searchable.documents(), 1);
}

#[test]
fn what_a_failed_commit_leaves_to_the_next_one_is_replaced_by_it() {
    let place = Place::new();
    let written = begin(&place);
    let again = || written.apply(put("k1", "Hare"), Manner::Replace, "k1", true);
    // No commit can be made: its last file is in the way.
    let (meta, aside) = (place.path("meta.json"), place.path("aside"));
    fs::rename(&meta, &aside).unwrap();
    fs::create_dir(&meta).unwrap();
    assert!(again().is_err());
    fs::remove_dir(&meta).unwrap();
    fs::rename(&aside, &meta).unwrap();
    again().unwrap();
    assert_eq!(written.searchable.documents(), 1);
    assert_eq!(open(&place).documents(), 1);
}

#[tokio::test]
async fn an_index_that_was_opened_before_the_last_commit_of_another_has_no_twins() {
    let (postgres, place) = (Postgres::start().await, Place::new());
    postgres
        .execute(
            "CREATE TABLE article (id text PRIMARY KEY, title text, mark bigint);
             INSERT INTO article SELECT 'k' || n, 'Number', n FROM generate_series(1, 5) n",
        )
        .await;
    // All is compared at each look: none of the watermarks counts as read.
    let rows = Rows {
        warm: Some(watermark("mark", Duration::from_secs(600))),
        ..rows("SELECT id, title, mark FROM article")
    };
    let configs = [Index {
        engine: Engine::Tantivy { rows },
        ..tantivy_index("search", "")
    }];
    let killed = place.open(&configs, postgres.database());
    catch_up(&killed).await;
    let indexes = place.open(&configs, postgres.database());
    postgres
        .execute(
            "INSERT INTO article VALUES ('new', 'Number', 6), ('other', 'Number', 7);
             UPDATE article SET title = 'Hare', mark = 8 WHERE id = 'k1'",
        )
        .await;
    assert_eq!(catch_up(&killed).await, 7);
    drop(killed);
    assert_eq!(catch_up(&indexes).await, 7);
    for (query, expected) in [("*", 7), ("title:number", 6), ("title:hare", 1)] {
        let found = indexes.search("search", query, 0).await.unwrap();
        assert_eq!(found.total, expected, "{query}");
    }
}

async fn catch_up(indexes: &Indexes) -> u64 {
    match indexes.catch_up("search", PATIENCE, &NoProgress).await {
        Ok(CaughtUp::Ready { documents, .. }) => documents,
        other => panic!("{other:?}"),
    }
}
