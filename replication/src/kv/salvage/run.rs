//! Shows and replays a bundle on a store that takes commands.

use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::replay::{Replayed, Verdict, apply, judge};
use super::wish::{Part, Wish, Wishes};
use super::{Bundle, Manifest, SalvageError};
use crate::kv::entry::{Entry, EntryError};
use crate::kv::keyspace::{Keyspace, Refusal};
use crate::kv::shown::{Content, Field, Shown};
use crate::kv::space::SpaceError;
use crate::store::{Progress, Unit};
use crate::wall_time::WallTime;

/// A bundle is looked at in parts that come from so many bytes, more or less.
const PART_BYTES: u64 = 64 << 20;

/// So many keys are judged and changed with no other writer in between.
const KEYS_AT_ONCE: usize = 128;

/// Of a value so much is shown, in bytes.
const VALUE_SHOWN_BYTES_MAX: usize = 256;

/// Of all that is shown so much, more or less, in bytes as JSON: it fits into one frame between nodes.
const SHOWN_BYTES_MAX: usize = 1 << 20;

/// Why a bundle is not shown or replayed.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// It cannot be read.
    #[error("cannot read the bundle")]
    Bundle(#[from] SalvageError),
    /// One of its entries cannot be read.
    #[error("cannot read entry {number} of bundle {bundle}")]
    Entry {
        /// The bundle.
        bundle: String,
        /// Which entry, from 1.
        number: u64,
        /// What happened.
        source: EntryError,
    },
    /// The store refuses now.
    #[error("the store does not take it now, after {} of its keys: {refusal}", done.keys)]
    Refused {
        /// Why.
        refusal: Refusal,
        /// What was done by then.
        done: Box<Replayed>,
    },
    /// Reading was cut short.
    #[error("reading the bundle was cut short")]
    CutShort(#[from] tokio::task::JoinError),
}

/// How a bundle is replayed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplayOrder {
    /// What is there gives way.
    pub overwrites: bool,
    /// Nothing is changed.
    pub is_dry_run: bool,
}

/// A bundle as it is shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShownBundle {
    /// Its name.
    pub name: String,
    /// What it says of itself.
    pub manifest: Manifest,
    /// Of how many keys it tells something.
    pub keys: u64,
    /// What a replay would do.
    pub would: Replayed,
    /// The first keys, in no particular order where there are many.
    pub shown: Vec<ShownWish>,
}

/// A key of a bundle as it is shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShownWish {
    /// The key.
    pub key: Shown,
    /// What the bundle makes of it.
    pub bundle: ShownWished,
    /// What is there now.
    pub now: Content,
    /// What a replay would do.
    pub verdict: Verdict,
}

/// What a bundle makes of a key, as it is shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ShownWished {
    /// A string.
    String {
        /// The beginning of its value.
        value: Shown,
        /// How long it is, in bytes.
        length: u64,
        /// When it expires; absent for never.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        expires: Option<WallTime>,
    },
    /// Fields of a hash.
    Hash {
        /// The first that are set.
        set: Vec<Field>,
        /// The first that are removed.
        removed: Vec<Shown>,
        /// How many it changes.
        length: u64,
        /// The hash has no other fields.
        is_whole: bool,
    },
    /// It is removed.
    Absent,
    /// It expires then; absent for never.
    Expiry {
        /// When.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        expires: Option<WallTime>,
    },
}

/// Returns what `bundle` would make of its keys, what is there now, and at most `limit` of them one by one.
///
/// # Errors
/// When the bundle cannot be read, or the store does not answer.
pub async fn show(
    keyspace: &dyn Keyspace,
    bundle: &Arc<Bundle>,
    limit: usize,
) -> Result<ShownBundle, ReplayError> {
    let (mut would, mut shown, mut bytes) = (Replayed::default(), Vec::new(), 0_usize);
    for part in parts(&bundle.manifest) {
        let wishes = wishes(bundle.clone(), part).await?;
        would.has_clear |= wishes.has_clear;
        let all: Vec<_> = wishes.keys.into_iter().collect();
        for keys in all.chunks(KEYS_AT_ONCE) {
            let mut looked = Vec::with_capacity(keys.len());
            let read = keyspace.read(&mut |space| {
                looked.clear();
                for (key, wish) in keys {
                    let is_shown = shown.len() + looked.len() < limit && bytes < SHOWN_BYTES_MAX;
                    let now = is_shown.then(|| Content::of(space, key, VALUE_SHOWN_BYTES_MAX));
                    looked.push((judge(space, key, wish), now));
                }
            });
            read.map_err(|refusal| refused(refusal, &would))?;
            for ((key, wish), (verdict, now)) in keys.iter().zip(looked) {
                would.count(key, wish, verdict, false);
                if let Some(now) = now {
                    let wish = ShownWish {
                        key: key.as_ref().into(),
                        bundle: wished(wish),
                        now,
                        verdict,
                    };
                    let json = serde_json::to_vec(&wish).map_or(0, |json| json.len());
                    bytes = bytes.saturating_add(json);
                    if bytes < SHOWN_BYTES_MAX {
                        shown.push(wish);
                    }
                }
            }
        }
    }
    Ok(ShownBundle {
        name: bundle.name.clone(),
        manifest: bundle.manifest.clone(),
        keys: would.keys,
        would,
        shown,
    })
}

/// Makes of the keys of `bundle` what it wishes, as far as `order` allows, and counts them in `done`. When it
/// returns, that is committed. A key that cannot be changed is counted as that, and the others go on.
///
/// # Errors
/// When the bundle cannot be read, or the store refuses. What was counted by then stays done, and the replay
/// can be repeated.
pub async fn replay(
    keyspace: &dyn Keyspace,
    bundle: &Arc<Bundle>,
    order: ReplayOrder,
    progress: &dyn Progress,
    done: &mut Replayed,
) -> Result<(), ReplayError> {
    let what = format!("replaying {}", bundle.name);
    progress.start(&what, None, Unit::Items);
    for part in parts(&bundle.manifest) {
        let wishes = wishes(bundle.clone(), part).await?;
        done.has_clear |= wishes.has_clear;
        let all: Vec<_> = wishes.keys.into_iter().collect();
        for keys in all.chunks(KEYS_AT_ONCE) {
            let verdicts = if order.is_dry_run {
                look(keyspace, keys)
            } else {
                put(keyspace, keys, order.overwrites).await
            };
            let verdicts = verdicts.map_err(|refusal| refused(refusal, done))?;
            for ((key, wish), verdict) in keys.iter().zip(verdicts) {
                match verdict {
                    Ok(verdict) => done.count(key, wish, verdict, order.overwrites),
                    Err(error) => done.count_failure(key, error),
                }
            }
            progress.at(done.keys);
        }
    }
    progress.end("");
    Ok(())
}

/// The verdict on each of some keys, or why it could not be changed.
type Judged = Vec<Result<Verdict, SpaceError>>;

fn look(keyspace: &dyn Keyspace, keys: &[(Bytes, Wish)]) -> Result<Judged, Refusal> {
    let mut verdicts = Vec::new();
    keyspace.read(&mut |space| {
        let judged = keys.iter().map(|(key, wish)| Ok(judge(space, key, wish)));
        verdicts = judged.collect();
    })?;
    Ok(verdicts)
}

async fn put(
    keyspace: &dyn Keyspace,
    keys: &[(Bytes, Wish)],
    overwrites: bool,
) -> Result<Judged, Refusal> {
    let mut verdicts = Vec::new();
    let position = keyspace.write(&mut |space| {
        let applied = keys
            .iter()
            .map(|(key, wish)| apply(space, key, wish, overwrites));
        verdicts = applied.collect();
    })?;
    keyspace.settled(position).await?;
    Ok(verdicts)
}

fn refused(refusal: Refusal, done: &Replayed) -> ReplayError {
    ReplayError::Refused {
        refusal,
        done: Box::new(done.clone()),
    }
}

/// Returns the parts in which a bundle is looked at.
fn parts(manifest: &Manifest) -> impl Iterator<Item = Part> + use<> {
    let of = manifest.bytes.div_ceil(PART_BYTES).max(1);
    (0..of).map(move |index| Part { index, of })
}

async fn wishes(bundle: Arc<Bundle>, part: Part) -> Result<Wishes, ReplayError> {
    tokio::task::spawn_blocking(move || {
        let mut wishes = Wishes::default();
        for (entry, number) in bundle.entries()?.zip(1_u64..) {
            let entry = entry?;
            let read = Entry::decode(entry).and_then(|entry| entry.operations());
            let operations = read.map_err(|source| ReplayError::Entry {
                bundle: bundle.name.clone(),
                number,
                source,
            })?;
            for operation in operations {
                wishes.take(operation, part);
            }
        }
        Ok(wishes)
    })
    .await?
}

fn wished(wish: &Wish) -> ShownWished {
    let cut = |bytes: &Bytes| Shown::from(bytes.get(..VALUE_SHOWN_BYTES_MAX).unwrap_or(bytes));
    let length = |of: usize| u64::try_from(of).unwrap_or(u64::MAX);
    match wish {
        Wish::String { value, expires } => ShownWished::String {
            value: cut(value),
            length: length(value.len()),
            expires: *expires,
        },
        Wish::Absent => ShownWished::Absent,
        Wish::Expiry { expires } => ShownWished::Expiry { expires: *expires },
        Wish::Hash {
            fields, is_whole, ..
        } => {
            const FIELDS_SHOWN_MAX: usize = 4;
            let set = fields.iter().filter_map(|(field, value)| {
                Some(Field {
                    field: cut(field),
                    value: cut(value.as_ref()?),
                })
            });
            let removed = fields.iter().filter(|(_, value)| value.is_none());
            ShownWished::Hash {
                set: set.take(FIELDS_SHOWN_MAX).collect(),
                removed: removed
                    .map(|(field, _)| cut(field))
                    .take(FIELDS_SHOWN_MAX)
                    .collect(),
                length: length(fields.len()),
                is_whole: *is_whole,
            }
        }
    }
}

#[cfg(test)]
mod tests;
