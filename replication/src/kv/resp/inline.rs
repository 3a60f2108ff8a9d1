//! A command as a plain line, for people with a terminal.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use super::decode::{ProtocolError, Span};

/// A line that is read and written in place: an argument is never longer than what it was written as.
struct Line<'a> {
    bytes: &'a mut [u8],
    read: usize,
    written: usize,
}

impl Line<'_> {
    fn peek(&self, ahead: usize) -> Option<u8> {
        self.bytes.get(self.read.checked_add(ahead)?).copied()
    }

    fn skip(&mut self, count: usize) {
        self.read = self.read.saturating_add(count);
    }

    /// Writes a byte, which the next `count` have stood for.
    fn put(&mut self, byte: u8, count: usize) {
        if let Some(room) = self.bytes.get_mut(self.written) {
            *room = byte;
            self.written = self.written.saturating_add(1);
        }
        self.skip(count);
    }

    fn double_quoted(&mut self) -> Result<(), ProtocolError> {
        loop {
            let hex = |ahead| {
                self.peek(ahead)
                    .and_then(|byte| char::from(byte).to_digit(16))
            };
            match (self.peek(0), self.peek(1)) {
                (None, _) => return Err(ProtocolError::UnbalancedQuotes),
                (Some(b'"'), next) => {
                    self.skip(1);
                    return closing(next);
                }
                (Some(b'\\'), Some(b'x')) if hex(2).is_some() && hex(3).is_some() => {
                    let (high, low) = (hex(2).unwrap_or(0), hex(3).unwrap_or(0));
                    let byte = u8::try_from(high.saturating_mul(16).saturating_add(low));
                    self.put(byte.unwrap_or(0), 4);
                }
                (Some(b'\\'), Some(escaped)) => {
                    let byte = match escaped {
                        b'n' => b'\n',
                        b'r' => b'\r',
                        b't' => b'\t',
                        b'b' => 8,
                        b'a' => 7,
                        other => other,
                    };
                    self.put(byte, 2);
                }
                (Some(byte), _) => self.put(byte, 1),
            }
        }
    }

    fn single_quoted(&mut self) -> Result<(), ProtocolError> {
        loop {
            match (self.peek(0), self.peek(1)) {
                (None, _) => return Err(ProtocolError::UnbalancedQuotes),
                (Some(b'\''), next) => {
                    self.skip(1);
                    return closing(next);
                }
                (Some(b'\\'), Some(b'\'')) => self.put(b'\'', 2),
                (Some(byte), _) => self.put(byte, 1),
            }
        }
    }
}

/// A closing quote is followed by a space or by nothing at all.
fn closing(next: Option<u8>) -> Result<(), ProtocolError> {
    match next {
        Some(byte) if !is_space(byte) => Err(ProtocolError::UnbalancedQuotes),
        Some(_) | None => Ok(()),
    }
}

fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t'..=b'\r')
}

/// Splits a line into arguments, which are freed of quotes in place.
pub(super) fn split(line: &mut [u8], spans: &mut Vec<Span>) -> Result<(), ProtocolError> {
    let mut line = Line {
        bytes: line,
        read: 0,
        written: 0,
    };
    loop {
        while line.peek(0).is_some_and(is_space) {
            line.skip(1);
        }
        if line.peek(0).is_none_or(|byte| byte == 0) {
            return Ok(());
        }
        line.written = line.read;
        let start = line.read;
        loop {
            match line.peek(0) {
                None | Some(0) => break,
                Some(byte) if is_space(byte) => break,
                Some(quote @ (b'"' | b'\'')) => {
                    line.skip(1);
                    if quote == b'"' {
                        line.double_quoted()?;
                    } else {
                        line.single_quoted()?;
                    }
                    break;
                }
                Some(byte) => line.put(byte, 1),
            }
        }
        spans.push(start..line.written);
    }
}
