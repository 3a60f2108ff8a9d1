//! Why Elasticsearch did not do what it was asked to.

use std::path::PathBuf;
use std::time::Duration;

use understudy_replication::epoch::Epoch;

/// Why Elasticsearch did not do what it was asked to.
#[derive(Debug, thiserror::Error)]
pub enum ElasticError {
    /// It cannot be reached.
    #[error("cannot connect to Elasticsearch at {place}")]
    Connect {
        /// Its host and port.
        place: String,
        /// Why not.
        source: std::io::Error,
    },
    /// The connection broke.
    #[error("the connection to Elasticsearch broke")]
    Connection {
        /// How.
        #[from]
        source: hyper::Error,
    },
    /// It does not answer.
    #[error("Elasticsearch has not answered within {} s", limit.as_secs())]
    Late {
        /// How long it was waited for.
        limit: Duration,
    },
    /// It has too much to do.
    #[error("Elasticsearch has been too busy to {what}, {tries} times in a row")]
    Busy {
        /// What it was asked to do.
        what: &'static str,
        /// How often.
        tries: u32,
    },
    /// It refuses.
    #[error("Elasticsearch refuses to {what} (status {status}): {reason}")]
    Refused {
        /// What it was asked to do.
        what: &'static str,
        /// The status of its answer.
        status: u16,
        /// What it says.
        reason: String,
    },
    /// It refuses one document.
    #[error("Elasticsearch refuses the document `{key}` (status {status}): {reason}")]
    Document {
        /// Its key.
        key: String,
        /// The status of its part of the answer.
        status: u16,
        /// What it says.
        reason: String,
    },
    /// Its answer is not what its API promises.
    #[error("Elasticsearch's answer to the wish to {what} cannot be understood")]
    Answer {
        /// What it was asked to do.
        what: &'static str,
    },
    /// Another node writes to it, in a higher epoch.
    #[error("node {} writes to it in epoch {theirs}, and this node is in epoch {ours} only", theirs.node)]
    Superseded {
        /// The alias by which it does.
        alias: String,
        /// Its epoch.
        theirs: Epoch,
        /// The epoch of this node.
        ours: Epoch,
    },
    /// What this node wrote through is gone: another has claimed the index since, or removed it.
    #[error(
        "Elasticsearch takes nothing from this node any more: the alias that it wrote through is gone"
    )]
    Unclaimed,
    /// Not all of it has taken in a change.
    #[error("not every node of Elasticsearch has confirmed to {what}")]
    Unacknowledged {
        /// What it was asked to do.
        what: &'static str,
    },
    /// A document that was to be deleted has changed since it was looked at.
    #[error("the document `{key}` has changed while it was to be deleted")]
    Changed {
        /// Its key.
        key: String,
    },
    /// The new index has not as many documents as were written.
    #[error("the new index {index} has {found} documents, and {expected} were written to it")]
    Count {
        /// The index.
        index: String,
        /// How many there are.
        found: u64,
        /// How many there should be.
        expected: u64,
    },
    /// A file of the configuration cannot be read.
    #[error("cannot read {}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// A file holds no certificate that could be trusted.
    #[error("{} holds no certificate of an authority", path.display())]
    NoAuthorities {
        /// The file.
        path: PathBuf,
    },
    /// The host has no name that a certificate could be for.
    #[error("`{host}` is no name that a certificate could be for")]
    HostName {
        /// The host.
        host: String,
    },
}

impl ElasticError {
    /// Returns what a refusal means to a writer whose alias has to be there.
    pub(super) fn of_writer(self) -> Self {
        // It is 404 of what is written through; of an alias that must exist, 400 in some versions.
        let is_gone = match &self {
            Self::Refused { status, reason, .. } => {
                *status == 404 || *status == 400 && reason.contains("required alias")
            }
            Self::Connect { .. }
            | Self::Connection { .. }
            | Self::Late { .. }
            | Self::Busy { .. }
            | Self::Document { .. }
            | Self::Answer { .. }
            | Self::Superseded { .. }
            | Self::Unclaimed
            | Self::Unacknowledged { .. }
            | Self::Changed { .. }
            | Self::Count { .. }
            | Self::File { .. }
            | Self::NoAuthorities { .. }
            | Self::HostName { .. } => false,
        };
        if is_gone { Self::Unclaimed } else { self }
    }

    /// Returns whether the next attempt may do better, without anybody's doing.
    pub(in crate::index) fn is_passing(&self) -> bool {
        match self {
            Self::Connect { .. }
            | Self::Connection { .. }
            | Self::Late { .. }
            | Self::Busy { .. }
            | Self::Unclaimed
            | Self::Unacknowledged { .. }
            | Self::Changed { .. } => true,
            Self::Refused { status, .. } => *status >= 500,
            Self::Document { .. }
            | Self::Superseded { .. }
            | Self::Answer { .. }
            | Self::Count { .. }
            | Self::File { .. }
            | Self::NoAuthorities { .. }
            | Self::HostName { .. } => false,
        }
    }
}
