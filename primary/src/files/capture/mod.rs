//! The capture: one thread that learns what happened, has it looked at, and commits what was found.
//!
//! ```text
//! events ─▶ Dirty ─┬─▶ a look here ──────────┐
//!  patrol ─▶ Scan ─┴─▶ Jobs on threads ─▶ Found ─▶ commit
//! ```

mod moves;
mod pending;
mod scan;
mod strays;
mod trust;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::FileType;
use understudy_replication::event::Severity;
use understudy_replication::files::{RelPath, identity};

use super::commit::{CommitError, commit, replay};
use super::dirty::{Dirty, Duty, older};
use super::jobs::{Job, Jobs, Why};
use super::look::{Again, Change, Found, LookError, Looker, Tree};
use super::shared::{MarkRequest, Shared};
use super::watch::Happening;
use super::{FilesError, open_kept};
use moves::Moving;
use pending::Pending;
use scan::Scan;
use strays::Strays;

/// A tree that cannot be trusted is looked for this often.
const HALTED_INTERVAL: Duration = Duration::from_millis(500);

/// A schedule that tells no next time is asked again after this.
const SCAN_INTERVAL: Duration = Duration::from_secs(180);

/// Up to so many paths are looked at by the capture itself, which is quicker than asking others.
const OWN_PATHS_MAX: usize = 64;

/// What a scan finds is gathered up to this many changes, or this long.
const PENDING_MAX: usize = 4000;
const PENDING_TIME: Duration = Duration::from_millis(100);

/// So many paths are remembered that were looked at again.
const RELOOKED_MAX: usize = 10_000;

/// A problem of the whole store, among those of its paths: no path is empty.
const ABOUT_ROOT: &str = "";

pub(super) struct Capture {
    shared: Arc<Shared>,
    is_stopped: Arc<AtomicBool>,
    jobs: Jobs,
    tree: Option<Arc<Tree>>,
    dirty: Dirty,
    moves: Vec<Moving>,
    strays: Strays,
    /// When what commits had looked at again was last looked at.
    relooked: BTreeMap<RelPath, Instant>,
    pending: Pending,
    scan: Option<Scan>,
    marks: Vec<MarkRequest>,
    next_scan: Instant,
    begun: Instant,
    /// Something was looked at since it was last known that nothing had happened.
    has_looked: bool,
    /// When it was last asked what has happened.
    drained: Instant,
    /// When the first look at everything that came to its end was begun.
    first_scan: Option<Instant>,
    is_blind: bool,
}

impl Capture {
    pub(super) fn new(
        shared: Arc<Shared>,
        is_stopped: Arc<AtomicBool>,
        now: Instant,
    ) -> Result<Self, FilesError> {
        let jobs = Jobs::start(&shared).map_err(|source| FilesError::Thread { source })?;
        Ok(Self {
            shared,
            is_stopped,
            jobs,
            tree: None,
            dirty: Dirty::default(),
            moves: Vec::new(),
            strays: Strays::default(),
            relooked: BTreeMap::new(),
            pending: Pending::default(),
            scan: None,
            marks: Vec::new(),
            // The look at everything that opening the tree asks for is the first.
            next_scan: now + SCAN_INTERVAL,
            begun: now,
            has_looked: false,
            drained: now,
            first_scan: None,
            is_blind: false,
        })
    }

    /// Captures until told to stop.
    pub(super) fn run(mut self) -> Result<(), FilesError> {
        self.reopen()?;
        loop {
            // Read before the last look: what was written before the word to stop is still captured.
            let is_stopped = self.is_stopped.load(Ordering::Acquire);
            let inbox = self.shared.take_inbox();
            self.marks.extend(inbox.marks);
            if let Some(since) = inbox.scan_wanted {
                self.dirty.mark_all(since);
            }
            let now = Instant::now();
            for path in inbox.superseded {
                self.dirty.mark_since(path, false, None, now);
            }
            if is_stopped {
                return self.finish();
            }
            let hurry = !self.marks.is_empty();
            self.step(hurry)?;
            self.answer_marks();
            self.wait()?;
        }
    }

    /// One last capture, without waiting for anything but what is being looked at.
    pub(super) fn finish(mut self) -> Result<(), FilesError> {
        self.reopen()?;
        let until = Instant::now() + Duration::from_secs(10);
        loop {
            self.step(true)?;
            let is_done =
                self.jobs.is_idle() && self.scan.is_none() && self.dirty.covers(Instant::now());
            if is_done || self.tree.is_none() || Instant::now() >= until {
                break;
            }
            self.wait()?;
        }
        self.commit()?;
        if let Some(ledger) = self.shared.ledger().as_mut() {
            ledger.sync().map_err(|error| self.failed(error.into()))?;
        }
        Ok(())
    }

    /// Reads what is kept from the disk if a failed commit has closed it.
    fn reopen(&self) -> Result<(), FilesError> {
        let mut guard = self.shared.ledger();
        let mut shipped = self
            .shared
            .shipped
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        match (guard.as_mut(), shipped.as_mut()) {
            (Some(ledger), Some(log)) => {
                replay(ledger, log).map_err(|source| self.failed(source))?;
            }
            (_, _) => {
                *guard = None;
                *shipped = None;
                if self.shared.is_left.load(Ordering::Acquire) {
                    return Err(FilesError::Broken {
                        store: self.shared.id.name.clone(),
                    });
                }
                let (ledger, log, _) =
                    open_kept(&self.shared.state, &self.shared.id, &self.shared.epoch)?;
                *self
                    .shared
                    .log
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner) = log.view();
                *guard = Some(ledger);
                *shipped = Some(log);
                self.shared.log_generation.fetch_add(1, Ordering::AcqRel);
            }
        }
        Ok(())
    }

    fn step(&mut self, hurry: bool) -> Result<(), FilesError> {
        if let Err(reason) = self.find_tree() {
            self.halt(&reason);
            return Ok(());
        }
        self.drain();
        if self.tree.is_none() {
            // What is due is not lost: opening the tree again leads to a look at everything.
            return Ok(());
        }
        let now = Instant::now();
        if let Err(error) = self.take_done(now) {
            self.halt(&self.reason(&error));
            return Ok(());
        }
        self.make_moves(now)?;
        if now >= self.next_scan || (self.is_blind && hurry) {
            let (why, since) = if self.is_blind {
                (Why::Scan, Some(now))
            } else {
                (Why::Patrol, None)
            };
            self.begin_scan(why, since, now);
        }
        let due = self.dirty.take_due(now, hurry);
        self.look(due, now);
        self.follow_strays(now);
        self.go_on_scanning();
        self.end_scan(now)?;
        self.commit_if_due(now)
    }

    /// Looks at what is due, or has it looked at.
    fn look(&mut self, due: Vec<(Option<RelPath>, Duty)>, now: Instant) {
        let Some(tree) = self.tree.clone() else {
            return;
        };
        let mut paths = Vec::new();
        let mut since = None;
        let mut deep: Option<RelPath> = None;
        for (path, mut duty) in due {
            let Some(path) = path else {
                self.begin_scan(Why::Scan, duty.since, now);
                continue;
            };
            if self.jobs.is_at(&path) {
                self.dirty.put_back(path, duty);
                continue;
            }
            since = older(since, duty.since);
            // Paths come after those that they lie in, which are looked at with all that they hold.
            if deep.as_ref().is_some_and(|deep| path.is_beneath(deep)) {
                duty.is_deep = false;
            } else if duty.is_deep {
                deep = Some(path.clone());
            }
            if let Some(at) = self.relooked.get_mut(&path) {
                *at = now;
            }
            let tries = self.dirty.tries(&path);
            paths.push((path, duty.is_deep, tries));
        }
        self.has_looked |= !paths.is_empty();
        if paths.len() > OWN_PATHS_MAX {
            for some in paths.chunks(OWN_PATHS_MAX) {
                self.jobs.begin(Job::Paths(some.to_vec()), since, &tree);
            }
            return;
        }
        let mut looker = Looker::new(&self.shared, &tree);
        for (path, is_deep, tries) in &paths {
            looker.look_once_more(path, *is_deep, *tries);
        }
        let found = looker.found;
        self.note(found, since, Why::New, now);
    }

    /// Takes what the threads have found.
    fn take_done(&mut self, now: Instant) -> Result<(), LookError> {
        while let Some((job, since, mut found)) = self.jobs.take() {
            self.has_looked = true;
            if let Some(error) = found.failure.take() {
                return Err(error);
            }
            let why = match &job {
                Job::Directories(_, why) => *why,
                Job::Paths(_) | Job::Large(..) => Why::New,
            };
            if why != Why::New
                && let Some(scan) = &mut self.scan
            {
                scan.running = scan.running.saturating_sub(1);
                scan.is_blind |= found.is_blind;
                scan.waiting
                    .extend(std::mem::take(&mut found.directories).into_iter().map(Some));
                found.changes.retain(|(path, change)| {
                    let is_gone = *change == Change::Delete;
                    if is_gone {
                        scan.gone.push(path.clone());
                    }
                    !is_gone
                });
            }
            self.note(found, since, why, now);
        }
        Ok(())
    }

    fn note(&mut self, found: Found, since: Option<Instant>, why: Why, now: Instant) {
        let Some(tree) = self.tree.clone() else {
            return;
        };
        for (path, change) in found.changes {
            self.pending.add(path, change, now);
        }
        for again in found.again {
            match again {
                Again::Unstable(path, cost) => self.dirty.postpone(path, since, cost, now),
                Again::Racy(path) => self.dirty.look_again(path, now),
                Again::Rested(path, cost) => self.dirty.rest(path, cost, now),
                Again::Above(path) => self.dirty.mark_since(path, true, since, now),
            }
        }
        for path in found.large {
            // One that is being read already, or waits for it, is looked at once more after that.
            if self.jobs.is_reading(&path) {
                self.dirty.mark_since(path, false, since, now);
            } else {
                let tries = self.dirty.tries(&path);
                self.jobs.begin(Job::Large(path, tries), since, &tree);
            }
        }
        let moved = found.moved.into_iter().map(|(from, to)| Moving {
            from,
            to,
            since,
            is_quiet: false,
        });
        self.moves.extend(moved);
        if why == Why::New {
            for path in found.directories {
                let job = Job::Directories(vec![Some(path)], Why::New);
                self.jobs.begin(job, since, &tree);
            }
        }
        if found.is_blind && !self.is_blind {
            self.next_scan = now;
            self.is_blind = true;
        }
    }

    fn commit_if_due(&mut self, now: Instant) -> Result<(), FilesError> {
        // While directories are being listed there is more to come; what is alone goes at once.
        let is_gathering = (self.scan.is_some() || self.jobs.is_listing())
            && self.marks.is_empty()
            && self.pending.changes.len() < PENDING_MAX
            && self
                .pending
                .since
                .is_none_or(|since| now.saturating_duration_since(since) < PENDING_TIME);
        if !is_gathering {
            self.commit()?;
        }
        // Files that take long may still be being read when everything has been listed.
        let is_known = self.first_scan.is_some_and(|begun| self.covers(begun));
        if is_known && !*self.shared.is_ready.borrow() {
            self.shared.is_ready.send_replace(true);
        }
        Ok(())
    }

    /// Commits what was found; returns whether the tree cannot be believed.
    fn commit(&mut self) -> Result<bool, FilesError> {
        let mut pending = std::mem::take(&mut self.pending).changes;
        if pending.is_empty() {
            return Ok(false);
        }
        // Looked for after what was found and before it is believed: a tree that has gone away reads
        // as if everything had been deleted.
        if let Err(reason) = self.check_tree(&pending) {
            self.halt(&reason);
            return Ok(true);
        }
        let back = self.take_what_is_there(&mut pending);
        let mut again = commit(&self.shared, pending).map_err(|source| self.failed(source))?;
        again.extend(back);
        // Who waits for a mark waits for what belongs to what was committed, too, whenever that happened.
        let now = Instant::now();
        for path in again {
            // Once it was looked at for this, what is found now has happened after that: else two names of a
            // file that is written all the time would keep who waits for a mark waiting.
            let since = *self.relooked.entry(path.clone()).or_insert(self.begun);
            self.dirty.mark_since(path, true, Some(since), now);
        }
        if self.relooked.len() > RELOOKED_MAX {
            self.relooked.clear();
        }
        Ok(false)
    }

    /// Takes the deletions of what is there: a directory that was listed may have been another one by
    /// then than the manifest still said, and a move has been committed since.
    fn take_what_is_there(&self, pending: &mut BTreeMap<RelPath, Change>) -> Vec<RelPath> {
        let Some(tree) = &self.tree else {
            return Vec::new();
        };
        let looker = Looker::new(&self.shared, tree);
        let is_there = |path: &RelPath| {
            let found = tree.root.stat(path).map(|stat| identity(&stat).file_type());
            found.is_ok_and(|found| matches!(found, FileType::RegularFile | FileType::Directory))
                && !looker.is_excluded(path)
        };
        pending
            .extract_if(.., |path, change| {
                *change == Change::Delete && is_there(path)
            })
            .map(|(path, _)| path)
            .collect()
    }

    /// Takes all that has been told: a mark is answered by what was told before the look that follows.
    fn drain(&mut self) {
        // What is told now happened after it was last asked for, and nobody knows when.
        let since = std::mem::replace(&mut self.drained, Instant::now());
        let is_quiet = !self.has_looked && self.jobs.is_idle() && self.dirty.is_empty();
        loop {
            let Some(tree) = &self.tree else { return };
            let (happenings, has_more) = {
                let mut watch = tree.watch.lock().unwrap_or_else(PoisonError::into_inner);
                (watch.drain(), watch.has_more())
            };
            match happenings {
                Ok(happenings) => self.hear(happenings, since, is_quiet),
                Err(error) => {
                    tracing::warn!(%error, "cannot read the events of the tree");
                    self.drained = since;
                    self.tree = None;
                    return;
                }
            }
            if !has_more {
                return;
            }
        }
    }

    fn hear(&mut self, happenings: Vec<Happening>, since: Instant, is_quiet: bool) {
        let now = Instant::now();
        for happening in happenings {
            match happening {
                Happening::At(path, is_deep) => {
                    self.dirty.mark_since(path, is_deep, Some(since), now);
                }
                Happening::Through(path, file) => self.note_changed(path, file, since),
                Happening::Moved { from, to, .. } => self.moves.push(Moving {
                    from,
                    to,
                    since: Some(since),
                    is_quiet,
                }),
                Happening::Anywhere => {
                    self.shared.events.record(
                        Severity::Warning,
                        "files_overflow",
                        format!(
                            "store {}: more happened than the kernel could tell; looking at \
                             everything",
                            self.shared.id.name
                        ),
                    );
                    self.dirty.mark_all(since);
                }
            }
        }
    }

    fn answer_marks(&mut self) {
        let now = Instant::now();
        let is_halted = self.shared.is_halted.load(Ordering::Acquire);
        let is_ready = *self.shared.is_ready.borrow();
        let is_withheld = self
            .shared
            .withheld
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .is_some();
        for mark in std::mem::take(&mut self.marks) {
            // What was asked of a capture that has ended, nobody knows any more.
            let is_void = mark.asked < self.begun;
            let answer = if is_halted || is_void || mark.until <= now {
                Some(None)
            } else if is_ready && self.covers(mark.asked) {
                // What is held back is there no more: no position stands for that.
                let position = *self.shared.position.borrow();
                Some((!is_withheld).then_some(position))
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

    /// Returns whether everything that happened before `asked` is committed.
    fn covers(&self, asked: Instant) -> bool {
        let is_scanned = self.scan.as_ref().is_none_or(|scan| scan.covers(asked));
        is_scanned
            && self.pending.changes.is_empty()
            && self.moves.is_empty()
            && self.strays.covers(asked)
            && self.dirty.covers(asked)
            && self.jobs.covers(asked)
    }

    fn wait(&mut self) -> Result<(), FilesError> {
        let now = Instant::now();
        let due = [
            self.tree.is_none().then_some(now + HALTED_INTERVAL),
            Some(self.next_scan).filter(|_| self.tree.is_some()),
            // What is being looked at already is woken for by that look's end.
            self.dirty
                .next_due(|path| self.jobs.is_at(path))
                .filter(|_| self.tree.is_some()),
            self.pending.since.map(|since| since + PENDING_TIME),
            (!self.moves.is_empty()).then_some(now),
            self.marks.iter().map(|mark| mark.until).min(),
        ];
        let due = due
            .into_iter()
            .flatten()
            .min()
            .unwrap_or(now + SCAN_INTERVAL);
        let left = due.saturating_duration_since(now);
        let timeout = Timespec::try_from(left).ok();
        let tree = self.tree.clone();
        let watch = tree
            .as_ref()
            .map(|tree| tree.watch.lock().unwrap_or_else(PoisonError::into_inner));
        // Held only to duplicate what is waited on: others add watches meanwhile.
        let watched = watch
            .as_ref()
            .and_then(|watch| watch.fd().try_clone_to_owned().ok());
        drop(watch);
        let mut fds = vec![PollFd::new(&self.shared.wake, PollFlags::IN)];
        if let Some(fd) = &watched {
            fds.push(PollFd::new(fd, PollFlags::IN));
        }
        if self.has_looked {
            let told = poll(&mut fds, Some(&Timespec::default()));
            // Whatever happens from now on, the looks were before it.
            let is_quiet = told.is_ok() && fds.get(1).is_some_and(|fd| fd.revents().is_empty());
            self.has_looked = !is_quiet;
        }
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(errno) => Err(FilesError::Wait {
                source: errno.into(),
            }),
        }
    }

    fn failed(&self, source: CommitError) -> FilesError {
        FilesError::Commit {
            store: self.shared.id.name.clone(),
            source: Box::new(source),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use understudy_config::Files;
    use understudy_replication::epoch::Epoch;
    use understudy_replication::event::Events;

    #[test]
    fn what_is_there_is_not_deleted_whatever_a_look_has_found() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("root");
        fs::create_dir(&root).unwrap();
        for name in ["gone", "there"] {
            fs::write(root.join(name), name).unwrap();
        }
        let config = Files::new("docs".parse().unwrap(), &root);
        let events = Events::open(&folder.path().join("events.jsonl")).unwrap();
        let epoch = Epoch::first("a".parse().unwrap());
        let state = folder.path().join("state");
        let shipper =
            super::super::FilesShipper::open(&config, root.clone(), &state, &epoch, events)
                .unwrap();
        let now = Instant::now();
        let mut capture = Capture::new(shipper.shared.clone(), Arc::default(), now).unwrap();
        capture.reopen().unwrap();
        let held = |capture: &Capture| {
            let guard = capture.shared.ledger();
            let manifest = &guard.as_ref().unwrap().manifest;
            ["gone", "there"].map(|name| manifest.lookup(&RelPath::new(name).unwrap()).is_some())
        };
        let until = now + Duration::from_secs(20);
        while held(&capture) != [true, true] {
            assert!(Instant::now() < until);
            capture.step(true).unwrap();
        }
        fs::remove_file(root.join("gone")).unwrap();
        for name in ["gone", "there"] {
            let path = RelPath::new(name).unwrap();
            capture.pending.add(path, Change::Delete, now);
        }
        capture.commit().unwrap();
        assert_eq!(held(&capture), [false, true]);
    }
}
