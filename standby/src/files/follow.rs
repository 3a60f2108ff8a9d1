//! Following the primary's log.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::mpsc;
use understudy_replication::error_chain;
use understudy_replication::event::Severity;
use understudy_replication::files::wire::{Message, Note, SILENCE_MAX, unpack};
use understudy_replication::store::{NoProgress, Stop};
use understudy_replication::transport::{PeerClient, PeerError};

use super::error::FilesError;
use super::incoming::{Assembly, Progressed};
use super::{Inner, blocking, seed};

/// Frames between the connection and the thread that writes.
const FRAMES_WAITING_MAX: usize = 4;

/// Follows until told to stop or until it fails. A copy that cannot follow is compared whole.
pub(super) async fn follow(
    inner: &Arc<Inner>,
    primary: &PeerClient,
    stop: &Stop,
) -> Result<(), FilesError> {
    loop {
        let opened = inner.clone();
        let at = blocking(move || reopen(&opened)).await?;
        let Some((position, root)) = at else {
            inner.told(|told| told.must_reseed = true);
            tokio::select! {
                seeded = seed::seed(inner, primary, &NoProgress) => seeded?,
                () = stop.wait() => return Ok(()),
            }
            continue;
        };
        let path = format!("/store/{}/log?from={position}&root={root}", inner.id.name);
        let response = tokio::select! {
            response = primary.get(&path) => response,
            () = stop.wait() => return Ok(()),
        };
        let mut frames = match response {
            Ok(response) => response.frames(),
            Err(PeerError::Refused { status, reason, .. }) if status.as_u16() == 410 => {
                must_compare(inner, &reason);
                tokio::select! {
                    seeded = seed::seed(inner, primary, &NoProgress) => seeded?,
                    () = stop.wait() => return Ok(()),
                }
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        let (sender, receiver) = mpsc::channel(FRAMES_WAITING_MAX);
        let writing = inner.clone();
        let writer = tokio::task::spawn_blocking(move || write(&writing, receiver));
        let received = loop {
            let frame = tokio::select! {
                frame = tokio::time::timeout(SILENCE_MAX, frames.next()) => frame,
                () = stop.wait() => break Ok(true),
            };
            let frame = match frame {
                Ok(Ok(Some(frame))) => frame,
                Ok(Ok(None)) => break Err(FilesError::Ended),
                Ok(Err(error)) => break Err(error.into()),
                Err(_) => {
                    break Err(FilesError::Silent {
                        seconds: SILENCE_MAX.as_secs(),
                    });
                }
            };
            tokio::select! {
                sent = sender.send(frame) => if sent.is_err() {
                    break Ok(false);
                },
                () = stop.wait() => break Ok(true),
            }
        };
        // What has come whole is still applied.
        drop(sender);
        let written = writer.await.map_err(|_| FilesError::Broken)?;
        match written {
            Ok(()) => {}
            Err(FilesError::Diverged { position }) => {
                let error = FilesError::Diverged { position };
                must_compare(inner, &error.to_string());
                let forgotten = inner.clone();
                blocking(move || Ok(forgotten.replica().ledger.forget_head()?)).await?;
                continue;
            }
            Err(error) => {
                let text = format!("store {}: {}", inner.id.name, error_chain(&error));
                inner.told(|told| told.stalled = Some(text.clone()));
                if let FilesError::Damaged { .. } = error {
                    inner.events.record(Severity::Error, "files_damaged", text);
                }
                return Err(error);
            }
        }
        if received? {
            return Ok(());
        }
    }
}

fn must_compare(inner: &Inner, reason: &str) {
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

/// Reads the copy's state from the disk (an attempt that failed may have left it ahead of the log),
/// applies what is durable, and returns where to go on; `None` if everything has to be compared.
fn reopen(inner: &Inner) -> Result<Option<(String, String)>, FilesError> {
    inner.reload()?;
    let mut replica = inner.replica();
    let Some(head) = replica.ledger.head().cloned() else {
        return Ok(None);
    };
    // Never made: a top that is missing is a disk that is not mounted.
    std::fs::metadata(&inner.root).map_err(FilesError::tree("open", &inner.root))?;
    let is_gone = !inner.root.join(".understudy").exists() && !replica.ledger.manifest.is_empty();
    if is_gone && std::fs::read_dir(&inner.root).is_ok_and(|mut entries| entries.next().is_none()) {
        return Err(FilesError::NotMounted {
            path: inner.root.clone(),
        });
    }
    replica.open_tree()?;
    match replica.recover() {
        Ok(()) => {}
        Err(error @ (FilesError::Diverged { .. } | FilesError::Log(_) | FilesError::Record(_))) => {
            must_compare(inner, &error_chain(&error));
            replica.ledger.forget_head()?;
            return Ok(None);
        }
        Err(error) => return Err(error),
    }
    inner.tell(&replica);
    let head = replica.ledger.head().cloned().unwrap_or(head);
    Ok(Some((head.position.to_string(), head.root.to_string())))
}

/// Makes durable and visible what comes.
fn write(inner: &Inner, mut frames: mpsc::Receiver<Bytes>) -> Result<(), FilesError> {
    let mut replica = inner.replica();
    let mut assembly = Assembly::default();
    while let Some(mut frame) = frames.blocking_recv() {
        while let Some(message) = unpack(&mut frame)? {
            match message {
                Message::Note(Note::Hello { epoch, .. }) => {
                    replica.set_epoch(&epoch)?;
                    inner.told(|told| told.must_reseed = false);
                }
                // Only what has been done shows that it can be done.
                Message::Note(Note::Heartbeat { .. }) => inner.told(|told| told.stalled = None),
                message @ (Message::Chunk(_) | Message::Batch(_) | Message::Note(_)) => {
                    match assembly.take(&mut replica, message)? {
                        Progressed::No => {}
                        Progressed::Flushed(flushed) => {
                            if flushed.is_some() {
                                inner.told(|told| told.flushed = flushed);
                            }
                            assembly.apply(&mut replica)?;
                            inner.tell(&replica);
                        }
                    }
                }
            }
        }
    }
    Ok(())
}
