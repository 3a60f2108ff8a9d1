//! Where a file of a cluster is, as both sides name it.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A path is no longer than this. Postgres' own are below a hundred bytes.
const PATH_BYTES_MAX: usize = 1024;

/// The folder of the links to the tablespaces.
const TABLESPACES: &str = "pg_tblspc";

/// A path beneath the data directory, `/` between its parts; never empty, never upwards. What lies in a
/// tablespace is `pg_tblspc/OID/…`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ClusterPath(String);

/// A text is not such a path.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no path beneath a data directory")]
pub struct ParsePathError {
    text: String,
}

impl ClusterPath {
    /// Returns the path as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns what it is called in its directory.
    pub fn name(&self) -> &str {
        self.0.rsplit('/').next().unwrap_or_default()
    }

    /// Returns the directory that it is in; `None` at the top.
    pub fn parent(&self) -> Option<Self> {
        let (parent, _) = self.0.rsplit_once('/')?;
        Some(Self(parent.to_owned()))
    }

    /// Returns the path of `name` in this directory.
    ///
    /// # Errors
    /// When `name` is none.
    pub fn child(&self, name: &str) -> Result<Self, ParsePathError> {
        format!("{}/{name}", self.0).parse()
    }

    /// Returns the tablespace, and the path within it, of what lies in one.
    pub fn in_tablespace(&self) -> Option<(u32, &str)> {
        let rest = self.0.strip_prefix(TABLESPACES)?.strip_prefix('/')?;
        let (oid, within) = rest.split_once('/')?;
        Some((oid.parse().ok()?, within))
    }

    /// Returns whether it is `folder` or lies within it.
    pub fn is_within(&self, folder: &str) -> bool {
        self.0
            .strip_prefix(folder)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }
}

impl FromStr for ClusterPath {
    type Err = ParsePathError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let is_part =
            |part: &str| !part.is_empty() && part != "." && part != ".." && part.len() <= 255;
        let is_path =
            text.len() <= PATH_BYTES_MAX && !text.contains('\0') && text.split('/').all(is_part);
        if is_path {
            Ok(Self(text.to_owned()))
        } else {
            // A hostile text is not repeated at its full length.
            let text = text.chars().take(100).collect();
            Err(ParsePathError { text })
        }
    }
}

impl TryFrom<String> for ClusterPath {
    type Error = ParsePathError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<ClusterPath> for String {
    fn from(path: ClusterPath) -> Self {
        path.0
    }
}

impl fmt::Display for ClusterPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_leads_out_of_the_data_directory() {
        let hostile = [
            "",
            "/",
            "/etc/passwd",
            "..",
            "../x",
            "base/../../x",
            "base/..",
            "base//1",
            "base/",
            ".",
            "./base",
            "base/.",
            "a\0b",
        ];
        for text in hostile {
            assert!(text.parse::<ClusterPath>().is_err(), "{text:?}");
        }
        assert!("a/".repeat(600).parse::<ClusterPath>().is_err());
        assert!("a".repeat(256).parse::<ClusterPath>().is_err());
        let decoded: Result<ClusterPath, _> = serde_json::from_str("\"../x\"");
        assert!(decoded.is_err(), "neither does one that is decoded");
    }

    #[test]
    fn a_path_knows_its_parts() {
        let path: ClusterPath = "pg_tblspc/16400/PG_15_202209061/5/1249".parse().unwrap();
        assert_eq!(path.name(), "1249");
        assert_eq!(
            path.in_tablespace(),
            Some((16400, "PG_15_202209061/5/1249"))
        );
        assert!(path.is_within("pg_tblspc/16400"));
        assert!(!path.is_within("pg_tblspc/164"));
        let base: ClusterPath = "base/5".parse().unwrap();
        assert_eq!(base.in_tablespace(), None);
        assert_eq!(base.child("1249").unwrap().as_str(), "base/5/1249");
        assert!(base.child("../1").is_err());
        assert_eq!(base.parent().unwrap().parent(), None);
    }
}
