//! A standby's Postgres that has written on its own, and what is told of it.

use std::fs;
use std::path::Path;

use crate::named_states::Named;
use crate::world::{Pair, Plan, Signal, holds, signal, until};

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
    let parted = Named {
        reason: "parted",
        sentence: "in a history of its own: it has written what the primary has not",
        event: "postgres_parted",
    };
    parted.wait(&pair);
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
