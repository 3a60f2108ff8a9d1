//! Answers a standby that compares its old data directory with ours.
//!
//! | route beneath `/store/postgres/reseed` | what |
//! |---|---|
//! | `POST /begin` | begins a backup |
//! | `GET /{backup}/files` | a stream of what the copy consists of; an empty list is its end |
//! | `POST /{backup}/differences` | a stream of the blocks that differ |
//! | `POST /{backup}/alive` | nothing, but that the standby is there |
//! | `POST /{backup}/end` | ends the backup |

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Json, Router};
use understudy_replication::error_chain;
use understudy_replication::postgres::reseed::{
    BLOCK_BYTES, Begun, Change, ClusterPath, Entry, Found, Piece, REQUEST_BYTES_MAX, decode_pieces,
    digest, encode, is_copied, is_relation_of,
};
use understudy_replication::transport::{Caller, FrameSender, frames};

use super::PostgresShipper;
use super::backups::{Backup, BackupError, SILENCE};

/// So many entries of the list go into a frame.
const ENTRIES_PER_FRAME: usize = 2000;

/// A frame of differences is sent when it has so many bytes: few enough that a slow link, or a limit, does
/// not look like silence.
const FRAME_BYTES: usize = 256 << 10;

/// The file that says what all others mean: it is read until it stands still.
const CONTROL: &str = "global/pg_control";

/// A standby that does not take a frame for this long has vanished.
const SEND_PATIENCE: Duration = Duration::from_secs(120);

pub(super) fn routes() -> Router<Arc<PostgresShipper>> {
    Router::new()
        .route("/reseed/begin", post(begin))
        .route("/reseed/{backup}/files", get(files))
        .route(
            "/reseed/{backup}/differences",
            post(differences).layer(DefaultBodyLimit::max(REQUEST_BYTES_MAX)),
        )
        .route("/reseed/{backup}/alive", post(alive))
        .route("/reseed/{backup}/end", post(end))
}

impl IntoResponse for BackupError {
    fn into_response(self) -> Response {
        let status = match self {
            Self::Over => StatusCode::GONE,
            Self::Postgres(_)
            | Self::Busy
            | Self::NoSlot { .. }
            | Self::SlotLost { .. }
            | Self::Directories { .. } => StatusCode::SERVICE_UNAVAILABLE,
        };
        (status, error_chain(&self)).into_response()
    }
}

async fn begin(
    State(shipper): State<Arc<PostgresShipper>>,
    Extension(caller): Extension<Caller>,
) -> Result<Json<Begun>, BackupError> {
    let backup = shipper
        .backups
        .begin(&shipper.cluster, &caller.node)
        .await?;
    Ok(Json(Begun {
        backup: backup.id(),
        silence_seconds: SILENCE.as_secs(),
        log_folder: backup.log_folder.clone(),
    }))
}

async fn alive(
    State(shipper): State<Arc<PostgresShipper>>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<u64>,
) -> Result<Json<()>, BackupError> {
    shipper.backups.find(&caller.node, id).map(|_| Json(()))
}

async fn end(
    State(shipper): State<Arc<PostgresShipper>>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<u64>,
) -> Response {
    match shipper.backups.end(&caller.node, id).await {
        Ok(ended) => Json(ended).into_response(),
        Err(error) => error.into_response(),
    }
}

async fn files(
    State(shipper): State<Arc<PostgresShipper>>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<u64>,
) -> Result<Response, BackupError> {
    let backup = shipper.backups.find(&caller.node, id)?;
    Ok(stream(backup, |sender| {
        let mut entries = Vec::new();
        walk(&sender.backup.clone(), &mut |entry| {
            entries.push(entry);
            if entries.len() < ENTRIES_PER_FRAME {
                return Ok(());
            }
            sender.send(&std::mem::take(&mut entries))
        })?;
        if !entries.is_empty() {
            sender.send(&entries)?;
        }
        // A list that has broken off has no end.
        sender.send::<Entry>(&[])
    }))
}

async fn differences(
    State(shipper): State<Arc<PostgresShipper>>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<u64>,
    body: Bytes,
) -> Result<Response, Response> {
    let found = shipper.backups.find(&caller.node, id);
    let backup = found.map_err(IntoResponse::into_response)?;
    let pieces = decode_pieces(&body)
        .map_err(|error| (StatusCode::BAD_REQUEST, error_chain(&error)).into_response())?;
    Ok(stream(backup, move |sender| {
        for (number, piece) in (0..).zip(&pieces) {
            compare(sender, number, piece)?;
        }
        sender.flush()
    }))
}

/// Why a stream breaks off.
#[derive(Debug, thiserror::Error)]
enum StreamError {
    #[error("the standby has gone away")]
    Gone,
    #[error("cannot read {path}")]
    Read { path: String, source: io::Error },
}

/// Sends frames from a thread that may block.
struct Sender {
    frames: FrameSender,
    handle: tokio::runtime::Handle,
    backup: Arc<Backup>,
    changes: Vec<Change>,
    waiting_bytes: usize,
}

/// Runs what sends on a thread that may block, and answers with what it sends. It ends when the standby goes
/// away, or does not take anything for too long.
fn stream(
    backup: Arc<Backup>,
    work: impl FnOnce(&mut Sender) -> Result<(), StreamError> + Send + 'static,
) -> Response {
    let (frames, response) = frames();
    let mut sender = Sender {
        frames,
        handle: tokio::runtime::Handle::current(),
        backup,
        changes: Vec::new(),
        waiting_bytes: 0,
    };
    tokio::task::spawn_blocking(move || match work(&mut sender) {
        Ok(()) | Err(StreamError::Gone) => {}
        Err(error @ StreamError::Read { .. }) => {
            tracing::warn!(
                error = error_chain(&error),
                "a comparison for a standby broke off"
            );
        }
    });
    response
}

impl Sender {
    fn send<T: serde::Serialize>(&self, list: &[T]) -> Result<(), StreamError> {
        let frame = encode(list);
        self.handle.block_on(async {
            self.backup.wait(frame.len()).await;
            self.backup.touch();
            tokio::time::timeout(SEND_PATIENCE, self.frames.send(&frame))
                .await
                .map_err(|_| StreamError::Gone)?
                .map_err(|_| StreamError::Gone)
        })
    }

    fn change(&mut self, change: Change) -> Result<(), StreamError> {
        let bytes = match &change {
            Change::Bytes { bytes, .. } => bytes.len(),
            Change::Done { .. } => 16,
        };
        self.waiting_bytes = self.waiting_bytes.saturating_add(bytes);
        self.changes.push(change);
        if self.waiting_bytes >= FRAME_BYTES {
            self.flush()
        } else {
            Ok(())
        }
    }

    fn flush(&mut self) -> Result<(), StreamError> {
        if self.changes.is_empty() {
            return Ok(());
        }
        self.waiting_bytes = 0;
        let changes = std::mem::take(&mut self.changes);
        self.send(&changes)
    }
}

/// Tells every file and directory of the copy, a directory before what is in it.
fn walk(
    backup: &Backup,
    tell: &mut dyn FnMut(Entry) -> Result<(), StreamError>,
) -> Result<(), StreamError> {
    let tablespaces: BTreeMap<String, u32> = backup
        .roots
        .tablespaces()
        .map(|oid| (format!("pg_tblspc/{oid}"), oid))
        .collect();
    let mut ahead: Vec<Option<ClusterPath>> = vec![None];
    while let Some(directory) = ahead.pop() {
        let listed = match backup.roots.list(directory.as_ref()) {
            Ok(listed) => listed,
            // Dropped meanwhile, which the log says too.
            Err(error) if error.kind() == io::ErrorKind::NotFound && directory.is_some() => {
                continue;
            }
            Err(source) => {
                let path = directory.map_or_else(|| ".".to_owned(), String::from);
                return Err(StreamError::Read { path, source });
            }
        };
        let unlogged: BTreeSet<String> = listed
            .iter()
            .filter_map(|(path, _)| path.name().strip_suffix("_init").map(str::to_owned))
            .collect();
        for (path, found) in listed {
            let is_unlogged =
                is_relation_of(path.name()).is_some_and(|number| unlogged.contains(number));
            if !is_copied(&path) || is_unlogged || backup.log_folder.as_ref() == Some(&path) {
                continue;
            }
            match found {
                Found::File(size) => tell(Entry {
                    path,
                    size: Some(size),
                })?,
                Found::Directory => {
                    tell(Entry {
                        path: path.clone(),
                        size: None,
                    })?;
                    ahead.push(Some(path));
                }
                Found::Other if tablespaces.contains_key(path.as_str()) => {
                    if let Ok(path) = path.child(&backup.version_folder) {
                        tell(Entry {
                            path: path.clone(),
                            size: None,
                        })?;
                        ahead.push(Some(path));
                    }
                }
                // As pg_basebackup does; pg_wal may be a link, and is nothing of the copy.
                Found::Other => tracing::debug!(%path, "not a file, and not copied"),
            }
        }
    }
    Ok(())
}

/// Sends what the standby lacks of a piece.
fn compare(sender: &mut Sender, number: u32, piece: &Piece) -> Result<(), StreamError> {
    let failed = |source| StreamError::Read {
        path: piece.path.to_string(),
        source,
    };
    // Only what is listed is shown, whoever asks.
    if !is_copied(&piece.path) {
        return sender.change(Change::Done {
            piece: number,
            end: None,
        });
    }
    let file = match sender.backup.roots.read(&piece.path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return sender.change(Change::Done {
                piece: number,
                end: None,
            });
        }
        Err(source) => return Err(failed(source)),
    };
    if piece.path.as_str() == CONTROL {
        let bytes = still(&file).map_err(failed)?;
        let end = u64::try_from(bytes.len())
            .unwrap_or(u64::MAX)
            .min(piece.bytes);
        let bytes = bytes
            .into_iter()
            .take(usize::try_from(end).unwrap_or(usize::MAX))
            .collect();
        sender.change(Change::Bytes {
            piece: number,
            offset: 0,
            bytes,
        })?;
        return sender.change(Change::Done {
            piece: number,
            end: Some(end),
        });
    }
    let piece_end = piece.offset.saturating_add(piece.bytes);
    let mut offset = piece.offset;
    let mut digests = piece.digests.iter();
    let mut block = vec![0; usize::try_from(BLOCK_BYTES).unwrap_or(usize::MAX)];
    // Neighbours that differ are one change.
    let mut run: Option<(u64, Vec<u8>)> = None;
    let tell = |sender: &mut Sender, run: &mut Option<(u64, Vec<u8>)>| match run.take() {
        Some((offset, bytes)) => sender.change(Change::Bytes {
            piece: number,
            offset,
            bytes,
        }),
        None => Ok(()),
    };
    while offset < piece_end {
        let wanted = usize::try_from((piece_end - offset).min(BLOCK_BYTES)).unwrap_or(usize::MAX);
        let read =
            read_at(&file, block.get_mut(..wanted).unwrap_or_default(), offset).map_err(failed)?;
        let content = block.get(..read).unwrap_or_default();
        if content.is_empty() {
            break;
        }
        if digests.next() == Some(&digest(content)) {
            tell(sender, &mut run)?;
        } else {
            let (_, bytes) = run.get_or_insert_with(|| (offset, Vec::new()));
            bytes.extend_from_slice(content);
            if bytes.len() >= FRAME_BYTES {
                tell(sender, &mut run)?;
            }
        }
        offset = offset.saturating_add(u64::try_from(read).unwrap_or(u64::MAX));
        if read < wanted {
            break;
        }
    }
    tell(sender, &mut run)?;
    let end = if offset < piece_end {
        // It may end before the piece begins.
        Some(file.metadata().map_err(failed)?.len().min(offset))
    } else {
        Some(piece_end)
    };
    sender.change(Change::Done { piece: number, end })
}

/// Reads as much as there is, up to the length of `buffer`.
fn read_at(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut done = 0;
    while let Some(rest) = buffer.get_mut(done..).filter(|rest| !rest.is_empty()) {
        let at = offset.saturating_add(u64::try_from(done).unwrap_or(u64::MAX));
        match file.read_at(rest, at) {
            Ok(0) => break,
            Ok(read) => done = done.saturating_add(read),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

/// Reads a small file that may be overwritten meanwhile, until two readings are equal.
fn still(file: &File) -> io::Result<Vec<u8>> {
    const TRIES: usize = 100;
    let read = || -> io::Result<Vec<u8>> {
        let mut content = vec![0; 64 << 10];
        let length = read_at(file, &mut content, 0)?;
        content.truncate(length);
        Ok(content)
    };
    let mut before = read()?;
    for _ in 0..TRIES {
        let content = read()?;
        if content == before {
            return Ok(content);
        }
        before = content;
    }
    Err(io::Error::other("it never stands still"))
}
