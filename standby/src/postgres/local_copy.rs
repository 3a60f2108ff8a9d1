//! The files and directories of a copy on this machine, while they are made those of the primary. All of it
//! blocks; what is in the files is in [`super::local_blocks`].

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{Gid, Uid};
use understudy_replication::durable;
use understudy_replication::postgres::reseed::{ClusterPath, Entry, Found, Roots};

use super::beside::link_target;
use super::seed::SeedError;

/// The file that says what all others mean.
pub(super) const CONTROL: &str = "global/pg_control";

/// What it is called until the copy is whole: no server starts without it.
const CONTROL_ASIDE: &str = "global/pg_control.understudy";

/// The directory of the write-ahead log: nothing of it is compared.
const WAL: &str = "pg_wal";

/// The copy on this machine.
pub(super) struct LocalCopy {
    pub(super) data_dir: PathBuf,
    pub(super) roots: Roots,
    /// Where each tablespace is.
    pub(super) tablespaces: BTreeMap<u32, PathBuf>,
    pub(super) version_folder: String,
    /// The folder of the server's log, which is this node's own.
    pub(super) log_folder: Option<ClusterPath>,
    /// Whom what is made belongs to, where this process may give it away.
    pub(super) owner: Option<(u32, u32)>,
    /// Set when nobody waits for this any more.
    pub(super) is_over: Arc<AtomicBool>,
}

pub(super) fn failed(
    action: &'static str,
    path: &ClusterPath,
) -> impl FnOnce(io::Error) -> SeedError {
    let path = PathBuf::from(path.as_str());
    move |source| SeedError::File {
        action,
        path,
        source,
    }
}

fn failed_at(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> SeedError {
    let path = path.to_owned();
    move |source| SeedError::File {
        action,
        path,
        source,
    }
}

impl LocalCopy {
    pub(super) fn check_wanted(&self) -> Result<(), SeedError> {
        if self.is_over.load(Ordering::SeqCst) {
            return Err(SeedError::BrokenOff {
                what: "the comparison",
            });
        }
        Ok(())
    }

    /// Returns where a file of the primary's is while the copy is half a one.
    pub(super) fn place_of(&self, path: &ClusterPath) -> ClusterPath {
        if path.as_str() == CONTROL {
            CONTROL_ASIDE
                .parse()
                .expect("it lies beneath a data directory")
        } else {
            path.clone()
        }
    }

    /// Takes the control file away, durably, so that nobody can start a server until the copy is complete.
    pub(super) fn make_unstartable(&self) -> Result<(), SeedError> {
        let control = self.data_dir.join(CONTROL);
        match fs::remove_file(&control) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed_at("remove", &control)(error)),
        }
        match durable::sync_directory_of(&control) {
            Ok(()) => Ok(()),
            // A base backup that was cut short, perhaps: there is no `global` yet.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(failed_at("sync", &control)(error)),
        }
    }

    /// Puts the control file in its place, durably: everything else is durable already.
    pub(super) fn complete(&self) -> Result<(), SeedError> {
        let (aside, control) = (
            self.data_dir.join(CONTROL_ASIDE),
            self.data_dir.join(CONTROL),
        );
        fs::rename(&aside, &control).map_err(failed_at("put into its place", &aside))?;
        durable::sync_directory_of(&control).map_err(failed_at("sync", &control))
    }

    /// Makes room: removes what the primary does not have, empties the write-ahead log, makes the directories
    /// and the links of the tablespaces.
    pub(super) fn prepare(&self, wanted: &[Entry]) -> Result<(), SeedError> {
        let by_path: BTreeMap<&ClusterPath, bool> = wanted
            .iter()
            .map(|entry| (&entry.path, entry.size.is_none()))
            .collect();
        self.remove_extras(&by_path)?;
        empty_wal(&self.data_dir.join(WAL), &|| self.check_wanted())?;
        let mut directories: Vec<&ClusterPath> = by_path
            .iter()
            .filter_map(|(path, is_directory)| is_directory.then_some(*path))
            .filter(|path| path.as_str() != WAL)
            .collect();
        // Above before below; a tablespace's link before what is in it is not needed, it is a root.
        directories.sort();
        for path in directories {
            let made = self.roots.make_directory(path);
            let made = made.map_err(failed("make the directory", path))?;
            self.own(&made).map_err(failed("give away", path))?;
        }
        for (oid, place) in &self.tablespaces {
            let link = self.data_dir.join("pg_tblspc").join(oid.to_string());
            if link_target(&link).as_ref() == Some(place) {
                continue;
            }
            symlink(place, &link).map_err(failed_at("make the link", &link))?;
            if let Some((uid, gid)) = self.owner {
                std::os::unix::fs::lchown(&link, Some(uid), Some(gid))
                    .map_err(failed_at("give away", &link))?;
            }
        }
        Ok(())
    }

    pub(super) fn own(&self, file: impl AsFd) -> io::Result<()> {
        let Some((uid, gid)) = self.owner else {
            return Ok(());
        };
        let owner = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
        Ok(rustix::fs::fchown(file, owner.0, owner.1)?)
    }

    fn remove_extras(&self, wanted: &BTreeMap<&ClusterPath, bool>) -> Result<(), SeedError> {
        // Directories are removed after what is in them.
        let mut emptied = Vec::new();
        let mut ahead: Vec<Option<ClusterPath>> = vec![None];
        for oid in self.tablespaces.keys() {
            let folder: Result<ClusterPath, _> =
                format!("pg_tblspc/{oid}/{}", self.version_folder).parse();
            ahead.extend(folder.ok().map(Some));
        }
        while let Some(directory) = ahead.pop() {
            self.check_wanted()?;
            let listed = match self.roots.list(directory.as_ref()) {
                Ok(listed) => listed,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(source) => {
                    let path =
                        directory.map_or_else(|| self.data_dir.clone(), |it| it.as_str().into());
                    return Err(failed_at("read", &path)(source));
                }
            };
            for (path, found) in listed {
                if self.is_kept(&path) {
                    continue;
                }
                let is_wanted = match (wanted.get(&path), found) {
                    (Some(true), Found::Directory) | (Some(false), Found::File(_)) => true,
                    (Some(_) | None, Found::File(_) | Found::Directory | Found::Other) => false,
                };
                if found == Found::Directory {
                    ahead.push(Some(path.clone()));
                }
                if is_wanted {
                    continue;
                }
                if found == Found::Directory {
                    emptied.push(path);
                } else {
                    let removed = self.roots.remove(&path, found);
                    removed.map_err(failed("remove", &path))?;
                }
            }
        }
        for path in emptied.iter().rev() {
            let removed = self.roots.remove(path, Found::Directory);
            removed.map_err(failed("remove", path))?;
        }
        Ok(())
    }

    /// Returns whether something is this node's own, and no part of the comparison.
    fn is_kept(&self, path: &ClusterPath) -> bool {
        let is_link_of_tablespace = path.parent().is_some_and(|it| it.as_str() == "pg_tblspc")
            && path
                .name()
                .parse()
                .is_ok_and(|oid: u32| self.tablespaces.contains_key(&oid));
        let is_log = self.log_folder.as_ref() == Some(path);
        path.as_str() == WAL || path.as_str() == "standby.signal" || is_log || is_link_of_tablespace
    }

    /// Makes everything durable.
    pub(super) fn sync(&self) -> Result<(), SeedError> {
        for root in self.roots.all() {
            rustix::fs::syncfs(root)
                .map_err(|error| failed_at("sync", &self.data_dir)(error.into()))?;
        }
        let wal = self.data_dir.join(WAL);
        let opened = File::open(&wal).map_err(failed_at("open", &wal))?;
        rustix::fs::syncfs(&opened).map_err(|error| failed_at("sync", &wal)(error.into()))
    }
}

/// Removes the write-ahead log: that of the copy comes by the slot, and what is here may be of a history that the
/// primary does not share. The directory may be a link, and have other things in it. Goes on for as long as
/// `check_wanted` allows it.
pub(super) fn empty_wal(
    wal: &Path,
    check_wanted: &dyn Fn() -> Result<(), SeedError>,
) -> Result<(), SeedError> {
    for folder in [
        wal.join("archive_status"),
        wal.join("summaries"),
        wal.to_owned(),
    ] {
        let entries = match fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(source) => return Err(failed_at("read", &folder)(source)),
        };
        for entry in entries {
            check_wanted()?;
            let entry = entry.map_err(failed_at("read", &folder))?;
            let is_wal = entry.file_name().to_str().is_some_and(is_wal_name);
            if is_wal && entry.file_type().is_ok_and(|kind| kind.is_file()) {
                let path = entry.path();
                fs::remove_file(&path).map_err(failed_at("remove", &path))?;
            }
        }
    }
    Ok(())
}

/// Returns whether Postgres makes files of this name among its write-ahead log: segments, histories of
/// timelines and backups, and what becomes of them.
fn is_wal_name(name: &str) -> bool {
    let hexadecimal = name
        .bytes()
        .take_while(|byte| byte.is_ascii_digit() || (b'A'..=b'F').contains(byte))
        .count();
    let rest = name.get(hexadecimal..).unwrap_or_default();
    let is_numbered = match hexadecimal {
        24 | 40 => rest.is_empty() || rest.starts_with('.'),
        8 => rest.starts_with(".history"),
        _ => false,
    };
    is_numbered
        || ["xlogtemp.", "RECOVERYXLOG", "RECOVERYHISTORY"]
            .iter()
            .any(|it| name.starts_with(it))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use understudy_replication::postgres::reseed::Change;

    #[test]
    fn only_write_ahead_log_is_emptied_out() {
        let wal = [
            "000000010000000000000001",
            "000000010000000000000001.partial",
            "00000002.history",
            "000000010000000000000003.00000028.backup",
            "000000010000000000000001.ready",
            "xlogtemp.77",
            "0000000100000000014000280000000001512E50.summary",
            "00000002.history.done",
        ];
        let other = [
            "lost+found",
            "archive_status",
            "notes",
            "00000001",
            "DEADBEEF",
            "ABC",
            "",
        ];
        for name in wal {
            assert!(is_wal_name(name), "{name}");
        }
        for name in other {
            assert!(!is_wal_name(name), "{name}");
        }
    }

    pub(in super::super) fn copy(folder: &Path) -> LocalCopy {
        LocalCopy {
            data_dir: folder.to_owned(),
            roots: Roots::open(folder, &BTreeMap::new()).unwrap(),
            tablespaces: BTreeMap::new(),
            version_folder: "PG_15_1".to_owned(),
            log_folder: Some("log".parse().unwrap()),
            owner: None,
            is_over: Arc::default(),
        }
    }

    pub(in super::super) fn entry(path: &str, size: Option<u64>) -> Entry {
        Entry {
            path: path.parse().unwrap(),
            size,
        }
    }

    #[test]
    fn half_a_copy_has_no_control_file() {
        let folder = tempfile::tempdir().unwrap();
        let control = folder.path().join(CONTROL);
        let copy = copy(folder.path());
        copy.make_unstartable().unwrap();
        fs::create_dir(folder.path().join("global")).unwrap();
        fs::write(&control, "old").unwrap();
        copy.make_unstartable().unwrap();
        // What an earlier attempt has left is no part of the copy.
        fs::write(folder.path().join(CONTROL_ASIDE), "older").unwrap();
        let wanted = [entry("global", None), entry(CONTROL, Some(3))];
        copy.prepare(&wanted).unwrap();
        assert_eq!(fs::read_dir(control.parent().unwrap()).unwrap().count(), 0);
        let pieces = std::sync::Mutex::default();
        copy.questions(&wanted, |question| {
            *pieces.lock().unwrap() = question.pieces;
            true
        })
        .unwrap();
        let pieces = pieces.into_inner().unwrap();
        assert_eq!(pieces[0].path.as_str(), CONTROL, "so the primary calls it");
        let new = Change::Bytes {
            piece: 0,
            offset: 0,
            bytes: b"new".to_vec(),
        };
        copy.apply(&pieces, &[new]).unwrap();
        assert!(!control.exists());
        copy.complete().unwrap();
        assert_eq!(fs::read(&control).unwrap(), b"new");
    }

    #[test]
    fn what_the_primary_lacks_goes_and_what_is_the_nodes_own_stays() {
        let folder = tempfile::tempdir().unwrap();
        let at = |path: &str| folder.path().join(path);
        for path in [
            "base/5",
            "base/6/x",
            "log",
            "pg_wal/archive_status",
            "pg_tblspc",
            "outside",
        ] {
            fs::create_dir_all(at(path)).unwrap();
        }
        let files = [
            "base/5/1",
            "base/5/2",
            "base/6/x/3",
            "log/server.log",
            "pg_wal/000000010000000000000001",
            "pg_wal/notes",
            "standby.signal",
            "postmaster.pid",
            "outside/kept",
        ];
        for path in files {
            fs::write(at(path), "content").unwrap();
        }
        symlink(at("outside"), at("pg_tblspc/77")).unwrap();
        symlink(at("outside/kept"), at("base/5/link")).unwrap();
        let wanted = [
            entry("PG_VERSION", Some(3)),
            entry("base", None),
            entry("base/5", None),
            entry("base/5/1", Some(3)),
            entry("base/7", None),
            entry("outside", None),
            entry("outside/kept", Some(7)),
            entry("pg_tblspc", None),
            entry("pg_wal", None),
        ];
        copy(folder.path()).prepare(&wanted).unwrap();
        for path in [
            "base/5/1",
            "base/7",
            "log/server.log",
            "pg_wal/notes",
            "standby.signal",
            "outside/kept",
        ] {
            assert!(at(path).exists(), "{path}");
        }
        let gone = [
            "base/5/2",
            "base/6",
            "pg_wal/000000010000000000000001",
            "postmaster.pid",
            "pg_tblspc/77",
            "base/5/link",
        ];
        for path in gone {
            assert!(at(path).symlink_metadata().is_err(), "{path}");
        }
    }
}
