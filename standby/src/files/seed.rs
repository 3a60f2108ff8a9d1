//! Seeding: makes the tree equal to the primary's, from whatever is there.
//!
//! ```text
//! may we? ─▶ snapshot ─▶ walk, compare ─▶ directories, links ─▶ contents: stage, sync, rename
//!                                    ─▶ what the primary does not have ─▶ table, position
//! ```
//! The table stands for nothing meanwhile. What was fetched is remembered on the way, so that an
//! interrupted seeding goes on where it was: the tree itself tells what is done.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;
use understudy_replication::event::Severity;
use understudy_replication::files::wire::{Message, Note, SILENCE_MAX, WANTED_MAX, Wanted, unpack};
use understudy_replication::files::{Entry, Head, Kind, Known, Manifest, RelPath};
use understudy_replication::position::Position;
use understudy_replication::store::{Progress, Unit};
use understudy_replication::transport::{FrameReader, PeerClient, PeerError};

use super::error::FilesError;
use super::incoming::Incoming;
use super::origin::Origin;
use super::survey::{self, Plan};
use super::{Inner, blocking};

/// Contents are asked for in groups of this many bytes, or of one file.
const GROUP_BYTES_MAX: u64 = 16 << 20;

/// A primary that has to read a cold disk may take this long for the next piece.
const CONTENT_PATIENCE: Duration = Duration::from_secs(30);

/// How long a primary that is still looking at its files is asked again.
const READY_PATIENCE: Duration = Duration::from_secs(600);

/// Frames between the connection and the thread that writes.
const FRAMES_WAITING_MAX: usize = 4;

pub(super) async fn seed(
    inner: &Arc<Inner>,
    primary: &PeerClient,
    progress: &dyn Progress,
) -> Result<(), FilesError> {
    let checked = inner.clone();
    blocking(move || begin(&checked)).await?;
    let (mut target, head) = snapshot(inner, primary).await?;
    let surveyed = inner.clone();
    progress.start("comparing files", None, Unit::Items);
    let (manifest, plan) = blocking(move || {
        let plan = shape(&surveyed, &target);
        plan.map(|plan| (std::mem::take(&mut target), plan))
    })
    .await?;
    progress.end(&format!(
        "{} of {} files to fetch",
        plan.fetched.len(),
        manifest.len()
    ));
    let mut target = manifest;
    let total = plan.bytes();
    progress.start("fetching files", Some(total), Unit::Bytes);
    let mut done = 0_u64;
    let Plan { fetched, extra, .. } = plan;
    for group in groups(fetched) {
        let placed = fetch(inner, primary, group, &mut done, total, progress).await?;
        for (path, known) in placed {
            target.learn(&path, known.local);
        }
    }
    progress.end("done");
    let finished = inner.clone();
    blocking(move || finish(&finished, target, head, &extra)).await
}

/// Makes sure that nothing is harmed which no seeding has made.
fn begin(inner: &Inner) -> Result<(), FilesError> {
    let mut replica = inner.replica();
    let device = std::fs::metadata(&inner.root).ok().map(|found| found.dev());
    let is_empty = match std::fs::read_dir(&inner.root) {
        Ok(mut entries) => entries.all(|entry| {
            entry.is_ok_and(|entry| {
                entry.file_name() == ".understudy" || entry.file_name() == "lost+found"
            })
        }),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => true,
        Err(error) => return Err(FilesError::tree("read", &inner.root)(error)),
    };
    let origin = Origin::load(&inner.state)?;
    // A node that has held this store, as a standby or as the primary, has a head.
    let was_held = origin.is_some() || replica.ledger.head().is_some();
    if !is_empty && !was_held {
        return Err(FilesError::NotEmpty {
            store: inner.id.name.clone(),
            path: inner.root.clone(),
        });
    }
    if let Some(origin) = &origin
        && is_empty
        && device.is_some_and(|device| device != origin.device)
    {
        return Err(FilesError::NotMounted {
            path: inner.root.clone(),
        });
    }
    replica.open_tree()?;
    let kept = match &origin {
        Some(origin) => origin.kept.clone(),
        None if is_empty => None,
        None => replica
            .ledger
            .head()
            .map(|head| format!("{}-{}", head.epoch, head.position)),
    };
    if let Some(name) = &kept {
        if let Some(tree) = &mut replica.tree {
            tree.keep(name)
                .map_err(FilesError::tree("keep files of", &inner.root))?;
        }
        inner.events.record(
            Severity::Warning,
            "files_kept",
            format!(
                "store {}: this node was its primary; what the new primary lacks is kept in {}",
                inner.id.name,
                inner.root.join(".understudy/kept").join(name).display()
            ),
        );
    }
    let device = std::fs::metadata(&inner.root)
        .map_err(FilesError::tree("read", &inner.root))?
        .dev();
    // Before the head is forgotten: an interrupted seeding goes on as what it was.
    Origin { device, kept }.store(&inner.state)?;
    replica.ledger.forget_head()?;
    inner.tell(&replica);
    Ok(())
}

/// Reads the primary's manifest.
async fn snapshot(
    inner: &Arc<Inner>,
    primary: &PeerClient,
) -> Result<(Manifest, Head), FilesError> {
    let path = format!("/store/{}/snapshot", inner.id.name);
    let begun = tokio::time::Instant::now();
    let response = loop {
        match primary.get_within(&path, CONTENT_PATIENCE).await {
            Err(PeerError::Refused { status, .. })
                if status.as_u16() == 503 && begun.elapsed() < READY_PATIENCE =>
            {
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            response => break response?,
        }
    };
    let mut frames = response.frames();
    let mut manifest = Manifest::default();
    let mut announced = None;
    loop {
        let mut frame = next(&mut frames, CONTENT_PATIENCE).await?;
        while let Some(message) = unpack(&mut frame)? {
            match (message, &announced) {
                (
                    Message::Note(Note::Snapshot {
                        epoch,
                        position,
                        root,
                        entries,
                        ..
                    }),
                    None,
                ) => {
                    let head = Head {
                        epoch,
                        position,
                        complete: position,
                        root,
                    };
                    announced = Some((head, entries));
                }
                (Message::Note(Note::Entry(path, entry)), Some(_)) => {
                    if !entry.is_valid() || manifest.get(&path).is_some() {
                        return Err(FilesError::Snapshot);
                    }
                    let _none = manifest.insert(&path, Known { entry, local: None })?;
                }
                (Message::Note(Note::End), Some((head, entries))) => {
                    let count = u64::try_from(manifest.len()).unwrap_or(u64::MAX);
                    if count != *entries || manifest.root() != head.root {
                        return Err(FilesError::Snapshot);
                    }
                    return Ok((manifest, head.clone()));
                }
                (other, _) => return Err(other.unexpected("an entry").into()),
            }
        }
    }
}

async fn next(frames: &mut FrameReader, patience: Duration) -> Result<Bytes, FilesError> {
    match tokio::time::timeout(patience, frames.next()).await {
        Ok(frame) => frame?.ok_or(FilesError::Ended),
        Err(_) => Err(FilesError::Silent {
            seconds: SILENCE_MAX.as_secs(),
        }),
    }
}

/// Compares, makes directories and links, and adjusts what is held already.
fn shape(inner: &Inner, target: &Manifest) -> Result<Plan, FilesError> {
    let mut replica = inner.replica();
    replica.open_tree()?;
    let found = survey::walk(&inner.root, &inner.exclude)?;
    let plan = {
        let tree = replica.tree()?;
        tree.clear_staging()
            .map_err(FilesError::tree("clear the staging of", &inner.root))?;
        survey::plan(tree, &found, &replica.ledger.manifest, target)?
    };
    let tree = replica.tree()?;
    let mut known = Vec::new();
    for (path, entry) in &plan.shapes {
        let place = || inner.root.join(path.as_path());
        match &entry.kind {
            Kind::Directory => {
                tree.place_directory(path, entry)
                    .map_err(FilesError::tree("make", place()))?;
            }
            Kind::Symlink { target } => {
                let placed = tree.place_symlink(path, entry, target);
                placed.map_err(FilesError::tree("link", place()))?;
            }
            Kind::File { .. } => {}
        }
        known.push((
            path.clone(),
            Known {
                entry: entry.clone(),
                local: None,
            },
        ));
    }
    for (path, entry) in &plan.held {
        let place = inner.root.join(path.as_path());
        let local = tree
            .set_attributes(path, entry)
            .map_err(FilesError::tree("change", place))?;
        known.push((
            path.clone(),
            Known {
                entry: entry.clone(),
                local: Some(local),
            },
        ));
    }
    for some in known.chunks(1000) {
        replica.ledger.keep_aside(some)?;
    }
    // What is held is known from here on by the manifest: `finish` asks it.
    let mut manifest = Manifest::default();
    for (path, known) in known {
        // A file in a directory that is not there yet is looked at again at the end.
        let _misfit = manifest.insert(&path, known).is_err();
    }
    replica.ledger.manifest = manifest;
    Ok(plan)
}

fn groups(fetched: Vec<(RelPath, Entry)>) -> Vec<Vec<(RelPath, Entry)>> {
    let mut groups = Vec::new();
    let mut group = Vec::new();
    let mut bytes = 0_u64;
    for (path, entry) in fetched {
        let size = entry.content().map_or(0, |(size, _)| size);
        if !group.is_empty()
            && (bytes.saturating_add(size) > GROUP_BYTES_MAX || group.len() >= WANTED_MAX / 4)
        {
            groups.push(std::mem::take(&mut group));
            bytes = 0;
        }
        bytes = bytes.saturating_add(size);
        group.push((path, entry));
    }
    if !group.is_empty() {
        groups.push(group);
    }
    groups
}

/// Fetches a group of contents and puts them into their places.
async fn fetch(
    inner: &Arc<Inner>,
    primary: &PeerClient,
    group: Vec<(RelPath, Entry)>,
    done: &mut u64,
    total: u64,
    progress: &dyn Progress,
) -> Result<Vec<(RelPath, Known)>, FilesError> {
    let wanted: Vec<Wanted> = group
        .iter()
        .filter_map(|(path, entry)| {
            let (size, hash) = entry.content()?;
            Some(Wanted {
                path: path.clone(),
                size,
                hash,
            })
        })
        .collect();
    let body = postcard::to_stdvec(&wanted)?;
    let path = format!("/store/{}/content", inner.id.name);
    let mut frames = primary
        .post(&path, body.into(), CONTENT_PATIENCE)
        .await?
        .frames();
    let (sender, receiver) = mpsc::channel(FRAMES_WAITING_MAX);
    let writing = inner.clone();
    let writer = tokio::task::spawn_blocking(move || write(&writing, group, receiver));
    let received = loop {
        let frame = match tokio::time::timeout(CONTENT_PATIENCE, frames.next()).await {
            Ok(Ok(Some(frame))) => frame,
            Ok(Ok(None)) => break Ok(()),
            Ok(Err(error)) => break Err(error.into()),
            Err(_) => {
                break Err(FilesError::Silent {
                    seconds: CONTENT_PATIENCE.as_secs(),
                });
            }
        };
        *done = done
            .saturating_add(u64::try_from(frame.len()).unwrap_or(0))
            .min(total);
        progress.at(*done);
        if sender.send(frame).await.is_err() {
            // The writer has failed, and says why.
            break Ok(());
        }
    };
    drop(sender);
    let written = writer.await.map_err(|_| FilesError::Broken)?;
    received.and(written)
}

/// Stages what comes, syncs it, and only then renames it into place.
fn write(
    inner: &Inner,
    group: Vec<(RelPath, Entry)>,
    mut frames: mpsc::Receiver<Bytes>,
) -> Result<Vec<(RelPath, Known)>, FilesError> {
    let mut replica = inner.replica();
    let tree = replica.tree()?;
    let mut staged = Vec::new();
    let mut waiting = group.into_iter();
    let mut current: Option<((RelPath, Entry), String, Incoming)> = None;
    let mut is_whole = false;
    let open = |file: Option<(RelPath, Entry)>, number: usize| match file {
        Some((path, entry)) => {
            let (size, hash) = entry.content().ok_or(FilesError::Broken)?;
            let name = format!("seed-{number}");
            let staged = tree
                .stage(&name)
                .map_err(FilesError::tree("stage", path.as_path()))?;
            let incoming = Incoming::new(path.clone(), size, hash, staged);
            Ok(Some(((path, entry), name, incoming)))
        }
        None => Ok::<_, FilesError>(None),
    };
    let mut number = 0_usize;
    let mut opened = false;
    while let Some(mut frame) = frames.blocking_recv() {
        while let Some(message) = unpack(&mut frame)? {
            if !opened {
                current = open(waiting.next(), number)?;
                opened = true;
            }
            match (message, current.take()) {
                (Message::Chunk(bytes), Some((file, name, mut incoming))) => {
                    incoming.add(&bytes)?;
                    current = Some((file, name, incoming));
                }
                (Message::Note(Note::Complete), Some((file, name, incoming))) => {
                    drop(incoming.finish()?);
                    staged.push((file, name));
                    number = number.saturating_add(1);
                    current = open(waiting.next(), number)?;
                }
                (Message::Note(Note::Superseded), Some((_, name, _))) => {
                    tree.unstage(&name);
                    number = number.saturating_add(1);
                    current = open(waiting.next(), number)?;
                }
                (Message::Note(Note::End), None) => is_whole = true,
                (other, _) => return Err(other.unexpected("a content").into()),
            }
        }
    }
    if !is_whole {
        return Err(FilesError::Ended);
    }
    let names: Vec<String> = staged.iter().map(|(_, name)| name.clone()).collect();
    tree.sync_staged(&names)
        .map_err(FilesError::tree("sync", &inner.root))?;
    let mut placed = Vec::with_capacity(staged.len());
    for ((path, entry), name) in staged {
        let place = inner.root.join(path.as_path());
        let local = tree
            .place_file(&name, &path, &entry)
            .map_err(FilesError::tree("write", place))?;
        placed.push((path, Known { entry, local }));
    }
    replica.ledger.keep_aside(&placed)?;
    Ok(placed)
}

/// Removes what the primary does not have, and lets the table stand for the snapshot.
fn finish(
    inner: &Inner,
    mut target: Manifest,
    head: Head,
    extra: &[RelPath],
) -> Result<(), FilesError> {
    let mut replica = inner.replica();
    for path in extra {
        let place = inner.root.join(path.as_path());
        replica
            .tree()?
            .remove(path)
            .map_err(FilesError::tree("remove", place))?;
    }
    let held: Vec<(RelPath, Known)> = replica.ledger.manifest.entries();
    for (path, known) in held {
        if target
            .get(&path)
            .is_some_and(|wanted| wanted.local.is_none() && wanted.entry == known.entry)
        {
            target.learn(&path, known.local);
        }
    }
    let entries = target.entries();
    let is_complete = !entries.iter().any(|(_, known)| known.is_awaited());
    let directories: BTreeSet<RelPath> = entries
        .into_iter()
        .filter(|(_, known)| known.entry.is_directory())
        .map(|(path, _)| path)
        .collect();
    let complete = if is_complete {
        head.position
    } else {
        Position(0)
    };
    let old = std::mem::replace(&mut replica.ledger.manifest, target.clone());
    replica.set_directory_times(&directories)?;
    let tree = replica.tree()?;
    tree.sync().map_err(FilesError::tree("sync", &inner.root))?;
    replica.ledger.manifest = old;
    replica.ledger.replace(target, Head { complete, ..head })?;
    replica.find_awaited();
    // From here on it is a copy that a seeding has made, whatever it was.
    let device = std::fs::metadata(&inner.root)
        .map_err(FilesError::tree("read", &inner.root))?
        .dev();
    Origin { device, kept: None }.store(&inner.state)?;
    replica.tree = None;
    inner.tell(&replica);
    Ok(())
}
