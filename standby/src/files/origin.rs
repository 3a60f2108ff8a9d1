//! Where what is in the tree came from: a small file in the store's state.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use understudy_replication::durable;

use super::error::FilesError;

/// The file in the store's state.
const NAME: &str = "seeded.json";

/// Says that the tree was made by a seeding, begun or done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Origin {
    /// The file system that it was made on.
    pub(super) device: u64,
    /// This node was the primary, and the seeding that is under way keeps what it takes away, under
    /// this name.
    pub(super) kept: Option<String>,
}

impl Origin {
    pub(super) fn load(state: &Path) -> Result<Option<Self>, FilesError> {
        let path = path(state);
        match fs::read(&path) {
            // A file that cannot be understood is as good as none: then nothing is overwritten.
            Ok(bytes) => Ok(serde_json::from_slice(&bytes).ok()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(FilesError::tree("read", path)(error)),
        }
    }

    pub(super) fn store(&self, state: &Path) -> Result<(), FilesError> {
        let path = path(state);
        let bytes = serde_json::to_vec(self).unwrap_or_default();
        durable::write(&path, &bytes, 0o600).map_err(FilesError::tree("write", path))
    }
    /// Says that the tree is this node's own from now on: it is the primary's.
    pub(super) fn forget(state: &Path) -> Result<(), FilesError> {
        let path = path(state);
        match fs::remove_file(&path) {
            Ok(()) => durable::sync_directory_of(&path).map_err(FilesError::tree("sync", path)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(FilesError::tree("remove", path)(error)),
        }
    }
}

fn path(state: &Path) -> PathBuf {
    state.join(NAME)
}
