//! A Postgres that has been superseded, or may have been, takes no writes, whoever starts it.

use std::fs;

use crate::world::{Machine, Pair, Plan, ended, holds, postgres_program, until};

/// Starts a machine's Postgres as an operating system would at boot, which knows nothing of epochs; returns
/// what the server's log says when it does not start.
fn start_by_hand(machine: &Machine) -> Result<(), String> {
    let data = machine.at("/data/pg");
    let log = machine.at("/by-hand.log");
    fs::write(&log, "").unwrap();
    let mut command = machine.command("setpriv");
    command
        .args([
            "--reuid",
            "postgres",
            "--regid",
            "postgres",
            "--init-groups",
        ])
        .arg(postgres_program("pg_ctl"))
        .args(["-w", "-t", "20", "-D"])
        .arg(&data)
        .arg("start");
    let ended = ended(&mut command);
    if ended.status == Some(0) {
        return Ok(());
    }
    Err(format!("{}{}", ended.stdout, ended.stderr))
}

#[test]
fn a_former_primarys_postgres_does_not_start_before_its_epoch_is_settled() {
    let mut pair = Pair::new(Plan::postgres());
    pair.write(1);
    pair.wait();
    pair.a.power_off();
    // Without a daemon nobody vouches for it.
    let refused = start_by_hand(&pair.a).unwrap_err();
    assert!(refused.contains("postgres-is-vouched-for"), "{refused}");
    pair.b.understudy(&["promote", "--force"]);
    assert!(start_by_hand(&pair.a).is_err());
    pair.a.serve();
    pair.assert_a_is_fenced();
    // Neither with one that knows that it has been superseded.
    assert!(start_by_hand(&pair.a).is_err());
    assert!(pair.a.try_sql("INSERT INTO change VALUES (2)").is_err());
    pair.b.sql("INSERT INTO change VALUES (3)");
    pair.a.understudy(&["rejoin"]);
    // As a standby it may be started by anybody.
    let rows = until("a has what b wrote", Pair::PATIENCE, || {
        let rows = pair
            .a
            .try_sql("SELECT string_agg(number::text, ' ') FROM change")?;
        holds(rows == "1 3", &rows).map(|()| rows.clone())
    });
    assert_eq!(rows, "1 3");
}

#[test]
fn a_primary_that_may_have_been_superseded_serves_only_after_a_word_of_its_peer() {
    let mut pair = Pair::new(Plan::postgres());
    pair.write(1);
    pair.wait();
    pair.b.kill_daemon();
    pair.a.power_off();
    pair.a.spawn(&[], &[]);
    until("a asks its peers", Pair::PATIENCE, || {
        let role = pair.a.try_status()?["role"].clone();
        holds(role == "returning", role)
    });
    assert!(start_by_hand(&pair.a).is_err());
    pair.b.serve();
    pair.a.wait_until_ready();
    pair.write(2);
    pair.wait_long();
    pair.assert_written(2);
    // The operator's own reload is heeded while it serves.
    let hba = pair.a.at("/data/pg/pg_hba.conf");
    let text = fs::read_to_string(&hba).unwrap();
    fs::write(
        &hba,
        format!("{text}# changed\nhost nowhere nobody 192.0.2.1/32 reject\n"),
    )
    .unwrap();
    pair.a.sql("SELECT pg_reload_conf()");
    until("the server has read the file again", Pair::PATIENCE, || {
        let lines = pair
            .a
            .sql("SELECT count(*) FROM pg_hba_file_rules WHERE database = '{nowhere}'");
        holds(lines == "1", lines)
    });
}
