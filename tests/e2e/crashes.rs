//! A promotion that is killed anywhere is run again, and ends with exactly one primary.

use serde_json::Value;
use std::time::Duration;

use crate::world::{Pair, Plan, holds, kill, until};

/// Promotes once more, and asserts that all is well.
fn promote_again(mut pair: Pair, force: bool) {
    // Its primary may be fenced already, so it need not be connected to it.
    pair.b.spawn(&[], &[]);
    until(
        "b knows its stores, and its primary's silence",
        Pair::PATIENCE,
        || {
            pair.b.try_status()?;
            let ended = pair.b.try_understudy(&["promote", "--dry-run", "--json"]);
            let outcome: Value =
                serde_json::from_str(&ended.stdout).map_err(|_| format!("{ended:?}"))?;
            let unmet = outcome["plan"]["unmet"]
                .as_array()
                .ok_or_else(|| outcome.to_string())?;
            let is_met = unmet
                .iter()
                .all(|condition| force && condition["can_be_forced"] == true);
            holds(is_met, unmet)
        },
    );
    let arguments: &[&str] = if force {
        &["promote", "--force"]
    } else {
        &["promote"]
    };
    pair.b.understudy(arguments);
    pair.assert_b_is_primary();
    pair.assert_written_rows(1);
    if force {
        // The old primary returns.
        pair.a.serve();
    }
    pair.assert_a_is_fenced();
    assert_eq!(pair.roles(), ("fenced".to_owned(), "primary".to_owned()));
    assert!(pair.b.state().join("reports/promotion-2.b.json").exists());
    assert_eq!(pair.b.status()["promotion"], serde_json::Value::Null);
    // A restart changes nothing of it.
    pair.b.kill_daemon();
    pair.b.serve();
    pair.assert_b_is_primary();
}

fn crash_after(step: &str, force: bool) {
    let mut pair = Pair::new(Plan::everything());
    pair.write(1);
    pair.wait();
    assert_eq!(pair.b.stop(), Some(0));
    pair.b.serve_with(&[], &[("UNDERSTUDY_CRASH_AFTER", step)]);
    if force {
        pair.a.power_off();
    }
    let arguments: &[&str] = if force {
        &["promote", "--force"]
    } else {
        &["promote"]
    };
    let ended = pair.b.try_understudy(arguments);
    assert_eq!(ended.status, Some(1), "{ended:?}");
    assert_eq!(pair.b.wait_for_end(), None, "the daemon was to be killed");
    promote_again(pair, force);
}

#[test]
fn a_crash_after_the_fence() {
    crash_after("fence a", false);
}

#[test]
fn a_crash_after_the_drain() {
    crash_after("drain", false);
}

#[test]
fn a_crash_after_the_epoch_is_open() {
    crash_after("open epoch 2.b", false);
}

#[test]
fn a_crash_after_the_epoch_is_open_by_force() {
    crash_after("open epoch 2.b", true);
}

#[test]
fn a_crash_after_postgres_is_taken_over() {
    crash_after("take over postgres", true);
}

#[test]
fn a_crash_after_the_files_are_taken_over() {
    crash_after("take over docs", false);
}

#[test]
fn a_crash_after_the_settings_are_taken_over() {
    crash_after("take over settings", true);
}

#[test]
fn a_crash_after_the_index_has_caught_up() {
    crash_after("catch up index search", false);
}

#[test]
fn a_crash_after_the_services_are_started() {
    crash_after("start services", false);
}

#[test]
fn a_crash_after_it_serves() {
    let mut pair = Pair::new(Plan::everything());
    pair.write(1);
    pair.wait();
    assert_eq!(pair.b.stop(), Some(0));
    pair.b
        .serve_with(&[], &[("UNDERSTUDY_CRASH_AFTER", "serve")]);
    assert_eq!(pair.b.try_understudy(&["promote"]).status, Some(1));
    assert_eq!(pair.b.wait_for_end(), None);
    promote_again(pair, false);
}

#[test]
fn a_kill_in_the_middle_of_a_step() {
    // Where in the promotion these fall depends on the machine; whatever it is, it must end well.
    for delay in [60, 350, 900] {
        let mut pair = Pair::new(Plan::everything());
        pair.write(1);
        pair.wait();
        let promotion = pair.b.program().arg("promote").spawn();
        std::thread::sleep(Duration::from_millis(delay));
        kill(pair.b.pid());
        pair.b.wait_for_end();
        promotion.unwrap().wait().unwrap();
        promote_again(pair, false);
    }
}
