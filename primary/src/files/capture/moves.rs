//! What got another path: told by the kernel or found by a scan, believed if what is there agrees.

use std::time::Instant;

use rustix::fs::FileType;
use understudy_replication::files::{Manifest, Operation, RelPath, identity};

use super::super::FilesError;
use super::super::commit::commit_moves;
use super::super::dirty::older;
use super::super::jobs::Why;
use super::super::look::{Looker, Tree};
use super::Capture;
use super::scan::Scan;

/// Something that seems to have moved.
pub(super) struct Moving {
    pub(super) from: RelPath,
    pub(super) to: RelPath,
    pub(super) since: Option<Instant>,
    /// Nothing was being looked at when it moved: so nobody can have taken the one place for the other.
    pub(super) is_quiet: bool,
}

impl Capture {
    /// Commits what was moved, where what is there now agrees with what was told.
    pub(super) fn make_moves(&mut self, now: Instant) -> Result<(), FilesError> {
        let moves = std::mem::take(&mut self.moves);
        let Some(tree) = self.tree.clone().filter(|_| !moves.is_empty()) else {
            return Ok(());
        };
        // What was found before is told under the paths of before.
        self.commit()?;
        let mut directories = Vec::new();
        for moving in &moves {
            let made = self.make_known(&tree, &moving.to, now)?;
            directories.extend(made.into_iter().map(|made| (made, moving.since)));
        }
        let judge =
            |manifest: &Manifest, from: &RelPath, to: &RelPath| confirm(&tree, manifest, from, to);
        let told = moves
            .iter()
            .map(|moving| (moving.from.clone(), moving.to.clone()));
        let moved =
            commit_moves(&self.shared, told, judge).map_err(|source| self.failed(source))?;
        for (directory, since) in directories {
            // What has been moved there is known by now.
            self.dirty.mark_since(directory, true, since, now);
        }
        for Moving {
            from,
            to,
            since,
            is_quiet,
        } in moves
        {
            for path in [from.parent(), to.parent()].into_iter().flatten() {
                self.dirty.mark_since(path, false, since, now);
            }
            // A move that was not confirmed is something that has gone, and something new.
            let is_deep = !moved.contains(&to);
            self.dirty.mark_since(from, is_deep, since, now);
            self.dirty.mark_since(to.clone(), is_deep, since, now);
            let is_directory = || {
                let found = tree.root.stat(&to).map(|stat| identity(&stat));
                found.is_ok_and(|found| found.file_type() == FileType::Directory)
            };
            if !is_deep && is_directory() {
                // What was looked at in it meanwhile may have been something else at that path.
                let since = since.filter(|_| !is_quiet);
                let scan = self
                    .scan
                    .get_or_insert_with(|| Scan::new(Why::Patrol, None, now));
                scan.since = older(scan.since, since);
                scan.waiting.push(Some(to));
            }
        }
        Ok(())
    }

    /// Commits the directories above `path` that are not known yet, so that something can be moved
    /// there, and returns them: what else they hold has still to be looked at.
    pub(super) fn make_known(
        &mut self,
        tree: &Tree,
        path: &RelPath,
        now: Instant,
    ) -> Result<Vec<RelPath>, FilesError> {
        let mut above = Vec::new();
        let mut at = path.parent();
        while let Some(directory) = at {
            let is_known = self.shared.ledger().as_ref().is_some_and(|ledger| {
                let id = ledger.manifest.lookup(&directory);
                id.is_some_and(|id| ledger.manifest.is_directory(id))
            });
            if is_known {
                break;
            }
            at = directory.parent();
            above.push(directory);
        }
        above.reverse();
        for directory in &above {
            let mut looker = Looker::new(&self.shared, tree);
            looker.look(directory, false);
            for (path, change) in looker.found.changes {
                self.pending.add(path, change, now);
            }
            self.commit()?;
        }
        Ok(above)
    }
}

/// Returns the operation of a move that was told, if what is there agrees with it.
fn confirm(tree: &Tree, manifest: &Manifest, from: &RelPath, to: &RelPath) -> Option<Operation> {
    let inode_at = |path: &RelPath| tree.root.stat(path).ok().map(|stat| stat.stx_ino);
    let id = manifest.lookup(from)?;
    let inode = manifest.inode(id)?;
    manifest.directory_of(to)?;
    if inode_at(to) != Some(inode) {
        return None;
    }
    let at_from = inode_at(from);
    if at_from == Some(inode) {
        return None;
    }
    // What was at the new path may be at the old one now.
    if let Some(other) = manifest.lookup(to)
        && at_from.is_some()
        && manifest.inode(other) == at_from
    {
        return Some(Operation::Swap {
            a: from.clone(),
            b: to.clone(),
        });
    }
    Some(Operation::Move {
        from: from.clone(),
        to: to.clone(),
    })
}
