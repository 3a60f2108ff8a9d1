//! What is appended but not committed of one key.

use bytes::Bytes;

use crate::kv::table::fields::Fields;
use crate::kv::table::ordered::{Order, Ordered};
use crate::kv::table::{Content, Entry};
use crate::position::Position;
use crate::wall_time::WallTime;

/// The newest values of fields, `None` for deleted, each with the position behind its last change.
pub(crate) type Changes = Ordered<(Option<Bytes>, Position)>;

/// What a key became as a whole.
#[derive(Debug)]
pub(super) enum Whole {
    Absent,
    String(Bytes, Option<WallTime>),
}

/// What lies over a key of the table.
///
/// Each part tells what is so and not what changed, so it stays true over a table to which the operations
/// behind it have been applied already; and each knows its last operation, to go when that has settled.
#[derive(Debug, Default)]
pub(super) struct Layer {
    /// Hides what the table has of the key.
    pub(super) whole: Option<(Whole, Position)>,
    /// Lies over the fields that the key has otherwise.
    pub(super) changes: Option<Box<Changes>>,
    /// Counts instead of the expiry that the key has otherwise.
    pub(super) expires: Option<(Option<WallTime>, Position)>,
    /// How many fields the key has with all that, where it is a hash.
    pub(super) field_count: usize,
}

impl Layer {
    pub(super) fn becomes(&mut self, whole: Whole, position: Position) {
        *self = Self {
            whole: Some((whole, position)),
            ..Self::default()
        };
    }

    /// Drops what has settled, but for fields; returns whether nothing is left.
    pub(super) fn settle(&mut self, upto: Position) -> bool {
        if self
            .whole
            .as_ref()
            .is_some_and(|(_, position)| *position <= upto)
        {
            self.whole = None;
        }
        if self.expires.is_some_and(|(_, position)| position <= upto) {
            self.expires = None;
        }
        if self
            .changes
            .as_ref()
            .is_some_and(|changes| changes.is_empty())
        {
            self.changes = None;
        }
        self.whole.is_none() && self.expires.is_none() && self.changes.is_none()
    }

    pub(super) fn settle_field(&mut self, field: &[u8], upto: Position) {
        if let Some(changes) = &mut self.changes {
            let order = Order::of(field);
            if changes
                .get(order, field)
                .is_some_and(|(_, position)| *position <= upto)
            {
                let _settled = changes.remove(order, field);
            }
        }
    }
}

/// A hash with what lies over it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HashView<'a> {
    pub(super) base: Option<&'a Fields>,
    pub(super) changes: Option<&'a Changes>,
    pub(super) len: usize,
}

/// What a key is, by the clock or not.
#[derive(Clone, Copy, Debug)]
pub(crate) enum View<'a> {
    String(&'a [u8], Option<WallTime>),
    Hash(HashView<'a>, Option<WallTime>),
}

impl<'a> View<'a> {
    /// Returns what a table has.
    pub(crate) fn plain(entry: &'a Entry) -> Self {
        match &entry.content {
            Content::String(value) => Self::String(value, entry.expires()),
            Content::Hash(fields) => {
                let view = HashView {
                    base: Some(fields),
                    changes: None,
                    len: fields.len(),
                };
                Self::Hash(view, entry.expires())
            }
        }
    }

    /// Returns what a table has with what lies over it; `None` for absent.
    pub(super) fn layered(entry: Option<&'a Entry>, layer: &'a Layer) -> Option<Self> {
        let under = match &layer.whole {
            Some((Whole::Absent, _)) => None,
            Some((Whole::String(value, expires), _)) => Some(Self::String(value, *expires)),
            None => entry.map(Self::plain),
        };
        let view = match (&layer.changes, under) {
            (None, under) => under?,
            (Some(changes), under) => {
                let (base, expires) = match under {
                    Some(Self::Hash(view, expires)) => (view.base, expires),
                    Some(Self::String(..)) | None => (None, None),
                };
                let view = HashView {
                    base,
                    changes: Some(changes),
                    len: layer.field_count,
                };
                Self::Hash(view, expires)
            }
        };
        Some(match (layer.expires, view) {
            (None, view) => view,
            (Some((expires, _)), Self::String(value, _)) => Self::String(value, expires),
            (Some((expires, _)), Self::Hash(view, _)) => Self::Hash(view, expires),
        })
    }

    pub(crate) fn expires(&self) -> Option<WallTime> {
        match self {
            Self::String(_, expires) | Self::Hash(_, expires) => *expires,
        }
    }
}
