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
use understudy_replication::status::AddressState;
use understudy_replication::store::{NoProgress, Progress, Stop};
use understudy_standby::promote::Front;

use crate::failure::Failure;
use crate::node::Node;

/// How often it is looked whether the address can be taken, where services have kept it from that.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);

/// Returns how far the front is up here.
pub(crate) fn observe(node: &Node) -> Front {
    let has_services = !node.config().services.is_empty();
    Front {
        services: has_services.then(|| node.services.are_up()),
        address: node.address.as_ref().map(|_| has_address(node)),
    }
}

fn has_address(node: &Node) -> bool {
    let is_held = |state| matches!(state, AddressState::Held);
    node.address
        .as_ref()
        .is_none_or(|address| is_held(address.status().state))
}

/// Starts the services that the address waits for, in order. The others are started by who keeps the front up.
pub(crate) async fn start_services(node: &Node, progress: &dyn Progress) -> Result<(), Failure> {
    let started = node.services.start_critical(progress).await;
    started.map_err(|error| {
        Failure::failed(error_chain(&error)).hint(
            "mend the service, then run `understudy services start` with its name: the address follows by \
             itself",
        )
    })
}

/// Takes the address, as long as this node is primary.
pub(crate) async fn take_address(node: &Node) -> Result<(), Failure> {
    let Some(address) = &node.address else {
        return Ok(());
    };
    let taken = address.take().await;
    // A fence may have given it up in the very moment in which it was about to be taken.
    if !matches!(node.role(), Role::Primary { .. }) {
        give_up_address(node).await;
        return Err(Failure::refused(format!(
            "node {} has been superseded meanwhile",
            node.me()
        )));
    }
    match taken {
        Ok(_) => Ok(()),
        Err(error) => {
            let hint = error.hint();
            Err(Failure::failed(error_chain(&error)).hint(hint))
        }
    }
}

/// Gives the address up, whoever has taken it here; returns whether this node is without it now.
pub(crate) async fn give_up_address(node: &Node) -> bool {
    let Some(address) = &node.address else {
        return true;
    };
    match address.give_up().await {
        Ok(_) => true,
        Err(error) => {
            let message = format!(
                "cannot give up the address that clients use: {}; {}",
                error_chain(&error),
                error.hint()
            );
            node.events.record(Severity::Error, "fence_failed", message);
            false
        }
    }
}

/// Brings the front up again that was brought down for a switchover which is not to be.
pub(crate) async fn restore(node: &Arc<Node>) {
    let mut is_first = true;
    // Nobody else brings it up by now, so this goes on until it is, or another role ends it.
    loop {
        let front = node.front.lock().await;
        if !matches!(node.role(), Role::Primary { .. }) {
            return;
        }
        is_first &= !bring_up(node, is_first).await;
        drop(front);
        if node.services.are_up() && has_address(node) {
            return node.hooks.online().await;
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}

/// Brings the front up for as long as this node leads: once every store is open, unless a promotion does it.
pub(crate) async fn keep(node: Arc<Node>, opened: Vec<watch::Receiver<bool>>, stop: Stop) {
    for mut open in opened {
        let is_open = async { open.wait_for(|is_open| *is_open).await.is_ok() };
        tokio::select! {
            is_open = is_open => if !is_open { return },
            () = stop.wait() => return,
        }
    }
    let mut is_first = true;
    loop {
        let bring_up = async {
            let _front = node.front.lock().await;
            // A fence may have come while a promotion had it in hand.
            if matches!(node.role(), Role::Primary { .. }) {
                bring_up(&node, is_first).await
            } else {
                false
            }
        };
        tokio::select! {
            has_started = bring_up => is_first &= !has_started,
            // A fence stops the services next; a start under way is cut off.
            () = stop.wait() => return,
        }
        let is_up = node.services.are_up() && has_address(&node);
        if is_up && node.set_announcement_owed(false) {
            node.hooks.online().await;
        }
        if !is_first && has_address(&node) && !node.is_announcement_owed() {
            // It is kept from now on, and put back where somebody removes it, by its own watch.
            return;
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK_INTERVAL) => {}
            () = stop.wait() => return,
        }
    }
}

/// Starts what is not up, the first time, and takes the address once all that it needs is up: by then the
/// services start again what goes down, as often as they may. Returns whether it has begun; while the cluster is
/// paused it does not, since an operator may have stopped them by hand.
async fn bring_up(node: &Node, is_first: bool) -> bool {
    if node.is_paused() {
        return false;
    }
    if is_first && let Err(failure) = start_services(node, &NoProgress).await {
        node.events
            .record(Severity::Error, "service_failed", failure.message);
    }
    if !node.services.are_up() || has_address(node) {
        start_rest(node, is_first).await;
        return true;
    }
    // Why it cannot be taken is an event, and part of the status, of the address itself.
    if let Err(failure) = take_address(node).await {
        tracing::warn!(
            failure = failure.message,
            "the address is not taken, which is tried again"
        );
    }
    start_rest(node, is_first).await;
    true
}

/// Starts the services that no client should wait for. What becomes of them is told by themselves.
async fn start_rest(node: &Node, is_first: bool) {
    if !is_first {
        return;
    }
    let started = node.services.start_all(Placement::Primary, &NoProgress);
    if let Err(error) = started.await {
        let error = error_chain(&error);
        tracing::warn!(error, "not every service is in place");
    }
}
