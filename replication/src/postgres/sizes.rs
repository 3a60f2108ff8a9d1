//! How much of a data directory is tables, and how much is the rest: `pg_rewind` copies blocks of the former
//! and all of the latter.

use std::fs;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

/// What lies in these is made anew by every server (Postgres' `pg_rewind/filemap.c`, `excludeDirContents`).
const EMPTIED: [&str; 7] = [
    "pg_stat_tmp",
    "pg_replslot",
    "pg_dynshmem",
    "pg_notify",
    "pg_serial",
    "pg_snapshots",
    "pg_subtrans",
];

/// A data directory is no deeper: `pg_tblspc/OID/VERSION/DATABASE/FILE`.
const DEPTH_MAX: usize = 8;

/// How large a data directory is, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sizes {
    /// The main forks of tables and indexes.
    pub relations: u64,
    /// Everything else: the write-ahead log, the other forks, the states of transactions.
    pub others: u64,
}

impl Sizes {
    /// Measures a data directory, whose server may run: what goes away meanwhile is not counted.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn of(data_dir: &Path) -> io::Result<Self> {
        let mut sizes = Self::default();
        sizes.add(data_dir, &mut Vec::new())?;
        Ok(sizes)
    }

    fn add(&mut self, folder: &Path, names: &mut Vec<String>) -> io::Result<()> {
        let entries = match fs::read_dir(folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound && !names.is_empty() => {
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        for entry in entries {
            let entry = entry?;
            let Ok(name) = entry.file_name().into_string() else {
                continue;
            };
            // The log and tablespaces may lie elsewhere, behind a link.
            let Ok(found) = fs::metadata(entry.path()) else {
                continue;
            };
            if !found.is_dir() {
                if is_relation(names, &name) {
                    self.relations = self.relations.saturating_add(found.len());
                } else {
                    self.others = self.others.saturating_add(found.len());
                }
                continue;
            }
            let is_emptied = names.is_empty() && EMPTIED.contains(&&*name);
            if is_emptied || name.starts_with("pgsql_tmp") || names.len() >= DEPTH_MAX {
                continue;
            }
            names.push(name);
            let added = self.add(&entry.path(), names);
            names.pop();
            added?;
        }
        Ok(())
    }
}

/// Returns whether a file is a segment of the main fork of a relation (`isRelDataFile` there).
fn is_relation(folders: &[String], name: &str) -> bool {
    let number = name.split_once('.').map_or(name, |(number, _)| number);
    let is_numbered = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
    let folders: Vec<&str> = folders.iter().map(String::as_str).collect();
    is_numbered
        && matches!(
            folders.as_slice(),
            ["global"] | ["base", _] | ["pg_tblspc", _, _, _]
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_told_from_the_rest_and_what_is_made_anew_is_not_counted() {
        let folder = tempfile::tempdir().unwrap();
        let files = [
            ("PG_VERSION", 3),
            ("global/1262", 10),
            ("global/pg_control", 100),
            ("base/5/16384", 20),
            ("base/5/16384.1", 20),
            ("base/5/16384_fsm", 1000),
            ("base/5/PG_VERSION", 3),
            ("base/pgsql_tmp/pgsql_tmp1.0", 9999),
            ("pg_wal/000000010000000000000001", 5000),
            ("pg_wal/archive_status/x.done", 0),
            ("pg_replslot/x/state", 9999),
        ];
        for (name, bytes) in files {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, vec![0; bytes]).unwrap();
        }
        assert_eq!(
            Sizes::of(folder.path()).unwrap(),
            Sizes {
                relations: 50,
                others: 6106
            }
        );
    }
}
