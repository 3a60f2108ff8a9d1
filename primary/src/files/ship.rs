//! The routes of the peer API, beneath `/store/NAME`.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use axum::extract::{DefaultBodyLimit, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Router};
use bytes::Bytes;
use rustix::fs::FileType;
use serde::Deserialize;
use tokio::runtime::Handle;
use understudy_replication::files::wire::{
    CHUNK_BYTES_MAX, HEARTBEAT_INTERVAL, Note, Packer, Part, WANTED_BYTES_MAX, WANTED_MAX, Wanted,
    WireError, compress,
};
use understudy_replication::files::{
    Batch, Content, Digest, Local, LogEntry, LogEntryError, Operation, RelPath, Root, TOP,
    data_ranges, identity, stat_fd,
};
use understudy_replication::log::{LogError, LogReader, Record};
use understudy_replication::position::Position;
use understudy_replication::store::Stop;
use understudy_replication::transport::{Caller, FrameSender, frames};

use super::content::hash_ranges;
use super::limit::{Lane, Limit};
use super::press::Press;
use super::shared::Shared;

/// A content that is longer does not come along: it is asked for by itself, so that what is fresh does
/// not wait behind it.
const ALONG_BYTES_MAX: u64 = 4 << 20;

/// Nor does one with holes of so many bytes in all: as a part of a batch they would be bytes.
const HOLES_FROM: u64 = 64 << 10;

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
    limit: Option<Arc<Limit>>,
    lane: Lane,
    press: Press,
}

impl Sender {
    fn new(shop: &Shop, frames: FrameSender, caller: &Caller, lane: Lane) -> Self {
        Self {
            frames,
            packer: Packer::default(),
            stop: shop.stop.clone(),
            handle: Handle::current(),
            limit: shop.shared.limits.of(&caller.node),
            lane,
            press: Press::default(),
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
        let Some(mut frame) = self.packer.take_with_room() else {
            return Ok(());
        };
        if self.press.is_worth_trying() {
            let packed = compress(&frame);
            self.press.tried(packed.is_some());
            frame = packed.unwrap_or(frame);
        }
        let (begun, bytes) = (Instant::now(), frame.len());
        let (frames, stop) = (&self.frames, &self.stop);
        self.handle.block_on(async {
            let send = async {
                if let Some(limit) = &self.limit {
                    limit.wait(bytes, self.lane).await;
                }
                frames.send_with_room(frame).await
            };
            tokio::select! {
                sent = send => sent.map_err(|_| ShipError::Gone),
                () = stop.wait() => Err(ShipError::Closed),
            }
        })?;
        self.press.sent(bytes, begun.elapsed());
        Ok(())
    }
}

fn refusal(status: StatusCode, reason: String) -> Response {
    (status, reason).into_response()
}

/// Runs what ships on a thread that may block, and answers with what it sends.
fn stream(
    shop: &Shop,
    caller: &Caller,
    lane: Lane,
    ship: impl FnOnce(&mut Sender) -> Result<(), ShipError> + Send + 'static,
) -> Response {
    let (frames, response) = frames();
    let mut sender = Sender::new(shop, frames, caller, lane);
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

async fn snapshot(State(shop): State<Shop>, Extension(caller): Extension<Caller>) -> Response {
    let mut is_ready = shop.shared.is_ready.subscribe();
    let is_ready = tokio::select! {
        waited = tokio::time::timeout(READY_PATIENCE, is_ready.wait_for(|ready| *ready)) => {
            matches!(waited, Ok(Ok(_)))
        }
        // It will never be: the standby is to ask whoever serves the store now.
        () = shop.stop.wait() => false,
    };
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
        Ok(Ok(mut file)) => stream(&shop, &caller, Lane::Bulk, move |sender| {
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
    let manifest = &ledger.manifest;
    manifest.walk(TOP).try_for_each(|(depth, id)| {
        let name = manifest.name(id).to_vec();
        packer.note(&Note::Listed(depth, name, manifest.entry(id)))?;
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

async fn content(
    State(shop): State<Shop>,
    Extension(caller): Extension<Caller>,
    body: Bytes,
) -> Response {
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
    stream(&shop, &caller, Lane::Bulk, move |sender| {
        let root = Root::open(&shared.root).map_err(ShipError::Tree)?;
        for wanted in wanted {
            let of = (wanted.size, wanted.hash);
            send_content(sender, &shared, &root, &wanted.path, of, &wanted.part)?;
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

async fn log(
    State(shop): State<Shop>,
    Extension(caller): Extension<Caller>,
    Query(asked): Query<From>,
) -> Response {
    let shared = shop.shared.clone();
    let opened = tokio::task::spawn_blocking(move || open_log(&shared, &asked)).await;
    match opened {
        Ok(Ok(Some((reader, first)))) => {
            let shared = shop.shared.clone();
            stream(&shop, &caller, Lane::Fresh, move |sender| {
                follow(sender, &shared, reader, first)
            })
        }
        Ok(Ok(None)) => refusal(
            StatusCode::SERVICE_UNAVAILABLE,
            "the store is closed".to_owned(),
        ),
        Ok(Err(reason)) => refusal(StatusCode::GONE, reason),
        Err(error) => refusal(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    }
}

/// Where a stream of the log begins, and what was read of it already.
type Opened = (LogReader, Option<Record>);

/// Opens the log where the standby is; `None` when the store is closed. An error is the reason why it
/// has to compare everything.
fn open_log(shared: &Shared, asked: &From) -> Result<Option<Opened>, String> {
    let from = Position(asked.from);
    let mut reader = shared
        .log()
        .reader(from)
        .map_err(|error| error.to_string())?;
    let here = {
        let guard = shared.ledger();
        let Some(ledger) = guard.as_ref() else {
            // Whoever serves the store next knows how far it is.
            return Ok(None);
        };
        let head = ledger.head().cloned();
        head.filter(|head| head.position == from)
            .map(|head| head.root)
    };
    let (root, first) = match here {
        Some(root) => (root, None),
        None => match reader.next().map_err(|error| error.to_string())? {
            None => return Err(format!("position {from} has not been reached here")),
            Some(record) => match LogEntry::decode(&record.payload) {
                Ok(LogEntry::Batch(batch)) => (batch.before, Some(record)),
                Ok(LogEntry::Content(..) | LogEntry::Awaited(_)) | Err(_) => {
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
    Ok(Some((reader, first)))
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
            sender.flush_if_full()?;
        }
        sender.flush()?;
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
        let Operation::Put {
            path,
            entry,
            content,
        } = operation
        else {
            continue;
        };
        let Some(of) = entry.content() else { continue };
        let part = match content {
            Content::Whole if of.0 > ALONG_BYTES_MAX => {
                sender.packer.note(&Note::Deferred)?;
                continue;
            }
            Content::Whole => Part::From(0),
            Content::Patch(patch) => Part::Ranges(patch.literals().collect()),
            Content::Same | Content::Copy(_) | Content::Link(_) => continue,
        };
        if root.is_none() {
            root = Some(Root::open(&shared.root).map_err(ShipError::Tree)?);
        }
        if let Some(root) = &root {
            if matches!(content, Content::Whole) && is_sparse(root, path) {
                // Who asks for it by itself is told of its holes.
                sender.packer.note(&Note::Deferred)?;
                continue;
            }
            let holes = Holes::AsBytes;
            send_part(sender, shared, root, path, of, &part, holes)?;
        }
        sender.flush_if_full()?;
    }
    Ok(())
}

/// Returns whether a file has holes worth keeping.
fn is_sparse(root: &Root, path: &RelPath) -> bool {
    let has_holes = |size: u64, kept: u64| kept.saturating_add(HOLES_FROM) <= size;
    let found = root.stat(path);
    let Some(stat) = found
        .ok()
        .filter(|stat| has_holes(stat.stx_size, stat.stx_blocks.saturating_mul(512)))
    else {
        return false;
    };
    // A file system that compresses keeps fewer blocks, too.
    let data = root
        .file(path)
        .and_then(|file| data_ranges(&file, stat.stx_size));
    data.is_ok_and(|data| has_holes(stat.stx_size, data.iter().map(|(_, bytes)| bytes).sum()))
}

/// Sends what a standby has asked for.
fn send_content(
    sender: &mut Sender,
    shared: &Shared,
    root: &Root,
    path: &RelPath,
    of: (u64, Digest),
    part: &Part,
) -> Result<(), ShipError> {
    send_part(sender, shared, root, path, of, part, Holes::Told)?;
    sender.flush_if_full()
}

/// How holes of a file travel.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Holes {
    /// As zeros: what comes along with a batch says itself where holes are.
    AsBytes,
    /// By their length.
    Told,
}

/// Sends parts of a file, or that it is not what it was. Then the capture looks at it, and a later batch
/// brings the file, or it can be asked for again.
fn send_part(
    sender: &mut Sender,
    shared: &Shared,
    root: &Root,
    path: &RelPath,
    of: (u64, Digest),
    part: &Part,
    holes: Holes,
) -> Result<(), ShipError> {
    let grown_max = match holes {
        Holes::AsBytes => GROWN_ALONG_MAX,
        Holes::Told => GROWN_ASKED_MAX,
    };
    let is_whole = match root.file(path) {
        Ok(file) if is_still(shared, &file, path, of, Some(grown_max)) => {
            let sent = send_file(sender, &file, of.0, part, holes)?;
            sent && is_still(shared, &file, path, of, None)
        }
        Ok(_) | Err(_) => false,
    };
    if !is_whole {
        shared.is_superseded(path);
    }
    sender.packer.note(if is_whole {
        &Note::Complete
    } else {
        &Note::Superseded
    })?;
    Ok(())
}

/// A file that has grown since it was looked at is hashed up to this size before it is sent along, where the
/// standby takes five seconds of silence for a lost link;
const GROWN_ALONG_MAX: u64 = 64 << 20;
/// and where it was asked for, and waits for thirty.
const GROWN_ASKED_MAX: u64 = 1 << 30;

/// Returns whether an open file can still hold what it is known to hold.
///
/// It is hashed by the receiver, so that this is only to tell at once what would be found out later. A
/// file that was hashed within the tick of its last change is not known by how it looks. One that has grown
/// is hashed again, if that does not keep the standby waiting: up to `grown_max` bytes; `None` where that
/// has been done.
fn is_still(
    shared: &Shared,
    file: &File,
    path: &RelPath,
    of: (u64, Digest),
    grown_max: Option<u64>,
) -> bool {
    let Ok(found) = stat_fd(file.as_fd()).map(|stat| identity(&stat)) else {
        return false;
    };
    let guard = shared.ledger();
    let Some(manifest) = guard.as_ref().map(|ledger| &ledger.manifest) else {
        return false;
    };
    let Some(id) = manifest.lookup(path) else {
        return false;
    };
    if manifest.content(id) != Some(of) {
        return false;
    }
    let is_file = found.file_type() == FileType::RegularFile;
    let is_so = match manifest.local(id) {
        Local::Seen(seen) if !seen.is_unsettled() => manifest.looks(id, &found),
        Local::Seen(_) | Local::Unknown | Local::Awaited => is_file && found.size == of.0,
    };
    drop(guard);
    // A log that is never at rest still holds all that it held; what was written anew does not.
    let has_grown = is_file && found.size > of.0;
    is_so
        || has_grown
            && grown_max.is_none_or(|most| {
                of.0 <= most && hash_ranges(file, &[(0, of.0)]).is_ok_and(|hash| hash == of.1)
            })
}

/// Returns whether all of it was sent.
fn send_file(
    sender: &mut Sender,
    file: &File,
    size: u64,
    part: &Part,
    holes: Holes,
) -> Result<bool, ShipError> {
    let ranges = match part {
        Part::From(from) => vec![(*from, size.saturating_sub(*from))],
        Part::Ranges(ranges) => ranges.clone(),
    };
    let data = match holes {
        Holes::Told => match stat_fd(file.as_fd()) {
            Ok(stat) if stat.stx_blocks.saturating_mul(512) < size => data_ranges(file, size).ok(),
            Ok(_) | Err(_) => None,
        },
        Holes::AsBytes => None,
    };
    for (offset, length) in ranges {
        let end = offset.saturating_add(length);
        if end > size {
            return Ok(false);
        }
        let Some(data) = &data else {
            if !send_bytes(sender, file, offset, end)? {
                return Ok(false);
            }
            continue;
        };
        let mut at = offset;
        let first = data.partition_point(|(start, length)| start.saturating_add(*length) <= at);
        for (start, length) in data
            .iter()
            .skip(first)
            .take_while(|(start, _)| *start < end)
        {
            let stop = start.saturating_add(*length).min(end);
            let start = (*start).max(at);
            if start > at {
                sender.packer.note(&Note::Hole(start - at))?;
            }
            if !send_bytes(sender, file, start, stop)? {
                return Ok(false);
            }
            at = stop;
        }
        if end > at {
            sender.packer.note(&Note::Hole(end - at))?;
        }
    }
    Ok(true)
}

fn send_bytes(sender: &mut Sender, file: &File, from: u64, to: u64) -> Result<bool, ShipError> {
    let mut at = from;
    while at < to {
        let wanted = usize::try_from(to - at)
            .unwrap_or(usize::MAX)
            .min(CHUNK_BYTES_MAX);
        if sender.packer.chunk_of(file, at, wanted).is_err() {
            return Ok(false);
        }
        sender.flush_if_full()?;
        at = at.saturating_add(u64::try_from(wanted).unwrap_or(u64::MAX));
    }
    Ok(true)
}
