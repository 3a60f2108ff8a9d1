//! Rehearsals: a standby proves, on a copy of itself, that a promotion would work and how long it would take.
//! Replication goes on meanwhile.
//!
//! ```text
//! stores ── copy ──▶ STATE/rehearsal/1 ── sealed room ──▶ recover, promote, index, services, checks
//!                                                              │
//!                          STATE/reports/drill-….json ◀────────┘   and the copy goes
//! ```
//! Read first: [`Rehearsal`], [`Seal`] and [`Report`].

mod checks;
mod postgres;
mod report;
mod run;
mod seal;
mod services;

pub use postgres::{recover, settle, stop, take_over};
pub use report::{KIND, Proof, Report, StepTime, Verdict, kept, proof};
pub use run::{FOLDER, Rehearsal, clear, prepare_place, walls};
pub use seal::{Order, Seal, SealError, SealStage, Walls, sealed};

use std::path::PathBuf;
use std::time::Duration;

use understudy_replication::command::CommandError;
use understudy_replication::postgres::PostgresError;

use crate::copy::CopyError;
use crate::index::RebuildError;

/// Why a rehearsal has failed.
#[derive(Debug, thiserror::Error)]
pub enum RehearsalError {
    /// There is too little room.
    #[error(
        "the copies need {needed} bytes in {}, and {free} are free; {shares}", folder.display()
    )]
    NoRoom {
        /// Where.
        folder: PathBuf,
        /// How much is needed.
        needed: u64,
        /// How much there is.
        free: u64,
        /// Whether the file system could do without.
        shares: &'static str,
    },
    /// A store cannot be copied.
    #[error("cannot copy store {store}")]
    Copy {
        /// The store.
        store: String,
        /// Why not.
        source: Box<CopyError>,
    },
    /// A file could not be handled.
    #[error(transparent)]
    File(#[from] CopyError),
    /// The room, or what was run in it, failed.
    #[error("cannot {action}")]
    Sealed {
        /// What was tried.
        action: String,
        /// Why not.
        source: SealError,
    },
    /// A service runs as somebody who cannot be looked up.
    #[error("cannot look up the user of service {service}")]
    User {
        /// The service.
        service: String,
        /// Why not.
        source: CommandError,
    },
    /// The copy's server did not become a primary.
    #[error("the copy of postgres is still in recovery after its promotion")]
    StillInRecovery,
    /// It cannot be asked.
    #[error("cannot ask the copy of postgres")]
    Query(#[from] tokio_postgres::Error),
    /// It cannot be reached.
    #[error("cannot reach the copy of postgres")]
    Connect(#[from] PostgresError),
    /// An index cannot be built.
    #[error("cannot build index {index}")]
    Index {
        /// The index.
        index: String,
        /// Why not.
        source: Box<RebuildError>,
    },
    /// A service does not come up.
    #[error("service {service} is not up {} s after its start: {said}", limit.as_secs())]
    NotUp {
        /// The service.
        service: String,
        /// How long it had.
        limit: Duration,
        /// What its status said last.
        said: String,
    },
    /// Something in the copies is not as it should be.
    #[error("{what}: {detail}")]
    Check {
        /// What was looked at.
        what: String,
        /// What is wrong.
        detail: String,
    },
    /// It took too long.
    #[error("it took longer than {} s, which [drill] allows", limit.as_secs())]
    TimedOut {
        /// How long it may take.
        limit: Duration,
    },
}
