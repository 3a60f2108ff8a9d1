//! Commands on when keys expire.

use super::Outcome;
use super::error::{CommandError, excerpt};
use crate::kv::resp::{Args, Reply, parse_integer};
use crate::kv::space::Space;
use crate::wall_time::WallTime;

/// What a number of a client counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unit {
    Seconds,
    Millis,
}

/// From when on it counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Clock {
    FromNow,
    Absolute,
}

fn millis(time: WallTime) -> i64 {
    i64::try_from(time.0).unwrap_or(i64::MAX)
}

/// Returns the moment that a number tells, in milliseconds since 1970; it may be long past.
pub(super) fn moment(
    time: i64,
    unit: Unit,
    clock: Clock,
    now: WallTime,
    command: &'static str,
) -> Result<i64, CommandError> {
    let invalid = CommandError::InvalidExpiry(command);
    let time = match unit {
        Unit::Seconds => match time.checked_mul(1000) {
            Some(time) => time,
            None => return Err(invalid),
        },
        Unit::Millis => time,
    };
    match clock {
        Clock::Absolute => Ok(time),
        Clock::FromNow => time.checked_add(millis(now)).ok_or(invalid),
    }
}

/// Under which conditions an expiry is set.
#[derive(Default)]
struct Conditions {
    nx: bool,
    xx: bool,
    gt: bool,
    lt: bool,
}

impl Conditions {
    fn parse(args: Args<'_>) -> Result<Self, CommandError> {
        let mut conditions = Self::default();
        for word in args.from(3) {
            match &word.to_ascii_uppercase()[..] {
                b"NX" => conditions.nx = true,
                b"XX" => conditions.xx = true,
                b"GT" => conditions.gt = true,
                b"LT" => conditions.lt = true,
                _ => return Err(CommandError::UnsupportedOption(excerpt(word))),
            }
        }
        let Self { nx, xx, gt, lt } = conditions;
        if nx && (xx || gt || lt) {
            return Err(CommandError::NxWithOthers);
        }
        if gt && lt {
            return Err(CommandError::GtWithLt);
        }
        Ok(conditions)
    }

    /// A key that never expires is one that does so after every other.
    fn hold(&self, old: Option<i64>, new: i64) -> bool {
        !(self.nx && old.is_some()
            || self.xx && old.is_none()
            || self.gt && old.is_none_or(|old| new <= old)
            || self.lt && old.is_some_and(|old| new >= old))
    }
}

pub(super) fn expire(space: &mut Space<'_>, args: Args<'_>, reply: &mut Reply) -> Outcome {
    set(space, args, reply, Unit::Seconds, Clock::FromNow, "expire")
}

pub(super) fn pexpire(space: &mut Space<'_>, args: Args<'_>, reply: &mut Reply) -> Outcome {
    set(space, args, reply, Unit::Millis, Clock::FromNow, "pexpire")
}

pub(super) fn expireat(space: &mut Space<'_>, args: Args<'_>, reply: &mut Reply) -> Outcome {
    set(
        space,
        args,
        reply,
        Unit::Seconds,
        Clock::Absolute,
        "expireat",
    )
}

pub(super) fn pexpireat(space: &mut Space<'_>, args: Args<'_>, reply: &mut Reply) -> Outcome {
    set(
        space,
        args,
        reply,
        Unit::Millis,
        Clock::Absolute,
        "pexpireat",
    )
}

fn set(
    space: &mut Space<'_>,
    args: Args<'_>,
    reply: &mut Reply,
    unit: Unit,
    clock: Clock,
    command: &'static str,
) -> Outcome {
    let key = args.at(1);
    let conditions = Conditions::parse(args)?;
    let time = parse_integer(args.at(2)).ok_or(CommandError::NotAnInteger)?;
    let expires = moment(time, unit, clock, space.now(), command)?;
    let is_set = match space.expires(key) {
        Some(old) if conditions.hold(old.map(millis), expires) => {
            match u64::try_from(expires).map(WallTime) {
                Ok(expires) if expires > space.now() => space.expire(key, Some(expires))?,
                Ok(_) | Err(_) => space.delete(key)?,
            }
        }
        Some(_) | None => false,
    };
    reply.yes(is_set);
    Ok(())
}

pub(super) fn persist(space: &mut Space<'_>, args: Args<'_>, reply: &mut Reply) -> Outcome {
    let expires = space.expires(args.at(1)).flatten().is_some();
    if expires {
        space.expire(args.at(1), None)?;
    }
    reply.yes(expires);
    Ok(())
}

pub(super) fn ttl(space: &mut Space<'_>, args: Args<'_>, reply: &mut Reply) -> Outcome {
    tell(space, args, reply, Unit::Seconds, Clock::FromNow)
}

pub(super) fn pttl(space: &mut Space<'_>, args: Args<'_>, reply: &mut Reply) -> Outcome {
    tell(space, args, reply, Unit::Millis, Clock::FromNow)
}

pub(super) fn expiretime(space: &mut Space<'_>, args: Args<'_>, reply: &mut Reply) -> Outcome {
    tell(space, args, reply, Unit::Seconds, Clock::Absolute)
}

pub(super) fn pexpiretime(space: &mut Space<'_>, args: Args<'_>, reply: &mut Reply) -> Outcome {
    tell(space, args, reply, Unit::Millis, Clock::Absolute)
}

fn tell(
    space: &mut Space<'_>,
    args: Args<'_>,
    reply: &mut Reply,
    unit: Unit,
    clock: Clock,
) -> Outcome {
    let start = match clock {
        Clock::FromNow => millis(space.now()),
        Clock::Absolute => 0,
    };
    reply.integer(match space.expires(args.at(1)) {
        None => -2,
        Some(None) => -1,
        Some(Some(expires)) => {
            let left = millis(expires).saturating_sub(start).max(0);
            match unit {
                Unit::Seconds => left.saturating_add(500) / 1000,
                Unit::Millis => left,
            }
        }
    });
    Ok(())
}
