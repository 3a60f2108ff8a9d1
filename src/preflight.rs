//! Asks on a standby, every few seconds, whether it could be promoted now: with the planner that plans a
//! promotion, so that the answer is the one that `understudy promote` would give.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use understudy_replication::event::Severity;
use understudy_replication::lag::Now;
use understudy_replication::preflight::Preflight;
use understudy_replication::role::Role;
use understudy_replication::status::ProofStatus;
use understudy_replication::store::Stop;
use understudy_replication::wall_time::WallTime;

use crate::node::{Node, Stage};
use crate::promotion::{Order, look};

/// How often it is asked.
const INTERVAL: Duration = Duration::from_secs(5);

/// The primary has this long to take it in.
const TELL_PATIENCE: Duration = Duration::from_secs(2);

/// What a standby tells its primary of itself: posted to `/peer/outlook`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Outlook {
    pub(crate) preflight: Option<Preflight>,
    #[serde(default)]
    pub(crate) proof: Option<ProofStatus>,
}

/// Asks until told to stop.
pub(crate) async fn ask_always(node: Arc<Node>, stop: Stop) {
    let mut tick = tokio::time::interval(INTERVAL);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = tick.tick() => {}
            () = stop.wait() => return,
        }
        node.look_for_lacks();
        tokio::select! {
            () = ask(&node) => {}
            () = stop.wait() => return,
        }
    }
}

async fn ask(node: &Arc<Node>) {
    if !matches!(node.role(), Role::Standby { .. }) {
        set(node, None);
        return;
    }
    // Whoever promotes it is told by the plan itself.
    {
        let Ok(_nobody_promotes) = node.promoting.try_lock() else {
            return;
        };
        forget_vain_promotion(node);
    }
    let mut seen = look(node, Order::default()).await;
    let promote = seen.plan();
    seen.of.is_planned = true;
    let switchover = seen.plan();
    let preflight = Preflight {
        checked: WallTime::now(),
        promote: promote.unmet,
        switchover: switchover.unmet,
        loss: promote.loss,
        cut: promote.cut,
    };
    set(node, Some(preflight.clone()));
    let Stage::Standby(run) = node.stage() else {
        return;
    };
    let outlook = Outlook {
        preflight: Some(preflight),
        proof: Some(
            node.drills
                .proof(node.config().drill.max_age, WallTime::now()),
        ),
    };
    let told: Result<(), _> = run
        .client()
        .call("/peer/outlook", &outlook, TELL_PATIENCE)
        .await;
    if let Err(error) = told {
        tracing::debug!(%error, "the primary was not told how a promotion would go");
    }
}

/// Forgets a promotion that has stopped before it opened anything, once the primary that it was to supersede is
/// followed again: to go on with it now would take the appliance from a primary that serves.
fn forget_vain_promotion(node: &Node) {
    let Stage::Standby(run) = node.stage() else {
        return;
    };
    let was_stopped = {
        let promotion = node
            .promotion
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        promotion.as_ref().is_some_and(|it| !it.is_running)
    };
    if was_stopped && run.upstream(Now::read()).is_connected {
        node.set_promotion(None);
        node.events.record(
            Severity::Info,
            "promotion_given_up",
            format!(
                "node {} serves, and is followed: the promotion that was stopped is given up",
                run.primary()
            ),
        );
    }
}

fn set(node: &Node, preflight: Option<Preflight>) {
    *node
        .preflight
        .lock()
        .unwrap_or_else(PoisonError::into_inner) = preflight;
}
