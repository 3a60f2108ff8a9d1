//! Where two logs part: found from a sketch of the one, on the side of the other.

use serde::{Deserialize, Serialize};

use crate::kv::point::{EntryDigest, Point};
use crate::position::Position;

/// The most points that a sketch has. By their growing distances they reach through any log.
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
    /// The follower needs the leader's table, and the log behind it.
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
            // that the points left reach through any log.
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
