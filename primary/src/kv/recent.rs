//! The newest entries, in memory: links send from here what is not yet durable, and what has just become so.

use std::collections::VecDeque;

use understudy_replication::kv::entry::Entry;
use understudy_replication::kv::point::EntryDigest;
use understudy_replication::position::Position;

/// How many bytes of entries are kept.
const RECENT_BYTES_MAX: usize = 32 << 20;

/// The newest entries.
pub(super) struct Recent {
    entries: VecDeque<Entry>,
    bytes: usize,
}

impl Recent {
    pub(super) fn new(first: Entry) -> Self {
        let bytes = first.payload().len();
        Self {
            entries: VecDeque::from([first]),
            bytes,
        }
    }

    pub(super) fn push(&mut self, entry: Entry) {
        self.bytes = self.bytes.saturating_add(entry.payload().len());
        self.entries.push_back(entry);
        // The newest stays, however long it is.
        while self.bytes > RECENT_BYTES_MAX && self.entries.len() > 1 {
            let Some(oldest) = self.entries.pop_front() else {
                break;
            };
            self.bytes = self.bytes.saturating_sub(oldest.payload().len());
        }
    }

    /// Returns the entries from `position` on, about `bytes_max` of them; `None` when they are not here any
    /// more, and have to be read from the log.
    pub(super) fn from(&self, position: Position, bytes_max: usize) -> Option<Vec<Entry>> {
        let first = self.entries.front()?;
        if position < first.head.start {
            return None;
        }
        let at = self
            .entries
            .partition_point(|entry| entry.head.start < position);
        let mut bytes = 0;
        let fits = |entry: &&Entry| {
            let had = bytes;
            bytes += entry.payload().len();
            had < bytes_max
        };
        Some(self.entries.range(at..).take_while(fits).cloned().collect())
    }

    /// Returns the digest of the entry that ends at `position`, if it is here.
    pub(super) fn digest_at(&self, position: Position) -> Option<EntryDigest> {
        let at = self
            .entries
            .binary_search_by_key(&position, |entry| entry.head.end)
            .ok()?;
        Some(self.entries.get(at)?.digest)
    }
}
