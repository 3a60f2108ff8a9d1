//! What is in the tree already, and what has to be done to make it the primary's. The plan is data.

use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::FileType;
use understudy_config::Globs;
use understudy_replication::files::{
    Digest, Entry, Identity, Kind, LOST_AND_FOUND, Manifest, RESERVED, RelPath,
};
use walkdir::WalkDir;

use super::error::FilesError;
use super::tree::Tree;

/// What makes the tree the primary's, in this order.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// Directories and links to make or to adjust, parents first.
    pub(super) shapes: Vec<(RelPath, Entry)>,
    /// Files that hold what they should.
    pub(super) held: Vec<(RelPath, Entry)>,
    /// Files whose content has to be fetched.
    pub(super) fetched: Vec<(RelPath, Entry)>,
    /// What the primary does not have; nothing beneath another one.
    pub(super) extra: Vec<RelPath>,
}

impl Plan {
    /// Returns how many bytes have to be fetched.
    pub(super) fn bytes(&self) -> u64 {
        let sizes = self.fetched.iter().filter_map(|(_, entry)| entry.content());
        sizes.map(|(size, _)| size).sum()
    }
}

/// Returns every path in the tree with how it looks, without what is reserved or excluded.
pub(super) fn walk(
    root: &Path,
    exclude: &Globs,
) -> Result<BTreeMap<RelPath, Identity>, FilesError> {
    let mut found = BTreeMap::new();
    let relative = |path: &Path| {
        let path = path.strip_prefix(root).ok()?;
        Some(path.to_owned())
    };
    let walk = WalkDir::new(root)
        .min_depth(1)
        .follow_links(false)
        .into_iter();
    let walk = walk.filter_entry(|entry| {
        let is_reserved = entry.depth() == 1
            && [RESERVED, LOST_AND_FOUND].contains(&entry.file_name().as_bytes());
        !is_reserved && !relative(entry.path()).is_some_and(|path| exclude.is_match(&path))
    });
    for entry in walk {
        let entry = entry.map_err(|error| {
            let path = error.path().unwrap_or(root).to_owned();
            FilesError::tree("read", path)(std::io::Error::from(error))
        })?;
        let metadata = entry
            .metadata()
            .map_err(|error| FilesError::tree("read", entry.path())(std::io::Error::from(error)))?;
        // What cannot be a path of a store was not put there by one.
        let Some(path) =
            relative(entry.path()).and_then(|path| RelPath::new(path.as_os_str().as_bytes()).ok())
        else {
            continue;
        };
        let nanoseconds =
            |seconds: i64, rest: i64| seconds.saturating_mul(1_000_000_000).saturating_add(rest);
        let identity = Identity {
            inode: metadata.ino(),
            size: metadata.size(),
            mtime_ns: nanoseconds(metadata.mtime(), metadata.mtime_nsec()),
            ctime_ns: nanoseconds(metadata.ctime(), metadata.ctime_nsec()),
            mode: metadata.mode(),
            uid: metadata.uid(),
            gid: metadata.gid(),
        };
        found.insert(path, identity);
    }
    Ok(found)
}

/// Compares what is there with what should be. Files are read only where `known` does not tell what
/// they hold, and only if they are as long as they should be.
pub(super) fn plan(
    tree: &Tree,
    found: &BTreeMap<RelPath, Identity>,
    known: &Manifest,
    target: &Manifest,
) -> Result<Plan, FilesError> {
    let mut plan = Plan::default();
    for (path, wanted) in target.entries() {
        let entry = wanted.entry;
        match entry.kind {
            Kind::Directory | Kind::Symlink { .. } => plan.shapes.push((path, entry)),
            Kind::File { size, hash } => {
                let is_held = match found.get(&path) {
                    Some(local) => holds(tree, &path, *local, known, (size, hash))?,
                    None => false,
                };
                if is_held {
                    plan.held.push((path, entry));
                } else {
                    plan.fetched.push((path, entry));
                }
            }
        }
    }
    for path in found.keys() {
        let is_within = plan.extra.last().is_some_and(|last| path.is_beneath(last));
        if !is_within && target.get(path).is_none() {
            plan.extra.push(path.clone());
        }
    }
    Ok(plan)
}

fn holds(
    tree: &Tree,
    path: &RelPath,
    local: Identity,
    known: &Manifest,
    (size, hash): (u64, Digest),
) -> Result<bool, FilesError> {
    if local.file_type() != FileType::RegularFile || local.size != size {
        return Ok(false);
    }
    if let Some(known) = known.get(path)
        && known.local == Some(local)
        && let Some((_, known_hash)) = known.entry.content()
    {
        return Ok(known_hash == hash);
    }
    let verified = tree.verify(path, size, hash);
    Ok(verified
        .map_err(FilesError::tree("read", path.as_path()))?
        .is_some())
}
