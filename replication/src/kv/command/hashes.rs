//! Commands on hashes.

use super::Outcome;
use super::error::CommandError;
use super::keys::{ScanOptions, parse_cursor};
use crate::kv::resp::{Args, Reply, parse_integer};
use crate::kv::space::Space;

pub(super) fn hget(space: &mut Space<'_>, args: Args<'_>, reply: &mut Reply) -> Outcome {
    let hash = space.hash(args.at(1))?;
    reply.bulk_or_null(hash.and_then(|hash| hash.get(args.at(2))));
    Ok(())
}

pub(super) fn hmget(space: &mut Space<'_>, args: Args<'_>, reply: &mut Reply) -> Outcome {
    let hash = space.hash(args.at(1))?;
    let fields = args.from(2);
    reply.array(fields.len());
    for field in fields {
        reply.bulk_or_null(hash.and_then(|hash| hash.get(field)));
    }
    Ok(())
}

pub(super) fn hgetall(space: &mut Space<'_>, args: Args<'_>, reply: &mut Reply) -> Outcome {
    let hash = space.hash(args.at(1))?;
    reply.map(hash.map_or(0, |hash| hash.field_count()));
    if let Some(hash) = hash {
        hash.visit(&mut |field, value| {
            reply.bulk(field);
            reply.bulk(value);
        });
    }
    Ok(())
}

pub(super) fn hkeys(space: &mut Space<'_>, args: Args<'_>, reply: &mut Reply) -> Outcome {
    let hash = space.hash(args.at(1))?;
    reply.array(hash.map_or(0, |hash| hash.field_count()));
    if let Some(hash) = hash {
        hash.visit(&mut |field, _| reply.bulk(field));
    }
    Ok(())
}

pub(super) fn hvals(space: &mut Space<'_>, args: Args<'_>, reply: &mut Reply) -> Outcome {
    let hash = space.hash(args.at(1))?;
    reply.array(hash.map_or(0, |hash| hash.field_count()));
    if let Some(hash) = hash {
        hash.visit(&mut |_, value| reply.bulk(value));
    }
    Ok(())
}

pub(super) fn hlen(space: &mut Space<'_>, args: Args<'_>, reply: &mut Reply) -> Outcome {
    let hash = space.hash(args.at(1))?;
    reply.count(hash.map_or(0, |hash| hash.field_count()));
    Ok(())
}

pub(super) fn hexists(space: &mut Space<'_>, args: Args<'_>, reply: &mut Reply) -> Outcome {
    let hash = space.hash(args.at(1))?;
    reply.yes(hash.is_some_and(|hash| hash.get(args.at(2)).is_some()));
    Ok(())
}

pub(super) fn hstrlen(space: &mut Space<'_>, args: Args<'_>, reply: &mut Reply) -> Outcome {
    let hash = space.hash(args.at(1))?;
    let value = hash.and_then(|hash| hash.get(args.at(2)));
    reply.count(value.map_or(0, <[u8]>::len));
    Ok(())
}

pub(super) fn hset(space: &mut Space<'_>, args: Args<'_>, reply: &mut Reply) -> Outcome {
    let added = set(space, args, "hset")?;
    reply.count(added);
    Ok(())
}

pub(super) fn hmset(space: &mut Space<'_>, args: Args<'_>, reply: &mut Reply) -> Outcome {
    set(space, args, "hmset")?;
    reply.ok();
    Ok(())
}

fn set(
    space: &mut Space<'_>,
    args: Args<'_>,
    command: &'static str,
) -> Result<usize, CommandError> {
    if !args.len().is_multiple_of(2) {
        return Err(CommandError::Arity(command));
    }
    let (fields, values) = (args.from(2).step_by(2), args.from(3).step_by(2));
    let fields: Vec<_> = fields.zip(values).collect();
    Ok(space.hash_set(args.at(1), &fields)?)
}

pub(super) fn hsetnx(space: &mut Space<'_>, args: Args<'_>, reply: &mut Reply) -> Outcome {
    let (key, field) = (args.at(1), args.at(2));
    let hash = space.hash(key)?;
    let is_new = hash.is_none_or(|hash| hash.get(field).is_none());
    if is_new {
        space.hash_set(key, &[(field, args.at(3))])?;
    }
    reply.yes(is_new);
    Ok(())
}

pub(super) fn hdel(space: &mut Space<'_>, args: Args<'_>, reply: &mut Reply) -> Outcome {
    let fields: Vec<_> = args.from(2).collect();
    let removed = space.hash_delete(args.at(1), &fields)?;
    reply.count(removed);
    Ok(())
}

pub(super) fn hincrby(space: &mut Space<'_>, args: Args<'_>, reply: &mut Reply) -> Outcome {
    let (key, field) = (args.at(1), args.at(2));
    let change = parse_integer(args.at(3)).ok_or(CommandError::NotAnInteger)?;
    let hash = space.hash(key)?;
    let number = match hash.and_then(|hash| hash.get(field)) {
        Some(value) => parse_integer(value).ok_or(CommandError::FieldNotAnInteger)?,
        None => 0,
    };
    let number = number.checked_add(change).ok_or(CommandError::Overflow)?;
    space.hash_set(key, &[(field, number.to_string().as_bytes())])?;
    reply.integer(number);
    Ok(())
}

pub(super) fn hscan(space: &mut Space<'_>, args: Args<'_>, reply: &mut Reply) -> Outcome {
    let cursor = parse_cursor(args.at(2))?;
    let Some(hash) = space.hash(args.at(1))? else {
        reply.array(2);
        reply.bulk(b"0");
        reply.array(0);
        return Ok(());
    };
    let options = ScanOptions::parse(args, 3, false)?;
    let mut found = Vec::new();
    let next = hash.scan(cursor, options.count, &mut |field, value| {
        if options.wants(field) {
            found.extend([field, value]);
        }
    });
    reply.array(2);
    reply.text(&next);
    reply.array(found.len());
    found.iter().for_each(|part| reply.bulk(part));
    Ok(())
}
