//! Where a log is, and what led there.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::epoch::Epoch;
use crate::position::Position;

/// The BLAKE3 digest of an entry. An entry holds its predecessor's, so that equal digests mean equal logs up
/// to there.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct EntryDigest(pub [u8; 32]);

impl EntryDigest {
    /// What the first entry of a store has for its predecessor's.
    pub const NONE: Self = Self([0; 32]);
}

impl fmt::Display for EntryDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for EntryDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0
            .iter()
            .take(4)
            .try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// A point of a log: behind an entry, or before the first.
///
/// Two logs that share a point are equal up to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Point {
    /// How many operations lie before it.
    pub position: Position,
    /// In which epoch the entry before it was made; `None` before the first.
    pub epoch: Option<Epoch>,
    /// The digest of the entry before it.
    pub digest: EntryDigest,
}

impl Point {
    /// The point before the first entry.
    pub const ORIGIN: Self = Self {
        position: Position(0),
        epoch: None,
        digest: EntryDigest::NONE,
    };
}
