//! Digests of the parts of a large file: with those of what it was, one pass over what it is tells
//! what has changed.
//!
//! Of each group of 16 KiB (more, for very large files) the chaining value is kept that BLAKE3 has for
//! it anyway, so that the hash of the whole follows from them, and of each quarter of a group a short
//! hash that only says where to look. What a short hash takes for equal and is not is found out by the
//! hash of the whole. Chaining values: the BLAKE3 paper, section 2.1; `blake3::hazmat`.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::thread;

use blake3::hazmat::{
    ChainingValue, HasherExt, Mode, merge_subtrees_non_root, merge_subtrees_root,
};
use xxhash_rust::xxh3::xxh3_64;

use super::entry::Digest;
use super::patch::{Piece, Pieces};

/// Files from this size on have an outboard; what is smaller is quicker sent than compared.
pub const OUTBOARD_FROM: u64 = 256 << 10;

/// How many bytes a group has at least.
const GROUP_BYTES_MIN: u64 = 16 << 10;

/// How many groups a file has at most: an outboard then takes 32 MiB.
const GROUPS_MAX: u64 = 1 << 19;

/// How many pages a group has.
const PAGES: usize = 4;

/// How much is read at once.
const READ_BYTES: usize = 1 << 20;

/// Files from this size on are hashed by several threads.
const PARALLEL_FROM: u64 = 64 << 20;

/// More threads than these only wait for memory.
const THREADS_MAX: usize = 4;

/// How many groups are kept in one value of a table.
const GROUPS_IN_VALUE: usize = 64;

const GROUP_ENCODED_BYTES: usize = 64;

/// If more than this share of a file would come along, it is looked whether its content has shifted.
const SHIFT_FROM_SHARE: u64 = 4;

/// The digests of a file's parts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outboard {
    size: u64,
    group_bytes: u64,
    groups: Vec<Group>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Group {
    value: ChainingValue,
    pages: [u64; PAGES],
}

fn index(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

fn wide(number: usize) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}

/// Returns how long a group of a file of this size is.
fn group_bytes(size: u64) -> u64 {
    let mut bytes = GROUP_BYTES_MIN;
    while size.div_ceil(bytes) > GROUPS_MAX {
        bytes = bytes.saturating_mul(2);
    }
    bytes
}

impl Outboard {
    /// Reads the first `size` bytes of a file of at least [`OUTBOARD_FROM`] bytes, and returns their
    /// digests, and that of the whole.
    ///
    /// # Errors
    /// When it cannot be read, or has become shorter.
    pub fn read(file: &File, size: u64) -> io::Result<(Self, Digest)> {
        let group_bytes = group_bytes(size);
        let count = index(size.div_ceil(group_bytes));
        let threads = if size < PARALLEL_FROM {
            1
        } else {
            thread::available_parallelism().map_or(1, |count| count.get().min(THREADS_MAX))
        };
        let empty = Group {
            value: [0; 32],
            pages: [0; PAGES],
        };
        let mut groups = vec![empty; count];
        let share = count.div_ceil(threads).max(1);
        thread::scope(|scope| {
            let workers: Vec<_> = groups
                .chunks_mut(share)
                .enumerate()
                .map(|(number, groups)| {
                    let first = wide(number.saturating_mul(share));
                    let mut read = move || read_groups(file, size, group_bytes, first, groups);
                    if threads == 1 {
                        return Err(read());
                    }
                    Ok(scope.spawn(read))
                })
                .collect();
            workers.into_iter().try_for_each(|worker| match worker {
                Ok(worker) => worker
                    .join()
                    .unwrap_or_else(|_| Err(io::Error::other("hashing broke off"))),
                Err(done) => done,
            })
        })?;
        let outboard = Self {
            size,
            group_bytes,
            groups,
        };
        let root = outboard.root();
        Ok((outboard, root))
    }

    /// Returns how long the file is.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Returns the digest of the whole.
    pub fn root(&self) -> Digest {
        let mut stack: Vec<ChainingValue> = Vec::new();
        let Some((last, groups)) = self.groups.split_last() else {
            return Digest::of(b"");
        };
        // As BLAKE3 itself does: whole subtrees are merged as soon as it is known that more follows.
        for (number, group) in groups.iter().enumerate() {
            let mut value = group.value;
            let mut count = number;
            while count & 1 == 1 {
                if let Some(left) = stack.pop() {
                    value = merge_subtrees_non_root(&left, &value, Mode::Hash);
                }
                count >>= 1;
            }
            stack.push(value);
        }
        let mut value = last.value;
        while let Some(left) = stack.pop() {
            if stack.is_empty() {
                return merge_subtrees_root(&left, &value, Mode::Hash).into();
            }
            value = merge_subtrees_non_root(&left, &value, Mode::Hash);
        }
        // One group alone is no subtree: files that small have no outboard.
        Digest::Blake3(value)
    }

    /// Takes another content for a group.
    fn group_of(bytes: &[u8], offset: u64, group_bytes: u64) -> Group {
        let mut hasher = blake3::Hasher::new();
        hasher.set_input_offset(offset).update(bytes);
        let mut pages = [0; PAGES];
        let page_bytes = index(group_bytes) / PAGES;
        for (page, bytes) in pages.iter_mut().zip(bytes.chunks(page_bytes)) {
            *page = xxh3_64(bytes);
        }
        Group {
            value: hasher.finalize_non_root(),
            pages,
        }
    }

    fn page_bytes(&self) -> u64 {
        self.group_bytes / wide(PAGES)
    }

    /// Returns a page's short hash and its length; `None` behind the end.
    fn page(&self, number: u64) -> Option<(u64, u64)> {
        let offset = number.saturating_mul(self.page_bytes());
        if offset >= self.size {
            return None;
        }
        let group = self.groups.get(index(number) / PAGES)?;
        let page = group.pages.get(index(number) % PAGES)?;
        Some((*page, self.page_bytes().min(self.size - offset)))
    }

    /// Returns what `self` consists of, in pieces of `old` and of its own. `file` is what `self` was
    /// read from.
    ///
    /// `None` when that takes too many pieces, or the two cannot be compared.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn pieces_from(&self, old: &Self, file: &File) -> io::Result<Option<Vec<Piece>>> {
        if self.group_bytes != old.group_bytes {
            return Ok(None);
        }
        let straight = self.straight(old);
        if straight.literal_bytes() <= self.size / SHIFT_FROM_SHARE || self.size == old.size {
            return Ok(straight.finish());
        }
        let shifted = self.shifted(old, file)?;
        let best = if shifted.literal_bytes() < straight.literal_bytes() {
            shifted
        } else {
            straight
        };
        Ok(best.finish())
    }

    /// Page by page, at the same place.
    fn straight(&self, old: &Self) -> Pieces {
        let mut pieces = Pieces::default();
        for (number, group) in self.groups.iter().enumerate() {
            let former = old.groups.get(number);
            let first = wide(number.saturating_mul(PAGES));
            // The short hashes say that nothing has changed, and the long one says otherwise.
            let is_blind = former
                .is_some_and(|former| former.value != group.value && former.pages == group.pages);
            for page in 0..wide(PAGES) {
                let number = first.saturating_add(page);
                let Some((hash, bytes)) = self.page(number) else {
                    break;
                };
                let is_kept = !is_blind && old.page(number) == Some((hash, bytes));
                pieces.push(if is_kept {
                    let offset = number.saturating_mul(self.page_bytes());
                    Piece::Keep { offset, bytes }
                } else {
                    Piece::Literal(bytes)
                });
            }
        }
        pieces
    }

    /// One insertion or removal: what is in front of it is where it was, and what is behind it is
    /// where it was, seen from the end.
    fn shifted(&self, old: &Self, file: &File) -> io::Result<Pieces> {
        let page_bytes = self.page_bytes();
        let mut same = 0_u64;
        while let (Some(new), Some(former)) = (self.page(same), old.page(same)) {
            if new != former || new.1 < page_bytes {
                break;
            }
            same = same.saturating_add(1);
        }
        let prefix = same.saturating_mul(page_bytes);
        // The first page of the old file that is still there, seen from the end.
        let mut kept = old.size.div_ceil(page_bytes);
        let mut buffer = vec![0; index(page_bytes)];
        while kept > 0 {
            let number = kept.saturating_sub(1);
            let Some((hash, bytes)) = old.page(number) else {
                break;
            };
            let offset = number.saturating_mul(page_bytes);
            // Where it is now; before the prefix there is nothing left to find.
            let Some(place) = (offset.saturating_add(self.size)).checked_sub(old.size) else {
                break;
            };
            if offset < prefix || place < prefix {
                break;
            }
            let found = if place % page_bytes == 0 {
                self.page(place / page_bytes).map(|(hash, _)| hash)
            } else {
                let room = buffer.get_mut(..index(bytes)).unwrap_or_default();
                file.read_exact_at(room, place)?;
                Some(xxh3_64(room))
            };
            if found != Some(hash) {
                break;
            }
            kept = number;
        }
        let suffix = kept.saturating_mul(page_bytes).min(old.size);
        let suffix_bytes = old.size - suffix;
        let mut pieces = Pieces::default();
        pieces.push(Piece::Keep {
            offset: 0,
            bytes: prefix,
        });
        pieces.push(Piece::Literal(
            self.size
                .saturating_sub(prefix)
                .saturating_sub(suffix_bytes),
        ));
        pieces.push(Piece::Keep {
            offset: suffix,
            bytes: suffix_bytes,
        });
        Ok(pieces)
    }

    /// Returns the outboard of what a file becomes when parts of it are replaced in place, before that
    /// is done. `read` reads what the file will hold.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn after(
        &self,
        size: u64,
        changed: impl Iterator<Item = (u64, u64)>,
        mut read: impl FnMut(u64, &mut [u8]) -> io::Result<()>,
    ) -> io::Result<Option<Self>> {
        if group_bytes(size) != self.group_bytes {
            return Ok(None);
        }
        let count = index(size.div_ceil(self.group_bytes));
        let mut groups = self.groups.clone();
        let empty = Group {
            value: [0; 32],
            pages: [0; PAGES],
        };
        groups.resize(count, empty);
        let mut stale = vec![false; count];
        let mut mark = |offset: u64, bytes: u64| {
            let first = offset / self.group_bytes;
            let last = offset.saturating_add(bytes).saturating_sub(1) / self.group_bytes;
            for number in first..=last {
                if let Some(stale) = stale.get_mut(index(number)) {
                    *stale = true;
                }
            }
        };
        for (offset, bytes) in changed {
            mark(offset, bytes);
        }
        if size != self.size {
            // A group that was or becomes the last has another length.
            let shorter = size.min(self.size);
            mark(shorter.saturating_sub(1), 1);
            if size > self.size {
                mark(self.size, size - self.size);
            }
        }
        let mut buffer = vec![0; index(self.group_bytes)];
        for (number, group) in groups.iter_mut().enumerate() {
            if stale.get(number) != Some(&true) {
                continue;
            }
            let offset = wide(number).saturating_mul(self.group_bytes);
            let bytes = index(self.group_bytes.min(size - offset));
            let room = buffer.get_mut(..bytes).unwrap_or_default();
            read(offset, room)?;
            *group = Self::group_of(room, offset, self.group_bytes);
        }
        Ok(Some(Self {
            size,
            group_bytes: self.group_bytes,
            groups,
        }))
    }

    /// Returns it as values of a table.
    pub fn encode(&self) -> impl Iterator<Item = Vec<u8>> {
        self.groups.chunks(GROUPS_IN_VALUE).map(|groups| {
            let mut bytes = Vec::with_capacity(groups.len().saturating_mul(GROUP_ENCODED_BYTES));
            for group in groups {
                bytes.extend_from_slice(&group.value);
                for page in group.pages {
                    bytes.extend_from_slice(&page.to_le_bytes());
                }
            }
            bytes
        })
    }

    /// Returns how many values it has.
    pub fn values(size: u64) -> usize {
        index(size.div_ceil(group_bytes(size))).div_ceil(GROUPS_IN_VALUE)
    }

    /// Reads it from values of a table; `None` when they are not that of a file with this digest.
    pub fn decode(size: u64, root: Digest, values: &[Vec<u8>]) -> Option<Self> {
        let mut groups = Vec::new();
        for value in values {
            for bytes in value.chunks(GROUP_ENCODED_BYTES) {
                let (chaining, rest) = bytes.split_first_chunk::<32>()?;
                let mut pages = [0; PAGES];
                for (page, bytes) in pages.iter_mut().zip(rest.chunks(8)) {
                    *page = u64::from_le_bytes(bytes.try_into().ok()?);
                }
                groups.push(Group {
                    value: *chaining,
                    pages,
                });
            }
        }
        let outboard = Self {
            size,
            group_bytes: group_bytes(size),
            groups,
        };
        let count = index(size.div_ceil(outboard.group_bytes));
        (outboard.groups.len() == count && outboard.root() == root).then_some(outboard)
    }
}

/// Makes an outboard of what comes piece by piece.
#[derive(Debug)]
pub struct OutboardBuilder {
    outboard: Outboard,
    buffer: Vec<u8>,
    done: u64,
}

impl OutboardBuilder {
    /// Begins one of a file of `size` bytes.
    pub fn new(size: u64) -> Self {
        let group_bytes = group_bytes(size);
        Self {
            outboard: Outboard {
                size,
                group_bytes,
                groups: Vec::new(),
            },
            buffer: Vec::new(),
            done: 0,
        }
    }

    /// Returns how much has come.
    pub fn count(&self) -> u64 {
        self.done.saturating_add(wide(self.buffer.len()))
    }

    /// Takes the next bytes.
    pub fn update(&mut self, mut bytes: &[u8]) {
        let whole = index(self.outboard.group_bytes);
        while !bytes.is_empty() {
            if self.buffer.is_empty() && bytes.len() >= whole {
                let (group, rest) = bytes.split_at(whole);
                self.push(group);
                bytes = rest;
                continue;
            }
            let room = whole.saturating_sub(self.buffer.len()).min(bytes.len());
            let (some, rest) = bytes.split_at(room);
            self.buffer.extend_from_slice(some);
            bytes = rest;
            if self.buffer.len() == whole {
                let group = std::mem::take(&mut self.buffer);
                self.push(&group);
                self.buffer = group;
                self.buffer.clear();
            }
        }
    }

    fn push(&mut self, bytes: &[u8]) {
        let group = Outboard::group_of(bytes, self.done, self.outboard.group_bytes);
        self.outboard.groups.push(group);
        self.done = self.done.saturating_add(wide(bytes.len()));
    }

    /// Returns the outboard and the digest of what has come.
    pub fn finish(mut self) -> (Outboard, Digest) {
        if !self.buffer.is_empty() {
            let rest = std::mem::take(&mut self.buffer);
            self.push(&rest);
        }
        let root = self.outboard.root();
        (self.outboard, root)
    }
}

fn read_groups(
    file: &File,
    size: u64,
    group_bytes: u64,
    first: u64,
    groups: &mut [Group],
) -> io::Result<()> {
    let at_once = (READ_BYTES / index(group_bytes)).max(1);
    let mut buffer = vec![0; at_once.saturating_mul(index(group_bytes))];
    let mut offset = first.saturating_mul(group_bytes);
    for some in groups.chunks_mut(at_once) {
        let bytes =
            index(size.saturating_sub(offset)).min(some.len().saturating_mul(index(group_bytes)));
        let room = buffer.get_mut(..bytes).unwrap_or_default();
        file.read_exact_at(room, offset)?;
        for (group, bytes) in some.iter_mut().zip(room.chunks(index(group_bytes))) {
            *group = Outboard::group_of(bytes, offset, group_bytes);
            offset = offset.saturating_add(wide(bytes.len()));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Write;

    fn bytes(seed: u64, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        blake3::Hasher::new()
            .update(&seed.to_le_bytes())
            .finalize_xof()
            .fill(&mut bytes);
        bytes
    }

    fn file(content: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(content).unwrap();
        file
    }

    fn outboard(content: &[u8]) -> Outboard {
        let (outboard, root) = Outboard::read(&file(content), content.len() as u64).unwrap();
        assert_eq!(root, Digest::of(content));
        outboard
    }

    /// Makes the file anew from the pieces.
    fn apply(old: &[u8], new: &[u8], pieces: &[Piece]) -> (Vec<u8>, u64) {
        let (mut made, mut literal) = (Vec::new(), 0);
        for piece in pieces {
            match piece {
                Piece::Keep { offset, bytes } => {
                    made.extend_from_slice(&old[index(*offset)..index(offset + bytes)]);
                }
                Piece::Literal(bytes) => {
                    let at = made.len();
                    made.extend_from_slice(&new[at..at + index(*bytes)]);
                    literal += bytes;
                }
                Piece::Zero(bytes) => made.resize(made.len() + index(*bytes), 0),
            }
        }
        (made, literal)
    }

    fn literal_bytes(old: &[u8], new: &[u8]) -> u64 {
        let pieces = outboard(new)
            .pieces_from(&outboard(old), &file(new))
            .unwrap()
            .unwrap();
        let (made, literal) = apply(old, new, &pieces);
        assert!(made == new, "the pieces make another file");
        literal
    }

    #[test]
    fn the_whole_has_the_hash_that_everybody_computes() {
        for groups in [17, 18, 31, 32, 33, 64, 100] {
            for more in [0, 1, 1024, 16383] {
                let content = bytes(1, groups * 16384 + more);
                let (built, root) = {
                    let mut builder = OutboardBuilder::new(content.len() as u64);
                    for some in content.chunks(10_000) {
                        builder.update(some);
                    }
                    builder.finish()
                };
                assert_eq!(root, Digest::of(&content));
                assert_eq!(built, outboard(&content));
                let values: Vec<_> = built.encode().collect();
                assert_eq!(values.len(), Outboard::values(built.size()));
                assert_eq!(Outboard::decode(built.size(), root, &values), Some(built));
            }
        }
    }

    #[test]
    fn a_damaged_outboard_is_none() {
        let content = bytes(1, 1 << 20);
        let outboard = outboard(&content);
        let mut values: Vec<_> = outboard.encode().collect();
        values[0][40] ^= 1;
        values[0][3] ^= 1;
        assert_eq!(
            Outboard::decode(1 << 20, Digest::of(&content), &values),
            None
        );
        assert_eq!(Outboard::decode(1 << 20, Digest::of(&content), &[]), None);
    }

    #[test]
    fn what_has_changed_comes_along_and_no_more() {
        let old = bytes(1, 3 << 20);
        let mut overwritten = old.clone();
        overwritten[500_000] ^= 1;
        overwritten[2_000_000..2_000_010].fill(7);
        assert_eq!(literal_bytes(&old, &overwritten), 2 * 4096);
        let appended = [old.as_slice(), &bytes(2, 10_000)].concat();
        assert_eq!(literal_bytes(&old, &appended), 10_000);
        for shift in [1 << 18, 1000, 1, 70_001] {
            let inserted = [&bytes(3, shift), old.as_slice()].concat();
            assert_eq!(literal_bytes(&old, &inserted), shift as u64);
            assert!(literal_bytes(&inserted, &old) < 4096);
        }
        let middle = [&old[..1_000_000], &bytes(4, 5000), &old[1_000_000..]].concat();
        assert!(literal_bytes(&old, &middle) < 5000 + 2 * 4096);
        let truncated = &old[..1_000_001];
        assert!(literal_bytes(&old, truncated) <= 4096);
        let other = bytes(9, 3 << 20);
        assert_eq!(literal_bytes(&old, &other), 3 << 20);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]
        #[test]
        fn any_edit_is_described_exactly(
            cut in 0..400_000_usize, gone in 0..300_000_usize, more in 0..300_000_usize, tail in 0..5000_usize
        ) {
            let old = bytes(1, 700_000);
            let new = [&old[..cut], &bytes(2, more), &old[cut + gone..], &bytes(3, tail)].concat();
            if new.len() as u64 >= OUTBOARD_FROM {
                literal_bytes(&old, &new);
            }
        }

        #[test]
        fn a_change_in_place_is_known_before_it_is_made(
            at in 0..600_000_usize, count in 1..100_000_usize, size in 300_000..1_000_000_usize
        ) {
            let old = bytes(1, 700_000);
            let mut new = old.clone();
            let end = (at + count).min(new.len());
            new[at..end].fill(9);
            new.resize(size, 5);
            let changed = [(at as u64, (end - at) as u64)];
            let after = outboard(&old).after(size as u64, changed.into_iter(), |offset, room| {
                room.copy_from_slice(&new[index(offset)..][..room.len()]);
                Ok(())
            }).unwrap().unwrap();
            prop_assert_eq!(after, outboard(&new));
        }
    }
}
