//! What the logger and the applier tell each other.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use understudy_replication::epoch::Epoch;
use understudy_replication::position::Position;

/// The state, and the bell that rings when it changes.
#[derive(Debug, Default)]
pub(super) struct Flow {
    state: Mutex<State>,
    changed: Condvar,
}

/// How far both are.
#[derive(Clone, Debug, Default)]
pub(super) struct State {
    /// What is durable in the log.
    pub(super) logged: Position,
    /// What is applied and committed.
    pub(super) applied: Position,
    /// How many entries are awaited, as of what is applied.
    pub(super) awaited: usize,
    /// The copy may be otherwise than is known of it.
    pub(super) is_doubtful: bool,
    /// The end of the newest batch in the log with a content that did not come along.
    pub(super) held: Option<Position>,
    /// The primary's epoch, if it has to be recorded.
    pub(super) epoch: Option<Epoch>,
    /// Nothing is logged any more.
    pub(super) is_ended: bool,
    /// Nothing is applied any more.
    pub(super) has_failed: bool,
    /// What is under way is finished, and nothing else begun.
    pub(super) is_stopped: bool,
}

impl State {
    /// Returns whether everything in the log could be served by a promotion.
    pub(super) fn is_free(&self) -> bool {
        self.awaited == 0 && !self.is_doubtful && self.held.is_none_or(|held| held <= self.applied)
    }
}

impl Flow {
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.lock());
        self.changed.notify_all();
    }

    /// Waits until `is_so`, at most for `limit`; returns the state then.
    pub(super) fn wait(&self, limit: Duration, mut is_so: impl FnMut(&State) -> bool) -> State {
        let guard = self.lock();
        let waited = self
            .changed
            .wait_timeout_while(guard, limit, |state| !is_so(state));
        let (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        state.clone()
    }
}
