//! Fetching the contents of a seeding.
//!
//! ```text
//! groups in the order of the tree ─▶ several requests ─▶ two threads that write, each a whole group
//! ```
//! What is asked for next is on its way while the one before is written.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use rustix::fs::{AtFlags, Mode, OFlags, openat, unlinkat};
use rustix::io::Errno;
use tokio::sync::{mpsc, oneshot};
use understudy_replication::files::wire::{Message, Note, Part, WANTED_BYTES_MAX, Wanted, unpack};
use understudy_replication::files::{Blocks, Digest, Entry, Known, Local, NodeId, RelPath};
use understudy_replication::store::{Progress, Unit};
use understudy_replication::transport::PeerClient;

use super::attributes::dress_made;
use super::content::{Hashing, write_at};
use super::error::{FilesError, Setback};
use super::follow::FRAMES_WAITING_MAX;
use super::place::SYNCED_SINGLY_MAX;
use super::seed::{CONTENT_PATIENCE, Seeding, next};
use super::survey::Found;
use super::sync_behind::SyncBehind;
use super::tree::Guarded;
use super::{Inner, Work, blocking};

/// Contents are asked for in groups of this many bytes, or of one file.
const GROUP_BYTES_MAX: u64 = 4 << 20;

/// Or this many files.
const GROUP_FILES_MAX: usize = 500;

/// How many threads write.
const WRITERS: usize = 2;

/// A file that is to be made.
struct Task {
    id: NodeId,
    path: RelPath,
    entry: Entry,
    size: u64,
    hash: Digest,
    /// Another one is there.
    is_replaced: bool,
}

impl Task {
    /// Returns how much there is to write to the disk because of it: of a small file, its inode and its
    /// name as well.
    fn disk_bytes(&self) -> u64 {
        self.size.saturating_add(4096)
    }
}

/// A group whose contents are coming.
struct Job {
    tasks: Vec<Task>,
    frames: mpsc::Receiver<Bytes>,
    done: oneshot::Sender<Result<Vec<(NodeId, Local)>, FilesError>>,
}

/// What is to be fetched, group by group.
struct Groups {
    wanted: std::iter::Peekable<std::vec::IntoIter<(NodeId, bool)>>,
}

impl Groups {
    fn next(&mut self, seeding: &Seeding) -> Vec<Task> {
        let target = seeding.target();
        let mut tasks = Vec::new();
        let (mut bytes, mut paths) = (0_u64, 0_usize);
        while let Some((id, is_replaced)) = self.wanted.peek().copied() {
            let (Some((size, hash)), Some(path)) = (target.content(id), target.path(id)) else {
                self.wanted.next();
                continue;
            };
            bytes = bytes.saturating_add(size);
            paths = paths.saturating_add(path.as_bytes().len() + 80);
            let is_full = bytes > GROUP_BYTES_MAX
                || paths > WANTED_BYTES_MAX
                || tasks.len() >= GROUP_FILES_MAX;
            if is_full && !tasks.is_empty() {
                break;
            }
            self.wanted.next();
            tasks.push(Task {
                id,
                path,
                entry: target.entry(id),
                size,
                hash,
                is_replaced,
            });
        }
        tasks
    }
}

/// Fetches all that is `wanted`, and learns in the target how it looks; returns how much came, in bytes.
pub(super) async fn fetch(
    (inner, work): (&Arc<Inner>, &Work),
    primary: &PeerClient,
    seeding: &Arc<Seeding>,
    wanted: Vec<(NodeId, bool)>,
    progress: &dyn Progress,
) -> Result<u64, FilesError> {
    let total = {
        let target = seeding.target();
        let sizes = wanted.iter().filter_map(|(id, _)| target.content(*id));
        sizes.map(|(size, _)| size).sum()
    };
    progress.start("fetching files", Some(total), Unit::Bytes);
    let opened = inner.clone();
    let (blocks, top) = blocking(move || {
        let top = File::open(&opened.root).map_err(FilesError::tree("open", &opened.root))?;
        Ok((opened.replica().blocks(), Arc::new(top)))
    })
    .await?;
    let (sender, receiver) = mpsc::channel::<Job>(1);
    let receiver = Arc::new(Mutex::new(receiver));
    let writers: Vec<_> = (0..WRITERS)
        .map(|number| {
            let receiver = receiver.clone();
            let (inner, seeding, blocks) = (inner.clone(), seeding.clone(), blocks.clone());
            let top = top.clone();
            let held = work.clone();
            tokio::task::spawn_blocking(move || {
                let _held = held;
                let mut behind = SyncBehind::of_file_systems();
                loop {
                    let job = receiver
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .blocking_recv();
                    let Some(Job {
                        tasks,
                        mut frames,
                        done,
                    }) = job
                    else {
                        break;
                    };
                    let bytes = tasks.iter().map(Task::disk_bytes).sum();
                    let mut writer = Writer::new(&inner, &seeding, &blocks, number);
                    let written = writer.write(tasks, &mut frames);
                    let written = written.and_then(|learned| {
                        let begun = behind.wrote(&top, bytes);
                        begun.map_err(FilesError::tree("sync", &inner.root))?;
                        Ok(learned)
                    });
                    // Who asked may have gone, and then nobody wants to know.
                    let _gone = done.send(written).is_err();
                }
                behind.finish().map_err(|error| {
                    // Who syncs next is not told again.
                    inner.has_lost_writes.store(true, Ordering::Relaxed);
                    FilesError::tree("sync", &inner.root)(error)
                })
            })
        })
        .collect();
    let lanes = Lanes {
        inner,
        primary,
        seeding,
        groups: Mutex::new(Groups {
            wanted: wanted.into_iter().peekable(),
        }),
        done: AtomicU64::new(0),
        total,
        progress,
    };
    let fetched = tokio::try_join!(
        lanes.run(sender.clone()),
        lanes.run(sender.clone()),
        lanes.run(sender.clone()),
        lanes.run(sender),
    );
    for writer in writers {
        let synced = writer.await.map_err(|_| FilesError::Broken)?;
        synced?;
    }
    fetched?;
    progress.end("done");
    Ok(lanes.done.into_inner())
}

/// Requests that are under way beside each other.
struct Lanes<'a> {
    inner: &'a Inner,
    primary: &'a PeerClient,
    seeding: &'a Seeding,
    groups: Mutex<Groups>,
    done: AtomicU64,
    total: u64,
    progress: &'a dyn Progress,
}

impl Lanes<'_> {
    async fn run(&self, writers: mpsc::Sender<Job>) -> Result<(), FilesError> {
        loop {
            let tasks = {
                let mut groups = self.groups.lock().unwrap_or_else(PoisonError::into_inner);
                groups.next(self.seeding)
            };
            if tasks.is_empty() {
                return Ok(());
            }
            let wanted = tasks.iter().map(|task| Wanted {
                path: task.path.clone(),
                size: task.size,
                hash: task.hash,
                part: Part::From(0),
            });
            let body = postcard::to_stdvec(&wanted.collect::<Vec<_>>())?;
            let path = format!("/store/{}/content", self.inner.id.name);
            let response = self
                .primary
                .post(&path, body.into(), CONTENT_PATIENCE)
                .await?;
            let mut frames = response.frames();
            let (sender, receiver) = mpsc::channel(FRAMES_WAITING_MAX);
            let (done, learned) = oneshot::channel();
            let job = Job {
                tasks,
                frames: receiver,
                done,
            };
            writers.send(job).await.map_err(|_| FilesError::Broken)?;
            let received = loop {
                let frame = match next(&mut frames, CONTENT_PATIENCE).await {
                    Ok(frame) => frame,
                    Err(FilesError::Ended) => break Ok(()),
                    Err(error) => break Err(error),
                };
                let bytes = u64::try_from(frame.len()).unwrap_or(0);
                let done = self
                    .done
                    .fetch_add(bytes, Ordering::Relaxed)
                    .saturating_add(bytes);
                self.progress.at(done.min(self.total));
                if sender.send(frame).await.is_err() {
                    // The writer has failed, and says why.
                    break Ok(());
                }
            };
            drop(sender);
            let learned = learned.await.map_err(|_| FilesError::Broken)?;
            received?;
            let mut target = self.seeding.target();
            for (id, local) in learned? {
                target.learn(id, local);
            }
        }
    }
}

/// Writes one group at a time.
struct Writer<'a> {
    inner: &'a Inner,
    seeding: &'a Seeding,
    blocks: &'a Blocks,
    /// Tells the names apart that this thread stages.
    number: usize,
    staged: usize,
    parent: Option<(Option<RelPath>, OwnedFd)>,
    learned: Vec<(NodeId, Local)>,
    aside: Vec<(RelPath, Known)>,
    /// Whole, and not yet in their places.
    waiting: Vec<(Task, String, File)>,
}

/// A file that is being written.
struct Open {
    task: Task,
    /// The staged name; `None` where it is made under its own.
    staged: Option<String>,
    file: File,
    hashing: Hashing,
}

impl<'a> Writer<'a> {
    fn new(inner: &'a Inner, seeding: &'a Seeding, blocks: &'a Blocks, number: usize) -> Self {
        Self {
            inner,
            seeding,
            blocks,
            number,
            staged: 0,
            parent: None,
            learned: Vec::new(),
            aside: Vec::new(),
            waiting: Vec::new(),
        }
    }

    fn write(
        &mut self,
        tasks: Vec<Task>,
        frames: &mut mpsc::Receiver<Bytes>,
    ) -> Result<Vec<(NodeId, Local)>, FilesError> {
        let written = self.write_frames(tasks, frames);
        // What has come whole is kept even if the rest has not.
        self.place_waiting()?;
        let aside = std::mem::take(&mut self.aside);
        self.inner.replica().ledger.keep_aside(aside)?;
        written?;
        Ok(std::mem::take(&mut self.learned))
    }

    fn write_frames(
        &mut self,
        tasks: Vec<Task>,
        frames: &mut mpsc::Receiver<Bytes>,
    ) -> Result<(), FilesError> {
        let mut waiting = tasks.into_iter();
        let mut current = self.open_next(&mut waiting)?;
        while let Some(mut frame) = frames.blocking_recv() {
            while let Some(message) = unpack(&mut frame)? {
                let Some(mut open) = current.take() else {
                    return match message {
                        Message::Note(Note::End) => Ok(()),
                        other @ (Message::Chunk(_) | Message::Batch(_) | Message::Note(_)) => {
                            Err(other.unexpected("the end").into())
                        }
                    };
                };
                let left = open.task.size.saturating_sub(open.hashing.count());
                match message {
                    Message::Chunk(bytes)
                        if u64::try_from(bytes.len()).is_ok_and(|n| n <= left) =>
                    {
                        let at = open.hashing.count();
                        let written = write_at(&open.file, open.task.size, &bytes, at);
                        written.map_err(FilesError::tree("write", self.place(&open.task)))?;
                        open.hashing.update(&bytes);
                        current = Some(open);
                    }
                    Message::Note(Note::Hole(bytes)) if bytes <= left => {
                        open.hashing.zeros(bytes);
                        let grown = open.file.set_len(open.hashing.count());
                        grown.map_err(FilesError::tree("write", self.place(&open.task)))?;
                        current = Some(open);
                    }
                    Message::Note(Note::Complete) => {
                        self.finish(open)?;
                        current = self.open_next(&mut waiting)?;
                    }
                    Message::Note(Note::Superseded) => {
                        self.give_up(open)?;
                        current = self.open_next(&mut waiting)?;
                    }
                    other @ (Message::Chunk(_) | Message::Batch(_) | Message::Note(_)) => {
                        return Err(other.unexpected("a content").into());
                    }
                }
            }
        }
        if let Some(open) = current {
            self.give_up(open)?;
        }
        Err(FilesError::Ended)
    }

    fn place(&self, task: &Task) -> std::path::PathBuf {
        self.seeding.places.place(&task.path)
    }

    fn open_next(
        &mut self,
        waiting: &mut std::vec::IntoIter<Task>,
    ) -> Result<Option<Open>, FilesError> {
        let Some(task) = waiting.next() else {
            return Ok(None);
        };
        let places = &self.seeding.places;
        let place = self.place(&task);
        let hashing = Hashing::of_file(task.size);
        if places.is_fresh(&task.path) {
            let parent = self
                .parent(&task.path)
                .map_err(FilesError::tree("find", &place))?;
            let file = create(parent, task.path.name(), task.entry.mode);
            let file = file.map_err(FilesError::tree("make", &place))?;
            return Ok(Some(Open {
                task,
                staged: None,
                file,
                hashing,
            }));
        }
        let name = format!("seed-{}-{}", self.number, self.staged);
        self.staged = self.staged.saturating_add(1);
        let file = places
            .tree
            .stage(&name)
            .map_err(FilesError::tree("stage", &place))?;
        Ok(Some(Open {
            task,
            staged: Some(name),
            file,
            hashing,
        }))
    }

    fn parent(&mut self, path: &RelPath) -> std::io::Result<&OwnedFd> {
        let above = path.parent();
        if self.parent.as_ref().is_none_or(|(held, _)| *held != above) {
            let opened = self.seeding.places.root_of(path).parent(path)?;
            self.parent = Some((above, opened));
        }
        let (_, fd) = self.parent.as_ref().expect("it was just opened");
        Ok(fd)
    }

    fn finish(&mut self, open: Open) -> Result<(), FilesError> {
        let Open {
            task,
            staged,
            file,
            hashing,
        } = open;
        let count = hashing.count();
        let (found, outboard) = hashing.finish();
        if count != task.size || found != task.hash {
            self.inner.content_damaged(&task.path);
            let hashing = Hashing::plain();
            return self.give_up(Open {
                task,
                staged,
                file,
                hashing,
            });
        }
        if let Some(outboard) = outboard {
            self.blocks.put(task.hash, &outboard);
        }
        match staged {
            Some(name) => {
                self.waiting.push((task, name, file));
                if self.waiting.len() >= GROUP_FILES_MAX {
                    self.place_waiting()?;
                }
                Ok(())
            }
            None => {
                let ours = self.seeding.places.tree.ours();
                let dressed = dress_made(file.as_fd(), &task.entry, ours);
                let place = self.place(&task);
                self.learn(task, dressed.map_err(Setback::at("write", &place)))
            }
        }
    }

    /// What replaces something is made durable before.
    fn place_waiting(&mut self) -> Result<(), FilesError> {
        let places = &self.seeding.places;
        let failed = || FilesError::tree("sync", &self.inner.root);
        let replacing = self.waiting.iter().filter(|(task, ..)| task.is_replaced);
        if replacing.clone().count() > SYNCED_SINGLY_MAX {
            places.tree.sync().map_err(failed())?;
        } else {
            for (_, _, file) in replacing {
                file.sync_data().map_err(failed())?;
            }
        }
        for (task, name, file) in std::mem::take(&mut self.waiting) {
            let place = self.place(&task);
            let placed = match self.parent(&task.path) {
                Ok(parent) => places.tree.place_file(
                    (&name, &file),
                    parent.as_fd(),
                    &task.path,
                    &task.entry,
                    &Guarded::new(),
                ),
                Err(error) => Err(error),
            };
            self.learn(task, placed.map_err(Setback::at("write", &place)))?;
        }
        Ok(())
    }

    fn learn(
        &mut self,
        task: Task,
        placed: Result<understudy_replication::files::Identity, Setback>,
    ) -> Result<(), FilesError> {
        match placed {
            Ok(found) => {
                let local = Local::Seen(found);
                let entry = task.entry;
                self.learned.push((task.id, local));
                self.aside.push((task.path, Known { entry, local }));
                Ok(())
            }
            Err(Setback::Store(error)) => Err(error),
            Err(Setback::Entry(reason)) => {
                self.learned.push((task.id, Local::Awaited));
                self.inner.entry_failed(&task.path, Some(task.hash), reason);
                Ok(())
            }
        }
    }

    /// It comes when the copy is followed.
    fn give_up(&mut self, open: Open) -> Result<(), FilesError> {
        match &open.staged {
            Some(name) => self.seeding.places.tree.unstage(name),
            None => {
                let place = self.place(&open.task);
                let parent = self
                    .parent(&open.task.path)
                    .map_err(FilesError::tree("find", &place))?;
                let removed = unlinkat(parent, open.task.path.name(), AtFlags::empty());
                removed.map_err(FilesError::tree("remove", place))?;
            }
        }
        self.learned.push((open.task.id, Local::Awaited));
        Ok(())
    }
}

/// Makes a file in a directory that nobody else sees, so that it may have its permissions at once.
fn create(parent: &OwnedFd, name: &[u8], mode: u32) -> std::io::Result<File> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let make = || openat(parent, name, flags, Mode::from_raw_mode(mode & 0o777));
    match make() {
        Err(Errno::EXIST) => {
            super::tree::remove(parent.as_fd(), name)?;
            Ok(make()?.into())
        }
        made => Ok(made?.into()),
    }
}

/// Copies what is elsewhere in the tree already, after a rename for example; the rest stays wanted.
pub(super) fn copy_known(
    inner: &Inner,
    seeding: &Seeding,
    found: &mut Found,
) -> Result<(), FilesError> {
    if found.sources.is_empty() {
        return Ok(());
    }
    let places = &seeding.places;
    let blocks = inner.replica().blocks();
    let mut aside = Vec::new();
    let mut left = Vec::new();
    for (id, is_replaced) in std::mem::take(&mut found.wanted) {
        seeding.check_wanted()?;
        let (content, path, entry) = {
            let target = seeding.target();
            (target.content(id), target.path(id), target.entry(id))
        };
        let source = content.and_then(|(_, hash)| found.sources.get(&hash));
        let (Some(content), Some(path), Some(source)) = (content, path, source) else {
            left.push((id, is_replaced));
            continue;
        };
        let place = places.place(&path);
        let staged = places
            .tree
            .stage("copy")
            .map_err(FilesError::tree("stage", &place))?;
        let copied = super::place::copy(&places.tree, &blocks, source, &staged, content);
        if !copied.map_err(FilesError::tree("copy", &place))? {
            places.tree.unstage("copy");
            left.push((id, is_replaced));
            continue;
        }
        if is_replaced {
            staged
                .sync_data()
                .map_err(FilesError::tree("sync", &place))?;
        }
        let parent = places.root_of(&path).parent(&path);
        let parent = parent.map_err(FilesError::tree("find", &place))?;
        let file = ("copy", &staged);
        let placed = places
            .tree
            .place_file(file, parent.as_fd(), &path, &entry, &Guarded::new());
        let local = Local::Seen(placed.map_err(FilesError::tree("write", &place))?);
        seeding.target().learn(id, local);
        aside.push((path, Known { entry, local }));
    }
    found.wanted = left;
    inner.replica().ledger.keep_aside(aside)?;
    Ok(())
}
