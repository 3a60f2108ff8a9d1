//! What comes in.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::ops::Range;

use super::number::parse_integer;

/// What a command may have at most, in bytes, with everything around its arguments.
pub const COMMAND_BYTES_MAX: usize = 4 << 20;

/// How many arguments a command may have.
const ARGUMENTS_MAX: usize = 1 << 20;

/// For how many arguments an idle client keeps room.
pub(crate) const SPANS_KEPT_MAX: usize = 4096;

/// How long a line may be, in bytes.
const LINE_BYTES_MAX: usize = 64 << 10;

/// How many arguments somebody may send who has not told the password.
const ARGUMENTS_UNAUTHENTICATED_MAX: usize = 10;

/// How long an argument may be from somebody who has not told the password, in bytes.
const BULK_UNAUTHENTICATED_MAX: usize = 16 << 10;

/// Where an argument lies.
pub type Span = Range<usize>;

/// The arguments of one command, the first of which is its name.
#[derive(Clone, Copy, Debug)]
pub struct Args<'a> {
    bytes: &'a [u8],
    spans: &'a [Span],
}

impl<'a> Args<'a> {
    /// Returns the arguments that lie at `spans` of `bytes`.
    pub fn new(bytes: &'a [u8], spans: &'a [Span]) -> Self {
        Self { bytes, spans }
    }

    /// Returns how many there are, the name included.
    pub fn len(&self) -> usize {
        self.spans.len()
    }

    /// Returns whether there is not even a name.
    pub fn is_empty(&self) -> bool {
        self.spans.is_empty()
    }

    /// Returns an argument; empty if there are not so many.
    pub fn at(&self, index: usize) -> &'a [u8] {
        self.get(index).unwrap_or_default()
    }

    /// Returns an argument.
    pub fn get(&self, index: usize) -> Option<&'a [u8]> {
        self.bytes.get(self.spans.get(index)?.clone())
    }

    /// Returns the arguments from one on.
    pub fn from(&self, first: usize) -> impl ExactSizeIterator<Item = &'a [u8]> + Clone + use<'a> {
        let bytes = self.bytes;
        let spans = self.spans.get(first..).unwrap_or_default();
        spans
            .iter()
            .map(move |span| bytes.get(span.clone()).unwrap_or_default())
    }

    /// Returns the arguments without the first `count`, as if they were a command themselves.
    pub fn skip(self, count: usize) -> Self {
        let spans = self.spans.get(count..).unwrap_or_default();
        Self { spans, ..self }
    }

    /// Returns how many bytes they have together.
    pub fn bytes(&self) -> usize {
        self.spans.iter().map(ExactSizeIterator::len).sum()
    }
}

/// What a client sends that is no RESP, or more than is taken. The connection ends with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    /// A line without an end.
    #[error("ERR Protocol error: too big inline request")]
    InlineTooBig,
    /// A quote without an end.
    #[error("ERR Protocol error: unbalanced quotes in request")]
    UnbalancedQuotes,
    /// The line that tells the number of arguments has no end.
    #[error("ERR Protocol error: too big mbulk count string")]
    CountTooBig,
    /// The number of arguments is none, or too large.
    #[error("ERR Protocol error: invalid multibulk length")]
    InvalidCount,
    /// It is too large for somebody who has not told the password.
    #[error("ERR Protocol error: unauthenticated multibulk length")]
    UnauthenticatedCount,
    /// The line that tells the length of an argument has no end.
    #[error("ERR Protocol error: too big bulk count string")]
    LengthTooBig,
    /// Something else where the length of an argument should be.
    #[error("ERR Protocol error: expected '$', got '{}'", printable(*.0))]
    ExpectedLength(u8),
    /// The length of an argument is none, or too large, alone or with those before it.
    #[error("ERR Protocol error: invalid bulk length")]
    InvalidLength,
    /// It is too large for somebody who has not told the password.
    #[error("ERR Protocol error: unauthenticated bulk length")]
    UnauthenticatedLength,
}

fn printable(byte: u8) -> char {
    match char::from(byte) {
        '\r' | '\n' => ' ',
        other => other,
    }
}

/// Finds the commands in what comes in. What it has seen of one that is not complete, it does not look at
/// again.
#[derive(Debug, Default)]
pub struct Decoder {
    /// The arguments so far, from the start of the command.
    spans: Vec<Span>,
    /// How many bytes of the command were looked at.
    at: usize,
    /// How many arguments are missing.
    missing: usize,
    /// The length of the next argument, once it is known.
    length: Option<usize>,
}

impl Decoder {
    /// Looks for a command at the start of `bytes`, which is what it was called with before and more.
    ///
    /// Returns how many bytes the command has, with the [`Decoder::spans`] of its arguments; there are none
    /// if there is nothing to be done. `None` when it is not complete. The arguments of a command that is a
    /// plain line are freed of quotes where they lie.
    ///
    /// # Errors
    /// When it is no command; then nothing that follows can be understood.
    pub fn decode(
        &mut self,
        bytes: &mut [u8],
        is_authenticated: bool,
    ) -> Result<Option<usize>, ProtocolError> {
        if self.missing == 0 {
            self.spans.clear();
            match bytes.first() {
                None => return Ok(None),
                Some(b'*') => match self.count(bytes, is_authenticated)? {
                    None => return Ok(None),
                    Some(0) => return Ok(Some(std::mem::take(&mut self.at))),
                    Some(count) => self.missing = count,
                },
                Some(_) => return self.inline(bytes),
            }
        }
        while self.missing > 0 {
            let Some(span) = self.argument(bytes, is_authenticated)? else {
                return Ok(None);
            };
            self.spans.push(span);
            self.missing = self.missing.saturating_sub(1);
        }
        Ok(Some(std::mem::take(&mut self.at)))
    }

    /// Gives back the memory that many arguments took, unless a command is half there.
    pub(crate) fn shrink(&mut self) {
        if self.missing == 0 {
            self.spans.clear();
            self.spans.shrink_to(SPANS_KEPT_MAX);
        }
    }

    /// Returns where the arguments of the command lie, from its start.
    pub fn spans(&self) -> &[Span] {
        &self.spans
    }

    /// Reads the number of arguments; what is not above 0 is none.
    fn count(
        &mut self,
        bytes: &[u8],
        is_authenticated: bool,
    ) -> Result<Option<usize>, ProtocolError> {
        let Some(line) = line(bytes, 0, ProtocolError::CountTooBig)? else {
            return Ok(None);
        };
        let number = bytes.get(1..line.end).and_then(parse_integer);
        let number = number.ok_or(ProtocolError::InvalidCount)?;
        let count = match usize::try_from(number) {
            Ok(count) if count <= ARGUMENTS_MAX => count,
            Err(_) if number < 0 => 0,
            Ok(_) | Err(_) => return Err(ProtocolError::InvalidCount),
        };
        if count > ARGUMENTS_UNAUTHENTICATED_MAX && !is_authenticated {
            return Err(ProtocolError::UnauthenticatedCount);
        }
        self.at = line.next;
        Ok(Some(count))
    }

    fn argument(
        &mut self,
        bytes: &[u8],
        is_authenticated: bool,
    ) -> Result<Option<Span>, ProtocolError> {
        let length = match self.length {
            Some(length) => length,
            None => {
                let Some(line) = line(bytes, self.at, ProtocolError::LengthTooBig)? else {
                    return Ok(None);
                };
                let (mark, number) = match bytes.get(self.at..line.end) {
                    Some([mark, number @ ..]) => (*mark, number),
                    // An empty line: its first byte is its end.
                    Some([]) | None => (b'\r', Default::default()),
                };
                if mark != b'$' {
                    return Err(ProtocolError::ExpectedLength(mark));
                }
                let length = parse_integer(number)
                    .and_then(|length| usize::try_from(length).ok())
                    .filter(|length| length.saturating_add(line.next) <= COMMAND_BYTES_MAX)
                    .ok_or(ProtocolError::InvalidLength)?;
                if length > BULK_UNAUTHENTICATED_MAX && !is_authenticated {
                    return Err(ProtocolError::UnauthenticatedLength);
                }
                self.at = line.next;
                self.length = Some(length);
                length
            }
        };
        let end = self.at.saturating_add(length);
        let next = end.saturating_add(2);
        if bytes.len() < next {
            return Ok(None);
        }
        let span = self.at..end;
        self.at = next;
        self.length = None;
        Ok(Some(span))
    }

    fn inline(&mut self, bytes: &mut [u8]) -> Result<Option<usize>, ProtocolError> {
        let unseen = bytes.get(self.at..).unwrap_or_default();
        let Some(offset) = unseen.iter().position(|byte| *byte == b'\n') else {
            self.at = bytes.len();
            if self.at > LINE_BYTES_MAX {
                return Err(ProtocolError::InlineTooBig);
            }
            return Ok(None);
        };
        let end = self.at.saturating_add(offset);
        self.at = 0;
        let line = bytes.get_mut(..end).unwrap_or_default();
        let line = match line {
            [line @ .., b'\r'] => line,
            line => line,
        };
        super::inline::split(line, &mut self.spans)?;
        Ok(Some(end.saturating_add(1)))
    }
}

/// A line that lies within others.
struct Line {
    end: usize,
    next: usize,
}

/// Finds the end of the line that begins at `start`.
fn line(bytes: &[u8], start: usize, too_big: ProtocolError) -> Result<Option<Line>, ProtocolError> {
    let rest = bytes.get(start..).unwrap_or_default();
    let end = rest
        .iter()
        .take(LINE_BYTES_MAX)
        .position(|byte| *byte == b'\r');
    let Some(length) = end else {
        return if rest.len() >= LINE_BYTES_MAX {
            Err(too_big)
        } else {
            Ok(None)
        };
    };
    let end = start.saturating_add(length);
    let next = end.saturating_add(2);
    Ok((next <= bytes.len()).then_some(Line { end, next }))
}

#[cfg(test)]
#[expect(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "a test that is wrong may fail"
)]
mod tests;
