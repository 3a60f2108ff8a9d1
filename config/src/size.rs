//! Sizes as Postgres writes them: `64MB`, `10GB`, in powers of 1024.

use crate::problem::Mistake;

const MEGABYTE: u64 = 1024 * 1024;
/// The largest value of a Postgres setting that counts megabytes.
const MEGABYTES_MAX: u64 = 2_147_483_647;

/// Why a text is not a size.
enum NoSize {
    Syntax,
    TooLarge,
}

/// Reads a size that is more than nothing, and returns it in bytes.
///
/// # Errors
/// When the text is no size.
pub fn parse(text: &str) -> Result<u64, Mistake> {
    let mistake = |what: &str| {
        Mistake::new(
            format!("`{text}` {what}"),
            "a whole number and a unit (kB, MB, GB or TB), such as \"50MB\"",
        )
    };
    match read(text) {
        Ok(0) => Err(mistake("is nothing")),
        Ok(bytes) => Ok(bytes),
        Err(NoSize::Syntax) => Err(mistake("is not a size")),
        Err(NoSize::TooLarge) => Err(mistake("is more than can be counted")),
    }
}

/// Reads a size that is at least `least`, which the operator would write as `least_text`.
pub(crate) fn parse_from(text: &str, least: u64, least_text: &str) -> Result<u64, Mistake> {
    let and_enough = |mistake: Mistake| Mistake {
        expected: format!("{}, and at least \"{least_text}\"", mistake.expected),
        ..mistake
    };
    let bytes = parse(text).map_err(and_enough)?;
    if bytes < least {
        return Err(Mistake::new(
            format!("`{text}` is too little"),
            format!("at least \"{least_text}\""),
        ));
    }
    Ok(bytes)
}

/// Reads a limit: a size, or `0` for none.
pub(crate) fn parse_limit(text: &str) -> Result<Option<u64>, Mistake> {
    if text == "0" || matches!(read(text), Ok(0)) {
        return Ok(None);
    }
    let or_none = |mistake: Mistake| Mistake {
        expected: format!("{}, or \"0\" for no limit", mistake.expected),
        ..mistake
    };
    parse(text).map(Some).map_err(or_none)
}

/// Reads how much WAL is kept, in which Postgres counts whole megabytes: what is smaller it rounds to
/// nothing.
pub(crate) fn wal(text: &str) -> Result<u64, Mistake> {
    let mistake = |what: &str| {
        Mistake::new(
            format!("`{text}` {what}"),
            "a whole number and a unit (kB, MB, GB or TB), such as \"10GB\"",
        )
    };
    let too_large = "is more than Postgres can count";
    let bytes = read(text).map_err(|reason| match reason {
        NoSize::Syntax => mistake("is not a size"),
        NoSize::TooLarge => mistake(too_large),
    })?;
    if bytes / MEGABYTE > MEGABYTES_MAX {
        return Err(mistake(too_large));
    }
    if bytes == 0 || bytes % MEGABYTE != 0 {
        return Err(mistake(
            "is not a whole number of megabytes, in which Postgres counts WAL",
        ));
    }
    Ok(bytes)
}

fn read(text: &str) -> Result<u64, NoSize> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let unit = match unit {
        "kB" => 1024,
        "MB" => MEGABYTE,
        "GB" => 1024 * MEGABYTE,
        "TB" => 1024 * 1024 * MEGABYTE,
        _ => return Err(NoSize::Syntax),
    };
    let number: u64 = number.parse().map_err(|_| NoSize::Syntax)?;
    number.checked_mul(unit).ok_or(NoSize::TooLarge)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_powers_of_1024() {
        let read = ["2048kB", "64MB", "10GB", "2TB"].map(|text| wal(text).unwrap());
        assert_eq!(read, [2 << 20, 64 << 20, 10 << 30, 2 << 40]);
    }

    #[test]
    fn a_size_in_general_need_not_be_whole_megabytes() {
        let read = ["1kB", "1536kB", "50MB", "16777215TB"].map(|text| parse(text).unwrap());
        assert_eq!(read, [1024, 1536 << 10, 50 << 20, 16_777_215 << 40]);
        let refused =
            ["0MB", "0", "50", "MB", "16777216TB"].map(|text| parse(text).unwrap_err().what);
        assert_eq!(
            refused,
            [
                "`0MB` is nothing",
                "`0` is not a size",
                "`50` is not a size",
                "`MB` is not a size",
                "`16777216TB` is more than can be counted"
            ]
        );
    }

    #[test]
    fn a_limit_may_be_none() {
        let read = ["0", "0kB", "50MB"].map(|text| parse_limit(text).unwrap());
        assert_eq!(read, [None, None, Some(50 << 20)]);
        assert_eq!(
            parse_limit("fast").unwrap_err().expected,
            "a whole number and a unit (kB, MB, GB or TB), such as \"50MB\", or \"0\" for no limit"
        );
    }

    #[test]
    fn what_is_no_size_is_refused() {
        let refused = [
            "10",
            "10gb",
            "GB",
            "-1GB",
            "1.5GB",
            "0GB",
            "10kB",
            "9999999TB",
            "99999999999999999TB",
        ]
        .map(|text| wal(text).unwrap_err().what);
        insta::assert_debug_snapshot!(refused, @r#"
        [
            "`10` is not a size",
            "`10gb` is not a size",
            "`GB` is not a size",
            "`-1GB` is not a size",
            "`1.5GB` is not a size",
            "`0GB` is not a whole number of megabytes, in which Postgres counts WAL",
            "`10kB` is not a whole number of megabytes, in which Postgres counts WAL",
            "`9999999TB` is more than Postgres can count",
            "`99999999999999999TB` is more than Postgres can count",
        ]
        "#);
    }
}
