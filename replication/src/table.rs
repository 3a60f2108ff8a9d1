//! Tables that can be rebuilt: from a log, from the tree, from the peer.
//!
//! Nothing in a table is the only copy of anything. It saves the work of finding out again, so an
//! engine that loses or damages it costs time and no data. sled is the default; redb passes the same
//! tests.

mod redb;
mod sled;

use std::error::Error;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

/// The longest value. sled moves larger leaves into files that it never syncs: sixteen values share
/// a leaf, which must stay below 128 KiB.
pub const TABLE_VALUE_BYTES_MAX: usize = 4 << 10;

/// The longest key, for the same reason.
pub const TABLE_KEY_BYTES_MAX: usize = 3600;

/// How much memory an engine may use as its cache.
pub(crate) const CACHE_BYTES_MAX: u64 = 64 << 20;

/// Why a table cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    /// The engine failed.
    #[error("cannot {action} the table in {}", path.display())]
    Engine {
        /// What was tried.
        action: &'static str,
        /// The folder.
        path: PathBuf,
        /// Why not.
        source: Box<dyn Error + Send + Sync>,
    },
    /// Somebody else has it open.
    #[error("the table in {} is open elsewhere", path.display())]
    Busy {
        /// The folder.
        path: PathBuf,
    },
    /// The engine panicked while it opened what is there.
    #[error("the table in {} is damaged beyond opening", path.display())]
    Unopenable {
        /// The folder.
        path: PathBuf,
    },
    /// A key or a value is longer than it may be.
    #[error("a {what} of {bytes} bytes, where {bytes_max} are allowed")]
    TooLong {
        /// `key` or `value`.
        what: &'static str,
        /// How long it is.
        bytes: usize,
        /// How long it may be.
        bytes_max: usize,
    },
}

/// One change of a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Sets the value of a key.
    Put(Vec<u8>, Vec<u8>),
    /// Removes a key, if it is there.
    Delete(Vec<u8>),
}

/// Sees a key and its value, and says whether to go on.
pub type Visit<'a> = &'a mut dyn FnMut(&[u8], &[u8]) -> ControlFlow<()>;

/// A map of bytes to bytes in key order, on disk. One process, one owner.
pub trait Table: Send {
    /// Returns the value of `key`.
    ///
    /// # Errors
    /// When the engine fails.
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, TableError>;

    /// Makes all changes, in this order, or none. Durable only after [`Table::sync`].
    ///
    /// # Errors
    /// When the engine fails, or a key or value is too long.
    fn apply(&mut self, changes: &[Change]) -> Result<(), TableError>;

    /// Visits every entry in the order of keys.
    ///
    /// # Errors
    /// When the engine fails.
    fn visit(&self, visit: Visit<'_>) -> Result<(), TableError>;

    /// Removes every entry.
    ///
    /// # Errors
    /// When the engine fails.
    fn clear(&mut self) -> Result<(), TableError>;

    /// Makes every change so far durable.
    ///
    /// # Errors
    /// When the engine or the sync fails.
    fn sync(&mut self) -> Result<(), TableError>;
}

/// The engines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Engine {
    /// sled 0.34.
    #[default]
    Sled,
    /// redb.
    Redb,
}

/// Opens the table in `folder`, or creates it.
///
/// # Errors
/// When it cannot be opened; the caller may then move it aside and rebuild.
pub fn open(folder: &Path, engine: Engine) -> Result<Box<dyn Table>, TableError> {
    Ok(match engine {
        Engine::Sled => Box::new(sled::SledTable::open(folder)?),
        Engine::Redb => Box::new(redb::RedbTable::open(folder)?),
    })
}

/// Refuses what is too long, before anything of a batch is applied.
fn check(changes: &[Change]) -> Result<(), TableError> {
    let within = |what, bytes, bytes_max| {
        if bytes > bytes_max {
            return Err(TableError::TooLong {
                what,
                bytes,
                bytes_max,
            });
        }
        Ok(())
    };
    for change in changes {
        match change {
            Change::Put(key, value) => {
                within("key", key.len(), TABLE_KEY_BYTES_MAX)?;
                within("value", value.len(), TABLE_VALUE_BYTES_MAX)?;
            }
            Change::Delete(key) => within("key", key.len(), TABLE_KEY_BYTES_MAX)?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENGINES: [Engine; 2] = [Engine::Sled, Engine::Redb];

    fn put(key: &str, value: &str) -> Change {
        Change::Put(key.into(), value.into())
    }

    fn all(table: &dyn Table) -> Vec<(String, String)> {
        let mut entries = Vec::new();
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        table
            .visit(&mut |key, value| {
                entries.push((text(key), text(value)));
                ControlFlow::Continue(())
            })
            .unwrap();
        entries
    }

    #[test]
    fn what_was_synced_is_there_after_opening_again_in_key_order() {
        for engine in ENGINES {
            let folder = tempfile::tempdir().unwrap();
            let folder = folder.path().join("table");
            let mut table = open(&folder, engine).unwrap();
            table
                .apply(&[put("b", "2"), put("a", "0"), put("a", "1"), put("c", "3")])
                .unwrap();
            table
                .apply(&[Change::Delete("c".into()), Change::Delete("none".into())])
                .unwrap();
            table.sync().unwrap();
            drop(table);
            let mut table = open(&folder, engine).unwrap();
            let entry = |key: &str, value: &str| (key.to_owned(), value.to_owned());
            assert_eq!(
                all(&*table),
                [entry("a", "1"), entry("b", "2")],
                "{engine:?}"
            );
            assert_eq!(table.get(b"b").unwrap(), Some(b"2".to_vec()));
            assert_eq!(table.get(b"c").unwrap(), None);
            table.clear().unwrap();
            table.sync().unwrap();
            drop(table);
            assert_eq!(all(&*open(&folder, engine).unwrap()), []);
        }
    }

    #[test]
    fn a_batch_with_a_value_that_is_too_long_changes_nothing() {
        for engine in ENGINES {
            let folder = tempfile::tempdir().unwrap();
            let mut table = open(&folder.path().join("table"), engine).unwrap();
            let long = Change::Put("z".into(), vec![0; TABLE_VALUE_BYTES_MAX + 1]);
            let error = table.apply(&[put("a", "1"), long]).unwrap_err();
            assert_eq!(
                error.to_string(),
                "a value of 4097 bytes, where 4096 are allowed"
            );
            assert_eq!(all(&*table), [], "{engine:?}");
        }
    }

    #[test]
    fn a_table_of_rubbish_is_an_error_and_not_a_panic() {
        for engine in ENGINES {
            let folder = tempfile::tempdir().unwrap();
            let folder = folder.path().join("table");
            let mut table = open(&folder, engine).unwrap();
            for number in 0..2000 {
                table
                    .apply(&[put(&format!("key {number}"), "some value")])
                    .unwrap();
            }
            table.sync().unwrap();
            drop(table);
            for name in ["db", "conf", "table.redb"] {
                let path = folder.join(name);
                if let Ok(mut bytes) = std::fs::read(&path) {
                    for byte in bytes.iter_mut().step_by(7) {
                        *byte ^= 0x5A;
                    }
                    std::fs::write(&path, bytes).unwrap();
                }
            }
            // An empty table or an error: both are rebuilt. A panic would take the node down.
            match open(&folder, engine) {
                Ok(table) => assert!(all(&*table).len() < 2000),
                Err(error) => assert!(error.to_string().contains("table")),
            }
        }
    }
}
