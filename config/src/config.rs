//! The cluster, as `understudy.toml` describes it.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{Check, Globs, IpPrefix, NodeName, Schedule, Share, StoreName};

/// A valid `understudy.toml`: the same on every node.
///
/// Its paths are those of the file; [`Local::resolve`](crate::Local::resolve) tells where they are
/// on this machine.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// What is true of the cluster as a whole.
    pub cluster: Cluster,
    /// The machines, in the order of the file. Never empty; names and addresses are unique.
    pub nodes: Vec<Node>,
    /// The Postgres cluster, if one is replicated.
    pub postgres: Option<Postgres>,
    /// The replicated trees of files.
    pub files: Vec<Files>,
    /// The key-value store, if there is one.
    pub kv: Option<Kv>,
    /// The replicated configuration of the appliance, if there is one.
    pub settings: Option<Settings>,
    /// The indexes that are rebuilt from the stores.
    pub indexes: Vec<Index>,
    /// How an old primary that does not answer is switched off, if it can be.
    pub fence: Option<Fence>,
    /// What is started and stopped with the role of a node, in the order in which it is started.
    pub services: Vec<Service>,
    /// What runs on a schedule where the role of a node allows it.
    pub jobs: Vec<Job>,
    /// What runs when the appliance goes online or offline on a node, if anything does.
    pub hooks: Option<Hooks>,
    /// The address that clients use, if understudy moves one.
    pub address: Option<Address>,
    /// What is looked at on every machine.
    pub checks: Vec<Check>,
    /// How it is proved that a standby could take over.
    pub drill: Drill,
}

impl Config {
    /// Returns the node of that name.
    pub fn node(&self, name: &NodeName) -> Option<&Node> {
        self.nodes.iter().find(|node| node.name == *name)
    }

    /// Returns every node but `me`, in the order of the file.
    pub fn peers(&self, me: &NodeName) -> impl Iterator<Item = &Node> {
        self.nodes.iter().filter(move |node| node.name != *me)
    }
}

/// What is true of the cluster as a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cluster {
    /// The cluster's name: it appears in certificates, reports and on the page.
    pub name: String,
    /// Who makes a standby of a primary that has been superseded.
    pub rejoin: Rejoin,
}

/// Who makes a standby of a primary that has been superseded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Rejoin {
    /// An operator.
    #[default]
    Manual,
    /// The node itself, as soon as the new primary serves.
    Automatic,
}

/// One machine of the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// The name that the machine's `node.toml` gives, too.
    pub name: NodeName,
    /// Where its peers reach it.
    pub address: SocketAddr,
    /// Another way to it.
    pub second_address: Option<SocketAddr>,
}

impl Node {
    /// Returns every way to it.
    pub fn addresses(&self) -> impl Iterator<Item = SocketAddr> {
        std::iter::once(self.address).chain(self.second_address)
    }
}

/// How an old primary is switched off.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fence {
    /// The program and its arguments. Never empty.
    pub command: Vec<String>,
    /// How long it may take.
    pub timeout: Duration,
}

/// The Postgres cluster that is replicated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Postgres {
    /// Postgres' data directory.
    pub data_dir: PathBuf,
    /// The port that Postgres listens on.
    pub port: u16,
    /// The user of the operating system who owns the data directory.
    pub user: String,
    /// Where `pg_ctl` and its siblings are; `None` means that they are looked for.
    pub bin_dir: Option<PathBuf>,
    /// The database that indexes read, unless they name one.
    pub database: String,
    /// Whether a commit waits for a standby.
    pub durability: PostgresDurability,
    /// How much WAL is kept for a standby that is away: a whole number of megabytes.
    pub max_slot_wal_keep_bytes: u64,
    /// How many bytes per second a base backup takes at most.
    pub bandwidth: Option<u64>,
    /// Where a standby that is seeded puts its write-ahead log; `None` for the data directory.
    pub wal_dir: Option<PathBuf>,
    /// Where Postgres puts its Unix socket; `None` leaves it to Postgres.
    pub socket_dir: Option<PathBuf>,
    /// Where its configuration is; `None` means that it is in the data directory, or looked for.
    pub config_dir: Option<PathBuf>,
    /// The operator's own commands for the server; `None` leaves it to Understudy.
    pub commands: Option<ServerCommands>,
}

/// The commands with which an operator starts, stops and asks for the server. None of them is empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerCommands {
    /// The command that starts it.
    pub start: Vec<String>,
    /// The command that stops it.
    pub stop: Vec<String>,
    /// The command that succeeds while it runs.
    pub status: Vec<String>,
}

/// Whether a commit of Postgres waits for a standby.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PostgresDurability {
    /// It does not.
    Async,
    /// It waits until a standby has made it durable.
    Sync {
        /// How long commits wait for a standby that is away before the primary goes on alone; `None` for
        /// ever.
        degrade_after: Option<Duration>,
    },
}

/// A tree of files that is replicated.
#[derive(Clone, Debug, PartialEq)]
pub struct Files {
    /// The store's name, unique among all stores.
    pub name: StoreName,
    /// The top of the tree.
    pub path: PathBuf,
    /// What is left out of it, relative to `path`.
    pub exclude: Globs,
    /// How much of the store may go at once before the deleting stops and asks.
    pub delete_guard: Share,
    /// How long a standby keeps what was deleted; nothing for not at all.
    pub trash: Duration,
    /// How many bytes per second are sent to each standby at most.
    pub bandwidth: Option<u64>,
    /// When everything is looked at, whatever the events say.
    pub scan: Schedule,
    /// How many bytes per second a scrub reads, unless it is told. Never 0.
    pub scrub_rate: u64,
}

impl Files {
    /// Returns a store of which nothing is said but its name and its path.
    pub fn new(name: StoreName, path: impl Into<PathBuf>) -> Self {
        Self {
            name,
            path: path.into(),
            exclude: Globs::default(),
            delete_guard: Share::HALF,
            trash: Duration::from_secs(24 * 60 * 60),
            bandwidth: None,
            scan: "0 */3 * * * *".parse().expect("it is a schedule"),
            scrub_rate: 50 << 20,
        }
    }
}

/// The key-value store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kv {
    /// Whether a write waits for standbys.
    pub durability: KvDurability,
    /// How long a write waits before its client is told that too few standbys have it, where the primary
    /// never goes on alone. Never nothing.
    pub write_timeout: Duration,
    /// How many standbys have a write durable before it is visible. Never 0, and never more than there
    /// are other nodes, if there are any.
    pub acknowledge: usize,
    /// Whether a standby answers reads, of what is committed there.
    pub standby_reads: bool,
    /// Whether clients may remove every key with one command.
    pub allow_flush: bool,
    /// Whether the monitor shows keys and values to whoever reaches it.
    pub view: bool,
    /// How many bytes of memory the table may use.
    pub memory_bytes: u64,
    /// How many bytes of the log are kept for a standby that is away.
    pub log_bytes: u64,
    /// The file with the password that clients need, as `understudy.toml` has it; `None` asks for none.
    pub password_file: Option<PathBuf>,
}

/// Whether a write to the key-value store waits for standbys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KvDurability {
    /// It is durable on [`Kv::acknowledge`] standbys before it is visible or acknowledged.
    StandbyFirst {
        /// How long a write waits, without progress of the standbys, before the primary goes on alone; `None`
        /// for ever.
        degrade_after: Option<Duration>,
    },
    /// It is durable on the primary only.
    Async,
}

/// The configuration of the appliance: few files, replicated on a schedule.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// When the standby fetches them.
    pub schedule: Schedule,
    /// Files and directories. Never empty.
    pub paths: Vec<PathBuf>,
    /// What is local to a node and stays so.
    pub exclude: Globs,
    /// The command that must succeed before new settings are applied.
    pub validate: Option<Vec<String>>,
    /// The command that runs after they were.
    pub reload: Option<Vec<String>>,
}

/// Derived data, rebuilt from the stores and never replicated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Index {
    /// The index's name, unique among the indexes.
    pub name: StoreName,
    /// What builds it.
    pub engine: Engine,
    /// How long a rebuild may take.
    pub timeout: Duration,
}

/// What builds an index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Engine {
    /// Understudy itself.
    Tantivy {
        /// The rows that it is made of.
        rows: Rows,
    },
    /// Understudy, in an Elasticsearch.
    Elasticsearch {
        /// The rows that it is made of.
        rows: Rows,
        /// Where it is kept.
        place: Elasticsearch,
    },
    /// A command of the operator's.
    Command {
        /// The program and its arguments. Never empty.
        command: Vec<String>,
    },
}

impl Engine {
    /// Returns the word that the configuration uses.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Tantivy { .. } => "tantivy",
            Self::Elasticsearch { .. } => "elasticsearch",
            Self::Command { .. } => "command",
        }
    }

    /// Returns the rows that it reads, if it reads any.
    pub fn rows(&self) -> Option<&Rows> {
        match self {
            Self::Tantivy { rows } | Self::Elasticsearch { rows, .. } => Some(rows),
            Self::Command { .. } => None,
        }
    }
}

/// On which nodes something runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum On {
    /// On the primary only.
    #[default]
    Primary,
    /// On standbys only.
    Standby,
    /// On the primary and on standbys.
    Both,
}

impl On {
    /// Returns the word that the configuration uses.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Primary => "primary",
            Self::Standby => "standby",
            Self::Both => "both",
        }
    }
}

/// The rows that an index is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rows {
    /// The query that yields them; the first column is the key.
    pub query: String,
    /// The database to ask, where it is not the one of [`Postgres::database`].
    pub database: Option<String>,
    /// How the index is kept warm; `None` if it is not.
    pub warm: Option<Warm>,
}

/// How an index follows the changes of its rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warm {
    /// The column that grows with every change.
    pub watermark: String,
    /// The column that is true in a row that counts as deleted.
    pub deleted: Option<String>,
    /// How often changes are read.
    pub refresh: Duration,
    /// How long a transaction takes at most that changes rows.
    pub overlap: Duration,
    /// How often keys and watermarks are compared; `None` for never.
    pub sweep: Option<Duration>,
}

/// Where an Elasticsearch is, and who may write to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Elasticsearch {
    /// It is reached over TLS.
    pub is_tls: bool,
    /// Its host: a name or an address.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// The alias that clients search.
    pub alias: String,
    /// The user, and the file of the password.
    pub login: Option<(String, PathBuf)>,
    /// The file of the authorities to trust; `None` for the system's.
    pub ca_file: Option<PathBuf>,
    /// All nodes use this one, and only the primary writes.
    pub is_shared: bool,
}

/// What becomes of something on a node that is promoted, unless that is for a switchover.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AfterFailover {
    /// It is started.
    #[default]
    Start,
    /// It is held back until an operator starts it.
    Hold,
}

/// Something that is started and stopped with the role of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// The service's name, unique among the services and jobs.
    pub name: StoreName,
    /// The command that starts it. None of the three is empty.
    pub start: Vec<String>,
    /// The command that stops it.
    pub stop: Vec<String>,
    /// The command that succeeds while it runs.
    pub status: Vec<String>,
    /// The user of the operating system that the commands run as; `None` for the daemon's own.
    pub user: Option<String>,
    /// Where it runs.
    pub on: On,
    /// The services that are up before it is started; each is one of [`Config::services`], before it.
    pub after: Vec<StoreName>,
    /// Whether a promotion fails when it does not come up.
    pub is_critical: bool,
    /// How often it is started again within `restart_window`.
    pub restarts: u16,
    /// The time in which `restarts` are counted.
    pub restart_window: Duration,
    /// How often it is asked how it is.
    pub interval: Duration,
    /// How long it may take to start, and to stop.
    pub timeout: Duration,
    /// How long its status command may take.
    pub status_timeout: Duration,
    /// What becomes of it when this node is promoted, unless that is for a switchover.
    pub after_failover: AfterFailover,
    /// Its commands may be run in a rehearsal.
    pub rehearse: bool,
}

impl Service {
    /// Returns a service of which nothing is said but its name and its commands.
    pub fn new(
        name: StoreName,
        start: Vec<String>,
        stop: Vec<String>,
        status: Vec<String>,
    ) -> Self {
        Self {
            name,
            start,
            stop,
            status,
            user: None,
            on: On::Primary,
            after: Vec::new(),
            is_critical: true,
            restarts: 3,
            restart_window: Duration::from_secs(60 * 60),
            interval: Duration::from_secs(5),
            timeout: Duration::from_secs(30),
            status_timeout: Duration::from_secs(10),
            after_failover: AfterFailover::Start,
            rehearse: false,
        }
    }
}

/// A command that runs on a schedule where the role of a node allows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Job {
    /// The job's name, unique among the services and jobs.
    pub name: StoreName,
    /// When it runs.
    pub schedule: Schedule,
    /// The program and its arguments. Never empty.
    pub command: Vec<String>,
    /// The user of the operating system that it runs as; `None` for the daemon's own.
    pub user: Option<String>,
    /// How long it may take.
    pub timeout: Duration,
    /// Where it runs.
    pub on: On,
    /// What becomes of it when this node is promoted, unless that is for a switchover.
    pub after_failover: AfterFailover,
}

/// The commands that run when the appliance goes online or offline on a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hooks {
    /// The command that runs after it is online here.
    pub online: Option<Vec<String>>,
    /// The command that runs before it goes offline here.
    pub offline: Option<Vec<String>>,
    /// The user of the operating system that they run as; `None` for the daemon's own.
    pub user: Option<String>,
    /// How long each may take.
    pub timeout: Duration,
}

/// How it is proved that a standby could take over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Drill {
    /// When a standby rehearses by itself; `None` for never.
    pub schedule: Option<Schedule>,
    /// How old a proof may be.
    pub max_age: Duration,
    /// How long a rehearsal may take.
    pub timeout: Duration,
    /// Whether things may be broken on purpose.
    pub faults: bool,
    /// How many bytes per second it copies at most.
    pub bandwidth: Option<u64>,
}

/// The address that clients use, which the primary has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// The addresses, which are taken and given up together. Never empty, and each one once.
    pub ips: Vec<IpPrefix>,
    /// The network interface that they are taken on, where `node.toml` does not name another.
    pub interface: String,
    /// How long others have to answer that they have an address. Never nothing.
    pub probe: Duration,
    /// How long the kernel keeps the addresses unless they are renewed; `None` for ever.
    pub lease: Option<Duration>,
}
