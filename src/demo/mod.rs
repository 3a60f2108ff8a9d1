//! `understudy demo`: a real failover of a real appliance, on this machine, in a temporary folder.
//!
//! The appliance is a catalog of this machine's own packages: their descriptions in Postgres, their
//! documentation as data files, a folder of settings, a full-text index, a service. A writer keeps
//! changing all of it while the primary is killed the hard way.
//!
//! What counts as acknowledged: a write that was finished before the newest *cut* that the standby had
//! told before the kill. Each of those must be there afterwards. Later ones were in flight, and are
//! counted apart: the stores are asynchronous, and promise nothing of them.

mod appliance;
mod compare;
mod first_write;
mod machine;
mod writer;

use std::time::{Duration, Instant};

use serde::Serialize;
use understudy_replication::epoch::Epoch;
use understudy_replication::wall_time::WallTime;

use crate::failure::Failure;
use crate::output::{print, print_json, tell};
use crate::promotion::Outcome;
use crate::report::StepTime;
use appliance::Appliance;
use compare::StoreResult;
use machine::{Machines, has_warm_indexes};
use writer::Writer;

/// Watch a real failover on this machine, in a temporary folder
#[derive(clap::Args, Debug)]
pub(crate) struct Demo {
    /// Leave the pair running, and say how to explore it
    #[arg(long)]
    keep: bool,
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
    /// End a pair that --keep has left in this folder, and remove it
    #[arg(long, value_name = "FOLDER")]
    end: Option<std::path::PathBuf>,
    /// Keep writing for so many seconds before the kill
    #[arg(long, default_value_t = 10, value_name = "SECONDS")]
    seconds: u64,
    /// Take the documentation of so many packages as data files
    #[arg(long, default_value_t = 200, value_name = "COUNT")]
    packages: usize,
}

/// What the demo ends with.
#[derive(Debug, Serialize)]
struct Report {
    version: u32,
    epoch: Epoch,
    /// The steps of the promotion.
    steps: Vec<StepTime>,
    stores: Vec<StoreResult>,
    /// The moment that the promotion returned to.
    cut: Option<WallTime>,
    /// From the kill to the first row that node b's Postgres took. It was asked all the time; no address moves
    /// here, since that needs root.
    outage_seconds: f64,
    /// From the word to the end of `promote`: everything serves.
    promotion_seconds: f64,
    /// Node b's index followed the rows before the kill, so that the promotion only had to catch up.
    index_was_warm: bool,
    index_documents: u64,
    index_hits: u64,
    /// Nothing that was acknowledged is missing, and the index answers.
    is_complete: bool,
}

impl Demo {
    pub(crate) async fn run(self) -> Result<(), Failure> {
        if let Some(folder) = &self.end {
            return machine::end_kept(folder);
        }
        let mut machines = Machines::new()?;
        let result = tokio::select! {
            result = self.play(&mut machines) => result,
            _ = tokio::signal::ctrl_c() => Err(Failure::failed("interrupted")),
        };
        if result.is_err() {
            machines.tell_logs();
        }
        if self.keep && result.is_ok() {
            // The old primary comes back, hears of the new epoch, and stays out of the way.
            machines.revive("a").await?;
            machines.keep();
        } else {
            machines.end().await;
        }
        let report = result?;
        if self.json {
            print_json(&report)?;
        } else {
            print(&report.text());
        }
        if report.is_complete {
            Ok(())
        } else {
            Err(Failure::failed(
                "something that was acknowledged is missing",
            ))
        }
    }

    async fn play(&self, machines: &mut Machines) -> Result<Report, Failure> {
        tell("1. Node a: a catalog of this machine's packages, and a cluster of one node.");
        let appliance = Appliance::new(machines, self.packages).await?;
        machines.init(&appliance.configuration(machines)).await?;
        machines.serve("a").await?;
        appliance.fill(machines).await?;
        machines.wait_for_indexes("a").await?;
        tell("2. Node b: joins, and gets a copy of everything.");
        machines.join().await?;
        machines.serve("b").await?;
        machines
            .understudy("a", &["wait", "--timeout", "120"])
            .await?;
        machines.wait_for_indexes("b").await?;
        tell(&format!(
            "3. A writer changes everything for {} s; the standby's lag:",
            self.seconds
        ));
        let writer = Writer::start(machines, &appliance).await?;
        let until = Instant::now() + Duration::from_secs(self.seconds);
        while Instant::now() < until {
            tokio::time::sleep(Duration::from_secs(1)).await;
            tell(&machines.lag_line("a").await?);
        }
        tell(
            "4. Node a dies: every process of it is killed at once, in the middle of the writing.",
        );
        let promised = machines.cut("b").await?;
        let index_was_warm = has_warm_indexes(&machines.status("b").await?);
        machines.kill("a")?;
        let killed = Instant::now();
        tell(
            "5. `understudy promote --force` on node b: node a cannot be asked, and is known to be dead.",
        );
        let promote = async {
            let begun = Instant::now();
            let told = machines.understudy("b", &["promote", "--force", "--json"]);
            let outcome: Outcome = serde_json::from_str(&told.await?)?;
            Ok((outcome, begun.elapsed()))
        };
        // Nobody waits for the writer: its database is dead, and the others stop when they next look.
        let stopped = async { Ok(writer.stop().await) };
        let (written, (outcome, promotion), first_write) =
            tokio::try_join!(stopped, promote, first_write::first_write(machines))?;
        let Outcome::Promoted(report) = outcome else {
            return Err(Failure::failed("node b was not promoted"));
        };
        tell("6. What node b has is compared with what was acknowledged.");
        let stores = compare::compare(machines, &appliance, &written, promised).await?;
        let (index_documents, index_hits) = compare::index(machines).await?;
        let is_complete = stores.iter().all(|store| store.missing == 0)
            && report.steps.iter().all(|step| step.failure.is_none())
            && index_documents > 0
            && index_hits > 0;
        Ok(Report {
            version: 2,
            epoch: report.epoch,
            steps: report.steps,
            stores,
            cut: report.cut,
            outage_seconds: (first_write - killed).as_secs_f64(),
            promotion_seconds: promotion.as_secs_f64(),
            index_was_warm,
            index_documents,
            index_hits,
            is_complete,
        })
    }
}

impl Report {
    fn text(&self) -> String {
        let mut text = format!(
            "\nNode b is primary in epoch {}. It took a row {:.2} s after the kill; {:.2} s after the word \
             everything served.\n\n",
            self.epoch, self.outage_seconds, self.promotion_seconds
        );
        for step in &self.steps {
            text += &format!("  {:32} {:8.3} s\n", step.name, step.seconds);
        }
        text += "\n  store       acknowledged   missing   in flight at the kill   of these lost\n";
        for store in &self.stores {
            text += &format!(
                "  {:10} {:13} {:9} {:23} {:15}\n",
                store.name,
                store.acknowledged,
                store.missing,
                store.in_flight,
                store.in_flight_lost
            );
        }
        text += &format!(
            "\n  the index {}; it has {} documents, and a search found {}\n\n",
            if self.index_was_warm {
                "was kept warm on node b"
            } else {
                "was built anew by the promotion"
            },
            self.index_documents,
            self.index_hits
        );
        text += if self.is_complete {
            "Nothing that was acknowledged is missing.\n"
        } else {
            "SOMETHING THAT WAS ACKNOWLEDGED IS MISSING.\n"
        };
        text
    }
}
