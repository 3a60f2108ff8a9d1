//! The files of a copy on this machine, while they are made equal to the primary's. All of it blocks.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{Gid, OFlags, Uid};
use understudy_replication::postgres::reseed::{
    BLOCK_BYTES, Change, ClusterPath, Entry, Found, Piece, Roots, digest,
};

use super::seed::SeedError;

/// A file is compared in parts of this length.
const PIECE_BYTES: u64 = 16 << 20;

/// What a question may hold: so much of digests and paths, and so much to be compared.
const QUESTION_BYTES: usize = 256 << 10;
const QUESTION_COMPARED_BYTES: u64 = 32 << 20;

/// The directory of the write-ahead log: nothing of it is compared.
const WAL: &str = "pg_wal";

/// A question, and how much it compares.
#[derive(Debug, Default)]
pub(super) struct Question {
    pub(super) pieces: Vec<Piece>,
    pub(super) compares: u64,
    bytes: usize,
}

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

fn failed(action: &'static str, path: &ClusterPath) -> impl FnOnce(io::Error) -> SeedError {
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
    fn check_wanted(&self) -> Result<(), SeedError> {
        if self.is_over.load(Ordering::SeqCst) {
            return Err(SeedError::BrokenOff {
                what: "the comparison",
            });
        }
        Ok(())
    }

    /// Makes room: removes what the primary does not have, empties the write-ahead log, makes the directories
    /// and the links of the tablespaces.
    pub(super) fn prepare(&self, wanted: &[Entry]) -> Result<(), SeedError> {
        let by_path: BTreeMap<&ClusterPath, bool> = wanted
            .iter()
            .map(|entry| (&entry.path, entry.size.is_none()))
            .collect();
        self.remove_extras(&by_path)?;
        self.empty_wal()?;
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
            if fs::read_link(&link).is_ok_and(|target| target == *place) {
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

    fn own(&self, file: impl AsFd) -> io::Result<()> {
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

    /// Removes the write-ahead log: that of the copy comes by the slot, and what is here may be of a history
    /// that the primary does not share. The directory may be a link, and have other things in it.
    fn empty_wal(&self) -> Result<(), SeedError> {
        let wal = self.data_dir.join(WAL);
        for folder in [
            wal.join("archive_status"),
            wal.join("summaries"),
            wal.clone(),
        ] {
            let entries = match fs::read_dir(&folder) {
                Ok(entries) => entries,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(source) => return Err(failed_at("read", &folder)(source)),
            };
            for entry in entries {
                self.check_wanted()?;
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

    /// Opens a file of the copy, which is made if it is missing, and is no longer than `size` afterwards.
    /// Returns how long it is.
    fn open(&self, path: &ClusterPath, size: u64) -> io::Result<(File, u64)> {
        let file = match self.roots.open_at(path, OFlags::RDWR, 0) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL;
                let file: OwnedFd = self.roots.open_at(path, flags, 0o600)?;
                self.own(&file)?;
                file
            }
            Err(error) => return Err(error),
        };
        let file = File::from(file);
        let length = file.metadata()?.len();
        if length > size {
            file.set_len(size)?;
        }
        Ok((file, length.min(size)))
    }

    /// Reads every file, and hands the questions to `ask`, which says whether to go on.
    pub(super) fn questions(
        &self,
        wanted: &[Entry],
        ask: impl Fn(Question) -> bool,
    ) -> Result<(), SeedError> {
        let mut question = Question::default();
        let mut block = vec![0; usize::try_from(BLOCK_BYTES).unwrap_or(usize::MAX)];
        for entry in wanted {
            let path = &entry.path;
            let Some(size) = entry.size else { continue };
            self.check_wanted()?;
            let (file, length) = self.open(path, size).map_err(failed("open", path))?;
            let mut offset = 0;
            while offset < size {
                let bytes = (size - offset).min(PIECE_BYTES);
                let mut digests = Vec::new();
                let mut at = offset;
                let end = length.min(offset.saturating_add(bytes));
                while at < end {
                    let count = usize::try_from((end - at).min(BLOCK_BYTES)).unwrap_or(usize::MAX);
                    let content = block.get_mut(..count).unwrap_or_default();
                    file.read_exact_at(content, at)
                        .map_err(failed("read", path))?;
                    digests.push(digest(content));
                    at = at.saturating_add(BLOCK_BYTES);
                }
                // The path, the digests, and some figures.
                let cost = path.as_str().len() + digests.len() * 16 + 40;
                let is_full = question.bytes + cost > QUESTION_BYTES
                    || question.compares.saturating_add(bytes) > QUESTION_COMPARED_BYTES;
                if is_full && !question.pieces.is_empty() && !ask(std::mem::take(&mut question)) {
                    return Ok(());
                }
                question.bytes += cost;
                question.compares = question.compares.saturating_add(bytes);
                question.pieces.push(Piece {
                    path: path.clone(),
                    offset,
                    bytes,
                    digests,
                });
                offset = offset.saturating_add(bytes);
            }
        }
        if !question.pieces.is_empty() {
            ask(question);
        }
        Ok(())
    }

    /// Puts changes in place; returns how many bytes they had.
    pub(super) fn apply(&self, pieces: &[Piece], changes: &[Change]) -> Result<u64, SeedError> {
        let mut copied: u64 = 0;
        let mut open: Option<(u32, File)> = None;
        for change in changes {
            let number = match change {
                Change::Bytes { piece, .. } | Change::Done { piece, .. } => *piece,
            };
            let index = usize::try_from(number).unwrap_or(usize::MAX);
            let Some(piece) = pieces.get(index) else {
                continue;
            };
            let path = &piece.path;
            if let Change::Done { end: None, .. } = change {
                // Dropped on the primary meanwhile: so says the log, too.
                let removed = self.roots.remove(path, Found::File(0));
                removed.map_err(failed("remove", path))?;
                continue;
            }
            if open.as_ref().is_none_or(|(of, _)| *of != number) {
                let flags = OFlags::RDWR;
                open = match self.roots.open_at(path, flags, 0) {
                    Ok(file) => Some((number, File::from(file))),
                    // Another piece of it has found that it was dropped.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => None,
                    Err(error) => return Err(failed("open", path)(error)),
                };
            }
            let Some((_, file)) = &open else { continue };
            match change {
                Change::Bytes { offset, bytes, .. } => {
                    file.write_all_at(bytes, *offset)
                        .map_err(failed("write", path))?;
                    copied = copied.saturating_add(u64::try_from(bytes.len()).unwrap_or(u64::MAX));
                }
                Change::Done { end: Some(end), .. }
                    if *end < piece.offset.saturating_add(piece.bytes) =>
                {
                    let length = file.metadata().map_err(failed("look at", path))?.len();
                    file.set_len(length.min(*end))
                        .map_err(failed("shorten", path))?;
                }
                Change::Done { .. } => {}
            }
        }
        Ok(copied)
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
mod tests {
    use super::*;

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

    fn copy(folder: &Path) -> LocalCopy {
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

    fn entry(path: &str, size: Option<u64>) -> Entry {
        Entry {
            path: path.parse().unwrap(),
            size,
        }
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

    #[test]
    fn a_file_becomes_what_the_changes_say() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("base")).unwrap();
        let path = folder.path().join("base/1");
        fs::write(&path, vec![1; 50_000]).unwrap();
        let copy = copy(folder.path());
        let wanted = [entry("base/1", Some(40_000)), entry("base/2", Some(100))];
        let asked = std::sync::Mutex::new(Vec::new());
        copy.questions(&wanted, |question| {
            asked.lock().unwrap().extend(question.pieces);
            true
        })
        .unwrap();
        let pieces = asked.into_inner().unwrap();
        let told: Vec<_> = pieces
            .iter()
            .map(|piece| (piece.bytes, piece.digests.len()))
            .collect();
        assert_eq!(told, [(40_000, 5), (100, 0)]);
        assert_eq!(
            fs::metadata(&path).unwrap().len(),
            40_000,
            "it is shortened at once"
        );
        let changes = [
            Change::Bytes {
                piece: 0,
                offset: 8192,
                bytes: vec![2; 8192],
            },
            Change::Done {
                piece: 0,
                end: Some(20_000),
            },
            Change::Done {
                piece: 1,
                end: None,
            },
        ];
        assert_eq!(copy.apply(&pieces, &changes).unwrap(), 8192);
        let expected = [vec![1; 8192], vec![2; 8192], vec![1; 20_000 - 16_384]].concat();
        assert_eq!(fs::read(&path).unwrap(), expected);
        assert!(!folder.path().join("base/2").exists());
    }
}
