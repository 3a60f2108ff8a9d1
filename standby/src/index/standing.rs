//! Whether an index is of this database's past: pure.
//!
//! An index is read from one node's Postgres, and that one's past can change: a former primary is rewound, a
//! standby is seeded anew, a server that crashed has lost what it had not made durable. What the index read
//! beyond the place where the histories part is of a future that never was. The marks of its rows say
//! nothing of that, so it has to be looked at row by row.

use serde::{Deserialize, Serialize};
use understudy_replication::postgres::{History, Relation};

/// How much of a server's history something has seen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamp {
    /// The system identifier, the timelines and the place on the last: no more than this has been seen.
    pub history: History,
    /// All of it was durable there, so that a crash of that server has taken none of it.
    pub is_durable: bool,
    /// When that server was started, in microseconds since 1970 by its clock: it tells a crash.
    pub server_started: i64,
}

/// What an index is to the database that it is to follow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// All that it has seen is in the database's past: the changes since are what is missing.
    Continues {
        /// The database has been promoted since.
        is_promoted: bool,
    },
    /// It has seen what this replica is yet to replay again, as after a restart: it is to wait.
    Ahead,
    /// It has seen what this database never had.
    Parted {
        /// How the histories are to each other, or `None` if a crash took what was not durable.
        relation: Option<Relation>,
    },
}

/// Compares what an index has seen with the database as it is now, which `is_standby` or not.
pub fn standing(index: &Stamp, now: &Stamp, is_standby: bool) -> Standing {
    let has_crashed = index.server_started != now.server_started;
    if !index.is_durable && has_crashed {
        return Standing::Parted { relation: None };
    }
    let mut later = now.history.clone();
    if is_standby {
        // What has been replayed once was durable here: the same replica gets there again.
        later.end = later.end.max(index.history.end);
    }
    match index.history.relation_to(&later) {
        Relation::Beginning if index.history.end > now.history.end => Standing::Ahead,
        Relation::Beginning => Standing::Continues {
            is_promoted: index.history.timeline != now.history.timeline,
        },
        relation @ (Relation::Forked { .. } | Relation::Foreign { .. }) => Standing::Parted {
            relation: Some(relation),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use understudy_replication::epoch::Epoch;
    use understudy_replication::position::Lsn;
    use understudy_replication::postgres::Ended;

    fn stamp(ended: &[(u32, u64)], timeline: u32, end: u64) -> Stamp {
        let ended = ended.iter().map(|(timeline, at)| Ended {
            timeline: *timeline,
            at: Lsn(*at),
        });
        Stamp {
            history: History {
                system_identifier: 7,
                ended: ended.collect(),
                timeline,
                end: Lsn(end),
                origins: Default::default(),
            },
            is_durable: true,
            server_started: 1,
        }
    }

    fn continues(is_promoted: bool) -> Standing {
        Standing::Continues { is_promoted }
    }

    fn is_parted(standing: &Standing) -> bool {
        matches!(standing, Standing::Parted { .. })
    }

    #[test]
    fn an_index_of_the_past_continues_through_a_promotion() {
        let index = stamp(&[], 1, 100);
        assert_eq!(
            standing(&index, &stamp(&[], 1, 100), true),
            continues(false)
        );
        assert_eq!(
            standing(&index, &stamp(&[], 1, 120), false),
            continues(false)
        );
        // The switch is where the standby had got to, or after it.
        let promoted = stamp(&[(1, 100)], 2, 150);
        assert_eq!(standing(&index, &promoted, false), continues(true));
        assert_eq!(standing(&index, &promoted, true), continues(true));
    }

    #[test]
    fn an_index_that_has_read_beyond_the_switch_has_parted() {
        let index = stamp(&[], 1, 101);
        for is_standby in [false, true] {
            let now = stamp(&[(1, 100)], 2, 150);
            assert!(
                is_parted(&standing(&index, &now, is_standby)),
                "{is_standby}"
            );
        }
        // Timelines of one number that began in different places.
        let index = stamp(&[(1, 90)], 2, 95);
        let now = stamp(&[(1, 100)], 2, 150);
        assert!(is_parted(&standing(&index, &now, true)));
    }

    #[test]
    fn timelines_of_one_number_and_place_are_told_apart_by_who_opened_them() {
        let epoch = |node: &str| -> Epoch { format!("2.{node}").parse().unwrap() };
        let (mut index, mut now) = (stamp(&[(1, 100)], 2, 120), stamp(&[(1, 100)], 2, 150));
        assert_eq!(standing(&index, &now, false), continues(false));
        index.history.origins.insert(2, epoch("a"));
        now.history.origins.insert(2, epoch("b"));
        assert!(is_parted(&standing(&index, &now, false)));
    }

    #[test]
    fn a_replica_that_was_restarted_gets_there_again_and_a_primary_does_not() {
        let (index, now) = (stamp(&[], 1, 100), stamp(&[], 1, 80));
        assert_eq!(standing(&index, &now, true), Standing::Ahead);
        assert!(is_parted(&standing(&index, &now, false)));
        // It knows of the promotion already, and has not replayed up to it.
        let now = stamp(&[(1, 110)], 2, 80);
        assert_eq!(standing(&index, &now, true), Standing::Ahead);
    }

    #[test]
    fn what_was_not_durable_is_gone_with_a_crash() {
        let index = Stamp {
            is_durable: false,
            ..stamp(&[], 1, 100)
        };
        let mut now = stamp(&[], 1, 200);
        assert_eq!(standing(&index, &now, false), continues(false));
        now.server_started = 2;
        assert_eq!(
            standing(&index, &now, false),
            Standing::Parted { relation: None }
        );
    }

    #[test]
    fn another_cluster_is_no_past_of_ours() {
        let index = stamp(&[], 1, 100);
        let mut now = stamp(&[], 1, 200);
        now.history.system_identifier = 8;
        assert!(is_parted(&standing(&index, &now, true)));
    }
}
