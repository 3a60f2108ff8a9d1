//! Changing the copy's tree, never anything beside it.
//!
//! Every path is resolved beneath the root without following links, and then changed relative to the
//! directory that was found. What a file holds is replaced whole: staged in `.understudy`, given its
//! owner, mode and times, and renamed into its place.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, RenameFlags, fchmod, fsync, linkat, mkdirat, openat, renameat,
    renameat_with, symlinkat, syncfs, unlinkat,
};
use rustix::io::Errno;
use understudy_replication::durable;
use understudy_replication::files::{
    Digest, Entry, Identity, OUTBOARD_FROM, Outboard, RESERVED, RelPath, Root, identity, names,
    open_in, stat_fd, stat_in,
};
use understudy_replication::wall_time::WallTime;

use super::attributes::{dress, dress_but_times, dress_fresh, set_mtime};

/// Where a reseed of a former primary keeps what it takes away.
pub(super) const KEPT: &str = "kept";

/// Where what was deleted waits for being forgotten.
pub(super) const TRASH: &str = "trash";

/// Where a seeding builds the directories that are not there yet.
pub(super) const FRESH: &str = "fresh";

/// What is removed when there is time for it begins so.
pub(super) const GONE: &str = "gone-";

/// What was fetched, in part or whole, begins so; what follows is the hash.
pub(super) const BULK: &str = "bulk-";

pub(super) struct Tree {
    root: Root,
    staging: OwnedFd,
    /// What is removed or replaced is moved there instead: this node was a primary, and may have what
    /// no other has.
    kept: Option<OwnedFd>,
    /// Whose a file is that this process makes in the staging directory.
    ours: (u32, u32),
    /// The file system can share blocks between files; until it says that it cannot.
    can_clone: AtomicBool,
    opened: u64,
    gone: AtomicU64,
}

/// Nodes of the manifest that are being moved by the batch in hand, by inode: what lies where it should
/// not yet is not taken away for being in the way.
pub(super) type Guarded = BTreeSet<u64>;

impl Tree {
    /// Opens the tree at `path`, which is made if it is missing.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        durable::create_directory(path, 0o755)?;
        let root = Root::open(path)?;
        let is_new = !path.join(".understudy").exists();
        let staging = open_or_make(root.fd(), ".understudy")?;
        // A group that is inherited would be inherited by all that is staged.
        fchmod(&staging, Mode::from_raw_mode(0o700))?;
        if is_new {
            fsync(root.fd())?;
        }
        let ours = (
            rustix::process::geteuid().as_raw(),
            rustix::process::getegid().as_raw(),
        );
        Ok(Self {
            root,
            staging,
            kept: None,
            ours,
            can_clone: AtomicBool::new(true),
            opened: WallTime::now().0,
            gone: AtomicU64::new(0),
        })
    }

    pub(super) fn root(&self) -> &Root {
        &self.root
    }

    pub(super) fn staging(&self) -> BorrowedFd<'_> {
        self.staging.as_fd()
    }

    pub(super) fn ours(&self) -> (u32, u32) {
        self.ours
    }

    /// From now on what is removed or replaced is kept, in `.understudy/kept/NAME`.
    pub(super) fn keep(&mut self, name: &str) -> io::Result<()> {
        let kept = open_or_make(self.staging.as_fd(), KEPT)?;
        self.kept = Some(open_or_make(kept.as_fd(), name)?);
        Ok(())
    }

    /// Returns whether what is removed or replaced is kept.
    pub(super) fn is_keeping(&self) -> bool {
        self.kept.is_some()
    }

    /// Makes an empty staged file, open for reading and writing.
    pub(super) fn stage(&self, name: &str) -> io::Result<File> {
        let flags =
            OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let make = || openat(&self.staging, name, flags, Mode::from_raw_mode(0o600));
        match make() {
            Err(Errno::EXIST) => {
                unlinkat(&self.staging, name, AtFlags::empty())?;
                Ok(make()?.into())
            }
            made => Ok(made?.into()),
        }
    }

    /// Opens what was staged before.
    pub(super) fn staged(&self, name: &str) -> io::Result<Option<File>> {
        let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        match openat(&self.staging, name, flags, Mode::empty()) {
            Ok(file) => Ok(Some(file.into())),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }

    pub(super) fn unstage(&self, name: &str) {
        // What is left is cleared when the copy is opened the next time.
        let _left = unlinkat(&self.staging, name, AtFlags::empty()).is_err();
    }

    /// Removes what earlier attempts have staged, but what they have fetched and `is_of_use`.
    pub(super) fn clear_staging(&self, is_of_use: impl Fn(&str) -> bool) -> io::Result<()> {
        for name in names(&self.staging)? {
            let text = String::from_utf8_lossy(&name);
            let is_left = [KEPT, TRASH].contains(&&*text)
                || text.starts_with(GONE)
                || (text.starts_with(BULK) || text == FRESH) && is_of_use(&text);
            if !is_left {
                self.discard(self.staging.as_fd(), &name)?;
            }
        }
        Ok(())
    }

    /// Makes the names of staged files durable.
    pub(super) fn sync_staging_names(&self) -> io::Result<()> {
        Ok(fsync(&self.staging)?)
    }

    /// Makes everything in the tree durable.
    pub(super) fn sync(&self) -> io::Result<()> {
        Ok(syncfs(self.root.fd())?)
    }

    /// Gives a staged file all that its entry says, and puts it into its place.
    pub(super) fn place_file(
        &self,
        (name, file): (&str, &File),
        parent: BorrowedFd<'_>,
        path: &RelPath,
        entry: &Entry,
        guarded: &Guarded,
    ) -> io::Result<Identity> {
        dress_fresh(file.as_fd(), entry, self.ours)?;
        self.rename_staged(name, parent, path, guarded)?;
        // After the rename, which moves the ctime.
        Ok(identity(&stat_fd(file.as_fd())?))
    }

    /// Makes a symbolic link, or replaces what is there by it.
    pub(super) fn place_symlink(
        &self,
        parent: BorrowedFd<'_>,
        path: &RelPath,
        entry: &Entry,
        target: &[u8],
        guarded: &Guarded,
    ) -> io::Result<Identity> {
        const STAGED: &str = "link";
        self.unstage(STAGED);
        symlinkat(target, &self.staging, STAGED)?;
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let link = openat(&self.staging, STAGED, flags, Mode::empty())?;
        dress(link.as_fd(), entry)?;
        self.rename_staged(STAGED, parent, path, guarded)?;
        Ok(identity(&stat_fd(link.as_fd())?))
    }

    /// Makes a further name of the file at `source`.
    pub(super) fn place_link(
        &self,
        source: &RelPath,
        parent: BorrowedFd<'_>,
        path: &RelPath,
        guarded: &Guarded,
    ) -> io::Result<Identity> {
        const STAGED: &str = "name";
        self.unstage(STAGED);
        let from = self.root.parent(source)?;
        linkat(
            &from,
            source.name(),
            &self.staging,
            STAGED,
            AtFlags::empty(),
        )?;
        self.rename_staged(STAGED, parent, path, guarded)?;
        // A rename between two names of one file does nothing.
        self.unstage(STAGED);
        Ok(identity(&stat_in(parent, path.name())?))
    }

    /// Makes a directory, or gives the one that is there its owner and mode. Its times are set when
    /// what it holds is in place.
    pub(super) fn place_directory(
        &self,
        parent: BorrowedFd<'_>,
        path: &RelPath,
        entry: &Entry,
        guarded: &Guarded,
    ) -> io::Result<Identity> {
        let make = || mkdirat(parent, path.name(), Mode::from_raw_mode(0o700));
        let open = || open_in(parent, path.name(), OFlags::PATH | OFlags::DIRECTORY);
        let directory = match make() {
            Ok(()) => open()?,
            Err(Errno::EXIST) => match open() {
                Ok(directory) => directory,
                Err(error) if is_absent(&error) => {
                    self.take_away(parent, path, guarded)?;
                    make()?;
                    open()?
                }
                Err(error) => return Err(error),
            },
            Err(errno) => return Err(errno.into()),
        };
        dress_but_times(directory.as_fd(), entry)?;
        Ok(identity(&stat_fd(directory.as_fd())?))
    }

    /// Gives the file that is there its owner, mode, attributes and times.
    pub(super) fn dress(&self, path: &RelPath, entry: &Entry) -> io::Result<Identity> {
        let file = self.root.handle(path)?;
        dress(file.as_fd(), entry)?;
        Ok(identity(&stat_fd(file.as_fd())?))
    }

    /// Sets when a directory was changed; what has become another thing is left alone.
    pub(super) fn set_directory_mtime(
        &self,
        path: &RelPath,
        mtime_ns: i64,
    ) -> io::Result<Option<Identity>> {
        let directory = match self.root.handle(path) {
            Ok(directory) => directory,
            Err(error) if is_absent(&error) => return Ok(None),
            Err(error) => return Err(error),
        };
        let found = identity(&stat_fd(directory.as_fd())?);
        if found.file_type() != FileType::Directory {
            return Ok(None);
        }
        if found.mtime_ns == mtime_ns {
            return Ok(Some(found));
        }
        set_mtime(directory.as_fd(), mtime_ns)?;
        Ok(Some(identity(&stat_fd(directory.as_fd())?)))
    }

    /// Moves what is at one path to another, where what may be there gives way.
    pub(super) fn rename(&self, from: &RelPath, to: &RelPath, guarded: &Guarded) -> io::Result<()> {
        let (source, target) = (self.root.parent(from)?, self.root.parent(to)?);
        self.rename_into(source.as_fd(), from.name(), target.as_fd(), to, guarded)
    }

    /// Exchanges what is at two paths.
    pub(super) fn exchange(&self, a: &RelPath, b: &RelPath) -> io::Result<()> {
        let (one, other) = (self.root.parent(a)?, self.root.parent(b)?);
        let flags = RenameFlags::EXCHANGE;
        Ok(renameat_with(&one, a.name(), &other, b.name(), flags)?)
    }

    /// Removes `path` and all beneath it, if it is there.
    pub(super) fn remove(&self, path: &RelPath) -> io::Result<()> {
        match self.root.parent(path) {
            Ok(parent) => self.take_away(parent.as_fd(), path, &Guarded::new()),
            Err(error) if is_absent(&error) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Removes `path` if it is an empty directory.
    pub(super) fn remove_if_empty(&self, path: &RelPath) -> io::Result<()> {
        let parent = match self.root.parent(path) {
            Ok(parent) => parent,
            Err(error) if is_absent(&error) => return Ok(()),
            Err(error) => return Err(error),
        };
        match unlinkat(&parent, path.name(), AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT | Errno::NOTDIR | Errno::NOTEMPTY) => Ok(()),
            Err(errno) => Err(errno.into()),
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
        verify(&file, size, hash)
    }

    /// Returns whether the file at `path` has other names, too.
    pub(super) fn is_shared(&self, path: &RelPath) -> io::Result<bool> {
        Ok(self.root.stat(path)?.stx_nlink > 1)
    }

    /// Returns how `path` looks, if it is there.
    pub(super) fn look(&self, path: &RelPath) -> io::Result<Option<Identity>> {
        match self.root.stat(path) {
            Ok(found) => Ok(Some(identity(&found))),
            Err(error) if is_absent(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Makes a file share its blocks with another; `false` where that is not possible.
    pub(super) fn clone_file(&self, file: &File, source: &File) -> bool {
        if !self.can_clone.load(Ordering::Relaxed) {
            return false;
        }
        let cloned = rustix::fs::ioctl_ficlone(file, source);
        if let Err(Errno::OPNOTSUPP | Errno::NOTTY | Errno::INVAL | Errno::NOSYS) = cloned {
            self.can_clone.store(false, Ordering::Relaxed);
        }
        cloned.is_ok()
    }

    pub(super) fn rename_staged(
        &self,
        name: &str,
        parent: BorrowedFd<'_>,
        path: &RelPath,
        guarded: &Guarded,
    ) -> io::Result<()> {
        self.rename_into(self.staging(), name.as_bytes(), parent, path, guarded)
    }

    fn rename_into(
        &self,
        from: BorrowedFd<'_>,
        name: &[u8],
        parent: BorrowedFd<'_>,
        path: &RelPath,
        guarded: &Guarded,
    ) -> io::Result<()> {
        if self.kept.is_some() {
            let found = stat_in(parent, path.name()).map(|found| identity(&found).file_type());
            if found.is_ok_and(|found| found != FileType::Directory) {
                self.take_away(parent, path, guarded)?;
            }
        }
        match renameat(from, name, parent, path.name()) {
            Ok(()) => Ok(()),
            // Another kind of thing is there, or a directory that holds something.
            Err(Errno::ISDIR | Errno::NOTDIR | Errno::NOTEMPTY | Errno::EXIST) => {
                self.take_away(parent, path, guarded)?;
                Ok(renameat(from, name, parent, path.name())?)
            }
            Err(errno) => Err(errno.into()),
        }
    }

    /// Takes a name out of the tree. A directory goes out of sight at once, and for good when there is
    /// time.
    pub(super) fn take_away(
        &self,
        parent: BorrowedFd<'_>,
        path: &RelPath,
        guarded: &Guarded,
    ) -> io::Result<()> {
        if !guarded.is_empty()
            && stat_in(parent, path.name()).is_ok_and(|found| guarded.contains(&found.stx_ino))
        {
            return Err(io::Error::other("what is to be elsewhere lies there"));
        }
        match &self.kept {
            Some(kept) => keep_aside(kept, parent, path),
            None => self.discard(parent, path.name()),
        }
    }

    fn discard(&self, parent: BorrowedFd<'_>, name: &[u8]) -> io::Result<()> {
        match unlinkat(parent, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => return Ok(()),
            Err(Errno::ISDIR) => {}
            Err(errno) => return Err(errno.into()),
        }
        let number = self.gone.fetch_add(1, Ordering::Relaxed);
        let gone = format!("{GONE}{}-{number}", self.opened);
        match renameat(parent, name, &self.staging, gone.as_str()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }
}

/// Moves a name to where what only this node has is kept, under the path that it had.
fn keep_aside(kept: &OwnedFd, parent: BorrowedFd<'_>, path: &RelPath) -> io::Result<()> {
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

/// Returns how an open file looks, if it holds what `hash` says.
pub(super) fn verify(file: &File, size: u64, hash: Digest) -> io::Result<Option<Identity>> {
    let before = identity(&stat_fd(file.as_fd())?);
    if before.file_type() != FileType::RegularFile || before.size != size {
        return Ok(None);
    }
    let found = if size >= OUTBOARD_FROM {
        Outboard::read(file, size)?.1
    } else {
        Digest::of_reader(file)?.0
    };
    let after = identity(&stat_fd(file.as_fd())?);
    Ok((found == hash && before == after).then_some(after))
}

/// Returns whether an error says that there is nothing at a path.
pub(super) fn is_absent(error: &io::Error) -> bool {
    let absent = [Errno::NOENT, Errno::NOTDIR, Errno::LOOP].map(Errno::raw_os_error);
    error
        .raw_os_error()
        .is_some_and(|errno| absent.contains(&errno))
}

pub(super) fn open_or_make(at: BorrowedFd<'_>, name: &str) -> io::Result<OwnedFd> {
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

/// Removes a name and, without following links, all beneath it, however deep.
pub(super) fn remove(parent: BorrowedFd<'_>, name: &[u8]) -> io::Result<()> {
    match unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR) => {}
        Err(errno) => return Err(errno.into()),
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let directory = openat(parent, name, flags, Mode::empty())?;
    // Deep trees are made flat as they go: each directory found is moved up to the top of what is
    // removed, so that neither the stack nor the open files grow with the depth.
    let mut number = 0_u64;
    let mut waiting: Vec<Vec<u8>> = Vec::new();
    let mut at: Option<(Vec<u8>, OwnedFd)> = None;
    loop {
        let open = at.as_ref().map_or(&directory, |(_, open)| open);
        for inner in names(open)? {
            match unlinkat(open, inner.as_slice(), AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(Errno::ISDIR) if at.is_none() => waiting.push(inner),
                Err(Errno::ISDIR) => {
                    let flat = loop {
                        number = number.saturating_add(1);
                        let flat = format!("..{number}").into_bytes();
                        let flags = RenameFlags::NOREPLACE;
                        match renameat_with(
                            open,
                            inner.as_slice(),
                            &directory,
                            flat.as_slice(),
                            flags,
                        ) {
                            Ok(()) => break flat,
                            Err(Errno::EXIST) => {}
                            Err(errno) => return Err(errno.into()),
                        }
                    };
                    waiting.push(flat);
                }
                Err(errno) => return Err(errno.into()),
            }
        }
        if let Some((name, _)) = at.take() {
            unlinkat(&directory, name.as_slice(), AtFlags::REMOVEDIR)?;
        }
        let Some(next) = waiting.pop() else { break };
        let open = openat(&directory, next.as_slice(), flags, Mode::empty())?;
        at = Some((next, open));
    }
    Ok(unlinkat(parent, name, AtFlags::REMOVEDIR)?)
}
