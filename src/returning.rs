//! Makes a standby of a node whose copies cannot simply follow: one that was primary and has been
//! superseded, or a standby that fell too far behind.
//!
//! Each store makes its copy equal to the primary's, having kept aside what only this side has. The role
//! comes last: a crash anywhere before leaves a node that is fenced (or a standby) as before, and the same
//! command goes on.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use understudy_config::{NodeName, Rejoin};
use understudy_replication::epoch::Epoch;
use understudy_replication::error_chain;
use understudy_replication::event::Severity;
use understudy_replication::rejoin::{Rejoined, Salvaging};
use understudy_replication::role::{Event, Role};
use understudy_replication::stall::StallReason;
use understudy_replication::status::RoleName;
use understudy_replication::store::{NoProgress, Progress, StoreId};
use understudy_replication::transport::PeerClient;
use understudy_replication::wall_time::WallTime;

use crate::failure::Failure;
use crate::foresight::{self, Prediction};
use crate::node::{Node, Stage};
use crate::rejoin_report;
use crate::standby_run::StandbyRun;

/// How soon a node that comes back by itself tries again, at first,
const RETRY_MIN: Duration = Duration::from_millis(100);
/// and at the latest.
const RETRY_MAX: Duration = Duration::from_secs(30);

/// How often a standby that has parted from a new primary tries to make its copies equal by itself.
const TAKE_BACK_MAX: u32 = 6;

/// The primary has this long to take a node as its standby.
const JOIN_PATIENCE: Duration = Duration::from_secs(10);

/// What the operator asks.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Order {
    /// What to do with what only this node has.
    pub(crate) salvaging: Salvaging,
    /// Tell before anything changes what will be done.
    #[serde(default)]
    pub(crate) foresees: bool,
    /// Nobody has asked for it: it is not done during a pause.
    #[serde(skip)]
    pub(crate) by_itself: bool,
}

/// How a node rejoined.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Report {
    /// The node.
    pub(crate) node: NodeName,
    /// Whom it follows now.
    pub(crate) primary: NodeName,
    /// In which epoch.
    pub(crate) epoch: Epoch,
    /// How long it took.
    pub(crate) seconds: f64,
    /// What was foreseen before anything changed, if that was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) foreseen: Option<Prediction>,
    /// The stores, in order.
    pub(crate) stores: Vec<StoreRejoined>,
    /// Where this is kept, if it could be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) report: Option<PathBuf>,
}

/// How a store rejoined.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StoreRejoined {
    /// Which store.
    #[serde(flatten)]
    pub(crate) id: StoreId,
    /// How.
    #[serde(flatten)]
    pub(crate) rejoined: Rejoined,
}

/// Refuses to make a standby of this node, and to look how that would go, where its role does not allow it.
pub(crate) fn may_rejoin(node: &Node) -> Result<(), Failure> {
    match node.role() {
        Role::Fenced { .. } | Role::Standby { .. } => Ok(()),
        role @ (Role::Primary { .. } | Role::Returning { .. } | Role::Promoting { .. }) => {
            Err(Failure::refused(format!(
                "node {} is {}: only a node that has been superseded, or a standby, can rejoin",
                node.me(),
                role.name().as_str()
            ))
            .hint("see `understudy status` on every node"))
        }
    }
}

/// Makes this node a standby of the node that is primary now.
pub(crate) async fn rejoin(
    node: &Arc<Node>,
    order: Order,
    progress: &dyn Progress,
) -> Result<Report, Failure> {
    let _alone = node.promoting.take().await?;
    may_rejoin(node)?;
    let _no_drills = node.drills.bar().await;
    let begun = Instant::now();
    let primary = find_primary(node).await?;
    // One that was down when the pause began has heard of it just now.
    if order.by_itself && node.is_paused() {
        return Err(Failure::refused("the cluster is paused"));
    }
    // A fence may be under way still: what it heard already is heard again after it.
    node.happen(Event::Heard(node.role().epoch().clone()))
        .await?;
    if node.is_fence_owed() || node.is_serving() {
        return Err(Failure::refused(format!(
            "something of node {} still serves, though it has been superseded",
            node.me()
        ))
        .hint("see `understudy events`; it is stopped again every few seconds"));
    }
    node.events.record(
        Severity::Info,
        "rejoin_started",
        format!(
            "node {} becomes a standby of node {}",
            node.me(),
            primary.node()
        ),
    );
    node.is_rejoining.store(true, Ordering::SeqCst);
    let started = WallTime::now();
    let mut foreseen = None;
    let rejoined = rejoin_stores(node, &primary, order, progress, &mut foreseen).await;
    node.is_rejoining.store(false, Ordering::SeqCst);
    let (stores, epoch) = match rejoined {
        Ok(rejoined) => rejoined,
        Err(failure) => {
            rejoin_report::keep_failed(node, started, foreseen, &failure);
            // A standby goes on as far as it can.
            follow_again(node).await;
            return Err(failure);
        }
    };
    if matches!(node.role(), Role::Fenced { .. }) {
        node.happen(Event::Rejoined {
            primary: primary.node().clone(),
            epoch: epoch.clone(),
        })
        .await?;
    } else {
        follow_again(node).await;
    }
    let report = Report {
        node: node.me().clone(),
        primary: primary.node().clone(),
        epoch,
        seconds: begun.elapsed().as_secs_f64(),
        foreseen,
        stores,
        report: None,
    };
    let report = rejoin_report::keep(node, started, report);
    node.events.record(
        Severity::Info,
        "rejoined",
        format!(
            "node {} follows node {} after {:.1} s",
            report.node, report.primary, report.seconds
        ),
    );
    Ok(report)
}

/// Makes every store's copy equal to the primary's, and has the primary know its standby.
async fn rejoin_stores(
    node: &Arc<Node>,
    primary: &PeerClient,
    order: Order,
    progress: &dyn Progress,
    foreseen: &mut Option<Prediction>,
) -> Result<(Vec<StoreRejoined>, Epoch), Failure> {
    match node.set_stage(Stage::Idle) {
        Stage::Primary(run) => run.stop().await,
        Stage::Standby(run) => run.stop().await,
        Stage::Idle => {}
    }
    crate::peer_api::refresh(node);
    let client = known_client(node, primary.node())?;
    // Its receivers follow nobody yet.
    let run = StandbyRun::open(node, client)
        .await
        .map_err(Failure::failed)?;
    if order.foresees {
        let told = foresight::predict(node, primary, &run.receivers, progress).await;
        progress.end(&format!("foreseen:\n{}", told.text().trim_end()));
        *foreseen = Some(told);
    }
    let mut stores = Vec::new();
    for receiver in &run.receivers {
        let id = receiver.id().clone();
        let rejoined = receiver
            .rejoin(primary, order.salvaging, progress)
            .await
            .map_err(|error| {
                let failure = Failure::of_store(&error);
                Failure {
                    message: format!("store {} cannot rejoin: {}", id.name, failure.message),
                    hint: failure.hint.or_else(|| {
                        Some(
                            "mend the cause, then run `understudy rejoin` again: it goes on from here"
                                .to_owned(),
                        )
                    }),
                    ..failure
                }
            })?;
        stores.push(StoreRejoined { id, rejoined });
    }
    // The primary remembers us before we call ourselves its standby: from then on we could be promoted,
    // and it must ask after a restart.
    let epoch: Epoch = primary.call("/peer/joined", &(), JOIN_PATIENCE).await?;
    Ok((stores, epoch))
}

/// Has a standby follow again whose stores were taken for a rejoin.
async fn follow_again(node: &Arc<Node>) {
    if matches!(node.role(), Role::Standby { .. })
        && let Err(error) = node.happen(Event::Started).await
    {
        tracing::warn!(%error, "the stores cannot be followed, which is tried again");
    }
}

pub(crate) fn known_client(node: &Arc<Node>, name: &NodeName) -> Result<PeerClient, Failure> {
    let unknown = || Failure::failed(format!("node {name} is not in the configuration"));
    node.peer(name).ok_or_else(unknown)
}

/// Finds the node that is primary now, in an epoch that is not below ours.
pub(crate) async fn find_primary(node: &Arc<Node>) -> Result<Arc<PeerClient>, Failure> {
    let mut reasons = Vec::new();
    let ours = node.role().epoch().clone();
    for peer in node.config().peers(node.me()) {
        let Some(client) = node.client(&peer.name) else {
            continue;
        };
        match crate::peer_api::hello(&client).await {
            Ok(hello) if hello.role == RoleName::Primary && hello.epoch >= ours => {
                node.pauses
                    .hear(&hello.node, hello.pause.unwrap_or_default());
                return Ok(client);
            }
            Ok(hello) => reasons.push(format!(
                "node {} is {} in epoch {}",
                hello.node,
                hello.role.as_str(),
                hello.epoch
            )),
            Err(error) => reasons.push(error_chain(&error)),
        }
    }
    if reasons.is_empty() {
        reasons.push("there is no other node in the configuration".to_owned());
    }
    Err(Failure::failed(format!(
        "there is no primary to follow: {}",
        reasons.join("; ")
    ))
    .hint("promote a node with `understudy promote`, or start the one that is primary"))
}

/// Has a fenced node come back by itself, where it handed over in a switchover or the configuration says
/// so. Harmless to call at any time.
pub(crate) fn come_back(node: &Arc<Node>) {
    let is_wanted = |node: &Node| match node.role() {
        // What an operator has begun by a switchover is ended during a pause, too.
        Role::Fenced { follows, .. } => {
            follows || node.config().cluster.rejoin == Rejoin::Automatic && !node.is_paused()
        }
        Role::Primary { .. }
        | Role::Returning { .. }
        | Role::Standby { .. }
        | Role::Promoting { .. } => false,
    };
    if !is_wanted(node) || node.is_coming_back.swap(true, Ordering::SeqCst) {
        return;
    }
    let node = Arc::downgrade(node);
    tokio::spawn(async move {
        let mut patience = RETRY_MIN;
        let mut told = String::new();
        while let Some(node) = node.upgrade().filter(|node| is_wanted(node)) {
            let order = Order {
                by_itself: !matches!(node.role(), Role::Fenced { follows: true, .. }),
                ..Order::default()
            };
            // An operator's word is not kept waiting while there is nobody to follow.
            let rejoined = match find_primary(&node).await {
                Ok(_) => rejoin(&node, order, &NoProgress).await.map(drop),
                Err(failure) => Err(failure),
            };
            match rejoined {
                Ok(()) => break,
                Err(failure) => {
                    // Until the other side serves there is nobody to follow, which is no failure.
                    let is_early = patience < Duration::from_secs(5);
                    if failure.message == told || is_early {
                        tracing::debug!(failure = failure.message, "cannot come back yet");
                    } else {
                        let hint = failure.hint.unwrap_or_default();
                        let message =
                            format!("cannot come back as a standby: {}; {hint}", failure.message);
                        node.events
                            .record(Severity::Warning, "rejoin_failed", message);
                        told = failure.message;
                    }
                }
            }
            drop(node);
            tokio::time::sleep(patience).await;
            patience = (patience * 3 / 2).min(RETRY_MAX);
        }
        if let Some(node) = node.upgrade() {
            node.is_coming_back.store(false, Ordering::SeqCst);
        }
    });
}

/// Has a standby make its copies equal to the primary's by itself, where one of them has parted from it: with
/// more than one standby, the one that was promoted may lack what another has received. Nothing is lost by
/// it, as that is kept aside first. Harmless to call at any time.
///
/// In a pair nobody else is promoted: a copy that has parted there was written to, and an operator looks first.
pub(crate) fn take_back(node: &Arc<Node>) {
    let has_parted = |node: &Node| match (node.role(), node.stage()) {
        (Role::Standby { .. }, Stage::Standby(run)) => run
            .receivers
            .iter()
            .any(|receiver| receiver.received().stall_reason == Some(StallReason::Parted)),
        (_, Stage::Idle | Stage::Primary(_) | Stage::Standby(_)) => false,
    };
    let epoch = node.role().epoch().clone();
    let is_given_up = node.given_up() == Some(epoch.clone());
    if node.config().peers(node.me()).count() < 2
        || is_given_up
        || node.is_paused()
        || !has_parted(node)
        || node.is_coming_back.swap(true, Ordering::SeqCst)
    {
        return;
    }
    let node = node.clone();
    tokio::spawn(async move {
        let mut patience = Duration::from_secs(1);
        for attempt in 1..=TAKE_BACK_MAX {
            let order = Order {
                by_itself: true,
                ..Order::default()
            };
            let failure = match rejoin(&node, order, &NoProgress).await {
                Ok(_) => break,
                // It begins anew when the pause is over.
                Err(_) if node.is_paused() => break,
                Err(failure) => failure,
            };
            tracing::info!(failure = failure.message, attempt, "cannot take back yet");
            if attempt == TAKE_BACK_MAX {
                node.give_up(epoch.clone());
                let hint = failure.hint.unwrap_or_default();
                let message = format!(
                    "the copies here have parted from the primary's, and were not made equal in {attempt} \
                     attempts: {}; {hint}",
                    failure.message
                );
                node.events
                    .record(Severity::Error, "rejoin_failed", message);
                break;
            }
            tokio::time::sleep(patience).await;
            patience = (patience * 2).min(RETRY_MAX);
            if *node.role().epoch() != epoch {
                // Another primary is followed by now: whether its history is another one shows anew.
                break;
            }
        }
        node.is_coming_back.store(false, Ordering::SeqCst);
    });
}
