//! The reports of drills that are kept on a node, of every kind.

use std::path::Path;

use serde::Serialize;
use understudy_replication::reports::{self, Found, Kind, stamp};
use understudy_replication::wall_time::WallTime;
use understudy_standby::rehearsal::{self, Report, Verdict};

use super::fault_report::FaultReport;
use super::there_and_back::{self, ThereAndBack};
use crate::failure::Failure;

/// A report of a drill.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub(super) enum Kept {
    Rehearsal(Box<Report>),
    Switchover(Box<ThereAndBack>),
    Fault(Box<FaultReport>),
}

/// Returns the reports that are kept, the oldest first. What cannot be read is none.
pub(super) fn all(state_dir: &Path) -> Result<Vec<Kept>, Failure> {
    let unreadable = |error: std::io::Error| {
        Failure::failed(format!(
            "cannot read the reports in {}: {error}",
            reports::folder(state_dir).display()
        ))
        .hint("run it as the user that the daemon runs as")
    };
    let found = |kind| reports::found(state_dir, kind).map_err(unreadable);
    let rehearsals = rehearsal::kept(state_dir).map_err(unreadable)?;
    let mut all: Vec<Kept> = rehearsals
        .into_iter()
        .map(|report| Kept::Rehearsal(Box::new(report)))
        .collect();
    let load = |it: &Found| Some(Kept::Switchover(reports::load(&it.path)?));
    all.extend(found(Kind::Switchover)?.iter().filter_map(load));
    let load = |it: &Found| Some(Kept::Fault(reports::load(&it.path)?));
    all.extend(found(Kind::Fault)?.iter().filter_map(load));
    all.sort_by_key(Kept::started);
    Ok(all)
}

/// Finds a report by its name, or the newest.
pub(super) fn find(state_dir: &Path, name: &str) -> Result<Kept, Failure> {
    let mut all = all(state_dir)?;
    let found = match name {
        "last" => all.pop(),
        name => all.into_iter().find(|it| it.is_called(name)),
    };
    found.ok_or_else(|| match name {
        "last" => Failure::usage("no report of a drill is kept on this node"),
        name => Failure::usage(format!("there is no report `{name}`"))
            .hint("see `understudy drill list`"),
    })
}

impl Kept {
    fn started(&self) -> WallTime {
        match self {
            Self::Rehearsal(report) => report.started,
            Self::Switchover(report) => report.started,
            Self::Fault(report) => report.injected,
        }
    }

    fn kind(&self) -> Kind {
        match self {
            Self::Rehearsal(_) => Kind::Rehearsal,
            Self::Switchover(_) => Kind::Switchover,
            Self::Fault(_) => Kind::Fault,
        }
    }

    /// Returns whether it is meant by `name`: its time, as it is listed, or its file.
    fn is_called(&self, name: &str) -> bool {
        let stem = |name: &str| name.strip_suffix(".json").unwrap_or(name).to_owned();
        let time = self.started();
        stem(name) == stem(&self.kind().file_at(time)) || name == stamp(time)
    }

    /// Returns it for the list: when it was, what, and how it ended.
    pub(super) fn line(&self) -> String {
        let (kind, outcome, more) = match self {
            Self::Rehearsal(report) => {
                let more = match (report.verdict, report.recovery_seconds) {
                    (Verdict::Proven, Some(seconds)) => format!("recovery in {seconds:.1} s"),
                    (Verdict::Proven, None) => String::new(),
                    (Verdict::Failed | Verdict::Cancelled, _) => {
                        report.failure.clone().unwrap_or_default()
                    }
                };
                ("rehearsal", report.verdict.as_str(), more)
            }
            Self::Switchover(report) => {
                let (outcome, more) = there_and_back::outcome(report);
                ("switchover", outcome, more)
            }
            Self::Fault(report) => {
                let (outcome, more) = report.outcome();
                ("fault", outcome, more)
            }
        };
        format!("{}  {kind:10}  {outcome:9}  {more}", stamp(self.started()))
            .trim_end()
            .to_owned()
    }

    /// Returns it for people.
    pub(super) fn text(&self) -> String {
        match self {
            Self::Rehearsal(report) => super::text(report),
            Self::Switchover(report) => there_and_back::text(report),
            Self::Fault(report) => report.text(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use serde_json::json;

    use super::*;

    /// Keeps a fault's report as an earlier version did, under a name as it gave them.
    fn keep_old_fault(state: &Path, injected: u64) {
        let report = json!({
            "version": 1, "node": "a", "fault": "cut_all", "injected": injected,
            "detected_seconds": 6.2, "detected": null, "address_moved_seconds": null,
            "role_changed_seconds": null, "first_write_seconds": null, "gap_seconds": null,
            "mended_seconds": 10.0, "events": [],
        });
        let name = format!("fault-drill-{injected}.json");
        reports::keep(state, &name, &report, 0o640).unwrap();
    }

    #[test]
    fn drills_of_every_kind_are_listed_by_their_time_and_found_by_it() {
        let state = tempfile::tempdir().unwrap();
        let state = state.path();
        assert!(all(state).unwrap().is_empty());
        let begin = |millis, verdict| {
            let mut report = Report::begin("c".into(), "b".parse().unwrap(), "1.0", "operator");
            report.started = WallTime(millis);
            report.verdict = verdict;
            report.failure = Some("postgres: index article_pkey lacks a row".to_owned());
            report.recovery_seconds = Some(1.55);
            report
        };
        let newest = begin(1_700_000_100_000, Verdict::Proven);
        newest.keep(state).unwrap();
        keep_old_fault(state, 1_700_000_050_000);
        begin(1_700_000_000_000, Verdict::Failed)
            .keep(state)
            .unwrap();
        fs::write(reports::folder(state).join("fault-drill-7.json"), "{}").unwrap();
        let lines: Vec<String> = all(state).unwrap().iter().map(Kept::line).collect();
        assert_eq!(
            lines,
            [
                "2023-11-14T22-13-20.000Z  rehearsal   failed     postgres: index article_pkey lacks a row",
                "2023-11-14T22-14-10.000Z  fault       detected   cut-all: told after 6.2 s",
                "2023-11-14T22-15-00.000Z  rehearsal   proven     recovery in 1.6 s",
            ]
        );
        for name in [
            "2023-11-14T22-14-10.000Z",
            "fault-drill-2023-11-14T22-14-10.000Z",
            "fault-drill-2023-11-14T22-14-10.000Z.json",
        ] {
            assert!(
                matches!(find(state, name).unwrap(), Kept::Fault(_)),
                "{name}"
            );
        }
        let Kept::Rehearsal(last) = find(state, "last").unwrap() else {
            panic!("the newest is a rehearsal");
        };
        assert_eq!(*last, newest);
        let unknown = find(state, "2023-11-14").unwrap_err().to_string();
        assert!(unknown.contains("understudy drill list"), "{unknown}");
    }
}
