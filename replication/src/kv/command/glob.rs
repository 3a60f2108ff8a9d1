//! Patterns as `KEYS` and `MATCH` know them.

use crate::kv::operation::KV_KEY_BYTES_MAX;

/// How long a pattern is at most, in bytes: as a key, which it is compared with.
pub const PATTERN_BYTES_MAX: usize = KV_KEY_BYTES_MAX;

/// Returns whether `text` is as the pattern says: `*`, `?`, `[a-z]`, `[^a]`, and `\` before what stands for
/// itself. The time it takes is bounded by the product of both lengths.
pub fn is_match(pattern: &[u8], text: &[u8]) -> bool {
    let (mut rest, mut left) = (pattern, text);
    // Where to go on when what stands behind the last `*` does not fit.
    let mut retry: Option<(&[u8], &[u8])> = None;
    loop {
        if let [b'*', behind @ ..] = rest {
            retry = Some((behind, left));
            rest = behind;
            continue;
        }
        let step = match (rest, left) {
            ([], []) => return true,
            ([_, ..], [byte, behind @ ..]) => one(rest, *byte).map(|rest| (rest, behind)),
            ([], [_, ..]) | ([_, ..], []) => None,
        };
        match (step, retry) {
            (Some(next), _) => (rest, left) = next,
            (None, Some((behind, [_, shorter @ ..]))) => {
                retry = Some((behind, shorter));
                (rest, left) = (behind, shorter);
            }
            (None, Some((_, [])) | None) => return false,
        }
    }
}

/// Takes from the pattern what stands for one byte, if it stands for this one.
fn one(pattern: &[u8], byte: u8) -> Option<&[u8]> {
    match pattern {
        [b'?', rest @ ..] => Some(rest),
        [b'[', rest @ ..] => class(rest, byte),
        [b'\\', literal, rest @ ..] | [literal, rest @ ..] => (*literal == byte).then_some(rest),
        [] => None,
    }
}

/// What stands between brackets. One that is not closed goes on to the end of the pattern.
fn class(pattern: &[u8], byte: u8) -> Option<&[u8]> {
    let (is_negated, mut rest) = match pattern {
        [b'^', rest @ ..] => (true, rest),
        rest => (false, rest),
    };
    let mut is_in = false;
    loop {
        rest = match rest {
            [b'\\', literal, rest @ ..] => {
                is_in |= *literal == byte;
                rest
            }
            [b']', rest @ ..] => return (is_in != is_negated).then_some(rest),
            [] => return (is_in != is_negated).then_some(rest),
            [one, b'-', other, rest @ ..] => {
                is_in |= (*one.min(other)..=*one.max(other)).contains(&byte);
                rest
            }
            [literal, rest @ ..] => {
                is_in |= *literal == byte;
                rest
            }
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_read_as_redis_reads_them() {
        for (pattern, text, expected) in [
            ("*", "", true),
            ("*", "abc", true),
            ("a*c", "abbc", true),
            ("a*c", "abcd", false),
            ("a*b*c", "axbxbxc", true),
            ("h?llo", "hello", true),
            ("h?llo", "hllo", false),
            ("h[ae]llo", "hallo", true),
            ("h[ae]llo", "hillo", false),
            ("h[^e]llo", "hallo", true),
            ("h[^e]llo", "hello", false),
            ("h[a-c]", "hb", true),
            ("h[c-a]", "hb", true),
            ("h[a-c]", "hd", false),
            ("[\\]]", "]", true),
            ("\\*", "*", true),
            ("\\*", "a", false),
            ("a\\", "a\\", true),
            ("[ab", "a", true),
            ("", "", true),
            ("", "a", false),
            ("a**", "a", true),
        ] {
            assert_eq!(
                is_match(pattern.as_bytes(), text.as_bytes()),
                expected,
                "{pattern} {text}"
            );
        }
    }

    #[test]
    fn a_pattern_of_many_stars_takes_no_time() {
        let pattern = b"a*".repeat(5000);
        assert!(!is_match(
            &[&pattern[..], b"b"].concat(),
            &vec![b'a'; 10_000]
        ));
    }
}
