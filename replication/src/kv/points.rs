//! Which points a log has, as far as two nodes need to know to find the newest that they share.
//!
//! All of the last ones are kept, and of the older ones the first behind every multiple of a distance: equal
//! logs then keep the same.

use std::collections::{BTreeMap, VecDeque};

use crate::position::Position;

use super::point::{EntryDigest, Point};

/// How many operations lie between the points that are kept of the older part.
const DISTANCE: u64 = 4096;

/// Or so many bytes, if that is less.
const DISTANCE_BYTES: u64 = 512 << 10;

/// How many of the newest points are kept, all of them.
const RECENT_MAX: usize = 512;

/// The points of a log that are known.
#[derive(Clone, Debug)]
pub(super) struct Points {
    marks: BTreeMap<Position, Point>,
    recent: VecDeque<Point>,
    tail: Point,
    /// How many bytes lie before the tail, since the first entry ever.
    bytes: u64,
}

impl Points {
    /// Returns those of a log that begins, and ends, at `first`.
    pub(super) fn new(first: Point) -> Self {
        Self {
            marks: BTreeMap::from([(first.position, first.clone())]),
            recent: VecDeque::new(),
            tail: first,
            bytes: 0,
        }
    }

    /// Returns the point at the end.
    pub(super) fn tail(&self) -> &Point {
        &self.tail
    }

    /// Notes the point behind one more entry, up to which all entries have `bytes`.
    pub(super) fn push(&mut self, point: Point, bytes: u64) {
        let is_far = point.position.0 / DISTANCE > self.tail.position.0 / DISTANCE
            || bytes / DISTANCE_BYTES > self.bytes / DISTANCE_BYTES;
        self.bytes = bytes;
        if is_far {
            self.marks.insert(point.position, point.clone());
        }
        if self.recent.len() == RECENT_MAX {
            self.recent.pop_front();
        }
        self.recent.push_back(point.clone());
        self.tail = point;
    }

    /// Forgets what lies behind `to`, which is a point of the log.
    pub(super) fn truncate(&mut self, to: Point) {
        self.marks.retain(|position, _| *position <= to.position);
        self.recent.retain(|point| point.position <= to.position);
        self.tail = to;
    }

    /// Forgets what lies before `first`, where the log begins now.
    pub(super) fn release(&mut self, first: Position) {
        self.marks.retain(|position, _| *position >= first);
        self.recent.retain(|point| point.position >= first);
    }

    /// Returns the digest of the entry that ends at `position`, if that is known.
    pub(super) fn digest_at(&self, position: Position) -> Option<EntryDigest> {
        self.at(position).map(|point| point.digest)
    }

    /// Returns the point at `position`, if it is known.
    pub(super) fn at(&self, position: Position) -> Option<&Point> {
        if self.tail.position == position {
            return Some(&self.tail);
        }
        let at = self
            .recent
            .binary_search_by_key(&position, |point| point.position);
        match at {
            Ok(at) => self.recent.get(at),
            Err(_) => self.marks.get(&position),
        }
    }

    /// Returns the oldest point that is known and not before `position`.
    pub(super) fn at_or_after(&self, position: Position) -> Option<&Point> {
        let mark = self.marks.range(position..).next().map(|mark| mark.1);
        let before = self
            .recent
            .partition_point(|point| point.position < position);
        let recent = self.recent.get(before);
        let tail = Some(&self.tail).filter(|tail| tail.position >= position);
        [mark, recent, tail]
            .into_iter()
            .flatten()
            .min_by_key(|point| point.position)
    }

    /// Returns the newest point that is known and not behind `position`.
    pub(super) fn at_or_before(&self, position: Position) -> Option<&Point> {
        if self.tail.position <= position {
            return Some(&self.tail);
        }
        let behind = self
            .recent
            .partition_point(|point| point.position <= position);
        let recent = behind.checked_sub(1).and_then(|at| self.recent.get(at));
        recent.or_else(|| self.marks.range(..=position).next_back().map(|mark| mark.1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kv::protocol::Sketch;

    fn points(entries: u64) -> Points {
        let mut points = Points::new(Point::ORIGIN);
        for number in 1..=entries {
            points.push(point(number), number * 100);
        }
        points
    }

    fn point(number: u64) -> Point {
        let mut digest = [0; 32];
        digest[..8].copy_from_slice(&number.to_le_bytes());
        Point {
            position: Position(number * 3),
            epoch: None,
            digest: EntryDigest(digest),
        }
    }

    #[test]
    fn logs_of_which_one_is_longer_share_points_that_both_know() {
        let (long, short) = (points(1_000_000), points(400_000));
        for (one, other) in [(&long, &short), (&short, &long)] {
            let oldest = Point::ORIGIN;
            let sketch = Sketch::of(&oldest, one.tail(), |at| one.at_or_before(at).cloned());
            let shared = sketch
                .points()
                .iter()
                .find(|point| other.digest_at(point.position) == Some(point.digest));
            // Not so far back that much is compared again.
            let least = short.tail().position.0 / 2;
            assert!(shared.unwrap().position >= Position(least), "{shared:?}");
        }
    }

    #[test]
    fn what_was_cut_off_is_not_known_any_more() {
        let mut points = points(10_000);
        points.truncate(point(9_900));
        assert_eq!(points.tail(), &point(9_900));
        assert_eq!(points.at(Position(9_901 * 3)), None);
        assert_eq!(points.at_or_before(Position(u64::MAX)), Some(&point(9_900)));
        points.release(Position(9_800 * 3));
        assert_eq!(points.at(Position(9_799 * 3)), None);
        assert_eq!(points.at(Position(9_850 * 3)), Some(&point(9_850)));
    }

    #[test]
    fn memory_does_not_grow_with_every_entry() {
        let points = points(1_000_000);
        assert!(points.marks.len() < 1000 && points.recent.len() <= RECENT_MAX);
    }
}
