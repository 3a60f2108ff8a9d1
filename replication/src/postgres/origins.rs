//! Which epoch opened which timeline.
//!
//! Two servers that are promoted apart from the very same place both open a timeline of the same number at
//! the same LSN: their histories are equal to the letter, and what they wrote after it is not. The epoch is
//! a name that no two promotions share, so each node remembers the one that opened each timeline it is on.
//! A standby takes this from the primary that it streams from.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::PathBuf;

use super::cluster::Cluster;
use super::error::PostgresError;
use crate::durable;
use crate::epoch::Epoch;

/// The epochs by the timeline that they opened, as far as they are known.
pub type Origins = BTreeMap<u32, Epoch>;

impl Cluster {
    fn origins_file(&self) -> PathBuf {
        self.state.join("timelines.json")
    }

    /// Returns which epochs opened the timelines of this cluster; none if that was never noted.
    ///
    /// # Errors
    /// When the file cannot be read or understood.
    pub fn origins(&self) -> Result<Origins, PostgresError> {
        let path = self.origins_file();
        match fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text)
                .map_err(|error| self.file("understand", &path, error.into())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Origins::new()),
            Err(source) => Err(self.file("read", &path, source)),
        }
    }

    /// Notes durably which epochs opened the timelines of this cluster.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn set_origins(&self, origins: &Origins) -> Result<(), PostgresError> {
        let path = self.origins_file();
        let failed = |source| self.file("write", &path, source);
        let text = serde_json::to_vec(origins).map_err(|error| failed(error.into()))?;
        if fs::read(&path).is_ok_and(|present| present == text) {
            return Ok(());
        }
        durable::write(&path, &text, 0o600).map_err(failed)
    }
}
