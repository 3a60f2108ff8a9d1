//! What the two ends of a link say, as frames: a tag, then what it means.

use std::fmt;

use bytes::{Buf, Bytes};
use serde::{Deserialize, Serialize};

use crate::epoch::Epoch;
use crate::position::Position;

use super::entry::{Entry, EntryError};
use super::point::Point;
use super::protocol::{Attempt, Session, Sketch, Welcome};
use super::snapshot::{Begin, Part};

/// The version of all of it.
pub const KV_LINK_VERSION: u32 = 1;

/// Each side says something at least so often, that the other may know that it is there.
pub const HEARTBEAT_INTERVAL: std::time::Duration = std::time::Duration::from_millis(500);

/// A link on which nothing was said for so long is given up.
pub const SILENCE_MAX: std::time::Duration = std::time::Duration::from_secs(3);

/// What a follower begins with, and again after it has taken a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// [`KV_LINK_VERSION`].
    pub version: u32,
    /// Which try it is.
    pub attempt: Attempt,
    /// The highest epoch that the follower has recorded.
    pub promised: Epoch,
    /// Its log.
    pub sketch: Sketch,
    /// It cannot go back to what both share, and needs the table in any case.
    pub wants_snapshot: bool,
}

/// What a follower says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FollowerSays {
    /// It wants to follow.
    Hello(Hello),
    /// So much of its log is durable, and the leader's.
    Acknowledged {
        /// In which session.
        session: Session,
        /// How far.
        position: Position,
    },
    /// It is there.
    Here,
}

/// What a leader says, but for entries.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LeaderSays {
    /// The session begins.
    Welcome {
        /// What the rules say of it.
        welcome: Welcome,
        /// How many standbys there are, and how many of them have a write before it is acknowledged: what a
        /// promotion has to know.
        standbys: usize,
        /// See `standbys`.
        acknowledge: usize,
    },
    /// The follower needs the table; parts of it follow, then it says hello again.
    Snapshot {
        /// What it begins with.
        begin: Begin,
        /// The newest point that both logs are known to share.
        shared: Option<Point>,
    },
    /// A part of the table, or its end.
    Part(Part),
    /// It cannot be followed, and why.
    Refused {
        /// A sentence.
        reason: String,
    },
}

/// What a leader answers to a sketch that is posted to it without a link: where the two logs part.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Met {
    /// The newest point that both logs are known to share.
    pub shared: Option<Position>,
    /// The log behind it is gone: the table has to come.
    pub needs_snapshot: bool,
    /// How much would travel, in bytes: the log behind `shared`, or the table.
    pub bytes: u64,
}

/// What a leader's frame holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FromLeader {
    /// Anything but entries.
    Says(LeaderSays),
    /// Entries of the log, in their order, and what is committed. Without any it says that the leader is there.
    Entries {
        /// In which session.
        session: Session,
        /// What is committed.
        committed: Position,
        /// The entries.
        entries: Vec<Entry>,
    },
}

/// Why a frame is not what it should be.
#[derive(Debug, thiserror::Error)]
pub enum KvWireError {
    /// It is too short, or of a kind that this program does not know.
    #[error("a frame that is none of this version")]
    Unknown,
    /// What it holds cannot be read.
    #[error("a frame that cannot be read")]
    Malformed(#[from] postcard::Error),
    /// An entry in it cannot be read.
    #[error("a frame with an entry that cannot be read")]
    Entry(#[from] EntryError),
}

const SAYS: u8 = 1;
const ENTRIES: u8 = 2;

/// How long the head of a frame of entries is.
pub const ENTRIES_HEAD_BYTES: usize = 17;

/// Returns the frame of what is said.
///
/// # Errors
/// When it cannot be encoded.
pub fn encode(says: &(impl Serialize + fmt::Debug)) -> Result<Vec<u8>, KvWireError> {
    Ok(postcard::to_extend(says, vec![SAYS])?)
}

/// Returns the head of a frame of entries; behind it come, for each, its length (u32, little endian) and its
/// bytes.
pub fn entries_head(session: Session, committed: Position) -> [u8; ENTRIES_HEAD_BYTES] {
    let mut head = [ENTRIES; ENTRIES_HEAD_BYTES];
    let (_, numbers) = head.split_at_mut(1);
    let (first, second) = numbers.split_at_mut(8);
    first.copy_from_slice(&session.0.to_le_bytes());
    second.copy_from_slice(&committed.0.to_le_bytes());
    head
}

/// Reads a leader's frame.
///
/// # Errors
/// When it is none.
pub fn from_leader(mut frame: Bytes) -> Result<FromLeader, KvWireError> {
    match frame.try_get_u8() {
        Ok(SAYS) => Ok(FromLeader::Says(postcard::from_bytes(&frame)?)),
        Ok(ENTRIES) => {
            let session = Session(frame.try_get_u64_le().map_err(|_| KvWireError::Unknown)?);
            let committed = Position(frame.try_get_u64_le().map_err(|_| KvWireError::Unknown)?);
            let mut entries = Vec::new();
            while !frame.is_empty() {
                let length = frame.try_get_u32_le().map_err(|_| KvWireError::Unknown)?;
                let length = usize::try_from(length).unwrap_or(usize::MAX);
                if length > frame.len() {
                    return Err(KvWireError::Unknown);
                }
                entries.push(Entry::decode(frame.split_to(length))?);
            }
            Ok(FromLeader::Entries {
                session,
                committed,
                entries,
            })
        }
        Ok(_) | Err(_) => Err(KvWireError::Unknown),
    }
}

/// Reads a follower's frame.
///
/// # Errors
/// When it is none.
pub fn from_follower(frame: &[u8]) -> Result<FollowerSays, KvWireError> {
    match frame.split_first() {
        Some((&SAYS, rest)) => Ok(postcard::from_bytes(rest)?),
        Some(_) | None => Err(KvWireError::Unknown),
    }
}
