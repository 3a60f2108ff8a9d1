//! Changing the copy's tree, never anything beside it.
//!
//! Every path is resolved beneath the root without following links, and then changed relative to the
//! directory that was found. What a file holds is replaced whole: staged in `.understudy`, given its
//! owner, mode and times, and renamed into its place.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, OFlags, Timespec, Timestamps, UTIME_OMIT, Uid, chmodat,
    chownat, fsync, mkdirat, openat, renameat, symlinkat, syncfs, unlinkat, utimensat,
};
use rustix::io::Errno;
use understudy_replication::durable;
use understudy_replication::files::{
    Digest, Entry, Identity, Kind, RESERVED, RelPath, Root, identity, mtime_timespec, names,
    stat_fd,
};

/// Where a reseed of a former primary keeps what it takes away.
const KEPT: &str = "kept";

/// Up to this many files are synced one by one. Syncing the file system writes everybody's data.
const SYNCED_SINGLY_MAX: usize = 16;

pub(super) struct Tree {
    root: Root,
    staging: OwnedFd,
    /// What is removed or replaced is moved there instead: this node was a primary, and may have what
    /// no other has.
    kept: Option<OwnedFd>,
}

impl Tree {
    /// Opens the tree at `path`, which is made if it is missing.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        durable::create_directory(path, 0o755)?;
        let root = Root::open(path)?;
        let staging = open_or_make(root.fd(), ".understudy")?;
        fsync(root.fd())?;
        Ok(Self {
            root,
            staging,
            kept: None,
        })
    }

    pub(super) fn root(&self) -> &Root {
        &self.root
    }

    /// From now on what is removed or replaced is kept, in `.understudy/kept/NAME`.
    pub(super) fn keep(&mut self, name: &str) -> io::Result<()> {
        let kept = open_or_make(self.staging.as_fd(), KEPT)?;
        self.kept = Some(open_or_make(kept.as_fd(), name)?);
        Ok(())
    }

    /// Makes an empty staged file.
    pub(super) fn stage(&self, name: &str) -> io::Result<File> {
        match unlinkat(&self.staging, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(errno) => return Err(errno.into()),
        }
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        Ok(openat(&self.staging, name, flags, Mode::from_raw_mode(0o600))?.into())
    }

    pub(super) fn unstage(&self, name: &str) {
        // What is left is cleared when the copy is opened the next time.
        let _left = unlinkat(&self.staging, name, AtFlags::empty()).is_err();
    }

    /// Removes what earlier attempts have staged.
    pub(super) fn clear_staging(&self) -> io::Result<()> {
        for name in names(&self.open_staging()?)? {
            if name != KEPT.as_bytes() {
                remove(self.staging.as_fd(), &name)?;
            }
        }
        Ok(())
    }

    fn open_staging(&self) -> io::Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(openat(&self.staging, c".", flags, Mode::empty())?)
    }

    /// Makes the content of staged files durable.
    pub(super) fn sync_staged(&self, staged: &[String]) -> io::Result<()> {
        if staged.len() > SYNCED_SINGLY_MAX {
            return self.sync();
        }
        for name in staged {
            let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
            match openat(&self.staging, name.as_str(), flags, Mode::empty()) {
                Ok(file) => rustix::fs::fdatasync(file)?,
                // It has been put into its place by an earlier attempt, which synced it.
                Err(Errno::NOENT) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }

    /// Makes the names of staged files durable.
    pub(super) fn sync_staging_names(&self) -> io::Result<()> {
        Ok(fsync(self.open_staging()?)?)
    }

    /// Makes everything in the tree durable.
    pub(super) fn sync(&self) -> io::Result<()> {
        Ok(syncfs(self.root.fd())?)
    }

    /// Puts a staged file into its place; `None` when there is no such staged file.
    pub(super) fn place_file(
        &self,
        staged: &str,
        path: &RelPath,
        entry: &Entry,
    ) -> io::Result<Option<Identity>> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = match openat(&self.staging, staged, flags, Mode::empty()) {
            Ok(file) => file,
            Err(Errno::NOENT) => return Ok(None),
            Err(errno) => return Err(errno.into()),
        };
        set_attributes(file.as_fd(), entry)?;
        let parent = self.root.parent(path)?;
        self.make_way(&parent, path, |found| found == FileType::Directory)?;
        renameat(&self.staging, staged, &parent, path.name())?;
        // After the rename, which moves the ctime.
        Ok(Some(identity(&stat_fd(file.as_fd())?)))
    }

    /// Makes a symbolic link, or replaces what is there by it.
    pub(super) fn place_symlink(
        &self,
        path: &RelPath,
        entry: &Entry,
        target: &[u8],
    ) -> io::Result<()> {
        const STAGED: &str = "link";
        self.unstage(STAGED);
        symlinkat(target, &self.staging, STAGED)?;
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let link = openat(&self.staging, STAGED, flags, Mode::empty())?;
        change_owner(link.as_fd(), entry)?;
        utimensat(
            &self.staging,
            STAGED,
            &times(entry.mtime_ns),
            AtFlags::SYMLINK_NOFOLLOW,
        )?;
        let parent = self.root.parent(path)?;
        self.make_way(&parent, path, |found| found == FileType::Directory)?;
        Ok(renameat(&self.staging, STAGED, &parent, path.name())?)
    }

    /// Makes a directory, or gives the one that is there its owner and mode. Its times are set when
    /// what it holds is in place.
    pub(super) fn place_directory(&self, path: &RelPath, entry: &Entry) -> io::Result<()> {
        let parent = self.root.parent(path)?;
        self.make_way(&parent, path, |found| found != FileType::Directory)?;
        match mkdirat(&parent, path.name(), Mode::from_raw_mode(0o700)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(errno.into()),
        }
        let directory = self.root.handle(path)?;
        change_owner(directory.as_fd(), entry)?;
        change_mode(directory.as_fd(), entry)
    }

    /// Gives the file that is there its owner, mode and times.
    pub(super) fn set_attributes(&self, path: &RelPath, entry: &Entry) -> io::Result<Identity> {
        let file = self.root.handle(path)?;
        set_attributes(file.as_fd(), entry)?;
        Ok(identity(&stat_fd(file.as_fd())?))
    }

    /// Sets when a directory was changed.
    pub(super) fn set_mtime(&self, path: &RelPath, mtime_ns: i64) -> io::Result<()> {
        let directory = self.root.handle(path)?;
        Ok(utimensat(
            CWD,
            magic(directory.as_fd()),
            &times(mtime_ns),
            AtFlags::empty(),
        )?)
    }

    /// Removes `path` and all beneath it, if it is there.
    pub(super) fn remove(&self, path: &RelPath) -> io::Result<()> {
        match self.root.parent(path) {
            Ok(parent) => self.take_away(&parent, path),
            Err(error) if is_absent(&error) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Returns how the file at `path` looks, if it holds what `hash` says.
    pub(super) fn verify(
        &self,
        path: &RelPath,
        size: u64,
        hash: Digest,
    ) -> io::Result<Option<Identity>> {
        let file = match self.root.file(path) {
            Ok(file) => file,
            Err(error) if is_absent(&error) => return Ok(None),
            Err(error) => return Err(error),
        };
        let before = identity(&stat_fd(file.as_fd())?);
        if before.file_type() != FileType::RegularFile || before.size != size {
            return Ok(None);
        }
        let (found, _) = Digest::of_reader(&file)?;
        let after = identity(&stat_fd(file.as_fd())?);
        Ok((found == hash && before == after).then_some(after))
    }

    /// Returns how `path` looks, if it is there.
    pub(super) fn look(&self, path: &RelPath) -> io::Result<Option<Identity>> {
        match self.root.stat(path) {
            Ok(found) => Ok(Some(identity(&found))),
            Err(error) if is_absent(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Takes away what a rename would not replace, and what is to be kept.
    fn make_way(
        &self,
        parent: &OwnedFd,
        path: &RelPath,
        is_in_the_way: impl Fn(FileType) -> bool,
    ) -> io::Result<()> {
        let Some(found) = self.look(path)? else {
            return Ok(());
        };
        let found = found.file_type();
        let is_kept = self.kept.is_some() && found != FileType::Directory;
        if is_in_the_way(found) || is_kept {
            self.take_away(parent, path)?;
        }
        Ok(())
    }

    fn take_away(&self, parent: &OwnedFd, path: &RelPath) -> io::Result<()> {
        let Some(kept) = &self.kept else {
            return remove(parent.as_fd(), path.name());
        };
        let mut directory = None::<OwnedFd>;
        let mut ancestors: Vec<&[u8]> = path.names().collect();
        ancestors.pop();
        for name in ancestors {
            let at = directory.as_ref().unwrap_or(kept).as_fd();
            match mkdirat(at, name, Mode::from_raw_mode(0o700)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(errno) => return Err(errno.into()),
            }
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            directory = Some(openat(at, name, flags, Mode::empty())?);
        }
        let into = directory.as_ref().unwrap_or(kept);
        match renameat(parent, path.name(), into, path.name()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }
}

/// Returns whether an error says that there is nothing at a path.
pub(super) fn is_absent(error: &io::Error) -> bool {
    let absent = [Errno::NOENT, Errno::NOTDIR, Errno::LOOP].map(Errno::raw_os_error);
    error
        .raw_os_error()
        .is_some_and(|errno| absent.contains(&errno))
}

fn open_or_make(at: BorrowedFd<'_>, name: &str) -> io::Result<OwnedFd> {
    match mkdirat(at, name, Mode::from_raw_mode(0o700)) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(errno) => return Err(errno.into()),
    }
    debug_assert!(
        name.as_bytes() == RESERVED || !name.contains('/'),
        "one name, no path"
    );
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(openat(at, name, flags, Mode::empty())?)
}

/// Removes a name and, without following links, all beneath it.
fn remove(parent: BorrowedFd<'_>, name: &[u8]) -> io::Result<()> {
    match unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR) => {}
        Err(errno) => return Err(errno.into()),
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let directory = openat(parent, name, flags, Mode::empty())?;
    for inner in names(&directory)? {
        remove(directory.as_fd(), &inner)?;
    }
    Ok(unlinkat(parent, name, AtFlags::REMOVEDIR)?)
}

/// In this order: changing the owner takes the setuid bit away, and changing anything is not to be
/// seen in the time.
fn set_attributes(file: BorrowedFd<'_>, entry: &Entry) -> io::Result<()> {
    change_owner(file, entry)?;
    change_mode(file, entry)?;
    Ok(utimensat(
        CWD,
        magic(file),
        &times(entry.mtime_ns),
        AtFlags::empty(),
    )?)
}

/// Without the right to give files away they stay ours; the manifest remembers whose they are.
fn change_owner(file: BorrowedFd<'_>, entry: &Entry) -> io::Result<()> {
    let (uid, gid) = (Uid::from_raw(entry.uid), Gid::from_raw(entry.gid));
    match chownat(file, c"", Some(uid), Some(gid), AtFlags::EMPTY_PATH) {
        Ok(()) => Ok(()),
        Err(Errno::PERM) if !rustix::process::geteuid().is_root() => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

fn change_mode(file: BorrowedFd<'_>, entry: &Entry) -> io::Result<()> {
    match entry.kind {
        Kind::File { .. } | Kind::Directory => {
            let mode = Mode::from_raw_mode(entry.mode);
            Ok(chmodat(CWD, magic(file), mode, AtFlags::empty())?)
        }
        Kind::Symlink { .. } => Ok(()),
    }
}

/// The path by which the kernel leads to what is open, whatever has become of its name.
fn magic(file: BorrowedFd<'_>) -> String {
    format!("/proc/self/fd/{}", file.as_raw_fd())
}

fn times(mtime_ns: i64) -> Timestamps {
    Timestamps {
        last_access: Timespec {
            tv_sec: 0,
            tv_nsec: UTIME_OMIT,
        },
        last_modification: mtime_timespec(mtime_ns),
    }
}
