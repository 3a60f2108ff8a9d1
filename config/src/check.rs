//! What is looked at on a machine besides its stores and services.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::{Share, StoreName};

/// Something that is looked at again and again.
#[derive(Clone, Debug, PartialEq)]
pub struct Check {
    /// The check's name, unique among the checks.
    pub name: StoreName,
    /// What is looked at.
    pub kind: CheckKind,
    /// How long between two looks. Never nothing.
    pub interval: Duration,
    /// How long a look may take. Never nothing.
    pub timeout: Duration,
    /// How many looks in a row have to be bad before it has failed. Never 0.
    pub fail_after: u16,
    /// How many looks in a row have to be good before it is well again. Never 0.
    pub recover_after: u16,
    /// What its failure asks of the people who run the cluster.
    pub severity: CheckSeverity,
    /// On which nodes it is looked at.
    pub on: CheckOn,
    /// A node where it fails is promoted only by force.
    pub blocks_promotion: bool,
}

/// What a failure asks of the people who run the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CheckSeverity {
    /// To be read the next day.
    Info,
    /// That somebody looks.
    Warning,
    /// That somebody comes.
    Error,
}

/// On which nodes a check is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CheckOn {
    /// On every node, whatever its role.
    Any,
    /// On the primary.
    Primary,
    /// On standbys.
    Standby,
}

/// What is looked at.
#[derive(Clone, Debug, PartialEq)]
pub enum CheckKind {
    /// The room on a file system.
    Disk {
        /// A path on it.
        path: PathBuf,
        /// How much has to be free.
        least: Amount,
        /// How much has to be free before a failure is over; `least` where it is `None`.
        recover: Option<Amount>,
        /// How much of the inodes has to be free; `None` asks for none.
        inodes: Option<Share>,
    },
    /// The memory that programs can still have.
    Memory {
        /// How much has to be available.
        least: Amount,
        /// How much has to be available before a failure is over.
        recover: Option<Amount>,
    },
    /// How many threads want to run, for each processor, as the average of a minute.
    Load {
        /// How many may.
        most: f64,
        /// How many may before a failure is over.
        recover: Option<f64>,
    },
    /// A network interface: it is up, and something is at the other end of its cable.
    Link {
        /// Its name.
        interface: String,
    },
    /// A machine that answers an ICMP echo.
    Gateway {
        /// Its address; `None` for the gateway of the default route.
        address: Option<IpAddr>,
    },
    /// A process that runs.
    Process {
        /// How it is found.
        process: ProcessName,
    },
    /// A port that takes connections.
    Tcp {
        /// The host.
        host: String,
        /// The port.
        port: u16,
    },
    /// A page that is served.
    Http {
        /// Where, `http` only.
        url: String,
        /// The status that is expected; `None` for any that is no error.
        status: Option<u16>,
        /// What the page contains; empty for anything.
        contains: String,
    },
    /// A command that succeeds.
    Command {
        /// The program and its arguments. Never empty.
        command: Vec<String>,
        /// The user of the operating system who runs it; `None` for the daemon's.
        user: Option<String>,
    },
    /// A mounted file system that can be written to.
    Mount {
        /// Where it is mounted.
        path: PathBuf,
        /// What kind of file system it is; `None` for any.
        fstype: Option<String>,
        /// A file is written and removed again; otherwise it is only asked whether it could be.
        write: bool,
    },
    /// A query that Postgres answers.
    Postgres {
        /// The query.
        query: String,
        /// The database; `None` for the one of `[postgres]`.
        database: Option<String>,
    },
}

impl CheckKind {
    /// Returns the word of the configuration for it.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Disk { .. } => "disk",
            Self::Memory { .. } => "memory",
            Self::Load { .. } => "load",
            Self::Link { .. } => "link",
            Self::Gateway { .. } => "gateway",
            Self::Process { .. } => "process",
            Self::Tcp { .. } => "tcp",
            Self::Http { .. } => "http",
            Self::Command { .. } => "command",
            Self::Mount { .. } => "mount",
            Self::Postgres { .. } => "postgres",
        }
    }
}

/// How a process is found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProcessName {
    /// By the name of its program.
    Program(String),
    /// By the number in a file that it has written.
    PidFile(PathBuf),
}

/// A part of something that can be counted in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Amount {
    /// A share of the whole.
    Share(Share),
    /// So many bytes.
    Bytes(u64),
}

impl Amount {
    /// Returns whether `part` of `whole` is at least this much.
    pub fn is_reached_by(self, part: u64, whole: u64) -> bool {
        match self {
            Self::Share(share) => {
                u128::from(part) * 100 >= u128::from(whole) * u128::from(share.percent())
            }
            Self::Bytes(bytes) => part >= bytes,
        }
    }
}
