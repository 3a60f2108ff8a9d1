//! Checks stores: this node's side, the peers' sides, and whether they are equal.
//!
//! ```text
//! verify, scrub ─▶ run ─┬▶ check_here ─▶ Shipper::check or Receiver::check
//!                       └▶ check_peer ── POST /peer/check ─▶ answer ─▶ check_here, there
//! ```
//! Whoever asked and goes away stops it on every side: the admin socket and the peers' streams are
//! watched, and a side that hears no more of the other gives up as well.

use std::collections::BTreeMap;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::response::{IntoResponse, Response};
use futures_util::future::join_all;
use hyper::StatusCode;
use serde::{Deserialize, Serialize};
use understudy_config::{NodeName, StoreName};
use understudy_replication::check::{Checked, Depth};
use understudy_replication::event::Severity;
use understudy_replication::lag::Now;
use understudy_replication::link::{CHECK_VERSION, CheckRequest, Level, RootRequest};
use understudy_replication::position::Position;
use understudy_replication::store::{BoxFuture, Progress, Stop, Stopper, StoreFailure, StoreId};
use understudy_replication::transport::PeerClient;

use crate::check_report::{Report, Side, SideRole, StoreChecked, Verdict, verdict};
use crate::failure::Failure;
use crate::node::{Node, Stage};
use crate::progress::Sender;
use crate::selection::Selection;
use crate::wait;

/// A check that was told to stop has this long to do so in peace.
const STOP_PATIENCE: Duration = Duration::from_secs(10);

/// The standbys have this long to apply what the primary has, before the sides are compared.
const BARRIER_PATIENCE: Duration = Duration::from_secs(60);

/// How often sides that moved on while they were compared are compared again.
const ATTEMPTS_MAX: usize = 3;

/// The primary has this long to look up a root.
const ROOT_PATIENCE: Duration = Duration::from_secs(10);

/// What an operator asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Order {
    /// The stores; those that cannot be checked must not be named.
    pub(crate) stores: Selection,
    /// How deep.
    pub(crate) depth: DepthOrder,
}

/// How deep a check is asked to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum DepthOrder {
    /// What the file system tells.
    Verify,
    /// Every byte.
    Scrub {
        /// At most so many in a second; `None` for what the configuration says of the store.
        bytes_per_second: Option<u64>,
    },
}

/// Checks the stores on this node and on its peers, one store after the other, all sides at once.
pub(crate) async fn run(
    node: &Arc<Node>,
    order: &Order,
    progress: &Sender,
    stop: &Stop,
) -> Result<Report, Failure> {
    let config = node.config();
    let mut stores = order.stores.of(&config)?;
    match stores.iter().find(|id| !id.kind.is_checkable()) {
        Some(id) if !order.stores.0.is_empty() => {
            return Err(Failure::usage(format!(
                "store {} is of kind {}, which cannot be checked",
                id.name, id.kind
            )));
        }
        Some(_) | None => stores.retain(|id| id.kind.is_checkable()),
    }
    if stores.is_empty() {
        return Err(Failure::usage("no store of this cluster can be checked")
            .hint("trees of files can: see `[[files]]` in the reference of the configuration"));
    }
    let mut checked = Vec::new();
    for id in stores {
        let depth = match order.depth {
            DepthOrder::Verify => Depth::Verify,
            DepthOrder::Scrub { bytes_per_second } => Depth::Scrub {
                bytes_per_second: bytes_per_second
                    .or_else(|| crate::stores::scrub_rate(&config, &id))
                    .unwrap_or(u64::MAX),
            },
        };
        checked.push(check_store(node, id, depth, progress, stop).await?);
    }
    Ok(Report::new(checked))
}

/// Checks every side of one store, again if they cannot be compared because the store has moved on.
async fn check_store(
    node: &Arc<Node>,
    id: StoreId,
    depth: Depth,
    progress: &Sender,
    stop: &Stop,
) -> Result<StoreChecked, Failure> {
    let attempts_max = match depth {
        Depth::Verify => ATTEMPTS_MAX,
        // What takes hours is not begun again because of a root.
        Depth::Scrub { .. } => 1,
    };
    let mut attempts = 0;
    loop {
        attempts += 1;
        let behind = barrier(node, &id.name, stop).await?;
        let mut sides = check_sides(node, &id.name, depth, progress, stop).await?;
        compare(node, &id.name, &mut sides).await;
        let has_moved = sides
            .iter()
            .any(|side| matches!(side.verdict, Some(Verdict::Moved { .. })));
        if !has_moved || behind.is_some() || attempts == attempts_max {
            return Ok(StoreChecked {
                id,
                depth,
                behind,
                sides,
            });
        }
    }
}

/// Waits until every standby that is connected has what the primary has now; returns why one has not.
async fn barrier(
    node: &Arc<Node>,
    store: &StoreName,
    stop: &Stop,
) -> Result<Option<String>, Failure> {
    // Who is away is not waited for: its own side will tell.
    let waited = async {
        let run = match node.stage() {
            Stage::Primary(run) => run,
            Stage::Standby(run) if run.upstream(Now::read()).is_connected => {
                let order = wait::Order {
                    stores: Selection::one(store.clone()),
                    level: Level::Applied,
                    patience: BARRIER_PATIENCE,
                };
                return wait::wait(node, &order)
                    .await?
                    .in_time(BARRIER_PATIENCE)
                    .map(drop);
            }
            Stage::Standby(_) | Stage::Idle => return Ok(()),
        };
        let begun = Instant::now();
        let is_connected =
            |name: &NodeName| run.standby(name, String::new(), Now::read()).is_connected;
        let mut standbys = wait::standbys(node);
        standbys.retain(is_connected);
        let stores = Selection::one(store.clone());
        let positions = run.all_positions(&stores, wait::POSITION_PATIENCE).await;
        let level = Level::Applied;
        let missing =
            wait::until_reached(node, &run, &standbys, &positions, level, BARRIER_PATIENCE).await;
        let waited = wait::Waited {
            level,
            positions,
            standbys,
            seconds: begun.elapsed().as_secs_f64(),
            missing,
        };
        waited.in_time(BARRIER_PATIENCE).map(drop)
    };
    tokio::select! {
        waited = waited => Ok(waited.err().map(|failure: Failure| failure.message)),
        () = stop.wait() => Err(stopped()),
    }
}

async fn check_sides(
    node: &Arc<Node>,
    store: &StoreName,
    depth: Depth,
    progress: &Sender,
    stop: &Stop,
) -> Result<Vec<Side>, Failure> {
    let (mine, theirs, peers) = match node.stage() {
        Stage::Primary(_) => (SideRole::Primary, SideRole::Standby, wait::standbys(node)),
        Stage::Standby(run) => (
            SideRole::Standby,
            SideRole::Primary,
            vec![run.primary().clone()],
        ),
        Stage::Idle => return Err(not_open(node)),
    };
    let here = async {
        let progress = progress.of(node.me().clone());
        let outcome = check_here(node, store, depth, &progress, stop).await;
        Side::new(node.me().clone(), mine, outcome)
    };
    let there = join_all(peers.into_iter().map(async |peer| {
        let progress = progress.of(peer.clone());
        let request = CheckRequest {
            version: CHECK_VERSION,
            store: store.clone(),
            depth,
        };
        let outcome = match node.client(&peer) {
            Some(client) => check_peer(&client, &request, &progress, stop).await,
            None => Err(Failure::failed("it is not in the configuration")),
        };
        Side::new(peer, theirs, outcome)
    }));
    let (here, there) = tokio::join!(here, there);
    if stop.is_stopped() {
        return Err(stopped());
    }
    let mut sides: Vec<Side> = std::iter::once(here).chain(there).collect();
    sides.sort_by_key(|side| side.role);
    Ok(sides)
}

/// Compares every standby's side with the primary's, at the position of the standby's.
async fn compare(node: &Arc<Node>, store: &StoreName, sides: &mut [Side]) {
    let [primary, standbys @ ..] = sides else {
        return;
    };
    for standby in standbys {
        let mut found = verdict(&primary.outcome, &standby.outcome, None);
        if let Verdict::Moved { standby_at, .. } = found
            && let Some(root) = root_at(node, store, standby_at).await
        {
            found = verdict(&primary.outcome, &standby.outcome, Some(&root));
        }
        standby.verdict = Some(found);
    }
}

/// Returns the root that the primary had at a position, if it still knows it.
async fn root_at(node: &Arc<Node>, store: &StoreName, position: Position) -> Option<String> {
    match node.stage() {
        Stage::Primary(run) => {
            let shipper = run.shippers.iter().find(|it| it.id().name == *store)?;
            shipper.root_at(position)
        }
        Stage::Standby(run) => {
            let request = RootRequest {
                store: store.clone(),
                position,
            };
            let answer = run.client().call("/peer/root", &request, ROOT_PATIENCE);
            answer.await.ok().flatten()
        }
        Stage::Idle => None,
    }
}

/// Checks this node's side of a store. One check of a store runs at a time.
async fn check_here(
    node: &Arc<Node>,
    store: &StoreName,
    depth: Depth,
    progress: &dyn Progress,
    stop: &Stop,
) -> Result<Checked, Failure> {
    let _turn = Turn::take(node, store, depth)?;
    let no_store = || Failure::usage(format!("node {} has no store {store}", node.me()));
    let (stopper, either_stop) = Stopper::new();
    let result = match node.stage() {
        Stage::Primary(run) => {
            let (stage_stop, _place) = run.begin_check().await;
            // The stores may be another role's by now.
            if stage_stop.is_stopped() {
                return Err(stopped());
            }
            let shipper = run.shippers.iter().find(|it| it.id().name == *store);
            let shipper = shipper.ok_or_else(no_store)?;
            let check = shipper.check(depth, progress, &either_stop);
            until_stopped(check, &stopper, [stop, &stage_stop]).await
        }
        Stage::Standby(run) => {
            let (stage_stop, _place) = run.begin_check().await;
            if stage_stop.is_stopped() {
                return Err(stopped());
            }
            let receiver = run.receivers.iter().find(|it| it.id().name == *store);
            let receiver = receiver.ok_or_else(no_store)?;
            let check = receiver.check(run.client(), depth, progress, &either_stop);
            until_stopped(check, &stopper, [stop, &stage_stop]).await
        }
        Stage::Idle => return Err(not_open(node)),
    };
    let mut checked = match result {
        Some(Ok(checked)) => checked,
        Some(Err(error)) => return Err(Failure::of_store(&error)),
        None => return Err(stopped()),
    };
    checked.bound();
    record(node, store, depth, &checked);
    Ok(checked)
}

/// Runs a check until it ends, or until its caller is gone or the node changes its role: then it is told
/// to stop, and there is no result.
async fn until_stopped(
    mut check: BoxFuture<'_, Result<Checked, StoreFailure>>,
    stopper: &Stopper,
    [caller, stage]: [&Stop; 2],
) -> Option<Result<Checked, StoreFailure>> {
    tokio::select! {
        result = &mut check => return Some(result),
        () = caller.wait() => {}
        () = stage.wait() => {}
    }
    stopper.stop();
    // One that does not heed the word is cut off.
    let _ended = tokio::time::timeout(STOP_PATIENCE, check).await.is_ok();
    None
}

/// Keeps what was found in an event.
fn record(node: &Node, store: &StoreName, depth: Depth, checked: &Checked) {
    let (severity, kind) = match (checked.differences_total, checked.unrepaired()) {
        (0, _) => (Severity::Info, "checked"),
        (_, 0) => (Severity::Warning, "check_repaired"),
        (_, _) => (Severity::Error, "check_found"),
    };
    let mut message = format!(
        "{} of store {store} on this node: {} entries, {} differences",
        depth.as_str(),
        checked.entries,
        checked.differences_total
    );
    if checked.repaired_total > 0 {
        message += &format!(", of which {} are repaired", checked.repaired_total);
    }
    if let Some(first) = checked.differences.first() {
        message += &format!("; the first is {}: {}", first.kind, first.what);
    }
    node.events.record(severity, kind, message);
}

/// The right to check a store: there is one.
struct Turn<'a> {
    node: &'a Node,
    store: &'a StoreName,
}

impl<'a> Turn<'a> {
    fn take(node: &'a Node, store: &'a StoreName, depth: Depth) -> Result<Self, Failure> {
        let mut checking = checking(node);
        if let Some(running) = checking.get(store) {
            return Err(Failure::refused(format!(
                "a {running} of store {store} runs on node {} already",
                node.me()
            ))
            .hint("wait until it has ended, or stop it where it was started"));
        }
        checking.insert(store.clone(), depth.as_str());
        Ok(Self { node, store })
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        checking(self.node).remove(self.store);
    }
}

fn checking(node: &Node) -> MutexGuard<'_, BTreeMap<StoreName, &'static str>> {
    node.checking.lock().unwrap_or_else(PoisonError::into_inner)
}

fn not_open(node: &Node) -> Failure {
    Failure::failed(format!("the stores of node {} are not open", node.me()))
        .hint("see `understudy status`")
}

fn stopped() -> Failure {
    Failure::failed("the check was stopped").hint("start it again")
}

/// Has a peer check its side.
async fn check_peer(
    peer: &PeerClient,
    request: &CheckRequest,
    progress: &Sender,
    stop: &Stop,
) -> Result<Checked, Failure> {
    let checked: Option<Checked> =
        crate::peer_work::ask(peer, "/peer/check", request, progress, stop).await?;
    let mut checked = checked.ok_or_else(stopped)?;
    checked.bound();
    Ok(checked)
}

/// Answers a peer that has this node check its side.
pub(crate) fn answer(node: Arc<Node>, request: CheckRequest) -> Response {
    if request.version != CHECK_VERSION {
        let reason = format!(
            "node {} speaks version {CHECK_VERSION} of checks, the caller {}; run the same version of \
             understudy on both",
            node.me(),
            request.version
        );
        return (StatusCode::UPGRADE_REQUIRED, reason).into_response();
    }
    crate::peer_work::answer(move |progress, stop| async move {
        let CheckRequest { store, depth, .. } = request;
        check_here(&node, &store, depth, &progress, &stop).await
    })
}

/// Answers a standby that asks what the root of a store was.
pub(crate) fn root(node: &Node, request: &RootRequest) -> Option<String> {
    let Stage::Primary(run) = node.stage() else {
        return None;
    };
    let shipper = run
        .shippers
        .iter()
        .find(|it| it.id().name == request.store)?;
    shipper.root_at(request.position)
}
