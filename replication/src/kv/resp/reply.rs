//! What goes out.

use std::fmt::Display;

use bytes::BytesMut;

use super::number::Digits;

/// What an answer may have at most, in bytes. More is answered by an error.
pub const REPLY_BYTES_MAX: usize = 64 << 20;

/// Which version of the protocol a client speaks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Protocol {
    /// RESP2, that of every client before it says otherwise.
    #[default]
    Two,
    /// RESP3.
    Three,
}

/// Answers on their way to a client.
#[derive(Debug, Default)]
pub struct Reply {
    /// The version in which they are written.
    pub protocol: Protocol,
    bytes: BytesMut,
    /// Where the bytes of the present answer must end.
    bytes_max: usize,
    is_cut: bool,
}

impl Reply {
    /// Returns what is to be sent.
    pub fn bytes(&mut self) -> &mut BytesMut {
        &mut self.bytes
    }

    /// Returns how many bytes there are to be sent.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Returns whether there is nothing to be sent.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Returns whether the present answer is too large already, and what is written to it no longer matters.
    pub(crate) fn is_cut(&self) -> bool {
        self.is_cut
    }

    /// Writes one answer: what `write` writes, or the error that it returns instead.
    pub fn answer<E: Display>(&mut self, write: impl FnOnce(&mut Self) -> Result<(), E>) {
        let start = self.bytes.len();
        self.bytes_max = start.saturating_add(REPLY_BYTES_MAX);
        self.is_cut = false;
        if let Err(error) = self.part(write) {
            self.error(&error);
        }
        if self.is_cut {
            self.bytes.truncate(start);
            self.is_cut = false;
            self.error(&"ERR the answer is too large; SCAN and HSCAN give it in parts");
        }
    }

    /// Writes a part of an answer in the same way.
    pub(crate) fn part<E: Display>(
        &mut self,
        write: impl FnOnce(&mut Self) -> Result<(), E>,
    ) -> Result<(), E> {
        let start = self.bytes.len();
        write(self).inspect_err(|_| self.bytes.truncate(start))
    }

    /// Writes a word that is known to have no line break.
    pub fn simple(&mut self, word: &str) {
        self.put(&[b"+", word.as_bytes(), b"\r\n"]);
    }

    /// Writes `OK`.
    pub fn ok(&mut self) {
        self.put(&[b"+OK\r\n"]);
    }

    /// Writes an error; its text begins with a word in capitals.
    pub fn error(&mut self, error: &dyn Display) {
        let mut text = error.to_string();
        if text.contains(['\r', '\n']) {
            text = text.replace(['\r', '\n'], " ");
        }
        self.put(&[b"-", text.as_bytes(), b"\r\n"]);
    }

    /// Writes a number.
    pub fn integer(&mut self, number: i64) {
        let sign: &[u8] = if number < 0 { b":-" } else { b":" };
        self.put(&[sign, Digits::of(number.unsigned_abs()).as_bytes(), b"\r\n"]);
    }

    /// Writes a count.
    pub fn count(&mut self, count: usize) {
        self.integer(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// Writes 1 or 0.
    pub fn yes(&mut self, is_so: bool) {
        self.integer(i64::from(is_so));
    }

    /// Writes bytes.
    pub fn bulk(&mut self, bytes: &[u8]) {
        self.header(b"$", bytes.len());
        self.put(&[bytes, b"\r\n"]);
    }

    /// Writes bytes, or that there are none.
    pub fn bulk_or_null(&mut self, bytes: Option<&[u8]>) {
        match bytes {
            Some(bytes) => self.bulk(bytes),
            None => self.null(),
        }
    }

    /// Writes something as bytes.
    pub fn text(&mut self, text: &dyn Display) {
        self.bulk(text.to_string().as_bytes());
    }

    /// Writes a text for people.
    pub fn verbatim(&mut self, text: &str) {
        match self.protocol {
            Protocol::Two => self.bulk(text.as_bytes()),
            Protocol::Three => {
                self.header(b"=", text.len().saturating_add(4));
                self.put(&[b"txt:", text.as_bytes(), b"\r\n"]);
            }
        }
    }

    /// Writes that there is nothing.
    pub fn null(&mut self) {
        self.put(match self.protocol {
            Protocol::Two => &[b"$-1\r\n"],
            Protocol::Three => &[b"_\r\n"],
        });
    }

    /// Writes that there is nothing, where an array could have been.
    pub fn null_array(&mut self) {
        self.put(match self.protocol {
            Protocol::Two => &[b"*-1\r\n"],
            Protocol::Three => &[b"_\r\n"],
        });
    }

    /// Begins an array; so many answers have to follow.
    pub fn array(&mut self, len: usize) {
        self.header(b"*", len);
    }

    /// Begins a set; so many answers have to follow.
    pub fn set(&mut self, len: usize) {
        match self.protocol {
            Protocol::Two => self.header(b"*", len),
            Protocol::Three => self.header(b"~", len),
        }
    }

    /// Begins a map; so many pairs of answers have to follow.
    pub fn map(&mut self, len: usize) {
        match self.protocol {
            Protocol::Two => self.header(b"*", len.saturating_mul(2)),
            Protocol::Three => self.header(b"%", len),
        }
    }

    fn header(&mut self, kind: &[u8], len: usize) {
        let digits = Digits::of(u64::try_from(len).unwrap_or(u64::MAX));
        self.put(&[kind, digits.as_bytes(), b"\r\n"]);
    }

    fn put(&mut self, parts: &[&[u8]]) {
        let len = parts.iter().map(|part| part.len()).sum::<usize>();
        if self.bytes.len().saturating_add(len) > self.bytes_max {
            // An error is short, and stands where something was cut.
            self.is_cut = true;
            return;
        }
        self.bytes.reserve(len);
        parts
            .iter()
            .for_each(|part| self.bytes.extend_from_slice(part));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(
        protocol: Protocol,
        write: impl FnOnce(&mut Reply) -> Result<(), &'static str>,
    ) -> String {
        let mut reply = Reply {
            protocol,
            ..Reply::default()
        };
        reply.answer(write);
        String::from_utf8(reply.bytes().to_vec()).unwrap()
    }

    #[test]
    fn each_version_has_its_own_forms() {
        let write = |reply: &mut Reply| {
            reply.null();
            reply.null_array();
            reply.map(1);
            reply.bulk(b"a");
            reply.integer(-10);
            reply.set(0);
            reply.verbatim("text");
            Ok(())
        };
        assert_eq!(
            written(Protocol::Two, write),
            "$-1\r\n*-1\r\n*2\r\n$1\r\na\r\n:-10\r\n*0\r\n$4\r\ntext\r\n"
        );
        assert_eq!(
            written(Protocol::Three, write),
            "_\r\n_\r\n%1\r\n$1\r\na\r\n:-10\r\n~0\r\n=8\r\ntxt:text\r\n"
        );
    }

    #[test]
    fn an_error_stands_alone_and_on_one_line() {
        let answer = written(Protocol::Two, |reply| {
            reply.ok();
            Err("ERR a\r\nb")
        });
        assert_eq!(answer, "-ERR a  b\r\n");
    }

    #[test]
    fn an_answer_that_is_too_large_is_an_error() {
        let part = vec![b'a'; 1 << 20];
        let mut reply = Reply::default();
        reply.answer(|reply| {
            reply.array(100);
            (0..100).for_each(|_| reply.bulk(&part));
            Ok::<_, &str>(())
        });
        reply.answer(|reply| {
            reply.ok();
            Ok::<_, &str>(())
        });
        assert_eq!(
            reply.bytes(),
            &b"-ERR the answer is too large; SCAN and HSCAN give it in parts\r\n+OK\r\n"[..]
        );
    }
}
