//! The files of the write-ahead log, and what is in them beyond a place. Pure.

use serde::{Deserialize, Serialize};

use super::history::History;
use crate::position::Lsn;

/// A part of the log: on one timeline, from one place up to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WalRange {
    /// The timeline.
    pub timeline: u32,
    /// Where it begins.
    pub from: Lsn,
    /// Where it ends; what lies there does not belong to it.
    pub to: Lsn,
}

impl WalRange {
    /// Returns how long it is, in bytes.
    pub fn bytes(&self) -> u64 {
        self.to.0.saturating_sub(self.from.0)
    }

    /// Returns the starts of the segments that it lies in.
    pub fn segments(&self, segment_bytes: u64) -> impl Iterator<Item = Lsn> + use<> {
        let first = self.from.0 / segment_bytes.max(1);
        let end = self.to.0.div_ceil(segment_bytes.max(1));
        (first..end).map(move |number| Lsn(number.saturating_mul(segment_bytes)))
    }
}

/// Returns the timeline and the start of the segment in a file of the log, by the file's name: the
/// timeline, then the number of the segment as two halves, eight hexadecimal digits each (Postgres'
/// `xlog_internal.h`, `XLogFileName`). `None` if it is another file.
pub fn parse_segment(name: &str, segment_bytes: u64) -> Option<(u32, Lsn)> {
    let is_hexadecimal = |byte: u8| byte.is_ascii_digit() || (b'A'..=b'F').contains(&byte);
    if name.len() != 24 || !name.bytes().all(is_hexadecimal) {
        return None;
    }
    let part = |from: usize| u32::from_str_radix(name.get(from..from + 8)?, 16).ok();
    let per_half = (1_u64 << 32).checked_div(segment_bytes)?;
    let number = u64::from(part(8)?)
        .checked_mul(per_half)?
        .checked_add(u64::from(part(16)?))?;
    Some((part(0)?, Lsn(number.checked_mul(segment_bytes)?)))
}

/// Returns the name of the file of the log in which a place on a timeline lies: see [`parse_segment`]. `None` if
/// there is no such size of segments.
pub fn segment_name(timeline: u32, at: Lsn, segment_bytes: u64) -> Option<String> {
    let number = at.0.checked_div(segment_bytes)?;
    let per_half = (1_u64 << 32).checked_div(segment_bytes)?;
    let (high, low) = (number.checked_div(per_half)?, number.checked_rem(per_half)?);
    Some(format!("{timeline:08X}{high:08X}{low:08X}"))
}

/// Returns the newest timeline of which the folder of a log has a segment.
pub(super) fn newest_segment(names: impl IntoIterator<Item = String>) -> Option<u32> {
    // How large they are does not matter to the timeline.
    let timelines = names
        .into_iter()
        .filter_map(|name| Some(parse_segment(&name, 16 << 20)?.0));
    timelines.max()
}

/// Returns the newest timeline of which the folder of a log has a history.
pub(super) fn newest_history(names: impl IntoIterator<Item = String>) -> Option<u32> {
    let timeline = |name: String| u32::from_str_radix(name.strip_suffix(".history")?, 16).ok();
    names.into_iter().filter_map(timeline).max()
}

impl History {
    /// Returns what this server has written from `at` on, where it was on `timeline`.
    pub fn beyond(&self, at: Lsn, timeline: u32) -> Vec<WalRange> {
        let mut from = at;
        let mut ranges = Vec::new();
        for ended in self.chain().skip_while(|it| it.timeline < timeline) {
            if ended.at > from {
                ranges.push(WalRange {
                    timeline: ended.timeline,
                    from,
                    to: ended.at,
                });
            }
            from = from.max(ended.at);
        }
        ranges
    }
}

#[cfg(test)]
mod tests {
    use super::super::history::Ended;
    use super::*;

    const SEGMENT: u64 = 16 << 20;

    #[test]
    fn the_name_of_a_file_tells_its_place() {
        let table = [
            ("000000010000000000000003", Some((1, 0x300_0000))),
            ("0000000A00000001000000FF", Some((10, 0x1_FF00_0000))),
            ("00000001000000000000000g", None),
            ("000000010000000000000003.partial", None),
            ("00000002.history", None),
        ];
        for (name, expected) in table {
            let expected = expected.map(|(timeline, at)| (timeline, Lsn(at)));
            assert_eq!(parse_segment(name, SEGMENT), expected, "{name}");
            if let Some((timeline, at)) = expected {
                let within = Lsn(at.0 + 7);
                assert_eq!(
                    segment_name(timeline, within, SEGMENT).as_deref(),
                    Some(name)
                );
            }
        }
    }

    #[test]
    fn the_newest_timeline_is_found_by_the_names_of_files() {
        let names = || {
            [
                "000000010000000000000003",
                "0000000A0000000000000003",
                "00000010.history",
                "archive_status",
            ]
            .map(str::to_owned)
        };
        assert_eq!(newest_segment(names()), Some(10));
        assert_eq!(newest_history(names()), Some(16));
        assert_eq!(newest_segment([]), None);
    }

    #[test]
    fn what_lies_beyond_a_fork_is_told_per_timeline() {
        let ended = |timeline, at| Ended {
            timeline,
            at: Lsn(at),
        };
        let range = |timeline, from, to| WalRange {
            timeline,
            from: Lsn(from),
            to: Lsn(to),
        };
        let history = History {
            system_identifier: 7,
            ended: vec![ended(1, 100), ended(2, 200)],
            timeline: 3,
            end: Lsn(300),
            origins: super::super::origins::Origins::new(),
        };
        assert_eq!(history.beyond(Lsn(250), 3), [range(3, 250, 300)]);
        assert_eq!(
            history.beyond(Lsn(90), 1),
            [range(1, 90, 100), range(2, 100, 200), range(3, 200, 300)]
        );
        // It was promoted where they parted, and had written nothing more until then.
        assert_eq!(
            history.beyond(Lsn(100), 1),
            [range(2, 100, 200), range(3, 200, 300)]
        );
        assert_eq!(history.beyond(Lsn(300), 3), []);
    }

    #[test]
    fn a_range_lies_in_the_segments_that_it_touches() {
        let range = WalRange {
            timeline: 1,
            from: Lsn(SEGMENT + 5),
            to: Lsn(3 * SEGMENT),
        };
        let segments: Vec<u64> = range.segments(SEGMENT).map(|at| at.0 / SEGMENT).collect();
        assert_eq!(segments, [1, 2]);
    }
}
