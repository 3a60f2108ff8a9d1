//! Patterns of keys, as `SCAN … MATCH` has them.

/// Returns whether `text` matches `pattern`: `*` is any bytes, `?` any byte, `[a-c]` and `[^a-c]` one of
/// them or one that is none of them, and `\` takes the next byte as it is.
///
/// It takes at most the product of both lengths: after a mismatch only the last `*` is tried again.
pub fn matches(pattern: &[u8], text: &[u8]) -> bool {
    let (mut rest, mut at) = (pattern, text);
    // Behind the last `*`, and where the text is when that takes one byte more.
    let mut retry: Option<(&[u8], &[u8])> = None;
    loop {
        if let [b'*', behind @ ..] = rest {
            rest = behind;
            retry = at.split_first().map(|(_, later)| (behind, later));
            if behind.is_empty() {
                return true;
            }
            continue;
        }
        let step = match (rest, at) {
            ([], []) => return true,
            ([], _) | (_, []) => None,
            (_, [byte, later @ ..]) => one(rest, *byte).map(|behind| (behind, later)),
        };
        (rest, at) = match (step, retry) {
            (Some(step), _) => step,
            (None, Some((behind, later))) => {
                retry = later.split_first().map(|(_, later)| (behind, later));
                (behind, later)
            }
            (None, None) => return false,
        };
    }
}

/// Matches one byte with the beginning of a pattern that is no `*`, and returns what is left of it.
fn one(pattern: &[u8], byte: u8) -> Option<&[u8]> {
    match pattern {
        [b'?', rest @ ..] => Some(rest),
        [b'[', rest @ ..] => class(rest, byte),
        [b'\\', escaped, rest @ ..] => (*escaped == byte).then_some(rest),
        [literal, rest @ ..] => (*literal == byte).then_some(rest),
        [] => None,
    }
}

/// Matches one byte with what follows a `[`. Without a `]` it goes to the end of the pattern, as in Redis.
fn class(mut pattern: &[u8], byte: u8) -> Option<&[u8]> {
    let is_negated = matches!(pattern, [b'^', ..]);
    if let ([_, rest @ ..], true) = (pattern, is_negated) {
        pattern = rest;
    }
    let mut is_in = false;
    loop {
        pattern = match pattern {
            [] => break,
            [b']', rest @ ..] => {
                pattern = rest;
                break;
            }
            [b'\\', escaped, rest @ ..] => {
                is_in |= *escaped == byte;
                rest
            }
            [first, b'-', last, rest @ ..] => {
                is_in |= (*first.min(last)..=*first.max(last)).contains(&byte);
                rest
            }
            [literal, rest @ ..] => {
                is_in |= *literal == byte;
                rest
            }
        };
    }
    (is_in != is_negated).then_some(pattern)
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn patterns_mean_what_they_mean_in_redis() {
        let yes = [
            ("*", ""),
            ("**", "a"),
            ("user:*", "user:1"),
            ("*:name", "user:1:name"),
            ("a*b*c", "a1b2b3c"),
            ("h?llo", "hallo"),
            ("h[ae]llo", "hello"),
            ("h[^e]llo", "hallo"),
            ("h[a-c]", "hb"),
            ("h[c-a]", "hb"),
            (r"\*", "*"),
            (r"[\]]", "]"),
            ("[a", "a"),
            ("", ""),
        ];
        let no = [
            ("", "a"),
            ("user:*", "User:1"),
            ("h?llo", "hllo"),
            ("h[ae]llo", "hillo"),
            ("h[^e]llo", "hello"),
            (r"\*", "a"),
            ("a*b*c", "a1b2"),
            ("[a", "b"),
            ("a[", "a"),
        ];
        for (pattern, text) in yes {
            assert!(
                matches(pattern.as_bytes(), text.as_bytes()),
                "{pattern} {text}"
            );
        }
        for (pattern, text) in no {
            assert!(
                !matches(pattern.as_bytes(), text.as_bytes()),
                "{pattern} {text}"
            );
        }
    }

    #[test]
    fn a_pattern_of_many_stars_does_not_take_exponential_time() {
        let begun = Instant::now();
        assert!(!matches(
            &b"a*".repeat(200),
            &b"a".repeat(4_000).as_slice()[..199]
        ));
        let text = [b"a".repeat(20_000), b"b".to_vec()].concat();
        assert!(!matches(&[b"*a".repeat(50), b"c".to_vec()].concat(), &text));
        // Exponential would be the age of the universe.
        assert!(begun.elapsed().as_secs() < 60);
    }

    proptest! {
        #[test]
        fn nothing_panics_and_a_key_matches_itself_escaped(text: Vec<u8>, pattern: Vec<u8>) {
            let escaped: Vec<u8> = text.iter().flat_map(|byte| [b'\\', *byte]).collect();
            prop_assert!(matches(&escaped, &text));
            prop_assert!(matches(b"*", &text));
            let outcome = matches(&pattern, &text);
            prop_assert_eq!(outcome, matches(&pattern, &text));
        }
    }
}
