//! The bundle of what only this node had of a tree, when it was primary and another one is.
//!
//! ```text
//! STATE/salvage/files-STORE-EPOCH-POSITION/   manifest.json   what it is, and where the files are
//!                                             paths.jsonl     one line for each path: what became of it
//! TOP/.understudy/kept/EPOCH-POSITION/…       the files themselves, under the paths that they had
//! ```
//! The files stay on their file system: they are moved, so that keeping them needs no room and no time. The
//! list is durable before the first of them is moved. Invariant: a folder that has its final name is whole;
//! while the seeding goes on it is called `.NAME.partial`.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use understudy_config::StoreName;
use understudy_replication::durable;
use understudy_replication::epoch::Epoch;
use understudy_replication::files::{Identity, RelPath};
use understudy_replication::kv::shown::Shown;
use understudy_replication::position::Position;
use understudy_replication::rejoin::Salvaged;
use understudy_replication::wall_time::WallTime;

use super::error::FilesError;

/// The version of [`KeptManifest`] and of [`Finding`].
pub const KEPT_VERSION: u32 = 1;

/// The name of the list of paths in a bundle.
pub const KEPT_PATHS: &str = "paths.jsonl";

/// The name of the manifest in a bundle.
pub const KEPT_MANIFEST: &str = "manifest.json";

/// What became of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum What {
    /// The primary has another content; this node's was set aside.
    Differs,
    /// The primary does not have it, or has deleted it; it was set aside, and is gone here.
    OnlyHere,
    /// This node had deleted it, and the primary has it: it came back. Nothing was set aside.
    DeletedHere,
    /// The content is the primary's; the mode, the owner or the time was another.
    Attributes,
}

/// One path that differed: a line of `paths.jsonl`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// The path within the store.
    pub path: Shown,
    /// What became of it.
    pub what: What,
    /// How long it was here; of one that was deleted here, how long the primary's is. In bytes.
    pub bytes: u64,
    /// The attributes that it had here, where only those were other ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub had: Option<Had>,
}

/// The attributes that a path had.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Had {
    /// The permission bits.
    pub mode: u32,
    /// The owner.
    pub uid: u32,
    /// The group.
    pub gid: u32,
    /// When its content was last changed, in nanoseconds since 1970.
    pub mtime_ns: i64,
}

impl Finding {
    pub(super) fn new(path: &RelPath, what: What, bytes: u64) -> Self {
        Self {
            path: Shown::from(path.as_bytes()),
            what,
            bytes,
            had: None,
        }
    }

    pub(super) fn attributes(path: &RelPath, at: &Identity) -> Self {
        Self {
            had: Some(Had {
                mode: at.mode & 0o7777,
                uid: at.uid,
                gid: at.gid,
                mtime_ns: at.mtime_ns,
            }),
            ..Self::new(path, What::Attributes, 0)
        }
    }
}

/// How many paths of each kind there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// See [`What::Differs`].
    pub differing: u64,
    /// See [`What::OnlyHere`].
    pub only_here: u64,
    /// See [`What::DeletedHere`].
    pub deleted_here: u64,
    /// See [`What::Attributes`].
    pub attributes: u64,
}

impl Counts {
    pub(super) fn add(&mut self, what: What) {
        let count = match what {
            What::Differs => &mut self.differing,
            What::OnlyHere => &mut self.only_here,
            What::DeletedHere => &mut self.deleted_here,
            What::Attributes => &mut self.attributes,
        };
        *count = count.saturating_add(1);
    }

    /// Returns it in a sentence.
    pub fn sentence(&self) -> String {
        format!(
            "files set aside: {} that differed, {} that only this node had; files that it had deleted and that came \
             back: {}; files with another mode, owner or time now: {}",
            self.differing, self.only_here, self.deleted_here, self.attributes
        )
    }
}

/// What a bundle says of itself: `manifest.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptManifest {
    /// [`KEPT_VERSION`].
    pub version: u32,
    /// The store.
    pub store: StoreName,
    /// When the seeding that set it aside was done, by this node's clock.
    pub made: WallTime,
    /// The epoch in which this node last changed the tree, and where it was then.
    pub made_in: Epoch,
    /// See `made_in`.
    pub position: Position,
    /// The epoch of the primary whose tree came instead.
    pub superseded_by: Epoch,
    /// Where the files are.
    pub kept: PathBuf,
    /// How much is in them, in bytes.
    pub bytes: u64,
    /// How many paths are in the list.
    #[serde(flatten)]
    pub counts: Counts,
}

/// A bundle that is being made.
pub(super) struct Keeping {
    partial: PathBuf,
    target: PathBuf,
    kept: PathBuf,
}

fn file(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> FilesError {
    FilesError::tree(action, path)
}

/// Returns where bundles are, by the folder of a store's state: beside those of the other stores.
fn salvage_of(state: &Path) -> PathBuf {
    match state.parent().zip(state.parent().and_then(Path::parent)) {
        Some((files, top)) if files.ends_with("files") => top.join("salvage"),
        Some(_) | None => state.join("salvage"),
    }
}

impl Keeping {
    pub(super) fn new(state: &Path, store: &StoreName, name: &str, kept: PathBuf) -> Self {
        let folder = salvage_of(state);
        let name = format!("files-{store}-{name}");
        Self {
            partial: folder.join(format!(".{name}.partial")),
            target: folder.join(name),
            kept,
        }
    }

    /// Writes down durably what `find` finds, beside what an attempt that was broken off has found: that may
    /// be where it is kept already.
    pub(super) fn write_down<T>(
        &self,
        find: impl FnOnce(&mut dyn FnMut(Finding) -> Result<(), FilesError>) -> Result<T, FilesError>,
    ) -> Result<T, FilesError> {
        if self.target.exists() && !self.partial.exists() {
            fs::rename(&self.target, &self.partial).map_err(file("open", &self.target))?;
        }
        let partial = &self.partial;
        durable::create_directory(partial, 0o700).map_err(file("create", partial))?;
        let (path, staged) = (
            partial.join(KEPT_PATHS),
            partial.join(format!(".{KEPT_PATHS}")),
        );
        let known: BTreeSet<Vec<u8>> = match File::open(&path) {
            Ok(_) => {
                fs::copy(&path, &staged).map_err(file("copy", &path))?;
                let known = findings(&path).map_err(file("read", &path))?;
                known
                    .map(|found| Ok(found?.path.0))
                    .collect::<io::Result<_>>()
                    .map_err(file("read", &path))?
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                File::create(&staged).map_err(file("create", &staged))?;
                BTreeSet::new()
            }
            Err(error) => return Err(file("open", &path)(error)),
        };
        let opened = File::options().append(true).open(&staged);
        let mut out = BufWriter::new(opened.map_err(file("open", &staged))?);
        let found = find(&mut |finding| {
            if known.contains(&finding.path.0) {
                return Ok(());
            }
            let line = serde_json::to_string(&finding).map_err(io::Error::from);
            line.and_then(|line| writeln!(out, "{line}"))
                .map_err(file("write", &staged))
        })?;
        let written = out
            .into_inner()
            .map_err(|error| file("write", &staged)(error.into_error()))?;
        written.sync_all().map_err(file("sync", &staged))?;
        fs::rename(&staged, &path).map_err(file("name", &path))?;
        durable::sync_directory_of(&path).map_err(file("sync", partial))?;
        Ok(found)
    }

    /// Gives the bundle its name, when nothing is moved any more; one in which nothing is, is removed.
    pub(super) fn finish(
        &self,
        store: &StoreName,
        (made_in, position): (Epoch, Position),
        superseded_by: Epoch,
    ) -> Result<Option<Salvaged>, FilesError> {
        let path = self.partial.join(KEPT_PATHS);
        let (mut counts, mut bytes) = (Counts::default(), 0_u64);
        for finding in findings(&path).map_err(file("read", &path))? {
            let finding = finding.map_err(file("read", &path))?;
            counts.add(finding.what);
            match finding.what {
                What::Differs | What::OnlyHere => bytes = bytes.saturating_add(finding.bytes),
                What::DeletedHere | What::Attributes => {}
            }
        }
        // Only if it is empty.
        let is_empty = match fs::remove_dir(&self.kept) {
            Ok(()) => true,
            Err(error) => error.kind() == io::ErrorKind::NotFound,
        };
        if is_empty && counts == Counts::default() {
            let removed = fs::remove_dir_all(&self.partial);
            removed.map_err(file("remove", &self.partial))?;
            return Ok(None);
        }
        let manifest = KeptManifest {
            version: KEPT_VERSION,
            store: store.clone(),
            made: WallTime::now(),
            made_in,
            position,
            superseded_by,
            kept: self.kept.clone(),
            bytes,
            counts,
        };
        let text = serde_json::to_vec_pretty(&manifest)
            .map_err(|error| file("write", &self.partial)(error.into()))?;
        let path = self.partial.join(KEPT_MANIFEST);
        durable::write(&path, &text, 0o600).map_err(file("write", &path))?;
        fs::rename(&self.partial, &self.target).map_err(file("name", &self.target))?;
        durable::sync_directory_of(&self.target).map_err(file("sync", &self.target))?;
        Ok(Some(Salvaged {
            path: self.target.clone(),
            bytes,
            summary: format!("{}; they are in {}", counts.sentence(), self.kept.display()),
            is_complete: true,
        }))
    }
}

/// Returns what a list of paths says, line by line.
///
/// # Errors
/// When it cannot be opened; an item is an error where a line cannot be read.
pub fn findings(path: &Path) -> io::Result<impl Iterator<Item = io::Result<Finding>> + use<>> {
    let lines = BufReader::new(File::open(path)?).lines();
    Ok(lines.map(|line| Ok(serde_json::from_str(&line?)?)))
}
