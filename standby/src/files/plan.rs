//! What a batch means, found out on the manifest alone: nothing is done in the tree before it is known
//! to fit.

use std::collections::{BTreeMap, BTreeSet};

use understudy_replication::files::{Batch, Content, Known, Manifest, NodeId, Operation, RelPath};
use understudy_replication::position::Position;

use super::error::FilesError;
use super::patching::may_be_in_place;
use super::tree::Guarded;

/// A batch as it is in the log.
#[derive(Debug)]
pub(super) struct Logged {
    pub(super) batch: Batch,
    pub(super) contents: BTreeMap<u32, Vec<u8>>,
    /// The operations whose content did not come along.
    pub(super) awaited: BTreeSet<u32>,
}

impl Logged {
    /// Returns whether nothing else is applied with it before the next commit: what it does can only be
    /// done again from exactly what was there before it.
    pub(super) fn is_apart(&self) -> bool {
        (0_u32..)
            .zip(&self.batch.operations)
            .any(|(index, operation)| match operation {
                Operation::Move { .. } | Operation::Swap { .. } => true,
                Operation::Put { entry, content, .. } => {
                    let size = entry.content().map_or(0, |(size, _)| size);
                    match content {
                        Content::Patch(patch) if may_be_in_place(patch, size) => true,
                        Content::Whole | Content::Patch(_) => self.is_staged(index, operation),
                        Content::Same | Content::Copy(_) | Content::Link(_) => false,
                    }
                }
                Operation::Delete { .. } => false,
            })
    }

    /// Returns whether the content of an operation is in a staged file.
    fn is_staged(&self, index: u32, operation: &Operation) -> bool {
        let Some((size, _)) = operation.literal() else {
            return false;
        };
        !self.awaited.contains(&index)
            && size > 0
            && self.contents.get(&index).is_none_or(Vec::is_empty)
    }

    /// Returns how many bytes of content it holds in memory.
    pub(super) fn inline_bytes(&self) -> usize {
        self.contents.values().map(Vec::len).sum()
    }
}

/// The name under which the content for an operation is staged.
pub(super) fn staged_name(start: Position, index: u32) -> String {
    format!("lit-{start}-{index}")
}

/// What a batch means, found out on the manifest while it was folded.
pub(super) struct Plan {
    pub(super) before: Vec<Before>,
    /// What changes its place, and its inode where that is known.
    pub(super) moved: Vec<(NodeId, Option<u64>)>,
    /// Other names of files that the batch changes: that shows in them.
    pub(super) names: Vec<NodeId>,
    /// Directories whose time has to be set.
    pub(super) directories: BTreeSet<NodeId>,
}

/// What was known when an operation's turn came.
pub(super) enum Before {
    Put {
        was: Option<Box<Known>>,
        source: Option<Box<Known>>,
    },
    Delete {
        was: Option<u64>,
    },
    Move {
        inode: Option<u64>,
        replaced: Option<u64>,
    },
    Swap {
        a: Option<u64>,
        b: Option<u64>,
    },
}

impl Plan {
    /// Folds a batch into the manifest, and checks that both sides then have the same. After an error the
    /// manifest has to be read again.
    pub(super) fn new(manifest: &mut Manifest, batch: &Batch) -> Result<Self, FilesError> {
        let diverged = |position| FilesError::Diverged { position };
        if manifest.root() != batch.before {
            return Err(diverged(batch.start));
        }
        let mut plan = Self {
            before: Vec::with_capacity(batch.operations.len()),
            moved: Vec::new(),
            names: Vec::new(),
            directories: BTreeSet::new(),
        };
        let mut links = BTreeSet::new();
        for operation in &batch.operations {
            let before = plan.look(manifest, operation, &mut links);
            plan.before.push(before);
            manifest.fold(operation)?;
            if let Operation::Put { path, entry, .. } = operation
                && entry.is_directory()
            {
                plan.directories.extend(manifest.lookup(path));
            }
        }
        if manifest.root() != batch.after {
            return Err(diverged(batch.end));
        }
        plan.names
            .extend(links.iter().flat_map(|link| manifest.linked(*link)));
        Ok(plan)
    }

    fn look(
        &mut self,
        manifest: &Manifest,
        operation: &Operation,
        links: &mut BTreeSet<u64>,
    ) -> Before {
        let mut touch = |path: &RelPath| self.directories.extend(manifest.directory_of(path));
        let mut changes = |id: Option<NodeId>, names: &mut Vec<NodeId>| {
            let link = id.map_or(0, |id| manifest.link(id));
            if link != 0 && links.insert(link) {
                names.extend(manifest.linked(link));
            }
        };
        match operation {
            Operation::Put {
                path,
                entry,
                content,
            } => {
                touch(path);
                changes(manifest.lookup(path), &mut self.names);
                if entry.link != 0 {
                    links.insert(entry.link);
                }
                let source = match content {
                    Content::Link(from) => manifest.get(from).map(Box::new),
                    Content::Same | Content::Whole | Content::Patch(_) | Content::Copy(_) => None,
                };
                Before::Put {
                    was: manifest.get(path).map(Box::new),
                    source,
                }
            }
            Operation::Delete { path } => {
                touch(path);
                let id = manifest.lookup(path);
                changes(id, &mut self.names);
                Before::Delete {
                    was: id.and_then(|id| manifest.inode(id)),
                }
            }
            Operation::Move { from, to } => {
                touch(from);
                touch(to);
                let replaced = manifest.lookup(to);
                changes(replaced, &mut self.names);
                let replaced = replaced.and_then(|id| manifest.inode(id));
                let id = manifest.lookup(from);
                changes(id, &mut self.names);
                let inode = id.and_then(|id| manifest.inode(id));
                self.moved.extend(id.map(|id| (id, inode)));
                Before::Move { inode, replaced }
            }
            Operation::Swap { a, b } => {
                touch(a);
                touch(b);
                let mut side = |path| {
                    let id = manifest.lookup(path);
                    changes(id, &mut self.names);
                    let inode = id.and_then(|id| manifest.inode(id));
                    self.moved.extend(id.map(|id| (id, inode)));
                    inode
                };
                Before::Swap {
                    a: side(a),
                    b: side(b),
                }
            }
        }
    }

    /// Returns what is not to be taken away for being in the way.
    pub(super) fn guarded(&self) -> Guarded {
        self.moved.iter().filter_map(|(_, inode)| *inode).collect()
    }
}
