//! Somebody works on the cluster by hand, and is left alone.

use std::fs;

use serde_json::{Value, json};

use crate::world::{Machine, Pair, Plan, holds, until};

const PAUSE: [&str; 6] = [
    "pause",
    "--for",
    "1h",
    "--reason",
    "new disks",
    "--owner=eva",
];

/// Waits until a machine tells of the pause, or of none.
fn until_paused(machine: &Machine, is_paused: bool) {
    let what = format!("node {} is paused: {is_paused}", machine.name);
    until(&what, Pair::PATIENCE, || {
        let status = machine.try_status()?;
        holds(status["pause"].is_object() == is_paused, &status["pause"])
    });
}

fn metric(machine: &Machine, name: &str) -> String {
    let page = machine.try_http("GET", "/metrics").unwrap().body;
    let line = page.lines().find(|line| line.starts_with(name));
    line.unwrap_or_default().to_owned()
}

#[test]
fn a_pause_holds_on_all_nodes_survives_a_crash_ends_from_any_side_and_by_itself() {
    let mut pair = Pair::new(Plan::settings());
    let week = ["pause", "--for", "8d", "--reason", "r", "--owner", "o"];
    let refused = pair.b.try_understudy(&week);
    assert_eq!(refused.status, Some(2), "{refused:?}");
    assert!(refused.stderr.contains("at most 7d"), "{refused:?}");
    // Said on the standby, it holds on the primary at once.
    let paused = pair.b.json(&PAUSE);
    assert_eq!(paused["told"], json!(["a"]), "{paused}");
    for machine in [&pair.a, &pair.b] {
        let status = machine.status();
        let pause = &status["pause"];
        assert_eq!(
            [&pause["owner"], &pause["reason"], &pause["node"]],
            ["eva", "new disks", "b"].map(|text| json!(text)).each_ref()
        );
        let problems = status["problems"].to_string();
        for part in ["paused by eva", "new disks", "run `understudy resume`"] {
            assert!(problems.contains(part), "{problems}");
        }
        assert_eq!(machine.get("/monitor/status")["pause"], *pause);
        assert_eq!(metric(machine, "understudy_paused"), "understudy_paused 1");
        // It was asked for: nothing is wrong.
        assert_eq!(
            metric(machine, "understudy_problems"),
            "understudy_problems 0"
        );
        let text = machine.understudy(&["status"]);
        assert!(text.contains("  paused   by eva on node b"), "{text}");
        machine.wait_for_event("paused", "new disks");
    }
    // Replication goes on.
    pair.write(1);
    pair.wait();
    pair.assert_written(1);
    for machine in [&mut pair.a, &mut pair.b] {
        machine.kill_daemon();
    }
    for machine in [&mut pair.a, &mut pair.b] {
        machine.spawn(&[], &[]);
    }
    for machine in [&pair.a, &pair.b] {
        until_paused(machine, true);
    }
    pair.a.wait_until_ready();
    // One that was down when it was ended hears of it when it comes back.
    pair.b.kill_daemon();
    let resumed = pair.a.json(&["resume"]);
    assert_eq!(resumed["pause"]["owner"], "eva");
    assert_eq!(resumed["not_told"][0][0], "b", "{resumed}");
    until_paused(&pair.a, false);
    pair.b.serve();
    until_paused(&pair.b, false);
    pair.b.wait_for_event("resumed", "ended on node a");
    assert_eq!(metric(&pair.a, "understudy_paused"), "understudy_paused 0");
    assert_eq!(pair.a.json(&["resume"])["pause"], Value::Null);

    let short = [
        "pause",
        "--for",
        "2s",
        "--reason",
        "a moment",
        "--owner=eva",
    ];
    pair.a.understudy(&short);
    for machine in [&pair.a, &pair.b] {
        machine.wait_for_event("pause_expired", "a moment");
        until_paused(machine, false);
    }
}

#[test]
fn while_it_is_paused_a_superseded_node_fences_itself_and_does_not_come_back_by_itself() {
    let mut pair = Pair::new(Plan::settings());
    for machine in [&pair.a, &pair.b] {
        let text = fs::read_to_string(machine.cluster_file()).unwrap();
        let text = text.replacen("rejoin = \"manual\"", "rejoin = \"automatic\"", 1);
        assert!(text.contains("automatic"), "{text}");
        fs::write(machine.cluster_file(), text).unwrap();
    }
    pair.a.power_off();
    pair.b.kill_daemon();
    pair.b.spawn(&[], &[]);
    until("the daemon answers", Pair::PATIENCE, || {
        pair.b.try_status().map(|_| ())
    });
    let paused = pair.b.json(&PAUSE);
    assert_eq!(paused["told"], json!([]), "{paused}");
    // An operator may do what he likes, and is told.
    let promoted = pair.b.try_understudy(&["promote", "--force"]);
    assert_eq!(promoted.status, Some(0), "{promoted:?}");
    assert!(promoted.stderr.contains("paused by eva"), "{promoted:?}");
    // It hears of the pause with the first greeting; that it is superseded holds in any case.
    pair.a.spawn(&[], &[]);
    until(
        "a is fenced and has heard of the pause",
        Pair::PATIENCE,
        || {
            let status = pair.a.try_status()?;
            let is_so = status["role"] == "fenced" && status["pause"].is_object();
            holds(is_so, format!("{} {}", status["role"], status["pause"]))
        },
    );
    // It could come back: all that it needs answers.
    let foreseen = pair.a.json(&["rejoin", "--dry-run"]);
    assert_eq!(foreseen["primary"], "b", "{foreseen}");
    assert_eq!(pair.a.role(), "fenced");
    pair.b.understudy(&["resume"]);
    until("a follows", Pair::PATIENCE, || {
        let status = pair.a.try_status()?;
        holds(status["role"] == "standby", &status["role"])
    });
}
