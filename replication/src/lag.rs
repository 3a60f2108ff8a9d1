//! How far a copy is behind, from marks and positions. Pure: time comes in as an argument.

use std::time::Instant;

use crate::mark::{MARK_SILENCE_MAX, Mark, Marks};
use crate::position::Position;
use crate::stall::StallReason;
use crate::status::{StoreLag, Unknown};
use crate::store::{LOG_POSITION_BYTES, Observed, Received, StoreId};
use crate::wall_time::WallTime;

/// The moment for which lag is told, by both clocks of the telling node.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    /// What durations are measured with.
    pub instant: Instant,
    /// What people are told.
    pub wall: WallTime,
}

impl Now {
    /// Returns the present moment.
    pub fn read() -> Self {
        Self {
            instant: Instant::now(),
            wall: WallTime::now(),
        }
    }

    /// Returns the wall time of an earlier instant.
    pub fn wall_at(&self, earlier: Instant) -> WallTime {
        let millis = self.instant.saturating_duration_since(earlier).as_millis();
        WallTime(
            self.wall
                .0
                .saturating_sub(u64::try_from(millis).unwrap_or(u64::MAX)),
        )
    }
}

/// Everything from which one store's lag follows.
#[derive(Clone, Copy, Debug)]
pub struct Evidence<'a> {
    /// The marks that the telling node knows.
    pub marks: &'a Marks,
    /// What the standby tells of its copy.
    pub received: Option<&'a Received>,
    /// What the primary's store sees of the standby by itself.
    pub observed: &'a Observed,
    /// Why nothing that the other side tells can be relied on now, if so.
    pub silence: Option<&'a Unknown>,
}

/// Returns the lag of store `id`.
///
/// Lag cannot lie: a figure is told only if the other side has been heard within
/// [`MARK_SILENCE_MAX`], and otherwise why it is not.
pub fn lag(id: &StoreId, evidence: &Evidence<'_>, now: Now) -> StoreLag {
    let Evidence {
        marks,
        received,
        observed,
        silence,
    } = *evidence;
    let (sent, flushed, applied) = match observed {
        Observed::Streaming {
            sent,
            flushed,
            applied,
        } => (Some(*sent), Some(*flushed), Some(*applied)),
        Observed::ByReport | Observed::NotStreaming { .. } => (
            None,
            received.and_then(|received| received.flushed),
            received.and_then(|received| received.applied),
        ),
    };
    let newest = marks.newest();
    let told = newest
        .and_then(|(_, mark)| mark.positions.get(&id.name))
        .copied();
    let last_told = marks.newest_of(&id.name);
    let unknown = |reason: &str| {
        Some(Unknown {
            reason: reason.to_owned(),
            since: last_told.map_or(now.wall, |(at, _)| now.wall_at(*at)),
        })
    };
    let is_stale = |at: &Instant| now.instant.saturating_duration_since(*at) > MARK_SILENCE_MAX;
    let answers =
        received.and_then(|received| received.stall_reason) != Some(StallReason::NotAnswering);
    let unknown = match (silence, observed, last_told) {
        (Some(silence), _, _) => Some(silence.clone()),
        (None, Observed::NotStreaming { reason, .. }, _) => unknown(reason),
        // What it told last is history: nobody can be served from there.
        (None, Observed::ByReport, _) if !answers => {
            unknown("the standby's own server does not answer")
        }
        (None, _, None) => unknown("the primary has not told its position yet"),
        (None, _, Some((at, _))) if is_stale(at) => unknown("the primary cannot tell its position"),
        (None, _, Some(_)) if applied.is_none() => unknown("the standby has not told its position"),
        (None, _, Some(_)) => None,
    };
    let is_known = unknown.is_none();
    let behind = |at: Option<Position>| {
        let current = told.or(last_told.map(|(_, position)| *position))?;
        is_known.then_some(current.ahead_of(at?))
    };
    let covered = applied.and_then(|applied| marks.covered(&id.name, applied));
    let seconds = covered.map(|(at, _)| now.instant.saturating_duration_since(*at).as_secs_f64());
    StoreLag {
        id: id.clone(),
        unit: id.kind.unit().to_owned(),
        current: told,
        sent,
        flushed,
        applied,
        lag: behind(applied),
        lag_flushed: behind(flushed),
        lag_bytes: behind(applied).and_then(|lag| {
            // The bytes are told a moment after the position: where no operation is missing, none are.
            let bytes = bytes_behind(id, newest.map(|(_, mark)| mark), received);
            if lag == 0 { bytes.map(|_| 0) } else { bytes }
        }),
        lag_seconds: seconds.filter(|_| is_known),
        must_reseed: matches!(
            observed,
            Observed::NotStreaming {
                must_reseed: true,
                ..
            }
        ) || received.is_some_and(|received| received.must_reseed),
        stalled: received.and_then(|received| received.stalled.clone()),
        stall_reason: received.and_then(|received| received.stall_reason),
        unknown,
    }
}

/// Returns how many bytes of the log lie between `mark` and what the copy has applied, where both tell.
fn bytes_behind(id: &StoreId, mark: Option<&Mark>, received: Option<&Received>) -> Option<u64> {
    let current = mark?.bytes.get(&id.name)?;
    let applied = received?.report.gauges.get(LOG_POSITION_BYTES)?;
    id.kind
        .tells_bytes()
        .then_some(current.saturating_sub(*applied))
}

/// Returns why the other side cannot be relied on, given when it was last heard; `None` when it can.
pub fn silence(what: &str, heard: Option<Instant>, started: Instant, now: Now) -> Option<Unknown> {
    let since = heard.unwrap_or(started);
    let is_silent =
        heard.is_none() || now.instant.saturating_duration_since(since) > MARK_SILENCE_MAX;
    is_silent.then(|| Unknown {
        reason: format!("no word from {what}"),
        since: now.wall_at(since),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::StoreKind;
    use std::collections::BTreeMap;
    use std::time::Duration;

    fn id() -> StoreId {
        StoreId {
            name: "docs".parse().unwrap(),
            kind: StoreKind::Files,
        }
    }

    fn marks(start: Instant, positions: &[Option<u64>]) -> Marks {
        let mut marks = Marks::default();
        for (number, position) in positions.iter().enumerate() {
            let number = number as u64;
            let positions = position
                .iter()
                .map(|at| (id().name, Position(*at)))
                .collect::<BTreeMap<_, _>>();
            let mark = Mark {
                number: number + 1,
                epoch: "1.a".parse().unwrap(),
                run: WallTime(0),
                time: WallTime(number * 1000),
                bytes: positions
                    .iter()
                    .map(|(store, position)| (store.clone(), position.0 * 10))
                    .collect(),
                positions,
                is_awaited: false,
            };
            marks.push(mark, start + Duration::from_secs(number));
        }
        marks
    }

    fn applied(at: u64) -> Received {
        Received {
            flushed: Some(Position(at + 10)),
            applied: Some(Position(at)),
            ..Received::default()
        }
    }

    fn at(start: Instant, seconds: u64) -> Now {
        Now {
            instant: start + Duration::from_secs(seconds),
            wall: WallTime(seconds * 1000),
        }
    }

    #[test]
    fn lag_is_the_distance_to_the_newest_mark_and_the_age_of_the_newest_mark_applied() {
        let start = Instant::now();
        let marks = marks(start, &[Some(100), Some(200), Some(300)]);
        let received = applied(250);
        let evidence = Evidence {
            marks: &marks,
            received: Some(&received),
            observed: &Observed::ByReport,
            silence: None,
        };
        let lag = lag(&id(), &evidence, at(start, 3));
        assert_eq!(lag.lag, Some(50));
        assert_eq!(lag.lag_flushed, Some(40));
        assert_eq!(lag.lag_seconds, Some(2.0));
        assert_eq!(lag.unknown, None);
    }

    #[test]
    fn operations_are_told_in_bytes_beside_where_both_sides_count_them() {
        let start = Instant::now();
        let marks = marks(start, &[Some(100), Some(200)]);
        let kv = StoreId {
            kind: StoreKind::Kv,
            ..id()
        };
        let bytes = |id: &StoreId, here: u64, told: Option<u64>| {
            let mut received = applied(here);
            let gauge = told.map(|bytes| (LOG_POSITION_BYTES.to_owned(), bytes));
            received.report.gauges.extend(gauge);
            let evidence = Evidence {
                marks: &marks,
                received: Some(&received),
                observed: &Observed::ByReport,
                silence: None,
            };
            lag(id, &evidence, at(start, 1)).lag_bytes
        };
        assert_eq!(bytes(&kv, 150, Some(1500)), Some(500));
        assert_eq!(bytes(&kv, 150, None), None, "the standby does not count");
        assert_eq!(bytes(&kv, 200, Some(1990)), Some(0), "it has everything");
        assert_eq!(
            bytes(&id(), 150, Some(1500)),
            None,
            "its lag is bytes already"
        );
    }

    #[test]
    fn a_dead_link_is_unknown_even_if_the_last_lag_was_zero() {
        let start = Instant::now();
        let marks = marks(start, &[Some(100)]);
        let received = applied(100);
        let now = at(start, 4);
        let silence = silence("node b", Some(start), start, now);
        let evidence = Evidence {
            marks: &marks,
            received: Some(&received),
            observed: &Observed::ByReport,
            silence: silence.as_ref(),
        };
        let lag = lag(&id(), &evidence, now);
        assert_eq!(
            (lag.lag, lag.lag_flushed, lag.lag_seconds),
            (None, None, None)
        );
        assert_eq!(
            lag.unknown,
            Some(Unknown {
                reason: "no word from node b".to_owned(),
                since: WallTime(0),
            })
        );
    }

    #[test]
    fn a_store_that_the_primary_cannot_tell_of_is_unknown_after_a_while() {
        let start = Instant::now();
        let marks = marks(start, &[Some(100), None, None, None, None, None]);
        let received = applied(100);
        let evidence = Evidence {
            marks: &marks,
            received: Some(&received),
            observed: &Observed::ByReport,
            silence: None,
        };
        assert_eq!(lag(&id(), &evidence, at(start, 2)).lag, Some(0));
        let later = lag(&id(), &evidence, at(start, 5));
        assert_eq!(later.lag, None);
        assert_eq!(
            later.unknown.unwrap().reason,
            "the primary cannot tell its position"
        );
    }

    #[test]
    fn a_copy_whose_server_does_not_answer_is_unknown_although_it_had_everything() {
        let start = Instant::now();
        let marks = marks(start, &[Some(100)]);
        let received = Received {
            stall_reason: Some(StallReason::NotAnswering),
            ..applied(100)
        };
        let evidence = Evidence {
            marks: &marks,
            received: Some(&received),
            observed: &Observed::ByReport,
            silence: None,
        };
        let lag = lag(&id(), &evidence, at(start, 1));
        assert_eq!((lag.lag, lag.lag_seconds), (None, None));
        assert_eq!(
            lag.unknown.unwrap().reason,
            "the standby's own server does not answer"
        );
    }

    #[test]
    fn a_store_that_does_not_stream_is_unknown_although_the_standby_reports() {
        let start = Instant::now();
        let marks = marks(start, &[Some(100)]);
        let received = applied(100);
        let observed = Observed::NotStreaming {
            reason: "postgres streams nothing to it".to_owned(),
            must_reseed: false,
        };
        let evidence = Evidence {
            marks: &marks,
            received: Some(&received),
            observed: &observed,
            silence: None,
        };
        let lag = lag(&id(), &evidence, at(start, 1));
        assert_eq!(lag.lag, None);
        assert_eq!(
            lag.unknown.unwrap().reason,
            "postgres streams nothing to it"
        );
    }
}
