//! Making a file's new version from the one that is there and what has changed.
//!
//! A new file is built beside the old one, checked, made durable and renamed over it. A large file of
//! which little changes is cloned and changed, where the file system can; elsewhere it is changed in
//! place, and a file that only becomes longer is made longer in place, once it is known that the right
//! file comes out. What is written is in the log by then, so that a crash in the middle only means that
//! it is written again.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;

use rustix::fs::{FileType, OFlags};
use understudy_replication::files::{
    Blocks, Digest, Entry, Identity, Known, OUTBOARD_FROM, Outboard, Patch, Piece, RelPath,
    data_ranges, identity, open_in, stat_fd,
};

use super::attributes::{dress, dress_open};
use super::content::{Hashing, hash_prefix, make, punch, read_at, read_range};
use super::tree::{Guarded, Tree, verify};

/// Files from this size on are changed in place.
const IN_PLACE_FROM: u64 = 16 << 20;

/// Unless more than this share of it changes.
const IN_PLACE_SHARE: u64 = 4;

/// What came along with a patch.
pub(super) enum Literal {
    Memory(Vec<u8>),
    Staged(File),
}

impl Literal {
    fn read_at(&self, offset: u64, room: &mut [u8]) -> io::Result<()> {
        match self {
            Self::Memory(bytes) => {
                let from = usize::try_from(offset).unwrap_or(usize::MAX);
                let some = bytes.get(from..).and_then(|rest| rest.get(..room.len()));
                room.copy_from_slice(some.ok_or(io::ErrorKind::UnexpectedEof)?);
                Ok(())
            }
            Self::Staged(file) => file.read_exact_at(room, offset),
        }
    }

    fn read_range(
        &self,
        (offset, bytes): (u64, u64),
        take: &mut dyn FnMut(u64, &[u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        match self {
            Self::Memory(all) => {
                let from = usize::try_from(offset).unwrap_or(usize::MAX);
                let count = usize::try_from(bytes).unwrap_or(usize::MAX);
                let some = all.get(from..).and_then(|rest| rest.get(..count));
                take(0, some.ok_or(io::ErrorKind::UnexpectedEof)?)
            }
            Self::Staged(file) => read_range(file, (offset, bytes), take),
        }
    }
}

/// Returns whether a patch may lead to a change in place: then nothing else is applied with it, because
/// what is applied again after a crash has to begin with just this file.
pub(super) fn may_be_in_place(patch: &Patch, size: u64) -> bool {
    size >= IN_PLACE_FROM && patch.literal_bytes() <= size / IN_PLACE_SHARE && patch.is_in_place()
}

/// Returns whether a patch may lead to a file being made longer in place. Not where it shares its content
/// with other names, which may be to keep theirs; nor after a failed sync, when what can be read of the
/// old version need not be on the disk.
pub(super) fn may_be_lengthened(patch: &Patch, entry: &Entry, is_trusted: bool) -> bool {
    patch.is_append() && entry.link == 0 && is_trusted
}

/// A patch that is to be applied.
pub(super) struct Patching<'a> {
    pub(super) tree: &'a Tree,
    pub(super) blocks: &'a Blocks,
    pub(super) patch: &'a Patch,
    pub(super) literal: Literal,
    pub(super) path: &'a RelPath,
    pub(super) entry: &'a Entry,
    /// What the manifest said of the path.
    pub(super) was: Option<&'a Known>,
    /// It may have been begun before.
    pub(super) is_redo: bool,
    /// What can be read is what is on the disk.
    pub(super) is_trusted: bool,
}

impl Patching<'_> {
    /// Puts the new version into its place; `None` when it cannot be made from what is there.
    pub(super) fn place(
        &self,
        parent: BorrowedFd<'_>,
        guarded: &Guarded,
    ) -> io::Result<Option<Identity>> {
        let Some((size, hash)) = self.entry.content() else {
            return Ok(None);
        };
        let may_be_in_place = may_be_in_place(self.patch, size);
        if !may_be_in_place
            && may_be_lengthened(self.patch, self.entry, self.is_trusted)
            && let Some(longer) = self.lengthen(parent, (size, hash))?
        {
            return Ok(Some(longer));
        }
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
        let base = match open_in(parent, self.path.name(), flags) {
            Ok(base) => File::from(base),
            Err(error) if super::tree::is_absent(&error) => return Ok(None),
            Err(error) => return Err(error),
        };
        let is_own = self.entry.link != 0 || stat_fd(base.as_fd())?.stx_nlink == 1;
        if self.is_redo && self.is_trusted && is_own && verify(&base, size, hash)?.is_some() {
            // Done by the attempt before.
            dress(base.as_fd(), self.entry)?;
            return Ok(Some(identity(&stat_fd(base.as_fd())?)));
        }
        let found = identity(&stat_fd(base.as_fd())?);
        if found.file_type() != FileType::RegularFile {
            return Ok(None);
        }
        if self.is_known(&found)
            && may_be_in_place
            && let Some(after) = self.outboard_after(&base, (size, hash))?
        {
            return self.change(&base, parent, (size, hash), &after, guarded);
        }
        // It may be longer than it was: made so, in whole or in part, by an attempt before.
        if found.size < self.patch.base_size {
            return Ok(None);
        }
        self.build(&base, parent, (size, hash), guarded)
    }

    /// Makes the file that is there longer; `None`, with nothing done, when it is not the right one.
    ///
    /// Invariant: the first `base_size` bytes are the old version, before, while and after this is done.
    /// They are never written, so that wherever the power fails the file is the old version and, behind
    /// it, anything. What belongs behind it is durable in the log until this is committed, and is then
    /// written again, from the end of the old version on. That does not depend on what else the group
    /// has done to the file: what a later batch of it has appended is cut off here and is appended again
    /// when its turn comes, and a file that was put here instead has another beginning.
    fn lengthen(
        &self,
        parent: BorrowedFd<'_>,
        (size, hash): (u64, Digest),
    ) -> io::Result<Option<Identity>> {
        let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::NOCTTY;
        // What cannot be written to, as a program that runs, is replaced.
        let Ok(file) = open_in(parent, self.path.name(), flags).map(File::from) else {
            return Ok(None);
        };
        let stat = stat_fd(file.as_fd())?;
        let found = identity(&stat);
        let base_size = self.patch.base_size;
        // Another name of it is not to change.
        let is_own = found.file_type() == FileType::RegularFile && stat.stx_nlink == 1;
        if !is_own || found.size < base_size {
            return Ok(None);
        }
        let outboard = match self.hash_longer(&file, &found, size) {
            Ok((root, outboard)) if root == hash => outboard,
            Ok(_) => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            Err(error) => return Err(error),
        };
        let write = || {
            if found.size > base_size {
                file.set_len(base_size)?;
            }
            self.write_end(&file, size)?;
            dress_open(&file, self.entry)
        };
        if let Err(error) = write() {
            // Where this cannot be done either, recovery or a fetched content sets it right.
            let _is_left = file.set_len(base_size).is_err();
            return Err(error);
        }
        if let Some(outboard) = outboard {
            self.blocks.put(hash, &outboard);
        }
        Ok(Some(identity(&stat_fd(file.as_fd())?)))
    }

    /// Returns the digest that the longer file will have, and its outboard if it needs one.
    fn hash_longer(
        &self,
        file: &File,
        found: &Identity,
        size: u64,
    ) -> io::Result<(Digest, Option<Outboard>)> {
        // Of a large file that is known, its end is enough.
        if self.patch.base_size >= OUTBOARD_FROM
            && !self.is_redo
            && self.is_known(found)
            && let Some(former) = self.blocks.get(self.patch.base_size, self.patch.base)
            && let Some(after) = self.outboard_of(&former, file, size)?
        {
            return Ok((after.root(), Some(after)));
        }
        let mut hashing = Hashing::of_file(size);
        hash_prefix(file, self.patch.base_size, &mut hashing)?;
        self.each_behind(&mut |_, piece| {
            match piece {
                Behind::Bytes(bytes) => hashing.update(bytes),
                Behind::Zeros(count) => hashing.zeros(count),
            }
            Ok(())
        })?;
        Ok(hashing.finish())
    }

    fn write_end(&self, file: &File, size: u64) -> io::Result<()> {
        let mut end = self.patch.base_size;
        self.each_behind(&mut |at, piece| {
            if let Behind::Bytes(bytes) = piece {
                file.write_all_at(bytes, at)?;
                end = at.saturating_add(u64::try_from(bytes.len()).unwrap_or(u64::MAX));
            }
            Ok(())
        })?;
        if end < size {
            // It ends with a hole.
            file.set_len(size)?;
        }
        Ok(())
    }

    /// Passes on what a longer file has behind the old version.
    fn each_behind(
        &self,
        take: &mut dyn FnMut(u64, Behind<'_>) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut taken = 0_u64;
        for (offset, piece) in self.patch.placed() {
            match piece {
                Piece::Keep { .. } => {}
                Piece::Zero(bytes) => take(offset, Behind::Zeros(bytes))?,
                Piece::Literal(bytes) => {
                    self.literal
                        .read_range((taken, bytes), &mut |done, bytes| {
                            take(offset.saturating_add(done), Behind::Bytes(bytes))
                        })?;
                    taken = taken.saturating_add(bytes);
                }
            }
        }
        Ok(())
    }

    /// Makes the new version in a staged file, of what is there; returns whether it is right.
    pub(super) fn build_beside(&self, staged: &File, of: (u64, Digest)) -> io::Result<bool> {
        let base = match self.tree.root().file(self.path) {
            Ok(base) => base,
            // Nothing is kept of it, so that nothing has to be there.
            Err(error) if super::tree::is_absent(&error) && self.patch.base_size == 0 => {
                return self.build_into(staged, staged, of);
            }
            Err(error) if super::tree::is_absent(&error) => return Ok(false),
            Err(error) => return Err(error),
        };
        if identity(&stat_fd(base.as_fd())?).file_type() != FileType::RegularFile {
            return Ok(false);
        }
        self.build_into(staged, &base, of)
    }

    /// Returns whether what is there is what the patch was made for. After a crash it may be that in part,
    /// and is still the same file.
    fn is_known(&self, found: &Identity) -> bool {
        self.was.is_some_and(|was| {
            was.entry.content() == Some((self.patch.base_size, self.patch.base))
                && was.entry.link == 0
                && self.entry.link == 0
                && was.local.seen().is_some_and(|seen| {
                    seen == *found || (self.is_redo && seen.inode == found.inode)
                })
        })
    }

    /// Returns the outboard of what the file would be; `None` unless it would be right.
    fn outboard_after(
        &self,
        base: &File,
        (size, hash): (u64, Digest),
    ) -> io::Result<Option<Outboard>> {
        if self.is_redo {
            // What was there before may be anything by now: all of it is looked at.
            let overlay = Overlay::new(self.patch, base, &self.literal);
            return overlay.outboard(size, hash);
        }
        let Some(former) = self.blocks.get(self.patch.base_size, self.patch.base) else {
            return Ok(None);
        };
        match self.outboard_of(&former, base, size) {
            Ok(after) => Ok(after.filter(|after| after.root() == hash)),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Returns the outboard of what a file with the outboard `former` would be; only what changes is read.
    fn outboard_of(
        &self,
        former: &Outboard,
        base: &File,
        size: u64,
    ) -> io::Result<Option<Outboard>> {
        let overlay = Overlay::new(self.patch, base, &self.literal);
        let changed = self
            .patch
            .placed()
            .filter_map(|(offset, piece)| match piece {
                Piece::Literal(bytes) | Piece::Zero(bytes) => Some((offset, bytes)),
                Piece::Keep { .. } => None,
            });
        former.after(size, changed, |offset, room| overlay.read(offset, room))
    }

    fn change(
        &self,
        base: &File,
        parent: BorrowedFd<'_>,
        (size, hash): (u64, Digest),
        after: &Outboard,
        guarded: &Guarded,
    ) -> io::Result<Option<Identity>> {
        const STAGED: &str = "clone";
        let staged = self.tree.stage(STAGED)?;
        if self.tree.clone_file(&staged, base) {
            self.write(&staged, size)?;
            staged.sync_data()?;
            self.blocks.put(hash, after);
            let file = (STAGED, &staged);
            let placed = self
                .tree
                .place_file(file, parent, self.path, self.entry, guarded)?;
            return Ok(Some(placed));
        }
        self.tree.unstage(STAGED);
        let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::NOCTTY;
        let file = File::from(open_in(parent, self.path.name(), flags)?);
        if identity(&stat_fd(file.as_fd())?).inode != identity(&stat_fd(base.as_fd())?).inode {
            return Ok(None);
        }
        self.write(&file, size)?;
        dress(file.as_fd(), self.entry)?;
        self.blocks.put(hash, after);
        Ok(Some(identity(&stat_fd(file.as_fd())?)))
    }

    /// Writes what changes over a file that holds the base.
    fn write(&self, file: &File, size: u64) -> io::Result<()> {
        let mut taken = 0_u64;
        for (offset, piece) in self.patch.placed() {
            match piece {
                Piece::Keep { .. } => {}
                Piece::Literal(bytes) => {
                    self.literal
                        .read_range((taken, bytes), &mut |done, bytes| {
                            file.write_all_at(bytes, offset.saturating_add(done))
                        })?;
                    taken = taken.saturating_add(bytes);
                }
                Piece::Zero(bytes) => punch(file, offset, bytes)?,
            }
        }
        file.set_len(size)
    }

    /// Makes the new version beside the old one.
    fn build(
        &self,
        base: &File,
        parent: BorrowedFd<'_>,
        (size, hash): (u64, Digest),
        guarded: &Guarded,
    ) -> io::Result<Option<Identity>> {
        const STAGED: &str = "patch";
        let staged = self.tree.stage(STAGED)?;
        if !self.build_into(&staged, base, (size, hash))? {
            self.tree.unstage(STAGED);
            return Ok(None);
        }
        // The log has the changes and not the whole: the old version goes only when the new one is safe.
        staged.sync_data()?;
        let file = (STAGED, &staged);
        let placed = self
            .tree
            .place_file(file, parent, self.path, self.entry, guarded)?;
        Ok(Some(placed))
    }

    /// Makes the new version in a staged file; returns whether it is right.
    pub(super) fn build_into(
        &self,
        staged: &File,
        base: &File,
        (size, hash): (u64, Digest),
    ) -> io::Result<bool> {
        let held = identity(&stat_fd(base.as_fd())?).size;
        if held < self.patch.base_size {
            return Ok(false);
        }
        // What are holes in the base are holes again.
        let data = data_ranges(base, held).unwrap_or_else(|_| vec![(0, held)]);
        let overlay = Overlay {
            is_passing: true,
            ..Overlay::new(self.patch, base, &self.literal)
        };
        let made = make(staged, size, &self.written(&data), |at, room| {
            overlay.read(at, room)
        });
        let (found, outboard) = match made {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(false),
            made => made?,
        };
        if found != hash {
            return Ok(false);
        }
        if let Some(outboard) = outboard {
            self.blocks.put(hash, &outboard);
        }
        Ok(true)
    }

    /// Returns the parts of the new version that are no holes, in order.
    fn written(&self, data: &[(u64, u64)]) -> Vec<(u64, u64)> {
        let mut ranges: Vec<(u64, u64)> = Vec::new();
        let mut push = |at: u64, bytes: u64| match ranges.last_mut() {
            Some((start, length)) if start.saturating_add(*length) == at => {
                *length = length.saturating_add(bytes);
            }
            Some(_) | None => ranges.push((at, bytes)),
        };
        for (at, piece) in self.patch.placed() {
            match piece {
                Piece::Keep { offset, bytes } => {
                    for (start, length) in within(data, (offset, bytes)) {
                        push(at.saturating_add(start - offset), length);
                    }
                }
                Piece::Literal(bytes) => push(at, bytes),
                Piece::Zero(_) => {}
            }
        }
        ranges
    }
}

/// A part of what is behind the old version.
enum Behind<'a> {
    Bytes(&'a [u8]),
    Zeros(u64),
}

/// Returns the parts of `data`, which is in order, that lie between an offset and as many bytes further on.
fn within(data: &[(u64, u64)], (offset, bytes): (u64, u64)) -> impl Iterator<Item = (u64, u64)> {
    let end = offset.saturating_add(bytes);
    let first = data.partition_point(|(start, length)| start.saturating_add(*length) <= offset);
    data.iter()
        .skip(first)
        .take_while(move |(start, _)| *start < end)
        .map(move |(start, length)| {
            let stop = start.saturating_add(*length).min(end);
            let start = (*start).max(offset);
            (start, stop.saturating_sub(start))
        })
}

/// The new version, before it is there.
struct Overlay<'a> {
    /// How long it is.
    size: u64,
    base: &'a File,
    /// All of it is read, and once.
    is_passing: bool,
    literal: &'a Literal,
    /// Where each piece begins, and where in what came along its bytes are.
    pieces: Vec<(u64, Piece, u64)>,
}

impl<'a> Overlay<'a> {
    fn new(patch: &Patch, base: &'a File, literal: &'a Literal) -> Self {
        let mut taken = 0_u64;
        let pieces = patch.placed().map(|(offset, piece)| {
            let from = taken;
            if let Piece::Literal(bytes) = piece {
                taken = taken.saturating_add(bytes);
            }
            (offset, piece, from)
        });
        Self {
            pieces: pieces.collect(),
            size: patch.pieces.iter().map(Piece::bytes).sum(),
            base,
            is_passing: false,
            literal,
        }
    }

    /// Returns the outboard of all of it, if it has this hash.
    fn outboard(&self, size: u64, hash: Digest) -> io::Result<Option<Outboard>> {
        let mut hashing = Hashing::of_file(size);
        let mut room = vec![0; 1 << 20];
        while hashing.count() < size {
            let left = usize::try_from(size - hashing.count()).unwrap_or(usize::MAX);
            let count = room.len().min(left);
            let some = room.get_mut(..count).unwrap_or_default();
            match self.read(hashing.count(), some) {
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
                read => read?,
            }
            hashing.update(some);
        }
        let (found, outboard) = hashing.finish();
        Ok(outboard.filter(|_| found == hash))
    }

    fn read(&self, offset: u64, room: &mut [u8]) -> io::Result<()> {
        let first = self
            .pieces
            .partition_point(|(at, piece, _)| at.saturating_add(piece.bytes()) <= offset);
        let mut rest = room;
        let mut at = offset;
        for (start, piece, from) in self.pieces.iter().skip(first) {
            if rest.is_empty() {
                break;
            }
            let within = at.saturating_sub(*start);
            let left = piece.bytes().saturating_sub(within);
            let count = usize::try_from(left).unwrap_or(usize::MAX).min(rest.len());
            let (some, more) = rest.split_at_mut(count);
            match piece {
                Piece::Keep { offset, .. } => {
                    let at = offset.saturating_add(within);
                    if self.is_passing {
                        read_at(self.base, self.size, some, at)?;
                    } else {
                        self.base.read_exact_at(some, at)?;
                    }
                }
                Piece::Literal(_) => self.literal.read_at(from.saturating_add(within), some)?,
                Piece::Zero(_) => some.fill(0),
            }
            at = at.saturating_add(u64::try_from(count).unwrap_or(u64::MAX));
            rest = more;
        }
        if rest.is_empty() {
            Ok(())
        } else {
            Err(io::ErrorKind::UnexpectedEof.into())
        }
    }
}
