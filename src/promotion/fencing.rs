//! How the old primary is stopped, and what it still had.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use understudy_config::{Config, NodeName, StoreName};
use understudy_replication::command::Command;
use understudy_replication::epoch::Epoch;
use understudy_replication::error_chain;
use understudy_replication::event::Severity;
use understudy_replication::link::{FenceAnswer, FenceRequest};
use understudy_replication::position::Position;
use understudy_replication::status::RoleName;
use understudy_replication::transport::{PeerClient, PeerError};
use understudy_standby::promote::Basis;

use crate::failure::Failure;
use crate::node::{Node, Stage};
use crate::report::Report;

/// A peer has this long to stop its stores, beside what its services and hooks may take,
const FENCE_PATIENCE: Duration = Duration::from_secs(180);
/// what a command that is ended may take beyond its time,
const KILL_PATIENCE: Duration = Duration::from_secs(7);
/// and in all,
const FENCE_PATIENCE_MAX: Duration = Duration::from_secs(3600);
/// as long as it is there: one that has owed an answer to the heartbeat for so long is not.
const SILENCE: Duration = Duration::from_secs(10);

/// How often it is looked whether it is there.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);

/// A fence that breaks on its way is asked for again, so often,
const FENCE_ATTEMPTS: u32 = 3;
/// after so long.
const RETRY_INTERVAL: Duration = Duration::from_millis(250);

/// What a fenced primary still had must arrive within this long,
const DRAIN_PATIENCE: Duration = Duration::from_secs(60);
/// and where an operator does without it, within this long.
const FORCED_DRAIN_PATIENCE: Duration = Duration::from_secs(5);

/// Returns the client of a peer, whose connections are open already.
pub(super) fn known(node: &Arc<Node>, peer: &NodeName) -> Result<Arc<PeerClient>, Failure> {
    let unknown = || Failure::failed(format!("node {peer} is not in the configuration"));
    node.client(peer).ok_or_else(unknown)
}

/// Asks `peer` to fence itself for `epoch`.
pub(super) async fn fence(
    node: &Arc<Node>,
    peer: &NodeName,
    epoch: &Epoch,
    superseded: &Epoch,
    hands_over: bool,
) -> Result<FenceAnswer, Failure> {
    let client = known(node, peer)?;
    let request = FenceRequest {
        epoch: epoch.clone(),
        hands_over,
        supersedes: Some(superseded.clone()),
    };
    let patience = fence_patience(&node.config());
    let ask = async {
        let mut attempt = 1;
        loop {
            match client
                .call::<FenceAnswer>("/peer/fence", &request, patience)
                .await
            {
                // A connection that had broken long ago may have been taken for one that is open. To ask twice does
                // no harm, and whoever does not answer is switched off.
                Err(error @ (PeerError::Connect { .. } | PeerError::Broken { .. }))
                    if attempt < FENCE_ATTEMPTS =>
                {
                    let error = error_chain(&error);
                    tracing::warn!(%peer, error, "the fence did not get through, and is asked for again");
                    attempt += 1;
                    tokio::time::sleep(RETRY_INTERVAL).await;
                }
                answer => return answer,
            }
        }
    };
    let answer: FenceAnswer = tokio::select! {
        answer = ask => answer?,
        () = fell_silent(node, peer) => {
            return Err(Failure::failed(format!(
                "node {peer} was told to stop, and has not answered anything for {} s",
                SILENCE.as_secs()
            )));
        }
    };
    if answer.was == RoleName::Primary {
        tracing::info!(%peer, positions = ?answer.positions, "the old primary is fenced");
    }
    Ok(answer)
}

/// Returns when a peer has been silent for so long that what it was asked will not be answered.
async fn fell_silent(node: &Node, peer: &NodeName) {
    while node.links.silent_for(peer) < SILENCE {
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}

/// Returns how long a node may take that stops in order all that the configuration has it run.
fn fence_patience(config: &Config) -> Duration {
    let hooks = config.hooks.iter().map(|hooks| hooks.timeout);
    let services = config
        .services
        .iter()
        .map(|service| service.timeout.saturating_add(service.status_timeout));
    let stopping = hooks.chain(services).fold(FENCE_PATIENCE, |all, one| {
        all.saturating_add(one).saturating_add(KILL_PATIENCE)
    });
    stopping.min(FENCE_PATIENCE_MAX)
}

/// Has the operator's command switch `peer` off.
pub(super) async fn power_off(node: &Node, peer: &NodeName) -> Result<(), Failure> {
    let config = node.config();
    let (Some(fence), Some(named)) = (&config.fence, config.node(peer)) else {
        return Err(Failure::failed(format!(
            "there is no command that could switch node {peer} off"
        )));
    };
    node.events.record(
        Severity::Warning,
        "switching_off",
        format!("the command of [fence] is to switch node {peer} off"),
    );
    let environment = crate::serve::environment(&config, &node.local);
    let command = environment
        .into_iter()
        .fold(
            Command::new(fence.command.clone()),
            |command, (name, value)| command.env(&name, value),
        )
        .env("UNDERSTUDY_FENCE_NODE", peer.as_str())
        .env("UNDERSTUDY_FENCE_IP", named.address.ip().to_string())
        .limit(fence.timeout);
    match command.run().await {
        Ok(_) => {
            let message = format!("node {peer} is off, says the command of [fence]");
            node.events
                .record(Severity::Warning, "switched_off", message);
            Ok(())
        }
        Err(error) => Err(Failure::refused(format!(
            "node {peer} does not stop, and could not be switched off: {}",
            error_chain(&error)
        ))
        .hint(format!(
            "switch {peer} off by other means (or cut it off from every client), then run `understudy \
             promote --force`"
        ))),
    }
}

/// Waits until everything that the fenced primary had is durable here.
pub(super) async fn drain(
    node: &Arc<Node>,
    until: &BTreeMap<StoreName, Position>,
    is_forced: bool,
) -> Result<(), Failure> {
    let Stage::Standby(run) = node.stage() else {
        return Ok(());
    };
    let untold: Vec<&str> = run
        .receivers
        .iter()
        .map(|receiver| receiver.id().name.as_str())
        .filter(|name| !until.keys().any(|told| told.as_str() == *name))
        .collect();
    if !untold.is_empty() && !is_forced {
        return Err(Failure::refused(format!(
            "the old primary is fenced, but could not tell where these stores ended: {}",
            untold.join(", ")
        ))
        .hint(
            "run `understudy promote` again to ask it once more; to go back to the old primary, which has \
             everything, run `understudy promote --force` there; `understudy promote --force` here gives up \
             what may be missing",
        ));
    }
    let patience = match is_forced {
        true => FORCED_DRAIN_PATIENCE,
        false => DRAIN_PATIENCE,
    };
    let missing = crate::wait::until_received(&run, until, patience).await;
    if missing.is_empty() {
        return Ok(());
    }
    let missing: Vec<&str> = missing.iter().map(StoreName::as_str).collect();
    let missing = missing.join(", ");
    Err(Failure::refused(format!(
        "the old primary is fenced, but not all that it had has arrived: {missing}"
    ))
    .hint(
        "see `understudy status` for why; run `understudy promote` again to wait once more; to go back to the \
         old primary, which has everything, run `understudy promote --force` there; `understudy promote \
         --force` here gives up what is missing",
    ))
}

/// Tells what is lost, from the last thing that is known before the epoch is opened.
pub(super) fn account(
    node: &Arc<Node>,
    report: &mut Report,
    fenced_at: &BTreeMap<StoreName, Position>,
) {
    let Stage::Standby(run) = node.stage() else {
        return;
    };
    if report.fenced.is_none() {
        for loss in &mut report.lost {
            *loss = loss.clone().uncertain(run.primary());
        }
        report.cut = run.upstream(understudy_replication::lag::Now::read()).cut;
        return;
    }
    // The primary has stopped, and everything up to where it stopped has been waited for.
    for loss in &mut report.lost {
        let Some(receiver) = run.receivers.iter().find(|it| it.id().name == loss.id.name) else {
            continue;
        };
        match (fenced_at.get(&loss.id.name), receiver.received().flushed) {
            (Some(end), Some(flushed)) => {
                loss.amount = Some(end.ahead_of(flushed));
                loss.amount_at_least = loss.amount;
                loss.basis = Basis::Fenced;
                if loss.amount == Some(0) || loss.unit == "bytes" {
                    loss.bytes = loss.amount;
                }
                loss.unknown = None;
            }
            (None, _) | (_, None) => {
                loss.amount = None;
                loss.unknown = Some("where it ended on the old primary is not known".to_owned());
            }
        }
        if loss.amount == Some(0) {
            loss.seconds = Some(0.0);
        }
    }
    report.cut = if report.lost.iter().all(|loss| loss.amount == Some(0)) {
        run.newest_mark()
    } else {
        run.upstream(understudy_replication::lag::Now::read()).cut
    };
}
