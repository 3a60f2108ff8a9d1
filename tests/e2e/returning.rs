//! Roles are swapped in peace, and a node that was primary becomes a standby again.

use std::fs;
use std::os::unix::fs::MetadataExt;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::world::{FILES, Machine, Pair, Plan, holds, tree, until};

/// Waits until a machine is a standby that follows, by its own word.
fn until_follows(machine: &Machine) {
    until("the node follows", Pair::PATIENCE, || {
        let status = machine.try_status()?;
        holds(status["role"] == "standby", &status["role"])?;
        holds(
            status["upstream"]["is_connected"] == true,
            &status["upstream"],
        )
    });
}

/// Starts a standby whose primary is dead: it is never ready.
fn wake(machine: &mut Machine) {
    machine.spawn(&[], &[]);
    until("the daemon answers", Pair::PATIENCE, || {
        machine.try_status().map(|_| ())
    });
}

fn rows(machine: &Machine) -> String {
    machine.sql("SELECT string_agg(number::text, ' ' ORDER BY number) FROM change")
}

/// Returns how a store rejoined.
fn method<'a>(report: &'a Value, store: &str) -> &'a Value {
    let stores = report["stores"].as_array().unwrap();
    stores.iter().find(|it| it["name"] == store).unwrap()
}

#[test]
fn m15_roles_are_swapped_there_and_back_and_nothing_is_lost() {
    let mut pair = Pair::new(Plan::everything());
    for number in 1..=20 {
        pair.write(number);
    }
    // Asked on the standby.
    let outcome = pair.b.json(&["switchover"]);
    let report = &outcome["promoted"];
    let lost = report["lost"].as_array().unwrap();
    assert!(lost.iter().all(|loss| loss["amount"] == 0), "{report}");
    assert_eq!(report["steps"][0]["name"], "prepare a");
    pair.assert_b_is_primary();
    for number in 1..=20 {
        pair.assert_written_files(number);
    }
    assert_eq!(pair.b.sql("SELECT count(*) FROM change"), "20");
    // The old primary follows by itself, from where it was.
    until_follows(&pair.a);
    pair.b.understudy(&["wait"]);
    pair.assert_equal();
    assert_eq!(pair.a.sql("SELECT pg_is_in_recovery()"), "t");
    let journal = fs::read_to_string(pair.a.at("/journal")).unwrap();
    assert_eq!(
        journal, "start one\nstart two\nstop two\nstop one\n",
        "a standby runs no services"
    );

    // Back, asked on the primary.
    pair.b.sql("INSERT INTO change VALUES (21)");
    fs::write(pair.b.at("/srv/files").join("from-b"), "b\n").unwrap();
    let outcome = pair.b.json(&["switchover"]);
    assert_eq!(
        outcome["promoted"]["epoch"],
        json!({"number": 3, "node": "a"})
    );
    until("a is primary", Pair::PATIENCE, || {
        holds(pair.a.role() == "primary", "")
    });
    pair.a.wait_until_ready();
    assert_eq!(pair.a.sql("SELECT count(*) FROM change"), "21");
    assert_eq!(
        fs::read_to_string(pair.a.at("/srv/files").join("from-b")).unwrap(),
        "b\n"
    );
    until_follows(&pair.b);
    pair.write(22);
    pair.wait();
    pair.assert_written(22);
    pair.assert_equal();
}

#[test]
fn a_switchover_that_would_lose_something_or_wait_is_refused_and_changes_nothing() {
    let mut pair = Pair::new(Plan::postgres());
    pair.write(1);
    pair.wait();
    pair.b.sql("SELECT pg_wal_replay_pause()");
    pair.write(2);
    until("replay is seen to be paused", Pair::PATIENCE, || {
        let refused = pair.b.try_understudy(&["switchover"]);
        holds(
            refused.status == Some(3) && refused.stderr.contains("paused"),
            &refused,
        )
    });
    let refused = pair.a.try_understudy(&["switchover"]);
    assert_eq!(refused.status, Some(3), "{refused:?}");
    assert_eq!(pair.roles(), ("primary".to_owned(), "standby".to_owned()));
    pair.write(3);
    pair.b.sql("SELECT pg_wal_replay_resume()");
    pair.wait();
    // Without the primary there is nothing to swap.
    pair.a.kill_daemon();
    let refused = pair.b.try_understudy(&["switchover"]);
    assert_eq!(refused.status, Some(3), "{refused:?}");
    assert!(refused.stderr.contains("understudy promote"), "{refused:?}");
    assert_eq!(pair.b.role(), "standby");
}

/// Makes a pair of which b was promoted while a was dead, with rows on a that b never got.
fn parted(more: &str) -> Pair {
    parted_with(|a| {
        a.sql(&format!("SELECT 1; {more}"));
    })
}

/// Makes one, where `act` has changed more on a.
fn parted_with(act: impl FnOnce(&Machine)) -> Pair {
    let mut pair = Pair::new(Plan {
        postgres: true,
        files: true,
        ..Plan::settings()
    });
    pair.write(1);
    pair.wait();
    pair.b.power_off();
    pair.a.sql("INSERT INTO change VALUES (100), (101)");
    act(&pair.a);
    pair.a
        .sql("UPDATE change SET number = 102 WHERE number = 101");
    pair.a.power_off();
    wake(&mut pair.b);
    pair.b.understudy(&["promote", "--force"]);
    pair.b.sql("INSERT INTO change VALUES (200)");
    pair.a.serve();
    pair.assert_a_is_fenced();
    pair
}

#[test]
fn what_only_a_former_primary_has_is_kept_aside_and_it_follows_again() {
    let pair = parted("");
    let status = pair.a.understudy(&["status"]);
    assert!(status.contains("understudy rejoin"), "{status}");
    let report = pair.a.json(&["rejoin"]);
    let postgres = method(&report, "postgres");
    assert_eq!(postgres["method"], "rewound", "{report}");
    // It says what that has spared.
    let figure = |key: &str| postgres[key].as_u64().unwrap();
    assert!(figure("copied") <= figure("total"), "{report}");
    let salvaged = &postgres["salvaged"];
    assert_eq!(salvaged["is_complete"], true, "{report}");
    let folder = std::path::Path::new(salvaged["path"].as_str().unwrap());
    let summary: Value =
        serde_json::from_slice(&fs::read(folder.join("summary.json")).unwrap()).unwrap();
    assert_eq!(summary["committed"], 2, "{summary}");
    let inserted = summary["transactions"][0]["inserted"].as_object().unwrap();
    assert_eq!(
        inserted.values().collect::<Vec<_>>(),
        [&json!(2)],
        "{summary}"
    );
    assert!(summary["not_understood"].is_null(), "{summary}");
    let files = summary["files"].as_array().unwrap();
    assert!(!files.is_empty());
    for name in files {
        assert!(folder.join("wal").join(name.as_str().unwrap()).exists());
    }
    until_follows(&pair.a);
    pair.b.sql("INSERT INTO change VALUES (201)");
    pair.b.understudy(&["wait"]);
    assert_eq!(rows(&pair.a), "1 200 201");
    pair.assert_equal();
    // Asked again, there is nothing to take back.
    let report = pair.a.json(&["rejoin"]);
    assert!(
        method(&report, "postgres")["salvaged"].is_null(),
        "{report}"
    );
    until_follows(&pair.a);
    // And it can be primary again.
    pair.a.understudy(&["switchover"]);
    assert_eq!(rows(&pair.a), "1 200 201");
    until_follows(&pair.b);
}

/// Returns what a rejoin must change and a dry run must not.
fn state_of(machine: &Machine) -> Vec<String> {
    let control = machine
        .command("/usr/lib/postgresql/15/bin/pg_controldata")
        .arg(machine.at("/data/pg"))
        .output()
        .unwrap();
    let files = tree(&machine.at(FILES));
    vec![
        machine.role(),
        String::from_utf8(control.stdout).unwrap(),
        format!("{files:?}"),
        format!("{:?}", machine.state().join("salvage").exists()),
    ]
}

#[test]
fn l14_an_old_primary_stays_out_says_what_only_it_has_keeps_that_and_syncs_differences() {
    let mut pair = parted_with(|a| {
        let files = a.at(FILES);
        fs::write(files.join("lost"), vec![b'l'; 100_000]).unwrap();
        fs::write(files.join("hello.txt"), "the old primary's\n").unwrap();
        fs::remove_file(files.join("deep/numbers")).unwrap();
    });
    fs::write(pair.b.at(FILES).join("new"), vec![b'n'; 400_000]).unwrap();
    pair.b.understudy(&["sync", "docs"]);
    // It says so, and how to see what would be lost.
    let status = pair.a.understudy(&["status"]);
    assert!(status.contains("understudy rejoin --dry-run"), "{status}");
    let before = state_of(&pair.a);
    let foreseen = pair.a.json(&["rejoin", "--dry-run"]);
    assert_eq!(state_of(&pair.a), before, "{foreseen}");
    assert_eq!(foreseen["rate"], "probed", "{foreseen}");
    let figures = |report: &Value, store: &str| {
        let foreseen = &method(report, store)["foreseen"];
        let figure = |key: &str| foreseen[key].as_u64().unwrap();
        let method = foreseen["method"].as_str().unwrap().to_owned();
        (method, figure("salvaged_bytes"), figure("travelling_bytes"))
    };
    let report = pair.a.json(&["rejoin"]);
    for (store, way) in [("postgres", "rewound"), ("docs", "compared")] {
        let (told, salvaged, travels) = figures(&foreseen, store);
        let done = method(&report, store);
        assert_eq!((told.as_str(), &done["method"]), (way, &json!(way)));
        let came = done["travelled"].as_u64().unwrap();
        assert!(
            travels <= came * 2 && came <= travels * 2,
            "{store}: {travels} were foreseen, {came} came: {report}"
        );
        assert_eq!(salvaged, done["salvaged"]["bytes"], "{store}: {report}");
        // It told the same again before it began.
        assert_eq!(figures(&report["foreseen"], store).0, way);
    }
    let kept: Value = serde_json::from_slice(
        &fs::read(report["report"].as_str().expect("a report is kept")).unwrap(),
    )
    .unwrap();
    assert_eq!(kept["report"]["stores"], report["stores"]);
    until_follows(&pair.a);
    pair.b.understudy(&["wait"]);
    pair.assert_equal();
    assert_eq!(
        fs::read_to_string(pair.a.at(FILES).join("hello.txt")).unwrap(),
        "hello\n"
    );

    // What was kept can be looked at, with no daemon.
    pair.a.power_off();
    let list = pair.a.json(&["salvage", "list"]);
    let bundles = list["bundles"].as_array().unwrap();
    assert_eq!(bundles.len(), 2, "{list}");
    let name = |kind: &str| {
        let bundle = bundles.iter().find(|bundle| bundle["kind"] == kind);
        let bundle = bundle.unwrap();
        assert_eq!(bundle["superseded_by"], json!({"number": 2, "node": "b"}));
        assert_eq!(bundle["is_complete"], true);
        bundle["name"].as_str().unwrap().to_owned()
    };
    let shown = pair.a.json(&["salvage", "show", &name("files")]);
    let mut paths: Vec<String> = shown["paths"]
        .as_array()
        .unwrap()
        .iter()
        .map(|path| format!("{} {}", path["what"], path["path"]).replace('"', ""))
        .collect();
    paths.sort();
    assert_eq!(
        paths,
        [
            "deleted_here deep/numbers",
            "differs hello.txt",
            "only_here lost"
        ]
    );
    let shown = pair.a.understudy(&["salvage", "show", &name("postgres")]);
    assert!(shown.contains("2 transactions committed"), "{shown}");
    let out = pair.folder.path().join("out");
    let out_text = out.display().to_string();
    for kind in ["files", "postgres"] {
        let export = ["salvage", "export", &name(kind), "--to", &out_text];
        let exported = pair.a.json(&export);
        assert_eq!(exported["path"], json!(out.join(name(kind))));
    }
    let files = out.join(name("files")).join("files");
    assert_eq!(fs::read(files.join("lost")).unwrap(), vec![b'l'; 100_000]);
    let again = ["salvage", "export", &name("files"), "--to", &out_text];
    assert_eq!(pair.a.try_understudy(&again).status, Some(3));
    let remove = ["salvage", "remove", &name("files")];
    assert_eq!(pair.a.try_understudy(&remove).status, Some(3));
    pair.a.understudy(&[&remove[..], &["--yes"]].concat());
    let list = pair.a.json(&["salvage", "list"]);
    assert_eq!(list["bundles"].as_array().unwrap().len(), 1);
}

/// Makes files of the log ahead of it, as a server does that receives or expects much: nothing was written to them.
fn make_segments_ahead(log: &std::path::Path) {
    let names = fs::read_dir(log).unwrap();
    let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let newest = names.filter(|name| name.len() == 24).max().unwrap();
    let owner = fs::metadata(log).unwrap();
    let number = u32::from_str_radix(&newest[16..], 16).unwrap();
    for ahead in 1..=8 {
        let path = log.join(format!("{}{:08X}", &newest[..16], number + ahead));
        fs::File::create_new(&path)
            .unwrap()
            .set_len(16 << 20)
            .unwrap();
        std::os::unix::fs::chown(&path, Some(owner.uid()), Some(owner.gid())).unwrap();
    }
}

#[test]
fn what_a_rejoin_of_a_primary_that_was_a_standby_once_will_do_is_foreseen() {
    let mut pair = Pair::new(Plan::postgres());
    pair.write(1);
    pair.wait();
    pair.b.understudy(&["switchover"]);
    until_follows(&pair.a);
    pair.b.sql("INSERT INTO change VALUES (50)");
    pair.b.understudy(&["wait"]);
    pair.a.power_off();
    // Blocks that only this one has touched.
    pair.b.sql(
        "CREATE TABLE lost AS SELECT n, repeat('x', 500) AS text FROM generate_series(1, 5000) n",
    );
    pair.b.power_off();
    wake(&mut pair.a);
    pair.a.understudy(&["promote", "--force"]);
    pair.a.sql("INSERT INTO change VALUES (200)");
    pair.b.serve();
    until("the other is fenced", Pair::PATIENCE, || {
        holds(pair.b.role() == "fenced", pair.b.role())
    });
    make_segments_ahead(&pair.b.at("/data/pg/pg_wal"));
    let foreseen = pair.b.json(&["rejoin", "--dry-run"]);
    let report = pair.b.json(&["rejoin"]);
    let (told, done) = (method(&foreseen, "postgres"), method(&report, "postgres"));
    let told = &told["foreseen"];
    assert_eq!(told["method"], done["method"], "{foreseen} {report}");
    let (travels, came) = (
        told["travelling_bytes"].as_u64(),
        done["travelled"].as_u64(),
    );
    let (travels, came) = (travels.unwrap(), came.unwrap());
    assert!(
        travels <= came * 2 && came <= travels * 2,
        "{travels} were foreseen, {came} came: {foreseen} {report}"
    );
    assert_eq!(
        told["salvaged_bytes"], done["salvaged"]["bytes"],
        "{foreseen} {report}"
    );
    // What was kept is understood, too.
    let summary = done["salvaged"]["summary"].as_str().unwrap();
    assert!(summary.contains(": 1 committed transactions"), "{summary}");
    until_follows(&pair.b);
}

#[test]
fn a_node_that_may_do_so_comes_back_by_itself() {
    let mut pair = Pair::new(Plan::postgres());
    for machine in [&pair.a, &pair.b] {
        let text = fs::read_to_string(machine.cluster_file()).unwrap();
        let text = text.replacen("rejoin = \"manual\"", "rejoin = \"automatic\"", 1);
        assert!(text.contains("automatic"), "{text}");
        fs::write(machine.cluster_file(), text).unwrap();
    }
    pair.b.power_off();
    pair.a.sql("INSERT INTO change VALUES (100)");
    pair.a.power_off();
    wake(&mut pair.b);
    pair.b.understudy(&["promote", "--force"]);
    pair.b.sql("INSERT INTO change VALUES (200)");
    pair.a.spawn(&[], &[]);
    until_follows(&pair.a);
    pair.b.understudy(&["wait"]);
    assert_eq!(rows(&pair.a), "200");
    pair.a.wait_for_event("salvaged", "1 rows inserted");
}

/// pg_rewind sees one timeline here and nothing to do; even the places where the timelines begin are equal.
#[test]
fn two_nodes_that_opened_a_timeline_of_the_same_number_are_told_apart() {
    let mut pair = Pair::new(Plan::postgres());
    let mut c = Machine::new("c", pair.folder.path(), &pair.ips[2], None);
    let (url, token) = pair.invite("c");
    let joined = pair.try_join(&c, &url, &token);
    assert_eq!(joined.status, Some(0), "{joined:?}");
    c.serve();
    // Every node has the same file; b reads it again.
    fs::copy(pair.a.cluster_file(), pair.b.cluster_file()).unwrap();
    pair.b.signal(Signal::HUP);
    pair.b.wait_for_event("reloaded", "read again");
    pair.write(1);
    pair.wait();
    pair.a.power_off();
    c.power_off();
    pair.b.understudy(&["promote", "--force"]);
    pair.b.sql("INSERT INTO change VALUES (200)");
    pair.b.power_off();
    wake(&mut c);
    c.understudy(&["promote", "--force"]);
    c.sql("INSERT INTO change SELECT generate_series(300, 399)");
    let timeline = "SELECT timeline_id FROM pg_control_checkpoint()";
    until("c's timeline is written down", Pair::PATIENCE, || {
        let timeline = c.sql(timeline);
        holds(timeline == "2", timeline)
    });
    pair.b.serve();
    until("b has heard of c", Pair::PATIENCE, || {
        holds(pair.b.role() == "fenced", pair.b.role())
    });
    let report = pair.b.json(&["rejoin"]);
    let postgres = method(&report, "postgres");
    assert_eq!(postgres["method"], "compared", "{report}");
    assert!(
        postgres["salvaged"]["summary"]
            .as_str()
            .unwrap()
            .contains("1 rows inserted"),
        "{report}"
    );
    pair.b
        .wait_for_event("postgres_same_timeline", "timeline 2");
    until_follows(&pair.b);
    c.understudy(&["wait"]);
    assert_eq!(
        pair.b.sql("SELECT count(*), min(number) FROM change"),
        "101|1"
    );
    assert_eq!(
        pair.b.sql("SELECT count(*) FROM change WHERE number = 200"),
        "0"
    );
    c.kill_daemon();
}
