//! Where something may run.

use tokio::sync::watch;
use understudy_config::On;

/// What a node does with its copy of the stores, as far as services and jobs are concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// It is the primary, or is about to be.
    Primary,
    /// It follows a primary.
    Standby,
}

impl Placement {
    /// Returns whether something that runs `on` these nodes may run here.
    pub fn allows(self, on: On) -> bool {
        match (self, on) {
            (_, On::Both) | (Self::Primary, On::Primary) | (Self::Standby, On::Standby) => true,
            (Self::Primary, On::Standby) | (Self::Standby, On::Primary) => false,
        }
    }
}

/// What the role of the node asks of its services.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Where {
    /// Nothing has been asked since the daemon started: what runs is left alone.
    Undecided,
    /// None of them may run.
    Nowhere,
    /// Those of this placement run, and no others.
    At(Placement),
}

impl Where {
    /// Returns the placement, where there is one.
    pub(super) fn placement(self) -> Option<Placement> {
        match self {
            Self::At(place) => Some(place),
            Self::Undecided | Self::Nowhere => None,
        }
    }
}

/// What is asked, and which asking it is: what was begun for an earlier one is broken off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Wish {
    pub(super) place: Where,
    /// What belongs there may be started. Until then what does not belong there is stopped, and no more.
    pub(super) is_open: bool,
    pub(super) generation: u64,
}

/// Ends when something else is asked, or an operator stops the one service that it is for.
pub(super) struct Until {
    wish: watch::Receiver<Wish>,
    generation: u64,
    halted: watch::Receiver<u64>,
    halts: u64,
}

impl Until {
    pub(super) fn new(
        wish: watch::Receiver<Wish>,
        generation: u64,
        halted: watch::Receiver<u64>,
    ) -> Self {
        let halts = *halted.borrow();
        Self {
            wish,
            generation,
            halted,
            halts,
        }
    }

    /// Waits for it. What sends is never dropped while services are worked on.
    pub(super) async fn over(&mut self) {
        let (generation, halts) = (self.generation, self.halts);
        let superseded = self.wish.wait_for(|wish| wish.generation != generation);
        let halted = self.halted.wait_for(|count| *count != halts);
        tokio::select! {
            _ = superseded => {}
            _ = halted => {}
        }
    }
}
