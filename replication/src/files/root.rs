//! System calls on a store's tree, none of which leaves it.
//!
//! A path is resolved by the kernel with `RESOLVE_BENEATH` and without following any link, and what is
//! then done is done relative to the directory that was found. So neither a hostile peer nor a local
//! process that swaps a directory for a link gets anything read or written elsewhere. Other file
//! systems that are mounted within the tree are no part of it: one that is not mounted would else
//! read as if all its files had been deleted.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Mode, OFlags, RawMode, ResolveFlags, SeekFrom, Statx, StatxFlags,
    openat, openat2, readlinkat, seek, statx,
};
use rustix::io::Errno;

use super::entry::{Entry, Identity, Kind, XATTRS_BYTES_MAX, Xattrs};
use super::path::RelPath;

/// How much of a path is resolved at once: the kernel takes 4096 bytes, with the zero behind it.
const STEP_BYTES: usize = 4000;

/// The top of a store's tree, open.
#[derive(Debug)]
pub struct Root {
    fd: OwnedFd,
    path: PathBuf,
    place: (u32, u32, u64),
}

impl Root {
    /// Opens the tree at `path`.
    ///
    /// # Errors
    /// When it is not a directory, or may not be read.
    pub fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = openat(CWD, path, flags, Mode::empty())?;
        let place = place(&stat_fd(fd.as_fd())?);
        Ok(Self {
            fd,
            path: path.to_owned(),
            place,
        })
    }

    /// Returns where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the directory itself.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Returns whether its path still leads to it: not if something was mounted or unmounted there.
    pub fn is_in_place(&self) -> bool {
        statx(CWD, &self.path, AtFlags::empty(), StatxFlags::BASIC_STATS)
            .is_ok_and(|found| place(&found) == self.place)
    }

    /// Opens the directory at `path`, `None` being the top, so that it can be listed.
    ///
    /// # Errors
    /// When it is none, or is not within the tree.
    pub fn directory(&self, path: Option<&RelPath>) -> io::Result<OwnedFd> {
        self.resolve(path, OFlags::RDONLY | OFlags::DIRECTORY)
    }

    /// Opens the directory that `path` lies in, as a place to act in.
    ///
    /// # Errors
    /// When it is none, or is not within the tree.
    pub fn parent(&self, path: &RelPath) -> io::Result<OwnedFd> {
        self.resolve(path.parent().as_ref(), OFlags::PATH | OFlags::DIRECTORY)
    }

    /// Opens the file at `path` for reading. Never blocks, whatever it is.
    ///
    /// # Errors
    /// When it cannot be opened, or is a link.
    pub fn file(&self, path: &RelPath) -> io::Result<File> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
        Ok(File::from(self.resolve(Some(path), flags)?))
    }

    /// Opens `path` itself, even if it is a link, for nothing but to say what it is.
    ///
    /// # Errors
    /// When it is not there, or is not within the tree.
    pub fn handle(&self, path: &RelPath) -> io::Result<OwnedFd> {
        self.resolve(Some(path), OFlags::PATH | OFlags::NOFOLLOW)
    }

    /// Returns what the file system tells of `path`, not following it if it is a link.
    ///
    /// # Errors
    /// When it is not there, or is not within the tree.
    pub fn stat(&self, path: &RelPath) -> io::Result<Statx> {
        stat_fd(self.handle(path)?.as_fd())
    }

    /// Returns where the link at `path` points.
    ///
    /// # Errors
    /// When it is no link.
    pub fn read_link(&self, path: &RelPath) -> io::Result<Vec<u8>> {
        let handle = self.handle(path)?;
        Ok(readlinkat(&handle, c"", Vec::new())?.into_bytes())
    }

    /// Returns the names in a directory, `None` being the top, in no order.
    ///
    /// # Errors
    /// When it cannot be read to its end.
    pub fn names(&self, path: Option<&RelPath>) -> io::Result<Vec<Vec<u8>>> {
        names(&self.directory(path)?)
    }

    /// The kernel takes no more than [`STEP_BYTES`] of a path at a time: a longer one is gone in steps,
    /// each beneath the one before.
    fn resolve(&self, path: Option<&RelPath>, flags: OFlags) -> io::Result<OwnedFd> {
        let Some(path) = path else {
            return open_beneath(self.fd.as_fd(), b".", flags);
        };
        let mut rest = path.as_bytes();
        let mut at: Option<OwnedFd> = None;
        while rest.len() > STEP_BYTES {
            let (step, _) = rest.split_at(STEP_BYTES);
            // Names are shorter than a step, so that there is a slash in each.
            let slash = step.iter().rposition(|byte| *byte == b'/');
            let (step, more) = rest.split_at(slash.ok_or(Errno::NAMETOOLONG)?);
            let from = at.as_ref().map_or(self.fd.as_fd(), AsFd::as_fd);
            at = Some(open_beneath(from, step, OFlags::PATH | OFlags::DIRECTORY)?);
            rest = more.strip_prefix(b"/").unwrap_or(more);
        }
        let from = at.as_ref().map_or(self.fd.as_fd(), AsFd::as_fd);
        open_beneath(from, rest, flags)
    }
}

fn open_beneath(from: BorrowedFd<'_>, path: &[u8], flags: OFlags) -> io::Result<OwnedFd> {
    let resolve = ResolveFlags::BENEATH
        | ResolveFlags::NO_SYMLINKS
        | ResolveFlags::NO_MAGICLINKS
        | ResolveFlags::NO_XDEV;
    // O_PATH with O_NOFOLLOW returns a link itself, which NO_SYMLINKS allows in the last place.
    let flags = flags | OFlags::CLOEXEC;
    Ok(openat2(from, path, flags, Mode::empty(), resolve)?)
}

/// Opens what is called `name` in an open directory, without following it, if it is a link, and
/// without leaving the file system.
///
/// # Errors
/// When it is not there.
pub fn open_in(directory: BorrowedFd<'_>, name: &[u8], flags: OFlags) -> io::Result<OwnedFd> {
    open_beneath(directory, name, flags | OFlags::NOFOLLOW)
}

/// Returns what the file system tells of what is called `name` in an open directory, not following it.
///
/// # Errors
/// When it is not there.
pub fn stat_in(directory: BorrowedFd<'_>, name: &[u8]) -> io::Result<Statx> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
    Ok(statx(directory, name, flags, StatxFlags::BASIC_STATS)?)
}

/// Returns the extended attributes that are replicated of what is open.
///
/// # Errors
/// When they cannot be read, or are too many.
pub fn xattrs(fd: BorrowedFd<'_>) -> io::Result<Xattrs> {
    // By the path that leads to what is open: it may be open for nothing but that.
    let place = format!("/proc/self/fd/{}", fd.as_raw_fd());
    xattrs_by(
        |room| rustix::fs::listxattr(place.as_str(), room),
        |name, room| rustix::fs::getxattr(place.as_str(), name, room),
    )
}

/// Returns the extended attributes that are replicated of a file that is open for reading.
///
/// # Errors
/// When they cannot be read, or are too many.
pub fn xattrs_of_file(file: &File) -> io::Result<Xattrs> {
    xattrs_by(
        |room| rustix::fs::flistxattr(file, room),
        |name, room| rustix::fs::fgetxattr(file, name, room),
    )
}

fn xattrs_by(
    list: impl Fn(&mut [u8]) -> Result<usize, Errno>,
    get: impl Fn(&[u8], &mut [u8]) -> Result<usize, Errno>,
) -> io::Result<Xattrs> {
    let mut names: Vec<u8> = Vec::new();
    let mut capacity = 256;
    loop {
        names.resize(capacity, 0);
        match list(names.as_mut_slice()) {
            Ok(bytes) => {
                names.truncate(bytes);
                break;
            }
            Err(Errno::RANGE) if capacity < XATTRS_BYTES_MAX => capacity *= 4,
            // No such thing on this file system.
            Err(Errno::OPNOTSUPP) => return Ok(Xattrs::default()),
            Err(errno) => return Err(errno.into()),
        }
    }
    if names.is_empty() {
        return Ok(Xattrs::default());
    }
    let mut all = Vec::new();
    for name in names.split(|byte| *byte == 0) {
        if !super::entry::is_replicated(name) {
            continue;
        }
        let mut value = vec![0; 64 << 10];
        match get(name, value.as_mut_slice()) {
            Ok(bytes) => {
                value.truncate(bytes);
                value.shrink_to_fit();
                all.push((name.to_vec(), value));
            }
            Err(Errno::NODATA) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    let xattrs = Xattrs::new(all);
    if xattrs.bytes() > XATTRS_BYTES_MAX {
        return Err(io::Error::other("its extended attributes are too long"));
    }
    Ok(xattrs)
}

/// Returns the parts of an open file that are no holes, as offset and length, in order.
///
/// # Errors
/// When the file system cannot tell.
pub fn data_ranges(file: &File, size: u64) -> io::Result<Vec<(u64, u64)>> {
    let mut ranges = Vec::new();
    let mut at = 0;
    while at < size {
        let start = match seek(file, SeekFrom::Data(at)) {
            Ok(start) => start,
            // Nothing but a hole up to the end.
            Err(Errno::NXIO) => break,
            Err(errno) => return Err(errno.into()),
        };
        let end = seek(file, SeekFrom::Hole(start))?.min(size);
        if start >= end {
            break;
        }
        ranges.push((start, end - start));
        at = end;
    }
    Ok(ranges)
}

/// Returns the names in an open directory, in no order.
///
/// # Errors
/// When it cannot be read to its end.
pub fn names(directory: &OwnedFd) -> io::Result<Vec<Vec<u8>>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(directory)? {
        let name = entry?.file_name().to_bytes().to_vec();
        if name != b"." && name != b".." {
            names.push(name);
        }
    }
    Ok(names)
}

/// Returns what the file system tells of what is open.
///
/// # Errors
/// When it cannot tell.
pub fn stat_fd(fd: BorrowedFd<'_>) -> io::Result<Statx> {
    Ok(statx(
        fd,
        c"",
        AtFlags::EMPTY_PATH,
        StatxFlags::BASIC_STATS,
    )?)
}

fn place(found: &Statx) -> (u32, u32, u64) {
    (found.stx_dev_major, found.stx_dev_minor, found.stx_ino)
}

/// Returns what changes when a file does.
pub fn identity(found: &Statx) -> Identity {
    let mode = RawMode::from(found.stx_mode);
    let is_directory = FileType::from_raw_mode(mode) == FileType::Directory;
    Identity {
        inode: found.stx_ino,
        size: if is_directory { 0 } else { found.stx_size },
        mtime_ns: nanoseconds(&found.stx_mtime),
        ctime_ns: nanoseconds(&found.stx_ctime),
        mode: u32::from(found.stx_mode),
        uid: found.stx_uid,
        gid: found.stx_gid,
    }
}

impl Identity {
    /// Returns what it is, as far as it is of a kind that is replicated.
    pub fn file_type(&self) -> FileType {
        FileType::from_raw_mode(RawMode::from(self.mode))
    }

    /// Returns the entry of a path that looks like this and is of that kind.
    pub fn entry(&self, kind: Kind) -> Entry {
        let mode = match kind {
            // Linux shows 0777 for every link, other kernels something else.
            Kind::Symlink { .. } => 0,
            Kind::File { .. } | Kind::Directory => self.mode & 0o7777,
        };
        Entry {
            kind,
            mode,
            uid: self.uid,
            gid: self.gid,
            mtime_ns: self.mtime_ns,
            link: 0,
            xattrs: Xattrs::default(),
        }
    }
}

/// Saturates: a time that does not fit is the year 2262 or 1677 on both sides.
fn nanoseconds(time: &rustix::fs::StatxTimestamp) -> i64 {
    time.tv_sec
        .saturating_mul(1_000_000_000)
        .saturating_add(i64::from(time.tv_nsec))
}
