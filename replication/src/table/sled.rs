//! sled 0.34 behind [`Table`].

use std::fs::File;
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use super::{CACHE_BYTES_MAX, Change, Table, TableError, Visit, check};
use crate::durable;

#[derive(Debug)]
pub(super) struct SledTable {
    db: sled::Db,
    /// sled's `flush` is no fsync: the file is synced here.
    file: File,
    folder: PathBuf,
}

impl SledTable {
    pub(super) fn open(folder: &Path) -> Result<Self, TableError> {
        let is_new = !folder.join("db").exists();
        let path = folder.to_owned();
        // Opening a damaged table can panic.
        let opened = std::thread::spawn(move || {
            catch_unwind(AssertUnwindSafe(|| {
                sled::Config::new()
                    .path(&path)
                    .mode(sled::Mode::LowSpace)
                    .cache_capacity(CACHE_BYTES_MAX)
                    .open()
            }))
        });
        let opened = opened.join().ok().and_then(Result::ok);
        let db = opened
            .ok_or_else(|| TableError::Unopenable {
                path: folder.to_owned(),
            })?
            .map_err(|source| {
                // Its own threads hold the lock for a moment longer than who has dropped it.
                if source.to_string().contains("could not acquire lock") {
                    let path = folder.to_owned();
                    return TableError::Busy { path };
                }
                engine("open", folder, source)
            })?;
        let path = folder.join("db");
        let file = File::open(&path).map_err(|source| engine("open", folder, source))?;
        let mut table = Self {
            db,
            file,
            folder: folder.to_owned(),
        };
        if is_new {
            table.sync()?;
            for path in [&path, folder] {
                durable::sync_directory_of(path)
                    .map_err(|source| engine("create", folder, source))?;
            }
        }
        Ok(table)
    }

    fn failed<E>(&self, action: &'static str) -> impl Fn(E) -> TableError + '_
    where
        E: std::error::Error + Send + Sync + 'static,
    {
        move |source| engine(action, &self.folder, source)
    }
}

impl Table for SledTable {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, TableError> {
        let value = self.db.get(key).map_err(self.failed("read"))?;
        Ok(value.map(|value| value.to_vec()))
    }

    fn apply(&mut self, changes: &[Change]) -> Result<(), TableError> {
        check(changes)?;
        let mut batch = sled::Batch::default();
        for change in changes {
            match change {
                Change::Put(key, value) => batch.insert(key.as_slice(), value.as_slice()),
                Change::Delete(key) => batch.remove(key.as_slice()),
            }
        }
        self.db.apply_batch(batch).map_err(self.failed("change"))
    }

    fn visit(&self, visit: Visit<'_>) -> Result<(), TableError> {
        for entry in self.db.iter() {
            let (key, value) = entry.map_err(self.failed("read"))?;
            if let ControlFlow::Break(()) = visit(&key, &value) {
                break;
            }
        }
        Ok(())
    }

    fn clear(&mut self) -> Result<(), TableError> {
        self.db.clear().map_err(self.failed("clear"))
    }

    fn sync(&mut self) -> Result<(), TableError> {
        self.db.flush().map_err(self.failed("flush"))?;
        self.file.sync_data().map_err(self.failed("sync"))
    }
}

fn engine(
    action: &'static str,
    folder: &Path,
    source: impl std::error::Error + Send + Sync + 'static,
) -> TableError {
    TableError::Engine {
        action,
        path: folder.to_owned(),
        source: Box::new(source),
    }
}
