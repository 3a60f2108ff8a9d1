//! What was kept aside at once, of one store.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use indicatif::HumanBytes;
use serde::Serialize;
use understudy_config::NodeName;
use understudy_replication::durable;
use understudy_replication::epoch::Epoch;
use understudy_replication::kv::salvage::Manifest;
use understudy_replication::store::StoreKind;
use understudy_replication::wall_time::WallTime;
use understudy_standby::files::KeptManifest;
use understudy_standby::postgres::Summary;

use crate::failure::Failure;

/// So many files are counted to tell how much there is.
const FILES_COUNTED_MAX: usize = 1_000_000;

/// What was kept aside at once, of one store.
#[derive(Debug, Serialize)]
pub(super) struct Bundle {
    /// Its name, by which it is shown.
    pub(super) name: String,
    /// The store.
    pub(super) store: String,
    /// Of which kind that is.
    pub(super) kind: StoreKind,
    /// When it was made, by the node's clock.
    pub(super) made: Option<WallTime>,
    /// The node that had it.
    pub(super) node: Option<NodeName>,
    /// The epoch in which it was written, where that is known.
    pub(super) made_in: Option<Epoch>,
    /// The epoch whose primary has something else in its place, where that is known.
    pub(super) superseded_by: Option<Epoch>,
    /// How much is in it.
    pub(super) bytes: u64,
    /// It is all that only this node had.
    pub(super) is_complete: bool,
    /// What it is, in a sentence.
    pub(super) summary: String,
    /// The folder, or the file.
    pub(super) path: PathBuf,
    #[serde(skip)]
    pub(super) held: Held,
}

/// What a bundle says of itself, by its kind.
#[derive(Debug)]
pub(super) enum Held {
    /// Write-ahead log.
    Postgres(Box<Summary>),
    /// Files, and the list of what differed.
    Files(Box<KeptManifest>),
    /// Files without a list.
    Tree,
    /// Entries of the key-value log.
    Kv(Box<Manifest>),
    /// Settings: files, or a revision.
    Settings,
    /// It cannot be read.
    Unreadable,
}

impl Bundle {
    /// Returns it for people, in two lines.
    pub(super) fn text(&self) -> String {
        let made = match self.made {
            Some(made) => made.to_string(),
            None => "at an unknown time".to_owned(),
        };
        let part = if self.is_complete { "" } else { ", NOT all" };
        format!(
            "{}  {}, {made}, {}{part}{}\n    {}\n",
            self.name,
            self.store,
            HumanBytes(self.bytes),
            self.why(),
            self.summary
        )
    }

    /// Returns which epoch has superseded which.
    pub(super) fn why(&self) -> String {
        match (&self.made_in, &self.superseded_by) {
            (Some(was), Some(is)) => format!("; epoch {was} was superseded by {is}"),
            (None, Some(is)) => format!("; superseded by epoch {is}"),
            (Some(was), None) => format!("; of epoch {was}"),
            (None, None) => String::new(),
        }
    }

    /// Returns where the files of a bundle of a tree are.
    pub(super) fn tree(&self) -> Option<&Path> {
        match &self.held {
            Held::Files(manifest) => Some(&manifest.kept),
            Held::Tree => Some(&self.path),
            Held::Postgres(_) | Held::Kv(_) | Held::Settings | Held::Unreadable => None,
        }
    }

    /// Deletes it.
    pub(super) fn remove(&self) -> Result<(), Failure> {
        if matches!(self.held, Held::Tree) && !self.is_complete {
            return Err(Failure::refused(format!(
                "{} is still being set aside by a rejoin",
                self.name
            ))
            .hint("wait until the rejoin has ended; one that was cut short goes on when it is asked for again"));
        }
        let mut paths = vec![self.path.as_path()];
        if let Some(tree) = self.tree().filter(|tree| *tree != self.path) {
            // Its place is read from a file.
            let is_kept = tree
                .parent()
                .is_some_and(|parent| parent.ends_with(".understudy/kept"));
            if !is_kept {
                return Err(Failure::failed(format!(
                    "{} is not where files are kept, so it is not deleted",
                    tree.display()
                )));
            }
            // What names it goes last.
            paths.insert(0, tree);
        }
        for path in paths {
            let removed = match fs::symlink_metadata(path) {
                Ok(found) if found.is_dir() => fs::remove_dir_all(path),
                Ok(_) => fs::remove_file(path),
                Err(error) => Err(error),
            };
            match removed {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(Failure::failed(format!(
                        "cannot remove {}: {error}",
                        path.display()
                    )));
                }
                Ok(()) | Err(_) => {}
            }
        }
        durable::sync_directory_of(&self.path)?;
        Ok(())
    }
}

/// Returns how many files and bytes are at a path and beneath it, links counted as they are.
pub(super) fn weigh(path: &Path) -> (u64, u64) {
    let (mut files, mut bytes) = (0_u64, 0_u64);
    let mut waiting = vec![path.to_owned()];
    let mut left = FILES_COUNTED_MAX;
    while let Some(path) = waiting.pop() {
        let Ok(found) = fs::symlink_metadata(&path) else {
            continue;
        };
        if found.is_dir() {
            let entries = fs::read_dir(&path).into_iter().flatten();
            waiting.extend(entries.filter_map(|entry| Some(entry.ok()?.path())));
            continue;
        }
        files += 1;
        bytes = bytes.saturating_add(found.len());
        left = left.saturating_sub(1);
        if left == 0 {
            break;
        }
    }
    (files, bytes)
}
