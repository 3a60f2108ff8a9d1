//! What is appended but not committed.

pub(crate) mod layer;
pub(crate) mod merge;
mod watch;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;

use self::layer::{Layer, View, Whole};
pub use self::watch::Watch;
use self::watch::Watches;
use super::operation::Operation;
use super::table::ordered::{Order, Ordered};
use super::table::{Entry, Table};
use crate::position::Position;

/// Operations that the committer has taken to make an entry of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Taken {
    /// The position before the first of them.
    pub start: Position,
    /// The position behind the last of them.
    pub end: Position,
    /// The operations.
    pub operations: Vec<Operation>,
}

/// Operations that are made together: a command's, or those of one `EXEC`.
#[derive(Debug, Default)]
struct Atom {
    count: usize,
    bytes: usize,
}

/// What a pending operation touched.
#[derive(Debug)]
enum Touch {
    Key(Bytes),
    Fields(Bytes, Vec<Bytes>),
    All,
}

/// What is appended but not committed: it lies over a [`Table`], which holds what is committed.
///
/// An operation goes from [`Space`](super::space::Space) into the draft, from there to the committer
/// ([`Draft::take`]), and once it is committed it is applied to the table, and only then
/// [settled](Draft::settle) here.
#[derive(Debug)]
pub struct Draft {
    /// No other draft of the process has it.
    id: u64,
    end: Position,
    layers: Ordered<Layer>,
    /// Everything was cleared by the operation before this, and it has not settled.
    cleared: Option<Position>,
    /// The number of keys with the draft, while something is pending.
    len: Option<usize>,
    /// What has not settled, with the position behind it and its size.
    pending: VecDeque<(Position, usize, Touch)>,
    pending_bytes: usize,
    untaken: VecDeque<Operation>,
    untaken_bytes: usize,
    /// Those that are complete.
    atoms: VecDeque<Atom>,
    open: Atom,
    watches: Watches,
}

impl Draft {
    /// Returns an empty draft over a table that is at `position`.
    pub fn new(position: Position) -> Self {
        static NEXT_ID: AtomicU64 = AtomicU64::new(0);
        Self {
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            end: position,
            layers: Ordered::default(),
            cleared: None,
            len: None,
            pending: VecDeque::new(),
            pending_bytes: 0,
            untaken: VecDeque::new(),
            untaken_bytes: 0,
            atoms: VecDeque::new(),
            open: Atom::default(),
            watches: Watches::default(),
        }
    }

    /// Returns the position behind the last operation.
    pub fn end(&self) -> Position {
        self.end
    }

    /// Returns how many bytes the operations have at most that nobody has taken, as encoded.
    pub fn untaken_bytes(&self) -> usize {
        self.untaken_bytes
    }

    /// Returns how many bytes the operations have at most that have not settled, as encoded. What the draft
    /// takes of memory is about three times that.
    pub fn pending_bytes(&self) -> usize {
        self.pending_bytes
    }

    /// Takes the oldest operations, in all up to `bytes_max` as encoded, or more if a single atom has more.
    /// What is made together stays together. `None` when there are none.
    pub fn take(&mut self, bytes_max: usize) -> Option<Taken> {
        let untaken = u64::try_from(self.untaken.len()).ok()?;
        let start = Position(self.end.0.checked_sub(untaken)?);
        let (mut count, mut bytes) = (0, 0);
        while let Some(atom) = self.atoms.front()
            && (count == 0 || bytes + atom.bytes <= bytes_max)
        {
            count += atom.count;
            bytes += atom.bytes;
            self.atoms.pop_front();
        }
        if count == 0 {
            return None;
        }
        self.untaken_bytes -= bytes;
        let operations: Vec<_> = self.untaken.drain(..count).collect();
        let end = Position(start.0.saturating_add(u64::try_from(count).ok()?));
        Some(Taken {
            start,
            end,
            operations,
        })
    }

    /// Forgets what was appended up to `upto`, which has been applied to the table.
    pub fn settle(&mut self, upto: Position) {
        while let Some((_, bytes, touch)) = self.pending.pop_front_if(|touch| touch.0 <= upto) {
            self.pending_bytes -= bytes;
            match touch {
                Touch::Key(key) => self.settle_key(&key, &[], upto),
                Touch::Fields(key, fields) => self.settle_key(&key, &fields, upto),
                Touch::All => {}
            }
        }
        if self.cleared.is_some_and(|position| position <= upto) {
            self.cleared = None;
        }
        if self.pending.is_empty() {
            self.len = None;
        }
    }

    /// Forgets everything, taken or not, because the table is at `position` now by other ways. Who watches a
    /// key is told that it was changed.
    pub fn reset(&mut self, position: Position) {
        self.watches.touch_all();
        let watches = std::mem::take(&mut self.watches);
        *self = Self {
            watches,
            ..Self::new(position)
        };
    }

    /// Appends an operation over the table. Those since the last [`Draft::end_atom`] are taken together.
    pub fn push(&mut self, table: &Table, operation: Operation) {
        let touch = self.lay(table, &operation);
        let bytes = encoded_bytes_max(&operation);
        self.pending.push_back((self.end, bytes, touch));
        self.pending_bytes += bytes;
        self.untaken.push_back(operation);
        self.untaken_bytes += bytes;
        self.open.count += 1;
        self.open.bytes += bytes;
    }

    /// Says that what was appended so far is complete: from here on it may be taken.
    pub fn end_atom(&mut self) {
        if self.open.count > 0 {
            self.atoms.push_back(std::mem::take(&mut self.open));
        }
    }

    /// Returns how many bytes the atom has that is not complete.
    pub(crate) fn open_bytes(&self) -> usize {
        self.open.bytes
    }

    pub(crate) fn len(&self, table: &Table) -> usize {
        self.len.unwrap_or_else(|| table.len())
    }

    pub(crate) fn view<'a>(
        &'a self,
        table: &'a Table,
        order: Order,
        key: &[u8],
    ) -> Option<View<'a>> {
        let entry = || match self.cleared {
            Some(_) => None,
            None => table.keys().get(order, key),
        };
        match self.layers.get(order, key) {
            Some(layer) => View::layered(entry(), layer),
            None => entry().map(View::plain),
        }
    }

    /// Returns every key from a place on with what it is.
    pub(crate) fn views<'a>(
        &'a self,
        table: &'a Table,
        first: Order,
    ) -> impl Iterator<Item = (Order, &'a [u8], View<'a>)> {
        let table = self.cleared.is_none().then_some(table).into_iter();
        let entries = table.flat_map(move |table| table.keys().from(first));
        merge::merge(entries, self.layers.from(first)).filter_map(
            |(order, key, entry, layer): merge::Merged<'a, &'a Entry, &'a Layer>| {
                let view = match layer {
                    Some(layer) => View::layered(entry, layer),
                    None => entry.map(View::plain),
                };
                Some((order, key, view?))
            },
        )
    }

    pub(crate) fn watch(&mut self, key: &[u8], had_expired: bool) -> Watch {
        self.watches.add(key, had_expired, self.id)
    }

    /// Returns whether what is watched was changed. What another draft has watched may have been: its table is
    /// another as well.
    pub(crate) fn is_touched(&self, watch: &Watch) -> bool {
        watch.draft != self.id || watch.is_touched()
    }

    pub(crate) fn touch_watches(&mut self, key: &[u8]) {
        self.watches.touch(key);
    }

    pub(crate) fn touch_watches_of_expired(&mut self, key: &[u8]) {
        self.watches.touch_expired(key);
    }

    pub(crate) fn touch_all_watches(&mut self) {
        self.watches.touch_all();
    }

    /// Lays the operation over what is there, as the table would apply it.
    fn lay(&mut self, table: &Table, operation: &Operation) -> Touch {
        self.end = Position(self.end.0.saturating_add(1));
        let end = self.end;
        match operation {
            Operation::Set {
                key,
                value,
                expires,
            } => self.lay_whole(table, key, Whole::String(value.clone(), *expires)),
            Operation::Delete { key } => self.lay_whole(table, key, Whole::Absent),
            Operation::HashSet { key, fields } => {
                let changes = fields.iter().map(|(field, value)| (field, Some(value)));
                self.lay_fields(table, key, changes)
            }
            Operation::HashDelete { key, fields } => {
                self.lay_fields(table, key, fields.iter().map(|field| (field, None)))
            }
            Operation::Expire { key, expires } => {
                let order = Order::of(key);
                if self.view(table, order, key).is_some() {
                    self.layer(order, key).expires = Some((*expires, end));
                }
                Touch::Key(key.clone())
            }
            Operation::Clear => {
                self.layers.clear();
                self.cleared = Some(end);
                self.len = Some(0);
                Touch::All
            }
        }
    }

    fn lay_whole(&mut self, table: &Table, key: &Bytes, whole: Whole) -> Touch {
        let order = Order::of(key);
        let was = self.view(table, order, key).is_some();
        self.count(table, was, matches!(whole, Whole::String(..)));
        let end = self.end;
        self.layer(order, key).becomes(whole, end);
        Touch::Key(key.clone())
    }

    fn lay_fields<'f>(
        &mut self,
        table: &Table,
        key: &Bytes,
        changes: impl Iterator<Item = (&'f Bytes, Option<&'f Bytes>)>,
    ) -> Touch {
        let (order, end) = (Order::of(key), self.end);
        // What each field will be, and whether that adds or removes one.
        let view = self.view(table, order, key);
        let was = view.is_some();
        let hash = match view {
            Some(View::Hash(hash, _)) => Some(hash),
            Some(View::String(..)) | None => None,
        };
        let replaces = was && hash.is_none();
        let mut count = hash.map_or(0, |hash| hash.len());
        let is_in_table = |field: &Bytes| hash.is_some_and(|hash| hash.get(field).is_some());
        let changes: Vec<_> = changes
            .map(|(field, value)| (field.clone(), value.cloned(), is_in_table(field)))
            .collect();
        let makes = changes.iter().any(|(_, value, _)| value.is_some());
        let fields = changes.iter().map(|(field, ..)| field.clone()).collect();
        if !makes && hash.is_none() {
            return Touch::Fields(key.clone(), fields);
        }
        let layer = self.layer(order, key);
        if replaces {
            layer.becomes(Whole::Absent, end);
        }
        let over = layer.changes.get_or_insert_default();
        for (field, value, was_there) in changes {
            let sets = value.is_some();
            let before = over.insert(Order::of(&field), &field, (value, end));
            // A field that is named twice was changed by its first mention.
            let was_there = before.map_or(was_there, |(value, _)| value.is_some());
            count = (count + usize::from(sets)).saturating_sub(usize::from(was_there));
        }
        layer.field_count = count;
        if count == 0 {
            layer.becomes(Whole::Absent, end);
        }
        self.count(table, was, count > 0);
        Touch::Fields(key.clone(), fields)
    }

    fn layer(&mut self, order: Order, key: &[u8]) -> &mut Layer {
        self.layers.get_or_insert_default(order, key)
    }

    /// Counts a key that was there or not, and will be there or not.
    fn count(&mut self, table: &Table, was: bool, will_be: bool) {
        let len = self.len(table);
        self.len = Some((len + usize::from(will_be)).saturating_sub(usize::from(was)));
    }

    fn settle_key(&mut self, key: &[u8], fields: &[Bytes], upto: Position) {
        let order = Order::of(key);
        let Some(layer) = self.layers.get_mut(order, key) else {
            return;
        };
        fields
            .iter()
            .for_each(|field| layer.settle_field(field, upto));
        if layer.settle(upto) {
            let _settled = self.layers.remove(order, key);
        }
    }
}

/// Returns how many bytes an operation has at most when it is encoded.
fn encoded_bytes_max(operation: &Operation) -> usize {
    /// A tag or the length of a byte string.
    const LENGTH: usize = 5;
    /// A tag, and a time that may be missing.
    const EXPIRY: usize = 12;
    let string = |string: &Bytes| string.len() + LENGTH;
    LENGTH
        + match operation {
            Operation::Set { key, value, .. } => string(key) + string(value) + EXPIRY,
            Operation::Delete { key } => string(key),
            Operation::HashSet { key, fields } => {
                let fields = fields
                    .iter()
                    .map(|(field, value)| string(field) + string(value));
                string(key) + LENGTH + fields.sum::<usize>()
            }
            Operation::HashDelete { key, fields } => {
                string(key) + LENGTH + fields.iter().map(string).sum::<usize>()
            }
            Operation::Expire { key, .. } => string(key) + EXPIRY,
            Operation::Clear => 0,
        }
}

#[cfg(test)]
impl Draft {
    pub(super) fn watch_count(&self) -> usize {
        self.watches.len()
    }
}
