//! What a store knows of one path.

use std::fmt;
use std::io::{self, Read};

use rustix::fs::Timespec;
use serde::{Deserialize, Serialize};

/// The longest target of a symbolic link: Linux's own bound.
pub const TARGET_BYTES_MAX: usize = 4095;

/// How many bytes the names and values of one path's extended attributes may have together.
pub const XATTRS_BYTES_MAX: usize = 128 << 10;

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
    /// Which file this is a name of, where a file has several: names with the same number share one
    /// inode. 0 where it has one. The number itself means nothing.
    pub link: u64,
    /// The extended attributes.
    pub xattrs: Xattrs,
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

/// The extended attributes of a path, by name, as the kernel has them: ACLs and capabilities among
/// them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Xattrs(Vec<(Vec<u8>, Vec<u8>)>);

impl Xattrs {
    /// Takes names and values; those that belong to the machine and not to the data are left out.
    pub fn new(mut all: Vec<(Vec<u8>, Vec<u8>)>) -> Self {
        all.retain(|(name, _)| is_replicated(name));
        all.sort_unstable();
        all.dedup_by(|a, b| a.0 == b.0);
        Self(all)
    }

    /// Returns the names and values, ordered by name.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.0
            .iter()
            .map(|(name, value)| (name.as_slice(), value.as_slice()))
    }

    /// Returns whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the value of `name`.
    pub fn get(&self, name: &[u8]) -> Option<&[u8]> {
        let at = self
            .0
            .binary_search_by(|(held, _)| held.as_slice().cmp(name));
        let (_, value) = self.0.get(at.ok()?)?;
        Some(value)
    }

    /// Returns how many bytes the names and values have.
    pub fn bytes(&self) -> usize {
        self.0
            .iter()
            .map(|(name, value)| name.len().saturating_add(value.len()))
            .sum()
    }

    fn is_valid(&self) -> bool {
        self.bytes() <= XATTRS_BYTES_MAX
            && self.0.is_sorted_by(|a, b| a.0 < b.0)
            && self.0.iter().all(|(name, _)| is_replicated(name))
    }
}

/// Returns whether an attribute belongs to the data. Labels of a security policy and measurements of
/// integrity are the machine's own.
pub(super) fn is_replicated(name: &[u8]) -> bool {
    let is_ours = name.starts_with(b"user.")
        || name.starts_with(b"trusted.")
        || [
            b"security.capability".as_slice(),
            b"system.posix_acl_access",
            b"system.posix_acl_default",
        ]
        .contains(&name);
    // overlayfs keeps its own notes there.
    is_ours && name.len() <= 255 && !name.contains(&0) && !name.starts_with(b"trusted.overlay.")
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
            Kind::File { size, .. } => i64::try_from(*size).is_ok(),
            Kind::Directory => true,
        };
        is_target_valid
            && self.mode <= 0o7777
            && self.xattrs.is_valid()
            && (self.link == 0 || self.content().is_some())
    }
}

/// Returns a length as it is hashed.
pub(super) fn length(length: usize) -> u64 {
    u64::try_from(length).unwrap_or(u64::MAX)
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
/// The device is left out: its number can change with a reboot. The size of a directory is left out:
/// it says nothing.
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

impl Identity {
    /// Returns what no path looks like: it was read so soon after a change that the next one might not
    /// show.
    pub fn unsettled(self) -> Self {
        Self {
            ctime_ns: i64::MIN,
            ..self
        }
    }

    /// Returns whether it says only what was read, and not that it is still so.
    pub fn is_unsettled(&self) -> bool {
        self.ctime_ns == i64::MIN
    }
}

/// What a node knows of how a path is here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Local {
    /// Nothing: it has to be looked at, and its content to be read.
    #[default]
    Unknown,
    /// How it looked when it was known to be what the entry says.
    Seen(Identity),
    /// It is not what the entry says: that is still to come from the primary.
    Awaited,
}

impl Local {
    /// Returns whether it is still to come.
    pub fn is_awaited(self) -> bool {
        matches!(self, Self::Awaited)
    }

    /// Returns how it looked.
    pub fn seen(self) -> Option<Identity> {
        match self {
            Self::Seen(identity) => Some(identity),
            Self::Unknown | Self::Awaited => None,
        }
    }
}

/// What a node knows of one path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Known {
    /// What is replicated.
    pub entry: Entry,
    /// How it is here.
    pub local: Local,
}

impl Known {
    /// Returns a directory of which nothing is known.
    pub fn directory() -> Self {
        let entry = Entry {
            kind: Kind::Directory,
            mode: 0o755,
            uid: 0,
            gid: 0,
            mtime_ns: 0,
            link: 0,
            xattrs: Xattrs::default(),
        };
        Self {
            entry,
            local: Local::Unknown,
        }
    }
}
