//! A pause: for a while, Understudy does nothing by itself on the cluster. Pure; time is an argument.
//!
//! Somebody who works on a cluster by hand must be able to say so once, on any node, and be left alone. The
//! record of it goes from node to node with every greeting, and the newest change wins, whichever way and however
//! often it comes: [`PauseRecord::merge`] takes the greater of two in one order, so it does not matter who tells
//! whom first. A pause always ends by itself.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use understudy_config::{NodeName, duration};

use crate::status::PauseStatus;
use crate::wall_time::WallTime;

/// The longest pause.
pub const PAUSE_MAX: Duration = Duration::from_secs(7 * 24 * 3600);

/// The longest reason, in bytes.
pub const REASON_BYTES_MAX: usize = 500;

/// The longest name of an owner, in bytes.
pub const OWNER_BYTES_MAX: usize = 100;

/// A record from further in the future than this is not believed: it would win over all that come.
pub const CLOCK_AHEAD_MAX: Duration = Duration::from_secs(3600);

/// A pause.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Pause {
    /// Since when, by the clock of the node on which it was asked for.
    pub since: WallTime,
    /// When it ends by itself.
    pub until: WallTime,
    /// Why.
    pub reason: String,
    /// Who asked for it.
    pub owner: String,
    /// On which node.
    pub node: NodeName,
}

/// What a node knows of pauses: the newest change, and what it made of them.
///
/// Ordered by the change, and then by all the rest: two records that are not equal are never of one rank.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PauseRecord {
    /// When it was changed last, and by which node; `None` if it never was.
    pub changed: Option<(WallTime, NodeName)>,
    /// The pause; `None` after it was ended by somebody.
    pub pause: Option<Pause>,
}

/// Why a pause cannot begin.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PauseError {
    /// It would be too long, or have no length.
    #[error(
        "a pause cannot last {}: it lasts more than nothing and at most {}, so that one that is forgotten ends by itself",
        duration::text(*asked), duration::text(PAUSE_MAX)
    )]
    Length {
        /// What was asked for.
        asked: Duration,
    },
    /// A word is missing or too long, or would not be one line.
    #[error("the {what} has to be 1 to {bytes_max} bytes in one line")]
    Text {
        /// Which.
        what: &'static str,
        /// How long it may be.
        bytes_max: usize,
    },
}

/// Why the record of another node is not taken over.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AbsurdPause {
    /// It is from the future.
    #[error("it was made {} s from now, by node {node}'s clock", ahead.as_secs())]
    Clock {
        /// The node that made it.
        node: NodeName,
        /// How far in the future.
        ahead: Duration,
    },
    /// It cannot have been made by [`PauseRecord::begin`].
    #[error("{0}")]
    Bounds(#[from] PauseError),
}

fn after(time: WallTime, length: Duration) -> WallTime {
    let millis = u64::try_from(length.as_millis()).unwrap_or(u64::MAX);
    WallTime(time.0.saturating_add(millis))
}

fn between(earlier: WallTime, later: WallTime) -> Duration {
    Duration::from_millis(later.0.saturating_sub(earlier.0))
}

impl Pause {
    fn check(&self) -> Result<(), PauseError> {
        let texts = [
            ("reason", &self.reason, REASON_BYTES_MAX),
            ("owner", &self.owner, OWNER_BYTES_MAX),
        ];
        for (what, text, bytes_max) in texts {
            let is_line = !text.chars().any(char::is_control);
            if text.trim().is_empty() || text.len() > bytes_max || !is_line {
                return Err(PauseError::Text { what, bytes_max });
            }
        }
        let asked = between(self.since, self.until);
        if asked.is_zero() || asked > PAUSE_MAX {
            return Err(PauseError::Length { asked });
        }
        Ok(())
    }

    /// Returns it in a sentence that ends with what to do.
    pub fn sentence(&self) -> String {
        format!(
            "paused by {} on node {} until {}: {}; understudy does nothing by itself until then, and a standby \
             goes on receiving; run `understudy resume` to end it",
            self.owner, self.node, self.until, self.reason
        )
    }
}

impl From<Pause> for PauseStatus {
    fn from(pause: Pause) -> Self {
        Self {
            since: pause.since,
            until: pause.until,
            reason: pause.reason,
            owner: pause.owner,
            node: pause.node,
        }
    }
}

impl PauseRecord {
    /// Returns the newer of two; equal whichever way it is asked.
    #[must_use]
    pub fn merge(self, other: Self) -> Self {
        self.max(other)
    }

    /// Returns the pause that is on at `now`.
    pub fn active(&self, now: WallTime) -> Option<&Pause> {
        let pause = self.pause.as_ref()?;
        // By a clock that was set back it would last for long.
        let is_plausible = between(now, pause.until) <= PAUSE_MAX + CLOCK_AHEAD_MAX;
        (pause.until > now && is_plausible).then_some(pause)
    }

    /// Returns when a change that is made at `now` has to say that it was made: later than the one that is
    /// known, even if that is from a clock which is ahead.
    fn next_change(&self, now: WallTime) -> WallTime {
        let known = self.changed.as_ref().map_or(0, |(time, _)| time.0);
        now.max(WallTime(known.saturating_add(1)))
    }

    /// Begins a pause at `now`, instead of one that may be on.
    ///
    /// # Errors
    /// When it would be too long, or a text is.
    pub fn begin(
        &self,
        now: WallTime,
        node: &NodeName,
        length: Duration,
        reason: &str,
        owner: &str,
    ) -> Result<Self, PauseError> {
        let pause = Pause {
            since: now,
            until: after(now, length),
            reason: reason.trim().to_owned(),
            owner: owner.trim().to_owned(),
            node: node.clone(),
        };
        pause.check()?;
        Ok(Self {
            changed: Some((self.next_change(now), node.clone())),
            pause: Some(pause),
        })
    }

    /// Ends the pause that is on at `now`; `None` if there is none.
    pub fn end(&self, now: WallTime, node: &NodeName) -> Option<Self> {
        self.active(now)?;
        Some(Self {
            changed: Some((self.next_change(now), node.clone())),
            pause: None,
        })
    }

    /// Checks the record of another node, as it arrives at `now`.
    ///
    /// # Errors
    /// When it is not to be taken over.
    pub fn check(&self, now: WallTime) -> Result<(), AbsurdPause> {
        if let Some((time, node)) = &self.changed {
            let ahead = between(now, *time);
            if ahead > CLOCK_AHEAD_MAX {
                let node = node.clone();
                return Err(AbsurdPause::Clock { node, ahead });
            }
        }
        match &self.pause {
            Some(pause) => {
                let ahead = between(now, pause.since);
                if ahead > CLOCK_AHEAD_MAX {
                    let node = pause.node.clone();
                    return Err(AbsurdPause::Clock { node, ahead });
                }
                Ok(pause.check()?)
            }
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NOW: WallTime = WallTime(1_700_000_000_000);
    const HOUR: Duration = Duration::from_secs(3600);

    fn node(name: &str) -> NodeName {
        name.parse().unwrap()
    }

    fn paused(now: WallTime) -> PauseRecord {
        PauseRecord::default()
            .begin(now, &node("a"), 2 * HOUR, "new disks", "eva")
            .unwrap()
    }

    fn any_record() -> impl Strategy<Value = PauseRecord> {
        let name = || prop_oneof!["a", "b", "c"].prop_map(|name: String| node(&name));
        let pause = (0_u64..4, 4_u64..8, "[xy]", "[pq]", name()).prop_map(
            |(since, until, reason, owner, node)| Pause {
                since: WallTime(since),
                until: WallTime(until),
                reason,
                owner,
                node,
            },
        );
        let changed = proptest::option::of((0_u64..4, name()));
        (changed, proptest::option::of(pause)).prop_map(|(changed, pause)| PauseRecord {
            changed: changed.map(|(time, node)| (WallTime(time), node)),
            pause,
        })
    }

    proptest! {
        #[test]
        fn it_does_not_matter_in_which_order_records_meet(
            a in any_record(), b in any_record(), c in any_record(),
        ) {
            let both = |one: &PauseRecord, other: &PauseRecord| one.clone().merge(other.clone());
            prop_assert_eq!(both(&a, &b), both(&b, &a));
            prop_assert_eq!(both(&both(&a, &b), &c), both(&a, &both(&b, &c)));
            prop_assert_eq!(both(&a, &a), a.clone());
            let merged = both(&a, &b);
            prop_assert!(merged == a || merged == b);
            prop_assert!(merged.changed >= a.changed && merged.changed >= b.changed);
        }

        #[test]
        fn a_change_wins_over_what_its_node_knew_whatever_its_clock_says(
            known in any_record(), now in 0_u64..8,
        ) {
            let now = WallTime(now);
            let begun = known.begin(now, &node("b"), HOUR, "x", "y").unwrap();
            prop_assert_eq!(known.clone().merge(begun.clone()), begun.clone());
            let ended = begun.end(now, &node("c")).unwrap();
            prop_assert_eq!(begun.merge(ended.clone()), ended);
        }
    }

    #[test]
    fn a_pause_ends_by_itself_or_when_it_is_ended() {
        let record = paused(NOW);
        let at = |length: Duration| after(NOW, length);
        assert!(record.active(NOW).is_some());
        assert!(
            record
                .active(at(2 * HOUR - Duration::from_millis(1)))
                .is_some()
        );
        assert_eq!(record.active(at(2 * HOUR)), None);
        assert_eq!(record.end(at(2 * HOUR), &node("b")), None);
        let ended = record.end(at(HOUR), &node("b")).unwrap();
        assert_eq!(ended.active(at(HOUR)), None);
        assert_eq!(record.merge(ended.clone()), ended);
        // A clock that was set back by a month does not make it last a month.
        assert_eq!(
            paused(NOW).active(WallTime(NOW.0 - 30 * 24 * 3_600_000)),
            None
        );
    }

    #[test]
    fn what_nobody_would_remember_is_refused() {
        let begin = |length, reason: &str, owner: &str| {
            PauseRecord::default().begin(NOW, &node("a"), length, reason, owner)
        };
        assert!(begin(PAUSE_MAX, "r", "o").is_ok());
        let too_long = PAUSE_MAX + Duration::from_millis(1);
        assert_eq!(
            begin(too_long, "r", "o"),
            Err(PauseError::Length { asked: too_long })
        );
        assert!(begin(Duration::ZERO, "r", "o").is_err());
        assert_eq!(
            begin(24 * 8 * HOUR, "r", "o").unwrap_err().to_string(),
            "a pause cannot last 8d: it lasts more than nothing and at most 7d, so that one that is forgotten ends \
             by itself"
        );
        for (reason, owner) in [
            ("", "o"),
            (" ", "o"),
            ("r", ""),
            ("two\nlines", "o"),
            ("r", "\x1b[2J"),
        ] {
            assert!(begin(HOUR, reason, owner).is_err(), "{reason:?} {owner:?}");
        }
        assert!(begin(HOUR, &"r".repeat(REASON_BYTES_MAX + 1), "o").is_err());
        assert!(begin(HOUR, "r", &"o".repeat(OWNER_BYTES_MAX + 1)).is_err());
    }

    #[test]
    fn a_record_from_the_future_or_beyond_its_bounds_is_not_taken_over() {
        let ahead = |length| paused(after(NOW, length));
        assert_eq!(ahead(HOUR).check(NOW), Ok(()));
        assert_eq!(
            ahead(HOUR + Duration::from_secs(1)).check(NOW),
            Err(AbsurdPause::Clock {
                node: node("a"),
                ahead: HOUR + Duration::from_secs(1),
            })
        );
        let mut long = paused(NOW);
        long.pause.as_mut().unwrap().until = after(NOW, 2 * PAUSE_MAX);
        assert!(long.check(NOW).is_err());
        let mut loud = paused(NOW);
        loud.pause.as_mut().unwrap().reason = "x".repeat(10_000);
        assert!(loud.check(NOW).is_err());
        assert_eq!(PauseRecord::default().check(NOW), Ok(()));
    }

    #[test]
    fn a_record_reads_the_same_as_it_was_written() {
        let record = paused(NOW);
        let text = serde_json::to_string(&record).unwrap();
        assert_eq!(serde_json::from_str::<PauseRecord>(&text).unwrap(), record);
        assert_eq!(
            text,
            r#"{"changed":[1700000000000,"a"],"pause":{"since":1700000000000,"until":1700007200000,"reason":"new disks","owner":"eva","node":"a"}}"#
        );
    }
}
