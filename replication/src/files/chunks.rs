//! The content-defined chunks of a file: where its content has shifted in several places, they are
//! found again wherever they are.
//!
//! FastCDC (Xia et al., 2016 and 2020). Cutting takes several times as long as hashing, so that a file
//! is cut only when its pages, compared one by one, have turned out not to be where they were.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufReader, Read};

use fastcdc::v2020::StreamCDC;

use super::patch::{Piece, Pieces};

/// How long chunks are: at least, on average, at most.
const CHUNK_BYTES: (usize, usize, usize) = (16 << 10, 64 << 10, 256 << 10);

/// A file is not cut into more chunks than this: the list takes 20 MiB then.
const CHUNKS_MAX: usize = 1 << 20;

const HASH_BYTES: usize = 16;
const ENCODED_BYTES: usize = HASH_BYTES + 4;

/// The chunks of a file, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunks(Vec<Chunk>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Chunk {
    hash: [u8; HASH_BYTES],
    bytes: u32,
}

impl Chunks {
    /// Cuts the first `size` bytes of a file; `None` when there would be too many chunks.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn read(file: &File, size: u64) -> io::Result<Option<Self>> {
        use std::io::{Seek, SeekFrom};
        let mut file = file;
        file.seek(SeekFrom::Start(0))?;
        let reader = BufReader::with_capacity(1 << 20, file.take(size));
        let (least, average, most) = CHUNK_BYTES;
        let mut chunks = Vec::new();
        for chunk in StreamCDC::new(reader, least, average, most) {
            let chunk = chunk.map_err(io::Error::other)?;
            let mut hash = [0; HASH_BYTES];
            blake3::Hasher::new()
                .update(&chunk.data)
                .finalize_xof()
                .fill(&mut hash);
            let bytes = u32::try_from(chunk.length).map_err(io::Error::other)?;
            if chunks.len() == CHUNKS_MAX {
                return Ok(None);
            }
            chunks.push(Chunk { hash, bytes });
        }
        Ok(Some(Self(chunks)))
    }

    /// Returns what the file with these chunks consists of, in pieces of that with `old` ones; `None`
    /// when that takes too many pieces.
    pub fn pieces_from(&self, old: &Self) -> Option<Vec<Piece>> {
        let mut places = HashMap::with_capacity(old.0.len());
        let mut at = 0_u64;
        for chunk in &old.0 {
            places.entry((chunk.hash, chunk.bytes)).or_insert(at);
            at = at.saturating_add(u64::from(chunk.bytes));
        }
        let mut pieces = Pieces::default();
        for chunk in &self.0 {
            let bytes = u64::from(chunk.bytes);
            pieces.push(match places.get(&(chunk.hash, chunk.bytes)) {
                Some(offset) => Piece::Keep {
                    offset: *offset,
                    bytes,
                },
                None => Piece::Literal(bytes),
            });
        }
        pieces.finish()
    }

    /// Returns it as values of a table, each no longer than `bytes_max`.
    pub fn encode(&self, bytes_max: usize) -> impl Iterator<Item = Vec<u8>> {
        self.0
            .chunks((bytes_max / ENCODED_BYTES).max(1))
            .map(|chunks| {
                let mut bytes = Vec::with_capacity(chunks.len().saturating_mul(ENCODED_BYTES));
                for chunk in chunks {
                    bytes.extend_from_slice(&chunk.hash);
                    bytes.extend_from_slice(&chunk.bytes.to_le_bytes());
                }
                bytes
            })
    }

    /// Reads it from values of a table; `None` when they are not the chunks of a file of that size.
    pub fn decode(size: u64, values: &[Vec<u8>]) -> Option<Self> {
        let mut chunks = Vec::new();
        let mut total = 0_u64;
        for bytes in values.iter().flat_map(|value| value.chunks(ENCODED_BYTES)) {
            let (hash, rest) = bytes.split_first_chunk::<HASH_BYTES>()?;
            let bytes = u32::from_le_bytes(rest.try_into().ok()?);
            total = total.checked_add(u64::from(bytes))?;
            chunks.push(Chunk { hash: *hash, bytes });
        }
        (total == size).then_some(Self(chunks))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn content_that_has_shifted_in_several_places_is_found_again() {
        let mut old = vec![0; 4 << 20];
        blake3::Hasher::new().finalize_xof().fill(&mut old);
        let mut new = old.clone();
        for (at, more) in [(3_000_000, 1000), (2_000_000, 77), (10, 5000)] {
            new.splice(at..at, std::iter::repeat_n(7, more));
        }
        let cut = |content: &[u8]| {
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(content).unwrap();
            Chunks::read(&file, content.len() as u64).unwrap().unwrap()
        };
        let (from, to) = (cut(&old), cut(&new));
        let pieces = to.pieces_from(&from).unwrap();
        let (mut made, mut literal) = (Vec::new(), 0);
        for piece in pieces {
            match piece {
                Piece::Keep { offset, bytes } => {
                    let offset = usize::try_from(offset).unwrap();
                    made.extend_from_slice(&old[offset..][..usize::try_from(bytes).unwrap()]);
                }
                Piece::Literal(bytes) => {
                    let at = made.len();
                    made.extend_from_slice(&new[at..][..usize::try_from(bytes).unwrap()]);
                    literal += bytes;
                }
                Piece::Zero(_) => unreachable!("there are none"),
            }
        }
        assert!(made == new);
        assert!(literal < 1 << 20, "{literal}");
        let values: Vec<_> = from.encode(4096).collect();
        assert!(values.iter().all(|value| value.len() <= 4096));
        assert_eq!(Chunks::decode(4 << 20, &values), Some(from));
        assert_eq!(Chunks::decode(1, &values), None);
    }
}
