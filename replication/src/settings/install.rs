//! Applying a revision so that a crash anywhere is mended by doing it again.
//!
//! Order is the contract: the revision is in the history, then it is pending, then the files are
//! changed, then the marker says so, then nothing is pending.

use super::apply::{Applied, ApplyError, apply};
use super::capture::CaptureError;
use super::history::{History, HistoryError, Marker, Origin};
use super::revision::Revision;
use super::scope::Scope;

/// Why a revision could not be installed; it stays pending.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// The history cannot be read or written.
    #[error("cannot keep the history of the settings")]
    History {
        /// Why not.
        #[from]
        source: HistoryError,
    },
    /// The files cannot be looked at.
    #[error("cannot read the settings of this node")]
    Capture {
        /// Why not.
        #[from]
        source: CaptureError,
    },
    /// The files cannot be changed.
    #[error("cannot apply revision {number} of the settings")]
    Apply {
        /// The revision.
        number: u64,
        /// Why not.
        source: ApplyError,
    },
}

/// Puts `revision` into the history, and makes this node's files those of it.
///
/// # Errors
/// When a step fails; [`finish`] goes on from there.
pub fn install(
    scope: &Scope,
    history: &History,
    revision: &Revision,
    origin: Origin,
) -> Result<Applied, InstallError> {
    // What is superseded by recording this one can still be loaded by its digest.
    history.record(revision)?;
    let (number, digest) = (revision.number(), revision.digest());
    history.add_pending(&Marker {
        number,
        digest,
        origin,
        is_reloaded: false,
    })?;
    Ok(finish(scope, history)?.unwrap_or_default())
}

/// Completes what is pending; `None` when nothing is.
///
/// # Errors
/// When a step fails; it stays pending.
pub fn finish(scope: &Scope, history: &History) -> Result<Option<Applied>, InstallError> {
    let mut markers = history.pending()?;
    let Some(pending) = markers.pop() else {
        return Ok(None);
    };
    markers.extend(history.applied()?);
    let mut previous = Vec::new();
    for marker in &markers {
        match history.load(marker.number, marker.digest) {
            Ok(revision) => previous.push(revision),
            // So old that it has been dropped: what only it had stays, as foreign files do.
            Err(HistoryError::Absent { .. }) => {}
            Err(source) => return Err(source.into()),
        }
    }
    let number = pending.number;
    let revision = history.load(number, pending.digest)?;
    let applied = apply(scope, &revision, &previous, &history.replaced())
        .map_err(|source| InstallError::Apply { number, source })?;
    history.set_applied(&pending)?;
    history.clear_pending()?;
    Ok(Some(applied))
}

/// Undoes local changes: makes this node's files those of the applied revision again.
///
/// # Errors
/// When the revision cannot be read or applied.
pub fn restore(scope: &Scope, history: &History) -> Result<Applied, InstallError> {
    let Some(marker) = history.applied()? else {
        return Ok(Applied::default());
    };
    let revision = history.load(marker.number, marker.digest)?;
    let number = marker.number;
    let applied = apply(scope, &revision, &[], &history.replaced())
        .map_err(|source| InstallError::Apply { number, source })?;
    if !applied.changed.is_empty() {
        history.set_applied(&Marker {
            is_reloaded: false,
            ..marker
        })?;
    }
    Ok(applied)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::super::revision::tests::{file, revision};
    use super::super::scope::tests::scope;
    use super::*;

    fn read(root: &Path, path: &str) -> Option<String> {
        fs::read_to_string(root.join(path)).ok()
    }

    #[test]
    fn a_crash_between_the_files_and_the_marker_is_mended_by_doing_it_again() {
        let folder = tempfile::tempdir().unwrap();
        let (root, history) = (folder.path(), History::open(folder.path()).unwrap());
        let scope = scope(root, &["/etc"], &[]);
        let one = revision(1, &[("/etc/a", file("1")), ("/etc/gone", file("1"))]);
        fs::create_dir(root.join("etc")).unwrap();
        install(&scope, &history, &one, Origin::Received).unwrap();
        let (two, marker_of_one) = (
            revision(2, &[("/etc/a", file("2"))]),
            history.applied().unwrap(),
        );
        // Crash after the files were changed: the marker is old, and it is pending still.
        install(&scope, &history, &two, Origin::Received).unwrap();
        let marker_of_two = history.applied().unwrap().unwrap();
        history
            .set_applied(&marker_of_one.clone().unwrap())
            .unwrap();
        history.add_pending(&marker_of_two).unwrap();
        assert_eq!(finish(&scope, &history).unwrap(), Some(Applied::default()));
        assert_eq!(history.applied().unwrap(), Some(marker_of_two.clone()));
        // Crash before any file was changed.
        fs::write(root.join("etc/a"), "1").unwrap();
        fs::write(root.join("etc/gone"), "1").unwrap();
        history.set_applied(&marker_of_one.unwrap()).unwrap();
        history.add_pending(&marker_of_two).unwrap();
        assert_eq!(
            finish(&scope, &history)
                .unwrap()
                .map(|applied| applied.changed.len()),
            Some(2)
        );
        assert_eq!(
            (read(root, "etc/a"), read(root, "etc/gone")),
            (Some("2".to_owned()), None)
        );
        assert_eq!(finish(&scope, &history).unwrap(), None);
    }

    #[test]
    fn what_a_given_up_revision_has_written_is_removed_by_the_next() {
        let folder = tempfile::tempdir().unwrap();
        let (root, history) = (folder.path(), History::open(folder.path()).unwrap());
        let scope = scope(root, &["/etc"], &[]);
        fs::create_dir_all(root.join("etc/b/foreign")).unwrap();
        let one = revision(1, &[("/etc/a", file("1")), ("/etc/b", file("in the way"))]);
        assert!(install(&scope, &history, &one, Origin::Received).is_err());
        assert_eq!(read(root, "etc/a"), Some("1".to_owned()));
        install(
            &scope,
            &history,
            &revision(2, &[("/etc/c", file("2"))]),
            Origin::Received,
        )
        .unwrap();
        assert_eq!(
            (read(root, "etc/a"), read(root, "etc/c")),
            (None, Some("2".to_owned()))
        );
    }

    #[test]
    fn a_local_change_is_undone_and_kept_aside() {
        let folder = tempfile::tempdir().unwrap();
        let (root, history) = (folder.path(), History::open(folder.path()).unwrap());
        let scope = scope(root, &["/etc"], &[]);
        fs::create_dir(root.join("etc")).unwrap();
        install(
            &scope,
            &history,
            &revision(1, &[("/etc/a", file("1"))]),
            Origin::Received,
        )
        .unwrap();
        fs::write(root.join("etc/a"), "local").unwrap();
        let applied = restore(&scope, &history).unwrap();
        assert_eq!(fs::read_to_string(&applied.kept[0]).unwrap(), "local");
        assert_eq!(read(root, "etc/a"), Some("1".to_owned()));
        assert_eq!(restore(&scope, &history).unwrap(), Applied::default());
    }
}
