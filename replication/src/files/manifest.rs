//! The manifest: every path of a store, under a Merkle hash per directory.

use std::collections::BTreeMap;

use super::batch::Operation;
use super::entry::{Digest, Entry, Known};
use super::path::RelPath;

/// A tree of entries whose [`Manifest::root`] is equal exactly when the trees are.
///
/// A change makes the hashes from it up to the top stale; `root` makes those anew and no others.
#[derive(Clone, Debug, Default)]
pub struct Manifest {
    top: Directory,
    count: usize,
}

#[derive(Clone, Debug, Default)]
struct Directory {
    children: BTreeMap<Box<[u8]>, Node>,
    /// `None` while something beneath has changed.
    hash: Option<Digest>,
}

#[derive(Clone, Debug)]
struct Node {
    known: Known,
    /// For a directory, what it holds.
    directory: Option<Box<Directory>>,
}

/// A path lies in something that is not a directory.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{path} lies in what is not a directory of this store")]
pub struct Misfit {
    /// The path.
    pub path: RelPath,
}

impl Manifest {
    /// Returns what is known of `path`.
    pub fn get(&self, path: &RelPath) -> Option<&Known> {
        let mut directory = &self.top;
        let mut names = path.names().peekable();
        while let Some(name) = names.next() {
            let node = directory.children.get(name)?;
            if names.peek().is_none() {
                return Some(&node.known);
            }
            directory = node.directory.as_deref()?;
        }
        None
    }

    /// Sets what is known of `path`, and returns the paths that it took the place of: all that a
    /// directory held, when it is none any more.
    ///
    /// # Errors
    /// When the path does not lie in a directory; nothing is then changed.
    pub fn insert(&mut self, path: &RelPath, known: Known) -> Result<Vec<RelPath>, Misfit> {
        let parent = path.parent();
        let is_fit = match &parent {
            None => true,
            Some(parent) => self
                .get(parent)
                .is_some_and(|known| known.entry.is_directory()),
        };
        if !is_fit {
            return Err(Misfit { path: path.clone() });
        }
        let is_directory = known.entry.is_directory();
        let directory = self.open(parent.as_ref());
        let name = path.name();
        match directory.children.get_mut(name) {
            Some(node) if is_directory && node.directory.is_some() => {
                node.known = known;
                Ok(Vec::new())
            }
            Some(_) | None => {
                let held = directory.children.insert(
                    name.into(),
                    Node {
                        known,
                        directory: is_directory.then(Box::default),
                    },
                );
                let mut replaced = Vec::new();
                match held {
                    None => self.count = self.count.saturating_add(1),
                    Some(held) => {
                        collect(held.directory.as_deref(), Some(path), &mut replaced);
                        self.count = self.count.saturating_sub(replaced.len());
                    }
                }
                Ok(replaced)
            }
        }
    }

    /// Sets how `path` looks here, which is no part of the hash.
    pub fn learn(&mut self, path: &RelPath, local: Option<super::Identity>) {
        let mut directory = &mut self.top;
        let mut names = path.names().peekable();
        while let Some(name) = names.next() {
            let Some(node) = directory.children.get_mut(name) else {
                return;
            };
            if names.peek().is_none() {
                node.known.local = local;
                return;
            }
            let Some(inner) = node.directory.as_deref_mut() else {
                return;
            };
            directory = inner;
        }
    }

    /// Removes `path` and all beneath it, and returns the paths that went.
    pub fn remove(&mut self, path: &RelPath) -> Vec<RelPath> {
        if self.get(path).is_none() {
            return Vec::new();
        }
        let parent = path.parent();
        let mut removed = Vec::new();
        if let Some(node) = self.open(parent.as_ref()).children.remove(path.name()) {
            removed.push(path.clone());
            collect(node.directory.as_deref(), Some(path), &mut removed);
        }
        self.count = self.count.saturating_sub(removed.len());
        removed
    }

    /// Makes the change that `operation` says, and returns the paths that are no more.
    ///
    /// A file whose content did not come along stays known to be here only if it was, with the same
    /// content.
    ///
    /// # Errors
    /// When the path does not lie in a directory; nothing is then changed.
    pub fn fold(&mut self, operation: &Operation) -> Result<Vec<RelPath>, Misfit> {
        match operation {
            Operation::Put {
                path,
                entry,
                has_content,
            } => {
                let local = self.get(path).and_then(|known| {
                    let is_same = known.entry.content() == entry.content();
                    known.local.filter(|_| is_same && !has_content)
                });
                self.insert(
                    path,
                    Known {
                        entry: entry.clone(),
                        local,
                    },
                )
            }
            Operation::Delete { path } => Ok(self.remove(path)),
        }
    }

    /// Returns the names in a directory, `None` being the top, with what is known of each.
    pub fn children(&self, path: Option<&RelPath>) -> impl Iterator<Item = (&[u8], &Known)> {
        let mut directory = Some(&self.top);
        for name in path.into_iter().flat_map(RelPath::names) {
            directory = directory
                .and_then(|directory| directory.children.get(name))
                .and_then(|node| node.directory.as_deref());
        }
        directory
            .into_iter()
            .flat_map(|directory| &directory.children)
            .map(|(name, node)| (&**name, &node.known))
    }

    /// Calls `visit` with every path, in their order.
    pub fn visit<E>(
        &self,
        visit: &mut impl FnMut(&RelPath, &Known) -> Result<(), E>,
    ) -> Result<(), E> {
        visit_directory(&self.top, None, visit)
    }

    /// Returns every path with what is known of it, in their order.
    pub fn entries(&self) -> Vec<(RelPath, Known)> {
        let mut entries = Vec::with_capacity(self.count);
        let done: Result<(), std::convert::Infallible> = self.visit(&mut |path, known| {
            entries.push((path.clone(), known.clone()));
            Ok(())
        });
        match done {
            Ok(()) => entries,
            Err(never) => match never {},
        }
    }

    /// Returns how many paths there are.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Returns whether there is no path.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Returns how many bytes its files have.
    pub fn bytes(&self) -> u64 {
        let mut bytes = 0_u64;
        let done: Result<(), std::convert::Infallible> = self.visit(&mut |_, known| {
            let size = known.entry.content().map_or(0, |(size, _)| size);
            bytes = bytes.saturating_add(size);
            Ok(())
        });
        match done {
            Ok(()) => bytes,
            Err(never) => match never {},
        }
    }

    /// Returns the Merkle hash of the whole.
    pub fn root(&mut self) -> Digest {
        self.top.digest()
    }

    /// Returns the directory at `path`, with every hash on the way to it made stale.
    fn open(&mut self, path: Option<&RelPath>) -> &mut Directory {
        let mut directory = &mut self.top;
        directory.hash = None;
        for name in path.into_iter().flat_map(RelPath::names) {
            directory = directory
                .children
                .get_mut(name)
                .and_then(|node| node.directory.as_deref_mut())
                .expect("the caller has found the directory");
            directory.hash = None;
        }
        directory
    }
}

impl Directory {
    fn digest(&mut self) -> Digest {
        if let Some(hash) = self.hash {
            return hash;
        }
        let mut hasher = blake3::Hasher::new_derive_key("understudy 2026 files directory");
        for (name, node) in &mut self.children {
            let entry = entry_bytes(&node.known.entry);
            // Lengths before what they measure: no two lists have the same bytes.
            hasher.update(&length(name.len()));
            hasher.update(name);
            hasher.update(&length(entry.len()));
            hasher.update(&entry);
            if let Some(directory) = &mut node.directory {
                hasher.update(directory.digest().as_bytes());
            }
        }
        let hash = hasher.finalize().into();
        self.hash = Some(hash);
        hash
    }
}

fn entry_bytes(entry: &Entry) -> Vec<u8> {
    // Writing to memory does not fail, and an entry has nothing that cannot be written.
    postcard::to_stdvec(entry).expect("an entry can be encoded")
}

fn length(length: usize) -> [u8; 8] {
    u64::try_from(length).unwrap_or(u64::MAX).to_le_bytes()
}

fn collect(directory: Option<&Directory>, path: Option<&RelPath>, into: &mut Vec<RelPath>) {
    let Some(directory) = directory else { return };
    let done: Result<(), std::convert::Infallible> =
        visit_directory(directory, path, &mut |path, _| {
            into.push(path.clone());
            Ok(())
        });
    match done {
        Ok(()) => {}
        Err(never) => match never {},
    }
}

fn visit_directory<E>(
    directory: &Directory,
    path: Option<&RelPath>,
    visit: &mut impl FnMut(&RelPath, &Known) -> Result<(), E>,
) -> Result<(), E> {
    for (name, node) in &directory.children {
        let path = RelPath::child(path, name).expect("it was a path when it was inserted");
        visit(&path, &node.known)?;
        if let Some(directory) = &node.directory {
            visit_directory(directory, Some(&path), visit)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::entry::Kind;
    use super::*;
    use proptest::prelude::*;

    fn path(text: &str) -> RelPath {
        RelPath::new(text).unwrap()
    }

    fn entry(kind: Kind) -> Known {
        let entry = Entry {
            kind,
            mode: 0o644,
            uid: 0,
            gid: 0,
            mtime_ns: 1,
        };
        Known { entry, local: None }
    }

    fn file(content: &str) -> Known {
        let hash = Digest::of(content.as_bytes());
        entry(Kind::File {
            size: content.len() as u64,
            hash,
        })
    }

    fn directory() -> Known {
        entry(Kind::Directory)
    }

    #[test]
    fn equal_trees_have_equal_roots_whatever_their_history() {
        let mut one = Manifest::default();
        one.insert(&path("d"), directory()).unwrap();
        one.insert(&path("d/a"), file("1")).unwrap();
        let with_one = one.root();
        one.insert(&path("d/b"), file("2")).unwrap();
        assert_ne!(one.root(), with_one);
        assert_eq!(one.remove(&path("d/b")), [path("d/b")]);
        assert_eq!(one.root(), with_one);
        let mut moved = Manifest::default();
        moved.insert(&path("d"), directory()).unwrap();
        moved.insert(&path("a"), file("1")).unwrap();
        assert_ne!(moved.root(), with_one);
    }

    #[test]
    fn a_directory_that_becomes_a_file_takes_what_it_held_with_it() {
        let mut manifest = Manifest::default();
        for name in ["d", "d/e"] {
            manifest.insert(&path(name), directory()).unwrap();
        }
        manifest.insert(&path("d/e/f"), file("1")).unwrap();
        assert_eq!(
            manifest.insert(&path("d"), file("2")).unwrap(),
            [path("d/e"), path("d/e/f")]
        );
        assert_eq!(manifest.len(), 1);
        assert_eq!(manifest.get(&path("d/e/f")), None);
        let misfit = manifest.insert(&path("d/x"), file("3")).unwrap_err();
        assert_eq!(
            misfit.to_string(),
            "d/x lies in what is not a directory of this store"
        );
    }

    #[test]
    fn how_a_path_looks_here_is_no_part_of_the_hash() {
        let mut manifest = Manifest::default();
        manifest.insert(&path("a"), file("1")).unwrap();
        let root = manifest.root();
        let local = super::super::Identity {
            inode: 1,
            size: 1,
            mtime_ns: 1,
            ctime_ns: 1,
            mode: 0o644,
            uid: 0,
            gid: 0,
        };
        manifest.learn(&path("a"), Some(local));
        assert_eq!(manifest.root(), root);
        assert!(!manifest.get(&path("a")).unwrap().is_awaited());
    }

    proptest! {
        #[test]
        fn any_history_has_the_root_of_what_is_left(
            history in prop::collection::vec(("[ab](/[ab]){0,2}", 0..4_u8), 0..40)
        ) {
            let mut manifest = Manifest::default();
            let mut model = BTreeMap::<RelPath, Known>::new();
            for (text, what) in history {
                let at = path(&text);
                let known = match what {
                    0 => directory(),
                    1 => file("1"),
                    2 => file("2"),
                    _ => {
                        let went = manifest.remove(&at);
                        model.retain(|other, _| *other != at && !other.is_beneath(&at));
                        prop_assert!(went.iter().all(|p| !model.contains_key(p)));
                        continue;
                    }
                };
                let is_directory = known.entry.is_directory();
                if manifest.insert(&at, known.clone()).is_ok() {
                    if !is_directory {
                        model.retain(|other, _| !other.is_beneath(&at));
                    }
                    model.insert(at, known);
                }
                if what == 1 {
                    manifest.root();
                }
            }
            let left = manifest.entries();
            prop_assert_eq!(manifest.len(), left.len());
            prop_assert_eq!(&left, &model.into_iter().collect::<Vec<_>>());
            let mut fresh = Manifest::default();
            for (at, known) in left {
                fresh.insert(&at, known).unwrap();
            }
            prop_assert_eq!(fresh.root(), manifest.root());
        }
    }
}
