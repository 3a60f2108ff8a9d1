//! From which watermark on rows are read again: pure.
//!
//! A transaction takes its watermarks while it runs, and its rows become visible when it commits, so that
//! they do not become visible in the order of their watermarks. Who reads from the greatest watermark that
//! he has seen misses the rows of a transaction that began before and committed after. So rows are read
//! from the greatest watermark that was seen an *overlap* ago, when every transaction that may have taken
//! a lesser one has ended. "Ago" is by the commits of the primary: on a replica that stands still no
//! transaction ends, however much time passes.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// How far the changes of the rows are known.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Marks {
    /// Every row with this watermark or a lesser one has been read. `None` is nobody knows yet: the keys
    /// and watermarks of all rows have to be compared.
    pub(super) safe: Option<String>,
    /// The greatest watermark that was seen, which becomes safe.
    pending: Option<Pending>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Pending {
    mark: String,
    /// Microseconds since 1970, by the clock of the database.
    at: i64,
}

impl Marks {
    /// Tells that every row beyond `safe` has been read at `clock`, of which `greatest` was the greatest
    /// watermark. A replica that has replayed no commit since its start has no clock.
    pub(super) fn read(&mut self, greatest: Option<String>, clock: Option<i64>, overlap: Duration) {
        let Some(clock) = clock else {
            return;
        };
        let overlap = i64::try_from(overlap.as_micros()).unwrap_or(i64::MAX);
        let is_over = |pending: &Pending| clock.saturating_sub(pending.at) >= overlap;
        if self.pending.as_ref().is_some_and(is_over) {
            self.safe = self.pending.take().map(|pending| pending.mark);
        }
        // What is read again and again is not news.
        if self.pending.is_none() && greatest != self.safe {
            self.pending = greatest.map(|mark| Pending { mark, at: clock });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const OVERLAP: Duration = Duration::from_micros(10);

    fn read(marks: &mut Marks, greatest: Option<u32>, clock: i64) -> Option<String> {
        marks.read(greatest.map(|mark| mark.to_string()), Some(clock), OVERLAP);
        marks.safe.clone()
    }

    #[test]
    fn a_watermark_is_safe_an_overlap_after_it_was_seen() {
        let mut marks = Marks::default();
        assert_eq!(read(&mut marks, Some(5), 100), None);
        assert_eq!(read(&mut marks, Some(7), 109), None);
        assert_eq!(read(&mut marks, Some(8), 110).as_deref(), Some("5"));
        assert_eq!(read(&mut marks, Some(8), 120).as_deref(), Some("8"));
        // Nothing more comes.
        assert_eq!(read(&mut marks, None, 200).as_deref(), Some("8"));
        assert_eq!(marks.pending, None);
    }

    #[test]
    fn a_replica_that_stands_still_makes_nothing_safe() {
        let mut marks = Marks::default();
        assert_eq!(read(&mut marks, Some(5), 100), None);
        marks.read(Some("9".to_owned()), None, OVERLAP);
        assert_eq!(read(&mut marks, Some(9), 100), None);
    }

    proptest! {
        /// Transactions take a number, and commit within the overlap; every one is read.
        #[test]
        fn no_transaction_within_the_overlap_is_missed(
            lasting in proptest::collection::vec(0_i64..10, 1..60),
            pauses in proptest::collection::vec(1_i64..7, 1..60),
        ) {
            // Transaction n takes the number n at time 2n.
            let commits: Vec<(u32, i64)> = (1_u32..)
                .zip(&lasting)
                .map(|(number, lasts)| (number, i64::from(number) * 2 + lasts))
                .collect();
            let mut marks = Marks { safe: Some("0".to_owned()), pending: None };
            let mut found = std::collections::BTreeSet::<u32>::new();
            let mut clock = 0;
            for pause in pauses.iter().cycle() {
                clock += pause;
                let safe: u32 = marks.safe.as_ref().unwrap().parse().unwrap();
                let visible = commits.iter().filter(|(number, at)| *at <= clock && *number > safe);
                let read: Vec<u32> = visible.map(|(number, _)| *number).collect();
                found.extend(&read);
                marks.read(read.iter().max().map(u32::to_string), Some(clock), OVERLAP);
                if clock > 200 {
                    break;
                }
            }
            prop_assert_eq!(found.len(), commits.len());
        }
    }
}
