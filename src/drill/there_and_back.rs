//! The switchover drill: the roles are swapped, and swapped back, as clients would live through it.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use understudy_config::NodeName;
use understudy_replication::event::Severity;
use understudy_replication::reports;
use understudy_replication::role::Role;
use understudy_replication::wall_time::WallTime;

use crate::failure::Failure;
use crate::node::Node;
use crate::progress::Sender;
use crate::promotion::Outcome;
use crate::report::Report;
use crate::switchover::{Order, switchover};

/// The version of the report.
const VERSION: u32 = 1;

/// What a report of this kind is called in the file.
const KIND: &str = "switchover";

fn kind() -> String {
    KIND.to_owned()
}

/// The former primary has this long to follow well enough that the roles can be swapped back.
const RETURN_PATIENCE: Duration = Duration::from_secs(300);

/// How often it is looked whether it does.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);

/// The evidence of a switchover drill.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct ThereAndBack {
    version: u32,
    /// [`KIND`].
    #[serde(default = "kind")]
    kind: String,
    /// When it began, by the clock of the node that was asked.
    pub(crate) started: WallTime,
    /// The node that was primary before, and is again.
    pub(crate) home: NodeName,
    /// The first swap.
    pub(crate) there: Report,
    /// How long it took until the roles could be swapped back, in seconds.
    pub(crate) between_seconds: f64,
    /// The second swap; `None` where it failed.
    pub(crate) back: Option<Report>,
    /// How long it took after that until the pair was as before, with a standby that could take over, in
    /// seconds; `None` where that was not seen.
    #[serde(default)]
    pub(crate) after_seconds: Option<f64>,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) failure: Option<String>,
}

/// Swaps the roles, waits until all is well, and swaps them back. Where the second swap fails, the failure says
/// who is primary; a report is kept in any case.
pub(crate) async fn run(
    node: &Arc<Node>,
    to: Option<NodeName>,
    progress: &Sender,
) -> Result<ThereAndBack, Failure> {
    let started = WallTime::now();
    let role = node.role();
    let Some(home) = role.primary(node.me()) else {
        return Err(Failure::refused(format!(
            "node {} is {}: a switchover drill begins on the primary or on a standby that follows it",
            node.me(),
            role.name().as_str()
        )));
    };
    let is_home = home == *node.me();
    let order = Order { to, dry_run: false };
    let there = promoted(switchover(node, order, progress).await?)?;
    let away = there.node.clone();
    let swapped = Instant::now();
    // Asked here, either side's next primary is the one that was primary before.
    let back = Order {
        to: (!is_home).then(|| home.clone()),
        dry_run: false,
    };
    let is_ready = wait_until_ready(node, &back, progress).await;
    let between_seconds = swapped.elapsed().as_secs_f64();
    let swapped_back = match is_ready {
        Ok(()) => switchover(node, back, progress).await.and_then(promoted),
        Err(failure) => Err(failure),
    };
    let mut report = ThereAndBack {
        version: VERSION,
        kind: kind(),
        started,
        home: home.clone(),
        there,
        between_seconds,
        back: None,
        after_seconds: None,
        failure: None,
    };
    match swapped_back {
        Ok(back) => {
            let message = format!(
                "the roles were swapped in {:.2} s, and back in {:.2} s",
                report.there.seconds, back.seconds
            );
            report.back = Some(back);
            // The same plan as in the beginning.
            let again = Order {
                to: Some(away),
                dry_run: false,
            };
            let swapped = Instant::now();
            report.after_seconds = match wait_until_ready(node, &again, progress).await {
                Ok(()) => Some(swapped.elapsed().as_secs_f64()),
                Err(failure) => {
                    tracing::warn!(
                        failure = failure.message,
                        "the pair is not as before a drill"
                    );
                    None
                }
            };
            keep(&node.local.state_dir, &report)?;
            node.events
                .record(Severity::Info, "drill_switchover", message);
            Ok(report)
        }
        Err(failure) => {
            let primary = match node.role().primary(node.me()) {
                Some(primary) if primary == home => format!("node {home} is primary again"),
                Some(primary) => format!("node {primary} is primary"),
                None => format!("node {away} was primary last"),
            };
            let failure = Failure {
                message: format!(
                    "the roles were swapped, and the way back failed: {}; {primary}",
                    failure.message
                ),
                ..failure
            };
            report.failure = Some(failure.message.clone());
            if let Err(unkept) = keep(&node.local.state_dir, &report) {
                tracing::warn!(failure = unkept.message, "no report of the drill");
            }
            node.events.record(
                Severity::Error,
                "drill_switchover_failed",
                failure.message.clone(),
            );
            Err(failure)
        }
    }
}

/// Waits until the plan for the way back has nothing against it.
async fn wait_until_ready(
    node: &Arc<Node>,
    back: &Order,
    progress: &Sender,
) -> Result<(), Failure> {
    let order = Order {
        dry_run: true,
        ..back.clone()
    };
    let until = Instant::now() + RETURN_PATIENCE;
    loop {
        // A node on its way to another role has no plan yet.
        let is_settled = matches!(node.role(), Role::Primary { .. } | Role::Standby { .. });
        let failure = match switchover(node, order.clone(), progress).await {
            Ok(Outcome::Plan(plan)) if plan.unmet.is_empty() && is_settled => return Ok(()),
            Ok(Outcome::Plan(plan)) => {
                let reasons: Vec<String> = plan.unmet.into_iter().map(|it| it.what).collect();
                Failure::refused(reasons.join("; "))
            }
            Ok(Outcome::AlreadyPrimary(_) | Outcome::Promoted(_)) => {
                Failure::refused("the roles have changed meanwhile")
            }
            Err(failure) => failure,
        };
        if Instant::now() >= until {
            return Err(failure);
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}

fn promoted(outcome: Outcome) -> Result<Report, Failure> {
    match outcome {
        Outcome::Promoted(report) => Ok(report),
        Outcome::Plan(_) | Outcome::AlreadyPrimary(_) => Err(Failure::failed(
            "the roles were not swapped, since they have changed meanwhile",
        )),
    }
}

fn keep(state_dir: &Path, report: &ThereAndBack) -> Result<(), Failure> {
    let name = reports::Kind::Switchover.file_at(report.started);
    match reports::keep(state_dir, &name, report, 0o640) {
        Ok(_) => Ok(()),
        Err(error) => Err(Failure::failed(format!(
            "the report of the drill cannot be kept in {}: {error}",
            reports::folder(state_dir).display()
        ))),
    }
}

/// Returns how it ended, in a word, and what more there is to say on one line.
pub(super) fn outcome(report: &ThereAndBack) -> (&'static str, String) {
    match (&report.back, &report.failure) {
        (Some(back), None) => (
            "done",
            format!(
                "there in {:.2} s, back in {:.2} s",
                report.there.seconds, back.seconds
            ),
        ),
        (_, Some(failure)) => ("failed", failure.clone()),
        (None, None) => ("failed", "the roles were not swapped back".to_owned()),
    }
}

/// Returns what the report tells people.
pub(crate) fn text(report: &ThereAndBack) -> String {
    let lost = |report: &Report| {
        let has_lost = report.lost.iter().any(|loss| loss.amount != Some(0));
        if has_lost {
            "LOST SOMETHING"
        } else {
            "nothing was lost"
        }
    };
    let there = format!(
        "Node {} took over in {:.2} s ({}), and was followed by node {} after {:.1} s.",
        report.there.node,
        report.there.seconds,
        lost(&report.there),
        report.home,
        report.between_seconds,
    );
    let back = match (&report.back, &report.failure) {
        (Some(back), _) => format!(
            "Node {} is primary again after {:.2} s ({}), in epoch {}{}.",
            back.node,
            back.seconds,
            lost(back),
            back.epoch,
            match report.after_seconds {
                Some(seconds) => format!(
                    ", and was followed by node {} after {seconds:.1} s",
                    report.there.node
                ),
                None => String::new(),
            }
        ),
        (None, Some(failure)) => failure.clone(),
        (None, None) => "The roles were not swapped back.".to_owned(),
    };
    format!("Switchover drill, {}:\n{there}\n{back}", report.started)
}
