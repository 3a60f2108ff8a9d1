//! Two ordered things as one.

use std::iter::Peekable;

use bytes::Bytes;

use super::layer::HashView;
use crate::kv::table::ordered::Order;
use crate::position::Position;

/// An item of either or both of two ordered sequences, with its place and key.
pub(crate) type Merged<'a, L, U> = (Order, &'a [u8], Option<L>, Option<U>);

/// Merges what lies below with what lies over it, both in order.
pub(crate) fn merge<'a, L, U>(
    lower: impl Iterator<Item = (Order, &'a [u8], L)>,
    upper: impl Iterator<Item = (Order, &'a [u8], U)>,
) -> impl Iterator<Item = Merged<'a, L, U>> {
    let (mut lower, mut upper) = (lower.peekable(), upper.peekable());
    std::iter::from_fn(move || {
        let place = first(&mut lower)
            .into_iter()
            .chain(first(&mut upper))
            .min()?;
        let lower = lower.next_if(|item| (item.0, item.1) == place);
        let upper = upper.next_if(|item| (item.0, item.1) == place);
        Some((
            place.0,
            place.1,
            lower.map(|item| item.2),
            upper.map(|item| item.2),
        ))
    })
}

fn first<'a, T>(
    items: &mut Peekable<impl Iterator<Item = (Order, &'a [u8], T)>>,
) -> Option<(Order, &'a [u8])> {
    items.peek().map(|item| (item.0, item.1))
}

impl<'a> HashView<'a> {
    /// Returns the number of fields.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Returns the value of a field.
    pub(crate) fn get(&self, field: &[u8]) -> Option<&'a [u8]> {
        let order = Order::of(field);
        match self.changes.and_then(|changes| changes.get(order, field)) {
            Some((value, _)) => value.as_deref(),
            None => self.base?.get(order, field),
        }
    }

    /// Calls `visit` with every field and its value.
    pub(crate) fn visit(&self, visit: &mut dyn FnMut(&'a [u8], &'a [u8])) {
        match (self.base, self.changes) {
            (Some(base), None) => base.iter().for_each(|(field, value)| visit(field, value)),
            (Some(_) | None, _) => self
                .from(Order::FIRST)
                .for_each(|(_, field, value)| visit(field, value)),
        }
    }

    /// Returns the fields from a place on, in order.
    pub(crate) fn from(&self, first: Order) -> impl Iterator<Item = (Order, &'a [u8], &'a [u8])> {
        let base = self.base.into_iter().flat_map(move |base| base.from(first));
        let changes = self
            .changes
            .into_iter()
            .flat_map(move |changes| changes.from(first));
        merge(base, changes).filter_map(
            |(order, field, old, change): Merged<'a, &'a [u8], &'a (Option<Bytes>, Position)>| {
                let value = match change {
                    Some((value, _)) => value.as_deref(),
                    None => old,
                };
                Some((order, field, value?))
            },
        )
    }
}
