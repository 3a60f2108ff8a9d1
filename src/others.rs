//! Has the other standbys take a new epoch before it is opened.
//!
//! With two nodes, whoever is promoted has the only other one fenced. With more, another standby may be
//! promoted at the same moment, and a primary that comes back may ask just that one whether it has been
//! superseded. So no epoch is opened before every node that answers has it on disk, and without an operator's
//! force all of them must answer, except for the old primary where that is known to be off.

use std::sync::Arc;
use std::time::Duration;

use understudy_config::NodeName;
use understudy_replication::epoch::Epoch;
use understudy_replication::error_chain;
use understudy_replication::link::{FenceAnswer, FenceRequest};
use understudy_replication::role::Role;

use crate::failure::Failure;
use crate::node::Node;

/// A standby that answers has this long to record an epoch.
const PATIENCE: Duration = Duration::from_secs(30);

/// A node that an operator answers for has this long to show that it is there.
const FORCED_PATIENCE: Duration = Duration::from_secs(1);

/// Makes sure that the epoch that a promotion has proposed was not given up for a higher one meanwhile: a peer
/// that was fenced for it then would wait for a primary that never comes.
pub(crate) fn still_proposed(node: &Node, epoch: &Epoch) -> Result<(), Failure> {
    match node.role() {
        Role::Standby { proposed, .. } if proposed.as_ref() != Some(epoch) => {
            Err(superseded(node, epoch))
        }
        Role::Standby { .. }
        | Role::Primary { .. }
        | Role::Returning { .. }
        | Role::Promoting { .. }
        | Role::Fenced { .. } => Ok(()),
    }
}

fn superseded(node: &Node, epoch: &Epoch) -> Failure {
    Failure::refused(format!(
        "epoch {} has superseded this promotion to {epoch}, which has opened nothing",
        node.role().epoch()
    ))
    .hint("see `understudy status` on every node")
}

/// Has every node but the old primary record `epoch`, which this standby has proposed to supersede `known`.
/// Returns what kept those that an operator's force goes over.
pub(crate) async fn record(
    node: &Arc<Node>,
    epoch: &Epoch,
    known: &Epoch,
    is_forced: bool,
) -> Result<Vec<String>, Failure> {
    // What only force opens is not asked for: the others hear of it when they meet.
    let Role::Standby { primary, .. } = node.role() else {
        return Ok(Vec::new());
    };
    let others = peers(node).into_iter().filter(|name| *name != primary);
    let asked = others.map(async |name| ask(node, &name, epoch, known, is_forced).await);
    let refused: Vec<String> = futures_util::future::join_all(asked)
        .await
        .into_iter()
        .filter_map(Result::err)
        .collect();
    still_proposed(node, epoch)?;
    match refused.first() {
        Some(first) if !is_forced => Err(Failure::refused(format!(
            "not every other node knows of this promotion, so that one of them could be promoted as well: \
             {first}"
        ))
        .hint(
            "start that node and run the command again; or make sure that it has not been promoted and is \
             not being promoted, then run `understudy promote --force`; or take it out of the configuration",
        )),
        Some(_) | None => Ok(refused),
    }
}

/// Makes sure that nobody has superseded a promotion that goes on after a crash, as far as that is possible
/// without force.
pub(crate) async fn confirm(node: &Arc<Node>, is_forced: bool) -> Result<(), Failure> {
    let Role::Promoting { epoch } = node.role() else {
        return Ok(());
    };
    let peers = peers(node);
    // In a pair, the other node has been superseded, and is not promoted without force.
    if peers.len() < 2 || is_forced {
        return Ok(());
    }
    let asked = peers
        .iter()
        .map(async |name| ask(node, name, &epoch, &epoch, is_forced).await);
    let answers = futures_util::future::join_all(asked).await;
    if !matches!(node.role(), Role::Promoting { epoch: ours } if ours == epoch) {
        return Err(superseded(node, &epoch));
    }
    if answers.iter().any(Result::is_ok) {
        return Ok(());
    }
    let reasons: Vec<String> = answers.into_iter().filter_map(Result::err).collect();
    Err(Failure::refused(format!(
        "no other node can say whether this promotion has been superseded since it was interrupted: {}",
        reasons.join("; ")
    ))
    .hint(
        "start another node and run `understudy promote` again; or make sure that no other node has been \
         promoted, then run `understudy promote --force`",
    ))
}

fn peers(node: &Node) -> Vec<NodeName> {
    let config = node.config();
    let peers = config.peers(node.me());
    peers.map(|peer| peer.name.clone()).collect()
}

/// Has one node record `epoch`; an error says in words why it has not.
async fn ask(
    node: &Arc<Node>,
    name: &NodeName,
    epoch: &Epoch,
    known: &Epoch,
    is_forced: bool,
) -> Result<(), String> {
    let client = node
        .client(name)
        .ok_or_else(|| format!("node {name} is not in the configuration"))?;
    let request = FenceRequest {
        epoch: epoch.clone(),
        hands_over: false,
        supersedes: Some(known.clone()),
    };
    // One that is not there is known sooner by a greeting.
    let exchange = async {
        crate::peer_api::hello(&client).await?;
        client
            .call::<FenceAnswer>("/peer/fence", &request, PATIENCE)
            .await
    };
    let patience = if is_forced { FORCED_PATIENCE } else { PATIENCE };
    match tokio::time::timeout(patience, exchange).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(error_chain(&error)),
        Err(_) => Err(format!(
            "node {name} did not answer within {} s",
            patience.as_secs()
        )),
    }
}
