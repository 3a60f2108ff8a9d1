//! The capture: one thread that learns what happened, looks, and commits.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use understudy_replication::event::Severity;
use understudy_replication::files::{LOST_AND_FOUND, RESERVED, RelPath, Root};

use super::commit::{CommitError, commit, replay};
use super::dirty::Dirty;
use super::look::{Again, LookError, Looker, Pending};
use super::shared::{MarkRequest, Shared};
use super::watch::{Happening, Watch};
use super::{FilesError, open_ledger};

/// Everything is looked at this often: what no event tells (writes through a mapping, events that
/// were lost) lives no longer than this unseen.
const SCAN_INTERVAL: Duration = Duration::from_secs(180);

/// How often everything is looked at where watches do not suffice, unless looking takes longer.
const BLIND_SCAN_INTERVAL: Duration = Duration::from_secs(1);

/// A tree that cannot be trusted is looked for this often.
const HALTED_INTERVAL: Duration = Duration::from_millis(500);

/// The table is made durable after this much quiet.
const SYNC_QUIET: Duration = Duration::from_secs(2);

/// A problem of the whole store, among those of its paths: no path is empty.
const ABOUT_ROOT: &str = "";

pub(super) struct Capture {
    shared: Arc<Shared>,
    is_stopped: Arc<AtomicBool>,
    tree: Option<Tree>,
    dirty: Dirty,
    marks: Vec<MarkRequest>,
    next_scan: Instant,
    is_blind: bool,
    is_unsynced: bool,
}

/// The tree while it is where it should be.
struct Tree {
    root: Root,
    watch: Watch,
}

impl Capture {
    pub(super) fn new(shared: Arc<Shared>, is_stopped: Arc<AtomicBool>, now: Instant) -> Self {
        Self {
            shared,
            is_stopped,
            tree: None,
            dirty: Dirty::default(),
            marks: Vec::new(),
            next_scan: now,
            is_blind: false,
            is_unsynced: false,
        }
    }

    /// Captures until told to stop.
    pub(super) fn run(mut self) -> Result<(), FilesError> {
        self.reopen()?;
        loop {
            // Read before the last look: what was written before the word to stop is still captured.
            let is_stopped = self.is_stopped.load(Ordering::Acquire);
            let inbox = self.shared.take_inbox();
            let now = Instant::now();
            self.marks.extend(inbox.marks);
            for path in inbox.owed {
                self.dirty.owe(path, now);
            }
            if is_stopped {
                self.step(true)?;
                return self.sync();
            }
            let hurry = !self.marks.is_empty();
            self.step(hurry)?;
            self.answer_marks();
            self.wait()?;
        }
    }

    /// One last capture, without waiting for anything.
    pub(super) fn run_once(mut self) -> Result<(), FilesError> {
        self.reopen()?;
        self.step(true)?;
        self.sync()
    }

    /// Reads the ledger from the disk if a failed commit has closed it.
    fn reopen(&self) -> Result<(), FilesError> {
        let mut guard = self.shared.ledger();
        if guard.is_none() {
            let ledger = open_ledger(&self.shared.state, &self.shared.id, &self.shared.epoch)?;
            *self
                .shared
                .log
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner) = ledger.log_view();
            *guard = Some(ledger);
            self.shared.log_generation.fetch_add(1, Ordering::AcqRel);
        } else if let Some(ledger) = guard.as_mut() {
            replay(ledger).map_err(|source| self.failed(source))?;
        }
        Ok(())
    }

    fn step(&mut self, hurry: bool) -> Result<(), FilesError> {
        if let Err(reason) = self.find_tree() {
            self.halt(&reason);
            return Ok(());
        }
        self.drain();
        let now = Instant::now();
        if now >= self.next_scan || (self.is_blind && hurry) {
            self.dirty.mark_all(now);
        }
        let due = self.dirty.take_due(now, hurry);
        if due.is_empty() {
            return Ok(());
        }
        let Some(tree) = &mut self.tree else {
            return Ok(());
        };
        let mut looker = Looker {
            shared: &self.shared,
            root: &tree.root,
            watch: &mut tree.watch,
            pending: Pending::default(),
            again: Vec::new(),
            is_blind: false,
        };
        let mut has_scanned = false;
        let mut result = Ok(());
        for (path, duty) in &due {
            result = match path {
                None => {
                    has_scanned = true;
                    looker.look_at_all()
                }
                Some(path) => looker.look(path, duty.is_deep, duty.is_owed),
            };
            if result.is_err() {
                break;
            }
        }
        let again = std::mem::take(&mut looker.again);
        let is_blind = looker.is_blind;
        let pending = looker.pending.take();
        let now = Instant::now();
        let duty_of = |path: &RelPath| {
            let found = due.iter().find(|(at, _)| at.as_ref() == Some(path));
            found
                .or_else(|| due.iter().find(|(at, _)| at.is_none()))
                .or(due.first())
                .map(|(_, duty)| *duty)
        };
        for again in again {
            match again {
                Again::Unstable(path, cost) => {
                    if let Some(duty) = duty_of(&path) {
                        self.dirty.postpone(path, duty, cost, now);
                    }
                }
                Again::Racy(path) => self.dirty.look_again(path, now),
                Again::Rested(path, cost) => self.dirty.rest(path, cost, now),
            }
        }
        match result {
            Ok(()) => {}
            Err(LookError::Commit(source)) => return Err(self.failed(source)),
            Err(LookError::Empty) => {
                self.halt(&self.empty_reason());
                return Ok(());
            }
            Err(error @ LookError::Top(_)) => {
                self.halt(&format!(
                    "{} cannot be read: {}",
                    self.place(),
                    root_cause(&error)
                ));
                return Ok(());
            }
        }
        // Looked for after what was found and before it is believed: a tree that has gone away reads
        // as if everything had been deleted.
        if let Err(reason) = self.check_tree(&pending) {
            self.halt(&reason);
            return Ok(());
        }
        commit(&self.shared, pending).map_err(|source| self.failed(source))?;
        self.is_unsynced = true;
        if has_scanned {
            self.has_scanned(is_blind, now);
        } else if is_blind && !self.is_blind {
            self.next_scan = now;
            self.is_blind = true;
        }
        Ok(())
    }

    fn has_scanned(&mut self, is_blind: bool, begun: Instant) {
        let now = Instant::now();
        self.is_blind = is_blind;
        if is_blind {
            let cost = now.saturating_duration_since(begun);
            self.next_scan = now + BLIND_SCAN_INTERVAL.max(cost * 4);
            self.shared.problem(
                "watches",
                Severity::Warning,
                "files_watches",
                format!(
                    "store {}: the kernel gives too few watches; everything is looked at each \
                     second instead. Raise fs.inotify.max_user_watches",
                    self.shared.id.name
                ),
            );
        } else {
            self.next_scan = now + SCAN_INTERVAL;
            self.shared.mended("watches");
        }
        self.shared.is_halted.store(false, Ordering::Release);
        self.shared.mended(ABOUT_ROOT);
        self.shared.is_ready.send_replace(true);
    }

    /// Makes sure that the tree is open and where it should be.
    fn find_tree(&mut self) -> Result<(), String> {
        if self
            .tree
            .as_ref()
            .is_some_and(|tree| tree.root.is_in_place())
        {
            return Ok(());
        }
        let had_tree = self.tree.take().is_some();
        let place = self.place();
        let root = Root::open(&self.shared.root)
            .map_err(|error| format!("{place} cannot be opened: {error}"))?;
        let names = root
            .names(None)
            .map_err(|error| format!("{place} cannot be read: {error}"))?;
        if self.has_entries() && !names.iter().any(|name| self.is_ours(name)) {
            return Err(self.empty_reason());
        }
        let watch = Watch::open(&root, None)
            .map_err(|error| format!("{place} cannot be watched: {error}"))?;
        tracing::info!(store = %self.shared.id.name, backend = ?watch.backend(), "watching the tree");
        if had_tree {
            tracing::info!(store = %self.shared.id.name, "the tree was replaced; looking at all of it");
        }
        self.tree = Some(Tree { root, watch });
        self.dirty.mark_all(Instant::now());
        Ok(())
    }

    fn check_tree(
        &self,
        pending: &std::collections::BTreeMap<RelPath, super::look::Change>,
    ) -> Result<(), String> {
        let is_delete =
            |change: &super::look::Change| matches!(change, super::look::Change::Delete);
        if !pending.values().any(is_delete) {
            return Ok(());
        }
        let Some(tree) = &self.tree else {
            return Err(self.empty_reason());
        };
        if !tree.root.is_in_place() {
            return Err(format!("{} is not what it was", self.place()));
        }
        let names = tree
            .root
            .names(None)
            .map_err(|error| format!("{} cannot be read: {error}", self.place()))?;
        if !names.iter().any(|name| self.is_ours(name)) {
            return Err(self.empty_reason());
        }
        Ok(())
    }

    fn is_ours(&self, name: &[u8]) -> bool {
        name != RESERVED
            && name != LOST_AND_FOUND
            && RelPath::new(name).is_ok_and(|path| !self.shared.exclude.is_match(path.as_path()))
    }

    fn has_entries(&self) -> bool {
        self.shared
            .ledger()
            .as_ref()
            .is_some_and(|ledger| !ledger.manifest.is_empty())
    }

    fn place(&self) -> String {
        self.shared.root.display().to_string()
    }

    fn empty_reason(&self) -> String {
        format!(
            "{} is empty, though it held files before; mount what belongs there. If it is meant to be \
             empty, make any file in it",
            self.place()
        )
    }

    /// Believes nothing about the tree until it can be trusted again.
    fn halt(&mut self, reason: &str) {
        self.shared.is_halted.store(true, Ordering::Release);
        self.tree = None;
        self.shared.problem(
            ABOUT_ROOT,
            Severity::Error,
            "files_halted",
            format!(
                "store {} is not captured, and nothing is deleted: {reason}",
                self.shared.id.name
            ),
        );
        for mark in self.marks.drain(..) {
            // Who asked may have stopped waiting.
            let _late = mark.reply.send(None).is_err();
        }
    }

    fn drain(&mut self) {
        // All of it: a mark is answered by what was told before the look that follows.
        loop {
            let Some(tree) = &mut self.tree else { return };
            let happenings = match tree.watch.drain() {
                Ok(happenings) => happenings,
                Err(error) => {
                    tracing::warn!(%error, "cannot read the events of the tree");
                    self.tree = None;
                    return;
                }
            };
            let has_more = tree.watch.has_more();
            let now = Instant::now();
            for happening in happenings {
                self.note(happening, now);
            }
            if !has_more {
                return;
            }
        }
    }

    fn note(&mut self, happening: Happening, now: Instant) {
        match happening {
            Happening::At(path, is_deep) => self.dirty.mark(Some(path), is_deep, now),
            Happening::Moved {
                from,
                to,
                is_directory,
            } => {
                self.dirty.mark(Some(from), false, now);
                self.dirty.mark(Some(to), is_directory, now);
            }
            Happening::Anywhere => {
                self.shared.events.record(
                    Severity::Warning,
                    "files_overflow",
                    format!(
                        "store {}: more happened than the kernel could tell; looking at everything",
                        self.shared.id.name
                    ),
                );
                self.dirty.mark_all(now);
            }
        }
    }

    fn answer_marks(&mut self) {
        let now = Instant::now();
        let is_halted = self.shared.is_halted.load(Ordering::Acquire);
        let is_ready = *self.shared.is_ready.borrow();
        for mark in std::mem::take(&mut self.marks) {
            let answer = if is_halted || mark.until <= now {
                Some(None)
            } else if is_ready && self.dirty.covers(mark.asked) {
                Some(Some(*self.shared.position.borrow()))
            } else {
                None
            };
            match answer {
                Some(answer) => {
                    // Who asked may have stopped waiting.
                    let _late = mark.reply.send(answer).is_err();
                }
                None => self.marks.push(mark),
            }
        }
    }

    fn wait(&mut self) -> Result<(), FilesError> {
        let now = Instant::now();
        let due = [
            self.tree.is_none().then_some(now + HALTED_INTERVAL),
            Some(self.next_scan).filter(|_| self.tree.is_some()),
            self.dirty.next_due().filter(|_| self.tree.is_some()),
            (!self.marks.is_empty()).then_some(now + Duration::from_millis(10)),
            self.is_unsynced.then_some(now + SYNC_QUIET),
        ];
        let due = due
            .into_iter()
            .flatten()
            .min()
            .unwrap_or(now + SCAN_INTERVAL);
        let left = due
            .saturating_duration_since(now)
            .max(Duration::from_millis(1));
        let timeout = Timespec::try_from(left).ok();
        let mut fds = vec![PollFd::new(&self.shared.wake, PollFlags::IN)];
        if let Some(tree) = &self.tree {
            let fd = tree.watch.fd();
            fds.push(PollFd::from_borrowed_fd(fd, PollFlags::IN));
        }
        let happened = match poll(&mut fds, timeout.as_ref()) {
            Ok(count) => count > 0,
            Err(rustix::io::Errno::INTR) => true,
            Err(errno) => {
                return Err(FilesError::Wait {
                    source: errno.into(),
                });
            }
        };
        let is_quiet = left >= SYNC_QUIET;
        if !happened && is_quiet && self.is_unsynced {
            self.sync()?;
        }
        Ok(())
    }

    fn sync(&mut self) -> Result<(), FilesError> {
        self.is_unsynced = false;
        if let Some(ledger) = self.shared.ledger().as_mut() {
            ledger.sync().map_err(|error| self.failed(error.into()))?;
        }
        Ok(())
    }

    fn failed(&self, source: CommitError) -> FilesError {
        FilesError::Commit {
            store: self.shared.id.name.clone(),
            source: Box::new(source),
        }
    }
}

fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}
