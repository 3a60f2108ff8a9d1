//! A join that is killed in the middle is run again, and ends with a whole copy.

use std::fs;
use std::time::Duration;

use crate::world::{Pair, Plan, kill_beneath, until};

/// Makes a pair whose copying takes a while.
fn large() -> Pair {
    let plan = Plan { postgres: true, files: true, ..Plan::settings() };
    let pair = Pair::alone(plan);
    pair.a.sql("INSERT INTO change SELECT generate_series(1, 400000)");
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
    let (url, token) = pair.invite("b");
    // The moments: the base backup has begun, then is half way, then files arrive.
    let moments: [(&str, &dyn Fn(&Pair) -> bool); 4] = [
        ("the certificate is here", &|pair| pair.b.etc().join("pki/ca.key").exists()),
        ("the base backup has begun", &|pair| pair.b.at("/data/pg/base").exists()),
        ("the base backup is under way", &|pair| size(&pair.b.at("/data/pg")) > 15_000_000),
        ("files arrive", &|pair| pair.b.at("/srv/files").exists() || pair.b.state().join("files/docs").exists()),
    ];
    for (what, is_there) in moments {
        let mut join = pair.join_command(&pair.b, &url, &token).spawn().unwrap();
        until(what, Pair::PATIENCE, || {
            if is_there(&pair) || join.try_wait().unwrap().is_some() { Ok(()) } else { Err(String::new()) }
        });
        // All of it is killed, or, as a crash of the program alone would, only the program.
        join.kill().unwrap();
        join.wait().unwrap();
        if what == "the base backup is under way" {
            kill_beneath(&pair.b.home);
        }
    }
    // Written between the tries: the copy must have it as well.
    pair.a.sql("INSERT INTO change SELECT generate_series(400001, 401000)");
    fs::write(pair.a.at("/srv/files/many/1.bin"), "changed\n").unwrap();
    let joined = pair.try_join(&pair.b, &url, &token);
    assert_eq!(joined.status, Some(0), "{joined:?}");
    pair.b.serve();
    pair.wait();
    pair.assert_equal();
    assert_eq!(pair.b.sql("SELECT count(*), sum(number) FROM change"), pair.a.sql("SELECT count(*), sum(number) FROM change"));
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

fn size(folder: &std::path::Path) -> u64 {
    let mut size = 0;
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let Ok(metadata) = entry.metadata() else { continue };
        size += if metadata.is_dir() { self::size(&entry.path()) } else { metadata.len() };
    }
    size
}
