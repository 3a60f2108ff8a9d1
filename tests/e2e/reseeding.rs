//! A standby's old copy of Postgres is compared with the primary's, and only what differs travels.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use crate::world::{Machine, Pair, Plan, Signal, ended, holds, signal, until};

/// A slot that is lost after some megabytes.
fn small_slot() -> Plan {
    Plan {
        postgres_more: "max_slot_wal_keep_size = \"32MB\"".to_owned(),
        ..Plan::postgres()
    }
}

/// Writes so much that a copy takes a while and a difference is small beside it.
fn fill(machine: &Machine) {
    machine.sql(
        "CREATE TABLE ballast AS SELECT i, repeat(md5(i::text), 30) AS text \
         FROM generate_series(1, 60000) i",
    );
    // Else the first who reads it changes every page.
    machine.sql("VACUUM FREEZE ballast");
}

/// Writes on until the slot of the standby, which is away, is lost.
fn lose_the_slot(pair: &mut Pair) {
    pair.b.stop();
    pair.b.power_off();
    write_until_lost(pair);
}

fn write_until_lost(pair: &Pair) {
    until("the slot is lost", Pair::PATIENCE, || {
        pair.a.sql(
            "CREATE TABLE IF NOT EXISTS noise (text text); \
             INSERT INTO noise SELECT repeat(md5(i::text), 30) FROM generate_series(1, 15000) i",
        );
        pair.a
            .sql("TRUNCATE noise; SELECT pg_switch_wal(); CHECKPOINT");
        let state = pair
            .a
            .sql("SELECT wal_status FROM pg_replication_slots WHERE slot_name = 'understudy_b'");
        holds(state == "lost", state)
    });
}

/// Returns the two figures, in bytes, of the last event that tells of a re-seed.
fn figures(machine: &Machine) -> (f64, f64) {
    let text = fs::read_to_string(machine.state().join("events.jsonl")).unwrap();
    let line = text
        .lines()
        .rfind(|line| line.contains("\"postgres_reseeded\""))
        .unwrap_or_else(|| panic!("no re-seed: {text}"));
    eprintln!("{line}");
    assert!(line.contains("by comparing blocks"), "{line}");
    let after = |word: &str| {
        let rest = line.split(word).nth(1).unwrap();
        let mut words = rest.split([' ', ';', ',', '"']);
        let number: f64 = words.next().unwrap().parse().unwrap();
        let unit = match words.next().unwrap() {
            "GB" => 1_073_741_824.0,
            "MB" => 1_048_576.0,
            "kB" => 1024.0,
            _ => 1.0,
        };
        number * unit
    };
    (after("compared "), after("copied "))
}

/// Writes on, new rows and pages that are compared just then, until `child` has ended.
fn write_while(pair: &Pair, from: u32, child: &mut std::process::Child) -> u32 {
    let mut number = from;
    until("the command ends", Duration::from_secs(120), || {
        number += 1;
        pair.write(number);
        let some = number % 500;
        pair.a.sql(&format!(
            "UPDATE ballast SET text = md5(random()::text) || substr(text, 33) WHERE i % 500 = {some}"
        ));
        match child.try_wait().unwrap() {
            Some(status) => {
                assert!(status.success(), "{status}");
                Ok(())
            }
            None => Err(format!("{number}")),
        }
    });
    number
}

fn assert_same_rows(pair: &Pair) {
    pair.assert_equal();
    let sums = "SELECT count(*), sum(hashtext(t::text)) FROM ballast t";
    assert_eq!(pair.b.sql(sums), pair.a.sql(sums));
}

#[test]
fn l05_a_standby_whose_slot_is_lost_is_made_anew_by_one_command_while_the_primary_serves() {
    let mut pair = Pair::alone(small_slot());
    fill(&pair.a);
    pair.join();
    lose_the_slot(&mut pair);
    pair.a.wait_for_event("must_reseed", "understudy rejoin");
    until("the primary says what to do", Pair::PATIENCE, || {
        let problems = pair.a.status()["problems"].to_string();
        holds(problems.contains("run `understudy rejoin`"), problems)
    });
    // The standby says the same, with the command that mends it.
    pair.b.serve();
    pair.b
        .wait_for_event("must_reseed", "run `understudy rejoin`");
    until("the standby must be seeded anew", Pair::PATIENCE, || {
        let status = pair.b.try_status()?;
        let text = pair.b.understudy(&["status"]);
        holds(
            text.contains("must be compared whole") && text.contains("understudy rejoin"),
            (text, status),
        )
    });

    let mut rejoin = pair.b.program().arg("rejoin").spawn().unwrap();
    let last = write_while(&pair, 1000, &mut rejoin);
    pair.wait();
    pair.assert_written(last);
    assert_same_rows(&pair);
    let (compared, copied) = figures(&pair.b);
    assert!(
        compared > 50e6 && copied < compared / 4.0,
        "{copied} of {compared}"
    );
    assert_eq!(pair.b.status()["problems"].to_string(), "[]");
    // It is a standby like any other.
    pair.b.understudy(&["promote", "--force"]);
    pair.assert_b_is_primary();
}

#[test]
fn a_standby_that_has_lost_its_slot_and_has_written_on_its_own_is_not_made_anew_by_join() {
    let mut pair = Pair::new(small_slot());
    pair.write(1);
    pair.wait();
    pair.b.kill_daemon();
    pair.b.sql("SELECT pg_promote()");
    pair.b.sql("INSERT INTO change VALUES (100)");
    let postmaster = pair.b.postmaster().unwrap();
    signal(postmaster, Signal::INT);
    until("the server has stopped", Pair::PATIENCE, || {
        let process = format!("/proc/{postmaster}");
        holds(!Path::new(&process).exists(), "it runs")
    });
    fs::write(pair.b.at("/data/pg/standby.signal"), "").unwrap();
    write_until_lost(&pair);
    let refused = pair.b.try_understudy(&["join"]);
    assert_eq!(refused.status, Some(1), "{refused:?}");
    for part in ["in a history of its own", "Run `understudy rejoin`"] {
        assert!(refused.stderr.contains(part), "{refused:?}");
    }
    assert!(!pair.b.state().join("postgres/seeding").exists());
    let kept = "SELECT count(*) FROM change WHERE number = 100";
    assert_eq!(pair.b.sql(kept), "1");
    // What it says to do helps.
    pair.b.serve();
    pair.b.understudy(&["rejoin"]);
    pair.wait();
    pair.assert_equal();
}

#[test]
fn a_re_seed_that_is_killed_again_and_again_ends_with_a_whole_copy() {
    let plan = Plan {
        // Slow enough to be killed in the middle.
        postgres_more: format!("{}\nbandwidth = \"8MB\"", small_slot().postgres_more),
        ..small_slot()
    };
    let mut pair = Pair::alone(plan);
    fill(&pair.a);
    pair.join();
    lose_the_slot(&mut pair);
    // Much differs now.
    pair.a
        .sql("UPDATE ballast SET text = 'x' || text WHERE i % 40 = 0");
    // Nobody can start half a copy, whatever becomes of its mark. Looked at first: there is most to copy now.
    let control = pair.b.at("/data/pg/global/pg_control");
    let mut join = pair.b.program().arg("join").spawn().unwrap();
    until("its control file is gone", Pair::PATIENCE, || {
        holds(!control.exists(), join.try_wait())
    });
    join.kill().unwrap();
    join.wait().unwrap();
    let server = crate::world::postgres_program("postgres");
    let mut by_hand = if rustix::process::geteuid().is_root() {
        let mut command = pair.b.command("setpriv");
        command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups"]);
        command.arg(server);
        command
    } else {
        pair.b.command(&server)
    };
    let started = ended(by_hand.arg("-D").arg(pair.b.at("/data/pg")));
    // By its control file, or by whatever else of it is not whole yet.
    assert!(matches!(started.status, Some(1 | 2)), "{started:?}");
    assert!(
        started.stderr.contains("FATAL") || started.stderr.contains("pg_control"),
        "{started:?}"
    );
    // Half a copy is not started by us, which says so.
    pair.b.spawn(&[], &[]);
    pair.b
        .wait_for_event_in_file("store_failed", "has not been seeded");
    assert_eq!(pair.b.postmaster(), None);
    pair.b.kill_daemon();
    let mut was_killed = 0;
    for delay in [0, 300, 700, 1200] {
        let mut join = pair.b.program().arg("join").spawn().unwrap();
        let mark = pair.b.state().join("postgres/seeding");
        until("it has begun", Pair::PATIENCE, || {
            holds(mark.exists(), join.try_wait())
        });
        std::thread::sleep(Duration::from_millis(delay));
        was_killed += u32::from(join.try_wait().unwrap().is_none());
        join.kill().unwrap();
        join.wait().unwrap();
    }
    assert!(was_killed >= 2, "the re-seeds were too quick to be killed");
    // What was noted of another copy is not believed of this one.
    let origins = pair.b.state().join("postgres/timelines.json");
    fs::write(&origins, "of another copy").unwrap();
    let mut join = pair.b.program().arg("join").spawn().unwrap();
    let last = write_while(&pair, 2000, &mut join);
    assert_eq!(fs::read_to_string(&origins).unwrap(), "{}");
    assert!(!pair.b.state().join("postgres/seeding").exists());
    pair.b.serve();
    pair.wait();
    pair.assert_written(last);
    assert_same_rows(&pair);
    let (compared, copied) = figures(&pair.b);
    assert!(copied < compared, "{copied} of {compared}");
}

/// Makes a directory for a tablespace, as an operator would.
fn tablespace_on(machine: &Machine) {
    let place = machine.at("/data/space");
    fs::create_dir_all(&place).unwrap();
    own(&place);
    machine.sql(&format!(
        "CREATE TABLESPACE space LOCATION '{}'",
        place.display()
    ));
}

fn own(path: &Path) {
    if rustix::process::geteuid().is_root() {
        let mut command = std::process::Command::new("chown");
        assert_eq!(ended(command.arg("postgres:").arg(path)).status, Some(0));
    }
}

/// Makes a pair with everything beside the data directory.
fn beside(checksums: bool) -> Pair {
    let plan = Plan {
        postgres_more: "wal_dir = \"/data/wal\"\nmax_slot_wal_keep_size = \"32MB\"".to_owned(),
        ..Plan::postgres()
    };
    let mut pair = Pair::prepare(plan, None);
    if !checksums {
        let mut command = pair
            .a
            .command(&crate::world::postgres_program("pg_checksums"));
        let off = ended(
            command
                .arg("--disable")
                .arg("-D")
                .arg(pair.a.at("/data/pg")),
        );
        assert_eq!(off.status, Some(0), "{off:?}");
        own(&pair.a.at("/data/pg/global/pg_control"));
    }
    pair.begin();
    tablespace_on(&pair.a);
    pair.a
        .sql("CREATE UNLOGGED TABLE scratch (i int); INSERT INTO scratch VALUES (1)");
    pair.a
        .sql("CREATE TABLE ballast (i int, text text) TABLESPACE space");
    pair.a.sql(
        "INSERT INTO ballast SELECT i, repeat(md5(i::text), 30) FROM generate_series(1, 60000) i",
    );
    pair.a.sql("VACUUM FREEZE ballast");
    pair
}

#[test]
fn a_pair_with_a_tablespace_and_its_log_on_another_disk_is_seeded_and_promoted() {
    for checksums in [true, false] {
        let mut pair = beside(checksums);
        // Somebody has put something where the tablespace is to be: it is refused, and nothing is copied.
        let theirs = pair.b.at("/data/space/theirs");
        fs::create_dir_all(theirs.parent().unwrap()).unwrap();
        fs::write(&theirs, "precious").unwrap();
        let (url, token) = pair.invite("b");
        let refused = pair.try_join(&pair.b, &url, &token);
        assert_eq!(refused.status, Some(1), "{refused:?}");
        assert!(refused.stderr.contains("is not empty"), "{refused:?}");
        assert_eq!(fs::read(&theirs).unwrap(), b"precious");
        assert!(!pair.b.at("/data/pg").exists());
        fs::remove_file(&theirs).unwrap();

        let joined = pair.try_join(&pair.b, &url, &token);
        assert_eq!(joined.status, Some(0), "{joined:?}");
        pair.b.serve();
        pair.write(1);
        pair.wait();
        assert_same_rows(&pair);
        let wal = pair.b.at("/data/wal");
        assert_eq!(fs::read_link(pair.b.at("/data/pg/pg_wal")).unwrap(), wal);
        assert_eq!(fs::metadata(&wal).unwrap().mode() & 0o777, 0o700);
        let space = "SELECT pg_tablespace_location(oid) FROM pg_tablespace WHERE spcname = 'space'";
        assert_eq!(
            pair.b.sql(space),
            pair.b.at("/data/space").display().to_string()
        );
        let shown = if checksums { "on" } else { "off" };
        assert_eq!(pair.b.sql("SHOW data_checksums"), shown);

        // And it is compared there as well.
        lose_the_slot(&mut pair);
        pair.a
            .sql("UPDATE ballast SET text = 'x' || text WHERE i % 1000 = 0");
        // And after a crash in the middle, with the disk of the log made anew.
        let mark = pair.b.state().join("postgres/seeding");
        let mut join = pair.b.program().arg("join").spawn().unwrap();
        until("it has begun", Pair::PATIENCE, || {
            holds(mark.exists(), join.try_wait())
        });
        join.kill().unwrap();
        join.wait().unwrap();
        assert!(mark.exists());
        fs::remove_dir_all(&wal).unwrap();
        if rustix::process::geteuid().is_root() {
            // Where the link leads is never taken from somebody.
            fs::create_dir(&wal).unwrap();
            let refused = pair.b.try_understudy(&["join"]);
            assert!(
                refused.stderr.contains("Give it to postgres"),
                "{refused:?}"
            );
            assert_eq!(fs::metadata(&wal).unwrap().uid(), 0);
            fs::remove_dir(&wal).unwrap();
        }
        pair.b.understudy(&["join"]);
        pair.b.serve();
        pair.wait();
        assert_same_rows(&pair);
        let (compared, copied) = figures(&pair.b);
        assert!(
            compared > 50e6 && copied < compared / 4.0,
            "{copied} of {compared}"
        );
        assert_eq!(fs::read_link(pair.b.at("/data/pg/pg_wal")).unwrap(), wal);

        pair.b.understudy(&["promote"]);
        pair.assert_b_is_primary();
        assert_eq!(
            pair.b.sql("SELECT count(*) FROM scratch"),
            "0",
            "it is unlogged"
        );
        pair.b.sql("UPDATE ballast SET i = i + 1");
    }
}
