//! A base backup: everything is copied, by `pg_basebackup`.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::io::AsyncReadExt;
use understudy_replication::command::Command;
use understudy_replication::durable;
use understudy_replication::postgres::{Duty, SeedInfo, SlotInfo};
use understudy_replication::store::{Progress, StoreFailure, Unit};
use understudy_replication::transport::PeerClient;

use super::beside::{Beside, Content};
use super::half::empty;
use super::receiver::PostgresReceiver;
use super::seed::SeedError;

/// A base backup that prints nothing for this long is given up.
const SILENCE_MAX: Duration = Duration::from_secs(120);

impl PostgresReceiver {
    /// Copies everything, into what is empty or half a copy, which is removed.
    pub(super) async fn backup(
        &self,
        primary: &PeerClient,
        info: &SeedInfo,
        slot: &SlotInfo,
        progress: &dyn Progress,
    ) -> Result<(), StoreFailure> {
        let cluster = &self.cluster;
        let data_dir = cluster.data_dir.clone();
        let beside = self.beside(info, Content::Goes)?;
        if self.half()?.is_some() {
            // The program first that may still be writing it.
            end_orphans(&data_dir);
            // What its links lead to, which go first.
            self.mark_half(info, &beside.all())?;
            empty(&data_dir)?;
            self.clear_beside(&beside, info)?;
        }
        // The certificates first: the backup itself uses them.
        cluster.install_certificates(&self.pki)?;
        cluster.create_owned_directory(&data_dir, 0o700)?;
        self.mark_half(info, &beside.all())?;
        self.make_beside(&beside)?;
        let conninfo = self.upstream(primary).backup_conninfo(&cluster.tls_dir());
        let target = data_dir.display().to_string();
        let argv = [
            cluster.bin("pg_basebackup").as_str(),
            "--pgdata",
            &target,
            "--dbname",
            &conninfo,
            "--wal-method=stream",
            "--slot",
            &slot.name,
            "--checkpoint=fast",
            "--progress",
            "--no-password",
            // Its checksums guard a copy that is stored or carried by hand. This one comes over TLS, and
            // nothing reads the manifest; without it the copy took a sixth less time (2 GB).
            "--no-manifest",
            // What it syncs file by file is synced at once below, before the mark goes.
            "--no-sync",
        ]
        .map(str::to_owned)
        .into_iter()
        .chain(cluster.bandwidth.map(max_rate))
        .chain(self.placed(&beside));
        progress.start("copy postgres", Some(info.bytes), Unit::Bytes);
        let mut child = Command::new(argv).user(&cluster.user).spawn_piped()?;
        let mut said = Vec::new();
        if let Some(mut stderr) = child.stderr.take() {
            let mut buffer = [0; 4096];
            loop {
                let read = tokio::time::timeout(SILENCE_MAX, stderr.read(&mut buffer))
                    .await
                    .map_err(|_| SeedError::Backup {
                        said: format!("nothing was copied for {} s", SILENCE_MAX.as_secs()),
                    })?
                    .map_err(self.file("read the output of pg_basebackup to", data_dir.clone()))?;
                let Some(new) = buffer.get(..read).filter(|new| !new.is_empty()) else {
                    break;
                };
                said.extend_from_slice(new);
                if let Some(bytes) = copied_bytes(&String::from_utf8_lossy(&said)) {
                    progress.at(bytes);
                }
                // Only the last lines matter.
                let excess = said.len().saturating_sub(8192);
                said.drain(..excess);
            }
        }
        let status = tokio::time::timeout(SILENCE_MAX, child.wait())
            .await
            .map_err(|_| SeedError::Backup {
                said: "it did not end".to_owned(),
            })?
            .map_err(self.file("wait for pg_basebackup to", data_dir.clone()))?;
        if !status.success() {
            let said = String::from_utf8_lossy(&said);
            let lines: Vec<&str> = said
                .lines()
                .map(str::trim)
                .filter(|line| line.starts_with("pg_basebackup:"))
                .collect();
            return Err(Box::new(SeedError::Backup {
                said: if lines.is_empty() {
                    status.to_string()
                } else {
                    lines.join("; ")
                },
            }));
        }
        let places: Vec<PathBuf> = std::iter::once(data_dir.clone())
            .chain(beside.all())
            .collect();
        tokio::task::spawn_blocking(move || sync(places)).await??;
        cluster.configure(&self.pki, Duty::Standby(&self.upstream(primary)))?;
        let signal = data_dir.join("standby.signal");
        durable::write(&signal, b"", 0o600).map_err(self.file("write", signal.clone()))?;
        cluster.own(&signal)?;
        self.renew_origins(primary).await?;
        self.unmark_half()?;
        progress.end("postgres is copied");
        Ok(())
    }
}

/// Makes durable whatever has been written to the file systems of these directories.
fn sync(places: Vec<PathBuf>) -> Result<(), SeedError> {
    for path in places {
        let synced = File::open(&path).and_then(|place| Ok(rustix::fs::syncfs(&place)?));
        synced.map_err(|source| SeedError::File {
            action: "sync",
            path,
            source,
        })?;
    }
    Ok(())
}

/// Ends a pg_basebackup into `data_dir` that outlived the join that started it.
pub(super) fn end_orphans(data_dir: &std::path::Path) {
    let target = data_dir.display().to_string();
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    for process in processes {
        let Ok(command) = fs::read(process.path().join("cmdline")) else {
            continue;
        };
        let arguments: Vec<_> = command.split(|byte| *byte == 0).collect();
        let program = arguments.first().copied().unwrap_or_default();
        let rewinds = format!("--target-pgdata={target}");
        let is_ours = program.ends_with(b"pg_basebackup") && arguments.contains(&target.as_bytes())
            || program.ends_with(b"pg_rewind") && arguments.contains(&rewinds.as_bytes());
        let pid = process
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok());
        if let (true, Some(pid)) = (is_ours, pid.and_then(Pid::from_raw)) {
            tracing::warn!(
                ?pid,
                "ending a program that an earlier join or rejoin left behind"
            );
            if let Err(error) = kill_process(pid, Signal::KILL) {
                tracing::warn!(?pid, %error, "cannot end it");
            }
        }
    }
}

impl PostgresReceiver {
    /// Returns the options that place tablespaces and the write-ahead log.
    fn placed(&self, beside: &Beside) -> Vec<String> {
        let pairs = beside.theirs.iter().filter_map(|(oid, theirs)| {
            let ours = beside.tablespaces.get(oid)?;
            Some((theirs, ours))
        });
        let mut options: Vec<String> = pairs.map(|(theirs, ours)| mapping(theirs, ours)).collect();
        if let Some(wal) = &beside.wal {
            options.push(format!("--waldir={}", wal.display()));
        }
        options
    }
}

/// Returns the option that puts a tablespace elsewhere. In it, `=` and `\\` have a meaning.
fn mapping(theirs: &Path, ours: &Path) -> String {
    let quoted = |path: &Path| path.display().to_string().replace('=', "\\=");
    format!("--tablespace-mapping={}={}", quoted(theirs), quoted(ours))
}

/// Returns the option that limits a base backup, whose own bounds are 32 kB and 1 GB a second.
fn max_rate(bytes_per_second: u64) -> String {
    let kilobytes = (bytes_per_second / 1024).clamp(32, 1 << 20);
    format!("--max-rate={kilobytes}k")
}

/// Finds how much has been copied in the progress lines of pg_basebackup: `5632/31265 kB (18%), …`.
fn copied_bytes(said: &str) -> Option<u64> {
    said.split(['\r', '\n'])
        .rev()
        .filter(|line| line.contains(" kB ("))
        .find_map(|line| line.trim().split('/').next()?.parse::<u64>().ok())
        .map(|kilobytes| kilobytes.saturating_mul(1024))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_one_that_pg_basebackup_takes() {
        let table = [
            (1, "--max-rate=32k"),
            (50 << 20, "--max-rate=51200k"),
            (u64::MAX, "--max-rate=1048576k"),
        ];
        for (bytes, expected) in table {
            assert_eq!(max_rate(bytes), expected);
        }
    }

    #[test]
    fn the_progress_of_a_base_backup_is_understood() {
        let said = "    0/31265 kB (0%), 0/1 tablespace\r 5632/31265 kB (18%), 0/1 tablespace\r";
        assert_eq!(copied_bytes(said), Some(5632 * 1024));
        assert_eq!(copied_bytes("pg_basebackup: error: x\n"), None);
    }
}
