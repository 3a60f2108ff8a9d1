//! What a rejoin of the cluster would do, told from its log and the primary's, with nothing changed.
//!
//! `pg_rewind --dry-run` would say how much it copies, but only of a cluster that was shut down in peace, which
//! one that crashed becomes by being recovered, that is by being changed. So its work is reckoned: it copies
//! every block that the log has touched since the last checkpoint before the fork, and every file that is no
//! table.

use std::path::PathBuf;
use std::time::Duration;

use understudy_replication::position::Lsn;
use understudy_replication::postgres::{
    ControlData, History, MAINTENANCE_DATABASE, PostgresError, Relation, SeedInfo, Sizes, SlotInfo,
    connect, one_lsn, segment_name,
};
use understudy_replication::rejoin::{Foreseen, Way};
use understudy_replication::store::StoreFailure;
use understudy_replication::transport::PeerClient;

use super::parted::{Forked, reaches};
use super::read_log::{Part, read_log};
use super::receiver::PostgresReceiver;
use super::salvage::find;
use super::seed::SeedError;
use super::waldump::{Touched, place, redo};

/// Reading the log takes no longer; beyond, the figures are lower bounds.
const READ_PATIENCE: Duration = Duration::from_secs(60);

/// A running server answers within this time.
const ANSWER_PATIENCE: Duration = Duration::from_secs(10);

/// The checkpoint before a fork is looked for in so many files of the log before it.
const SEGMENTS_BEFORE_MAX: u64 = 64;

/// The size of a page, which every packaged Postgres has.
const BLOCK_BYTES: u64 = 8192;

/// An answer of the primary is no longer, in bytes.
const ANSWER_BYTES_MAX: usize = 4096;

/// Why it cannot be told what a rejoin would do.
#[derive(Debug, thiserror::Error)]
enum ForeseeError {
    /// Nothing of the log can be read: that it ends there would be a guess.
    #[error("the log in {} cannot be read from {from} on: {reason}", data_dir.display())]
    Unreadable {
        /// The data directory.
        data_dir: PathBuf,
        /// Where reading was to begin.
        from: Lsn,
        /// What the program said.
        reason: String,
    },
}

/// Where the log here ends, and what is known of that.
struct End {
    ours: History,
    /// It was found in the log: the cluster was not shut down in peace.
    is_read: bool,
    control: Option<ControlData>,
}

impl PostgresReceiver {
    /// Tells what [`Self::rejoin_cluster`] would do now.
    pub(super) async fn foresee_cluster(
        &self,
        primary: &PeerClient,
    ) -> Result<Foreseen, StoreFailure> {
        let cluster = &self.cluster;
        let info = self.seed_info(primary).await?;
        if !cluster.data_dir.join("PG_VERSION").exists() || self.is_seeding() {
            return Ok(Foreseen {
                way: Way::Seeded,
                salvaged_bytes: Some(0),
                travelling_bytes: Some(info.bytes),
                read_bytes: 0,
                basis: "the size of the primary's databases: there is no whole cluster here"
                    .to_owned(),
            });
        }
        let theirs = self.history_of(primary).await?;
        let Some(end) = self.find_end(primary).await? else {
            return Ok(Foreseen {
                way: Way::Compared,
                salvaged_bytes: None,
                travelling_bytes: None,
                read_bytes: 0,
                basis: "the server of this standby does not run, and only it can tell how far its log goes"
                    .to_owned(),
            });
        };
        let path = format!("/store/{}/slot", self.id.name);
        let slot: SlotInfo = primary.get(&path).await?.json(ANSWER_BYTES_MAX).await?;
        match end.ours.relation_to(&theirs) {
            Relation::Foreign { ours, theirs } => Err(Box::new(SeedError::OtherCluster {
                data_dir: cluster.data_dir.clone(),
                ours,
                theirs,
            })),
            // A crash is recovered from first, and what the recovery writes is in no other log: behind the place where
            // the primary's goes on, there is a fork then.
            Relation::Beginning if end.is_read && end.ours.timeline != theirs.timeline => {
                let at = end.ours.end;
                let mut ours = end.ours.clone();
                ours.end = Lsn(at.0.saturating_add(1));
                let forked = Forked {
                    timeline: ours.timeline,
                    ours,
                    theirs,
                    at,
                };
                self.foresee_fork(primary, &info, &slot, &forked, &end)
                    .await
            }
            Relation::Beginning if reaches(&slot, end.ours.end) => {
                let missing = theirs.end.0.saturating_sub(end.ours.end.0);
                Ok(Foreseen::follows(
                    missing,
                    format!(
                        "its log ends at {}, and the primary's is a continuation of it up to {}",
                        end.ours.end, theirs.end
                    ),
                ))
            }
            Relation::Beginning => Ok(self.foresee_comparison(
                &info,
                0,
                format!(
                    "the primary's log goes back to {} only, and this one ends at {}: at most all of it \
                     travels",
                    slot.oldest.unwrap_or_default(),
                    end.ours.end
                ),
                info.bytes,
            )),
            Relation::Forked { at, timeline } => {
                let forked = Forked {
                    ours: end.ours.clone(),
                    theirs,
                    at,
                    timeline,
                };
                self.foresee_fork(primary, &info, &slot, &forked, &end)
                    .await
            }
        }
    }

    fn foresee_comparison(
        &self,
        info: &SeedInfo,
        salvaged: u64,
        basis: String,
        travelling: u64,
    ) -> Foreseen {
        Foreseen {
            way: Way::Compared,
            salvaged_bytes: Some(salvaged),
            travelling_bytes: Some(travelling),
            read_bytes: info.bytes,
            basis,
        }
    }

    /// Finds where the log here ends. `None` for a standby whose server does not run.
    async fn find_end(&self, primary: &PeerClient) -> Result<Option<End>, StoreFailure> {
        let cluster = &self.cluster;
        if cluster.is_running() {
            let asked = async {
                let client = connect(cluster, MAINTENANCE_DATABASE).await?;
                let (mut ours, _) = self.histories(primary, &client).await?;
                let received = one_lsn(&client, "SELECT pg_last_wal_receive_lsn()::text").await?;
                ours.end = ours.end.max(received.unwrap_or_default());
                Ok::<_, StoreFailure>(ours)
            };
            let ours = tokio::time::timeout(ANSWER_PATIENCE, asked)
                .await
                .map_err(|_| PostgresError::Late { what: "answer" })??;
            return Ok(Some(End {
                ours,
                is_read: false,
                control: None,
            }));
        }
        if cluster.is_standby() {
            return Ok(None);
        }
        let control = cluster.control_data().await?;
        let mut ours = cluster.history_at_rest(&control)?;
        let is_read = control.state != "shut down";
        if is_read {
            // What came after the last checkpoint is in the log only.
            let newest = cluster.newest_timeline();
            let mut from = control.checkpoint;
            if newest > ours.timeline {
                ours.ended = cluster.ended_timelines(newest)?;
                ours.timeline = newest;
                from = ours.ended.last().map_or(from, |ended| ended.at);
            }
            let mut last = None;
            let part = Part {
                timeline: ours.timeline,
                from,
                to: None,
                is_of_log_itself: false,
            };
            let read = read_log(cluster, part, control.segment_bytes, |line| {
                last = place(line).map(|(at, _)| at).or(last);
            });
            let read = tokio::time::timeout(READ_PATIENCE, read).await;
            // The end of a log is an error to the program, too; but one record at least there is.
            let reason = read.ok().and_then(Result::err).unwrap_or_default();
            let last = last.ok_or_else(|| ForeseeError::Unreadable {
                data_dir: cluster.data_dir.clone(),
                from,
                reason,
            })?;
            ours.end = Lsn(last.0.saturating_add(1));
        }
        Ok(Some(End {
            ours,
            is_read,
            control: Some(control),
        }))
    }

    async fn foresee_fork(
        &self,
        primary: &PeerClient,
        info: &SeedInfo,
        slot: &SlotInfo,
        forked: &Forked,
        end: &End,
    ) -> Result<Foreseen, StoreFailure> {
        let cluster = &self.cluster;
        let segment_bytes = match &end.control {
            Some(control) => control.segment_bytes,
            None => cluster.control_data().await?.segment_bytes,
        };
        let ranges = forked.ours.beyond(forked.at, forked.timeline);
        let salvaged = find(&cluster.data_dir.join("pg_wal"), &ranges, segment_bytes)?.bytes;
        let mut touched = Touched::default();
        let before = self.checkpoint_before(forked, segment_bytes).await;
        let mut is_all = before.is_some();
        let begin = before.unwrap_or(forked.at);
        let mut unreadable = None;
        let read = async {
            for range in &ranges {
                let from = if range.timeline == forked.timeline {
                    begin.min(range.from)
                } else {
                    range.from
                };
                // The last one goes to the end, which is not known exactly where it was read.
                let is_exact = !end.is_read || range.timeline != forked.ours.timeline;
                let part = Part {
                    timeline: range.timeline,
                    from,
                    to: is_exact.then_some(range.to),
                    is_of_log_itself: false,
                };
                let mut is_any = false;
                let read = read_log(cluster, part, segment_bytes, |line| {
                    is_any |= place(line).is_some();
                    touched.take(line);
                });
                let reason = read.await.err();
                if !is_any {
                    // It is not the end of the log that the program complains of.
                    unreadable = Some(ForeseeError::Unreadable {
                        data_dir: cluster.data_dir.clone(),
                        from,
                        reason: reason.unwrap_or_default(),
                    });
                }
            }
        };
        is_all &= tokio::time::timeout(READ_PATIENCE, read).await.is_ok() && !touched.is_more;
        if let Some(error) = unreadable {
            // How much was touched is not "nothing".
            return Err(error.into());
        }
        let blocks = touched.count().saturating_mul(BLOCK_BYTES);
        let written_there = forked.theirs.end.0.saturating_sub(forked.at.0);
        let at_least = if is_all { "" } else { "at least " };
        let is_rewound = forked.is_seen_by_pg_rewind() && reaches(slot, forked.at);
        if !is_rewound {
            let travelling = blocks.saturating_add(written_there).min(info.bytes);
            let basis = format!(
                "pg_rewind cannot take it back; {at_least}{} blocks were touched here since {}, and the primary \
                 has written {written_there} bytes of log since",
                touched.count(),
                forked.at
            );
            return Ok(self.foresee_comparison(info, salvaged, basis, travelling));
        }
        let path = format!("/store/{}/sizes", self.id.name);
        let theirs: Sizes = primary.get(&path).await?.json(ANSWER_BYTES_MAX).await?;
        let data_dir = cluster.data_dir.clone();
        let ours = tokio::task::spawn_blocking(move || Sizes::of(&data_dir)).await??;
        let grown = theirs.relations.saturating_sub(ours.relations);
        Ok(Foreseen {
            way: Way::Rewound,
            salvaged_bytes: Some(salvaged),
            travelling_bytes: Some(blocks.saturating_add(theirs.others).saturating_add(grown)),
            read_bytes: 0,
            basis: format!(
                "{at_least}{} blocks that the log here has touched since {begin}, before the fork at {}; {} bytes \
                 on the primary that are no tables, which pg_rewind copies whole; {grown} bytes by which its \
                 tables are longer",
                touched.count(),
                forked.at,
                theirs.others
            ),
        })
    }

    /// Returns where the last checkpoint before the fork began, from which on `pg_rewind` reads.
    async fn checkpoint_before(&self, forked: &Forked, segment_bytes: u64) -> Option<Lsn> {
        let segment = forked.at.0 / segment_bytes.max(1);
        let first = segment.saturating_sub(SEGMENTS_BEFORE_MAX);
        let folder = self.cluster.data_dir.join("pg_wal");
        // It is read from the first on of those that are there without a gap.
        let is_there = |number: &u64| {
            let at = Lsn(number.saturating_mul(segment_bytes));
            segment_name(forked.timeline, at, segment_bytes)
                .is_some_and(|name| folder.join(name).exists())
        };
        let oldest = (first..=segment).rev().take_while(is_there).last()?;
        let mut found = None;
        let part = Part {
            timeline: forked.timeline,
            from: Lsn(oldest.saturating_mul(segment_bytes).max(1)),
            to: Some(forked.at),
            is_of_log_itself: true,
        };
        let read = read_log(&self.cluster, part, segment_bytes, |line| {
            if let (Some(redo), Some((at, _))) = (redo(line), place(line))
                && at < forked.at
            {
                found = Some(redo);
            }
        });
        let _in_time = tokio::time::timeout(READ_PATIENCE, read).await.is_ok();
        found
    }
}
