//! Timelines: whether one server's write-ahead log is a beginning of another's. Pure.
//!
//! A promotion ends the timeline that a server was on at some place, and begins one of the next number, so
//! that a server's log is a chain: timeline 1 up to here, 2 up to there, 3 until now. The file
//! `TIMELINE.history` names the ends of all but the last (Postgres' documentation, 26.3, "Timelines").
//! Two servers that were promoted apart may both be on a timeline 2. `pg_rewind` looks at the numbers and
//! finds nothing to do; what tells them apart is where their timeline 1 ended.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::origins::Origins;
use crate::position::Lsn;

/// A history file has no more lines than this.
const TIMELINES_MAX: usize = 10_000;

/// The end of a timeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// Its number.
    pub timeline: u32,
    /// Where the next one begins.
    pub at: Lsn,
}

/// Where a server's log comes from, and how far it goes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct History {
    /// Tells clusters apart.
    pub system_identifier: u64,
    /// The timelines that have ended, in order.
    pub ended: Vec<Ended>,
    /// The present one.
    pub timeline: u32,
    /// How far the log goes on it.
    pub end: Lsn,
    /// Which epochs opened its timelines, as far as that is known.
    #[serde(default)]
    pub origins: Origins,
}

/// What one server's log is to another's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Relation {
    /// It is a beginning of the other, or all of it: the other can be followed.
    Beginning,
    /// They are of one cluster, and have only what is before this place in common.
    Forked {
        /// Where they parted.
        at: Lsn,
        /// The timeline that both were on.
        timeline: u32,
    },
    /// They are of different clusters.
    Foreign {
        /// This server's system identifier.
        ours: u64,
        /// The other's.
        theirs: u64,
    },
}

impl fmt::Display for Relation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Beginning => f.write_str("what it has is a beginning of what the primary has"),
            Self::Forked { at, timeline } => write!(
                f,
                "it is in a history of its own: it has written what the primary has not, from {at} on \
                 timeline {timeline} on"
            ),
            Self::Foreign { ours, theirs } => write!(
                f,
                "it is another cluster (system identifier {ours}) than the primary's ({theirs})"
            ),
        }
    }
}

/// A history file that cannot be understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line} of a timeline history cannot be understood: {text}")]
pub struct ParseHistoryError {
    line: usize,
    text: String,
}

/// Reads the content of a `TIMELINE.history` file: on each line the number of a timeline, where it ended,
/// and why.
///
/// # Errors
/// When a line is none, the numbers or places do not rise, or there are too many.
pub fn parse_history(content: &str) -> Result<Vec<Ended>, ParseHistoryError> {
    let mut all: Vec<Ended> = Vec::new();
    for (number, line) in content.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let mistake = || ParseHistoryError {
            line: number.saturating_add(1),
            text: line.chars().take(80).collect(),
        };
        let mut fields = line.split_whitespace();
        let timeline = fields.next().and_then(|field| field.parse().ok());
        let at = fields.next().and_then(|field| field.parse().ok());
        let (Some(timeline), Some(at)) = (timeline, at) else {
            return Err(mistake());
        };
        let is_next = all
            .last()
            .is_none_or(|last| last.timeline < timeline && last.at <= at);
        if !is_next || all.len() >= TIMELINES_MAX {
            return Err(mistake());
        }
        all.push(Ended { timeline, at });
    }
    Ok(all)
}

impl History {
    /// Returns the timelines and where each ends, the present one as far as it goes.
    pub(super) fn chain(&self) -> impl Iterator<Item = Ended> + '_ {
        let present = Ended {
            timeline: self.timeline,
            at: self.end,
        };
        self.ended.iter().copied().chain([present])
    }

    /// Returns whether two timelines are one, and not two of the same number: opened by one promotion, as
    /// far as that is known.
    fn is_on_the_same(&self, other: &Self, mine: u32, theirs: u32) -> bool {
        mine == theirs
            && match (self.origins.get(&mine), other.origins.get(&theirs)) {
                (Some(mine), Some(theirs)) => mine == theirs,
                (None, _) | (_, None) => true,
            }
    }

    /// Returns what this server's log is to that of `other`.
    pub fn relation_to(&self, other: &Self) -> Relation {
        if self.system_identifier != other.system_identifier {
            return Relation::Foreign {
                ours: self.system_identifier,
                theirs: other.system_identifier,
            };
        }
        let mut common = Ended {
            timeline: 1,
            at: Lsn(0),
        };
        let mut theirs = other.chain();
        let count = self.ended.len();
        for (number, mine) in self.chain().enumerate() {
            let is_last = number == count;
            match theirs.next() {
                Some(their) if self.is_on_the_same(other, mine.timeline, their.timeline) => {
                    // Of the last one, what is missing is still to come.
                    if is_last && mine.at <= their.at {
                        return Relation::Beginning;
                    }
                    let both = mine.at.min(their.at);
                    if is_last || mine.at != their.at {
                        return Relation::Forked {
                            at: both,
                            timeline: mine.timeline,
                        };
                    }
                    common = mine;
                }
                // They went on on another timeline, or not at all.
                Some(_) | None => {
                    return Relation::Forked {
                        at: common.at,
                        timeline: common.timeline,
                    };
                }
            }
        }
        Relation::Beginning
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn history(ended: &[(u32, u64)], timeline: u32, end: u64) -> History {
        History {
            system_identifier: 7,
            ended: ended
                .iter()
                .map(|(timeline, at)| Ended {
                    timeline: *timeline,
                    at: Lsn(*at),
                })
                .collect(),
            timeline,
            end: Lsn(end),
            origins: Origins::new(),
        }
    }

    fn forked(at: u64, timeline: u32) -> Relation {
        Relation::Forked {
            at: Lsn(at),
            timeline,
        }
    }

    #[test]
    fn a_standby_that_is_behind_can_follow_across_promotions() {
        let primary = history(&[(1, 100), (2, 200)], 3, 300);
        for standby in [
            history(&[], 1, 100),
            history(&[], 1, 50),
            history(&[(1, 100)], 2, 150),
            history(&[(1, 100), (2, 200)], 3, 300),
        ] {
            assert_eq!(standby.relation_to(&primary), Relation::Beginning);
        }
    }

    #[test]
    fn a_former_primary_that_wrote_on_is_in_a_history_of_its_own() {
        let primary = history(&[(1, 100)], 2, 200);
        assert_eq!(history(&[], 1, 120).relation_to(&primary), forked(100, 1));
        let behind = history(&[(1, 100)], 2, 150);
        assert_eq!(
            history(&[(1, 100)], 2, 160).relation_to(&behind),
            forked(150, 2),
            "a primary that has lost what it had"
        );
    }

    /// pg_rewind calls this "on the same timeline".
    #[test]
    fn two_forced_promotions_to_a_timeline_of_the_same_number_are_told_apart() {
        let (one, other) = (history(&[(1, 100)], 2, 500), history(&[(1, 90)], 2, 400));
        assert_eq!(one.relation_to(&other), forked(90, 1));
        assert_eq!(other.relation_to(&one), forked(90, 1));
    }

    /// Even the places are equal here: the histories are the same to the letter.
    #[test]
    fn two_promotions_from_the_same_place_are_told_apart_by_their_epochs() {
        let opened = |by: &str, end| {
            let mut history = history(&[(1, 100)], 2, end);
            history.origins.insert(2, by.parse().unwrap());
            history
        };
        let (one, other) = (opened("2.b", 150), opened("2.c", 400));
        assert_eq!(one.relation_to(&other), forked(100, 1));
        assert_eq!(other.relation_to(&one), forked(100, 1));
        assert_eq!(one.relation_to(&opened("2.b", 150)), Relation::Beginning);
        assert_eq!(
            one.relation_to(&history(&[(1, 100)], 2, 400)),
            Relation::Beginning,
            "of whom it is not known"
        );
    }

    #[test]
    fn a_timeline_that_the_other_never_was_on_is_a_fork_where_the_common_one_ended() {
        let skipping = history(&[(1, 100)], 3, 200);
        assert_eq!(
            history(&[(1, 100)], 2, 150).relation_to(&skipping),
            forked(100, 1)
        );
        assert_eq!(
            history(&[(1, 100)], 2, 150).relation_to(&history(&[], 1, 90)),
            forked(90, 1)
        );
    }

    #[test]
    fn another_cluster_is_foreign() {
        let mut other = history(&[], 1, 100);
        other.system_identifier = 8;
        assert_eq!(
            history(&[], 1, 100).relation_to(&other),
            Relation::Foreign { ours: 7, theirs: 8 }
        );
    }

    #[test]
    fn a_history_file_is_read_with_its_comments_and_refused_when_it_is_none() {
        let file = "1\t0/3000148\tno recovery target specified\n\n# x\n2\t0/5000000\tbefore 2000\n";
        let read = parse_history(file).unwrap();
        assert_eq!(read.len(), 2);
        assert_eq!(
            read[1],
            Ended {
                timeline: 2,
                at: Lsn(0x500_0000)
            }
        );
        for wrong in ["1", "x 0/1", "2 0/5\n1 0/6", "1 0/5\n2 0/4", "1 nowhere"] {
            assert!(parse_history(wrong).is_err(), "{wrong}");
        }
    }

    fn any_history() -> impl Strategy<Value = History> {
        (prop::collection::vec(1_u64..50, 0..4), 0_u64..50).prop_map(|(lengths, more)| {
            let mut at = 0;
            let ended: Vec<(u32, u64)> = (1..)
                .zip(lengths)
                .map(|(timeline, length)| {
                    at += length;
                    (timeline, at)
                })
                .collect();
            let timeline = u32::try_from(ended.len()).unwrap() + 1;
            history(&ended, timeline, at + more)
        })
    }

    proptest! {
        /// Each is a beginning of itself, and of itself after more was written or it was promoted; and
        /// two forks part at the same place, seen from either side.
        #[test]
        fn relations_are_sound(one in any_history(), other in any_history(), more in 1_u64..50) {
            prop_assert_eq!(one.relation_to(&one), Relation::Beginning);
            let mut longer = one.clone();
            longer.end = Lsn(longer.end.0 + more);
            prop_assert_eq!(one.relation_to(&longer), Relation::Beginning);
            let mut promoted = longer.clone();
            promoted.ended.push(Ended { timeline: promoted.timeline, at: promoted.end });
            promoted.timeline += 1;
            prop_assert_eq!(one.relation_to(&promoted), Relation::Beginning);
            if let (Relation::Forked { at: a, .. }, Relation::Forked { at: b, .. }) =
                (one.relation_to(&other), other.relation_to(&one))
            {
                prop_assert_eq!(a, b);
            }
        }
    }
}
