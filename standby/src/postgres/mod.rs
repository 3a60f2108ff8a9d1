//! Receives a Postgres cluster: a base backup first, then Postgres' own streaming.

mod configuration;
mod interim;
mod receiver;
mod rejoin;
mod salvage;
mod seed;
mod stall;
mod take_over;
mod waldump;

pub use configuration::LayoutError;
pub use receiver::{PostgresReceiver, ReceiveError};
pub use salvage::SalvageError;
pub use seed::SeedError;
