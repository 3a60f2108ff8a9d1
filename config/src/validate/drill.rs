//! `[drill]`: how it is proved that a standby could take over.

use super::sections::schedule;
use crate::problem::Findings;
use crate::{Drill, duration, raw, size};

/// Validates `[drill]`.
pub(super) fn drill(raw: &raw::Drill, findings: &mut Findings) -> Option<Drill> {
    let due = raw.schedule.as_ref();
    let due = due.map(|it| findings.check(it, schedule));
    let max_age = raw.max_age.as_ref();
    let max_age = max_age.and_then(|it| findings.check(it, duration::parse_age));
    let timeout = raw.timeout.as_ref();
    let timeout = timeout.and_then(|it| findings.check(it, duration::parse));
    let bandwidth = raw.bandwidth.as_ref();
    let bandwidth = bandwidth.and_then(|it| findings.check(it, size::parse_limit));
    Some(Drill {
        schedule: super::whole(due)?,
        max_age: max_age?,
        timeout: timeout?,
        faults: raw.faults.as_ref()?.value,
        bandwidth: bandwidth?,
    })
}
