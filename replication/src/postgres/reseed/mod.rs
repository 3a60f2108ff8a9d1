//! The language of a re-seed: a standby's old data directory is compared with the primary's in blocks,
//! and only the blocks that differ travel.
//!
//! ```text
//! rules   which files of a data directory a copy consists of            (pure)
//! path    where a file of the copy is, beneath which directory           (pure)
//! wire    the questions and the answers, and their bounds                (pure)
//! roots   the directories of one machine, and what is beneath them       (openat2)
//! read    a part of a file that others change meanwhile
//! ```
//! It is a base backup of which most is there already: `pg_backup_start` comes before the first block is
//! compared, so whatever the primary changes meanwhile is in the write-ahead log that the standby replays.

mod path;
mod read;
mod roots;
mod rules;
mod wire;

pub use path::{ClusterPath, ParsePathError};
pub use read::read_at;
pub use roots::{Found, Roots, Tablespace};
pub use rules::{is_copied, is_of_relation, is_relation_of, version_folder};
pub use wire::{
    BLOCK_BYTES, Begun, CHANGE_BYTES_MAX, Change, Digest, Ended, Entry, LIST_ENTRIES_MAX, Piece,
    REQUEST_BYTES_MAX, WireError, decode_changes, decode_entries, decode_pieces, digest, encode,
};
