//! How long a standby may stay away before its slot is lost. Pure.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use understudy_replication::position::Lsn;

/// The rate is that of this long.
const WINDOW: Duration = Duration::from_secs(60);

/// What is written to the write-ahead log per second.
#[derive(Debug, Default)]
pub(super) struct Rate {
    /// Where the log ended, and when.
    seen: VecDeque<(Instant, Lsn)>,
}

impl Rate {
    /// Notes where the log ends.
    pub(super) fn note(&mut self, now: Instant, end: Lsn) {
        if self.seen.back().is_some_and(|(_, last)| *last > end) {
            // Another server, or another history.
            self.seen.clear();
        }
        self.seen.push_back((now, end));
        while let Some((at, _)) = self.seen.get(1)
            && now.saturating_duration_since(*at) >= WINDOW
        {
            self.seen.pop_front();
        }
    }

    /// Returns how many bytes per second were written lately; `None` until that is known.
    pub(super) fn bytes_per_second(&self) -> Option<u64> {
        let ((from, begin), (to, end)) = (self.seen.front()?, self.seen.back()?);
        let millis = u64::try_from(to.saturating_duration_since(*from).as_millis()).ok()?;
        let bytes = end.0.saturating_sub(begin.0);
        bytes.saturating_mul(1000).checked_div(millis)
    }

    /// Returns after how many seconds so many bytes will have been written; `None` if that is not to be
    /// told, or never.
    pub(super) fn seconds_until(&self, bytes: u64) -> Option<u64> {
        bytes.checked_div(self.bytes_per_second()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_until_a_slot_is_lost_is_told_from_the_last_minute() {
        let mut now = Instant::now();
        let mut rate = Rate::default();
        let mut end = 1_000_000;
        assert_eq!(rate.seconds_until(5000), None, "nothing is known");
        for second in 0..200 {
            rate.note(now, Lsn(end));
            now += Duration::from_secs(1);
            // Faster from the hundredth second on.
            end += if second < 100 { 10 } else { 1000 };
        }
        assert_eq!(rate.bytes_per_second(), Some(1000));
        assert_eq!(rate.seconds_until(5000), Some(5));
        assert!(rate.seen.len() < 70, "{}", rate.seen.len());
    }

    #[test]
    fn a_quiet_server_never_loses_a_slot() {
        let now = Instant::now();
        let mut rate = Rate::default();
        rate.note(now, Lsn(5));
        rate.note(now + WINDOW, Lsn(5));
        assert_eq!(rate.seconds_until(1), None);
    }

    #[test]
    fn another_history_begins_anew() {
        let now = Instant::now();
        let mut rate = Rate::default();
        rate.note(now, Lsn(5_000_000));
        rate.note(now + Duration::from_secs(1), Lsn(5));
        assert_eq!(rate.bytes_per_second(), None);
    }
}
