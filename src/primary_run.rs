//! What runs on a primary: ships every store, marks once a second, listens to the standbys.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::Router;
use futures_util::future::join_all;
use tokio::sync::{OwnedRwLockReadGuard, RwLock, watch};
use tokio::task::JoinSet;
use understudy_config::{NodeName, StoreName};
use understudy_primary::settings::SettingsShipper;
use understudy_replication::epoch::Epoch;
use understudy_replication::error_chain;
use understudy_replication::event::Severity;
use understudy_replication::kv::keyspace::Keyspace;
use understudy_replication::lag::{Evidence, Now, lag, silence};
use understudy_replication::link::StandbyReport;
use understudy_replication::mark::{MARK_INTERVAL, MARK_SILENCE_MAX, Mark, Marks};
use understudy_replication::position::Position;
use understudy_replication::role::Role;
use understudy_replication::status::{StandbyStatus, StoreLag};
use understudy_replication::store::{LOG_POSITION_BYTES, Shipper, Stop, Stopper, StoreId};
use understudy_replication::wall_time::WallTime;

use crate::node::Node;
use crate::preflight::Outlook;
use crate::selection::Selection;
use crate::supervise::supervise;

/// A mark waits this long for the slowest store.
const MARK_PATIENCE: Duration = Duration::from_millis(900);

/// What a standby has told of its promotion is shown for this long.
const OUTLOOK_AGE_MAX: Duration = Duration::from_secs(30);

/// What runs on a primary.
pub(crate) struct PrimaryRun {
    pub(crate) epoch: Epoch,
    pub(crate) shippers: Vec<Arc<dyn Shipper>>,
    pub(crate) settings: Option<Arc<SettingsShipper>>,
    pub(crate) keyspace: Option<Arc<dyn Keyspace>>,
    /// Whether each store serves its application.
    opened: Vec<watch::Receiver<bool>>,
    marks: Mutex<Marks>,
    newest: watch::Sender<Option<Mark>>,
    reports: Mutex<BTreeMap<NodeName, Heard>>,
    /// How each standby has said that its promotion would go.
    outlooks: Mutex<BTreeMap<NodeName, (Instant, Outlook)>>,
    /// Changes with every report.
    reported: watch::Sender<()>,
    started: Instant,
    is_fenced: AtomicBool,
    waiting: AtomicUsize,
    marking: Stopper,
    shipping: Stopper,
    /// Shared by the checks that run; whoever stops the stores takes it alone.
    checks: Arc<RwLock<()>>,
    /// Of each store: held while it is opened or fenced, since an opening under way must not undo a fence.
    opening: Vec<tokio::sync::Mutex<()>>,
    tasks: tokio::sync::Mutex<JoinSet<()>>,
    /// What only a node that leads does: marks and services.
    leading: tokio::sync::Mutex<JoinSet<()>>,
}

/// The newest report of a standby.
struct Heard {
    at: Instant,
    report: StandbyReport,
}

impl PrimaryRun {
    /// Opens every store and ships it from now on.
    pub(crate) async fn start(node: &Arc<Node>, epoch: Epoch) -> Result<Arc<Self>, String> {
        let makings = node.makings();
        let opened = epoch.clone();
        let shippers = tokio::task::spawn_blocking(move || makings.shippers(&opened))
            .await
            .map_err(|error| error.to_string())??;
        let (opening, opened): (Vec<_>, Vec<_>) =
            shippers.all.iter().map(|_| watch::channel(false)).unzip();
        let (marking, marking_stop) = Stopper::new();
        let (shipping, shipping_stop) = Stopper::new();
        let run = Arc::new(Self {
            epoch,
            shippers: shippers.all,
            opened: opened.clone(),
            settings: shippers.settings,
            keyspace: shippers.keyspace,
            marks: Mutex::new(Marks::default()),
            newest: watch::Sender::new(None),
            reports: Mutex::new(BTreeMap::new()),
            outlooks: Mutex::default(),
            reported: watch::Sender::new(()),
            started: Instant::now(),
            is_fenced: AtomicBool::new(false),
            waiting: AtomicUsize::new(0),
            marking,
            shipping,
            checks: Arc::default(),
            opening: opened
                .iter()
                .map(|_| tokio::sync::Mutex::default())
                .collect(),
            tasks: tokio::sync::Mutex::new(JoinSet::new()),
            leading: tokio::sync::Mutex::new(JoinSet::new()),
        });
        let mut tasks = run.tasks.lock().await;
        for (number, (shipper, open)) in run.shippers.iter().zip(opening).enumerate() {
            tasks.spawn(run.clone().ship(
                number,
                shipper.clone(),
                node.events.clone(),
                open,
                shipping_stop.clone(),
            ));
        }
        drop(tasks);
        let mut leading = run.leading.lock().await;
        leading.spawn(run.clone().mark_always(node.clone(), marking_stop.clone()));
        leading.spawn(crate::front::keep(node.clone(), opened, marking_stop));
        drop(leading);
        Ok(run)
    }

    async fn ship(
        self: Arc<Self>,
        number: usize,
        shipper: Arc<dyn Shipper>,
        events: understudy_replication::event::Events,
        open: watch::Sender<bool>,
        stop: Stop,
    ) {
        let open = Arc::new(open);
        supervise(shipper.id().clone(), events, stop.clone(), || {
            let (run, shipper, stop, open) =
                (self.clone(), shipper.clone(), stop.clone(), open.clone());
            Box::pin(async move {
                let opening = match run.opening.get(number) {
                    Some(opening) => Some(opening.lock().await),
                    // There is one for each.
                    None => None,
                };
                // What a fence has stopped must not be started again.
                if run.is_fenced.load(Ordering::SeqCst) {
                    return Ok(());
                }
                shipper.open().await?;
                drop(opening);
                open.send_replace(true);
                match shipper.run(stop).await {
                    // A fence has stopped what it ships.
                    Err(_) if run.is_fenced.load(Ordering::SeqCst) => Ok(()),
                    ended => ended,
                }
            })
        })
        .await;
    }

    async fn mark_always(self: Arc<Self>, node: Arc<Node>, stop: Stop) {
        let mut told = BTreeMap::new();
        let mut tick = tokio::time::interval(MARK_INTERVAL);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut number = 0;
        let run = WallTime::now();
        loop {
            tokio::select! {
                _ = tick.tick() => {}
                () = stop.wait() => return,
            }
            number += 1;
            let time = WallTime::now();
            let at = Instant::now();
            let selection = Selection::default();
            let positions = tokio::select! {
                positions = self.positions(&selection, MARK_PATIENCE) => positions,
                // A fence does not wait for a store that hangs.
                () = stop.wait() => return,
            };
            let mark = Mark {
                number,
                run,
                epoch: self.epoch.clone(),
                time,
                bytes: self.bytes(&positions),
                positions,
                is_awaited: self.waiting.load(Ordering::Relaxed) > 0,
            };
            self.marks
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(mark.clone(), at);
            self.newest.send_replace(Some(mark));
            self.tell_of_standbys(&node, &mut told);
        }
    }

    /// Returns where every one of `stores` is that can tell so within `patience`.
    async fn positions(
        &self,
        stores: &Selection,
        patience: Duration,
    ) -> BTreeMap<StoreName, Position> {
        let asked = self.selected(stores).map(|shipper| async move {
            let position = tokio::time::timeout(patience, shipper.mark())
                .await
                .ok()
                .flatten()?;
            Some((shipper.id().name.clone(), position))
        });
        join_all(asked).await.into_iter().flatten().collect()
    }

    /// Returns how many bytes of their logs lie before `positions`, of the stores that tell it. Asked for
    /// after them: more is told rather than less.
    fn bytes(&self, positions: &BTreeMap<StoreName, Position>) -> BTreeMap<StoreName, u64> {
        let told = self.shippers.iter().filter_map(|shipper| {
            let StoreId { name, kind } = shipper.id();
            if !kind.tells_bytes() || !positions.contains_key(name) {
                return None;
            }
            let gauges = shipper.report().gauges;
            Some((name.clone(), *gauges.get(LOG_POSITION_BYTES)?))
        });
        told.collect()
    }

    fn selected<'a>(
        &'a self,
        stores: &'a Selection,
    ) -> impl Iterator<Item = &'a Arc<dyn Shipper>> + 'a {
        let is_meant = |shipper: &&Arc<dyn Shipper>| stores.has(&shipper.id().name);
        self.shippers.iter().filter(is_meant)
    }

    /// Returns where each of `stores` is, asking again those that cannot tell at once (a store may be
    /// reading a large file), until all have told or `patience` is over.
    pub(crate) async fn all_positions(
        &self,
        stores: &Selection,
        patience: Duration,
    ) -> BTreeMap<StoreName, Position> {
        let until = Instant::now() + patience;
        let asked = self.selected(stores).count();
        loop {
            let positions = self.positions(stores, patience).await;
            if positions.len() == asked || Instant::now() >= until {
                return positions;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Returns the word to stop, which a check heeds, and the place that it holds until it has: the stores
    /// are not given to another role before.
    pub(crate) async fn begin_check(&self) -> (Stop, OwnedRwLockReadGuard<()>) {
        let stop = self.shipping.subscribe();
        (stop, self.checks.clone().read_owned().await)
    }

    /// Waits until every store serves its application; returns whether they do within `patience`.
    pub(crate) async fn are_open(&self, patience: Duration) -> bool {
        let opened = self.opened.iter().map(async |opened| {
            let mut opened = opened.clone();
            opened.wait_for(|is_open| *is_open).await.is_ok()
        });
        let all = tokio::time::timeout(patience, join_all(opened)).await;
        all.is_ok_and(|opened| opened.into_iter().all(|is_open| is_open))
    }

    /// Makes the marks say that somebody waits, until the returned guard is dropped.
    pub(crate) fn await_standbys(self: &Arc<Self>) -> Awaiting {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        Awaiting(self.clone())
    }

    /// Returns the marks as they are made.
    pub(crate) fn marks(&self) -> watch::Receiver<Option<Mark>> {
        self.newest.subscribe()
    }

    /// Returns the newest position of a store that a mark has told.
    pub(crate) fn position(&self, store: &StoreName) -> Option<Position> {
        let marks = self.marks.lock().unwrap_or_else(PoisonError::into_inner);
        marks.newest_of(store).map(|(_, position)| *position)
    }

    /// Takes a standby's report.
    pub(crate) fn heard(&self, node: NodeName, report: StandbyReport) {
        let heard = Heard {
            at: Instant::now(),
            report,
        };
        self.reports
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(node, heard);
        self.reported.send_replace(());
    }

    /// Takes in how a standby says that its promotion would go.
    pub(crate) fn heard_outlook(&self, node: NodeName, outlook: Outlook) {
        self.outlooks
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(node, (Instant::now(), outlook));
    }

    /// Returns what `standby` has told of its promotion lately.
    fn outlook(&self, standby: &NodeName, now: Now) -> Option<Outlook> {
        let outlooks = self.outlooks.lock().unwrap_or_else(PoisonError::into_inner);
        let (at, outlook) = outlooks.get(standby)?;
        let is_fresh = now.instant.saturating_duration_since(*at) < OUTLOOK_AGE_MAX;
        is_fresh.then(|| outlook.clone())
    }

    /// Returns what changes with every report of a standby.
    pub(crate) fn reports(&self) -> watch::Receiver<()> {
        self.reported.subscribe()
    }

    /// Returns whether `standby` has reported after `moment`.
    pub(crate) fn has_heard_since(&self, standby: &NodeName, moment: Instant) -> bool {
        let reports = self.reports.lock().unwrap_or_else(PoisonError::into_inner);
        reports.get(standby).is_some_and(|heard| heard.at > moment)
    }

    /// Tells that a standby is lost or back, once each.
    fn tell_of_standbys(&self, node: &Node, told: &mut BTreeMap<NodeName, bool>) {
        let Role::Primary { standbys, .. } = node.role() else {
            return;
        };
        let now = Now::read();
        for name in standbys {
            let is_connected = self.standby(&name, String::new(), now).is_connected;
            // A standby that has not been heard since the start is not lost at once.
            let is_young =
                now.instant.saturating_duration_since(self.started) < MARK_SILENCE_MAX * 2;
            if (!is_connected && is_young && !told.contains_key(&name))
                || told.get(&name) == Some(&is_connected)
            {
                continue;
            }
            if is_connected {
                let message = format!("node {name} follows and reports");
                node.events.record(Severity::Info, "standby_back", message);
            } else {
                let message = format!(
                    "no word from standby {name}: its lag is unknown, and what is written now is here \
                     only; look whether {name} runs, and the network to it"
                );
                node.events
                    .record(Severity::Warning, "standby_lost", message);
            }
            told.insert(name, is_connected);
        }
    }

    /// Returns what is known of `standby`, whose address is `ip`.
    pub(crate) fn standby(&self, standby: &NodeName, ip: String, now: Now) -> StandbyStatus {
        let marks = self.marks.lock().unwrap_or_else(PoisonError::into_inner);
        let reports = self.reports.lock().unwrap_or_else(PoisonError::into_inner);
        let heard = reports.get(standby);
        let silence = silence(
            &format!("node {standby}"),
            heard.map(|heard| heard.at),
            self.started,
            now,
        );
        let stores: Vec<StoreLag> = self
            .shippers
            .iter()
            .map(|shipper| {
                let id = shipper.id();
                let evidence = Evidence {
                    marks: &marks,
                    received: heard.and_then(|heard| heard.report.stores.get(&id.name)),
                    observed: &shipper.observed(standby),
                    silence: silence.as_ref(),
                };
                lag(id, &evidence, now)
            })
            .collect();
        let applied = stores
            .iter()
            .map(|store| (store.id.name.clone(), store.applied))
            .collect();
        let (preflight, proof) = match self.outlook(standby, now) {
            Some(Outlook { preflight, proof }) => (preflight, proof),
            None => (None, None),
        };
        StandbyStatus {
            node: standby.clone(),
            ip,
            seen: heard.map(|heard| now.wall_at(heard.at)),
            is_connected: silence.is_none(),
            cut: heard
                .and_then(|heard| marks.cut(&applied, heard.at))
                .map(|(_, mark)| mark.time),
            preflight,
            proof,
            stores,
        }
    }

    /// Returns the routes of the stores.
    pub(crate) fn routes(&self) -> Router {
        self.shippers.iter().fold(Router::new(), |router, shipper| {
            let path = format!("/store/{}", shipper.id().name);
            router.nest(&path, shipper.clone().routes())
        })
    }

    /// Stops marking and starting: from here on nothing new is served. The services that run are the
    /// caller's to stop, before the stores.
    pub(crate) async fn stop_leading(&self) {
        self.is_fenced.store(true, Ordering::SeqCst);
        self.marking.stop();
        let mut leading = self.leading.lock().await;
        while leading.join_next().await.is_some() {}
    }

    /// Has every store write down what it can while it serves, so that a fence is short.
    pub(crate) async fn prepare(&self) -> Result<(), String> {
        for shipper in &self.shippers {
            shipper.prepare().await.map_err(|error| {
                let error = error_chain(error.as_ref());
                format!("cannot prepare store {}: {error}", shipper.id().name)
            })?;
        }
        Ok(())
    }

    /// Makes every store refuse writes; what it holds can still be drained. Returns the failures.
    pub(crate) async fn fence(&self) -> Vec<String> {
        // None waits for another: a server that takes long to stop must not keep the others open.
        let fenced = self.shippers.iter().zip(&self.opening);
        let fenced = fenced.map(async |(shipper, opening)| {
            let _opening = opening.lock().await;
            let error = shipper.fence().await.err()?;
            let error = error_chain(error.as_ref());
            Some(format!("cannot stop store {}: {error}", shipper.id().name))
        });
        join_all(fenced).await.into_iter().flatten().collect()
    }

    /// Stops shipping. The stores stay as they are: an application's Postgres is not stopped because
    /// the daemon is.
    pub(crate) async fn stop(&self) {
        self.stop_leading().await;
        self.shipping.stop();
        let _no_checks = self.checks.write().await;
        let mut tasks = self.tasks.lock().await;
        while tasks.join_next().await.is_some() {}
    }
}

/// Somebody waits for the standbys.
pub(crate) struct Awaiting(Arc<PrimaryRun>);

impl Drop for Awaiting {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}
