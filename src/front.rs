//! What clients meet: the services, and the address that leads to them.
//!
//! Taken last and given up first. A promotion brings the front up as its last steps; a daemon that finds
//! itself primary at its start does the same behind the scenes, and both may be repeated at any time.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use understudy_primary::services::Placement;
use understudy_replication::error_chain;
use understudy_replication::event::Severity;
use understudy_replication::role::Role;
use understudy_replication::store::{NoProgress, Progress, Stop};
use understudy_standby::promote::Front;

use crate::failure::Failure;
use crate::node::Node;

/// How often it is looked whether the front is still up, or could be.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);

/// Returns how far the front is up here.
pub(crate) fn observe(node: &Node) -> Front {
    let has_services = !node.config().services.is_empty();
    Front {
        services: has_services.then(|| node.services.are_up()),
        address: None,
    }
}

/// Starts the services in order.
pub(crate) async fn start_services(node: &Node, progress: &dyn Progress) -> Result<(), Failure> {
    node.services.start_all(Placement::Primary, progress).await.map_err(|error| {
        Failure::failed(error_chain(&error)).hint(
            "mend the service, then start it with its own command: the address follows by itself; or run \
             `understudy promote` again",
        )
    })
}

/// Keeps the front up for as long as this node leads: once every store is open, and whenever nobody else has
/// it in hand.
pub(crate) async fn keep(node: Arc<Node>, opened: Vec<watch::Receiver<bool>>, stop: Stop) {
    for mut open in opened {
        let is_open = async { open.wait_for(|is_open| *is_open).await.is_ok() };
        tokio::select! {
            is_open = is_open => if !is_open { return },
            () = stop.wait() => return,
        }
    }
    let mut has_started = false;
    loop {
        let bring_up = async {
            let _front = node.front.lock().await;
            // A fence may have come while somebody else had it.
            if !matches!(node.role(), Role::Primary { .. }) {
                return;
            }
            if !has_started && let Err(failure) = start_services(&node, &NoProgress).await {
                node.events
                    .record(Severity::Error, "service_failed", failure.message);
            }
        };
        tokio::select! {
            () = bring_up => has_started = true,
            // A fence stops the services next; a start under way is cut off.
            () = stop.wait() => return,
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK_INTERVAL) => {}
            () = stop.wait() => return,
        }
    }
}
