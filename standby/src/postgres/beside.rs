//! What belongs to a cluster beside its data directory: tablespaces, and the write-ahead log on a disk of its
//! own.
//!
//! Nothing is written into a directory that somebody else has put something into: it is empty, or ours since
//! the mark says so or a link of our own data directory leads there.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};

use understudy_replication::postgres::SeedInfo;
use understudy_replication::postgres::reseed::version_folder;

use super::half::empty;
use super::receiver::PostgresReceiver;
use super::seed::SeedError;

/// The directories beside a data directory, on this machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Beside {
    /// Where each tablespace is.
    pub(super) tablespaces: BTreeMap<u32, PathBuf>,
    /// Where each of them is on the primary's machine.
    pub(super) theirs: BTreeMap<u32, PathBuf>,
    /// Where the write-ahead log is to be, if not in the data directory.
    pub(super) wal: Option<PathBuf>,
}

impl Beside {
    /// Returns all of them.
    pub(super) fn all(&self) -> Vec<PathBuf> {
        self.tablespaces
            .values()
            .chain(&self.wal)
            .cloned()
            .collect()
    }
}

impl PostgresReceiver {
    /// Returns which directories the copy has beside its data directory; refuses those that are somebody
    /// else's. Changes nothing.
    pub(super) fn beside(&self, info: &SeedInfo) -> Result<Beside, SeedError> {
        let ours = self.half()?.unwrap_or_default().beside;
        let mut beside = Beside::default();
        for tablespace in &info.tablespaces {
            // On this machine's disk it is named by what the configuration says.
            let is_plain = tablespace.location.is_absolute()
                && tablespace.location.parent().is_some()
                && !tablespace
                    .location
                    .components()
                    .any(|part| part == Component::ParentDir);
            let mapped = self.cluster.on_this_machine(&tablespace.location);
            let is_apart = ![&self.cluster.data_dir, &self.cluster.state]
                .iter()
                .any(|other| mapped.starts_with(other) || other.starts_with(&mapped));
            if !is_plain || !is_apart {
                return Err(SeedError::Tablespace {
                    location: tablespace.location.clone(),
                });
            }
            let link = self.tablespace_link(tablespace.oid);
            // Where it is already, it stays.
            let linked = fs::read_link(&link).ok();
            let place = linked.clone().unwrap_or(mapped);
            if linked.is_none() && !ours.contains(&place) && !is_empty(&place)? {
                return Err(SeedError::Occupied { directory: place });
            }
            beside.tablespaces.insert(tablespace.oid, place);
            beside
                .theirs
                .insert(tablespace.oid, tablespace.path.clone());
        }
        if let Some(wal) = &self.cluster.wal_dir {
            let is_linked = fs::read_link(self.cluster.data_dir.join("pg_wal"))
                .is_ok_and(|target| target == *wal);
            if !is_linked && !ours.contains(wal) && !is_empty(wal)? {
                return Err(SeedError::Occupied {
                    directory: wal.clone(),
                });
            }
            beside.wal = Some(wal.clone());
        }
        Ok(beside)
    }

    pub(super) fn tablespace_link(&self, oid: u32) -> PathBuf {
        self.cluster
            .data_dir
            .join("pg_tblspc")
            .join(oid.to_string())
    }

    /// Makes the directories, for the OS user of the cluster alone.
    pub(super) fn make_beside(&self, beside: &Beside) -> Result<(), SeedError> {
        for directory in beside.all() {
            match fs::metadata(&directory) {
                Ok(metadata) if metadata.uid() == self.cluster.user.uid => continue,
                // Somebody's, whom it is not taken from.
                Ok(_) if !is_empty(&directory)? => return Err(SeedError::Occupied { directory }),
                Ok(_) | Err(_) => {}
            }
            self.cluster
                .create_owned_directory(&directory, 0o700)
                .map_err(SeedError::Directory)?;
            fs::set_permissions(&directory, fs::Permissions::from_mode(0o700))
                .map_err(self.file("set the mode of", directory))?;
        }
        Ok(())
    }

    /// Removes what an earlier attempt has left in them: of a tablespace only the folder of this version,
    /// which is all that a server of ours has there.
    pub(super) fn clear_beside(&self, beside: &Beside, info: &SeedInfo) -> Result<(), SeedError> {
        let ours = self.half()?.unwrap_or_default().beside;
        for place in beside
            .tablespaces
            .values()
            .filter(|place| ours.contains(place))
        {
            let folder = place.join(version_folder(info.version, info.catalog_version));
            empty(&folder)?;
            match fs::remove_dir(&folder) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(self.file("remove", folder)(error)),
            }
            if !is_empty(place)? {
                return Err(SeedError::Occupied {
                    directory: place.clone(),
                });
            }
        }
        match &beside.wal {
            Some(wal) if ours.contains(wal) => empty(wal),
            Some(_) | None => Ok(()),
        }
    }
}

/// Returns whether there is nothing in a directory, or no directory.
fn is_empty(directory: &Path) -> Result<bool, SeedError> {
    match fs::read_dir(directory) {
        Ok(mut entries) => Ok(entries.next().is_none()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
        Err(source) => Err(SeedError::File {
            action: "read",
            path: directory.to_owned(),
            source,
        }),
    }
}
