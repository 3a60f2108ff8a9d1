//! `understudy drill`: proving that a failover would work.
//!
//! A file per kind of drill; `running` keeps them apart from each other and from promotions.

mod broken;
mod clients;
mod condition;
mod fault;
mod fault_report;
mod kept;
mod rehearsal;
mod running;
mod schedule;
mod there_and_back;

use clap::Subcommand;
use hyper::Method;
use indicatif::HumanBytes;
use understudy_config::NodeName;
use understudy_standby::copy::CheckOutcome;
use understudy_standby::rehearsal::{Report, Verdict};

use crate::Place;
use crate::failure::{Failure, Kind};
use crate::output::{print, print_json};
use crate::serve::{load, load_local};

pub(crate) use rehearsal::{
    MYSELF, clear_leftovers, originals, pass_on, rehearse, stop_with_the_role,
};
pub(crate) use running::Drills;
pub(crate) use schedule::by_schedule;
pub(crate) use there_and_back::{ThereAndBack, run as there_and_back};

/// Prove that this standby could take over, and how long that takes
#[derive(clap::Args, Debug)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Drill {
    #[command(subcommand)]
    verb: Option<Verb>,
    #[command(flatten)]
    printed: Printed,
}

/// How the result is printed.
#[derive(clap::Args, Debug, Clone, Copy, Default)]
struct Printed {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Subcommand, Debug)]
enum Verb {
    /// Rehearse a promotion on a copy of this standby; replication goes on (the default)
    Rehearsal(Printed),
    /// Swap the roles, and swap them back as soon as all is well: clients live through both
    Switchover {
        /// The standby that is to be primary in between (default: the only one)
        #[arg(long, value_name = "NODE")]
        to: Option<NodeName>,
        #[command(flatten)]
        printed: Printed,
    },
    /// Break something on this node on purpose, and report what followed: for pairs made to be tested
    Fault(fault::Inject),
    /// Break off the drill, or the clone, that runs on this node
    Cancel,
    /// List the reports of drills that are kept on this node, oldest first
    List(Printed),
    /// Show a report
    Show {
        /// The report, as `list` names it (default: `last`, the newest)
        #[arg(default_value = "last")]
        report: String,
        #[command(flatten)]
        printed: Printed,
    },
}

impl Drill {
    pub(crate) async fn run(self, place: &Place) -> Result<(), Failure> {
        let local = load_local(place)?;
        match self.verb.unwrap_or(Verb::Rehearsal(self.printed)) {
            Verb::Rehearsal(Printed { json }) => {
                let socket = local.socket();
                let report: Report =
                    crate::admin::ask(&socket, Method::POST, "/drill/rehearsal", &()).await?;
                show(&report, json)?;
                verdict(&report)
            }
            Verb::Switchover {
                to,
                printed: Printed { json },
            } => {
                let report: ThereAndBack =
                    crate::admin::ask(&local.socket(), Method::POST, "/drill/switchover", &to)
                        .await?;
                if json {
                    return print_json(&report);
                }
                print(&there_and_back::text(&report));
                Ok(())
            }
            Verb::Fault(inject) => {
                let loaded = load(place)?;
                let report = inject.run(&loaded.config, &loaded.local).await?;
                if inject.json {
                    return print_json(&report);
                }
                print(&report.text());
                Ok(())
            }
            Verb::Cancel => {
                let what: Option<String> =
                    crate::admin::ask(&local.socket(), Method::POST, "/drill/cancel", &()).await?;
                print(&match what {
                    Some(what) => format!("{what} was broken off, and left nothing behind"),
                    None => "no drill runs on this node".to_owned(),
                });
                Ok(())
            }
            Verb::List(Printed { json }) => {
                let reports = kept::all(&local.state_dir)?;
                if json {
                    return print_json(&reports);
                }
                for report in &reports {
                    print(&report.line());
                }
                Ok(())
            }
            Verb::Show {
                report,
                printed: Printed { json },
            } => {
                let report = kept::find(&local.state_dir, &report)?;
                if json {
                    return print_json(&report);
                }
                print(&report.text());
                Ok(())
            }
        }
    }
}

fn show(report: &Report, json: bool) -> Result<(), Failure> {
    if json {
        return print_json(report);
    }
    print(&text(report));
    Ok(())
}

/// Returns what a report tells people.
fn text(report: &Report) -> String {
    let mut text = format!(
        "Rehearsal on node {} of cluster {}, {}, asked for by {}: {} after {:.1} s\n",
        report.node,
        report.cluster,
        report.started,
        report.asked_by,
        report.verdict.as_str(),
        report.seconds
    );
    if let Some(seconds) = report.recovery_seconds {
        text += &format!("A promotion would have served after {seconds:.1} s.\n");
    }
    if let Some(failure) = &report.failure {
        text += &format!("Why: {failure}\n");
    }
    if let Some(cut) = report.cut {
        text += &format!("The copies have everything up to {cut}, by the primary's clock.\n");
    }
    for store in &report.stores {
        let position = store.position_text.as_deref().unwrap_or("unknown");
        text += &format!(
            "  {:20} at {position}: {} written, {} shared\n",
            store.id.name,
            HumanBytes(store.copied.copied_bytes),
            HumanBytes(store.copied.shared_bytes)
        );
    }
    for step in &report.steps {
        let counts = if step.is_recovery { " *" } else { "" };
        let failure = step.failure.as_ref().map(|it| format!("  FAILED: {it}"));
        let failure = failure.unwrap_or_default();
        text += &format!(
            "  {:28} {:9.3} s{counts}{failure}\n",
            step.name, step.seconds
        );
    }
    text += "  (*: a part of the time of recovery)\n";
    for check in &report.checks {
        let outcome = match check.outcome {
            CheckOutcome::Passed => "well",
            CheckOutcome::Failed => "DAMAGED",
            CheckOutcome::Skipped => "not checked",
        };
        text += &format!("  {:20} {outcome}: {}\n", check.what, check.detail);
    }
    for note in &report.notes {
        text += &format!("  note: {note}\n");
    }
    text
}

/// Turns a report that proves nothing into the exit status that says so.
fn verdict(report: &Report) -> Result<(), Failure> {
    let why = report.failure.clone().unwrap_or_default();
    match report.verdict {
        Verdict::Proven => Ok(()),
        Verdict::Failed => Err(Failure::new(
            Kind::Failed,
            format!("the rehearsal has failed: {why}"),
        )
        .hint("a promotion of this node may fail likewise: mend the cause, and rehearse again")),
        Verdict::Cancelled => Err(Failure::new(
            Kind::Failed,
            format!("the rehearsal was broken off: {why}"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use understudy_replication::wall_time::WallTime;
    use understudy_standby::rehearsal::StepTime;

    #[test]
    fn a_report_is_told_in_lines() {
        let mut report = Report::begin("c".into(), "b".parse().unwrap(), "1.0", "operator");
        report.started = WallTime(1_700_000_000_000);
        report.verdict = Verdict::Failed;
        report.failure = Some("postgres: index article_pkey lacks a row".to_owned());
        report.seconds = 12.34;
        report.steps.push(StepTime {
            name: "recover postgres".to_owned(),
            seconds: 1.5,
            is_recovery: true,
            failure: None,
        });
        let text = text(&report);
        assert!(
            text.contains("recover postgres                 1.500 s *"),
            "{text}"
        );
        assert!(text.contains("failed after 12.3 s"), "{text}");
        assert_eq!(verdict(&report).unwrap_err().kind, Kind::Failed);
    }
}
