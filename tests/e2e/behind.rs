//! A standby that is behind says how far, and catches up.

use crate::world::{Pair, Plan, Signal, beneath, holds, signal, until};

#[test]
fn l03_a_standby_that_was_away_tells_its_lag_until_it_has_caught_up() {
    let mut pair = Pair::new(Plan::postgres());
    // Replay stands still, as behind a long query, while the stream goes on.
    pair.b.sql("SELECT pg_wal_replay_pause()");
    pair.a
        .sql("INSERT INTO change SELECT generate_series(1, 50000)");
    let ip = pair.b.ip.clone();
    until("both sides tell a lag", Pair::PATIENCE, || {
        let (a, b) = (
            pair.a.get("/monitor/replication"),
            pair.b.get("/monitor/replication"),
        );
        for lag in [&a[&ip]["postgres_lag_bytes"], &b["postgres_lag_bytes"]] {
            let bytes: Option<u64> = lag.as_str().and_then(|lag| lag.parse().ok());
            holds(bytes.is_some_and(|bytes| bytes > 1_000_000), (&a, &b))?;
        }
        let stalled = b["stores"]["postgres"]["stalled"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        holds(stalled.contains("replay is paused"), &b)
    });
    assert_eq!(pair.b.health("/replica"), 200);
    assert_eq!(pair.b.health("/replica?lag=16kB"), 503);
    let late = pair.a.try_understudy(&["wait", "--timeout", "1"]);
    assert_eq!(late.status, Some(1), "{late:?}");
    pair.b.sql("SELECT pg_wal_replay_resume()");
    pair.wait();
    assert_lag_of_nothing(&pair);
    assert_eq!(pair.b.health("/replica?lag=16kB"), 200);

    // The machine of the standby freezes, and thaws.
    let frozen = beneath(&pair.b.home);
    assert!(frozen.len() > 3, "{frozen:?}");
    frozen.iter().for_each(|pid| signal(*pid, Signal::STOP));
    pair.a
        .sql("INSERT INTO change SELECT generate_series(50001, 60000)");
    until(
        "the lag is unknown, or more than nothing",
        Pair::PATIENCE,
        || {
            let lag = &pair.a.get("/monitor/replication")[&ip]["postgres_lag_bytes"];
            holds(lag != "0", lag)
        },
    );
    assert_eq!(pair.a.health("/primary"), 200);
    frozen.iter().for_each(|pid| signal(*pid, Signal::CONT));
    pair.wait_long();
    assert_lag_of_nothing(&pair);

    // It loses power, and returns.
    pair.b.power_off();
    pair.a
        .sql("INSERT INTO change SELECT generate_series(60001, 70000)");
    until("the lag is unknown", Pair::PATIENCE, || {
        let lag = &pair.a.get("/monitor/replication")[&ip]["postgres_lag_bytes"];
        holds(lag == "unknown", lag)
    });
    pair.b.serve();
    pair.wait_long();
    assert_lag_of_nothing(&pair);
    pair.assert_equal();
}

fn assert_lag_of_nothing(pair: &Pair) {
    until("both sides tell a lag of nothing", Pair::PATIENCE, || {
        let (a, b) = (
            pair.a.get("/monitor/replication"),
            pair.b.get("/monitor/replication"),
        );
        holds(
            a[&pair.b.ip]["postgres_lag_bytes"] == "0" && b["postgres_lag_bytes"] == "0",
            (&a, &b),
        )
    });
}

#[test]
fn a_primary_does_not_wait_for_the_old_word_of_a_standby_that_is_gone() {
    let mut pair = Pair::new(Plan::settings());
    pair.wait();
    pair.b.power_off();
    // Nothing has been written since the standby's last word, which is no answer all the same.
    let ended = pair.a.try_understudy(&["wait", "--timeout", "2"]);
    assert_eq!(ended.status, Some(1), "{ended:?}");
    assert!(ended.stderr.contains("no word from b"), "{ended:?}");
    let event = pair
        .a
        .wait_for_event("standby_lost", "no word from standby b");
    assert!(event.starts_with("warning: "), "{event}");
    pair.b.spawn(&[], &[]);
    pair.a.wait_for_event("standby_back", "node b follows");
    pair.wait();
}
