//! How often something may be started again.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

/// So many within so long, counted back from each moment.
#[derive(Debug)]
pub(super) struct Budget {
    max: usize,
    window: Duration,
    used: VecDeque<Instant>,
}

impl Budget {
    pub(super) fn new(max: u16, window: Duration) -> Self {
        Self {
            max: max.into(),
            window,
            used: VecDeque::new(),
        }
    }

    /// Returns how many were used in the window that ends `now`.
    pub(super) fn used(&self, now: Instant) -> usize {
        let is_within = |at: &&Instant| now.saturating_duration_since(**at) < self.window;
        self.used.iter().filter(is_within).count()
    }

    /// Returns whether there is one left `now`.
    pub(super) fn is_left(&self, now: Instant) -> bool {
        self.used(now) < self.max
    }

    /// Uses one `now`.
    pub(super) fn take(&mut self, now: Instant) {
        self.used.push_back(now);
        // What has left the window never counts again.
        if self.used.len() > self.max {
            self.used.pop_front();
        }
    }

    /// Forgets what was used.
    pub(super) fn reset(&mut self) {
        self.used.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn m03_there_are_so_many_in_a_window_and_no_more() {
        let begin = Instant::now();
        let after = |minutes: u64| begin + Duration::from_secs(60 * minutes);
        let mut budget = Budget::new(2, Duration::from_secs(3600));
        assert!(budget.is_left(after(0)));
        budget.take(after(0));
        budget.take(after(30));
        assert!(!budget.is_left(after(59)));
        assert!(budget.is_left(after(60)));
        budget.take(after(60));
        assert_eq!(
            [60, 89, 90, 120].map(|minutes| budget.used(after(minutes))),
            [2, 2, 1, 0]
        );
        budget.reset();
        assert_eq!(budget.used(after(60)), 0);
        assert!(!Budget::new(0, Duration::from_secs(3600)).is_left(after(0)));
    }
}
