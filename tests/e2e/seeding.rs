//! A join that is killed in the middle is run again, and ends with a whole copy.

use std::fs;
use std::time::Duration;

use crate::world::{Pair, Plan, kill_beneath, until};

/// Makes a pair whose copying takes a while.
fn large() -> Pair {
    let plan = Plan {
        postgres: true,
        files: true,
        ..Plan::settings()
    };
    let pair = Pair::alone(plan);
    pair.a
        .sql("INSERT INTO change SELECT generate_series(1, 400000)");
    let files = pair.a.at("/srv/files/many");
    fs::create_dir(&files).unwrap();
    for number in 0..1500_u32 {
        let content = number.to_le_bytes().repeat(2000);
        fs::write(files.join(format!("{number}.bin")), content).unwrap();
    }
    pair
}

#[test]
fn a_join_that_is_killed_again_and_again_ends_with_a_whole_copy() {
    let mut pair = large();
    let (url, mut token) = pair.invite("b");
    // Where in the work these fall depends on the machine; whatever it is, it must end well.
    let mut was_killed = 0;
    for (number, delay) in [60, 250, 400, 600, 850, 1100].into_iter().enumerate() {
        let mut join = pair.join_command(&pair.b, &url, &token).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(delay));
        let ended = join.try_wait().unwrap();
        was_killed += u32::from(ended.is_none());
        if ended.is_some_and(|status| !status.success()) {
            // The kill fell between the use of the token and the certificate's arrival: as the
            // refusal says, a new one is needed.
            assert!(!pair.b.etc().join("pki/ca.key").exists());
            (_, token) = pair.invite("b");
        }
        join.kill().unwrap();
        join.wait().unwrap();
        // A crash of the program leaves pg_basebackup and the server running; a power cut does not.
        if number % 2 == 1 {
            kill_beneath(&pair.b.home);
        }
    }
    assert!(was_killed >= 3, "the joins were too quick to be killed");
    // Written between the tries: the copy must have it as well.
    pair.a
        .sql("INSERT INTO change SELECT generate_series(400001, 401000)");
    fs::write(pair.a.at("/srv/files/many/1.bin"), "changed\n").unwrap();
    let joined = pair.try_join(&pair.b, &url, &token);
    assert_eq!(joined.status, Some(0), "{joined:?}");
    pair.b.serve();
    pair.wait();
    pair.assert_equal();
    assert_eq!(
        pair.b.sql("SELECT count(*), sum(number) FROM change"),
        pair.a.sql("SELECT count(*), sum(number) FROM change")
    );
}

#[test]
fn the_primary_writes_on_while_a_standby_is_seeded() {
    let mut pair = large();
    let (url, token) = pair.invite("b");
    let mut join = pair.join_command(&pair.b, &url, &token).spawn().unwrap();
    let mut number = 1_000_000;
    until("the join ends", Duration::from_secs(120), || {
        number += 1;
        pair.write(number);
        match join.try_wait().unwrap() {
            Some(status) => {
                assert!(status.success(), "{status}");
                Ok(())
            }
            None => Err(format!("{number}")),
        }
    });
    pair.b.serve();
    pair.wait();
    pair.assert_written(number);
    pair.assert_equal();
}
