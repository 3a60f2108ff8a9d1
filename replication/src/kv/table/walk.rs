//! A table as the operations that make it, part by part.

use bytes::Bytes;

use super::ordered::Order;
use super::{Content, Entry, Table};
use crate::kv::operation::Operation;

/// What a walk adds to the bytes of keys, fields and values for each of them, in bytes.
const ITEM_BYTES: usize = 16;

/// Where a walk goes on. Of use to the process only that it comes from.
#[derive(Clone, Debug)]
pub struct Cursor {
    order: Order,
    key: Bytes,
    /// The first field that is missing yet, for a hash that did not fit.
    field: Option<Order>,
}

/// A part of a walk.
struct Part {
    operations: Vec<Operation>,
    bytes: usize,
    bytes_max: usize,
}

impl Part {
    fn is_full(&self) -> bool {
        self.bytes >= self.bytes_max
    }

    fn push(&mut self, operation: Operation, bytes: usize) {
        self.bytes += bytes + ITEM_BYTES;
        self.operations.push(operation);
    }
}

impl Table {
    /// Returns operations that make the next part of the table, and where to go on, unless that was all.
    ///
    /// A part has about `bytes_max` bytes, and one value more at most. The table may change between the parts:
    /// what is there throughout is in one of them, and what changes may be in any of its states, with the
    /// fields of a hash in different ones. To make the operations again that were applied since the walk
    /// began, in their order, then leads to this table exactly, provided that each
    /// [`HashSet`](Operation::HashSet) of a hash with an expiry has an [`Expire`](Operation::Expire) behind
    /// it, as [`Space`](crate::kv::space::Space) makes them: else a hash that is empty for a moment in the
    /// second run, and was not in the first, would lose its expiry.
    pub fn walk(
        &self,
        after: Option<&Cursor>,
        bytes_max: usize,
    ) -> (Vec<Operation>, Option<Cursor>) {
        let mut part = Part {
            operations: Vec::new(),
            bytes: 0,
            bytes_max,
        };
        let first = after.map_or(Order::FIRST, |cursor| cursor.order);
        for (order, key, entry) in self.keys.from(first) {
            let mut first_field = Order::FIRST;
            if let Some(cursor) = after
                && cursor.order == order
            {
                if *key < *cursor.key {
                    continue;
                }
                if *key == *cursor.key {
                    first_field = cursor.field.unwrap_or(Order::FIRST);
                }
            }
            let go_on_with = |field| Cursor {
                order,
                key: Bytes::copy_from_slice(key),
                field,
            };
            if part.is_full() {
                return (part.operations, Some(go_on_with(None)));
            }
            if let Some(field) = walk_entry(&mut part, key, entry, first_field) {
                return (part.operations, Some(go_on_with(Some(field))));
            }
        }
        (part.operations, None)
    }
}

/// Adds what makes an entry, and returns the first field that had no room.
fn walk_entry(part: &mut Part, key: &[u8], entry: &Entry, first: Order) -> Option<Order> {
    let key = Bytes::copy_from_slice(key);
    let all_fields = match &entry.content {
        Content::String(value) => {
            let bytes = key.len() + value.len();
            let value = Bytes::copy_from_slice(value);
            let expires = entry.expires();
            part.push(
                Operation::Set {
                    key,
                    value,
                    expires,
                },
                bytes,
            );
            return None;
        }
        Content::Hash(fields) => fields,
    };
    let mut fields = Vec::new();
    let mut bytes = key.len();
    let mut last = None;
    let mut rest = None;
    for (order, field, value) in all_fields.from(first) {
        // Fields that share a place stay together, as a place is where the walk goes on.
        if part.bytes + bytes >= part.bytes_max && last.is_some_and(|last| last != order) {
            rest = Some(order);
            break;
        }
        last = Some(order);
        bytes += field.len() + value.len() + ITEM_BYTES;
        fields.push((Bytes::copy_from_slice(field), Bytes::copy_from_slice(value)));
    }
    if fields.is_empty() {
        return rest;
    }
    part.push(
        Operation::HashSet {
            key: key.clone(),
            fields,
        },
        bytes,
    );
    if let expires @ Some(_) = entry.expires() {
        let bytes = key.len();
        part.push(Operation::Expire { key, expires }, bytes);
    }
    rest
}
