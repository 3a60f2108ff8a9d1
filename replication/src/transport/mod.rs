//! How nodes talk: HTTP over TLS 1.3, each side proved by a certificate of the cluster's authority.
//!
//! ```text
//! standby                                              primary
//! PeerClient ── TLS 1.3, both certificates ──▶ serve ──▶ Router of the role
//!    │  understudy-protocol: 1                    │
//!    │  understudy-epoch: 3.a                     └─ Lineage::heard(epoch)
//!    └──◀── every answer carries the epoch too ──── Lineage::heard(epoch)
//! ```
//! A request of another protocol version is refused with a message that names both versions.

mod client;
mod duplex;
mod frames;
mod server;
mod tls;

pub use client::{PeerClient, PeerError, PeerResponse, RedeemError, redeem};
pub use duplex::{Duplex, FramesIn, FramesOut, Offered};
pub use frames::{FRAME_BYTES_MAX, FRAME_ROOM, FrameReader, FrameSender, frames};
pub use server::{Caller, PeerServer, RefusalEvent, SharedRouter};
pub use tls::{Identity, TlsError};

use understudy_config::NodeName;

use crate::epoch::Epoch;

/// The version of everything that nodes say to each other.
pub const PROTOCOL_VERSION: u32 = 1;

/// The header that carries [`PROTOCOL_VERSION`].
pub const PROTOCOL_HEADER: &str = "understudy-protocol";

/// The header that carries the sender's epoch.
pub const EPOCH_HEADER: &str = "understudy-epoch";

/// The header that tells whom the caller takes for primary: `primary`, `standby`, …
pub const ROLE_HEADER: &str = "understudy-role";

/// What the transport has to know of this node's epoch, and must tell it.
pub trait Lineage: Send + Sync {
    /// Returns the highest epoch that this node has made durable.
    fn epoch(&self) -> Epoch;

    /// Returns the word for this node's role, for the peer's log.
    fn role(&self) -> &'static str;

    /// Tells that `from` is in `epoch`. Called for every message; cheap when the epoch is not news.
    fn heard(&self, from: &NodeName, epoch: &Epoch);
}
