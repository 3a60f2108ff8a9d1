//! What the two sides of a pair tell each other, beside the stores' own streams.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use understudy_config::{NodeName, StoreName};

use crate::check::Depth;
use crate::epoch::Epoch;
use crate::pause::PauseRecord;
use crate::position::Position;
use crate::status::RoleName;
use crate::store::Received;
use crate::wall_time::WallTime;

/// The answer to `GET /peer/hello`: what a node is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The node.
    pub node: NodeName,
    /// What it is.
    pub role: RoleName,
    /// The highest epoch that it has seen or proposed.
    pub epoch: Epoch,
    /// Its wall clock.
    pub time: WallTime,
    /// What its configuration says, in a digest; `None` of a version that tells none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config: Option<ConfigDigest>,
    /// What it knows of pauses; `None` of a version that knows none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pause: Option<PauseRecord>,
}

/// What a configuration says, in short: it should be the same on every node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigDigest {
    /// The version of the program: what another one reads of the same file may differ.
    pub software: String,
    /// BLAKE3 over what was read of `understudy.toml`, as hexadecimal digits.
    pub digest: String,
}

/// What a standby posts to `/peer/report`, at least with every mark.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StandbyReport {
    /// How far each store's copy is.
    pub stores: BTreeMap<StoreName, Received>,
}

/// Which of a standby's positions somebody waits for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// What is durable there.
    Flushed,
    /// What is visible there.
    #[default]
    Applied,
}

impl Level {
    /// Returns the position of this level.
    pub fn of(self, received: &Received) -> Option<Position> {
        match self {
            Self::Flushed => received.flushed,
            Self::Applied => received.applied,
        }
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Flushed => "flushed",
            Self::Applied => "applied",
        })
    }
}

/// Asks the primary where its stores are now: posted to `/peer/barrier`, which takes `null` for all of
/// them as well.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BarrierRequest {
    /// The stores; none means all.
    pub stores: Vec<StoreName>,
}

/// Asks a standby to answer as soon as its copies are so far: posted to `/peer/await`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AwaitRequest {
    /// How far each store has to be.
    pub until: BTreeMap<StoreName, Position>,
    /// By which of its positions.
    pub level: Level,
    /// How long it may wait before it answers in any case; it takes less where that is too long.
    pub patience_ms: u64,
}

/// What a standby answers to an [`AwaitRequest`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AwaitAnswer {
    /// The stores that are not so far yet.
    pub missing: Vec<StoreName>,
}

/// The version of [`CheckRequest`] and of what is answered to it.
pub const CHECK_VERSION: u32 = 1;

/// Asks a peer to check its side of a store: posted to `/peer/check`. The answer is a stream of frames
/// that tell how far it is and then what was found; closing it stops the check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckRequest {
    /// [`CHECK_VERSION`].
    pub version: u32,
    /// The store.
    pub store: StoreName,
    /// How deep.
    pub depth: Depth,
}

/// Asks the primary what the root of a store was at a position: posted to `/peer/root`. The answer is
/// the root, or `null` when that is not known.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootRequest {
    /// The store.
    pub store: StoreName,
    /// The position.
    pub position: Position,
}

/// Asks a peer to fence itself: posted to `/peer/fence`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FenceRequest {
    /// The epoch that supersedes it.
    pub epoch: Epoch,
    /// It hands over in a switchover, and follows the caller as soon as that is primary.
    #[serde(default)]
    pub hands_over: bool,
    /// The epoch that the asker knows and supersedes: a node that is in a higher one refuses, and the asker
    /// learns of that one.
    #[serde(default)]
    pub supersedes: Option<Epoch>,
}

/// Asks a standby to take over by a switchover: posted to `/peer/switchover` by the primary. The answer
/// is a stream of frames that tell how far it is and how it ended; it goes on when nobody listens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SwitchoverRequest {
    /// Only make the plan.
    pub dry_run: bool,
}

/// The answer of a peer that has fenced itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FenceAnswer {
    /// What it was before.
    pub was: RoleName,
    /// Where its stores ended; nothing is written to them any more. A store that could not tell is
    /// absent.
    pub positions: BTreeMap<StoreName, Position>,
}
