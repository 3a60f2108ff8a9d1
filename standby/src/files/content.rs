//! The bytes of a file on their way: hashed as they come, and kept with their holes.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

use rustix::fs::{FallocateFlags, FileType, fallocate};
use rustix::io::Errno;
use understudy_replication::files::{
    Digest, OUTBOARD_FROM, Outboard, OutboardBuilder, data_ranges, identity, stat_fd,
};

/// How much is read or written at once.
const STEP_BYTES: usize = 1 << 20;

const ZEROS: &[u8] = &[0; 64 << 10];

fn index(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

fn wide(number: usize) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}

/// Hashes what comes; for a large file, in parts.
pub(super) enum Hashing {
    Small(Box<blake3::Hasher>),
    Large(OutboardBuilder),
}

impl Hashing {
    /// Begins for a file of `size` bytes.
    pub(super) fn of_file(size: u64) -> Self {
        if size < OUTBOARD_FROM {
            Self::plain()
        } else {
            Self::Large(OutboardBuilder::new(size))
        }
    }

    /// Begins for what needs no outboard.
    pub(super) fn plain() -> Self {
        Self::Small(Box::default())
    }

    pub(super) fn count(&self) -> u64 {
        match self {
            Self::Small(hasher) => hasher.count(),
            Self::Large(builder) => builder.count(),
        }
    }

    pub(super) fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Small(hasher) => {
                hasher.update(bytes);
            }
            Self::Large(builder) => builder.update(bytes),
        }
    }

    /// Takes so many zeros.
    pub(super) fn zeros(&mut self, mut count: u64) {
        while count > 0 {
            let some = count.min(wide(ZEROS.len()));
            self.update(ZEROS.get(..index(some)).unwrap_or_default());
            count -= some;
        }
    }

    pub(super) fn finish(self) -> (Digest, Option<Outboard>) {
        match self {
            Self::Small(hasher) => (hasher.finalize().into(), None),
            Self::Large(builder) => {
                let (outboard, digest) = builder.finish();
                (digest, Some(outboard))
            }
        }
    }
}

/// Passes `bytes` bytes of a file on, from an offset on.
pub(super) fn read_range(
    file: &File,
    (offset, bytes): (u64, u64),
    take: &mut dyn FnMut(u64, &[u8]) -> io::Result<()>,
) -> io::Result<()> {
    let mut buffer = vec![0; index(bytes.min(wide(STEP_BYTES)))];
    let mut done = 0;
    while done < bytes {
        let step = (bytes - done).min(wide(STEP_BYTES));
        let room = buffer.get_mut(..index(step)).unwrap_or_default();
        file.read_exact_at(room, offset.saturating_add(done))?;
        take(done, room)?;
        done += step;
    }
    Ok(())
}

/// Hashes the first `size` bytes of a file into `hashing`, as what was staged of it before.
pub(super) fn hash_prefix(file: &File, size: u64, hashing: &mut Hashing) -> io::Result<()> {
    read_range(file, (0, size), &mut |_, bytes| {
        hashing.update(bytes);
        Ok(())
    })
}

/// Copies a file of `size` bytes, with its holes, and returns the digest of what was copied; `None`
/// when it is no such file.
pub(super) fn copy(
    source: &File,
    target: &File,
    size: u64,
    is_cloned: bool,
) -> io::Result<Option<(Digest, Option<Outboard>)>> {
    let found = identity(&stat_fd(source.as_fd())?);
    if found.file_type() != FileType::RegularFile || found.size != size {
        return Ok(None);
    }
    let mut hashing = Hashing::of_file(size);
    let from = if is_cloned { target } else { source };
    let ranges = data_ranges(from, size).unwrap_or_else(|_| vec![(0, size)]);
    for (offset, bytes) in ranges {
        hashing.zeros(offset.saturating_sub(hashing.count()));
        let read = read_range(from, (offset, bytes), &mut |done, bytes| {
            hashing.update(bytes);
            if is_cloned {
                return Ok(());
            }
            target.write_all_at(bytes, offset.saturating_add(done))
        });
        match read {
            // It has become shorter.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            read => read?,
        }
    }
    hashing.zeros(size.saturating_sub(hashing.count()));
    target.set_len(size)?;
    Ok(Some(hashing.finish()))
}

/// Turns a part of a file into a hole, or into zeros where there are no holes.
pub(super) fn punch(file: &File, offset: u64, bytes: u64) -> io::Result<()> {
    if bytes == 0 {
        return Ok(());
    }
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    match fallocate(file, flags, offset, bytes) {
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => {
            let mut done = 0;
            while done < bytes {
                let some = (bytes - done).min(wide(ZEROS.len()));
                let zeros = ZEROS.get(..index(some)).unwrap_or_default();
                file.write_all_at(zeros, offset.saturating_add(done))?;
                done += some;
            }
            Ok(())
        }
        punched => Ok(punched?),
    }
}
