//! Building an index from nothing, or from where the last attempt ended.
//!
//! Rows are read in the order of their keys, and every batch is committed together with the key that it
//! ends with: after a crash, or when Postgres was stopped, the next attempt goes on behind that key. Rows of
//! several snapshots are not of one moment, so they are compared once at the end. With a watermark that is
//! cheap, and a snapshot is held for half a minute at most, which keeps neither a primary from cleaning up
//! nor a replica from replaying. Without one only a single snapshot, or a second reading, is right.

use std::time::Duration;

use tokio::time::Instant;
use understudy_config::{Engine, Rows};
use understudy_replication::wall_time::WallTime;

use super::engine::{Manner, Searchable, Written};
use super::error::RebuildError;
use super::keeper::{Index, Keeper};
use super::payload::{Payload, Stage};
use super::row::Change;
use super::session::{Moment, Session};
use super::shape::Shape;
use super::shelf::Record;
use super::standing::{Standing, standing};
use super::sweep::{Depth, sweep};
use super::target::{Kept, Target};

/// A batch is committed with so many rows, or so many bytes, or after so long.
const BATCH_ROWS: usize = 10_000;
const BATCH_BYTES: usize = 16 << 20;
const BATCH_PATIENCE: Duration = Duration::from_secs(5);

/// How long a snapshot is held, if another may follow.
const SNAPSHOT_PATIENCE: Duration = Duration::from_secs(30);

/// How often in a row Postgres may fail before a build is given up for now.
const FAILURES_MAX: u32 = 8;

/// What one snapshot has come to.
enum Run {
    /// There are no more rows.
    Complete,
    /// There are; the next snapshot has them.
    Partial,
}

/// A build that is going on.
pub(super) struct Build<'a> {
    pub(super) index: &'a Index,
    pub(super) keeper: &'a mut Keeper,
    pub(super) rows: &'a Rows,
    pub(super) deadline: Instant,
    /// What was visible when all rows had been read.
    pub(super) seen: Option<String>,
}

impl Build<'_> {
    /// Builds the index, and makes it the one that is searched. Unless `is_fresh`, half a build is gone on
    /// with. Returns how many documents it has.
    pub(super) async fn run(mut self, mut is_fresh: bool) -> Result<u64, RebuildError> {
        let mut half: Option<Kept> = None;
        let mut failures = 0_u32;
        // What is said of the index before is not true of the next.
        self.keeper.seen = None;
        self.keeper.is_counted = false;
        loop {
            let before = position(half.as_ref());
            let result = self.snapshot(&mut half, is_fresh).await;
            if half.is_some() {
                is_fresh = false;
            }
            match result {
                Ok(Run::Complete) => break,
                Ok(Run::Partial) => failures = 0,
                Err(error) => {
                    self.keeper.session = None;
                    if Instant::now() >= self.deadline {
                        return Err(RebuildError::TimedOut {
                            name: self.index.name().to_owned(),
                            limit: self.index.config.timeout,
                        });
                    }
                    if position(half.as_ref()) != before {
                        failures = 0;
                    }
                    if error.is_unclaimed() {
                        // Whose it is now is told when it is opened again.
                        half = None;
                        failures = failures.saturating_add(1);
                        if failures > FAILURES_MAX {
                            return Err(error);
                        }
                        continue;
                    }
                    failures = failures.saturating_add(1);
                    // Where nothing has begun, the caller knows better whether to wait; but whoever wrote
                    // before is about to let go.
                    let may_wait = half.is_some() || matches!(error, RebuildError::Engine { .. });
                    if !may_wait || !error.is_passing() || failures > FAILURES_MAX {
                        return Err(error);
                    }
                    tracing::info!(
                        index = self.index.name(),
                        error = error.chain(),
                        "a build waits"
                    );
                    tokio::time::sleep(Duration::from_millis(100 << failures.min(6))).await;
                }
            }
        }
        let Some(mut kept) = half else {
            return Err(RebuildError::Broken);
        };
        self.finish(&mut kept).await?;
        let documents = kept.target.documents().await?;
        self.keeper.current = Some(kept);
        self.keeper.is_counted = true;
        self.keeper.seen = self.seen.take();
        Ok(documents)
    }

    /// Reads what one snapshot has of the rows that are missing.
    async fn snapshot(
        &mut self,
        half: &mut Option<Kept>,
        is_fresh: bool,
    ) -> Result<Run, RebuildError> {
        let (index, deadline) = (self.index, self.deadline);
        let session = open(&mut self.keeper.session, index, self.rows).await?;
        let shape = session.shape.clone();
        let clock = session.moment().await?.clock;
        let reading = session.read(deadline).await?;
        let moment = reading.moment.clone();
        index.may_write(&moment)?;
        if half.is_none() && !is_fresh {
            *half = index.open_half(self.rows).await?;
        }
        let is_warm = self.rows.warm.is_some();
        if let Some(kept) = &*half {
            match kept
                .payload
                .stamp
                .as_ref()
                .map(|stamp| standing(stamp, &moment.stamp, moment.is_standby))
            {
                Some(Standing::Ahead) => return Err(index.behind()),
                // Without a watermark everything is compared at the end anyway.
                Some(Standing::Parted { .. }) if is_warm => *half = None,
                Some(Standing::Parted { .. } | Standing::Continues { .. }) | None => {}
            }
        }
        if half.is_none() {
            let total = reading.count().await?;
            let mut payload = Payload::new(self.rows, total);
            payload.stamp = Some(moment.stamp.clone());
            if let Some(warm) = &self.rows.warm {
                let greatest = reading.greatest_mark().await?;
                payload.marks.read(greatest, clock, warm.overlap);
            }
            let target = index.begin(&shape, &payload).await?;
            *half = Some(Kept { target, payload });
        }
        let Some(kept) = half.as_mut() else {
            return Err(RebuildError::Broken);
        };
        let Stage::Building {
            position,
            read,
            total,
            snapshots,
        } = kept.payload.stage.clone()
        else {
            return Ok(Run::Complete);
        };
        index.tell(read, Some(total));
        let mut batch = Batch {
            kept,
            moment: &moment,
            position: position.clone(),
            read,
            total,
            snapshots: snapshots.saturating_add(1),
            changes: Vec::new(),
            bytes: 0,
            begun: Instant::now(),
        };
        let portal = reading.rows_after(position.as_deref()).await?;
        let enough = Instant::now() + SNAPSHOT_PATIENCE;
        loop {
            let rows = reading.next(&portal).await?;
            let is_end = rows.is_empty();
            batch.take(rows);
            let is_over = is_end || is_warm && Instant::now() >= enough;
            if is_over || batch.is_full() {
                batch.commit(index).await?;
            }
            if is_end {
                self.seen = Some(moment.snapshot.clone());
                return Ok(Run::Complete);
            }
            if is_over {
                return Ok(Run::Partial);
            }
            if Instant::now() >= deadline {
                batch.commit(index).await?;
                return Err(RebuildError::TimedOut {
                    name: index.name().to_owned(),
                    limit: index.config.timeout,
                });
            }
        }
    }

    /// Makes a build of all rows equal to the rows of one moment, whole, and the one that is searched.
    async fn finish(&mut self, kept: &mut Kept) -> Result<(), RebuildError> {
        let mut payload = kept.payload.clone();
        let (snapshots, read) = match payload.stage {
            Stage::Building {
                snapshots, read, ..
            } => (snapshots, Some(read)),
            Stage::Ready => (1, None),
        };
        let mut failures = 0_u32;
        let mut is_of_one_moment = snapshots <= 1;
        while !is_of_one_moment {
            match self.compare(kept, &mut payload).await {
                Ok(()) => is_of_one_moment = true,
                Err(error) => {
                    self.keeper.session = None;
                    failures = failures.saturating_add(1);
                    let is_late = Instant::now() >= self.deadline;
                    let is_over = is_late || error.is_unclaimed();
                    if is_over || !error.is_passing() || failures > FAILURES_MAX {
                        return Err(error);
                    }
                    tokio::time::sleep(Duration::from_millis(100 << failures.min(6))).await;
                }
            }
        }
        payload.stage = Stage::Ready;
        payload.swept = Some(WallTime::now());
        kept.target
            .apply(Vec::new(), Manner::Replace, &payload, true)
            .await?;
        kept.payload = payload;
        // Nothing may write to the folder that is removed now.
        self.keeper.current = None;
        let expected = read.filter(|_| snapshots == 1);
        self.index.publish(kept, expected).await
    }

    async fn compare(&mut self, kept: &Kept, payload: &mut Payload) -> Result<(), RebuildError> {
        let session = open(&mut self.keeper.session, self.index, self.rows).await?;
        let reading = session.read(self.deadline).await?;
        let depth = match self.rows.warm {
            Some(_) => Depth::Marks,
            None => Depth::Contents,
        };
        payload.stamp = Some(reading.moment.stamp.clone());
        sweep(&reading, &kept.target, depth, payload, |_| ()).await?;
        self.seen = Some(reading.moment.snapshot.clone());
        Ok(())
    }
}

fn position(half: Option<&Kept>) -> Option<String> {
    match &half?.payload.stage {
        Stage::Building { position, .. } => position.clone(),
        Stage::Ready => None,
    }
}

/// Returns the open session, or opens one.
pub(super) async fn open<'a>(
    session: &'a mut Option<Session>,
    index: &Index,
    rows: &Rows,
) -> Result<&'a mut Session, RebuildError> {
    let opened = match session.take() {
        Some(opened) => opened,
        None => Session::open(&index.database, rows).await?,
    };
    Ok(session.insert(opened))
}

/// Rows that have been read, and are not committed.
struct Batch<'a> {
    kept: &'a mut Kept,
    moment: &'a Moment,
    position: Option<String>,
    read: u64,
    total: u64,
    snapshots: u32,
    changes: Vec<Change>,
    bytes: usize,
    begun: Instant,
}

impl Batch<'_> {
    fn take(&mut self, rows: Vec<super::row::Row>) {
        for row in rows {
            let before = match self.changes.last() {
                Some(change) => Some(change.key()),
                None => self.position.as_deref(),
            };
            // A second row of one key: there is one document.
            if before == Some(row.key()) {
                continue;
            }
            self.read = self.read.saturating_add(1);
            self.bytes = self.bytes.saturating_add(row.bytes());
            self.changes.push(Change::Put(row));
        }
    }

    fn is_full(&self) -> bool {
        self.changes.len() >= BATCH_ROWS
            || self.bytes >= BATCH_BYTES
            || self.begun.elapsed() >= BATCH_PATIENCE
    }

    async fn commit(&mut self, index: &Index) -> Result<(), RebuildError> {
        let changes = std::mem::take(&mut self.changes);
        self.bytes = 0;
        self.begun = Instant::now();
        if let Some(change) = changes.last() {
            self.position = Some(change.key().to_owned());
        }
        let mut payload = self.kept.payload.clone();
        payload.stamp = Some(self.moment.stamp.clone());
        payload.stage = Stage::Building {
            position: self.position.clone(),
            read: self.read,
            total: self.total,
            snapshots: self.snapshots,
        };
        self.kept
            .target
            .apply(changes, Manner::Add, &payload, true)
            .await?;
        self.kept.payload = payload;
        index.tell(self.read, Some(self.total));
        Ok(())
    }
}

impl Index {
    /// Begins a new build; half of another is removed.
    async fn begin(&self, shape: &Shape, payload: &Payload) -> Result<Target, RebuildError> {
        match &self.config.engine {
            Engine::Elasticsearch { .. } => {
                let elastic = self.elastic()?;
                let index = elastic
                    .begin(&self.epoch()?, &shape.columns, payload)
                    .await?;
                Ok(Target::Elastic(index))
            }
            Engine::Tantivy { .. } | Engine::Command { .. } => {
                let (shelf, columns) = (self.shelf.clone(), shape.columns.clone());
                let state = payload.text();
                let work = move || -> Result<Target, RebuildError> {
                    let path = shelf.begin()?;
                    let written = Written::begin(&path, &columns, &state)?;
                    Ok(Target::Tantivy { written, path })
                };
                tokio::task::spawn_blocking(work).await?
            }
        }
    }

    /// Returns half a build that can be gone on with.
    async fn open_half(&self, rows: &Rows) -> Result<Option<Kept>, RebuildError> {
        if let Engine::Elasticsearch { .. } = &self.config.engine {
            let found = self.elastic()?.half(rows, &self.epoch()?).await?;
            return Ok(found.map(|(index, payload)| Kept {
                target: Target::Elastic(index),
                payload,
            }));
        }
        let (shelf, rows) = (self.shelf.clone(), rows.clone());
        let work = move || -> Result<Option<Kept>, RebuildError> {
            // What cannot be understood is built anew.
            let found = shelf
                .half()
                .and_then(|path| Some((Searchable::open(&path).ok()?, path)));
            let Some((searchable, path)) = found else {
                return Ok(None);
            };
            let written = Written::open(std::sync::Arc::new(searchable))?;
            let state = written.state().ok().flatten();
            let Some(payload) = state.and_then(|state| Payload::parse(&state, &rows)) else {
                return Ok(None);
            };
            let target = Target::Tantivy { written, path };
            Ok(Some(Kept { target, payload }))
        };
        tokio::task::spawn_blocking(work).await?
    }

    /// Makes a whole build the one that is searched.
    async fn publish(&self, kept: &Kept, expected: Option<u64>) -> Result<(), RebuildError> {
        kept.target.settle().await?;
        let documents = kept.target.documents().await?;
        let record = Record::now(documents, &self.source());
        match &kept.target {
            Target::Elastic(index) => index.publish(documents, expected).await?,
            Target::Tantivy { path, .. } => {
                let (shelf, path, record) = (self.shelf.clone(), path.clone(), record.clone());
                tokio::task::spawn_blocking(move || shelf.publish(&path, &record)).await??;
            }
        }
        let mut face = self.face();
        face.searchable = kept.target.searchable();
        face.record = Some(record);
        face.documents = documents;
        Ok(())
    }
}
