//! Waits until the standbys have what the primary has now.
//!
//! ```text
//! on the primary                       on a standby
//!   positions ─▶ /peer/await ───────────▶ StandbyRun::reach ─▶ answer
//!      └▶ reports, what a store sees       ▲
//!                      /peer/barrier ◀── positions of the primary
//! ```
//! A standby answers when it is there and not when it is asked next: nothing is added to the time that
//! the stores take but a round trip. Reports count as well, whichever comes first: a standby that the
//! primary cannot call still calls the primary.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use serde::{Deserialize, Serialize};
use understudy_config::{NodeName, StoreName};
use understudy_replication::lag::Now;
use understudy_replication::link::{AwaitAnswer, AwaitRequest, BarrierRequest, Level};
use understudy_replication::position::Position;
use understudy_replication::role::Role;
use understudy_replication::status::StandbyStatus;

use crate::failure::Failure;
use crate::node::{Node, Stage};
use crate::primary_run::PrimaryRun;
use crate::selection::Selection;
use crate::standby_run::StandbyRun;

/// What a primary's own stores see of a standby is looked at this often.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);

/// The primary's stores have this long to tell where they are.
pub(crate) const POSITION_PATIENCE: Duration = Duration::from_secs(10);

/// A standby holds one question of the primary for at most this long.
pub(crate) const AWAIT_MAX: Duration = Duration::from_secs(10);

/// How soon a standby that cannot be asked is asked again.
const RETRY_INTERVAL: Duration = Duration::from_millis(200);

/// What is waited for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Order {
    /// The stores.
    pub(crate) stores: Selection,
    /// Durable or visible.
    pub(crate) level: Level,
    /// For how long.
    pub(crate) patience: Duration,
}

impl Order {
    /// The primary's stores are not given longer to tell where they are than the whole may take, but the
    /// second that the slowest needs.
    fn position_patience(&self) -> Duration {
        self.patience
            .clamp(Duration::from_secs(1), POSITION_PATIENCE)
    }
}

/// How a waiting ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Waited {
    /// Durable or visible.
    pub(crate) level: Level,
    /// Where the primary's stores were.
    pub(crate) positions: BTreeMap<StoreName, Position>,
    /// The standbys that were waited for.
    pub(crate) standbys: Vec<NodeName>,
    /// How long it took.
    pub(crate) seconds: f64,
    /// What was not there in time; empty when all was.
    pub(crate) missing: Vec<Missing>,
}

/// A store of a standby that is not so far yet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Missing {
    /// The standby.
    pub(crate) standby: NodeName,
    /// The store; `None` when nothing has been heard of the standby at all.
    pub(crate) store: Option<StoreName>,
}

impl Waited {
    /// Returns a failure that tells what is missing, if something is.
    pub(crate) fn in_time(self, patience: Duration) -> Result<Self, Failure> {
        if self.missing.is_empty() {
            return Ok(self);
        }
        let missing = self.missing.iter().map(|missing| match &missing.store {
            Some(store) => format!("{store} on {}", missing.standby),
            None => format!("no word from {}", missing.standby),
        });
        let missing: Vec<String> = missing.collect();
        Err(Failure::failed(format!(
            "not everything was {} within {} s: {}",
            self.level,
            patience.as_secs_f64(),
            missing.join(", ")
        ))
        .hint("see `understudy status`"))
    }
}

/// Waits until every position in `until` is durable here; returns the stores whose is not.
pub(crate) async fn until_received(
    run: &StandbyRun,
    until: &BTreeMap<StoreName, Position>,
    patience: Duration,
) -> Vec<StoreName> {
    run.reach(until, Level::Flushed, patience).await
}

/// Waits, on either side, until everything that the primary has now is there on its standbys; on a
/// standby, until it is there on this one.
pub(crate) async fn wait(node: &Arc<Node>, order: &Order) -> Result<Waited, Failure> {
    order.stores.of(&node.config())?;
    let begun = Instant::now();
    let level = order.level;
    match node.stage() {
        Stage::Standby(run) => {
            let request = BarrierRequest {
                stores: order.stores.0.clone(),
            };
            let positions: BTreeMap<StoreName, Position> = run
                .client()
                .call("/peer/barrier", &request, order.position_patience() * 2)
                .await?;
            all_told(node, &order.stores, &positions)?;
            let left = order.patience.saturating_sub(begun.elapsed());
            let missing = run.reach(&positions, level, left).await;
            let me = node.me();
            let missing = missing.into_iter().map(|store| Missing {
                standby: me.clone(),
                store: Some(store),
            });
            Ok(Waited {
                level,
                positions,
                standbys: vec![me.clone()],
                seconds: begun.elapsed().as_secs_f64(),
                missing: missing.collect(),
            })
        }
        Stage::Primary(run) => {
            let standbys = standbys(node);
            if standbys.is_empty() {
                return Err(Failure::failed("no standby follows this node")
                    .hint("see `understudy status`; make one with `understudy invite`"));
            }
            let patience = order.position_patience();
            let positions = run.all_positions(&order.stores, patience).await;
            all_told(node, &order.stores, &positions)?;
            let left = order.patience.saturating_sub(begun.elapsed());
            let missing = until_reached(node, &run, &standbys, &positions, level, left).await;
            Ok(Waited {
                level,
                positions,
                standbys,
                seconds: begun.elapsed().as_secs_f64(),
                missing,
            })
        }
        Stage::Idle => Err(Failure::failed("this node neither ships nor receives now")
            .hint("see `understudy status`")),
    }
}

/// Returns the standbys of a node that is primary.
pub(crate) fn standbys(node: &Node) -> Vec<NodeName> {
    match node.role() {
        Role::Primary { standbys, .. } => standbys.into_iter().collect(),
        Role::Returning { .. }
        | Role::Standby { .. }
        | Role::Promoting { .. }
        | Role::Fenced { .. } => Vec::new(),
    }
}

fn all_told(
    node: &Node,
    stores: &Selection,
    positions: &BTreeMap<StoreName, Position>,
) -> Result<(), Failure> {
    let silent: Vec<String> = stores
        .of(&node.config())?
        .into_iter()
        .filter(|id| !positions.contains_key(&id.name))
        .map(|id| id.name.to_string())
        .collect();
    if silent.is_empty() {
        return Ok(());
    }
    Err(Failure::failed(format!(
        "the primary cannot tell where these stores are: {}",
        silent.join(", ")
    ))
    .hint("see `understudy status` on the primary"))
}

/// Waits, on the primary, until every one of `standbys` is so far; returns what is not.
pub(crate) async fn until_reached(
    node: &Arc<Node>,
    run: &Arc<PrimaryRun>,
    standbys: &[NodeName],
    until: &BTreeMap<StoreName, Position>,
    level: Level,
    patience: Duration,
) -> Vec<Missing> {
    let asked = Instant::now();
    let _awaiting = run.await_standbys();
    let waits = standbys.iter().map(async |standby| {
        let reached = async {
            tokio::select! {
                () = told(node, standby, until, level) => {}
                () = seen(run, standby, until, level, asked) => {}
            }
        };
        if tokio::time::timeout(patience, reached).await.is_ok() {
            Vec::new()
        } else {
            behind(run, standby, until, level, asked)
        }
    });
    join_all(waits).await.into_iter().flatten().collect()
}

/// Asks a standby to say when it is so far, until it has said so.
async fn told(
    node: &Arc<Node>,
    standby: &NodeName,
    until: &BTreeMap<StoreName, Position>,
    level: Level,
) {
    let request = AwaitRequest {
        until: until.clone(),
        level,
        patience_ms: u64::try_from(AWAIT_MAX.as_millis()).unwrap_or(u64::MAX),
    };
    loop {
        if let Some(client) = node.client(standby) {
            let answer: Result<AwaitAnswer, _> =
                client.call("/peer/await", &request, AWAIT_MAX * 2).await;
            match answer {
                Ok(answer) if answer.missing.is_empty() => return,
                Ok(_) => continue,
                Err(error) => {
                    tracing::debug!(%standby, %error, "a standby cannot be asked how far it is");
                }
            }
        }
        tokio::time::sleep(RETRY_INTERVAL).await;
    }
}

/// Waits until a report of the standby, or what the stores see of it, shows that it is so far.
async fn seen(
    run: &PrimaryRun,
    standby: &NodeName,
    until: &BTreeMap<StoreName, Position>,
    level: Level,
    asked: Instant,
) {
    let mut reports = run.reports();
    while !behind(run, standby, until, level, asked).is_empty() {
        tokio::select! {
            _ = reports.changed() => {}
            () = tokio::time::sleep(LOOK_INTERVAL) => {}
        }
    }
}

/// Returns the stores that a standby has not brought to `until`, by what it has told since `asked`.
fn behind(
    run: &PrimaryRun,
    standby: &NodeName,
    until: &BTreeMap<StoreName, Position>,
    level: Level,
    asked: Instant,
) -> Vec<Missing> {
    let missing = |store| Missing {
        standby: standby.clone(),
        store,
    };
    // What a standby told before the question is no answer to it: the standby may be gone since.
    if !run.has_heard_since(standby, asked) {
        return vec![missing(None)];
    }
    let status: StandbyStatus = run.standby(standby, String::new(), Now::read());
    status
        .stores
        .into_iter()
        .filter(|store| {
            let at = match level {
                Level::Flushed => store.flushed,
                Level::Applied => store.applied,
            };
            until
                .get(&store.id.name)
                .is_some_and(|end| at.is_none_or(|at| at < *end))
        })
        .map(|store| missing(Some(store.id.name)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_waiting_that_was_too_short_tells_what_is_missing() {
        let name = |text: &str| text.parse().unwrap();
        let missing = |standby, store: Option<&str>| Missing {
            standby,
            store: store.map(|store| store.parse().unwrap()),
        };
        let mut waited = Waited {
            level: Level::Flushed,
            positions: BTreeMap::new(),
            standbys: vec![name("b"), name("c")],
            seconds: 0.5,
            missing: vec![
                missing(name("b"), Some("docs")),
                missing(name("b"), Some("postgres")),
                missing(name("c"), None),
            ],
        };
        let patience = Duration::from_millis(500);
        let failure = waited.clone().in_time(patience).unwrap_err();
        assert_eq!(
            failure.to_string(),
            "error: not everything was flushed within 0.5 s: docs on b, postgres on b, no word from c\n\
             hint: see `understudy status`"
        );
        waited.missing.clear();
        assert_eq!(waited.clone().in_time(patience), Ok(waited));
    }
}
