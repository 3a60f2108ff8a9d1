//! Every state in which a copy of Postgres does not follow has a name, which is told in status (for
//! people and for programs), in the metrics and by events, on both sides, and its end is told too.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use serde_json::Value;

use crate::world::{Machine, Network, Pair, Plan, Signal, holds, postgres_program, signal, until};

/// The promise is five seconds; a loaded machine gets one more.
const TOLD_WITHIN: Duration = Duration::from_secs(6);

/// A state, and how it is told.
pub(crate) struct Named<'a> {
    /// In JSON and as a label of the metric.
    pub(crate) reason: &'a str,
    /// A part of the sentence that people read.
    pub(crate) sentence: &'a str,
    /// The event on the standby.
    pub(crate) event: &'a str,
}

fn copy(status: &Value) -> &Value {
    let upstream = &status["upstream"]["stores"][0];
    if upstream.is_null() {
        &status["standbys"][0]["stores"][0]
    } else {
        upstream
    }
}

fn metrics(machine: &Machine) -> String {
    machine.try_http("GET", "/metrics").unwrap().body
}

fn sides(pair: &Pair) -> [(&Machine, &str); 2] {
    [(&pair.b, "a"), (&pair.a, "b")]
}

impl Named<'_> {
    /// Waits until both sides tell of it in every place.
    pub(crate) fn wait(&self, pair: &Pair) {
        let Self {
            reason,
            sentence,
            event,
        } = *self;
        for (machine, peer) in sides(pair) {
            let what = format!("{} tells {reason}", machine.name);
            until(&what, Pair::PATIENCE, || {
                let status = machine.status();
                let copy = copy(&status);
                let text = copy["stalled"].as_str().unwrap_or_default();
                holds(
                    copy["stall_reason"] == reason && text.contains(sentence),
                    copy,
                )?;
                let screen = machine.understudy(&["status"]);
                let is_told = screen.contains("well     no") && screen.contains(sentence);
                holds(is_told, &screen)?;
                let body = metrics(machine);
                let labels = format!(r#"store="postgres",kind="postgres",peer="{peer}""#);
                let sample = format!(
                    "understudy_replication_stall_reason{{{labels},reason=\"{reason}\"}} 1"
                );
                let stalled = format!("understudy_replication_stalled{{{labels}}} 1");
                let has = |line: &str| body.lines().any(|found| found == line);
                holds(has(&sample), &body)?;
                // That one is about lags that can be told.
                holds(has(&stalled) || !copy["unknown"].is_null(), &body)
            });
        }
        pair.b.wait_for_event(event, sentence);
    }

    /// Waits until both sides tell that it is over; it was told once, and so was its end.
    fn wait_for_end(&self, pair: &Pair) {
        for (machine, _) in sides(pair) {
            let what = format!("{} tells {} no more", machine.name, self.reason);
            until(&what, Pair::PATIENCE, || {
                let status = machine.status();
                let copy = copy(&status);
                let is_well = copy["stall_reason"].is_null() && copy["stalled"].is_null();
                holds(is_well && copy["unknown"].is_null(), copy)?;
                let screen = machine.understudy(&["status"]);
                holds(!screen.contains("does not advance"), &screen)?;
                let body = metrics(machine);
                holds(!body.contains("understudy_replication_stall_reason"), &body)
            });
        }
        let end = format!("({})", self.reason);
        pair.b.wait_for_event("postgres_follows", &end);
        let ends = pair.b.events("postgres_follows");
        let ends: Vec<_> = ends.iter().filter(|text| text.contains(&end)).collect();
        assert_eq!(ends.len(), 1, "{ends:?}");
        assert!(ends[0].starts_with("info: "), "{ends:?}");
        let told = pair.b.events(self.event);
        assert_eq!(told.len(), 1, "{told:?}");
    }
}

#[test]
fn a_replay_that_is_paused_is_told() {
    let pair = Pair::new(Plan::postgres());
    pair.b.sql("SELECT pg_wal_replay_pause()");
    pair.write(1);
    let paused = Named {
        reason: "replay_paused",
        sentence: "SELECT pg_wal_replay_resume()",
        event: "postgres_replay_paused",
    };
    paused.wait(&pair);
    pair.b.sql("SELECT pg_wal_replay_resume()");
    paused.wait_for_end(&pair);
    pair.wait();
    pair.assert_written(1);
}

#[test]
fn a_query_that_holds_replay_up_is_told() {
    let pair = Pair::new(Plan::postgres());
    for setting in [
        "hot_standby_feedback = off",
        "max_standby_streaming_delay = -1",
    ] {
        pair.b.sql(&format!("ALTER SYSTEM SET {setting}"));
    }
    pair.b.sql("SELECT pg_reload_conf()");
    pair.write(1);
    pair.write(2);
    pair.wait();
    let conflict = Named {
        reason: "recovery_conflict",
        sentence: "end the query, or lower max_standby_streaming_delay",
        event: "postgres_replay_conflict",
    };
    std::thread::scope(|scope| {
        // It needs a row that the primary then removes for good.
        let reading = scope.spawn(|| {
            pair.b.try_sql(
                "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM change; SELECT pg_sleep(1000)",
            )
        });
        until("the query runs", Pair::PATIENCE, || {
            let running = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'";
            let count = pair.b.sql(running);
            holds(count == "1", count)
        });
        pair.a.sql("DELETE FROM change WHERE number = 1");
        pair.a.sql("VACUUM change");
        conflict.wait(&pair);
        pair.b.sql(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE wait_event = 'PgSleep'",
        );
        assert!(reading.join().unwrap().is_err());
    });
    conflict.wait_for_end(&pair);
    pair.wait();
    assert_eq!(pair.b.sql("SELECT * FROM change"), "2");
}

#[test]
fn a_stream_that_is_refused_is_told_although_the_nodes_hear_each_other() {
    let pair = Pair::new(Plan::postgres());
    pair.a.sql("ALTER ROLE understudy_replication NOLOGIN");
    pair.a
        .sql("SELECT pg_terminate_backend(pid) FROM pg_stat_replication");
    let away = Named {
        reason: "not_streaming",
        sentence: "postgres receives no stream from the primary",
        event: "postgres_not_streaming",
    };
    away.wait(&pair);
    // Nothing was written meanwhile, and still the primary does not call it a lag of 0.
    let status = pair.a.status();
    let copy = copy(&status);
    assert_eq!(
        (&copy["lag"], &copy["unknown"]["reason"]),
        (&Value::Null, &Value::from("postgres streams nothing to it"))
    );
    assert_eq!(status["standbys"][0]["is_connected"], true);
    pair.a.sql("ALTER ROLE understudy_replication LOGIN");
    away.wait_for_end(&pair);
}

#[test]
fn a_standby_whose_server_hangs_is_told() {
    let pair = Pair::new(Plan::postgres());
    let server = pair.b.postgres_processes();
    for pid in &server {
        signal(*pid, Signal::STOP);
    }
    let hangs = Named {
        reason: "not_answering",
        sentence: "postgres does not answer on this standby",
        event: "postgres_not_answering",
    };
    hangs.wait(&pair);
    // Nothing was written, and still no reader is led there by a lag of 0.
    assert_eq!(copy(&pair.b.status())["lag"], Value::Null);
    assert_eq!(pair.b.health("/replica"), 503);
    for pid in &server {
        signal(*pid, Signal::CONT);
    }
    hangs.wait_for_end(&pair);
    assert_eq!(pair.b.health("/replica"), 200);
}

#[test]
fn a_primary_whose_server_hangs_is_told_and_is_superseded_without_force_or_loss() {
    let mut pair = Pair::new(Plan::postgres());
    pair.write(1);
    pair.wait();
    for pid in pair.a.postgres_processes() {
        signal(pid, Signal::STOP);
    }
    pair.a
        .wait_for_event("postgres_not_answering", "postgres does not answer");
    until("a is not ready", Pair::PATIENCE, || {
        holds(pair.a.health("/readiness") == 503, "it is ready")
    });
    let promoted = pair.b.json(&["promote"]);
    let lost = &promoted["promoted"]["lost"][0];
    assert_eq!(lost["amount"], 0, "{promoted}");
    pair.assert_a_is_fenced();
    pair.assert_b_is_primary();
    pair.assert_written(1);
}

/// Runs a program of Postgres on a machine, as the user whose data it is.
fn run_as_postgres(machine: &Machine, program: &str, arguments: &[&str]) {
    let program = postgres_program(program);
    let mut command = if rustix::process::geteuid().is_root() {
        let mut command = machine.command("setpriv");
        command
            .args(["--reuid", "postgres", "--regid", "postgres"])
            .args(["--init-groups", &program]);
        command
    } else {
        machine.command(&program)
    };
    let nobody_hears = std::process::Stdio::null;
    let status = command
        .args(arguments)
        .current_dir("/")
        .stdout(nobody_hears())
        .status();
    assert!(status.unwrap().success(), "{program} {arguments:?}");
}

/// Makes another cluster in the place of the copy, which has run on its own, and calls it a standby.
fn replace_by_another_cluster(machine: &Machine, more: &str) {
    let place = machine.at("/data/pg");
    let (data_dir, log) = (place.to_str().unwrap(), place.join("log"));
    let (log, socket_dir) = (log.to_str().unwrap(), machine.at("/run/postgresql"));
    let options = format!("-k {}", socket_dir.display());
    machine.init_postgres();
    run_as_postgres(
        machine,
        "pg_ctl",
        &["-w", "-D", data_dir, "-l", log, "-o", &options, "start"],
    );
    machine.sql(more);
    run_as_postgres(
        machine,
        "pg_ctl",
        &["-w", "-D", data_dir, "-m", "fast", "stop"],
    );
    fs::write(place.join("standby.signal"), "").unwrap();
}

#[test]
fn a_copy_of_another_cluster_is_told() {
    tell_another_cluster("CREATE ROLE understudy LOGIN; GRANT pg_monitor TO understudy");
}

#[test]
fn a_copy_of_another_cluster_is_told_even_if_it_does_not_know_understudy() {
    tell_another_cluster("SELECT 1");
}

fn tell_another_cluster(more: &str) {
    let mut pair = Pair::new(Plan::postgres());
    pair.write(1);
    pair.wait();
    pair.b.power_off();
    let (place, aside) = (pair.b.at("/data/pg"), pair.b.at("/data/aside"));
    fs::rename(&place, &aside).unwrap();
    replace_by_another_cluster(&pair.b, more);
    pair.b.serve();
    let foreign = Named {
        reason: "foreign",
        sentence: "it is another cluster (system identifier",
        event: "postgres_parted",
    };
    foreign.wait(&pair);
    let status = pair.b.status();
    assert_eq!(copy(&status)["must_reseed"], true);
    assert_eq!(pair.b.health("/replica"), 503);
    let refused = pair.b.try_understudy(&["promote"]);
    assert_eq!(refused.status, Some(3), "{refused:?}");

    pair.b.power_off();
    fs::rename(&place, pair.b.at("/data/other")).unwrap();
    fs::rename(&aside, &place).unwrap();
    pair.b.serve();
    until("it follows again", Pair::PATIENCE, || {
        let status = pair.b.status();
        let copy = copy(&status);
        holds(
            copy["must_reseed"] == false && copy["stalled"].is_null(),
            copy,
        )
    });
    pair.write(2);
    pair.wait_long();
    pair.assert_written(2);
}

#[test]
fn a_dead_link_is_unknown_everywhere_although_nothing_was_behind() {
    let test = "a_dead_link_is_unknown_everywhere_although_nothing_was_behind";
    let Some(network) = Network::new(test) else {
        return;
    };
    let pair = Pair::on(network, Plan::postgres());
    pair.write(1);
    pair.wait();
    until("both sides tell a lag of nothing", Pair::PATIENCE, || {
        for (machine, _) in sides(&pair) {
            let status = machine.status();
            holds(copy(&status)["lag"] == 0, &status)?;
        }
        Ok(())
    });
    let network = pair.network.as_ref().unwrap();
    network.cut();
    for (machine, peer) in sides(&pair) {
        until("the lag is unknown", TOLD_WITHIN, || {
            let status = machine.status();
            let copy = copy(&status);
            let is_hidden = copy["lag"].is_null()
                && copy["lag_flushed"].is_null()
                && copy["lag_seconds"].is_null();
            holds(is_hidden && copy["unknown"]["reason"].is_string(), copy)
        });
        until("the link is called down", TOLD_WITHIN, || {
            let screen = machine.understudy(&["status"]);
            let is_told = screen.contains(&format!("{peer} is not connected"))
                && screen.contains("unknown for ");
            holds(is_told, screen)
        });
        let body = metrics(machine);
        let labels = format!(r#"store="postgres",kind="postgres",peer="{peer}""#);
        for line in [
            format!("understudy_replication_lag_unknown{{{labels}}} 1"),
            format!("understudy_peer_connected{{peer=\"{peer}\"}} 0"),
        ] {
            assert!(body.lines().any(|found| found == line), "{line}: {body}");
        }
        assert!(!body.contains("understudy_replication_lag_bytes"), "{body}");
        assert!(
            !body.contains("understudy_replication_lag_seconds"),
            "{body}"
        );
    }
    pair.b.wait_for_event("link_down", "");
    pair.a.wait_for_event("standby_lost", "");

    network.mend();
    until("both sides tell a lag of nothing", Pair::PATIENCE, || {
        for (machine, _) in sides(&pair) {
            let status = machine.status();
            holds(copy(&status)["lag"] == 0, &status)?;
        }
        Ok(())
    });
    pair.b.wait_for_event("link_up", "");
    pair.a.wait_for_event("standby_back", "");
}

/// Makes programs of Postgres that say that they are of the next major version, and are otherwise real:
/// nothing but a refusal keeps them from copying.
fn newer_programs(pair: &Pair) -> String {
    let folder = pair.folder.path().join("newer");
    fs::create_dir(&folder).unwrap();
    let real = postgres_program("");
    for program in fs::read_dir(&real).unwrap() {
        let name = program.unwrap().file_name();
        let name = name.to_str().unwrap();
        let path = folder.join(name);
        let text = format!(
            "#!/bin/sh\ncase \"$*\" in\n--version) echo \"{name} (PostgreSQL) {NEWER}.1\" ;;\n\
             *) exec {real}{name} \"$@\" ;;\nesac\n"
        );
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    folder.display().to_string()
}

/// A version that nobody has.
const NEWER: u32 = 99;

#[test]
fn l02_a_standby_of_another_major_version_is_refused_before_anything_is_copied() {
    let mut pair = Pair::alone(Plan::postgres());
    pair.write(1);
    let newer = newer_programs(&pair);
    let (url, token) = pair.invite("b");
    // The configuration is the cluster's: only a daemon that runs already does not see this.
    let edit = |machine: &Machine, old: &str, new: &str| {
        let text = fs::read_to_string(machine.cluster_file()).unwrap();
        assert!(text.contains(old), "{text}");
        fs::write(machine.cluster_file(), text.replace(old, new)).unwrap();
    };
    let usual = "\n[postgres]\n".to_owned();
    let other = format!("{usual}bin_dir = \"{newer}\"\n");
    edit(&pair.a, &usual, &other);
    let refused = pair.try_join(&pair.b, &url, &token);
    assert_eq!(refused.status, Some(1), "{refused:?}");
    let here = pair.a.sql("SHOW server_version_num");
    let here = &here[..2];
    let said = format!(
        "the primary runs Postgres {here}, this machine has {NEWER}; install postgresql-{here} here"
    );
    assert!(refused.stderr.contains(&said), "{refused:?}");
    assert!(
        !pair.b.at("/data").exists(),
        "something is in the place of the copy"
    );
    let slots = pair.a.sql("SELECT count(*) FROM pg_replication_slots");
    assert_eq!(slots, "0", "a slot keeps write-ahead log for nobody");

    // With the right programs the same command goes on.
    edit(&pair.a, &other, &usual);
    edit(&pair.b, &other, &usual);
    let again = pair.b.try_understudy(&["join", &url]);
    assert_eq!(again.status, Some(0), "{again:?}");
    pair.b.serve();
    pair.wait();
    pair.assert_written(1);
}
