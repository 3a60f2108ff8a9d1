//! What was found and is not committed yet.

use std::collections::BTreeMap;
use std::time::Instant;

use understudy_replication::files::RelPath;

use super::super::look::Change;
use super::super::watch::beneath;

/// Changes that are not committed yet.
#[derive(Default)]
pub(super) struct Pending {
    pub(super) changes: BTreeMap<RelPath, Change>,
    pub(super) since: Option<Instant>,
}

impl Pending {
    /// Returns the paths that were found to be the file with this inode.
    pub(super) fn names_with(&self, inode: u64) -> Vec<RelPath> {
        let is_it = |change: &Change| match change {
            Change::Put { known, .. } => known.local.seen().is_some_and(|seen| seen.inode == inode),
            Change::Learn(local) => local.seen().is_some_and(|seen| seen.inode == inode),
            Change::Delete => false,
        };
        let found = self.changes.iter().filter(|(_, change)| is_it(change));
        found.map(|(path, _)| path.clone()).collect()
    }

    pub(super) fn add(&mut self, path: RelPath, change: Change, now: Instant) {
        let is_directory = match &change {
            Change::Put { known, .. } => known.entry.is_directory(),
            Change::Delete => false,
            Change::Learn(_) => true,
        };
        if !is_directory {
            // What was seen within it before is void.
            for at in beneath(&self.changes, &path) {
                self.changes.remove(&at);
            }
        }
        self.changes.insert(path, change);
        self.since.get_or_insert(now);
    }
}
