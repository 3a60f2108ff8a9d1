//! What the two sides of a pair tell each other, beside the stores' own streams.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use understudy_config::{NodeName, StoreName};

use crate::epoch::Epoch;
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
}

/// What a standby posts to `/peer/report`, at least with every mark.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StandbyReport {
    /// How far each store's copy is.
    pub stores: BTreeMap<StoreName, Received>,
}

/// Asks a peer to fence itself: posted to `/peer/fence`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FenceRequest {
    /// The epoch that supersedes it.
    pub epoch: Epoch,
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
