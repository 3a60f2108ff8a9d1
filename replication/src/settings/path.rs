//! Where a setting is, as the configuration says it.

use std::fmt;
use std::path::Path;

use serde::{Deserialize, Serialize};

/// The longest path.
const PATH_BYTES_MAX: usize = 4096;

/// A text is no path of a setting.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not an absolute path in its plain form (no `.`, `..` or doubled `/`)")]
pub struct PathError(String);

/// An absolute path in its plain form: no `.`, no `..`, nothing empty, and never `/` itself.
///
/// It is the path of the configuration, the same on every node; the node's root comes before it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SettingPath(String);

impl SettingPath {
    /// Returns the path as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the path without its leading `/`, to be taken beneath a root.
    pub fn relative(&self) -> &Path {
        Path::new(self.0.trim_start_matches('/'))
    }

    /// Returns every directory above it, the nearest first, `/` excepted.
    pub fn ancestors(&self) -> impl Iterator<Item = SettingPath> {
        let mut rest = self.0.as_str();
        std::iter::from_fn(move || {
            rest = rest.rsplit_once('/')?.0;
            if rest.is_empty() {
                None
            } else {
                Some(Self(rest.to_owned()))
            }
        })
    }
}

impl TryFrom<String> for SettingPath {
    type Error = PathError;

    fn try_from(text: String) -> Result<Self, PathError> {
        let is_plain = |part: &str| !part.is_empty() && part != "." && part != "..";
        let is_path = text.len() <= PATH_BYTES_MAX
            && !text.contains('\0')
            && text
                .strip_prefix('/')
                .is_some_and(|rest| rest.split('/').all(is_plain));
        if is_path {
            Ok(Self(text))
        } else {
            Err(PathError(text.chars().take(200).collect()))
        }
    }
}

impl From<SettingPath> for String {
    fn from(path: SettingPath) -> Self {
        path.0
    }
}

impl std::str::FromStr for SettingPath {
    type Err = PathError;

    fn from_str(text: &str) -> Result<Self, PathError> {
        Self::try_from(text.to_owned())
    }
}

impl fmt::Display for SettingPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_that_could_lead_elsewhere_is_refused() {
        for text in [
            "", "/", "a", "/..", "/a/../b", "/a/./b", "/a//b", "/a/", "/a\0b",
        ] {
            assert!(text.parse::<SettingPath>().is_err(), "{text:?}");
        }
        assert_eq!(
            "/etc/a..b".parse::<SettingPath>().unwrap().as_str(),
            "/etc/a..b"
        );
    }

    #[test]
    fn the_directories_above_come_nearest_first() {
        let path: SettingPath = "/etc/catalog/a".parse().unwrap();
        let above: Vec<String> = path.ancestors().map(String::from).collect();
        assert_eq!(above, ["/etc/catalog", "/etc"]);
    }
}
