//! Sizes as Postgres writes them: `64MB`, `10GB`, in powers of 1024.

use crate::problem::Mistake;

/// Postgres counts WAL in these: what is smaller it rounds to nothing.
const MEGABYTE: u64 = 1024 * 1024;
/// The largest value of a Postgres setting that counts megabytes.
const MEGABYTES_MAX: u64 = 2_147_483_647;

/// Reads a size of at least a megabyte, and returns it in bytes.
pub(crate) fn parse(text: &str) -> Result<u64, Mistake> {
    let mistake = |what: &str| {
        Mistake::new(
            format!("`{text}` {what}"),
            "a whole number and a unit (kB, MB, GB or TB), such as \"10GB\"",
        )
    };
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let unit = match unit {
        "kB" => 1024,
        "MB" => MEGABYTE,
        "GB" => 1024 * MEGABYTE,
        "TB" => 1024 * 1024 * MEGABYTE,
        _ => return Err(mistake("is not a size")),
    };
    let number: u64 = number.parse().map_err(|_| mistake("is not a size"))?;
    let bytes = number
        .checked_mul(unit)
        .ok_or_else(|| mistake("is more than Postgres can count"))?;
    if bytes / MEGABYTE > MEGABYTES_MAX {
        return Err(mistake("is more than Postgres can count"));
    }
    if bytes == 0 || bytes % MEGABYTE != 0 {
        return Err(mistake(
            "is not a whole number of megabytes, in which Postgres counts WAL",
        ));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_powers_of_1024() {
        let read = ["2048kB", "64MB", "10GB", "2TB"].map(|text| parse(text).unwrap());
        assert_eq!(read, [2 << 20, 64 << 20, 10 << 30, 2 << 40]);
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
        .map(|text| parse(text).unwrap_err().what);
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
