//! What the log builds: the keys and their values, in memory.

mod digest;
pub(crate) mod fields;
pub(crate) mod ordered;
mod walk;

use std::collections::BTreeSet;

use bytes::Bytes;

use self::digest::KeyHash;
pub use self::digest::TableDigest;
use self::fields::Fields;
use self::ordered::{Order, Ordered};
pub use self::walk::Cursor;
use super::operation::Operation;
use crate::wall_time::WallTime;

/// What a key costs beside its bytes and those of its value, in bytes: its place in the tree, which is two
/// thirds full, and what the allocator adds to two allocations.
const KEY_BYTES: usize = 106;

/// The same for a hash as such.
const HASH_BYTES: usize = 112;

/// The same for a field of a hash.
const FIELD_BYTES: usize = 100;

/// The same for an expiry.
const EXPIRY_BYTES: usize = 24;

/// When something expires, in milliseconds since 1970, with the end of time for never.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Expiry(u64);

impl Expiry {
    const NEVER: Self = Self(u64::MAX);

    fn is_set(self) -> bool {
        self != Self::NEVER
    }
}

impl From<Option<WallTime>> for Expiry {
    fn from(expires: Option<WallTime>) -> Self {
        expires.map_or(Self::NEVER, |WallTime(millis)| Self(millis))
    }
}

impl From<Expiry> for Option<WallTime> {
    fn from(expiry: Expiry) -> Self {
        expiry.is_set().then_some(WallTime(expiry.0))
    }
}

/// What a key holds.
#[derive(Debug)]
pub(crate) enum Content {
    String(Box<[u8]>),
    Hash(Box<Fields>),
}

/// What there is of a key.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) content: Content,
    expiry: Expiry,
}

impl Entry {
    pub(crate) fn expires(&self) -> Option<WallTime> {
        self.expiry.into()
    }

    /// The sum of the hashes of what the key is made of.
    fn digest(&self, key: KeyHash) -> u128 {
        match &self.content {
            Content::String(value) => key.string(value, self.expiry.0),
            Content::Hash(fields) => key.hash(self.expiry.0).wrapping_add(fields.digest),
        }
    }

    fn live_bytes(&self) -> usize {
        match &self.content {
            Content::String(value) => value.len(),
            Content::Hash(fields) => fields.live_bytes,
        }
    }

    fn field_count(&self) -> usize {
        match &self.content {
            Content::String(_) => 0,
            Content::Hash(fields) => fields.len(),
        }
    }
}

/// The keys and their values, in memory: what [`Operation`]s have made.
///
/// It knows no clock: what has expired stays until an operation deletes it.
#[derive(Debug, Default)]
pub struct Table {
    keys: Ordered<Entry>,
    /// The place of each key that expires, by the time.
    expiring: BTreeSet<(Expiry, Order)>,
    digest: TableDigest,
    live_bytes: usize,
    hashes: usize,
    fields: usize,
}

impl Table {
    /// Returns an empty table.
    pub fn new() -> Self {
        Self::default()
    }

    /// Returns the number of keys.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Returns whether there is no key.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Returns how many keys have an expiry; keys that expire at one time and share a place count once.
    pub fn expiring_len(&self) -> usize {
        self.expiring.len()
    }

    /// Returns the bytes of all keys, fields and values.
    pub fn live_bytes(&self) -> usize {
        self.live_bytes
    }

    /// Returns about how many bytes of memory the table takes.
    pub fn bytes(&self) -> usize {
        self.live_bytes
            + self.keys.len() * KEY_BYTES
            + self.hashes * HASH_BYTES
            + self.fields * FIELD_BYTES
            + self.expiring.len() * EXPIRY_BYTES
    }

    /// Returns what is equal to another table's when the tables are equal.
    pub fn digest(&self) -> TableDigest {
        self.digest
    }

    /// Makes one change.
    pub fn apply(&mut self, operation: &Operation) {
        match operation {
            Operation::Set {
                key,
                value,
                expires,
            } => {
                let content = Content::String((&**value).into());
                let expiry = Expiry::from(*expires);
                self.put(key, Entry { content, expiry });
            }
            Operation::Delete { key } => self.delete(key),
            Operation::HashSet { key, fields } => {
                self.with_hash(key, !fields.is_empty(), |hash, entry| {
                    for (field, value) in fields {
                        entry.set(hash, field, value);
                    }
                });
            }
            Operation::HashDelete { key, fields } => {
                self.with_hash(key, false, |hash, entry| {
                    for field in fields {
                        entry.delete(hash, field);
                    }
                });
            }
            Operation::Expire { key, expires } => self.expire(key, Expiry::from(*expires)),
            Operation::Clear => *self = Self::default(),
        }
    }

    /// Returns the keys that have expired, oldest first, `count_max` and a few more at most.
    pub fn due(&self, now: WallTime, count_max: usize) -> Vec<Bytes> {
        let mut due = Vec::new();
        for (expiry, order) in self
            .expiring
            .range(..=(Expiry(now.0), Order::from_cursor(u64::MAX)))
        {
            if due.len() >= count_max {
                break;
            }
            due.extend(
                self.keys
                    .at(*order)
                    .filter(|(_, entry)| entry.expiry == *expiry)
                    .map(|(key, _)| Bytes::copy_from_slice(key)),
            );
        }
        due
    }

    pub(crate) fn keys(&self) -> &Ordered<Entry> {
        &self.keys
    }

    fn put(&mut self, key: &[u8], entry: Entry) {
        let order = Order::of(key);
        let hash = KeyHash::of(key);
        let expiry = entry.expiry;
        self.digest.add(entry.digest(hash));
        self.live_bytes += key.len() + entry.live_bytes();
        self.fields += entry.field_count();
        self.hashes += usize::from(matches!(entry.content, Content::Hash(_)));
        if let Some(old) = self.keys.insert(order, key, entry) {
            self.discount(key, hash, &old);
            if old.expiry != expiry {
                self.forget_expiry(order, old.expiry);
            }
        }
        if expiry.is_set() {
            self.expiring.insert((expiry, order));
        }
    }

    fn delete(&mut self, key: &[u8]) {
        let order = Order::of(key);
        if let Some(old) = self.keys.remove(order, key) {
            self.discount(key, KeyHash::of(key), &old);
            self.forget_expiry(order, old.expiry);
        }
    }

    /// Changes the fields of a hash, which is made first if need be and wanted; a string gives way to it.
    fn with_hash(&mut self, key: &[u8], makes: bool, change: impl FnOnce(KeyHash, &mut Fields)) {
        let order = Order::of(key);
        let hash = KeyHash::of(key);
        let is_hash = |entry: &Entry| matches!(entry.content, Content::Hash(_));
        if makes && !self.keys.get(order, key).is_some_and(is_hash) {
            let content = Content::Hash(Box::new(Fields::new()));
            let expiry = Expiry::NEVER;
            self.put(key, Entry { content, expiry });
        }
        let Some(Entry {
            content: Content::Hash(fields),
            ..
        }) = self.keys.get_mut(order, key)
        else {
            return;
        };
        self.digest.subtract(fields.digest);
        self.live_bytes -= fields.live_bytes;
        self.fields -= fields.len();
        change(hash, fields);
        self.digest.add(fields.digest);
        self.live_bytes += fields.live_bytes;
        self.fields += fields.len();
        if fields.len() == 0 {
            self.delete(key);
        }
    }

    fn expire(&mut self, key: &[u8], expiry: Expiry) {
        let order = Order::of(key);
        let hash = KeyHash::of(key);
        let Some(entry) = self.keys.get_mut(order, key) else {
            return;
        };
        self.digest.subtract(entry.digest(hash));
        let old = std::mem::replace(&mut entry.expiry, expiry);
        self.digest.add(entry.digest(hash));
        if old != expiry {
            self.forget_expiry(order, old);
        }
        if expiry.is_set() {
            self.expiring.insert((expiry, order));
        }
    }

    fn discount(&mut self, key: &[u8], hash: KeyHash, old: &Entry) {
        self.digest.subtract(old.digest(hash));
        self.live_bytes -= key.len() + old.live_bytes();
        self.fields -= old.field_count();
        self.hashes -= usize::from(matches!(old.content, Content::Hash(_)));
    }

    /// Forgets that a key expires then, unless another at its place does.
    fn forget_expiry(&mut self, order: Order, expiry: Expiry) {
        let is_shared = self.keys.at(order).any(|(_, entry)| entry.expiry == expiry);
        if expiry.is_set() && !is_shared {
            self.expiring.remove(&(expiry, order));
        }
    }
}

#[cfg(test)]
mod tests;
