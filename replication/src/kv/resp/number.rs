//! Numbers as Redis reads and writes them.

/// Returns the integer that the bytes are, in the one form in which Redis writes it: no plus sign, no leading
/// zero, nothing around it.
pub(crate) fn parse_integer(bytes: &[u8]) -> Option<i64> {
    let (is_negative, digits) = match bytes {
        [b'-', digits @ ..] => (true, digits),
        digits => (false, digits),
    };
    match digits {
        [b'0'] if !is_negative => return Some(0),
        [b'1'..=b'9', ..] => {}
        _ => return None,
    }
    digits.iter().try_fold(0i64, |sum, digit| {
        let digit = i64::from(digit.is_ascii_digit().then(|| digit - b'0')?);
        let shifted = sum.checked_mul(10)?;
        // Downwards where it is negative: there is one more number on that side.
        if is_negative {
            shifted.checked_sub(digit)
        } else {
            shifted.checked_add(digit)
        }
    })
}

/// The decimal digits of a number, without an allocation.
pub(super) struct Digits {
    bytes: [u8; 20],
    start: usize,
}

impl Digits {
    pub(super) fn of(mut number: u64) -> Self {
        let mut digits = Self {
            bytes: [b'0'; 20],
            start: 20,
        };
        for (index, room) in digits.bytes.iter_mut().enumerate().rev() {
            // A remainder of ten has no more than one digit.
            *room = b'0' + u8::try_from(number % 10).unwrap_or(0);
            digits.start = index;
            number /= 10;
            if number == 0 {
                break;
            }
        }
        digits
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        self.bytes.get(self.start..).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn only_the_form_that_redis_writes_is_an_integer() {
        for text in [
            "",
            "-",
            "+1",
            "01",
            "-0",
            "-01",
            "1 ",
            " 1",
            "1.0",
            "9223372036854775808",
            "-9223372036854775809",
            "a",
            "00",
        ] {
            assert_eq!(parse_integer(text.as_bytes()), None, "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(number: i64) {
            prop_assert_eq!(parse_integer(number.to_string().as_bytes()), Some(number));
            let number = number.unsigned_abs();
            let digits = Digits::of(number);
            prop_assert_eq!(digits.as_bytes().to_vec(), number.to_string().into_bytes());
        }
    }
}
