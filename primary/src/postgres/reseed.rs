//! Answers a standby that compares its old data directory with ours.
//!
//! | route beneath `/store/postgres/reseed` | what |
//! |---|---|
//! | `POST /begin` | begins a backup |
//! | `GET /{backup}/files` | a stream of what the copy consists of; an empty list is its end |
//! | `POST /{backup}/differences` | a stream of the blocks that differ |
//! | `POST /{backup}/alive` | nothing, but that the standby is there |
//! | `POST /{backup}/end` | ends the backup |

use std::io;
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
    Begun, Change, Entry, REQUEST_BYTES_MAX, decode_pieces, encode,
};
use understudy_replication::transport::{Caller, FrameSender, frames};

use super::PostgresShipper;
use super::backups::{Backup, BackupError, SILENCE};
use super::compare::{compare, walk};

/// So many entries of the list go into a frame.
const ENTRIES_PER_FRAME: usize = 2000;

/// A frame of differences is sent when it has so many bytes: few enough that a slow link, or a limit, does
/// not look like silence.
pub(super) const FRAME_BYTES: usize = 256 << 10;

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
            Self::TooMany => StatusCode::TOO_MANY_REQUESTS,
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
    let place = backup.stream()?;
    Ok(stream(backup, move |sender| {
        let _place = place;
        list(sender)
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
    let place = backup.stream().map_err(IntoResponse::into_response)?;
    let pieces = decode_pieces(&body)
        .map_err(|error| (StatusCode::BAD_REQUEST, error_chain(&error)).into_response())?;
    Ok(stream(backup, move |sender| {
        let _place = place;
        for (number, piece) in (0..).zip(&pieces) {
            compare(sender, number, piece)?;
        }
        sender.flush()
    }))
}

/// Sends the list of files.
pub(super) fn list(sender: &mut Sender) -> Result<(), StreamError> {
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
}

/// Why a stream breaks off.
#[derive(Debug, thiserror::Error)]
pub(super) enum StreamError {
    #[error("the standby has gone away")]
    Gone,
    #[error("cannot read {path}")]
    Read { path: String, source: io::Error },
}

/// Sends frames from a thread that may block.
pub(super) struct Sender {
    frames: FrameSender,
    handle: tokio::runtime::Handle,
    pub(super) backup: Arc<Backup>,
    changes: Vec<Change>,
    waiting_bytes: usize,
}

/// Runs what sends on a thread that may block, and answers with what it sends. It ends when the standby goes
/// away, or does not take anything for too long.
pub(super) fn stream(
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

    pub(super) fn change(&mut self, change: Change) -> Result<(), StreamError> {
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

    pub(super) fn flush(&mut self) -> Result<(), StreamError> {
        if self.changes.is_empty() {
            return Ok(());
        }
        self.waiting_bytes = 0;
        let changes = std::mem::take(&mut self.changes);
        self.send(&changes)
    }
}
