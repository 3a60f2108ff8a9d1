//! How fast a standby is sent to.
//!
//! A token bucket of one second for each standby. What is fresh goes before what is long: contents that
//! were asked for by themselves wait while something of the log does.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use understudy_config::NodeName;

/// How long the long waits at a time while something fresh does.
const YIELD: Duration = Duration::from_millis(5);

/// The limits of all standbys.
#[derive(Debug)]
pub(crate) struct Limits {
    bytes_per_second: Option<u64>,
    peers: Mutex<BTreeMap<NodeName, Arc<Limit>>>,
}

impl Limits {
    pub(crate) fn new(bytes_per_second: Option<u64>) -> Self {
        Self {
            bytes_per_second,
            peers: Mutex::default(),
        }
    }

    /// Returns the limit of one standby; `None` when there is none.
    pub(crate) fn of(&self, peer: &NodeName) -> Option<Arc<Limit>> {
        let bytes_per_second = self.bytes_per_second.filter(|bytes| *bytes > 0)?;
        let mut peers = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
        let limit = peers
            .entry(peer.clone())
            .or_insert_with(|| Arc::new(Limit::new(bytes_per_second)));
        Some(limit.clone())
    }
}

/// Which of two goes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lane {
    /// Changes as they happen.
    Fresh,
    /// Contents that were asked for.
    Bulk,
}

/// The limit of one standby.
#[derive(Debug)]
pub(crate) struct Limit {
    bucket: Mutex<Bucket>,
}

/// Decides when how much may be sent. Pure: the time is an argument.
#[derive(Debug)]
struct Bucket {
    bytes_per_second: u64,
    /// When all that was let through will have been paid for.
    paid: Option<Instant>,
    /// When something fresh last had to wait.
    waited: Option<Instant>,
}

impl Bucket {
    /// Returns how long to wait before asking again; `None` lets `bytes` through.
    fn ask(&mut self, now: Instant, bytes: usize, lane: Lane) -> Option<Duration> {
        let paid = self.paid.unwrap_or(now);
        if paid > now {
            if lane == Lane::Fresh {
                self.waited = Some(now);
            }
            let pause = paid.saturating_duration_since(now);
            return Some(pause.max(Duration::from_millis(1)));
        }
        let is_recent =
            |waited: Instant| now.saturating_duration_since(waited) < YIELD.saturating_mul(2);
        if lane == Lane::Bulk && self.waited.is_some_and(is_recent) {
            return Some(YIELD);
        }
        if lane == Lane::Fresh {
            self.waited = None;
        }
        let nanoseconds = u128::try_from(bytes)
            .unwrap_or(u128::MAX)
            .saturating_mul(1_000_000_000)
            / u128::from(self.bytes_per_second.max(1));
        let cost = Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX));
        self.paid = paid.max(now).checked_add(cost);
        None
    }
}

impl Limit {
    fn new(bytes_per_second: u64) -> Self {
        Self {
            bucket: Mutex::new(Bucket {
                bytes_per_second,
                paid: None,
                waited: None,
            }),
        }
    }

    /// Waits until `bytes` may be sent. Safe to cancel.
    pub(crate) async fn wait(&self, bytes: usize, lane: Lane) {
        loop {
            let pause = {
                let mut bucket = self.bucket.lock().unwrap_or_else(PoisonError::into_inner);
                bucket.ask(Instant::now(), bytes, lane)
            };
            match pause {
                Some(pause) => tokio::time::sleep(pause).await,
                None => return,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sent_in_a_second_is_what_may_be() {
        let begun = Instant::now();
        let mut bucket = Bucket {
            bytes_per_second: 1_000_000,
            paid: None,
            waited: None,
        };
        let (mut now, mut sent) = (begun, 0);
        while now < begun + Duration::from_secs(10) {
            match bucket.ask(now, 64_000, Lane::Bulk) {
                None => sent += 64_000,
                Some(pause) => now += pause,
            }
        }
        assert!((9_900_000..=10_100_000).contains(&sent), "{sent}");
    }

    #[test]
    fn the_fresh_goes_before_the_long() {
        let now = Instant::now();
        let mut bucket = Bucket {
            bytes_per_second: 1000,
            paid: None,
            waited: None,
        };
        assert_eq!(bucket.ask(now, 100, Lane::Bulk), None);
        assert!(bucket.ask(now, 100, Lane::Fresh).is_some());
        let paid = now + Duration::from_millis(100);
        bucket.waited = Some(paid);
        assert!(
            bucket.ask(paid, 100, Lane::Bulk).is_some(),
            "it lets the fresh one go first"
        );
        assert_eq!(bucket.ask(paid, 100, Lane::Fresh), None);
    }
}
