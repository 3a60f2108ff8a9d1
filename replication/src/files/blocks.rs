//! The outboards of a store's large files, and the chunks of some, by what the files hold.
//!
//! In a table that can be lost: what is missing costs one content sent whole.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use super::chunks::Chunks;
use super::entry::Digest;
use super::outboard::Outboard;
use crate::table::{self, Change, Engine, TABLE_VALUE_BYTES_MAX, Table, TableError};

/// How many values are written at once.
const CHANGES_MAX: usize = 256;

/// The number of the first value with chunks; those with an outboard are fewer.
const CHUNKS_FROM: u32 = 1 << 31;

/// How often, and after what pause, it is tried to open what somebody else has open.
const BUSY_TRIES: usize = 40;
const BUSY_PAUSE: Duration = Duration::from_millis(25);

/// Outboards, kept. Whatever goes wrong with it is logged, and then there is none.
pub struct Blocks {
    table: Mutex<Option<Box<dyn Table>>>,
    folder: PathBuf,
}

impl std::fmt::Debug for Blocks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Blocks({})", self.folder.display())
    }
}

impl Blocks {
    /// Opens what is in `state`, or begins anew.
    pub fn open(state: &Path) -> Self {
        let folder = state.join("blocks");
        let opened = open_table(&folder).or_else(|error| match error {
            TableError::Busy { .. } => Err(error),
            TableError::Engine { .. }
            | TableError::Unopenable { .. }
            | TableError::TooLong { .. } => {
                tracing::warn!(%error, "the digests of large files are begun anew");
                // It can be made again, so that nothing is kept of what cannot be read.
                let _removed = fs::remove_dir_all(&folder).is_ok();
                table::open(&folder, Engine::default())
            }
        });
        let table = match opened {
            Ok(table) => Some(table),
            Err(error) => {
                tracing::warn!(%error, "large files are shipped whole: their digests cannot be kept");
                None
            }
        };
        Self {
            table: Mutex::new(table),
            folder,
        }
    }

    /// Keeps the outboard of a file with this digest.
    pub fn put(&self, root: Digest, outboard: &Outboard) {
        let mut changes = Vec::new();
        for (number, value) in (0_u32..).zip(outboard.encode()) {
            changes.push(Change::Put(key(root, number), value));
            if changes.len() >= CHANGES_MAX {
                self.apply(&std::mem::take(&mut changes));
            }
        }
        self.apply(&changes);
    }

    /// Returns the outboard of a file with this size and digest.
    pub fn get(&self, size: u64, root: Digest) -> Option<Outboard> {
        let guard = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let table = guard.as_ref()?;
        let mut values = Vec::new();
        for number in 0..u32::try_from(Outboard::values(size)).ok()? {
            values.push(table.get(&key(root, number)).ok().flatten()?);
        }
        drop(guard);
        Outboard::decode(size, root, &values)
    }

    /// Keeps the chunks of a file with this digest.
    pub fn put_chunks(&self, root: Digest, chunks: &Chunks) {
        let values: Vec<_> = (CHUNKS_FROM..)
            .zip(chunks.encode(TABLE_VALUE_BYTES_MAX))
            .collect();
        for some in values.chunks(CHANGES_MAX) {
            let changes = some
                .iter()
                .map(|(number, value)| Change::Put(key(root, *number), value.clone()));
            self.apply(&changes.collect::<Vec<_>>());
        }
    }

    /// Returns the chunks of a file with this size and digest, if it was ever cut.
    pub fn chunks(&self, size: u64, root: Digest) -> Option<Chunks> {
        let guard = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let table = guard.as_ref()?;
        let mut values = Vec::new();
        for number in CHUNKS_FROM.. {
            match table.get(&key(root, number)).ok()? {
                Some(value) => values.push(value),
                None => break,
            }
        }
        drop(guard);
        (!values.is_empty())
            .then(|| Chunks::decode(size, &values))
            .flatten()
    }

    /// Forgets what is kept of a file with this size and digest.
    pub fn remove(&self, size: u64, root: Digest) {
        let count = u32::try_from(Outboard::values(size)).unwrap_or(u32::MAX);
        let chunks = self.chunks(size, root).map_or(0, |chunks| {
            u32::try_from(chunks.encode(TABLE_VALUE_BYTES_MAX).count()).unwrap_or(0)
        });
        let numbers = (0..count).chain((CHUNKS_FROM..).take(usize::try_from(chunks).unwrap_or(0)));
        let changes: Vec<Change> = numbers
            .map(|number| Change::Delete(key(root, number)))
            .collect();
        for some in changes.chunks(CHANGES_MAX) {
            self.apply(some);
        }
    }

    /// Forgets all but those of files with these digests.
    pub fn retain(&self, used: &BTreeSet<Digest>) {
        let mut stale = Vec::new();
        {
            let guard = self.table.lock().unwrap_or_else(PoisonError::into_inner);
            let Some(table) = guard.as_ref() else { return };
            let visited = table.visit(&mut |found, _| {
                let root = found
                    .split_first_chunk::<32>()
                    .map(|(root, _)| Digest::Blake3(*root));
                if root.is_none_or(|root| !used.contains(&root)) {
                    stale.push(Change::Delete(found.to_vec()));
                }
                std::ops::ControlFlow::Continue(())
            });
            if let Err(error) = visited {
                tracing::warn!(%error, "cannot look through the digests of large files");
            }
        }
        for some in stale.chunks(CHANGES_MAX) {
            self.apply(some);
        }
    }

    fn apply(&self, changes: &[Change]) {
        if changes.is_empty() {
            return;
        }
        let mut guard = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(table) = guard.as_mut() else { return };
        if let Err(error) = table.apply(changes) {
            tracing::warn!(%error, "large files are shipped whole: their digests cannot be kept");
            *guard = None;
        }
    }
}

/// Opens the table; who has just closed it may hold it for a moment longer.
fn open_table(folder: &Path) -> Result<Box<dyn Table>, TableError> {
    for _ in 1..BUSY_TRIES {
        match table::open(folder, Engine::default()) {
            Err(TableError::Busy { .. }) => thread::sleep(BUSY_PAUSE),
            opened => return opened,
        }
    }
    table::open(folder, Engine::default())
}

fn key(root: Digest, number: u32) -> Vec<u8> {
    let mut key = root.as_bytes().to_vec();
    key.extend_from_slice(&number.to_be_bytes());
    key
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::OutboardBuilder;

    #[test]
    fn an_outboard_is_there_until_it_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let mut builder = OutboardBuilder::new(3 << 20);
        builder.update(&vec![7; 3 << 20]);
        let (outboard, root) = builder.finish();
        let blocks = Blocks::open(folder.path());
        assert_eq!(blocks.get(3 << 20, root), None);
        blocks.put(root, &outboard);
        drop(blocks);
        let blocks = Blocks::open(folder.path());
        assert_eq!(blocks.get(3 << 20, root), Some(outboard));
        assert_eq!(blocks.get(2 << 20, root), None, "another size");
        blocks.retain(&BTreeSet::from([root]));
        assert!(blocks.get(3 << 20, root).is_some());
        blocks.remove(3 << 20, root);
        assert_eq!(blocks.get(3 << 20, root), None);
        drop(blocks);
        std::fs::write(folder.path().join("blocks/db"), b"garbage").unwrap();
        assert_eq!(Blocks::open(folder.path()).get(3 << 20, root), None);
    }
}
