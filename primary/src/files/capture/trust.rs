//! Whether the tree is what it should be: an unmounted or emptied one is never read as deletions.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use understudy_replication::event::Severity;
use understudy_replication::files::{LOST_AND_FOUND, RESERVED, RelPath, Root};

use super::super::look::{Change, LookError, Tree};
use super::super::watch::Watch;
use super::{ABOUT_ROOT, Capture, Pending};

impl Capture {
    /// Makes sure that the tree is open and where it should be.
    pub(super) fn find_tree(&mut self) -> Result<(), String> {
        if self
            .tree
            .as_ref()
            .is_some_and(|tree| tree.root.is_in_place())
        {
            return Ok(());
        }
        let had_tree = self.tree.take().is_some();
        self.void();
        let place = self.place();
        let root = Root::open(&self.shared.root)
            .map_err(|error| format!("{place} cannot be opened: {error}"))?;
        let names = root
            .names(None)
            .map_err(|error| format!("{place} cannot be read: {error}"))?;
        if self.has_entries() && !names.iter().any(|name| self.is_ours(name)) {
            return Err(self.empty_reason());
        }
        let watch = Watch::open(&root, None)
            .map_err(|error| format!("{place} cannot be watched: {error}"))?;
        if had_tree {
            tracing::info!(store = %self.shared.id.name, "the tree was replaced; looking at all of it");
        }
        tracing::info!(store = %self.shared.id.name, backend = ?watch.backend(), "watching the tree");
        self.tree = Some(Arc::new(Tree::new(root, watch)));
        // Nobody has told of what has happened since then, and what was being looked at is void.
        self.dirty.mark_all(self.begun);
        Ok(())
    }

    /// Forgets what was found in a tree that is not there any more, and waits for those who look at it.
    pub(super) fn void(&mut self) {
        while self.jobs.wait().is_some() {}
        self.scan = None;
        self.moves.clear();
        self.strays.clear();
        self.pending = Pending::default();
    }

    pub(super) fn check_tree(&self, pending: &BTreeMap<RelPath, Change>) -> Result<(), String> {
        if !pending.values().any(|change| *change == Change::Delete) {
            return Ok(());
        }
        let Some(tree) = &self.tree else {
            return Err(self.empty_reason());
        };
        if !tree.root.is_in_place() {
            return Err(format!("{} is not what it was", self.place()));
        }
        let names = tree
            .root
            .names(None)
            .map_err(|error| format!("{} cannot be read: {error}", self.place()))?;
        if !names.iter().any(|name| self.is_ours(name)) {
            return Err(self.empty_reason());
        }
        Ok(())
    }

    pub(super) fn is_ours(&self, name: &[u8]) -> bool {
        name != RESERVED
            && name != LOST_AND_FOUND
            && RelPath::new(name).is_ok_and(|path| !self.shared.exclude().is_match(path.as_path()))
    }

    pub(super) fn has_entries(&self) -> bool {
        self.shared
            .ledger()
            .as_ref()
            .is_some_and(|ledger| !ledger.manifest.is_empty())
    }

    pub(super) fn place(&self) -> String {
        self.shared.root.display().to_string()
    }

    pub(super) fn reason(&self, error: &LookError) -> String {
        match error {
            LookError::Empty => self.empty_reason(),
            LookError::Top(_) => {
                format!("{} cannot be read: {}", self.place(), root_cause(error))
            }
        }
    }

    pub(super) fn empty_reason(&self) -> String {
        format!(
            "{} is empty, though it held files before; mount what belongs there. If it is meant to be \
             empty, make any file in it",
            self.place()
        )
    }

    /// Believes nothing about the tree until it can be trusted again.
    pub(super) fn halt(&mut self, reason: &str) {
        self.shared.is_halted.store(true, Ordering::Release);
        self.tree = None;
        self.void();
        self.shared.problem(
            ABOUT_ROOT,
            Severity::Error,
            "files_halted",
            format!(
                "store {} is not captured, and nothing is deleted: {reason}",
                self.shared.id.name
            ),
        );
        for mark in self.marks.drain(..) {
            // Who asked may have stopped waiting.
            let _late = mark.reply.send(None).is_err();
        }
    }
}

fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}
