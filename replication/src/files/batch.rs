//! What changed in a store, in the form that is logged and shipped.

#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use serde::{Deserialize, Serialize};

use super::entry::{Digest, Entry};
use super::path::RelPath;
use crate::position::Position;

/// The longest encoded batch: a record of the log and a frame of the wire hold it.
pub const BATCH_BYTES_MAX: usize = 2 << 20;

const VERSION: u8 = 1;

/// One change of a store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Operation {
    /// The path is this now, whatever it was.
    Put {
        /// The path.
        path: RelPath,
        /// What it is.
        entry: Entry,
        /// The content of the file comes along. Without it only what surrounds the content changed.
        has_content: bool,
    },
    /// The path, and all that it held, is no more.
    Delete {
        /// The path.
        path: RelPath,
    },
}

impl Operation {
    /// Returns which path it changes.
    pub fn path(&self) -> &RelPath {
        match self {
            Self::Put { path, .. } | Self::Delete { path } => path,
        }
    }

    /// Returns the size and hash of the content that comes along.
    pub fn content(&self) -> Option<(u64, Digest)> {
        match self {
            Self::Put {
                entry,
                has_content: true,
                ..
            } => entry.content(),
            Self::Put {
                has_content: false, ..
            }
            | Self::Delete { .. } => None,
        }
    }

    /// Returns how many bytes it takes in a batch, at most, without content.
    pub fn metadata_bytes(&self) -> usize {
        let target = match self {
            Self::Put { entry, .. } => match &entry.kind {
                super::Kind::Symlink { target } => target.len(),
                super::Kind::File { .. } | super::Kind::Directory => 0,
            },
            Self::Delete { .. } => 0,
        };
        self.path()
            .as_bytes()
            .len()
            .saturating_add(target)
            .saturating_add(100)
    }

    /// Returns by how much it moves the position: what has to be shipped because of it.
    pub fn cost(&self) -> u64 {
        let content = self.content().map_or(0, |(size, _)| size);
        let metadata = u64::try_from(self.metadata_bytes()).unwrap_or(u64::MAX);
        content.saturating_add(metadata)
    }
}

/// Changes that become visible together, from one position to the next.
///
/// Puts come first, parents before what they hold, then deletes: what has moved is never absent
/// from both places.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Batch {
    /// The position before it.
    pub start: Position,
    /// The position behind it.
    pub end: Position,
    /// The root of the manifest before it: who has another cannot apply it.
    pub before: Digest,
    /// The root of the manifest behind it.
    pub after: Digest,
    /// The changes.
    pub operations: Vec<Operation>,
}

/// Why bytes are not a batch.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BatchError {
    /// It was written by another version.
    #[error("a batch of version {0}, where {VERSION} is understood")]
    Version(u8),
    /// It is longer than it may be.
    #[error("a batch of {0} bytes, where {BATCH_BYTES_MAX} are allowed")]
    TooLong(usize),
    /// It cannot be decoded.
    #[error("a malformed batch")]
    Malformed(#[source] postcard::Error),
    /// An entry is nothing that a file system can hold.
    #[error("an impossible entry for {0}")]
    Entry(RelPath),
    /// It ends before it begins.
    #[error("a batch from {0} to {1}")]
    Backwards(Position, Position),
}

impl Batch {
    /// Returns it as bytes.
    ///
    /// # Errors
    /// When they would be too many.
    pub fn encode(&self) -> Result<Vec<u8>, BatchError> {
        let bytes = postcard::to_extend(self, vec![VERSION]).map_err(BatchError::Malformed)?;
        if bytes.len() > BATCH_BYTES_MAX {
            return Err(BatchError::TooLong(bytes.len()));
        }
        Ok(bytes)
    }

    /// Reads it from bytes that come from a peer or from the disk.
    ///
    /// # Errors
    /// When they are no batch, or one that no valid history has.
    pub fn decode(bytes: &[u8]) -> Result<Self, BatchError> {
        if bytes.len() > BATCH_BYTES_MAX {
            return Err(BatchError::TooLong(bytes.len()));
        }
        let (version, rest) = bytes.split_first().ok_or(BatchError::Version(0))?;
        if *version != VERSION {
            return Err(BatchError::Version(*version));
        }
        let batch: Self = postcard::from_bytes(rest).map_err(BatchError::Malformed)?;
        if batch.end <= batch.start {
            return Err(BatchError::Backwards(batch.start, batch.end));
        }
        for operation in &batch.operations {
            match operation {
                Operation::Put { path, entry, .. } if !entry.is_valid() => {
                    return Err(BatchError::Entry(path.clone()));
                }
                Operation::Put { .. } | Operation::Delete { .. } => {}
            }
        }
        Ok(batch)
    }
}

#[cfg(test)]
mod tests {
    use super::super::Kind;
    use super::*;
    use proptest::prelude::*;

    fn batch(target: &[u8]) -> Batch {
        let path = RelPath::new(*b"caf\xe9/a").unwrap();
        let kind = Kind::Symlink {
            target: target.to_vec(),
        };
        let entry = Entry {
            kind,
            mode: 0o777,
            uid: 1,
            gid: 2,
            mtime_ns: -5,
        };
        Batch {
            start: Position(10),
            end: Position(300),
            before: Digest::of(b"before"),
            after: Digest::of(b"after"),
            operations: vec![
                Operation::Put {
                    path: path.clone(),
                    entry,
                    has_content: false,
                },
                Operation::Delete { path },
            ],
        }
    }

    #[test]
    fn a_batch_survives_encoding() {
        let batch = batch(b"../elsewhere");
        assert_eq!(Batch::decode(&batch.encode().unwrap()), Ok(batch));
    }

    #[test]
    fn a_batch_that_no_history_has_is_refused() {
        let empty_target = batch(b"");
        let bytes = empty_target.encode().unwrap();
        assert!(matches!(Batch::decode(&bytes), Err(BatchError::Entry(_))));
        let backwards = Batch {
            end: Position(9),
            ..batch(b"x")
        };
        let bytes = backwards.encode().unwrap();
        assert!(matches!(
            Batch::decode(&bytes),
            Err(BatchError::Backwards(..))
        ));
        assert_eq!(Batch::decode(&[2, 0]), Err(BatchError::Version(2)));
    }

    proptest! {
        #[test]
        fn any_bytes_decode_or_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut versioned = vec![VERSION];
            versioned.extend(bytes);
            if let Ok(batch) = Batch::decode(&versioned) {
                prop_assert!(batch.start < batch.end);
            }
        }
    }
}
