//! The report of a promotion: the evidence of what was done, how long it took, and what was lost.
//!
//! It is written after every step, so that one that is cut short still has the times of its first part.
//! It decides nothing: what has to be done after a crash follows from the role on disk.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use understudy_config::NodeName;
use understudy_replication::durable;
use understudy_replication::epoch::Epoch;
use understudy_replication::event::Severity;
use understudy_replication::reports;
use understudy_replication::status::PromotionStatus;
use understudy_replication::wall_time::WallTime;
use understudy_standby::promote::{Condition, Loss, Plan};

use crate::failure::Failure;
use crate::node::Node;

/// The version of the report.
const VERSION: u32 = 1;

/// How long a step took.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct StepTime {
    /// The step.
    pub(crate) name: String,
    /// How long it took, in seconds.
    pub(crate) seconds: f64,
    /// What went wrong without stopping the promotion.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) failure: Option<String>,
}

/// What was asked of this node, and when.
pub(crate) struct Word {
    given: WallTime,
    begun: Instant,
    looked_for: Duration,
    /// The roles are to be swapped in peace.
    pub(crate) is_planned: bool,
}

impl Word {
    /// Takes in that it is given now.
    pub(crate) fn given(is_planned: bool) -> Self {
        Self {
            given: WallTime::now(),
            begun: Instant::now(),
            looked_for: Duration::ZERO,
            is_planned,
        }
    }

    /// Takes in that it is known now what there is to do.
    pub(crate) fn looked(&mut self) {
        self.looked_for = self.begun.elapsed();
    }
}

/// The evidence of a promotion; kept under `reports/`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Report {
    version: u32,
    /// The node that was promoted.
    pub(crate) node: NodeName,
    /// The epoch that it opened.
    pub(crate) epoch: Epoch,
    /// When the operator gave the word.
    pub(crate) started: WallTime,
    /// When it served.
    pub(crate) finished: Option<WallTime>,
    /// How long it took to ask the other nodes and to make the plan, before the first step.
    #[serde(default)]
    pub(crate) looking_seconds: f64,
    /// How long that and the steps took together.
    pub(crate) seconds: f64,
    /// It is the second half of a switchover: the old primary was there, and stopped in order.
    #[serde(default)]
    pub(crate) planned: bool,
    /// How often it was begun: more than once after a crash.
    pub(crate) attempts: u32,
    /// The steps, in order.
    pub(crate) steps: Vec<StepTime>,
    /// The moment that it returned to, by the old primary's clock.
    pub(crate) cut: Option<WallTime>,
    /// What was lost, per store.
    pub(crate) lost: Vec<Loss>,
    /// The old primary has told that it is fenced.
    pub(crate) fenced: Option<NodeName>,
    /// The old primary has been switched off by the command of `[fence]`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) switched_off: Option<NodeName>,
    /// What stood against it, and was overridden by the operator.
    pub(crate) overridden: Vec<Condition>,
    /// The epoch of the promotion here that this one goes on from: `lost` is what that one lost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) after: Option<Epoch>,
    /// What the plan said before anything was done: the loss statement.
    #[serde(default)]
    pub(crate) expected: Vec<Loss>,
}

impl Report {
    /// Returns the report of a promotion that begins now.
    pub(crate) fn new(node: &Node, epoch: Epoch, plan: &Plan, word: &Word) -> Self {
        let looking_seconds = word.looked_for.as_secs_f64();
        Self {
            version: VERSION,
            node: node.me().clone(),
            epoch,
            started: word.given,
            finished: None,
            looking_seconds,
            seconds: looking_seconds,
            planned: word.is_planned,
            attempts: 1,
            steps: Vec::new(),
            cut: plan.cut,
            lost: plan.loss.clone(),
            fenced: None,
            switched_off: None,
            overridden: plan.overridden.clone(),
            after: None,
            expected: plan.loss.clone(),
        }
    }

    fn path(node: &Node) -> PathBuf {
        node.local.state_dir.join("promotion.json")
    }

    pub(crate) fn load(node: &Node) -> Option<Self> {
        let text = fs::read(Self::path(node)).ok()?;
        // A damaged record costs the times of earlier steps in the report, and nothing else.
        serde_json::from_slice(&text).ok()
    }

    /// Returns the report of the promotion that opened `epoch` here, if it is kept.
    pub(crate) fn finished(node: &Node, epoch: &Epoch) -> Option<Self> {
        let text = fs::read(Self::kept(node, epoch)).ok()?;
        serde_json::from_slice(&text).ok()
    }

    /// Takes in what the promotion lost that opened `epoch` here, whose end a crash has prevented: this one
    /// goes on from there, and an operator reads the newest report.
    pub(crate) fn inherit(&mut self, node: &Node, epoch: &Epoch) {
        let Some(earlier) = Self::finished(node, epoch).filter(|_| self.lost.is_empty()) else {
            return;
        };
        self.lost = earlier.lost;
        self.cut = self.cut.or(earlier.cut);
        self.after = Some(epoch.clone());
    }

    fn kept(node: &Node, epoch: &Epoch) -> PathBuf {
        reports::folder(&node.local.state_dir).join(Self::file_name(epoch))
    }

    fn file_name(epoch: &Epoch) -> String {
        reports::Kind::Promotion.file_of(epoch)
    }

    /// Adds a step, and keeps what there is. That it cannot be kept is told, and stops nothing: a full
    /// disk must not stand between the operator and a primary.
    pub(crate) fn add(&mut self, node: &Node, step: StepTime) {
        self.seconds += step.seconds;
        self.steps.push(step);
        self.keep(node);
    }

    /// Keeps what there is.
    pub(crate) fn keep(&self, node: &Node) {
        let kept = serde_json::to_vec_pretty(self)
            .map_err(std::io::Error::from)
            .and_then(|text| durable::write(&Self::path(node), &text, 0o644));
        if let Err(error) = kept {
            tracing::warn!(%error, "the report of the promotion cannot be kept");
        }
    }

    pub(crate) fn status(
        &self,
        step: Option<String>,
        is_running: bool,
        error: Option<String>,
    ) -> PromotionStatus {
        PromotionStatus {
            epoch: self.epoch.clone(),
            done: self.steps.iter().map(|step| step.name.clone()).collect(),
            step,
            is_running,
            error,
        }
    }

    /// Keeps the report, and forgets that the promotion was under way.
    pub(crate) fn finish(mut self, node: &Node) -> Result<Self, Failure> {
        self.finished = Some(WallTime::now());
        let keep = || {
            let name = Self::file_name(&self.epoch);
            reports::keep(&node.local.state_dir, &name, &self, 0o644)?;
            match fs::remove_file(Self::path(node)) {
                Ok(()) => durable::sync_directory_of(&Self::path(node)),
                // It could not be kept before, on a disk that was full.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
                Err(error) => Err(error),
            }
        };
        keep().map_err(|error: std::io::Error| {
            Failure::failed(format!(
                "node {} is primary, but its report cannot be kept: {error}",
                node.me()
            ))
        })?;
        node.events.record(
            Severity::Info,
            "promoted",
            format!(
                "node {} is primary in epoch {} after {:.1} s",
                node.me(),
                self.epoch,
                self.seconds
            ),
        );
        Ok(self)
    }
}
