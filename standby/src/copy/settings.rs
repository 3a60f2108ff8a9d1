//! A copy of the settings: the files, what is each node's own among them, and their history.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use understudy_config::{Local, Settings};
use understudy_replication::position::Position;
use understudy_replication::settings::{History, Marker, Revision, Scope, capture};

use super::pace::Pace;
use super::tree::{copy_tree, make_folder, make_parent};
use super::{CopyError, Place, aside};

/// A copy during which another revision was applied is made again.
const ATTEMPTS_MAX: u32 = 5;

/// What was copied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SettingsCopied {
    /// The revision that the files should be; `None` if none has been applied here yet.
    pub position: Option<Position>,
    /// Its digest, as text.
    pub expected: Option<String>,
    /// The digest of what was copied.
    pub found: String,
}

impl SettingsCopied {
    /// Returns whether the files are the revision that they should be.
    pub fn is_equal(&self) -> bool {
        self.expected
            .as_ref()
            .is_none_or(|expected| *expected == self.found)
    }
}

/// Copies the settings of this node.
///
/// # Errors
/// When they cannot be read or written.
pub async fn copy_settings(
    config: Settings,
    local: Local,
    place: Place,
    pace: Arc<Pace>,
) -> Result<SettingsCopied, CopyError> {
    aside(move || {
        let history = History::open(&local.state_dir)?;
        let mut attempt = 0;
        loop {
            attempt += 1;
            let before = history.applied()?;
            let copied = copy(&config, &local, &place, &pace, before.as_ref())?;
            // What is wrong in the middle of a revision is not wrong.
            if copied.is_equal() || attempt >= ATTEMPTS_MAX {
                return Ok(copied);
            }
            for path in paths(&config, &local) {
                remove(&place.of(&path))?;
            }
            super::remove_tree(&place.state().join("settings"))?;
        }
    })
    .await
}

fn paths(config: &Settings, local: &Local) -> Vec<PathBuf> {
    config
        .paths
        .iter()
        .map(|path| local.resolve(path))
        .collect()
}

fn remove(path: &Path) -> Result<(), CopyError> {
    if path.is_dir() && !path.is_symlink() {
        return super::remove_tree(path);
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(super::failed("remove", path)(error))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

fn copy(
    config: &Settings,
    local: &Local,
    place: &Place,
    pace: &Pace,
    applied: Option<&Marker>,
) -> Result<SettingsCopied, CopyError> {
    for path in paths(config, local) {
        let target = place.of(&path);
        make_parent(&target)?;
        // One configured path may lie within another.
        if !target.exists() {
            copy_tree(&path, &target, pace, &|_| false)?;
        }
    }
    let state = local.state_dir.join("settings");
    make_folder(&place.state(), 0o700)?;
    let target = place.state().join("settings");
    copy_tree(&state, &target, pace, &|within| {
        within.starts_with("replaced")
    })?;
    let history = History::open(&local.state_dir)?;
    let captured = capture(&Scope::new(config, place.root())?)?;
    let revision = match applied {
        Some(marker) => Some(history.load(marker.number, marker.digest)?),
        None => None,
    };
    let of = revision.as_ref().map(Revision::summary);
    let (number, epoch, time) = match of {
        Some(summary) => (summary.number, summary.epoch, summary.time),
        None => {
            let nobody = local.name.clone();
            (
                1,
                understudy_replication::epoch::Epoch::first(nobody),
                Default::default(),
            )
        }
    };
    let found = Revision::new(number, epoch, time, captured.entries)?.digest();
    Ok(SettingsCopied {
        position: applied.map(|marker| Position(marker.number)),
        expected: applied.map(|marker| marker.digest.to_string()),
        found: found.to_string(),
    })
}
