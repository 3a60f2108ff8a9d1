//! Messages between the two ends of a files store.
//!
//! ```text
//! GET  /snapshot              Snapshot, Listed…, End
//! POST /content  [Wanted]     per wanted: (Chunk or Hole)…, then Complete or Superseded; End
//! GET  /log?from=P&root=R     Hello, then without end: Batch, per content of it Chunk…, then
//!                             Complete, Superseded or Deferred; Heartbeat in every quiet second
//! ```
//! A frame of the transport holds many messages, each as length (u32, little endian), a tag, and its
//! bytes: small files are packed. A frame may be compressed as a whole, and is then one message.

#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::fs::File;
use std::io;

use bytes::{Buf, Bytes};
use serde::{Deserialize, Serialize};

use super::batch::{BATCH_BYTES_MAX, Batch, BatchError};
use super::entry::{Digest, Entry};
use super::path::RelPath;
use crate::epoch::Epoch;
use crate::position::Position;
use crate::transport::FRAME_ROOM;

/// How much of a file's content one message carries at most.
pub const CHUNK_BYTES_MAX: usize = 256 << 10;

/// A frame is sent once it is this long. With the longest message it still fits into a frame of the
/// transport.
const FRAME_BYTES_FULL: usize = 256 << 10;

/// How many contents one request may ask for.
pub const WANTED_MAX: usize = 1024;

/// The longest request for contents.
pub const WANTED_BYTES_MAX: usize = 1 << 20;

/// How often the primary says that it is there when nothing happens.
pub const HEARTBEAT_INTERVAL: std::time::Duration = std::time::Duration::from_secs(1);

/// A standby that has heard nothing for this long takes the link for dead.
pub const SILENCE_MAX: std::time::Duration = std::time::Duration::from_secs(5);

/// One message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// A piece of a file's content.
    Chunk(Bytes),
    /// A batch; its contents follow.
    Batch(Batch),
    /// Everything else.
    Note(Note),
}

/// A message without content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Note {
    /// Begins a log stream.
    Hello {
        /// The primary's epoch.
        epoch: Epoch,
        /// Where the primary is.
        position: Position,
    },
    /// Begins a snapshot.
    Snapshot {
        /// The primary's epoch.
        epoch: Epoch,
        /// The position that the snapshot shows.
        position: Position,
        /// The root of its manifest.
        root: Digest,
        /// How many entries follow.
        entries: u64,
        /// How many bytes the files have.
        bytes: u64,
    },
    /// An entry of a snapshot: its depth, its name and what it is. Directories come before what they
    /// hold.
    Listed(u32, Vec<u8>, Entry),
    /// So many zeros, which take no room on the sender's disk.
    Hole(u64),
    /// The content is whole. Whether it has its hash is for the receiver to check.
    Complete,
    /// The file is not what it was, and what has come of it is void. A later batch brings it, or it can
    /// be asked for again.
    Superseded,
    /// The content is long. It is asked for by itself, so that nobody waits behind it.
    Deferred,
    /// Nothing happens.
    Heartbeat {
        /// Where the primary is.
        position: Position,
    },
    /// Nothing follows.
    End,
}

/// A content that the standby asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wanted {
    /// The file.
    pub path: RelPath,
    /// How long it is.
    pub size: u64,
    /// What hash it has.
    pub hash: Digest,
    /// Which part of it.
    pub part: Part,
}

/// A part of a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Part {
    /// All from an offset on.
    From(u64),
    /// Parts of it, as offset and length, in order.
    Ranges(Vec<(u64, u64)>),
}

/// Why a frame cannot be understood.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// A length or a tag that no message has.
    #[error("a malformed frame")]
    Frame,
    /// A batch that is none.
    #[error("a malformed message")]
    Batch(#[from] BatchError),
    /// A note that is none.
    #[error("a malformed message")]
    Note(#[from] postcard::Error),
    /// A message where another one belongs.
    #[error("{found} where {expected} was expected")]
    Unexpected {
        /// What came.
        found: &'static str,
        /// What belongs there.
        expected: &'static str,
    },
}

impl Message {
    /// Returns a word for it, for errors.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Chunk(_) => "content",
            Self::Batch(_) => "a batch",
            Self::Note(Note::Hello { .. }) => "a greeting",
            Self::Note(Note::Snapshot { .. }) => "a snapshot",
            Self::Note(Note::Listed(..)) => "an entry",
            Self::Note(Note::Hole(_)) => "a hole",
            Self::Note(Note::Complete) => "the end of a content",
            Self::Note(Note::Superseded) => "a superseded content",
            Self::Note(Note::Deferred) => "a deferred content",
            Self::Note(Note::Heartbeat { .. }) => "a heartbeat",
            Self::Note(Note::End) => "the end",
        }
    }

    /// Returns the error that it is not what was `expected`.
    pub fn unexpected(&self, expected: &'static str) -> WireError {
        WireError::Unexpected {
            found: self.name(),
            expected,
        }
    }
}

const CHUNK: u8 = 0;
const BATCH: u8 = 1;
const NOTE: u8 = 2;
const PACKED: u8 = 3;

/// A compressed frame is not unpacked to more than this: the longest frame that is packed.
const UNPACKED_BYTES_MAX: usize = FRAME_BYTES_FULL + BATCH_BYTES_MAX + CHUNK_BYTES_MAX;

/// What is gained by compressing: less is not worth the receiver's time.
const GAIN_SHARE: usize = 8;

/// Packs messages into frames. In front of a frame there is room for its length.
#[derive(Debug, Default)]
pub struct Packer(Vec<u8>);

impl Packer {
    /// Adds a piece of content.
    pub fn chunk(&mut self, bytes: &[u8]) {
        debug_assert!(
            bytes.len() <= CHUNK_BYTES_MAX,
            "the caller cuts content into chunks"
        );
        self.push(CHUNK, bytes);
    }

    /// Adds a piece of content: so many bytes of a file, from an offset on. After an error nothing has
    /// been added.
    ///
    /// # Errors
    /// When it cannot be read, or ends before.
    pub fn chunk_of(&mut self, file: &File, offset: u64, bytes: usize) -> io::Result<()> {
        debug_assert!(
            bytes <= CHUNK_BYTES_MAX,
            "the caller cuts content into chunks"
        );
        let before = self.0.len();
        self.head(CHUNK, bytes);
        let start = self.0.len();
        let read = self.read_from(file, offset, start.saturating_add(bytes));
        if read.is_err() {
            self.0.truncate(before);
        }
        read
    }

    /// Reads until the frame has `end` bytes. Into room that nothing was written to before, which for
    /// long files would take as long as the reading.
    fn read_from(&mut self, file: &File, offset: u64, end: usize) -> io::Result<()> {
        let start = self.0.len();
        self.0.reserve(end.saturating_sub(start));
        while self.0.len() < end {
            let done = self.0.len().saturating_sub(start);
            let at = offset.saturating_add(u64::try_from(done).unwrap_or(u64::MAX));
            match rustix::io::pread(file, rustix::buffer::spare_capacity(&mut self.0), at) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        // There may be room for more than was wanted.
        self.0.truncate(end);
        Ok(())
    }

    /// Adds a batch.
    ///
    /// # Errors
    /// When it is too long.
    pub fn batch(&mut self, batch: &Batch) -> Result<(), WireError> {
        self.push(BATCH, &batch.encode()?);
        Ok(())
    }

    /// Adds a note.
    ///
    /// # Errors
    /// When it cannot be encoded, which no note is known for.
    pub fn note(&mut self, note: &Note) -> Result<(), WireError> {
        self.push(NOTE, &postcard::to_stdvec(note)?);
        Ok(())
    }

    /// Returns whether it is time to send what is there.
    pub fn is_full(&self) -> bool {
        self.0.len() >= FRAME_BYTES_FULL
    }

    /// Returns the frame, if there is anything in it.
    pub fn take(&mut self) -> Option<Vec<u8>> {
        let mut frame = self.take_with_room()?;
        frame.drain(..FRAME_ROOM);
        Some(frame)
    }

    /// Returns the frame, if there is anything in it, with room for its length in front.
    pub fn take_with_room(&mut self) -> Option<Vec<u8>> {
        (self.0.len() > FRAME_ROOM).then(|| std::mem::take(&mut self.0))
    }

    fn push(&mut self, tag: u8, bytes: &[u8]) {
        self.head(tag, bytes.len());
        self.0.extend_from_slice(bytes);
    }

    fn head(&mut self, tag: u8, bytes: usize) {
        if self.0.is_empty() {
            self.0.reserve(FRAME_BYTES_FULL.saturating_add(64));
            self.0.extend_from_slice(&[0; FRAME_ROOM]);
        }
        let length = u32::try_from(bytes).expect("messages are far below 4 GiB");
        self.0.extend_from_slice(&length.to_le_bytes());
        self.0.push(tag);
    }
}

/// Compresses a frame with room in front into another; `None` when little is gained by it.
pub fn compress(frame: &[u8]) -> Option<Vec<u8>> {
    let (_, frame) = frame.split_at_checked(FRAME_ROOM)?;
    // Level 1: some 500 MB a second, on a link that is slower than that.
    let packed = zstd::bulk::compress(frame, 1).ok()?;
    if packed.len() > frame.len().saturating_sub(frame.len() / GAIN_SHARE) {
        return None;
    }
    let mut packer = Packer::default();
    packer.push(PACKED, &packed);
    packer.take_with_room()
}

/// Takes the next message off `frame`; `None` at its end.
///
/// # Errors
/// When what comes next is no message.
pub fn unpack(frame: &mut Bytes) -> Result<Option<Message>, WireError> {
    unpack_at(frame, 0)
}

fn unpack_at(frame: &mut Bytes, depth: u8) -> Result<Option<Message>, WireError> {
    if frame.is_empty() {
        return Ok(None);
    }
    if frame.len() < 5 {
        return Err(WireError::Frame);
    }
    let length = usize::try_from(frame.get_u32_le()).unwrap_or(usize::MAX);
    let tag = frame.get_u8();
    if length > frame.len() {
        return Err(WireError::Frame);
    }
    let bytes = frame.split_to(length);
    if tag == PACKED {
        // One in another, or beside others, is nothing that is ever sent.
        if !frame.is_empty() || depth > 0 {
            return Err(WireError::Frame);
        }
        let unpacked = zstd::bulk::decompress(&bytes, UNPACKED_BYTES_MAX);
        *frame = Bytes::from(unpacked.map_err(|_| WireError::Frame)?);
        return unpack_at(frame, 1);
    }
    Ok(Some(match tag {
        CHUNK if length <= CHUNK_BYTES_MAX => Message::Chunk(bytes),
        BATCH => Message::Batch(Batch::decode(&bytes)?),
        NOTE => Message::Note(postcard::from_bytes(&bytes)?),
        _ => return Err(WireError::Frame),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_piece_of_a_file_is_added_whole_or_not_at_all() {
        use std::io::Write;
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"0123456789").unwrap();
        let mut packer = Packer::default();
        packer.chunk_of(&file, 2, 5).unwrap();
        assert!(packer.chunk_of(&file, 6, 5).is_err(), "it ends before");
        packer.chunk_of(&file, 6, 4).unwrap();
        let mut frame = Bytes::from(packer.take().unwrap());
        let mut next = || unpack(&mut frame).unwrap();
        assert_eq!(next(), Some(Message::Chunk(Bytes::from_static(b"23456"))));
        assert_eq!(next(), Some(Message::Chunk(Bytes::from_static(b"6789"))));
        assert_eq!(next(), None);
    }

    #[test]
    fn messages_are_packed_and_come_out_in_order() {
        let mut packer = Packer::default();
        packer.chunk(b"some");
        packer.note(&Note::Complete).unwrap();
        packer
            .note(&Note::Heartbeat {
                position: Position(7),
            })
            .unwrap();
        let mut frame = Bytes::from(packer.take().unwrap());
        assert!(packer.take().is_none());
        let mut messages = Vec::new();
        while let Some(message) = unpack(&mut frame).unwrap() {
            messages.push(message);
        }
        assert_eq!(
            messages,
            [
                Message::Chunk(Bytes::from_static(b"some")),
                Message::Note(Note::Complete),
                Message::Note(Note::Heartbeat {
                    position: Position(7)
                }),
            ]
        );
    }

    #[test]
    fn a_compressed_frame_is_what_it_was_and_a_bomb_is_none() {
        let mut packer = Packer::default();
        packer.chunk(&[7; 100_000]);
        packer.note(&Note::Complete).unwrap();
        let frame = packer.take_with_room().unwrap();
        let packed = compress(&frame).unwrap();
        assert!(packed.len() < 1000);
        let body = |frame: Vec<u8>| Bytes::from(frame).slice(FRAME_ROOM..);
        let (mut plain, mut packed) = (body(frame), body(packed));
        for _ in 0..3 {
            assert_eq!(unpack(&mut plain).unwrap(), unpack(&mut packed).unwrap());
        }
        assert!(unpack(&mut packed).unwrap().is_none());

        let bomb = zstd::bulk::compress(&vec![0; 64 << 20], 1).unwrap();
        let mut packer = Packer::default();
        packer.push(PACKED, &bomb);
        let mut frame = Bytes::from(packer.take().unwrap());
        assert!(matches!(unpack(&mut frame), Err(WireError::Frame)));
        let nested = compress(&compress(&[0; 500_000]).unwrap());
        assert!(nested.is_none_or(|nested| unpack(&mut body(nested)).is_err()));
    }

    #[test]
    fn a_hostile_path_does_not_get_past_the_door() {
        let wanted = Wanted {
            path: RelPath::new("xx/yy").unwrap(),
            size: 1,
            hash: Digest::of(b""),
            part: Part::From(0),
        };
        let mut bytes = postcard::to_stdvec(&vec![wanted]).unwrap();
        let at = bytes
            .windows(5)
            .position(|window| window == b"xx/yy")
            .unwrap();
        bytes.splice(at..at + 5, *b"../yy");
        assert!(postcard::from_bytes::<Vec<Wanted>>(&bytes).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_are_messages_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let mut frame = Bytes::from(bytes);
            while let Ok(Some(_)) = unpack(&mut frame) {}
        }
    }
}
