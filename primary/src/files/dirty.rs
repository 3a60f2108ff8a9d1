//! Which paths have to be looked at, and when. Pure: the time is an argument.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use understudy_replication::files::RelPath;

/// Changes within this time are looked at, and shipped, together.
pub(super) const GATHERING: Duration = Duration::from_millis(50);

/// A file whose timestamps are younger than this when it is read may be changed again without them
/// showing it: the kernel's clock for files ticks every 4 to 10 ms.
pub(super) const RACY: Duration = Duration::from_millis(20);

/// The longest pause before a file that keeps changing is tried again.
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// A file is at rest for this many times as long as it took to read: what is written all the time
/// does not keep the disk busy all the time.
const REST_FACTOR: u32 = 4;

/// More paths than these are looked at by looking at everything.
const DIRTY_MAX: usize = 100_000;

/// Why and when a path is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Duty {
    /// Everything that happened before this has to be covered by a look.
    pub(super) since: Instant,
    due: Instant,
    /// How often it changed while it was read.
    attempts: u32,
    /// What the directory holds is looked at, too.
    pub(super) is_deep: bool,
    /// A standby lacks the content: it is shipped even if it is what it was.
    pub(super) is_owed: bool,
}

/// The paths to look at; `None` is the top.
#[derive(Debug, Default)]
pub(super) struct Dirty {
    duties: BTreeMap<Option<RelPath>, Duty>,
    rests: BTreeMap<RelPath, Instant>,
}

impl Dirty {
    /// Notes that something happened to `path` at `now`, or within it if `is_deep`.
    pub(super) fn mark(&mut self, path: Option<RelPath>, is_deep: bool, now: Instant) {
        if self.duties.len() >= DIRTY_MAX {
            self.mark_all(now);
            return;
        }
        let rest = path.as_ref().and_then(|path| self.rests.get(path)).copied();
        let due = (now + GATHERING).max(rest.unwrap_or(now));
        self.duties
            .entry(path)
            .and_modify(|duty| duty.is_deep |= is_deep)
            .or_insert(Duty {
                since: now,
                due,
                attempts: 0,
                is_deep,
                is_owed: false,
            });
    }

    /// Notes that anything may have happened.
    pub(super) fn mark_all(&mut self, now: Instant) {
        let is_owed = |duty: &Duty| duty.is_owed;
        let since = self
            .duties
            .values()
            .map(|duty| duty.since)
            .min()
            .unwrap_or(now)
            .min(now);
        self.duties.retain(|_, duty| is_owed(duty));
        self.duties.insert(
            None,
            Duty {
                since,
                due: now,
                attempts: 0,
                is_deep: true,
                is_owed: false,
            },
        );
    }

    /// Notes that a standby lacks the content of `path`.
    pub(super) fn owe(&mut self, path: RelPath, now: Instant) {
        // A change that is about to be seen anyway brings it sooner; a file that cannot be read is not
        // tried all the time.
        let due = now + Duration::from_millis(500);
        self.duties
            .entry(Some(path))
            .and_modify(|duty| duty.is_owed = true)
            .or_insert(Duty {
                since: now,
                due,
                attempts: 0,
                is_deep: false,
                is_owed: true,
            });
    }

    /// Takes what is due. In a `hurry` nothing is gathered; only pauses and rests are kept.
    pub(super) fn take_due(&mut self, now: Instant, hurry: bool) -> Vec<(Option<RelPath>, Duty)> {
        self.rests.retain(|_, until| *until > now);
        let rests = &self.rests;
        let is_due = |path: &Option<RelPath>, duty: &Duty| {
            let is_resting = path.as_ref().is_some_and(|path| rests.contains_key(path));
            duty.due <= now || (hurry && duty.attempts == 0 && !is_resting)
        };
        self.duties
            .extract_if(.., |path, duty| is_due(path, duty))
            .collect()
    }

    /// Puts back a path that changed while it was read, which took `cost`.
    pub(super) fn postpone(&mut self, path: RelPath, duty: Duty, cost: Duration, now: Instant) {
        let attempts = duty.attempts.saturating_add(1);
        let pause = GATHERING * 2_u32.saturating_pow(attempts.min(10));
        let pause = pause.max(cost * REST_FACTOR).min(PAUSE_MAX);
        let again = Duty {
            attempts,
            due: now + pause,
            ..duty
        };
        self.duties
            .entry(Some(path))
            .and_modify(|held| held.since = held.since.min(duty.since))
            .or_insert(again);
    }

    /// Puts back a path that was read, but so soon after a change that the next one may not show.
    pub(super) fn look_again(&mut self, path: RelPath, now: Instant) {
        self.duties.entry(Some(path)).or_insert(Duty {
            since: now,
            due: now + RACY + Duration::from_millis(5),
            attempts: 0,
            is_deep: false,
            is_owed: false,
        });
    }

    /// Lets `path` rest, which took `cost` to read.
    pub(super) fn rest(&mut self, path: RelPath, cost: Duration, now: Instant) {
        if cost * REST_FACTOR > GATHERING {
            self.rests
                .insert(path, now + (cost * REST_FACTOR).min(PAUSE_MAX));
        }
    }

    /// Returns whether everything that happened before `asked` has been looked at.
    pub(super) fn covers(&self, asked: Instant) -> bool {
        self.duties.values().all(|duty| duty.since > asked)
    }

    /// Returns when something will be due.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.duties.values().map(|duty| duty.due).min()
    }

    /// Returns how many paths wait.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.duties.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> RelPath {
        RelPath::new(text).unwrap()
    }

    fn names(taken: Vec<(Option<RelPath>, Duty)>) -> Vec<String> {
        taken
            .into_iter()
            .map(|(path, _)| path.map_or("/".into(), |p| p.to_string()))
            .collect()
    }

    #[test]
    fn changes_are_gathered_and_a_mark_does_not_wait_for_that() {
        let now = Instant::now();
        let mut dirty = Dirty::default();
        dirty.mark(Some(path("a")), false, now);
        dirty.mark(Some(path("b")), false, now + GATHERING / 2);
        assert_eq!(names(dirty.take_due(now, false)), [""; 0]);
        assert_eq!(names(dirty.take_due(now + GATHERING, false)), ["a"]);
        assert!(!dirty.covers(now + GATHERING));
        assert_eq!(names(dirty.take_due(now + GATHERING, true)), ["b"]);
        assert!(dirty.covers(now + GATHERING));
    }

    #[test]
    fn a_file_that_keeps_changing_is_tried_at_least_every_few_seconds() {
        let mut now = Instant::now();
        let mut dirty = Dirty::default();
        dirty.mark(Some(path("log")), false, now);
        for _ in 0..50 {
            let due = dirty.next_due().unwrap();
            assert!(due - now <= PAUSE_MAX, "{:?}", due - now);
            now = due;
            let (_, duty) = dirty.take_due(now, false).pop().unwrap();
            assert!(!dirty.covers(now) || dirty.len() == 0);
            dirty.postpone(path("log"), duty, Duration::from_millis(1), now);
            assert_eq!(
                names(dirty.take_due(now, true)),
                [""; 0],
                "a hurry keeps the pause"
            );
            assert!(!dirty.covers(now), "it is still not covered");
        }
    }

    #[test]
    fn too_many_paths_become_one_look_at_everything() {
        let now = Instant::now();
        let mut dirty = Dirty::default();
        for number in 0..=DIRTY_MAX {
            dirty.mark(Some(path(&number.to_string())), false, now);
        }
        assert_eq!(names(dirty.take_due(now, false)), ["/"]);
    }
}
