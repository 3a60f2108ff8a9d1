//! Files that were changed under a name that they do not have any more: nobody tells of the others.

use std::collections::BTreeMap;
use std::time::Instant;

use rustix::fs::FileType;
use understudy_replication::files::{RelPath, identity};

use super::super::watch::FileHandle;
use super::Capture;

/// More than these are followed by looking at everything.
const STRAYS_MAX: usize = 20_000;

/// What is known of changed files, and has yet to be followed.
#[derive(Debug, Default)]
pub(super) struct Strays {
    /// Under which name a file was changed, and since when that has to be followed.
    changed: BTreeMap<(RelPath, FileHandle), Instant>,
    /// Files, by inode, of which all names have to be looked at.
    strays: BTreeMap<u64, Stray>,
}

#[derive(Debug)]
struct Stray {
    since: Instant,
    /// A name of it may be what a job before this one is looking at, as it was before.
    job: u64,
}

impl Strays {
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    /// Returns whether nothing that happened before `asked` is still to be followed.
    pub(super) fn covers(&self, asked: Instant) -> bool {
        self.oldest().is_none_or(|since| since > asked)
    }

    fn oldest(&self) -> Option<Instant> {
        let strays = self.strays.values().map(|stray| stray.since);
        self.changed.values().copied().chain(strays).min()
    }
}

impl Capture {
    /// Notes that a file was changed under `path`.
    pub(super) fn note_changed(&mut self, path: RelPath, file: FileHandle, since: Instant) {
        if self.strays.changed.len() >= STRAYS_MAX {
            let oldest = self.strays.oldest().unwrap_or(since);
            self.dirty.mark_all(oldest.min(since));
            self.strays.clear();
            return;
        }
        let held = self.strays.changed.entry((path, file)).or_insert(since);
        *held = (*held).min(since);
    }

    /// Finds the files that were not what was found under the name that they were changed under, and has
    /// their other names looked at.
    ///
    /// Only after that name was looked at: what is still the same file then was it when it was looked at,
    /// or has come back since, which is told.
    pub(super) fn follow_strays(&mut self, now: Instant) {
        let (dirty, jobs) = (&self.dirty, &self.jobs);
        let looked_at: Vec<((RelPath, FileHandle), Instant)> = self
            .strays
            .changed
            .extract_if(.., |(path, _), _| !dirty.has(path) && !jobs.is_at(path))
            .collect();
        for ((path, file), since) in looked_at {
            let Some(inode) = self.strayed(&path, &file) else {
                continue;
            };
            let job = self.jobs.next();
            let stray = self.strays.strays.entry(inode);
            let stray = stray.or_insert(Stray { since, job });
            stray.since = stray.since.min(since);
            stray.job = job;
            let since = stray.since;
            self.look_at_names(inode, since, now);
        }
        let jobs = &self.jobs;
        let over: Vec<(u64, Stray)> = self
            .strays
            .strays
            .extract_if(.., |_, stray| jobs.are_done_before(stray.job))
            .collect();
        for (inode, stray) in over {
            // Once more: what was being looked at is known by now.
            self.look_at_names(inode, stray.since, now);
        }
    }

    fn look_at_names(&mut self, inode: u64, since: Instant, now: Instant) {
        let mut names = self.shared.names_with(inode);
        names.extend(self.pending.names_with(inode));
        for name in names {
            self.dirty.mark_since(name, false, Some(since), now);
        }
    }

    /// Returns the inode of a file that is there, and not under the name under which it was changed.
    fn strayed(&self, path: &RelPath, file: &FileHandle) -> Option<u64> {
        let tree = self.tree.as_ref()?;
        let found = tree.root.stat(path).ok().map(|stat| identity(&stat));
        let found = found.filter(|found| found.file_type() == FileType::RegularFile);
        let found = found.map(|found| found.inode);
        if found.is_some() && found == file.inode() {
            return None;
        }
        let inode = file.find(tree.root.fd())?;
        (Some(inode) != found).then_some(inode)
    }
}
