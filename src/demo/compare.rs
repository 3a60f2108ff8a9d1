//! Compares what the new primary has with what was acknowledged.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::Serialize;
use understudy_replication::store::StoreKind;
use understudy_replication::wall_time::WallTime;
use understudy_standby::index::SearchResult;

use super::appliance::{Appliance, DOCS, SETTINGS_FILE, beneath, connect};
use super::machine::Machines;
use super::writer::{Done, FileWrite, LAST_KEY, Written};
use crate::failure::Failure;

/// How one store came through.
#[derive(Debug, Serialize)]
pub(super) struct StoreResult {
    pub(super) name: String,
    pub(super) kind: StoreKind,
    /// Writes that were finished before the newest cut that the standby had told before the kill, and
    /// everything that was there before.
    pub(super) acknowledged: usize,
    /// Of these, how many the new primary lacks.
    pub(super) missing: usize,
    /// Writes that were finished after that.
    pub(super) in_flight: usize,
    /// Of these, how many the new primary lacks.
    pub(super) in_flight_lost: usize,
}

/// Counts writes by whether they were acknowledged and whether they are there.
struct Count<'a> {
    promised: Option<WallTime>,
    result: &'a mut StoreResult,
}

impl Count<'_> {
    fn add<T>(&mut self, write: &Done<T>, is_there: bool) {
        let lost = usize::from(!is_there);
        if self.promised.is_some_and(|promised| write.at < promised) {
            self.result.acknowledged += 1;
            self.result.missing += lost;
        } else {
            self.result.in_flight += 1;
            self.result.in_flight_lost += lost;
        }
    }
}

fn result(name: &str, kind: StoreKind) -> StoreResult {
    StoreResult {
        name: name.to_owned(),
        kind,
        acknowledged: 0,
        missing: 0,
        in_flight: 0,
        in_flight_lost: 0,
    }
}

/// Compares every store of node b with what was written to node a; `promised` is the cut.
pub(super) async fn compare(
    machines: &Machines,
    appliance: &Appliance,
    written: &Written,
    promised: Option<WallTime>,
) -> Result<Vec<StoreResult>, Failure> {
    let client = connect(machines, "b", "catalog").await?;
    let mut postgres = result("postgres", StoreKind::Postgres);
    let rows = client.query("SELECT number FROM change", &[]).await?;
    let there: BTreeSet<i32> = rows.iter().map(|row| row.get(0)).collect();
    let mut count = Count {
        promised,
        result: &mut postgres,
    };
    for write in &written.changes {
        count.add(write, there.contains(&write.what));
    }
    let packages: i64 = client
        .query_one("SELECT count(*) FROM package", &[])
        .await?
        .get(0);
    let packages = usize::try_from(packages)?;
    postgres.acknowledged += appliance.count();
    postgres.missing += appliance.count().saturating_sub(packages);

    let mut files = result("docs", StoreKind::Files);
    compare_trees(machines, &mut files)?;
    let notes = beneath(&machines.root("b"), DOCS).join("notes");
    let mut count = Count {
        promised,
        result: &mut files,
    };
    for write in &written.files {
        let is_there = match &write.what {
            FileWrite::Written { name, generation } => {
                generation_of(&notes.join(name)).is_some_and(|found| found >= *generation)
            }
            FileWrite::Deleted { name } => !notes.join(name).exists(),
        };
        count.add(write, is_there);
    }

    let mut settings = result("settings", StoreKind::Settings);
    let found = generation_of(&beneath(&machines.root("b"), SETTINGS_FILE));
    let mut count = Count {
        promised,
        result: &mut settings,
    };
    for write in &written.settings {
        count.add(write, found.is_some_and(|found| found >= write.what));
    }

    let mut keys = result("kv", StoreKind::Kv);
    let found = machines.understudy("b", &["kv", "get", LAST_KEY]).await;
    let found: Option<u32> = found.ok().and_then(|text| text.trim().parse().ok());
    let mut count = Count {
        promised,
        result: &mut keys,
    };
    for write in &written.keys {
        count.add(write, found.is_some_and(|found| found >= write.what));
    }
    Ok(vec![postgres, files, keys, settings])
}

/// Compares the files that the writer did not touch: each must be the same on both nodes.
fn compare_trees(machines: &Machines, result: &mut StoreResult) -> Result<(), Failure> {
    let (a, b) = (
        tree(&beneath(&machines.root("a"), DOCS))?,
        tree(&beneath(&machines.root("b"), DOCS))?,
    );
    result.acknowledged += a.len();
    result.missing += a
        .iter()
        .filter(|(path, look)| b.get(*path) != Some(look))
        .count();
    // A file that should not be there is a difference as well.
    result.missing += b.keys().filter(|path| !a.contains_key(*path)).count();
    Ok(())
}

/// How a file looks: mode, whole seconds of its time, and its content or target.
type Look = (u32, i64, String);

fn tree(root: &Path) -> Result<BTreeMap<PathBuf, Look>, Failure> {
    let mut found = BTreeMap::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder)? {
            let path = entry?.path();
            let relative = path.strip_prefix(root)?.to_owned();
            if relative.starts_with("notes") || relative.starts_with(".understudy") {
                continue;
            }
            let metadata = fs::symlink_metadata(&path)?;
            let content = if metadata.is_symlink() {
                fs::read_link(&path)?.display().to_string()
            } else if metadata.is_file() {
                blake3::hash(&fs::read(&path)?).to_hex().to_string()
            } else {
                folders.push(path.clone());
                "folder".to_owned()
            };
            // The writer has made a folder beside it.
            let time = if metadata.is_dir() {
                0
            } else {
                metadata.mtime()
            };
            found.insert(relative, (metadata.mode(), time, content));
        }
    }
    Ok(found)
}

/// Returns the generation that a file says it is of.
fn generation_of(path: &Path) -> Option<u32> {
    let text = fs::read_to_string(path).ok()?;
    text.lines().next()?.rsplit(' ').next()?.parse().ok()
}

/// Searches the index on node b; returns how many documents it has, and how many were found.
pub(super) async fn index(machines: &Machines) -> Result<(u64, u64), Failure> {
    let status = machines.status("b").await?;
    let documents = status.indexes.first().map_or(0, |index| index.documents);
    let found = machines
        .understudy("b", &["index", "search", "search", "library", "--json"])
        .await?;
    let found: SearchResult = serde_json::from_str(&found)?;
    Ok((documents, found.total))
}
