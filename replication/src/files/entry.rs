//! What a store knows of one path.

use std::fmt;
use std::io::{self, Read};

use rustix::fs::Timespec;
use serde::{Deserialize, Serialize};

/// The longest target of a symbolic link that is replicated: with it an entry is still a value that
/// every table takes.
pub const TARGET_BYTES_MAX: usize = 3900;

const NANOSECONDS: i64 = 1_000_000_000;

/// A hash, with the name of its algorithm.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Digest {
    /// BLAKE3, 32 bytes: what `b3sum` prints.
    Blake3([u8; 32]),
}

impl Digest {
    /// Returns the digest of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        blake3::hash(bytes).into()
    }

    /// Returns the digest of all that `source` holds, and how long that is.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn of_reader(source: impl Read) -> io::Result<(Self, u64)> {
        let mut hasher = blake3::Hasher::new();
        hasher.update_reader(source)?;
        Ok((hasher.finalize().into(), hasher.count()))
    }

    /// Returns the bytes, without the algorithm.
    pub fn as_bytes(&self) -> &[u8; 32] {
        match self {
            Self::Blake3(bytes) => bytes,
        }
    }
}

impl From<blake3::Hash> for Digest {
    fn from(hash: blake3::Hash) -> Self {
        Self::Blake3(*hash.as_bytes())
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Blake3(bytes) => {
                write!(f, "blake3:{}", blake3::Hash::from_bytes(*bytes).to_hex())
            }
        }
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What is replicated of one path: equal entries mean equal files.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// What it is.
    pub kind: Kind,
    /// The permission bits, with setuid, setgid and sticky. Those of a symbolic link say nothing.
    pub mode: u32,
    /// The owner, by number.
    pub uid: u32,
    /// The group, by number.
    pub gid: u32,
    /// When its content was last changed, in nanoseconds since 1970.
    pub mtime_ns: i64,
}

/// What a path is. Sockets, pipes and devices are not replicated.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// A file.
    File {
        /// How long it is.
        size: u64,
        /// The hash of its content.
        hash: Digest,
    },
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink {
        /// Where it points, as it stands in the link; it is never followed.
        target: Vec<u8>,
    },
}

impl Entry {
    /// Returns the size and the hash of a file's content; `None` for what is no file.
    pub fn content(&self) -> Option<(u64, Digest)> {
        match self.kind {
            Kind::File { size, hash } => Some((size, hash)),
            Kind::Directory | Kind::Symlink { .. } => None,
        }
    }

    /// Returns whether it is a directory.
    pub fn is_directory(&self) -> bool {
        matches!(self.kind, Kind::Directory)
    }

    /// Returns whether it is something that a file system can hold.
    pub fn is_valid(&self) -> bool {
        let is_target_valid = match &self.kind {
            Kind::Symlink { target } => {
                (1..=TARGET_BYTES_MAX).contains(&target.len()) && !target.contains(&0)
            }
            Kind::File { .. } | Kind::Directory => true,
        };
        is_target_valid && self.mode <= 0o7777
    }
}

/// Returns a time as system calls take it.
pub fn mtime_timespec(mtime_ns: i64) -> Timespec {
    Timespec {
        tv_sec: mtime_ns.div_euclid(NANOSECONDS),
        tv_nsec: mtime_ns.rem_euclid(NANOSECONDS),
    }
}

/// How this machine's file system tells whether a path has changed: as long as it is the same, the
/// content need not be read again.
///
/// The device is left out: its number can change with a reboot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The inode.
    pub inode: u64,
    /// How long the file is.
    pub size: u64,
    /// When its content was changed.
    pub mtime_ns: i64,
    /// When anything was changed; unlike the former it cannot be set back.
    pub ctime_ns: i64,
    /// Type and permissions.
    pub mode: u32,
    /// The owner here. Without the right to change owners it differs from the entry's.
    pub uid: u32,
    /// The group here.
    pub gid: u32,
}

/// What a node knows of one path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Known {
    /// What is replicated.
    pub entry: Entry,
    /// How it looked here when it was known to hold that. `None` means that it is not known to: the
    /// content has to be read again, or is still awaited from the primary.
    pub local: Option<Identity>,
}

impl Known {
    /// Returns whether this is a file whose content is not known to be here.
    pub fn is_awaited(&self) -> bool {
        self.local.is_none() && self.entry.content().is_some()
    }
}
