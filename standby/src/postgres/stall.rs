//! When the people on call are told that the standby's Postgres does not advance, and that it does
//! again. Pure.

use std::time::Duration;

use tokio::time::Instant;
use understudy_replication::event::Severity;
use understudy_replication::stall::StallReason;

/// What has lasted for this long is told. A query that holds replay up for a moment, or a stream that
/// breaks and is there again, is in the metrics only.
pub(super) const TOLD_AFTER: Duration = Duration::from_secs(5);

/// Returns why a server that answers does not advance, if so.
pub(super) fn seen(
    is_streaming: bool,
    is_paused: bool,
    conflict: Option<&str>,
) -> Option<(StallReason, String)> {
    match (is_streaming, is_paused, conflict) {
        (_, true, _) => Some((
            StallReason::ReplayPaused,
            "replay is paused; run `SELECT pg_wal_replay_resume()` on this standby".to_owned(),
        )),
        (_, false, Some(conflict)) => Some((
            StallReason::RecoveryConflict,
            format!(
                "replay waits for a query on this standby ({conflict}): end the query, or lower \
                 max_standby_streaming_delay"
            ),
        )),
        (false, false, None) => Some((
            StallReason::NotStreaming,
            "postgres receives no stream from the primary".to_owned(),
        )),
        (true, false, None) => None,
    }
}

/// What was seen, and what of it was told.
#[derive(Debug, Default)]
pub(super) struct Stalls {
    /// What is seen at present, and since when: a reason, or that it advances.
    seen: Option<(Option<StallReason>, Instant)>,
    /// What was told last and is not over, and since when it was so.
    told: Option<(StallReason, Instant)>,
}

/// What is to be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum News {
    /// It does not advance.
    Began(StallReason),
    /// It advances again.
    Over {
        /// Why it did not.
        reason: StallReason,
        /// For how long it did not.
        lasted: Duration,
    },
}

impl Stalls {
    /// Takes what is seen now; returns what is to be told of it: each change once.
    pub(super) fn see(&mut self, now: Instant, reason: Option<StallReason>) -> Option<News> {
        let since = match self.seen {
            Some((seen, since)) if seen == reason => since,
            Some(_) | None => {
                self.seen = Some((reason, now));
                now
            }
        };
        let has_lasted = now.saturating_duration_since(since) >= TOLD_AFTER;
        match (reason, self.told) {
            (Some(reason), Some((told, _))) if reason == told => None,
            (Some(reason), told) if has_lasted || reason.is_final() => {
                // One reason may follow another before anything has advanced.
                let since = told.map_or(since, |(_, since)| since);
                self.told = Some((reason, since));
                Some(News::Began(reason))
            }
            (None, Some((reason, begun))) if has_lasted => {
                self.told = None;
                Some(News::Over {
                    reason,
                    lasted: since.saturating_duration_since(begun),
                })
            }
            (Some(_) | None, _) => None,
        }
    }
}

impl News {
    /// Returns the event; `sentence` is what status says of the reason.
    pub(super) fn event(self, sentence: &str) -> (Severity, &'static str, String) {
        let reason = match self {
            Self::Began(reason) => reason,
            Self::Over { reason, lasted } => {
                let text = format!(
                    "the standby's postgres follows the primary's again; it did not for {} s ({reason})",
                    lasted.as_secs()
                );
                return (Severity::Info, "postgres_follows", text);
            }
        };
        let (severity, kind) = match reason {
            StallReason::ReplayPaused => (Severity::Warning, "postgres_replay_paused"),
            StallReason::RecoveryConflict => (Severity::Warning, "postgres_replay_conflict"),
            StallReason::NotStreaming => (Severity::Warning, "postgres_not_streaming"),
            StallReason::NotAnswering | StallReason::Other => {
                (Severity::Warning, "postgres_not_answering")
            }
            StallReason::Parted | StallReason::Foreign => (Severity::Error, "postgres_parted"),
            StallReason::MustReseed => (Severity::Error, "must_reseed"),
        };
        let text = match reason {
            StallReason::Parted | StallReason::Foreign => format!(
                "the standby's postgres cannot follow the primary's: {sentence}; run `understudy rejoin` \
                 here"
            ),
            StallReason::NotStreaming => format!(
                "{sentence}: look whether the primary's server runs and its port can be reached; \
                 server.log here says more"
            ),
            StallReason::ReplayPaused
            | StallReason::RecoveryConflict
            | StallReason::NotAnswering
            | StallReason::MustReseed
            | StallReason::Other => sentence.to_owned(),
        };
        (severity, kind, text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sees `seen` for so many seconds each, twice a second, and returns what was told, and when.
    fn told(seen: &[(u64, Option<StallReason>)]) -> Vec<(f64, News)> {
        let mut stalls = Stalls::default();
        let begun = Instant::now();
        let mut now = begun;
        let mut all = Vec::new();
        for (seconds, reason) in seen {
            for _ in 0..seconds * 2 {
                if let Some(news) = stalls.see(now, *reason) {
                    all.push(((now - begun).as_secs_f64(), news));
                }
                now += Duration::from_millis(500);
            }
        }
        all
    }

    const PAUSED: StallReason = StallReason::ReplayPaused;
    const AWAY: StallReason = StallReason::NotStreaming;

    fn over(reason: StallReason, seconds: u64) -> News {
        News::Over {
            reason,
            lasted: Duration::from_secs(seconds),
        }
    }

    #[test]
    fn a_stall_and_its_end_are_told_once_each() {
        assert_eq!(
            told(&[(10, None), (60, Some(PAUSED)), (60, None)]),
            [(15.0, News::Began(PAUSED)), (75.0, over(PAUSED, 60))]
        );
    }

    #[test]
    fn what_comes_and_goes_is_not_told_each_time() {
        let short = [(3, Some(AWAY)), (3, None)];
        assert_eq!(told(&short.repeat(20)), []);
        let long = [(9, Some(AWAY)), (1, None)];
        let mut seen = long.repeat(5);
        seen.push((10, None));
        assert_eq!(
            told(&seen),
            [(5.0, News::Began(AWAY)), (54.0, over(AWAY, 49))]
        );
    }

    #[test]
    fn what_only_a_new_copy_ends_is_told_at_once() {
        let (parted, lost) = (StallReason::Parted, StallReason::MustReseed);
        assert_eq!(told(&[(1, Some(parted))]), [(0.0, News::Began(parted))]);
        assert_eq!(
            told(&[(6, Some(AWAY)), (10, Some(lost)), (10, None)]),
            [
                (5.0, News::Began(AWAY)),
                (6.0, News::Began(lost)),
                (21.0, over(lost, 16)),
            ]
        );
    }
}
