//! Receives a Postgres cluster: a base backup first, then Postgres' own streaming.

mod receiver;
mod seed;
mod stall;

pub use receiver::{PostgresReceiver, ReceiveError};
pub use seed::SeedError;
