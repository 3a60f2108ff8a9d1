//! Names that are to be no more, and that something holds fast: an immutable file, a directory that nobody
//! may write to.
//!
//! What is awaited is in the manifest; of these it knows nothing any more. They are a small file of their
//! own in the store's state, written before the commit that would else forget them. As long as there is
//! one the copy is not whole, and it is tried again.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use understudy_config::Globs;
use understudy_replication::durable;
use understudy_replication::files::{Manifest, NodeId, Operation, RelPath};

use super::Inner;
use super::error::{FilesError, concerns_all};
use super::place::moved_with;
use super::replica::Replica;
use super::trash::Trash;
use super::tree::{Tree, is_absent};

/// The file in the store's state.
const NAME: &str = "leftovers.json";

const VERSION: u32 = 1;

#[derive(Serialize, Deserialize)]
struct Stored {
    version: u32,
    names: BTreeSet<RelPath>,
}

/// The names that are still to be taken away: no more than operations have failed.
#[derive(Debug, Default)]
pub(super) struct Leftovers {
    names: BTreeSet<RelPath>,
    is_stored: bool,
}

impl Leftovers {
    /// Reads what there is; `None` if it cannot be understood.
    pub(super) fn load(state: &Path) -> Result<Option<Self>, FilesError> {
        let path = path(state);
        let names = match fs::read(&path) {
            Ok(bytes) => match serde_json::from_slice::<Stored>(&bytes) {
                Ok(stored) if stored.version == VERSION => stored.names,
                Ok(_) | Err(_) => return Ok(None),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => BTreeSet::new(),
            Err(error) => return Err(FilesError::tree("read", path)(error)),
        };
        Ok(Some(Self {
            names,
            is_stored: true,
        }))
    }

    /// Makes them durable, if they have changed.
    pub(super) fn store(&mut self, state: &Path) -> Result<(), FilesError> {
        if self.is_stored {
            return Ok(());
        }
        let stored = Stored {
            version: VERSION,
            names: self.names.clone(),
        };
        let path = path(state);
        let bytes = serde_json::to_vec(&stored)
            .map_err(io::Error::from)
            .map_err(FilesError::tree("encode", &path))?;
        durable::write(&path, &bytes, 0o600).map_err(FilesError::tree("write", path))?;
        self.is_stored = true;
        Ok(())
    }

    pub(super) fn count(&self) -> usize {
        self.names.len()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &RelPath> {
        self.names.iter()
    }

    pub(super) fn contains(&self, path: &RelPath) -> bool {
        self.names.contains(path)
    }

    fn remove(&mut self, path: &RelPath) {
        self.is_stored &= !self.names.remove(path);
    }

    /// From now on there are none: all has been compared, or the copy is a copy no more.
    pub(super) fn clear(&mut self) {
        self.is_stored &= self.names.is_empty();
        self.names.clear();
    }

    /// Notes what an operation that could not be done leaves where it was.
    pub(super) fn left_by(&mut self, operation: &Operation) {
        let path = match operation {
            Operation::Delete { path } => path,
            Operation::Move { from, .. } => from,
            // What is put is awaited, and so are both that should have been exchanged.
            Operation::Put { .. } | Operation::Swap { .. } => return,
        };
        self.is_stored &= !self.names.insert(path.clone());
    }

    /// What lies in a directory moves with it. Both names are kept: the batch may be done again, and what is
    /// not there, or is to be there, is forgotten when it is tried.
    pub(super) fn follow(&mut self, operation: &Operation) {
        let moved = |path: &RelPath| match operation {
            Operation::Move { from, to } => moved_with(path, from, to),
            Operation::Swap { a, b } => moved_with(path, a, b).or_else(|| moved_with(path, b, a)),
            Operation::Put { .. } | Operation::Delete { .. } => None,
        };
        let new: Vec<RelPath> = self.names.iter().filter_map(moved).collect();
        for path in new {
            self.is_stored &= !self.names.insert(path);
        }
    }
}

fn path(state: &Path) -> PathBuf {
    state.join(NAME)
}

impl Inner {
    /// Tries again to take away what should have gone.
    pub(super) fn clear_leftovers(&self, replica: &mut Replica) -> Result<(), FilesError> {
        let due = replica.leftovers.iter();
        let due = due.filter(|path| self.awaiting.is_due(path, None)).cloned();
        let due: Vec<RelPath> = due.collect();
        let Some(head) = replica.ledger.head().filter(|_| !due.is_empty()) else {
            return Ok(());
        };
        let mut trash = Trash::of(self.trash, head.position);
        let manifest = &replica.ledger.manifest;
        let tree = replica.tree()?;
        let mut directories = BTreeSet::new();
        let mut gone = Vec::new();
        for (index, path) in (0_u32..).zip(due) {
            match clear(tree, (manifest, &self.exclude), (&mut trash, index), &path) {
                Ok(changed) => {
                    directories.extend(changed);
                    gone.push(path);
                }
                Err(error) if concerns_all(&error) => {
                    let place = self.root.join(path.as_path());
                    return Err(FilesError::tree("remove", place)(error));
                }
                Err(error) => self.entry_failed(&path, None, format!("cannot remove it: {error}")),
            }
        }
        if gone.is_empty() {
            return Ok(());
        }
        // They are forgotten when they have gone for good.
        self.sync(tree)?;
        for path in &gone {
            replica.leftovers.remove(path);
            self.awaiting.settled(path);
        }
        replica.store_leftovers()?;
        self.keep(replica, &directories, Vec::new())
    }
}

/// Takes away what is at `path`, or, where there is to be a directory by now, what is too much in it.
/// Returns the directories that were changed.
fn clear(
    tree: &Tree,
    (manifest, exclude): (&Manifest, &Globs),
    (trash, index): (&mut Trash, u32),
    path: &RelPath,
) -> io::Result<Vec<NodeId>> {
    let mut changed = Vec::new();
    let mut pending = vec![path.clone()];
    while let Some(path) = pending.pop() {
        match manifest.lookup(&path) {
            Some(id) if manifest.is_directory(id) => {
                let names = match tree.root().names(Some(&path)) {
                    Ok(names) => names,
                    // It is awaited, and what lies there gives way to it.
                    Err(error) if is_absent(&error) => continue,
                    Err(error) => return Err(error),
                };
                let inner = names
                    .iter()
                    .filter_map(|name| RelPath::child(Some(&path), name).ok());
                pending.extend(inner.filter(|inner| !exclude.is_match(inner.as_path())));
            }
            Some(_) => {}
            None => {
                let parent = match tree.root().parent(&path) {
                    Ok(parent) => parent,
                    Err(error) if is_absent(&error) => continue,
                    Err(error) => return Err(error),
                };
                trash.put(tree, parent.as_fd(), &path, index)?;
                changed.extend(manifest.directory_of(&path));
            }
        }
    }
    Ok(changed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> RelPath {
        RelPath::new(text).unwrap()
    }

    #[test]
    fn they_move_with_their_directory_and_are_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path();
        let mut leftovers = Leftovers::load(state).unwrap().unwrap();
        leftovers.left_by(&Operation::Delete { path: path("a/x") });
        let (from, to) = (path("b"), path("c"));
        leftovers.left_by(&Operation::Move { from, to });
        let (from, to) = (path("a"), path("d"));
        leftovers.follow(&Operation::Move { from, to });
        leftovers.store(state).unwrap();
        let again = Leftovers::load(state).unwrap().unwrap();
        let names: Vec<_> = again.iter().map(ToString::to_string).collect();
        assert_eq!(names, ["a/x", "b", "d/x"]);
        fs::write(super::path(state), "{}").unwrap();
        assert!(Leftovers::load(state).unwrap().is_none());
    }
}
