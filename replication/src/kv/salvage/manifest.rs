//! What a bundle says of itself.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use understudy_config::{NodeName, StoreName};

use crate::epoch::Epoch;
use crate::kv::point::Point;
use crate::position::Position;
use crate::wall_time::WallTime;

/// The version of the manifest and of the form of a bundle.
pub const SALVAGE_VERSION: u32 = 1;

/// What is about to be cut off a log, as whoever cuts it knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Superseded {
    /// The store.
    pub store: StoreName,
    /// The node whose log is cut.
    pub node: NodeName,
    /// The last point that stays.
    pub cut_to: Point,
    /// The point at the end of the log.
    pub end: Point,
    /// Whether clients were told that it is kept.
    pub acknowledged: Acknowledged,
    /// The epoch whose primary has other entries in its place, if that is known.
    pub superseded_by: Option<Epoch>,
}

/// Whether clients were told that what is in a bundle is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Acknowledged {
    /// They were, of some of it at least.
    Yes,
    /// They were not: every client knows that its write may be lost.
    No,
    /// The node does not know any more.
    Unknown,
}

/// A point as manifests have it: the digest is hexadecimal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// How many operations lie before it.
    pub position: Position,
    /// In which epoch the entry before it was made; nothing before the first.
    pub epoch: Option<Epoch>,
    /// The digest of the entry before it.
    pub digest: String,
}

/// A manifest: `manifest.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// [`SALVAGE_VERSION`].
    pub version: u32,
    /// The store.
    pub store: StoreName,
    /// The node whose log was cut.
    pub node: NodeName,
    /// The last point that stayed.
    pub cut_to: Place,
    /// The point at which the log ended.
    pub end: Place,
    /// How many operations the bundle holds.
    pub operations: u64,
    /// How many entries.
    pub entries: u64,
    /// How long `entries.log` is, in bytes.
    pub bytes: u64,
    /// The BLAKE3 hash of `entries.log`, hexadecimal.
    pub hash: String,
    /// Whether clients were told that it is kept.
    pub acknowledged: Acknowledged,
    /// The epoch whose primary has other entries in its place, if that is known.
    pub superseded_by: Option<Epoch>,
    /// When it was made, by the node's clock.
    pub made: WallTime,
}

impl Manifest {
    /// Returns whether the bundle holds what is about to be cut off.
    pub(super) fn holds(&self, what: &Superseded) -> bool {
        self.version == SALVAGE_VERSION
            && self.store == what.store
            && self.node == what.node
            && self.cut_to == Place::from(&what.cut_to)
            && self.end == Place::from(&what.end)
    }
}

impl From<&Point> for Place {
    fn from(point: &Point) -> Self {
        Self {
            position: point.position,
            epoch: point.epoch.clone(),
            digest: point.digest.to_string(),
        }
    }
}

impl Acknowledged {
    /// Returns what people are told, behind "clients were told that it is kept".
    pub fn told(self) -> &'static str {
        match self {
            Self::Yes => "of some of it at least",
            Self::No => "no",
            Self::Unknown => "not known",
        }
    }
}

impl Serialize for Acknowledged {
    /// Writes `true`, `false` or `"unknown"`.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Yes => serializer.serialize_bool(true),
            Self::No => serializer.serialize_bool(false),
            Self::Unknown => serializer.serialize_str("unknown"),
        }
    }
}

impl<'de> Deserialize<'de> for Acknowledged {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let written = serde_json::Value::deserialize(deserializer)?;
        if written == true {
            Ok(Self::Yes)
        } else if written == false {
            Ok(Self::No)
        } else if written == "unknown" {
            Ok(Self::Unknown)
        } else {
            let reason = format!("{written} is not true, false or \"unknown\"");
            Err(serde::de::Error::custom(reason))
        }
    }
}
