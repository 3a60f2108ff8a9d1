//! The routes of the peer API, beneath `/store/NAME`.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use bytes::Bytes;
use rustix::fs::FileType;
use serde::Deserialize;
use tokio::runtime::Handle;
use understudy_replication::files::wire::{
    CHUNK_BYTES_MAX, HEARTBEAT_INTERVAL, Note, Packer, WANTED_BYTES_MAX, WANTED_MAX, Wanted,
    WireError,
};
use understudy_replication::files::{
    Batch, Digest, LogEntry, LogEntryError, RelPath, Root, identity, stat_fd,
};
use understudy_replication::log::{LogError, LogReader, Record};
use understudy_replication::position::Position;
use understudy_replication::store::Stop;
use understudy_replication::transport::{FrameSender, frames};

use super::shared::Shared;

/// How long a request for a snapshot waits for the first look at the tree.
const READY_PATIENCE: Duration = Duration::from_secs(20);

/// What the handlers work with.
#[derive(Clone)]
pub(super) struct Shop {
    pub(super) shared: Arc<Shared>,
    pub(super) stop: Stop,
}

pub(super) fn routes(shop: Shop) -> Router {
    Router::new()
        .route("/snapshot", get(snapshot))
        .route("/content", post(content))
        .route("/log", get(log))
        .layer(DefaultBodyLimit::max(WANTED_BYTES_MAX))
        .with_state(shop)
}

/// Why a stream ends before its end.
#[derive(Debug, thiserror::Error)]
enum ShipError {
    #[error("the peer is gone")]
    Gone,
    #[error("the store is closed")]
    Closed,
    #[error("cannot read the log")]
    Log(#[from] LogError),
    #[error("cannot read the log")]
    Record(#[from] LogEntryError),
    #[error("cannot encode a message")]
    Wire(#[from] WireError),
    #[error("cannot read the tree")]
    Tree(#[source] io::Error),
}

/// Sends frames from a thread that may block.
struct Sender {
    frames: FrameSender,
    packer: Packer,
    stop: Stop,
    handle: Handle,
}

impl Sender {
    fn new(shop: &Shop, frames: FrameSender) -> Self {
        Self {
            frames,
            packer: Packer::default(),
            stop: shop.stop.clone(),
            handle: Handle::current(),
        }
    }

    fn flush_if_full(&mut self) -> Result<(), ShipError> {
        if self.packer.is_full() {
            self.flush()
        } else {
            Ok(())
        }
    }

    fn flush(&mut self) -> Result<(), ShipError> {
        let Some(frame) = self.packer.take() else {
            return Ok(());
        };
        let (frames, stop) = (&self.frames, &self.stop);
        self.handle.block_on(async {
            tokio::select! {
                sent = frames.send(&frame) => sent.map_err(|_| ShipError::Gone),
                () = stop.wait() => Err(ShipError::Closed),
            }
        })
    }
}

fn refusal(status: StatusCode, reason: String) -> Response {
    (status, reason).into_response()
}

/// Runs what ships on a thread that may block, and answers with what it sends.
fn stream(
    shop: &Shop,
    ship: impl FnOnce(&mut Sender) -> Result<(), ShipError> + Send + 'static,
) -> Response {
    let (frames, response) = frames();
    let mut sender = Sender::new(shop, frames);
    // It ends when the peer goes away or the store is closed: every wait within watches both.
    tokio::task::spawn_blocking(move || {
        let shipped = ship(&mut sender).and_then(|()| sender.flush());
        match shipped {
            Ok(()) | Err(ShipError::Gone | ShipError::Closed) => {}
            Err(error) => tracing::warn!(%error, "a stream to a standby broke off"),
        }
    });
    response
}

async fn snapshot(State(shop): State<Shop>) -> Response {
    let mut is_ready = shop.shared.is_ready.subscribe();
    let waited = tokio::time::timeout(READY_PATIENCE, is_ready.wait_for(|ready| *ready)).await;
    let is_ready = matches!(waited, Ok(Ok(_)));
    drop(waited);
    if !is_ready {
        let reason = match shop.shared.problems().into_iter().next() {
            Some(problem) => problem,
            None => format!(
                "store {} is still looking at its files",
                shop.shared.id.name
            ),
        };
        return refusal(StatusCode::SERVICE_UNAVAILABLE, reason);
    }
    let shared = shop.shared.clone();
    let written = tokio::task::spawn_blocking(move || write_snapshot(&shared)).await;
    match written {
        Ok(Ok(mut file)) => stream(&shop, move |sender| {
            let mut length = [0; 4];
            while file.read_exact(&mut length).is_ok() {
                let bytes = usize::try_from(u32::from_le_bytes(length)).unwrap_or(usize::MAX);
                let mut frame = vec![0; bytes];
                file.read_exact(&mut frame).map_err(ShipError::Tree)?;
                let frames = &sender.frames;
                let sent = sender.handle.block_on(frames.send(&frame));
                sent.map_err(|_| ShipError::Gone)?;
            }
            Ok(())
        }),
        Ok(Err(error)) => refusal(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
        Err(error) => refusal(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    }
}

/// Writes a snapshot into a file without a name: the manifest is held only as long as that takes, and
/// a slow standby costs no memory.
fn write_snapshot(shared: &Shared) -> Result<File, ShipError> {
    let file = tempfile::tempfile_in(&shared.state).map_err(ShipError::Tree)?;
    let mut file = io::BufWriter::new(file);
    let mut guard = shared.ledger();
    let ledger = guard.as_mut().ok_or(ShipError::Closed)?;
    let head = ledger.head().cloned().ok_or(ShipError::Closed)?;
    let mut packer = Packer::default();
    packer.note(&Note::Snapshot {
        epoch: head.epoch,
        position: head.position,
        root: head.root,
        entries: u64::try_from(ledger.manifest.len()).unwrap_or(u64::MAX),
        bytes: ledger.manifest.bytes(),
    })?;
    ledger.manifest.visit(&mut |path, known| {
        packer.note(&Note::Entry(path.clone(), known.entry.clone()))?;
        if packer.is_full() {
            write_frame(&mut file, &mut packer)?;
        }
        Ok::<_, ShipError>(())
    })?;
    drop(guard);
    packer.note(&Note::End)?;
    write_frame(&mut file, &mut packer)?;
    let mut file = file
        .into_inner()
        .map_err(|error| ShipError::Tree(error.into_error()))?;
    file.rewind().map_err(ShipError::Tree)?;
    Ok(file)
}

fn write_frame(file: &mut impl Write, packer: &mut Packer) -> Result<(), ShipError> {
    let Some(frame) = packer.take() else {
        return Ok(());
    };
    let length = u32::try_from(frame.len()).unwrap_or(u32::MAX);
    file.write_all(&length.to_le_bytes())
        .and_then(|()| file.write_all(&frame))
        .map_err(ShipError::Tree)
}

async fn content(State(shop): State<Shop>, body: Bytes) -> Response {
    let wanted: Vec<Wanted> = match postcard::from_bytes(&body) {
        Ok(wanted) => wanted,
        Err(error) => {
            return refusal(
                StatusCode::BAD_REQUEST,
                format!("a malformed list: {error}"),
            );
        }
    };
    if wanted.len() > WANTED_MAX {
        return refusal(
            StatusCode::BAD_REQUEST,
            format!("more than {WANTED_MAX} contents"),
        );
    }
    let shared = shop.shared.clone();
    stream(&shop, move |sender| {
        let root = Root::open(&shared.root).map_err(ShipError::Tree)?;
        for wanted in wanted {
            send_content(
                sender,
                &shared,
                &root,
                &wanted.path,
                (wanted.size, wanted.hash),
            )?;
        }
        sender.packer.note(&Note::End)?;
        Ok(())
    })
}

/// Where a standby goes on.
#[derive(Debug, Deserialize)]
struct From {
    from: u64,
    /// The root of its manifest, as `blake3:…`.
    root: String,
}

async fn log(State(shop): State<Shop>, Query(asked): Query<From>) -> Response {
    let shared = shop.shared.clone();
    let opened = tokio::task::spawn_blocking(move || open_log(&shared, &asked)).await;
    match opened {
        Ok(Ok((reader, first))) => {
            let shared = shop.shared.clone();
            stream(&shop, move |sender| follow(sender, &shared, reader, first))
        }
        Ok(Err(reason)) => refusal(StatusCode::GONE, reason),
        Err(error) => refusal(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    }
}

/// Opens the log where the standby is; an error is the reason why it has to compare everything.
fn open_log(shared: &Shared, asked: &From) -> Result<(LogReader, Option<Record>), String> {
    let from = Position(asked.from);
    let mut reader = shared
        .log()
        .reader(from)
        .map_err(|error| error.to_string())?;
    let here = {
        let guard = shared.ledger();
        let head = guard.as_ref().and_then(|ledger| ledger.head().cloned());
        head.filter(|head| head.position == from)
            .map(|head| head.root)
    };
    let (root, first) = match here {
        Some(root) => (root, None),
        None => match reader.next().map_err(|error| error.to_string())? {
            None => return Err(format!("position {from} has not been reached here")),
            Some(record) => match LogEntry::decode(&record.payload) {
                Ok(LogEntry::Batch(batch)) => (batch.before, Some(record)),
                Ok(LogEntry::Content(..) | LogEntry::Superseded(_)) | Err(_) => {
                    return Err(format!("position {from} was not captured by this node"));
                }
            },
        },
    };
    // Equal roots mean equal trees, so that nothing else has to be compared: not even the epoch.
    if root.to_string() != asked.root {
        return Err(format!(
            "at position {from} the files here were others ({root})"
        ));
    }
    Ok((reader, first))
}

fn follow(
    sender: &mut Sender,
    shared: &Arc<Shared>,
    mut reader: LogReader,
    mut first: Option<Record>,
) -> Result<(), ShipError> {
    let generation = shared.log_generation.load(Ordering::Acquire);
    let mut position = shared.position.subscribe();
    let here = *position.borrow_and_update();
    sender.packer.note(&Note::Hello {
        epoch: shared.epoch.clone(),
        position: here,
    })?;
    sender.flush()?;
    loop {
        loop {
            let record = match first.take() {
                Some(record) => record,
                None => match reader.next()? {
                    Some(record) => record,
                    None => break,
                },
            };
            if let LogEntry::Batch(batch) = LogEntry::decode(&record.payload)? {
                send_batch(sender, shared, &batch)?;
            }
            sender.flush()?;
        }
        let (frames, stop) = (&sender.frames, &sender.stop);
        let is_quiet = sender.handle.block_on(async {
            tokio::select! {
                changed = position.changed() => changed.map(|()| false).map_err(|_| ShipError::Closed),
                () = tokio::time::sleep(HEARTBEAT_INTERVAL) => Ok(true),
                () = frames.closed() => Err(ShipError::Gone),
                () = stop.wait() => Err(ShipError::Closed),
            }
        })?;
        if shared.log_generation.load(Ordering::Acquire) != generation {
            return Err(ShipError::Closed);
        }
        if is_quiet {
            let here = *position.borrow();
            sender.packer.note(&Note::Heartbeat { position: here })?;
            sender.flush()?;
        }
    }
}

fn send_batch(sender: &mut Sender, shared: &Shared, batch: &Batch) -> Result<(), ShipError> {
    sender.packer.batch(batch)?;
    let mut root = None;
    for operation in &batch.operations {
        let Some(content) = operation.content() else {
            continue;
        };
        if root.is_none() {
            root = Some(Root::open(&shared.root).map_err(ShipError::Tree)?);
        }
        if let Some(root) = &root {
            send_content(sender, shared, root, operation.path(), content)?;
        }
    }
    Ok(())
}

/// Sends a content, or that it is superseded: then the capture is told to bring the file again.
fn send_content(
    sender: &mut Sender,
    shared: &Shared,
    root: &Root,
    path: &RelPath,
    (size, hash): (u64, Digest),
) -> Result<(), ShipError> {
    let is_whole = match root.file(path) {
        Ok(file) => send_file(sender, &file, size, hash)?,
        Err(_) => false,
    };
    if is_whole {
        sender.packer.note(&Note::Complete)?;
    } else {
        // Only while it is the newest that is known: else a later batch brings it anyway.
        let is_newest = shared.ledger().as_ref().is_some_and(|ledger| {
            ledger
                .manifest
                .get(path)
                .and_then(|known| known.entry.content())
                == Some((size, hash))
        });
        if is_newest {
            shared.ask(|inbox| {
                inbox.owed.insert(path.clone());
            });
        }
        sender.packer.note(&Note::Superseded)?;
    }
    sender.flush_if_full()
}

/// Returns whether all of it was sent, and has the hash. A file that has only grown still has.
fn send_file(sender: &mut Sender, file: &File, size: u64, hash: Digest) -> Result<bool, ShipError> {
    use std::os::fd::AsFd;
    match stat_fd(file.as_fd()) {
        Ok(found) if identity(&found).file_type() == FileType::RegularFile => {}
        Ok(_) | Err(_) => return Ok(false),
    }
    let mut hasher = blake3::Hasher::new();
    let mut left = size;
    let mut chunk = vec![
        0;
        CHUNK_BYTES_MAX
            .min(usize::try_from(size).unwrap_or(usize::MAX))
            .max(1)
    ];
    while left > 0 {
        let wanted = usize::try_from(left).unwrap_or(usize::MAX).min(chunk.len());
        let Some(room) = chunk.get_mut(..wanted) else {
            return Ok(false);
        };
        let read = match (&mut &*file).read(room) {
            Ok(0) => return Ok(false),
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(_) => return Ok(false),
        };
        let Some(bytes) = chunk.get(..read) else {
            return Ok(false);
        };
        hasher.update(bytes);
        sender.packer.chunk(bytes);
        sender.flush_if_full()?;
        left = left.saturating_sub(u64::try_from(read).unwrap_or(u64::MAX));
    }
    Ok(Digest::from(hasher.finalize()) == hash)
}
