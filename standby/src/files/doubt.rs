//! A copy of which something has failed while it was changed is not called whole before all of it has been
//! looked at: what such a failure leads to (a directory that could not be made, into whose place another
//! one moves) cannot be followed entry by entry.
//!
//! Invariant: the doubt is durable before what gave rise to it is committed. It ends when a look at
//! everything, begun after the last reason for it, has found nothing.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use understudy_replication::durable;

/// Whether there is a doubt.
#[derive(Debug)]
pub(super) struct Doubt {
    path: PathBuf,
    is_there: bool,
    /// The number of the last reason for it.
    reasons: u64,
}

/// Numbers reasons, for all that are opened: what is opened again after a failure must not seem to have had
/// no reason since.
static REASONS: AtomicU64 = AtomicU64::new(0);

fn next_reason() -> u64 {
    REASONS.fetch_add(1, Ordering::Relaxed)
}

impl Doubt {
    pub(super) fn open(state: &Path) -> Self {
        let path = state.join("doubt");
        // What cannot be told is doubted.
        let is_there = path.try_exists().unwrap_or(true);
        Self {
            path,
            is_there,
            reasons: next_reason(),
        }
    }

    pub(super) fn is_there(&self) -> bool {
        self.is_there
    }

    /// Returns the number of the last reason for it, or of its having been opened since.
    pub(super) fn reasons(&self) -> u64 {
        self.reasons
    }

    /// Notes a reason for it.
    pub(super) fn raise(&mut self) -> io::Result<()> {
        self.reasons = next_reason();
        if !self.is_there {
            durable::write(&self.path, b"", 0o600)?;
            self.is_there = true;
        }
        Ok(())
    }

    /// Ends it, unless there was a further reason for it since this one. Returns whether it has ended.
    pub(super) fn end(&mut self, reasons: u64) -> io::Result<bool> {
        if self.reasons != reasons {
            return Ok(false);
        }
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        // If it comes back after a power cut, there is one more look.
        self.is_there = false;
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_doubt_is_kept_until_a_look_begun_after_its_last_reason() {
        let folder = tempfile::tempdir().unwrap();
        let mut doubt = Doubt::open(folder.path());
        assert!(!doubt.is_there());
        doubt.raise().unwrap();
        let before = doubt.reasons();
        doubt.raise().unwrap();
        assert!(!doubt.end(before).unwrap());
        let mut doubt = Doubt::open(folder.path());
        assert!(doubt.is_there(), "after a restart");
        assert!(!doubt.end(before).unwrap(), "a look begun before that");
        let now = doubt.reasons();
        assert!(doubt.end(now).unwrap());
        assert!(!Doubt::open(folder.path()).is_there());
    }
}
