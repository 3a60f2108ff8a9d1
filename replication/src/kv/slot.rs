//! Where a node keeps its store open, whatever its role: what is in memory survives a change of roles.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use super::storage::{self, Opened, Storage, StorageError};

/// The store of a node, opened at the first need. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Slot {
    folder: PathBuf,
    held: Arc<Mutex<Option<Arc<Storage>>>>,
}

impl Slot {
    /// Returns a slot for the store in `folder`, which is not opened yet.
    pub fn new(folder: PathBuf) -> Self {
        Self {
            folder,
            held: Arc::default(),
        }
    }

    /// Returns the store, opened now if it is not open; then also what was found. Blocks while it is read.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn open(&self) -> Result<(Arc<Storage>, Option<Opened>), StorageError> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(storage) = held.as_ref() {
            return Ok((storage.clone(), None));
        }
        // Outside of the folder: an empty one in the place of a lost one must not pass for a new store.
        let made = self.folder.with_extension("made");
        if made.exists()
            && !self.folder.join("log").exists()
            && !storage::is_begun_anew(&self.folder)
        {
            let path = self.folder.clone();
            return Err(StorageError::Gone { path });
        }
        let (storage, opened) = Storage::open(&self.folder)?;
        if !made.exists() {
            storage::mark(&made)?;
        }
        let storage = Arc::new(storage);
        *held = Some(storage.clone());
        Ok((storage, Some(opened)))
    }

    /// Returns the store if it is open.
    pub fn held(&self) -> Option<Arc<Storage>> {
        self.held
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Opens the store of a standby: a damaged one is moved aside and begun anew, to be filled by the primary.
    /// Returns where the damaged one is, and what was wrong with it.
    ///
    /// # Errors
    /// When it cannot be opened for another reason, or not be moved.
    pub fn open_or_set_aside(&self) -> Result<Option<(PathBuf, StorageError)>, StorageError> {
        match self.open() {
            Ok(_) => Ok(None),
            Err(error) if error.is_damage() => {
                let aside = storage::set_aside(&self.folder)?;
                self.open()?;
                Ok(Some((aside, error)))
            }
            Err(error) => Err(error),
        }
    }

    /// Forgets what is in memory: the store is read again at the next need. For a store that has failed.
    pub fn close(&self) {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(storage) = held.take() {
            storage.retire();
        }
    }
}
