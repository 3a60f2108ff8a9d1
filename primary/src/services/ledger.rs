//! What must survive a restart of the daemon, as a small file.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use serde::Serialize;
use serde::de::DeserializeOwned;

/// A value that is on disk before it is in force.
#[derive(Debug)]
pub(crate) struct Ledger<T> {
    path: PathBuf,
    value: Mutex<T>,
}

/// Why a ledger could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// It cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// It holds something else.
    #[error(
        "{path} is damaged; remove it, after which nothing is held back or stopped by an operator"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: serde_json::Error,
    },
    /// It cannot be written.
    #[error("cannot write {path}")]
    Write {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

impl<T: Clone + Default + PartialEq + Serialize + DeserializeOwned> Ledger<T> {
    /// Opens the file, which need not exist yet.
    ///
    /// # Errors
    /// When it exists and cannot be read or understood.
    pub(crate) fn open(path: &Path) -> Result<Self, LedgerError> {
        let value = match std::fs::read(path) {
            Ok(text) => serde_json::from_slice(&text).map_err(|source| LedgerError::Damaged {
                path: path.to_owned(),
                source,
            })?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => T::default(),
            Err(source) => {
                return Err(LedgerError::Read {
                    path: path.to_owned(),
                    source,
                });
            }
        };
        Ok(Self {
            path: path.to_owned(),
            value: Mutex::new(value),
        })
    }

    /// Returns something of the value.
    pub(crate) fn read<R>(&self, look: impl FnOnce(&T) -> R) -> R {
        look(&self.value.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Changes the value, on disk first.
    ///
    /// # Errors
    /// When it cannot be written; the value is as it was then.
    pub(crate) fn change(&self, change: impl FnOnce(&mut T)) -> Result<(), LedgerError> {
        let mut value = self.value.lock().unwrap_or_else(PoisonError::into_inner);
        let mut next = value.clone();
        change(&mut next);
        if next == *value {
            return Ok(());
        }
        self.write(&next)?;
        *value = next;
        Ok(())
    }

    /// Changes the value even if it cannot be written: what is to be held back now is, whatever the disk does.
    ///
    /// # Errors
    /// When it cannot be written; the value has changed nevertheless.
    pub(crate) fn change_anyway(&self, change: impl FnOnce(&mut T)) -> Result<(), LedgerError> {
        let mut value = self.value.lock().unwrap_or_else(PoisonError::into_inner);
        let before = value.clone();
        change(&mut value);
        if *value == before {
            return Ok(());
        }
        self.write(&value)
    }

    fn write(&self, value: &T) -> Result<(), LedgerError> {
        let failed = |source| LedgerError::Write {
            path: self.path.clone(),
            source,
        };
        let text = serde_json::to_vec_pretty(value).map_err(|error| failed(error.into()))?;
        understudy_replication::durable::write(&self.path, &text, 0o640).map_err(failed)
    }
}
