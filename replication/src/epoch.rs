//! Who may write: the epoch.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use understudy_config::NodeName;

/// The right to write, ordered by number and then by the node that opened it.
///
/// A pair and not a number: two operators on the two sides of a partition can both open "the
/// next" epoch. The pairs still differ, so at first contact exactly one of them is the lesser, and
/// fences itself.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Epoch {
    /// Rises with each promotion; the first is 1.
    pub number: u64,
    /// The node that opened this epoch.
    pub node: NodeName,
}

impl Epoch {
    /// Returns the first epoch of a cluster, opened by `node`.
    pub fn first(node: NodeName) -> Self {
        Self { number: 1, node }
    }

    /// Returns the epoch that `node` opens to supersede this one.
    ///
    /// Saturates at the largest number: an epoch a second would take longer than the universe has.
    pub fn superseded_by(&self, node: NodeName) -> Self {
        Self {
            number: self.number.saturating_add(1),
            node,
        }
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.number, self.node)
    }
}

/// Why a text is not an epoch.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not an epoch (expected NUMBER.NODE, such as 3.a)")]
pub struct ParseEpochError {
    text: String,
}

impl FromStr for Epoch {
    type Err = ParseEpochError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || ParseEpochError {
            text: text.chars().take(80).collect(),
        };
        let (number, node) = text.split_once('.').ok_or_else(error)?;
        // `u64::from_str` takes a leading plus sign; Display never writes one.
        if !number.starts_with(|c: char| c.is_ascii_digit()) {
            return Err(error());
        }
        Ok(Self {
            number: number.parse().map_err(|_| error())?,
            node: node.parse().map_err(|_| error())?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn epoch(text: &str) -> Epoch {
        text.parse().unwrap()
    }

    #[test]
    fn two_operators_who_open_the_same_number_still_have_a_lesser() {
        assert!(epoch("2.a") < epoch("2.b"));
        assert!(epoch("2.b") < epoch("3.a"));
    }

    #[test]
    fn what_is_not_an_epoch_is_refused_by_name() {
        assert_eq!(
            "x".parse::<Epoch>().unwrap_err().to_string(),
            "`x` is not an epoch (expected NUMBER.NODE, such as 3.a)"
        );
        for text in [
            "",
            ".",
            "1.",
            "1",
            "+1.a",
            "-1.a",
            "1.A b",
            "99999999999999999999.a",
        ] {
            assert!(text.parse::<Epoch>().is_err(), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn display_and_from_str_are_inverses(number: u64, node in "[a-z0-9][a-z0-9_-]{0,20}") {
            let epoch = Epoch { number, node: node.parse().unwrap() };
            prop_assert_eq!(epoch.to_string().parse::<Epoch>().unwrap(), epoch);
        }
    }
}
