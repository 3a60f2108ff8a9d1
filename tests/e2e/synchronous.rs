//! Commits that wait for a standby: what is claimed of them, and what happens when there is none.

use std::time::Duration;

use serde_json::{Value, json};

use crate::world::{Machine, Pair, Plan, Signal, holds, signal, until};

fn plan(degrade_after: &str) -> Plan {
    Plan {
        postgres_more: format!("durability = \"sync\"\ndegrade_after = \"{degrade_after}\""),
        ..Plan::postgres()
    }
}

fn durability(machine: &Machine) -> Value {
    let status = machine.status();
    let stores = status["stores"].as_array().unwrap();
    stores[0]["durability"].clone()
}

fn wait_for(machine: &Machine, state: &str) {
    until(&format!("commits are {state}"), Pair::PATIENCE, || {
        let durability = durability(machine);
        holds(durability["state"] == state, durability)
    });
}

#[test]
fn commits_wait_for_a_standby_and_go_on_alone_when_it_is_away_for_too_long() {
    let mut pair = Pair::alone(plan("3s"));
    // Nobody to wait for yet: an application is not stopped by that.
    wait_for(&pair.a, "alone");
    pair.write(1);
    pair.join();
    wait_for(&pair.a, "held");
    pair.a.wait_for_event("postgres_sync_held", "");
    pair.write(2);
    assert_eq!(
        pair.b.sql("SELECT max(number) FROM change"),
        "2",
        "what was acknowledged is there already"
    );

    // The standby hangs: its connection stays, and nothing is answered.
    let standby: Vec<i32> = pair.b.postgres_processes();
    for pid in &standby {
        signal(*pid, Signal::STOP);
    }
    let begun = std::time::Instant::now();
    pair.write(3);
    let waited = begun.elapsed();
    assert!(
        waited >= Duration::from_secs(2),
        "it did not wait: {waited:?}"
    );
    pair.a
        .wait_for_event("postgres_sync_alone", "on this node only");
    wait_for(&pair.a, "alone");
    let problems = pair.a.status()["problems"].to_string();
    assert!(
        problems.contains("commits wait for no standby"),
        "{problems}"
    );
    pair.write(4);

    for pid in &standby {
        signal(*pid, Signal::CONT);
    }
    wait_for(&pair.a, "held");
    assert_eq!(pair.b.sql("SELECT max(number) FROM change"), "4");

    // A daemon that comes back finds what it left.
    pair.a.kill_daemon();
    pair.write(5);
    pair.a.serve();
    wait_for(&pair.a, "held");
}

#[test]
fn a_strict_primary_acknowledges_nothing_that_only_it_has() {
    let pair = Pair::new(plan("never"));
    wait_for(&pair.a, "held");
    let standby = pair.b.postgres_processes();
    for pid in &standby {
        signal(*pid, Signal::STOP);
    }
    wait_for(&pair.a, "waiting");
    std::thread::scope(|scope| {
        let written = scope.spawn(|| pair.a.sql("INSERT INTO change VALUES (1)"));
        let waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
        until("the commit waits", Pair::PATIENCE, || {
            let count = pair.a.sql(waits);
            holds(count == "1", count)
        });
        assert_eq!(durability(&pair.a)["state"], json!("waiting"));
        assert!(!written.is_finished());
        for pid in &standby {
            signal(*pid, Signal::CONT);
        }
        written.join().unwrap();
    });
    wait_for(&pair.a, "held");
    assert_eq!(pair.b.sql("SELECT max(number) FROM change"), "1");
}

#[test]
fn nothing_is_claimed_where_somebody_else_has_said_that_commits_need_not_wait() {
    let pair = Pair::new(plan("never"));
    wait_for(&pair.a, "held");
    pair.a
        .sql("ALTER DATABASE postgres SET synchronous_commit = false");
    until("the override is told", Pair::PATIENCE, || {
        let problems = pair.a.status()["problems"].to_string();
        holds(
            problems.contains("synchronous_commit of every role in database postgres"),
            problems,
        )
    });
    assert_ne!(durability(&pair.a)["state"], json!("held"));
    pair.a
        .sql("ALTER DATABASE postgres RESET synchronous_commit");
    wait_for(&pair.a, "held");
}
