//! Indexes: kept warm on every node, built in pieces, searched meanwhile.

use serde_json::Value;

use crate::world::{Machine, Pair, Plan, holds, until};

/// Two indexes of one table: one that is kept warm, and one whose rows take their time.
const INDEXES: &str = r#"
[[index]]
name = "notes"
engine = "tantivy"
source = "SELECT id, title, mark FROM note"
watermark = "mark"
refresh = "200ms"
[[index]]
name = "slow"
engine = "tantivy"
source = "SELECT id, title, nap(id) AS nap FROM note"
"#;

fn plan() -> Plan {
    Plan {
        postgres_more: INDEXES.to_owned(),
        ..Plan::postgres()
    }
}

fn notes(machine: &Machine) {
    machine.sql(
        "CREATE SEQUENCE mark;
         CREATE FUNCTION nap(int) RETURNS text STABLE LANGUAGE plpgsql
           AS 'BEGIN PERFORM pg_sleep(0.01); RETURN $1; END';
         CREATE TABLE note (id int PRIMARY KEY, title text, mark bigint DEFAULT nextval('mark'));
         CREATE INDEX ON note (mark);
         INSERT INTO note SELECT n, 'Number ' || n FROM generate_series(1, 1500) n",
    );
}

fn index(machine: &Machine, name: &str) -> Result<Value, String> {
    let status = machine.try_status()?;
    let indexes = status["indexes"].as_array().ok_or("no indexes")?;
    let found = indexes.iter().find(|index| index["name"] == name);
    Ok(found.ok_or("no such index")?.clone())
}

fn until_warm(machine: &Machine, documents: u64) -> Value {
    until("the index is warm", Pair::PATIENCE, || {
        let index = index(machine, "notes")?;
        let is_warm = index["is_warm"] == true && index["state"] == "ready";
        holds(is_warm && index["documents"] == documents, &index)?;
        Ok(index)
    })
}

fn found(machine: &Machine, query: &str) -> Value {
    machine.json(&["index", "search", "notes", query, "--limit", "0"])["total"].clone()
}

#[test]
fn an_index_is_warm_on_both_nodes_and_follows_through_crashes_and_a_promotion() {
    let mut pair = Pair::alone(plan());
    notes(&pair.a);
    assert_eq!(index(&pair.a, "slow").unwrap()["state"], "absent");
    pair.a.understudy(&["index", "rebuild", "notes"]);
    pair.join();
    until_warm(&pair.a, 1500);
    let built = until_warm(&pair.b, 1500)["built"].clone();
    pair.a.sql(
        "UPDATE note SET title = 'Turtle', mark = nextval('mark') WHERE id = 7;
         INSERT INTO note VALUES (2000, 'Hare')",
    );
    until_warm(&pair.a, 1501);
    until_warm(&pair.b, 1501);
    assert_eq!(found(&pair.a, "turtle"), 1);
    let refused = pair.b.try_understudy(&["index", "search", "notes", "hare"]);
    assert_eq!(refused.status, Some(3), "{refused:?}");
    let told = pair.b.understudy(&["index", "status"]);
    assert!(told.contains("ready      1501 documents, built "), "{told}");
    assert!(told.contains(" s behind"), "{told}");

    // Killed, it goes on with what it has.
    pair.b.kill_daemon();
    pair.a.sql(
        "DELETE FROM note WHERE id = 8; INSERT INTO note VALUES (2001, 'Hare'), (2002, 'Hare')",
    );
    pair.b.serve();
    pair.wait();
    until("the index has the newest rows", Pair::PATIENCE, || {
        let index = index(&pair.b, "notes")?;
        let documents = index["documents"].as_u64();
        holds(index["is_warm"] == true && documents >= Some(1502), &index)
    });
    assert_eq!(index(&pair.b, "notes").unwrap()["built"], built);

    pair.a.power_off();
    pair.b.understudy(&["promote", "--force"]);
    until_warm(&pair.b, 1502);
    assert_eq!(
        (
            found(&pair.b, "hare"),
            found(&pair.b, "id:8"),
            found(&pair.b, "turtle")
        ),
        (3.into(), 0.into(), 1.into())
    );

    // The former primary comes back, and its index is of what the new one has.
    pair.b
        .sql("UPDATE note SET title = 'Tortoise', mark = nextval('mark') WHERE id = 7");
    pair.a.spawn(&[], &[]);
    until("a is fenced", Pair::PATIENCE, || {
        let role = pair.a.try_status()?["role"].clone();
        holds(role == "fenced", role)
    });
    pair.a.understudy(&["rejoin"]);
    until_warm(&pair.a, 1502);
}

#[test]
fn l11_searches_say_how_far_a_build_is_while_everything_else_serves_and_it_goes_on_after_a_crash() {
    let mut pair = Pair::alone(plan());
    notes(&pair.a);
    let mut building = pair.a.program();
    let mut building = building.args(["index", "rebuild", "slow"]).spawn().unwrap();
    let until_at = |machine: &Machine, least: u64| {
        until("the build is under way", Pair::PATIENCE, || {
            let index = index(machine, "slow")?;
            let percent = index["percent"].as_u64();
            holds(
                index["state"] == "rebuilding" && percent >= Some(least),
                &index,
            )?;
            Ok(percent.unwrap())
        })
    };
    let percent = until_at(&pair.a, 30);
    let refused = pair
        .a
        .try_understudy(&["index", "search", "slow", "number"]);
    assert_eq!(refused.status, Some(1), "{refused:?}");
    let said = "index slow is not ready: rebuilding ";
    assert!(refused.stderr.contains(said), "{refused:?}");
    let answer = pair
        .a
        .try_http("GET", "/index/slow/search?q=number")
        .unwrap();
    assert_eq!(answer.status, 503);
    let told: Value = serde_json::from_str(&answer.body).unwrap();
    assert_eq!(
        (&told["state"], &told["retry_after"]),
        (&"rebuilding".into(), &2.into())
    );
    assert_eq!(pair.a.health("/primary"), 200);
    pair.a.sql("INSERT INTO change VALUES (1)");

    pair.a.kill_daemon();
    building.wait().unwrap();
    pair.a.serve();
    // Not from the first row, and without being asked.
    let first = until("the build goes on", Pair::PATIENCE, || {
        let index = index(&pair.a, "slow")?;
        let percent = index["percent"].as_u64();
        holds(percent.is_some() || index["state"] == "ready", &index)?;
        Ok(percent.unwrap_or(100))
    });
    assert!(first >= percent, "{first} after {percent}");
    until("the build is whole", Pair::PATIENCE, || {
        let index = index(&pair.a, "slow")?;
        holds(index["state"] == "ready", &index)
    });
    let search = ["index", "search", "slow", "number", "--limit", "0"];
    assert_eq!(pair.a.json(&search)["total"], 1500);
}
