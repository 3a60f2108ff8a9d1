//! Two machines that keep the same data, made by the commands that an operator would type.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use serde_json::Value;

use super::machine::{Ended, READY, os_user};
use super::places::{POSTGRES, Place};
use super::{Folder, Machine, Network, free_ips, tree, until};

/// Where the settings are, on every machine.
const SETTINGS: &str = "/etc/app";

/// Where the data files are, on every machine.
pub(crate) const FILES: &str = "/srv/files";

/// What a pair replicates.
#[derive(Clone, Default)]
pub(crate) struct Plan {
    pub(crate) postgres: bool,
    /// Further lines of its section.
    pub(crate) postgres_more: String,
    pub(crate) files: bool,
    /// The keys of `[kv]`, as TOML; `None` for no key-value store.
    pub(crate) kv: Option<String>,
    /// `validate`, `reload` and `exclude` of the settings, as TOML; `None` for no settings.
    pub(crate) settings: Option<String>,
    pub(crate) index: bool,
    /// Names of services, in start order.
    pub(crate) services: Vec<&'static str>,
    /// Further sections, as TOML.
    pub(crate) more: String,
}

impl Plan {
    /// The cheapest store: a pair with a role and nothing else to say.
    pub(crate) fn settings() -> Self {
        Self {
            settings: Some(String::new()),
            ..Self::default()
        }
    }

    pub(crate) fn postgres() -> Self {
        Self {
            postgres: true,
            ..Self::default()
        }
    }

    pub(crate) fn files() -> Self {
        Self {
            files: true,
            ..Self::default()
        }
    }

    pub(crate) fn kv(keys: &str) -> Self {
        Self {
            kv: Some(keys.to_owned()),
            ..Self::default()
        }
    }

    pub(crate) fn everything() -> Self {
        Self {
            postgres: true,
            files: true,
            kv: Some("standby_reads = true".to_owned()),
            settings: Some("exclude = [\"*.local\"]".to_owned()),
            index: true,
            services: vec!["one", "two"],
            ..Self::default()
        }
    }

    fn toml(&self, service: &str) -> String {
        let mut text = String::new();
        if self.postgres {
            let user = os_user();
            text += &format!(
                "\n[postgres]\ndata_dir = \"/data/pg\"\nport = {POSTGRES}\nuser = \"{user}\"\n\
                 socket_dir = \"/run/postgresql\"\ndatabase = \"postgres\"\n{}\n",
                self.postgres_more
            );
        }
        if self.files {
            text += &format!(
                "\n[[files]]\nname = \"docs\"\npath = \"{FILES}\"\nexclude = [\"*.tmp\"]\n"
            );
        }
        if let Some(keys) = &self.kv {
            text += &format!("\n[kv]\n{keys}\n");
        }
        if let Some(settings) = &self.settings {
            text += &format!(
                "\n[settings]\nschedule = \"* * * * * *\"\npaths = [\"{SETTINGS}\"]\n{settings}\n"
            );
        }
        if self.index {
            text += "\n[[index]]\nname = \"search\"\nengine = \"tantivy\"\n\
                     source = \"SELECT id, title, body FROM article\"\n";
        }
        for name in &self.services {
            let command = |verb: &str| format!("[\"{service}\", \"{verb}\", \"{name}\"]");
            text += &format!(
                "\n[[service]]\nname = \"{name}\"\nstart = {}\nstop = {}\nstatus = {}\n",
                command("start"),
                command("stop"),
                command("status"),
            );
        }
        text + &self.more
    }
}

/// A service that writes down what is done to it, in `journal` beneath the root; it does not stop while
/// `stuck` is there, nor start while `broken` is.
const SERVICE: &str = r#"#!/bin/sh
pid=$UNDERSTUDY_ROOT/run/$2.pid
mkdir -p "$UNDERSTUDY_ROOT/run"
is_up() { [ -f "$pid" ] && grep -q sleep "/proc/$(cat "$pid")/cmdline" 2>/dev/null; }
case $1 in
start)
    [ ! -f "$UNDERSTUDY_ROOT/broken" ] || exit 1
    echo "start $2" >> "$UNDERSTUDY_ROOT/journal"
    setsid sleep 100000 </dev/null >/dev/null 2>&1 &
    echo $! > "$pid" ;;
stop)
    [ ! -f "$UNDERSTUDY_ROOT/stuck" ] || exit 1
    if is_up; then
        echo "stop $2" >> "$UNDERSTUDY_ROOT/journal"
        kill "$(cat "$pid")"
    fi
    rm -f "$pid" ;;
status) is_up && echo "$2 runs" ;;
esac
"#;

/// Two machines.
pub(crate) struct Pair {
    pub(crate) a: Machine,
    pub(crate) b: Machine,
    pub(crate) plan: Plan,
    pub(crate) ips: [String; 3],
    // Dropped in this order: processes and mounts, then the network, then the place.
    pub(crate) folder: Folder,
    pub(crate) network: Option<Network>,
    _place: Option<Place>,
}

impl Pair {
    /// Makes a pair that streams.
    pub(crate) fn new(plan: Plan) -> Self {
        let mut pair = Self::alone(plan);
        pair.join();
        pair
    }

    /// Makes a pair that streams through `network`.
    pub(crate) fn on(network: Network, plan: Plan) -> Self {
        let mut pair = Self::prepare(plan, Some(network));
        pair.begin();
        pair.join();
        pair
    }

    /// Makes node a, which serves alone.
    pub(crate) fn alone(plan: Plan) -> Self {
        let mut pair = Self::prepare(plan, None);
        pair.begin();
        pair
    }

    /// Makes the machines, and the application's data on a; no node yet.
    pub(crate) fn prepare(plan: Plan, network: Option<Network>) -> Self {
        let place = plan.postgres.then(Place::take);
        let folder = Folder::new();
        let ips = free_ips();
        let a = Machine::new("a", folder.path(), &ips[0], network.as_ref());
        let b = Machine::new("b", folder.path(), &ips[1], network.as_ref());
        let service = folder.path().join("service");
        fs::write(&service, SERVICE).unwrap();
        fs::set_permissions(&service, fs::Permissions::from_mode(0o755)).unwrap();
        if plan.postgres {
            a.init_postgres();
        }
        if plan.files {
            let files = a.at(FILES);
            fs::create_dir_all(files.join("deep/empty")).unwrap();
            fs::write(files.join("hello.txt"), "hello\n").unwrap();
            fs::write(files.join("deep/numbers"), vec![7; 300_000]).unwrap();
            fs::write(files.join("scratch.tmp"), "local\n").unwrap();
            std::os::unix::fs::symlink("hello.txt", files.join("link")).unwrap();
        }
        if plan.settings.is_some() {
            let settings = a.at(SETTINGS);
            fs::create_dir_all(&settings).unwrap();
            fs::write(settings.join("app.conf"), "generation = 0\n").unwrap();
            fs::write(settings.join("node.local"), "node a's own\n").unwrap();
        }
        Self {
            a,
            b,
            plan,
            ips,
            folder,
            network,
            _place: place,
        }
    }

    /// Returns what an operator writes into `understudy.toml`, beyond the nodes.
    pub(crate) fn toml(&self) -> String {
        self.plan
            .toml(&self.folder.path().join("service").display().to_string())
    }

    /// Makes node a, with what is to be replicated.
    pub(crate) fn init(&self) {
        let a = &self.a;
        let peers = a.peers();
        let mut arguments = vec![
            "init",
            "--name",
            "a",
            "--cluster",
            "e2e",
            "--address",
            &peers,
        ];
        let local = a.local_arguments();
        arguments.extend(local.iter().map(String::as_str));
        a.understudy(&arguments);
        let text = fs::read_to_string(a.cluster_file()).unwrap();
        fs::write(a.cluster_file(), format!("{text}\n{}", self.toml())).unwrap();
    }

    /// Makes the first node of machines that are prepared.
    pub(crate) fn begin(&mut self) {
        self.init();
        if self.plan.index {
            // The table comes with the server: start it as the operator would have it running.
            self.a.serve();
            self.a.sql(
                "CREATE TABLE article (id int PRIMARY KEY, title text, body text);\
                 INSERT INTO article SELECT i, 'title ' || i, 'the quick brown fox ' || i \
                 FROM generate_series(1, 500) i",
            );
            self.a.understudy(&["index", "rebuild", "search"]);
        } else {
            self.a.serve();
        }
        if self.plan.postgres {
            self.a.sql("CREATE TABLE change (number int PRIMARY KEY)");
        }
    }

    /// Invites a node, and returns the address and the token.
    pub(crate) fn invite(&self, name: &str) -> (String, String) {
        let invitation = self.a.json(&["invite", name]);
        let text = |key: &str| invitation[key].as_str().unwrap().to_owned();
        (text("url"), text("token"))
    }

    /// Runs `join` on a machine, to its end.
    pub(crate) fn try_join(&self, machine: &Machine, url: &str, token: &str) -> Ended {
        super::machine::ended(&mut self.join_command(machine, url, token))
    }

    pub(crate) fn join_command(
        &self,
        machine: &Machine,
        url: &str,
        token: &str,
    ) -> std::process::Command {
        let mut command = machine.program();
        command
            .args(["join", url, "--address", &machine.peers()])
            .args(machine.local_arguments())
            .env("UNDERSTUDY_TOKEN", token);
        command
    }

    /// Makes node b a standby that streams.
    pub(crate) fn join(&mut self) {
        let (url, token) = self.invite("b");
        let joined = self.try_join(&self.b, &url, &token);
        assert_eq!(joined.status, Some(0), "{joined:?}");
        self.b.serve();
        self.wait();
    }

    /// Waits until the standby has applied everything that the primary has now.
    pub(crate) fn wait(&self) {
        self.a.understudy(&["wait", "--timeout", "60"]);
    }

    /// Waits likewise, where a store may first have to wait before it tries again.
    pub(crate) fn wait_long(&self) {
        until("everything is applied", Duration::from_secs(90), || {
            let ended = self.a.try_understudy(&["wait", "--timeout", "5"]);
            super::holds(ended.status == Some(0), &ended)
        });
    }

    /// Writes something new into every store of a.
    pub(crate) fn write(&self, number: u32) {
        let a = &self.a;
        if self.plan.postgres {
            a.sql(&format!("INSERT INTO change VALUES ({number})"));
        }
        if self.plan.index {
            a.sql(&format!(
                "INSERT INTO article VALUES (1000 + {number}, 'fresh', 'zebra{number}')"
            ));
        }
        if self.plan.files {
            fs::write(a.at(FILES).join(format!("file-{number}")), vec![b'x'; 1000]).unwrap();
        }
        if self.plan.kv.is_some() {
            a.understudy(&["kv", "put", &format!("key-{number}"), "written"]);
        }
        if self.plan.settings.is_some() {
            fs::write(
                a.at(SETTINGS).join("app.conf"),
                format!("generation = {number}\n"),
            )
            .unwrap();
        }
    }

    /// Compares every store of b with what is on a's disk and in a's database.
    pub(crate) fn assert_equal(&self) {
        if self.plan.postgres {
            assert_eq!(self.rows("b"), self.rows("a"));
        }
        self.assert_equal_files();
    }

    /// Compares the files and the settings.
    pub(crate) fn assert_equal_files(&self) {
        for path in [FILES, SETTINGS] {
            let of = |machine: &Machine| {
                let mut tree = tree(&machine.at(path));
                // What is excluded is each node's own.
                tree.retain(|name, _| !name.ends_with(".tmp") && !name.ends_with(".local"));
                tree
            };
            assert_eq!(of(&self.b), of(&self.a), "{path}");
        }
    }

    /// Asserts that b has what `write` wrote.
    pub(crate) fn assert_written(&self, number: u32) {
        let b = &self.b;
        self.assert_written_rows(number);
        self.assert_written_files(number);
        self.assert_written_keys(number);
        if self.plan.settings.is_some() {
            let content = fs::read_to_string(b.at(SETTINGS).join("app.conf")).unwrap();
            assert_eq!(content, format!("generation = {number}\n"));
        }
    }

    /// Asserts that b has the rows that `write` wrote.
    pub(crate) fn assert_written_rows(&self, number: u32) {
        if self.plan.postgres {
            let sql = format!("SELECT count(*) FROM change WHERE number = {number}");
            assert_eq!(self.b.sql(&sql), "1");
        }
    }

    /// Asserts that b has the key that `write` wrote, where it may answer reads.
    pub(crate) fn assert_written_keys(&self, number: u32) {
        if self.plan.kv.is_some() {
            let value = self.b.understudy(&["kv", "get", &format!("key-{number}")]);
            assert_eq!(value.trim_end(), "written");
        }
    }

    /// Asserts that b has the files that `write` wrote.
    pub(crate) fn assert_written_files(&self, number: u32) {
        if self.plan.files {
            let content = fs::read(self.b.at(FILES).join(format!("file-{number}"))).unwrap();
            assert_eq!(content, vec![b'x'; 1000]);
        }
    }

    fn rows(&self, node: &str) -> String {
        let machine = if node == "a" { &self.a } else { &self.b };
        let mut rows = machine.sql("SELECT * FROM change ORDER BY 1");
        if self.plan.index {
            rows += &machine.sql("SELECT * FROM article ORDER BY 1");
        }
        rows
    }

    /// Returns the roles of both nodes.
    pub(crate) fn roles(&self) -> (String, String) {
        (self.a.role(), self.b.role())
    }

    /// Waits until a calls itself fenced, and asserts that it serves nothing.
    pub(crate) fn assert_a_is_fenced(&self) {
        until("a is fenced", READY, || {
            let role = self.a.try_status()?["role"].clone();
            super::holds(role == "fenced", &role)
        });
        if self.plan.postgres {
            until("the Postgres of a is down", READY, || {
                match self.a.postmaster() {
                    None => Ok(()),
                    Some(pid) => Err(format!("it runs as {pid}")),
                }
            });
            assert!(self.a.try_sql("INSERT INTO change VALUES (-1)").is_err());
        }
        if self.plan.kv.is_some() {
            let refused = self.a.try_understudy(&["kv", "put", "late", "write"]);
            assert_ne!(refused.status, Some(0), "{refused:?}");
        }
        assert_eq!(self.a.health("/primary"), 503);
        let services = self.a.json(&["services"]);
        for service in services.as_array().unwrap() {
            assert_ne!(service["state"], "online", "{services}");
        }
    }

    /// Asserts that b is primary with every store open.
    pub(crate) fn assert_b_is_primary(&mut self) {
        until("b is primary", READY, || {
            let status = self.b.try_status()?;
            super::holds(status["role"] == "primary", &status["role"])
        });
        self.b.wait_until_ready();
        assert_eq!(self.b.health("/primary"), 200);
        if self.plan.postgres {
            assert_eq!(self.b.sql("SELECT pg_is_in_recovery()"), "f");
            self.b.sql("CREATE TABLE IF NOT EXISTS proof (at timestamptz); INSERT INTO proof VALUES (now())");
        }
        if self.plan.files {
            fs::write(self.b.at(FILES).join("proof"), "served\n").unwrap();
        }
        if self.plan.kv.is_some() {
            until("the key-value store of b takes writes", READY, || {
                let written = self.b.try_understudy(&["kv", "put", "proof", "served"]);
                super::holds(written.status == Some(0), &written.stderr)
            });
        }
        if self.plan.settings.is_some() {
            fs::write(self.b.at(SETTINGS).join("app.conf"), "generation = 9999\n").unwrap();
            let shows = || -> Result<(), String> {
                let history = self.b.json(&["settings", "history"]);
                let epoch = &history
                    .as_array()
                    .and_then(|all| all.last())
                    .ok_or("no history")?["epoch"];
                super::holds(epoch["node"] == "b", epoch)
            };
            until("b takes revisions of the settings", READY, shows);
        }
        let services = until("the services of b run", READY, || {
            let services = self.b.json(&["services"]);
            let is_up = |service: &Value| service["state"] == "online";
            let all = services.as_array().unwrap();
            if all.iter().all(is_up) {
                Ok(all.len())
            } else {
                Err(services.to_string())
            }
        });
        assert_eq!(services, self.plan.services.len());
        if self.plan.index {
            let found = self.b.json(&["index", "search", "search", "fox"]);
            assert_ne!(found["hits"].as_array().map(Vec::len), Some(0), "{found}");
        }
    }

    /// How long anything here may take.
    pub(crate) const PATIENCE: Duration = READY;
}

impl Drop for Pair {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for machine in [&self.a, &self.b] {
                eprintln!("--- the log of {}\n{}", machine.name, machine.log());
            }
        }
        // Reaps them; the folder ends the rest.
        self.a.kill_daemon();
        self.b.kill_daemon();
    }
}
