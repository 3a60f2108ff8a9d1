//! What the receiver tells: how far it is, and what keeps it.

use understudy_replication::position::Position;
use understudy_replication::settings::Digest;
use understudy_replication::store::{Received, StoreReport};

/// What the receiver tells of itself.
#[derive(Debug, Default)]
pub(super) struct Told {
    /// The revision that is applied, once its number means something: see `Origin`.
    pub(super) position: Option<Position>,
    /// Why the newest revision of the primary is not applied.
    pub(super) refused: Option<String>,
    /// The revision that the last refusal was an event for.
    pub(super) refused_digest: Option<Digest>,
    /// Why an accepted revision is not applied.
    pub(super) trouble: Option<String>,
    /// Why the appliance has not reloaded what is applied.
    pub(super) reload: Option<String>,
    pub(super) bytes: u64,
    pub(super) entries: u64,
}

impl Told {
    pub(super) fn received(&self) -> Received {
        let problems = [&self.refused, &self.trouble, &self.reload];
        let gauges = [
            ("settings_bytes", self.bytes),
            ("settings_entries", self.entries),
        ];
        Received {
            flushed: self.position,
            applied: self.position,
            stalled: self.refused.clone().or_else(|| self.trouble.clone()),
            stall_reason: None,
            must_reseed: false,
            report: StoreReport {
                problems: problems.into_iter().flatten().cloned().collect(),
                gauges: gauges.map(|(name, value)| (name.to_owned(), value)).into(),
                ..StoreReport::default()
            },
        }
    }
}
