//! Bringing an index up to date: reading what has changed since.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::OwnedMutexGuard;
use tokio::time::Instant;
use understudy_config::{Engine, Rows, Warm};
use understudy_replication::command::Command;
use understudy_replication::event::Severity;
use understudy_replication::store::Stop;
use understudy_replication::wall_time::WallTime;

use super::build::{Build, open};
use super::engine::Manner;
use super::error::{RebuildError, parting};
use super::keeper::{Index, Keeper, back_off};
use super::row::{Applied, Change};
use super::shelf::Record;
use super::standing::{Standing, standing};
use super::sweep::{Depth, sweep};

/// A batch of changes is committed with so many rows, or so many bytes.
const BATCH_ROWS: usize = 5000;
const BATCH_BYTES: usize = 16 << 20;

/// How long what cannot be mended by waiting is left alone.
const FAILED_PATIENCE: Duration = Duration::from_secs(60);

/// How sure one has to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Care {
    /// Deletions may be found by the next sweep.
    Usual,
    /// The index is to be equal to the rows: it is counted, too.
    Equal,
}

/// What came of looking for changes.
enum Followed {
    /// The index is up to date.
    Done,
    /// There is none that could be.
    MustBuild,
    /// It has to be built anew, and half a build is of no use.
    MustBuildFresh,
}

impl Index {
    /// Brings the index up to date, and builds it if there is none that could be. Returns how many documents
    /// it has.
    async fn tend(self: &Arc<Self>, keeper: &mut Keeper, care: Care) -> Result<u64, RebuildError> {
        let Some(rows) = self.config.engine.rows() else {
            return self.run_command().await;
        };
        let deadline = Instant::now() + self.config.timeout;
        let followed = match &rows.warm {
            Some(warm) => {
                let followed = self.follow(keeper, rows, warm, care, deadline).await;
                if let Err(error) = &followed {
                    self.note_superseded(error);
                    // What was begun in it is given up, and the state is read again.
                    keeper.session = None;
                    keeper.current = None;
                }
                followed?
            }
            None => Followed::MustBuild,
        };
        let is_fresh = match followed {
            Followed::Done => {
                let mut face = self.face();
                face.current = Some(std::time::Instant::now());
                face.trouble = None;
                face.failure = None;
                face.superseded = None;
                return Ok(face.documents);
            }
            Followed::MustBuild => false,
            Followed::MustBuildFresh => true,
        };
        self.build(keeper, is_fresh).await
    }

    /// Builds the index anew, or goes on with half a build.
    pub(super) async fn build(
        self: &Arc<Self>,
        keeper: &mut Keeper,
        is_fresh: bool,
    ) -> Result<u64, RebuildError> {
        let turn = self.begin_turn()?;
        let outcome = match self.config.engine.rows() {
            None => self.run_command().await,
            Some(rows) => {
                let build = Build {
                    index: self,
                    keeper,
                    rows,
                    deadline: Instant::now() + self.config.timeout,
                    seen: None,
                };
                build.run(is_fresh).await
            }
        };
        drop(turn);
        self.note_build(&outcome);
        // Who waits because of a failure has no reason to any more.
        self.wake.notify_one();
        outcome
    }

    async fn follow(
        &self,
        keeper: &mut Keeper,
        rows: &Rows,
        warm: &Warm,
        care: Care,
        deadline: Instant,
    ) -> Result<Followed, RebuildError> {
        let session = open(&mut keeper.session, self, rows).await?;
        let before = session.moment().await?;
        self.may_write(&before)?;
        if keeper.current.is_none() {
            keeper.seen = None;
            keeper.current = self.open_current().await?;
        }
        let Some(kept) = &mut keeper.current else {
            return Ok(Followed::MustBuild);
        };
        let Some(stamp) = &kept.payload.stamp else {
            return Ok(Followed::MustBuild);
        };
        // After a promotion every row is compared, which nobody should wait for whose rows are as many as the documents.
        let is_put_off =
            care == Care::Equal && warm.sweep.is_some() && kept.payload.marks.safe.is_some();
        let is_owed = keeper.owes_sweep && care == Care::Usual;
        let mut is_promoted_now = false;
        let mut depth = match standing(stamp, &before.stamp, before.is_standby) {
            Standing::Ahead => return Err(self.behind()),
            Standing::Continues { is_promoted } => {
                is_promoted_now = is_promoted;
                is_promoted.then_some(Depth::Marks)
            }
            Standing::Parted { relation } => {
                let why = parting(relation);
                let message = format!(
                    "index {} has seen what this database has not ({why}): all of it is compared",
                    self.name()
                );
                self.events
                    .record(Severity::Warning, "index_parted", message);
                if let Engine::Elasticsearch { .. } = &self.config.engine {
                    // Its versions are of watermarks that may never come again.
                    keeper.current = None;
                    return Ok(Followed::MustBuildFresh);
                }
                Some(Depth::Contents)
            }
        };
        let is_parted = depth == Some(Depth::Contents);
        let is_same = keeper.seen.as_ref() == Some(&before.snapshot);
        if is_same
            && !is_parted
            && !is_owed
            && (keeper.is_counted || care == Care::Usual && depth.is_none())
        {
            // Nothing was written since. Once that is durable, a restart does not take for a crash what was none.
            let is_durable_now = !stamp.is_durable && before.stamp.is_durable;
            if depth.is_some() || is_durable_now {
                // Nor has the promotion itself changed anything.
                kept.payload.stamp = Some(before.stamp);
            }
            if is_durable_now && care == Care::Usual {
                let payload = kept.payload.clone();
                kept.target
                    .apply(Vec::new(), Manner::Replace, &payload, true)
                    .await?;
            }
            return Ok(Followed::Done);
        }
        let is_due = || match (warm.sweep, kept.payload.swept) {
            (Some(every), Some(swept)) => {
                let millis = u64::try_from(every.as_millis()).unwrap_or(u64::MAX);
                WallTime::now().0.saturating_sub(swept.0) >= millis
            }
            (Some(_), None) => true,
            (None, _) => false,
        };
        if depth.is_none() && (kept.payload.marks.safe.is_none() || is_owed || is_due()) {
            depth = Some(Depth::Marks);
        }
        let is_put_off = is_put_off && is_promoted_now && depth == Some(Depth::Marks);
        if is_put_off {
            depth = None;
        }
        let reading = session.read(deadline).await?;
        let mut moment = reading.moment.clone();
        self.may_write(&moment)?;
        // Whoever waits for the index is not kept waiting for this: it is seen to the next time.
        if !moment.stamp.is_durable && care == Care::Usual {
            let end = moment.stamp.history.end;
            moment.stamp.is_durable = reading.is_durable_soon(end).await?;
        }
        let mut payload = kept.payload.clone();
        if is_put_off {
            // Owed after a crash, too.
            payload.swept = None;
        }
        if !is_parted {
            payload.stamp = Some(moment.stamp.clone());
        }
        let mut applied = Applied::default();
        let mut greatest = None;
        let mut changes = Vec::new();
        if let (None, Some(safe)) = (depth, payload.marks.safe.clone()) {
            let portal = reading.changes_after(&safe).await?;
            let mut bytes = 0_usize;
            loop {
                let batch = reading.next(&portal).await?;
                if batch.is_empty() {
                    break;
                }
                for row in batch {
                    if row.is_believed {
                        greatest = row.mark.clone();
                    }
                    bytes = bytes.saturating_add(row.bytes());
                    changes.push(Change::of(row));
                }
                if changes.len() >= BATCH_ROWS || bytes >= BATCH_BYTES {
                    bytes = 0;
                    let batch = std::mem::take(&mut changes);
                    applied += kept
                        .target
                        .apply(batch, Manner::Replace, &payload, false)
                        .await?;
                }
            }
            payload
                .marks
                .read(greatest.take(), before.clock, warm.overlap);
            applied += kept
                .target
                .apply(changes, Manner::Replace, &payload, false)
                .await?;
            if care == Care::Equal {
                kept.target.settle().await?;
                if reading.count().await? != kept.target.documents().await? {
                    depth = Some(Depth::Marks);
                }
            }
        }
        let is_swept = depth.is_some();
        if let Some(depth) = depth {
            let tell = |_| ();
            applied += sweep(&reading, &kept.target, depth, &payload, tell).await?;
            if applied.newer > 0 {
                let message = format!(
                    "{} documents of index {} differ from their rows and are of a later watermark: they stay \
                     as they are until the rows have one as late, or until `understudy index rebuild {}`",
                    applied.newer,
                    self.name(),
                    self.name()
                );
                self.events
                    .record(Severity::Warning, "index_newer", message);
            }
            greatest = reading.greatest_mark().await?;
            payload.marks.read(greatest, before.clock, warm.overlap);
            payload.stamp = Some(moment.stamp.clone());
            payload.swept = Some(WallTime::now());
            kept.target
                .apply(Vec::new(), Manner::Replace, &payload, true)
                .await?;
        }
        kept.payload = payload;
        keeper.owes_sweep = !is_swept && (is_put_off || keeper.owes_sweep);
        keeper.is_counted = is_swept || care == Care::Equal;
        keeper.seen = Some(moment.snapshot);
        // Who asks for equality is told the number; work that was cut short may have changed it, too.
        if applied != Applied::default() || care == Care::Equal {
            kept.target.settle().await?;
            let documents = kept.target.documents().await?;
            self.face().documents = documents;
            tracing::debug!(
                index = self.name(),
                written = applied.written,
                removed = applied.removed,
                "an index was brought up to date"
            );
        }
        Ok(Followed::Done)
    }

    async fn run_command(&self) -> Result<u64, RebuildError> {
        let Engine::Command { command } = &self.config.engine else {
            return Ok(0);
        };
        let command = Command::new(command.clone())
            .env("UNDERSTUDY_INDEX", self.name())
            .limit(self.config.timeout);
        let command = self
            .env
            .iter()
            .fold(command, |command, (name, value)| command.env(name, value));
        command.run().await?;
        let (shelf, record) = (self.shelf.clone(), Record::now(0, &self.source()));
        let publishing = record.clone();
        tokio::task::spawn_blocking(move || {
            let path = shelf.begin()?;
            shelf.publish(&path, &publishing)
        })
        .await??;
        self.face().record = Some(record);
        Ok(0)
    }

    /// Makes the index equal to its rows, however long that takes: a cold one is built.
    pub(super) async fn catch_up(self: Arc<Self>) -> Result<u64, RebuildError> {
        let deadline = Instant::now() + self.config.timeout;
        let mut failures = 0_u32;
        loop {
            let outcome = {
                let mut keeper = self.take().await;
                match self.config.engine.rows() {
                    Some(rows) if rows.warm.is_some() => self.tend(&mut keeper, Care::Equal).await,
                    // Nothing tells what has changed.
                    Some(_) | None => self.build(&mut keeper, false).await,
                }
            };
            match outcome {
                Err(error) if error.is_passing() && Instant::now() < deadline => {
                    self.face().trouble = Some(error.chain());
                    tokio::time::sleep(back_off(failures).min(Duration::from_secs(2))).await;
                    failures = failures.saturating_add(1);
                }
                outcome => return outcome,
            }
        }
    }

    /// Waits until nobody else works on the index.
    pub(super) async fn take(&self) -> OwnedMutexGuard<Keeper> {
        self.keeper.clone().lock_owned().await
    }

    /// Keeps the index warm, and goes on with a build that was cut short, until told to stop.
    pub(super) async fn keep(self: Arc<Self>, stop: Stop) {
        let Some(rows) = self.config.engine.rows() else {
            return;
        };
        let mut failures = 0_u32;
        while !stop.is_stopped() {
            let outcome = match &rows.warm {
                Some(_) => {
                    let mut keeper = self.take().await;
                    self.tend(&mut keeper, Care::Usual).await
                }
                None => {
                    // Whoever builds it now holds it, and leaves half of it only if he fails.
                    let mut keeper = self.take().await;
                    match self.shelf.half() {
                        Some(_) => self.build(&mut keeper, false).await,
                        None => Ok(0),
                    }
                }
            };
            let wait = match outcome {
                Ok(_) => {
                    failures = 0;
                    rows.warm
                        .as_ref()
                        .map_or(FAILED_PATIENCE, |warm| warm.refresh)
                }
                Err(error) if error.is_passing() => {
                    let mut face = self.face();
                    if let RebuildError::NotPrimary { .. } = error {
                        // The other node tells how it is.
                        face.current = None;
                        face.trouble = None;
                    } else {
                        face.trouble = Some(error.chain());
                    }
                    drop(face);
                    failures = failures.saturating_add(1);
                    let longest = rows
                        .warm
                        .as_ref()
                        .map_or(FAILED_PATIENCE, |warm| warm.refresh);
                    back_off(failures).min(longest.max(Duration::from_secs(5)))
                }
                Err(error) => {
                    self.face().trouble = Some(error.chain());
                    FAILED_PATIENCE
                }
            };
            tokio::select! {
                () = stop.wait() => return,
                () = self.wake.notified() => {}
                () = tokio::time::sleep(wait) => {}
            }
        }
    }
}
