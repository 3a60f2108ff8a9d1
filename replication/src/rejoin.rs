//! What is told of a node that became a standby again.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// What to do with what only the rejoining side has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Salvaging {
    /// Keep all of it aside first, or change nothing.
    #[default]
    Required,
    /// Keep what can be kept; the operator gives up the rest.
    AsFarAsPossible,
}

/// How a copy became equal to the primary's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "method")]
pub enum Method {
    /// Nothing of it had to change: it was a beginning of what the primary has.
    Followed,
    /// What had diverged was taken back (`pg_rewind`).
    Rewound {
        /// How much travelled, in bytes, as far as `pg_rewind` has told.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        copied: Option<u64>,
        /// Of how much, in bytes.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        total: Option<u64>,
    },
    /// It was compared with the primary's, and what differed was copied.
    Compared {
        /// How much was compared, in bytes.
        compared: u64,
        /// How much travelled, in bytes.
        copied: u64,
    },
    /// It was seeded, from whatever was there.
    Seeded,
}

/// What was kept aside of a store before it changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Salvaged {
    /// The folder.
    pub path: PathBuf,
    /// How much is in it, in bytes.
    pub bytes: u64,
    /// What it is, in a sentence.
    pub summary: String,
    /// It is all that only this side had.
    pub is_complete: bool,
}

/// How one store rejoined.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rejoined {
    /// How it became equal.
    #[serde(flatten)]
    pub method: Method,
    /// What was kept aside; `None` when there was nothing that the primary lacks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub salvaged: Option<Salvaged>,
}

impl Rejoined {
    /// Returns one of which nothing had to be kept aside.
    pub fn by(method: Method) -> Self {
        Self {
            method,
            salvaged: None,
        }
    }
}
