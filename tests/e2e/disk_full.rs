//! A standby whose disk is full says so, does no harm to the primary, and goes on when there is room.

use std::fs;
use std::path::Path;

use crate::world::{Pair, Plan, holds, is_root, until};

/// Fills the file system at `folder` to the last byte.
fn fill(folder: &Path) -> std::path::PathBuf {
    use std::io::Write;
    let ballast = folder.join("ballast");
    let mut file = fs::File::create(&ballast).unwrap();
    let mut block = 1 << 20;
    while block > 0 {
        match file.write(&vec![0_u8; block]) {
            Ok(written) if written > 0 => {}
            Ok(_) | Err(_) => block /= 16,
        }
    }
    ballast
}

#[test]
fn a_full_disk_of_the_standby_is_told_and_survived() {
    if !is_root("a_full_disk_of_the_standby_is_told_and_survived") {
        return;
    }
    let mut pair = Pair::alone(Plan {
        postgres: true,
        files: true,
        ..Plan::settings()
    });
    // Everything of b's is there: the stores, and understudy's own state.
    pair.folder.mount(&pair.b.home, 400);
    fs::create_dir_all(pair.b.home.join("root")).unwrap();
    pair.join();
    pair.write(1);
    pair.wait();

    let ballast = fill(&pair.b.home);
    pair.a
        .sql("INSERT INTO change SELECT generate_series(1000, 300000)");
    fs::write(pair.a.at("/srv/files/large"), vec![1; 5_000_000]).unwrap();
    pair.write(2);
    // The primary goes on, and neither side says that all is well.
    assert_eq!(pair.a.health("/primary"), 200);
    until("the standby says why", Pair::PATIENCE, || {
        let events = pair.b.json(&["events", "-n", "1000"]).to_string();
        holds(events.to_lowercase().contains("no space left"), events)
    });
    until("the primary does not call it well", Pair::PATIENCE, || {
        let lag = &pair.a.get("/monitor/replication")[&pair.b.ip];
        holds(lag["files_lag_bytes"] != "0", lag)
    });
    pair.write(3);

    fs::remove_file(ballast).unwrap();
    pair.wait_long();
    pair.assert_written(3);
    pair.assert_equal();
}
