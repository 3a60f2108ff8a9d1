//! Two clusters that have parted: what brings the one back to the other. Pure.

use understudy_replication::position::Lsn;
use understudy_replication::postgres::{History, Origins, Relation, SlotInfo};

/// Two clusters that have parted.
pub(super) struct Forked {
    pub(super) ours: History,
    pub(super) theirs: History,
    pub(super) at: Lsn,
    pub(super) timeline: u32,
}

impl Forked {
    /// Returns whether `pg_rewind` would find the same fork. It knows timelines by their number and place
    /// only, and does nothing at all for two clusters on timelines of one number.
    pub(super) fn is_seen_by_pg_rewind(&self) -> bool {
        let blind = |history: &History| History {
            origins: Origins::new(),
            ..history.clone()
        };
        let seen = blind(&self.ours).relation_to(&blind(&self.theirs));
        let (at, timeline) = (self.at, self.timeline);
        self.ours.timeline != self.theirs.timeline && seen == Relation::Forked { at, timeline }
    }
}

/// Finds how much `pg_rewind` copies, and of how much, in bytes, in what it says: `need to copy 33 MB (total
/// source directory size is 60 MB)`.
pub(super) fn need_to_copy(said: &str) -> Option<(u64, u64)> {
    let (_, rest) = said.split_once("need to copy ")?;
    let (copied, rest) = rest.split_once(" MB")?;
    let (_, rest) = rest.split_once("size is ")?;
    let (total, _) = rest.split_once(" MB")?;
    let bytes = |megabytes: &str| megabytes.trim().parse::<u64>().ok()?.checked_shl(20);
    Some((bytes(copied)?, bytes(total)?))
}

/// Returns whether the log that the primary still has reaches back to `from`.
pub(super) fn reaches(slot: &SlotInfo, from: Lsn) -> bool {
    slot.oldest.map_or(!slot.is_lost, |oldest| oldest <= from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use understudy_replication::postgres::Ended;

    fn history(ended: &[(u32, u64)], timeline: u32, end: u64, by: &[(u32, &str)]) -> History {
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
            origins: by
                .iter()
                .map(|(timeline, epoch)| (*timeline, epoch.parse().unwrap()))
                .collect(),
        }
    }

    fn forked(ours: History, theirs: History) -> Forked {
        let Relation::Forked { at, timeline } = ours.relation_to(&theirs) else {
            panic!("not forked");
        };
        Forked {
            ours,
            theirs,
            at,
            timeline,
        }
    }

    #[test]
    fn pg_rewind_is_not_asked_about_timelines_that_it_takes_for_one() {
        let ours = history(&[(1, 100)], 2, 150, &[(2, "2.b")]);
        let sees = |theirs| forked(ours.clone(), theirs).is_seen_by_pg_rewind();
        // Another timeline 2, from the same place; and one step further.
        assert!(!sees(history(&[(1, 100)], 2, 400, &[(2, "2.c")])));
        assert!(!sees(history(
            &[(1, 100), (2, 300)],
            3,
            400,
            &[(2, "2.c"), (3, "3.a")]
        )));
        // Another place.
        assert!(!sees(history(&[(1, 90)], 2, 400, &[(2, "2.c")])));
        assert!(sees(history(&[(1, 90), (2, 300)], 3, 400, &[(2, "2.c")])));
        let crashed = history(&[], 1, 150, &[]);
        let theirs = history(&[(1, 100)], 2, 400, &[(2, "2.b")]);
        assert!(forked(crashed, theirs).is_seen_by_pg_rewind());
    }

    #[test]
    fn what_pg_rewind_says_of_its_work_is_understood() {
        let said = "pg_rewind: connected to server\npg_rewind: need to copy 33 MB (total source directory \
            size is 60 MB)\n    0/34604 kB (0%) copied\r34604/34604 kB (100%) copied\n";
        assert_eq!(need_to_copy(said), Some((33 << 20, 60 << 20)));
        assert_eq!(need_to_copy("pg_rewind: no rewind required\n"), None);
    }

    #[test]
    fn a_primary_that_has_no_log_to_follow_is_not_followed() {
        let slot = |is_lost, oldest: Option<u64>| SlotInfo {
            name: "understudy_a".to_owned(),
            is_lost,
            oldest: oldest.map(Lsn),
        };
        assert!(reaches(&slot(true, Some(100)), Lsn(100)));
        assert!(!reaches(&slot(false, Some(101)), Lsn(100)));
        assert!(reaches(&slot(false, None), Lsn(100)));
        assert!(!reaches(&slot(true, None), Lsn(100)));
    }
}
