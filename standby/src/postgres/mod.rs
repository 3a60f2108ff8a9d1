//! Receives a Postgres cluster: a base backup first, then Postgres' own streaming.

mod configuration;
mod receiver;
mod seed;
mod stall;

pub use configuration::LayoutError;
pub use receiver::{PostgresReceiver, ReceiveError};
pub use seed::SeedError;
