//! `understudy promote`.

use hyper::Method;
use understudy_standby::promote::{Basis, Loss, Plan};

use crate::Place;
use crate::failure::Failure;
use crate::output::{print, print_json};
use crate::promotion::{Order, Outcome};
use crate::report::Report;
use crate::serve::load_local;

/// Make this standby the primary
#[derive(clap::Args, Debug)]
pub(crate) struct Promote {
    /// Go on although the old primary cannot be asked to fence itself: you answer for it that it is off
    #[arg(long)]
    force: bool,
    /// Print the plan, and do nothing
    #[arg(long)]
    dry_run: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Promote {
    pub(crate) async fn run(self, place: &Place) -> Result<(), Failure> {
        let socket = load_local(place)?.socket();
        let order = Order {
            force: self.force,
            dry_run: self.dry_run,
            planned: false,
        };
        let outcome: Outcome = crate::admin::ask(&socket, Method::POST, "/promote", &order).await?;
        show(
            &outcome,
            self.json,
            "this node cannot be promoted now",
            "This node",
        )
    }
}

/// Prints how a promotion or a switchover ended; fails with `refused` for a plan that could not be carried
/// out. `who` is the node that would be primary.
pub(crate) fn show(
    outcome: &Outcome,
    is_json: bool,
    refused: &str,
    who: &str,
) -> Result<(), Failure> {
    if is_json {
        print_json(outcome)?;
    } else {
        print(&match outcome {
            Outcome::Plan(plan) => plan_text(plan),
            Outcome::AlreadyPrimary(epoch) => {
                format!("{who} is primary already, in epoch {epoch}.")
            }
            Outcome::Promoted(report) => report_text(report),
        });
    }
    match outcome {
        Outcome::Plan(plan) if !plan.unmet.is_empty() => Err(Failure::refused(refused)),
        Outcome::Plan(_) | Outcome::AlreadyPrimary(_) | Outcome::Promoted(_) => Ok(()),
    }
}

fn plan_text(plan: &Plan) -> String {
    let mut text = String::new();
    for condition in &plan.unmet {
        let force = if condition.can_be_forced {
            " (--force overrides it)"
        } else {
            ""
        };
        text += &format!(
            "cannot promote now: {}{force}\n  {}\n",
            condition.what, condition.mend
        );
    }
    for condition in &plan.overridden {
        text += &format!("overridden by --force: {}\n", condition.what);
    }
    if plan.steps.is_empty() {
        return text + "There is nothing to do: this node is primary.\n";
    } else {
        text += "The steps:\n";
        for (number, step) in plan.steps.iter().enumerate() {
            text += &format!("  {}. {step}\n", number + 1);
        }
    }
    text + &loss_text("would be lost", &plan.loss, plan.cut)
}

fn report_text(report: &Report) -> String {
    let mut text = format!(
        "Node {} is primary in epoch {}, after {:.2} s.\n",
        report.node, report.epoch, report.seconds
    );
    if let Some(peer) = &report.switched_off {
        text += &format!("  node {peer} was switched off by the command of [fence]\n");
    }
    for condition in &report.overridden {
        text += &format!("  overridden by --force: {}\n", condition.what);
    }
    text += &format!("  {:30} {:8.3} s\n", "look", report.looking_seconds);
    for step in &report.steps {
        let failure = step
            .failure
            .as_ref()
            .map(|failure| format!("  FAILED: {failure}"));
        text += &format!(
            "  {:30} {:8.3} s{}\n",
            step.name,
            step.seconds,
            failure.unwrap_or_default()
        );
    }
    text + &loss_text("was lost", &report.lost, report.cut)
}

fn loss_text(
    what: &str,
    losses: &[Loss],
    cut: Option<understudy_replication::wall_time::WallTime>,
) -> String {
    let mut text = match cut {
        Some(cut) => {
            format!("Everything up to {cut} (the old primary's clock) is here in every store.\n")
        }
        None => "No moment is known at which every store was complete here.\n".to_owned(),
    };
    for loss in losses {
        let amount = match (loss.amount, loss.amount_at_least) {
            (Some(0), _) => "nothing".to_owned(),
            (Some(amount), _) => format!("{amount} {}", loss.unit),
            (None, Some(0)) => "nothing that is known of".to_owned(),
            (None, Some(amount)) => format!("at least {amount} {}", loss.unit),
            (None, None) => "an unknown amount".to_owned(),
        };
        let unknown = loss.unknown.as_ref().map(|unknown| format!(" ({unknown})"));
        let basis = match &loss.basis {
            Basis::Nothing => String::new(),
            Basis::Mark {
                epoch,
                number,
                time,
                ..
            } => format!(", by mark {number} of epoch {epoch}, made {time}"),
            Basis::Fenced => ", by the fenced primary's own word".to_owned(),
        };
        let seconds = match loss.seconds {
            Some(seconds) if loss.amount != Some(0) => {
                format!(", of the last {seconds:.1} s before that")
            }
            Some(_) | None => String::new(),
        };
        text += &format!(
            "  {:20} {what}: {amount}{seconds}{basis}{}\n",
            loss.id.name,
            unknown.unwrap_or_default()
        );
    }
    text
}
