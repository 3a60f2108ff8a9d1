//! Why a standby's Postgres does not follow: each reason is produced, and told by its name.

use std::fs;
use std::path::Path;

use crate::world::{Pair, Plan, Signal, holds, signal, until};

fn wait_for_stall(pair: &Pair, part: &str) {
    until(&format!("it is told that {part}"), Pair::PATIENCE, || {
        let status = pair.b.status();
        let stalled = &status["upstream"]["stores"][0]["stalled"];
        holds(
            stalled.as_str().is_some_and(|text| text.contains(part)),
            stalled,
        )
    });
}

#[test]
fn a_standby_that_has_written_on_its_own_says_from_where() {
    let mut pair = Pair::new(Plan::postgres());
    pair.write(1);
    pair.wait();
    pair.b.kill_daemon();
    pair.b.sql("SELECT pg_promote()");
    pair.b.sql("INSERT INTO change VALUES (100)");
    let postmaster = pair.b.postmaster().unwrap();
    signal(postmaster, Signal::INT);
    until("the server has stopped", Pair::PATIENCE, || {
        holds(
            !Path::new(&format!("/proc/{postmaster}")).exists(),
            "it runs",
        )
    });
    fs::write(pair.b.at("/data/pg/standby.signal"), "").unwrap();
    pair.write(2);
    pair.b.serve();
    pair.b
        .wait_for_event("postgres_parted", "in a history of its own");
    wait_for_stall(&pair, "it has written what the primary has not");
    until("it is to be made anew", Pair::PATIENCE, || {
        let status = pair.b.status();
        let must_reseed = &status["upstream"]["stores"][0]["must_reseed"];
        holds(must_reseed == true, must_reseed)
    });
    // What only it has is still there.
    assert_eq!(
        pair.b.sql("SELECT count(*) FROM change WHERE number = 100"),
        "1"
    );
}

#[test]
fn a_replay_that_is_paused_or_in_conflict_with_a_query_is_told() {
    let pair = Pair::new(Plan::postgres());
    pair.b.sql("SELECT pg_wal_replay_pause()");
    wait_for_stall(&pair, "replay is paused");
    pair.b.sql("SELECT pg_wal_replay_resume()");
    pair.write(1);
    pair.write(2);
    pair.wait();
    std::thread::scope(|scope| {
        // It needs a row that the primary then removes for good.
        let reading = scope.spawn(|| {
            pair.b.try_sql(
                "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM change; SELECT pg_sleep(100)",
            )
        });
        until("the query runs", Pair::PATIENCE, || {
            let running = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'";
            let count = pair.b.sql(running);
            holds(count == "1", count)
        });
        pair.a.sql("DELETE FROM change WHERE number = 1");
        pair.a.sql("VACUUM change");
        wait_for_stall(&pair, "RecoveryConflict");
        pair.b.sql(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE wait_event = 'PgSleep'",
        );
        assert!(reading.join().unwrap().is_err());
    });
    pair.wait();
}
