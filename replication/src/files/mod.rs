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
mod blocks;
mod checkpoint;
mod chunks;
mod entry;
mod ledger;
mod manifest;
mod outboard;
mod patch;
mod path;
mod record;
mod root;
pub mod wire;

pub use batch::{BATCH_BYTES_MAX, Batch, BatchError, Content, Operation};
pub use blocks::Blocks;
pub use chunks::Chunks;
pub use entry::{
    Digest, Entry, Identity, Kind, Known, Local, TARGET_BYTES_MAX, XATTRS_BYTES_MAX, Xattrs,
    mtime_timespec,
};
pub use ledger::{Head, Ledger, LedgerError};
pub use manifest::{LoadError, Loader, Manifest, Misfit, NodeId, TOP};
pub use outboard::{OUTBOARD_FROM, Outboard, OutboardBuilder};
pub use patch::{PIECES_MAX, Patch, Piece, punch};
pub use path::{LOST_AND_FOUND, NAME_BYTES_MAX, PATH_BYTES_MAX, PathError, RESERVED, RelPath};
pub use record::{LogEntry, LogEntryError};
pub use root::{
    Root, data_ranges, identity, names, open_in, stat_fd, stat_in, xattrs, xattrs_of_file,
};
