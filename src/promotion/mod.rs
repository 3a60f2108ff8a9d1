//! Carries a promotion out: observe, plan, execute step by step, report.
//!
//! The record of a promotion (`promotion.json`) is for the report only. What has to be done after a
//! crash follows from the role on disk and from what is observed then, never from the record.

mod fencing;
mod look;
mod steps;

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use understudy_replication::epoch::Epoch;
use understudy_replication::event::Severity;
use understudy_replication::role::{Event, Role};
use understudy_replication::store::Progress;
use understudy_standby::promote::{Plan, Step};

use crate::failure::Failure;
use crate::node::{Node, Stage};
use crate::report::{Report, Word};

pub(crate) use look::look;

/// What stands against a switchover has this long to pass.
const READY_PATIENCE: Duration = Duration::from_secs(5);

/// A try of the daemon's own to change the role is over within this long.
const TURN_PATIENCE: Duration = Duration::from_secs(15);

/// The stores have this long to serve before a promotion is told to be done.
const OPEN_PATIENCE: Duration = Duration::from_secs(20);

/// What the operator asks.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Order {
    /// The operator answers for it that the old primary is off.
    pub(crate) force: bool,
    /// Only make the plan.
    pub(crate) dry_run: bool,
    /// Swap the roles in peace.
    #[serde(default)]
    pub(crate) planned: bool,
}

/// What a promotion ends with.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Outcome {
    /// The plan, for a dry run.
    Plan(Plan),
    /// The node was primary already, and nothing was to be done.
    AlreadyPrimary(Epoch),
    /// It is primary now.
    Promoted(Report),
}

/// Tells a promotion that an earlier run of the daemon has left unfinished; one of which only the
/// report was missing is finished.
pub(crate) fn remember(node: &Arc<Node>) {
    let Some(report) = Report::load(node) else {
        return;
    };
    match node.role() {
        Role::Promoting { .. } => node.set_promotion(Some(report.status(None, false, None))),
        Role::Primary { epoch, .. } if epoch == report.epoch => {
            if let Err(failure) = report.finish(node) {
                tracing::warn!(failure = failure.message, "cannot keep the report");
            }
        }
        Role::Primary { .. }
        | Role::Returning { .. }
        | Role::Standby { .. }
        | Role::Fenced { .. } => {}
    }
}

/// Promotes this node, or makes the plan for it.
pub(crate) async fn promote(
    node: &Arc<Node>,
    order: Order,
    progress: &dyn Progress,
) -> Result<Outcome, Failure> {
    // The daemon's own tries to come back, or to open stores, hold it for a moment only.
    let Ok(_promoting) = tokio::time::timeout(TURN_PATIENCE, node.promoting.lock()).await else {
        return Err(
            Failure::failed("a promotion or a rejoin is running on this node")
                .hint("watch it with `understudy status`"),
        );
    };
    let mut word = Word::given(order.planned);
    look::wait_for_stores(node).await;
    // A rehearsal gives way; a plan alone disturbs none.
    let _no_drills = match order.dry_run {
        true => None,
        false => Some(node.drills.bar().await),
    };
    let mut seen = look(node, order).await;
    let mut plan = seen.plan();
    if order.planned && !order.dry_run {
        // A stream that has just broken and is being opened again is no reason to send the operator away.
        let until = Instant::now() + READY_PATIENCE;
        while !plan.unmet.is_empty() && Instant::now() < until {
            tokio::time::sleep(Duration::from_millis(250)).await;
            seen = look(node, order).await;
            plan = seen.plan();
        }
    }
    if order.dry_run {
        return Ok(Outcome::Plan(plan));
    }
    if let Role::Primary { epoch, .. } = node.role() {
        are_stores_open(node).await?;
        // Only its end was missing.
        let unfinished = Report::load(node).filter(|it| it.epoch == epoch);
        if let (true, Some(report)) = (plan.steps.is_empty(), unfinished) {
            node.set_promotion(None);
            report.finish(node)?;
        }
    }
    if plan.steps.is_empty() && plan.unmet.is_empty() {
        return Ok(Outcome::AlreadyPrimary(node.role().epoch().clone()));
    }
    if let [first, rest @ ..] = plan.unmet.as_slice() {
        let others = match rest.len() {
            0 => String::new(),
            more => format!(" (and {more} more; see `understudy promote --dry-run`)"),
        };
        return Err(Failure::refused(format!("{}{others}", first.what)).hint(first.mend.clone()));
    }
    let earlier = Report::load(node);
    word.looked();
    let mut report = match (&seen.of.role, earlier) {
        // What is left to do is the end of the promotion that opened the epoch.
        (Role::Primary { epoch, .. }, earlier) => {
            let mut report = earlier
                .filter(|it| it.epoch == *epoch)
                .or_else(|| Report::finished(node, epoch))
                .unwrap_or_else(|| Report::new(node, epoch.clone(), &plan, &word));
            report.attempts = report.attempts.saturating_add(1);
            report
        }
        (Role::Promoting { epoch }, Some(mut report)) if report.epoch == *epoch => {
            report.attempts = report.attempts.saturating_add(1);
            report
        }
        (role, earlier) => {
            let epoch = plan.steps.iter().find_map(|step| match step {
                Step::Open(epoch) => Some(epoch.clone()),
                Step::Prepare(_)
                | Step::Fence(_)
                | Step::PowerOff(_)
                | Step::Drain
                | Step::TakeOver(_)
                | Step::Index(_)
                | Step::Serve
                | Step::Services
                | Step::Address => None,
            });
            let epoch = epoch.unwrap_or_else(|| node.role().epoch().clone());
            // The old primary has stopped in order already: what is left is the end of that switchover.
            word.is_planned |=
                earlier.is_some_and(|it| it.epoch == epoch && it.planned && it.fenced.is_some());
            let mut report = Report::new(node, epoch, &plan, &word);
            report.inherit(node, role.epoch());
            report
        }
    };
    node.events.record(
        Severity::Warning,
        "promotion_started",
        format!("promoting node {} to epoch {}", node.me(), report.epoch),
    );
    let before = report.steps.len();
    let executed = steps::execute(node, &plan, &mut report, order, progress).await;
    if let Err(failure) = executed {
        node.set_promotion(Some(report.status(
            None,
            false,
            Some(match &failure.hint {
                Some(hint) => format!("{}; {hint}", failure.message),
                None => failure.message.clone(),
            }),
        )));
        node.events.record(
            Severity::Error,
            "promotion_stopped",
            format!("the promotion stopped: {}", failure.message),
        );
        if matches!(node.role(), Role::Fenced { .. }) {
            // What a step has started after the fence had looked is stopped at once.
            node.happen(Event::Started).await?;
        }
        return Err(failure);
    }
    node.set_promotion(None);
    let report = report.finish(node)?;
    let front = [Step::Serve, Step::Services, Step::Address].map(|step| step.to_string());
    let failed = report.steps.iter().skip(before).find_map(|step| {
        let failure = step.failure.as_ref()?;
        front.contains(&step.name).then_some((&step.name, failure))
    });
    match failed {
        None => {
            node.set_announcement_owed(false);
            node.hooks.online().await;
            Ok(Outcome::Promoted(report))
        }
        Some((step, failure)) => Err(Failure::failed(format!(
            "node {} is primary in epoch {}, but clients do not reach all of it: {step}: {failure}",
            node.me(),
            report.epoch
        ))
        .hint("mend that, then run `understudy promote` again: it does what is left")),
    }
}

/// Makes sure that the stores of a primary serve before anything is led to them.
async fn are_stores_open(node: &Node) -> Result<(), Failure> {
    let open = async {
        loop {
            match node.stage() {
                Stage::Primary(run) => return run.are_open(OPEN_PATIENCE).await,
                // A daemon that has just started is opening them.
                Stage::Standby(_) | Stage::Idle => {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
    };
    if tokio::time::timeout(OPEN_PATIENCE, open)
        .await
        .is_ok_and(|are_open| are_open)
    {
        return Ok(());
    }
    Err(Failure::failed(format!(
        "node {} is primary, but not every store of it is open",
        node.me()
    ))
    .hint("`understudy status` says which, and why; it is tried again by itself"))
}
