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
    /// The primary's was put in the place of what was there.
    Replaced,
    /// It was the same as the primary's.
    Equal,
}

/// By which way a copy becomes equal to the primary's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Way {
    /// See [`Method::Followed`].
    Followed,
    /// See [`Method::Rewound`].
    Rewound,
    /// See [`Method::Compared`].
    Compared,
    /// See [`Method::Seeded`].
    Seeded,
    /// See [`Method::Replaced`].
    Replaced,
    /// See [`Method::Equal`].
    Equal,
}

impl Way {
    /// Returns the word that people are told.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Followed => "followed",
            Self::Rewound => "rewound",
            Self::Compared => "compared",
            Self::Seeded => "seeded",
            Self::Replaced => "replaced",
            Self::Equal => "equal",
        }
    }
}

/// What a rejoin of one store will do, told before anything of it is done. An estimate: what is written
/// meanwhile is not in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Foreseen {
    /// How it will become equal.
    #[serde(rename = "method")]
    pub way: Way,
    /// How much will be kept aside, in bytes; `None` where that cannot be told.
    pub salvaged_bytes: Option<u64>,
    /// How much will travel, in bytes; `None` where that cannot be told.
    pub travelling_bytes: Option<u64>,
    /// How much of this node's copy has to be read for it, in bytes.
    pub read_bytes: u64,
    /// What the figures were made from, in a sentence.
    pub basis: String,
}

impl Foreseen {
    /// Returns that of a copy which has nothing that the primary lacks.
    pub fn follows(travelling_bytes: u64, basis: impl Into<String>) -> Self {
        Self {
            way: Way::Followed,
            salvaged_bytes: Some(0),
            travelling_bytes: Some(travelling_bytes),
            read_bytes: 0,
            basis: basis.into(),
        }
    }
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
    /// How much travelled in all, in bytes, where the store has counted it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub travelled: Option<u64>,
}

impl Rejoined {
    /// Returns one of which nothing had to be kept aside.
    pub fn by(method: Method) -> Self {
        Self {
            method,
            salvaged: None,
            travelled: None,
        }
    }

    /// Returns how it became equal, in a word.
    pub fn way(&self) -> Way {
        match &self.method {
            Method::Followed => Way::Followed,
            Method::Rewound { .. } => Way::Rewound,
            Method::Compared { .. } => Way::Compared,
            Method::Seeded => Way::Seeded,
            Method::Replaced => Way::Replaced,
            Method::Equal => Way::Equal,
        }
    }
}
