//! What has to hold, whatever happens: the oracle sees everything, and remembers what was promised.

use std::fmt;
use std::rc::Rc;

use understudy_replication::epoch::Epoch;
use understudy_replication::kv::point::EntryDigest;
use understudy_replication::kv::protocol::EntryHead;
use understudy_replication::position::Position;

use crate::disk::{Entry, Id, KEYS, Place, Table};
use crate::random::mix;

/// What a schedule must not break.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Invariant {
    /// What was committed by standbys' acknowledgements, or what the state `Held` covered, is in the log of every
    /// later primary, if no promotion since was told that it might lack something, or if those that were lacked
    /// nothing.
    HeldIsNeverLost,
    /// What is visible on a primary that waits for standbys is durable on as many as are demanded (or they have
    /// left it for a higher epoch), unless it was made visible by a promotion, or while writes were committed alone.
    VisibleIsOnTheStandbys,
    /// What the primary counts as not at risk is durable on as many standbys as are demanded.
    RiskIsNotUnderstated,
    /// What was visible in an epoch stays visible in it, through restarts.
    NothingVisibleUnhappens,
    /// A table holds committed operations only, and all of them up to where it says.
    TablesHoldWhatIsCommitted,
    /// Two runs or epochs commit the same position differently only if what lost is in a salvage bundle.
    WhatLosesIsSalvaged,
    /// After everything is mended, all logs and tables are equal, and writes are held again.
    EverythingHeals,
}

impl fmt::Display for Invariant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::HeldIsNeverLost => "held is never lost",
            Self::VisibleIsOnTheStandbys => "visible is on the standbys",
            Self::RiskIsNotUnderstated => "risk is not understated",
            Self::NothingVisibleUnhappens => "nothing visible un-happens",
            Self::TablesHoldWhatIsCommitted => "tables hold what is committed",
            Self::WhatLosesIsSalvaged => "what loses is salvaged",
            Self::EverythingHeals => "everything heals",
        })
    }
}

/// An invariant that was broken, and how.
#[derive(Clone, Debug)]
pub(crate) struct Violation {
    pub(crate) invariant: Invariant,
    pub(crate) what: String,
}

/// What is remembered of an epoch that was opened. Each is the newest entry of which it is true.
struct Reign {
    epoch: Epoch,
    is_sure: bool,
    /// The log that it took over.
    taken: Option<Id>,
    /// Was visible to clients.
    visible: Option<Id>,
    /// Became visible without standbys, as the rules allow.
    excused: Option<Id>,
    /// Was promised to be on standbys.
    held: Option<Id>,
}

/// Sees all.
#[derive(Default)]
pub(crate) struct Oracle {
    entries: Vec<Rc<Entry>>,
    salvaged: Vec<bool>,
    reigns: Vec<Reign>,
    pub(crate) violation: Option<Violation>,
}

impl Oracle {
    /// Makes an entry behind `last`; without `sets` it is an opening.
    pub(crate) fn entry(
        &mut self,
        last: &Place,
        opened: Position,
        epoch: &Epoch,
        committed: Position,
        sets: Vec<(usize, u32)>,
    ) -> Rc<Entry> {
        let start = last.point.position;
        let length = u64::try_from(sets.len().max(1)).unwrap_or(1);
        let mut head = EntryHead {
            epoch: epoch.clone(),
            opened,
            start,
            end: Position(start.0 + length),
            previous: last.point.digest,
            committed,
            digest: EntryDigest::NONE,
        };
        head.digest = digest(&head, &sets);
        let entry = Rc::new(Entry {
            id: self.entries.len(),
            parent: last.id,
            head,
            sets,
        });
        self.entries.push(Rc::clone(&entry));
        self.salvaged.push(false);
        entry
    }

    /// Whether the log that ends with `newer` has `older`.
    pub(crate) fn has(&self, newer: Option<Id>, older: Option<Id>) -> bool {
        let Some(older) = older else { return true };
        // A predecessor's id is smaller.
        self.chain(newer)
            .take_while(|it| *it >= older)
            .any(|it| it == older)
    }

    fn chain(&self, id: Option<Id>) -> impl Iterator<Item = Id> {
        std::iter::successors(id, |it| self.entries[*it].parent)
    }

    /// The table that a log leads to.
    pub(crate) fn replay(&self, id: Option<Id>) -> Table {
        let mut table = Table::default();
        let mut missing = KEYS;
        for id in self.chain(id) {
            for (key, value) in self.entries[id].sets.iter().rev() {
                if table[*key].is_none() {
                    table[*key] = Some(*value);
                    missing -= 1;
                }
            }
            if missing == 0 {
                break;
            }
        }
        table
    }

    /// The entry of the log up to `id` that ends at a position.
    pub(crate) fn at(&self, id: Option<Id>, position: Position) -> Option<Id> {
        self.chain(id)
            .find(|it| self.entries[*it].head.end <= position)
    }

    pub(crate) fn salvage(&mut self, id: Id) {
        self.salvaged[id] = true;
    }

    pub(crate) fn salvage_all(&mut self, id: Option<Id>) {
        let mut next = id;
        while let Some(id) = next {
            self.salvaged[id] = true;
            next = self.entries[id].parent;
        }
    }

    pub(crate) fn broken(&mut self, invariant: Invariant, what: impl FnOnce() -> String) {
        if self.violation.is_none() {
            self.violation = Some(Violation {
                invariant,
                what: what(),
            });
        }
    }

    /// A promotion has opened an epoch with this log.
    pub(crate) fn opens(&mut self, epoch: &Epoch, taken: Option<Id>, is_sure: bool) {
        if self.reigns.iter().any(|it| it.epoch == *epoch) {
            return;
        }
        self.reigns.push(Reign {
            epoch: epoch.clone(),
            is_sure,
            taken,
            visible: taken,
            excused: taken,
            held: None,
        });
        self.reigns.sort_by(|a, b| a.epoch.cmp(&b.epoch));
        for index in 0..self.reigns.len() {
            if self.reigns[index].epoch < *epoch {
                self.check_held(index);
            }
        }
    }

    /// A primary starts again in its epoch, with this log.
    pub(crate) fn reopens(&mut self, epoch: &Epoch, durable: Option<Id>) {
        let Some(visible) = self.reign(epoch).map(|it| it.visible) else {
            return;
        };
        if !self.has(durable, visible) {
            self.broken(Invariant::NothingVisibleUnhappens, || {
                format!("the run of {epoch} that begins at {durable:?} lacks {visible:?}")
            });
        }
    }

    /// Clients can see everything up to this entry.
    pub(crate) fn shows(&mut self, epoch: &Epoch, id: Option<Id>) {
        let Some(visible) = self.reign(epoch).map(|it| it.visible) else {
            return;
        };
        if visible == id {
            return;
        }
        if !self.has(id, visible) {
            self.broken(Invariant::NothingVisibleUnhappens, || {
                format!("{epoch} shows {id:?} after it has shown {visible:?}")
            });
        }
        if let Some(reign) = self.reign_mut(epoch) {
            reign.visible = id;
        }
    }

    /// This was committed without standbys, as the rules allow.
    pub(crate) fn excuses(&mut self, epoch: &Epoch, id: Option<Id>) {
        if let Some(reign) = self.reign_mut(epoch) {
            reign.excused = id;
        }
    }

    pub(crate) fn is_excused(&self, epoch: &Epoch, id: Option<Id>) -> bool {
        self.reign(epoch).is_none_or(|it| self.has(it.excused, id))
    }

    /// The primary promises that standbys have this.
    pub(crate) fn holds(&mut self, epoch: &Epoch, id: Option<Id>) {
        let Some(index) = self.reigns.iter().position(|it| it.epoch == *epoch) else {
            return;
        };
        let held = self.reigns[index].held;
        if held == id || held.is_some() && self.has(held, id) {
            return;
        }
        self.reigns[index].held = id;
        self.check_held(index);
    }

    /// Looks through the epochs after one for what that one has promised.
    fn check_held(&mut self, index: usize) {
        let held = self.reigns[index].held;
        for later in index + 1..self.reigns.len() {
            if self.has(self.reigns[later].taken, held) {
                continue;
            }
            if self.reigns[later].is_sure {
                let (lost, by) = (&self.reigns[index].epoch, &self.reigns[later].epoch);
                let what =
                    format!("{held:?}, held in {lost}, is not in the log that {by} took over");
                self.broken(Invariant::HeldIsNeverLost, || what);
            }
            // The operator was told; nothing is promised of what comes after.
            return;
        }
    }

    /// Whether some primary has committed everything up to this entry.
    pub(crate) fn is_committed(&self, id: Option<Id>) -> bool {
        id.is_none() || self.reigns.iter().any(|it| self.has(it.visible, id))
    }

    /// Everything that was ever visible is in the log that all have agreed on, or was salvaged.
    pub(crate) fn check_salvage(&mut self, agreed: Option<Id>) {
        let lost = self.reigns.iter().find_map(|reign| {
            let mut lost = self
                .chain(reign.visible)
                .filter(|it| !self.has(agreed, Some(*it)) && !self.salvaged[*it]);
            lost.next()
                .map(|id| format!("{id}, visible in {}, is nowhere", reign.epoch))
        });
        if let Some(lost) = lost {
            self.broken(Invariant::WhatLosesIsSalvaged, || lost);
        }
    }

    fn reign(&self, epoch: &Epoch) -> Option<&Reign> {
        self.reigns.iter().find(|it| it.epoch == *epoch)
    }

    fn reign_mut(&mut self, epoch: &Epoch) -> Option<&mut Reign> {
        self.reigns.iter_mut().find(|it| it.epoch == *epoch)
    }
}

/// Stands for BLAKE3: quick, and different for different entries.
fn digest(head: &EntryHead, sets: &[(usize, u32)]) -> EntryDigest {
    let mut state: u64 = 0x243f_6a88_85a3_08d3;
    let mut take = |word: u64| state = mix(state ^ word).wrapping_add(0x9e37_79b9_7f4a_7c15);
    let bytes = |it: &[u8]| it.iter().fold(0u64, |sum, it| sum << 8 | u64::from(*it));
    take(bytes(&head.previous.0[..8]));
    take(head.epoch.number);
    take(bytes(head.epoch.node.as_str().as_bytes()));
    take(head.opened.0);
    take(head.start.0);
    take(head.end.0);
    take(head.committed.0);
    for (_, value) in sets {
        take(u64::from(*value));
    }
    let mut digest = [0; 32];
    digest[..8].copy_from_slice(&state.to_be_bytes());
    EntryDigest(digest)
}
