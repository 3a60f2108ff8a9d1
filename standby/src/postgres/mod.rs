//! Receives a Postgres cluster: a base backup first, then Postgres' own streaming.

mod base_backup;
mod beside;
mod half;
mod local_blocks;
mod local_copy;
mod receiver;
mod reseed;
mod seed;

pub use receiver::{PostgresReceiver, ReceiveError};
pub use reseed::Saved;
pub use seed::SeedError;
