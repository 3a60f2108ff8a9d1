//! Bundles as folders: written whole or not at all, listed, and read within bounds.

use std::error::Error;
use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;

use super::manifest::{Manifest, SALVAGE_VERSION, Superseded};
use super::{
    SALVAGE_BUNDLES_MAX, SALVAGE_ENTRY_BYTES_MAX, SALVAGE_MANIFEST_BYTES_MAX, SalvageError, file,
};
use crate::durable;
use crate::wall_time::WallTime;

const MANIFEST: &str = "manifest.json";
const ENTRIES: &str = "entries.log";
/// What the names of bundles begin with: other stores keep theirs in the same folder.
const PREFIX: &str = "kv-";
/// What the names of bundles that are being written end with.
const PARTIAL: &str = ".partial";
/// The longest name of a bundle: that of its partial form is a file's name, too.
const NAME_BYTES_MAX: usize = 200;

/// Keeps the entries of what is about to be cut off in a new bundle beneath `folder`, and returns its path.
/// What an earlier call has kept of the very same is not kept twice.
///
/// When it returns, the bundle is durable, and the entries may be cut off.
///
/// # Errors
/// When an entry cannot be read or written; nothing that has the name of a bundle is left then.
pub fn write<E>(
    folder: &Path,
    what: &Superseded,
    made: WallTime,
    entries: impl IntoIterator<Item = Result<Bytes, E>>,
) -> Result<PathBuf, SalvageError>
where
    E: Into<Box<dyn Error + Send + Sync>>,
{
    durable::create_directory(folder, 0o700).map_err(file("create", folder))?;
    let kept = list(folder)?;
    let is_same = |listed: &&Listed| listed.manifest.as_ref().is_ok_and(|it| it.holds(what));
    if let Some(same) = kept.iter().find(is_same) {
        return Ok(folder.join(&same.name));
    }
    let name = free_name(folder, what, made);
    let staged = Staged::new(folder, &name)?;
    let written = write_entries(&staged.0.join(ENTRIES), entries)?;
    let manifest = Manifest {
        version: SALVAGE_VERSION,
        store: what.store.clone(),
        node: what.node.clone(),
        cut_to: (&what.cut_to).into(),
        end: (&what.end).into(),
        operations: what.end.position.ahead_of(what.cut_to.position),
        entries: written.entries,
        bytes: written.bytes,
        hash: written.hash,
        acknowledged: what.acknowledged,
        superseded_by: what.superseded_by.clone(),
        made,
    };
    finish(folder, &name, &staged, &manifest)
}

/// Keeps a copy of another node's bundle beneath `folder`, under its name there, and returns its path. A
/// copy that is here already is not written again.
///
/// # Errors
/// When it cannot be written, or what came is not what `manifest` says; no bundle is left then. And when
/// another bundle has the name.
pub fn adopt<E>(
    folder: &Path,
    name: &str,
    manifest: &Manifest,
    entries: impl IntoIterator<Item = Result<Bytes, E>>,
) -> Result<PathBuf, SalvageError>
where
    E: Into<Box<dyn Error + Send + Sync>>,
{
    let target = folder.join(name);
    if !is_name(name) {
        return Err(absent(folder, name));
    }
    durable::create_directory(folder, 0o700).map_err(file("create", folder))?;
    if target.exists() {
        return match read_manifest(&target)? == *manifest {
            true => Ok(target),
            false => Err(SalvageError::Taken { path: target }),
        };
    }
    let staged = Staged::new(folder, name)?;
    let path = staged.0.join(ENTRIES);
    let written = write_entries(&path, entries)?;
    if (written.entries, written.bytes, &written.hash)
        != (manifest.entries, manifest.bytes, &manifest.hash)
    {
        return Err(SalvageError::Damaged {
            path,
            reason: "what came is not what its manifest says",
        });
    }
    finish(folder, name, &staged, manifest)
}

/// The folder of a bundle that is being written, which nobody else writes. It is removed unless it gets the
/// name of a bundle.
struct Staged(PathBuf);

impl Staged {
    fn new(folder: &Path, name: &str) -> Result<Self, SalvageError> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        remove_abandoned(folder)?;
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let own = format!(".{name}.{}-{number}{PARTIAL}", std::process::id());
        let staged = folder.join(own);
        durable::create_directory(&staged, 0o700).map_err(file("create", &staged))?;
        Ok(Self(staged))
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        match fs::remove_dir_all(&self.0) {
            Ok(()) => {}
            // It has its name.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                tracing::warn!(%error, path = %self.0.display(), "a part of a bundle is left behind");
            }
        }
    }
}

/// Removes what processes that have ended were writing: whoever made it still has what it held.
fn remove_abandoned(folder: &Path) -> Result<(), SalvageError> {
    let own = format!(".{}-", std::process::id());
    for entry in fs::read_dir(folder).map_err(file("read", folder))? {
        let entry = entry.map_err(file("read", folder))?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let is_partial = name.ends_with(PARTIAL) && name.starts_with(&format!(".{PREFIX}"));
        if !is_partial || name.contains(&own) {
            continue;
        }
        match fs::remove_dir_all(entry.path()) {
            Ok(()) => {}
            // Somebody else has removed it.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(file("remove", &entry.path())(error)),
        }
    }
    Ok(())
}

/// Gives a bundle whose entries are durable its manifest and its name.
fn finish(
    folder: &Path,
    name: &str,
    staged: &Staged,
    manifest: &Manifest,
) -> Result<PathBuf, SalvageError> {
    let (target, path) = (folder.join(name), staged.0.join(MANIFEST));
    let text = serde_json::to_vec_pretty(manifest).map_err(|source| SalvageError::Malformed {
        path: path.clone(),
        source,
    })?;
    // Synced, and its folder with it, so that both names are durable before the bundle has its own.
    durable::write(&path, &text, 0o600).map_err(file("write", &path))?;
    match fs::rename(&staged.0, &target) {
        Ok(()) => {}
        // Somebody else has kept the very same meanwhile.
        Err(_) if read_manifest(&target).is_ok_and(|there| there == *manifest) => {}
        Err(error) => return Err(file("name", &target)(error)),
    }
    durable::sync_directory_of(&target).map_err(file("sync", folder))?;
    Ok(target)
}

/// Returns the name of a new bundle: what was superseded, and when it was kept.
fn free_name(folder: &Path, what: &Superseded, made: WallTime) -> String {
    let time = made.to_string().replace([':', '-', ' '], "");
    let epoch = what.end.epoch.as_ref().map(ToString::to_string);
    let name = format!("{PREFIX}{time}-{}", epoch.as_deref().unwrap_or("0"));
    let mut free = name.clone();
    let mut number = 1_u64;
    while folder.join(&free).exists() {
        number += 1;
        free = format!("{name}-{number}");
    }
    free
}

struct Written {
    entries: u64,
    bytes: u64,
    hash: String,
}

fn write_entries<E>(
    path: &Path,
    entries: impl IntoIterator<Item = Result<Bytes, E>>,
) -> Result<Written, SalvageError>
where
    E: Into<Box<dyn Error + Send + Sync>>,
{
    let created = File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(file("create", path))?;
    let mut out = BufWriter::with_capacity(1 << 16, created);
    let mut hasher = blake3::Hasher::new();
    let (mut count, mut bytes) = (0_u64, 0_u64);
    for entry in entries {
        let entry = entry.map_err(|error| SalvageError::Source {
            path: path.to_owned(),
            source: error.into(),
        })?;
        let length = u32::try_from(entry.len())
            .ok()
            .filter(|_| entry.len() <= SALVAGE_ENTRY_BYTES_MAX)
            .ok_or_else(|| SalvageError::TooLong {
                path: path.to_owned(),
                bytes: u64::try_from(entry.len()).unwrap_or(u64::MAX),
            })?;
        for part in [&length.to_le_bytes()[..], &entry] {
            hasher.update(part);
            out.write_all(part).map_err(file("write", path))?;
        }
        count += 1;
        bytes += 4 + u64::from(length);
    }
    let written = out
        .into_inner()
        .map_err(|error| file("write", path)(error.into_error()))?;
    written.sync_all().map_err(file("sync", path))?;
    Ok(Written {
        entries: count,
        bytes,
        hash: hasher.finalize().to_hex().to_string(),
    })
}

/// A bundle in a list.
#[derive(Debug)]
pub struct Listed {
    /// Its name, by which it is shown and replayed.
    pub name: String,
    /// What it says of itself, or why that cannot be read.
    pub manifest: Result<Manifest, SalvageError>,
}

/// Returns the bundles beneath `folder` in the order of their names, which is that of time; at most
/// [`SALVAGE_BUNDLES_MAX`], the newest. None where there is no such folder.
///
/// # Errors
/// When the folder cannot be read. A bundle that cannot be read is listed with the reason.
pub fn list(folder: &Path) -> Result<Vec<Listed>, SalvageError> {
    let found = match fs::read_dir(folder) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(file("read", folder)(error)),
    };
    let mut names = Vec::new();
    for entry in found {
        let name = entry.map_err(file("read", folder))?.file_name();
        if let Ok(name) = name.into_string()
            && name.starts_with(PREFIX)
        {
            names.push(name);
        }
    }
    names.sort();
    let newest = names.split_off(names.len().saturating_sub(SALVAGE_BUNDLES_MAX));
    let listed = newest.into_iter().map(|name| Listed {
        manifest: read_manifest(&folder.join(&name)),
        name,
    });
    Ok(listed.collect())
}

fn read_manifest(bundle: &Path) -> Result<Manifest, SalvageError> {
    let path = bundle.join(MANIFEST);
    let opened = File::open(&path).map_err(file("open", &path))?;
    let mut text = Vec::new();
    opened
        .take(SALVAGE_MANIFEST_BYTES_MAX)
        .read_to_end(&mut text)
        .map_err(file("read", &path))?;
    let malformed = |source| SalvageError::Malformed {
        path: path.clone(),
        source,
    };
    /// What every version begins with.
    #[derive(serde::Deserialize)]
    struct Versioned {
        version: u32,
    }
    let Versioned { version } = serde_json::from_slice(&text).map_err(malformed)?;
    if version != SALVAGE_VERSION {
        return Err(SalvageError::Version {
            path: path.clone(),
            version,
        });
    }
    serde_json::from_slice(&text).map_err(malformed)
}

/// Returns whether bundles can have that name; it then leads nowhere else.
fn is_name(name: &str) -> bool {
    name.len() <= NAME_BYTES_MAX && name.starts_with(PREFIX) && !name.contains(['/', '\0'])
}

fn absent(folder: &Path, name: &str) -> SalvageError {
    SalvageError::Absent {
        name: name.chars().take(NAME_BYTES_MAX).collect(),
        folder: folder.to_owned(),
    }
}

/// A bundle that is read.
#[derive(Clone, Debug)]
pub struct Bundle {
    /// Its name.
    pub name: String,
    /// What it says of itself.
    pub manifest: Manifest,
    entries: PathBuf,
}

impl Bundle {
    /// Opens the bundle of that name beneath `folder`, and checks that it is whole: all of it is read.
    ///
    /// # Errors
    /// When there is none, or it is damaged.
    pub fn open(folder: &Path, name: &str) -> Result<Self, SalvageError> {
        let path = folder.join(name);
        if !is_name(name) || !path.is_dir() {
            return Err(absent(folder, name));
        }
        let bundle = Self {
            name: name.to_owned(),
            manifest: read_manifest(&path)?,
            entries: path.join(ENTRIES),
        };
        for entry in bundle.entries()? {
            drop(entry?);
        }
        Ok(bundle)
    }

    /// Returns its entries, from the first on. The last item is an error where the file is not what the
    /// manifest says.
    ///
    /// # Errors
    /// When the file cannot be opened.
    pub fn entries(&self) -> Result<Entries<'_>, SalvageError> {
        let opened = File::open(&self.entries).map_err(file("open", &self.entries))?;
        Ok(Entries {
            bundle: self,
            reader: BufReader::with_capacity(1 << 16, opened),
            hasher: blake3::Hasher::new(),
            left: self.manifest.bytes,
            count: 0,
            is_over: false,
        })
    }
}

/// The entries of a bundle.
#[derive(Debug)]
pub struct Entries<'a> {
    bundle: &'a Bundle,
    reader: BufReader<File>,
    hasher: blake3::Hasher,
    /// How many bytes are still to come.
    left: u64,
    count: u64,
    is_over: bool,
}

impl Entries<'_> {
    fn damaged(&self, reason: &'static str) -> SalvageError {
        SalvageError::Damaged {
            path: self.bundle.entries.clone(),
            reason,
        }
    }

    /// Reads exactly as many bytes as `buffer` has.
    fn fill(&mut self, buffer: &mut [u8]) -> Result<(), SalvageError> {
        let bytes = u64::try_from(buffer.len()).unwrap_or(u64::MAX);
        let left = self.left.checked_sub(bytes);
        self.left = left.ok_or_else(|| self.damaged("an entry goes beyond its end"))?;
        match self.reader.read_exact(buffer) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                return Err(self.damaged("it is shorter than its manifest says"));
            }
            Err(error) => return Err(file("read", &self.bundle.entries)(error)),
        }
        self.hasher.update(buffer);
        Ok(())
    }

    fn read(&mut self) -> Result<Option<Bytes>, SalvageError> {
        if self.left == 0 {
            let manifest = &self.bundle.manifest;
            if self.count != manifest.entries {
                return Err(self.damaged("it holds another number of entries"));
            }
            if self.hasher.finalize().to_hex().as_str() != manifest.hash {
                return Err(self.damaged("its content is not what was written"));
            }
            return Ok(None);
        }
        let mut length = [0; 4];
        self.fill(&mut length)?;
        let length = u32::from_le_bytes(length);
        let bytes = usize::try_from(length)
            .ok()
            .filter(|bytes| *bytes <= SALVAGE_ENTRY_BYTES_MAX)
            .ok_or_else(|| SalvageError::TooLong {
                path: self.bundle.entries.clone(),
                bytes: length.into(),
            })?;
        let mut entry = vec![0; bytes];
        self.fill(&mut entry)?;
        self.count += 1;
        Ok(Some(entry.into()))
    }
}

impl Iterator for Entries<'_> {
    type Item = Result<Bytes, SalvageError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.is_over {
            return None;
        }
        let read = self.read().transpose();
        self.is_over = !matches!(read, Some(Ok(_)));
        read
    }
}
