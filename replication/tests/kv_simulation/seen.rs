//! What happened in the schedules: a promise that was never put to the test proves nothing.

use std::fmt;

/// Something worth counting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Happening {
    Crash,
    RestartInTheEpoch,
    SurePromotion,
    UnsurePromotion,
    Adoption,
    StepDown,
    EntryCut,
    AppliedCut,
    EntryHad,
    SnapshotInstalled,
    CommitByStandbys,
    CommitAlone,
    Degraded,
    Recovered,
    Refused,
    StaleAcknowledgement,
}

const HAPPENINGS: [(Happening, &str); 16] = [
    (Happening::Crash, "crashes"),
    (
        Happening::RestartInTheEpoch,
        "restarts of a primary in its epoch",
    ),
    (
        Happening::SurePromotion,
        "promotions sure to have everything",
    ),
    (Happening::UnsurePromotion, "promotions forced without"),
    (Happening::Adoption, "logs adopted before a promotion"),
    (Happening::StepDown, "primaries that stepped down"),
    (Happening::EntryCut, "cuts"),
    (Happening::AppliedCut, "cuts below what was applied"),
    (Happening::EntryHad, "entries offered that were there"),
    (Happening::SnapshotInstalled, "snapshots installed"),
    (Happening::CommitByStandbys, "commits by standbys"),
    (Happening::CommitAlone, "commits alone"),
    (Happening::Degraded, "degradations"),
    (Happening::Recovered, "recoveries"),
    (Happening::Refused, "refusals of writes"),
    (
        Happening::StaleAcknowledgement,
        "acknowledgements of a session that was over",
    ),
];

/// How often each happened.
#[derive(Clone, Default)]
pub(crate) struct Seen([u64; HAPPENINGS.len()]);

impl Seen {
    pub(crate) fn count(&mut self, happening: Happening) {
        let place = HAPPENINGS.iter().position(|(it, _)| *it == happening);
        if let Some(count) = place.and_then(|it| self.0.get_mut(it)) {
            *count += 1;
        }
    }

    pub(crate) fn add(&mut self, other: &Self) {
        for (sum, more) in self.0.iter_mut().zip(other.0) {
            *sum += more;
        }
    }

    /// The first thing that never happened.
    pub(crate) fn missing(&self) -> Option<&'static str> {
        let mut all = self.0.iter().zip(HAPPENINGS);
        all.find(|(count, _)| **count == 0)
            .map(|(_, (_, name))| name)
    }
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (count, (_, name)) in self.0.iter().zip(HAPPENINGS) {
            writeln!(f, "{count:>12} {name}")?;
        }
        Ok(())
    }
}
