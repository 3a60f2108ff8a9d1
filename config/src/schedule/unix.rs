//! Five-field lines as Unix reads them, translated into what the `cron` package reads.

use std::collections::BTreeSet;
use std::ops::Range;

use super::{FIELDS, Field, ScheduleError, check_field, is_element};

const WEEKDAY_NAMES: [&str; 7] = ["SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT"];
const WEEKDAY: Field = (
    "day of the week",
    "0-7, where 0 and 7 are Sunday, or SUN-SAT",
);

/// Translates the five fields of a Unix line.
pub(super) fn translate(fields: [&(Range<usize>, &str); 5]) -> Result<String, ScheduleError> {
    let [minute, hour, day, month, weekday] = fields;
    for ((within, text), field) in [minute, hour, day, month].into_iter().zip(&FIELDS[1..]) {
        check_field(*field, text, within)?;
    }
    let days = weekdays(weekday.1).ok_or_else(|| ScheduleError::Field {
        name: WEEKDAY.0,
        expected: WEEKDAY.1,
        text: weekday.1.to_owned(),
        within: weekday.0.clone(),
    })?;
    // Unix calls a field that starts with `*` unrestricted, whatever its step.
    let is_restricted = |text: &str| !text.starts_with(['*', '?']);
    if is_restricted(day.1) && is_restricted(weekday.1) {
        return Err(ScheduleError::BothDays {
            within: weekday.0.clone(),
        });
    }
    Ok(format!(
        "0 {} {} {} {} {days}",
        minute.1, hour.1, day.1, month.1
    ))
}

/// Translates the days of the week: the numbers differ, so the days are named one by one.
fn weekdays(text: &str) -> Option<String> {
    if matches!(text, "*" | "?") {
        return Some("*".to_owned());
    }
    let mut days = BTreeSet::new();
    for element in text.split(',') {
        if !is_element(element) {
            return None;
        }
        let (range, step) = match element.split_once('/') {
            Some((range, step)) => (range, Some(step.parse().ok()?)),
            None => (element, None),
        };
        let (first, last) = match range.split_once('-') {
            Some((first, last)) => (weekday(first)?, weekday(last)?),
            None if range == "*" || range == "?" => (0, 6),
            // Crons disagree on what `1/2` is.
            None if step.is_some() => return None,
            None => (weekday(range)?, weekday(range)?),
        };
        if first > last {
            return None;
        }
        days.extend(
            (first..=last)
                .step_by(step.unwrap_or(1))
                .map(|day| day % WEEKDAY_NAMES.len()),
        );
    }
    let names: Vec<&str> = days.into_iter().map(|day| WEEKDAY_NAMES[day]).collect();
    Some(names.join(","))
}

/// Reads a day of the week: 0 to 7, or its name.
fn weekday(text: &str) -> Option<usize> {
    let named = WEEKDAY_NAMES
        .iter()
        .position(|name| name.eq_ignore_ascii_case(text));
    named.or_else(|| {
        text.parse()
            .ok()
            .filter(|number| *number <= WEEKDAY_NAMES.len())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schedule::fields;

    fn translated(line: &str) -> String {
        let fields = fields(line);
        let [a, b, c, d, e] = fields.as_slice() else {
            panic!("{line} has five fields")
        };
        translate([a, b, c, d, e]).unwrap()
    }

    #[test]
    fn five_fields_become_six() {
        let table = [
            ("* * * * *", "0 * * * * *"),
            ("*/5 * * * *", "0 */5 * * * *"),
            ("30 4 1,15 * *", "0 30 4 1,15 * *"),
            ("0 0 * jan-mar *", "0 0 0 * jan-mar *"),
            ("0 22 * * 1-5", "0 0 22 * * MON,TUE,WED,THU,FRI"),
            ("0 22 * * 0", "0 0 22 * * SUN"),
            ("0 22 * * 7", "0 0 22 * * SUN"),
            ("0 22 * * 0,6", "0 0 22 * * SUN,SAT"),
            ("0 22 * * 5-7", "0 0 22 * * SUN,FRI,SAT"),
            ("0 22 * * 0-7", "0 0 22 * * SUN,MON,TUE,WED,THU,FRI,SAT"),
            ("0 22 * * */2", "0 0 22 * * SUN,TUE,THU,SAT"),
            ("0 22 * * 1-5/2", "0 0 22 * * MON,WED,FRI"),
            ("0 22 * * mon-fri", "0 0 22 * * MON,TUE,WED,THU,FRI"),
            ("0 22 * * sun,3", "0 0 22 * * SUN,WED"),
            ("0 22 */2 * 1", "0 0 22 */2 * MON"),
        ];
        assert_eq!(
            table.map(|(line, _)| (line, translated(line))),
            table.map(|(a, b)| (a, b.to_owned()))
        );
    }
}
