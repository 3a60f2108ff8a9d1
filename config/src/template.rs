//! New configurations, with every section explained.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use crate::{NodeName, StoreName};

/// What is known when a cluster is made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answers {
    /// The cluster's name.
    pub cluster: String,
    /// The name of the first node.
    pub node: NodeName,
    /// Where its peers reach it.
    pub address: SocketAddr,
    /// The Postgres cluster, if there is one.
    pub postgres: Option<PostgresAnswers>,
    /// The trees of files.
    pub files: Vec<(StoreName, PathBuf)>,
    /// There is a key-value store.
    pub kv: bool,
    /// The files and directories of settings.
    pub settings: Vec<PathBuf>,
}

/// What is known of the Postgres cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PostgresAnswers {
    /// Its data directory.
    pub data_dir: PathBuf,
    /// Its port.
    pub port: u16,
    /// The user of the operating system who owns the data directory.
    pub user: String,
    /// Where its socket is, if that is known.
    pub socket_dir: Option<PathBuf>,
    /// Where its configuration is, if not in the data directory.
    pub config_dir: Option<PathBuf>,
}

impl PostgresAnswers {
    /// Returns what is assumed of a cluster of which only the data directory is known.
    pub fn new(data_dir: impl Into<PathBuf>) -> Self {
        Self {
            data_dir: data_dir.into(),
            port: 5432,
            user: "postgres".to_owned(),
            socket_dir: None,
            config_dir: None,
        }
    }
}

/// Returns an `understudy.toml` that says what was answered, and has the rest as comments.
pub fn cluster(answers: &Answers) -> String {
    let mut text = format!(
        r#"# The cluster: identical on every node. `understudy config check` says what is wrong with it.

[cluster]
name = {name}
promotion = "manual"        # an operator promotes a standby
rejoin = "manual"           # "automatic": a superseded primary becomes a standby by itself

# One section for each machine; `understudy join` adds them.
[[node]]
name = {node}
#second_address = "192.168.7.1:7400"    # another way to it
address = {address}    # where the other nodes reach it: IP and port
"#,
        name = quoted(&answers.cluster),
        node = quoted(answers.node.as_str()),
        address = quoted(&answers.address.to_string()),
    );
    text.push_str("\n# The Postgres cluster that is replicated.\n");
    text.push_str(&postgres(answers.postgres.as_ref()));

    text.push_str("\n# Trees of files that are replicated, one section for each.\n");
    for (name, path) in &answers.files {
        text.push_str(&files(true, &quoted(name.as_str()), &quoted_path(path)));
    }
    if answers.files.is_empty() {
        text.push_str(&files(false, "\"uploads\"", "\"/srv/catalog/uploads\""));
    }

    text.push_str("\n# The key-value store, which clients reach with Redis' protocol.\n");
    text.push_str(&section(answers.kv, KV));
    text.push_str("\n# The configuration of the appliance, fetched on a schedule.\n");
    let paths: Vec<String> = answers
        .settings
        .iter()
        .map(|path| quoted_path(path))
        .collect();
    let has_settings = !paths.is_empty();
    text.push_str(&section(
        has_settings,
        &format!(
            r#"[settings]
schedule = "0 * * * * *"    # every minute, in UTC; Unix lines such as "*/5 * * * *" do as well
paths = [{paths}]
exclude = []                # what is local to a node, such as ["local.conf"]
#validate = ["catalogctl", "check-config"]      # must succeed before they are applied
#reload = ["systemctl", "reload", "catalog"]    # runs after they were
"#,
            paths = if has_settings {
                paths.join(", ")
            } else {
                "\"/etc/catalog\"".to_owned()
            },
        ),
    ));

    text.push_str(
        r#"
# What is rebuilt from the stores and never replicated.
#[[index]]
#name = "search"
#engine = "tantivy"          # built in, from the rows of `source`; it needs [postgres]
#source = "SELECT id, title, body, updated_at FROM article"
#database = "catalog"
#watermark = "updated_at"    # grows with every change: the index is kept warm on every node
#deleted = "is_deleted"      # true in a row that counts as deleted
#refresh = "5s"              # how often changes are read
#overlap = "1m"              # the longest transaction that changes rows
#sweep = "1h"                # how often deletions are looked for
#timeout = "1h"
#[[index]]
#name = "articles"
#engine = "elasticsearch"    # the same rows, in an Elasticsearch
#source = "SELECT id, title, body, updated_at FROM article"
#url = "https://search.example.com:9200"
#alias = "articles"          # what clients search
#user = "understudy"
#password_file = "/etc/understudy/elastic-password"
#ca_file = "/etc/understudy/elastic-ca.pem"
#shared = true               # one for all nodes: only the primary writes to it
#[[index]]
#name = "other"
#engine = "command"          # whatever the command builds
#command = ["catalogctl", "reindex"]
#timeout = "1h"

# How an old primary that does not answer is switched off; without it an operator has to say that it is.
#[fence]
#command = ["/usr/local/sbin/power-off-peer"]    # must succeed only once it is off for certain
#timeout = "1m"

# What is started and stopped with the role of a node, in this order.
#[[service]]
#name = "web"
#start = ["systemctl", "start", "catalog"]
#stop = ["systemctl", "stop", "catalog"]
#status = ["systemctl", "is-active", "catalog"]
#user = "catalog"            # who runs the three commands; without it, the daemon's own user
#on = "primary"              # where it runs: "primary", "standby" or "both"
#after = []                  # services that are up before it; without it, the one before it here
#critical = true             # whether a promotion stops when it does not come up
#restarts = 3                # how often it is started again
#restart_window = "1h"       # in so long
#interval = "5s"             # how often it is asked how it is
#timeout = "30s"             # how long it may take to start, and to stop
#status_timeout = "10s"      # how long `status` may take
#after_failover = "start"    # "hold": after a `promote`, not before an operator starts it
#rehearse = false            # true: may be run in a rehearsal, on a copy and without a network

# What runs on a schedule where the role of a node allows it.
#[[job]]
#name = "report"
#schedule = "30 2 * * *"     # in UTC
#command = ["catalogctl", "report"]
#user = "catalog"
#timeout = "1h"
#on = "primary"
#after_failover = "start"

# What runs when the appliance goes online or offline on a node.
#[hooks]
#online = ["catalogctl", "announce", "online"]
#offline = ["catalogctl", "announce", "offline"]
#user = "catalog"
#timeout = "30s"

# The address that clients use: the primary has it.
#[address]
#ip = "10.0.0.100/24"
#interface = "eth0"
#also = ["fd00::100/64"]     # further addresses, which move with it
#probe = "300ms"             # how long others have to answer that they have it
#lease = "never"             # "2m": without a running daemon, the kernel keeps it so long

# What is looked at besides: kinds disk, memory, load, link, gateway, process, tcp, http, command, mount and
# postgres. The room on the disks of the stores is looked at in any case.
#[[check]]
#name = "gateway"
#kind = "gateway"
#address = "10.0.0.254"      # without it, the gateway of the default route
#interval = "10s"
#timeout = "5s"
#fail_after = 3              # so many bad looks in a row, and it has failed
#recover_after = 2           # so many good ones, and it is well again
#severity = "warning"        # "info", or "error"
#on = "any"                  # "primary", or "standby"
#blocks_promotion = false    # true: a node where it fails is promoted only by force
#[[check]]
#name = "room"
#kind = "disk"
#path = "/srv"
#min_free = "10%"            # or a size, such as "20GB"
#recover = "15%"
#min_inodes = "5%"
#[[check]]
#name = "load"
#kind = "load"
#max_load = "4"
#[[check]]
#name = "nginx"
#kind = "process"
#process = "nginx"
#[[check]]
#name = "worker"
#kind = "process"
#pidfile = "/run/worker.pid"
#[[check]]
#name = "page"
#kind = "http"
#url = "http://127.0.0.1:8080/health"
#status = 200
#contains = "ready"
#on = "primary"
#[[check]]
#name = "srv"
#kind = "mount"
#path = "/srv"
#fstype = "ext4"
#write = true
#[[check]]
#name = "articles"
#kind = "postgres"
#query = "SELECT 1 FROM article LIMIT 1"

# Rehearsals: a standby proves on a copy of itself that it could take over, and how long that takes.
#[drill]
#schedule = "0 3 * * 0"      # without it, only `understudy drill` rehearses
#max_age = "35d"             # an older proof is told as a problem
#timeout = "2h"
#faults = false              # true: `understudy drill fault` may break things; never where people work
#bandwidth = "0"             # bytes per second of the copy, such as "50MB"; 0 is no limit
"#,
    );
    text
}

/// The key-value store.
const KV: &str = r#"[kv]
durability = "standby-first"    # "async": a write does not wait for a standby
degrade_after = "5s"        # so long without a standby, then alone; "never": writes are refused
write_timeout = "5s"        # with "never": how long a write waits before it is refused
acknowledge = 1             # how many standbys it waits for
standby_reads = false       # whether a standby answers reads
allow_flush = false         # whether FLUSHDB may remove every key
view = false                # whether the monitor shows keys and values
memory = "1GB"              # what the table may use
log = "1GB"                 # kept for a standby that is away
#password_file = "/etc/understudy/kv-password"    # what clients need, if not on loopback only
"#;

/// Returns a `node.toml`; its `pki_dir` is the one beside it.
pub fn node(
    name: &NodeName,
    root: &Path,
    state_dir: &Path,
    run_dir: &Path,
    monitor: SocketAddr,
    kv: SocketAddr,
) -> String {
    format!(
        r#"# This machine: what is local to it.

name = {name}                  # which [[node]] of understudy.toml it is
root = {root}                  # where the paths of understudy.toml start on this machine
state_dir = {state_dir}    # role and epoch, logs, staging, reports
run_dir = {run_dir}        # the socket that the command line talks to
#pki_dir = "/etc/understudy/pki"    # certificates and key; without it, pki beside this file

# /monitor/replication, health checks, metrics and the page.
[monitor]
listen = {monitor}

# Where the key-value store is reached, if understudy.toml has one.
[kv]
listen = {kv}

# Where the address of clients is taken, if not on the interface that understudy.toml names.
#[address]
#interface = "eth0"
"#,
        name = quoted(name.as_str()),
        root = quoted_path(root),
        state_dir = quoted_path(state_dir),
        run_dir = quoted_path(run_dir),
        monitor = quoted(&monitor.to_string()),
        kv = quoted(&kv.to_string()),
    )
}

fn postgres(answers: Option<&PostgresAnswers>) -> String {
    let example = PostgresAnswers::new("/var/lib/postgresql/15/main");
    let answer = answers.unwrap_or(&example);
    let path = |key: &str, path: &Option<PathBuf>, example: &str| match path {
        Some(path) => format!("{key} = {}", quoted_path(path)),
        None => format!("#{key} = {example}"),
    };
    let text = format!(
        r#"[postgres]
data_dir = {data_dir}
port = {port}
user = {user}           # the user of the operating system who owns data_dir
#bin_dir = "/usr/lib/postgresql/15/bin"    # where pg_ctl is, if it is not found
database = "postgres"       # what indexes read, unless they name another
durability = "async"        # "sync": a commit waits until a standby has made it durable
degrade_after = "10s"       # with "sync": so long for a standby that is away; "never": for ever
max_slot_wal_keep_size = "10GB"    # WAL kept for a standby that is away
bandwidth = "0"             # bytes per second of a base backup, such as "50MB"; 0 is no limit
#wal_dir = "/srv/wal/catalog"      # a standby's write-ahead log, on a disk of its own
{socket_dir}
{config_dir}    # where postgresql.conf is, if not in data_dir
# The server is started and stopped by understudy itself, or by all three of these:
#start = ["systemctl", "start", "postgresql@15-main"]
#stop = ["systemctl", "stop", "postgresql@15-main"]
#status = ["systemctl", "is-active", "postgresql@15-main"]
"#,
        data_dir = quoted_path(&answer.data_dir),
        port = answer.port,
        user = quoted(&answer.user),
        socket_dir = path("socket_dir", &answer.socket_dir, r#""/var/run/postgresql""#),
        config_dir = path(
            "config_dir",
            &answer.config_dir,
            r#""/etc/postgresql/15/main""#
        ),
    );
    section(answers.is_some(), &text)
}

fn files(is_set: bool, name: &str, path: &str) -> String {
    let text = format!(
        r#"[[files]]
name = {name}
path = {path}
exclude = []                # patterns such as ["*.tmp", "cache/**"]
delete_guard = "50%"        # if more would go within ten minutes, deleting stops and asks
trash = "1d"                # how long a standby keeps what was deleted
bandwidth = "0"             # bytes per second to each standby, such as "50MB"; 0 is no limit
scan = "0 */3 * * * *"      # when everything is looked at, whatever the kernel has told
scrub = "50MB"              # what `understudy scrub` reads in a second
"#
    );
    section(is_set, &text)
}

/// Returns a section as it is, or as an example in comments.
fn section(is_set: bool, text: &str) -> String {
    if is_set {
        return text.to_owned();
    }
    let comment = |line: &str| match line.starts_with('#') {
        true => format!("{line}\n"),
        false => format!("#{line}\n"),
    };
    text.lines().map(comment).collect()
}

fn quoted(text: &str) -> String {
    toml_edit::Value::from(text).to_string()
}

fn quoted_path(path: &Path) -> String {
    quoted(&path.to_string_lossy())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reference::CLUSTER_SECTIONS;
    use crate::{Config, parse_cluster};

    fn answers() -> Answers {
        Answers {
            cluster: "catalog".to_owned(),
            node: "a".parse().unwrap(),
            address: "10.0.0.1:7400".parse().unwrap(),
            postgres: None,
            files: Vec::new(),
            kv: false,
            settings: Vec::new(),
        }
    }

    fn parsed(text: &str) -> Config {
        parse_cluster("understudy.toml", text)
            .unwrap_or_else(|problems| panic!("{}", problems.render(false)))
    }

    #[test]
    fn a_template_says_what_was_answered() {
        let full = Answers {
            postgres: Some(PostgresAnswers {
                port: 5433,
                user: "pg".to_owned(),
                config_dir: Some("/etc/pg".into()),
                ..PostgresAnswers::new("/pg")
            }),
            files: vec![
                ("u".parse().unwrap(), "/a \"b\" 'c' \\".into()),
                ("v".parse().unwrap(), "/v".into()),
            ],
            kv: true,
            settings: vec!["/etc/x".into(), "/etc/y".into()],
            ..answers()
        };
        insta::assert_debug_snapshot!(parsed(&cluster(&full)), @r#"
        Config {
            cluster: Cluster {
                name: "catalog",
                rejoin: Manual,
            },
            nodes: [
                Node {
                    name: NodeName(
                        "a",
                    ),
                    address: 10.0.0.1:7400,
                    second_address: None,
                },
            ],
            postgres: Some(
                Postgres {
                    data_dir: "/pg",
                    port: 5433,
                    user: "pg",
                    bin_dir: None,
                    database: "postgres",
                    durability: Async,
                    max_slot_wal_keep_bytes: 10737418240,
                    bandwidth: None,
                    wal_dir: None,
                    socket_dir: None,
                    config_dir: Some(
                        "/etc/pg",
                    ),
                    commands: None,
                },
            ),
            files: [
                Files {
                    name: StoreName(
                        "u",
                    ),
                    path: "/a \"b\" 'c' \\",
                    exclude: Globs(
                        [],
                    ),
                    delete_guard: Share(
                        50,
                    ),
                    trash: 86400s,
                    bandwidth: None,
                    scan: Schedule(
                        "0 */3 * * * *",
                    ),
                    scrub_rate: 52428800,
                },
                Files {
                    name: StoreName(
                        "v",
                    ),
                    path: "/v",
                    exclude: Globs(
                        [],
                    ),
                    delete_guard: Share(
                        50,
                    ),
                    trash: 86400s,
                    bandwidth: None,
                    scan: Schedule(
                        "0 */3 * * * *",
                    ),
                    scrub_rate: 52428800,
                },
            ],
            kv: Some(
                Kv {
                    durability: StandbyFirst {
                        degrade_after: Some(
                            5s,
                        ),
                    },
                    write_timeout: 5s,
                    acknowledge: 1,
                    standby_reads: false,
                    allow_flush: false,
                    view: false,
                    memory_bytes: 1073741824,
                    log_bytes: 1073741824,
                    password_file: None,
                },
            ),
            settings: Some(
                Settings {
                    schedule: Schedule(
                        "0 * * * * *",
                    ),
                    paths: [
                        "/etc/x",
                        "/etc/y",
                    ],
                    exclude: Globs(
                        [],
                    ),
                    validate: None,
                    reload: None,
                },
            ),
            indexes: [],
            fence: None,
            services: [],
            jobs: [],
            hooks: None,
            address: None,
            checks: [],
            drill: Drill {
                schedule: None,
                max_age: 3024000s,
                timeout: 7200s,
                faults: false,
                bandwidth: None,
            },
        }
        "#);
    }

    #[test]
    fn a_node_can_be_added_to_a_template() {
        let address = "10.0.0.2:7400".parse().unwrap();
        let text = cluster(&answers());
        let added = crate::edit::add_node(&text, &"b".parse().unwrap(), address).unwrap();
        let section = "[[node]]\nname = \"b\"\naddress = \"10.0.0.2:7400\"\n";
        let expected = text.replacen(
            "\n\n# The Postgres",
            &format!("\n\n{section}\n# The Postgres"),
            1,
        );
        assert_eq!(added, expected);
    }

    #[test]
    fn a_template_without_answers_is_valid_and_so_are_its_examples() {
        let text = cluster(&answers());
        insta::assert_snapshot!(text, @r#"
        # The cluster: identical on every node. `understudy config check` says what is wrong with it.

        [cluster]
        name = "catalog"
        promotion = "manual"        # an operator promotes a standby
        rejoin = "manual"           # "automatic": a superseded primary becomes a standby by itself

        # One section for each machine; `understudy join` adds them.
        [[node]]
        name = "a"
        #second_address = "192.168.7.1:7400"    # another way to it
        address = "10.0.0.1:7400"    # where the other nodes reach it: IP and port

        # The Postgres cluster that is replicated.
        #[postgres]
        #data_dir = "/var/lib/postgresql/15/main"
        #port = 5432
        #user = "postgres"           # the user of the operating system who owns data_dir
        #bin_dir = "/usr/lib/postgresql/15/bin"    # where pg_ctl is, if it is not found
        #database = "postgres"       # what indexes read, unless they name another
        #durability = "async"        # "sync": a commit waits until a standby has made it durable
        #degrade_after = "10s"       # with "sync": so long for a standby that is away; "never": for ever
        #max_slot_wal_keep_size = "10GB"    # WAL kept for a standby that is away
        #bandwidth = "0"             # bytes per second of a base backup, such as "50MB"; 0 is no limit
        #wal_dir = "/srv/wal/catalog"      # a standby's write-ahead log, on a disk of its own
        #socket_dir = "/var/run/postgresql"
        #config_dir = "/etc/postgresql/15/main"    # where postgresql.conf is, if not in data_dir
        # The server is started and stopped by understudy itself, or by all three of these:
        #start = ["systemctl", "start", "postgresql@15-main"]
        #stop = ["systemctl", "stop", "postgresql@15-main"]
        #status = ["systemctl", "is-active", "postgresql@15-main"]

        # Trees of files that are replicated, one section for each.
        #[[files]]
        #name = "uploads"
        #path = "/srv/catalog/uploads"
        #exclude = []                # patterns such as ["*.tmp", "cache/**"]
        #delete_guard = "50%"        # if more would go within ten minutes, deleting stops and asks
        #trash = "1d"                # how long a standby keeps what was deleted
        #bandwidth = "0"             # bytes per second to each standby, such as "50MB"; 0 is no limit
        #scan = "0 */3 * * * *"      # when everything is looked at, whatever the kernel has told
        #scrub = "50MB"              # what `understudy scrub` reads in a second

        # The key-value store, which clients reach with Redis' protocol.
        #[kv]
        #durability = "standby-first"    # "async": a write does not wait for a standby
        #degrade_after = "5s"        # so long without a standby, then alone; "never": writes are refused
        #write_timeout = "5s"        # with "never": how long a write waits before it is refused
        #acknowledge = 1             # how many standbys it waits for
        #standby_reads = false       # whether a standby answers reads
        #allow_flush = false         # whether FLUSHDB may remove every key
        #view = false                # whether the monitor shows keys and values
        #memory = "1GB"              # what the table may use
        #log = "1GB"                 # kept for a standby that is away
        #password_file = "/etc/understudy/kv-password"    # what clients need, if not on loopback only

        # The configuration of the appliance, fetched on a schedule.
        #[settings]
        #schedule = "0 * * * * *"    # every minute, in UTC; Unix lines such as "*/5 * * * *" do as well
        #paths = ["/etc/catalog"]
        #exclude = []                # what is local to a node, such as ["local.conf"]
        #validate = ["catalogctl", "check-config"]      # must succeed before they are applied
        #reload = ["systemctl", "reload", "catalog"]    # runs after they were

        # What is rebuilt from the stores and never replicated.
        #[[index]]
        #name = "search"
        #engine = "tantivy"          # built in, from the rows of `source`; it needs [postgres]
        #source = "SELECT id, title, body, updated_at FROM article"
        #database = "catalog"
        #watermark = "updated_at"    # grows with every change: the index is kept warm on every node
        #deleted = "is_deleted"      # true in a row that counts as deleted
        #refresh = "5s"              # how often changes are read
        #overlap = "1m"              # the longest transaction that changes rows
        #sweep = "1h"                # how often deletions are looked for
        #timeout = "1h"
        #[[index]]
        #name = "articles"
        #engine = "elasticsearch"    # the same rows, in an Elasticsearch
        #source = "SELECT id, title, body, updated_at FROM article"
        #url = "https://search.example.com:9200"
        #alias = "articles"          # what clients search
        #user = "understudy"
        #password_file = "/etc/understudy/elastic-password"
        #ca_file = "/etc/understudy/elastic-ca.pem"
        #shared = true               # one for all nodes: only the primary writes to it
        #[[index]]
        #name = "other"
        #engine = "command"          # whatever the command builds
        #command = ["catalogctl", "reindex"]
        #timeout = "1h"

        # How an old primary that does not answer is switched off; without it an operator has to say that it is.
        #[fence]
        #command = ["/usr/local/sbin/power-off-peer"]    # must succeed only once it is off for certain
        #timeout = "1m"

        # What is started and stopped with the role of a node, in this order.
        #[[service]]
        #name = "web"
        #start = ["systemctl", "start", "catalog"]
        #stop = ["systemctl", "stop", "catalog"]
        #status = ["systemctl", "is-active", "catalog"]
        #user = "catalog"            # who runs the three commands; without it, the daemon's own user
        #on = "primary"              # where it runs: "primary", "standby" or "both"
        #after = []                  # services that are up before it; without it, the one before it here
        #critical = true             # whether a promotion stops when it does not come up
        #restarts = 3                # how often it is started again
        #restart_window = "1h"       # in so long
        #interval = "5s"             # how often it is asked how it is
        #timeout = "30s"             # how long it may take to start, and to stop
        #status_timeout = "10s"      # how long `status` may take
        #after_failover = "start"    # "hold": after a `promote`, not before an operator starts it
        #rehearse = false            # true: may be run in a rehearsal, on a copy and without a network

        # What runs on a schedule where the role of a node allows it.
        #[[job]]
        #name = "report"
        #schedule = "30 2 * * *"     # in UTC
        #command = ["catalogctl", "report"]
        #user = "catalog"
        #timeout = "1h"
        #on = "primary"
        #after_failover = "start"

        # What runs when the appliance goes online or offline on a node.
        #[hooks]
        #online = ["catalogctl", "announce", "online"]
        #offline = ["catalogctl", "announce", "offline"]
        #user = "catalog"
        #timeout = "30s"

        # The address that clients use: the primary has it.
        #[address]
        #ip = "10.0.0.100/24"
        #interface = "eth0"
        #also = ["fd00::100/64"]     # further addresses, which move with it
        #probe = "300ms"             # how long others have to answer that they have it
        #lease = "never"             # "2m": without a running daemon, the kernel keeps it so long

        # What is looked at besides: kinds disk, memory, load, link, gateway, process, tcp, http, command, mount and
        # postgres. The room on the disks of the stores is looked at in any case.
        #[[check]]
        #name = "gateway"
        #kind = "gateway"
        #address = "10.0.0.254"      # without it, the gateway of the default route
        #interval = "10s"
        #timeout = "5s"
        #fail_after = 3              # so many bad looks in a row, and it has failed
        #recover_after = 2           # so many good ones, and it is well again
        #severity = "warning"        # "info", or "error"
        #on = "any"                  # "primary", or "standby"
        #blocks_promotion = false    # true: a node where it fails is promoted only by force
        #[[check]]
        #name = "room"
        #kind = "disk"
        #path = "/srv"
        #min_free = "10%"            # or a size, such as "20GB"
        #recover = "15%"
        #min_inodes = "5%"
        #[[check]]
        #name = "load"
        #kind = "load"
        #max_load = "4"
        #[[check]]
        #name = "nginx"
        #kind = "process"
        #process = "nginx"
        #[[check]]
        #name = "worker"
        #kind = "process"
        #pidfile = "/run/worker.pid"
        #[[check]]
        #name = "page"
        #kind = "http"
        #url = "http://127.0.0.1:8080/health"
        #status = 200
        #contains = "ready"
        #on = "primary"
        #[[check]]
        #name = "srv"
        #kind = "mount"
        #path = "/srv"
        #fstype = "ext4"
        #write = true
        #[[check]]
        #name = "articles"
        #kind = "postgres"
        #query = "SELECT 1 FROM article LIMIT 1"

        # Rehearsals: a standby proves on a copy of itself that it could take over, and how long that takes.
        #[drill]
        #schedule = "0 3 * * 0"      # without it, only `understudy drill` rehearses
        #max_age = "35d"             # an older proof is told as a problem
        #timeout = "2h"
        #faults = false              # true: `understudy drill fault` may break things; never where people work
        #bandwidth = "0"             # bytes per second of the copy, such as "50MB"; 0 is no limit
        "#);
        let config = parsed(&text);
        assert_eq!(
            (config.postgres, config.settings, config.files),
            (None, None, Vec::new())
        );
        let is_example = |line: &&str| line.starts_with('#') && !line.starts_with("# ");
        let uncommented: String = text
            .lines()
            .map(|line| if is_example(&line) { &line[1..] } else { line })
            .map(|line| format!("{line}\n"))
            .collect();
        let config = parsed(&uncommented);
        assert_eq!(
            (
                config.indexes.len(),
                config.services.len(),
                config.files.len()
            ),
            (3, 1, 1)
        );
        for section in CLUSTER_SECTIONS {
            for key in section.keys {
                assert!(
                    uncommented.contains(&format!("\n{} = ", key.name)),
                    "no example of {}",
                    key.name
                );
            }
        }
    }
}
