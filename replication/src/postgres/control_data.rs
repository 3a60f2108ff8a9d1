//! What `pg_controldata` tells of a cluster, running or not.

use std::collections::BTreeMap;

use crate::position::{Lsn, Position};

/// The facts of a data directory that decide what may be done with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControlData {
    /// Tells clusters apart; made by `initdb`, kept by copies.
    pub system_identifier: u64,
    /// Such as `in production` or `in archive recovery`.
    pub state: String,
    /// The timeline of the latest checkpoint.
    pub timeline: u32,
    /// Where the latest checkpoint's record begins; of a cluster that was shut down in peace it is the
    /// last record.
    pub checkpoint: Lsn,
    /// The pages have checksums.
    pub has_checksums: bool,
    /// How large a file of the log is.
    pub segment_bytes: u64,
}

impl ControlData {
    /// Returns a position within the last record of a cluster that was shut down in peace: a standby
    /// that has flushed up to it has everything. `None` if it runs, or was stopped at once.
    pub fn end(&self) -> Option<Position> {
        (self.state == "shut down").then(|| Position(self.checkpoint.0.saturating_add(1)))
    }
}

/// The output of `pg_controldata` lacks a fact.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("pg_controldata does not tell the {field}")]
pub struct ParseControlDataError {
    field: &'static str,
}

impl ControlData {
    /// Parses the output of `pg_controldata`, run in the C locale.
    ///
    /// # Errors
    /// When a fact is missing or is no number.
    pub fn parse(output: &str) -> Result<Self, ParseControlDataError> {
        let fields: BTreeMap<&str, &str> = output
            .lines()
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name.trim(), value.trim()))
            .collect();
        let get = |field| {
            fields
                .get(field)
                .copied()
                .ok_or(ParseControlDataError { field })
        };
        let number = |field| {
            let text = get(field)?;
            text.parse::<u64>()
                .map_err(|_| ParseControlDataError { field })
        };
        let timeline = "Latest checkpoint's TimeLineID";
        let checkpoint = "Latest checkpoint location";
        Ok(Self {
            system_identifier: number("Database system identifier")?,
            state: get("Database cluster state")?.to_owned(),
            timeline: u32::try_from(number(timeline)?)
                .map_err(|_| ParseControlDataError { field: timeline })?,
            checkpoint: get(checkpoint)?
                .parse()
                .map_err(|_| ParseControlDataError { field: checkpoint })?,
            has_checksums: number("Data page checksum version")? != 0,
            segment_bytes: number("Bytes per WAL segment")?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_facts_are_found_among_the_others() {
        let output = "pg_control version number:            1300\n\
            Database system identifier:           7435678901234567890\n\
            Database cluster state:               in archive recovery\n\
            Latest checkpoint location:           0/300028\n\
            Latest checkpoint's TimeLineID:       3\n\
            Data page checksum version:           1\n\
            Bytes per WAL segment:                16777216\n\
            Fake LSN counter for unlogged rels:   0/3E8\n";
        assert_eq!(
            ControlData::parse(output).unwrap(),
            ControlData {
                system_identifier: 7_435_678_901_234_567_890,
                state: "in archive recovery".to_owned(),
                timeline: 3,
                checkpoint: Lsn(0x30_0028),
                has_checksums: true,
                segment_bytes: 16 << 20,
            }
        );
    }

    #[test]
    fn a_missing_fact_is_named() {
        assert_eq!(
            ControlData::parse("").unwrap_err().to_string(),
            "pg_controldata does not tell the Database system identifier"
        );
    }
}
