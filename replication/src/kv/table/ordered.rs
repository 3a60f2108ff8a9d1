//! A map of byte strings in the order of a hash of them.

use std::collections::BTreeMap;
use std::collections::btree_map;
use std::hash::{BuildHasher, RandomState};
use std::sync::LazyLock;

/// How many bits of the hash are used: cursors of `SCAN` are exact in clients that hold numbers as doubles.
const ORDER_BITS: u32 = 53;

/// Differs from process to process, so that nobody can choose keys that share a place.
static SEED: LazyLock<RandomState> = LazyLock::new(RandomState::new);

/// The place of a byte string among others: a hash of it.
///
/// What is scanned in this order can be scanned in parts by the place alone: whatever is added or removed
/// meanwhile, what was there throughout is seen. Each process has an order of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Order(u64);

impl Order {
    /// The first place.
    pub(crate) const FIRST: Self = Self(0);

    /// Returns the place of `bytes`.
    pub(crate) fn of(bytes: &[u8]) -> Self {
        Self(SEED.hash_one(bytes) >> (u64::BITS - ORDER_BITS))
    }

    /// Returns the place as the cursor of a scan that begins with it; 0 for the first.
    pub(crate) fn cursor(self) -> u64 {
        self.0
    }

    /// Returns the place that a scan with `cursor` begins with; any number is one.
    pub(crate) fn from_cursor(cursor: u64) -> Self {
        Self(cursor)
    }
}

/// What lies at one place; nearly always one thing.
#[derive(Debug)]
enum Bucket<V> {
    One(Box<[u8]>, V),
    /// Sorted by key; never empty.
    Several(Vec<(Box<[u8]>, V)>),
}

impl<V> Bucket<V> {
    fn get(&self, key: &[u8]) -> Option<&V> {
        match self {
            Self::One(own, value) => (**own == *key).then_some(value),
            Self::Several(slots) => slots
                .iter()
                .find(|slot| *slot.0 == *key)
                .map(|slot| &slot.1),
        }
    }

    fn get_mut(&mut self, key: &[u8]) -> Option<&mut V> {
        match self {
            Self::One(own, value) => (**own == *key).then_some(value),
            Self::Several(slots) => {
                let slot = slots.iter_mut().find(|slot| *slot.0 == *key)?;
                Some(&mut slot.1)
            }
        }
    }

    fn at(&self, index: usize) -> Option<(&[u8], &V)> {
        match self {
            Self::One(key, value) => (index == 0).then_some((key, value)),
            Self::Several(slots) => slots.get(index).map(|(key, value)| (&**key, value)),
        }
    }

    fn iter(&self) -> impl Iterator<Item = (&[u8], &V)> {
        (0..).map_while(|index| self.at(index))
    }

    /// Adds what is not there yet.
    fn add(self, key: &[u8], value: V) -> Self {
        let mut slots = match self {
            Self::One(own, first) => vec![(own, first)],
            Self::Several(slots) => slots,
        };
        let index = slots.partition_point(|slot| *slot.0 < *key);
        slots.insert(index, (key.into(), value));
        Self::Several(slots)
    }
}

/// A map of byte strings in the order of [`Order`], and of the bytes where that is equal.
///
/// A tree and not a hash table: it never stops to grow, and a scan needs no more than a place.
#[derive(Debug)]
pub(crate) struct Ordered<V> {
    buckets: BTreeMap<Order, Bucket<V>>,
    len: usize,
}

impl<V> Default for Ordered<V> {
    fn default() -> Self {
        Self {
            buckets: BTreeMap::new(),
            len: 0,
        }
    }
}

impl<V> Ordered<V> {
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(crate) fn clear(&mut self) {
        self.buckets.clear();
        self.len = 0;
    }

    /// `order` is the place of `key` here and below.
    pub(crate) fn get(&self, order: Order, key: &[u8]) -> Option<&V> {
        self.buckets.get(&order)?.get(key)
    }

    pub(crate) fn get_mut(&mut self, order: Order, key: &[u8]) -> Option<&mut V> {
        self.buckets.get_mut(&order)?.get_mut(key)
    }

    /// Adds or replaces, and returns what was replaced.
    pub(crate) fn insert(&mut self, order: Order, key: &[u8], value: V) -> Option<V> {
        match self.buckets.entry(order) {
            btree_map::Entry::Vacant(vacant) => {
                vacant.insert(Bucket::One(key.into(), value));
            }
            btree_map::Entry::Occupied(mut occupied) => {
                if let Some(slot) = occupied.get_mut().get_mut(key) {
                    return Some(std::mem::replace(slot, value));
                }
                let bucket = std::mem::replace(occupied.get_mut(), Bucket::Several(Vec::new()));
                *occupied.get_mut() = bucket.add(key, value);
            }
        }
        self.len += 1;
        None
    }

    /// Returns what there is, or adds the default.
    pub(crate) fn get_or_insert_default(&mut self, order: Order, key: &[u8]) -> &mut V
    where
        V: Default,
    {
        let bucket = match self.buckets.entry(order) {
            btree_map::Entry::Vacant(vacant) => {
                self.len += 1;
                vacant.insert(Bucket::One(key.into(), V::default()))
            }
            btree_map::Entry::Occupied(occupied) => {
                let bucket = occupied.into_mut();
                if bucket.get(key).is_none() {
                    self.len += 1;
                    let own = std::mem::replace(bucket, Bucket::Several(Vec::new()));
                    *bucket = own.add(key, V::default());
                }
                bucket
            }
        };
        bucket
            .get_mut(key)
            .expect("it was there, or was added above")
    }

    /// Removes, and returns what was there.
    pub(crate) fn remove(&mut self, order: Order, key: &[u8]) -> Option<V> {
        let btree_map::Entry::Occupied(mut occupied) = self.buckets.entry(order) else {
            return None;
        };
        let removed = match occupied.get_mut() {
            Bucket::Several(slots) if slots.len() > 1 => {
                let index = slots.iter().position(|slot| *slot.0 == *key)?;
                slots.remove(index).1
            }
            bucket @ (Bucket::One(..) | Bucket::Several(_)) => {
                bucket.get(key)?;
                match occupied.remove() {
                    Bucket::One(_, value) => value,
                    Bucket::Several(mut slots) => slots.pop()?.1,
                }
            }
        };
        self.len -= 1;
        Some(removed)
    }

    /// Returns what lies at a place.
    pub(crate) fn at(&self, order: Order) -> impl Iterator<Item = (&[u8], &V)> {
        self.buckets.get(&order).into_iter().flat_map(Bucket::iter)
    }

    /// Returns everything from a place on, in order.
    pub(crate) fn from(&self, first: Order) -> impl Iterator<Item = (Order, &[u8], &V)> {
        self.buckets
            .range(first..)
            .flat_map(|(order, bucket)| bucket.iter().map(move |(key, value)| (*order, key, value)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn keys_that_share_a_place_are_kept_apart(
            steps in prop::collection::vec((any::<bool>(), 0u64..3, 0u8..6, any::<u16>()), 0..80),
        ) {
            let mut ordered = Ordered::default();
            let mut model = BTreeMap::new();
            for (inserts, place, key, value) in steps {
                let (order, key) = (Order(place), [key]);
                if inserts {
                    prop_assert_eq!(ordered.insert(order, &key, value), model.insert((place, key), value));
                } else {
                    prop_assert_eq!(ordered.remove(order, &key), model.remove(&(place, key)));
                }
                prop_assert_eq!(ordered.len(), model.len());
                prop_assert_eq!(ordered.get(order, &key), model.get(&(place, key)));
            }
            let listed: Vec<_> = ordered.from(Order(1)).map(|(order, key, value)| ((order.0, [key[0]]), *value)).collect();
            let expected: Vec<_> = model.range((1, [0])..).map(|(key, value)| (*key, *value)).collect();
            prop_assert_eq!(listed, expected);
        }
    }
}
