//! What a path has beside its content: owner, mode, extended attributes, times.
//!
//! Set in this order: changing the owner takes the setuid bit and the capabilities away, the mode is
//! part of an ACL, and nothing of it is to be seen in the time.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use rustix::fs::{
    AtFlags, CWD, Gid, Mode, Timespec, Timestamps, UTIME_OMIT, Uid, XattrFlags, chmodat, chownat,
    removexattr, setxattr, utimensat,
};
use rustix::io::Errno;
use understudy_replication::files::{
    Entry, Identity, Kind, Xattrs, identity, mtime_timespec, stat_fd, xattrs, xattrs_of_file,
};

/// Gives what is open, for whatever it is open, all that its entry says.
pub(super) fn dress(file: BorrowedFd<'_>, entry: &Entry) -> io::Result<()> {
    dress_but_times(file, entry)?;
    set_mtime(file, entry.mtime_ns)
}

/// Like [`dress`]; the times are set when what it holds is in place.
pub(super) fn dress_but_times(file: BorrowedFd<'_>, entry: &Entry) -> io::Result<()> {
    change_owner(file, entry)?;
    change_mode(file, entry)?;
    let found = match xattrs(file) {
        Ok(found) => found,
        Err(error) if entry.xattrs.is_empty() && is_refused(&error) => return Ok(()),
        Err(error) => return Err(error),
    };
    change_xattrs(file, entry, found)
}

fn change_xattrs(file: BorrowedFd<'_>, entry: &Entry, found: Xattrs) -> io::Result<()> {
    if found == entry.xattrs {
        return Ok(());
    }
    let place = magic(file);
    for (name, _) in found.iter() {
        if entry.xattrs.get(name).is_none() {
            tolerate(entry, name, removexattr(place.as_str(), name))?;
        }
    }
    set_xattrs(file, entry, |name, value| found.get(name) != Some(value))
}

/// Like [`dress`], for a file that is open for writing; what is right already is left.
pub(super) fn dress_open(file: &File, entry: &Entry) -> io::Result<()> {
    let mut found = stat_fd(file.as_fd())?;
    if (found.stx_uid, found.stx_gid) != (entry.uid, entry.gid) {
        change_owner(file.as_fd(), entry)?;
        found = stat_fd(file.as_fd())?;
    }
    if u32::from(found.stx_mode) & 0o7777 != entry.mode {
        rustix::fs::fchmod(file, Mode::from_raw_mode(entry.mode))?;
    }
    change_xattrs(file.as_fd(), entry, xattrs_of_file(file)?)?;
    Ok(rustix::fs::futimens(file, &times(entry.mtime_ns))?)
}

/// Gives a file that was just made by this process in a directory without an ACL, and is open for
/// writing, all that its entry says.
pub(super) fn dress_fresh(file: BorrowedFd<'_>, entry: &Entry, ours: (u32, u32)) -> io::Result<()> {
    if (entry.uid, entry.gid) != ours {
        change_owner(file, entry)?;
    }
    rustix::fs::fchmod(file, Mode::from_raw_mode(entry.mode))?;
    set_xattrs(file, entry, |_, _| true)?;
    Ok(rustix::fs::futimens(file, &times(entry.mtime_ns))?)
}

/// Like [`dress_fresh`], for a file that was made with its permissions; returns how it looks then. The
/// process's mask may have taken some of them, and those that are not permissions are set here.
pub(super) fn dress_made(
    file: BorrowedFd<'_>,
    entry: &Entry,
    ours: (u32, u32),
) -> io::Result<Identity> {
    if (entry.uid, entry.gid) != ours {
        change_owner(file, entry)?;
    }
    set_xattrs(file, entry, |_, _| true)?;
    rustix::fs::futimens(file, &times(entry.mtime_ns))?;
    let found = identity(&stat_fd(file)?);
    if found.mode & 0o7777 == entry.mode {
        return Ok(found);
    }
    dress_fresh(file, entry, ours)?;
    Ok(identity(&stat_fd(file)?))
}

/// Sets when what is open was changed.
pub(super) fn set_mtime(file: BorrowedFd<'_>, mtime_ns: i64) -> io::Result<()> {
    let place = magic(file);
    Ok(utimensat(CWD, place, &times(mtime_ns), AtFlags::empty())?)
}

fn set_xattrs(
    file: BorrowedFd<'_>,
    entry: &Entry,
    is_missing: impl Fn(&[u8], &[u8]) -> bool,
) -> io::Result<()> {
    if entry.xattrs.is_empty() {
        return Ok(());
    }
    let place = magic(file);
    for (name, value) in entry.xattrs.iter() {
        if is_missing(name, value) {
            let set = setxattr(place.as_str(), name, value, XattrFlags::empty());
            tolerate(entry, name, set)?;
        }
    }
    Ok(())
}

/// What a process without privileges may not set, and what a link cannot have, is left out; the
/// manifest remembers it.
fn tolerate(entry: &Entry, name: &[u8], done: Result<(), Errno>) -> io::Result<()> {
    let is_link = matches!(entry.kind, Kind::Symlink { .. });
    let is_privileged = name.starts_with(b"trusted.") || name.starts_with(b"security.");
    match done {
        Ok(()) | Err(Errno::NODATA) => Ok(()),
        Err(Errno::PERM | Errno::OPNOTSUPP) if is_link => Ok(()),
        Err(Errno::PERM) if is_privileged && !rustix::process::geteuid().is_root() => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

fn is_refused(error: &io::Error) -> bool {
    [Errno::PERM, Errno::ACCESS, Errno::OPNOTSUPP]
        .map(Errno::raw_os_error)
        .iter()
        .any(|errno| error.raw_os_error() == Some(*errno))
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
pub(super) fn magic(file: BorrowedFd<'_>) -> String {
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
