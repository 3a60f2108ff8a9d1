//! What belongs to a cluster beside its data directory: tablespaces, and the write-ahead log on a disk of its
//! own.
//!
//! Nothing is written into a directory that somebody else has put something into: it is empty, or ours since
//! the mark says so or a link of our own data directory leads there. A link is the work of Postgres' user, and
//! this process may be root: where it leads is never given to that user, it has to be theirs already.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};

use understudy_replication::postgres::SeedInfo;
use understudy_replication::postgres::reseed::version_folder;

use super::half::{Half, empty};
use super::local_copy::empty_wal;
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
    /// Those that a link of the data directory leads to already.
    linked: BTreeSet<PathBuf>,
}

/// What becomes of what is in the data directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Content {
    /// It is compared, and is where it is.
    Stays,
    /// It is removed.
    Goes,
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
    /// Refuses a re-seed that has to write into directories that are somebody else's. Changes nothing.
    pub(super) fn check_beside(&self, info: &SeedInfo) -> Result<(), SeedError> {
        self.beside(info, Content::Stays).map(drop)
    }

    /// Returns which directories the copy has beside its data directory; refuses those that are somebody
    /// else's. Changes nothing.
    pub(super) fn beside(&self, info: &SeedInfo, content: Content) -> Result<Beside, SeedError> {
        let half = self.half()?.unwrap_or_default();
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
            // Where it is already, it stays.
            let place = match link_target(&self.tablespace_link(tablespace.oid)) {
                Some(place) => {
                    self.check_linked(&place, Some(&mapped))?;
                    beside.linked.insert(place.clone());
                    place
                }
                None => self.free(mapped, &half)?,
            };
            beside.tablespaces.insert(tablespace.oid, place);
            beside
                .theirs
                .insert(tablespace.oid, tablespace.path.clone());
        }
        let wal = self.cluster.data_dir.join("pg_wal");
        let configured = self.cluster.wal_dir.clone();
        let linked = link_target(&wal);
        let is_there = wal.symlink_metadata().is_ok();
        beside.wal = match content {
            // It stays where it is, whatever the configuration says by now.
            Content::Stays if is_there => linked.clone(),
            Content::Stays | Content::Goes => {
                let before = linked.clone().or_else(|| half.wal.clone());
                configured.clone().or(before)
            }
        };
        if let Some(wal) = &beside.wal {
            if linked.as_ref() == Some(wal) || half.wal.as_ref() == Some(wal) {
                self.check_linked(wal, configured.as_deref())?;
                beside.linked.insert(wal.clone());
            } else {
                self.free(wal.clone(), &half)?;
            }
        }
        Ok(beside)
    }

    /// Refuses a directory that somebody has put something into, unless it was us.
    fn free(&self, place: PathBuf, half: &Half) -> Result<PathBuf, SeedError> {
        if half.beside.contains(&place) || is_empty(&place)? {
            Ok(place)
        } else {
            Err(SeedError::Occupied { directory: place })
        }
    }

    /// Refuses what a link leads to unless it is Postgres' own; `said` is where the configuration has it.
    fn check_linked(&self, place: &Path, said: Option<&Path>) -> Result<(), SeedError> {
        let cluster = &self.cluster;
        let others = [cluster.data_dir.as_path(), cluster.state.as_path()];
        let is_theirs = belongs(place, cluster.user.uid, said == Some(place), others);
        if is_theirs.map_err(self.file("look at", place.to_owned()))? {
            Ok(())
        } else {
            Err(SeedError::NotTheirs {
                directory: place.to_owned(),
                user: cluster.user.name.clone(),
            })
        }
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
                Ok(_) if beside.linked.contains(&directory) => {
                    let user = self.cluster.user.name.clone();
                    return Err(SeedError::NotTheirs { directory, user });
                }
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
        let is_ours = |place: &&PathBuf| ours.contains(place) || beside.linked.contains(*place);
        for place in beside.tablespaces.values().filter(is_ours) {
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
        if let Some(wal) = beside.wal.as_ref().filter(is_ours) {
            empty_wal(wal, &|| Ok(()))?;
            for folder in ["archive_status", "summaries"] {
                let folder = wal.join(folder);
                match fs::remove_dir(&folder) {
                    Ok(()) => {}
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(error) => return Err(self.file("remove", folder)(error)),
                }
            }
            if !is_empty(wal)? {
                return Err(SeedError::Occupied {
                    directory: wal.clone(),
                });
            }
        }
        Ok(())
    }
}

/// Returns where a link leads; `None` if it is none.
pub(super) fn link_target(link: &Path) -> Option<PathBuf> {
    let target = fs::read_link(link).ok()?;
    Some(link.parent()?.join(target))
}

/// Returns whether a directory that a link leads to belongs to the user, and lies apart from `others`. One that
/// is missing is made, by this process: so it has to be where the configuration says, or in a directory of the
/// user's.
fn belongs(place: &Path, uid: u32, is_said: bool, others: [&Path; 2]) -> io::Result<bool> {
    let is_plain = !place.components().any(|part| part == Component::ParentDir);
    let is_apart = !others
        .iter()
        .any(|other| place.starts_with(other) || other.starts_with(place));
    if !is_plain || !is_apart {
        return Ok(false);
    }
    match (fs::metadata(place), place.parent()) {
        (Ok(metadata), _) => Ok(metadata.is_dir() && metadata.uid() == uid),
        (Err(error), Some(parent)) if error.kind() == io::ErrorKind::NotFound => {
            Ok(is_said || fs::metadata(parent).is_ok_and(|it| it.uid() == uid))
        }
        (Err(error), _) => Err(error),
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn a_link_leads_to_a_directory_of_the_users_or_nowhere() {
        let folder = tempfile::tempdir().unwrap();
        let at = |path: &str| folder.path().join(path);
        for path in ["data", "state", "wal"] {
            fs::create_dir(at(path)).unwrap();
        }
        fs::write(at("file"), "").unwrap();
        let (data, state) = (at("data"), at("state"));
        let uid = fs::metadata(&data).unwrap().uid();
        let ask =
            |path: &str, uid, is_said| belongs(&at(path), uid, is_said, [&data, &state]).unwrap();
        assert!(ask("wal", uid, false));
        assert!(!ask("wal", uid + 1, true), "it is not given away");
        assert!(ask("gone", uid, false), "its directory is theirs");
        assert!(!ask("gone", uid + 1, false));
        assert!(ask("gone", uid + 1, true), "the configuration says so");
        for path in ["file", "data/wal", "state", "wal/../data", ""] {
            assert!(!ask(path, uid, true), "{path}");
        }
    }

    #[test]
    fn a_link_is_relative_to_where_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let link = folder.path().join("pg_wal");
        assert_eq!(link_target(&link), None);
        symlink("elsewhere", &link).unwrap();
        assert_eq!(link_target(&link), Some(folder.path().join("elsewhere")));
        fs::remove_file(&link).unwrap();
        symlink("/srv/wal", &link).unwrap();
        assert_eq!(link_target(&link), Some("/srv/wal".into()));
    }
}
