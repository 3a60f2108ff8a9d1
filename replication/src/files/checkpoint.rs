//! A manifest as one file.
//!
//! ```text
//! file    magic 8 · frames
//! frame   length u32 · checksum 8 · payload
//! frames  first: what it stands for; then entries, many in each; last: how many there were
//! ```
//! Written beside the former one, synced, and renamed over it. Entries come as the manifest lists them,
//! so that loading it only appends.

#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};
use understudy_config::StoreName;

use super::entry::{Entry, Known, Local};
use super::ledger::Head;
use super::manifest::{Loader, Manifest, TOP};
use crate::durable;

const MAGIC: &[u8; 8] = b"undrmnf2";
const FRAME_BYTES_FULL: usize = 64 << 10;
/// The longest entry fits into a frame that is nearly full.
const FRAME_BYTES_MAX: usize = 1 << 20;
const CHECKSUM_BYTES: usize = 8;

/// What a checkpoint holds.
#[derive(Debug, Default)]
pub(super) struct Checkpoint {
    pub(super) manifest: Manifest,
    pub(super) head: Option<Head>,
    /// The end of the journal that is in it.
    pub(super) journal: u64,
}

#[derive(Serialize, Deserialize)]
struct First {
    store: String,
    head: Option<Head>,
    journal: u64,
}

#[derive(Serialize, Deserialize)]
struct Listed {
    depth: u32,
    name: Vec<u8>,
    entry: Entry,
    local: Local,
}

/// Writes a checkpoint, durably, and returns how long it is.
pub(super) fn store(
    path: &Path,
    store: &StoreName,
    manifest: &Manifest,
    head: Option<&Head>,
    journal: u64,
) -> io::Result<u64> {
    let staged = path.with_extension("new");
    let file = File::create(&staged)?;
    let mut writer = Frames {
        file: BufWriter::with_capacity(FRAME_BYTES_FULL, file),
        bytes: 8,
    };
    writer.file.write_all(MAGIC)?;
    let first = First {
        store: store.as_str().to_owned(),
        head: head.cloned(),
        journal,
    };
    writer.frame(&encode(&first, Vec::new())?)?;
    let mut frame = Vec::new();
    manifest.walk(TOP).try_for_each(|(depth, id)| {
        let Known { entry, local } = manifest.known(id);
        let listed = Listed {
            depth,
            name: manifest.name(id).to_vec(),
            entry,
            local,
        };
        frame = encode(&listed, std::mem::take(&mut frame))?;
        if frame.len() >= FRAME_BYTES_FULL {
            writer.frame(&frame)?;
            frame.clear();
        }
        Ok::<_, io::Error>(())
    })?;
    if !frame.is_empty() {
        writer.frame(&frame)?;
    }
    let count = u64::try_from(manifest.len()).unwrap_or(u64::MAX);
    // No entry is that short, so that an end is not taken for one.
    writer.frame(&count.to_le_bytes())?;
    let file = writer
        .file
        .into_inner()
        .map_err(io::IntoInnerError::into_error)?;
    file.sync_all()?;
    fs::rename(&staged, path)?;
    durable::sync_directory_of(path)?;
    Ok(writer.bytes)
}

struct Frames {
    file: BufWriter<File>,
    bytes: u64,
}

impl Frames {
    fn frame(&mut self, payload: &[u8]) -> io::Result<()> {
        let length = u32::try_from(payload.len()).map_err(io::Error::other)?;
        self.file.write_all(&length.to_le_bytes())?;
        self.file.write_all(&checksum(payload))?;
        self.file.write_all(payload)?;
        let bytes = u64::from(length).saturating_add(12);
        self.bytes = self.bytes.saturating_add(bytes);
        Ok(())
    }
}

fn encode(value: &impl Serialize, into: Vec<u8>) -> io::Result<Vec<u8>> {
    postcard::to_extend(value, into).map_err(io::Error::other)
}

fn checksum(payload: &[u8]) -> [u8; CHECKSUM_BYTES] {
    let mut sum = [0; CHECKSUM_BYTES];
    blake3::Hasher::new()
        .update(payload)
        .finalize_xof()
        .fill(&mut sum);
    sum
}

/// Reads a checkpoint and returns it with its length; `None` when there is none. An error says what
/// is wrong with it.
pub(super) fn load(path: &Path, store: &StoreName) -> Result<Option<(Checkpoint, u64)>, Unusable> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let bytes = file.metadata()?.len();
    let mut file = BufReader::with_capacity(FRAME_BYTES_FULL, file);
    let mut magic = [0; 8];
    file.read_exact(&mut magic)?;
    if magic != *MAGIC {
        return Err("it was written by another version".to_owned().into());
    }
    let frame = next(&mut file)?;
    let first: First = postcard::from_bytes(&frame).map_err(|error| error.to_string())?;
    if first.store != store.as_str() {
        return Err(format!("it is that of store {}", first.store).into());
    }
    let mut loader = Loader::default();
    let mut count = 0_u64;
    loop {
        let frame = next(&mut file)?;
        if let Ok(end) = <[u8; 8]>::try_from(frame.as_slice()) {
            if u64::from_le_bytes(end) != count {
                return Err("entries are missing".to_owned().into());
            }
            break;
        }
        let mut rest = frame.as_slice();
        while !rest.is_empty() {
            let (listed, more): (Listed, _) =
                postcard::take_from_bytes(rest).map_err(|error| error.to_string())?;
            rest = more;
            count = count.saturating_add(1);
            let known = Known {
                entry: listed.entry,
                local: listed.local,
            };
            loader
                .push(listed.depth, &listed.name, known)
                .map_err(|error| error.to_string())?;
        }
    }
    let checkpoint = Checkpoint {
        manifest: loader.finish(),
        head: first.head,
        journal: first.journal,
    };
    Ok(Some((checkpoint, bytes)))
}

/// Why a checkpoint cannot be used.
#[derive(Debug)]
pub(super) enum Unusable {
    /// The disk does not give it now; it may another time.
    Disk(io::Error),
    /// It is none, whenever it is read.
    Damaged(String),
}

impl From<io::Error> for Unusable {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::UnexpectedEof {
            return Self::Damaged("it is cut off".to_owned());
        }
        Self::Disk(error)
    }
}

impl From<String> for Unusable {
    fn from(damage: String) -> Self {
        Self::Damaged(damage)
    }
}

fn next(file: &mut impl Read) -> Result<Vec<u8>, Unusable> {
    let mut head = [0; 12];
    file.read_exact(&mut head)?;
    let (length, sum) = head.split_at(4);
    let length: [u8; 4] = length.try_into().unwrap_or_default();
    let length = usize::try_from(u32::from_le_bytes(length)).unwrap_or(usize::MAX);
    if length > FRAME_BYTES_MAX {
        return Err("it is damaged".to_owned().into());
    }
    let mut payload = vec![0; length];
    file.read_exact(&mut payload)?;
    if checksum(&payload) != *sum {
        return Err("it is damaged".to_owned().into());
    }
    Ok(payload)
}
