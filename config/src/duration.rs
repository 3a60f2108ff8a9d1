//! Durations as the operator writes them: `500ms`, `30s`, `5m`, `1h`, `2d`.

use std::time::Duration;

use crate::problem::Mistake;

/// The longest time that anything is given: longer is a slip of the pen.
const DURATION_MAX: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// The highest age: a proof that is older than a year proves nothing.
const AGE_MAX: Duration = Duration::from_secs(400 * 24 * 60 * 60);

/// Reads a duration that is longer than nothing.
///
/// # Errors
/// When the text is no duration, nothing or more than 30 days.
pub fn parse(text: &str) -> Result<Duration, Mistake> {
    let mistake = || {
        Mistake::new(
            format!("`{text}` is not a duration"),
            "a whole number from 1 and a unit (ms, s, m, h or d), at most 30d, such as \"30s\"",
        )
    };
    read(text)
        .filter(|duration| !duration.is_zero())
        .ok_or_else(mistake)
}

/// Reads a duration that is longer than nothing and no longer than `most`.
///
/// # Errors
/// When it is not.
pub fn parse_up_to(text: &str, most: Duration) -> Result<Duration, Mistake> {
    read_up_to(text, most)
        .filter(|duration| !duration.is_zero())
        .ok_or_else(|| {
            Mistake::new(
                format!("`{text}` is not a duration that may be given here"),
                format!(
                    "a whole number from 1 and a unit (ms, s, m, h or d), at most {}, such as \"30m\"",
                    self::text(most)
                ),
            )
        })
}

/// Returns a duration as an operator would write it, in the largest unit in which it is a whole number; what is
/// less than a millisecond is left out.
pub fn text(duration: Duration) -> String {
    let millis = duration.as_millis();
    let units = [
        ("d", 86_400_000),
        ("h", 3_600_000),
        ("m", 60_000),
        ("s", 1000),
    ];
    let fits = |(_, unit): &(&str, u128)| millis > 0 && millis.is_multiple_of(*unit);
    match units.into_iter().find(fits) {
        Some((name, unit)) => format!("{}{name}", millis / unit),
        None if millis == 0 => "0s".to_owned(),
        None => format!("{millis}ms"),
    }
}

/// Reads a duration that is longer than nothing, or `never`, which is none.
pub(crate) fn parse_or_never(text: &str) -> Result<Option<Duration>, Mistake> {
    if text == "never" {
        return Ok(None);
    }
    parse(text).map(Some).map_err(|_| {
        Mistake::new(
            format!("`{text}` is neither a duration nor `never`"),
            "a whole number from 1 and a unit (ms, s, m, h or d), at most 30d, such as \"10s\"; or \"never\"",
        )
    })
}

/// Reads a duration that may be nothing.
pub(crate) fn parse_from_zero(text: &str) -> Result<Duration, Mistake> {
    let mistake = || {
        Mistake::new(
            format!("`{text}` is not a duration"),
            "a whole number and a unit (ms, s, m, h or d), at most 30d, such as \"1d\" or \"0s\"",
        )
    };
    read(text).ok_or_else(mistake)
}

/// Reads an age that something may reach: longer than other durations may be.
pub(crate) fn parse_age(text: &str) -> Result<Duration, Mistake> {
    read_up_to(text, AGE_MAX)
        .filter(|duration| !duration.is_zero())
        .ok_or_else(|| {
            Mistake::new(
                format!("`{text}` is not an age"),
                "a whole number from 1 and a unit (ms, s, m, h or d), at most 400d, such as \"35d\"",
            )
        })
}

fn read(text: &str) -> Option<Duration> {
    read_up_to(text, DURATION_MAX)
}

fn read_up_to(text: &str, most: Duration) -> Option<Duration> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let unit = match unit {
        "ms" => Duration::from_millis(1),
        "s" => Duration::from_secs(1),
        "m" => Duration::from_secs(60),
        "h" => Duration::from_secs(60 * 60),
        "d" => Duration::from_secs(24 * 60 * 60),
        _ => return None,
    };
    number
        .parse()
        .ok()
        .and_then(|number: u32| unit.checked_mul(number))
        .filter(|duration| *duration <= most)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_unit_is_understood() {
        let read = ["500ms", "5s", "2m", "1h", "30d"].map(|text| parse(text).unwrap().as_millis());
        assert_eq!(read, [500, 5_000, 120_000, 3_600_000, 2_592_000_000]);
    }

    #[test]
    fn a_duration_is_written_as_it_is_read() {
        for text in ["500ms", "5s", "90s", "2m", "25h", "7d", "30d"] {
            assert_eq!(super::text(parse(text).unwrap()), text);
        }
        assert_eq!(super::text(Duration::from_secs(691_200)), "8d");
        assert_eq!(super::text(Duration::ZERO), "0s");
    }

    #[test]
    fn a_limit_of_its_own_is_the_one_that_is_told() {
        let week = Duration::from_secs(7 * 86_400);
        assert_eq!(parse_up_to("7d", week), Ok(week));
        for text in ["8d", "0s", "31d", "1w"] {
            assert_eq!(
                parse_up_to(text, week).unwrap_err().to_string(),
                format!(
                    "`{text}` is not a duration that may be given here, expected a whole number from 1 and a \
                     unit (ms, s, m, h or d), at most 7d, such as \"30m\""
                )
            );
        }
    }

    #[test]
    fn nothing_is_a_duration_only_where_it_may_be() {
        assert_eq!(parse_from_zero("0s"), Ok(Duration::ZERO));
        assert!(parse("0s").is_err());
        assert_eq!(
            parse_from_zero("31d").unwrap_err().to_string(),
            "`31d` is not a duration, expected a whole number and a unit (ms, s, m, h or d), at most \
             30d, such as \"1d\" or \"0s\""
        );
    }

    #[test]
    fn what_is_no_duration_is_refused() {
        for text in [
            "",
            "5",
            "s",
            "5 s",
            "-5s",
            "1.5s",
            "0s",
            "31d",
            "99999999999h",
            "5S",
            "5sec",
        ] {
            assert_eq!(
                parse(text).unwrap_err().what,
                format!("`{text}` is not a duration")
            );
        }
    }
}
