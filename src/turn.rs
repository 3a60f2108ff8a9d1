//! Who has this node's role and stores in hand: one at a time, and whoever only looks gives way.
//!
//! ```text
//! promotion, rejoin ──▶ Turn     waits until a look has ended, which is told to at once
//! a look            ──▶ Look     begins only while nobody has a turn
//! ```

use std::time::Duration;

use tokio::sync::{Mutex, MutexGuard, TryLockError, watch};

use crate::failure::Failure;

/// A look that was told to end has, within this time.
const LOOK_PATIENCE: Duration = Duration::from_secs(15);

/// The daemon's own short works on the role have ended within this time.
const IDLE_PATIENCE: Duration = Duration::from_secs(5);

/// The turns of a node.
#[derive(Debug)]
pub(crate) struct Turns {
    taken: Mutex<()>,
    looked: Mutex<()>,
    /// Counts those who have taken a turn: a look that hears of one ends.
    wanted: watch::Sender<u64>,
}

/// The right to change the role, and what becomes of the stores; it ends with this.
#[derive(Debug)]
pub(crate) struct Turn<'a> {
    _taken: MutexGuard<'a, ()>,
    _looked: MutexGuard<'a, ()>,
}

/// The right to look at the stores, for as long as nobody wants a turn.
#[derive(Debug)]
pub(crate) struct Look<'a> {
    _looked: MutexGuard<'a, ()>,
    wanted: watch::Receiver<u64>,
}

impl Turns {
    pub(crate) fn new() -> Self {
        Self {
            taken: Mutex::new(()),
            looked: Mutex::new(()),
            wanted: watch::Sender::new(0),
        }
    }

    /// Takes the turn, as soon as nobody has it and nobody looks any more.
    pub(crate) async fn lock(&self) -> Turn<'_> {
        let taken = self.taken.lock().await;
        self.end_looks(taken).await
    }

    /// Takes the turn unless somebody has it; who looks is given a short while to end.
    pub(crate) async fn take(&self) -> Result<Turn<'_>, Failure> {
        let busy = || {
            Failure::refused("a promotion or a rejoin is running on this node")
                .hint("watch it with `understudy status`")
        };
        let taken = self.taken.try_lock().map_err(|_| busy())?;
        let ending = tokio::time::timeout(LOOK_PATIENCE, self.end_looks(taken));
        ending.await.map_err(|_| {
            Failure::failed("`understudy rejoin --dry-run` runs on this node, and does not end")
                .hint("try again; if it stays so, restart the daemon")
        })
    }

    async fn end_looks<'a>(&'a self, taken: MutexGuard<'a, ()>) -> Turn<'a> {
        // A look that begins from here on finds the turn taken.
        self.wanted
            .send_modify(|count| *count = count.wrapping_add(1));
        Turn {
            _taken: taken,
            _looked: self.looked.lock().await,
        }
    }

    /// Keeps others from a turn for a moment, unless somebody has it. A look goes on beside it.
    pub(crate) fn try_lock(&self) -> Result<MutexGuard<'_, ()>, TryLockError> {
        self.taken.try_lock()
    }

    /// Returns whether somebody looks at the stores, which are open once.
    pub(crate) fn is_looked_at(&self) -> bool {
        self.looked.try_lock().is_err()
    }

    /// Begins a look, unless somebody has a turn or looks already.
    pub(crate) async fn look(&self) -> Result<Look<'_>, Failure> {
        // Before it is asked whether somebody has it: whoever takes it after that is heard.
        let wanted = self.wanted.subscribe();
        let looked = self.looked.try_lock().map_err(|_| {
            Failure::refused("somebody looks already at what a rejoin would do, or is rejoining")
                .hint("watch it with `understudy status`")
        })?;
        // The daemon's own works are short; what is longer is a promotion or a rejoin.
        let idle = tokio::time::timeout(IDLE_PATIENCE, self.taken.lock()).await;
        drop(idle.map_err(|_| {
            Failure::refused("a promotion or a rejoin is running on this node")
                .hint("watch it with `understudy status`")
        })?);
        Ok(Look {
            _looked: looked,
            wanted,
        })
    }
}

impl Look<'_> {
    /// Ends as soon as somebody wants a turn.
    pub(crate) async fn is_wanted(&mut self) {
        if self.wanted.changed().await.is_err() {
            // The node is gone, and so is everything that could be looked at.
            tracing::debug!("a look outlives its node");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::Kind;

    #[tokio::test]
    async fn a_look_gives_way_to_whoever_wants_the_turn() {
        let turns = Turns::new();
        for is_promotion in [true, false] {
            let mut look = turns.look().await.unwrap();
            assert!(turns.is_looked_at());
            // The daemon's own works go on beside it.
            drop(turns.try_lock().unwrap());
            let (ended, has_ended) = tokio::sync::oneshot::channel();
            let looking = async move {
                look.is_wanted().await;
                // Whoever wants it has not got it before the look has put everything away.
                ended.send(()).unwrap();
                drop(look);
            };
            let taking = async {
                let turn = match is_promotion {
                    true => turns.lock().await,
                    false => turns.take().await.unwrap(),
                };
                has_ended.await.unwrap();
                turn
            };
            let (turn, ()) = tokio::join!(taking, looking);
            assert_eq!(turns.take().await.unwrap_err().kind, Kind::Refused);
            assert_eq!(turns.look().await.unwrap_err().kind, Kind::Refused);
            drop(turn);
            assert!(!turns.is_looked_at());
        }
    }

    #[tokio::test]
    async fn a_turn_that_is_wanted_while_a_look_begins_is_heard() {
        let turns = Turns::new();
        let busy = turns.try_lock().unwrap();
        let (look, ()) = tokio::join!(turns.look(), async { drop(busy) });
        let mut look = look.unwrap();
        let looking = async move {
            look.is_wanted().await;
        };
        tokio::join!(turns.lock(), looking);
    }
}
