//! What a node keeps of a store beside its tree: the manifest in a table, and the log.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use understudy_config::StoreName;

use super::entry::{Digest, Known};
use super::manifest::{Manifest, Misfit};
use super::path::RelPath;
use crate::durable;
use crate::epoch::Epoch;
use crate::log::{Log, LogError};
use crate::position::Position;
use crate::table::{self, Change, Engine, Table, TableError};

/// How long to wait for the other end of this node, which is on its way out, to close the table.
const HANDOVER_MAX: Duration = Duration::from_secs(5);

const HEAD_KEY: &[u8] = b"h";
const PATH_PREFIX: u8 = b'p';
/// The form of keys and values. A table of another one is rebuilt.
const VERSION: u8 = 1;

/// What the manifest in the table stands for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// The epoch of the positions.
    pub epoch: Epoch,
    /// The position whose manifest it is.
    pub position: Position,
    /// The newest position at which no content was awaited.
    pub complete: Position,
    /// The root of the manifest: a table that has lost something does not have it.
    pub root: Digest,
}

/// Why a ledger cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// The folder cannot be made, or the table in it not be moved aside.
    #[error("cannot {action} {}", path.display())]
    Folder {
        /// What was tried.
        action: &'static str,
        /// The folder.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The table failed.
    #[error("cannot keep the manifest of store {store}")]
    Table {
        /// The store.
        store: StoreName,
        /// Why not.
        source: TableError,
    },
    /// The log failed.
    #[error("cannot keep the log of store {store}")]
    Log {
        /// The store.
        store: StoreName,
        /// Why not.
        source: LogError,
    },
    /// A change does not fit the manifest.
    #[error("the manifest of store {store} does not fit")]
    Misfit {
        /// The store.
        store: StoreName,
        /// Where.
        source: Misfit,
    },
}

/// The manifest, its durable form, and the log. One owner at a time on a node.
pub struct Ledger {
    store: StoreName,
    /// In memory; what is changed here is kept by [`Ledger::commit`].
    pub manifest: Manifest,
    table: Box<dyn Table>,
    log: Log,
    head: Option<Head>,
    /// The log was damaged and begins anew: what it held beyond the table is gone.
    pub is_log_lost: bool,
    /// What was found damaged at opening, for the operators.
    pub damage: Vec<String>,
}

impl std::fmt::Debug for Ledger {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Ledger({} at {:?})", self.store, self.head)
    }
}

impl Ledger {
    /// Opens what is in `state`, or begins anew. A table that is damaged is moved aside, and the
    /// head is then `None`; a log that is damaged is begun anew, and `is_log_lost`.
    ///
    /// # Errors
    /// When the folder cannot be used.
    pub fn open(state: &Path, store: &StoreName) -> Result<Self, LedgerError> {
        durable::create_directory(state, 0o700).map_err(folder_error("create", state))?;
        let mut damage = Vec::new();
        let mut is_log_lost = false;
        let path = state.join("table");
        let table = match open_table(&path) {
            Ok(table) => table,
            Err(error) => {
                damage.push(format!("the table of store {store} is rebuilt: {error}"));
                move_aside(&path)?;
                table::open(&path, Engine::default()).map_err(table_error(store))?
            }
        };
        let mut ledger = Self {
            store: store.clone(),
            manifest: Manifest::default(),
            table,
            // Replaced below; a log cannot be made without knowing where it begins.
            log: Log::open(&state.join("log"), store.as_str(), Position(0)).or_else(|error| {
                match error {
                    LogError::Damaged { .. } | LogError::Foreign { .. } => {
                        damage.push(format!("the log of store {store} is begun anew: {error}"));
                        is_log_lost = true;
                        move_aside(&state.join("log"))?;
                        Log::open(&state.join("log"), store.as_str(), Position(0))
                            .map_err(log_error(store))
                    }
                    error @ (LogError::File { .. }
                    | LogError::Poisoned { .. }
                    | LogError::TooLong { .. }
                    | LogError::Backwards { .. }
                    | LogError::Gone { .. }
                    | LogError::NotABoundary { .. }) => Err(log_error(store)(error)),
                }
            })?,
            head: None,
            is_log_lost,
            damage,
        };
        match ledger.load() {
            Ok(head) => ledger.head = head,
            Err(reason) => {
                ledger
                    .damage
                    .push(format!("the table of store {store} is rebuilt: {reason}"));
                ledger.forget()?;
            }
        }
        Ok(ledger)
    }

    /// Returns what the table stands for; `None` when it stands for nothing.
    pub fn head(&self) -> Option<&Head> {
        self.head.as_ref()
    }

    /// Returns the log.
    pub fn log(&mut self) -> &mut Log {
        &mut self.log
    }

    /// Returns the log, to read it.
    pub fn log_view(&self) -> crate::log::LogView {
        self.log.view()
    }

    /// Keeps what the manifest says now of `paths`, and that it stands for `head`, in one change.
    /// Durable only after [`Ledger::sync`].
    ///
    /// # Errors
    /// When the table fails.
    pub fn commit(&mut self, paths: &BTreeSet<RelPath>, head: Head) -> Result<(), LedgerError> {
        let mut changes = Vec::with_capacity(paths.len().saturating_add(1));
        for path in paths {
            changes.push(self.change(path));
        }
        changes.push(Change::Put(HEAD_KEY.to_vec(), encode(&head)));
        self.table
            .apply(&changes)
            .map_err(table_error(&self.store))?;
        self.head = Some(head);
        Ok(())
    }

    /// Keeps what the manifest says now of `paths`; what it stands for is as before.
    ///
    /// # Errors
    /// When the table fails.
    pub fn keep(&mut self, paths: &BTreeSet<RelPath>) -> Result<(), LedgerError> {
        let changes: Vec<Change> = paths.iter().map(|path| self.change(path)).collect();
        self.table.apply(&changes).map_err(table_error(&self.store))
    }

    /// Keeps what was learned of some paths while the manifest stands for nothing, so that an
    /// interrupted seeding need not read those files again.
    ///
    /// # Errors
    /// When the table fails.
    pub fn keep_aside(&mut self, known: &[(RelPath, Known)]) -> Result<(), LedgerError> {
        let changes: Vec<Change> = known
            .iter()
            .map(|(path, known)| Change::Put(key(path), encode(known)))
            .collect();
        self.table.apply(&changes).map_err(table_error(&self.store))
    }

    /// Makes durable what was committed.
    ///
    /// # Errors
    /// When the table fails.
    pub fn sync(&mut self) -> Result<(), LedgerError> {
        self.table.sync().map_err(table_error(&self.store))
    }

    /// Durably forgets what the table stands for, and keeps the entries: they save reading files
    /// again.
    ///
    /// # Errors
    /// When the table fails.
    pub fn forget_head(&mut self) -> Result<(), LedgerError> {
        self.head = None;
        self.table
            .apply(&[Change::Delete(HEAD_KEY.to_vec())])
            .and_then(|()| self.table.sync())
            .map_err(table_error(&self.store))
    }

    /// Durably replaces everything by `manifest`, standing for `head`; the log begins there.
    ///
    /// # Errors
    /// When the table or the log fails; nothing then stands for anything.
    pub fn replace(&mut self, manifest: Manifest, head: Head) -> Result<(), LedgerError> {
        self.forget_head()?;
        self.manifest = manifest;
        self.log
            .reset(head.position)
            .map_err(log_error(&self.store))?;
        // What the table holds and not what was in memory: an interrupted seeding leaves entries
        // there that no manifest has.
        let mut stale = Vec::new();
        let manifest = &self.manifest;
        self.table
            .visit(&mut |key, _| {
                let path = key
                    .split_first()
                    .and_then(|(_, rest)| RelPath::from_key(rest).ok());
                if path.is_none_or(|path| manifest.get(&path).is_none()) {
                    stale.push(Change::Delete(key.to_vec()));
                }
                ControlFlow::Continue(())
            })
            .map_err(table_error(&self.store))?;
        for some in stale.chunks(1000) {
            self.table.apply(some).map_err(table_error(&self.store))?;
        }
        let entries = self.manifest.entries();
        for some in entries.chunks(1000) {
            self.keep_aside(some)?;
        }
        self.commit(&BTreeSet::new(), head)?;
        self.sync()
    }

    fn change(&self, path: &RelPath) -> Change {
        match self.manifest.get(path) {
            Some(known) => Change::Put(key(path), encode(known)),
            None => Change::Delete(key(path)),
        }
    }

    /// Forgets all that the table says.
    fn forget(&mut self) -> Result<(), LedgerError> {
        self.head = None;
        self.manifest = Manifest::default();
        self.table
            .clear()
            .and_then(|()| self.table.sync())
            .map_err(table_error(&self.store))
    }

    /// Reads the manifest; what does not agree with itself is an error in words.
    fn load(&mut self) -> Result<Option<Head>, String> {
        let mut head: Option<Head> = None;
        let mut wrong = None;
        let manifest = &mut self.manifest;
        let visited = self.table.visit(&mut |key, value| {
            let result = match key.split_first() {
                Some((&PATH_PREFIX, rest)) => RelPath::from_key(rest)
                    .map_err(|error| error.to_string())
                    .and_then(|path| {
                        let known: Known = decode(value)?;
                        match manifest.insert(&path, known) {
                            Ok(_) => Ok(()),
                            // Without a head it stands for nothing: a seeding was interrupted, and
                            // what is there only saves reading files again.
                            Err(_) if head.is_none() => Ok(()),
                            Err(error) => Err(error.to_string()),
                        }
                    }),
                Some(_) | None if key == HEAD_KEY => decode(value).map(|found| head = Some(found)),
                Some(_) | None => Err("an unknown key".to_owned()),
            };
            match result {
                Ok(()) => ControlFlow::Continue(()),
                Err(reason) => {
                    wrong = Some(reason);
                    ControlFlow::Break(())
                }
            }
        });
        visited.map_err(|error| error.to_string())?;
        if let Some(reason) = wrong {
            return Err(reason);
        }
        match &head {
            Some(head) if head.root != self.manifest.root() => {
                Err("it does not hold what it held".to_owned())
            }
            Some(_) | None => Ok(head),
        }
    }
}

fn open_table(path: &Path) -> Result<Box<dyn Table>, TableError> {
    let begun = Instant::now();
    loop {
        match table::open(path, Engine::default()) {
            Err(error) if is_locked(&error) && begun.elapsed() < HANDOVER_MAX => {
                thread::sleep(Duration::from_millis(20));
            }
            result => return result,
        }
    }
}

/// sled says it in words only.
fn is_locked(error: &TableError) -> bool {
    match error {
        TableError::Engine { source, .. } => {
            let text = source.to_string();
            text.contains("WouldBlock") || text.contains("could not acquire lock")
        }
        TableError::Unopenable { .. } | TableError::TooLong { .. } => false,
    }
}

/// Keeps what is damaged, once, for those who want to look at it.
fn move_aside(path: &Path) -> Result<(), LedgerError> {
    let mut aside = path.as_os_str().to_owned();
    aside.push(".damaged");
    let aside = PathBuf::from(aside);
    match fs::remove_dir_all(&aside) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(folder_error("remove", &aside)(error)),
    }
    match fs::rename(path, &aside) {
        Ok(()) => durable::sync_directory_of(path).map_err(folder_error("sync", path)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(folder_error("move aside", path)(error)),
    }
}

fn key(path: &RelPath) -> Vec<u8> {
    let mut key = vec![PATH_PREFIX];
    key.extend_from_slice(&path.to_key());
    key
}

fn encode(value: &impl Serialize) -> Vec<u8> {
    postcard::to_extend(value, vec![VERSION]).expect("what the table holds can be encoded")
}

fn decode<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, String> {
    match bytes.split_first() {
        Some((&VERSION, rest)) => postcard::from_bytes(rest).map_err(|error| error.to_string()),
        Some(_) | None => Err("it was written by another version".to_owned()),
    }
}

fn folder_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> LedgerError {
    let path = path.to_owned();
    move |source| LedgerError::Folder {
        action,
        path,
        source,
    }
}

fn table_error(store: &StoreName) -> impl FnOnce(TableError) -> LedgerError {
    let store = store.clone();
    move |source| LedgerError::Table { store, source }
}

fn log_error(store: &StoreName) -> impl FnOnce(LogError) -> LedgerError {
    let store = store.clone();
    move |source| LedgerError::Log { store, source }
}

#[cfg(test)]
mod tests {
    use super::super::entry::{Entry, Kind};
    use super::*;

    fn directory() -> Known {
        let entry = Entry {
            kind: Kind::Directory,
            mode: 0o755,
            uid: 0,
            gid: 0,
            mtime_ns: 1,
        };
        Known { entry, local: None }
    }

    fn path(text: &str) -> RelPath {
        RelPath::new(text).unwrap()
    }

    #[test]
    fn what_a_seeding_left_behind_is_gone_when_the_manifest_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let store = "docs".parse().unwrap();
        let mut ledger = Ledger::open(folder.path(), &store).unwrap();
        let stale = [
            (path("gone"), directory()),
            (path("gone/deep"), directory()),
        ];
        ledger.keep_aside(&stale).unwrap();
        let mut manifest = Manifest::default();
        manifest.insert(&path("here"), directory()).unwrap();
        let head = Head {
            epoch: "1.a".parse().unwrap(),
            position: Position(7),
            complete: Position(7),
            root: manifest.root(),
        };
        ledger.replace(manifest, head.clone()).unwrap();
        drop(ledger);
        let ledger = Ledger::open(folder.path(), &store).unwrap();
        assert_eq!(ledger.damage, Vec::<String>::new());
        assert_eq!(ledger.head(), Some(&head));
        assert_eq!(ledger.manifest.entries(), [(path("here"), directory())]);
    }

    #[test]
    fn a_table_that_does_not_hold_what_it_held_stands_for_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let store = "docs".parse().unwrap();
        let mut ledger = Ledger::open(folder.path(), &store).unwrap();
        let head = Head {
            epoch: "1.a".parse().unwrap(),
            position: Position(7),
            complete: Position(7),
            root: Digest::of(b"another tree"),
        };
        ledger.replace(Manifest::default(), head).unwrap();
        drop(ledger);
        let ledger = Ledger::open(folder.path(), &store).unwrap();
        assert_eq!(ledger.head(), None);
        assert_eq!(ledger.damage.len(), 1);
    }
}
