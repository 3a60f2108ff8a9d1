//! redb behind [`Table`].

use std::fmt;
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use redb::{Database, Durability, ReadableDatabase, ReadableTable, TableDefinition};

use super::{CACHE_BYTES_MAX, Change, Table, TableError, Visit, check};
use crate::durable;

const ENTRIES: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("entries");

pub(super) struct RedbTable {
    db: Database,
    folder: PathBuf,
}

impl fmt::Debug for RedbTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RedbTable({})", self.folder.display())
    }
}

impl RedbTable {
    pub(super) fn open(folder: &Path) -> Result<Self, TableError> {
        durable::create_directory(folder, 0o700)
            .map_err(|source| engine("create", folder, source))?;
        let path = folder.join("table.redb");
        let cache = usize::try_from(CACHE_BYTES_MAX).unwrap_or(usize::MAX);
        let opened = catch_unwind(AssertUnwindSafe(|| {
            Database::builder().set_cache_size(cache).create(&path)
        }));
        let db = opened
            .map_err(|_| TableError::Unopenable {
                path: folder.to_owned(),
            })?
            .map_err(|source| engine("open", folder, source))?;
        let mut table = Self {
            db,
            folder: folder.to_owned(),
        };
        // Makes the table within the database, so that it can be read.
        table.write(Durability::Immediate, |_| Ok(()))?;
        durable::sync_directory_of(&path).map_err(|source| engine("create", folder, source))?;
        Ok(table)
    }

    fn write(
        &mut self,
        durability: Durability,
        act: impl FnOnce(&mut redb::Table<'_, &'static [u8], &'static [u8]>) -> Result<(), redb::Error>,
    ) -> Result<(), TableError> {
        let result = (|| {
            let mut transaction = self.db.begin_write()?;
            transaction.set_durability(durability)?;
            {
                let mut table = transaction.open_table(ENTRIES)?;
                act(&mut table)?;
            }
            transaction.commit()?;
            Ok::<_, redb::Error>(())
        })();
        result.map_err(|source| engine("change", &self.folder, source))
    }

    fn read<T>(
        &self,
        act: impl FnOnce(&redb::ReadOnlyTable<&'static [u8], &'static [u8]>) -> Result<T, redb::Error>,
    ) -> Result<T, TableError> {
        let result = (|| {
            let table = self.db.begin_read()?.open_table(ENTRIES)?;
            act(&table)
        })();
        result.map_err(|source| engine("read", &self.folder, source))
    }
}

impl Table for RedbTable {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, TableError> {
        self.read(|table| Ok(table.get(key)?.map(|value| value.value().to_vec())))
    }

    fn apply(&mut self, changes: &[Change]) -> Result<(), TableError> {
        check(changes)?;
        self.write(Durability::None, |table| {
            for change in changes {
                match change {
                    Change::Put(key, value) => {
                        table.insert(key.as_slice(), value.as_slice())?;
                    }
                    Change::Delete(key) => {
                        table.remove(key.as_slice())?;
                    }
                }
            }
            Ok(())
        })
    }

    fn visit(&self, visit: Visit<'_>) -> Result<(), TableError> {
        self.read(|table| {
            for entry in table.iter()? {
                let (key, value) = entry?;
                if let ControlFlow::Break(()) = visit(key.value(), value.value()) {
                    break;
                }
            }
            Ok(())
        })
    }

    fn clear(&mut self) -> Result<(), TableError> {
        self.write(Durability::None, |table| Ok(table.retain(|_, _| false)?))
    }

    fn sync(&mut self) -> Result<(), TableError> {
        // A durable commit makes those before it durable.
        self.write(Durability::Immediate, |_| Ok(()))
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
