//! What a node tells of itself: the one source of `/monitor/status`, `/monitor/replication`,
//! `/metrics`, the health checks and `understudy status`.
//!
//! The types are a contract (version 1): fields are added, never renamed or given another meaning.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use understudy_config::{NodeName, On, StoreName};

use crate::check::Trouble;
use crate::epoch::Epoch;
use crate::event::{Event, Severity};
use crate::position::Position;
use crate::preflight::Preflight;
use crate::stall::StallReason;
use crate::store::{Durability, StoreId};
use crate::wall_time::WallTime;

/// The version of these types on the wire.
pub const STATUS_VERSION: u32 = 1;

/// What a node is in its cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RoleName {
    /// Takes all traffic.
    Primary,
    /// Was primary before it was restarted; serves nothing until it has heard a peer.
    Returning,
    /// Keeps a copy current.
    Standby,
    /// Has opened an epoch, and is on its way to primary.
    Promoting,
    /// Was primary, has been superseded, serves nothing.
    Fenced,
}

impl RoleName {
    /// Returns the word that messages and metrics use.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Primary => "primary",
            Self::Returning => "returning",
            Self::Standby => "standby",
            Self::Promoting => "promoting",
            Self::Fenced => "fenced",
        }
    }
}

/// The word of `/monitor/replication` for a node's role.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReplicationMode {
    /// A primary with at least one standby that has joined in its epoch.
    Master,
    /// A standby, or a node on its way from or to that role.
    Slave,
    /// A primary that nobody follows.
    Standalone,
}

/// Everything that a node tells.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// [`STATUS_VERSION`].
    pub version: u32,
    /// The version of the program.
    pub software: String,
    /// The cluster's name.
    pub cluster: String,
    /// This node.
    pub node: NodeName,
    /// What it is.
    pub role: RoleName,
    /// Since when it is that.
    pub role_since: WallTime,
    /// The word for `/monitor/replication`.
    pub replication_mode: ReplicationMode,
    /// The highest epoch this node has seen.
    pub epoch: Epoch,
    /// When this was told, by this node's clock.
    pub time: WallTime,
    /// When the daemon started.
    pub started: WallTime,
    /// The node that is primary as far as this one knows.
    pub primary: Option<NodeName>,
    /// On a primary: each standby that has joined in this epoch.
    pub standbys: Vec<StandbyStatus>,
    /// On a standby: how its own copy is.
    pub upstream: Option<UpstreamStatus>,
    /// This node's stores: what they tell beside their positions.
    pub stores: Vec<StoreStatus>,
    /// Services in start order.
    pub services: Vec<ServiceStatus>,
    /// What runs on a schedule.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub jobs: Vec<JobStatus>,
    /// Search indexes.
    pub indexes: Vec<IndexStatus>,
    /// A promotion that runs or was cut short here; `None` otherwise.
    pub promotion: Option<PromotionStatus>,
    /// The address that clients use, as this node holds it; `None` where none is configured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<AddressStatus>,
    /// What is looked at on this node besides its stores and services.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub checks: Vec<CheckStatus>,
    /// Every way to every peer.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub links: Vec<LinkStatus>,
    /// That somebody has asked the cluster to do nothing by itself; `None` otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pause: Option<PauseStatus>,
    /// Of what this is a clone; `None` where it is a node that somebody relies on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clone_of: Option<CloneStatus>,
    /// On a standby: whether it could be promoted now, and why not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preflight: Option<Preflight>,
    /// When it was last shown that a promotion of this node would work, and how long it would take.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proof: Option<ProofStatus>,
    /// What needs an operator now, each a sentence that ends with what to do.
    pub problems: Vec<String>,
    /// The newest events, oldest first.
    pub events: Vec<Event>,
}

/// What a primary knows of one standby.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StandbyStatus {
    /// Its name.
    pub node: NodeName,
    /// Its address without the port: the key in `/monitor/replication`.
    pub ip: String,
    /// When it last reported, by this node's clock.
    pub seen: Option<WallTime>,
    /// Reports arrive.
    pub is_connected: bool,
    /// Each store's lag.
    pub stores: Vec<StoreLag>,
    /// The time of the newest mark that every store has applied, by the primary's clock.
    pub cut: Option<WallTime>,
    /// Whether it could be promoted, as it last told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preflight: Option<Preflight>,
    /// When it last showed that a promotion of it would work, as it last told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proof: Option<ProofStatus>,
}

/// What a standby knows of its own copy.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct UpstreamStatus {
    /// The node it follows.
    pub primary: NodeName,
    /// When it last had a mark from it, by this node's clock.
    pub seen: Option<WallTime>,
    /// Marks arrive.
    pub is_connected: bool,
    /// Each store's lag.
    pub stores: Vec<StoreLag>,
    /// The time of the newest mark that every store has applied, by the primary's clock.
    pub cut: Option<WallTime>,
    /// How far the primary's clock is ahead of this node's, in milliseconds, as its marks tell.
    pub clock_ahead_ms: Option<i64>,
}

/// How far a standby's copy of a store is behind.
///
/// Lag cannot lie: either both figures are there, or `unknown` says why not and since when.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StoreLag {
    /// Which store.
    #[serde(flatten)]
    pub id: StoreId,
    /// The unit of the positions and of `lag`: `bytes`, `operations` or `revisions`.
    pub unit: String,
    /// Where the primary is, by the newest mark.
    pub current: Option<Position>,
    /// What has been sent.
    pub sent: Option<Position>,
    /// What is durable on the standby.
    pub flushed: Option<Position>,
    /// What is visible on the standby.
    pub applied: Option<Position>,
    /// `current` less `applied`, in `unit`.
    pub lag: Option<u64>,
    /// `current` less `flushed`, in `unit`: what the loss of the primary would take.
    pub lag_flushed: Option<u64>,
    /// `lag` in bytes of the store's log, where `unit` is not bytes and the store counts them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lag_bytes: Option<u64>,
    /// Seconds since the newest mark that it has applied.
    pub lag_seconds: Option<f64>,
    /// Why the lag cannot be told.
    pub unknown: Option<Unknown>,
    /// The copy has to be compared whole before it can follow again.
    pub must_reseed: bool,
    /// Why the copy does not advance, although the lag can be told.
    pub stalled: Option<String>,
    /// The same in a word, where it has one.
    #[serde(default)]
    pub stall_reason: Option<StallReason>,
}

/// Why a figure cannot be told, and since when.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unknown {
    /// A sentence.
    pub reason: String,
    /// Since when, by this node's clock.
    pub since: WallTime,
}

/// What a store tells beside its positions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreStatus {
    /// Which store.
    #[serde(flatten)]
    pub id: StoreId,
    /// Where it is on this node: shipped on a primary, applied on a standby.
    pub position: Option<Position>,
    /// The position as people write it (an LSN for Postgres).
    pub position_text: Option<String>,
    /// What needs an operator.
    pub problems: Vec<String>,
    /// Further figures, in base units.
    pub gauges: BTreeMap<String, u64>,
    /// How many entries could not be brought up to date here.
    #[serde(default)]
    pub troubles: u64,
    /// Whether what is acknowledged is on a standby, too; absent where that is not asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub durability: Option<Durability>,
    /// What holds the data has not answered for some seconds: nobody can write to it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_silent: bool,
}

/// The version of [`StoreDetail`] on the wire.
pub const STORE_DETAIL_VERSION: u32 = 1;

/// Everything that a node tells of one of its stores.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StoreDetail {
    /// [`STORE_DETAIL_VERSION`].
    pub version: u32,
    /// This node.
    pub node: NodeName,
    /// What it is.
    pub role: RoleName,
    /// When this was told, by this node's clock.
    pub time: WallTime,
    /// What the store tells beside its positions.
    pub store: StoreStatus,
    /// How far the copies are behind: on a primary each standby's, on a standby its own.
    pub copies: Vec<CopyStatus>,
    /// The entries that could not be brought up to date on this node, oldest first.
    pub troubles: Vec<Trouble>,
}

/// How far one node's copy of a store is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CopyStatus {
    /// The node that has the copy.
    pub node: NodeName,
    /// How far it is.
    pub lag: StoreLag,
}

/// How a service is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ServiceState {
    /// Its status command says that it is up.
    Online,
    /// Its status command says that it is not up.
    Offline,
    /// It is being started.
    GoingOnline,
    /// It is being stopped.
    GoingOffline,
    /// It should be up and is not, or a command of it failed.
    Fault,
    /// It has not been asked yet.
    Unknown,
}

impl ServiceState {
    /// Returns the word that messages and metrics use.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Online => "online",
            Self::Offline => "offline",
            Self::GoingOnline => "going_online",
            Self::GoingOffline => "going_offline",
            Self::Fault => "fault",
            Self::Unknown => "unknown",
        }
    }
}

/// A service on this node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceStatus {
    /// Its name.
    pub name: StoreName,
    /// How it is.
    pub state: ServiceState,
    /// Since when.
    pub since: WallTime,
    /// The last line that one of its commands printed, or why it does not run.
    pub message: String,
    /// Where it runs.
    #[serde(default)]
    pub on: On,
    /// A promotion fails when it does not come up.
    #[serde(default = "yes")]
    pub is_critical: bool,
    /// It should run on this node now.
    #[serde(default)]
    pub is_wanted: bool,
    /// Why it does not run although the role of this node asks for it; `None` otherwise.
    #[serde(default)]
    pub hold: Option<Hold>,
    /// Who has stopped it, where an operator has and that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stopped: Option<StoppedBy>,
    /// The services that are up before it is started.
    #[serde(default)]
    pub after: Vec<StoreName>,
    /// The user of the operating system that its commands run as; `None` for the daemon's own.
    #[serde(default)]
    pub user: Option<String>,
    /// When its status command last ended; `None` if it has not yet.
    #[serde(default)]
    pub probed: Option<WallTime>,
    /// How often it was started again within the time in which that is counted.
    #[serde(default)]
    pub restarts: u64,
    /// How often it is started again in that time, before it stays a fault.
    #[serde(default)]
    pub restarts_max: u64,
    /// How often it was started again since the daemon started.
    #[serde(default)]
    pub restarts_total: u64,
}

/// What keeps something from running that the role of the node asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Hold {
    /// The node was promoted, not in a switchover, and an operator has not started it since.
    Failover,
    /// An operator has stopped it.
    Operator,
}

/// Who has stopped something by hand, and when.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoppedBy {
    /// The name of who ran the command; `None` where it did not tell.
    pub who: Option<String>,
    /// When, by this node's clock.
    pub at: WallTime,
}

/// What an older node does not tell is so there.
fn yes() -> bool {
    true
}

/// How a job is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobState {
    /// It waits for the next time in its schedule.
    Waiting,
    /// It runs.
    Running,
    /// It is held back after a failover, or an operator has stopped it.
    Held,
    /// The role of this node does not allow it.
    Elsewhere,
}

impl JobState {
    /// Returns the word that messages and metrics use.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Running => "running",
            Self::Held => "held",
            Self::Elsewhere => "elsewhere",
        }
    }
}

/// A job on this node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobStatus {
    /// Its name.
    pub name: StoreName,
    /// Where it runs.
    pub on: On,
    /// When it runs: a cron line, in UTC.
    pub schedule: String,
    /// How it is.
    pub state: JobState,
    /// Since when.
    pub since: WallTime,
    /// What holds it back; `None` where nothing does.
    pub hold: Option<Hold>,
    /// Its newest run on this node that has ended.
    pub last: Option<JobRun>,
    /// When it runs next on this node; `None` while it does not.
    pub next: Option<WallTime>,
}

/// A run of a job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobRun {
    /// When it began.
    pub started: WallTime,
    /// When it ended.
    pub ended: WallTime,
    /// How.
    pub outcome: JobOutcome,
    /// The last line that it printed, or why it ended.
    pub message: String,
}

/// How a run of a job ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobOutcome {
    /// Its command succeeded.
    Succeeded,
    /// Its command failed, or took too long.
    Failed,
    /// It was ended: the role of the node changed, the daemon stopped, or an operator asked for it.
    Ended,
}

impl JobOutcome {
    /// Returns the word that messages and metrics use.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Ended => "ended",
        }
    }
}

/// The address that clients use, on this node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddressStatus {
    /// Each address with the length of its prefix, such as `10.0.0.100/24`.
    pub ips: Vec<String>,
    /// The network interface that it is taken on.
    pub interface: String,
    /// How it is here.
    pub state: AddressState,
    /// Since when.
    pub since: WallTime,
    /// Why it is not as it should be, or what happened last.
    pub message: String,
    /// Who else answers for it, while this node holds it; `None` as long as nobody is known to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub conflict: Option<String>,
}

/// How the address that clients use is on a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AddressState {
    /// This node answers for it.
    Held,
    /// It is being taken: a probe asks whether somebody else answers for it.
    Taking,
    /// This node does not have it, and should not.
    Absent,
    /// This node should have it and has not, or has it and could not give it up.
    Fault,
    /// It has not been looked at yet.
    Unknown,
}

impl AddressState {
    /// Returns the word that messages and metrics use.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Held => "held",
            Self::Taking => "taking",
            Self::Absent => "absent",
            Self::Fault => "fault",
            Self::Unknown => "unknown",
        }
    }
}

/// One thing that is looked at on a node, besides its stores and services.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckStatus {
    /// Its name.
    pub name: StoreName,
    /// What kind of check it is, such as `disk`.
    pub kind: String,
    /// How it is.
    pub state: CheckState,
    /// What its failure asks of the people who run the cluster.
    pub severity: Severity,
    /// Since when it is so.
    pub since: WallTime,
    /// When it was last looked at; `None` if it was not yet.
    pub checked: Option<WallTime>,
    /// What was found last, in a sentence.
    pub message: String,
    /// While it fails, this node is promoted only by force.
    #[serde(default)]
    pub blocks_promotion: bool,
}

/// How a check is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CheckState {
    /// What is looked at is well.
    Ok,
    /// It is not, for as long as the check asks for before it says so.
    Failed,
    /// It has not been looked at yet, or cannot be.
    Unknown,
}

impl CheckState {
    /// Returns the word that messages and metrics use.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Failed => "failed",
            Self::Unknown => "unknown",
        }
    }
}

/// One way to a peer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LinkStatus {
    /// The peer.
    pub node: NodeName,
    /// Where it is reached: an address and a port.
    pub address: String,
    /// It answers there.
    pub is_up: bool,
    /// Since when it does, or does not.
    pub since: WallTime,
    /// How long the newest answer took.
    pub round_trip_ms: Option<f64>,
    /// Why it does not answer; empty while it does.
    pub message: String,
}

/// That the cluster is to do nothing by itself: no restart of a service, no rejoin, no drill.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PauseStatus {
    /// Since when.
    pub since: WallTime,
    /// When it ends by itself.
    pub until: WallTime,
    /// Why.
    pub reason: String,
    /// Who asked for it.
    pub owner: String,
    /// On which node.
    pub node: NodeName,
}

/// That a node is no node of a cluster that anybody uses: a copy, made to try things on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CloneStatus {
    /// Its name.
    pub name: StoreName,
    /// The cluster that it is a copy of, where that is known.
    pub of: Option<String>,
    /// The node that made it, where that is known.
    pub node: Option<NodeName>,
    /// When it was made.
    pub made: WallTime,
}

/// When it was last shown that a promotion of a node would work.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ProofStatus {
    /// When the newest rehearsal that succeeded ended; `None` if none has.
    pub proven: Option<WallTime>,
    /// How long the promotion took in it, in seconds.
    pub seconds: Option<f64>,
    /// It is older than the configuration allows, or there is none.
    pub is_old: bool,
    /// When the newest rehearsal ended, whether it succeeded or not.
    pub tried: Option<WallTime>,
    /// Why the newest rehearsal failed; `None` if it succeeded.
    pub failure: Option<String>,
    /// The file of the newest report, within the state directory.
    pub report: Option<String>,
}

/// How an index is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum IndexState {
    /// It has not been built on this node.
    Absent,
    /// It is being built; searches are answered from the index before, if there is one.
    Rebuilding,
    /// It can be searched.
    Ready,
    /// The last build failed.
    Failed,
}

impl IndexState {
    /// Returns the word that messages and metrics use.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Absent => "absent",
            Self::Rebuilding => "rebuilding",
            Self::Ready => "ready",
            Self::Failed => "failed",
        }
    }
}

/// A search index on this node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct IndexStatus {
    /// Its name.
    pub name: StoreName,
    /// How it is.
    pub state: IndexState,
    /// How many documents the searchable index holds, or have been read while it is rebuilt.
    pub documents: u64,
    /// How many documents the rebuild will read, where that is known.
    pub documents_total: Option<u64>,
    /// How far the rebuild is, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub percent: Option<u8>,
    /// When the searchable index was built.
    pub built: Option<WallTime>,
    /// Why the last build failed, or what keeps it from being kept warm.
    pub message: Option<String>,
    /// What builds it, as the configuration names it.
    #[serde(default)]
    pub engine: String,
    /// It follows the changes of its rows, so that a promotion only catches up.
    #[serde(default)]
    pub is_warm: bool,
    /// How many seconds ago it was equal to the rows of this node's Postgres; `None` if it is not kept warm.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub behind_seconds: Option<u64>,
}

/// A promotion that is not finished.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PromotionStatus {
    /// The epoch that it opens.
    pub epoch: Epoch,
    /// Steps that are done.
    pub done: Vec<String>,
    /// The step that runs, or at which it stopped.
    pub step: Option<String>,
    /// It runs now; otherwise it was cut short and waits for `understudy promote`.
    pub is_running: bool,
    /// Why it stopped.
    pub error: Option<String>,
}

/// What can tell a node's status at any moment; cheap, and never blocks.
pub trait StatusSource: Send + Sync {
    /// Returns the status as of now.
    fn status(&self) -> Status;
}
