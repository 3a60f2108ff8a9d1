//! What travels in a re-seed, and how long it may be.
//!
//! Everything is encoded by postcard, in lists: a frame of [`Entry`]s, a request of [`Piece`]s, a frame of
//! [`Change`]s. A list is bounded by the frame or the body that it comes in, and checked here for what the
//! bounds do not say.

#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::path::ClusterPath;

/// What is compared at once: a page of Postgres, unless it was built otherwise; then it still works.
pub const BLOCK_BYTES: u64 = 8192;

/// The body of a question for differences is no longer than this.
pub const REQUEST_BYTES_MAX: usize = 1 << 20;

/// The bytes of one [`Change`], at most.
pub const CHANGE_BYTES_MAX: usize = 1 << 20;

/// A cluster has no more files and directories than this: one that tells more is not believed.
pub const LIST_ENTRIES_MAX: usize = 8 << 20;

/// No file of a cluster is longer: Postgres cuts its own at 1 GB, whatever else lies there is smaller than
/// this.
const FILE_BYTES_MAX: u64 = 1 << 44;

/// The digest of a block: blake3, of which half is kept. Neither side gains by a collision, and chance makes
/// none in 2^64 blocks.
pub type Digest = [u8; 16];

/// Returns the digest of a block.
pub fn digest(block: &[u8]) -> Digest {
    let whole = blake3::hash(block);
    let mut half = [0; 16];
    for (to, from) in half.iter_mut().zip(whole.as_bytes()) {
        *to = *from;
    }
    half
}

/// A backup has begun on the primary.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Begun {
    /// What the questions name it by.
    pub backup: u64,
    /// It ends by itself if nothing is asked for this long.
    pub silence_seconds: u64,
    /// A folder of the server's own log within the data directory; each node has its own.
    pub log_folder: Option<ClusterPath>,
}

/// What `pg_backup_stop` has told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// The content of `backup_label`.
    pub label: String,
}

/// A file or a directory of the copy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Where it is.
    pub path: ClusterPath,
    /// How long the file is; `None` for a directory.
    pub size: Option<u64>,
}

/// A part of a file that the standby asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Piece {
    /// The file.
    pub path: ClusterPath,
    /// Where the part begins: a whole number of blocks.
    pub offset: u64,
    /// How long it is.
    pub bytes: u64,
    /// The digests of the standby's blocks of it, from the first on. Those beyond are missing there. The last
    /// may be of less than a block.
    pub digests: Vec<Digest>,
}

/// An answer to a piece.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Change {
    /// These bytes are not there, or differ.
    Bytes {
        /// Which piece of the question, from 0.
        piece: u32,
        /// Where in the file.
        offset: u64,
        /// What is there on the primary.
        #[serde(with = "at_once")]
        bytes: Vec<u8>,
    },
    /// Nothing more comes of a piece.
    Done {
        /// Which piece of the question, from 0.
        piece: u32,
        /// Where the file ends on the primary, if that is within the piece, or before it; otherwise the end of
        /// the piece. `None` if there is no such file any more.
        end: Option<u64>,
    },
}

/// Encodes bytes as one piece: a list is encoded and decoded a byte at a time.
mod at_once {
    use std::fmt;

    use serde::de::{Error, Visitor};
    use serde::{Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], to: S) -> Result<S::Ok, S::Error> {
        to.serialize_bytes(bytes)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u8>, D::Error> {
        struct Bytes;

        impl Visitor<'_> for Bytes {
            type Value = Vec<u8>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("bytes")
            }

            // Borrowed from the frame: what is allocated is no longer than what has come.
            fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<Vec<u8>, E> {
                Ok(bytes.to_vec())
            }
        }

        from.deserialize_bytes(Bytes)
    }
}

/// Something that was sent cannot be meant so.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// It is not encoded as agreed.
    #[error("{what} cannot be decoded")]
    Encoding {
        /// What it is.
        what: &'static str,
        /// What is wrong with it.
        source: postcard::Error,
    },
    /// A figure is out of its bounds.
    #[error("{what} of {path} is out of bounds")]
    Bounds {
        /// Which figure.
        what: &'static str,
        /// Of which file.
        path: ClusterPath,
    },
    /// A change is longer than it may be, or of a piece that was not asked for.
    #[error("a change of piece {piece} does not fit what was asked for")]
    Change {
        /// Of which piece.
        piece: u32,
    },
}

/// Encodes a list.
pub fn encode<T: Serialize>(list: &[T]) -> Vec<u8> {
    postcard::to_stdvec(list).expect("these types have no form that cannot be encoded")
}

fn decode<T: DeserializeOwned>(what: &'static str, bytes: &[u8]) -> Result<Vec<T>, WireError> {
    postcard::from_bytes(bytes).map_err(|source| WireError::Encoding { what, source })
}

/// Decodes a frame of the list of files.
///
/// # Errors
/// When it is not one.
pub fn decode_entries(frame: &[u8]) -> Result<Vec<Entry>, WireError> {
    let entries: Vec<Entry> = decode("a list of files", frame)?;
    match entries
        .iter()
        .find(|entry| entry.size > Some(FILE_BYTES_MAX))
    {
        Some(entry) => Err(WireError::Bounds {
            what: "the size",
            path: entry.path.clone(),
        }),
        None => Ok(entries),
    }
}

/// Decodes a question for differences.
///
/// # Errors
/// When it is not one.
pub fn decode_pieces(body: &[u8]) -> Result<Vec<Piece>, WireError> {
    let pieces: Vec<Piece> = decode("a question for differences", body)?;
    for piece in &pieces {
        let bounds = |what| WireError::Bounds {
            what,
            path: piece.path.clone(),
        };
        if !piece.offset.is_multiple_of(BLOCK_BYTES) {
            return Err(bounds("the offset"));
        }
        let end = piece.offset.checked_add(piece.bytes);
        if end.is_none_or(|end| end > FILE_BYTES_MAX) {
            return Err(bounds("the end"));
        }
        let blocks = usize::try_from(piece.bytes.div_ceil(BLOCK_BYTES)).unwrap_or(usize::MAX);
        if piece.digests.len() > blocks {
            return Err(bounds("the number of digests"));
        }
    }
    Ok(pieces)
}

/// Decodes a frame of changes, which answers `pieces`.
///
/// # Errors
/// When it is not one, or tells of what was not asked for.
pub fn decode_changes(frame: &[u8], pieces: &[Piece]) -> Result<Vec<Change>, WireError> {
    let changes: Vec<Change> = decode("a list of changes", frame)?;
    for change in &changes {
        let number = match change {
            Change::Bytes { piece, .. } | Change::Done { piece, .. } => *piece,
        };
        let unasked = || WireError::Change { piece: number };
        let index = usize::try_from(number).map_err(|_| unasked())?;
        let piece = pieces.get(index).ok_or_else(unasked)?;
        let piece_end = piece.offset.saturating_add(piece.bytes);
        let is_within = match change {
            Change::Bytes { offset, bytes, .. } => {
                let length = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
                let end = offset.checked_add(length);
                bytes.len() <= CHANGE_BYTES_MAX
                    && *offset >= piece.offset
                    && end.is_some_and(|end| end <= piece_end)
            }
            Change::Done { end, .. } => end.is_none_or(|end| end <= piece_end),
        };
        if !is_within {
            return Err(unasked());
        }
    }
    Ok(changes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn piece(offset: u64, bytes: u64, digests: usize) -> Piece {
        Piece {
            path: "base/5/1249".parse().unwrap(),
            offset,
            bytes,
            digests: vec![[7; 16]; digests],
        }
    }

    fn bytes(piece: u32, offset: u64, length: usize) -> Change {
        let bytes = vec![1; length];
        Change::Bytes {
            piece,
            offset,
            bytes,
        }
    }

    #[test]
    fn what_is_encoded_is_decoded() {
        let pieces = vec![piece(8192, 20_000, 3), piece(0, 0, 0)];
        assert_eq!(decode_pieces(&encode(&pieces)).unwrap(), pieces);
        let changes = vec![
            bytes(0, 8192, 8192),
            bytes(0, 24_576, 3616),
            Change::Done {
                piece: 0,
                end: Some(28_192),
            },
            Change::Done {
                piece: 1,
                end: None,
            },
        ];
        assert_eq!(decode_changes(&encode(&changes), &pieces).unwrap(), changes);
        let entry = Entry {
            path: "base".parse().unwrap(),
            size: None,
        };
        let entries = vec![entry];
        assert_eq!(decode_entries(&encode(&entries)).unwrap(), entries);
    }

    #[test]
    fn a_question_out_of_bounds_is_refused() {
        let hostile = [
            piece(1, 8192, 0),
            piece(0, 8192, 2),
            piece(0, 0, 1),
            piece(FILE_BYTES_MAX, 1, 0),
            piece(u64::MAX - 8191, u64::MAX, 0),
        ];
        for piece in hostile {
            let told = format!("{} {} {}", piece.offset, piece.bytes, piece.digests.len());
            assert!(decode_pieces(&encode(&[piece])).is_err(), "{told}");
        }
    }

    #[test]
    fn an_answer_that_was_not_asked_for_is_refused() {
        let pieces = [piece(8192, 8192, 1)];
        let hostile = [
            bytes(1, 8192, 1),
            bytes(0, 0, 1),
            bytes(0, 8192, 8193),
            bytes(0, u64::MAX, 1),
            Change::Done {
                piece: 7,
                end: None,
            },
            Change::Done {
                piece: 0,
                end: Some(16_385),
            },
        ];
        for change in hostile {
            let told = format!("{change:?}");
            assert!(
                decode_changes(&encode(&[change]), &pieces).is_err(),
                "{told}"
            );
        }
    }

    #[test]
    fn a_list_that_claims_more_than_it_holds_is_refused() {
        // A length of 2^63 in front of nothing.
        let frame = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f];
        assert!(decode_entries(&frame).is_err());
        assert!(decode_pieces(&frame).is_err());
        assert!(decode_changes(&frame, &[]).is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_panic(frame in prop::collection::vec(any::<u8>(), 0..200)) {
            drop((decode_entries(&frame), decode_pieces(&frame), decode_changes(&frame, &[])));
        }
    }
}
