//! What checking a store finds, and what is wrong with single entries of it.
//!
//! ```text
//! verify: what the file system tells, against the manifest ─┐
//! scrub:  every byte, against its digest ───────────────────┴─▶ Checked, on each side
//! ```
//! Both sides' [`Checked`] beside each other tell whether the copy equals the original.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::position::Position;
use crate::wall_time::WallTime;

/// How many differences a check tells one by one; it counts the others.
pub const DIFFERENCES_MAX: usize = 1000;

/// How long the texts of the differences that are told may be together: an answer fits a frame even if
/// every character of it has to be escaped.
pub const DIFFERENCES_BYTES_MAX: usize = 512 << 10;

/// How many troubles a store tells one by one.
pub const TROUBLES_MAX: usize = 1000;

/// How deep a check goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Depth {
    /// What the file system tells of each entry is compared with the manifest.
    Verify,
    /// Every byte is read again.
    Scrub {
        /// At most so many in a second.
        bytes_per_second: u64,
    },
}

impl Depth {
    /// Returns the word that messages use.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Verify => "verify",
            Self::Scrub { .. } => "scrub",
        }
    }
}

/// What is wrong with an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DifferenceKind {
    /// It should be there, and is not.
    Missing,
    /// It is there, and should not be.
    Extra,
    /// It is another than it should be, and somebody has changed it.
    Changed,
    /// Its content is another than it should be, although nobody has changed it.
    Rotten,
}

impl fmt::Display for DifferenceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Missing => "missing",
            Self::Extra => "extra",
            Self::Changed => "changed",
            Self::Rotten => "rotten",
        })
    }
}

/// One thing that a check has found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Difference {
    /// Which entry: its path within the store.
    pub what: String,
    /// What is wrong with it.
    pub kind: DifferenceKind,
    /// The check has put it right.
    pub is_repaired: bool,
    /// What is known beyond that, in a sentence; may be empty.
    pub detail: String,
}

/// What a check of one side ends with.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checked {
    /// How many entries were looked at.
    pub entries: u64,
    /// How many bytes they have, or (in a scrub) were read.
    pub bytes: u64,
    /// The Merkle root of the manifest at `position`, with the name of its algorithm.
    pub root: Option<String>,
    /// Where the store was when `root` was taken.
    pub position: Option<Position>,
    /// What was found: the first [`DIFFERENCES_MAX`].
    pub differences: Vec<Difference>,
    /// How many differences there are in all.
    pub differences_total: u64,
    /// How many of them were repaired.
    pub repaired_total: u64,
}

impl Checked {
    /// Counts a difference, and keeps it if there is room.
    pub fn add(&mut self, difference: Difference) {
        self.differences_total = self.differences_total.saturating_add(1);
        if difference.is_repaired {
            self.repaired_total = self.repaired_total.saturating_add(1);
        }
        if self.differences.len() < DIFFERENCES_MAX {
            self.differences.push(difference);
        }
    }

    /// Returns how many differences are left.
    pub fn unrepaired(&self) -> u64 {
        self.differences_total.saturating_sub(self.repaired_total)
    }

    /// Drops the differences that would make the answer longer than it may be. They stay counted.
    pub fn bound(&mut self) {
        self.differences.truncate(DIFFERENCES_MAX);
        let mut bytes = 0_usize;
        let fitting = self.differences.iter().take_while(|difference| {
            let length = difference
                .what
                .len()
                .saturating_add(difference.detail.len());
            bytes = bytes.saturating_add(length);
            bytes <= DIFFERENCES_BYTES_MAX
        });
        let fitting = fitting.count();
        self.differences.truncate(fitting);
    }
}

/// An entry that could not be brought up to date, and stays so until it is repaired.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trouble {
    /// Which entry: its path within the store.
    pub path: String,
    /// Why not, in a sentence.
    pub reason: String,
    /// Since when.
    pub since: WallTime,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn difference(what: String, is_repaired: bool) -> Difference {
        Difference {
            what,
            kind: DifferenceKind::Changed,
            is_repaired,
            detail: String::new(),
        }
    }

    #[test]
    fn what_does_not_fit_is_counted() {
        let mut checked = Checked::default();
        for number in 0..1500 {
            checked.add(difference(number.to_string(), number % 3 == 0));
        }
        assert_eq!(
            (
                checked.differences.len(),
                checked.differences_total,
                checked.repaired_total,
                checked.unrepaired()
            ),
            (1000, 1500, 500, 1000)
        );
    }

    #[test]
    fn an_answer_of_the_worst_paths_fits_a_frame() {
        let mut checked = Checked::default();
        for _ in 0..DIFFERENCES_MAX {
            checked.add(difference("\u{1}".repeat(4000), false));
        }
        checked.bound();
        let frame = serde_json::to_vec(&checked).unwrap();
        assert!(
            frame.len() < crate::transport::FRAME_BYTES_MAX,
            "{}",
            frame.len()
        );
        assert_eq!(
            (checked.differences.len(), checked.differences_total),
            (131, 1000)
        );
    }

    #[test]
    fn the_words_on_the_wire_stay() {
        let scrub = Depth::Scrub {
            bytes_per_second: 5,
        };
        assert_eq!(
            serde_json::to_string(&(Depth::Verify, scrub)).unwrap(),
            r#"["verify",{"scrub":{"bytes_per_second":5}}]"#
        );
        let mut checked = Checked {
            root: Some("blake3:00".to_owned()),
            position: Some(Position(7)),
            ..Checked::default()
        };
        checked.add(difference("a".to_owned(), true));
        assert_eq!(
            serde_json::to_string(&checked).unwrap(),
            r#"{"entries":0,"bytes":0,"root":"blake3:00","position":7,"differences":[{"what":"a","kind":"changed","is_repaired":true,"detail":""}],"differences_total":1,"repaired_total":1}"#
        );
    }
}
