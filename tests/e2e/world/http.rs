//! Plain HTTP requests, as curl would send them.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

/// An answer over HTTP.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: String,
}

impl Answer {
    /// Reads an answer as it came over the wire.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let (head, body) = text
            .split_once("\r\n\r\n")
            .ok_or_else(|| format!("no answer: {text:?}"))?;
        let status = head
            .split(' ')
            .nth(1)
            .and_then(|status| status.parse().ok());
        let is_chunked = head
            .to_ascii_lowercase()
            .contains("transfer-encoding: chunked");
        Ok(Self {
            status: status.ok_or_else(|| format!("no status: {head:?}"))?,
            body: if is_chunked {
                unchunked(body)
            } else {
                body.to_owned()
            },
        })
    }
}

fn unchunked(mut body: &str) -> String {
    let mut whole = String::new();
    while let Some((length, rest)) = body.split_once("\r\n") {
        let length = usize::from_str_radix(length.trim(), 16).unwrap_or(0);
        let Some(chunk) = rest.get(..length).filter(|_| length > 0) else {
            break;
        };
        whole += chunk;
        body = rest.get(length + 2..).unwrap_or_default();
    }
    whole
}

/// Sends one request without a body.
pub(crate) fn http(ip: &str, port: u16, method: &str, path: &str) -> Result<Answer, String> {
    let send = || {
        let mut stream = TcpStream::connect((ip, port))?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        let request =
            format!("{method} {path} HTTP/1.1\r\nHost: {ip}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes())?;
        let mut text = Vec::new();
        // Who is refused may be cut off before he has said all; what was answered counts.
        if let Err(error) = stream.read_to_end(&mut text)
            && text.is_empty()
        {
            return Err(error);
        }
        std::io::Result::Ok(String::from_utf8_lossy(&text).into_owned())
    };
    Answer::parse(&send().map_err(|error| error.to_string())?)
}
