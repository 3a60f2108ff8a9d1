//! What is on its way between the nodes.

use understudy_replication::epoch::Epoch;
use understudy_replication::status::RoleName;

use crate::random::Random;

/// The most nodes that a history has.
pub(crate) const NODES_MAX: usize = 4;

/// The most letters on the way at once; beyond it, some are lost.
const LETTERS_MAX: usize = 48;

/// Which question an answer belongs to; none is used twice.
pub(crate) type Ask = u64;

#[derive(Clone, Debug)]
pub(crate) enum Message {
    Hello(Ask),
    HelloAnswer {
        ask: Ask,
        role: RoleName,
        highest: Epoch,
    },
    Fence {
        ask: Ask,
        epoch: Epoch,
        supersedes: Option<Epoch>,
        hands_over: bool,
    },
    FenceAnswer {
        ask: Ask,
        is_done: bool,
    },
    Joined(Ask),
    /// Carries the primary's epoch, or is a refusal.
    JoinedAnswer {
        ask: Ask,
        epoch: Option<Epoch>,
        life: u32,
    },
    /// Something that clients have written, in an epoch, on the stream that the sender's process serves.
    Write {
        epoch: Epoch,
        life: u32,
    },
}

/// A message, with the epoch that its sender called its own when it was sent.
#[derive(Clone, Debug)]
pub(crate) struct Letter {
    pub(crate) from: usize,
    pub(crate) to: usize,
    pub(crate) epoch: Epoch,
    pub(crate) message: Message,
}

/// The letters on their way, and between which nodes none arrives.
#[derive(Default)]
pub(crate) struct Network {
    letters: Vec<Letter>,
    parted: [[bool; NODES_MAX]; NODES_MAX],
}

impl Network {
    pub(crate) fn send(&mut self, letter: Letter, random: &mut Random) {
        if self.letters.len() >= LETTERS_MAX {
            let lost = random.below(self.letters.len());
            self.letters.swap_remove(lost);
        }
        self.letters.push(letter);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.letters.is_empty()
    }

    pub(crate) fn part(&mut self, from: usize, to: usize, is_parted: bool) {
        self.parted[from][to] = is_parted;
    }

    pub(crate) fn heal(&mut self) {
        self.parted = Default::default();
    }

    /// Takes some letter: in any order, however old it is; now and then one is lost, or stays to arrive again.
    pub(crate) fn take(&mut self, random: &mut Random, faults: bool) -> Option<Letter> {
        if self.letters.is_empty() {
            return None;
        }
        // The oldest often, so that conversations get somewhere.
        let at = if !faults || random.chance(50) {
            0
        } else {
            random.below(self.letters.len())
        };
        let letter = &self.letters[at];
        if self.parted[letter.from][letter.to] {
            // Lost, or delayed until the partition is over.
            if random.chance(40) {
                self.letters.remove(at);
            }
            return None;
        }
        if faults && random.chance(4) {
            return Some(letter.clone());
        }
        let letter = self.letters.remove(at);
        (!faults || !random.chance(4)).then_some(letter)
    }
}
