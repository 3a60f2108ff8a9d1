//! What tells whether two tables are equal.

use std::fmt;

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_128;

/// The sum of a hash of every item of a table: equal for equal tables however they came to be.
///
/// It finds faults, and proves nothing against somebody who chooses the content in order to deceive it.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct TableDigest(u128);

impl TableDigest {
    pub(super) fn add(&mut self, item: u128) {
        self.0 = self.0.wrapping_add(item);
    }

    pub(super) fn subtract(&mut self, item: u128) {
        self.0 = self.0.wrapping_sub(item);
    }
}

impl fmt::Display for TableDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for TableDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The hash of a key, from which those of its items are made.
#[derive(Clone, Copy, Debug)]
pub(super) struct KeyHash(u128);

impl KeyHash {
    pub(super) fn of(key: &[u8]) -> Self {
        Self(xxh3_128(key))
    }

    /// A string with its expiry in milliseconds.
    pub(super) fn string(self, value: &[u8], expires: u64) -> u128 {
        self.item(0, u128::from(expires), xxh3_128(value))
    }

    /// That there is a hash, and its expiry.
    pub(super) fn hash(self, expires: u64) -> u128 {
        self.item(1, u128::from(expires), 0)
    }

    /// A field of a hash.
    pub(super) fn field(self, field: &[u8], value: &[u8]) -> u128 {
        self.item(2, xxh3_128(field), xxh3_128(value))
    }

    fn item(self, kind: u8, first: u128, second: u128) -> u128 {
        let mut item = [kind; 49];
        let parts = [self.0, first, second];
        for (room, part) in item.chunks_exact_mut(16).zip(parts) {
            room.copy_from_slice(&part.to_le_bytes());
        }
        xxh3_128(&item)
    }
}
