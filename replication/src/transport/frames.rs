//! A stream of frames as the body of an HTTP answer: length (u32, little endian), then the bytes.

use std::convert::Infallible;

use axum::body::Body;
use axum::response::Response;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::sync::mpsc;

use super::client::PeerError;

/// The longest frame. A longer one is refused before anything is allocated for it.
pub const FRAME_BYTES_MAX: usize = 4 << 20;

/// How much room the length of a frame takes in front of it.
pub const FRAME_ROOM: usize = 4;

/// How many frames wait between a handler and the socket: what a slow peer may cost in memory is
/// this times [`FRAME_BYTES_MAX`] at the very most.
const FRAMES_WAITING_MAX: usize = 4;

/// The end that a handler writes frames into.
#[derive(Debug, Clone)]
pub struct FrameSender(mpsc::Sender<Bytes>);

/// The peer has gone away; the stream is over.
#[derive(Debug, thiserror::Error)]
#[error("the peer has closed the stream")]
pub struct PeerGone;

impl FrameSender {
    /// Sends one frame, waiting while the peer is slow. Safe to cancel.
    ///
    /// # Errors
    /// When the peer has gone away.
    ///
    /// # Panics
    /// When the frame is longer than [`FRAME_BYTES_MAX`]: the caller has to cut its data.
    pub async fn send(&self, frame: &[u8]) -> Result<(), PeerGone> {
        assert!(
            frame.len() <= FRAME_BYTES_MAX,
            "a frame of {} bytes",
            frame.len()
        );
        let mut bytes = BytesMut::with_capacity(frame.len() + 4);
        // The assertion above bounds the length far below u32::MAX.
        bytes.put_u32_le(u32::try_from(frame.len()).unwrap_or(u32::MAX));
        bytes.put_slice(frame);
        self.0.send(bytes.freeze()).await.map_err(|_| PeerGone)
    }

    /// Sends one frame that has room for its length in front: four bytes. Saves a copy of it.
    ///
    /// # Errors
    /// When the peer has gone away.
    ///
    /// # Panics
    /// As [`FrameSender::send`].
    pub async fn send_with_room(&self, mut frame: Vec<u8>) -> Result<(), PeerGone> {
        let length = frame.len().saturating_sub(FRAME_ROOM);
        assert!(length <= FRAME_BYTES_MAX, "a frame of {length} bytes");
        if let Some(room) = frame.first_chunk_mut() {
            // The assertion above bounds the length far below u32::MAX.
            *room = u32::try_from(length).unwrap_or(u32::MAX).to_le_bytes();
        }
        self.0.send(Bytes::from(frame)).await.map_err(|_| PeerGone)
    }

    /// Waits until the peer has gone away. Safe to cancel.
    pub async fn closed(&self) {
        self.0.closed().await;
    }
}

/// Returns an answer whose body is the frames that are sent into the returned sender; it ends when
/// the sender is dropped.
pub fn frames() -> (FrameSender, Response) {
    let (sender, receiver) = mpsc::channel::<Bytes>(FRAMES_WAITING_MAX);
    let stream = futures_util::stream::unfold(receiver, |mut receiver| async move {
        let bytes = receiver.recv().await?;
        Some((Ok::<_, Infallible>(bytes), receiver))
    });
    (
        FrameSender(sender),
        Response::new(Body::from_stream(stream)),
    )
}

/// Reads the frames of a peer's answer.
#[derive(Debug)]
pub struct FrameReader {
    body: Incoming,
    buffer: BytesMut,
    peer: String,
}

impl FrameReader {
    pub(super) fn new(body: Incoming, peer: String) -> Self {
        Self {
            body,
            buffer: BytesMut::new(),
            peer,
        }
    }

    /// Returns the next frame, or `None` at the end of the stream. Safe to cancel: what has arrived
    /// is kept.
    ///
    /// # Errors
    /// When the connection breaks, the stream ends inside a frame, or a frame is too long.
    pub async fn next(&mut self) -> Result<Option<Bytes>, PeerError> {
        loop {
            if let Some(frame) = take_frame(&mut self.buffer, &self.peer)? {
                return Ok(Some(frame));
            }
            match self.body.frame().await {
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.buffer.extend_from_slice(&data);
                    }
                }
                Some(Err(source)) => {
                    return Err(PeerError::Broken {
                        peer: self.peer.clone(),
                        source,
                    });
                }
                None if self.buffer.is_empty() => return Ok(None),
                None => {
                    return Err(PeerError::Torn {
                        peer: self.peer.clone(),
                    });
                }
            }
        }
    }
}

/// Takes the first frame out of what `peer` has sent, if it is there whole; if not, makes room for the rest.
///
/// # Errors
/// When it is too long.
pub(super) fn take_frame(buffer: &mut BytesMut, peer: &str) -> Result<Option<Bytes>, PeerError> {
    let Some(head) = buffer.first_chunk::<4>() else {
        return Ok(None);
    };
    let length = usize::try_from(u32::from_le_bytes(*head)).unwrap_or(usize::MAX);
    if length > FRAME_BYTES_MAX {
        return Err(PeerError::TooLong {
            peer: peer.to_owned(),
            bytes: length,
            bytes_max: FRAME_BYTES_MAX,
        });
    }
    if buffer.len() < length + 4 {
        // At once and not bit by bit, which would copy what is there each time.
        buffer.reserve(length + 4 - buffer.len());
        return Ok(None);
    }
    buffer.advance(4);
    Ok(Some(buffer.split_to(length).freeze()))
}
