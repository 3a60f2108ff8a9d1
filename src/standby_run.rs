//! What runs on a standby: receives every store, follows the primary's marks, reports back.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use tokio::sync::{OwnedRwLockReadGuard, RwLock};
use tokio::task::JoinSet;
use understudy_config::{NodeName, StoreName};
use understudy_replication::epoch::Epoch;
use understudy_replication::error_chain;
use understudy_replication::event::{Events, Severity};
use understudy_replication::kv::keyspace::Keyspace;
use understudy_replication::lag::{Evidence, Now, lag, silence};
use understudy_replication::link::{Level, StandbyReport};
use understudy_replication::mark::{MARK_SILENCE_MAX, Mark, Marks};
use understudy_replication::position::Position;
use understudy_replication::preflight::Basis;
use understudy_replication::status::UpstreamStatus;
use understudy_replication::store::{Observed, Receiver, Stop, Stopper};
use understudy_replication::transport::{PeerClient, PeerError};
use understudy_replication::wall_time::WallTime;
use understudy_standby::files::FilesReceiver;

use crate::node::Node;
use crate::supervise::supervise;

/// How soon a change of position is reported, between marks.
const REPORT_INTERVAL: Duration = Duration::from_millis(200);

/// How soon a store that does not tell when its positions move is asked again, while somebody waits: at
/// first,
const LOOK_INTERVAL_MIN: Duration = Duration::from_millis(1);
/// and at the latest.
const LOOK_INTERVAL_MAX: Duration = Duration::from_millis(20);

/// How soon a broken stream of marks is opened again.
const RETRY_INTERVAL: Duration = Duration::from_millis(500);

/// How often the marks are written down, for a restart.
const KEEP_INTERVAL: Duration = Duration::from_secs(30);

/// Clocks that differ by more are told as a warning: reports of the two nodes are hard to compare.
const CLOCK_DIFFERENCE_MAX: Duration = Duration::from_secs(60);

/// What runs on a standby.
pub(crate) struct StandbyRun {
    pub(crate) receivers: Vec<Arc<dyn Receiver>>,
    pub(crate) keyspace: Option<Arc<dyn Keyspace>>,
    /// The trees of files, to be copied.
    pub(crate) files: Vec<Arc<FilesReceiver>>,
    primary: Arc<PeerClient>,
    /// The epoch that it was opened in: its streams were checked against that one.
    epoch: Epoch,
    link: Mutex<Link>,
    /// Where the marks are written down.
    state_dir: PathBuf,
    /// When the primary was heard last before this was opened; when this was opened, if that is not known.
    heard_before: Instant,
    events: Events,
    stopper: Stopper,
    /// Shared by the checks that run; whoever stops the stores takes it alone.
    checks: Arc<RwLock<()>>,
    tasks: tokio::sync::Mutex<JoinSet<()>>,
}

/// What the primary's marks have told.
#[derive(Default)]
struct Link {
    marks: Marks,
    heard: Option<Instant>,
    clock_ahead_ms: Option<i64>,
    is_clock_told: bool,
    /// When the marks were written down last.
    kept: Option<Instant>,
}

impl StandbyRun {
    /// Opens every store's copy without following anybody yet.
    pub(crate) async fn open(node: &Arc<Node>, primary: PeerClient) -> Result<Arc<Self>, String> {
        let makings = node.makings();
        let me = node.me().clone();
        let receivers = tokio::task::spawn_blocking(move || makings.receivers(&me))
            .await
            .map_err(|error| error.to_string())??;
        let (stopper, _) = Stopper::new();
        let (state_dir, epoch) = (node.local.state_dir.clone(), primary.epoch());
        let now = Now::read();
        let (marks, heard_before) = crate::remembered::load(&state_dir, &epoch, now)
            .unwrap_or_else(|| (Marks::default(), now.instant));
        Ok(Arc::new(Self {
            receivers: receivers.all,
            keyspace: receivers.keyspace,
            files: receivers.files,
            epoch,
            primary: Arc::new(primary),
            link: Mutex::new(Link {
                marks,
                ..Link::default()
            }),
            state_dir,
            heard_before,
            events: node.events.clone(),
            stopper,
            checks: Arc::default(),
            tasks: tokio::sync::Mutex::new(JoinSet::new()),
        }))
    }

    /// Opens every store's copy and follows `primary` from now on.
    pub(crate) async fn start(node: &Arc<Node>, primary: PeerClient) -> Result<Arc<Self>, String> {
        let run = Self::open(node, primary).await?;
        let stop = run.stopper.subscribe();
        let mut tasks = run.tasks.lock().await;
        for receiver in &run.receivers {
            let (receiver, primary) = (receiver.clone(), run.primary.clone());
            let (id, events, stop) = (receiver.id().clone(), node.events.clone(), stop.clone());
            tasks.spawn(async move {
                supervise(id, events, stop.clone(), || {
                    receiver.clone().run(primary.clone(), stop.clone())
                })
                .await;
            });
        }
        tasks.spawn(run.clone().follow_marks(stop.clone()));
        tasks.spawn(run.clone().report_always(stop));
        drop(tasks);
        Ok(run)
    }

    /// Returns the node that is followed.
    pub(crate) fn primary(&self) -> &NodeName {
        self.primary.node()
    }

    /// Returns a client of the node that is followed.
    pub(crate) fn client(&self) -> &PeerClient {
        &self.primary
    }

    /// Returns the epoch that it was opened in.
    pub(crate) fn epoch(&self) -> &Epoch {
        &self.epoch
    }

    /// Returns whether it was told to stop receiving.
    pub(crate) fn is_stopped(&self) -> bool {
        self.stopper.subscribe().is_stopped()
    }

    async fn follow_marks(self: Arc<Self>, stop: Stop) {
        let mut told = String::new();
        loop {
            let mut is_up = false;
            let failure = tokio::select! {
                result = self.follow_once(&mut is_up) => match result {
                    Ok(()) => "the primary ended the stream of marks".to_owned(),
                    Err(error) => error_chain(&error),
                },
                () = stop.wait() => return,
            };
            if is_up {
                self.keep_marks();
            }
            if is_up || failure != told {
                self.events
                    .record(Severity::Warning, "link_down", failure.clone());
                told = failure;
            }
            tokio::select! {
                () = tokio::time::sleep(RETRY_INTERVAL) => {}
                () = stop.wait() => return,
            }
        }
    }

    /// Follows until the link breaks; `is_up` tells whether it has worked both ways.
    async fn follow_once(&self, is_up: &mut bool) -> Result<(), PeerError> {
        let mut frames = self.primary.get("/peer/marks").await?.frames();
        loop {
            let frame = tokio::time::timeout(MARK_SILENCE_MAX, frames.next())
                .await
                .map_err(|_| PeerError::Late {
                    peer: self.primary.node().to_string(),
                    what: "with a mark".to_owned(),
                    limit: MARK_SILENCE_MAX,
                })??;
            let Some(frame) = frame else { return Ok(()) };
            let mark: Mark =
                serde_json::from_slice(&frame).map_err(|error| PeerError::Malformed {
                    peer: self.primary.node().to_string(),
                    what: error.to_string(),
                })?;
            let epoch = mark.epoch.clone();
            self.learn(mark);
            self.report().await?;
            if !*is_up {
                *is_up = true;
                self.events.record(
                    Severity::Info,
                    "link_up",
                    format!("following node {} in epoch {epoch}", self.primary.node()),
                );
            }
        }
    }

    fn learn(&self, mark: Mark) {
        let now = Now::read();
        let mut link = self.link.lock().unwrap_or_else(PoisonError::into_inner);
        let ahead = i128::from(mark.time.0) - i128::from(now.wall.0);
        link.clock_ahead_ms = i64::try_from(ahead).ok();
        link.heard = Some(now.instant);
        let is_apart = ahead.unsigned_abs() > CLOCK_DIFFERENCE_MAX.as_millis();
        if is_apart && !link.is_clock_told {
            self.events.record(
                Severity::Warning,
                "clocks_apart",
                format!(
                    "the clock of node {} is {} s ahead of this node's; replication and lag do not \
                     depend on it, but times in reports do: set the clocks",
                    self.primary.node(),
                    ahead / 1000
                ),
            );
        }
        link.is_clock_told = is_apart;
        if mark.is_awaited {
            self.hurry();
        }
        link.marks.push(mark, now.instant);
        let is_due = link.kept.is_none_or(|kept| kept.elapsed() >= KEEP_INTERVAL);
        drop(link);
        if is_due {
            self.keep_marks();
        }
    }

    /// Writes down what is known of the primary's marks, if any was heard by this run.
    fn keep_marks(&self) {
        let positions = self.receivers.iter().map(|receiver| {
            let name = receiver.id().name.clone();
            (name, receiver.received().applied)
        });
        let applied = positions.collect();
        let now = Now::read();
        let mut link = self.link.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(heard) = link.heard else { return };
        link.kept = Some(now.instant);
        let marks = link.marks.clone();
        drop(link);
        crate::remembered::keep(&self.state_dir, &marks, heard, &applied, now);
    }

    /// Makes every store ask for what the primary has now.
    pub(crate) fn hurry(&self) {
        for receiver in &self.receivers {
            receiver.hurry();
        }
    }

    /// Waits until every position in `until` is reached here, asking for what is missing at once;
    /// returns the stores that have not reached theirs within `patience`. Stores that are not here are
    /// not waited for.
    pub(crate) async fn reach(
        &self,
        until: &BTreeMap<StoreName, Position>,
        level: Level,
        patience: Duration,
    ) -> Vec<StoreName> {
        self.hurry();
        let reached = self.receivers.iter().map(async |receiver| {
            let name = &receiver.id().name;
            let end = until.get(name)?;
            let begun = Instant::now();
            // Subscribed to before the first look: no move is missed in between.
            let mut moves = receiver.moves();
            let there = async {
                while level.of(&receiver.received()).is_none_or(|at| at < *end) {
                    match &mut moves {
                        Some(told) => {
                            if told.changed().await.is_err() {
                                moves = None;
                            }
                        }
                        // What it adds is little beside what has been waited already.
                        None => {
                            let pause =
                                (begun.elapsed() / 50).clamp(LOOK_INTERVAL_MIN, LOOK_INTERVAL_MAX);
                            tokio::time::sleep(pause).await;
                        }
                    }
                }
            };
            let is_there = tokio::time::timeout(patience, there).await.is_ok();
            (!is_there).then(|| name.clone())
        });
        join_all(reached).await.into_iter().flatten().collect()
    }

    fn positions(&self) -> StandbyReport {
        StandbyReport {
            stores: self
                .receivers
                .iter()
                .map(|receiver| (receiver.id().name.clone(), receiver.received()))
                .collect(),
        }
    }

    async fn report(&self) -> Result<(), PeerError> {
        let _answer: () = self
            .primary
            .call("/peer/report", &self.positions(), Duration::from_secs(3))
            .await?;
        Ok(())
    }

    /// Reports between marks, as soon as a position has changed.
    async fn report_always(self: Arc<Self>, stop: Stop) {
        let mut tick = tokio::time::interval(REPORT_INTERVAL);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut reported = None;
        loop {
            tokio::select! {
                _ = tick.tick() => {}
                () = stop.wait() => return,
            }
            let now = self.positions();
            if reported.as_ref() == Some(&now) {
                continue;
            }
            let is_connected = {
                let link = self.link.lock().unwrap_or_else(PoisonError::into_inner);
                link.heard
                    .is_some_and(|heard| heard.elapsed() < MARK_SILENCE_MAX)
            };
            // Without a link the stream of marks says what is wrong.
            if !is_connected {
                continue;
            }
            tokio::select! {
                told = self.report() => if told.is_ok() { reported = Some(now) },
                // A primary that is gone must not make a promotion wait for its answer.
                () = stop.wait() => return,
            }
        }
    }

    /// Returns how this node's own copies are.
    pub(crate) fn upstream(&self, now: Now) -> UpstreamStatus {
        let link = self.link.lock().unwrap_or_else(PoisonError::into_inner);
        let what = format!("the primary, node {}", self.primary.node());
        let silence = silence(&what, link.heard, self.heard_before, now);
        let mut applied = BTreeMap::new();
        let stores = self
            .receivers
            .iter()
            .map(|receiver| {
                let received = receiver.received();
                applied.insert(receiver.id().name.clone(), received.applied);
                let evidence = Evidence {
                    marks: &link.marks,
                    received: Some(&received),
                    observed: &Observed::ByReport,
                    silence: silence.as_ref(),
                };
                lag(receiver.id(), &evidence, now)
            })
            .collect();
        UpstreamStatus {
            primary: self.primary.node().clone(),
            seen: link.heard.map(|heard| now.wall_at(heard)),
            is_connected: silence.is_none(),
            stores,
            cut: link
                .marks
                .cut(&applied, now.instant)
                .map(|(_, mark)| mark.time),
            clock_ahead_ms: link.clock_ahead_ms,
        }
    }

    /// Returns what the lags rest on: the newest mark that is known.
    pub(crate) fn basis(&self) -> Basis {
        let now = Now::read();
        let link = self.link.lock().unwrap_or_else(PoisonError::into_inner);
        match link.marks.newest() {
            Some((heard, mark)) => Basis::Mark {
                epoch: mark.epoch.clone(),
                number: mark.number,
                time: mark.time,
                heard: now.wall_at(*heard),
            },
            None => Basis::Nothing,
        }
    }

    /// Returns the time of the newest mark that is known.
    pub(crate) fn newest_mark(&self) -> Option<WallTime> {
        let link = self.link.lock().unwrap_or_else(PoisonError::into_inner);
        link.marks.newest().map(|(_, mark)| mark.time)
    }

    /// Returns the word to stop, which a check heeds, and the place that it holds until it has: the stores
    /// are not given to another role before.
    pub(crate) async fn begin_check(&self) -> (Stop, OwnedRwLockReadGuard<()>) {
        let stop = self.stopper.subscribe();
        (stop, self.checks.clone().read_owned().await)
    }

    /// Stops receiving; what is durable here stays so.
    pub(crate) async fn stop(&self) {
        self.stopper.stop();
        let _no_checks = self.checks.write().await;
        let mut tasks = self.tasks.lock().await;
        while tasks.join_next().await.is_some() {}
        self.keep_marks();
    }
}
