//! A link on which both sides speak when they like: an upgraded connection, with frames in both directions.
//!
//! A frame is its length (u32, little endian) and its bytes, as in an answer that is a stream of frames.

use std::io;
use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use bytes::{BufMut, Bytes, BytesMut};
use hyper::header::{CONNECTION, HeaderValue, UPGRADE};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf, split};

use super::FRAME_BYTES_MAX;
use super::client::PeerError;
use super::frames::take_frame;

/// What both sides say that they upgrade to.
pub(super) const DUPLEX: HeaderValue = HeaderValue::from_static("understudy-frames");

/// How much room there is for what the socket has: a buffer is made anew when less than a part is left.
const READ_BYTES: usize = 64 << 10;
const READ_BYTES_MIN: usize = 4 << 10;

/// What is written is gathered up to this, then given to the socket.
const WRITE_BYTES: usize = 256 << 10;

/// A link to a peer, in both directions.
#[derive(Debug)]
pub struct Duplex {
    /// What the peer says.
    pub incoming: FramesIn,
    /// What it is told.
    pub outgoing: FramesOut,
}

/// The end that is read.
#[derive(Debug)]
pub struct FramesIn {
    io: ReadHalf<TokioIo<Upgraded>>,
    buffer: BytesMut,
    peer: String,
}

/// The end that is written.
#[derive(Debug)]
pub struct FramesOut {
    io: WriteHalf<TokioIo<Upgraded>>,
    buffer: BytesMut,
    peer: String,
}

impl Duplex {
    pub(super) fn new(io: Upgraded, peer: String) -> Self {
        let (read, write) = split(TokioIo::new(io));
        Self {
            incoming: FramesIn {
                io: read,
                buffer: BytesMut::new(),
                peer: peer.clone(),
            },
            outgoing: FramesOut {
                io: write,
                buffer: BytesMut::new(),
                peer,
            },
        }
    }
}

impl FramesIn {
    /// Returns the next frame, or `None` when the peer has closed the link. Safe to cancel.
    ///
    /// # Errors
    /// When the link breaks, ends within a frame, or a frame is too long.
    pub async fn next(&mut self) -> Result<Option<Bytes>, PeerError> {
        loop {
            if let Some(frame) = self.take()? {
                return Ok(Some(frame));
            }
            let room = self.buffer.capacity().saturating_sub(self.buffer.len());
            if room < READ_BYTES_MIN {
                self.buffer.reserve(READ_BYTES);
            }
            let read = match self.io.read_buf(&mut self.buffer).await {
                Ok(read) => read,
                // A peer that was killed says no goodbye; what matters is whether a frame was cut in two.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => 0,
                Err(source) => {
                    let peer = self.peer.clone();
                    return Err(PeerError::Cut { peer, source });
                }
            };
            if read == 0 && self.buffer.is_empty() {
                return Ok(None);
            }
            if read == 0 {
                return Err(PeerError::Torn {
                    peer: self.peer.clone(),
                });
            }
        }
    }

    /// Returns the next frame if it is here already.
    ///
    /// # Errors
    /// When it is too long.
    pub fn take(&mut self) -> Result<Option<Bytes>, PeerError> {
        take_frame(&mut self.buffer, &self.peer)
    }
}

impl FramesOut {
    /// Adds a frame made of `parts` to what is sent with the next [`FramesOut::flush`].
    ///
    /// # Panics
    /// When the frame is longer than [`FRAME_BYTES_MAX`]: the caller has to cut its data.
    pub fn add(&mut self, parts: &[&[u8]]) {
        let length: usize = parts.iter().map(|part| part.len()).sum();
        assert!(length <= FRAME_BYTES_MAX, "a frame of {length} bytes");
        self.buffer.reserve(length + 4);
        // The assertion above bounds the length far below u32::MAX.
        self.buffer
            .put_u32_le(u32::try_from(length).unwrap_or(u32::MAX));
        for part in parts {
            self.buffer.put_slice(part);
        }
    }

    /// Returns whether so much waits that it should be flushed before more is added.
    pub fn is_full(&self) -> bool {
        self.buffer.len() >= WRITE_BYTES
    }

    /// Sends what was added; the peer has `limit` to take it. A link on which this fails, or is cancelled, is
    /// of no use any more.
    ///
    /// # Errors
    /// When the link breaks, or the peer is too slow.
    pub async fn flush(&mut self, limit: Duration) -> Result<(), PeerError> {
        let peer = || self.peer.clone();
        let write = async {
            self.io.write_all_buf(&mut self.buffer).await?;
            self.io.flush().await
        };
        tokio::time::timeout(limit, write)
            .await
            .map_err(|_| PeerError::Late {
                peer: peer(),
                what: "to what it is sent".to_owned(),
                limit,
            })?
            .map_err(|source| PeerError::Cut {
                peer: peer(),
                source,
            })
    }
}

/// A link that a peer has asked for.
#[derive(Debug)]
pub struct Offered {
    upgrade: OnUpgrade,
    peer: String,
}

impl Offered {
    /// Takes what `request` asks for; the answer is to be returned, and the link comes when it has been sent.
    ///
    /// # Errors
    /// When it asks for something else; the answer says so.
    pub fn of(
        request: &mut Request<Body>,
        peer: String,
    ) -> Result<(Self, Response), Box<Response>> {
        let is_asked = request.headers().get(UPGRADE) == Some(&DUPLEX);
        match request.extensions_mut().remove::<OnUpgrade>() {
            Some(upgrade) if is_asked => {
                let mut response = Response::new(Body::empty());
                *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
                let headers = response.headers_mut();
                headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
                headers.insert(UPGRADE, DUPLEX);
                Ok((Self { upgrade, peer }, response))
            }
            Some(_) | None => {
                let reason = "this is a link in both directions; ask for it by `Upgrade`";
                let mut response = Response::new(Body::from(reason));
                *response.status_mut() = StatusCode::UPGRADE_REQUIRED;
                Err(Box::new(response))
            }
        }
    }

    /// Returns the link.
    ///
    /// # Errors
    /// When the connection has ended instead.
    pub async fn link(self) -> Result<Duplex, PeerError> {
        match self.upgrade.await {
            Ok(io) => Ok(Duplex::new(io, self.peer)),
            Err(source) => Err(PeerError::Broken {
                peer: self.peer,
                source,
            }),
        }
    }
}
