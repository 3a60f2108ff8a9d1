//! How fast a copy is made, and whether it still is to be.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::process::setpriority_process;
use serde::{Deserialize, Serialize};
use understudy_replication::store::Stop;

use super::CopyError;

/// How long one sleep is at most: a word to stop is heeded after it.
const NAP_MAX: Duration = Duration::from_millis(100);

/// The least urgent that a thread can be.
const NICE: i32 = 19;

/// How much was copied, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Copied {
    /// Written anew.
    pub copied_bytes: u64,
    /// Shared with the original, which took no room.
    pub shared_bytes: u64,
}

impl Copied {
    /// Returns both together.
    pub fn bytes(self) -> u64 {
        self.copied_bytes.saturating_add(self.shared_bytes)
    }
}

/// Keeps a copy to its bandwidth, counts it, and says when it is not wanted any more.
#[derive(Debug)]
pub struct Pace {
    bytes_per_second: Option<u64>,
    /// Something waits for the copy: it is made as fast as it can be.
    is_waited_for: AtomicBool,
    stop: Stop,
    begun: Instant,
    /// What counts towards the bandwidth: copied, or read again.
    spent: AtomicU64,
    copied: AtomicU64,
    shared: AtomicU64,
}

impl Pace {
    /// Returns a pace of so many bytes per second at most, until the word to stop is given.
    pub fn new(bytes_per_second: Option<u64>, stop: Stop) -> Self {
        Self {
            bytes_per_second,
            is_waited_for: AtomicBool::new(false),
            stop,
            begun: Instant::now(),
            spent: AtomicU64::new(0),
            copied: AtomicU64::new(0),
            shared: AtomicU64::new(0),
        }
    }

    /// Returns how much was copied so far.
    pub fn copied(&self) -> Copied {
        Copied {
            copied_bytes: self.copied.load(Ordering::Relaxed),
            shared_bytes: self.shared.load(Ordering::Relaxed),
        }
    }

    /// Fails when the word to stop has been given.
    pub(crate) fn check(&self) -> Result<(), CopyError> {
        if self.stop.is_stopped() {
            return Err(CopyError::Stopped);
        }
        Ok(())
    }

    /// Counts what was copied, and waits for as long as that was too fast.
    pub(crate) fn copy(&self, bytes: u64) -> Result<(), CopyError> {
        self.copied.fetch_add(bytes, Ordering::Relaxed);
        self.read(bytes)
    }

    /// Counts what shares its blocks with the original.
    pub(crate) fn share(&self, bytes: u64) {
        self.shared.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Says whether something is held up until the copy is made: then no bandwidth counts.
    pub(crate) fn is_waited_for(&self, is_waited_for: bool) {
        self.is_waited_for.store(is_waited_for, Ordering::Relaxed);
    }

    /// Waits for as long as reading so much was too fast.
    pub(crate) fn read(&self, bytes: u64) -> Result<(), CopyError> {
        self.check()?;
        let spent = self
            .spent
            .fetch_add(bytes, Ordering::Relaxed)
            .saturating_add(bytes);
        let Some(rate) = self.bytes_per_second else {
            return Ok(());
        };
        if self.is_waited_for.load(Ordering::Relaxed) {
            return Ok(());
        }
        let millis = u128::from(spent) * 1000 / u128::from(rate.max(1));
        let due = Duration::from_millis(u64::try_from(millis).unwrap_or(u64::MAX));
        while let Some(left) = due.checked_sub(self.begun.elapsed()) {
            if left.is_zero() {
                break;
            }
            std::thread::sleep(left.min(NAP_MAX));
            self.check()?;
        }
        Ok(())
    }
}

/// Makes this thread the last in line for the processor, and by that for the disk, where its scheduler
/// knows such a thing: replication comes first.
pub(super) fn give_way() {
    if let Err(error) = setpriority_process(None, NICE) {
        tracing::debug!(%error, "a copy is as urgent as everything else");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use understudy_replication::store::Stopper;

    #[test]
    fn what_is_held_up_by_a_copy_does_not_wait_for_its_bandwidth() {
        let (_stopper, stop) = Stopper::new();
        let pace = Pace::new(Some(1), stop);
        pace.is_waited_for(true);
        // At this rate it would wait for years.
        pace.copy(u64::MAX / 2).unwrap();
    }

    #[test]
    fn a_copy_that_is_told_to_stop_does_not_wait_for_its_bandwidth() {
        let (stopper, stop) = Stopper::new();
        let pace = Pace::new(Some(1), stop);
        stopper.stop();
        // At this rate it would wait for years.
        assert!(matches!(pace.copy(u64::MAX / 2), Err(CopyError::Stopped)));
        pace.share(7);
        let expected = Copied {
            copied_bytes: u64::MAX / 2,
            shared_bytes: 7,
        };
        assert_eq!(pace.copied(), expected);
    }
}
