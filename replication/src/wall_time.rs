//! Time as a wall clock tells it, for people and reports; never for decisions.

use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// Milliseconds since 1970 by some node's wall clock.
///
/// Nodes' clocks may be an hour apart, so no decision compares the wall times of two nodes: lag is
/// measured by the monotonic clock of the node that tells it.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct WallTime(pub u64);

impl WallTime {
    /// Returns what this machine's clock shows; 0 for a clock before 1970.
    pub fn now() -> Self {
        SystemTime::now().into()
    }
}

impl From<SystemTime> for WallTime {
    fn from(time: SystemTime) -> Self {
        let millis = time
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default()
            .as_millis();
        Self(u64::try_from(millis).unwrap_or(u64::MAX))
    }
}

impl fmt::Display for WallTime {
    /// Writes RFC 3339 in UTC with milliseconds.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time = i64::try_from(self.0)
            .ok()
            .and_then(chrono::DateTime::<chrono::Utc>::from_timestamp_millis);
        match time {
            Some(time) => f.write_str(&time.to_rfc3339_opts(chrono::SecondsFormat::Millis, true)),
            None => write!(f, "{} ms after 1970", self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wall_time_prints_as_rfc_3339() {
        assert_eq!(
            WallTime(1_700_000_000_123).to_string(),
            "2023-11-14T22:13:20.123Z"
        );
        assert_eq!(
            WallTime(u64::MAX).to_string(),
            "18446744073709551615 ms after 1970"
        );
    }
}
