//! Puts back what a bundle holds, as far as nothing is changed by it that is there now.
//!
//! The rule, per key: what would be added is added; what is there already is left; what would change or
//! remove something is a conflict, and left, unless the operator says otherwise. Each key is judged and
//! changed in one step, with no other writer in between, so a replay can be repeated at any time.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::wish::Wish;
use crate::kv::shown::Shown;
use crate::kv::space::write::COMMAND_BYTES;
use crate::kv::space::{Hash, Space, SpaceError};
use crate::wall_time::WallTime;

/// How many bytes of fields are set in one atom, as a space counts them, if it is more than one field. With
/// what an atom has beside them, that is less than it may have.
const ATOM_BYTES: usize = 1 << 20;

/// How many conflicts are listed; all are counted.
pub const CONFLICTS_LISTED_MAX: usize = 1000;

/// How many failures are listed; all are counted.
const FAILURES_LISTED_MAX: usize = 100;

/// What there is to do for a wish.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// What is missing can be added.
    Add,
    /// It is as wished.
    Same,
    /// What was wished has expired since.
    Expired,
    /// Something that is there would be changed or removed.
    Conflict,
}

impl Verdict {
    /// Returns the word that people are told.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Add => "add",
            Self::Same => "same",
            Self::Expired => "expired",
            Self::Conflict => "conflict",
        }
    }
}

/// A key that a replay left, or overwrote, or could not change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Conflict {
    /// The key.
    pub key: Shown,
    /// What is there, and what the bundle would make of it; or why it could not be changed.
    pub what: String,
}

/// What a replay did, or would do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Replayed {
    /// Of how many keys the bundle tells something.
    pub keys: u64,
    /// How many were added.
    pub added: u64,
    /// How many were as wished already.
    pub same: u64,
    /// How many have expired since.
    pub expired: u64,
    /// How many were overwritten.
    pub overwritten: u64,
    /// How many were left, since something there would have been changed or removed.
    pub conflicts: u64,
    /// The first of those that were left or overwritten.
    pub conflicts_listed: Vec<Conflict>,
    /// How many could not be changed.
    #[serde(default)]
    pub failed: u64,
    /// The first of those, each with the reason.
    #[serde(default)]
    pub failures_listed: Vec<Conflict>,
    /// The bundle removes every key somewhere, which is never replayed.
    pub has_clear: bool,
}

/// Judges a wish against what is there, without changing anything.
pub fn judge(space: &Space<'_>, key: &[u8], wish: &Wish) -> Verdict {
    let now = space.now();
    let has_expired = |at: Option<WallTime>| at.is_some_and(|at| at <= now);
    let there = space.expires(key);
    match wish {
        Wish::String { expires, .. } if has_expired(*expires) => Verdict::Expired,
        Wish::Hash {
            expires: Some(expires),
            ..
        }
        | Wish::Expiry { expires }
            if has_expired(*expires) =>
        {
            Verdict::Expired
        }
        Wish::String { value, expires } => match (there, space.string(key)) {
            (None, _) => Verdict::Add,
            (Some(at), Ok(Some(found))) if found == value && at == *expires => Verdict::Same,
            (Some(_), _) => Verdict::Conflict,
        },
        Wish::Absent => match there {
            None => Verdict::Same,
            Some(_) => Verdict::Conflict,
        },
        Wish::Expiry { expires } => match there {
            None => Verdict::Same,
            Some(at) if at == *expires => Verdict::Same,
            Some(_) => Verdict::Conflict,
        },
        Wish::Hash {
            fields,
            is_whole,
            expires,
        } => {
            let adds = fields.values().any(Option::is_some);
            match (there, space.hash(key)) {
                (None, _) if adds => Verdict::Add,
                (None, _) => Verdict::Same,
                (Some(at), Ok(Some(hash))) if expires.is_none_or(|wished| wished == at) => {
                    judge_fields(&hash, fields, *is_whole)
                }
                (Some(_), _) => Verdict::Conflict,
            }
        }
    }
}

fn judge_fields(
    hash: &Hash<'_>,
    fields: &BTreeMap<Bytes, Option<Bytes>>,
    is_whole: bool,
) -> Verdict {
    let (mut verdict, mut known) = (Verdict::Same, 0_usize);
    for (field, wished) in fields {
        match (hash.get(field), wished) {
            (None, None) => {}
            (None, Some(_)) => verdict = Verdict::Add,
            (Some(found), Some(wished)) if found == wished => known += 1,
            (Some(_), _) => return Verdict::Conflict,
        }
    }
    // A hash that the bundle knows whole has no other fields.
    if is_whole && known < hash.field_count() {
        return Verdict::Conflict;
    }
    verdict
}

/// Judges a wish, and makes of the key what is wished where that adds only, or where `overwrites`. The
/// operations of a key are complete, as atoms, whether it succeeds or not.
///
/// # Errors
/// When the space refuses a change; the wish can be tried again. What is there is not removed then.
pub fn apply(
    space: &mut Space<'_>,
    key: &[u8],
    wish: &Wish,
    overwrites: bool,
) -> Result<Verdict, SpaceError> {
    let verdict = judge(space, key, wish);
    match verdict {
        Verdict::Add => {}
        Verdict::Conflict if overwrites => {}
        Verdict::Same | Verdict::Expired | Verdict::Conflict => return Ok(verdict),
    }
    let done = match wish {
        Wish::String { value, expires } => space.set(key, value, *expires),
        Wish::Absent => space.delete(key).map(drop),
        Wish::Expiry { expires } => space.expire(key, *expires).map(drop),
        Wish::Hash {
            fields,
            is_whole,
            expires,
        } => apply_hash(space, key, fields, *is_whole, *expires),
    };
    space.end_atom();
    done.map(|()| verdict)
}

fn apply_hash(
    space: &mut Space<'_>,
    key: &[u8],
    fields: &BTreeMap<Bytes, Option<Bytes>>,
    is_whole: bool,
    expires: Option<Option<WallTime>>,
) -> Result<(), SpaceError> {
    let is_there = space.kind(key).is_some();
    let is_hash = space.hash(key).is_ok();
    let has_others = match space.hash(key) {
        Ok(Some(hash)) => {
            let known = fields.iter().filter(|(field, _)| hash.get(field).is_some());
            is_whole && known.count() < hash.field_count()
        }
        Ok(None) | Err(_) => false,
    };
    // Before anything is removed.
    let wished = fields.iter().filter_map(|(field, value)| {
        let value = value.as_deref()?;
        Some((field.as_ref(), value))
    });
    space.check_fields(key, wished)?;
    if is_there && (!is_hash || has_others) {
        // In one atom with the first fields.
        space.delete(key)?;
    }
    let mut removed: Vec<&[u8]> = Vec::new();
    let mut set: Vec<(&[u8], &[u8])> = Vec::new();
    let mut bytes = 0_usize;
    for (field, wished) in fields {
        let own = field.len() + wished.as_ref().map_or(0, Bytes::len) + COMMAND_BYTES;
        if bytes > 0 && bytes.saturating_add(own) > ATOM_BYTES {
            change(space, key, &set, &removed)?;
            space.end_atom();
            (bytes, set, removed) = (0, Vec::new(), Vec::new());
        }
        match wished {
            Some(value) => set.push((field, value)),
            None => removed.push(field),
        }
        bytes = bytes.saturating_add(own);
    }
    change(space, key, &set, &removed)?;
    if let Some(expires) = expires {
        // Nothing where the hash went with its last field.
        space.expire(key, expires)?;
    }
    Ok(())
}

fn change(
    space: &mut Space<'_>,
    key: &[u8],
    set: &[(&[u8], &[u8])],
    removed: &[&[u8]],
) -> Result<(), SpaceError> {
    space.hash_set(key, set)?;
    space.hash_delete(key, removed)?;
    Ok(())
}

impl Replayed {
    /// Counts a key that was judged, and overwritten in case of a conflict if `overwrites`.
    pub(super) fn count(&mut self, key: &[u8], wish: &Wish, verdict: Verdict, overwrites: bool) {
        self.keys += 1;
        match verdict {
            Verdict::Add => self.added += 1,
            Verdict::Same => self.same += 1,
            Verdict::Expired => self.expired += 1,
            Verdict::Conflict => {
                if overwrites {
                    self.overwritten += 1;
                } else {
                    self.conflicts += 1;
                }
                if self.conflicts_listed.len() < CONFLICTS_LISTED_MAX {
                    self.conflicts_listed.push(listed(key, what(wish)));
                }
            }
        }
    }

    /// Counts a key that could not be changed.
    pub(super) fn count_failure(&mut self, key: &[u8], error: SpaceError) {
        self.keys += 1;
        self.failed += 1;
        if self.failures_listed.len() < FAILURES_LISTED_MAX {
            self.failures_listed.push(listed(key, &error.to_string()));
        }
    }
}

fn listed(key: &[u8], what: &str) -> Conflict {
    Conflict {
        key: Shown::from(key.get(..KEY_SHOWN_BYTES_MAX).unwrap_or(key)),
        what: what.to_owned(),
    }
}

/// So much of a long key is listed.
const KEY_SHOWN_BYTES_MAX: usize = 256;

/// Says what is in the way of a wish.
fn what(wish: &Wish) -> &'static str {
    match wish {
        Wish::String { .. } => "another value or expiry is there, where the bundle has a string",
        Wish::Hash { .. } => "fields are there that the bundle would change or remove",
        Wish::Absent => "it is there, where the bundle removes it",
        Wish::Expiry { .. } => "it has another expiry than the bundle gives it",
    }
}
