//! Rehearsals and clones: a promotion is proved on copies, and the pair does not notice.

use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use serde_json::Value;

use crate::world::{
    Caller, Machine, Pair, Plan, beneath, call, holds, is_root, kill, postgres_program, tree, until,
};

/// What a service of a rehearsal leaves running if it can; found by this number.
const STRAY: &str = "100777";

/// A service that tells what it sees, and leaves something running that is nobody's child.
const SERVICE: &str = r#"#!/bin/sh
evidence=$(dirname "$0")/evidence
up=$UNDERSTUDY_ROOT/app-is-up
case $1 in
start)
    touch "$up"
    # On a primary it is a service like any other.
    [ -n "$UNDERSTUDY_REHEARSAL" ] || exit 0
    {
        echo "rehearsal $UNDERSTUDY_REHEARSAL"
        echo "links $(ls /sys/class/net 2>/dev/null | wc -l) $(grep -c : /proc/net/dev)"
        echo "secrets $(ls @PKI@ | wc -l) $(ls @RUN@ 2>/dev/null | wc -l)"
        echo "files $(cat "$UNDERSTUDY_ROOT/srv/files/hello.txt") $(cat @FILES@/hello.txt)"
        echo "settings $(cat @SETTINGS@/app.conf)"
        @PSQL@ -X -q -A -t -h "$PGHOST" -p "$PGPORT" -U @USER@ -d postgres \
            -c "INSERT INTO change VALUES (-777)" -c "SELECT 'rows', count(*) FROM change WHERE number = -777"
        echo written > @FILES@/by-the-rehearsal
    } >> "$evidence" 2>&1
    setsid setsid sleep @STRAY@ </dev/null >/dev/null 2>&1 &
    [ ! -f "$(dirname "$0")/hang" ] || sleep @STRAY@
    ;;
stop) rm -f "$up"; echo stopped >> "$evidence" ;;
status) test -f "$up" && echo "it runs" ;;
esac
"#;

/// A pair of everything whose service may be rehearsed.
fn pair(drill: &str) -> Pair {
    let mut pair = Pair::prepare(Plan::everything(), None);
    let script = pair.folder.path().join("rehearsed");
    let b = &pair.b;
    let text = SERVICE
        .replace("@PKI@", &b.etc().join("pki").display().to_string())
        .replace("@RUN@", &b.home.join("run").display().to_string())
        .replace("@FILES@", &b.at("/srv/files").display().to_string())
        .replace("@SETTINGS@", &b.at("/etc/app").display().to_string())
        .replace("@PSQL@", &postgres_program("psql"))
        .replace("@USER@", &crate::world::os_user())
        .replace("@STRAY@", STRAY);
    fs::write(&script, text).unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    let command = |verb: &str| format!("[\"{}\", \"{verb}\"]", script.display());
    pair.plan.more = format!(
        "\n[[service]]\nname = \"app\"\nstart = {}\nstop = {}\nstatus = {}\nrehearse = true\n\
         \n[drill]\n{drill}\n",
        command("start"),
        command("stop"),
        command("status"),
    );
    pair.begin();
    pair.join();
    pair
}

fn evidence(pair: &Pair) -> String {
    fs::read_to_string(pair.folder.path().join("evidence")).unwrap_or_default()
}

/// Forgets what the service has done on the primary.
fn forget_evidence(pair: &Pair) {
    end_strays(pair);
    fs::write(pair.folder.path().join("evidence"), "").unwrap();
}

/// Returns the processes that a service of this test has left running.
fn strays(pair: &Pair) -> Vec<i32> {
    let folder = pair.folder.path();
    let is_stray = |pid: &i32| {
        let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        command
            .split(|byte| *byte == 0)
            .any(|it| it == STRAY.as_bytes())
    };
    beneath(folder).into_iter().filter(is_stray).collect()
}

fn end_strays(pair: &Pair) {
    strays(pair).into_iter().for_each(kill);
}

fn place(machine: &Machine) -> PathBuf {
    machine.state().join("rehearsal")
}

/// Asserts that nothing of a rehearsal is left: no file, no process, no mount.
fn assert_nothing_is_left(pair: &Pair) {
    let place = place(&pair.b);
    until("nothing of the rehearsal is left", Pair::PATIENCE, || {
        holds(!place.exists(), "its folder")?;
        let processes = beneath(&place);
        holds(processes.is_empty(), processes)?;
        holds(strays(pair).is_empty(), strays(pair))
    });
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    assert!(!mounts.contains(&place.display().to_string()), "{mounts}");
}

fn checks(report: &Value) -> Vec<String> {
    let told = |check: &Value| format!("{}: {}", check["what"], check["outcome"]).replace('"', "");
    report["checks"]
        .as_array()
        .unwrap()
        .iter()
        .map(told)
        .collect()
}

#[test]
fn a_rehearsal_proves_the_standby_while_it_replicates_and_leaves_nothing() {
    if !is_root("a rehearsal") {
        return;
    }
    let pair = pair("");
    pair.write(1);
    pair.wait();
    forget_evidence(&pair);
    let before = pair.b.status();
    assert!(before["proof"]["proven"].is_null(), "{}", before["proof"]);

    // Writes go on, and are received, from before the rehearsal to after it.
    let is_over = std::sync::atomic::AtomicBool::new(false);
    let report = std::thread::scope(|scope| {
        let writing = scope.spawn(|| {
            let mut number = 1000;
            while !is_over.load(std::sync::atomic::Ordering::Relaxed) {
                pair.write(number);
                number += 1;
            }
            number
        });
        let rehearsed = pair.b.try_understudy(&["drill", "--json"]);
        // Whatever it was: who writes has to end.
        is_over.store(true, std::sync::atomic::Ordering::Relaxed);
        assert_eq!(rehearsed.status, Some(0), "{rehearsed:?}");
        let report: Value = serde_json::from_str(&rehearsed.stdout).unwrap();
        assert!(writing.join().unwrap() > 1001);
        report
    });
    assert_eq!(report["verdict"], "proven", "{report:#}");
    let steps: Vec<&str> = report["steps"]
        .as_array()
        .unwrap()
        .iter()
        .map(|step| step["name"].as_str().unwrap())
        .collect();
    assert_eq!(
        steps,
        [
            "prepare",
            "copy postgres",
            "copy docs",
            "copy kv",
            "copy settings",
            "seal",
            "recover postgres",
            "take over postgres",
            "rebuild index search",
            "start services",
            "stop services",
            "check postgres",
            "tear down"
        ]
    );
    let all = ["files docs", "kv", "settings", "postgres"].map(|what| format!("{what}: passed"));
    assert_eq!(checks(&report), all, "{report:#}");
    let seconds = report["recovery_seconds"].as_f64().unwrap();
    assert!(seconds > 0.0 && seconds < report["seconds"].as_f64().unwrap());
    assert!(!report["cut"].is_null(), "{report:#}");
    assert_nothing_is_left(&pair);

    // The service saw the copies in the place of the originals, and nothing beyond the room.
    let evidence = evidence(&pair);
    for line in [
        "rehearsal 1",
        "secrets 0 0",
        "files hello hello",
        "settings generation = ",
        "rows|1",
        "stopped",
    ] {
        assert!(evidence.contains(line), "{line}: {evidence}");
    }
    assert!(
        evidence.contains(" 1\nsecrets"),
        "more than a loopback: {evidence}"
    );
    assert_eq!(
        pair.b
            .sql("SELECT count(*) FROM change WHERE number = -777"),
        "0"
    );
    assert!(!pair.b.at("/srv/files/by-the-rehearsal").exists());
    pair.wait_long();
    pair.assert_equal();

    // The proof is told everywhere, survives a restart, and is the standby's only.
    let status = pair.b.status();
    assert_eq!(status["proof"]["seconds"], report["recovery_seconds"]);
    assert_eq!(status["proof"]["is_old"], false);
    assert_eq!(status["problems"], serde_json::json!([]), "{status:#}");
    let metrics = pair.b.try_http("GET", "/metrics").unwrap().body;
    for name in [
        "understudy_proven_recovery_seconds ",
        "understudy_proof_age_seconds ",
    ] {
        assert!(metrics.contains(name), "{name}");
    }
    assert!(
        pair.b.understudy(&["status"]).contains("proven"),
        "the page"
    );
    let listed = pair.b.understudy(&["drill", "list"]);
    assert!(listed.contains("proven     recovery in"), "{listed}");
    assert_eq!(pair.b.json(&["drill", "show", "last"]), report);
    pair.b.wait_for_event("drill_proven", "would serve after");
    let name = status["proof"]["report"].as_str().unwrap();
    let kept = fs::metadata(pair.b.state().join(name)).unwrap();
    assert_eq!(kept.permissions().mode() & 0o777, 0o640);

    let refused = pair.a.try_understudy(&["drill"]);
    assert_eq!(refused.status, Some(3), "{refused:?}");
    assert!(refused.stderr.contains("node a is primary"), "{refused:?}");
    end_strays(&pair);
}

/// Returns where a table is in the data directory of a machine.
fn table_file(machine: &Machine, table: &str) -> PathBuf {
    let path = machine.sql(&format!("SELECT pg_relation_filepath('{table}')"));
    machine.at("/data/pg").join(path)
}

#[test]
fn a_damaged_page_and_a_file_that_was_tampered_with_are_found() {
    if !is_root("a rehearsal") {
        return;
    }
    let plan = Plan {
        services: Vec::new(),
        ..Plan::everything()
    };
    let pair = Pair::new(plan);
    pair.wait();
    // What is written whole into the log since a checkpoint would mend the page in a recovery.
    pair.a.sql("CHECKPOINT");
    pair.wait();
    pair.b.sql("CHECKPOINT");
    let path = table_file(&pair.b, "article");
    let file = fs::File::options()
        .read(true)
        .write(true)
        .open(&path)
        .unwrap();
    let mut page = [0; 16];
    file.read_exact_at(&mut page, 8000).unwrap();
    file.write_all_at(&[0xA5; 16], 8000).unwrap();
    let failed = pair.b.try_understudy(&["drill", "--json"]);
    assert_eq!(failed.status, Some(1), "{failed:?}");
    let report: Value = serde_json::from_str(&failed.stdout).unwrap();
    assert_eq!(report["verdict"], "failed", "{report:#}");
    assert!(report["recovery_seconds"].is_null());
    let failure = report["failure"].as_str().unwrap();
    assert!(
        failure.contains("article") || failure.contains("page"),
        "{failure}"
    );
    assert_nothing_is_left(&pair);
    file.write_all_at(&page, 8000).unwrap();

    // A byte of a file that is not the application's doing, with its time as it was.
    let numbers = pair.b.at("/srv/files/deep/numbers");
    let was = fs::metadata(&numbers).unwrap();
    let file = fs::File::options().write(true).open(&numbers).unwrap();
    file.write_all_at(&[8], 1234).unwrap();
    file.set_modified(was.modified().unwrap()).unwrap();
    let failed = pair.b.try_understudy(&["drill"]);
    assert_eq!(failed.status, Some(1), "{failed:?}");
    assert!(failed.stderr.contains("files docs"), "{failed:?}");
    assert!(failed.stderr.contains("deep/numbers"), "{failed:?}");
    let problems = pair.b.status()["problems"].to_string();
    assert!(
        problems.contains("newest rehearsal of a promotion failed"),
        "{problems}"
    );
    pair.b.wait_for_event("drill_failed", "deep/numbers");
    assert_nothing_is_left(&pair);

    // Mended, it is proven, and the problem is gone.
    pair.b.understudy(&["scrub"]);
    let report = pair.b.json(&["drill"]);
    assert_eq!(report["verdict"], "proven", "{report:#}");
    assert_eq!(pair.b.status()["problems"], serde_json::json!([]));
}

/// Begins a rehearsal whose service hangs in its start, and waits until it does.
fn begin_and_hang(pair: &Pair) -> Child {
    forget_evidence(pair);
    fs::write(pair.folder.path().join("hang"), "").unwrap();
    let drill = pair
        .b
        .program()
        .args(["drill", "--json"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    until("the service of the rehearsal hangs", Pair::PATIENCE, || {
        holds(strays(pair).len() >= 2, strays(pair))
    });
    drill
}

#[test]
fn a_rehearsal_that_is_killed_with_its_daemon_leaves_nothing() {
    if !is_root("a rehearsal") {
        return;
    }
    let mut pair = pair("");
    let mut drill = begin_and_hang(&pair);
    assert!(place(&pair.b).exists());
    pair.b.kill_daemon();
    assert!(!drill.wait().unwrap().success());
    // With the daemon goes everything that ran in the room: at once, and not at the next start.
    let place = place(&pair.b);
    until("nothing runs any more", Pair::PATIENCE, || {
        holds(
            strays(&pair).is_empty() && beneath(&place).is_empty(),
            beneath(&place),
        )
    });
    pair.b.serve();
    assert_nothing_is_left(&pair);
    pair.write(2);
    pair.wait_long();
    pair.assert_equal();
}

#[test]
fn a_promotion_does_not_wait_for_a_rehearsal_and_an_operator_can_break_one_off() {
    if !is_root("a rehearsal") {
        return;
    }
    let pair = pair("");
    let cancelled = |drill: Child| {
        let ended = drill.wait_with_output().unwrap();
        assert_eq!(ended.status.code(), Some(1));
        let report: Value = serde_json::from_slice(&ended.stdout).unwrap();
        assert_eq!(report["verdict"], "cancelled", "{report:#}");
    };
    let drill = begin_and_hang(&pair);
    let second = pair.b.try_understudy(&["drill"]);
    assert_eq!(second.status, Some(3), "{second:?}");
    let said = pair.b.understudy(&["drill", "cancel"]);
    assert!(said.contains("a rehearsal was broken off"), "{said}");
    cancelled(drill);
    assert_nothing_is_left(&pair);

    let drill = begin_and_hang(&pair);
    fs::remove_file(pair.folder.path().join("hang")).unwrap();
    pair.b.understudy(&["promote"]);
    cancelled(drill);
    end_strays(&pair);
    assert_nothing_is_left(&pair);
    until("b is primary", Pair::PATIENCE, || {
        let status = pair.b.try_status()?;
        holds(status["role"] == "primary", &status["role"])
    });
    // It says nothing of whether a promotion works.
    assert!(pair.b.status()["proof"].is_null());
}

#[test]
fn a_standby_rehearses_by_itself_when_it_is_due() {
    if !is_root("a rehearsal") {
        return;
    }
    let plan = Plan {
        more: "\n[drill]\nschedule = \"* * * * * *\"\n".to_owned(),
        ..Plan::files()
    };
    let pair = Pair::new(plan);
    pair.b.wait_for_event("drill_proven", "would serve after");
    let report = pair.b.json(&["drill", "show", "last"]);
    assert_eq!(report["asked_by"], "schedule");
    assert_eq!(pair.a.events("drill_started"), Vec::<String>::new());
}

/// What an operator adds to a clone: a service that outlives its daemon.
const OF_CLONE: &str = r#"
[[service]]
name = "stay"
interval = "200ms"
start = ["sh", "-c", "setsid sleep 100000 </dev/null >/dev/null 2>&1 & echo $! > $UNDERSTUDY_ROOT/stay.pid"]
stop = ["sh", "-c", "kill $(cat $UNDERSTUDY_ROOT/stay.pid)"]
status = ["sh", "-c", "kill -0 $(cat $UNDERSTUDY_ROOT/stay.pid)"]
"#;

/// A clone that serves.
struct Served {
    etc: PathBuf,
    data_dir: PathBuf,
    daemon: Child,
}

impl Served {
    fn new(made: &Value, log: &Path) -> Self {
        let folder = PathBuf::from(made["folder"].as_str().unwrap());
        let etc = folder.join("etc");
        let daemon = std::process::Command::new(env!("CARGO_BIN_EXE_understudy"))
            .arg("--config")
            .arg(&etc)
            .arg("serve")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(log).unwrap())
            .spawn()
            .unwrap();
        let data_dir = folder.join("root/data/pg");
        let served = Self {
            etc,
            data_dir,
            daemon,
        };
        until("the clone serves", Pair::PATIENCE, || {
            let told = served.run(&["status", "--json"])?;
            let status: Value = serde_json::from_str(&told).map_err(|error| error.to_string())?;
            let stores = status["stores"].as_array().unwrap();
            let are_open = stores.iter().all(|store| !store["position"].is_null());
            let is_ready = status["role"] == "primary" && !stores.is_empty() && are_open;
            holds(
                is_ready,
                (status, fs::read_to_string(log).unwrap_or_default()),
            )
        });
        served
    }

    fn run(&self, arguments: &[&str]) -> Result<String, String> {
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_understudy"))
            .arg("--config")
            .arg(&self.etc)
            .args(arguments)
            .output()
            .unwrap();
        if output.status.success() {
            Ok(String::from_utf8_lossy(&output.stdout).into_owned())
        } else {
            Err(String::from_utf8_lossy(&output.stderr).into_owned())
        }
    }

    fn postmaster(&self) -> i32 {
        let lock = fs::read_to_string(self.data_dir.join("postmaster.pid")).unwrap();
        lock.lines().next().unwrap().parse().unwrap()
    }

    /// Asserts that its daemon has ended in peace.
    fn ended(mut self) {
        let ended = self.daemon.wait().unwrap();
        assert!(ended.success(), "{ended:?}");
    }
}

#[test]
fn a_clone_serves_by_itself_and_no_node_takes_it_for_one() {
    if !is_root("a clone") {
        return;
    }
    let pair = Pair::new(Plan::everything());
    pair.write(1);
    pair.wait();
    let made = pair.b.json(&["clone", "--to", "try"]);
    let folder = PathBuf::from(made["folder"].as_str().unwrap());
    let cluster_file = folder.join("etc/understudy.toml");
    let text = fs::read_to_string(&cluster_file).unwrap();
    assert!(!text.contains("[[service]]"), "{text}");
    fs::write(&cluster_file, format!("{text}{OF_CLONE}")).unwrap();
    let clone = Served::new(&made, &pair.folder.path().join("clone.log"));
    // It has what the standby had, and takes writes that nobody else sees.
    assert_eq!(
        clone.run(&["kv", "get", "key-1"]).unwrap().trim_end(),
        "written"
    );
    clone.run(&["kv", "put", "mine", "alone"]).unwrap();
    assert_eq!(
        tree(&folder.join("root/srv/files")),
        tree(&pair.b.at("/srv/files"))
    );
    fs::write(folder.join("root/srv/files/mine"), "alone").unwrap();
    let port = made["postgres"]
        .as_str()
        .unwrap()
        .split_once(':')
        .unwrap()
        .1
        .to_owned();
    let psql = |sql: &str| {
        let output = std::process::Command::new(postgres_program("psql"))
            .args([
                "-X",
                "-A",
                "-t",
                "-q",
                "-d",
                "postgres",
                "-U",
                &crate::world::os_user(),
            ])
            .arg("-h")
            .arg(folder.join("root/socket"))
            .args(["-p", &port, "-c", sql])
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    };
    assert_eq!(
        psql("INSERT INTO change VALUES (-1); SELECT count(*) FROM change"),
        "2"
    );
    assert_eq!(
        psql("SELECT pg_is_in_recovery(), count(*) FROM pg_replication_slots"),
        "f|0"
    );
    assert_eq!(psql("SHOW listen_addresses"), "127.0.0.1");
    assert_eq!(psql("SHOW primary_conninfo"), "");
    let timeline = |sql: &str| sql.parse::<u32>().unwrap();
    let of_clone = timeline(&psql("SELECT timeline_id FROM pg_control_checkpoint()"));
    let of_pair = timeline(
        &pair
            .a
            .sql("SELECT timeline_id FROM pg_control_checkpoint()"),
    );
    assert!(of_clone > of_pair, "{of_clone} {of_pair}");
    clone.run(&["index", "rebuild", "search"]).unwrap();
    pair.write(2);
    pair.wait();
    pair.assert_equal();
    assert_eq!(pair.roles(), ("primary".to_owned(), "standby".to_owned()));

    // It is of another cluster, and neither side talks to the other.
    let status: Value = serde_json::from_str(&clone.run(&["status", "--json"]).unwrap()).unwrap();
    assert_eq!(status["cluster"], "e2e-try");
    let (ours, theirs) = (pair.a.etc().join("pki"), folder.join("etc/pki"));
    let hello = "GET /peer/hello HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    let as_clone = call(pair.a.port(), &ours, &Caller::Node(&theirs), hello);
    assert!(as_clone.is_err(), "{as_clone:?}");
    let peers = made["peers"].as_str().unwrap().split_once(':').unwrap();
    let port = peers.1.parse().unwrap();
    let as_node = call(
        ("test", peers.0, port),
        &theirs,
        &Caller::Node(&ours),
        hello,
    );
    assert!(as_node.is_err(), "{as_node:?}");
    // Nor does a node believe that it is one of the cluster.
    let believed = call(("test", peers.0, port), &ours, &Caller::Node(&ours), hello);
    assert!(believed.is_err(), "{believed:?}");

    let again = pair.b.try_understudy(&["clone", "--to", "try"]);
    assert_eq!(again.status, Some(3), "{again:?}");
    // It says what it is, and nobody joins it.
    assert_eq!(status["clone_of"]["of"], "e2e");
    assert_eq!(status["clone_of"]["node"], "b");
    let screen = clone.run(&["status"]).unwrap();
    assert!(screen.contains("clone    try of cluster e2e"), "{screen}");
    let uninvited = clone.run(&["invite", "z"]).unwrap_err();
    assert!(
        uninvited.contains("this is clone try of e2e"),
        "{uninvited}"
    );
    // Nothing goes from beneath what runs.
    until("the service of the clone is up", Pair::PATIENCE, || {
        let told = clone.run(&["services", "--json"])?;
        holds(told.contains("\"online\""), told)
    });
    let refused = pair.b.try_understudy(&["clone", "remove", "try"]);
    assert_eq!(refused.status, Some(3), "{refused:?}");
    for part in [
        "its daemon, its service stay, its Postgres",
        "clone remove try --stop",
    ] {
        assert!(refused.stderr.contains(part), "{refused:?}");
    }
    let stays = folder.join("root/stay.pid");
    let stays: i32 = fs::read_to_string(&stays).unwrap().trim().parse().unwrap();
    assert!(Path::new(&format!("/proc/{stays}")).exists());
    assert!(pair.b.understudy(&["clone", "list"]).starts_with("try "));
    let postgres = clone.postmaster();
    pair.b.understudy(&["clone", "remove", "try", "--stop"]);
    assert!(!folder.exists());
    for pid in [postgres, stays] {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        assert!(stat.is_empty() || stat.contains(") Z "), "{stat}");
    }
    clone.ended();
    assert_eq!(pair.b.json(&["clone", "list"]), serde_json::json!([]));
    let refused = pair.a.try_understudy(&["clone", "--to", "try"]);
    assert_eq!(refused.status, Some(3), "{refused:?}");
}
