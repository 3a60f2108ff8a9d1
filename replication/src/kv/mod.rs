//! The key-value store: what both roles share of it.
//!
//! ```text
//! client ──RESP──▶ server ──▶ command ──▶ Space (visible Table + Draft of what waits)
//!                                              │ operations
//!                                              ▼
//!                             entry ─▶ Log (durable)  ∥  followers (durable there)
//!                                              │ by the rules of `protocol`
//!                                              ▼
//!                                       committed: applied to the Table, acknowledged
//! ```
//! The log of entries is the truth; a snapshot of the table at a point of it lets its older part go. The
//! [`table::Table`] is what they build, and holds committed operations only, on either side.

mod command;
pub mod draft;
pub mod entry;
pub mod keyspace;
#[doc(hidden)]
pub mod memory;
pub mod operation;
pub mod point;
mod points;
pub mod protocol;
pub mod resp;
pub mod salvage;
pub mod server;
pub mod shown;
pub mod slot;
pub mod snapshot;
pub mod space;
pub mod storage;
pub mod table;
pub mod wire;

pub use command::{PATTERN_BYTES_MAX, is_match};
