//! Files that were changed under a name that they do not have any more: nobody tells of the others.

use std::time::Instant;

use rustix::fs::FileType;
use understudy_replication::files::{RelPath, identity};

use super::super::watch::FileHandle;
use super::Capture;

/// A file that was changed, and under which name.
#[derive(Debug)]
pub(super) struct Changed {
    path: RelPath,
    file: FileHandle,
    since: Instant,
    /// What looks at that name is before this job.
    job: u64,
}

/// A file of which all names have to be looked at.
#[derive(Debug)]
pub(super) struct Stray {
    inode: u64,
    since: Instant,
    /// A name of it may be what a job before this one is looking at, as it was before.
    job: u64,
}

/// What is known of changed files, and has yet to be followed.
#[derive(Debug, Default)]
pub(super) struct Strays {
    changed: Vec<Changed>,
    strays: Vec<Stray>,
}

impl Strays {
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    /// Returns whether nothing that happened before `asked` is still to be followed.
    pub(super) fn covers(&self, asked: Instant) -> bool {
        let changed = self.changed.iter().map(|changed| changed.since);
        let strays = self.strays.iter().map(|stray| stray.since);
        changed.chain(strays).all(|since| since > asked)
    }
}

impl Capture {
    /// Notes that a file was changed under `path`.
    pub(super) fn note_changed(&mut self, path: RelPath, file: FileHandle, since: Instant) {
        self.strays.changed.push(Changed {
            path,
            file,
            since,
            job: self.jobs.next(),
        });
    }

    /// Finds the files that were not what was found under the name that they were changed under, and has
    /// their other names looked at.
    ///
    /// Only after that name was looked at: what is still the same file then was it when it was looked at,
    /// or has come back since, which is told.
    pub(super) fn follow_strays(&mut self, now: Instant) {
        for mut changed in std::mem::take(&mut self.strays.changed) {
            if self.dirty.has(&changed.path) {
                changed.job = self.jobs.next();
            }
            if self.dirty.has(&changed.path) || !self.jobs.are_done_before(changed.job) {
                self.strays.changed.push(changed);
            } else if let Some(inode) = self.strayed(&changed) {
                self.strays.strays.push(Stray {
                    inode,
                    since: changed.since,
                    job: self.jobs.next(),
                });
            }
        }
        for stray in std::mem::take(&mut self.strays.strays) {
            let mut names = self.shared.names_with(stray.inode);
            names.extend(self.pending.names_with(stray.inode));
            for name in names {
                self.dirty.mark_since(name, false, Some(stray.since), now);
            }
            if !self.jobs.are_done_before(stray.job) {
                self.strays.strays.push(stray);
            }
        }
    }

    /// Returns the inode of a file that is there, and not under the name under which it was changed.
    fn strayed(&self, changed: &Changed) -> Option<u64> {
        let tree = self.tree.as_ref()?;
        let found = tree.root.stat(&changed.path).ok();
        let found = found.map(|stat| identity(&stat));
        let found = found.filter(|found| found.file_type() == FileType::RegularFile);
        let found = found.map(|found| found.inode);
        if found.is_some() && found == changed.file.inode() {
            return None;
        }
        let inode = changed.file.find(tree.root.fd())?;
        (Some(inode) != found).then_some(inode)
    }
}
