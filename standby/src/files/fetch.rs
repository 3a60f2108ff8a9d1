//! Bringing what is awaited: contents that did not come along with their batch, and entries that could
//! not be put into their places.
//!
//! Short files in one lane and long ones in another, each on a connection of its own beside the log, so
//! that no fresh change waits behind a bulk of old ones. Long files are staged by their hash, and go on
//! at the byte where they broke off.

use std::collections::BTreeSet;
use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;
use understudy_replication::error_chain;
use understudy_replication::files::wire::{Message, Note, Part, WANTED_BYTES_MAX, Wanted, unpack};
use understudy_replication::files::{Digest, Local, NodeId, RelPath};
use understudy_replication::position::Position;
use understudy_replication::transport::PeerClient;

use super::applier::set_directory_times;
use super::content::{Hashing, hash_prefix, write_at};
use super::error::{FilesError, Setback};
use super::follow::FRAMES_WAITING_MAX;
use super::place::{Placing, SYNCED_SINGLY_MAX};
use super::replica::{Replica, bulk_name};
use super::sync_behind::SyncBehind;
use super::trash::Trash;
use super::tree::Tree;
use super::{Inner, Work, blocking};

/// Contents are asked for in groups of this many bytes, or of one file.
const GROUP_BYTES_MAX: u64 = 16 << 20;

/// Or this many files.
const GROUP_FILES_MAX: usize = 256;

/// A part of a file from this size on is kept when the rest does not come.
const RESUMED_FROM: u64 = 1 << 20;

/// How many are chosen at once.
const CHOSEN_MAX: usize = 4096;

/// How many directories and links are placed with the replica locked.
const SHAPES_MAX: usize = 1000;

/// How long nothing is looked for when there was nothing to do.
const IDLE: Duration = Duration::from_secs(1);

/// A primary that has to read a cold disk may take this long for the next piece.
const CONTENT_PATIENCE: Duration = Duration::from_secs(30);

/// A content that is to be fetched.
#[derive(Clone, Debug)]
struct Wish {
    path: RelPath,
    size: u64,
    hash: Digest,
}

/// A content that is here and whole.
struct Fetched {
    wish: Wish,
    file: File,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Lane {
    Short,
    Long,
}

/// Fetches until dropped; an error is one of this side.
pub(super) async fn fetch_always(
    inner: &Arc<Inner>,
    work: &Work,
    primary: &PeerClient,
) -> Result<(), FilesError> {
    tokio::select! {
        fetched = fetch_lane((inner, work), primary, Lane::Short) => fetched,
        fetched = fetch_lane((inner, work), primary, Lane::Long) => fetched,
    }
}

async fn fetch_lane(
    (inner, work): (&Arc<Inner>, &Work),
    primary: &PeerClient,
    lane: Lane,
) -> Result<(), FilesError> {
    loop {
        let notified = inner.work.notified();
        let (choosing, held) = (inner.clone(), work.clone());
        let wishes = blocking(move || {
            let _held = held;
            choosing.choose(lane)
        });
        let wishes = wishes.await?;
        if wishes.is_empty() {
            let _either = tokio::time::timeout(IDLE, notified).await.is_ok();
            continue;
        }
        for group in groups(wishes) {
            match fetch_group((inner, work), primary, group).await {
                Ok(()) => {}
                Err(error) if error.is_of_link() => {
                    tracing::debug!(error = error_chain(&error), "cannot fetch contents now");
                    tokio::time::sleep(IDLE).await;
                    break;
                }
                Err(error) => {
                    inner.suspect();
                    return Err(error);
                }
            }
        }
    }
}

fn groups(wishes: Vec<Wish>) -> Vec<Vec<Wish>> {
    let mut groups: Vec<Vec<Wish>> = Vec::new();
    let (mut bytes, mut paths) = (0_u64, 0_usize);
    for wish in wishes {
        bytes = bytes.saturating_add(wish.size);
        paths = paths.saturating_add(wish.path.as_bytes().len() + 80);
        match groups.last_mut() {
            Some(group)
                if bytes <= GROUP_BYTES_MAX
                    && paths <= WANTED_BYTES_MAX
                    && group.len() < GROUP_FILES_MAX =>
            {
                group.push(wish);
            }
            Some(_) | None => {
                (bytes, paths) = (wish.size, wish.path.as_bytes().len() + 80);
                groups.push(vec![wish]);
            }
        }
    }
    groups
}

impl Inner {
    /// Places what needs no content, and returns what is to be fetched, shortest first.
    fn choose(&self, lane: Lane) -> Result<Vec<Wish>, FilesError> {
        if self.flow.lock().awaited == 0 {
            return Ok(Vec::new());
        }
        let mut replica = self.sound_replica()?;
        if lane == Lane::Short {
            self.awaiting.prune(&replica);
            let placed = self.place_shapes(&mut replica);
            if placed.is_err() {
                self.suspect();
            }
            placed?;
        }
        let manifest = &replica.ledger.manifest;
        let mut files: Vec<(u64, NodeId)> = manifest
            .awaited()
            .filter_map(|id| manifest.content(id).map(|(size, _)| (size, id)))
            .filter(|(size, _)| (*size <= GROUP_BYTES_MAX) == (lane == Lane::Short))
            .collect();
        files.sort_unstable();
        let mut hashes = BTreeSet::new();
        let mut wishes = Vec::new();
        for (size, id) in files {
            let (Some(path), Some((_, hash))) = (manifest.path(id), manifest.content(id)) else {
                continue;
            };
            // Names of one file are placed when one of them is there.
            let link = manifest.link(id);
            let is_first = link == 0
                || manifest.linked(link).find(|name| {
                    manifest.is_awaited(*name) && manifest.content(*name) == Some((size, hash))
                }) == Some(id);
            if is_first && self.awaiting.is_due(&path, Some(hash)) && hashes.insert(hash) {
                wishes.push(Wish { path, size, hash });
            }
            if wishes.len() >= CHOSEN_MAX {
                break;
            }
        }
        Ok(wishes)
    }

    /// Directories, symbolic links, and further names of files that are there.
    fn place_shapes(&self, replica: &mut Replica) -> Result<(), FilesError> {
        let manifest = &replica.ledger.manifest;
        let mut shapes: Vec<(RelPath, NodeId, Option<RelPath>)> = Vec::new();
        for id in manifest.awaited() {
            let source = match manifest.content(id) {
                None => None,
                Some(content) => {
                    let mut names = manifest.linked(manifest.link(id));
                    let source = names.find(|name| {
                        manifest.inode(*name).is_some() && manifest.content(*name) == Some(content)
                    });
                    let Some(source) = source.and_then(|source| manifest.path(source)) else {
                        continue;
                    };
                    Some(source)
                }
            };
            let Some(path) = manifest.path(id) else {
                continue;
            };
            let hash = manifest.content(id).map(|(_, hash)| hash);
            if self.awaiting.is_due(&path, hash) {
                shapes.push((path, id, source));
            }
        }
        if shapes.is_empty() {
            return Ok(());
        }
        // Parents first.
        shapes.sort_unstable_by(|a, b| a.0.cmp(&b.0));
        shapes.truncate(SHAPES_MAX);
        replica.open_tree()?;
        let blocks = replica.blocks();
        let tree = replica.tree.as_ref().ok_or(FilesError::Broken)?;
        let mut trash = Trash::of(self.trash, Position(0));
        let mut placing = Placing::new(tree, &blocks, &mut trash, (false, self.is_trusted()));
        let manifest = &mut replica.ledger.manifest;
        let mut learned = Vec::new();
        let mut directories = BTreeSet::new();
        for (path, id, source) in shapes {
            let entry = manifest.entry(id);
            let placed = match &source {
                None => placing.put_shape(&path, &entry),
                Some(from) => placing.put_link(&path, &entry, from, manifest.get(from).as_ref()),
            };
            match placed {
                Ok(local) if !local.is_awaited() => {
                    manifest.learn(id, local);
                    learned.push((path, local));
                    directories.insert(id);
                    directories.insert(manifest.parent(id));
                }
                Ok(_) => {
                    // The name that it should be another of has changed: then it is asked for.
                    if let Some(from) = source
                        && let Some(id) = manifest.lookup(&from)
                    {
                        manifest.learn(id, Local::Awaited);
                        learned.push((from, Local::Awaited));
                    }
                }
                Err(Setback::Entry(reason)) => {
                    let hash = entry.content().map(|(_, hash)| hash);
                    self.entry_failed(&path, hash, reason);
                    placing.has_doubt = true;
                    placing.lose_parents(manifest, &path, &mut learned)?;
                }
                Err(Setback::Store(error)) => return Err(error),
            }
        }
        if placing.has_doubt {
            replica.raise_doubt()?;
        }
        self.keep(replica, &directories, learned)
    }

    /// Makes what was placed durable, then what was learned of it.
    pub(super) fn keep(
        &self,
        replica: &mut Replica,
        directories: &BTreeSet<NodeId>,
        mut learned: Vec<(RelPath, Local)>,
    ) -> Result<(), FilesError> {
        if set_directory_times(replica, directories, &mut learned)? {
            replica.raise_doubt()?;
        }
        self.sync(replica.tree()?)?;
        for (path, local) in &learned {
            if local.seen().is_some() {
                self.awaiting.settled(path);
            }
        }
        replica.commit_learned(learned)?;
        self.tell(replica);
        Ok(())
    }

    /// Puts what has come into its place, where that is still wanted.
    fn place_fetched(&self, fetched: Vec<Fetched>) -> Result<(), FilesError> {
        if fetched.is_empty() {
            return Ok(());
        }
        let synced = if fetched.len() > SYNCED_SINGLY_MAX {
            let root = File::open(&self.root).map_err(FilesError::tree("open", &self.root))?;
            rustix::fs::syncfs(&root).map_err(std::io::Error::from)
        } else {
            fetched.iter().try_for_each(|done| done.file.sync_data())
        };
        if synced.is_err() {
            self.has_lost_writes.store(true, Ordering::Relaxed);
        }
        synced.map_err(FilesError::tree("sync", &self.root))?;
        let mut locked = self.sound_replica()?;
        let replica = &mut *locked;
        replica.open_tree()?;
        let blocks = replica.blocks();
        let tree = replica.tree.as_ref().ok_or(FilesError::Broken)?;
        let mut trash = Trash::of(self.trash, Position(0));
        let mut placing = Placing::new(tree, &blocks, &mut trash, (false, self.is_trusted()));
        let manifest = &mut replica.ledger.manifest;
        let mut learned = Vec::new();
        let mut directories = BTreeSet::new();
        for Fetched { wish, file } in fetched {
            let name = bulk_name(wish.hash);
            let id = manifest.lookup(&wish.path).filter(|id| {
                manifest.is_awaited(*id) && manifest.content(*id) == Some((wish.size, wish.hash))
            });
            let Some(id) = id else {
                tree.unstage(&name);
                continue;
            };
            match placing.put_staged(&wish.path, &manifest.entry(id), &name, &file) {
                Ok(local) => {
                    manifest.learn(id, local);
                    learned.push((wish.path, local));
                    directories.insert(manifest.parent(id));
                }
                Err(Setback::Entry(reason)) => {
                    self.entry_failed(&wish.path, Some(wish.hash), reason);
                    placing.has_doubt = true;
                    placing.lose_parents(manifest, &wish.path, &mut learned)?;
                }
                Err(Setback::Store(error)) => return Err(error),
            }
        }
        if placing.has_doubt {
            replica.raise_doubt()?;
        }
        self.keep(replica, &directories, learned)
    }

    /// Uses what is there already. Looked at without the replica, so that nobody waits for it.
    fn adopt_wished(&self, wishes: Vec<Wish>) -> Result<Vec<Wish>, FilesError> {
        if !self.is_trusted() {
            return Ok(wishes);
        }
        let tree = Tree::open(&self.root).map_err(FilesError::tree("open", &self.root))?;
        let mut left = Vec::new();
        let mut held = Vec::new();
        for wish in wishes {
            match tree.verify(&wish.path, wish.size, wish.hash) {
                Ok(Some(found)) => held.push((wish, found)),
                // What cannot be read is replaced.
                Ok(None) | Err(_) => left.push(wish),
            }
        }
        if held.is_empty() {
            return Ok(left);
        }
        let mut replica = self.sound_replica()?;
        let mut learned = Vec::new();
        let mut directories = BTreeSet::new();
        let manifest = &mut replica.ledger.manifest;
        for (wish, found) in held {
            let id = manifest.lookup(&wish.path).filter(|id| {
                manifest.is_awaited(*id) && manifest.content(*id) == Some((wish.size, wish.hash))
            });
            let Some(id) = id else { continue };
            if tree.look(&wish.path).ok().flatten() != Some(found) {
                continue;
            }
            if manifest.link(id) == 0 && tree.is_shared(&wish.path).unwrap_or(true) {
                // To be a file of its own, it is made anew.
                left.push(wish);
                continue;
            }
            match tree.dress(&wish.path, &manifest.entry(id)) {
                Ok(found) => {
                    manifest.learn(id, Local::Seen(found));
                    learned.push((wish.path, Local::Seen(found)));
                    directories.insert(manifest.parent(id));
                }
                Err(error) => {
                    let reason = format!("cannot change it: {error}");
                    self.entry_failed(&wish.path, Some(wish.hash), reason);
                }
            }
        }
        replica.open_tree()?;
        self.keep(&mut replica, &directories, learned)?;
        Ok(left)
    }
}

/// A content that comes.
struct Coming {
    wish: Wish,
    file: File,
    hashing: Hashing,
}

/// Fetches a group of contents and puts them into their places.
async fn fetch_group(
    (inner, work): (&Arc<Inner>, &Work),
    primary: &PeerClient,
    wishes: Vec<Wish>,
) -> Result<(), FilesError> {
    let (preparing, held) = (inner.clone(), work.clone());
    let coming = blocking(move || {
        let _held = held;
        let wishes = preparing.adopt_wished(wishes)?;
        let failed = FilesError::tree("open", &preparing.root);
        let tree = Tree::open(&preparing.root).map_err(failed)?;
        let coming = wishes
            .into_iter()
            .map(|wish| prepare(&tree, wish, preparing.is_trusted()));
        coming.collect::<Result<Vec<_>, _>>()
    })
    .await?;
    if coming.is_empty() {
        return Ok(());
    }
    let wanted = coming.iter().map(|coming| Wanted {
        path: coming.wish.path.clone(),
        size: coming.wish.size,
        hash: coming.wish.hash,
        part: Part::From(coming.hashing.count()),
    });
    let body = postcard::to_stdvec(&wanted.collect::<Vec<_>>())?;
    let path = format!("/store/{}/content", inner.id.name);
    let response = primary.post(&path, body.into(), CONTENT_PATIENCE).await?;
    let mut frames = response.frames();
    let (sender, receiver) = mpsc::channel(FRAMES_WAITING_MAX);
    let (writing, held) = (inner.clone(), work.clone());
    let writer = tokio::task::spawn_blocking(move || {
        let _held = held;
        write(&writing, coming, receiver)
    });
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
        if sender.send(frame).await.is_err() {
            // The writer has failed, and says why.
            break Ok(());
        }
    };
    drop(sender);
    writer.await.map_err(|_| FilesError::Broken)??;
    received
}

/// Opens where a content is staged; what is there of an attempt before counts.
fn prepare(tree: &Tree, wish: Wish, is_trusted: bool) -> Result<Coming, FilesError> {
    let failed = || FilesError::tree("stage", wish.path.as_path());
    let name = bulk_name(wish.hash);
    let mut hashing = Hashing::of_file(wish.size);
    let file = match tree.staged(&name).map_err(failed())? {
        Some(file) if wish.size >= RESUMED_FROM && is_trusted => {
            let length = file.metadata().map_err(failed())?.len().min(wish.size);
            file.set_len(length).map_err(failed())?;
            hash_prefix(&file, length, &mut hashing).map_err(failed())?;
            file
        }
        Some(_) | None => tree.stage(&name).map_err(failed())?,
    };
    Ok(Coming {
        wish,
        file,
        hashing,
    })
}

/// Stages what comes, and places what has come whole, even if the rest does not.
fn write(
    inner: &Inner,
    coming: Vec<Coming>,
    mut frames: mpsc::Receiver<Bytes>,
) -> Result<(), FilesError> {
    let mut fetched = Vec::new();
    let mut behind = SyncBehind::of_files();
    let written = write_frames(inner, coming, &mut frames, &mut fetched, &mut behind);
    if let Err(error) = behind.finish() {
        // Who syncs next is not told again.
        inner.has_lost_writes.store(true, Ordering::Relaxed);
        return Err(FilesError::tree("sync", &inner.root)(error));
    }
    inner.place_fetched(fetched)?;
    written
}

fn write_frames(
    inner: &Inner,
    coming: Vec<Coming>,
    frames: &mut mpsc::Receiver<Bytes>,
    fetched: &mut Vec<Fetched>,
    behind: &mut SyncBehind,
) -> Result<(), FilesError> {
    let blocks = inner.replica().blocks();
    let mut waiting = coming.into_iter();
    let mut current = waiting.next();
    while let Some(mut frame) = frames.blocking_recv() {
        while let Some(message) = unpack(&mut frame)? {
            let Some(mut at) = current.take() else {
                return match message {
                    Message::Note(Note::End) => Ok(()),
                    other @ (Message::Chunk(_) | Message::Batch(_) | Message::Note(_)) => {
                        Err(other.unexpected("the end").into())
                    }
                };
            };
            let left = at.wish.size.saturating_sub(at.hashing.count());
            match message {
                Message::Chunk(bytes) if u64::try_from(bytes.len()).is_ok_and(|n| n <= left) => {
                    let offset = at.hashing.count();
                    let written = write_at(&at.file, at.wish.size, &bytes, offset);
                    written.map_err(FilesError::tree("stage", at.wish.path.as_path()))?;
                    let count = u64::try_from(bytes.len()).unwrap_or(0);
                    let begun = behind.wrote(&at.file, count);
                    begun.map_err(FilesError::tree("stage", at.wish.path.as_path()))?;
                    at.hashing.update(&bytes);
                    current = Some(at);
                }
                Message::Note(Note::Hole(bytes)) if bytes <= left => {
                    at.hashing.zeros(bytes);
                    let grown = at.file.set_len(at.hashing.count());
                    grown.map_err(FilesError::tree("stage", at.wish.path.as_path()))?;
                    current = Some(at);
                }
                Message::Note(Note::Complete) => {
                    let Coming {
                        wish,
                        file,
                        hashing,
                    } = at;
                    let (found, outboard) = hashing.finish();
                    if left == 0 && found == wish.hash {
                        if let Some(outboard) = outboard {
                            blocks.put(wish.hash, &outboard);
                        }
                        fetched.push(Fetched { wish, file });
                    } else {
                        inner.content_damaged(&wish.path);
                        give_up(inner, &wish)?;
                    }
                    current = waiting.next();
                }
                Message::Note(Note::Superseded) => {
                    give_up(inner, &at.wish)?;
                    current = waiting.next();
                }
                other @ (Message::Chunk(_) | Message::Batch(_) | Message::Note(_)) => {
                    return Err(other.unexpected("a content").into());
                }
            }
        }
    }
    Err(FilesError::Ended)
}

/// The primary does not have it now: a later batch brings another, or it is asked for again.
fn give_up(inner: &Inner, wish: &Wish) -> Result<(), FilesError> {
    inner.awaiting.failed(&wish.path, Some(wish.hash), None);
    let tree = Tree::open(&inner.root).map_err(FilesError::tree("open", &inner.root))?;
    tree.unstage(&bulk_name(wish.hash));
    Ok(())
}
