//! Whether to compress what is sent. Pure: times are arguments.
//!
//! Only where the link is slower than the compressor, which shows in how long sending blocks, and where
//! the content compresses, which shows when it is tried.

use std::time::Duration;

/// A link that takes this much in a second is not slower than the compressor, with room for what else
/// the processor has to do.
const FAST_BYTES_PER_SECOND: u64 = 80 << 20;

/// How much is sent before the link is judged.
const JUDGED_BYTES: u64 = 4 << 20;

/// After content that did not compress, so many frames go as they are; then more.
const SKIPPED_MIN: u32 = 8;
const SKIPPED_MAX: u32 = 256;

/// What is known of a link and of what goes over it.
#[derive(Debug, Default)]
pub(super) struct Press {
    bytes: u64,
    blocked: Duration,
    is_slow: bool,
    /// Frames that go as they are before the next try.
    skip: u32,
    skipped: u32,
}

impl Press {
    /// Returns whether the next frame should be tried to be compressed.
    pub(super) fn is_worth_trying(&mut self) -> bool {
        if !self.is_slow {
            return false;
        }
        if self.skipped < self.skip {
            self.skipped = self.skipped.saturating_add(1);
            return false;
        }
        true
    }

    /// Notes whether a frame that was tried became shorter.
    pub(super) fn tried(&mut self, has_gained: bool) {
        self.skipped = 0;
        self.skip = if has_gained {
            0
        } else {
            self.skip.saturating_mul(2).clamp(SKIPPED_MIN, SKIPPED_MAX)
        };
    }

    /// Notes that so many bytes were sent, which blocked for so long.
    pub(super) fn sent(&mut self, bytes: usize, blocked: Duration) {
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        self.bytes = self.bytes.saturating_add(bytes);
        self.blocked = self.blocked.saturating_add(blocked);
        if self.bytes < JUDGED_BYTES {
            return;
        }
        let allowed = self.bytes.saturating_mul(1000) / FAST_BYTES_PER_SECOND;
        self.is_slow = self.blocked > Duration::from_millis(allowed);
        self.bytes = 0;
        self.blocked = Duration::ZERO;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fast_link_is_never_compressed_for_and_a_slow_one_is() {
        let mut press = Press::default();
        for _ in 0..100 {
            press.sent(256 << 10, Duration::from_micros(500));
            assert!(!press.is_worth_trying());
        }
        for _ in 0..32 {
            press.sent(256 << 10, Duration::from_millis(20));
        }
        assert!(press.is_worth_trying());
    }

    #[test]
    fn what_does_not_compress_is_tried_ever_more_rarely() {
        let mut press = Press {
            is_slow: true,
            ..Press::default()
        };
        let mut tries = 0;
        for _ in 0..10_000 {
            if press.is_worth_trying() {
                press.tried(false);
                tries += 1;
            }
        }
        assert!((10..100).contains(&tries), "{tries}");
        press.tried(true);
        assert!(press.is_worth_trying());
    }
}
