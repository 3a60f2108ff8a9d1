//! Reading a file: its hash, and what of it has to be shipped.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

use rustix::fs::{FileType, Statx};
use understudy_replication::files::{
    Blocks, Chunks, Content, Digest, Identity, Local, OUTBOARD_FROM, Outboard, Patch, Piece,
    RelPath, Xattrs, data_ranges, identity, punch, stat_fd, xattrs_of_file,
};

/// A file that has only grown is recognised from this size on: what is shorter is shipped whole.
const GROWN_FROM: u64 = 1 << 10;

/// A patch is made if it saves at least this share of the file.
const SAVED_SHARE: u64 = 10;

/// If more than this share of a file would come along, its content is looked for in other places.
const SHIFTED_SHARE: u64 = 4;

/// What was there, as far as it is known.
pub(super) struct Former<'a> {
    /// The size and hash of what the copies hold at this path.
    pub(super) content: Option<(u64, Digest)>,
    pub(super) blocks: &'a Blocks,
    /// Finds a file that holds something already.
    pub(super) elsewhere: &'a dyn Fn(u64, Digest) -> Option<RelPath>,
}

/// What a file holds.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) found: Identity,
    pub(super) hash: Digest,
    pub(super) content: Content,
    pub(super) xattrs: Xattrs,
    /// How many names it has.
    pub(super) names: u32,
    /// It has become longer since: this is what it held before, if it was only appended to. Else nobody
    /// gets it, for it is read again when it is sent, and then holds something else.
    has_grown: bool,
}

impl Held {
    /// How it looked when it held this; of one that has become longer, nothing that could be seen again.
    pub(super) fn local(&self, is_racy: bool) -> Local {
        Local::Seen(if is_racy || self.has_grown {
            self.found.unsettled()
        } else {
            self.found
        })
    }
}

/// Reads a file; `None` if it changed since `stat` was taken of its path, or is none. One that `may_grow`
/// may become longer meanwhile.
pub(super) fn read(
    file: &File,
    stat: &Statx,
    former: &Former<'_>,
    may_grow: bool,
) -> io::Result<Option<Held>> {
    let found = identity(stat);
    if found.file_type() != FileType::RegularFile {
        return Ok(None);
    }
    let xattrs = xattrs_of_file(file)?;
    let is_sparse = stat.stx_blocks.saturating_mul(512) < found.size;
    let data = if is_sparse && found.size > 0 {
        Some(data_ranges(file, found.size)?)
    } else {
        None
    };
    let read = if found.size < OUTBOARD_FROM {
        read_small(file, found.size, former, data.as_deref())
    } else {
        read_large(file, found.size, former, data.as_deref())
    };
    let (hash, content) = match read {
        Ok(read) => read,
        // It has become shorter.
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    };
    // Invariant: what is told was there in one moment. Nothing has changed from before the first byte
    // was read until after the last, or bytes were added behind it.
    let after = identity(&stat_fd(file.as_fd())?);
    let has_grown = may_grow && after.size > found.size;
    Ok((found == after || has_grown).then_some(Held {
        found,
        hash,
        content,
        xattrs,
        names: stat.stx_nlink,
        has_grown,
    }))
}

fn read_small(
    file: &File,
    size: u64,
    former: &Former<'_>,
    data: Option<&[(u64, u64)]>,
) -> io::Result<(Digest, Content)> {
    let capacity = usize::try_from(size).unwrap_or(usize::MAX);
    let mut bytes = vec![0; capacity];
    // By offsets: looking for holes has moved where the file would be read on from. One that has grown
    // meanwhile shows in its size.
    file.read_exact_at(&mut bytes, 0)?;
    let hash = Digest::of(&bytes);
    if former.content == Some((size, hash)) {
        return Ok((hash, Content::Same));
    }
    if let Some((old_size, base)) = former.content
        && (GROWN_FROM..size).contains(&old_size)
        && let Some(before) = usize::try_from(old_size)
            .ok()
            .and_then(|at| bytes.get(..at))
        && Digest::of(before) == base
    {
        let pieces = vec![
            Piece::Keep {
                offset: 0,
                bytes: old_size,
            },
            Piece::Literal(size - old_size),
        ];
        let punched = data.and_then(|data| punch(pieces.clone(), data));
        let patch = Patch {
            base,
            base_size: old_size,
            pieces: punched.unwrap_or(pieces),
            literal: Digest::of(b""),
        };
        return Ok((hash, Content::Patch(with_literal(patch, &bytes))));
    }
    let Some(pieces) = data.and_then(|data| punch(vec![Piece::Literal(size)], data)) else {
        return Ok((hash, Content::Whole));
    };
    let patch = with_literal(from_nothing(pieces), &bytes);
    Ok((hash, Content::Patch(patch)))
}

/// Returns the patch with the digest of what comes along of a file that holds `bytes`.
fn with_literal(mut patch: Patch, bytes: &[u8]) -> Patch {
    let mut literal = blake3::Hasher::new();
    for (offset, length) in patch.literals() {
        let range = usize::try_from(offset)
            .ok()
            .zip(usize::try_from(offset.saturating_add(length)).ok());
        if let Some(some) = range.and_then(|(start, end)| bytes.get(start..end)) {
            literal.update(some);
        }
    }
    patch.literal = literal.finalize().into();
    patch
}

fn read_large(
    file: &File,
    size: u64,
    former: &Former<'_>,
    data: Option<&[(u64, u64)]>,
) -> io::Result<(Digest, Content)> {
    let (outboard, hash) = Outboard::read(file, size)?;
    if former.content == Some((size, hash)) {
        return Ok((hash, Content::Same));
    }
    former.blocks.put(hash, &outboard);
    if let Some(path) = (former.elsewhere)(size, hash) {
        return Ok((hash, Content::Copy(path)));
    }
    let old = former
        .content
        .filter(|(size, _)| *size >= OUTBOARD_FROM)
        .and_then(|(size, base)| Some((base, former.blocks.get(size, base)?)));
    let mut pieces = match &old {
        Some((_, old)) => outboard.pieces_from(old, file)?,
        None => None,
    };
    if let Some((base, old)) = &old {
        let literal = pieces.as_deref().map_or(size, literal_bytes);
        if literal > size / SHIFTED_SHARE {
            // Cut from now on: the next time it is known what was where.
            let chunks = Chunks::read(file, size)?;
            if let Some(chunks) = &chunks {
                former.blocks.put_chunks(hash, chunks);
            }
            let known = former.blocks.chunks(old.size(), *base);
            let found = chunks
                .zip(known)
                .and_then(|(new, old)| new.pieces_from(&old));
            if let Some(found) = found.filter(|found| literal_bytes(found) < literal) {
                pieces = Some(found);
            }
        }
    }
    let whole = || vec![Piece::Literal(size)];
    let pieces = match data {
        Some(data) => punch(pieces.unwrap_or_else(whole), data),
        None => pieces,
    };
    let Some(pieces) = pieces else {
        return Ok((hash, Content::Whole));
    };
    let mut patch = match old {
        Some((base, old)) => Patch {
            base,
            base_size: old.size(),
            pieces,
            literal: Digest::of(b""),
        },
        None => from_nothing(pieces),
    };
    if patch.literal_bytes() > size - size / SAVED_SHARE {
        return Ok((hash, Content::Whole));
    }
    let ranges: Vec<_> = patch.literals().collect();
    patch.literal = hash_ranges(file, &ranges)?;
    Ok((hash, Content::Patch(patch)))
}

fn literal_bytes(pieces: &[Piece]) -> u64 {
    let literal = pieces
        .iter()
        .filter(|piece| matches!(piece, Piece::Literal(_)));
    literal.map(Piece::bytes).sum()
}

/// A file that consists of what comes along, and of holes.
fn from_nothing(pieces: Vec<Piece>) -> Patch {
    Patch {
        base: Digest::of(b""),
        base_size: 0,
        pieces,
        literal: Digest::of(b""),
    }
}

/// Returns the digest of parts of a file, one after the other.
pub(super) fn hash_ranges(file: &File, ranges: &[(u64, u64)]) -> io::Result<Digest> {
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; 1 << 20];
    for (offset, length) in ranges {
        let (mut at, end) = (*offset, offset.saturating_add(*length));
        while at < end {
            let wanted = usize::try_from(end - at)
                .unwrap_or(usize::MAX)
                .min(buffer.len());
            let room = buffer.get_mut(..wanted).unwrap_or_default();
            file.read_exact_at(room, at)?;
            hasher.update(room);
            at = at.saturating_add(u64::try_from(wanted).unwrap_or(u64::MAX));
        }
    }
    Ok(hasher.finalize().into())
}
