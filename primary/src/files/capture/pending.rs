//! What was found and is not committed yet.

use std::collections::BTreeMap;
use std::time::Instant;

use understudy_replication::files::RelPath;

use super::super::look::Change;

/// Changes that are not committed yet.
#[derive(Default)]
pub(super) struct Pending {
    pub(super) changes: BTreeMap<RelPath, Change>,
    pub(super) since: Option<Instant>,
}

impl Pending {
    pub(super) fn add(&mut self, path: RelPath, change: Change, now: Instant) {
        let is_directory = match &change {
            Change::Put { known, .. } => known.entry.is_directory(),
            Change::Delete => false,
            Change::Learn(_) => true,
        };
        if !is_directory {
            // What was seen within it before is void.
            let beneath: Vec<RelPath> = self
                .changes
                .range(path.clone()..)
                .skip_while(|(at, _)| **at == path)
                .take_while(|(at, _)| at.is_beneath(&path))
                .map(|(at, _)| at.clone())
                .collect();
            for at in beneath {
                self.changes.remove(&at);
            }
        }
        self.changes.insert(path, change);
        self.since.get_or_insert(now);
    }
}
