//! What a bundle would make of each key, from the operations in it.
//!
//! A bundle holds what came after a point, and not what was there at it: of a hash it may know some fields
//! only, and of a key no more than its expiry.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::kv::operation::Operation;
use crate::wall_time::WallTime;

/// What is wished of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wish {
    /// The key is a string.
    String {
        /// Its value.
        value: Bytes,
        /// When it expires; `None` for never.
        expires: Option<WallTime>,
    },
    /// The key is a hash.
    Hash {
        /// What is wished of its fields: a value, or that the field is absent.
        fields: BTreeMap<Bytes, Option<Bytes>>,
        /// It has no other fields than those. Otherwise the bundle does not know the others.
        is_whole: bool,
        /// When it expires, `Some(None)` for never; `None` where the bundle does not know.
        expires: Option<Option<WallTime>>,
    },
    /// The key is absent.
    Absent,
    /// The key expires then, `None` for never, whatever it is.
    Expiry {
        /// When.
        expires: Option<WallTime>,
    },
}

/// One of several parts into which keys fall by their hash: a bundle of any size is looked at part by part,
/// within a bound of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// Which, from 0.
    pub index: u64,
    /// Of how many; at least 1.
    pub of: u64,
}

impl Part {
    /// The only part.
    pub const WHOLE: Self = Self { index: 0, of: 1 };

    fn has(self, key: &[u8]) -> bool {
        let hash = xxhash_rust::xxh3::xxh3_64(key);
        hash.checked_rem(self.of) == Some(self.index)
    }
}

/// What is wished of every key of a part.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wishes {
    /// By key.
    pub keys: BTreeMap<Bytes, Wish>,
    /// Somewhere in the bundle every key was removed. That is told, and never replayed.
    pub has_clear: bool,
}

impl Wishes {
    /// Takes one more operation, in the order of the log.
    pub fn take(&mut self, operation: Operation, part: Part) {
        match operation {
            Operation::Set {
                key,
                value,
                expires,
            } => {
                if part.has(&key) {
                    self.keys.insert(key, Wish::String { value, expires });
                }
            }
            Operation::Delete { key } => {
                if part.has(&key) {
                    self.keys.insert(key, Wish::Absent);
                }
            }
            Operation::HashSet { key, fields } => {
                let set = fields
                    .into_iter()
                    .map(|(field, value)| (field, Some(value)));
                self.change_fields(key, set, part);
            }
            Operation::HashDelete { key, fields } => {
                let removed = fields.into_iter().map(|field| (field, None));
                self.change_fields(key, removed, part);
            }
            Operation::Expire { key, expires } => {
                if part.has(&key) {
                    self.expire(key, expires);
                }
            }
            Operation::Clear => {
                self.has_clear = true;
                // Of keys that came before it nothing is wished: not to clear is the safe side.
                self.keys.clear();
            }
        }
    }

    fn change_fields(
        &mut self,
        key: Bytes,
        changed: impl Iterator<Item = (Bytes, Option<Bytes>)>,
        part: Part,
    ) {
        if !part.has(&key) {
            return;
        }
        let (mut fields, is_whole, expires) = match self.keys.remove(&key) {
            Some(Wish::Hash {
                fields,
                is_whole,
                expires,
            }) => (fields, is_whole, expires),
            Some(Wish::Expiry { expires }) => (BTreeMap::new(), false, Some(expires)),
            // Made anew: nothing of it is from before the bundle.
            Some(Wish::Absent | Wish::String { .. }) => (BTreeMap::new(), true, Some(None)),
            None => (
                BTreeMap::new(),
                self.has_clear,
                self.has_clear.then_some(None),
            ),
        };
        for (field, value) in changed {
            match (is_whole, value) {
                // There is nothing that it could be removed from.
                (true, None) => {
                    fields.remove(&field);
                }
                (_, value) => {
                    fields.insert(field, value);
                }
            }
        }
        let wish = if is_whole && fields.is_empty() {
            Wish::Absent
        } else {
            Wish::Hash {
                fields,
                is_whole,
                expires,
            }
        };
        self.keys.insert(key, wish);
    }

    fn expire(&mut self, key: Bytes, at: Option<WallTime>) {
        match self.keys.get_mut(&key) {
            Some(Wish::String { expires, .. } | Wish::Expiry { expires }) => *expires = at,
            Some(Wish::Hash { expires, .. }) => *expires = Some(at),
            Some(Wish::Absent) => {}
            None if self.has_clear => {}
            None => {
                self.keys.insert(key, Wish::Expiry { expires: at });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(text: &str) -> Bytes {
        Bytes::copy_from_slice(text.as_bytes())
    }

    fn set(key: &str, value: &str) -> Operation {
        Operation::Set {
            key: bytes(key),
            value: bytes(value),
            expires: None,
        }
    }

    fn delete(key: &str) -> Operation {
        Operation::Delete { key: bytes(key) }
    }

    fn hash_set(key: &str, field: &str, value: &str) -> Operation {
        Operation::HashSet {
            key: bytes(key),
            fields: vec![(bytes(field), bytes(value))],
        }
    }

    fn hash_delete(key: &str, field: &str) -> Operation {
        Operation::HashDelete {
            key: bytes(key),
            fields: vec![bytes(field)],
        }
    }

    fn expire(key: &str, at: Option<u64>) -> Operation {
        Operation::Expire {
            key: bytes(key),
            expires: at.map(WallTime),
        }
    }

    fn wishes(operations: impl IntoIterator<Item = Operation>) -> Wishes {
        let mut wishes = Wishes::default();
        for operation in operations {
            wishes.take(operation, Part::WHOLE);
        }
        wishes
    }

    fn of_one(operations: impl IntoIterator<Item = Operation>) -> Option<Wish> {
        wishes(operations).keys.remove(&bytes("k"))
    }

    fn hash(fields: &[(&str, Option<&str>)], is_whole: bool) -> Wish {
        let of_field = |(field, value): &(&str, Option<&str>)| (bytes(field), value.map(bytes));
        Wish::Hash {
            fields: fields.iter().map(of_field).collect(),
            is_whole,
            expires: is_whole.then_some(None),
        }
    }

    #[test]
    fn the_last_word_on_a_key_counts() {
        let string = |value, expires: Option<u64>| Wish::String {
            value: bytes(value),
            expires: expires.map(WallTime),
        };
        assert_eq!(
            of_one([set("k", "1"), set("k", "2")]),
            Some(string("2", None))
        );
        assert_eq!(of_one([set("k", "1"), delete("k")]), Some(Wish::Absent));
        assert_eq!(
            of_one([delete("k"), set("k", "1"), expire("k", Some(5))]),
            Some(string("1", Some(5)))
        );
        assert_eq!(
            of_one([hash_set("k", "f", "1"), set("k", "2")]),
            Some(string("2", None))
        );
    }

    #[test]
    fn a_hash_from_before_the_bundle_is_known_in_part_only() {
        let known = hash(&[("f", Some("1")), ("g", None)], false);
        assert_eq!(
            of_one([hash_set("k", "f", "1"), hash_delete("k", "g")]),
            Some(known)
        );
    }

    #[test]
    fn a_hash_that_was_made_within_the_bundle_is_known_whole() {
        let made = [
            delete("k"),
            hash_set("k", "f", "1"),
            hash_set("k", "g", "2"),
        ];
        let known = hash(&[("g", Some("2"))], true);
        let removed = [hash_delete("k", "f")];
        assert_eq!(of_one(made.into_iter().chain(removed)), Some(known));
        assert_eq!(
            of_one([delete("k"), hash_set("k", "f", "1"), hash_delete("k", "f")]),
            Some(Wish::Absent)
        );
    }

    #[test]
    fn an_expiry_is_wished_even_of_a_key_of_which_nothing_else_is_known() {
        let expiry = |at: Option<u64>| Wish::Expiry {
            expires: at.map(WallTime),
        };
        assert_eq!(of_one([expire("k", Some(5))]), Some(expiry(Some(5))));
        let Some(Wish::Hash { expires, .. }) = of_one([expire("k", None), hash_set("k", "f", "1")])
        else {
            panic!("it is a hash");
        };
        assert_eq!(expires, Some(None));
        assert_eq!(
            of_one([delete("k"), expire("k", Some(5))]),
            Some(Wish::Absent)
        );
    }

    #[test]
    fn to_remove_every_key_is_never_wished_and_what_came_after_it_is_whole() {
        let seen = wishes([set("a", "1"), Operation::Clear, hash_set("k", "f", "1")]);
        assert!(seen.has_clear);
        assert_eq!(seen.keys.len(), 1);
        assert_eq!(seen.keys[&bytes("k")], hash(&[("f", Some("1"))], true));
    }

    #[test]
    fn every_key_is_in_one_part() {
        let operations = || (0..100).map(|number| set(&format!("key {number}"), "v"));
        let parts = (0..7).map(|index| {
            let mut wishes = Wishes::default();
            operations().for_each(|it| wishes.take(it, Part { index, of: 7 }));
            wishes.keys.len()
        });
        let counts: Vec<usize> = parts.collect();
        assert_eq!(counts.iter().sum::<usize>(), 100);
        assert!(counts.iter().all(|count| *count > 0), "{counts:?}");
    }
}
