//! A client that sees every byte.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use super::PATIENCE;

/// What a server answers.
#[derive(Clone, Debug, PartialEq, PartialOrd)]
pub(crate) enum Value {
    Null,
    Simple(String),
    Error(String),
    Integer(i64),
    Bulk(String),
    Verbatim(String),
    Array(Vec<Value>),
    Set(Vec<Value>),
    Map(Vec<(Value, Value)>),
}

impl Value {
    /// Returns the text that it is.
    pub(crate) fn text(self) -> String {
        let (Self::Bulk(text) | Self::Verbatim(text)) = self else {
            panic!("no text: {self:?}");
        };
        text
    }
}

/// A client.
pub(crate) struct Client {
    reader: BufReader<TcpStream>,
}

impl Client {
    pub(crate) fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Self {
            reader: BufReader::new(stream),
        }
    }

    /// Returns another end of the same connection.
    pub(crate) fn another(&self) -> Self {
        Self {
            reader: BufReader::new(self.reader.get_ref().try_clone().unwrap()),
        }
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) {
        self.reader.get_mut().write_all(bytes).unwrap();
    }

    pub(crate) fn send_command<T: AsRef<[u8]>>(&mut self, command: &[T]) {
        self.send(&encode(command));
    }

    pub(crate) fn call<T: AsRef<[u8]>>(&mut self, command: &[T]) -> Value {
        self.send_command(command);
        self.receive()
    }

    /// Sends words that hold no space.
    pub(crate) fn say(&mut self, line: &str) -> Value {
        let words: Vec<_> = line.split(' ').collect();
        self.call(&words)
    }

    fn line(&mut self) -> String {
        let mut line = Vec::new();
        self.reader.read_until(b'\n', &mut line).unwrap();
        assert!(line.ends_with(b"\r\n"), "no whole line: {line:?}");
        line.truncate(line.len() - 2);
        String::from_utf8_lossy(&line).into_owned()
    }

    pub(crate) fn receive(&mut self) -> Value {
        let line = self.line();
        let (kind, rest) = line.split_at(1);
        let len = || rest.parse::<usize>().unwrap();
        match kind {
            "+" => Value::Simple(rest.to_owned()),
            "-" => Value::Error(rest.to_owned()),
            ":" => Value::Integer(rest.parse().unwrap()),
            "_" => Value::Null,
            "$" | "*" if rest == "-1" => Value::Null,
            "$" => Value::Bulk(self.bytes(len())),
            "=" => Value::Verbatim(self.bytes(len())),
            "*" => Value::Array((0..len()).map(|_| self.receive()).collect()),
            "~" => Value::Set((0..len()).map(|_| self.receive()).collect()),
            "%" => Value::Map(
                (0..len())
                    .map(|_| (self.receive(), self.receive()))
                    .collect(),
            ),
            other => panic!("an answer of kind {other:?}: {line:?}"),
        }
    }

    fn bytes(&mut self, len: usize) -> String {
        let mut bytes = vec![0; len + 2];
        self.reader.read_exact(&mut bytes).unwrap();
        assert!(bytes.ends_with(b"\r\n"));
        String::from_utf8_lossy(&bytes[..len]).into_owned()
    }

    /// Returns whether nothing comes for a moment. That something would come later is no fault then.
    pub(crate) fn is_silent(&mut self) -> bool {
        let stream = self.reader.get_ref();
        stream
            .set_read_timeout(Some(Duration::from_millis(50)))
            .unwrap();
        let is_silent = self.reader.buffer().is_empty() && stream.peek(&mut [0]).is_err();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        is_silent
    }

    /// Returns what comes until the server closes the connection.
    pub(crate) fn rest(&mut self) -> String {
        let mut bytes = Vec::new();
        // A server that has not read everything resets the connection when it closes it.
        if let Err(error) = self.reader.read_to_end(&mut bytes) {
            assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
        }
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

pub(crate) fn encode<T: AsRef<[u8]>>(command: &[T]) -> Vec<u8> {
    let mut bytes = format!("*{}\r\n", command.len()).into_bytes();
    for arg in command {
        bytes.extend_from_slice(format!("${}\r\n", arg.as_ref().len()).as_bytes());
        bytes.extend_from_slice(arg.as_ref());
        bytes.extend_from_slice(b"\r\n");
    }
    bytes
}

pub(crate) fn ok() -> Value {
    Value::Simple("OK".to_owned())
}

pub(crate) fn bulk(text: &str) -> Value {
    Value::Bulk(text.to_owned())
}

pub(crate) fn error(text: &str) -> Value {
    Value::Error(text.to_owned())
}

/// Sorts what has no order of its own.
pub(crate) fn sorted(mut value: Value) -> Value {
    if let Value::Array(parts) = &mut value {
        parts.sort_by(|a, b| a.partial_cmp(b).unwrap());
    }
    if let Value::Map(pairs) = &mut value {
        pairs.sort_by(|a, b| a.partial_cmp(b).unwrap());
    }
    value
}

/// Reads the lines `name:value` of `INFO`.
pub(crate) fn fields(text: &str) -> BTreeMap<String, String> {
    let pairs = text.lines().filter_map(|line| line.split_once(':'));
    pairs
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}
