//! A share of a whole, as the operator writes it: `50%`.

use std::fmt;
use std::str::FromStr;

use crate::problem::Mistake;

/// A share of a whole: from `0%` to `100%`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Share(u8);

impl Share {
    /// The whole: nothing is more.
    pub const WHOLE: Self = Self(100);

    /// Half of the whole.
    pub const HALF: Self = Self(50);

    /// Returns the share in hundredths.
    pub fn percent(self) -> u8 {
        self.0
    }

    /// Returns whether `part` of `whole` is more than this share of it.
    pub fn is_exceeded_by(self, part: u64, whole: u64) -> bool {
        u128::from(part) * 100 > u128::from(whole) * u128::from(self.0)
    }
}

impl FromStr for Share {
    type Err = Mistake;

    fn from_str(text: &str) -> Result<Self, Mistake> {
        let is_number = |digits: &&str| digits.bytes().all(|byte| byte.is_ascii_digit());
        text.strip_suffix('%')
            .filter(is_number)
            .and_then(|digits| digits.parse().ok())
            .filter(|percent| *percent <= Self::WHOLE.0)
            .map(Self)
            .ok_or_else(|| {
                Mistake::new(
                    format!("`{text}` is not a share"),
                    "a whole number from 0 to 100 and `%`, such as \"50%\"",
                )
            })
    }
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}%", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_share_is_a_whole_number_of_hundredths() {
        let read = ["0%", "7%", "50%", "100%"].map(|text| text.parse::<Share>().unwrap().percent());
        assert_eq!(read, [0, 7, 50, 100]);
        for text in ["", "%", "50", "101%", "-1%", "+5%", "1.5%", "50 %", "256%"] {
            let refused = text.parse::<Share>().unwrap_err();
            assert_eq!(refused.what, format!("`{text}` is not a share"));
        }
    }

    #[test]
    fn half_is_not_more_than_half() {
        let half = |part| Share::HALF.is_exceeded_by(part, 100);
        assert_eq!([0, 50, 51, 100].map(half), [false, false, true, true]);
        assert!(!Share::HALF.is_exceeded_by(0, 0));
        assert!(Share(0).is_exceeded_by(1, u64::MAX));
    }

    proptest! {
        #[test]
        fn nothing_exceeds_the_whole(whole: u64, part: u64) {
            prop_assert!(!Share::WHOLE.is_exceeded_by(part.min(whole), whole));
        }

        #[test]
        fn display_and_from_str_are_inverses(percent in 0..=100_u8) {
            prop_assert_eq!(Share(percent).to_string().parse(), Ok(Share(percent)));
        }
    }
}
