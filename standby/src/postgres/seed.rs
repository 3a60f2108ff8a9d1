//! Seeding a standby's Postgres by a base backup.
//!
//! Invariant: the file `seeding` in the store's state names the data directory, by path and inode, from
//! before the first byte is written into it until the last one is durable. A data directory that is
//! named there is half a copy of ours, and may be removed; any other belongs to somebody, and is never
//! touched.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::io::AsyncReadExt;
use understudy_replication::command::Command;
use understudy_replication::durable;
use understudy_replication::postgres::{
    Duty, MAINTENANCE_DATABASE, PostgresError, SeedInfo, SlotInfo, connect,
};
use understudy_replication::store::{Progress, StoreFailure, Unit};
use understudy_replication::transport::PeerClient;

use super::receiver::PostgresReceiver;

/// How long after its start a seeded server may take to stream.
const STREAM_PATIENCE: Duration = Duration::from_secs(60);

/// A base backup that prints nothing for this long is given up.
const SILENCE_MAX: Duration = Duration::from_secs(120);

/// Why a standby's Postgres cannot be seeded.
#[derive(Debug, thiserror::Error)]
pub enum SeedError {
    /// The versions differ.
    #[error(
        "the primary runs Postgres {theirs}, this machine has {ours}; install postgresql-{theirs} here"
    )]
    Version {
        /// The primary's.
        theirs: u32,
        /// This machine's.
        ours: u32,
    },
    /// There is another cluster.
    #[error(
        "{} holds another Postgres cluster (system identifier {ours}, the primary's is {theirs}); \
         nothing was changed. Move it away, or configure another `data_dir`", data_dir.display()
    )]
    OtherCluster {
        /// The data directory.
        data_dir: PathBuf,
        /// Its system identifier.
        ours: u64,
        /// The primary's.
        theirs: u64,
    },
    /// There is a copy of the primary's cluster that is no standby.
    #[error(
        "{} holds a former primary of the same system identifier; nothing was changed. What only \
         it has would be lost: move it away, and join again", data_dir.display()
    )]
    FormerPrimary {
        /// The data directory.
        data_dir: PathBuf,
    },
    /// There is something that is no cluster.
    #[error(
        "{} is not empty, and not a Postgres data directory; nothing was changed. Move its content \
         away, and join again", data_dir.display()
    )]
    NotEmpty {
        /// The data directory.
        data_dir: PathBuf,
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
    /// The backup failed.
    #[error("pg_basebackup failed: {said}")]
    Backup {
        /// Its last words.
        said: String,
    },
    /// The server does not stream.
    #[error(
        "postgres in {} is seeded, but receives no stream from the primary after {} s; see {}",
        data_dir.display(), limit.as_secs(), log.display()
    )]
    NotStreaming {
        /// The data directory.
        data_dir: PathBuf,
        /// How long it had.
        limit: Duration,
        /// Where the server says why.
        log: PathBuf,
    },
}

/// What is in the data directory before seeding.
enum Found {
    /// Nothing: a backup is needed.
    Nothing,
    /// What an earlier seeding left half done.
    Half,
    /// A whole standby of the primary.
    Standby,
}

impl PostgresReceiver {
    fn seeding_mark(&self) -> PathBuf {
        self.cluster.state.join("seeding")
    }

    /// Returns whether the data directory is half a copy.
    pub(super) fn is_seeding(&self) -> bool {
        let marked = fs::read_to_string(self.seeding_mark());
        marked.is_ok_and(|marked| self.identity().is_ok_and(|identity| marked == identity))
    }

    /// Returns what tells the data directory from any other that may come into its place.
    fn identity(&self) -> io::Result<String> {
        let path = self.cluster.data_dir.canonicalize()?;
        let metadata = fs::metadata(&path)?;
        Ok(format!(
            "{}\n{}:{}\n",
            path.display(),
            metadata.dev(),
            metadata.ino()
        ))
    }

    /// Asks the primary what has to be known of its cluster; refuses one of another major version.
    pub(super) async fn seed_info(&self, primary: &PeerClient) -> Result<SeedInfo, StoreFailure> {
        let info = self.ask_primary(primary, Duration::from_secs(15)).await?;
        let ours = self.cluster.program_version().await?;
        if ours != info.version {
            let theirs = info.version;
            return Err(Box::new(SeedError::Version { theirs, ours }));
        }
        Ok(info)
    }

    /// Refuses a data directory of another cluster than the primary's.
    pub(super) async fn is_same_cluster(&self, info: &SeedInfo) -> Result<(), StoreFailure> {
        let control = self.cluster.control_data().await?;
        if control.system_identifier == info.system_identifier {
            return Ok(());
        }
        Err(Box::new(SeedError::OtherCluster {
            data_dir: self.cluster.data_dir.clone(),
            ours: control.system_identifier,
            theirs: info.system_identifier,
        }))
    }

    pub(super) async fn seed_cluster(
        &self,
        primary: &PeerClient,
        progress: &dyn Progress,
    ) -> Result<(), StoreFailure> {
        let path = format!("/store/{}", self.id.name);
        let info = self.seed_info(primary).await?;
        let mut found = self.found(&info).await?;
        self.cluster.remember_minimums(&info.minimums)?;
        self.bring_configuration(primary, &info).await?;
        let before: SlotInfo = primary
            .get(&format!("{path}/slot"))
            .await?
            .json(4096)
            .await?;
        if before.is_lost && matches!(found, Found::Standby) {
            // A standby's copy holds nothing that the primary lacks, so it may be made anew.
            self.cluster.stop().await?;
            self.mark_half(&info, &[])?;
            found = Found::Half;
        }
        let slot: SlotInfo = primary
            .call(&format!("{path}/slot"), &(), Duration::from_secs(15))
            .await?;
        match found {
            Found::Standby => {}
            Found::Half => {
                self.remove_half()?;
                self.backup(primary, &info, &slot, progress).await?;
            }
            Found::Nothing => self.backup(primary, &info, &slot, progress).await?,
        }
        progress.start("start postgres", None, Unit::Items);
        self.follow(primary).await?;
        self.wait_for_stream().await?;
        progress.end("postgres is streaming");
        Ok(())
    }

    /// Looks at the data directory; refuses what is not ours.
    async fn found(&self, info: &SeedInfo) -> Result<Found, StoreFailure> {
        let data_dir = self.cluster.data_dir.clone();
        if self.is_seeding() {
            return Ok(Found::Half);
        }
        match fs::read_dir(&data_dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Found::Nothing),
            Err(source) => {
                return Err(Box::new(SeedError::File {
                    action: "read",
                    path: data_dir,
                    source,
                }));
            }
            Ok(mut entries) => {
                if entries.next().is_none() {
                    return Ok(Found::Nothing);
                }
            }
        }
        if !data_dir.join("PG_VERSION").exists() {
            return Err(Box::new(SeedError::NotEmpty { data_dir }));
        }
        self.is_same_cluster(info).await?;
        if !self.cluster.is_standby() {
            return Err(Box::new(SeedError::FormerPrimary { data_dir }));
        }
        Ok(Found::Standby)
    }

    /// Says that the data directory is half a copy, before it is.
    pub(super) fn mark_half(&self, _: &SeedInfo, _: &[PathBuf]) -> Result<(), SeedError> {
        let data_dir = self.cluster.data_dir.clone();
        let identity = self.identity().map_err(self.file("look at", data_dir))?;
        let mark = self.seeding_mark();
        durable::write(&mark, identity.as_bytes(), 0o644).map_err(self.file("write", mark))
    }

    pub(super) fn file(
        &self,
        action: &'static str,
        path: PathBuf,
    ) -> impl FnOnce(io::Error) -> SeedError {
        move |source| SeedError::File {
            action,
            path,
            source,
        }
    }

    /// Removes half a copy, after ending the program that may still be writing it.
    fn remove_half(&self) -> Result<(), SeedError> {
        let data_dir = &self.cluster.data_dir;
        end_orphans(data_dir);
        let entries = match fs::read_dir(data_dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(self.file("read", data_dir.clone())(error)),
        };
        // The directory itself is kept: it may be a mount point.
        for entry in entries {
            let entry = entry.map_err(self.file("read", data_dir.clone()))?;
            let path = entry.path();
            let is_directory = entry.file_type().is_ok_and(|kind| kind.is_dir());
            let removed = if is_directory {
                fs::remove_dir_all(&path)
            } else {
                fs::remove_file(&path)
            };
            removed.map_err(self.file("remove", path))?;
        }
        Ok(())
    }

    async fn backup(
        &self,
        primary: &PeerClient,
        info: &SeedInfo,
        slot: &SlotInfo,
        progress: &dyn Progress,
    ) -> Result<(), StoreFailure> {
        let cluster = &self.cluster;
        let data_dir = cluster.data_dir.clone();
        // The certificates first: the backup itself uses them.
        cluster.install_certificates(&self.pki)?;
        cluster.create_owned_directory(&data_dir, 0o700)?;
        self.mark_half(info, &[])?;
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
        ]
        .map(str::to_owned)
        .into_iter()
        .chain(cluster.bandwidth.map(max_rate));
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
        cluster.configure(&self.pki, Duty::Standby(&self.upstream(primary)))?;
        let signal = data_dir.join("standby.signal");
        durable::write(&signal, b"", 0o600).map_err(self.file("write", signal.clone()))?;
        cluster.own(&signal)?;
        let mark = self.seeding_mark();
        fs::remove_file(&mark).map_err(self.file("remove", mark.clone()))?;
        durable::sync_directory_of(&mark).map_err(self.file("sync", mark))?;
        progress.end("postgres is copied");
        Ok(())
    }

    pub(super) async fn wait_for_stream(&self) -> Result<(), StoreFailure> {
        let query = "SELECT EXISTS (SELECT FROM pg_stat_wal_receiver WHERE status = 'streaming')";
        let streams =
            async {
                let client = connect(&self.cluster, MAINTENANCE_DATABASE).await?;
                loop {
                    let row = client.query_one(query, &[]).await.map_err(|source| {
                        PostgresError::Query {
                            what: "tell whether it streams",
                            source,
                        }
                    })?;
                    if row.get::<_, bool>(0) {
                        return Ok::<_, PostgresError>(());
                    }
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            };
        tokio::time::timeout(STREAM_PATIENCE, streams)
            .await
            .map_err(|_| SeedError::NotStreaming {
                data_dir: self.cluster.data_dir.clone(),
                limit: STREAM_PATIENCE,
                log: self.cluster.state.join("server.log"),
            })??;
        Ok(())
    }
}

/// Ends a pg_basebackup into `data_dir` that outlived the join that started it.
fn end_orphans(data_dir: &std::path::Path) {
    let target = data_dir.display().to_string();
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    for process in processes {
        let Ok(command) = fs::read(process.path().join("cmdline")) else {
            continue;
        };
        let arguments: Vec<_> = command.split(|byte| *byte == 0).collect();
        let is_ours = arguments
            .first()
            .is_some_and(|name| name.ends_with(b"pg_basebackup"))
            && arguments.contains(&target.as_bytes());
        let pid = process
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok());
        if let (true, Some(pid)) = (is_ours, pid.and_then(Pid::from_raw)) {
            tracing::warn!(
                ?pid,
                "ending a base backup that an earlier join left behind"
            );
            if let Err(error) = kill_process(pid, Signal::KILL) {
                tracing::warn!(?pid, %error, "cannot end it");
            }
        }
    }
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
