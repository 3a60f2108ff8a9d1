//! The fields of one hash.

use super::digest::KeyHash;
use super::ordered::{Order, Ordered};

/// Up to how many fields a hash is a plain list, which is smaller and keeps them as they came.
pub(crate) const FEW_FIELDS_MAX: usize = 32;

/// A field and its value.
type Field = (Box<[u8]>, Box<[u8]>);

/// How the fields are kept.
#[derive(Debug)]
enum Form {
    Few(Vec<Field>),
    Many(Ordered<Box<[u8]>>),
}

/// The fields of one hash; never without one while it is in the table.
#[derive(Debug)]
pub(crate) struct Fields {
    form: Form,
    /// The sum of the fields' hashes, so that the whole can be taken from a digest at once.
    pub(super) digest: u128,
    /// The bytes of fields and values.
    pub(super) live_bytes: usize,
}

impl Fields {
    pub(super) fn new() -> Self {
        Self {
            form: Form::Few(Vec::new()),
            digest: 0,
            live_bytes: 0,
        }
    }

    pub(crate) fn len(&self) -> usize {
        match &self.form {
            Form::Few(list) => list.len(),
            Form::Many(map) => map.len(),
        }
    }

    /// `order` is the place of `field`.
    pub(crate) fn get(&self, order: Order, field: &[u8]) -> Option<&[u8]> {
        match &self.form {
            Form::Few(list) => list
                .iter()
                .find(|(own, _)| **own == *field)
                .map(|(_, value)| &**value),
            Form::Many(map) => map.get(order, field).map(|value| &**value),
        }
    }

    /// Returns the fields as they came while they are few, and otherwise in order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        let (few, many) = match &self.form {
            Form::Few(list) => (Some(list), None),
            Form::Many(map) => (None, Some(map)),
        };
        let few = few.into_iter().flatten();
        let many = many.into_iter().flat_map(|map| map.from(Order::FIRST));
        few.map(|(field, value)| (&**field, &**value))
            .chain(many.map(|(_, field, value)| (field, &**value)))
    }

    /// Returns the fields from a place on, in order.
    pub(crate) fn from(&self, first: Order) -> impl Iterator<Item = (Order, &[u8], &[u8])> {
        let (few, many) = match &self.form {
            Form::Few(list) => {
                let mut few: Vec<_> = list
                    .iter()
                    .map(|(field, value)| (Order::of(field), &**field, &**value))
                    .filter(|(order, ..)| *order >= first)
                    .collect();
                few.sort_unstable();
                (few, None)
            }
            Form::Many(map) => (Vec::new(), Some(map)),
        };
        let many = many.into_iter().flat_map(move |map| map.from(first));
        few.into_iter()
            .chain(many.map(|(order, field, value)| (order, field, &**value)))
    }

    /// Sets a field.
    pub(super) fn set(&mut self, key: KeyHash, field: &[u8], value: &[u8]) {
        let old = match &mut self.form {
            Form::Few(list) => match list.iter_mut().find(|(own, _)| **own == *field) {
                Some((_, old)) => Some(std::mem::replace(old, value.into())),
                None => {
                    list.push((field.into(), value.into()));
                    None
                }
            },
            Form::Many(map) => map.insert(Order::of(field), field, value.into()),
        };
        self.count(key, field, old.as_deref(), Some(value));
        if let Form::Few(list) = &mut self.form
            && list.len() > FEW_FIELDS_MAX
        {
            let mut map = Ordered::default();
            for (field, value) in std::mem::take(list) {
                let _none = map.insert(Order::of(&field), &field, value);
            }
            self.form = Form::Many(map);
        }
    }

    /// Removes a field, if it is there.
    pub(super) fn delete(&mut self, key: KeyHash, field: &[u8]) {
        let old = match &mut self.form {
            Form::Few(list) => list
                .iter()
                .position(|(own, _)| **own == *field)
                .map(|index| list.remove(index).1),
            Form::Many(map) => map.remove(Order::of(field), field),
        };
        self.count(key, field, old.as_deref(), None);
    }

    fn count(&mut self, key: KeyHash, field: &[u8], old: Option<&[u8]>, new: Option<&[u8]>) {
        if let Some(old) = old {
            self.digest = self.digest.wrapping_sub(key.field(field, old));
            self.live_bytes -= field.len() + old.len();
        }
        if let Some(new) = new {
            self.digest = self.digest.wrapping_add(key.field(field, new));
            self.live_bytes += field.len() + new.len();
        }
    }
}
