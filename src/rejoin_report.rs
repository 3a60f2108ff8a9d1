//! The report of a rejoin: what was foreseen, and what was done.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use understudy_replication::reports;
use understudy_replication::wall_time::WallTime;

use crate::failure::Failure;
use crate::foresight::Prediction;
use crate::node::Node;
use crate::returning::Report;

/// The version of the reports.
const VERSION: u32 = 1;

/// So many reports of the past are looked through for how fast it went.
const REPORTS_READ_MAX: usize = 20;

/// So much has to have travelled in a rejoin for its rate to tell anything, in bytes.
const TELLING_BYTES_MIN: u64 = 8 << 20;

/// The evidence of a rejoin: `STATE/reports/rejoin-TIME.json`.
#[derive(Debug, Serialize, Deserialize)]
struct Kept {
    version: u32,
    started: WallTime,
    finished: WallTime,
    /// What was foreseen, of one that failed; else it is in the report.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    foreseen: Option<Prediction>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    report: Option<Report>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    failure: Option<Failure>,
}

/// Keeps the report of a rejoin, and returns it with its place. That it cannot be kept stops nothing: the node
/// is a standby by now.
pub(crate) fn keep(node: &Node, started: WallTime, mut report: Report) -> Report {
    let name = reports::Kind::Rejoin.file_at(started);
    report.report = Some(reports::folder(&node.local.state_dir).join(&name));
    let kept = Kept {
        version: VERSION,
        started,
        finished: WallTime::now(),
        foreseen: None,
        report: Some(report.clone()),
        failure: None,
    };
    if !store(node, &name, &kept) {
        report.report = None;
    }
    report
}

/// Keeps why a rejoin failed, where an operator had asked for it: one that is tried again by itself would fill
/// the folder.
pub(crate) fn keep_failed(
    node: &Node,
    started: WallTime,
    foreseen: Option<Prediction>,
    failure: &Failure,
) {
    if foreseen.is_none() {
        return;
    }
    let kept = Kept {
        version: VERSION,
        started,
        finished: WallTime::now(),
        foreseen,
        report: None,
        failure: Some(failure.clone()),
    };
    let _told = store(node, &reports::Kind::Rejoin.file_at(started), &kept);
}

fn store(node: &Node, name: &str, kept: &Kept) -> bool {
    let stored = reports::keep(&node.local.state_dir, name, kept, 0o644);
    if let Err(error) = &stored {
        tracing::warn!(%error, file = name, "the report of a rejoin cannot be kept");
    }
    stored.is_ok()
}

/// Returns how fast the newest rejoin went in which enough travelled, in bytes per second.
pub(crate) fn last_rate(node: &Node) -> Option<u64> {
    let found = reports::found(&node.local.state_dir, reports::Kind::Rejoin).ok()?;
    let newest = found.iter().rev().take(REPORTS_READ_MAX);
    let rates = newest.filter_map(|found| {
        let kept: Kept = reports::load(&found.path)?;
        let report = kept.report?;
        let stores = report.stores.iter();
        let bytes: u64 = stores.filter_map(|store| store.rejoined.travelled).sum();
        let millis = Duration::try_from_secs_f64(report.seconds)
            .ok()?
            .as_millis();
        let rate = u128::from(bytes) * 1000 / millis.max(1);
        (bytes >= TELLING_BYTES_MIN).then_some(u64::try_from(rate).ok()?)
    });
    rates.into_iter().find(|rate| *rate > 0)
}
