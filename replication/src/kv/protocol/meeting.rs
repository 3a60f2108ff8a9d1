//! Where two logs part: found from a sketch of the one, on the side of the other.

use serde::{Deserialize, Serialize};

use crate::kv::point::{EntryDigest, Point};
use crate::position::Position;

/// The most points that a sketch has. By their growing distances they reach through ten billion operations.
pub const MEETING_POINTS_MAX: usize = 64;

/// How many of the newest entries a sketch names one by one.
const MEETING_POINTS_NEAR: usize = 8;

/// What a follower tells of its durable log: where it ends, and points at growing distances back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<Point>", into = "Vec<Point>")]
pub struct Sketch {
    /// Points of the log, newest first; the first is its tail. Never empty, at most [`MEETING_POINTS_MAX`].
    points: Vec<Point>,
}

/// What came of a meeting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Meeting {
    /// The stream begins behind this shared point.
    Stream {
        /// The newest point that both are known to share.
        from: Point,
    },
    /// The follower needs the leader's table, and the log behind it; see [`Leader::may_send_snapshot`].
    ///
    /// [`Leader::may_send_snapshot`]: super::Leader::may_send_snapshot
    Snapshot {
        /// The newest point that both are known to share, though the log behind it is gone; what the follower has
        /// behind it (all, for `None`) has to be salvaged before it is replaced.
        shared: Option<Point>,
    },
}

impl Sketch {
    /// Sketches a durable log that ends at `tail`.
    ///
    /// `oldest` is the oldest point that the follower could go on from: of its kept log, and not before the
    /// snapshot of its table, because below that it could not build its table again. `at_or_before` finds the
    /// newest point of the log that is not behind a position; it is asked for nothing before `oldest`.
    pub fn of(
        oldest: &Point,
        tail: &Point,
        mut at_or_before: impl FnMut(Position) -> Option<Point>,
    ) -> Self {
        let mut points = vec![tail.clone()];
        let mut last = tail.position;
        let mut distance: u64 = 1;
        while last > oldest.position && points.len() < MEETING_POINTS_MAX - 1 {
            let wanted = last.0.saturating_sub(distance).max(oldest.position.0);
            // The neighbours one by one: there the logs of a crash part. Then by half as much again each time, so
            // that the points left reach through the log.
            if points.len() >= MEETING_POINTS_NEAR {
                distance = distance.saturating_add(distance / 2).saturating_add(1);
            }
            match at_or_before(Position(wanted)) {
                Some(point) if point.position < last && point.position >= oldest.position => {
                    last = point.position;
                    points.push(point);
                }
                Some(_) | None => break,
            }
        }
        if last > oldest.position {
            points.push(oldest.clone());
        }
        Self { points }
    }

    /// Returns whether a snapshot at `position` takes nothing from the follower that another node may count on:
    /// whether it reaches as far as the whole log does.
    pub fn is_covered_by(&self, position: Position) -> bool {
        self.points.iter().all(|it| it.position <= position)
    }

    /// Returns the points, newest first.
    pub fn points(&self) -> &[Point] {
        &self.points
    }
}

/// Why points are not a sketch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SketchError {
    /// There are none, or too many.
    #[error("a sketch of {points} points, where 1 to {MEETING_POINTS_MAX} are allowed")]
    Length {
        /// How many.
        points: usize,
    },
    /// They are not ordered from the newest to the oldest.
    #[error("a sketch whose point at {position} is not older than the one before it")]
    Order {
        /// The point that is out of order.
        position: Position,
    },
}

impl TryFrom<Vec<Point>> for Sketch {
    type Error = SketchError;

    fn try_from(points: Vec<Point>) -> Result<Self, SketchError> {
        if points.is_empty() || points.len() > MEETING_POINTS_MAX {
            return Err(SketchError::Length {
                points: points.len(),
            });
        }
        match points
            .windows(2)
            .find(|pair| matches!(pair, [newer, older] if newer.position <= older.position))
        {
            Some([_, older]) => Err(SketchError::Order {
                position: older.position,
            }),
            Some(_) | None => Ok(Self { points }),
        }
    }
}

impl From<Sketch> for Vec<Point> {
    fn from(sketch: Sketch) -> Self {
        sketch.points
    }
}

/// Finds where a leader's log and the follower's with this sketch are known to be equal.
///
/// `lookup` gives the digest of the leader's entry that ends at a position, as far as the leader knows it: from its
/// log (durable or handed to its links), its snapshot, or points it remembers. `first_kept` is the oldest point that
/// its log can be read from.
pub fn meet(
    sketch: &Sketch,
    mut lookup: impl FnMut(Position) -> Option<EntryDigest>,
    first_kept: Position,
) -> Meeting {
    let shared = sketch.points.iter().find(|point| {
        // Every log begins at the origin.
        **point == Point::ORIGIN || lookup(point.position) == Some(point.digest)
    });
    match shared {
        Some(from) if from.position >= first_kept => Meeting::Stream { from: from.clone() },
        Some(_) | None => Meeting::Snapshot {
            shared: shared.cloned(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The points of a log whose entries have these lengths; `fork` and later ones are of another history.
    fn log(lengths: &[u64], fork: usize) -> Vec<Point> {
        let mut points = vec![Point::ORIGIN];
        let mut position = 0;
        for (index, length) in lengths.iter().enumerate() {
            position += length;
            let mut digest = [0; 32];
            digest[..8].copy_from_slice(&(position + 1).to_be_bytes());
            digest[8] = u8::from(index >= fork);
            points.push(Point {
                position: Position(position),
                epoch: None,
                digest: EntryDigest(digest),
            });
        }
        points
    }

    fn sketch(points: &[Point]) -> Sketch {
        let (oldest, tail) = (points.first().unwrap(), points.last().unwrap());
        Sketch::of(oldest, tail, |position| {
            points
                .iter()
                .rev()
                .find(|it| it.position <= position)
                .cloned()
        })
    }

    fn met(sketch: &Sketch, leader: &[Point]) -> Meeting {
        let lookup = |position| {
            let mut points = leader.iter();
            points
                .find(|it| it.position == position)
                .map(|it| it.digest)
        };
        meet(sketch, lookup, leader.first().unwrap().position)
    }

    #[test]
    fn a_follower_that_is_only_behind_goes_on_at_its_end() {
        let leader = log(&[3; 1000], usize::MAX);
        let follower = &leader[..700];
        let from = follower.last().unwrap().clone();
        assert_eq!(met(&sketch(follower), &leader), Meeting::Stream { from });
    }

    #[test]
    fn a_follower_whose_last_entries_differ_goes_on_before_them() {
        let follower = log(&[3; 1000], 995);
        let leader = log(&[3; 1000], usize::MAX);
        let from = leader[995].clone();
        assert_eq!(met(&sketch(&follower), &leader), Meeting::Stream { from });
    }

    #[test]
    fn a_follower_that_is_behind_what_the_leader_kept_needs_a_snapshot() {
        let leader = log(&[3; 1000], usize::MAX);
        let shared = Some(Point::ORIGIN);
        assert_eq!(
            met(&sketch(&leader[..10]), &leader[500..]),
            Meeting::Snapshot { shared }
        );
        let shared = None;
        assert_eq!(
            met(&sketch(&leader[5..10]), &leader[500..]),
            Meeting::Snapshot { shared }
        );
    }

    #[test]
    fn an_empty_follower_streams_a_whole_log_and_needs_a_snapshot_for_less() {
        let leader = log(&[3; 100], usize::MAX);
        let empty = sketch(&[Point::ORIGIN]);
        let from = Point::ORIGIN;
        assert_eq!(met(&empty, &leader), Meeting::Stream { from });
        let shared = Some(Point::ORIGIN);
        assert_eq!(met(&empty, &leader[1..]), Meeting::Snapshot { shared });
    }

    #[test]
    fn what_is_no_sketch_is_refused() {
        let points = log(&[1; 100], usize::MAX);
        assert_eq!(
            Sketch::try_from(Vec::new()),
            Err(SketchError::Length { points: 0 })
        );
        assert_eq!(
            Sketch::try_from(points[..2].to_vec()),
            Err(SketchError::Order {
                position: Position(1)
            })
        );
        let many = points.iter().rev().take(65).cloned().collect::<Vec<_>>();
        assert_eq!(
            Sketch::try_from(many),
            Err(SketchError::Length { points: 65 })
        );
    }

    #[test]
    fn a_sketch_reaches_through_a_log_of_ten_billion_operations() {
        let tail = Point {
            position: Position(10_000_000_000),
            ..Point::ORIGIN
        };
        let sketch = Sketch::of(&Point::ORIGIN, &tail, |position| {
            Some(Point {
                position,
                ..Point::ORIGIN
            })
        });
        assert!(sketch.points().len() <= MEETING_POINTS_MAX);
        assert_eq!(sketch.points().last(), Some(&Point::ORIGIN));
        let gaps = sketch
            .points()
            .windows(2)
            .map(|it| it[0].position.0 - it[1].position.0);
        assert!(gaps.max() < Some(5_000_000_000));
    }

    proptest! {
        #[test]
        fn what_two_logs_are_said_to_share_they_share(
            lengths in prop::collection::vec(1..9u64, 1..300),
            fork in 0..300usize,
            more in prop::collection::vec(1..9u64, 0..50),
            kept in 0..300usize,
        ) {
            let follower = log(&lengths, fork);
            let mut others = lengths.clone();
            others.truncate(fork);
            others.extend(more);
            let whole = log(&others, usize::MAX);
            let leader = &whole[kept.min(whole.len() - 1)..];
            let sketch = sketch(&follower);
            prop_assert!(sketch.points().len() <= MEETING_POINTS_MAX);
            prop_assert_eq!(Sketch::try_from(sketch.points().to_vec()), Ok(sketch.clone()));
            match met(&sketch, leader) {
                Meeting::Stream { from } => {
                    prop_assert!(follower.contains(&from) && leader.contains(&from));
                }
                Meeting::Snapshot { shared } => {
                    prop_assert!(leader[0].position > Position(0));
                    if let Some(shared) = shared {
                        prop_assert!(follower.contains(&shared) && whole.contains(&shared));
                    }
                }
            }
        }
    }
}
