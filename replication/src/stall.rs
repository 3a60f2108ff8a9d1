//! Why a copy does not advance, as a word that alarms can match.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Why a copy does not advance. The sentence beside it says what to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StallReason {
    /// Somebody has paused replay.
    ReplayPaused,
    /// Replay waits for a query on the standby.
    RecoveryConflict,
    /// Nothing arrives from the primary.
    NotStreaming,
    /// The standby's own server does not answer.
    NotAnswering,
    /// The copy has written what the primary has not.
    Parted,
    /// The copy is of something else.
    Foreign,
    /// The primary has removed what the copy needs.
    MustReseed,
    /// What has no word of its own; also a word of a newer node that this one does not know.
    #[serde(other)]
    Other,
}

impl StallReason {
    /// Returns the word that JSON, messages and metrics use.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ReplayPaused => "replay_paused",
            Self::RecoveryConflict => "recovery_conflict",
            Self::NotStreaming => "not_streaming",
            Self::NotAnswering => "not_answering",
            Self::Parted => "parted",
            Self::Foreign => "foreign",
            Self::MustReseed => "must_reseed",
            Self::Other => "other",
        }
    }

    /// Returns whether it follows from a comparison of the copy's history with the original's.
    pub fn is_of_history(self) -> bool {
        match self {
            Self::Parted | Self::Foreign => true,
            Self::ReplayPaused
            | Self::RecoveryConflict
            | Self::NotStreaming
            | Self::NotAnswering
            | Self::MustReseed
            | Self::Other => false,
        }
    }

    /// Returns whether the copy can never go on from what it has: nothing but a new one ends that.
    pub fn is_final(self) -> bool {
        match self {
            Self::Parted | Self::Foreign | Self::MustReseed => true,
            Self::ReplayPaused
            | Self::RecoveryConflict
            | Self::NotStreaming
            | Self::NotAnswering
            | Self::Other => false,
        }
    }
}

impl fmt::Display for StallReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Received;

    #[test]
    fn the_word_is_the_same_in_json_and_in_metrics() {
        for reason in [
            StallReason::ReplayPaused,
            StallReason::RecoveryConflict,
            StallReason::NotStreaming,
            StallReason::NotAnswering,
            StallReason::Parted,
            StallReason::Foreign,
            StallReason::MustReseed,
            StallReason::Other,
        ] {
            let json = serde_json::to_value(reason).unwrap();
            assert_eq!(json, reason.as_str());
            assert_eq!(serde_json::from_value::<StallReason>(json).unwrap(), reason);
        }
    }

    #[test]
    fn a_report_of_an_older_or_a_newer_node_is_understood() {
        let report = |more: &str| {
            let json = format!(
                r#"{{"flushed":5,"applied":4,"stalled":"it waits","must_reseed":false,
                     "report":{{"problems":[],"gauges":{{}}}}{more}}}"#
            );
            serde_json::from_str::<Received>(&json)
                .unwrap()
                .stall_reason
        };
        assert_eq!(report(""), None);
        assert_eq!(
            report(r#","stall_reason":"recovery_conflict""#),
            Some(StallReason::RecoveryConflict)
        );
        assert_eq!(
            report(r#","stall_reason":"a word of tomorrow""#),
            Some(StallReason::Other)
        );
    }
}
