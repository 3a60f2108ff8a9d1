//! A look at everything, directory by directory, on the threads.

use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime};

use understudy_replication::event::Severity;
use understudy_replication::files::RelPath;

use super::super::FilesError;
use super::super::commit::ABOUT_GUARD;
use super::super::dirty::older;
use super::super::jobs::{Job, Why};
use super::super::look::Looker;
use super::{ABOUT_ROOT, Capture, SCAN_INTERVAL};

/// How often everything is looked at where watches do not suffice, unless looking takes longer.
const BLIND_SCAN_INTERVAL: Duration = Duration::from_secs(1);

/// How many jobs of a scan are under way at a time.
const SCAN_JOBS_MAX: usize = 8;

/// A look at everything.
pub(super) struct Scan {
    pub(super) why: Why,
    /// All that happened before this is covered when it ends.
    pub(super) since: Option<Instant>,
    pub(super) begun: Instant,
    /// Directories that are still to be listed.
    pub(super) waiting: Vec<Option<RelPath>>,
    pub(super) running: usize,
    /// What was not there. Told at the end, when it is known what has only moved.
    pub(super) gone: Vec<RelPath>,
    pub(super) is_blind: bool,
    /// It was asked for again while it ran.
    pub(super) again: Option<(Why, Option<Instant>)>,
    /// It began at the top.
    pub(super) is_whole: bool,
}

impl Capture {
    pub(super) fn begin_scan(&mut self, why: Why, since: Option<Instant>, now: Instant) {
        // Later, if nothing else is heard of it.
        self.next_scan = now + self.until_next_scan();
        match &mut self.scan {
            Some(scan) => scan.look_again(why, since),
            None => {
                let mut scan = Scan::new(why, since, now);
                scan.is_whole = true;
                scan.waiting.push(None);
                self.scan = Some(scan);
            }
        }
    }

    pub(super) fn until_next_scan(&self) -> Duration {
        if self.is_blind {
            return BLIND_SCAN_INTERVAL;
        }
        let now = SystemTime::now();
        let next = self.shared.config.scan.next_after(now);
        next.and_then(|next| next.duration_since(now).ok())
            .unwrap_or(SCAN_INTERVAL)
    }

    pub(super) fn go_on_scanning(&mut self) {
        let (Some(scan), Some(tree)) = (&mut self.scan, &self.tree) else {
            return;
        };
        // Enough for all threads, and no more than the queue of what is fresh can wait for.
        while scan.running < SCAN_JOBS_MAX && !scan.waiting.is_empty() {
            let left = scan.waiting.len();
            let count = (left / SCAN_JOBS_MAX).clamp(1, 4).min(left);
            let some = scan.waiting.split_off(left.saturating_sub(count));
            self.jobs
                .begin(Job::Directories(some, scan.why), scan.since, tree);
            scan.running = scan.running.saturating_add(1);
        }
    }

    pub(super) fn end_scan(&mut self, now: Instant) -> Result<(), FilesError> {
        let is_over = self
            .scan
            .as_ref()
            .is_some_and(|scan| scan.running == 0 && scan.waiting.is_empty());
        // What was found to have moved is not told as gone.
        if !is_over || !self.moves.is_empty() {
            return Ok(());
        }
        let (Some(mut scan), Some(tree)) = (self.scan.take(), self.tree.clone()) else {
            return Ok(());
        };
        self.shared.forget_inodes();
        for path in std::mem::take(&mut scan.gone) {
            // It may have come again since it was missed.
            match tree.root.stat(&path) {
                Ok(_) => self.dirty.mark_since(path, true, scan.since, now),
                Err(_) => {
                    let mut looker = Looker::new(&self.shared, &tree);
                    looker.look(&path, false);
                    let found = looker.found;
                    self.note(found, scan.since, Why::New, now);
                }
            }
        }
        if scan.is_whole {
            self.has_scanned(&scan, now);
        }
        if let Some((why, since)) = scan.again {
            self.begin_scan(why, since, now);
            // Nobody may wake the capture before the next one is due.
            self.go_on_scanning();
        }
        let is_halted = self.commit()?;
        if scan.is_whole && scan.why == Why::Scan && !is_halted {
            // What an operator has let through is through.
            let mut guard = self
                .shared
                .guard
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            guard.guard_again();
            drop(guard);
            self.shared.is_halted.store(false, Ordering::Release);
            self.shared.mended(ABOUT_ROOT);
            self.first_scan.get_or_insert(scan.begun);
        }
        Ok(())
    }

    pub(super) fn has_scanned(&mut self, scan: &Scan, now: Instant) {
        // What is still missing is told to the guard anew.
        *self
            .shared
            .withheld
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = None;
        self.shared.mended(ABOUT_GUARD);
        self.is_blind = scan.is_blind;
        let cost = now.saturating_duration_since(scan.begun);
        if scan.is_blind {
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
            self.next_scan = now + self.until_next_scan().max(cost * 4);
            self.shared.mended("watches");
        }
        tracing::debug!(store = %self.shared.id.name, ?cost, "looked at everything");
    }
}

impl Scan {
    pub(super) fn new(why: Why, since: Option<Instant>, now: Instant) -> Self {
        Self {
            why,
            since,
            begun: now,
            waiting: Vec::new(),
            running: 0,
            gone: Vec::new(),
            is_blind: false,
            again: None,
            is_whole: false,
        }
    }

    /// Notes that everything has to be looked at once more, for the oldest of all that it was asked for.
    pub(super) fn look_again(&mut self, why: Why, since: Option<Instant>) {
        let (asked_why, asked_since) = self.again.unwrap_or((why, since));
        self.again = Some((asked_why.min(why), older(asked_since, since)));
    }

    /// Returns whether nothing that happened before `asked` is still to be found by it, or by the one
    /// that follows.
    pub(super) fn covers(&self, asked: Instant) -> bool {
        let again = self.again.and_then(|(_, since)| since);
        let since = self.since.into_iter().chain(again).min();
        since.is_none_or(|since| since > asked)
    }
}
