//! Keeps what only this side's write-ahead log has, before a rewind or a re-seed takes it away.
//!
//! Invariant: a folder under `salvage/` that has its final name is whole and durable. It is named by the
//! range of the log that it keeps, so that a rejoin that is run again finds it and does not make it twice.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use understudy_replication::command::{Command, CommandError};
use understudy_replication::durable;
use understudy_replication::postgres::{Cluster, WalRange, parse_segment};
use understudy_replication::rejoin::Salvaged;
use understudy_replication::wall_time::WallTime;

use super::waldump::Tally;

/// So much is left free on the disk that the bundle is written to.
const FREE_BYTES_MIN: u64 = 64 << 20;

/// Reading what the log did may take this long; the log itself is kept in any case.
const DUMP_PATIENCE: Duration = Duration::from_secs(300);

/// A line of a dump is at most this long.
const LINE_BYTES_MAX: u64 = 64 << 10;

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

/// What a bundle says of itself, in `summary.json`.
#[derive(Debug, Serialize)]
struct Summary<'a> {
    version: u32,
    made: WallTime,
    system_identifier: u64,
    data_dir: &'a Path,
    /// The parts of the log that only this node had.
    ranges: &'a [WalRange],
    /// Their files, in `wal/`.
    files: &'a [String],
    is_complete: bool,
    /// Why it could not be told what they did, if so.
    not_understood: Option<String>,
    /// What they did.
    #[serde(flatten)]
    tally: &'a Tally,
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
struct Found {
    files: Vec<String>,
    bytes: u64,
    /// Segments of the ranges that have no file.
    missing: usize,
    segments: usize,
}

/// Finds the files of `ranges`, and the histories of the timelines beside them.
fn find(folder: &Path, ranges: &[WalRange], segment_bytes: u64) -> Result<Found, SalvageError> {
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
        let is_wanted = match parse_segment(&name, segment_bytes) {
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
    system_identifier: u64,
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
    let name = format!(
        "postgres-{system_identifier}-{}.{}-{}.{}",
        first.timeline,
        place(first.from),
        last.timeline,
        place(last.to)
    );
    let (target, partial) = (folder.join(&name), folder.join(format!(".{name}.partial")));
    let (tally, not_understood) = dump(cluster, ranges).await;
    let range_bytes: u64 = ranges.iter().map(WalRange::bytes).sum();
    let salvaged = Salvaged {
        path: target.clone(),
        bytes: found.bytes,
        summary: format!(
            "{range_bytes} bytes of write-ahead log from {} on timeline {} to {} on timeline {}: {}",
            first.from,
            first.timeline,
            last.to,
            last.timeline,
            tally.sentence()
        ),
        is_complete: found.missing == 0,
    };
    if target.exists() {
        return Ok(Some(salvaged));
    }
    durable::create_directory(folder, 0o700).map_err(file("create", folder))?;
    let free = rustix::fs::statvfs(folder)
        .map(|disk| disk.f_bavail.saturating_mul(disk.f_frsize))
        .map_err(|error| file("ask the room in", folder)(error.into()))?;
    let needed = found.bytes.saturating_add(FREE_BYTES_MIN);
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
    let summary = Summary {
        version: 1,
        made: WallTime::now(),
        system_identifier,
        data_dir: &cluster.data_dir,
        ranges,
        files: &found.files,
        is_complete: found.missing == 0,
        not_understood,
        tally: &tally,
    };
    let summary = serde_json::to_vec_pretty(&summary)
        .map_err(|error| file("write", &partial)(error.into()))?;
    let (files, copied) = (found.files, partial.clone());
    tokio::task::spawn_blocking(move || copy(&wal, &files, &copied, &summary))
        .await
        .map_err(|error| file("write", &partial)(io::Error::other(error)))??;
    fs::rename(&partial, &target).map_err(file("name", &target))?;
    durable::sync_directory_of(&target).map_err(file("sync", &target))?;
    Ok(Some(salvaged))
}

fn copy(from: &Path, files: &[String], to: &Path, summary: &[u8]) -> Result<(), SalvageError> {
    let wal = to.join("wal");
    durable::create_directory(&wal, 0o700).map_err(file("create", &wal))?;
    for name in files {
        let (source, target) = (from.join(name), wal.join(name));
        fs::copy(&source, &target).map_err(file("copy", &source))?;
        File::open(&target)
            .and_then(|copied| copied.sync_all())
            .map_err(file("sync", &target))?;
    }
    let path = to.join("summary.json");
    durable::write(&path, summary, 0o600).map_err(file("write", &path))?;
    durable::sync_directory_of(&wal.join("all")).map_err(file("sync", &wal))
}

/// Tells what the ranges did, and why that is not all, if so.
async fn dump(cluster: &Cluster, ranges: &[WalRange]) -> (Tally, Option<String>) {
    let mut tally = Tally::default();
    let mut not_understood = None;
    let read = async {
        for range in ranges {
            if let Err(reason) = dump_range(cluster, range, &mut tally).await {
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

async fn dump_range(cluster: &Cluster, range: &WalRange, tally: &mut Tally) -> Result<(), String> {
    let argv = [
        cluster.bin("pg_waldump"),
        format!("--path={}", cluster.data_dir.join("pg_wal").display()),
        format!("--timeline={}", range.timeline),
        format!("--start={}", range.from),
        format!("--end={}", range.to),
    ];
    let mut child = Command::new(argv)
        .user(&cluster.user)
        .spawn_piped()
        .map_err(|error: CommandError| error.to_string())?;
    let stderr = child.stderr.take();
    // Read beside the output: a full pipe would stop the program.
    let said = tokio::spawn(async move {
        let mut said = Vec::new();
        if let Some(stderr) = stderr {
            let mut stderr = stderr.take(LINE_BYTES_MAX);
            // What it could not say is missed in a message only.
            let _read = stderr.read_to_end(&mut said).await.is_ok();
        }
        String::from_utf8_lossy(&said).trim().to_owned()
    });
    if let Some(stdout) = child.stdout.take() {
        let mut lines = BufReader::with_capacity(1 << 16, stdout);
        let mut line = Vec::new();
        loop {
            line.clear();
            let read = (&mut lines)
                .take(LINE_BYTES_MAX)
                .read_until(b'\n', &mut line)
                .await
                .map_err(|error| error.to_string())?;
            if read == 0 {
                break;
            }
            tally.take(&String::from_utf8_lossy(&line));
        }
    }
    let status = child.wait().await.map_err(|error| error.to_string())?;
    let said = said.await.unwrap_or_default();
    if status.success() {
        Ok(())
    } else {
        Err(format!("pg_waldump: {said}"))
    }
}
