//! Names of nodes and stores: short, and safe in paths, certificates, labels and SQL identifiers.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The longest name: the limit of a DNS label and of a Postgres identifier.
const NAME_BYTES_MAX: usize = 63;

/// A text that is no name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a name")]
pub struct NameError(String);

impl NameError {
    /// What a name looks like.
    pub(crate) const EXPECTED: &str = "1 to 63 of the characters a-z, 0-9, `_` and `-`, of which the first is a letter or a digit";
}

fn is_name(text: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    text.len() <= NAME_BYTES_MAX
        && text.bytes().next().is_some_and(is_plain)
        && text
            .bytes()
            .all(|byte| is_plain(byte) || byte == b'_' || byte == b'-')
}

macro_rules! name {
    ($(#[$attribute:meta])* $name:ident) => {
        $(#[$attribute])*
        ///
        /// It has 1 to 63 characters of `[a-z0-9_-]` and starts with a letter or a digit.
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// Returns the name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = NameError;

            fn try_from(text: String) -> Result<Self, NameError> {
                if is_name(&text) { Ok(Self(text)) } else { Err(NameError(text)) }
            }
        }

        impl FromStr for $name {
            type Err = NameError;

            fn from_str(text: &str) -> Result<Self, NameError> {
                Self::try_from(text.to_owned())
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }
    };
}

name! {
    /// The name of a node.
    NodeName
}

name! {
    /// The name of a store, an index or a service.
    StoreName
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_no_name_is_refused() {
        let long = "a".repeat(64);
        for text in ["", "-a", "_a", "A", "a b", "a/b", "..", "ä", "a\0", &long] {
            assert_eq!(text.parse::<NodeName>(), Err(NameError(text.to_owned())));
        }
    }

    #[test]
    fn a_name_is_checked_when_it_is_deserialised() {
        let error = serde_json::from_str::<StoreName>("\"../a\"").unwrap_err();
        assert_eq!(error.to_string(), "`../a` is not a name");
    }

    proptest! {
        #[test]
        fn display_and_from_str_are_inverses(text in "[a-z0-9][a-z0-9_-]{0,62}") {
            let name: NodeName = text.parse().unwrap();
            prop_assert_eq!(name.to_string(), text.clone());
            let json = serde_json::to_string(&name).unwrap();
            prop_assert_eq!(serde_json::from_str::<NodeName>(&json).unwrap(), name);
        }

        #[test]
        fn what_parses_prints_as_it_was_written(text in any::<String>()) {
            if let Ok(name) = text.parse::<StoreName>() {
                prop_assert_eq!(name.to_string(), text);
            }
        }
    }
}
