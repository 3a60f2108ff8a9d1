//! The report of a rehearsal, and the proof that it is.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use understudy_config::NodeName;
use understudy_replication::reports::{self, Kind, found, keep};
use understudy_replication::status::ProofStatus;
use understudy_replication::wall_time::WallTime;

use crate::copy::{CopyCheck, StoreCopied};

/// The version of [`Report`].
const VERSION: u32 = 1;

/// What a report of this kind is called in the file; other drills have other words.
pub const KIND: &str = "rehearsal";

/// How many reports of rehearsals are kept; the newest that proves something stays in any case.
const REPORTS_MAX: usize = 200;

/// How a rehearsal has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// A promotion would have worked.
    Proven,
    /// Something was not as it should be.
    Failed,
    /// It gave way to something else, and says nothing.
    Cancelled,
}

impl Verdict {
    /// Returns the word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Proven => "proven",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }
}

/// A step, and how long it took.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepTime {
    /// The step, called as a promotion calls it where that has it, too.
    pub name: String,
    /// How long it took, in seconds.
    pub seconds: f64,
    /// A promotion would do it, too: it counts towards the time of recovery.
    pub is_recovery: bool,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
}

/// The evidence of a rehearsal; kept under `reports/`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// What the report is written in: 1 in this version.
    pub version: u32,
    /// [`KIND`].
    pub kind: String,
    /// The cluster.
    pub cluster: String,
    /// The node that rehearsed.
    pub node: NodeName,
    /// The version of the program.
    pub software: String,
    /// Who asked for it: `operator` or `schedule`.
    pub asked_by: String,
    /// When it began.
    pub started: WallTime,
    /// When it ended.
    pub finished: WallTime,
    /// How long it took, with the copying and the checks.
    pub seconds: f64,
    /// How it ended.
    pub verdict: Verdict,
    /// Why it failed, or gave way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
    /// How long a promotion would have taken from the state that was copied until it serves: the sum of the
    /// steps of recovery. `None` if not all of them were gone through.
    pub recovery_seconds: Option<f64>,
    /// The newest moment, by the primary's clock, that every copy has at least.
    pub cut: Option<WallTime>,
    /// The stores, and what their copies took.
    pub stores: Vec<StoreCopied>,
    /// What was done, in order.
    pub steps: Vec<StepTime>,
    /// What was compared and read through.
    pub checks: Vec<CopyCheck>,
    /// What was left out, and why.
    #[serde(default)]
    pub notes: Vec<String>,
}

impl Report {
    /// Returns the report of a rehearsal that begins now.
    pub fn begin(cluster: String, node: NodeName, software: &str, asked_by: &str) -> Self {
        let now = WallTime::now();
        Self {
            version: VERSION,
            kind: KIND.to_owned(),
            cluster,
            node,
            software: software.to_owned(),
            asked_by: asked_by.to_owned(),
            started: now,
            finished: now,
            seconds: 0.0,
            verdict: Verdict::Failed,
            failure: None,
            recovery_seconds: None,
            cut: None,
            stores: Vec::new(),
            steps: Vec::new(),
            checks: Vec::new(),
            notes: Vec::new(),
        }
    }

    /// Returns the name of the file that it is kept in.
    pub fn file_name(&self) -> String {
        Kind::Rehearsal.file_at(self.started)
    }

    /// Keeps it durably, and lets the oldest go. Blocks.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn keep(&self, state_dir: &Path) -> io::Result<PathBuf> {
        let path = keep(state_dir, &self.file_name(), self, 0o640)?;
        if let Err(error) = prune(state_dir) {
            tracing::warn!(%error, "cannot remove old reports of rehearsals");
        }
        Ok(path)
    }
}

/// Returns the files of rehearsals, the oldest first.
fn files(state_dir: &Path) -> io::Result<Vec<PathBuf>> {
    let found = found(state_dir, Kind::Rehearsal)?;
    Ok(found.into_iter().map(|it| it.path).collect())
}

/// Reads a report of a rehearsal; `None` for what is none.
fn load(path: &Path) -> Option<Report> {
    reports::load(path).filter(|it: &Report| it.kind == KIND && it.version == VERSION)
}

/// Returns the reports of rehearsals that are kept, the oldest first. Blocks.
///
/// # Errors
/// When their folder cannot be read.
pub fn kept(state_dir: &Path) -> io::Result<Vec<Report>> {
    let files = files(state_dir)?;
    Ok(files.iter().filter_map(|path| load(path)).collect())
}

fn prune(state_dir: &Path) -> io::Result<()> {
    let ours: Vec<(PathBuf, Verdict)> = files(state_dir)?
        .into_iter()
        .filter_map(|path| load(&path).map(|report| (path, report.verdict)))
        .collect();
    let newest_proof = ours
        .iter()
        .rposition(|(_, verdict)| *verdict == Verdict::Proven);
    let excess = ours.len().saturating_sub(REPORTS_MAX);
    for (number, (path, _)) in ours.iter().enumerate().take(excess) {
        if Some(number) != newest_proof {
            fs::remove_file(path)?;
        }
    }
    Ok(())
}

/// What the reports prove, whatever the time is.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Proof {
    proven: Option<(WallTime, Option<f64>)>,
    tried: Option<(WallTime, Option<String>, String)>,
}

impl Proof {
    /// Reads what the reports in `state_dir` prove. What cannot be read proves nothing. Blocks.
    pub fn load(state_dir: &Path) -> Self {
        let mut proof = Self::default();
        let files = files(state_dir).unwrap_or_default();
        for report in files.iter().rev().filter_map(|path| load(path)) {
            // One that gave way says nothing.
            let failure = match report.verdict {
                Verdict::Cancelled => continue,
                Verdict::Proven => None,
                Verdict::Failed => Some(report.failure.clone().unwrap_or_default()),
            };
            let is_proof = failure.is_none();
            proof.tried.get_or_insert_with(|| {
                let file = format!("reports/{}", report.file_name());
                (report.finished, failure, file)
            });
            if is_proof {
                proof.proven = Some((report.finished, report.recovery_seconds));
                break;
            }
        }
        proof
    }

    /// Returns what is to be told of it at `now`.
    pub fn status(&self, max_age: Duration, now: WallTime) -> ProofStatus {
        let limit = u64::try_from(max_age.as_millis()).unwrap_or(u64::MAX);
        let is_old = self
            .proven
            .is_none_or(|(at, _)| now.0.saturating_sub(at.0) > limit);
        ProofStatus {
            proven: self.proven.map(|(at, _)| at),
            seconds: self.proven.and_then(|(_, seconds)| seconds),
            is_old,
            tried: self.tried.as_ref().map(|(at, _, _)| *at),
            failure: self
                .tried
                .as_ref()
                .and_then(|(_, failure, _)| failure.clone()),
            report: self.tried.as_ref().map(|(_, _, file)| file.clone()),
        }
    }
}

/// Returns what the reports in `state_dir` prove at `now`. Blocks.
pub fn proof(state_dir: &Path, max_age: Duration, now: WallTime) -> ProofStatus {
    Proof::load(state_dir).status(max_age, now)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(started: u64, verdict: Verdict) -> Report {
        let mut report = Report::begin("c".into(), "b".parse().unwrap(), "0.0.0", "operator");
        report.started = WallTime(started);
        report.finished = WallTime(started + 60_000);
        report.verdict = verdict;
        report.recovery_seconds = (verdict == Verdict::Proven).then_some(4.5);
        report.failure = (verdict == Verdict::Failed).then(|| "a page is damaged".to_owned());
        report
    }

    #[test]
    fn the_newest_success_is_the_proof_and_the_newest_attempt_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let day = 86_400_000;
        let limit = Duration::from_secs(35 * 86_400);
        let at = |days: u64| proof(folder.path(), limit, WallTime(days * day));
        let nothing = ProofStatus {
            proven: None,
            seconds: None,
            is_old: true,
            tried: None,
            failure: None,
            report: None,
        };
        assert_eq!(at(1), nothing);
        for (started, verdict) in [
            (day, Verdict::Failed),
            (2 * day, Verdict::Proven),
            (3 * day, Verdict::Failed),
            (4 * day, Verdict::Cancelled),
        ] {
            report(started, verdict).keep(folder.path()).unwrap();
        }
        // What is none of ours is left alone.
        fs::write(folder.path().join("reports/drill-x.json"), "{}").unwrap();
        fs::write(folder.path().join("reports/promotion-2.b.json"), "{}").unwrap();
        let expected = ProofStatus {
            proven: Some(WallTime(2 * day + 60_000)),
            seconds: Some(4.5),
            is_old: false,
            tried: Some(WallTime(3 * day + 60_000)),
            failure: Some("a page is damaged".to_owned()),
            report: Some("reports/drill-1970-01-04T00-00-00.000Z.json".to_owned()),
        };
        assert_eq!(at(37), expected);
        let is_old = true;
        assert_eq!(at(38), ProofStatus { is_old, ..expected });
        assert_eq!(kept(folder.path()).unwrap().len(), 4);
    }

    #[test]
    fn the_newest_proof_is_kept_however_many_attempts_follow() {
        let folder = tempfile::tempdir().unwrap();
        report(1, Verdict::Proven).keep(folder.path()).unwrap();
        for number in 0..REPORTS_MAX + 10 {
            let started = 1000 * (u64::try_from(number).unwrap() + 1);
            report(started, Verdict::Failed)
                .keep(folder.path())
                .unwrap();
        }
        let left = kept(folder.path()).unwrap();
        assert_eq!(left.len(), REPORTS_MAX + 1);
        assert_eq!(left[0].verdict, Verdict::Proven);
    }
}
