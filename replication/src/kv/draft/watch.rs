//! Who wants to hear that a key was touched.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::Weak;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;

/// How many watches there may be before those that nobody holds any more are looked for.
const SWEEP_LEN_MIN: usize = 256;

/// What a client holds while it watches a key. Dropping it ends the watch.
#[derive(Debug)]
pub struct Watch {
    pub(crate) key: Bytes,
    /// The draft whose changes it hears of.
    pub(crate) draft: u64,
    state: Arc<State>,
}

#[derive(Debug)]
struct State {
    is_touched: AtomicBool,
    /// The key had expired already, but was not deleted yet. To delete it changes nothing then.
    had_expired: AtomicBool,
}

impl Watch {
    /// Returns whether the key was changed since, as far as its draft knows.
    pub(crate) fn is_touched(&self) -> bool {
        self.state.is_touched.load(Ordering::Relaxed)
    }

    pub(crate) fn had_expired(&self) -> bool {
        self.state.had_expired.load(Ordering::Relaxed)
    }
}

/// The watches of all clients, by key.
#[derive(Debug, Default)]
pub(super) struct Watches {
    by_key: HashMap<Bytes, Vec<Weak<State>>>,
    len: usize,
    sweep_len: usize,
}

impl Watches {
    pub(super) fn add(&mut self, key: &[u8], had_expired: bool, draft: u64) -> Watch {
        if self.len >= self.sweep_len.max(SWEEP_LEN_MIN) {
            self.sweep();
        }
        let key = Bytes::copy_from_slice(key);
        let state = Arc::new(State {
            is_touched: AtomicBool::new(false),
            had_expired: AtomicBool::new(had_expired),
        });
        self.by_key
            .entry(key.clone())
            .or_default()
            .push(Arc::downgrade(&state));
        self.len += 1;
        Watch { key, draft, state }
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Tells those who watch the key that it was changed.
    pub(super) fn touch(&mut self, key: &[u8]) {
        if self.len == 0 {
            return;
        }
        if let Some(states) = self.by_key.remove(key) {
            self.len -= states.len();
            flag(&states);
        }
    }

    /// Tells them that the key, which had expired, was deleted.
    pub(super) fn touch_expired(&mut self, key: &[u8]) {
        if self.len == 0 {
            return;
        }
        let Some(states) = self.by_key.get_mut(key) else {
            return;
        };
        let before = states.len();
        states.retain(|state| {
            let Some(state) = state.upgrade() else {
                return false;
            };
            let stays = state.had_expired.swap(false, Ordering::Relaxed);
            if !stays {
                state.is_touched.store(true, Ordering::Relaxed);
            }
            stays
        });
        self.len -= before - states.len();
        if states.is_empty() {
            self.by_key.remove(key);
        }
    }

    /// Tells everybody.
    pub(super) fn touch_all(&mut self) {
        self.by_key.drain().for_each(|(_, states)| flag(&states));
        self.len = 0;
    }

    fn sweep(&mut self) {
        let mut len = 0;
        self.by_key.retain(|_, states| {
            states.retain(|state| state.strong_count() > 0);
            len += states.len();
            !states.is_empty()
        });
        self.len = len;
        self.sweep_len = len.saturating_mul(2);
    }
}

fn flag(states: &[Weak<State>]) {
    for state in states.iter().filter_map(Weak::upgrade) {
        state.is_touched.store(true, Ordering::Relaxed);
    }
}
