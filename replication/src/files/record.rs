//! What a record of a files store's log holds.

#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use super::batch::{Batch, BatchError};

/// One record. Only a batch advances the position; what it needs stands before it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogEntry {
    /// Changes. On the primary there is nothing else: content is read when it is shipped.
    Batch(Batch),
    /// What comes along with an operation of the batch that follows, by its place in it.
    Content(u32, Vec<u8>),
    /// The places of the operations whose content did not come along: the primary did not have it any
    /// more, or it is so long that it comes by itself.
    Awaited(Vec<u32>),
}

/// Why bytes are not a record of this log.
#[derive(Debug, thiserror::Error)]
pub enum LogEntryError {
    /// Of a kind that is not known.
    #[error("a record of an unknown kind in the log")]
    Unknown,
    /// A batch that cannot be read.
    #[error("a record that cannot be read in the log")]
    Batch(#[from] BatchError),
    /// A list that cannot be read.
    #[error("a record that cannot be read in the log")]
    Malformed(#[from] postcard::Error),
}

const BATCH: u8 = b'B';
const CONTENT: u8 = b'C';
const AWAITED: u8 = b'A';

impl LogEntry {
    /// Returns the record of a batch.
    ///
    /// # Errors
    /// When the batch is too long.
    pub fn encode_batch(batch: &Batch) -> Result<Vec<u8>, BatchError> {
        let mut bytes = vec![BATCH];
        bytes.extend_from_slice(&batch.encode()?);
        Ok(bytes)
    }

    /// Returns the record of the content for operation `index`.
    pub fn encode_content(index: u32, content: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(content.len().saturating_add(5));
        bytes.push(CONTENT);
        bytes.extend_from_slice(&index.to_le_bytes());
        bytes.extend_from_slice(content);
        bytes
    }

    /// Returns the record that tells which content did not come along.
    ///
    /// # Errors
    /// Never in practice: the list is no longer than a batch.
    pub fn encode_awaited(indexes: &[u32]) -> Result<Vec<u8>, postcard::Error> {
        postcard::to_extend(indexes, vec![AWAITED])
    }

    /// Reads a record.
    ///
    /// # Errors
    /// When it was written by something else.
    pub fn decode(bytes: &[u8]) -> Result<Self, LogEntryError> {
        match bytes.split_first() {
            Some((&BATCH, rest)) => Ok(Self::Batch(Batch::decode(rest)?)),
            Some((&CONTENT, rest)) => {
                let (index, content) = rest.split_first_chunk().ok_or(LogEntryError::Unknown)?;
                Ok(Self::Content(u32::from_le_bytes(*index), content.to_vec()))
            }
            Some((&AWAITED, rest)) => Ok(Self::Awaited(postcard::from_bytes(rest)?)),
            Some(_) | None => Err(LogEntryError::Unknown),
        }
    }
}
