//! Whether a node could be promoted now: what stands against it, and what it would lose.

use serde::{Deserialize, Serialize};
use understudy_config::NodeName;

use crate::epoch::Epoch;
use crate::store::StoreId;
use crate::wall_time::WallTime;

/// What a standby finds when it asks itself whether it could be promoted: made by the same planner that
/// plans a promotion, every few seconds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Preflight {
    /// When it was looked at, by this node's clock.
    pub checked: WallTime,
    /// What stands against `understudy promote`; none means that it could be promoted now.
    pub promote: Vec<Condition>,
    /// What stands against `understudy switchover`.
    pub switchover: Vec<Condition>,
    /// What would be lost, per store, if the primary were gone now.
    pub loss: Vec<Loss>,
    /// The moment that a promotion would return to, by the primary's clock.
    pub cut: Option<WallTime>,
}

/// What a promotion now would lose of a store.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Loss {
    /// Which store.
    #[serde(flatten)]
    pub id: StoreId,
    /// The unit of `amount`.
    pub unit: String,
    /// What the old primary had and this node has not received; `None` where that cannot be told
    /// exactly.
    pub amount: Option<u64>,
    /// The same by the old primary's newest word: it may have written more since.
    pub amount_at_least: Option<u64>,
    /// The age of the newest mark that is fully here, in seconds: everything older is here.
    pub seconds: Option<f64>,
    /// What the amount is in bytes of the store's log: exact where `unit` is bytes, and elsewhere at most this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// What the figures rest on.
    #[serde(default)]
    pub basis: Basis,
    /// Why a figure cannot be told.
    pub unknown: Option<String>,
}

/// What a bound of a loss rests on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Basis {
    /// On nothing: no mark has been heard.
    #[default]
    Nothing,
    /// On a mark of the old primary.
    Mark {
        /// The epoch in which it was made.
        epoch: Epoch,
        /// Its number within that.
        number: u64,
        /// When it was made, by the old primary's clock.
        time: WallTime,
        /// When it was heard here, by this node's clock.
        heard: WallTime,
    },
    /// On what the old primary told of its stores' ends once it was fenced: nothing is written after that.
    Fenced,
}

impl Loss {
    /// Returns the loss if the old primary, `node`, cannot be asked: what it wrote after its last mark
    /// is not known.
    #[must_use]
    pub fn uncertain(self, node: &NodeName) -> Self {
        let unknown = format!("what node {node} wrote after its last mark is not known");
        Self {
            amount: None,
            unknown: Some(self.unknown.unwrap_or(unknown)),
            ..self
        }
    }
}

/// Something that stands against the promotion.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Condition {
    /// What it is.
    pub what: String,
    /// What to do about it.
    pub mend: String,
    /// `--force` overrides it.
    pub can_be_forced: bool,
}
