//! What an index keeps of its own state, in the same commit as its documents.

use serde::{Deserialize, Serialize};
use understudy_config::Rows;
use understudy_replication::wall_time::WallTime;

use super::marks::Marks;
use super::standing::Stamp;

/// The version of [`Payload`], and of how a row becomes a document.
const VERSION: u32 = 1;

/// The state of an index.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Payload {
    version: u32,
    /// The hash of what the documents are made from.
    source: String,
    pub(super) stage: Stage,
    pub(super) marks: Marks,
    /// How much of the database's history the documents have seen; more than that they have not.
    pub(super) stamp: Option<Stamp>,
    /// When the keys were last compared.
    pub(super) swept: Option<WallTime>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Stage {
    /// It is being built.
    Building {
        /// The key of the last row that is in it.
        position: Option<String>,
        /// How many rows have been read.
        read: u64,
        /// How many there were at the beginning.
        total: u64,
        /// How many snapshots of the database the rows are from.
        snapshots: u32,
    },
    /// It holds every row.
    Ready,
}

impl Payload {
    /// Returns the state of an index without documents.
    pub(super) fn new(rows: &Rows, total: u64) -> Self {
        Self {
            version: VERSION,
            source: fingerprint(rows),
            stage: Stage::Building {
                position: None,
                read: 0,
                total,
                snapshots: 0,
            },
            marks: Marks::default(),
            stamp: None,
            swept: None,
        }
    }

    /// Reads what an engine has kept; `None` if it is of another version or of other rows.
    pub(super) fn parse(text: &str, rows: &Rows) -> Option<Self> {
        let payload: Self = serde_json::from_str(text).ok()?;
        (payload.version == VERSION && payload.source == fingerprint(rows)).then_some(payload)
    }

    pub(super) fn text(&self) -> String {
        // Strings and numbers only: it cannot fail, and what cannot be read is built again.
        serde_json::to_string(self).unwrap_or_default()
    }

    pub(super) fn is_ready(&self) -> bool {
        matches!(self.stage, Stage::Ready)
    }
}

/// Returns the hash of what decides which documents there are, and what they hold.
fn fingerprint(rows: &Rows) -> String {
    let warm = rows.warm.as_ref();
    let parts = [
        Some(rows.query.as_str()),
        rows.database.as_deref(),
        warm.map(|warm| warm.watermark.as_str()),
        warm.and_then(|warm| warm.deleted.as_deref()),
    ];
    let mut hasher = blake3::Hasher::new();
    for part in parts {
        hasher.update(&[u8::from(part.is_some())]);
        let part = part.unwrap_or_default();
        hasher.update(&u64::try_from(part.len()).unwrap_or(u64::MAX).to_le_bytes());
        hasher.update(part.as_bytes());
    }
    format!("blake3:{}", hasher.finalize().to_hex())
}
