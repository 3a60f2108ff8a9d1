//! What operators, load balancers and scrapers read of a node.
//!
//! ```text
//!                    ┌─ replication  /monitor/replication
//!                    │               /monitor/status        (the status itself)
//! StatusSource ──────┼─ health       /primary /replica /health …
//!   one Status per   ├─ metrics      /metrics
//!   request          └─ text         `understudy status`
//!
//! KvSource ──────────── kv           /kv /kv/keys /kv/key/KEY
//! ```
//! Everything here is a rendering of one [`Status`](understudy_replication::status::Status):
//! nothing is measured, remembered or changed. But for keys and values, which are looked at in the store;
//! and for [`checks`], which looks at the machine and puts what it finds into the status. Read first: [`router`], [`metrics::TABLE`] and
//! [`text()`](fn@text).

pub mod checks;
#[cfg(test)]
mod docs;
#[cfg(test)]
mod example;
mod health;
mod kv;
pub mod metrics;
mod peer;
mod quantity;
mod replication;
mod router;
mod server;
mod store_text;
mod surroundings;
mod text;

pub use kv::{KvSource, kv_router};
pub use router::router;
pub use server::serve;
pub use store_text::store_text;
pub use text::{text, unwell};
