//! What the two sides tell each other.

use serde::{Deserialize, Serialize};

use crate::epoch::Epoch;
use crate::kv::point::{EntryDigest, Point};
use crate::position::Position;

/// One try of a follower to begin a session. Each is greater than the one before in the same process.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Attempt(pub u64);

/// One link's life, numbered by the leader: what names another session is ignored.
///
/// The first of a run is random, so that those of two runs differ.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Session(pub u64);

/// What an entry says of itself before its operations.
///
/// An entry without operations is an *opening*: a leader begins each run with one, and it takes one position.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EntryHead {
    /// In which epoch it was made.
    pub epoch: Epoch,
    /// Where the opening of the run that made it starts; its own start, if it is the opening.
    ///
    /// A primary that restarts in its epoch makes other entries where some of its former run may still lie on a
    /// standby. The later run is the one that opened further on.
    pub opened: Position,
    /// How many operations lie before it.
    pub start: Position,
    /// Where its successor starts; always behind `start`.
    pub end: Position,
    /// The digest of the entry before it.
    pub previous: EntryDigest,
    /// What its maker knew to be committed when it made it.
    pub committed: Position,
    /// The digest of all of the above and of the operations.
    pub digest: EntryDigest,
}

impl EntryHead {
    /// Returns the point behind it.
    pub fn point(&self) -> Point {
        Point {
            position: self.end,
            epoch: Some(self.epoch.clone()),
            digest: self.digest,
        }
    }

    /// Returns whether it opens a run.
    pub fn is_opening(&self) -> bool {
        self.opened == self.start
    }
}

/// The leader's answer to a follower whose log shares with its own what it needs to go on from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// Which try it answers.
    pub attempt: Attempt,
    /// What everything on this link names from now on.
    pub session: Session,
    /// The leader's epoch.
    pub epoch: Epoch,
    /// The newest point that both logs share; the stream begins behind it.
    pub from: Point,
    /// The end of the leader's log, for the lag. Nothing is decided by it: a surplus of the follower's parts from
    /// the leader's log at the opening of its run at the latest, and is cut there.
    pub end: Position,
}
