//! Control of a Postgres cluster, by either role.
//!
//! ```text
//! Cluster     where it is, whose it is; start, stop, promote      (pg_ctl as its OS user)
//! settings    understudy.conf, the blocks in pg_hba and pg_ident  (pure text)
//! conf_file   what the operator's postgresql.conf says
//! configuration  its folder, if that is not the data directory
//! requirements   which settings need a restart                    (pure)
//! commanded   the operator's own commands to start and stop
//! ControlData system identifier, timeline, state                  (pg_controldata)
//! roles       the database roles, and what each may do
//! History     timelines: who can follow whom                      (pure)
//! origins     which epoch opened which timeline
//! wal         the files of the log, what lies beyond a fork       (pure)
//! replay      how long a server that starts is waited for
//! reseed      comparing two data directories block by block
//! owned       files of the OS user's, made by root without being misled
//! sizes       how much is tables, and how much the rest
//! vouch       whether a primary's server may start at all
//! sql         a connection over the Unix socket                   (role `understudy`)
//! ```

mod cluster;
mod commanded;
mod conf_file;
mod configuration;
mod control;
mod control_data;
mod error;
mod history;
mod origins;
mod owned;
mod postmaster;
mod replay;
mod requirements;
pub mod reseed;
mod roles;
mod settings;
mod sizes;
mod sql;
mod vouch;
mod wal;

pub use cluster::Cluster;
pub use conf_file::configured_listening;
pub use configuration::{CONFIGURATION_MESSAGE_BYTES_MAX, Configuration, ConfigurationError};
pub use control_data::{ControlData, ParseControlDataError};
pub use error::{PostgresError, VERSION_MIN};
pub use history::{Ended, History, ParseHistoryError, Relation, parse_history};
pub use origins::Origins;
pub use postmaster::{Listening, is_at_work, listening};
pub use requirements::{Need, PRESENT_QUERY, Present};
pub use settings::{Duty, MINIMUM_SETTINGS, Minimums, Upstream, any_of, with_block, without_block};
pub use sizes::Sizes;
pub use sql::{MAINTENANCE_DATABASE, connect, lsn, one_lsn};
pub use wal::{WalRange, parse_segment, segment_name};

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use understudy_config::NodeName;

use crate::position::Lsn;

/// The database role of the daemon: it monitors, reads for indexes, and manages slots.
pub const ROLE: &str = "understudy";

/// The database role of a standby's stream.
pub const REPLICATION_ROLE: &str = "understudy_replication";

/// What a standby has to know of the primary's cluster before it is seeded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeedInfo {
    /// Tells clusters apart.
    pub system_identifier: u64,
    /// The major version, such as 15.
    pub version: u32,
    /// How large the cluster is, in bytes, as far as the primary can tell cheaply.
    pub bytes: u64,
    /// The version of its catalogue, which names its folder in a tablespace.
    #[serde(default)]
    pub catalog_version: u32,
    /// Where its tablespaces are.
    #[serde(default)]
    pub tablespaces: Vec<reseed::Tablespace>,
    /// What a standby needs as much of; nothing from a primary that does not tell.
    #[serde(default)]
    pub minimums: Minimums,
    /// Where the primary has its configuration, if not in the data directory.
    #[serde(default)]
    pub config_dir: Option<PathBuf>,
}

/// What the primary knows of a standby's slot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotInfo {
    /// The slot's name.
    pub name: String,
    /// The write-ahead log that the standby needs has been removed.
    pub is_lost: bool,
    /// The oldest place that the primary's log still has, where it can tell.
    #[serde(default)]
    pub oldest: Option<Lsn>,
}

/// Returns the name of `node`'s replication slot. Slots are named with `[a-z0-9_]` only, nodes also
/// with `-`, and two nodes must not share a slot: so both of the special characters are written out.
pub fn slot_name(node: &NodeName) -> String {
    let node = node.as_str().replace('_', "__").replace('-', "_m");
    format!("understudy_{node}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_of_different_nodes_differ() {
        let slot = |node: &str| slot_name(&node.parse().unwrap());
        assert_eq!(slot("b"), "understudy_b");
        assert_eq!(slot("db-2"), "understudy_db_m2");
        assert_ne!(slot("db-2"), slot("db_2"));
    }
}
