//! Bundles of what was superseded: kept before it is cut off, looked at and replayed by operators.
//!
//! ```text
//! STATE/salvage/kv-TIME-EPOCH/   manifest.json   where it was cut, and what is known of it
//!                                entries.log     the entries as they were logged, each u32 length + bytes
//! ```
//! Invariant: a folder that has its final name is whole and durable; what is being written has a name that
//! begins with a dot. Nothing here deletes a bundle that has its name.

mod bundle;
mod manifest;
mod replay;
mod run;
mod wish;

use std::io;
use std::path::{Path, PathBuf};

pub use bundle::{Bundle, Entries, Listed, adopt, list, write};
pub use manifest::{Acknowledged, Manifest, Place, SALVAGE_VERSION, Superseded};
pub use replay::{CONFLICTS_LISTED_MAX, Conflict, Replayed, Verdict, apply, judge};
pub use run::{ReplayError, ReplayOrder, ShownBundle, ShownWish, ShownWished, replay, show};
pub use wish::{Part, Wish, Wishes};

use crate::log::LOG_PAYLOAD_BYTES_MAX;

/// The longest entry in a bundle, in bytes: that of the log which it comes from.
pub const SALVAGE_ENTRY_BYTES_MAX: usize = LOG_PAYLOAD_BYTES_MAX;

/// The largest manifest that is read, in bytes.
pub const SALVAGE_MANIFEST_BYTES_MAX: u64 = 64 << 10;

/// How many bundles are listed; nobody looks through more.
pub const SALVAGE_BUNDLES_MAX: usize = 10_000;

/// Why a bundle cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum SalvageError {
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
    /// What was to be kept could not be read.
    #[error("cannot read what has to be kept in {}", path.display())]
    Source {
        /// Where it was to be kept.
        path: PathBuf,
        /// What happened.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// An entry is longer than an entry may be.
    #[error("{} holds an entry of {bytes} bytes, where {SALVAGE_ENTRY_BYTES_MAX} are allowed", path.display())]
    TooLong {
        /// The file.
        path: PathBuf,
        /// How long the entry is.
        bytes: u64,
    },
    /// The bundle is not what its manifest says.
    #[error("{} is damaged: {reason}; nothing of it was applied", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// In what way.
        reason: &'static str,
    },
    /// The manifest is of a version that this program does not know.
    #[error(
        "{} is of version {version}, where this program knows {SALVAGE_VERSION}; use the version that wrote it",
        path.display()
    )]
    Version {
        /// The manifest.
        path: PathBuf,
        /// Its version.
        version: u32,
    },
    /// The manifest cannot be read.
    #[error("{} is not a manifest of a bundle", path.display())]
    Malformed {
        /// The manifest.
        path: PathBuf,
        /// Why not.
        source: serde_json::Error,
    },
    /// Another bundle has the name.
    #[error("{} is another bundle of that name; move it away", path.display())]
    Taken {
        /// The bundle that is there.
        path: PathBuf,
    },
    /// There is no bundle of that name.
    #[error("there is no bundle `{name}` in {}; `understudy kv salvage list` lists them", folder.display())]
    Absent {
        /// The name.
        name: String,
        /// Where bundles are.
        folder: PathBuf,
    },
}

fn file(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> SalvageError {
    let path = path.to_owned();
    move |source| SalvageError::File {
        action,
        path,
        source,
    }
}

#[cfg(test)]
mod tests;
