//! The delete guard: stops a deletion that takes too much of a store, and asks.
//!
//! What it judges is the *net* shrink: how much smaller a commit would leave the store than it was at
//! its largest within the last ten minutes. Thus files that come and go at the same rate never trigger
//! it, and an `rm -rf` does, even if it is slow and comes in many small commits. Pure: time comes in as
//! an argument.

use std::collections::VecDeque;
use std::fmt;
use std::time::{Duration, Instant};

use understudy_config::Share;

/// How far back the largest extent is looked for.
pub const GUARD_WINDOW: Duration = Duration::from_secs(600);

/// A store of fewer entries is not guarded: half of it may be three files.
pub const GUARDED_ENTRIES_MIN: u64 = 20;

/// Extents within the same such span are kept as one: it bounds the memory. The window is longer by up
/// to this.
const SPAN: Duration = Duration::from_secs(10);

/// How large a store is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Extent {
    /// How many entries it has.
    pub entries: u64,
    /// How many bytes they hold.
    pub bytes: u64,
}

impl Extent {
    fn max(self, other: Self) -> Self {
        Self {
            entries: self.entries.max(other.entries),
            bytes: self.bytes.max(other.bytes),
        }
    }
}

/// How much a deletion would take, of how much.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Withheld {
    /// How many entries would be gone.
    pub gone_entries: u64,
    /// How many there were.
    pub of_entries: u64,
    /// How many bytes would be gone.
    pub gone_bytes: u64,
    /// How many there were.
    pub of_bytes: u64,
    /// How much may go.
    pub share: Share,
}

impl fmt::Display for Withheld {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            gone_entries,
            of_entries,
            gone_bytes,
            of_bytes,
            share,
        } = self;
        write!(
            f,
            "{gone_entries} of {of_entries} entries and {gone_bytes} of {of_bytes} bytes would go, \
             and no more than {share} may"
        )
    }
}

/// What the guard says to a commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Judgement {
    /// It may be made, and the guard takes it as made.
    Allow,
    /// It must not be made.
    Stop(Withheld),
}

/// Watches how a store shrinks.
#[derive(Clone, Debug)]
pub struct DeleteGuard {
    share: Share,
    /// The largest extent of each span, and the span's beginning; oldest first.
    largest: VecDeque<(Instant, Extent)>,
    allowed_until: Option<Instant>,
}

impl DeleteGuard {
    /// Returns a guard that lets `share` of the store go.
    pub fn new(share: Share) -> Self {
        Self {
            share,
            largest: VecDeque::new(),
            allowed_until: None,
        }
    }

    /// Judges a commit that would take the store from `before` to `after`.
    ///
    /// A commit that is stopped may be judged again as often as one likes: it stays stopped until it
    /// takes less, or an operator allows it.
    pub fn judge(&mut self, now: Instant, before: Extent, after: Extent) -> Judgement {
        let is_old = |begun: &Instant| now.saturating_duration_since(*begun) > GUARD_WINDOW + SPAN;
        while self.largest.front().is_some_and(|(begun, _)| is_old(begun)) {
            self.largest.pop_front();
        }
        self.remember(now, before);
        let peak = self
            .largest
            .iter()
            .fold(Extent::default(), |peak, (_, extent)| peak.max(*extent));
        let withheld = Withheld {
            gone_entries: peak.entries.saturating_sub(after.entries),
            of_entries: peak.entries,
            gone_bytes: peak.bytes.saturating_sub(after.bytes),
            of_bytes: peak.bytes,
            share: self.share,
        };
        // What does not shrink the store is let through, however much is gone already: a guard that
        // was just made stricter must not hold up what comes in.
        let shrinks = after.entries < before.entries || after.bytes < before.bytes;
        let is_too_much = self
            .share
            .is_exceeded_by(withheld.gone_entries, withheld.of_entries)
            || self
                .share
                .is_exceeded_by(withheld.gone_bytes, withheld.of_bytes);
        let is_guarded = peak.entries >= GUARDED_ENTRIES_MIN;
        if self.allowed_until.is_some_and(|until| now < until) {
            // What was allowed to go does not count as missing later.
            self.largest.clear();
        } else if shrinks && is_guarded && is_too_much {
            return Judgement::Stop(withheld);
        }
        self.remember(now, after);
        Judgement::Allow
    }

    /// Lets every deletion through from `now` on, for so long: an operator has said so.
    pub fn allow(&mut self, now: Instant, lasting: Duration) {
        self.allowed_until = now.checked_add(lasting);
    }

    /// Ends what [`DeleteGuard::allow`] has begun: what was meant has been committed.
    pub fn guard_again(&mut self) {
        self.allowed_until = None;
    }

    fn remember(&mut self, now: Instant, extent: Extent) {
        match self.largest.back_mut() {
            Some((begun, largest)) if now.saturating_duration_since(*begun) < SPAN => {
                *largest = largest.max(extent);
            }
            Some(_) | None => self.largest.push_back((now, extent)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A store of entries of 10 bytes each.
    fn extent(entries: u64) -> Extent {
        Extent {
            entries,
            bytes: entries * 10,
        }
    }

    fn at(seconds: u64) -> Instant {
        static START: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
        *START.get_or_init(Instant::now) + Duration::from_secs(seconds)
    }

    fn half() -> DeleteGuard {
        DeleteGuard::new(Share::HALF)
    }

    #[test]
    fn half_may_go_and_no_more() {
        let mut guard = half();
        assert_eq!(
            guard.judge(at(0), extent(100), extent(50)),
            Judgement::Allow
        );
        assert_eq!(
            guard.judge(at(1), extent(50), extent(49)),
            Judgement::Stop(Withheld {
                gone_entries: 51,
                of_entries: 100,
                gone_bytes: 510,
                of_bytes: 1000,
                share: Share::HALF,
            })
        );
    }

    #[test]
    fn a_stop_says_how_much_would_go() {
        let Judgement::Stop(withheld) = half().judge(at(0), extent(100), extent(0)) else {
            panic!("it was allowed");
        };
        assert_eq!(
            withheld.to_string(),
            "100 of 100 entries and 1000 of 1000 bytes would go, and no more than 50% may"
        );
    }

    #[test]
    fn a_slow_deletion_in_small_commits_is_stopped_where_a_quick_one_is() {
        let mut guard = half();
        let mut size = 2000;
        let mut second = 0;
        while guard.judge(at(second), extent(size), extent(size - 3)) == Judgement::Allow {
            size -= 3;
            second += 1;
        }
        assert_eq!((size, second), (1001, 333));
        // It is asked again all the time, and does not slip through when the window has moved on.
        for later in 0..2000 {
            let judged = guard.judge(at(second + later), extent(size), extent(0));
            assert!(matches!(judged, Judgement::Stop(_)), "{later}");
        }
    }

    #[test]
    fn files_that_come_and_go_do_not_add_up() {
        let mut guard = half();
        for second in 0..5000 {
            // A third goes, and a third comes.
            let judged = guard.judge(at(second), extent(300), extent(200));
            assert_eq!(judged, Judgement::Allow, "{second}");
            let judged = guard.judge(at(second), extent(200), extent(300));
            assert_eq!(judged, Judgement::Allow, "{second}");
        }
    }

    #[test]
    fn bytes_are_guarded_as_well_as_entries() {
        let before = Extent {
            entries: 100,
            bytes: 1000,
        };
        let after = Extent {
            entries: 99,
            bytes: 10,
        };
        let judged = half().judge(at(0), before, after);
        assert!(matches!(judged, Judgement::Stop(_)), "{judged:?}");
    }

    #[test]
    fn a_small_store_is_not_guarded() {
        assert_eq!(half().judge(at(0), extent(19), extent(0)), Judgement::Allow);
        assert_ne!(half().judge(at(0), extent(20), extent(0)), Judgement::Allow);
        // One that has become small within the window is.
        let mut guard = half();
        assert_eq!(guard.judge(at(0), extent(30), extent(15)), Judgement::Allow);
        assert_ne!(guard.judge(at(1), extent(15), extent(0)), Judgement::Allow);
    }

    #[test]
    fn what_an_operator_allows_goes_through_and_the_guard_is_on_again() {
        let mut guard = half();
        assert_ne!(
            guard.judge(at(0), extent(100), extent(30)),
            Judgement::Allow
        );
        guard.allow(at(5), Duration::from_secs(60));
        assert_eq!(
            guard.judge(at(6), extent(100), extent(60)),
            Judgement::Allow
        );
        assert_eq!(guard.judge(at(7), extent(60), extent(30)), Judgement::Allow);
        guard.guard_again();
        // The 70 that were allowed to go are not held against what follows.
        assert_eq!(guard.judge(at(8), extent(30), extent(20)), Judgement::Allow);
        assert_ne!(guard.judge(at(9), extent(20), extent(10)), Judgement::Allow);
    }

    #[test]
    fn an_allowance_ends_by_itself() {
        let mut guard = half();
        guard.allow(at(0), Duration::from_secs(60));
        assert_ne!(
            guard.judge(at(60), extent(100), extent(30)),
            Judgement::Allow
        );
    }

    #[test]
    fn what_comes_in_is_let_through_however_much_is_gone() {
        let mut guard = half();
        assert_eq!(
            guard.judge(at(0), extent(1000), extent(500)),
            Judgement::Allow
        );
        guard.share = "10%".parse().unwrap();
        assert_eq!(
            guard.judge(at(1), extent(500), extent(501)),
            Judgement::Allow
        );
        assert_ne!(
            guard.judge(at(2), extent(501), extent(500)),
            Judgement::Allow
        );
    }

    #[test]
    fn the_memory_is_bounded() {
        let mut guard = half();
        for second in 0..10_000 {
            guard.judge(at(second), extent(100), extent(100));
        }
        assert!(guard.largest.len() <= 63, "{}", guard.largest.len());
    }

    /// A history: seconds that pass, and the size that the application makes of its store.
    fn histories() -> impl Strategy<Value = Vec<(u64, u64)>> {
        prop::collection::vec((0..120_u64, 0..1000_u64), 1..200)
    }

    proptest! {
        #[test]
        fn no_more_than_the_share_ever_goes_within_the_window(
            share in 0..=100_u8,
            history in histories(),
        ) {
            let share: Share = format!("{share}%").parse().unwrap();
            let mut guard = DeleteGuard::new(share);
            let (mut second, mut size) = (0, 500);
            let mut made = vec![(second, size)];
            for (pause, wanted) in history {
                second += pause;
                let judged = guard.judge(at(second), extent(size), extent(wanted));
                if judged != Judgement::Allow {
                    continue;
                }
                let within = |then: &&(u64, u64)| second - then.0 <= GUARD_WINDOW.as_secs();
                let peak = made.iter().filter(within).map(|it| it.1).max().unwrap_or(0).max(size);
                let is_guarded = peak >= GUARDED_ENTRIES_MIN && wanted < size;
                prop_assert!(!is_guarded || !share.is_exceeded_by(peak - wanted.min(peak), peak));
                size = wanted;
                made.push((second, size));
            }
        }

        #[test]
        fn the_whole_is_never_stopped(history in histories()) {
            let mut guard = DeleteGuard::new(Share::WHOLE);
            let (mut second, mut size) = (0, 500);
            for (pause, wanted) in history {
                second += pause;
                let judged = guard.judge(at(second), extent(size), extent(wanted));
                prop_assert_eq!(judged, Judgement::Allow);
                size = wanted;
            }
        }

        #[test]
        fn what_only_grows_is_never_stopped(mut sizes in prop::collection::vec(0..1000_u64, 2..50)) {
            sizes.sort_unstable();
            let mut guard = DeleteGuard::new("0%".parse().unwrap());
            for pair in sizes.windows(2) {
                let judged = guard.judge(at(0), extent(pair[0]), extent(pair[1]));
                prop_assert_eq!(judged, Judgement::Allow);
            }
        }
    }
}
