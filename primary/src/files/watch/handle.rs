//! Opening a directory or file by its handle, which names it wherever it is by now.

use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// The kernel's bound for what a handle holds after its head.
const DATA_BYTES_MAX: usize = 128;

const FILEID_INO32_GEN: i32 = 1;
const FILEID_INO64_GEN: i32 = 0x81;
const FILEID_BTRFS: i32 = 0x4d;

/// A `struct file_handle` with room for the longest.
#[repr(C)]
struct Handle {
    bytes: u32,
    kind: i32,
    data: [u8; DATA_BYTES_MAX],
}

/// Opens the directory that `handle`, a whole `struct file_handle`, names on the file system of `on`, as a
/// place and not for reading. Needs `CAP_DAC_READ_SEARCH`.
pub(super) fn open(on: BorrowedFd<'_>, handle: &[u8]) -> io::Result<OwnedFd> {
    open_as(on, handle, libc::O_DIRECTORY)
}

/// Opens whatever a handle names, likewise.
pub(super) fn open_any(on: BorrowedFd<'_>, handle: &[u8]) -> io::Result<OwnedFd> {
    open_as(on, handle, 0)
}

fn open_as(on: BorrowedFd<'_>, handle: &[u8], kind: libc::c_int) -> io::Result<OwnedFd> {
    let mut copy = copy_of(handle).ok_or(io::ErrorKind::InvalidInput)?;
    let flags = libc::O_PATH | libc::O_CLOEXEC | kind;
    #[expect(
        unsafe_code,
        reason = "neither rustix nor nix has this call, and a crate that does is larger than this"
    )]
    // SAFETY: the pointer is to a live value of our own that begins as `struct file_handle` does, is
    // aligned as that is, and has as many bytes after its head as the head says (see `copy_of`). The
    // kernel only reads it. The descriptor is new and nobody else's.
    let opened = unsafe {
        let fd = libc::open_by_handle_at(on.as_raw_fd(), (&raw mut copy).cast(), flags);
        (fd >= 0).then(|| OwnedFd::from_raw_fd(fd))
    };
    opened.ok_or_else(io::Error::last_os_error)
}

/// Returns whether handles may be opened at all.
pub(super) fn is_permitted(on: BorrowedFd<'_>) -> io::Result<()> {
    // A handle of nothing. Who may not open any is told so before it is looked up.
    let mut nothing = [0; size_of::<u32>() + size_of::<i32>() + 8];
    if let Some(length) = nothing.first_chunk_mut() {
        *length = 8_u32.to_ne_bytes();
    }
    match open(on, &nothing) {
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::PermissionDenied | io::ErrorKind::Unsupported
            ) =>
        {
            Err(error)
        }
        Ok(_) | Err(_) => Ok(()),
    }
}

/// Returns the number of the inode that a handle names, where that can be told from the handle: on ext4
/// (which has 32 bits for it, and a generation), XFS and btrfs. See `fid_type` in linux/exportfs.h.
pub(super) fn inode_of(handle: &[u8]) -> Option<u64> {
    let copy = copy_of(handle)?;
    let (first, _) = copy.data.split_first_chunk::<8>()?;
    let whole = u64::from_ne_bytes(*first);
    match (copy.kind, copy.bytes) {
        (FILEID_INO32_GEN, 8) => {
            let (first, _) = copy.data.split_first_chunk::<4>()?;
            Some(u64::from(u32::from_ne_bytes(*first)))
        }
        (FILEID_INO64_GEN, 12) | (FILEID_BTRFS, 20) => Some(whole),
        (_, _) => None,
    }
}

fn copy_of(handle: &[u8]) -> Option<Handle> {
    let (bytes, rest) = handle.split_first_chunk()?;
    let (kind, rest) = rest.split_first_chunk()?;
    let bytes = u32::from_ne_bytes(*bytes);
    let mut data = [0; DATA_BYTES_MAX];
    data.get_mut(..rest.len())?.copy_from_slice(rest);
    (usize::try_from(bytes) == Ok(rest.len())).then_some(Handle {
        bytes,
        kind: i32::from_ne_bytes(*kind),
        data,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handle_whose_length_is_not_what_it_says_is_refused() {
        let handle = |says: u32, has: usize| {
            let mut handle = says.to_ne_bytes().to_vec();
            handle.extend([0; 4]);
            handle.extend(vec![1; has]);
            copy_of(&handle).map(|copy| copy.bytes)
        };
        assert_eq!(handle(8, 8), Some(8));
        assert_eq!(handle(128, 128), Some(128));
        for (says, has) in [(8, 7), (7, 8), (129, 129), (u32::MAX, 8)] {
            assert_eq!(handle(says, has), None, "{says} {has}");
        }
        assert_eq!(copy_of(&[0; 7]).map(|copy| copy.bytes), None);
    }
}
