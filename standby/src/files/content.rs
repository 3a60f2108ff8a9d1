//! The bytes of a file on their way: hashed as they come, and kept with their holes.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::sync::mpsc;
use std::thread;

use rustix::fs::{FallocateFlags, FileType, fallocate};
use rustix::io::{Errno, ReadWriteFlags, preadv2, pwritev2};
use understudy_replication::files::{
    Digest, OUTBOARD_FROM, Outboard, OutboardBuilder, data_ranges, identity, stat_fd,
};

/// How much is read or written at once.
const STEP_BYTES: usize = 1 << 20;

/// Files from this size on pass through the page cache, and do not stay there.
pub(super) const PASSING_FROM: u64 = 16 << 20;

/// `RWF_DONTCACHE` of `linux/fs.h`.
const DONT_CACHE: ReadWriteFlags = ReadWriteFlags::from_bits_retain(0x80);

/// So many steps are read before they are written.
const STEPS_AHEAD: usize = 4;

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

/// Writes a part of a file of `size` bytes.
///
/// What is long goes to the disk at once and leaves the page cache: little is left to sync at its end,
/// and what others have there stays. Kernels before 6.14, and some file systems, do not know how; there
/// it is written like anything else.
pub(super) fn write_at(file: &File, size: u64, bytes: &[u8], offset: u64) -> io::Result<()> {
    let (mut rest, mut at) = (bytes, offset);
    while size >= PASSING_FROM && !rest.is_empty() {
        match pwritev2(file, &[io::IoSlice::new(rest)], at, DONT_CACHE) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => {
                rest = rest.get(count..).unwrap_or_default();
                at = at.saturating_add(wide(count));
            }
            Err(Errno::INTR) => {}
            Err(Errno::OPNOTSUPP) => break,
            Err(errno) => return Err(errno.into()),
        }
    }
    file.write_all_at(rest, at)
}

/// Reads a part of a file of which a file of `size` bytes is made, and fills the room. What is not in the
/// page cache does not stay there, as with [`write_at`].
pub(super) fn read_at(file: &File, size: u64, room: &mut [u8], offset: u64) -> io::Result<()> {
    let (mut rest, mut at) = (room, offset);
    while size >= PASSING_FROM && !rest.is_empty() {
        match preadv2(file, &mut [io::IoSliceMut::new(rest)], at, DONT_CACHE) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => {
                rest = rest.get_mut(count..).unwrap_or_default();
                at = at.saturating_add(wide(count));
            }
            Err(Errno::INTR) => {}
            Err(Errno::OPNOTSUPP) => break,
            Err(errno) => return Err(errno.into()),
        }
    }
    file.read_exact_at(rest, at)
}

/// Makes a file of `size` bytes of what `read` reads, and of holes around `ranges`, which are in order;
/// returns its digest. Of a long one, a part is written while the next are read and hashed.
pub(super) fn make(
    file: &File,
    size: u64,
    ranges: &[(u64, u64)],
    read: impl Fn(u64, &mut [u8]) -> io::Result<()>,
) -> io::Result<(Digest, Option<Outboard>)> {
    let mut hashing = Hashing::of_file(size);
    let mut step = |at: u64, room: &mut [u8]| -> io::Result<()> {
        read(at, room)?;
        hashing.zeros(at.saturating_sub(hashing.count()));
        hashing.update(room);
        Ok(())
    };
    if size < PASSING_FROM {
        let mut room = Vec::new();
        each_step(ranges, |at, count| {
            room.resize(count, 0);
            step(at, &mut room)?;
            file.write_all_at(&room, at)
        })?;
    } else {
        thread::scope(|scope| {
            let (steps, written) = mpsc::sync_channel::<(u64, Vec<u8>)>(STEPS_AHEAD);
            let (give_back, rooms) = mpsc::channel();
            let writer = scope.spawn(move || {
                written.into_iter().try_for_each(|(at, bytes)| {
                    write_at(file, size, &bytes, at)?;
                    // Who reads may be at the end, and needs no more room.
                    let _is_last = give_back.send(bytes).is_err();
                    Ok(())
                })
            });
            let read = each_step(ranges, |at, count| {
                let mut room: Vec<u8> = rooms.try_recv().unwrap_or_default();
                room.resize(count, 0);
                step(at, &mut room)?;
                // A writer that has ended says why.
                let sent = steps.send((at, room));
                sent.map_err(|_| io::ErrorKind::BrokenPipe.into())
            });
            drop(steps);
            let broken = |_| Err(io::Error::other("writing broke off"));
            writer.join().unwrap_or_else(broken).and(read)
        })?;
    }
    hashing.zeros(size.saturating_sub(hashing.count()));
    file.set_len(size)?;
    Ok(hashing.finish())
}

/// Cuts ranges where the steps of the file end: what passes through the page cache must not come back
/// for the rest of a page.
fn each_step(
    ranges: &[(u64, u64)],
    mut take: impl FnMut(u64, usize) -> io::Result<()>,
) -> io::Result<()> {
    let step = wide(STEP_BYTES);
    for (start, bytes) in ranges {
        let (mut at, end) = (*start, start.saturating_add(*bytes));
        while at < end {
            let stop = (at / step).saturating_add(1).saturating_mul(step).min(end);
            take(at, index(stop - at))?;
            at = stop;
        }
    }
    Ok(())
}

/// Copies the first `size` bytes of a file, with their holes, and returns the digest of what was copied;
/// `None` when it is no such file. Of a clone nothing is written.
///
/// It may be longer: what was appended to it by a batch that is done again is still there.
pub(super) fn copy(
    source: &File,
    target: &File,
    size: u64,
    is_cloned: bool,
) -> io::Result<Option<(Digest, Option<Outboard>)>> {
    let found = identity(&stat_fd(source.as_fd())?);
    if found.file_type() != FileType::RegularFile || found.size < size {
        return Ok(None);
    }
    if is_cloned {
        target.set_len(size)?;
        let mut hashing = Hashing::of_file(size);
        hash_prefix(target, size, &mut hashing)?;
        return Ok(Some(hashing.finish()));
    }
    let ranges = data_ranges(source, size).unwrap_or_else(|_| vec![(0, size)]);
    match make(target, size, &ranges, |at, room| {
        read_at(source, size, room, at)
    }) {
        Ok(made) => Ok(Some(made)),
        // It has become shorter.
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
        Err(error) => Err(error),
    }
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
