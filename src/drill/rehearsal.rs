//! A rehearsal on this node: who may ask for one, and what becomes of its report.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use understudy_replication::event::Severity;
use understudy_replication::role::Role;
use understudy_replication::store::{Progress, Stop, Stopper};
use understudy_standby::copy::Originals;
use understudy_standby::rehearsal::{FOLDER, Rehearsal, Report, Verdict, clear};

use crate::failure::Failure;
use crate::node::{Node, Stage};

/// How often it is looked whether the node still is a standby, beside being told.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);

/// This very program.
pub(crate) const MYSELF: &str = "/proc/self/exe";

/// Returns the stores of this node, which has to be a standby.
pub(crate) fn originals(node: &Node, verb: &str) -> Result<Originals, Failure> {
    let role = node.role();
    if !matches!(role, Role::Standby { .. }) {
        let standbys = "run it on a standby: see `understudy status` for which nodes are";
        return Err(Failure::refused(format!(
            "`understudy {verb}` works on the copies of a standby, and node {} is {}",
            node.me(),
            role.name().as_str()
        ))
        .hint(standbys));
    }
    if node.is_rejoining.load(Ordering::SeqCst) {
        return Err(
            Failure::refused("the stores of this node are being seeded anew")
                .hint("watch it with `understudy status`"),
        );
    }
    if !rustix::process::geteuid().is_root() {
        return Err(Failure::refused(
            "a copy is tried in a sealed room, which only root can make, and the daemon is not root",
        )
        .hint("run the daemon as root"));
    }
    let Stage::Standby(run) = node.stage() else {
        return Err(Failure::failed("the stores of this node are not open yet")
            .hint("see `understudy status`"));
    };
    if node.kv_is_half_a_copy() {
        return Err(
            Failure::refused("the copy of the key-value store is not whole yet")
                .hint("see `understudy status`"),
        );
    }
    Ok(Originals {
        config: node.config(),
        local: node.local.clone(),
        cluster: node.cluster.clone(),
        files: run.files.clone(),
        kv: node.kv_storage(),
    })
}

/// Gives the word to stop as soon as the node is no standby any more that follows; never returns.
pub(crate) async fn stop_with_the_role(node: &Node, stopper: &Stopper) -> Infallible {
    let mut role = node.role.subscribe();
    loop {
        let is_standby = matches!(role.borrow_and_update().role, Role::Standby { .. });
        if !is_standby || node.is_rejoining.load(Ordering::SeqCst) {
            stopper.stop();
            return std::future::pending().await;
        }
        let told = tokio::time::timeout(LOOK_INTERVAL, role.changed()).await;
        if let Ok(Err(_gone)) = told {
            stopper.stop();
            return std::future::pending().await;
        }
    }
}

/// Removes what a daemon that was killed in the middle of a rehearsal has left behind; what ran in it has ended
/// with that daemon. The node starts meanwhile.
pub(crate) fn clear_leftovers(node: &Arc<Node>) {
    let node = node.clone();
    if !node.local.state_dir.join(FOLDER).exists() {
        return;
    }
    tokio::task::spawn_blocking(move || {
        // A rehearsal that begins meanwhile would find its folder going.
        let Ok((_turn, _stop)) = node.drills.begin("the removal of an old rehearsal") else {
            return;
        };
        if let Err(error) = clear(&node.local.state_dir) {
            node.events.record(
                Severity::Warning,
                "drill_leftovers",
                format!(
                    "what a rehearsal has left behind cannot be removed: {}; it takes room only",
                    understudy_replication::error_chain(&error)
                ),
            );
        }
    });
}

/// Rehearses on this node, and keeps the report.
pub(crate) async fn rehearse(
    node: &Arc<Node>,
    asked_by: &str,
    progress: &dyn Progress,
) -> Result<Report, Failure> {
    let originals = originals(node, "drill")?;
    let (_turn, asked_to_stop) = node.drills.begin("a rehearsal")?;
    let config = node.config();
    let Stage::Standby(run) = node.stage() else {
        return Err(Failure::failed("the stores of this node are not open yet"));
    };
    let now = understudy_replication::lag::Now::read();
    let rehearsal = Rehearsal {
        environment: crate::serve::environment(&config, &node.local),
        program: MYSELF.to_owned(),
        software: env!("CARGO_PKG_VERSION").to_owned(),
        asked_by: asked_by.to_owned(),
        cut: run.upstream(now).cut,
        originals,
    };
    drop(run);
    let (stopper, stop) = Stopper::new();
    node.events.record(
        Severity::Info,
        "drill_started",
        format!(
            "node {} rehearses its promotion, asked by {asked_by}",
            node.me()
        ),
    );
    let report = tokio::select! {
        report = rehearsal.run(&stop, progress) => report,
        never = pass_on(&asked_to_stop, &stopper) => match never {},
        never = stop_with_the_role(node, &stopper) => match never {},
    };
    keep(node, &report).await;
    Ok(report)
}

/// Passes the word to stop on; never returns.
pub(crate) async fn pass_on(asked: &Stop, stopper: &Stopper) -> Infallible {
    asked.wait().await;
    stopper.stop();
    std::future::pending().await
}

/// Keeps a report, and tells of it.
async fn keep(node: &Arc<Node>, report: &Report) {
    let (kept, keeping) = (report.clone(), node.clone());
    let done = tokio::task::spawn_blocking(move || {
        let path = kept.keep(&keeping.local.state_dir);
        keeping.drills.renew_proof(&keeping.local.state_dir);
        path
    });
    let trouble = match done.await {
        Ok(Ok(_)) => None,
        Ok(Err(error)) => Some(error.to_string()),
        Err(error) => Some(error.to_string()),
    };
    if let Some(trouble) = trouble {
        node.events.record(
            Severity::Error,
            "drill_report_lost",
            format!("the report of a rehearsal cannot be kept: {trouble}"),
        );
    }
    let why = report.failure.clone().unwrap_or_default();
    let (severity, kind, message) = match report.verdict {
        Verdict::Proven => (
            Severity::Info,
            "drill_proven",
            format!(
                "a promotion of node {} was rehearsed, and would serve after {:.1} s",
                node.me(),
                report.recovery_seconds.unwrap_or_default()
            ),
        ),
        Verdict::Failed => (
            Severity::Error,
            "drill_failed",
            format!(
                "the rehearsal of a promotion of node {} failed: {why}; see `understudy drill show last`",
                node.me()
            ),
        ),
        Verdict::Cancelled => (
            Severity::Info,
            "drill_cancelled",
            format!("the rehearsal on node {} was broken off: {why}", node.me()),
        ),
    };
    node.events.record(severity, kind, message);
}
