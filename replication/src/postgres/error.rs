//! Why Postgres could not be controlled.

use std::io;
use std::path::PathBuf;

use super::control_data::ParseControlDataError;
use super::history::ParseHistoryError;
use crate::command::CommandError;
use crate::position::ParseLsnError;

/// The oldest major version that is supported.
pub const VERSION_MIN: u32 = 15;

/// Why Postgres could not be controlled.
#[derive(Debug, thiserror::Error)]
pub enum PostgresError {
    /// No programs of a supported version.
    #[error(
        "Postgres {VERSION_MIN} or newer is not installed in {} (install postgresql-{VERSION_MIN}, \
         or set `bin_dir` in [postgres])", place.display()
    )]
    NotInstalled {
        /// Where it was looked for.
        place: PathBuf,
    },
    /// The data directory is of a version that is not supported.
    #[error("{} is a cluster of Postgres {found}; {VERSION_MIN} or newer is needed", data_dir.display())]
    TooOld {
        /// The data directory.
        data_dir: PathBuf,
        /// Its version.
        found: String,
    },
    /// There is no cluster.
    #[error("{} is not a Postgres data directory", data_dir.display())]
    NoCluster {
        /// The data directory.
        data_dir: PathBuf,
    },
    /// The cluster's configuration is not where it was looked for.
    #[error(
        "the cluster in {} has no postgresql.conf in {}, and no folder of /etc/postgresql names it as its \
         data_directory; say where it is with `config_dir` in [postgres]",
        data_dir.display(), config_dir.display()
    )]
    NoConfiguration {
        /// The data directory.
        data_dir: PathBuf,
        /// Where it was looked for.
        config_dir: PathBuf,
    },
    /// The server told settings that cannot be understood.
    #[error("postgres told settings that cannot be understood")]
    Settings {
        /// What is wrong with them.
        source: serde_json::Error,
    },
    /// The operator's command did what it should not, or did not do what it should.
    #[error("`{command}` {what}, and the server of {} {found}", data_dir.display())]
    Commanded {
        /// The command.
        command: String,
        /// How it ended.
        what: &'static str,
        /// Which cluster.
        data_dir: PathBuf,
        /// How the server is.
        found: &'static str,
    },
    /// A file could not be handled.
    #[error("cannot {action} {}", path.display())]
    File {
        /// What was being done.
        action: &'static str,
        /// To what.
        path: PathBuf,
        /// What happened.
        source: io::Error,
    },
    /// A program of Postgres failed.
    #[error("cannot {action} postgres in {}", data_dir.display())]
    Control {
        /// What was being done.
        action: &'static str,
        /// To which cluster.
        data_dir: PathBuf,
        /// What happened.
        source: CommandError,
    },
    /// The server could not be stopped.
    #[error(
        "the server in {} still runs, though it was told to stop and killed; look at its process and at \
         the disk beneath it", data_dir.display()
    )]
    StillRuns {
        /// The data directory.
        data_dir: PathBuf,
    },
    /// There is no server.
    #[error("no server runs in {}", data_dir.display())]
    NotRunning {
        /// The data directory.
        data_dir: PathBuf,
    },
    /// `pg_controldata` said something else.
    #[error("cannot understand the control data of {}", data_dir.display())]
    ControlData {
        /// The cluster.
        data_dir: PathBuf,
        /// What is missing.
        source: ParseControlDataError,
    },
    /// The file that tells of the timelines before a server's own.
    #[error("cannot understand the timeline history {}", path.display())]
    History {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: ParseHistoryError,
    },
    /// A timeline that is no number.
    #[error("postgres told a timeline that cannot be understood: {text}")]
    Timeline {
        /// What it told.
        text: String,
    },
    /// No connection.
    #[error("cannot connect to postgres at {} port {port}", socket_dir.display())]
    Connect {
        /// The folder of its Unix socket.
        socket_dir: PathBuf,
        /// Its port.
        port: u16,
        /// What happened.
        source: tokio_postgres::Error,
    },
    /// A query failed.
    #[error("postgres could not {what}")]
    Query {
        /// What was asked.
        what: &'static str,
        /// What happened.
        source: tokio_postgres::Error,
    },
    /// A query took too long.
    #[error("postgres did not {what} in time")]
    Late {
        /// What was asked.
        what: &'static str,
    },
    /// Postgres told something that is not an LSN.
    #[error("postgres told a position that cannot be understood")]
    Lsn {
        /// What it told.
        source: ParseLsnError,
    },
}
