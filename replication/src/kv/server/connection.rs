//! What goes over a client's connection.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::Shared;
use super::answer::{Batch, answer};
use super::client::Client;
use super::session::Session;
use crate::kv::resp::{Decoder, ProtocolError, Reply};

/// How much is read at least at once, where there is so much.
const READ_BYTES: usize = 16 << 10;

/// What an idle client keeps of a buffer that has grown, in bytes.
const KEPT_BYTES_MAX: usize = 64 << 10;

/// How many commands are taken at once.
const BATCH_COMMANDS_MAX: usize = 1024;

/// How many bytes of commands are taken at once, if it is more than one.
const BATCH_BYTES_MAX: usize = 256 << 10;

/// How many bytes of answers are sent before more commands are taken.
const SEND_BYTES: usize = 64 << 10;

/// How long a client may take none of the bytes that it is sent.
const SEND_STALL_MAX: Duration = Duration::from_secs(60);

/// How long a client may take to tell the password.
const AUTHENTICATION_MAX: Duration = Duration::from_secs(60);

/// How long somebody waits who has told a wrong password.
const SUSPECT_PAUSE: Duration = Duration::from_millis(100);

/// How long a client that is no longer understood is listened to, so that it hears why.
const LINGER_MAX: Duration = Duration::from_secs(2);

/// A client's connection.
pub(super) struct Connection {
    shared: Arc<Shared>,
    stream: TcpStream,
    input: BytesMut,
    decoder: Decoder,
    batch: Batch,
    reply: Reply,
    session: Session,
}

/// What was found in the input.
struct Found {
    /// How many bytes it was.
    bytes: usize,
    /// There is no other complete command.
    is_all: bool,
    error: Option<ProtocolError>,
}

impl Connection {
    pub(super) fn new(shared: Arc<Shared>, client: Arc<Client>, stream: TcpStream) -> Self {
        Self {
            session: Session::new(Arc::clone(&shared), client),
            shared,
            stream,
            input: BytesMut::new(),
            decoder: Decoder::default(),
            batch: Batch::default(),
            reply: Reply::default(),
        }
    }

    /// Serves the client until it leaves.
    pub(super) async fn run(mut self) -> io::Result<()> {
        loop {
            let found = self.find();
            let mut next = 0;
            while next < self.batch.len() {
                next = answer(
                    &mut self.session,
                    &mut self.reply,
                    &self.batch,
                    &self.input,
                    next,
                    &self.stream,
                )
                .await;
                if std::mem::take(&mut self.session.is_suspect) {
                    tokio::time::sleep(SUSPECT_PAUSE).await;
                }
                if self.session.is_closing {
                    return self.send().await;
                }
                if next < self.batch.len() {
                    self.send().await?;
                }
            }
            let count = u64::try_from(self.batch.len()).unwrap_or(u64::MAX);
            self.shared.commands.fetch_add(count, Ordering::Relaxed);
            self.input.advance(found.bytes);
            if let Some(error) = found.error {
                self.reply.answer(|_| Err(error));
                self.send().await?;
                return self.linger().await;
            }
            if found.is_all || self.reply.len() > SEND_BYTES {
                self.send().await?;
            }
            if !found.is_all {
                // Others have commands as well.
                tokio::task::yield_now().await;
            } else if !self.receive().await? {
                return Ok(());
            }
        }
    }

    /// Takes the commands that are complete, unless they are too many.
    fn find(&mut self) -> Found {
        self.batch.clear();
        let is_authenticated = self.session.is_authenticated;
        // What somebody may send depends on what the command before does.
        let count_max = if is_authenticated {
            BATCH_COMMANDS_MAX
        } else {
            1
        };
        let mut found = Found {
            bytes: 0,
            is_all: false,
            error: None,
        };
        while self.batch.len() < count_max && found.bytes < BATCH_BYTES_MAX {
            let rest = self.input.get_mut(found.bytes..).unwrap_or_default();
            match self.decoder.decode(rest, is_authenticated) {
                Ok(Some(len)) => {
                    let spans = self.decoder.spans();
                    if !spans.is_empty() {
                        self.batch.add(&self.input, found.bytes, spans);
                    }
                    found.bytes = found.bytes.saturating_add(len);
                }
                Ok(None) => {
                    found.is_all = true;
                    break;
                }
                Err(error) => {
                    found.error = Some(error);
                    break;
                }
            }
        }
        found
    }

    /// Reads more, and returns whether there was any.
    async fn receive(&mut self) -> io::Result<bool> {
        if self.input.is_empty() {
            self.decoder.shrink();
            self.batch.shrink();
            if self.input.capacity() > KEPT_BYTES_MAX {
                self.input = BytesMut::new();
            }
        }
        self.input.reserve(READ_BYTES);
        let reading = self.stream.read_buf(&mut self.input);
        let count = if self.session.is_authenticated {
            reading.await?
        } else {
            tokio::time::timeout(AUTHENTICATION_MAX, reading).await??
        };
        self.session.client.heard(self.reply.protocol);
        Ok(count > 0)
    }

    /// Reads for a while what nobody will look at: to close the connection before the client has sent all would
    /// take from it the answer as well.
    async fn linger(&mut self) -> io::Result<()> {
        self.stream.shutdown().await?;
        let draining = async {
            loop {
                self.input.clear();
                self.input.reserve(READ_BYTES);
                if self.stream.read_buf(&mut self.input).await? == 0 {
                    return Ok(());
                }
            }
        };
        // The client that goes on and on is cut off.
        match tokio::time::timeout(LINGER_MAX, draining).await {
            Ok(drained) => drained,
            Err(_elapsed) => Ok(()),
        }
    }

    /// Sends the answers.
    async fn send(&mut self) -> io::Result<()> {
        let bytes = self.reply.bytes();
        while !bytes.is_empty() {
            match self.stream.try_write(bytes) {
                Ok(count) => bytes.advance(count),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    tokio::time::timeout(SEND_STALL_MAX, self.stream.writable()).await??;
                }
                Err(error) => return Err(error),
            }
        }
        bytes.clear();
        if bytes.capacity() > KEPT_BYTES_MAX {
            *bytes = BytesMut::new();
        }
        Ok(())
    }
}
