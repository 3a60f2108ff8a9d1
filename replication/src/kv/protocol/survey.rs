//! Whether a promotion can be sure to have everything that was acknowledged.

use serde::{Deserialize, Serialize};
use understudy_config::NodeName;

use crate::epoch::Epoch;
use crate::kv::point::Point;
use crate::position::Position;

/// Where a node's durable log ends, and in which run its last entry was made.
///
/// A node tells it to a promotion only after it has recorded the new epoch and left the session of the older one:
/// what it acknowledged to that one later would be missing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tail {
    /// The point behind the last entry.
    pub point: Point,
    /// Where the run of the last entry was opened; 0 for a log without entries.
    pub opened: Position,
}

impl Tail {
    /// Returns what tails are ordered by: the later run has everything that was committed in those before it.
    fn rank(&self) -> (Option<&Epoch>, Position, Position) {
        (self.point.epoch.as_ref(), self.opened, self.point.position)
    }
}

/// What is known before a promotion.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outlook {
    /// The node whose log has to be adopted first, because it has more than the own; `None` if none has.
    pub adopt: Option<NodeName>,
    /// How many further nodes would have to answer before nothing acknowledged can be missing; 0 for a sure one.
    pub missing: usize,
}

impl Outlook {
    /// Returns whether nothing can be missing that was acknowledged by as many standbys as were demanded, once
    /// [`Self::adopt`] is done.
    pub fn is_sure(&self) -> bool {
        self.missing == 0
    }
}

/// Judges a promotion by the tails of the nodes that answered: the own one, and the `others`.
///
/// `standbys` is how many the superseded primary can have had (all other nodes, if in doubt), of which `acknowledge`
/// had to have a write; the least, if that was changed; 0 where nothing may be missing that was committed without
/// them. Any `standbys - acknowledge + 1` nodes have one among them that has it. That the superseded primary has
/// answered helps no further: nobody here can know that none was promoted after it.
pub fn survey(
    own: &Tail,
    others: &[(NodeName, Tail)],
    standbys: usize,
    acknowledge: usize,
) -> Outlook {
    let best = others.iter().max_by(|a, b| a.1.rank().cmp(&b.1.rank()));
    let adopt = best
        .filter(|(_, tail)| own.rank() < tail.rank())
        .map(|(name, _)| name.clone());
    let needed = (standbys + 1).saturating_sub(acknowledge).max(1);
    Outlook {
        adopt,
        missing: needed.saturating_sub(1 + others.len()),
    }
}
