//! A copy of the tree beside it, made while the original follows on.
//!
//! What the manifest says is copied, then what has changed meanwhile, and so on; the last and least of it
//! with the replica held, so that the copy is the tree at one position. Every file of the tree is whole at
//! any moment, but for one that is changed in place: that shows as a change, and is copied again.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::os::fd::AsFd;
use std::path::Path;
use std::time::Duration;

use rustix::fs::{FileType, Mode, OFlags, linkat, mkdirat, openat, symlinkat};
use understudy_replication::durable;
use understudy_replication::files::{
    Digest, Entry, Head, Kind, LOST_AND_FOUND, Manifest, NodeId, RESERVED, RelPath, Root, TOP,
    identity, names, stat_fd, xattrs,
};

use super::FilesReceiver;
use super::attributes::dress;
use super::error::FilesError;
use super::tree::is_absent;
use crate::copy::{CopyError, Pace, content};

/// A last round that would copy more than this is not made with the replica held yet.
const HELD_BYTES_MAX: u64 = 64 << 20;
const HELD_ENTRIES_MAX: usize = 1000;

/// After so many rounds the last one is made, if it would not hold the replica for longer than some seconds.
const ROUNDS_MAX: u32 = 8;
const LAST_BYTES_MAX: u64 = 1 << 30;

/// How long is waited for a replica that can be believed.
const SOUND_PATIENCE: Duration = Duration::from_secs(30);

/// How many differences are told.
const DIFFERENCES_MAX: usize = 100;

/// A copy of the tree.
#[derive(Debug)]
pub struct FilesCopy {
    /// What it stands for.
    pub head: Head,
    /// How many entries had not come to the original, either.
    pub awaited: usize,
    manifest: Manifest,
}

impl FilesReceiver {
    /// Copies the tree to `target`, which must not be there. Blocks.
    ///
    /// # Errors
    /// When there is no copy yet to copy, or a file cannot be read or written.
    pub(crate) fn copy_to(&self, target: &Path, pace: &Pace) -> Result<FilesCopy, CopyError> {
        let source = Root::open(&self.inner.root).map_err(tree("open", &self.inner.root))?;
        durable::create_directory(target, 0o700).map_err(tree("make", target))?;
        let root = Root::open(target).map_err(tree("open", target))?;
        let mut copying = Copying {
            source: &source,
            target: &root,
            pace,
            before: Manifest::default(),
            links: BTreeMap::new(),
        };
        let copied_before = pace.copied().copied_bytes;
        let mut copied = self.now()?;
        for round in 0.. {
            pace.check()?;
            copying.bring(&copied.manifest)?;
            // With it held the tree is what the manifest says, and stays so.
            let held = self.inner.sound_replica_within(SOUND_PATIENCE)?;
            let now = held_now(&held, &self.inner.id.name)?;
            let is_same = now.head == copied.head && now.awaited == copied.awaited;
            if is_same {
                break;
            }
            copying.before = copied.manifest;
            copied = now;
            let (entries, bytes) = copying.weigh(&copied.manifest);
            let is_little = entries <= HELD_ENTRIES_MAX && bytes <= HELD_BYTES_MAX;
            let is_last = round >= ROUNDS_MAX;
            // Where blocks are shared it takes no time, however much it is.
            let shares = pace.copied().copied_bytes == copied_before;
            if is_last && bytes > LAST_BYTES_MAX && !shares {
                let store = self.inner.id.name.clone();
                return Err(FilesError::Restless { store, bytes }.into());
            }
            if is_little || is_last {
                pace.is_waited_for(true);
                let brought = copying.bring(&copied.manifest);
                pace.is_waited_for(false);
                brought?;
                break;
            }
        }
        let found = stat_fd(source.fd()).map_err(tree("look at", source.path()))?;
        let top = mode(u32::from(found.stx_mode) & 0o7777);
        fs::set_permissions(target, top).map_err(tree("set the mode of", target))?;
        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::chown(target, Some(found.stx_uid), Some(found.stx_gid))
                .map_err(tree("give away", target))?;
        }
        Ok(copied)
    }

    fn now(&self) -> Result<FilesCopy, CopyError> {
        let held = self.inner.sound_replica_within(SOUND_PATIENCE)?;
        held_now(&held, &self.inner.id.name)
    }
}

fn mode(bits: u32) -> fs::Permissions {
    use std::os::unix::fs::PermissionsExt;
    fs::Permissions::from_mode(bits)
}

fn held_now(
    replica: &super::replica::Replica,
    store: &understudy_config::StoreName,
) -> Result<FilesCopy, CopyError> {
    let no_copy = || FilesError::NoCopy {
        store: store.clone(),
    };
    Ok(FilesCopy {
        head: replica.ledger.head().cloned().ok_or_else(no_copy)?,
        awaited: replica.awaited_count(),
        manifest: replica.ledger.manifest.clone(),
    })
}

fn tree(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> CopyError + use<> {
    let path = path.to_owned();
    move |source| FilesError::tree(action, path)(source).into()
}

/// A copy on its way.
struct Copying<'a> {
    source: &'a Root,
    target: &'a Root,
    pace: &'a Pace,
    /// What the target is.
    before: Manifest,
    /// Where the target has the files that have several names.
    links: BTreeMap<u64, RelPath>,
}

impl Copying<'_> {
    /// Returns how many entries, and bytes of content, differ from what the target is.
    fn weigh(&self, now: &Manifest) -> (usize, u64) {
        let (mut entries, mut bytes) = (0_usize, 0_u64);
        for (_, id) in now.walk(TOP) {
            if !self.is_there(now, id) {
                entries = entries.saturating_add(1);
                bytes = bytes.saturating_add(now.content(id).map_or(0, |(size, _)| size));
            }
        }
        (entries, bytes)
    }

    /// Returns whether the target has this already. What is awaited is looked at again each time.
    fn is_there(&self, now: &Manifest, id: NodeId) -> bool {
        let Some(path) = now.path(id) else {
            return true;
        };
        let before = self.before.lookup(&path);
        before.is_some_and(|before| {
            self.before.entry(before) == now.entry(id)
                && self.before.is_awaited(before) == now.is_awaited(id)
        })
    }

    /// Makes the target what `now` says.
    fn bring(&mut self, now: &Manifest) -> Result<(), CopyError> {
        self.links.clear();
        let shared = now.walk(TOP).filter(|(_, id)| now.link(*id) != 0);
        for (_, id) in shared {
            if self.is_there(now, id)
                && let Some(path) = now.path(id)
            {
                self.links.insert(now.link(id), path);
            }
        }
        self.directory(now, TOP, None)
    }

    fn directory(
        &mut self,
        now: &Manifest,
        id: NodeId,
        path: Option<&RelPath>,
    ) -> Result<(), CopyError> {
        self.pace.check()?;
        let before = match path {
            None => Some(TOP),
            Some(path) => self.before.lookup(path),
        };
        let gone: Vec<Vec<u8>> = before
            .map_or(&[][..], |before| self.before.children(before))
            .iter()
            .map(|child| self.before.name(*child).to_vec())
            .filter(|name| now.child(id, name).is_none())
            .collect();
        for name in gone {
            if let Ok(path) = RelPath::child(path, &name) {
                self.remove(&path)?;
            }
        }
        for child in now.children(id) {
            let Ok(path) = RelPath::child(path, now.name(*child)) else {
                continue;
            };
            self.entry(now, *child, &path)?;
        }
        Ok(())
    }

    fn entry(&mut self, now: &Manifest, id: NodeId, path: &RelPath) -> Result<(), CopyError> {
        let is_there = self.is_there(now, id);
        let entry = now.entry(id);
        if entry.is_directory() {
            let was_directory = self
                .before
                .lookup(path)
                .is_some_and(|before| self.before.is_directory(before));
            if !was_directory {
                self.remove(path)?;
                let parent = self
                    .target
                    .parent(path)
                    .map_err(self.failed("open", path))?;
                mkdirat(&parent, path.name(), Mode::from_raw_mode(0o700))
                    .map_err(|errno| self.failed("make", path)(errno.into()))?;
            }
            self.directory(now, id, Some(path))?;
            // What was put into it has changed its time.
            let made = self
                .target
                .handle(path)
                .map_err(self.failed("open", path))?;
            return dress(made.as_fd(), &entry).map_err(self.failed("dress", path));
        }
        if is_there {
            return Ok(());
        }
        self.remove(path)?;
        let parent = self
            .target
            .parent(path)
            .map_err(self.failed("open", path))?;
        if let Kind::Symlink { target } = &entry.kind {
            symlinkat(target.as_slice(), &parent, path.name())
                .map_err(|errno| self.failed("make", path)(errno.into()))?;
            let made = self
                .target
                .handle(path)
                .map_err(self.failed("open", path))?;
            return dress(made.as_fd(), &entry).map_err(self.failed("dress", path));
        }
        if let Some(other) = self.links.get(&entry.link).filter(|_| entry.link != 0) {
            let from = self
                .target
                .parent(other)
                .map_err(self.failed("open", other))?;
            return linkat(
                &from,
                other.name(),
                &parent,
                path.name(),
                rustix::fs::AtFlags::empty(),
            )
            .map_err(|errno| self.failed("link", path)(errno.into()));
        }
        let source = match self.source.file(path) {
            Ok(source) => source,
            // It has gone since, or has not come yet.
            Err(error) if is_absent(&error) => return Ok(()),
            Err(error) => return Err(self.failed("read", path)(error)),
        };
        let found = stat_fd(source.as_fd()).map_err(self.failed("look at", path))?;
        if identity(&found).file_type() != FileType::RegularFile {
            return Ok(());
        }
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let made = openat(&parent, path.name(), flags, Mode::from_raw_mode(0o600))
            .map_err(|errno| self.failed("make", path)(errno.into()))?;
        let made = File::from(made);
        content(&source, &made, found.stx_size, self.pace)
            .map_err(|error| error.told(|source| self.failed("copy", path)(source)))?;
        if entry.link != 0 {
            self.links.insert(entry.link, path.clone());
        }
        dress(made.as_fd(), &entry).map_err(self.failed("dress", path))
    }

    /// Removes what the target has at `path`.
    fn remove(&self, path: &RelPath) -> Result<(), CopyError> {
        let place = self.target.path().join(path.as_path());
        let removed = match fs::symlink_metadata(&place) {
            Ok(found) if found.is_dir() => fs::remove_dir_all(&place),
            Ok(_) => fs::remove_file(&place),
            Err(error) => Err(error),
        };
        match removed {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(tree("remove", &place)(error)),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    fn failed(
        &self,
        action: &'static str,
        path: &RelPath,
    ) -> impl FnOnce(io::Error) -> CopyError + use<> {
        tree(action, &self.target.path().join(path.as_path()))
    }
}

impl FilesCopy {
    /// Reads the copy again, and returns what in it is not as it should be; each in a sentence, and not more
    /// than some. Blocks.
    ///
    /// # Errors
    /// When it is told to stop, or the top of the copy cannot be opened.
    pub(crate) fn verify(&mut self, target: &Path, pace: &Pace) -> Result<Vec<String>, CopyError> {
        let mut differences = Vec::new();
        let root = self.manifest.root();
        if root != self.head.root {
            differences.push(format!(
                "the manifest has the root {root}, and was committed with {}",
                self.head.root
            ));
        }
        let tree_root = Root::open(target).map_err(tree("open", target))?;
        let mut inodes: BTreeMap<u64, u64> = BTreeMap::new();
        for (_, id) in self.manifest.walk(TOP) {
            pace.check()?;
            let Some(path) = self.manifest.path(id) else {
                continue;
            };
            if self.manifest.is_awaited(id) {
                continue;
            }
            let entry = self.manifest.entry(id);
            let difference = match differs(&tree_root, &path, &entry, &mut inodes, pace)? {
                None => continue,
                Some(difference) => difference,
            };
            differences.push(format!("{path}: {difference}"));
            if differences.len() >= DIFFERENCES_MAX {
                return Ok(differences);
            }
        }
        self.extra(&tree_root, &mut differences)?;
        Ok(differences)
    }

    /// Finds what the manifest does not have.
    fn extra(&self, root: &Root, differences: &mut Vec<String>) -> Result<(), CopyError> {
        let directories = self.manifest.walk(TOP).map(|(_, id)| id);
        let directories = directories.filter(|id| self.manifest.is_directory(*id));
        for id in std::iter::once(TOP).chain(directories) {
            let path = self.manifest.path(id);
            let Ok(directory) = root.directory(path.as_ref()) else {
                continue;
            };
            let found = names(&directory).map_err(tree("read", root.path()))?;
            let known: BTreeSet<&[u8]> = self
                .manifest
                .children(id)
                .iter()
                .map(|child| self.manifest.name(*child))
                .collect();
            for name in found {
                let is_own = id == TOP && [RESERVED, LOST_AND_FOUND].contains(&name.as_slice());
                if !is_own && !known.contains(name.as_slice()) {
                    let name = String::from_utf8_lossy(&name).into_owned();
                    let within = path
                        .as_ref()
                        .map_or(String::new(), |path| format!("{path}/"));
                    differences.push(format!("{within}{name}: it should not be there"));
                }
            }
        }
        Ok(())
    }

    /// Returns the root of the manifest that was copied.
    pub fn root(&self) -> Digest {
        self.head.root
    }

    /// Returns how many entries it has.
    pub fn entries(&self) -> u64 {
        u64::try_from(self.manifest.len()).unwrap_or(u64::MAX)
    }
}

/// Returns how what is at `path` differs from its entry.
fn differs(
    root: &Root,
    path: &RelPath,
    entry: &Entry,
    inodes: &mut BTreeMap<u64, u64>,
    pace: &Pace,
) -> Result<Option<String>, CopyError> {
    let told = |error: io::Error| Ok(Some(error.to_string()));
    let handle = match root.handle(path) {
        Ok(handle) => handle,
        Err(error) if is_absent(&error) => return Ok(Some("it is missing".to_owned())),
        Err(error) => return told(error),
    };
    let found = match stat_fd(handle.as_fd()) {
        Ok(found) => identity(&found),
        Err(error) => return told(error),
    };
    let kind = match &entry.kind {
        Kind::Directory => FileType::Directory,
        Kind::File { .. } => FileType::RegularFile,
        Kind::Symlink { .. } => FileType::Symlink,
    };
    if found.file_type() != kind {
        return Ok(Some("it is another kind of thing".to_owned()));
    }
    match &entry.kind {
        Kind::Symlink { target } => {
            return match root.read_link(path) {
                Ok(read) if read == *target => Ok(None),
                Ok(_) => Ok(Some("it leads elsewhere".to_owned())),
                Err(error) => told(error),
            };
        }
        Kind::File { size, hash } => {
            if found.size != *size {
                let size = format!("it has {} bytes instead of {size}", found.size);
                return Ok(Some(size));
            }
            let read = root.file(path).and_then(Digest::of_reader);
            pace.read(*size)?;
            match read {
                Ok((read, _)) if read == *hash => {}
                Ok(_) => return Ok(Some("its content is another".to_owned())),
                Err(error) => return told(error),
            }
        }
        Kind::Directory => {}
    }
    if entry.link != 0 && *inodes.entry(entry.link).or_insert(found.inode) != found.inode {
        return Ok(Some("its names are files of their own".to_owned()));
    }
    let is_root = rustix::process::geteuid().is_root();
    if found.mode & 0o7777 != entry.mode
        || (is_root && (found.uid, found.gid) != (entry.uid, entry.gid))
    {
        return Ok(Some("its owner or mode is another".to_owned()));
    }
    if found.mtime_ns != entry.mtime_ns {
        return Ok(Some("its time is another".to_owned()));
    }
    match xattrs(handle.as_fd()) {
        Ok(found) if found == entry.xattrs || !is_root => Ok(None),
        Ok(_) => Ok(Some("its extended attributes are others".to_owned())),
        Err(error) => told(error),
    }
}
