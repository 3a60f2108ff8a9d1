//! A cable that is pulled: both sides say so, and mend themselves.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::world::{Network, Pair, Plan, until};

/// The promise is five seconds; a loaded machine gets one more.
const TOLD_WITHIN: Duration = Duration::from_secs(6);

#[test]
fn l04_a_cut_cable_is_told_by_both_sides_and_mends_by_itself() {
    let Some(network) = Network::new("l04_a_cut_cable_is_told_by_both_sides_and_mends_by_itself")
    else {
        return;
    };
    let pair = Pair::on(
        network,
        Plan {
            index: false,
            services: vec![],
            ..Plan::everything()
        },
    );
    pair.write(1);
    pair.wait();
    let ip = pair.b.ip.clone();
    let figures = [
        "postgres_lag_bytes",
        "postgres_lag_seconds",
        "files_lag_bytes",
        "files_lag_seconds",
        "settings_lag_revisions",
        "settings_lag_seconds",
    ];
    let all = |copy: &Value, what: &dyn Fn(&str) -> bool| {
        figures
            .iter()
            .all(|figure| copy[figure].as_str().is_some_and(what))
    };
    let is_known = |text: &str| text != "unknown";
    until("both sides tell the lag", Pair::PATIENCE, || {
        let (a, b) = (
            pair.a.get("/monitor/replication"),
            pair.b.get("/monitor/replication"),
        );
        if all(&a[&ip], &is_known) && all(&b, &is_known) {
            Ok(())
        } else {
            Err(format!("{a} {b}"))
        }
    });
    let pids = (
        pair.a.pid(),
        pair.b.pid(),
        pair.a.postmaster(),
        pair.b.postmaster(),
    );

    let network = pair.network.as_ref().unwrap();
    network.cut();
    let cut = Instant::now();
    for (machine, of) in [(&pair.a, Some(&ip)), (&pair.b, None)] {
        until("the lag is unknown", TOLD_WITHIN, || {
            let body = machine.get("/monitor/replication");
            let copy = of.map_or(&body, |ip| &body[ip]);
            if all(copy, &|text| text == "unknown") {
                Ok(())
            } else {
                Err(body.to_string())
            }
        });
    }
    assert!(
        cut.elapsed() < TOLD_WITHIN,
        "told after {:?}",
        cut.elapsed()
    );
    assert_eq!(
        pair.a.get("/monitor/replication")["replication_mode"],
        "master"
    );
    assert_eq!(
        pair.b.get("/monitor/replication")["replication_mode"],
        "slave"
    );
    let reason = &pair.b.get("/monitor/replication")["stores"]["postgres"];
    assert!(
        reason["unknown"].is_string() && reason["unknown_since"].is_string(),
        "{reason}"
    );
    assert_eq!(
        (pair.a.health("/primary"), pair.b.health("/replica")),
        (200, 503)
    );
    assert_eq!(pair.b.health("/liveness"), 200);

    // The primary goes on meanwhile.
    for number in 2..=5 {
        pair.write(number);
    }
    pair.b.wait_for_event("link_down", "");
    let late = pair.a.try_understudy(&["wait", "--timeout", "1"]);
    assert_eq!(late.status, Some(1), "{late:?}");

    network.mend();
    until("both sides tell the lag again", Pair::PATIENCE, || {
        let (a, b) = (
            pair.a.get("/monitor/replication"),
            pair.b.get("/monitor/replication"),
        );
        if all(&a[&ip], &is_known) && all(&b, &is_known) {
            Ok(())
        } else {
            Err(format!("{a} {b}"))
        }
    });
    pair.wait();
    pair.assert_written(5);
    pair.assert_equal();
    assert_eq!(
        pids,
        (
            pair.a.pid(),
            pair.b.pid(),
            pair.a.postmaster(),
            pair.b.postmaster()
        )
    );
}

#[test]
fn a_promotion_during_a_cut_fences_the_old_primary_at_first_contact() {
    let test = "a_promotion_during_a_cut_fences_the_old_primary_at_first_contact";
    let Some(network) = Network::new(test) else {
        return;
    };
    let mut pair = Pair::on(
        network,
        Plan {
            index: false,
            ..Plan::everything()
        },
    );
    pair.write(1);
    pair.wait();
    pair.network.as_ref().unwrap().cut();
    let refused = pair.b.try_understudy(&["promote"]);
    assert_eq!(refused.status, Some(3), "{refused:?}");
    pair.b.understudy(&["promote", "--force"]);
    // An operator has now made two primaries, on his own word; it ends when they meet.
    assert_eq!(pair.roles(), ("primary".to_owned(), "primary".to_owned()));
    pair.network.as_ref().unwrap().mend();
    pair.assert_a_is_fenced();
    pair.assert_b_is_primary();
    pair.assert_written_rows(1);
}
