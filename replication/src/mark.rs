//! Marks: the heartbeat that makes lag comparable across stores.
//!
//! Once a second the primary records the position of every store. A store that has applied at
//! least the positions of mark *m* is current as of *m*'s time; the newest mark that **every** store
//! has applied is the cut. Everything here is pure: time comes in as an argument.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use understudy_config::StoreName;

use crate::epoch::Epoch;
use crate::position::Position;
use crate::wall_time::WallTime;

/// How often the primary marks.
pub const MARK_INTERVAL: Duration = Duration::from_secs(1);

/// Without a mark (or a standby's report) for this long, lag is unknown.
///
/// Two marks may be lost to a busy machine; the promise to operators is five seconds.
pub const MARK_SILENCE_MAX: Duration = Duration::from_millis(3500);

/// How many marks are remembered: an hour. A standby further behind is current as of before the
/// oldest, and its lag is told as at least that.
pub const MARKS_MAX: usize = 3600;

/// Where every store was at one moment on the primary.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// Counts up within a run of the primary; the first is 1.
    pub number: u64,
    /// When the primary began this run, by its wall clock: a daemon that is started again in the same epoch
    /// counts anew. 0 from those that do not tell.
    #[serde(default)]
    pub run: WallTime,
    /// The epoch in which the primary marked.
    pub epoch: Epoch,
    /// The primary's wall clock at the moment.
    pub time: WallTime,
    /// A store that could not tell its position in time is absent, and so counts as not covered.
    pub positions: BTreeMap<StoreName, Position>,
    /// How many bytes of its log lie before the position, of the stores that tell it beside a position
    /// that is not bytes.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub bytes: BTreeMap<StoreName, u64>,
    /// Somebody on the primary waits until the standbys have all of this.
    #[serde(default)]
    pub is_awaited: bool,
}

/// The marks of the last hour, with the moment at which this node learned each.
#[derive(Clone, Debug, Default)]
pub struct Marks {
    marks: VecDeque<(Instant, Mark)>,
}

impl Marks {
    /// Remembers `mark`, learned at `now`. Marks of another epoch than the newest are forgotten: they
    /// say nothing about positions of this one. A mark that is not newer is ignored: one that came before the
    /// link was opened anew.
    pub fn push(&mut self, mark: Mark, now: Instant) {
        if let Some((_, newest)) = self.marks.back() {
            if newest.epoch != mark.epoch {
                self.marks.clear();
            } else if newest.run == mark.run && newest.number >= mark.number {
                return;
            }
        }
        if self.marks.len() == MARKS_MAX {
            self.marks.pop_front();
        }
        self.marks.push_back((now, mark));
    }

    /// Returns the newest mark and when it was learned.
    pub fn newest(&self) -> Option<&(Instant, Mark)> {
        self.marks.back()
    }

    /// Returns the oldest remembered mark and when it was learned.
    pub fn oldest(&self) -> Option<&(Instant, Mark)> {
        self.marks.front()
    }

    /// Returns the newest mark that `store`, having applied `applied`, covers.
    pub fn covered(&self, store: &StoreName, applied: Position) -> Option<&(Instant, Mark)> {
        self.marks
            .iter()
            .rev()
            .find(|(_, mark)| mark.positions.get(store).is_some_and(|at| *at <= applied))
    }

    /// Returns the newest position that a mark tells of `store`, and when that was learned.
    pub fn newest_of(&self, store: &StoreName) -> Option<(&Instant, &Position)> {
        self.marks
            .iter()
            .rev()
            .find_map(|(at, mark)| Some((at, mark.positions.get(store)?)))
    }

    /// Returns the cut: the newest mark that every store covers. `applied` holds each store's
    /// position, as it was told at `told`; a store without one covers nothing.
    ///
    /// A mark that is newer than the positions is never the cut: that nothing has been written since is
    /// no word of the standby, which may be gone.
    pub fn cut<'a>(
        &'a self,
        applied: &BTreeMap<StoreName, Option<Position>>,
        told: Instant,
    ) -> Option<&'a (Instant, Mark)> {
        self.marks.iter().rev().find(|(at, mark)| {
            *at <= told
                && applied.iter().all(|(store, applied)| {
                    match (mark.positions.get(store), applied) {
                        (Some(at), Some(applied)) => at <= applied,
                        (None, _) | (_, None) => false,
                    }
                })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> StoreName {
        text.parse().unwrap()
    }

    fn mark(number: u64, epoch: &str, positions: &[(&str, u64)]) -> Mark {
        Mark {
            number,
            epoch: epoch.parse().unwrap(),
            run: WallTime(0),
            time: WallTime(number * 1000),
            positions: positions
                .iter()
                .map(|(s, p)| (name(s), Position(*p)))
                .collect(),
            bytes: BTreeMap::new(),
            is_awaited: false,
        }
    }

    fn number(found: Option<&(Instant, Mark)>) -> Option<u64> {
        found.map(|(_, mark)| mark.number)
    }

    #[test]
    fn the_cut_is_the_newest_mark_that_every_store_has_applied() {
        let now = Instant::now();
        let mut marks = Marks::default();
        marks.push(mark(1, "1.a", &[("pg", 10), ("docs", 100)]), now);
        marks.push(mark(2, "1.a", &[("pg", 20), ("docs", 100)]), now);
        marks.push(mark(3, "1.a", &[("pg", 30), ("docs", 300)]), now);
        let applied = |pg, docs| BTreeMap::from([(name("pg"), pg), (name("docs"), docs)]);
        let at = |p| Some(Position(p));
        assert_eq!(number(marks.cut(&applied(at(35), at(299)), now)), Some(2));
        assert_eq!(number(marks.cut(&applied(at(30), at(300)), now)), Some(3));
        assert_eq!(number(marks.cut(&applied(at(9), at(300)), now)), None);
        assert_eq!(number(marks.cut(&applied(None, at(300)), now)), None);
        assert_eq!(number(marks.covered(&name("docs"), Position(100))), Some(2));
    }

    #[test]
    fn a_mark_that_is_newer_than_the_word_of_the_standby_is_no_cut() {
        let start = Instant::now();
        let mut marks = Marks::default();
        for number in 1..=3 {
            let at = start + Duration::from_secs(number);
            marks.push(mark(number, "1.a", &[("pg", 10)]), at);
        }
        let applied = BTreeMap::from([(name("pg"), Some(Position(10)))]);
        let told = start + Duration::from_millis(2500);
        assert_eq!(number(marks.cut(&applied, told)), Some(2));
    }

    #[test]
    fn a_store_that_could_not_tell_its_position_covers_no_such_mark() {
        let now = Instant::now();
        let mut marks = Marks::default();
        marks.push(mark(1, "1.a", &[("pg", 10), ("docs", 100)]), now);
        marks.push(mark(2, "1.a", &[("pg", 10)]), now);
        assert_eq!(
            number(marks.covered(&name("docs"), Position(1000))),
            Some(1)
        );
    }

    #[test]
    fn marks_of_a_primary_that_was_started_again_count_from_the_first() {
        let start = Instant::now();
        let mut marks = Marks::default();
        marks.push(mark(114, "1.a", &[("pg", 10)]), start);
        let mut again = mark(1, "1.a", &[("pg", 12)]);
        again.run = WallTime(5000);
        marks.push(again.clone(), start + Duration::from_secs(9));
        assert_eq!(number(marks.newest()), Some(1));
        assert_eq!(number(marks.covered(&name("pg"), Position(12))), Some(1));
        assert_eq!(number(marks.covered(&name("pg"), Position(11))), Some(114));
        marks.push(again, start + Duration::from_secs(10));
        assert_eq!(marks.newest().unwrap().0, start + Duration::from_secs(9));
    }

    #[test]
    fn marks_of_an_older_epoch_are_forgotten_with_it() {
        let now = Instant::now();
        let mut marks = Marks::default();
        marks.push(mark(7, "1.a", &[("pg", 10)]), now);
        marks.push(mark(1, "2.b", &[("pg", 50)]), now);
        assert_eq!(number(marks.covered(&name("pg"), Position(10))), None);
        assert_eq!(number(marks.newest()), Some(1));
    }

    #[test]
    fn memory_is_bounded_by_an_hour_of_marks() {
        let now = Instant::now();
        let mut marks = Marks::default();
        for n in 1..=(MARKS_MAX as u64 + 10) {
            marks.push(mark(n, "1.a", &[]), now);
        }
        assert_eq!(marks.marks.len(), MARKS_MAX);
        assert_eq!(number(marks.oldest()), Some(11));
    }
}
