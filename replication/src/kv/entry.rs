//! One record of the log: operations that are made durable, sent and committed together.
//!
//! One without operations opens a run of a primary, and takes one position; see [`super::protocol`].

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::epoch::Epoch;
use crate::log::LOG_PAYLOAD_BYTES_MAX;
use crate::position::Position;
use crate::wall_time::WallTime;

use super::operation::Operation;
use super::point::{EntryDigest, Point};
use super::protocol::EntryHead;

/// The version of the encoding.
const VERSION: u8 = 1;

/// Why bytes are no entry, or operations cannot be one.
#[derive(Debug, thiserror::Error)]
pub enum EntryError {
    /// It is of a version that this program does not know.
    #[error(
        "an entry of version {version}, where this program knows {VERSION}; run the same version on all nodes"
    )]
    Version {
        /// Its version.
        version: u8,
    },
    /// It is not what its version says.
    #[error("an entry that cannot be read")]
    Malformed(#[from] postcard::Error),
    /// It ends elsewhere than its operations say.
    #[error("an entry from {start} to {end} that holds {operations} operations")]
    Miscounted {
        /// Where it begins.
        start: Position,
        /// Where it ends.
        end: Position,
        /// How many it holds.
        operations: usize,
    },
    /// It does not fit into a record.
    #[error("an entry of {bytes} bytes, where {LOG_PAYLOAD_BYTES_MAX} are allowed")]
    TooLong {
        /// How long it is.
        bytes: usize,
    },
}

/// What is told of an entry before its operations.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// In which epoch it was made.
    pub epoch: Epoch,
    /// Where the opening of the run that made it begins.
    pub opened: Position,
    /// How many operations lie before it.
    pub start: Position,
    /// How many lie before its end.
    pub end: Position,
    /// How many bytes the entries before it have, all of them since the first.
    pub bytes_before: u64,
    /// The digest of the entry before it.
    pub previous: EntryDigest,
    /// What its maker knew to be committed when it was made.
    pub committed: Position,
    /// When it was made, by its maker's clock.
    pub made: WallTime,
}

/// What an entry is made from, beside its operations.
#[derive(Debug)]
pub struct After<'a> {
    /// The epoch of the run.
    pub epoch: &'a Epoch,
    /// Where the opening of the run begins; `None` for the opening itself.
    pub opened: Option<Position>,
    /// The point that it follows.
    pub point: &'a Point,
    /// How many bytes the entries up to there have.
    pub bytes: u64,
    /// What is known to be committed.
    pub committed: Position,
}

/// An entry. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// What is told before its operations.
    pub head: Head,
    /// The digest of all of it.
    pub digest: EntryDigest,
    payload: Bytes,
    operations_at: usize,
}

impl Entry {
    /// Makes an entry of `operations`; without any, it opens a run.
    ///
    /// # Errors
    /// When the operations do not fit into one.
    pub fn make(after: &After<'_>, operations: &[Operation]) -> Result<Self, EntryError> {
        let start = after.point.position;
        let head = Head {
            epoch: after.epoch.clone(),
            opened: after.opened.unwrap_or(start),
            start,
            end: end_of(start, operations.len()),
            bytes_before: after.bytes,
            previous: after.point.digest,
            committed: after.committed,
            made: WallTime::now(),
        };
        let payload = postcard::to_extend(&head, vec![VERSION])?;
        let operations_at = payload.len();
        let payload = postcard::to_extend(operations, payload)?;
        if payload.len() > LOG_PAYLOAD_BYTES_MAX {
            return Err(EntryError::TooLong {
                bytes: payload.len(),
            });
        }
        Ok(Self {
            head,
            digest: digest(&payload),
            payload: payload.into(),
            operations_at,
        })
    }

    /// Reads an entry, but not yet its operations.
    ///
    /// # Errors
    /// When the bytes are none.
    pub fn decode(payload: Bytes) -> Result<Self, EntryError> {
        let (version, rest) = payload
            .split_first()
            .ok_or(postcard::Error::DeserializeUnexpectedEnd)?;
        if *version != VERSION {
            return Err(EntryError::Version { version: *version });
        }
        let (head, operations): (Head, _) = postcard::take_from_bytes(rest)?;
        let operations_at = payload.len().saturating_sub(operations.len());
        Ok(Self {
            head,
            digest: digest(&payload),
            operations_at,
            payload,
        })
    }

    /// Returns what it changes.
    ///
    /// # Errors
    /// When that cannot be read.
    pub fn operations(&self) -> Result<Vec<Operation>, EntryError> {
        let bytes = self.payload.get(self.operations_at..).unwrap_or_default();
        // A count beyond what the bytes can hold ends in an error, not in an allocation: what is reserved by
        // a count is bounded within serde.
        let operations: Vec<Operation> = postcard::from_bytes(bytes)?;
        let (start, end) = (self.head.start, self.head.end);
        if end_of(start, operations.len()) != end {
            return Err(EntryError::Miscounted {
                start,
                end,
                operations: operations.len(),
            });
        }
        Ok(operations)
    }

    /// Returns the bytes that are logged and sent.
    pub fn payload(&self) -> &Bytes {
        &self.payload
    }

    /// Returns what the rules of the protocol need to know of it.
    pub fn told(&self) -> EntryHead {
        EntryHead {
            epoch: self.head.epoch.clone(),
            opened: self.head.opened,
            start: self.head.start,
            end: self.head.end,
            previous: self.head.previous,
            committed: self.head.committed,
            digest: self.digest,
        }
    }

    /// Returns how many bytes all entries have up to its end, since the first.
    pub fn bytes_after(&self) -> u64 {
        let own = u64::try_from(self.payload.len()).unwrap_or(u64::MAX);
        self.head.bytes_before.saturating_add(own)
    }

    /// Returns the point behind it.
    pub fn point(&self) -> Point {
        Point {
            position: self.head.end,
            epoch: Some(self.head.epoch.clone()),
            digest: self.digest,
        }
    }
}

fn end_of(start: Position, operations: usize) -> Position {
    let count = u64::try_from(operations.max(1)).unwrap_or(u64::MAX);
    Position(start.0.saturating_add(count))
}

fn digest(payload: &[u8]) -> EntryDigest {
    EntryDigest(*blake3::hash(payload).as_bytes())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn set(key: &str, value: &str) -> Operation {
        Operation::Set {
            key: Bytes::copy_from_slice(key.as_bytes()),
            value: Bytes::copy_from_slice(value.as_bytes()),
            expires: None,
        }
    }

    fn entry(previous: &Point, operations: &[Operation]) -> Entry {
        let after = After {
            epoch: &Epoch::first("a".parse().unwrap()),
            opened: Some(Position(0)),
            point: previous,
            bytes: 0,
            committed: Position(0),
        };
        Entry::make(&after, operations).unwrap()
    }

    #[test]
    fn an_entry_is_read_as_it_was_made() {
        let operations = [
            set("k", "v"),
            Operation::HashSet {
                key: "h".into(),
                fields: vec![("f".into(), "1".into()), ("g".into(), Bytes::new())],
            },
            Operation::Clear,
        ];
        let made = entry(&Point::ORIGIN, &operations);
        let read = Entry::decode(made.payload().clone()).unwrap();
        assert_eq!(read, made);
        assert_eq!(read.operations().unwrap(), operations);
        assert_eq!(read.point().position, Position(3));
    }

    #[test]
    fn equal_operations_behind_different_pasts_have_different_digests() {
        let one = entry(&Point::ORIGIN, &[set("k", "1")]);
        let other = entry(&Point::ORIGIN, &[set("k", "2")]);
        let next = [set("k", "3")];
        assert_ne!(
            entry(&one.point(), &next).digest,
            entry(&other.point(), &next).digest
        );
    }

    #[test]
    fn an_entry_of_another_version_or_with_another_count_is_refused() {
        let made = entry(&Point::ORIGIN, &[set("k", "v")]);
        let mut other = made.payload().to_vec();
        other[0] = 9;
        let error = Entry::decode(other.into()).unwrap_err();
        assert!(
            matches!(error, EntryError::Version { version: 9 }),
            "{error}"
        );
        let mut head = made.head.clone();
        head.end = Position(2);
        let mut payload = postcard::to_extend(&head, vec![VERSION]).unwrap();
        payload.extend_from_slice(&made.payload()[made.operations_at..]);
        let error = Entry::decode(payload.into()).unwrap().operations();
        assert!(
            matches!(error, Err(EntryError::Miscounted { .. })),
            "{error:?}"
        );
    }

    proptest! {
        #[test]
        fn rubbish_is_an_error_and_not_a_panic(bytes: Vec<u8>) {
            if let Ok(entry) = Entry::decode(bytes.into()) {
                prop_assert!(entry.operations().is_ok() || entry.operations().is_err());
            }
        }
    }
}
