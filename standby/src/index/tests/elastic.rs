//! Indexes in a model of Elasticsearch, of the rows of a real Postgres.

use std::collections::BTreeMap;

use understudy_config::Elasticsearch;

use super::elastic_model::Model;
use super::postgres::{Postgres, tenure};
use super::*;

const PATIENCE: Duration = Duration::from_secs(60);

struct Appliance {
    postgres: Postgres,
    model: Model,
    place: Place,
}

impl Appliance {
    async fn new(count: u32) -> Self {
        let appliance = Self {
            postgres: Postgres::start().await,
            model: Model::start().await,
            place: Place::new(),
        };
        fs::write(appliance.place.path("password"), "secret\n").unwrap();
        let sql = format!(
            "CREATE TABLE article (id int PRIMARY KEY, title text, body text, mark bigint);
             INSERT INTO article SELECT n, 'Number ' || n, 'fox', n FROM generate_series(1, {count}) n"
        );
        appliance.sql(&sql).await;
        appliance
    }

    async fn sql(&self, sql: &str) {
        let client = (self.postgres.database().connect)(None).await.unwrap();
        client.batch_execute(sql).await.unwrap();
    }

    fn config(&self) -> [Index; 1] {
        let place = Elasticsearch {
            is_tls: false,
            host: "127.0.0.1".to_owned(),
            port: self.model.port,
            alias: "articles".to_owned(),
            login: Some(("understudy".to_owned(), self.place.path("password"))),
            ca_file: None,
            is_shared: true,
        };
        let rows = Rows {
            warm: Some(watermark("mark", Duration::from_millis(1))),
            ..rows("SELECT id, title, body, mark FROM article")
        };
        [Index {
            engine: Engine::Elasticsearch { rows, place },
            ..tantivy_index("search", "")
        }]
    }

    fn open(&self) -> Arc<Indexes> {
        self.place.open(&self.config(), self.postgres.database())
    }

    /// Opens the index as the node of another epoch does.
    fn open_in(&self, epoch: &str) -> Arc<Indexes> {
        let database = Database {
            tenure: tenure(epoch, true),
            ..self.postgres.database()
        };
        self.place.open(&self.config(), database)
    }

    /// Returns the events of a kind.
    fn events(&self, kind: &str) -> usize {
        let text = fs::read_to_string(self.place.path("events")).unwrap();
        let kind = format!("\"{kind}\"");
        text.lines().filter(|line| line.contains(&kind)).count()
    }

    /// Returns the titles by key, as Elasticsearch has them behind the alias.
    fn titles(&self) -> BTreeMap<String, String> {
        let name = self.model.current("articles");
        let world = self.model.world();
        let titles = world.indexes[&name].documents.iter();
        titles
            .map(|(id, document)| {
                (
                    id.clone(),
                    document.source["title"].as_str().unwrap().to_owned(),
                )
            })
            .collect()
    }

    async fn expected(&self) -> BTreeMap<String, String> {
        let client = (self.postgres.database().connect)(None).await.unwrap();
        let rows = client
            .query("SELECT id::text, title FROM article", &[])
            .await;
        let rows = rows.unwrap();
        rows.iter().map(|row| (row.get(0), row.get(1))).collect()
    }
}

async fn catch_up(indexes: &Indexes) -> u64 {
    match indexes.catch_up("search", PATIENCE, &NoProgress).await {
        Ok(CaughtUp::Ready { documents, .. }) => documents,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn an_elasticsearch_is_filled_swapped_in_and_followed() {
    let appliance = Appliance::new(2500).await;
    let indexes = appliance.open();
    let absent = indexes.search("search", "fox", 1).await.unwrap_err();
    assert!(matches!(absent, SearchError::Absent { .. }), "{absent:?}");
    assert_eq!(catch_up(&indexes).await, 2500);
    assert_eq!(appliance.titles(), appliance.expected().await);
    let first = appliance.model.current("articles");
    for round in 0..4 {
        let sql = format!(
            "UPDATE article SET title = 'Turtle{round}', mark = {0} WHERE id = {0} - 3000;
             INSERT INTO article VALUES ({0}, 'New', 'fox', {0} + 1); DELETE FROM article WHERE id = {round} + 1",
            3010 + 10 * round
        );
        appliance.sql(&sql).await;
        assert_eq!(catch_up(&indexes).await, 2500);
        assert_eq!(appliance.titles(), appliance.expected().await, "{round}");
    }
    // Nothing has changed: one question to Postgres, none to Elasticsearch.
    appliance.model.world().requests.clear();
    catch_up(&indexes).await;
    assert_eq!(appliance.model.world().requests, Vec::<String>::new());
    // A rebuild by hand swaps the alias, and removes the index before.
    assert_eq!(indexes.rebuild("search", &NoProgress).await.unwrap(), 2500);
    let second = appliance.model.current("articles");
    assert_ne!(first, second);
    let names: Vec<String> = appliance.model.world().indexes.keys().cloned().collect();
    assert_eq!(names, [second]);
    // Searched through understudy, too, without what is ours.
    let found = indexes.search("search", "turtle2", 10).await.unwrap();
    assert_eq!(found.total, 1);
    let columns: Vec<&String> = found.hits[0].fields.keys().collect();
    assert_eq!(columns, ["body", "id", "mark", "title"]);
    let error = indexes.search("search", "\"open", 1).await.unwrap_err();
    assert!(matches!(error, SearchError::Query { .. }), "{error:?}");
    assert_eq!(indexes.status()[0].engine, "elasticsearch");
}

#[tokio::test]
async fn another_node_goes_on_where_the_first_one_was() {
    let appliance = Appliance::new(100).await;
    assert_eq!(catch_up(&appliance.open()).await, 100);
    let first = appliance.model.current("articles");
    appliance
        .sql("INSERT INTO article VALUES (200, 'Turtle', 'fox', 200); DELETE FROM article WHERE id = 1")
        .await;
    // Nothing of its own is left.
    fs::remove_dir_all(appliance.place.path("index")).ok();
    assert_eq!(catch_up(&appliance.open()).await, 100);
    assert_eq!(appliance.model.current("articles"), first);
    assert_eq!(appliance.titles(), appliance.expected().await);
}

#[tokio::test]
async fn a_busy_elasticsearch_is_asked_again_and_a_broken_request_does_no_harm() {
    let appliance = Appliance::new(1500).await;
    {
        let mut world = appliance.model.world();
        world.busy = 3;
        world.busy_documents = 700;
    }
    let indexes = appliance.open();
    assert_eq!(catch_up(&indexes).await, 1500);
    assert_eq!(appliance.titles(), appliance.expected().await);
    appliance
        .sql("UPDATE article SET title = 'Turtle', mark = mark + 2000 WHERE id < 500")
        .await;
    // The first half of it is carried out, and the answer is lost.
    appliance.model.world().breaks = 1;
    catch_up(&indexes).await;
    assert_eq!(appliance.titles(), appliance.expected().await);
}

#[tokio::test]
async fn a_document_that_is_refused_is_told_with_its_key() {
    let appliance = Appliance::new(10).await;
    appliance.model.world().poison = Some("Number 7".to_owned());
    let indexes = appliance.open();
    let error = indexes.rebuild("search", &NoProgress).await.unwrap_err();
    let expected = "Elasticsearch refuses the document `7` (status 400): poison";
    assert_eq!(error_chain(&error), expected);
    assert_eq!(states(&indexes), [IndexState::Failed]);
    appliance.model.world().poison = None;
    // Half a build is gone on with.
    assert_eq!(indexes.rebuild("search", &NoProgress).await.unwrap(), 10);
    assert_eq!(appliance.model.world().indexes.len(), 1);
    fs::write(appliance.place.path("password"), "wrong").unwrap();
    let error = appliance
        .open()
        .rebuild("search", &NoProgress)
        .await
        .unwrap_err();
    let expected = "Elasticsearch refuses to list its indexes (status 401): \
                    missing authentication credentials";
    assert_eq!(error_chain(&error), expected);
}

#[tokio::test]
async fn a_request_that_comes_late_cannot_undo_what_is_newer() {
    let appliance = Appliance::new(10).await;
    let indexes = appliance.open();
    catch_up(&indexes).await;
    // What the next primary has written, and the first does not know.
    let name = appliance.model.current("articles");
    let newer = "{\"index\":{\"_id\":\"3\",\"version\":500,\"version_type\":\"external_gte\"}}\n{\"title\":\"Newer\"}\n";
    let path = format!("/{name}-writer-1.a/_bulk?require_alias=true");
    post(appliance.model.port, &path, newer).await;
    appliance
        .sql("UPDATE article SET title = 'Older', mark = 100 WHERE id = 3")
        .await;
    drop(indexes.catch_up("search", PATIENCE, &NoProgress).await);
    assert_eq!(appliance.titles()["3"], "Newer");
}

/// Returns why the index cannot be made equal to its rows.
async fn refusal(indexes: &Indexes) -> String {
    match indexes.catch_up("search", PATIENCE, &NoProgress).await {
        Err(error) => error_chain(&error),
        other => panic!("{other:?}"),
    }
}

const SUPERSEDED: &str = "node b writes to it in epoch 2.b, and this node is in epoch 1.a only";

#[tokio::test]
async fn a_superseded_primary_changes_and_deletes_nothing() {
    let appliance = Appliance::new(10).await;
    let (a, b) = (appliance.open_in("1.a"), appliance.open_in("2.b"));
    catch_up(&a).await;
    catch_up(&b).await;
    let before = appliance.titles();
    let name = appliance.model.current("articles");
    let meta = appliance.model.world().indexes[&name].meta();
    // Rows that its own Postgres has no more, and one that it has changed: it does not know of the other yet.
    appliance
        .sql("DELETE FROM article WHERE id < 4; UPDATE article SET title = 'Mine', mark = 100 WHERE id = 5")
        .await;
    assert_eq!(refusal(&a).await, SUPERSEDED);
    assert_eq!(appliance.titles(), before);
    assert_eq!(appliance.model.world().indexes[&name].meta(), meta);
    // It neither builds another nor takes the alias, and says so once.
    let built = a.rebuild_fresh("search", &NoProgress).await.unwrap_err();
    assert_eq!(error_chain(&built), SUPERSEDED);
    assert_eq!(refusal(&a).await, SUPERSEDED);
    assert_eq!(appliance.events("index_superseded"), 1);
    assert_eq!(a.status()[0].message.as_deref(), Some(SUPERSEDED));
    assert_eq!(appliance.model.current("articles"), name);
    assert_eq!(appliance.model.world().indexes.len(), 1);
    // The other goes on, and so does the first once it is promoted again.
    assert_eq!(catch_up(&b).await, 7);
    assert_eq!(appliance.titles(), appliance.expected().await);
    assert_eq!(catch_up(&appliance.open_in("3.a")).await, 7);
    appliance.sql("DELETE FROM article WHERE id = 6").await;
    assert!(
        refusal(&b)
            .await
            .starts_with("node a writes to it in epoch 3.a")
    );
    assert_eq!(appliance.titles().len(), 7);
}

#[tokio::test]
async fn a_primary_that_is_superseded_while_it_writes_is_refused_by_elasticsearch_itself() {
    // Before what it looks at last, and right before each request that changes something.
    for request in ["/_mget", "/_bulk", "/_mapping", "POST /_aliases"] {
        let appliance = Appliance::new(10).await;
        let a = appliance.open_in("1.a");
        catch_up(&a).await;
        let (before, name) = (appliance.titles(), appliance.model.current("articles"));
        appliance.model.world().before = Some((request, |world| world.claim("2.b")));
        if request == "POST /_aliases" {
            let built = a.rebuild_fresh("search", &NoProgress).await.unwrap_err();
            assert!(error_chain(&built).contains("the alias that it wrote through is gone"));
        } else {
            appliance.sql("DELETE FROM article WHERE id < 4").await;
            assert_eq!(refusal(&a).await, SUPERSEDED, "{request}");
        }
        assert!(appliance.model.world().before.is_none(), "{request}");
        assert_eq!(appliance.titles(), before, "{request}");
        assert_eq!(appliance.model.current("articles"), name, "{request}");
    }
}

#[tokio::test]
async fn a_document_that_has_changed_since_it_was_looked_at_is_not_deleted_unseen() {
    let appliance = Appliance::new(10).await;
    let indexes = appliance.open();
    catch_up(&indexes).await;
    appliance.sql("DELETE FROM article WHERE id = 3").await;
    appliance.model.world().before = Some(("/_bulk", |world| {
        let name = world.alias["articles"].clone();
        world.rewrite(&name, "3", "Newer");
    }));
    // It is looked at once more then.
    assert_eq!(catch_up(&indexes).await, 9);
    assert_eq!(appliance.model.world().conflicts, 1);
}

#[tokio::test]
async fn a_primary_that_has_heard_of_its_successor_does_not_write_in_its_name() {
    let appliance = Appliance::new(10).await;
    catch_up(&appliance.open_in("2.b")).await;
    // Its Postgres still takes writes.
    let database = Database {
        tenure: tenure("2.b", false),
        ..appliance.postgres.database()
    };
    let fenced = appliance.place.open(&appliance.config(), database);
    let error = fenced.rebuild("search", &NoProgress).await.unwrap_err();
    assert!(
        matches!(error, RebuildError::NotPrimary { .. }),
        "{error:?}"
    );
}

async fn post(port: u16, path: &str, body: &str) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", port))
        .await
        .unwrap();
    let request = format!(
        "POST {path} HTTP/1.1\r\nhost: x\r\nauthorization: Basic dW5kZXJzdHVkeTpzZWNyZXQ=\r\n\
         content-type: application/x-ndjson\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

#[tokio::test]
async fn a_shared_elasticsearch_is_written_by_the_primary_alone() {
    let appliance = Appliance::new(10).await;
    assert_eq!(catch_up(&appliance.open()).await, 10);
    appliance.postgres.stop("fast").await;
    appliance.postgres.stand_by();
    appliance.postgres.run().await;
    appliance.model.world().requests.clear();
    let error = appliance
        .open()
        .rebuild("search", &NoProgress)
        .await
        .unwrap_err();
    assert!(
        matches!(error, RebuildError::NotPrimary { .. }),
        "{error:?}"
    );
    assert_eq!(appliance.model.world().requests, Vec::<String>::new());
}
