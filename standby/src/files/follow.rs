//! Following the primary's log.
//!
//! ```text
//! connection ─▶ logger (thread) ─▶ log ─▶ applier (thread) ─▶ tree
//!                                           fetcher ─▶ what did not come along
//! ```

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::mpsc;
use understudy_replication::error_chain;
use understudy_replication::event::Severity;
use understudy_replication::files::Digest;
use understudy_replication::files::wire::SILENCE_MAX;
use understudy_replication::position::Position;
use understudy_replication::store::{NoProgress, Stop};
use understudy_replication::transport::{FrameReader, PeerClient, PeerError};

use super::error::FilesError;
use super::logger::Logger;
use super::{Following, Inner, Work, blocking, check, fetch, seed};

/// Frames between the connection and the thread that writes.
pub(super) const FRAMES_WAITING_MAX: usize = 4;

/// How often the trash is looked through.
const SWEEP_INTERVAL: Duration = Duration::from_secs(60);

/// Follows until told to stop or until it fails. A copy that cannot follow is compared whole.
pub(super) async fn follow(
    inner: &Arc<Inner>,
    work: &Work,
    primary: &PeerClient,
    stop: &Stop,
) -> Result<(), FilesError> {
    loop {
        let (opened, held) = (inner.clone(), work.clone());
        let at = blocking(move || {
            let _held = held;
            reopen(&opened)
        });
        let at = at.await?;
        let Some((position, root)) = at else {
            inner.told(|told| told.must_reseed = true);
            tokio::select! {
                seeded = seed::seed(inner, work, primary, &NoProgress) => {
                    seeded?;
                }
                () = stop.wait() => return Ok(()),
            }
            continue;
        };
        let path = format!("/store/{}/log?from={position}&root={root}", inner.id.name);
        let response = tokio::select! {
            response = primary.get(&path) => response,
            () = stop.wait() => return Ok(()),
        };
        let frames = match response {
            Ok(response) => response.frames(),
            Err(PeerError::Refused { status, reason, .. }) if status.as_u16() == 410 => {
                must_compare(inner, &reason);
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        return stream((inner, work), primary, stop, frames, (position, root)).await;
    }
}

/// Receives, applies and fetches beside each other, until one of them cannot go on.
async fn stream(
    (inner, work): (&Arc<Inner>, &Work),
    primary: &PeerClient,
    stop: &Stop,
    mut frames: FrameReader,
    (position, root): (Position, Digest),
) -> Result<(), FilesError> {
    let opened = inner.clone();
    let logger = blocking(move || {
        let mut replica = opened.replica();
        let parts = (replica.log.clone(), replica.blocks());
        drop(replica);
        Logger::new(&opened, parts, root)
    })
    .await?;
    inner.flow.change(|state| {
        state.logged = position;
        state.applied = position;
        state.held = None;
        state.is_ended = false;
        state.is_stopped = false;
        state.has_failed = false;
    });
    let (sender, receiver) = mpsc::channel(FRAMES_WAITING_MAX);
    let (logging, applying) = (inner.clone(), inner.clone());
    let (logs, applies) = (work.clone(), work.clone());
    let _following = Following(inner);
    let logger = tokio::task::spawn_blocking(move || {
        let _held = logs;
        let logged = logger.run(receiver);
        if logged.as_ref().is_err_and(|error| !error.is_of_link()) {
            logging.suspect();
        }
        logging.flow.change(|state| state.is_ended = true);
        logged
    });
    let applier = tokio::task::spawn_blocking(move || {
        let _held = applies;
        applying.apply_all()
    });
    let receive = async {
        loop {
            let frame = match tokio::time::timeout(SILENCE_MAX, frames.next()).await {
                Ok(Ok(Some(frame))) => frame,
                Ok(Ok(None)) => return Err(FilesError::Ended),
                Ok(Err(error)) => return Err(error.into()),
                Err(_) => {
                    return Err(FilesError::Silent {
                        seconds: SILENCE_MAX.as_secs(),
                    });
                }
            };
            if sender.send(frame).await.is_err() {
                // The logger has failed, and says why.
                return Ok(());
            }
        }
    };
    let sweep = async {
        loop {
            let swept = inner.clone();
            if let Err(error) = blocking(move || swept.sweep(false)).await {
                tracing::warn!(error = error_chain(&error), "cannot empty the trash");
            }
            tokio::time::sleep(SWEEP_INTERVAL).await;
        }
    };
    let received = tokio::select! {
        received = receive => received,
        fetched = fetch::fetch_always(inner, work, primary) => fetched,
        () = inner.failed() => Ok(()),
        () = sweep => Ok(()),
        settled = check::settle(inner, work) => settled,
        () = stop.wait() => {
            inner.flow.change(|state| state.is_stopped = true);
            Ok(())
        }
    };
    drop(sender);
    let logged = logger.await.map_err(|_| FilesError::Broken)?;
    // What has come whole is still applied, unless this is to end.
    let applied = applier.await.map_err(|_| FilesError::Broken)?;
    let is_unfit = |error: &FilesError| {
        matches!(
            error,
            FilesError::Diverged { .. } | FilesError::Misfit(_) | FilesError::Record(_)
        )
    };
    if let Some(error) = [&logged, &applied]
        .into_iter()
        .filter_map(|done| done.as_ref().err())
        .find(|error| is_unfit(error))
    {
        must_compare(inner, &error_chain(error));
    }
    if logged.as_ref().is_err_and(FilesError::is_full) {
        let full = inner.clone();
        tokio::task::spawn_blocking(move || full.empty_trash())
            .await
            .map_err(|_| FilesError::Broken)?;
    }
    // A mistake of the applier is the reason of what the others then say.
    applied?;
    match logged {
        Err(FilesError::Stopped) if stop.is_stopped() => {}
        logged => logged?,
    }
    if stop.is_stopped() { Ok(()) } else { received }
}

/// The head is not forgotten: what is seeded has to know what the tree was.
fn must_compare(inner: &Inner, reason: &str) {
    inner.must_compare.store(true, Ordering::Relaxed);
    inner.told(|told| told.must_reseed = true);
    inner.events.record(
        Severity::Warning,
        "files_compare",
        format!(
            "store {} cannot go on from the log and is compared whole: {reason}",
            inner.id.name
        ),
    );
}

/// Makes sure that what is held is what is on the disk (an attempt that failed may have left it ahead of
/// the log), applies what is durable, and returns where to go on; `None` if everything has to be
/// compared.
fn reopen(inner: &Inner) -> Result<Option<(Position, Digest)>, FilesError> {
    inner.reload_if_suspect()?;
    let mut replica = inner.replica();
    if replica.ledger.head().is_none() || inner.must_compare.load(Ordering::Relaxed) {
        return Ok(None);
    }
    // Never made: a top that is missing is a disk that is not mounted.
    std::fs::metadata(&inner.root).map_err(FilesError::tree("open", &inner.root))?;
    let is_gone = !inner.root.join(".understudy").exists() && !replica.ledger.manifest.is_empty();
    if is_gone && std::fs::read_dir(&inner.root).is_ok_and(|mut entries| entries.next().is_none()) {
        return Err(FilesError::NotMounted {
            path: inner.root.clone(),
        });
    }
    replica.open_tree()?;
    match inner.recover(&mut replica) {
        Ok(()) => {}
        Err(
            error @ (FilesError::Diverged { .. }
            | FilesError::Misfit(_)
            | FilesError::Log(_)
            | FilesError::Record(_)),
        ) if !error.is_full() => {
            must_compare(inner, &error_chain(&error));
            drop(replica);
            inner.reload()?;
            return Ok(None);
        }
        Err(error) => {
            inner.suspect();
            return Err(error);
        }
    }
    inner.tell(&replica);
    let head = replica.ledger.head().cloned().ok_or(FilesError::Broken)?;
    Ok(Some((head.position, head.root)))
}
