//! Commands on keys of any kind.

use super::Outcome;
use super::error::CommandError;
use super::glob;
use super::strings::kind_name;
use crate::kv::resp::{Args, REPLY_BYTES_MAX, Reply, parse_integer};
use crate::kv::space::Space;

pub(super) fn del(space: &mut Space<'_>, args: Args<'_>, reply: &mut Reply) -> Outcome {
    space.check_deletes(args.from(1))?;
    let mut count = 0;
    for key in args.from(1) {
        count += usize::from(space.delete(key)?);
    }
    reply.count(count);
    Ok(())
}

pub(super) fn exists(space: &mut Space<'_>, args: Args<'_>, reply: &mut Reply) -> Outcome {
    let keys = args.from(1);
    reply.count(keys.filter(|key| space.kind(key).is_some()).count());
    Ok(())
}

pub(super) fn kind(space: &mut Space<'_>, args: Args<'_>, reply: &mut Reply) -> Outcome {
    reply.simple(kind_name(space.kind(args.at(1))));
    Ok(())
}

pub(super) fn dbsize(space: &mut Space<'_>, _: Args<'_>, reply: &mut Reply) -> Outcome {
    reply.count(space.len());
    Ok(())
}

pub(super) fn keys(space: &mut Space<'_>, args: Args<'_>, reply: &mut Reply) -> Outcome {
    let mut found = Found::default();
    let pattern = pattern(args.at(1))?;
    space.scan(0, usize::MAX, &mut |key, _| {
        if glob::is_match(pattern, key) {
            found.push(key);
        }
    });
    found.write(reply);
    Ok(())
}

/// Returns a pattern, unless it is so long that to compare it takes too much time.
fn pattern(bytes: &[u8]) -> Result<&[u8], CommandError> {
    if bytes.len() > glob::PATTERN_BYTES_MAX {
        return Err(CommandError::Other("a pattern has at most 65536 bytes"));
    }
    Ok(bytes)
}

/// Keys that were found, as far as an answer has room for them.
#[derive(Default)]
struct Found {
    keys: Vec<Vec<u8>>,
    bytes: usize,
}

impl Found {
    fn push(&mut self, key: &[u8]) {
        // Of what is more than an answer may have, the first keys are enough to see that.
        if self.bytes <= REPLY_BYTES_MAX {
            self.bytes = self.bytes.saturating_add(key.len()).saturating_add(1);
            self.keys.push(key.to_vec());
        }
    }

    fn write(&self, reply: &mut Reply) {
        reply.array(self.keys.len());
        self.keys.iter().for_each(|key| reply.bulk(key));
    }
}

/// What `SCAN` and `HSCAN` were asked for.
pub(super) struct ScanOptions<'a> {
    pub(super) count: usize,
    pattern: Option<&'a [u8]>,
    kind: Option<Vec<u8>>,
}

impl<'a> ScanOptions<'a> {
    /// Reads the options that begin at an argument; only some scans can ask for a kind.
    pub(super) fn parse(
        args: Args<'a>,
        first: usize,
        has_kinds: bool,
    ) -> Result<Self, CommandError> {
        let mut options = Self {
            count: 10,
            pattern: None,
            kind: None,
        };
        let mut words = args.from(first);
        while let Some(word) = words.next() {
            let value = words.next().ok_or(CommandError::Syntax)?;
            match &word.to_ascii_uppercase()[..] {
                b"COUNT" => {
                    let count = parse_integer(value).ok_or(CommandError::NotAnInteger)?;
                    if count < 1 {
                        return Err(CommandError::Syntax);
                    }
                    options.count = usize::try_from(count).unwrap_or(usize::MAX);
                }
                b"MATCH" => options.pattern = Some(pattern(value)?),
                b"TYPE" if has_kinds => options.kind = Some(value.to_ascii_lowercase()),
                _ => return Err(CommandError::Syntax),
            }
        }
        Ok(options)
    }

    pub(super) fn wants(&self, name: &[u8]) -> bool {
        self.pattern
            .is_none_or(|pattern| glob::is_match(pattern, name))
    }
}

/// Reads a cursor; like Redis, as `strtoul` would.
pub(super) fn parse_cursor(bytes: &[u8]) -> Result<u64, CommandError> {
    let (is_negative, digits) = match bytes {
        [b'-', digits @ ..] => (true, digits),
        [b'+', digits @ ..] | digits => (false, digits),
    };
    let text = std::str::from_utf8(digits).unwrap_or_default();
    if !text.starts_with(|first: char| first.is_ascii_digit()) {
        // Nothing at all is 0.
        return if bytes.is_empty() {
            Ok(0)
        } else {
            Err(CommandError::InvalidCursor)
        };
    }
    let cursor: u64 = text.parse().map_err(|_| CommandError::InvalidCursor)?;
    Ok(if is_negative {
        cursor.wrapping_neg()
    } else {
        cursor
    })
}

pub(super) fn scan(space: &mut Space<'_>, args: Args<'_>, reply: &mut Reply) -> Outcome {
    let cursor = parse_cursor(args.at(1))?;
    let options = ScanOptions::parse(args, 2, true)?;
    let mut found = Found::default();
    let next = space.scan(cursor, options.count, &mut |key, kind| {
        let is_kind = |wanted: &Vec<u8>| wanted == kind_name(Some(kind)).as_bytes();
        if options.wants(key) && options.kind.as_ref().is_none_or(is_kind) {
            found.push(key);
        }
    });
    reply.array(2);
    reply.text(&next);
    found.write(reply);
    Ok(())
}
