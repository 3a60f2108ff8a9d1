//! One file of a log: a header, then records, each under a checksum.
//!
//! ```text
//! header   magic 8 · version u32 · first position u64 · name length u8 · name · checksum 8
//! record   length u32 · checksum 8 · end position u64 · payload
//! ```
//! Numbers are little endian. A checksum is the first eight bytes of a BLAKE3 hash; that of a record
//! covers its end position and its payload, and is keyed by where the record begins, so that a block
//! which a disk returns from another place is not taken for the one that belongs here.

#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use crate::position::Position;

/// The longest payload of a record. A longer one is refused before anything is allocated for it.
pub const LOG_PAYLOAD_BYTES_MAX: usize = 4 << 20;

const MAGIC: &[u8; 8] = b"understu";
const VERSION: u32 = 1;
const CHECKSUM_BYTES: usize = 8;
/// Everything of a record but its payload.
pub(super) const RECORD_HEAD_BYTES: usize = 4 + CHECKSUM_BYTES + 8;

/// What the bytes at an offset of a segment are.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// A whole record, and the offset behind it.
    Record {
        /// The position behind the record.
        end: Position,
        /// What it holds.
        payload: Vec<u8>,
        /// Where the next record begins.
        next: u64,
    },
    /// The end of the segment, exactly.
    End,
    /// Not a whole and undamaged record.
    Damaged,
}

/// Returns the bytes of a header.
pub(super) fn header(name: &str, first: Position) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&VERSION.to_le_bytes());
    bytes.extend_from_slice(&first.0.to_le_bytes());
    // Names of stores are far shorter; a longer one would only fail the comparison.
    bytes.push(u8::try_from(name.len()).unwrap_or(u8::MAX));
    bytes.extend_from_slice(name.as_bytes());
    let sum = checksum(0, &[&bytes]);
    bytes.extend_from_slice(&sum);
    bytes
}

/// Returns the bytes of a record that begins at `offset` of its segment.
pub(super) fn record(offset: u64, end: Position, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("the caller has checked the length");
    let end = end.0.to_le_bytes();
    let mut bytes = Vec::with_capacity(payload.len().saturating_add(RECORD_HEAD_BYTES));
    bytes.extend_from_slice(&length.to_le_bytes());
    bytes.extend_from_slice(&checksum(offset, &[&length.to_le_bytes(), &end, payload]));
    bytes.extend_from_slice(&end);
    bytes.extend_from_slice(payload);
    bytes
}

/// Reads the record that begins at `offset` of a segment of which `length` bytes are to be believed.
pub(super) fn read(file: &File, offset: u64, length: u64) -> io::Result<Found> {
    let left = length.saturating_sub(offset);
    if left == 0 {
        return Ok(Found::End);
    }
    let mut head = [0; RECORD_HEAD_BYTES];
    if left < u64::try_from(head.len()).unwrap_or(u64::MAX) {
        return Ok(Found::Damaged);
    }
    file.read_exact_at(&mut head, offset)?;
    let (size, rest) = head.split_at(4);
    let (sum, end) = rest.split_at(CHECKSUM_BYTES);
    let size: [u8; 4] = size.try_into().unwrap_or_default();
    let end: [u8; 8] = end.try_into().unwrap_or_default();
    let bytes = usize::try_from(u32::from_le_bytes(size)).unwrap_or(usize::MAX);
    let start = offset.saturating_add(u64::try_from(RECORD_HEAD_BYTES).unwrap_or(u64::MAX));
    let next = start.saturating_add(u64::try_from(bytes).unwrap_or(u64::MAX));
    if bytes > LOG_PAYLOAD_BYTES_MAX || next > length {
        return Ok(Found::Damaged);
    }
    let mut payload = vec![0; bytes];
    file.read_exact_at(&mut payload, start)?;
    if checksum(offset, &[&size, &end, &payload]) != *sum {
        return Ok(Found::Damaged);
    }
    Ok(Found::Record {
        end: Position(u64::from_le_bytes(end)),
        payload,
        next,
    })
}

fn checksum(offset: u64, parts: &[&[u8]]) -> [u8; CHECKSUM_BYTES] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&offset.to_le_bytes());
    for part in parts {
        hasher.update(part);
    }
    let mut sum = [0; CHECKSUM_BYTES];
    hasher.finalize_xof().fill(&mut sum);
    sum
}
