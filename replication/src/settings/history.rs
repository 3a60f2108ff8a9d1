//! The revisions that a node has, on disk.
//!
//! ```text
//! STATE/settings/history/NUMBER-DIGEST.revision     one file per revision
//! STATE/settings/history/NUMBER-DIGEST.superseded   made in an epoch that lost; kept, not listed
//! STATE/settings/applied.json                       the marker: what this node's files are
//! STATE/settings/pending.json                       what is being applied, until the marker says so
//! STATE/settings/refused.json, refused.revision     what did not validate here, and why
//! STATE/settings/replaced/NUMBER/…                  local files that a revision has replaced
//! ```

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::codec::{DecodeError, ENCODED_BYTES_MAX, SUMMARY_BYTES_MAX, decode_summary};
use super::revision::{Digest, Revision, RevisionSummary};
use crate::durable;
use crate::wall_time::WallTime;

/// How many revisions a node keeps; the oldest go first.
pub const REVISIONS_MAX: usize = 1000;

/// How large all kept revisions may be together; the oldest go first.
pub const HISTORY_BYTES_MAX: u64 = 1 << 30;

/// How many revisions may be given up half applied before the first of them is forgotten.
const PENDING_MAX: usize = 16;

/// How long a reason is kept in full.
const REASON_CHARS_MAX: usize = 4000;

/// Why the history cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum HistoryError {
    /// A file operation failed.
    #[error("cannot {action} {}", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A stored revision is damaged.
    #[error("{} is not a revision of the settings", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: DecodeError,
    },
    /// There is no such revision.
    #[error("there is no revision {number} of the settings here")]
    Absent {
        /// The number asked for.
        number: u64,
    },
}

/// Where what this node has applied came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// It was captured here, as primary. As standby of another primary its number says nothing
    /// before that one has been heard.
    Captured,
    /// It was received, as standby.
    Received,
}

/// Which revision the files of this node are. Written after the last of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Marker {
    /// The revision's number.
    pub number: u64,
    /// Its digest.
    pub digest: Digest,
    /// Where it came from.
    pub origin: Origin,
    /// The reload command has succeeded since.
    pub is_reloaded: bool,
}

/// A revision that did not validate here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// What was refused.
    pub summary: RevisionSummary,
    /// When, by this node's clock.
    pub time: WallTime,
    /// Why, with the last line that the command printed.
    pub reason: String,
}

/// The revisions that a node has. Holds no state but the folder: any number of readers may open it,
/// whatever the node's role; one store at a time writes.
#[derive(Clone, Debug)]
pub struct History {
    folder: PathBuf,
}

impl History {
    /// Opens the history beneath the node's state folder; makes what is missing.
    ///
    /// # Errors
    /// When a folder cannot be made.
    pub fn open(state: &Path) -> Result<Self, HistoryError> {
        let history = Self {
            folder: state.join("settings"),
        };
        for path in [history.revisions(), history.replaced()] {
            durable::create_directory(&path, 0o700).map_err(failed("make", &path))?;
        }
        Ok(history)
    }

    fn revisions(&self) -> PathBuf {
        self.folder.join("history")
    }

    /// Returns where local files are kept that a revision has replaced.
    pub fn replaced(&self) -> PathBuf {
        self.folder.join("replaced")
    }

    fn path_of(&self, number: u64, digest: Digest, ending: &str) -> PathBuf {
        self.revisions()
            .join(format!("{number:020}-{}.{ending}", digest.short()))
    }

    /// Returns every revision, the oldest first; damaged ones are left out and logged.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn list(&self) -> Result<Vec<RevisionSummary>, HistoryError> {
        let mut list = Vec::new();
        for path in self.files()? {
            match summary(&path) {
                Ok(summary) => list.push(summary),
                Err(error) => {
                    tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        "skipped a revision"
                    );
                }
            }
        }
        list.sort_by_key(|summary| summary.number);
        Ok(list)
    }

    /// Returns the newest revision.
    ///
    /// # Errors
    /// When it is there and cannot be read.
    pub fn latest(&self) -> Result<Option<Revision>, HistoryError> {
        self.files()?.last().map(|path| load(path)).transpose()
    }

    /// Returns the revision of that number.
    ///
    /// # Errors
    /// When there is none, or it is damaged.
    pub fn show(&self, number: u64) -> Result<Revision, HistoryError> {
        let start = format!("{number:020}-");
        let files = self.files()?;
        let found = files.iter().rfind(|path| name_of(path).starts_with(&start));
        load(found.ok_or(HistoryError::Absent { number })?)
    }

    /// Returns exactly that revision, even if a later epoch has superseded it.
    ///
    /// # Errors
    /// When there is none, or it is damaged.
    pub fn load(&self, number: u64, digest: Digest) -> Result<Revision, HistoryError> {
        let mut paths =
            ["revision", "superseded"].map(|ending| self.path_of(number, digest, ending));
        paths.sort_by_key(|path| !path.exists());
        match load(&paths[0]) {
            Err(HistoryError::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                Err(HistoryError::Absent { number })
            }
            result => result,
        }
    }

    /// Makes `revision` the newest, durably. What is here under its number or a higher one was made
    /// in an epoch that lost: it is kept under another name.
    ///
    /// # Errors
    /// When it cannot be written; it is then not in the history.
    pub fn record(&self, revision: &Revision) -> Result<(), HistoryError> {
        let target = self.path_of(revision.number(), revision.digest(), "revision");
        for path in self.files()? {
            let number = number_of(&path);
            if number.is_some_and(|number| number >= revision.number()) && path != target {
                let superseded = path.with_extension("superseded");
                fs::rename(&path, &superseded).map_err(failed("rename", &path))?;
            }
        }
        if !target.exists() {
            durable::write(&target, &revision.encode(), 0o600).map_err(failed("write", &target))?;
        }
        self.prune()
    }

    /// Takes a revision off the list, durably: it was made in an epoch that lost. Returns where it is kept, and
    /// how long it is, in bytes.
    ///
    /// # Errors
    /// When there is none, or it cannot be renamed.
    pub fn set_aside(&self, number: u64, digest: Digest) -> Result<(PathBuf, u64), HistoryError> {
        let listed = self.path_of(number, digest, "revision");
        let kept = listed.with_extension("superseded");
        match fs::rename(&listed, &kept) {
            Ok(()) => durable::sync_directory_of(&kept).map_err(failed("rename", &listed))?,
            // A later revision has taken it off already.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(failed("rename", &listed)(source)),
        }
        Ok((kept, self.weigh(number, digest)?))
    }

    /// Returns how long a revision is in its file, in bytes.
    ///
    /// # Errors
    /// When there is none.
    pub fn weigh(&self, number: u64, digest: Digest) -> Result<u64, HistoryError> {
        let paths = ["revision", "superseded"].map(|ending| self.path_of(number, digest, ending));
        let found = paths.iter().find_map(|path| path.metadata().ok());
        Ok(found.ok_or(HistoryError::Absent { number })?.len())
    }

    /// Returns the folder with all of it.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Returns which revision the files of this node are.
    ///
    /// # Errors
    /// When the marker is there and cannot be read.
    pub fn applied(&self) -> Result<Option<Marker>, HistoryError> {
        read_json(&self.folder.join("applied.json"))
    }

    /// Records which revision the files of this node are, durably.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn set_applied(&self, marker: &Marker) -> Result<(), HistoryError> {
        write_json(&self.folder.join("applied.json"), marker)
    }

    /// Returns what is being applied: the last is the revision that the files shall be, those before
    /// it were given up half applied. Empty when nothing is.
    ///
    /// # Errors
    /// When the record is there and cannot be read.
    pub fn pending(&self) -> Result<Vec<Marker>, HistoryError> {
        Ok(read_json(&self.folder.join("pending.json"))?.unwrap_or_default())
    }

    /// Records, durably, that `marker`'s revision is going to be applied.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(super) fn add_pending(&self, marker: &Marker) -> Result<(), HistoryError> {
        let mut pending = self.pending()?;
        pending
            .retain(|earlier| (earlier.number, earlier.digest) != (marker.number, marker.digest));
        pending.push(marker.clone());
        pending.drain(..pending.len().saturating_sub(PENDING_MAX));
        write_json(&self.folder.join("pending.json"), &pending)
    }

    /// Forgets what was being applied: the marker says it now.
    ///
    /// # Errors
    /// When the record cannot be removed.
    pub(super) fn clear_pending(&self) -> Result<(), HistoryError> {
        self.remove("pending.json")
    }

    fn remove(&self, name: &str) -> Result<(), HistoryError> {
        let path = self.folder.join(name);
        match fs::remove_file(&path) {
            Ok(()) => durable::sync_directory_of(&path).map_err(failed("remove", &path)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(source) => Err(failed("remove", &path)(source)),
        }
    }

    /// Returns the revision that did not validate here, if the newest did not.
    ///
    /// # Errors
    /// When the record is there and cannot be read.
    pub fn refused(&self) -> Result<Option<Refusal>, HistoryError> {
        read_json(&self.folder.join("refused.json"))
    }

    /// Keeps a revision that did not validate, visible but not applied.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn set_refused(&self, revision: &Revision, reason: &str) -> Result<(), HistoryError> {
        let path = self.folder.join("refused.revision");
        durable::write(&path, &revision.encode(), 0o600).map_err(failed("write", &path))?;
        let refusal = Refusal {
            summary: revision.summary(),
            time: WallTime::now(),
            reason: reason.chars().take(REASON_CHARS_MAX).collect(),
        };
        write_json(&self.folder.join("refused.json"), &refusal)
    }

    /// Forgets what was refused: a later revision has been applied.
    ///
    /// # Errors
    /// When a file cannot be removed.
    pub fn clear_refused(&self) -> Result<(), HistoryError> {
        self.remove("refused.json")?;
        self.remove("refused.revision")
    }

    /// Returns the listed revisions' files, the oldest first.
    fn files(&self) -> Result<Vec<PathBuf>, HistoryError> {
        self.ending("revision")
    }

    fn ending(&self, ending: &str) -> Result<Vec<PathBuf>, HistoryError> {
        let folder = self.revisions();
        let mut files = Vec::new();
        for entry in fs::read_dir(&folder).map_err(failed("read", &folder))? {
            let path = entry.map_err(failed("read", &folder))?.path();
            if path.extension().is_some_and(|found| found == ending) {
                files.push(path);
            }
        }
        // Numbers are written with all their digits, so names sort as numbers do.
        files.sort();
        Ok(files)
    }

    /// Removes the oldest revisions past the bounds; never the applied one, nor the newest.
    fn prune(&self) -> Result<(), HistoryError> {
        let applied = self
            .applied()?
            .map(|marker| self.path_of(marker.number, marker.digest, "revision"));
        let kept = self.files()?;
        let mut files = self.ending("superseded")?;
        files.extend(kept);
        let size = |path: &PathBuf| path.metadata().map_or(0, |metadata| metadata.len());
        let (mut count, mut bytes) = (files.len(), files.iter().map(size).sum::<u64>());
        // The last one is the newest, and stays.
        for path in files.iter().rev().skip(1).rev() {
            if count <= REVISIONS_MAX && bytes <= HISTORY_BYTES_MAX {
                break;
            }
            let is_applied = applied
                .as_ref()
                .is_some_and(|applied| applied.with_extension("") == path.with_extension(""));
            if !is_applied {
                let freed = size(path);
                fs::remove_file(path).map_err(failed("remove", path))?;
                count -= 1;
                bytes = bytes.saturating_sub(freed);
            }
        }
        Ok(())
    }
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> HistoryError {
    let path = path.to_owned();
    move |source| HistoryError::File {
        action,
        path,
        source,
    }
}

fn name_of(path: &Path) -> &str {
    path.file_name()
        .and_then(|name| name.to_str())
        .unwrap_or_default()
}

fn number_of(path: &Path) -> Option<u64> {
    name_of(path).split_once('-')?.0.parse().ok()
}

fn summary(path: &Path) -> Result<RevisionSummary, HistoryError> {
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(failed("read", path))?;
    file.take(SUMMARY_BYTES_MAX)
        .read_to_end(&mut bytes)
        .map_err(failed("read", path))?;
    let damaged = |source| HistoryError::Damaged {
        path: path.to_owned(),
        source,
    };
    Ok(decode_summary(&bytes).map_err(damaged)?.0)
}

fn load(path: &Path) -> Result<Revision, HistoryError> {
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(failed("read", path))?;
    let bytes_max = u64::try_from(ENCODED_BYTES_MAX).unwrap_or(u64::MAX);
    file.take(bytes_max)
        .read_to_end(&mut bytes)
        .map_err(failed("read", path))?;
    Revision::decode(&bytes).map_err(|source| HistoryError::Damaged {
        path: path.to_owned(),
        source,
    })
}

fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, HistoryError> {
    match fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|error| failed("read", path)(error.into())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(failed("read", path)(source)),
    }
}

fn write_json(path: &Path, value: &impl Serialize) -> Result<(), HistoryError> {
    let bytes = serde_json::to_vec(value).map_err(|error| failed("write", path)(error.into()))?;
    durable::write(path, &bytes, 0o600).map_err(failed("write", path))
}

#[cfg(test)]
mod tests {
    use super::super::revision::tests::{file, revision};
    use super::*;

    fn history() -> (tempfile::TempDir, History) {
        let folder = tempfile::tempdir().unwrap();
        let history = History::open(folder.path()).unwrap();
        (folder, history)
    }

    #[test]
    fn revisions_are_listed_oldest_first_and_shown_whole() {
        let (_folder, history) = history();
        let revisions = [9, 10, 100].map(|n| revision(n, &[("/a", file(&n.to_string()))]));
        for revision in &revisions {
            history.record(revision).unwrap();
        }
        assert_eq!(
            history.list().unwrap(),
            revisions.each_ref().map(Revision::summary)
        );
        assert_eq!(history.latest().unwrap().as_ref(), Some(&revisions[2]));
        assert_eq!(history.show(10).unwrap(), revisions[1]);
        assert_eq!(
            history.show(11).unwrap_err().to_string(),
            "there is no revision 11 of the settings here"
        );
    }

    #[test]
    fn what_lost_its_epoch_is_kept_but_not_listed() {
        let (_folder, history) = history();
        let ours = [1, 2, 3].map(|n| revision(n, &[("/a", file(&format!("ours {n}")))]));
        for revision in &ours {
            history.record(revision).unwrap();
        }
        let theirs = revision(2, &[("/a", file("theirs"))]);
        history.record(&theirs).unwrap();
        assert_eq!(
            history.list().unwrap(),
            [ours[0].summary(), theirs.summary()]
        );
        assert_eq!(history.load(3, ours[2].digest()).unwrap(), ours[2]);
    }

    #[test]
    fn what_is_set_aside_is_off_the_list_and_kept() {
        let (_folder, history) = history();
        let both = [1, 2].map(|n| revision(n, &[("/a", file(&n.to_string()))]));
        for revision in &both {
            history.record(revision).unwrap();
        }
        let digest = both[1].digest();
        let (path, bytes) = history.set_aside(2, digest).unwrap();
        assert_eq!(fs::read(&path).unwrap(), both[1].encode());
        assert_eq!(bytes, both[1].encode().len() as u64);
        assert_eq!(history.list().unwrap(), [both[0].summary()]);
        assert_eq!(history.load(2, digest).unwrap(), both[1]);
        // As after a crash.
        assert_eq!(history.set_aside(2, digest).unwrap(), (path, bytes));
        assert!(history.set_aside(3, digest).is_err());
    }

    #[test]
    fn the_history_is_bounded_and_keeps_what_is_applied() {
        let (_folder, history) = history();
        let first = revision(1, &[("/a", file("1"))]);
        history.record(&first).unwrap();
        history
            .set_applied(&Marker {
                number: 1,
                digest: first.digest(),
                origin: Origin::Received,
                is_reloaded: true,
            })
            .unwrap();
        for number in 2..=3 {
            history
                .record(&revision(number, &[("/a", file("x"))]))
                .unwrap();
        }
        // As if they had been recorded one by one; writing a thousand durably takes long.
        let bytes = fs::read(history.files().unwrap().pop().unwrap()).unwrap();
        let digest = first.digest();
        for number in 4..=REVISIONS_MAX as u64 + 9 {
            fs::write(history.path_of(number, digest, "revision"), &bytes).unwrap();
        }
        let last = revision(5000, &[("/a", file("last"))]);
        history.record(&last).unwrap();
        assert_eq!(history.files().unwrap().len(), REVISIONS_MAX);
        assert_eq!(history.show(1).unwrap(), first);
        assert_eq!(history.latest().unwrap(), Some(last));
    }

    #[test]
    fn a_damaged_revision_is_named() {
        let (_folder, history) = history();
        let one = revision(1, &[("/a", file("content"))]);
        history.record(&one).unwrap();
        let path = history.files().unwrap().pop().unwrap();
        let mut bytes = one.encode();
        let last = bytes.len() - 12;
        bytes[last] ^= 1;
        fs::write(&path, bytes).unwrap();
        let error = history.show(1).unwrap_err().to_string();
        assert_eq!(
            error,
            format!("{} is not a revision of the settings", path.display())
        );
    }
}
