//! One command makes the standby the primary, and never leaves two.

use std::fs;

use serde_json::{Value, json};

use crate::world::{Machine, Pair, Plan, holds, tree, until};

fn steps(report: &Value) -> Vec<&str> {
    let steps = report["steps"].as_array().unwrap();
    steps
        .iter()
        .map(|step| step["name"].as_str().unwrap())
        .collect()
}

#[test]
fn l13_a_planned_promotion_fences_the_primary_and_loses_nothing() {
    let mut pair = Pair::new(Plan::everything());
    for (machine, is_primary) in [(&pair.a, true), (&pair.b, false)] {
        let status = |right| if right { 200 } else { 503 };
        for method in ["GET", "HEAD", "OPTIONS"] {
            let checks = [
                "/primary",
                "/read-write",
                "/replica",
                "/standby",
                "/health",
                "/liveness",
            ];
            let found = checks.map(|path| machine.try_http(method, path).unwrap().status);
            let (primary, standby) = (status(is_primary), status(!is_primary));
            assert_eq!(
                found,
                [primary, primary, standby, standby, 200, 200],
                "{method}"
            );
        }
        assert_eq!(machine.try_http("HEAD", "/primary").unwrap().body, "");
    }
    // Nobody waits for these before the promotion: draining is its own work.
    for number in 1..=20 {
        pair.write(number);
    }
    let outcome = pair.b.json(&["promote"]);
    let report = &outcome["promoted"];
    assert_eq!(
        steps(report),
        [
            "fence a",
            "drain",
            "open epoch 2.b",
            "take over postgres",
            "take over docs",
            "take over kv",
            "take over settings",
            "catch up index search",
            "serve",
            "start services",
        ]
    );
    assert_eq!(
        (&report["fenced"], &report["overridden"]),
        (&json!("a"), &json!([]))
    );
    let lost: Vec<(&Value, &Value)> = report["lost"]
        .as_array()
        .unwrap()
        .iter()
        .map(|loss| (&loss["name"], &loss["amount"]))
        .collect();
    assert_eq!(
        lost,
        [
            (&json!("postgres"), &json!(0)),
            (&json!("docs"), &json!(0)),
            (&json!("kv"), &json!(0)),
            (&json!("settings"), &json!(0)),
        ]
    );
    assert!(
        report["steps"]
            .as_array()
            .unwrap()
            .iter()
            .all(|step| step["failure"].is_null()),
        "{report}"
    );
    assert_eq!(pair.b.sql("SELECT count(*) FROM change"), "20");
    assert_eq!(
        pair.b
            .sql("SELECT count(*) FROM article WHERE title = 'fresh'"),
        "20"
    );
    for number in 1..=20 {
        pair.assert_written_files(number);
    }
    pair.assert_equal_files();
    pair.assert_a_is_fenced();
    pair.assert_b_is_primary();
    let kept = fs::read_to_string(pair.b.state().join("reports/promotion-2.b.json")).unwrap();
    assert_eq!(serde_json::from_str::<Value>(&kept).unwrap(), *report);
    // Asked once more, there is nothing to do.
    assert_eq!(
        pair.b.json(&["promote"]),
        json!({"already_primary": {"number": 2, "node": "b"}})
    );

    assert_eq!(pair.a.stop(), Some(0));
    pair.a.serve();
    pair.assert_a_is_fenced();
    assert_eq!(pair.roles(), ("fenced".to_owned(), "primary".to_owned()));
    assert_eq!(pair.a.try_http("GET", "/primary").unwrap().status, 503);
    assert_eq!(
        pair.a
            .try_understudy(&["index", "search", "search", "fox"])
            .status,
        Some(3)
    );
    assert_eq!(pair.a.try_understudy(&["promote"]).status, Some(3));
}

#[test]
fn l12_without_a_word_from_the_primary_only_force_promotes() {
    let mut pair = Pair::new(Plan::everything());
    pair.write(1);
    pair.wait();
    let dry = pair.b.dry_run(Some(0));
    assert_eq!(dry["plan"]["unmet"], json!([]), "{dry}");
    pair.a.power_off();
    let dry = pair.b.dry_run(Some(3));
    let plan = &dry["plan"];
    assert_eq!(plan["unmet"].as_array().unwrap().len(), 1, "{plan}");
    assert_eq!(plan["unmet"][0]["can_be_forced"], true);
    assert_eq!(
        plan["steps"][0],
        json!({"open": {"number": 2, "node": "b"}}),
        "{plan}"
    );
    assert_eq!(plan["loss"].as_array().unwrap().len(), 4);

    let state = fs::read(pair.b.state().join("role.json")).unwrap();
    let refused = pair.b.try_understudy(&["promote"]);
    assert_eq!(refused.status, Some(3), "{refused:?}");
    assert!(
        refused.stderr.contains("understudy promote --force"),
        "{refused:?}"
    );
    assert_eq!(fs::read(pair.b.state().join("role.json")).unwrap(), state);
    assert_eq!(pair.b.role(), "standby");
    assert_eq!(pair.b.sql("SELECT pg_is_in_recovery()"), "t");
    assert!(
        !pair.b.at("/journal").exists(),
        "a service was started on a standby"
    );

    let outcome = pair.b.json(&["promote", "--force"]);
    let report = &outcome["promoted"];
    assert_eq!(steps(report)[0], "open epoch 2.b");
    assert_eq!(report["epoch"], json!({"number": 2, "node": "b"}));
    assert_eq!(report["fenced"], Value::Null);
    assert_eq!(report["overridden"].as_array().unwrap().len(), 1);
    assert!(report["cut"].is_u64(), "{report}");
    let lost = report["lost"].as_array().unwrap();
    // Nothing is missing of what is known, how old that knowledge is stands beside it, and what the
    // dead primary wrote last is not called zero.
    let is_honest = |loss: &Value| {
        loss["amount"].is_null()
            && loss["amount_at_least"] == 0
            && loss["seconds"].is_f64()
            && loss["unknown"].is_string()
    };
    assert!(lost.iter().all(is_honest), "{report}");
    assert!(pair.b.state().join("reports/promotion-2.b.json").exists());
    pair.assert_written(1);
    pair.assert_b_is_primary();
    let found = pair.b.json(&["index", "search", "search", "zebra1"]);
    assert_eq!(found["hits"].as_array().map(Vec::len), Some(1), "{found}");
    let found = pair.b.get("/index/search/search?q=zebra1");
    assert_eq!(found["hits"].as_array().map(Vec::len), Some(1), "{found}");

    // The old primary returns from its power cut, and must not serve for a moment.
    pair.a.spawn(&[], &[]);
    until("a is fenced", Pair::PATIENCE, || {
        let answer = pair.a.try_http("GET", "/primary");
        assert_ne!(answer.map(|answer| answer.status), Ok(200), "two primaries");
        let role = pair.a.try_status()?["role"].clone();
        holds(role == "fenced", role)
    });
    pair.assert_a_is_fenced();
    assert_eq!(pair.b.role(), "primary");
    let journal = fs::read_to_string(pair.a.at("/journal")).unwrap();
    assert_eq!(
        journal, "start one\nstart two\n",
        "a started its services again"
    );
}

#[test]
fn a_standby_whose_daemon_has_just_started_can_be_promoted() {
    let mut pair = Pair::new(Plan::postgres());
    pair.write(1);
    pair.wait();
    // With less than its log was written with, a server in recovery does not start.
    let much = pair.a.sql("SHOW max_connections");
    let conf = pair.b.at("/data/pg/postgresql.conf");
    let text = fs::read_to_string(&conf).unwrap();
    fs::write(&conf, format!("{text}max_connections = 15\n")).unwrap();
    fs::remove_file(pair.b.state().join("postgres/minimums.json")).unwrap();
    // Both lose power, and b is the one that comes back.
    pair.a.power_off();
    pair.b.power_off();
    pair.b.spawn(&[], &[]);
    until("the daemon answers", Pair::PATIENCE, || {
        pair.b.try_status().map(|_| ())
    });
    // In the worst hour nobody waits until its Postgres has started.
    pair.b.understudy(&["promote", "--force"]);
    pair.assert_b_is_primary();
    pair.assert_written(1);
    assert_eq!(pair.b.sql("SHOW max_connections"), much);
}

#[test]
fn m20_a_primary_that_restarts_serves_again_after_a_word_of_its_standby() {
    let mut pair = Pair::new(Plan {
        services: vec!["one"],
        ..Plan::settings()
    });
    pair.b.kill_daemon();
    pair.a.kill_daemon();
    pair.a.spawn(&[], &[]);
    until("a asks its peers", Pair::PATIENCE, || {
        let role = pair.a.try_status()?["role"].clone();
        holds(role == "returning", role)
    });
    assert_eq!(pair.a.health("/primary"), 503);
    pair.b.serve();
    pair.a.wait_until_ready();
    until("a is primary", Pair::PATIENCE, || {
        holds(pair.a.role() == "primary", pair.a.role())
    });
    pair.write(2);
    pair.wait();
    pair.assert_written(2);
}

#[test]
fn a_restarted_primary_that_hears_nobody_stops_what_it_found() {
    let mut pair = Pair::new(Plan {
        postgres: true,
        services: vec!["one"],
        ..Plan::settings()
    });
    pair.b.power_off();
    pair.a.kill_daemon();
    let found = pair.a.postmaster();
    assert!(found.is_some());
    pair.a.spawn(&[], &[]);
    until("what was found is stopped", Pair::PATIENCE, || {
        pair.a.try_status()?;
        let journal = fs::read_to_string(pair.a.at("/journal")).unwrap();
        holds(journal == "start one\nstop one\n", journal)?;
        holds(pair.a.postmaster().is_none(), "its Postgres runs")
    });
    assert_eq!(
        (pair.a.role(), pair.a.health("/primary")),
        ("returning".to_owned(), 503)
    );
    let refused = pair.a.try_understudy(&["promote"]);
    assert_eq!(refused.status, Some(3), "{refused:?}");
    // A word of its standby is enough to go on.
    pair.b.serve();
    until("a serves again", Pair::PATIENCE, || {
        holds(pair.a.role() == "primary", "")
    });
    pair.a.wait_until_ready();
    pair.write(1);
    pair.wait_long();
    pair.assert_written(1);
    until("its service runs", Pair::PATIENCE, || {
        let services = pair.a.json(&["services"]);
        holds(services[0]["state"] == "online", &services)
    });
}

#[test]
fn a_promoted_node_takes_a_new_standby() {
    let mut pair = Pair::new(Plan {
        postgres: true,
        files: true,
        ..Plan::settings()
    });
    pair.write(1);
    pair.wait();
    pair.a.power_off();
    pair.b.understudy(&["promote", "--force"]);
    pair.assert_b_is_primary();
    let mut c = Machine::new("c", pair.folder.path(), &pair.ips[2], None);
    let invitation = pair.b.json(&["invite", "c"]);
    let text = |key: &str| invitation[key].as_str().unwrap();
    let joined = pair.try_join(&c, text("url"), text("token"));
    assert_eq!(joined.status, Some(0), "{joined:?}");
    c.serve();
    pair.b.understudy(&["wait"]);
    assert_eq!(c.sql("SELECT * FROM change"), "1");
    assert_eq!(tree(&c.at("/srv/files")), tree(&pair.b.at("/srv/files")));
    assert_eq!(c.status()["epoch"], json!({"number": 2, "node": "b"}));
    // The old primary returns to a cluster that has changed, and fences itself.
    pair.a.serve();
    pair.assert_a_is_fenced();
    c.kill_daemon();
}
