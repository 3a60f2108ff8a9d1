//! What commands run against: the table with what lies over it, at one moment.

pub(super) mod write;

use std::fmt;

use super::draft::layer::{HashView, View};
use super::draft::{Draft, Watch};
use super::table::Table;
use super::table::fields::FEW_FIELDS_MAX;
use super::table::ordered::Order;
use crate::wall_time::WallTime;

/// What a key is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A string.
    String,
    /// A hash.
    Hash,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::String => "string",
            Self::Hash => "hash",
        })
    }
}

/// Why a space does not do what it was asked for. Nothing was changed then.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpaceError {
    /// The key is of another kind.
    #[error("WRONGTYPE Operation against a key holding the wrong kind of value")]
    WrongKind,
    /// Only what is visible can be seen here.
    #[error("READONLY You can't write against a read only replica.")]
    ReadOnly,
    /// The key or the field is longer than [`KV_KEY_BYTES_MAX`](super::operation::KV_KEY_BYTES_MAX), the
    /// value than [`KV_VALUE_BYTES_MAX`](super::operation::KV_VALUE_BYTES_MAX), or all that is made together
    /// than [`KV_ATOM_BYTES_MAX`](super::operation::KV_ATOM_BYTES_MAX).
    #[error("ERR string exceeds maximum allowed size (proto-max-bulk-len)")]
    TooLarge,
    /// The keys take more memory than they may, and this would add to it.
    #[error("OOM command not allowed when used memory > 'maxmemory'.")]
    OutOfMemory,
}

/// The table with what lies over it, at one moment: what has expired by then is absent.
#[derive(Debug)]
pub struct Space<'a> {
    table: &'a Table,
    draft: Option<&'a mut Draft>,
    now: WallTime,
    bytes_max: usize,
}

/// A hash at one moment.
#[derive(Clone, Copy, Debug)]
pub struct Hash<'s>(HashView<'s>);

impl<'s> Hash<'s> {
    /// Returns the number of fields; at least one.
    pub fn field_count(&self) -> usize {
        self.0.len()
    }

    /// Returns the value of a field.
    pub fn get(&self, field: &[u8]) -> Option<&'s [u8]> {
        self.0.get(field)
    }

    /// Calls `visit` with each field and its value.
    pub fn visit(&self, visit: &mut dyn FnMut(&'s [u8], &'s [u8])) {
        self.0.visit(visit);
    }

    /// Calls `visit` with about `count` fields from `cursor` on, and returns the cursor to go on with; 0 for
    /// both the start and the end. A hash of few fields comes at once.
    pub fn scan(
        &self,
        cursor: u64,
        count: usize,
        visit: &mut dyn FnMut(&'s [u8], &'s [u8]),
    ) -> u64 {
        let count = match self.field_count() {
            few @ ..=FEW_FIELDS_MAX => count.max(few),
            _ => count,
        };
        let fields = self.0.from(Order::from_cursor(cursor));
        scan(fields, count, visit)
    }
}

impl<'a> Space<'a> {
    /// Returns what is committed. Nothing can be changed in it.
    pub fn visible(table: &'a Table, now: WallTime) -> Self {
        Self {
            table,
            draft: None,
            now,
            bytes_max: usize::MAX,
        }
    }

    /// Returns the newest state. What is changed goes to the draft.
    pub fn newest(table: &'a Table, draft: &'a mut Draft, now: WallTime) -> Self {
        Self {
            table,
            draft: Some(draft),
            now,
            bytes_max: usize::MAX,
        }
    }

    /// Refuses what adds to the keys while they take more than `bytes_max` of memory. What removes or expires
    /// them is done all the same.
    #[must_use]
    pub fn bounded(self, bytes_max: usize) -> Self {
        Self { bytes_max, ..self }
    }

    /// Returns the moment.
    pub fn now(&self) -> WallTime {
        self.now
    }

    /// Returns the number of keys, those included that have expired and are not deleted yet.
    pub fn len(&self) -> usize {
        match &self.draft {
            Some(draft) => draft.len(self.table),
            None => self.table.len(),
        }
    }

    /// Returns whether there is no key.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns about how many keys have an expiry: those of the table.
    pub fn expiring_len(&self) -> usize {
        self.table.expiring_len()
    }

    /// Returns about how many bytes of memory the keys take.
    pub fn bytes(&self) -> usize {
        self.table.bytes() + self.pending_bytes()
    }

    /// Returns how many bytes the operations have at most that wait to be committed, as encoded.
    pub fn pending_bytes(&self) -> usize {
        self.draft.as_ref().map_or(0, |draft| draft.pending_bytes())
    }

    /// Returns the bytes of all keys, fields and values of the table.
    pub fn live_bytes(&self) -> usize {
        self.table.live_bytes()
    }

    /// Returns what the key is; `None` when it is absent.
    pub fn kind(&self, key: &[u8]) -> Option<Kind> {
        self.view(key).map(|view| kind_of(&view))
    }

    /// Returns the string that the key holds.
    ///
    /// # Errors
    /// When it holds something else.
    pub fn string(&self, key: &[u8]) -> Result<Option<&[u8]>, SpaceError> {
        match self.view(key) {
            None => Ok(None),
            Some(View::String(value, _)) => Ok(Some(value)),
            Some(View::Hash(..)) => Err(SpaceError::WrongKind),
        }
    }

    /// Returns the hash that the key holds.
    ///
    /// # Errors
    /// When it holds something else.
    pub fn hash(&self, key: &[u8]) -> Result<Option<Hash<'_>>, SpaceError> {
        match self.view(key) {
            None => Ok(None),
            Some(View::Hash(view, _)) => Ok(Some(Hash(view))),
            Some(View::String(..)) => Err(SpaceError::WrongKind),
        }
    }

    /// Returns when the key expires: `None` when it is absent, `Some(None)` for never.
    pub fn expires(&self, key: &[u8]) -> Option<Option<WallTime>> {
        self.view(key).map(|view| view.expires())
    }

    /// Calls `visit` with about `count` keys from `cursor` on, and returns the cursor to go on with; 0 for
    /// both the start and the end. What is there during a whole scan is seen by it. A count of keys that have
    /// expired is passed over, too.
    pub fn scan(&self, cursor: u64, count: usize, visit: &mut dyn FnMut(&[u8], Kind)) -> u64 {
        let first = Order::from_cursor(cursor);
        let visit = |key: &[u8], view: View<'_>| {
            if !self.has_expired(&view) {
                visit(key, kind_of(&view));
            }
        };
        match &self.draft {
            Some(draft) => scan(draft.views(self.table, first), count, visit),
            None => {
                let entries = self.table.keys().from(first);
                let views = entries.map(|(order, key, entry)| (order, key, View::plain(entry)));
                scan(views, count, visit)
            }
        }
    }

    /// Watches a key: the [`Watch`] tells whether it was changed since.
    ///
    /// # Errors
    /// When only what is visible can be seen here.
    pub fn watch(&mut self, key: &[u8]) -> Result<Watch, SpaceError> {
        let had_expired = self.is_expired(key);
        let draft = self.draft.as_mut().ok_or(SpaceError::ReadOnly)?;
        Ok(draft.watch(key, had_expired))
    }

    /// Returns whether what is watched is no longer as it was.
    pub fn is_touched(&self, watch: &Watch) -> bool {
        let draft = self.draft.as_ref();
        draft.is_none_or(|draft| draft.is_touched(watch))
            || (!watch.had_expired() && self.is_expired(&watch.key))
    }

    /// Returns whether the key is there still, although it has expired.
    fn is_expired(&self, key: &[u8]) -> bool {
        self.any_view(key)
            .is_some_and(|view| self.has_expired(&view))
    }

    fn has_expired(&self, view: &View<'_>) -> bool {
        view.expires().is_some_and(|expires| expires <= self.now)
    }

    /// Returns what is there of the key, unless it has expired.
    fn view(&self, key: &[u8]) -> Option<View<'_>> {
        self.any_view(key).filter(|view| !self.has_expired(view))
    }

    fn any_view(&self, key: &[u8]) -> Option<View<'_>> {
        let order = Order::of(key);
        match &self.draft {
            Some(draft) => draft.view(self.table, order, key),
            None => self.table.keys().get(order, key).map(View::plain),
        }
    }
}

fn kind_of(view: &View<'_>) -> Kind {
    match view {
        View::String(..) => Kind::String,
        View::Hash(..) => Kind::Hash,
    }
}

/// Visits about `count` items, all that share a place, and returns the cursor of the next.
fn scan<'a, T>(
    items: impl Iterator<Item = (Order, &'a [u8], T)>,
    count: usize,
    mut visit: impl FnMut(&'a [u8], T),
) -> u64 {
    let mut last = None;
    for (index, (order, key, item)) in items.enumerate() {
        if index >= count && last != Some(order) {
            return order.cursor();
        }
        last = Some(order);
        visit(key, item);
    }
    0
}

#[cfg(test)]
mod model_tests;
#[cfg(test)]
mod tests;
