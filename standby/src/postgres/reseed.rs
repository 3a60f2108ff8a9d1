//! Re-seeding: an old copy of the primary's cluster is compared with it block by block, and what differs is
//! fetched.
//!
//! ```text
//! mark ─▶ begin a backup ─▶ list ─▶ no pg_control ─▶ remove what is too much
//!      ─▶ compare, three questions at a time ─▶ fetch pg_control, under another name
//!      ─▶ end of the backup ─▶ backup_label ─▶ sync ─▶ pg_control ─▶ settings of a standby ─▶ no mark
//! ```
//! Invariant: from the first change until the last one is durable the data directory is marked as half a copy,
//! which no server of ours is started on, and has no control file, without which Postgres starts for nobody.
//! A crash anywhere leaves half a copy; it is compared again, and what has been fetched is equal by then. The
//! control file comes to its place when the label is there: the server then replays from where the backup
//! began, whatever is in the control file.

use std::collections::BTreeSet;
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::mpsc;
use understudy_replication::durable;
use understudy_replication::event::Severity;
use understudy_replication::postgres::reseed::{
    Begun, Change, Ended, Entry, LIST_ENTRIES_MAX, Roots, decode_changes, decode_entries, encode,
    version_folder,
};
use understudy_replication::postgres::{Duty, SeedInfo, SlotInfo};
use understudy_replication::store::{Progress, StoreFailure, Unit};
use understudy_replication::transport::{FrameReader, PeerClient};

use super::base_backup::end_orphans;
use super::beside::Content;
use super::local_blocks::Question;
use super::local_copy::{CONTROL, LocalCopy};
use super::receiver::PostgresReceiver;
use super::seed::SeedError;

/// A checkpoint on the primary comes before the first answer.
const BEGIN_PATIENCE: Duration = Duration::from_secs(630);

/// A question begins to be answered, and goes on being answered, within this time.
const ANSWER_PATIENCE: Duration = Duration::from_secs(120);

/// The backup is ended within this time.
const END_PATIENCE: Duration = Duration::from_secs(70);

/// How many questions wait to be asked.
const QUESTIONS_WAITING: usize = 3;

/// What a re-seed has spared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Saved {
    /// How many bytes the cluster has.
    pub compared: u64,
    /// How many of them were fetched.
    pub copied: u64,
}

/// Tells the threads that block that nobody waits for them any more.
struct UntilOver(Arc<AtomicBool>);

impl Drop for UntilOver {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// A backup on the primary that is asked.
struct Asking<'a> {
    primary: &'a PeerClient,
    path: String,
    progress: &'a dyn Progress,
    compared: AtomicU64,
    copied: AtomicU64,
}

impl PostgresReceiver {
    /// Makes an old copy of the primary's cluster, whole or half, equal to it, and a standby that will stream
    /// by `slot`. The server is stopped first, if it runs. What only this copy has is lost: the caller has
    /// seen to that. After an error it is half a copy, and may be tried again.
    pub(super) async fn reseed(
        &self,
        primary: &PeerClient,
        info: &SeedInfo,
        slot: &SlotInfo,
        progress: &dyn Progress,
    ) -> Result<Saved, StoreFailure> {
        let cluster = &self.cluster;
        let data_dir = cluster.data_dir.clone();
        cluster.stop().await?;
        end_orphans(&data_dir);
        let beside = self.beside(info, Content::Stays)?;
        cluster.install_certificates(&self.pki)?;
        self.mark_half(info, &beside.all())?;
        // Should somebody start the server by hand, it must at least not write on by itself.
        let signal = data_dir.join("standby.signal");
        durable::write(&signal, b"", 0o600).map_err(self.file("write", signal.clone()))?;
        cluster.own(&signal)?;
        self.make_beside(&beside)?;
        self.make_wal(beside.wal.as_deref())?;
        progress.start("begin a backup on the primary", None, Unit::Items);
        let routes = format!("/store/{}/reseed", self.id.name);
        let begin = format!("{routes}/begin");
        let begun: Begun = primary.call(&begin, &(), BEGIN_PATIENCE).await?;
        progress.end("the primary has begun a backup");
        let asking = Asking {
            primary,
            path: format!("{routes}/{}", begun.backup),
            progress,
            compared: AtomicU64::new(0),
            copied: AtomicU64::new(0),
        };
        let until_over = UntilOver(Arc::default());
        let roots = Roots::open(&data_dir, &beside.tablespaces)
            .map_err(self.file("open the directories of", data_dir.clone()))?;
        let is_root = rustix::process::geteuid().is_root();
        let copy = Arc::new(LocalCopy {
            data_dir: data_dir.clone(),
            roots,
            tablespaces: beside.tablespaces.clone(),
            version_folder: version_folder(info.version, info.catalog_version),
            log_folder: begun.log_folder.clone(),
            owner: is_root.then_some((cluster.user.uid, cluster.user.gid)),
            is_over: until_over.0.clone(),
        });
        let pause = Duration::from_secs((begun.silence_seconds / 6).clamp(1, 60));
        let ended: Ended = tokio::select! {
            ended = self.make_equal(&asking, &copy) => ended?,
            never = asking.keep_alive(pause) => match never {},
        };
        self.nobody_has_run().await?;
        let label = data_dir.join("backup_label");
        durable::write(&label, ended.label.as_bytes(), 0o600)
            .map_err(self.file("write", label.clone()))?;
        cluster.own(&label)?;
        let ours = copy.clone();
        tokio::task::spawn_blocking(move || ours.sync()).await??;
        self.nobody_has_run().await?;
        copy.complete()?;
        cluster.configure(&self.pki, Duty::Standby(&self.upstream(primary)))?;
        if cluster.is_running() {
            // A whole copy has come to no harm by that, but our settings are not the server's.
            cluster.stop().await?;
        }
        self.renew_origins(primary).await?;
        self.unmark_half()?;
        let saved = Saved {
            compared: asking.compared.into_inner(),
            copied: asking.copied.into_inner(),
        };
        progress.end(&saved.told());
        self.events.record(
            Severity::Info,
            "postgres_reseeded",
            format!(
                "by comparing blocks with node {}, to go on by slot {}: {}",
                primary.node(),
                slot.name,
                saved.told()
            ),
        );
        Ok(saved)
    }

    async fn make_equal(
        &self,
        asking: &Asking<'_>,
        copy: &Arc<LocalCopy>,
    ) -> Result<Ended, StoreFailure> {
        let entries = asking.list().await?;
        copy.make_unstartable()?;
        // One that was started since the first stop still runs; after this one none can be started.
        self.cluster.stop().await?;
        asking.work(copy, entries).await
    }

    /// Refuses a copy that a server has worked on meanwhile. Without a control file none can have been started:
    /// who has put one back is found by it.
    async fn nobody_has_run(&self) -> Result<(), StoreFailure> {
        let cluster = &self.cluster;
        let is_running = cluster.is_running();
        if is_running {
            cluster.stop().await?;
        }
        if is_running || cluster.data_dir.join(CONTROL).symlink_metadata().is_ok() {
            let data_dir = cluster.data_dir.clone();
            return Err(Box::new(SeedError::ServerRan { data_dir }));
        }
        Ok(())
    }

    /// Makes the directory of the write-ahead log, or the link to it, where there is none.
    fn make_wal(&self, elsewhere: Option<&std::path::Path>) -> Result<(), StoreFailure> {
        let wal = self.cluster.data_dir.join("pg_wal");
        if wal.symlink_metadata().is_ok() {
            return Ok(());
        }
        match elsewhere {
            Some(place) => {
                std::os::unix::fs::symlink(place, &wal).map_err(self.file("make the link", wal))?;
            }
            None => self.cluster.create_owned_directory(&wal, 0o700)?,
        }
        Ok(())
    }

    /// Returns whether half a copy can be completed: it is of this cluster, and has got so far that there is
    /// something to compare.
    pub(super) fn can_complete(&self, info: &SeedInfo) -> Result<bool, SeedError> {
        let version = fs::read_to_string(self.cluster.data_dir.join("PG_VERSION"));
        let is_of = self.half()?.is_some_and(|half| half.is_of(info));
        Ok(is_of && version.is_ok_and(|version| version.trim().parse() == Ok(info.version)))
    }
}

impl Saved {
    fn told(&self) -> String {
        format!(
            "postgres: compared {}, copied {}; {} did not travel",
            amount(self.compared),
            amount(self.copied),
            amount(self.compared.saturating_sub(self.copied))
        )
    }
}

/// Returns bytes for people, in units of 1024.
fn amount(bytes: u64) -> String {
    let units = [("GB", 1 << 30), ("MB", 1 << 20), ("kB", 1 << 10)];
    match units.into_iter().find(|(_, size)| bytes >= *size) {
        Some((unit, size)) => {
            let hundredths = (bytes % size) * 100 / size;
            format!("{}.{hundredths:02} {unit}", bytes / size)
        }
        None => format!("{bytes} B"),
    }
}

impl Asking<'_> {
    /// Tells the primary that this standby is there, for as long as it works.
    async fn keep_alive(&self, pause: Duration) -> std::convert::Infallible {
        let path = format!("{}/alive", self.path);
        loop {
            tokio::time::sleep(pause).await;
            let empty = bytes::Bytes::new();
            let told = self.primary.post(&path, empty, END_PATIENCE);
            // That the backup is over is told by the next question, or by its end.
            if let Err(error) = told.await {
                tracing::debug!(%error, "cannot tell the primary that this standby is there");
            }
        }
    }

    async fn work(
        &self,
        copy: &Arc<LocalCopy>,
        entries: Vec<Entry>,
    ) -> Result<Ended, StoreFailure> {
        let entries = Arc::new(entries);
        let (ours, wanted) = (copy.clone(), entries.clone());
        tokio::task::spawn_blocking(move || ours.prepare(&wanted)).await??;
        let total = entries.iter().filter_map(|entry| entry.size).sum();
        self.progress
            .start("compare postgres", Some(total), Unit::Bytes);
        let is_control = |entry: &&Entry| entry.path.as_str() == CONTROL;
        let control: Vec<Entry> = entries.iter().filter(is_control).cloned().collect();
        let others: Vec<Entry> = entries
            .iter()
            .filter(|it| !is_control(it))
            .cloned()
            .collect();
        self.compare(copy, others).await?;
        self.compare(copy, control).await?;
        Ok(self
            .primary
            .call(&format!("{}/end", self.path), &(), END_PATIENCE)
            .await?)
    }

    /// Asks what the copy consists of.
    async fn list(&self) -> Result<Vec<Entry>, StoreFailure> {
        let what = "the list of files";
        let path = format!("{}/files", self.path);
        let answer = self.primary.get_within(&path, ANSWER_PATIENCE).await?;
        let mut frames = answer.frames();
        let mut entries = Vec::new();
        loop {
            let frame = next(&mut frames, what).await?;
            let more = decode_entries(&frame)?;
            if more.is_empty() {
                break;
            }
            entries.extend(more);
            if entries.len() > LIST_ENTRIES_MAX {
                return Err(Box::new(SeedError::BrokenOff { what }));
            }
        }
        // Whatever is not in the list will be removed.
        for missing in ["PG_VERSION", CONTROL, "base/1/PG_VERSION"] {
            if !entries.iter().any(|entry| entry.path.as_str() == missing) {
                return Err(Box::new(SeedError::NoCluster { missing }));
            }
        }
        Ok(entries)
    }

    /// Makes these files equal to the primary's.
    async fn compare(&self, copy: &Arc<LocalCopy>, files: Vec<Entry>) -> Result<(), StoreFailure> {
        let (sender, questions) = mpsc::channel(QUESTIONS_WAITING);
        let ours = copy.clone();
        let reads = tokio::task::spawn_blocking(move || {
            ours.questions(&files, |question| sender.blocking_send(question).is_ok())
        });
        let reads = async { Ok::<_, StoreFailure>(reads.await??) };
        let questions = tokio::sync::Mutex::new(questions);
        // Three at a time: one is read on the primary, one travels, one is written here.
        let asks = || async {
            loop {
                let question = questions.lock().await.recv().await;
                let Some(question) = question else {
                    return Ok::<_, StoreFailure>(());
                };
                self.ask(copy, question).await?;
            }
        };
        tokio::try_join!(reads, asks(), asks(), asks())?;
        Ok(())
    }

    async fn ask(&self, copy: &Arc<LocalCopy>, question: Question) -> Result<(), StoreFailure> {
        let what = "what differs";
        let body = encode(&question.pieces).into();
        let path = format!("{}/differences", self.path);
        let answer = self.primary.post(&path, body, ANSWER_PATIENCE).await?;
        let mut frames = answer.frames();
        let pieces = Arc::new(question.pieces);
        let mut done = BTreeSet::new();
        while done.len() < pieces.len() {
            let frame = next(&mut frames, what).await?;
            let changes = decode_changes(&frame, &pieces)?;
            done.extend(changes.iter().filter_map(|change| match change {
                Change::Done { piece, .. } => Some(*piece),
                Change::Bytes { .. } => None,
            }));
            let (ours, asked) = (copy.clone(), pieces.clone());
            let applied =
                tokio::task::spawn_blocking(move || ours.apply(&asked, &changes)).await??;
            self.copied.fetch_add(applied, Ordering::Relaxed);
        }
        let before = self
            .compared
            .fetch_add(question.compares, Ordering::Relaxed);
        self.progress.at(before.saturating_add(question.compares));
        Ok(())
    }
}

/// Returns the next frame of a stream that has not come to its end.
async fn next(frames: &mut FrameReader, what: &'static str) -> Result<bytes::Bytes, StoreFailure> {
    let limit = ANSWER_PATIENCE;
    let frame = tokio::time::timeout(limit, frames.next())
        .await
        .map_err(|_| SeedError::Silent { what, limit })??;
    Ok(frame.ok_or(SeedError::BrokenOff { what })?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_spared_is_told() {
        let saved = Saved {
            compared: 2 << 30,
            copied: 31 << 20,
        };
        assert_eq!(
            saved.told(),
            "postgres: compared 2.00 GB, copied 31.00 MB; 1.96 GB did not travel"
        );
        assert_eq!(amount(1023), "1023 B");
    }
}
