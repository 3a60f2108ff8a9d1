//! `wait`, `sync`, `verify`, `scrub` and `status --store`: what they answer, and how they end.

use std::time::Duration;

use serde_json::{Value, json};

use crate::world::{Machine, Pair, Plan, holds, until};

fn json_of(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// Asserts how a verb ends: its exit status, and what it says.
fn assert_ends(machine: &Machine, arguments: &[&str], status: i32, says: &str) {
    let ended = machine.try_understudy(arguments);
    assert_eq!(ended.status, Some(status), "{arguments:?}: {ended:?}");
    assert!(ended.stderr.contains(says), "{arguments:?}: {ended:?}");
}

#[test]
fn a_wait_ends_when_the_standby_has_what_was_written_and_not_a_second_later() {
    let pair = Pair::new(Plan::files());
    for (number, level) in ["--flushed", "--applied", "--flushed", "--applied"]
        .into_iter()
        .enumerate()
    {
        pair.write(u32::try_from(number).unwrap());
        let waited = json_of(
            &pair
                .a
                .understudy(&["wait", level, "--store", "docs", "--json"]),
        );
        assert_eq!(
            (&waited["level"], &waited["standbys"], &waited["missing"]),
            (
                &json!(level.trim_start_matches('-')),
                &json!(["b"]),
                &json!([])
            )
        );
        assert!(waited["positions"]["docs"].is_u64(), "{waited}");
        if level == "--applied" {
            pair.assert_written_files(u32::try_from(number).unwrap());
        }
    }
    // Marks and reports come once a second: whoever waited for those would need longer.
    let seconds = |machine: &Machine| -> f64 {
        let mut times: Vec<f64> = (0..9)
            .map(|_| {
                machine.json(&["wait", "--store", "docs"])["seconds"]
                    .as_f64()
                    .unwrap()
            })
            .collect();
        times.sort_by(f64::total_cmp);
        times[4]
    };
    let (on_a, on_b) = (seconds(&pair.a), seconds(&pair.b));
    assert!(on_a < 0.4 && on_b < 0.4, "{on_a} s on a, {on_b} s on b");
}

#[test]
fn a_wait_that_is_too_short_tells_what_is_missing() {
    let mut pair = Pair::new(Plan::files());
    pair.b.stop();
    pair.write(1);
    let ended = pair
        .a
        .try_understudy(&["wait", "--flushed", "--timeout", "300ms", "--json"]);
    assert_eq!(ended.status, Some(1), "{ended:?}");
    let waited = json_of(&ended.stdout);
    assert_eq!(waited["missing"][0]["standby"], "b", "{waited}");
    assert!(
        ended
            .stderr
            .contains("not everything was flushed within 0.3 s: no word from b"),
        "{ended:?}"
    );
    // It ends as soon as the standby is back, which asks by itself.
    let a = &pair.a;
    let waiting = a
        .program()
        .args(["wait", "--timeout", "1m"])
        .spawn()
        .unwrap();
    pair.b.serve();
    let status = ended_within(waiting, Pair::PATIENCE);
    assert_eq!(status, Some(0));
    pair.assert_written_files(1);
}

fn ended_within(mut child: std::process::Child, limit: Duration) -> Option<i32> {
    until("a command ends", limit, || {
        child
            .try_wait()
            .unwrap()
            .ok_or_else(|| "it runs".to_owned())
    })
    .code()
}

#[test]
fn what_a_verb_cannot_do_is_refused_with_its_reason() {
    let pair = Pair::new(Plan {
        files: true,
        ..Plan::settings()
    });
    let (a, b) = (&pair.a, &pair.b);
    for verb in ["wait", "verify", "scrub", "status"] {
        let says = "there is no store nothing\nhint: the stores are: docs, settings";
        assert_ends(a, &[verb, "--store", "nothing"], 2, says);
    }
    assert_ends(a, &["sync", "nothing"], 2, "there is no store nothing");
    assert_ends(
        b,
        &["sync", "docs"],
        3,
        "store docs is synced from the primary only: node b is standby; ask node a",
    );
    assert_ends(
        a,
        &["sync", "settings", "--allow-deletes"],
        2,
        "store settings is of kind settings, which has no delete guard",
    );
    for verb in ["verify", "scrub"] {
        assert_ends(
            b,
            &[verb, "--store", "settings"],
            2,
            "store settings is of kind settings, which cannot be checked",
        );
    }
    assert_ends(
        a,
        &["wait", "--flushed", "--applied"],
        2,
        "cannot be used with",
    );
    assert_ends(
        a,
        &["wait", "--timeout", "soon"],
        2,
        "`soon` is not a duration",
    );
    assert_ends(a, &["scrub", "--rate", "0MB"], 2, "`0MB` is nothing");
}

#[test]
fn without_a_daemon_every_verb_says_so() {
    let mut pair = Pair::alone(Plan::files());
    pair.a.stop();
    for arguments in [
        &["wait"][..],
        &["sync", "docs"],
        &["verify"],
        &["scrub"],
        &["status", "--store", "docs"],
    ] {
        assert_ends(&pair.a, arguments, 4, "cannot reach the daemon");
    }
}

#[test]
fn a_sync_ends_when_every_connected_standby_has_it() {
    let mut pair = Pair::new(Plan {
        files: true,
        ..Plan::settings()
    });
    for store in ["docs", "settings"] {
        pair.write(7);
        let synced = pair.a.json(&["sync", store]);
        assert_eq!(
            (
                &synced["store"],
                &synced["standbys"],
                &synced["absent"],
                &synced["missing"]
            ),
            (&json!(store), &json!(["b"]), &json!([]), &json!([]))
        );
        assert!(synced["position"].is_u64(), "{synced}");
    }
    pair.assert_written(7);
    let text = pair.a.understudy(&["sync", "docs"]);
    assert!(text.contains("applied on b"), "{text}");

    // One that is away is not waited for, and named.
    pair.b.stop();
    pair.a.wait_for_event("standby_lost", "b");
    let text = pair.a.understudy(&["sync", "docs"]);
    assert!(text.contains("not connected: b"), "{text}");
}

#[test]
fn one_store_is_shown_whole_on_either_side() {
    let pair = Pair::new(Plan {
        files: true,
        ..Plan::settings()
    });
    pair.write(1);
    pair.wait();
    for (machine, role) in [(&pair.a, "primary"), (&pair.b, "standby")] {
        let detail = until("the store is told", Pair::PATIENCE, || {
            let detail = machine.json(&["status", "--store", "docs"]);
            let lag = &detail["copies"][0]["lag"];
            holds(lag["lag"] == 0 && lag["applied"].is_u64(), &detail)?;
            Ok(detail)
        });
        assert_eq!(
            (
                &detail["version"],
                &detail["node"],
                &detail["role"],
                &detail["store"]["name"],
                &detail["store"]["kind"],
                &detail["copies"][0]["node"],
                &detail["troubles"],
            ),
            (
                &json!(1),
                &json!(machine.name),
                &json!(role),
                &json!("docs"),
                &json!("files"),
                &json!("b"),
                &json!([]),
            )
        );
        assert_eq!(detail["store"]["troubles"], 0);
        assert!(detail["store"]["gauges"]["log_bytes"].is_u64(), "{detail}");
        let text = machine.understudy(&["status", "--store", "docs"]);
        let first = format!(
            "store docs of kind files on node {}, which is {role}\n",
            machine.name
        );
        assert!(text.starts_with(&first), "{text}");
    }
}
