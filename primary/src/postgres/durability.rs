//! Whether commits wait for a standby. Pure: what the server says goes in, what it is to be told comes
//! out, and the time is an argument.
//!
//! ```text
//!         a standby has caught up              the server says that it waits
//! Alone ──────────────────────────▶ Required ────────────────────────────────▶ Held
//!   ▲                                  │   ▲                                     │
//!   └──────────────────────────────────┘   └─────────────────────────────────────┘
//!        for longer than degrade_after         no standby answers any more
//! ```
//!
//! Invariant: that commits wait is claimed in `Held` only, which is entered on the server's own word that
//! it waits and that a standby is there; and it is given up before the server is told to go on alone. In
//! between, in `Required`, the server lets no commit through that no standby has.

use std::time::{Duration, Instant};

use understudy_replication::store::Durability;

/// What the server says of itself and its standbys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Streams {
    /// It has commits wait: the setting is in effect.
    pub(super) is_required: bool,
    /// Somebody has said of some sessions that they need not wait.
    pub(super) is_overridden: bool,
    /// A standby that has answered lately is one that commits wait for.
    pub(super) is_synced: bool,
    /// A standby that has answered lately has made durable what the server itself had at the look before.
    pub(super) has_caught_up: bool,
    /// When a standby that is waited for last answered, as far as this node knows.
    pub(super) answered: Option<Instant>,
}

/// What the server is to be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// Commits wait for a standby from now on.
    Require,
    /// Commits wait for nobody from now on.
    Release,
}

/// The machine.
#[derive(Clone, Copy, Debug)]
pub(super) struct Waiting {
    degrade_after: Option<Duration>,
    state: State,
    /// Commits waited, and a standby was there, at the look before, too.
    was_held: bool,
    is_overridden: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Alone,
    Required { since: Instant },
    Held,
}

impl Waiting {
    /// Begins; `is_required` says whether the server was told to wait before this node began to watch.
    pub(super) fn new(degrade_after: Option<Duration>, is_required: bool, now: Instant) -> Self {
        Self {
            degrade_after,
            state: if is_required {
                State::Required { since: now }
            } else {
                State::Alone
            },
            was_held: false,
            is_overridden: false,
        }
    }

    /// Returns what may be claimed at `now`.
    pub(super) fn claim(&self, now: Instant) -> Durability {
        match self.state {
            State::Alone => Durability::Alone { seconds: None },
            State::Held if self.is_overridden => Durability::Overridden,
            State::Held => Durability::Held,
            State::Required { since } => Durability::Waiting {
                seconds: now.saturating_duration_since(since).as_secs(),
            },
        }
    }

    /// Returns what the server is to be told after it has said this.
    pub(super) fn see(&mut self, now: Instant, streams: &Streams) -> Option<Action> {
        let is_held = streams.is_required && streams.is_synced;
        // Backends begin to wait a moment after the setting is in effect, and what was committed before that
        // has to be there as well.
        let is_sure = is_held && self.was_held && streams.has_caught_up;
        self.was_held = is_held;
        self.is_overridden = streams.is_overridden;
        match self.state {
            State::Alone if streams.has_caught_up => {
                self.state = State::Required { since: now };
                Some(Action::Require)
            }
            // Somebody else has told it to wait, and nobody would ever tell it to stop.
            State::Alone if streams.is_required => Some(Action::Release),
            State::Alone => None,
            State::Required { .. } if is_sure => {
                self.state = State::Held;
                None
            }
            // A standby answers: nobody is to be released.
            State::Required { .. } if is_held => None,
            State::Required { since } => {
                let has_waited = now.saturating_duration_since(since);
                if self.degrade_after.is_some_and(|limit| has_waited >= limit) {
                    self.state = State::Alone;
                    return Some(Action::Release);
                }
                // It may have been told in vain, or somebody else something else.
                (!streams.is_required).then_some(Action::Require)
            }
            State::Held if is_held => None,
            State::Held => {
                let since = streams.answered.unwrap_or(now);
                self.state = State::Required { since };
                (!streams.is_required).then_some(Action::Require)
            }
        }
    }

    /// Notes that the server does not answer, and returns what it is to be told all the same: that commits
    /// wait may be the reason, as when they have used up its connections.
    pub(super) fn hears_nothing(&mut self, now: Instant) -> Option<Action> {
        self.was_held = false;
        match self.state {
            State::Alone => None,
            State::Held => {
                self.state = State::Required { since: now };
                None
            }
            State::Required { since } => {
                let has_waited = now.saturating_duration_since(since);
                let limit = self.degrade_after.filter(|limit| has_waited >= *limit)?;
                tracing::debug!(?limit, "commits have waited for too long");
                self.state = State::Alone;
                Some(Action::Release)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LIMIT: Duration = Duration::from_secs(10);

    const GONE: Streams = Streams {
        is_required: true,
        is_overridden: false,
        is_synced: false,
        has_caught_up: false,
        answered: None,
    };
    const SYNCED: Streams = Streams {
        is_required: true,
        is_overridden: false,
        is_synced: true,
        has_caught_up: true,
        answered: None,
    };

    fn held(limit: Option<Duration>, now: Instant) -> Waiting {
        let mut waiting = Waiting::new(limit, true, now);
        assert_eq!(waiting.see(now, &SYNCED), None);
        assert_ne!(
            waiting.claim(now),
            Durability::Held,
            "one look is not enough"
        );
        assert_eq!(waiting.see(now, &SYNCED), None);
        assert_eq!(waiting.claim(now), Durability::Held);
        waiting
    }

    #[test]
    fn a_primary_goes_on_alone_after_the_limit_and_returns_by_itself() {
        let now = Instant::now();
        let mut waiting = held(Some(LIMIT), now);
        let lost = Streams {
            answered: Some(now),
            ..GONE
        };
        assert_eq!(waiting.see(now + LIMIT / 2, &lost), None);
        assert_eq!(
            waiting.claim(now + LIMIT / 2),
            Durability::Waiting { seconds: 5 }
        );
        // Counted from the standby's last answer, not from when that was noticed.
        assert_eq!(waiting.see(now + LIMIT, &lost), Some(Action::Release));
        let later = now + LIMIT * 2;
        let catching_up = Streams {
            is_required: false,
            ..GONE
        };
        assert_eq!(waiting.see(later, &catching_up), None);
        assert_eq!(waiting.claim(later), Durability::Alone { seconds: None });
        let caught_up = Streams {
            is_required: false,
            has_caught_up: true,
            ..GONE
        };
        assert_eq!(waiting.see(later, &caught_up), Some(Action::Require));
        assert_ne!(waiting.claim(later), Durability::Held, "not yet in effect");
        assert_eq!(waiting.see(later, &SYNCED), None);
        assert_eq!(waiting.see(later, &SYNCED), None);
        assert_eq!(waiting.claim(later), Durability::Held);
    }

    #[test]
    fn a_server_that_does_not_answer_because_commits_wait_is_released_all_the_same() {
        let now = Instant::now();
        let mut waiting = held(Some(LIMIT), now);
        assert_eq!(waiting.hears_nothing(now), None);
        assert_eq!(waiting.hears_nothing(now + LIMIT / 2), None);
        assert_eq!(waiting.hears_nothing(now + LIMIT), Some(Action::Release));
        assert_eq!(
            waiting.claim(now + LIMIT),
            Durability::Alone { seconds: None }
        );
        let mut strict = held(None, now);
        assert_eq!(strict.hears_nothing(now), None);
        assert_eq!(strict.hears_nothing(now + LIMIT * 100), None);
    }

    #[test]
    fn what_somebody_has_overridden_is_not_claimed_and_releases_nobody() {
        let now = Instant::now();
        let mut waiting = held(Some(LIMIT), now);
        let overridden = Streams {
            is_overridden: true,
            ..SYNCED
        };
        for seconds in 0..60 {
            assert_eq!(
                waiting.see(now + Duration::from_secs(seconds), &overridden),
                None
            );
            assert_eq!(waiting.claim(now), Durability::Overridden);
        }
        assert_eq!(waiting.see(now, &SYNCED), None);
        assert_eq!(waiting.claim(now), Durability::Held);
    }

    #[test]
    fn a_strict_primary_waits_for_ever() {
        let now = Instant::now();
        let mut waiting = held(None, now);
        for days in 0..100 {
            let later = now + Duration::from_secs(days * 86_400);
            assert_eq!(waiting.see(later, &GONE), None);
            assert_ne!(waiting.claim(later), Durability::Alone { seconds: None });
        }
    }

    #[test]
    fn a_daemon_that_begins_while_commits_wait_lets_them_go_on() {
        let now = Instant::now();
        let mut waiting = Waiting::new(Some(LIMIT), true, now);
        assert_eq!(waiting.see(now, &GONE), None);
        assert_eq!(waiting.see(now + LIMIT, &GONE), Some(Action::Release));
    }

    fn streams() -> impl Strategy<Value = Streams> {
        (any::<bool>(), any::<bool>()).prop_map(|(is_synced, has_caught_up)| Streams {
            is_required: false,
            is_overridden: false,
            is_synced,
            has_caught_up,
            answered: None,
        })
    }

    proptest! {
        /// Whatever the standbys do: held is claimed only while the server waits for one that is there,
        /// and commits never wait for nobody for longer than the limit and a look.
        #[test]
        fn nothing_is_claimed_that_is_not_so(
            history in prop::collection::vec((streams(), 1_u64..4, any::<bool>()), 1..60),
        ) {
            let mut now = Instant::now();
            let mut waiting = Waiting::new(Some(LIMIT), false, now);
            let mut is_required = false;
            let mut blocked_since = None;
            for (streams, seconds, does_obey) in history {
                now += Duration::from_secs(seconds);
                let streams = Streams { is_required, is_synced: is_required && streams.is_synced, ..streams };
                let action = waiting.see(now, &streams);
                if waiting.claim(now) == Durability::Held {
                    prop_assert!(streams.is_required && streams.is_synced);
                }
                match action {
                    Some(Action::Require) if does_obey => is_required = true,
                    Some(Action::Release) => is_required = false,
                    Some(Action::Require) | None => {}
                }
                let is_blocked = is_required && !streams.is_synced;
                blocked_since = if is_blocked { blocked_since.or(Some(now)) } else { None };
                if let Some(since) = blocked_since {
                    prop_assert!(now - since < LIMIT + Duration::from_secs(8));
                }
            }
        }
    }
}
