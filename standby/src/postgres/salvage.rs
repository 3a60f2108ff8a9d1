//! Keeps what only this side's write-ahead log has, before a rewind or a re-seed takes it away.
//!
//! Invariant: a folder under `salvage/` that has its final name is whole and durable. It is named by the
//! range of the log that it keeps, so that a rejoin that is run again finds it and does not make it twice.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use understudy_config::NodeName;
use understudy_replication::durable;
use understudy_replication::epoch::Epoch;
use understudy_replication::postgres::{Cluster, WalRange, parse_segment};
use understudy_replication::rejoin::Salvaged;
use understudy_replication::wall_time::WallTime;

use super::read_log::{Part, read_log};
use super::waldump::Tally;

/// So much is left free on the disk that the bundle is written to.
const FREE_BYTES_MIN: u64 = 64 << 20;

/// Reading what the log did may take this long; the log itself is kept in any case.
const DUMP_PATIENCE: Duration = Duration::from_secs(300);

/// Why what only this side has could not be kept.
#[derive(Debug, thiserror::Error)]
pub enum SalvageError {
    /// The log does not go back so far.
    #[error(
        "{missing} of the {segments} files of write-ahead log that only this node has are gone already \
         from {}; run `understudy rejoin --without-salvage` to give up what was in them", folder.display()
    )]
    Incomplete {
        /// How many are missing.
        missing: usize,
        /// Of how many.
        segments: usize,
        /// Where they would be.
        folder: PathBuf,
    },
    /// There is no room.
    #[error(
        "keeping what only this node has takes {needed} bytes in {}, and {free} are free; make room, move \
         older bundles away, or run `understudy rejoin --without-salvage` to give it up", folder.display()
    )]
    NoSpace {
        /// How much is needed.
        needed: u64,
        /// How much there is.
        free: u64,
        /// Where.
        folder: PathBuf,
    },
    /// A file could not be handled.
    #[error("cannot {action} {}", path.display())]
    File {
        /// What was being done.
        action: &'static str,
        /// To what.
        path: PathBuf,
        /// What happened.
        source: io::Error,
    },
}

/// The name of what a bundle says of itself.
pub const POSTGRES_SUMMARY: &str = "summary.json";

/// The folder of the log in a bundle.
pub const POSTGRES_WAL: &str = "wal";

/// What a bundle says of itself, in [`POSTGRES_SUMMARY`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// 1.
    pub version: u32,
    /// When it was made, by this node's clock.
    pub made: WallTime,
    /// The node that it was made on; unknown of older bundles.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<NodeName>,
    /// The epoch that opened the timeline on which the log ends, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub made_in: Option<Epoch>,
    /// The epoch of the primary that was followed instead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub superseded_by: Option<Epoch>,
    /// The cluster.
    pub system_identifier: u64,
    /// Where it was.
    pub data_dir: PathBuf,
    /// The parts of the log that only this node had.
    pub ranges: Vec<WalRange>,
    /// Their files, in [`POSTGRES_WAL`].
    pub files: Vec<String>,
    /// How long those are, in bytes; 0 in older bundles.
    #[serde(default)]
    pub bytes: u64,
    /// It is all that only this node had.
    pub is_complete: bool,
    /// Why it could not be told what they did, if so.
    pub not_understood: Option<String>,
    /// What they did.
    #[serde(flatten)]
    pub tally: Tally,
}

impl Summary {
    /// Returns it in a sentence.
    pub fn sentence(&self) -> String {
        let (Some(first), Some(last)) = (self.ranges.first(), self.ranges.last()) else {
            return format!(
                "all {} files of its write-ahead log, as they were; what in them the primary lacks could not be \
                 told",
                self.files.len()
            );
        };
        let bytes: u64 = self.ranges.iter().map(WalRange::bytes).sum();
        format!(
            "{bytes} bytes of write-ahead log from {} on timeline {} to {} on timeline {}: {}",
            first.from,
            first.timeline,
            last.to,
            last.timeline,
            self.tally.sentence()
        )
    }
}

/// Whose log it is, and what has superseded it.
#[derive(Clone, Debug)]
pub(super) struct Origin {
    pub(super) node: NodeName,
    pub(super) made_in: Option<Epoch>,
    pub(super) superseded_by: Epoch,
    pub(super) system_identifier: u64,
}

fn file(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> SalvageError {
    let path = path.to_owned();
    move |source| SalvageError::File {
        action,
        path,
        source,
    }
}

/// What of the log is to be kept.
pub(super) struct Found {
    files: Vec<String>,
    pub(super) bytes: u64,
    /// Segments of the ranges that have no file.
    missing: usize,
    segments: usize,
}

/// Finds the files of `ranges`, and the histories of the timelines beside them.
pub(super) fn find(
    folder: &Path,
    ranges: &[WalRange],
    segment_bytes: u64,
) -> Result<Found, SalvageError> {
    let mut wanted: BTreeSet<_> = ranges
        .iter()
        .flat_map(|range| range.segments(segment_bytes).map(|at| (range.timeline, at)))
        .collect();
    let segments = wanted.len();
    let mut files = Vec::new();
    let mut bytes = 0_u64;
    for entry in fs::read_dir(folder).map_err(file("read", folder))? {
        let entry = entry.map_err(file("read", folder))?;
        let Ok(name) = entry.file_name().into_string() else {
            continue;
        };
        // The last one of a timeline that has ended is called so where there is an archive.
        let segment = name.strip_suffix(".partial").unwrap_or(&name);
        let is_wanted = match parse_segment(segment, segment_bytes) {
            Some(segment) => wanted.remove(&segment),
            None => name.ends_with(".history"),
        };
        if is_wanted {
            let length = entry
                .metadata()
                .map_err(file("look at", &entry.path()))?
                .len();
            bytes = bytes.saturating_add(length);
            files.push(name);
        }
    }
    files.sort();
    Ok(Found {
        files,
        bytes,
        missing: wanted.len(),
        segments,
    })
}

/// Keeps the files of `ranges` under `folder`, with a summary of what they did. Run with the server
/// stopped.
///
/// # Errors
/// When not all of it is there and `must_be_complete`, there is no room, or a file cannot be written.
pub(super) async fn keep(
    cluster: &Cluster,
    origin: &Origin,
    ranges: &[WalRange],
    segment_bytes: u64,
    folder: &Path,
    must_be_complete: bool,
) -> Result<Option<Salvaged>, SalvageError> {
    let (Some(first), Some(last)) = (ranges.first(), ranges.last()) else {
        return Ok(None);
    };
    let wal = cluster.data_dir.join("pg_wal");
    let found = find(&wal, ranges, segment_bytes)?;
    if must_be_complete && found.missing > 0 {
        return Err(SalvageError::Incomplete {
            missing: found.missing,
            segments: found.segments,
            folder: wal,
        });
    }
    let place = |lsn: understudy_replication::position::Lsn| lsn.to_string().replace('/', "-");
    let system_identifier = origin.system_identifier;
    let name = format!(
        "postgres-{system_identifier}-{}.{}-{}.{}",
        first.timeline,
        place(first.from),
        last.timeline,
        place(last.to)
    );
    let (tally, not_understood) = dump(cluster, ranges, segment_bytes).await;
    let summary = Summary {
        version: 1,
        made: WallTime::now(),
        node: Some(origin.node.clone()),
        made_in: origin.made_in.clone(),
        superseded_by: Some(origin.superseded_by.clone()),
        system_identifier,
        data_dir: cluster.data_dir.clone(),
        ranges: ranges.to_vec(),
        files: found.files,
        bytes: found.bytes,
        is_complete: found.missing == 0,
        not_understood,
        tally,
    };
    put(folder, &name, &wal, &summary).await.map(Some)
}

/// Keeps the whole log of a cluster of which nobody can tell where it parted from the primary.
///
/// # Errors
/// When there is no room, or a file cannot be written.
pub(super) async fn keep_log(
    cluster: &Cluster,
    origin: &Origin,
    folder: &Path,
) -> Result<Salvaged, SalvageError> {
    let system_identifier = origin.system_identifier;
    let wal = cluster.data_dir.join("pg_wal");
    let mut files = Vec::new();
    let mut bytes = 0_u64;
    for entry in fs::read_dir(&wal).map_err(file("read", &wal))? {
        let entry = entry.map_err(file("read", &wal))?;
        let metadata = entry.metadata().map_err(file("look at", &entry.path()))?;
        if let (true, Ok(name)) = (metadata.is_file(), entry.file_name().into_string()) {
            bytes = bytes.saturating_add(metadata.len());
            files.push(name);
        }
    }
    files.sort();
    let made = WallTime::now();
    let name = format!("postgres-{system_identifier}-log-{}", made.0);
    let summary = Summary {
        version: 1,
        made,
        node: Some(origin.node.clone()),
        made_in: origin.made_in.clone(),
        superseded_by: Some(origin.superseded_by.clone()),
        system_identifier,
        data_dir: cluster.data_dir.clone(),
        ranges: Vec::new(),
        files,
        bytes,
        is_complete: false,
        not_understood: Some("the server could not tell where its log ends".to_owned()),
        tally: Tally::default(),
    };
    put(folder, &name, &wal, &summary).await
}

/// Checks that there is room for a bundle, and writes it. One that is there already is whole.
async fn put(
    folder: &Path,
    name: &str,
    wal: &Path,
    summary: &Summary,
) -> Result<Salvaged, SalvageError> {
    let (target, partial) = (folder.join(name), folder.join(format!(".{name}.partial")));
    let salvaged = Salvaged {
        path: target.clone(),
        bytes: summary.bytes,
        summary: summary.sentence(),
        is_complete: summary.is_complete,
    };
    if target.exists() {
        return Ok(salvaged);
    }
    durable::create_directory(folder, 0o700).map_err(file("create", folder))?;
    let free = rustix::fs::statvfs(folder)
        .map(|disk| disk.f_bavail.saturating_mul(disk.f_frsize))
        .map_err(|error| file("ask the room in", folder)(error.into()))?;
    let needed = summary.bytes.saturating_add(FREE_BYTES_MIN);
    if free < needed {
        return Err(SalvageError::NoSpace {
            needed,
            free,
            folder: folder.to_owned(),
        });
    }
    // Of an attempt that was cut short: the log is still where it was.
    match fs::remove_dir_all(&partial) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(file("remove", &partial)(error));
        }
        Ok(()) | Err(_) => {}
    }
    let text = serde_json::to_vec_pretty(summary)
        .map_err(|error| file("write", &partial)(error.into()))?;
    let (wal, files, copied) = (wal.to_owned(), summary.files.clone(), partial.clone());
    tokio::task::spawn_blocking(move || copy(&wal, &files, &copied, &text))
        .await
        .map_err(|error| file("write", &partial)(io::Error::other(error)))??;
    fs::rename(&partial, &target).map_err(file("name", &target))?;
    durable::sync_directory_of(&target).map_err(file("sync", &target))?;
    Ok(salvaged)
}

fn copy(from: &Path, files: &[String], to: &Path, summary: &[u8]) -> Result<(), SalvageError> {
    let wal = to.join(POSTGRES_WAL);
    durable::create_directory(&wal, 0o700).map_err(file("create", &wal))?;
    for name in files {
        let (source, target) = (from.join(name), wal.join(name));
        fs::copy(&source, &target).map_err(file("copy", &source))?;
        File::open(&target)
            .and_then(|copied| copied.sync_all())
            .map_err(file("sync", &target))?;
    }
    let path = to.join(POSTGRES_SUMMARY);
    durable::write(&path, summary, 0o600).map_err(file("write", &path))?;
    durable::sync_directory_of(&wal.join("all")).map_err(file("sync", &wal))
}

/// Tells what the ranges did, and why that is not all, if so.
async fn dump(
    cluster: &Cluster,
    ranges: &[WalRange],
    segment_bytes: u64,
) -> (Tally, Option<String>) {
    let mut tally = Tally::default();
    let mut not_understood = None;
    let read = async {
        for range in ranges {
            let part = Part {
                timeline: range.timeline,
                from: range.from,
                to: Some(range.to),
                is_of_log_itself: false,
            };
            let read = read_log(cluster, part, segment_bytes, |line| tally.take(line));
            if let Err(reason) = read.await {
                not_understood.get_or_insert(reason);
            }
        }
    };
    if tokio::time::timeout(DUMP_PATIENCE, read).await.is_err() {
        not_understood = Some(format!(
            "reading it was given up after {} s",
            DUMP_PATIENCE.as_secs()
        ));
    }
    (tally, not_understood)
}
