//! Commands on strings.

use super::Outcome;
use super::error::CommandError;
use super::expiry::{Clock, Unit, moment};
use crate::kv::resp::{Args, Reply, parse_integer};
use crate::kv::space::{Kind, Space, SpaceError};
use crate::wall_time::WallTime;

pub(super) fn get(space: &mut Space<'_>, args: Args<'_>, reply: &mut Reply) -> Outcome {
    reply.bulk_or_null(space.string(args.at(1))?);
    Ok(())
}

/// What `SET` was asked for beside key and value.
#[derive(Default)]
struct SetOptions<'a> {
    if_absent: bool,
    if_present: bool,
    gets: bool,
    keeps_expiry: bool,
    expiry: Option<(&'a [u8], Unit, Clock)>,
}

impl<'a> SetOptions<'a> {
    fn parse(args: Args<'a>) -> Result<Self, CommandError> {
        let mut options = Self::default();
        let mut words = args.from(3);
        while let Some(word) = words.next() {
            let word = word.to_ascii_uppercase();
            let timed = match &word[..] {
                b"NX" if !options.if_present => {
                    options.if_absent = true;
                    continue;
                }
                b"XX" if !options.if_absent => {
                    options.if_present = true;
                    continue;
                }
                b"GET" => {
                    options.gets = true;
                    continue;
                }
                b"KEEPTTL" if options.expiry.is_none() => {
                    options.keeps_expiry = true;
                    continue;
                }
                b"EX" => (Unit::Seconds, Clock::FromNow),
                b"PX" => (Unit::Millis, Clock::FromNow),
                b"EXAT" => (Unit::Seconds, Clock::Absolute),
                b"PXAT" => (Unit::Millis, Clock::Absolute),
                _ => return Err(CommandError::Syntax),
            };
            let (unit, clock) = timed;
            let time = words.next().ok_or(CommandError::Syntax)?;
            let is_other =
                |(_, unit_before, clock_before)| (unit_before, clock_before) != (unit, clock);
            if options.keeps_expiry || options.expiry.is_some_and(is_other) {
                return Err(CommandError::Syntax);
            }
            options.expiry = Some((time, unit, clock));
        }
        Ok(options)
    }
}

pub(super) fn set(space: &mut Space<'_>, args: Args<'_>, reply: &mut Reply) -> Outcome {
    let (key, value) = (args.at(1), args.at(2));
    let options = SetOptions::parse(args)?;
    let mut expires = match options.expiry {
        Some((time, unit, clock)) => Some(positive(space, time, unit, clock, "set")?),
        None => None,
    };
    if options.gets {
        reply.bulk_or_null(space.string(key)?);
    }
    // Most calls need not know whether the key is there.
    let is_there = (options.if_absent || options.if_present) && space.kind(key).is_some();
    if (options.if_absent && is_there) || (options.if_present && !is_there) {
        if !options.gets {
            reply.null();
        }
        return Ok(());
    }
    if options.keeps_expiry {
        expires = space.expires(key).flatten();
    }
    space.set(key, value, expires)?;
    if !options.gets {
        reply.ok();
    }
    Ok(())
}

pub(super) fn setnx(space: &mut Space<'_>, args: Args<'_>, reply: &mut Reply) -> Outcome {
    let is_new = space.kind(args.at(1)).is_none();
    if is_new {
        space.set(args.at(1), args.at(2), None)?;
    }
    reply.yes(is_new);
    Ok(())
}

pub(super) fn setex(space: &mut Space<'_>, args: Args<'_>, reply: &mut Reply) -> Outcome {
    set_for(space, args, reply, Unit::Seconds, "setex")
}

pub(super) fn psetex(space: &mut Space<'_>, args: Args<'_>, reply: &mut Reply) -> Outcome {
    set_for(space, args, reply, Unit::Millis, "psetex")
}

fn set_for(
    space: &mut Space<'_>,
    args: Args<'_>,
    reply: &mut Reply,
    unit: Unit,
    command: &'static str,
) -> Outcome {
    let expires = positive(space, args.at(2), unit, Clock::FromNow, command)?;
    space.set(args.at(1), args.at(3), Some(expires))?;
    reply.ok();
    Ok(())
}

/// Returns a moment that is told by a number above 0.
fn positive(
    space: &Space<'_>,
    time: &[u8],
    unit: Unit,
    clock: Clock,
    command: &'static str,
) -> Result<WallTime, CommandError> {
    let time = parse_integer(time).ok_or(CommandError::NotAnInteger)?;
    if time <= 0 {
        return Err(CommandError::InvalidExpiry(command));
    }
    let millis = moment(time, unit, clock, space.now(), command)?;
    Ok(WallTime(u64::try_from(millis).unwrap_or(0)))
}

pub(super) fn getset(space: &mut Space<'_>, args: Args<'_>, reply: &mut Reply) -> Outcome {
    reply.bulk_or_null(space.string(args.at(1))?);
    space.set(args.at(1), args.at(2), None)?;
    Ok(())
}

pub(super) fn getdel(space: &mut Space<'_>, args: Args<'_>, reply: &mut Reply) -> Outcome {
    reply.bulk_or_null(space.string(args.at(1))?);
    space.delete(args.at(1))?;
    Ok(())
}

pub(super) fn mget(space: &mut Space<'_>, args: Args<'_>, reply: &mut Reply) -> Outcome {
    let keys = args.from(1);
    reply.array(keys.len());
    for key in keys {
        match space.string(key) {
            Ok(value) => reply.bulk_or_null(value),
            Err(
                SpaceError::WrongKind
                | SpaceError::ReadOnly
                | SpaceError::TooLarge
                | SpaceError::OutOfMemory,
            ) => reply.null(),
        }
    }
    Ok(())
}

/// The keys and values of `MSET` and `MSETNX`, if they are pairs, and fit.
fn pairs<'a>(
    space: &Space<'_>,
    args: Args<'a>,
    command: &'static str,
) -> Result<impl Iterator<Item = (&'a [u8], &'a [u8])> + Clone + use<'a>, CommandError> {
    if args.len().is_multiple_of(2) {
        return Err(CommandError::Arity(command));
    }
    let (keys, values) = (args.from(1).step_by(2), args.from(2).step_by(2));
    let pairs = keys.zip(values);
    // All of them or none: what follows does not fail.
    space.check_sets(pairs.clone())?;
    Ok(pairs)
}

pub(super) fn mset(space: &mut Space<'_>, args: Args<'_>, reply: &mut Reply) -> Outcome {
    for (key, value) in pairs(space, args, "mset")? {
        space.set(key, value, None)?;
    }
    reply.ok();
    Ok(())
}

pub(super) fn msetnx(space: &mut Space<'_>, args: Args<'_>, reply: &mut Reply) -> Outcome {
    let mut pairs = pairs(space, args, "msetnx")?;
    let is_new = pairs.clone().all(|(key, _)| space.kind(key).is_none());
    if is_new {
        pairs.try_for_each(|(key, value)| space.set(key, value, None))?;
    }
    reply.yes(is_new);
    Ok(())
}

pub(super) fn incr(space: &mut Space<'_>, args: Args<'_>, reply: &mut Reply) -> Outcome {
    add(space, args.at(1), 1, reply)
}

pub(super) fn decr(space: &mut Space<'_>, args: Args<'_>, reply: &mut Reply) -> Outcome {
    add(space, args.at(1), -1, reply)
}

pub(super) fn incrby(space: &mut Space<'_>, args: Args<'_>, reply: &mut Reply) -> Outcome {
    let change = parse_integer(args.at(2)).ok_or(CommandError::NotAnInteger)?;
    add(space, args.at(1), change, reply)
}

pub(super) fn decrby(space: &mut Space<'_>, args: Args<'_>, reply: &mut Reply) -> Outcome {
    let change = parse_integer(args.at(2)).ok_or(CommandError::NotAnInteger)?;
    let change = change.checked_neg().ok_or(CommandError::NegationOverflow)?;
    add(space, args.at(1), change, reply)
}

fn add(space: &mut Space<'_>, key: &[u8], change: i64, reply: &mut Reply) -> Outcome {
    let number = match space.string(key)? {
        Some(value) => parse_integer(value).ok_or(CommandError::NotAnInteger)?,
        None => 0,
    };
    let number = number.checked_add(change).ok_or(CommandError::Overflow)?;
    let expires = space.expires(key).flatten();
    space.set(key, number.to_string().as_bytes(), expires)?;
    reply.integer(number);
    Ok(())
}

pub(super) fn append(space: &mut Space<'_>, args: Args<'_>, reply: &mut Reply) -> Outcome {
    let (key, suffix) = (args.at(1), args.at(2));
    let Some(value) = space.string(key)? else {
        space.set(key, suffix, None)?;
        reply.count(suffix.len());
        return Ok(());
    };
    let value = [value, suffix].concat();
    let expires = space.expires(key).flatten();
    space.set(key, &value, expires)?;
    reply.count(value.len());
    Ok(())
}

pub(super) fn strlen(space: &mut Space<'_>, args: Args<'_>, reply: &mut Reply) -> Outcome {
    reply.count(space.string(args.at(1))?.map_or(0, <[u8]>::len));
    Ok(())
}

pub(super) fn kind_name(kind: Option<Kind>) -> &'static str {
    match kind {
        Some(Kind::String) => "string",
        Some(Kind::Hash) => "hash",
        None => "none",
    }
}
