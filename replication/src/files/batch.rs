//! What changed in a store, in the form that is logged and shipped.

#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use serde::{Deserialize, Serialize};

use super::entry::{Digest, Entry, Kind};
use super::patch::Patch;
use super::path::RelPath;
use crate::position::Position;

/// The longest encoded batch: a record of the log and a frame of the wire hold it.
pub const BATCH_BYTES_MAX: usize = 2 << 20;

const VERSION: u8 = 2;

/// One change of a store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Operation {
    /// The path is this now, whatever it was.
    Put {
        /// The path.
        path: RelPath,
        /// What it is.
        entry: Entry,
        /// Where its content comes from.
        content: Content,
    },
    /// The path, and all that it held, is no more.
    Delete {
        /// The path.
        path: RelPath,
    },
    /// What was at a path, with all that it holds, is at another; what was there is no more.
    Move {
        /// Where it was.
        from: RelPath,
        /// Where it is.
        to: RelPath,
    },
    /// What was at two paths is at each other's.
    Swap {
        /// The one.
        a: RelPath,
        /// The other.
        b: RelPath,
    },
}

/// Where the content of a file comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Content {
    /// It is what it was; for what is no file, there is none.
    Same,
    /// It comes along whole.
    Whole,
    /// What has changed comes along.
    Patch(Patch),
    /// It is that of the file which is at this path before the batch.
    Copy(RelPath),
    /// It is the file that is at this path when the operations before have been done: one more name
    /// of it.
    Link(RelPath),
}

impl Operation {
    /// Returns which path it changes; of a move, where to.
    pub fn path(&self) -> &RelPath {
        match self {
            Self::Put { path, .. } | Self::Delete { path } => path,
            Self::Move { to, .. } => to,
            Self::Swap { a, .. } => a,
        }
    }

    /// Returns how many bytes of content come along, and the digest of just these; `None` where none
    /// do.
    pub fn literal(&self) -> Option<(u64, Digest)> {
        match self {
            Self::Put {
                entry,
                content: Content::Whole,
                ..
            } => entry.content(),
            Self::Put {
                content: Content::Patch(patch),
                ..
            } => Some((patch.literal_bytes(), patch.literal)),
            Self::Put {
                content: Content::Same | Content::Copy(_) | Content::Link(_),
                ..
            }
            | Self::Delete { .. }
            | Self::Move { .. }
            | Self::Swap { .. } => None,
        }
    }

    /// Returns how many bytes it takes in a batch, at most, without content.
    pub fn metadata_bytes(&self) -> usize {
        let more = match self {
            Self::Put { entry, content, .. } => {
                let target = match &entry.kind {
                    Kind::Symlink { target } => target.len(),
                    Kind::File { .. } | Kind::Directory => 0,
                };
                // Of each attribute the name and the value have a length.
                let xattrs = entry.xattrs.iter().count().saturating_mul(6);
                let xattrs = xattrs.saturating_add(entry.xattrs.bytes());
                let content = match content {
                    Content::Same | Content::Whole => 0,
                    Content::Patch(patch) => patch.metadata_bytes(),
                    Content::Copy(path) | Content::Link(path) => path.as_bytes().len(),
                };
                target.saturating_add(xattrs).saturating_add(content)
            }
            Self::Delete { .. } => 0,
            Self::Move { from, .. } => from.as_bytes().len(),
            Self::Swap { b, .. } => b.as_bytes().len(),
        };
        self.path()
            .as_bytes()
            .len()
            .saturating_add(more)
            .saturating_add(120)
    }

    /// Returns by how much it moves the position: what has to be shipped because of it.
    pub fn cost(&self) -> u64 {
        let content = self.literal().map_or(0, |(size, _)| size);
        let metadata = u64::try_from(self.metadata_bytes()).unwrap_or(u64::MAX);
        content.saturating_add(metadata)
    }

    fn is_valid(&self) -> bool {
        match self {
            Self::Put { entry, content, .. } => {
                entry.is_valid()
                    && match (content, entry.content()) {
                        (Content::Same, _) => true,
                        (Content::Whole | Content::Copy(_) | Content::Link(_), found) => {
                            found.is_some()
                        }
                        (Content::Patch(patch), Some((size, _))) => patch.is_valid(size),
                        (Content::Patch(_), None) => false,
                    }
            }
            Self::Delete { .. } | Self::Move { .. } | Self::Swap { .. } => true,
        }
    }
}

/// Changes that become visible together, from one position to the next.
///
/// Moves come first, then puts, parents before what they hold, then deletes: what has moved is never
/// absent from both places.
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
        match batch
            .operations
            .iter()
            .find(|operation| !operation.is_valid())
        {
            Some(operation) => Err(BatchError::Entry(operation.path().clone())),
            None => Ok(batch),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::entry::Xattrs;
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
            link: 0,
            xattrs: Xattrs::new(vec![(b"user.a".to_vec(), b"1".to_vec())]),
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
                    content: Content::Same,
                },
                Operation::Move {
                    from: path.clone(),
                    to: RelPath::new(*b"b").unwrap(),
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
        assert_eq!(Batch::decode(&[1, 0]), Err(BatchError::Version(1)));
    }

    #[test]
    fn the_room_that_an_operation_is_given_suffices() {
        for operation in batch(&[b'x'; 300]).operations {
            let bytes = postcard::to_stdvec(&operation).unwrap().len();
            assert!(bytes <= operation.metadata_bytes(), "{operation:?}");
        }
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
