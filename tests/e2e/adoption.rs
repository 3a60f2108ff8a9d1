//! A Postgres cluster that was there first is taken as it is: running, with Debian's layout, with
//! commands of its operator's.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use crate::world::{
    Ended, Machine, Pair, Plan, ended, holds, os_user, postgres_program, tree, until,
};

/// Where Debian has the configuration, and the data is elsewhere.
const CONFIG_DIR: &str = "/etc/postgresql/15/main";

/// Returns a command that runs as the OS user of Postgres.
fn as_postgres(machine: &Machine, program: &str) -> Command {
    if !rustix::process::geteuid().is_root() {
        return machine.command(program);
    }
    let mut command = machine.command("setpriv");
    let user = os_user();
    command.args(["--reuid", &user, "--regid", &user, "--init-groups", program]);
    command
}

fn give_to_postgres(path: &Path) {
    if rustix::process::geteuid().is_root() {
        let done = Command::new("chown")
            .args(["-R", &format!("{}:", os_user())])
            .arg(path)
            .status();
        assert!(done.unwrap().success());
    }
}

/// Starts the server of a machine as its operator would, on the node's address.
fn start_postgres(machine: &Machine) {
    let socket_dir = machine.at("/run/postgresql");
    fs::create_dir_all(&socket_dir).unwrap();
    give_to_postgres(&socket_dir);
    let log = machine.at("/run/postgresql/log");
    let options = format!(
        "-k {} -p 5432 -c listen_addresses={}",
        socket_dir.display(),
        machine.ip
    );
    let mut command = as_postgres(machine, &postgres_program("pg_ctl"));
    command
        .arg("-D")
        .arg(machine.at("/data/pg"))
        .args(["-w", "-o", &options, "-l"])
        .arg(log)
        .arg("start")
        .current_dir("/");
    let started = ended(&mut command);
    assert_eq!(started.status, Some(0), "{started:?}");
}

fn init_arguments(pair: &Pair) -> Vec<String> {
    let a = &pair.a;
    let peers = a.peers();
    let mut arguments: Vec<String> = [
        "init",
        "--name",
        "a",
        "--cluster",
        "e2e",
        "--address",
        &peers,
        "--postgres",
        "/data/pg",
    ]
    .map(str::to_owned)
    .into();
    arguments.extend(a.local_arguments());
    arguments
}

/// Runs `init` with the cluster of a, and `more`.
fn init(pair: &Pair, more: &[&str]) -> Ended {
    let arguments = init_arguments(pair);
    let arguments: Vec<&str> = arguments
        .iter()
        .map(String::as_str)
        .chain(more.iter().copied())
        .collect();
    pair.a.try_understudy(&arguments)
}

fn start_time(machine: &Machine) -> String {
    machine.sql("SELECT pg_postmaster_start_time()")
}

/// A client that stays connected.
struct Session {
    client: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Session {
    fn open(machine: &Machine) -> Self {
        let mut client = machine
            .command(&postgres_program("psql"))
            .args([
                "-X",
                "-A",
                "-t",
                "-q",
                "-d",
                "postgres",
                "-p",
                "5432",
                "-U",
                &os_user(),
                "-h",
            ])
            .arg(machine.at("/run/postgresql"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        Self {
            input: client.stdin.take().unwrap(),
            output: BufReader::new(client.stdout.take().unwrap()),
            client,
        }
    }

    /// Asks for one row of one column.
    fn ask(&mut self, sql: &str) -> String {
        writeln!(self.input, "{sql};").unwrap();
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        line.trim().to_owned()
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let _has_ended = self.client.kill().is_err();
        let _is_reaped = self.client.wait().is_ok();
    }
}

#[test]
fn a_server_that_runs_is_adopted_under_its_clients() {
    let mut pair = Pair::prepare(Plan::postgres(), None);
    start_postgres(&pair.a);
    let mut session = Session::open(&pair.a);
    let backend = session.ask("SELECT pg_backend_pid()");
    let started = start_time(&pair.a);

    let made = init(&pair, &[]);
    assert_eq!(made.status, Some(0), "{made:?}");
    assert!(made.stdout.contains("nothing is restarted"), "{made:?}");
    pair.a.serve();
    pair.a.sql("CREATE TABLE change (number int PRIMARY KEY)");
    pair.join();
    pair.write(1);
    pair.wait();
    pair.assert_written(1);
    assert_eq!(pair.a.events("postgres_needs_restart"), [""; 0]);
    assert_eq!(pair.a.events("postgres_started"), [""; 0]);

    // Nor when the daemon is started again.
    pair.a.stop();
    pair.a.serve();
    assert_eq!(start_time(&pair.a), started);
    assert_eq!(session.ask("SELECT pg_backend_pid()"), backend);
}

#[test]
fn a_server_that_needs_a_restart_is_restarted_by_permission_only_and_once() {
    let mut pair = Pair::prepare(Plan::postgres(), None);
    let conf = pair.a.at("/data/pg/postgresql.conf");
    let text = fs::read_to_string(&conf).unwrap();
    let text = format!("{text}wal_level = minimal\nmax_wal_senders = 0\nhot_standby = off\n");
    fs::write(&conf, text).unwrap();
    start_postgres(&pair.a);
    let started = start_time(&pair.a);

    let conf_before = tree(&pair.a.at("/data/pg"));
    let refused = init(&pair, &[]);
    assert_eq!(refused.status, Some(3), "{refused:?}");
    for part in [
        "wal_level is `minimal`, needed is `replica`",
        "max_wal_senders is `0`",
        "nothing was changed",
        "--restart-postgres",
    ] {
        assert!(refused.stderr.contains(part), "{part}: {refused:?}");
    }
    for other in ["hot_standby", "wal_log_hints", "listen_addresses"] {
        assert!(!refused.stderr.contains(other), "{other}: {refused:?}");
    }
    let conf_after = tree(&pair.a.at("/data/pg"));
    for name in [
        "postgresql.conf",
        "pg_hba.conf",
        "pg_ident.conf",
        "understudy.conf",
    ] {
        assert_eq!(conf_after.get(name), conf_before.get(name), "{name}");
    }
    assert!(!pair.a.etc().exists() && !pair.a.state().exists());
    assert_eq!(start_time(&pair.a), started);

    let made = init(&pair, &["--restart-postgres"]);
    assert_eq!(made.status, Some(0), "{made:?}");
    assert!(made.stdout.contains("is restarted once"), "{made:?}");
    assert_eq!(start_time(&pair.a), started, "the daemon does it");
    pair.a.serve();
    let restarted = start_time(&pair.a);
    assert_ne!(restarted, started);
    assert_eq!(pair.a.sql("SHOW wal_level"), "replica");
    let told = pair.a.events("postgres_restarting");
    assert!(
        told.len() == 1 && told[0].contains("wal_level, max_wal_senders"),
        "{told:?}"
    );
    assert_eq!(pair.a.events("postgres_needs_restart"), [""; 0]);

    pair.a.sql("CREATE TABLE change (number int PRIMARY KEY)");
    pair.join();
    pair.write(1);
    pair.wait();
    pair.assert_written(1);

    // The permission was good once.
    pair.a.stop();
    pair.a.serve();
    assert_eq!(start_time(&pair.a), restarted);
}

/// Puts the configuration of a machine where Debian has it.
fn split(machine: &Machine) -> PathBuf {
    let config_dir = machine.at(CONFIG_DIR);
    fs::create_dir_all(config_dir.join("conf.d")).unwrap();
    for name in ["postgresql.conf", "pg_hba.conf", "pg_ident.conf"] {
        let from = machine.at("/data/pg").join(name);
        fs::copy(&from, config_dir.join(name)).unwrap();
        fs::remove_file(from).unwrap();
    }
    let conf = config_dir.join("postgresql.conf");
    let text = fs::read_to_string(&conf).unwrap();
    let file = |name: &str| config_dir.join(name).display().to_string();
    let text = format!(
        "{text}\ndata_directory = '{}'\nhba_file = '{}'\nident_file = '{}'\nssl = on\n\
         ssl_cert_file = '/etc/ssl/certs/ssl-cert-snakeoil.pem'\n\
         ssl_key_file = '/etc/ssl/private/ssl-cert-snakeoil.key'\ninclude_dir = 'conf.d'\n",
        machine.at("/data/pg").display(),
        file("pg_hba.conf"),
        file("pg_ident.conf"),
    );
    fs::write(&conf, text).unwrap();
    fs::write(
        config_dir.join("conf.d/size.conf"),
        "max_connections = 33\n",
    )
    .unwrap();
    give_to_postgres(&config_dir);
    config_dir
}

/// Asserts that the pair's standby follows with a configuration of its own place, and takes over.
fn assert_follows_and_takes_over(pair: &mut Pair) {
    for (machine, number) in [(&pair.a, 1), (&pair.b, 2)] {
        let config_file = machine.at(CONFIG_DIR).join("postgresql.conf");
        assert_eq!(
            machine.sql("SHOW config_file"),
            config_file.display().to_string()
        );
        let ident_file = machine.at(CONFIG_DIR).join("pg_ident.conf");
        assert_eq!(
            machine.sql("SHOW ident_file"),
            ident_file.display().to_string()
        );
        assert!(machine.at(CONFIG_DIR).join("understudy.conf").exists());
        assert!(!machine.at("/data/pg/postgresql.conf").exists());
        assert_eq!(machine.sql("SHOW max_connections"), "33");
        pair.write(number);
    }
    pair.wait();
    pair.assert_written(2);
    pair.assert_equal();
    pair.b.understudy(&["promote"]);
    pair.assert_b_is_primary();
    pair.assert_a_is_fenced();
    pair.assert_written(2);
}

#[test]
fn a_configuration_outside_of_the_data_directory_is_found_and_copied() {
    let mut pair = Pair::prepare(Plan::postgres(), None);
    split(&pair.a);
    let made = init(&pair, &[]);
    assert_eq!(made.status, Some(0), "{made:?}");
    let toml = fs::read_to_string(pair.a.cluster_file()).unwrap();
    assert!(
        toml.contains(&format!("config_dir = \"{CONFIG_DIR}\"")),
        "{toml}"
    );
    // Where nothing serves, the socket is where Postgres is built to have it; here are two machines.
    let toml = toml.replace("#socket_dir = \"/var", "socket_dir = \"");
    fs::write(pair.a.cluster_file(), toml).unwrap();
    pair.a.serve();
    pair.a.sql("CREATE TABLE change (number int PRIMARY KEY)");
    pair.join();
    assert_eq!(pair.b.events("postgres_configuration").len(), 1);
    let copied = pair.b.at(CONFIG_DIR).join("conf.d/size.conf");
    let metadata = fs::metadata(&copied).unwrap();
    assert_eq!(metadata.permissions().mode() & 0o777, 0o640);
    assert_follows_and_takes_over(&mut pair);
    pair.a.understudy(&["rejoin"]);
    pair.b.sql("INSERT INTO change VALUES (77)");
    until("a follows b", Duration::from_secs(60), || {
        let found = pair
            .a
            .try_sql("SELECT count(*) FROM change WHERE number = 77")?;
        holds(found == "1", &found)
    });
}

/// Stands in for `systemctl`: it keeps a journal of what it was told, starts and stops the server with
/// Debian's own arguments, and fails to stop it while `stuck` is there.
const UNIT: &str = r#"#!/bin/sh
data=$UNDERSTUDY_ROOT/data/pg
echo "$1" >> "$UNDERSTUDY_ROOT/unit.journal"
control() {
    if [ "$(id -u)" = 0 ]; then
        setpriv --reuid postgres --regid postgres --init-groups PG_CTL -D "$data" "$@"
    else
        PG_CTL -D "$data" "$@"
    fi
}
cd /
case $1 in
start) control -w -l "$UNDERSTUDY_ROOT/run/postgresql/log" \
    -o "-c config_file=$UNDERSTUDY_ROOT/etc/postgresql/15/main/postgresql.conf" start ;;
stop) [ ! -f "$UNDERSTUDY_ROOT/stuck" ] && control -w -m fast stop ;;
status) control status ;;
esac
"#;

fn journal(machine: &Machine) -> String {
    let journal = fs::read_to_string(machine.at("/unit.journal")).unwrap_or_default();
    let told = journal.lines().filter(|line| *line != "status");
    told.collect::<Vec<_>>().join(" ")
}

/// Makes a pair whose servers are started and stopped by `UNIT`; b has a configuration of its own.
fn commanded() -> Pair {
    let mut pair = Pair::prepare(Plan::postgres(), None);
    let unit = pair.folder.path().join("unit");
    fs::write(&unit, UNIT.replace("PG_CTL", &postgres_program("pg_ctl"))).unwrap();
    fs::set_permissions(&unit, fs::Permissions::from_mode(0o755)).unwrap();
    let command = |verb: &str| format!("{verb} = [\"{}\", \"{verb}\"]\n", unit.display());
    pair.plan.postgres_more = format!(
        "config_dir = \"{CONFIG_DIR}\"\n{}{}{}",
        command("start"),
        command("stop"),
        command("status")
    );
    split(&pair.a);
    for machine in [&pair.a, &pair.b] {
        fs::create_dir_all(machine.at("/run/postgresql")).unwrap();
        give_to_postgres(&machine.at("/run/postgresql"));
    }
    // It is kept, and has too little of one thing.
    let own = pair.b.at(CONFIG_DIR);
    fs::create_dir_all(own.join("conf.d")).unwrap();
    for name in ["postgresql.conf", "pg_hba.conf", "pg_ident.conf"] {
        fs::copy(pair.a.at(CONFIG_DIR).join(name), own.join(name)).unwrap();
    }
    give_to_postgres(&own);
    pair.init();
    pair.a.serve();
    pair.a.sql("CREATE TABLE change (number int PRIMARY KEY)");
    pair.join();
    pair
}

#[test]
fn an_operators_own_commands_start_and_stop_the_server() {
    let mut pair = commanded();
    assert_eq!(
        (journal(&pair.a), journal(&pair.b)),
        ("start".into(), "start".into())
    );
    assert!(
        !pair.b.at(CONFIG_DIR).join("conf.d/size.conf").exists(),
        "b's own is kept"
    );
    assert_follows_and_takes_over(&mut pair);
    assert_eq!(
        (journal(&pair.a), journal(&pair.b)),
        ("start stop".into(), "start".into())
    );
    for machine in [&pair.a, &pair.b] {
        assert_eq!(machine.events("postgres_command"), [""; 0]);
    }
}

#[test]
fn a_unit_that_does_not_stop_does_not_keep_a_primary_alive() {
    let mut pair = commanded();
    fs::write(pair.a.at("/stuck"), "").unwrap();
    pair.b.understudy(&["promote"]);
    pair.assert_b_is_primary();
    pair.assert_a_is_fenced();
    let told = pair.a.events("postgres_command");
    assert!(
        told.len() == 1 && told[0].starts_with("warning"),
        "{told:?}"
    );
    assert!(
        told[0].ends_with("understudy stops it by a signal"),
        "{told:?}"
    );
}
