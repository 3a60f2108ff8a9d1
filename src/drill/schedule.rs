//! Rehearsals by schedule.

use std::sync::Arc;
use std::time::Duration;

use understudy_replication::role::Role;
use understudy_replication::settings::wait_until_due;
use understudy_replication::status::StatusSource;
use understudy_replication::store::{NoProgress, Stop};

use crate::node::Node;

/// How often it is looked whether there is a schedule by now.
const LOOK_INTERVAL: Duration = Duration::from_secs(30);

/// Rehearses whenever `[drill] schedule` comes due, on a standby, unless the cluster is paused; until told to
/// stop.
pub(crate) async fn by_schedule(node: Arc<Node>, stop: Stop) {
    while !stop.is_stopped() {
        let Some(schedule) = node.config().drill.schedule.clone() else {
            tokio::select! {
                () = tokio::time::sleep(LOOK_INTERVAL) => continue,
                () = stop.wait() => return,
            }
        };
        // A configuration that is read again meanwhile has its say after this time.
        if !wait_until_due(&schedule, &stop).await {
            return;
        }
        let is_standby = matches!(node.role(), Role::Standby { .. });
        if !is_standby || node.config().drill.schedule.as_ref() != Some(&schedule) {
            continue;
        }
        if node.status().pause.is_some() {
            tracing::info!("a rehearsal is left out: the cluster is paused");
            continue;
        }
        let rehearsed = super::rehearse(&node, "schedule", &NoProgress);
        tokio::pin!(rehearsed);
        let refused = tokio::select! {
            rehearsed = &mut rehearsed => rehearsed.err(),
            () = stop.wait() => {
                // It is told to end by whoever stops the node.
                rehearsed.await.err()
            }
        };
        if let Some(failure) = refused {
            tracing::warn!(failure = failure.message, "a rehearsal is left out");
        }
    }
}
