//! The settings at one moment.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::path::SettingPath;
use crate::epoch::Epoch;
use crate::position::Position;
use crate::wall_time::WallTime;

/// How large a revision may be: contents, paths and targets together.
pub const REVISION_BYTES_MAX: u64 = 64 << 20;

/// How many files, directories and links a revision may have.
pub const ENTRIES_MAX: usize = 10_000;

/// Why entries are no revision.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RevisionError {
    /// The contents are too large together.
    #[error("the settings have more than {REVISION_BYTES_MAX} bytes")]
    TooLarge,
    /// There are too many entries.
    #[error("the settings have more than {ENTRIES_MAX} files and directories")]
    TooMany,
    /// An entry lies within something that is not a directory.
    #[error("`{path}` lies within `{within}`, which is not a directory")]
    NotWithinDirectory {
        /// The entry.
        path: SettingPath,
        /// The file or link above it.
        within: SettingPath,
    },
}

/// The hash of everything in a revision that matters to its readers, with its algorithm.
///
/// Times are left out: a file that was only touched is no news, and must not make the standby
/// reload its settings.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest([u8; 32]);

impl Digest {
    /// Returns the first half of the hash in hexadecimal: enough for a file's name.
    pub(super) fn short(&self) -> String {
        self.to_string()
            .chars()
            .skip("blake3:".len())
            .take(32)
            .collect()
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "blake3:{}", blake3::Hash::from_bytes(self.0).to_hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A text is no digest.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this is not a digest (expected `blake3:` and 64 hexadecimal digits)")]
pub struct ParseDigestError;

impl FromStr for Digest {
    type Err = ParseDigestError;

    fn from_str(text: &str) -> Result<Self, ParseDigestError> {
        let hex = text.strip_prefix("blake3:").ok_or(ParseDigestError)?;
        if hex.bytes().any(|byte| byte.is_ascii_uppercase()) {
            return Err(ParseDigestError);
        }
        let hash = blake3::Hash::from_hex(hex).map_err(|_| ParseDigestError)?;
        Ok(Self(*hash.as_bytes()))
    }
}

impl TryFrom<String> for Digest {
    type Error = ParseDigestError;

    fn try_from(text: String) -> Result<Self, ParseDigestError> {
        text.parse()
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.to_string()
    }
}

/// Who may do what with an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Access {
    /// The permission bits, with set-user-id and its siblings.
    pub mode: u32,
    /// The owner's number.
    pub uid: u32,
    /// The group's number.
    pub gid: u32,
}

/// What is at a path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Entry {
    /// A file.
    File {
        /// All of it.
        content: Vec<u8>,
        /// Mode and owner.
        access: Access,
        /// When it was modified: seconds since 1970, and nanoseconds.
        modified: (i64, u32),
    },
    /// A directory.
    Directory {
        /// Mode and owner.
        access: Access,
    },
    /// A symbolic link; it is never followed.
    Symlink {
        /// Where it points.
        target: String,
    },
}

impl Entry {
    /// Returns how many bytes its content has.
    pub fn bytes(&self) -> u64 {
        match self {
            Self::File { content, .. } => length(content.len()),
            Self::Directory { .. } => 0,
            Self::Symlink { target } => length(target.len()),
        }
    }

    /// Returns whether a reader would see no difference; times do not count.
    pub fn is_same_as(&self, other: &Self) -> bool {
        match (self, other) {
            (
                Self::File {
                    content, access, ..
                },
                Self::File {
                    content: other_content,
                    access: other_access,
                    ..
                },
            ) => access == other_access && content == other_content,
            (Self::Directory { .. }, Self::Directory { .. })
            | (Self::Symlink { .. }, Self::Symlink { .. }) => self == other,
            (Self::File { .. } | Self::Directory { .. } | Self::Symlink { .. }, _) => false,
        }
    }
}

/// The settings at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Revision {
    number: u64,
    epoch: Epoch,
    time: WallTime,
    digest: Digest,
    entries: BTreeMap<SettingPath, Entry>,
}

impl Revision {
    /// Returns the revision of these entries.
    ///
    /// # Errors
    /// When they are too many, too large, or lie within something that is not a directory.
    pub fn new(
        number: u64,
        epoch: Epoch,
        time: WallTime,
        entries: BTreeMap<SettingPath, Entry>,
    ) -> Result<Self, RevisionError> {
        if entries.len() > ENTRIES_MAX {
            return Err(RevisionError::TooMany);
        }
        let sizes = entries
            .iter()
            .map(|(path, entry)| length(path.as_str().len()) + entry.bytes());
        if sizes.fold(0, u64::saturating_add) > REVISION_BYTES_MAX {
            return Err(RevisionError::TooLarge);
        }
        for path in entries.keys() {
            for within in path.ancestors() {
                match entries.get(&within) {
                    Some(Entry::Directory { .. }) | None => {}
                    // Writing it would follow the link.
                    Some(Entry::File { .. } | Entry::Symlink { .. }) => {
                        return Err(RevisionError::NotWithinDirectory {
                            path: path.clone(),
                            within,
                        });
                    }
                }
            }
        }
        let digest = digest(&entries);
        Ok(Self {
            number,
            epoch,
            time,
            digest,
            entries,
        })
    }

    /// Returns the same settings as a new revision.
    #[must_use]
    pub fn renewed(&self, number: u64, epoch: Epoch, time: WallTime) -> Self {
        Self {
            number,
            epoch,
            time,
            ..self.clone()
        }
    }

    /// Returns its number; numbers rise with time.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Returns the position of a node that has it.
    pub fn position(&self) -> Position {
        Position(self.number)
    }

    /// Returns the hash of its entries.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// Returns what it consists of, parents before children.
    pub fn entries(&self) -> &BTreeMap<SettingPath, Entry> {
        &self.entries
    }

    /// Returns what a list of revisions shows.
    pub fn summary(&self) -> RevisionSummary {
        RevisionSummary {
            number: self.number,
            epoch: self.epoch.clone(),
            time: self.time,
            digest: self.digest,
            entries: length(self.entries.len()),
            bytes: self.entries.values().map(Entry::bytes).sum(),
        }
    }

    /// Returns how this revision differs from an `earlier` one.
    pub fn changes_since(&self, earlier: &Self) -> Changes {
        let mut changes = Changes::default();
        for (path, entry) in &self.entries {
            match earlier.entries.get(path) {
                None => changes.added.push(Change::new(path, None, Some(entry))),
                Some(before) if !before.is_same_as(entry) => {
                    changes
                        .changed
                        .push(Change::new(path, Some(before), Some(entry)));
                }
                Some(_) => {}
            }
        }
        for (path, before) in &earlier.entries {
            if !self.entries.contains_key(path) {
                changes.removed.push(Change::new(path, Some(before), None));
            }
        }
        changes
    }
}

/// What a list of revisions shows of one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RevisionSummary {
    /// Its number.
    pub number: u64,
    /// The epoch that it was made in.
    pub epoch: Epoch,
    /// When it was made, by its primary's clock.
    pub time: WallTime,
    /// The hash of its entries.
    pub digest: Digest,
    /// How many files, directories and links it has.
    pub entries: u64,
    /// How many bytes their contents have.
    pub bytes: u64,
}

/// How two revisions differ.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Changes {
    /// What only the later one has.
    pub added: Vec<Change>,
    /// What both have, with another content, mode, owner or kind.
    pub changed: Vec<Change>,
    /// What only the earlier one has.
    pub removed: Vec<Change>,
}

/// One path that differs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Change {
    /// The path.
    pub path: SettingPath,
    /// How many bytes it had.
    pub bytes_before: Option<u64>,
    /// How many bytes it has.
    pub bytes_after: Option<u64>,
}

impl Change {
    fn new(path: &SettingPath, before: Option<&Entry>, after: Option<&Entry>) -> Self {
        Self {
            path: path.clone(),
            bytes_before: before.map(Entry::bytes),
            bytes_after: after.map(Entry::bytes),
        }
    }
}

fn length(length: usize) -> u64 {
    u64::try_from(length).unwrap_or(u64::MAX)
}

/// Hashes what matters; every part is preceded by its length, so that no two sets of entries give
/// the same bytes.
fn digest(entries: &BTreeMap<SettingPath, Entry>) -> Digest {
    let mut hasher = blake3::Hasher::new();
    let mut part = |bytes: &[u8]| {
        hasher.update(&length(bytes.len()).to_le_bytes());
        hasher.update(bytes);
    };
    let access_bytes = |access: &Access| {
        [access.mode, access.uid, access.gid]
            .map(u32::to_le_bytes)
            .concat()
    };
    for (path, entry) in entries {
        part(path.as_str().as_bytes());
        match entry {
            Entry::File {
                content, access, ..
            } => {
                part(b"file");
                part(&access_bytes(access));
                part(content);
            }
            Entry::Directory { access } => {
                part(b"directory");
                part(&access_bytes(access));
            }
            Entry::Symlink { target } => {
                part(b"symlink");
                part(target.as_bytes());
            }
        }
    }
    Digest(*hasher.finalize().as_bytes())
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::settings) fn epoch() -> Epoch {
        Epoch::first("a".parse().unwrap())
    }

    pub(in crate::settings) fn file(content: &str) -> Entry {
        Entry::File {
            content: content.as_bytes().to_vec(),
            access: Access {
                mode: 0o640,
                uid: 0,
                gid: 0,
            },
            modified: (1_700_000_000, 5),
        }
    }

    pub(in crate::settings) fn revision(number: u64, entries: &[(&str, Entry)]) -> Revision {
        let entries = entries.iter().cloned();
        let entries = entries
            .map(|(path, entry)| (path.parse().unwrap(), entry))
            .collect();
        Revision::new(number, epoch(), WallTime(1_700_000_000_000), entries).unwrap()
    }

    #[test]
    fn a_file_that_was_only_touched_is_no_news() {
        let mut touched = file("a");
        if let Entry::File { modified, .. } = &mut touched {
            *modified = (1_800_000_000, 0);
        }
        let (before, after) = (
            revision(1, &[("/a", file("a"))]),
            revision(1, &[("/a", touched)]),
        );
        assert_eq!(before.digest(), after.digest());
        assert_eq!(after.changes_since(&before), Changes::default());
    }

    #[test]
    fn content_mode_and_name_each_change_the_digest() {
        let mut other_mode = file("a");
        if let Entry::File { access, .. } = &mut other_mode {
            access.mode = 0o600;
        }
        let digests = [
            revision(1, &[("/a", file("a"))]),
            revision(1, &[("/a", file("b"))]),
            revision(1, &[("/b", file("a"))]),
            revision(1, &[("/a", other_mode)]),
            revision(
                1,
                &[(
                    "/a",
                    Entry::Symlink {
                        target: "a".to_owned(),
                    },
                )],
            ),
        ]
        .map(|revision| revision.digest());
        let distinct: std::collections::BTreeSet<Digest> = digests.into_iter().collect();
        assert_eq!(distinct.len(), digests.len());
        for digest in digests {
            assert_eq!(digest.to_string().parse(), Ok(digest));
        }
    }

    #[test]
    fn nothing_may_lie_within_a_link() {
        let link = Entry::Symlink {
            target: "/outside".to_owned(),
        };
        let entries = [("/e/link", link), ("/e/link/a", file("a"))];
        let entries = entries.map(|(path, entry)| (path.parse().unwrap(), entry));
        let result = Revision::new(1, epoch(), WallTime(0), entries.into_iter().collect());
        assert_eq!(
            result.unwrap_err().to_string(),
            "`/e/link/a` lies within `/e/link`, which is not a directory"
        );
    }

    #[test]
    fn the_difference_of_two_revisions_names_paths_and_sizes() {
        let before = revision(
            1,
            &[("/a", file("1")), ("/b", file("22")), ("/c", file(""))],
        );
        let after = revision(
            2,
            &[("/a", file("333")), ("/b", file("22")), ("/d", file("4"))],
        );
        let change = |path: &str, bytes_before, bytes_after| Change {
            path: path.parse().unwrap(),
            bytes_before,
            bytes_after,
        };
        let expected = Changes {
            added: vec![change("/d", None, Some(1))],
            changed: vec![change("/a", Some(1), Some(3))],
            removed: vec![change("/c", Some(0), None)],
        };
        assert_eq!(after.changes_since(&before), expected);
    }
}
