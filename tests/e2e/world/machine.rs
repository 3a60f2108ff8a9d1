//! One machine: its folders, its daemon, its Postgres, and what a person can type there.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use super::places::{KV, MONITOR, PEERS, POSTGRES};
use super::{Answer, Network, Signal, kill_beneath, signal, until};

/// A node may take this long to be what it should be.
pub(crate) const READY: Duration = Duration::from_secs(60);

/// What happens is told within this time; the slowest is a store that is tried again after a while.
const TOLD: Duration = Duration::from_secs(30);

/// How a command ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) status: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// One machine.
pub(crate) struct Machine {
    pub(crate) name: &'static str,
    /// Everything of this machine is beneath it.
    pub(crate) home: PathBuf,
    pub(crate) ip: String,
    pub(crate) namespace: Option<String>,
    daemon: Option<Child>,
}

impl Machine {
    pub(crate) fn new(
        name: &'static str,
        folder: &Path,
        ip: &str,
        network: Option<&Network>,
    ) -> Self {
        let home = folder.join(name);
        fs::create_dir_all(home.join("root")).unwrap();
        Self {
            name,
            home,
            ip: network.map_or_else(|| ip.to_owned(), |_| Network::ip(name)),
            namespace: network.map(|network| network.namespace(name)),
            daemon: None,
        }
    }

    /// Returns where an absolute path of the configuration is on this machine.
    pub(crate) fn at(&self, path: &str) -> PathBuf {
        self.home.join("root").join(path.trim_start_matches('/'))
    }

    pub(crate) fn etc(&self) -> PathBuf {
        self.home.join("etc")
    }

    pub(crate) fn state(&self) -> PathBuf {
        self.home.join("state")
    }

    pub(crate) fn cluster_file(&self) -> PathBuf {
        self.etc().join("understudy.toml")
    }

    pub(crate) fn peers(&self) -> String {
        format!("{}:{PEERS}", self.ip)
    }

    /// Returns the peer port, as `call` takes it.
    pub(crate) fn port(&self) -> (&str, &str, u16) {
        (self.name, &self.ip, PEERS)
    }

    pub(crate) fn local_arguments(&self) -> Vec<String> {
        let path = |part: &str| self.home.join(part).display().to_string();
        let monitor = format!("{}:{MONITOR}", self.ip);
        // On loopback in any case: elsewhere it would need a password.
        let is_loopback = self.ip.starts_with("127.");
        let kv = if is_loopback { &self.ip } else { "127.0.0.1" };
        [
            ("--kv-listen", format!("{kv}:{KV}")),
            ("--root", path("root")),
            ("--state-dir", path("state")),
            ("--run-dir", path("run")),
            ("--monitor", monitor),
        ]
        .into_iter()
        .flat_map(|(flag, value)| [flag.to_owned(), value])
        .collect()
    }

    /// Returns a command of this machine that is still to be run.
    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = match &self.namespace {
            None => Command::new(program),
            Some(namespace) => {
                let mut command = Command::new("ip");
                command.args(["netns", "exec", namespace, program]);
                command
            }
        };
        command.stdin(Stdio::null());
        command
    }

    /// Returns `understudy` with its configuration; the arguments are still to come.
    pub(crate) fn program(&self) -> Command {
        let mut command = self.command(env!("CARGO_BIN_EXE_understudy"));
        command.arg("--config").arg(self.etc());
        command
    }

    /// Runs a verb to its end, whatever that is.
    pub(crate) fn try_understudy(&self, arguments: &[&str]) -> Ended {
        ended(self.program().args(arguments))
    }

    /// Runs a verb that has to succeed, and returns what it printed.
    pub(crate) fn understudy(&self, arguments: &[&str]) -> String {
        let ended = self.try_understudy(arguments);
        assert_eq!(
            ended.status,
            Some(0),
            "{} on {}: {ended:?}",
            arguments.join(" "),
            self.name
        );
        ended.stdout
    }

    /// Returns the plan of a promotion, whose exit status tells whether it could be carried out.
    pub(crate) fn dry_run(&self, status: Option<i32>) -> Value {
        let ended = self.try_understudy(&["promote", "--dry-run", "--json"]);
        assert_eq!(ended.status, status, "{ended:?}");
        serde_json::from_str(&ended.stdout).expect("a plan in JSON")
    }

    /// Runs a verb that has to succeed, and returns the JSON that it printed.
    pub(crate) fn json(&self, arguments: &[&str]) -> Value {
        let text = self.understudy(&[arguments, &["--json"]].concat());
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
    }

    pub(crate) fn try_status(&self) -> Result<Value, String> {
        let ended = self.try_understudy(&["status", "--json"]);
        if ended.status != Some(0) {
            return Err(ended.stderr);
        }
        serde_json::from_str(&ended.stdout).map_err(|error| error.to_string())
    }

    pub(crate) fn status(&self) -> Value {
        self.json(&["status"])
    }

    pub(crate) fn role(&self) -> String {
        self.status()["role"].as_str().unwrap().to_owned()
    }

    /// Returns the events of one kind, oldest first, each as `severity: message`.
    pub(crate) fn events(&self, kind: &str) -> Vec<String> {
        let events = self.json(&["events", "-n", "1000"]);
        let of_kind = events
            .as_array()
            .unwrap()
            .iter()
            .filter(|event| event["kind"] == kind);
        of_kind
            .map(|event| {
                let text = |key: &str| event[key].as_str().unwrap().to_owned();
                format!("{}: {}", text("severity"), text("message"))
            })
            .collect()
    }

    /// Waits for an event of `kind` whose message has `part` in it.
    pub(crate) fn wait_for_event(&self, kind: &str, part: &str) -> String {
        until(
            &format!("an event {kind} with {part:?} on {}", self.name),
            TOLD,
            || {
                let events = self.events(kind);
                let found = events.iter().find(|event| event.contains(part));
                found.cloned().ok_or_else(|| format!("{events:?}"))
            },
        )
    }

    /// Waits for an event of `kind` in the file of events, where no verb works, and returns its line.
    pub(crate) fn wait_for_event_in_file(&self, kind: &str, part: &str) -> String {
        let kind = format!("\"kind\":\"{kind}\"");
        until(
            &format!("an event {kind} with {part:?} on {}", self.name),
            TOLD,
            || {
                let text =
                    fs::read_to_string(self.state().join("events.jsonl")).unwrap_or_default();
                let found = text
                    .lines()
                    .find(|line| line.contains(&kind) && line.contains(part));
                found.map(str::to_owned).ok_or(text.clone())
            },
        )
    }

    /// Starts the daemon, and waits until it does what its role says.
    pub(crate) fn serve(&mut self) {
        self.serve_with(&[], &[]);
    }

    /// Starts the daemon, with `wrapper` before it and `environment` about it, and waits likewise.
    pub(crate) fn serve_with(&mut self, wrapper: &[&str], environment: &[(&str, &str)]) {
        self.spawn(wrapper, environment);
        self.wait_until_ready();
    }

    /// Starts the daemon, and does not wait.
    pub(crate) fn spawn(&mut self, wrapper: &[&str], environment: &[(&str, &str)]) {
        let log = fs::File::options()
            .create(true)
            .append(true)
            .open(self.home.join("serve.log"))
            .unwrap();
        let program = env!("CARGO_BIN_EXE_understudy");
        let mut command = match wrapper {
            [] => self.command(program),
            [first, rest @ ..] => {
                let mut command = self.command(first);
                command.args(rest).arg(program);
                command
            }
        };
        command
            .arg("--config")
            .arg(self.etc())
            .arg("serve")
            .envs(environment.iter().copied())
            .stdout(Stdio::null())
            .stderr(log);
        assert!(
            self.daemon.is_none(),
            "a daemon of {} runs already",
            self.name
        );
        self.daemon = Some(command.spawn().unwrap());
    }

    /// Waits until the node does what its role says.
    pub(crate) fn wait_until_ready(&mut self) {
        let name = self.name;
        until(&format!("node {name} is ready"), READY, || {
            if let Some(child) = &mut self.daemon
                && let Some(status) = child.try_wait().unwrap()
            {
                panic!("the daemon of {name} ended ({status}): {}", self.log());
            }
            let status = self.try_status()?;
            let is_ready = match status["role"].as_str().unwrap() {
                "primary" => {
                    let stores = status["stores"].as_array().unwrap();
                    !stores.is_empty() && stores.iter().all(|store| !store["position"].is_null())
                }
                "standby" => status["upstream"]["is_connected"] == true,
                _ => true,
            };
            if is_ready {
                Ok(())
            } else {
                Err(status.to_string())
            }
        });
    }

    /// Returns the end of the daemon's log.
    pub(crate) fn log(&self) -> String {
        let log = fs::read_to_string(self.home.join("serve.log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }

    pub(crate) fn pid(&self) -> i32 {
        i32::try_from(self.daemon.as_ref().expect("the daemon runs").id()).unwrap()
    }

    pub(crate) fn signal(&self, what: Signal) {
        signal(self.pid(), what);
    }

    /// Waits until the daemon has ended by itself, and returns its exit status, if it has one.
    pub(crate) fn wait_for_end(&mut self) -> Option<i32> {
        let name = self.name;
        let mut child = self.daemon.take().expect("the daemon runs");
        until(&format!("the daemon of {name} ends"), READY, || {
            child
                .try_wait()
                .unwrap()
                .ok_or_else(|| "it runs".to_owned())
        })
        .code()
    }

    /// Stops the daemon in peace.
    pub(crate) fn stop(&mut self) -> Option<i32> {
        self.signal(Signal::TERM);
        self.wait_for_end()
    }

    /// Ends the daemon at once, and nothing else.
    pub(crate) fn kill_daemon(&mut self) {
        if let Some(mut child) = self.daemon.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// Ends every process of this machine at once, as a power cut would.
    pub(crate) fn power_off(&mut self) {
        // All are killed before the daemon is reaped: it must not see anything die.
        let child = self.daemon.take();
        if let Some(child) = &child {
            super::kill(i32::try_from(child.id()).unwrap());
        }
        kill_beneath(&self.home);
        if let Some(mut child) = child {
            child.wait().unwrap();
        }
    }

    /// Stops every process of this machine where it is, as a hypervisor does that pauses it.
    pub(crate) fn freeze(&self) {
        for pid in super::processes::beneath(&self.home) {
            signal(pid, Signal::STOP);
        }
    }

    /// Lets them go on.
    pub(crate) fn thaw(&self) {
        for pid in super::processes::beneath(&self.home) {
            signal(pid, Signal::CONT);
        }
    }

    /// Returns the machine as its application has it: without its daemon.
    pub(crate) fn writer(&self) -> Self {
        Self {
            name: self.name,
            ip: self.ip.clone(),
            home: self.home.clone(),
            namespace: self.namespace.clone(),
            daemon: None,
        }
    }

    /// Asks the monitor.
    pub(crate) fn try_http(&self, method: &str, path: &str) -> Result<Answer, String> {
        if self.namespace.is_none() {
            return super::http(&self.ip, MONITOR, method, path);
        }
        // Only a program in the namespace can reach it.
        let url = format!("http://{}:{MONITOR}{path}", self.ip);
        let ended = ended(
            self.command("curl")
                .args(["-s", "-i", "-m", "5", "-X", method, &url]),
        );
        Answer::parse(&ended.stdout)
    }

    /// Asks the monitor for JSON.
    pub(crate) fn get(&self, path: &str) -> Value {
        let answer = self.try_http("GET", path).unwrap();
        serde_json::from_str(&answer.body).unwrap_or_else(|error| panic!("{error}: {answer:?}"))
    }

    /// Returns the status of a health check.
    pub(crate) fn health(&self, path: &str) -> u16 {
        self.try_http("GET", path).unwrap().status
    }

    /// Runs SQL, and returns the rows, or what Postgres said.
    pub(crate) fn try_sql(&self, sql: &str) -> Result<String, String> {
        let mut command = self.command(&postgres_program("psql"));
        command
            .args([
                "-X",
                "-A",
                "-t",
                "-q",
                "-v",
                "ON_ERROR_STOP=1",
                "-d",
                "postgres",
                "-U",
                &os_user(),
            ])
            .arg("-h")
            .arg(self.at("/run/postgresql"))
            .args(["-p", &POSTGRES.to_string(), "-c", sql]);
        let ended = ended(&mut command);
        match ended.status {
            Some(0) => Ok(ended.stdout.trim().to_owned()),
            _ => Err(ended.stderr),
        }
    }

    pub(crate) fn sql(&self, sql: &str) -> String {
        self.try_sql(sql)
            .unwrap_or_else(|error| panic!("{sql} on {}: {error}", self.name))
    }

    /// Returns the processes of this machine's Postgres.
    pub(crate) fn postgres_processes(&self) -> Vec<i32> {
        let postmaster = self.postmaster().unwrap();
        let children = format!("/proc/{postmaster}/task/{postmaster}/children");
        let children = fs::read_to_string(children).unwrap();
        let children = children.split_whitespace().map(|pid| pid.parse().unwrap());
        children.chain([postmaster]).collect()
    }

    /// Returns the process of the Postgres server, if there is one.
    pub(crate) fn postmaster(&self) -> Option<i32> {
        let text = fs::read_to_string(self.at("/data/pg/postmaster.pid")).ok()?;
        let pid = text.lines().next()?.trim().parse().ok()?;
        Path::new(&format!("/proc/{pid}")).exists().then_some(pid)
    }

    /// Makes a Postgres cluster.
    pub(crate) fn init_postgres(&self) {
        let data_dir = self.at("/data/pg");
        fs::create_dir_all(&data_dir).unwrap();
        let is_root = rustix::process::geteuid().is_root();
        if is_root {
            let done = Command::new("chown")
                .arg("postgres:")
                .arg(&data_dir)
                .status()
                .unwrap();
            assert!(done.success());
        }
        let mut command = if is_root {
            let mut command = Command::new("setpriv");
            command.args([
                "--reuid",
                "postgres",
                "--regid",
                "postgres",
                "--init-groups",
            ]);
            command.arg(postgres_program("initdb"));
            command
        } else {
            Command::new(postgres_program("initdb"))
        };
        command
            .arg("-D")
            .arg(&data_dir)
            .args(["-k", "-E", "UTF8", "--no-sync"])
            .current_dir("/");
        let ended = ended(&mut command);
        assert_eq!(ended.status, Some(0), "{ended:?}");
        let conf = data_dir.join("postgresql.conf");
        let text = fs::read_to_string(&conf).unwrap();
        let ours =
            "listen_addresses = ''\nmax_connections = 20\nshared_buffers = 16MB\nfsync = off\n";
        fs::write(&conf, format!("{text}\n{ours}")).unwrap();
    }
}

/// Runs a command to its end.
pub(crate) fn ended(command: &mut Command) -> Ended {
    let output = command
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    Ended {
        status: output.status.code(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// Returns the OS user of Postgres: root must not run it.
pub(crate) fn os_user() -> String {
    if rustix::process::geteuid().is_root() {
        return "postgres".to_owned();
    }
    ended(Command::new("id").arg("-un"))
        .stdout
        .trim()
        .to_owned()
}

/// Returns the path of one of Postgres' programs.
pub(crate) fn postgres_program(name: &str) -> String {
    let newest = fs::read_dir("/usr/lib/postgresql")
        .expect("Postgres is installed")
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok())
        .max();
    format!(
        "/usr/lib/postgresql/{}/bin/{name}",
        newest.expect("Postgres is installed")
    )
}
