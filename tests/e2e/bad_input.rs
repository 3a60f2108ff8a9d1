//! Bad input gets a precise error, and changes nothing.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;

use serde_json::json;

use crate::world::{Machine, Pair, Plan, holds, tree, until};

/// Replaces a part of a node's `understudy.toml`.
fn edit(machine: &Machine, part: &str, by: &str) {
    let text = fs::read_to_string(machine.cluster_file()).unwrap();
    assert!(text.contains(part), "{text}");
    fs::write(machine.cluster_file(), text.replacen(part, by, 1)).unwrap();
}

#[test]
fn a_mistake_in_the_configuration_is_shown_in_its_place() {
    let pair = Pair::prepare(Plan::settings(), None);
    pair.init();
    let a = &pair.a;
    assert_eq!(a.json(&["config", "check"])["valid"], true);
    edit(a, "[settings]\nschedule", "[settings]\nschedul");
    let file = a.cluster_file().display().to_string();
    let text = fs::read_to_string(&file).unwrap();
    let line = 1 + text
        .lines()
        .position(|line| line.starts_with("schedul "))
        .unwrap();

    let checked = a.try_understudy(&["config", "check"]);
    assert_eq!(checked.status, Some(2));
    for part in ["schedul", &format!("{file}:{line}:1"), "schedule"] {
        assert!(checked.stdout.contains(part), "{part} in {checked:?}");
    }
    let told = a.try_understudy(&["config", "check", "--json"]);
    assert_eq!(told.status, Some(2));
    let told: serde_json::Value = serde_json::from_str(&told.stdout).unwrap();
    assert_eq!(told["valid"], false);
    let problem = &told["problems"][0];
    assert_eq!(
        (&problem["line"], &problem["column"]),
        (&json!(line), &json!(1)),
        "{told}"
    );

    // No verb works with it, and none touches anything.
    let served = a.try_understudy(&["serve"]);
    assert_eq!(served.status, Some(2));
    assert!(
        served.stderr.contains(&format!("{file}:{line}:1")),
        "{served:?}"
    );
}

#[test]
fn every_mistake_is_shown_at_once() {
    let pair = Pair::prepare(Plan::settings(), None);
    pair.init();
    edit(
        &pair.a,
        "schedule = \"* * * * * *\"",
        "schedule = \"every day\"",
    );
    edit(&pair.a, "paths = [\"/etc/app\"]", "paths = [\"relative\"]");
    let checked = pair.a.try_understudy(&["config", "check"]);
    assert_eq!(checked.status, Some(2));
    for part in ["every day", "relative"] {
        assert!(checked.stdout.contains(part), "{part} in {checked:?}");
    }
}

#[test]
fn a_configuration_that_is_not_there_says_what_makes_one() {
    let pair = Pair::prepare(Plan::settings(), None);
    let ended = pair.a.try_understudy(&["serve"]);
    assert_eq!(ended.status, Some(2));
    assert!(ended.stderr.contains("understudy init"), "{ended:?}");
    let ended = pair.a.try_understudy(&["frobnicate"]);
    assert_eq!(ended.status, Some(2));
}

#[test]
fn without_a_daemon_a_verb_says_so() {
    let pair = Pair::prepare(Plan::settings(), None);
    pair.init();
    let ended = pair.a.try_understudy(&["status"]);
    assert_eq!(ended.status, Some(4));
    assert!(ended.stderr.contains("understudy serve"), "{ended:?}");
}

#[test]
fn a_port_that_is_taken_is_named() {
    let pair = Pair::prepare(Plan::settings(), None);
    pair.init();
    for (port, what) in [(7400, "peers"), (7480, "the monitor")] {
        let taken = TcpListener::bind((pair.a.ip.as_str(), port)).unwrap();
        let ended = pair.a.try_understudy(&["serve"]);
        drop(taken);
        assert_eq!(ended.status, Some(1), "{ended:?}");
        let place = format!("cannot listen for {what} on {}:{port}", pair.a.ip);
        assert!(ended.stderr.contains(&place), "{ended:?}");
        assert!(ended.stderr.contains("ss -ltnp"), "{ended:?}");
    }
}

#[test]
fn a_second_daemon_on_the_same_state_is_refused() {
    let pair = Pair::alone(Plan::settings());
    let ended = pair.a.try_understudy(&["serve"]);
    assert_eq!(ended.status, Some(3), "{ended:?}");
    assert!(
        ended.stderr.contains("another understudy works on"),
        "{ended:?}"
    );
}

/// Joins b, which has to be refused, and asserts that nothing beneath its root has changed.
fn refused_join(pair: &Pair) -> String {
    let before = tree(&pair.b.home.join("root"));
    let (url, token) = pair.invite("b");
    let refused = pair.try_join(&pair.b, &url, &token);
    assert!(matches!(refused.status, Some(1..=3)), "{refused:?}");
    assert_eq!(
        tree(&pair.b.home.join("root")),
        before,
        "a refused join has changed something"
    );
    refused.stderr
}

#[test]
fn a_data_directory_of_another_cluster_is_refused_and_not_touched() {
    let pair = Pair::alone(Plan::postgres());
    pair.b.init_postgres();
    let said = refused_join(&pair);
    assert!(
        said.contains("holds another Postgres cluster (system identifier "),
        "{said}"
    );
    let ours = pair
        .a
        .sql("SELECT system_identifier FROM pg_control_system()");
    assert!(said.contains(&ours), "{said}");
}

#[test]
fn a_data_directory_with_something_else_in_it_is_refused_and_not_touched() {
    let pair = Pair::alone(Plan::postgres());
    let folder = pair.b.at("/data/pg");
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("thesis.txt"), "the only copy\n").unwrap();
    let said = refused_join(&pair);
    assert!(
        said.contains("is not empty, and not a Postgres data directory"),
        "{said}"
    );
    // Once the folder is free, the same command goes on.
    fs::remove_dir_all(&folder).unwrap();
    let (url, token) = pair.invite("b");
    let again = pair.try_join(&pair.b, &url, &token);
    assert_eq!(again.status, Some(0), "{again:?}");
}

#[test]
fn without_postgres_the_folder_that_was_searched_is_named() {
    let pair = Pair::prepare(Plan::postgres(), None);
    pair.init();
    let empty = pair.folder.path().join("empty");
    fs::create_dir(&empty).unwrap();
    edit(
        &pair.a,
        "\n[postgres]\n",
        &format!("\n[postgres]\nbin_dir = \"{}\"\n", empty.display()),
    );
    let before = tree(&pair.a.at("/data"));
    let ended = pair.a.try_understudy(&["serve"]);
    assert_eq!(ended.status, Some(1), "{ended:?}");
    let said = format!(
        "Postgres 15 or newer is not installed in {}",
        empty.display()
    );
    assert!(ended.stderr.contains(&said), "{ended:?}");
    assert_eq!(tree(&pair.a.at("/data")), before);
}

/// Makes programs of Postgres that say that they are of version 13.
fn old_programs(pair: &Pair) -> String {
    let folder = pair.folder.path().join("old");
    fs::create_dir(&folder).unwrap();
    for name in ["pg_ctl", "pg_basebackup", "pg_controldata", "psql"] {
        let program = folder.join(name);
        fs::write(
            &program,
            format!("#!/bin/sh\necho \"{name} (PostgreSQL) 13.4\"\n"),
        )
        .unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    }
    folder.display().to_string()
}

#[test]
fn a_postgres_that_is_too_old_is_refused_by_a_standby() {
    let pair = Pair::alone(Plan::postgres());
    let old = old_programs(&pair);
    let (url, token) = pair.invite("b");
    // The configuration is the cluster's: only a daemon that runs already does not see this.
    edit(
        &pair.a,
        "\n[postgres]\n",
        &format!("\n[postgres]\nbin_dir = \"{old}\"\n"),
    );
    let refused = pair.try_join(&pair.b, &url, &token);
    assert_eq!(refused.status, Some(1), "{refused:?}");
    assert!(
        refused
            .stderr
            .contains("Postgres 15 or newer is not installed in"),
        "{refused:?}"
    );
    assert!(refused.stderr.contains(&old), "{refused:?}");
    assert!(!pair.b.at("/data").exists());
}

#[test]
fn a_postgres_that_is_too_old_is_refused_by_a_primary() {
    let mut pair = Pair::prepare(Plan::postgres(), None);
    pair.init();
    let old = old_programs(&pair);
    edit(
        &pair.a,
        "\n[postgres]\n",
        &format!("\n[postgres]\nbin_dir = \"{old}\"\n"),
    );
    fs::write(pair.a.at("/data/pg/PG_VERSION"), "13\n").unwrap();
    pair.a.spawn(&[], &[]);
    until("the daemon answers", Pair::PATIENCE, || {
        pair.a.try_status().map(|_| ())
    });
    pair.a.wait_for_event(
        "store_failed",
        "is a cluster of Postgres 13; 15 or newer is needed",
    );
    until("its status says so", Pair::PATIENCE, || {
        let status = pair.a.try_status()?;
        holds(status["stores"][0]["position"].is_null(), &status)
    });
}

#[test]
fn clocks_an_hour_apart_are_told_and_do_no_harm() {
    let has_faketime = ["/usr/bin/faketime", "/usr/local/bin/faketime"]
        .iter()
        .any(|path| std::path::Path::new(path).exists());
    if !has_faketime {
        eprintln!("SKIPPED: clocks_an_hour_apart_are_told_and_do_no_harm needs `faketime`");
        return;
    }
    let mut pair = Pair::new(Plan {
        postgres: true,
        files: true,
        ..Plan::settings()
    });
    assert_eq!(pair.b.stop(), Some(0));
    pair.b.serve_with(
        &["faketime", "-f", "+1h"],
        &[("FAKETIME_DONT_FAKE_MONOTONIC", "1")],
    );
    pair.b
        .wait_for_event("clocks_apart", "ahead of this node's");
    pair.write(1);
    pair.wait();
    pair.assert_written(1);
    pair.assert_equal();
    let ip = pair.b.ip.clone();
    until("both sides tell a small lag", Pair::PATIENCE, || {
        let (a, b) = (
            pair.a.get("/monitor/replication"),
            pair.b.get("/monitor/replication"),
        );
        for lag in [&a[&ip]["postgres_lag_seconds"], &b["postgres_lag_seconds"]] {
            let seconds: Option<f64> = lag.as_str().and_then(|lag| lag.parse().ok());
            holds(seconds.is_some_and(|seconds| seconds < 10.0), (&a, &b))?;
        }
        Ok(())
    });
}
