//! Rules broken on purpose, each in the simulation's rim: the machines know nothing of it.

/// A rule that is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// A standby acknowledges what it has appended, not what is durable.
    AcknowledgesBeforeDurable,
    /// The primary takes what it has synced for acknowledged.
    CommitsWithoutAcknowledgement,
    /// The primary takes acknowledgements of any session for those of the present one.
    IgnoresSessions,
    /// A standby cuts without keeping what it cuts.
    CutsWithoutSalvage,
    /// A standby takes an entry that ends in the right place for the leader's.
    ComparesNoDigests,
    /// A primary takes the end of its log for committed when it starts again.
    ServesAnUnknownTail,
    /// A promotion drops what it does not know to be committed.
    TakesOverWithoutTheTail,
    /// A standby answers a promotion, and goes on to acknowledge to the old primary.
    AnswersWithoutPromise,
    /// A promotion does not ask whether enough have answered.
    IsAlwaysSure,
    /// A promotion takes the longest log of the newest epoch for the best.
    IgnoresRuns,
    /// A primary starts again without an opening.
    OpensWithoutEntry,
    /// Acknowledgements below the opening commit.
    CommitsBelowTheOpening,
    /// The opening is sent before it is durable.
    SendsTheOpeningEarly,
    /// A table is not rebuilt when something it holds is cut.
    KeepsTheTable,
    /// A standby applies what it is offered before it is committed.
    AppliesEarly,
    /// A primary that does not know yet what is committed sends its table.
    SendsAnySnapshot,
}

impl Fault {
    pub(crate) const ALL: [Self; 16] = [
        Self::AcknowledgesBeforeDurable,
        Self::CommitsWithoutAcknowledgement,
        Self::IgnoresSessions,
        Self::CutsWithoutSalvage,
        Self::ComparesNoDigests,
        Self::ServesAnUnknownTail,
        Self::TakesOverWithoutTheTail,
        Self::AnswersWithoutPromise,
        Self::IsAlwaysSure,
        Self::IgnoresRuns,
        Self::OpensWithoutEntry,
        Self::CommitsBelowTheOpening,
        Self::SendsTheOpeningEarly,
        Self::KeepsTheTable,
        Self::AppliesEarly,
        Self::SendsAnySnapshot,
    ];

    /// The first seed to look at: some need a rare coincidence (one schedule in ten thousand or a million), and are
    /// looked for from shortly before one that is known to have it.
    pub(crate) fn first_seed(self) -> u64 {
        match self {
            Self::IgnoresRuns => 32_000,
            Self::CommitsBelowTheOpening => 58_000,
            Self::SendsAnySnapshot => 2_245_000,
            Self::AcknowledgesBeforeDurable
            | Self::CommitsWithoutAcknowledgement
            | Self::IgnoresSessions
            | Self::CutsWithoutSalvage
            | Self::ComparesNoDigests
            | Self::ServesAnUnknownTail
            | Self::TakesOverWithoutTheTail
            | Self::AnswersWithoutPromise
            | Self::IsAlwaysSure
            | Self::OpensWithoutEntry
            | Self::SendsTheOpeningEarly
            | Self::KeepsTheTable
            | Self::AppliesEarly => 0,
        }
    }
}
