//! The table as a file, so that the older part of the log can go, and as what is sent to a standby that is
//! too far behind.
//!
//! It is made while the table changes: each part is what was visible when it was looked at. Since operations
//! are absolute, what the log holds from `start` on makes it whole, at `end` and from there on.
//!
//! ```text
//! file    magic 8 · frame …
//! frame   length u32 · checksum 8 · part
//! ```
//! Numbers are little endian. A checksum is the first eight bytes of a BLAKE3 hash over the number of the
//! frame and the part. The last part says that it is the last.

use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::durable;
use crate::log::LOG_PAYLOAD_BYTES_MAX;
use crate::position::Position;
use crate::wall_time::WallTime;

use super::operation::Operation;
use super::point::Point;
use super::table::TableDigest;

const MAGIC: &[u8; 8] = b"uskvsnp1";
const CHECKSUM_BYTES: usize = 8;

/// How many bytes of the table a part holds, more or less.
pub const SNAPSHOT_PART_BYTES: usize = 256 << 10;

/// Why a snapshot cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// A file could not be read or written.
    #[error("cannot {action} {}", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// It is damaged, or ends before its end.
    #[error("{} is damaged in its part {part}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Which of its parts, from 0.
        part: u64,
    },
}

/// What a snapshot begins with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Begin {
    /// From where on the log is needed to make it whole.
    pub start: Point,
    /// When it was begun.
    pub made: WallTime,
    /// It came from another node: where the log of this node does not hold `start`, it is the log that gives
    /// way.
    pub is_installed: bool,
    /// How many keys there were; for progress.
    pub keys: u64,
    /// Where the run of the entry before `start` was opened; 0 when that is not known.
    pub opened: Position,
    /// How many bytes the entries up to `start`, or a little behind, have, since the first entry ever.
    pub bytes: u64,
}

/// What a snapshot ends with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct End {
    /// From where on snapshot and log give what was there.
    pub end: Position,
    /// The digest of the table at `end`.
    pub digest: TableDigest,
}

/// A part of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Part {
    /// The first.
    Begin(Begin),
    /// Operations that make some of the keys.
    Operations(Vec<Operation>),
    /// The last.
    End(End),
}

/// Writes a snapshot under another name, and gives it its own when it is whole.
#[derive(Debug)]
pub struct SnapshotWriter {
    path: PathBuf,
    staged: PathBuf,
    file: BufWriter<File>,
    parts: u64,
}

impl SnapshotWriter {
    /// Begins to write what will be `path`; what an earlier attempt has left is overwritten.
    ///
    /// # Errors
    /// When the file cannot be made.
    pub fn create(path: &Path, begin: Begin) -> Result<Self, SnapshotError> {
        let mut staged = path.as_os_str().to_owned();
        staged.push(".new");
        let staged = PathBuf::from(staged);
        let file = File::options()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&staged)
            .map_err(failed("create", &staged))?;
        let mut writer = Self {
            path: path.to_owned(),
            file: BufWriter::with_capacity(SNAPSHOT_PART_BYTES, file),
            staged,
            parts: 0,
        };
        let written = writer.file.write_all(MAGIC);
        written.map_err(failed("write", &writer.staged))?;
        writer.push(&Part::Begin(begin))?;
        Ok(writer)
    }

    /// Adds a part.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn push(&mut self, part: &Part) -> Result<(), SnapshotError> {
        let written = encode(part).and_then(|bytes| {
            let length = u32::try_from(bytes.len()).map_err(io::Error::other)?;
            self.file.write_all(&length.to_le_bytes())?;
            self.file.write_all(&checksum(self.parts, &bytes))?;
            self.file.write_all(&bytes)
        });
        written.map_err(failed("write", &self.staged))?;
        self.parts = self.parts.saturating_add(1);
        Ok(())
    }

    /// Ends it, and puts it into its place, durably. What could not be written whole is removed: it may be what
    /// fills the disk.
    ///
    /// Invariant: under its own name there is a whole old snapshot or a whole new one.
    ///
    /// # Errors
    /// When it cannot be written; the old one is then still in place.
    pub fn finish(mut self, end: End) -> Result<(), SnapshotError> {
        self.push(&Part::End(end))?;
        self.file.flush().map_err(failed("write", &self.staged))?;
        let file = self.file.get_ref();
        file.sync_all().map_err(failed("sync", &self.staged))?;
        fs::rename(&self.staged, &self.path).map_err(failed("rename", &self.staged))?;
        durable::sync_directory_of(&self.path).map_err(failed("sync the folder of", &self.path))
    }
}

impl Drop for SnapshotWriter {
    fn drop(&mut self) {
        // Under its own name by now, or of no use to anybody.
        let _gone = fs::remove_file(&self.staged).is_err();
    }
}

/// Reads a snapshot part by part.
#[derive(Debug)]
pub struct SnapshotReader {
    path: PathBuf,
    file: BufReader<File>,
    parts: u64,
}

impl SnapshotReader {
    /// Opens the snapshot at `path`, if there is one.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn open(path: &Path) -> Result<Option<(Self, Begin)>, SnapshotError> {
        let file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed("open", path)(error)),
        };
        let mut reader = Self {
            path: path.to_owned(),
            file: BufReader::with_capacity(SNAPSHOT_PART_BYTES, file),
            parts: 0,
        };
        let mut magic = [0; 8];
        let is_whole = reader.file.read_exact(&mut magic).is_ok();
        if !is_whole || magic != *MAGIC {
            return Err(reader.damaged());
        }
        match reader.part()? {
            Part::Begin(begin) => Ok(Some((reader, begin))),
            Part::Operations(_) | Part::End(_) => Err(reader.damaged()),
        }
    }

    /// Returns the next part.
    ///
    /// # Errors
    /// When it cannot be read, or is damaged.
    pub fn part(&mut self) -> Result<Part, SnapshotError> {
        let mut length = [0; 4];
        let mut sum = [0; CHECKSUM_BYTES];
        self.exact(&mut length)?;
        self.exact(&mut sum)?;
        let length = usize::try_from(u32::from_le_bytes(length)).unwrap_or(usize::MAX);
        if length > LOG_PAYLOAD_BYTES_MAX {
            return Err(self.damaged());
        }
        let mut bytes = vec![0; length];
        self.exact(&mut bytes)?;
        if checksum(self.parts, &bytes) != sum {
            return Err(self.damaged());
        }
        let part = postcard::from_bytes(&bytes).map_err(|_| self.damaged())?;
        self.parts = self.parts.saturating_add(1);
        Ok(part)
    }

    fn exact(&mut self, bytes: &mut [u8]) -> Result<(), SnapshotError> {
        self.file.read_exact(bytes).map_err(|error| {
            if error.kind() == io::ErrorKind::UnexpectedEof {
                self.damaged()
            } else {
                failed("read", &self.path)(error)
            }
        })
    }

    fn damaged(&self) -> SnapshotError {
        SnapshotError::Damaged {
            path: self.path.clone(),
            part: self.parts,
        }
    }
}

/// Returns the bytes of a part, as they are also sent.
///
/// # Errors
/// When it is too long: who makes parts keeps them small.
pub fn encode(part: &Part) -> io::Result<Bytes> {
    let bytes = postcard::to_stdvec(part).map_err(io::Error::other)?;
    if bytes.len() > LOG_PAYLOAD_BYTES_MAX {
        return Err(io::Error::other(format!(
            "a part of {} bytes, where {LOG_PAYLOAD_BYTES_MAX} are allowed",
            bytes.len()
        )));
    }
    Ok(bytes.into())
}

fn checksum(number: u64, part: &[u8]) -> [u8; CHECKSUM_BYTES] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&number.to_le_bytes());
    hasher.update(part);
    let mut sum = [0; CHECKSUM_BYTES];
    hasher.finalize_xof().fill(&mut sum);
    sum
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> SnapshotError {
    let path = path.to_owned();
    move |source| SnapshotError::File {
        action,
        path,
        source,
    }
}
