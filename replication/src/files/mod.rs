//! The model of a files store that both sides share.
//!
//! ```text
//! RelPath ─┐
//! Entry  ──┴▶ Manifest (Merkle root) ◀── Batch of operations
//!                  │                         │
//!                  └── Ledger ───────────────┘     table (manifest) + log (batches)
//! Root: every system call on the tree, beneath its top       wire: messages between the ends
//! ```
//! Read first: [`Manifest`], [`Batch`] and [`Ledger`].

mod batch;
mod entry;
mod ledger;
mod manifest;
mod path;
mod record;
mod root;
pub mod wire;

pub use batch::{BATCH_BYTES_MAX, Batch, BatchError, Operation};
pub use entry::{Digest, Entry, Identity, Kind, Known, TARGET_BYTES_MAX, mtime_timespec};
pub use ledger::{Head, Ledger, LedgerError};
pub use manifest::{Manifest, Misfit};
pub use path::{LOST_AND_FOUND, NAME_BYTES_MAX, PATH_BYTES_MAX, PathError, RESERVED, RelPath};
pub use record::{LogEntry, LogEntryError};
pub use root::{Root, identity, names, stat_fd};
