//! When something is done, again and again.

mod unix;

use std::fmt;
use std::ops::Range;
use std::str::FromStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use chrono::{DateTime, Utc};

/// A field of a line: what it is called, and what it holds.
type Field = (&'static str, &'static str);

/// The fields of a line as the `cron` package reads it (Quartz' order).
const FIELDS: [Field; 7] = [
    ("second", "0-59"),
    ("minute", "0-59"),
    ("hour", "0-23"),
    ("day of the month", "1-31"),
    ("month", "1-12 or JAN-DEC"),
    ("day of the week", "SUN-SAT"),
    ("year", "1970-2100"),
];

/// A cron line, evaluated in UTC.
///
/// Five fields are read as Unix does (minute first, weekdays from Sunday = 0); six as Quartz does
/// (seconds first, weekdays from Sunday = 1), seven with a year at the end.
#[derive(Clone)]
pub struct Schedule {
    source: String,
    cron: cron::Schedule,
}

/// A line that is no schedule.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ScheduleError {
    /// The line is too short or too long.
    #[error("a schedule cannot have {0} fields")]
    FieldCount(usize),
    /// One of the fields is wrong.
    #[error("`{text}` is not valid for the {name}")]
    Field {
        /// What the field is called.
        name: &'static str,
        /// What it can hold.
        expected: &'static str,
        /// What was written.
        text: String,
        /// Where it is in the line, in bytes.
        within: Range<usize>,
    },
    /// The line restricts the day of the month and the day of the week. Unix runs when either
    /// matches, Quartz when both do.
    #[error("the schedule restricts both the day of the month and the day of the week")]
    BothDays {
        /// Where the day of the week is in the line, in bytes.
        within: Range<usize>,
    },
    /// No date is meant by the line, such as 30 February.
    #[error("the schedule never comes due")]
    NeverDue,
}

impl ScheduleError {
    /// Says what would be right.
    pub(crate) fn expected(&self) -> String {
        match self {
            Self::FieldCount(_) => {
                "five fields as in Unix, such as \"*/5 * * * *\", or six with the seconds first"
                    .to_owned()
            }
            Self::Field { expected, .. } => {
                format!("`*`, or {expected}, with lists `a,b`, ranges `a-b` and steps `*/n`")
            }
            Self::BothDays { .. } => "one of the two to be `*`: Unix would run when either day \
                matches, Quartz when both do, and a reader cannot tell which was meant"
                .to_owned(),
            Self::NeverDue => "a date that exists, between 1970 and 2100".to_owned(),
        }
    }

    /// Says which bytes of the line are wrong, where it is not the whole.
    pub(crate) fn within(&self) -> Option<Range<usize>> {
        match self {
            Self::Field { within, .. } | Self::BothDays { within } => Some(within.clone()),
            Self::FieldCount(_) | Self::NeverDue => None,
        }
    }
}

impl Schedule {
    /// Returns the line as it was written.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Returns when the schedule comes due next after `t`; `None` if it never does again.
    pub fn next_after(&self, t: SystemTime) -> Option<SystemTime> {
        self.next(t, 1).pop()
    }

    /// Returns the next `n` times after `t` at which the schedule comes due; fewer if there are no
    /// more.
    pub fn next(&self, t: SystemTime, n: usize) -> Vec<SystemTime> {
        // Times before 1970 and past what a calendar can say have no schedule to follow.
        let since_epoch = t.duration_since(UNIX_EPOCH).unwrap_or_default();
        let Some(start) = i64::try_from(since_epoch.as_secs())
            .ok()
            .and_then(|seconds| {
                DateTime::<Utc>::from_timestamp(seconds, since_epoch.subsec_nanos())
            })
        else {
            return Vec::new();
        };
        let seconds = self
            .cron
            .after(&start)
            .filter_map(|due| u64::try_from(due.timestamp()).ok());
        seconds
            .take(n)
            .map(|seconds| UNIX_EPOCH + Duration::from_secs(seconds))
            .collect()
    }
}

impl FromStr for Schedule {
    type Err = ScheduleError;

    fn from_str(text: &str) -> Result<Self, ScheduleError> {
        let written = fields(text);
        let line = match written.as_slice() {
            [(_, shorthand)] if shorthand.starts_with('@') => (*shorthand).to_owned(),
            [minute, hour, day, month, weekday] => {
                unix::translate([minute, hour, day, month, weekday])?
            }
            [_, _, _, _, _, _] | [_, _, _, _, _, _, _] => {
                for (field, (within, text)) in FIELDS.iter().zip(&written) {
                    check_field(*field, text, within)?;
                }
                text.to_owned()
            }
            other => return Err(ScheduleError::FieldCount(other.len())),
        };
        let cron = cron::Schedule::from_str(&line)
            .map_err(|_| ScheduleError::FieldCount(written.len()))?;
        let schedule = Self {
            source: text.to_owned(),
            cron,
        };
        // From a fixed time: whether a configuration is valid does not depend on today.
        match schedule.next_after(UNIX_EPOCH) {
            Some(_) => Ok(schedule),
            None => Err(ScheduleError::NeverDue),
        }
    }
}

impl fmt::Debug for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Schedule").field(&self.source).finish()
    }
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.source)
    }
}

impl PartialEq for Schedule {
    fn eq(&self, other: &Self) -> bool {
        self.source == other.source
    }
}

impl Eq for Schedule {}

/// Splits a line at its spaces, and tells where each field is.
fn fields(text: &str) -> Vec<(Range<usize>, &str)> {
    let place = |field: &str| {
        let start = field.as_ptr().addr() - text.as_ptr().addr();
        start..start + field.len()
    };
    text.split_whitespace()
        .map(|field| (place(field), field))
        .collect()
}

/// Checks one field alone, so that the message can point at it.
fn check_field(field: Field, text: &str, within: &Range<usize>) -> Result<(), ScheduleError> {
    let mut line = ["*"; FIELDS.len()];
    if let Some(position) = FIELDS.iter().position(|known| known.0 == field.0) {
        line[position] = text;
    }
    // The package skips spaces between fields and does not need them: it would read `5*` as two.
    let is_one = text.split(',').all(is_element);
    if is_one && cron::Schedule::from_str(&line.join(" ")).is_ok() {
        return Ok(());
    }
    let (name, expected) = field;
    Err(ScheduleError::Field {
        name,
        expected,
        text: text.to_owned(),
        within: within.clone(),
    })
}

/// Returns whether this is `*`, `?`, `a` or `a-b`, with a step `/n` or without.
fn is_element(text: &str) -> bool {
    let is_word = |word: &str| {
        !word.is_empty()
            && (word.bytes().all(|byte| byte.is_ascii_digit())
                || word.bytes().all(|byte| byte.is_ascii_alphabetic()))
    };
    let (range, step) = text.split_once('/').unwrap_or((text, "1"));
    let (first, last) = range.split_once('-').unwrap_or((range, "0"));
    let is_step = step.parse().is_ok_and(|step: u32| step > 0) && is_word(step);
    is_step && (range == "*" || range == "?" || (is_word(first) && is_word(last)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// 2026-01-01 00:00:00, a Thursday.
    const NEW_YEAR: u64 = 1_767_225_600;

    fn due(line: &str) -> Vec<String> {
        let schedule: Schedule = line.parse().unwrap();
        let times = schedule.next(UNIX_EPOCH + Duration::from_secs(NEW_YEAR), 3);
        times
            .into_iter()
            .map(|t| DateTime::<Utc>::from(t).format("%a %F %T").to_string())
            .collect()
    }

    #[test]
    fn lines_of_every_kind_come_due_as_they_say() {
        let lines = [
            "0 * * * * *",
            "*/15 * * * *",
            "0 0 12 ? * MON",
            "0 0 0 1 1 * 2030",
            "@daily",
            "30 4 1 */6 *",
        ];
        let table: Vec<_> = lines
            .iter()
            .map(|line| (line, due(line).join(", ")))
            .collect();
        insta::assert_debug_snapshot!(table, @r#"
        [
            (
                "0 * * * * *",
                "Thu 2026-01-01 00:01:00, Thu 2026-01-01 00:02:00, Thu 2026-01-01 00:03:00",
            ),
            (
                "*/15 * * * *",
                "Thu 2026-01-01 00:15:00, Thu 2026-01-01 00:30:00, Thu 2026-01-01 00:45:00",
            ),
            (
                "0 0 12 ? * MON",
                "Mon 2026-01-05 12:00:00, Mon 2026-01-12 12:00:00, Mon 2026-01-19 12:00:00",
            ),
            (
                "0 0 0 1 1 * 2030",
                "Tue 2030-01-01 00:00:00",
            ),
            (
                "@daily",
                "Fri 2026-01-02 00:00:00, Sat 2026-01-03 00:00:00, Sun 2026-01-04 00:00:00",
            ),
            (
                "30 4 1 */6 *",
                "Thu 2026-01-01 04:30:00, Wed 2026-07-01 04:30:00, Fri 2027-01-01 04:30:00",
            ),
        ]
        "#);
    }

    #[test]
    fn a_line_that_is_wrong_is_refused_with_the_place_of_the_field() {
        let lines = [
            "",
            "* * *",
            "hourly",
            "@sometimes",
            "60 * * * *",
            "* 24 * * *",
            "0 5* * * * *",
            "* * * * * * * *",
            "0 0 30 2 *",
            "0 0 0 31 4,6,9,11 ?",
            "0 0 1 * 1",
            "0 0 * * 8",
            "0 0 * * 5-1",
            "0 0 * * 1/2",
            "*/0 * * * *",
            "99999999999 * * * *",
            "0-4294967295 * * * *",
        ];
        let refused = lines.map(|line| {
            let error = line.parse::<Schedule>().unwrap_err();
            let place = error.within().map(|within| &line[within]);
            format!("{line:?}: {error} ({place:?})")
        });
        insta::assert_debug_snapshot!(refused, @r#"
        [
            "\"\": a schedule cannot have 0 fields (None)",
            "\"* * *\": a schedule cannot have 3 fields (None)",
            "\"hourly\": a schedule cannot have 1 fields (None)",
            "\"@sometimes\": a schedule cannot have 1 fields (None)",
            "\"60 * * * *\": `60` is not valid for the minute (Some(\"60\"))",
            "\"* 24 * * *\": `24` is not valid for the hour (Some(\"24\"))",
            "\"0 5* * * * *\": `5*` is not valid for the minute (Some(\"5*\"))",
            "\"* * * * * * * *\": a schedule cannot have 8 fields (None)",
            "\"0 0 30 2 *\": the schedule never comes due (None)",
            "\"0 0 0 31 4,6,9,11 ?\": the schedule never comes due (None)",
            "\"0 0 1 * 1\": the schedule restricts both the day of the month and the day of the week (Some(\"1\"))",
            "\"0 0 * * 8\": `8` is not valid for the day of the week (Some(\"8\"))",
            "\"0 0 * * 5-1\": `5-1` is not valid for the day of the week (Some(\"5-1\"))",
            "\"0 0 * * 1/2\": `1/2` is not valid for the day of the week (Some(\"1/2\"))",
            "\"*/0 * * * *\": `*/0` is not valid for the minute (Some(\"*/0\"))",
            "\"99999999999 * * * *\": `99999999999` is not valid for the minute (Some(\"99999999999\"))",
            "\"0-4294967295 * * * *\": `0-4294967295` is not valid for the minute (Some(\"0-4294967295\"))",
        ]
        "#);
    }

    #[test]
    fn a_time_that_no_calendar_has_is_not_followed() {
        let schedule: Schedule = "* * * * *".parse().unwrap();
        let year_3000 = UNIX_EPOCH + Duration::from_secs(32_503_680_000);
        let last = UNIX_EPOCH + Duration::from_secs(i64::MAX.unsigned_abs());
        assert_eq!(
            [year_3000, last].map(|t| schedule.next_after(t)),
            [None, None]
        );
        let before = UNIX_EPOCH - Duration::from_secs(1);
        assert_eq!(
            schedule.next_after(before),
            Some(UNIX_EPOCH + Duration::from_secs(60))
        );
    }

    proptest! {
        #[test]
        fn nothing_that_looks_like_a_line_panics(text in "[0-9*/,? @A-Za-z-]{0,40}") {
            drop(text.parse::<Schedule>());
        }

        #[test]
        fn what_comes_due_comes_after(minute in 0..60u8, hour in 0..24u8, t in 0..4_000_000_000u64) {
            let schedule: Schedule = format!("{minute} {hour} * * *").parse().unwrap();
            let t = UNIX_EPOCH + Duration::from_secs(t);
            let next = schedule.next_after(t).unwrap();
            prop_assert!(next > t && next <= t + Duration::from_secs(24 * 60 * 60));
        }
    }
}
