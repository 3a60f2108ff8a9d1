//! Which paths have to be looked at, and when. Pure: the time is an argument.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use understudy_replication::files::RelPath;

/// Changes within this time are looked at, and shipped, together.
pub(super) const GATHERING: Duration = Duration::from_millis(2);

/// A file whose timestamps are younger than this when it is read may be changed again without them
/// showing it: the kernel's clock for files ticks every 4 to 10 ms.
pub(super) const RACY: Duration = Duration::from_millis(20);

/// The pause before a file that changed while it was read is tried again, the first time.
const PAUSE_MIN: Duration = Duration::from_millis(50);

/// The longest pause before a file that keeps changing is tried again.
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// A file is at rest for this many times as long as it took to read: what is written all the time
/// does not keep the disk busy all the time.
const REST_FACTOR: u32 = 4;

/// What took no longer to read than this is not let rest.
const REST_FROM: Duration = Duration::from_millis(5);

/// More paths than these are looked at by looking at everything.
const DIRTY_MAX: usize = 100_000;

/// Why and when a path is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Duty {
    /// Everything that happened before this has to be covered by a look; `None` when nobody waits.
    pub(super) since: Option<Instant>,
    due: Instant,
    /// A pause is kept even in a hurry.
    is_paused: bool,
    /// What the directory holds is looked at, too.
    pub(super) is_deep: bool,
}

/// The paths to look at; `None` is everything.
#[derive(Debug, Default)]
pub(super) struct Dirty {
    duties: BTreeMap<Option<RelPath>, Duty>,
    rests: BTreeMap<RelPath, Instant>,
    /// How often a file has changed while it was read.
    attempts: BTreeMap<RelPath, u32>,
}

/// The older of two moments that have to be covered.
pub(super) fn older(a: Option<Instant>, b: Option<Instant>) -> Option<Instant> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

impl Dirty {
    #[cfg(test)]
    /// Notes that something happened to `path` at `now`, or within it if `is_deep`.
    pub(super) fn mark(&mut self, path: RelPath, is_deep: bool, now: Instant) {
        self.mark_since(path, is_deep, Some(now), now);
    }

    /// Notes that `path` has to be looked at for what happened at `since`.
    pub(super) fn mark_since(
        &mut self,
        path: RelPath,
        is_deep: bool,
        since: Option<Instant>,
        now: Instant,
    ) {
        if self.duties.len() >= DIRTY_MAX {
            self.mark_all(since.map_or(now, |since| since.min(now)));
            return;
        }
        let rest = self.rests.get(&path).copied();
        let due = (now + GATHERING).max(rest.unwrap_or(now));
        let duty = Duty {
            since,
            due,
            is_paused: rest.is_some_and(|until| until > now),
            is_deep,
        };
        self.duties
            .entry(Some(path))
            .and_modify(|held| {
                held.is_deep |= is_deep;
                held.since = older(held.since, since);
            })
            .or_insert(duty);
    }

    /// Notes that anything may have happened, up to `since`.
    pub(super) fn mark_all(&mut self, since: Instant) {
        let now = since;
        let held = self.duties.values().filter_map(|duty| duty.since).min();
        self.duties.clear();
        self.duties.insert(
            None,
            Duty {
                since: older(held, Some(since)),
                due: now,
                is_paused: false,
                is_deep: true,
            },
        );
    }

    /// Takes what is due. In a `hurry` nothing is gathered; only pauses and rests are kept.
    pub(super) fn take_due(&mut self, now: Instant, hurry: bool) -> Vec<(Option<RelPath>, Duty)> {
        self.rests.retain(|_, until| *until > now);
        self.duties
            .extract_if(.., |_, duty| duty.due <= now || (hurry && !duty.is_paused))
            .collect()
    }

    /// Puts back what was taken, and cannot be looked at yet.
    pub(super) fn put_back(&mut self, path: RelPath, duty: Duty) {
        self.duties
            .entry(Some(path))
            .and_modify(|held| {
                held.is_deep |= duty.is_deep;
                held.since = older(held.since, duty.since);
            })
            .or_insert(duty);
    }

    /// Puts back a path that changed while it was read, which took `cost`.
    pub(super) fn postpone(
        &mut self,
        path: RelPath,
        since: Option<Instant>,
        cost: Duration,
        now: Instant,
    ) {
        let attempts = self.attempts.entry(path.clone()).or_insert(0);
        *attempts = attempts.saturating_add(1);
        let pause = PAUSE_MIN * 2_u32.saturating_pow(attempts.saturating_sub(1).min(10));
        let pause = pause.max(cost * REST_FACTOR).min(PAUSE_MAX);
        let again = Duty {
            since,
            due: now + pause,
            is_paused: true,
            is_deep: false,
        };
        // What has come in since must not bring it forward.
        let held = self.duties.entry(Some(path)).or_insert(again);
        *held = Duty {
            since: older(held.since, since),
            is_deep: held.is_deep,
            ..again
        };
    }

    /// Puts back a path that was read, but so soon after a change that the next one may not show.
    pub(super) fn look_again(&mut self, path: RelPath, now: Instant) {
        self.duties.entry(Some(path)).or_insert(Duty {
            since: None,
            due: now + RACY + Duration::from_millis(5),
            is_paused: true,
            is_deep: false,
        });
    }

    /// Returns how often in a row a path was found changing.
    pub(super) fn tries(&self, path: &RelPath) -> u32 {
        self.attempts.get(path).copied().unwrap_or(0)
    }

    /// Lets `path` rest, which took `cost` to read.
    pub(super) fn rest(&mut self, path: RelPath, cost: Duration, now: Instant) {
        self.attempts.remove(&path);
        if cost > REST_FROM {
            self.rests
                .insert(path, now + (cost * REST_FACTOR).min(PAUSE_MAX));
        }
    }

    /// Returns whether everything that happened before `asked` has been looked at.
    pub(super) fn covers(&self, asked: Instant) -> bool {
        self.duties
            .values()
            .all(|duty| duty.since.is_none_or(|since| since > asked))
    }

    /// Returns whether `path` is still to be looked at.
    pub(super) fn has(&self, path: &RelPath) -> bool {
        // A look at everything looks at it, too.
        self.duties.contains_key(&Some(path.clone())) || self.duties.contains_key(&None)
    }

    /// Returns whether nothing is to be looked at.
    pub(super) fn is_empty(&self) -> bool {
        self.duties.is_empty()
    }

    /// Returns when something will be due that is not held back.
    pub(super) fn next_due(&self, is_held: impl Fn(&RelPath) -> bool) -> Option<Instant> {
        let free = self
            .duties
            .iter()
            .filter(|(path, _)| !path.as_ref().is_some_and(&is_held));
        free.map(|(_, duty)| duty.due).min()
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
        dirty.mark(path("a"), false, now);
        dirty.mark(path("b"), false, now + GATHERING / 2);
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
        dirty.mark(path("log"), false, now);
        for _ in 0..50 {
            let due = dirty.next_due(|_| false).unwrap();
            assert!(due - now <= PAUSE_MAX, "{:?}", due - now);
            now = due;
            let (_, duty) = dirty.take_due(now, false).pop().unwrap();
            assert!(!dirty.covers(now) || dirty.is_empty());
            dirty.mark(path("log"), false, now);
            dirty.postpone(path("log"), duty.since, Duration::from_millis(1), now);
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
            dirty.mark(path(&number.to_string()), false, now);
        }
        assert_eq!(names(dirty.take_due(now, false)), ["/"]);
    }
}
