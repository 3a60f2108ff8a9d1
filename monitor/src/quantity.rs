//! Sizes and times as people write and read them.

use std::time::Duration;

use understudy_replication::store::StoreKind;
use understudy_replication::wall_time::WallTime;

/// The units of sizes with their powers of 1024, spelled as Postgres spells them.
const SIZE_UNITS: [(&str, u32); 5] = [("B", 0), ("kB", 1), ("MB", 2), ("GB", 3), ("TB", 4)];

/// Reads a number of bytes: `4096`, `16kB`, `10MB`.
pub(crate) fn parse_size(text: &str) -> Option<u64> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().ok()?;
    if unit.is_empty() {
        return Some(number);
    }
    let (_, power) = SIZE_UNITS.iter().find(|(name, _)| *name == unit)?;
    number.checked_mul(1024_u64.pow(*power))
}

/// Writes a number of bytes in the largest unit that leaves at least one: `12.3 MB`.
pub(crate) fn size(bytes: u64) -> String {
    let (name, power) = SIZE_UNITS
        .into_iter()
        .rev()
        .find(|(_, power)| bytes >= 1024_u64.pow(*power))
        .unwrap_or(SIZE_UNITS[0]);
    if power == 0 {
        return format!("{bytes} {name}");
    }
    let unit = 1024_u64.pow(power);
    // Rounded down, so that 1023.99 kB does not become 1024.0 kB.
    let tenths = (bytes % unit) * 10 / unit;
    format!("{}.{tenths} {name}", bytes / unit)
}

/// Writes a distance between two positions of a store.
pub(crate) fn distance(kind: StoreKind, distance: u64) -> String {
    match kind {
        StoreKind::Postgres | StoreKind::Files => size(distance),
        StoreKind::Kv => plural(distance, "operation"),
        StoreKind::Settings => plural(distance, "revision"),
    }
}

/// Writes a number of things whose plural ends in `s`.
pub(crate) fn plural(count: u64, thing: &str) -> String {
    if count == 1 {
        format!("1 {thing}")
    } else {
        format!("{count} {thing}s")
    }
}

/// Writes a time span: milliseconds below 10 seconds, then whole units.
pub(crate) fn span(seconds: f64) -> String {
    // No span is negative; a clock that was set back can make it look so.
    let span = Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or(Duration::MAX);
    match span.as_secs() {
        0..10 => format!("{:.1} s", span.as_secs_f64()),
        seconds @ 10..120 => format!("{seconds} s"),
        seconds @ 120..7_200 => format!("{} min", seconds / 60),
        seconds @ 7_200..172_800 => format!("{} h", seconds / 3_600),
        seconds => format!("{} d", seconds / 86_400),
    }
}

/// Writes how long before `now` something was, both by one clock.
pub(crate) fn age(then: WallTime, now: WallTime) -> String {
    span(Duration::from_millis(now.0.saturating_sub(then.0)).as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_in_powers_of_1024() {
        let read =
            ["0", "4096", "7B", "16kB", "10MB", "1GB", "2TB"].map(|t| parse_size(t).unwrap());
        assert_eq!(read, [0, 4096, 7, 16 << 10, 10 << 20, 1 << 30, 2 << 40]);
    }

    #[test]
    fn what_is_no_size_is_refused() {
        for text in [
            "",
            "MB",
            "10mb",
            "10 MB",
            "-1",
            "+1",
            "1.5MB",
            "10MBs",
            "99999999TB",
        ] {
            assert_eq!(parse_size(text), None, "{text:?}");
        }
    }

    #[test]
    fn sizes_are_written_in_the_largest_unit() {
        let written = [0, 1023, 1024, (1 << 20) - 1, 12_900_000, 1 << 30, u64::MAX].map(size);
        assert_eq!(
            written,
            [
                "0 B",
                "1023 B",
                "1.0 kB",
                "1023.9 kB",
                "12.3 MB",
                "1.0 GB",
                "16777215.9 TB"
            ]
        );
    }

    #[test]
    fn spans_are_written_in_the_unit_that_matters() {
        let written = [
            -1.0,
            0.44,
            9.9,
            119.0,
            120.0,
            7_199.0,
            7_200.0,
            172_800.0,
            f64::MAX,
        ]
        .map(span);
        assert_eq!(
            written,
            [
                "0.0 s",
                "0.4 s",
                "9.9 s",
                "119 s",
                "2 min",
                "119 min",
                "2 h",
                "2 d",
                "213503982334601 d"
            ]
        );
    }
}
