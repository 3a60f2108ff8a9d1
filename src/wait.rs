//! `understudy wait`: until the standby has applied everything that the primary has now.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use understudy_config::StoreName;
use understudy_replication::lag::Now;
use understudy_replication::position::Position;
use understudy_replication::store::Received;

use crate::failure::Failure;
use crate::node::{Node, Stage};
use crate::primary_run::PrimaryRun;
use crate::standby_run::StandbyRun;

/// How often positions are compared.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);

/// The primary's stores have this long to tell where they are.
const POSITION_PATIENCE: Duration = Duration::from_secs(10);

/// Waits until every position in `until` is durable here; returns whether it is.
pub(crate) async fn until_received(
    run: &StandbyRun,
    until: &BTreeMap<StoreName, Position>,
    patience: Duration,
) -> bool {
    run.hurry();
    poll(patience, || {
        behind(run, until, |received| received.flushed).is_empty()
    })
    .await
}

/// Tells which stores have not received their position.
pub(crate) fn missing(run: &StandbyRun, until: &BTreeMap<StoreName, Position>) -> String {
    behind(run, until, |received| received.flushed).join(", ")
}

fn behind(
    run: &StandbyRun,
    until: &BTreeMap<StoreName, Position>,
    position: impl Fn(&Received) -> Option<Position>,
) -> Vec<String> {
    run.receivers
        .iter()
        .filter_map(|receiver| {
            let name = &receiver.id().name;
            let end = until.get(name)?;
            let is_here = position(&receiver.received()).is_some_and(|at| at >= *end);
            (!is_here).then(|| name.to_string())
        })
        .collect()
}

async fn poll(patience: Duration, mut is_done: impl FnMut() -> bool) -> bool {
    let done = async {
        while !is_done() {
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    };
    tokio::time::timeout(patience, done).await.is_ok()
}

/// Waits, on either side, until everything that the primary has now is applied on its standbys.
pub(crate) async fn wait(node: &Arc<Node>, patience: Duration) -> Result<(), Failure> {
    let late = |what: String| {
        Failure::failed(format!(
            "not everything was applied within {} s: {what}",
            patience.as_secs()
        ))
        .hint("see `understudy status`")
    };
    match node.stage() {
        Stage::Standby(run) => {
            let until: BTreeMap<StoreName, Position> = run
                .client()
                .call("/peer/barrier", &(), POSITION_PATIENCE * 2)
                .await?;
            all_told(node, &until)?;
            run.hurry();
            let applied = || behind(&run, &until, |received| received.applied);
            if poll(patience, || applied().is_empty()).await {
                Ok(())
            } else {
                Err(late(applied().join(", ")))
            }
        }
        Stage::Primary(run) => {
            let until = run.all_positions(POSITION_PATIENCE).await;
            all_told(node, &until)?;
            let asked = Instant::now();
            if standbys_behind(node, &run, &until, asked).is_none() {
                return Err(Failure::failed("no standby follows this node")
                    .hint("see `understudy status`; make one with `understudy invite`"));
            }
            let _awaiting = run.await_standbys();
            let behind = || standbys_behind(node, &run, &until, asked).unwrap_or_default();
            if poll(patience, || behind().is_empty()).await {
                Ok(())
            } else {
                Err(late(behind().join(", ")))
            }
        }
        Stage::Idle => Err(Failure::failed("this node neither ships nor receives now")
            .hint("see `understudy status`")),
    }
}

fn all_told(node: &Node, until: &BTreeMap<StoreName, Position>) -> Result<(), Failure> {
    let silent: Vec<String> = crate::stores::ids(&node.config())
        .into_iter()
        .filter(|id| !until.contains_key(&id.name))
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

/// Returns the stores that a standby has not applied up to `until`, as `store on node`; `None` without
/// a standby.
fn standbys_behind(
    node: &Node,
    run: &PrimaryRun,
    until: &BTreeMap<StoreName, Position>,
    asked: Instant,
) -> Option<Vec<String>> {
    let role = node.role();
    let understudy_replication::role::Role::Primary { standbys, .. } = &role else {
        return None;
    };
    if standbys.is_empty() {
        return None;
    }
    let now = Now::read();
    // What a standby told before the question is no answer to it: the standby may be gone since.
    let silent = standbys
        .iter()
        .filter(|name| !run.has_heard_since(name, asked))
        .map(|name| format!("no word from {name}"));
    let behind = standbys.iter().flat_map(|name| {
        let standby = run.standby(name, String::new(), now);
        standby.stores.into_iter().filter_map(move |store| {
            let end = until.get(&store.id.name)?;
            let is_there = store.applied.is_some_and(|at| at >= *end);
            (!is_there).then(|| format!("{} on {name}", store.id.name))
        })
    });
    Some(silent.chain(behind).collect())
}
