//! Paths within a store.

use std::cmp::Ordering;
use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use serde::{Deserialize, Serialize};

/// The longest path within a store. The kernel takes 4096 bytes at a time, but trees are deeper than
/// that: they are descended in steps.
pub const PATH_BYTES_MAX: usize = 32 << 10;

/// The longest name: Linux's own bound.
pub const NAME_BYTES_MAX: usize = 255;

/// The name at the top of every store that is the standby's own: it stages there.
pub const RESERVED: &[u8] = b".understudy";

/// The name at the top of a file system that is the machine's own. An empty file system has it, so
/// that it says nothing about whether a tree is there.
pub const LOST_AND_FOUND: &[u8] = b"lost+found";

/// A path within a store: bytes, relative, never empty, without `.`, `..`, NUL or an empty name.
///
/// Ordered by its names and not by its bytes, so that what a directory holds follows it directly.
#[derive(Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "Vec<u8>", into = "Vec<u8>")]
pub struct RelPath(Vec<u8>);

/// Why bytes are not a path within a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// There is nothing.
    #[error("an empty path")]
    Empty,
    /// It begins at the top of the machine, or has two slashes in a row, or ends in one.
    #[error("a path with an empty name in it")]
    EmptyName,
    /// `.` or `..`
    #[error("a path with `.` or `..` in it")]
    Dots,
    /// A zero byte.
    #[error("a path with a zero byte in it")]
    Nul,
    /// The path or one of its names.
    #[error("a path that is too long")]
    TooLong,
    /// It lies in what the standby keeps for itself.
    #[error("a path in the reserved directory .understudy")]
    Reserved,
}

impl RelPath {
    /// Checks `bytes` and takes them.
    ///
    /// # Errors
    /// When they are not a path within a store.
    pub fn new(bytes: impl Into<Vec<u8>>) -> Result<Self, PathError> {
        let bytes = bytes.into();
        if bytes.is_empty() {
            return Err(PathError::Empty);
        }
        if bytes.len() > PATH_BYTES_MAX {
            return Err(PathError::TooLong);
        }
        for (at, name) in bytes.split(|byte| *byte == b'/').enumerate() {
            check_name(name)?;
            if at == 0 && name == RESERVED {
                return Err(PathError::Reserved);
            }
        }
        Ok(Self(bytes))
    }

    /// Returns the path of `name` in the directory `parent`; `None` is the top.
    ///
    /// # Errors
    /// When it would not be a path within a store.
    pub fn child(parent: Option<&Self>, name: &[u8]) -> Result<Self, PathError> {
        check_name(name)?;
        match parent {
            None => Self::new(name),
            Some(parent) => {
                let mut bytes = parent.0.clone();
                bytes.push(b'/');
                bytes.extend_from_slice(name);
                Self::new(bytes)
            }
        }
    }

    /// Returns the path of the directory that it lies in; `None` is the top.
    pub fn parent(&self) -> Option<Self> {
        let slash = self.0.iter().rposition(|byte| *byte == b'/')?;
        self.0.get(..slash).map(|bytes| Self(bytes.to_vec()))
    }

    /// Returns its last name.
    pub fn name(&self) -> &[u8] {
        self.0
            .rsplit(|byte| *byte == b'/')
            .next()
            .unwrap_or(&self.0)
    }

    /// Returns its names, from the top down.
    pub fn names(&self) -> impl Iterator<Item = &[u8]> {
        self.0.split(|byte| *byte == b'/')
    }

    /// Returns whether it lies within `directory`, at any depth; not whether it is that.
    pub fn is_beneath(&self, directory: &Self) -> bool {
        self.0
            .strip_prefix(directory.0.as_slice())
            .is_some_and(|rest| rest.first() == Some(&b'/'))
    }

    /// Returns its bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Returns it as a path relative to the top of the store.
    pub fn as_path(&self) -> &Path {
        Path::new(OsStr::from_bytes(&self.0))
    }
}

pub(super) fn check_name(name: &[u8]) -> Result<(), PathError> {
    match name {
        b"" => Err(PathError::EmptyName),
        b"." | b".." => Err(PathError::Dots),
        name if name.len() > NAME_BYTES_MAX => Err(PathError::TooLong),
        name if name.contains(&0) => Err(PathError::Nul),
        name if name.contains(&b'/') => Err(PathError::EmptyName),
        _ => Ok(()),
    }
}

impl Ord for RelPath {
    fn cmp(&self, other: &Self) -> Ordering {
        self.names().cmp(other.names())
    }
}

impl PartialOrd for RelPath {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Display for RelPath {
    /// For people: bytes that are no UTF-8 and control characters are escaped.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for chunk in self.0.utf8_chunks() {
            for character in chunk.valid().chars() {
                if character.is_control() {
                    write!(f, "{}", character.escape_default())?;
                } else {
                    write!(f, "{character}")?;
                }
            }
            for byte in chunk.invalid() {
                write!(f, "\\x{byte:02x}")?;
            }
        }
        Ok(())
    }
}

impl fmt::Debug for RelPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{self}`")
    }
}

impl TryFrom<Vec<u8>> for RelPath {
    type Error = PathError;

    fn try_from(bytes: Vec<u8>) -> Result<Self, Self::Error> {
        Self::new(bytes)
    }
}

impl From<RelPath> for Vec<u8> {
    fn from(path: RelPath) -> Self {
        path.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_paths_are_refused() {
        let table: [(&[u8], PathError); 13] = [
            (b"", PathError::Empty),
            (b"/etc/passwd", PathError::EmptyName),
            (b"a//b", PathError::EmptyName),
            (b"a/", PathError::EmptyName),
            (b"..", PathError::Dots),
            (b"a/../../b", PathError::Dots),
            (b"./a", PathError::Dots),
            (b"a/.", PathError::Dots),
            (b"a\0b", PathError::Nul),
            (&[b'x'; 256], PathError::TooLong),
            (&[b'x'; PATH_BYTES_MAX + 1], PathError::TooLong),
            (b".understudy", PathError::Reserved),
            (b".understudy/a", PathError::Reserved),
        ];
        for (bytes, error) in table {
            assert_eq!(RelPath::new(bytes), Err(error), "{bytes:?}");
            let encoded = postcard::to_stdvec(bytes).unwrap();
            assert!(
                postcard::from_bytes::<RelPath>(&encoded).is_err(),
                "{bytes:?}"
            );
        }
        assert!(
            RelPath::new(*b"a/.understudy").is_ok(),
            "reserved at the top only"
        );
        assert!(RelPath::new(*b"\xff\xfe/...").is_ok());
    }

    #[test]
    fn what_a_directory_holds_follows_it_directly() {
        let mut paths =
            ["a.txt", "a/z", "a", "b", "a/b/c", "a-b"].map(|p| RelPath::new(p).unwrap());
        paths.sort();
        assert_eq!(
            paths.map(|p| p.to_string()),
            ["a", "a/b/c", "a/z", "a-b", "a.txt", "b"]
        );
    }
}
