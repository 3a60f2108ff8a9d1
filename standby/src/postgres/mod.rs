//! Receives a Postgres cluster: a base backup first, then Postgres' own streaming.

mod base_backup;
mod beside;
mod configuration;
mod foresee;
mod half;
mod local_blocks;
mod local_copy;
mod parted;
mod receiver;
mod rejoin;
mod reseed;
mod salvage;
mod seed;
mod slots;
mod stall;
mod take_over;
mod waldump;

pub use configuration::LayoutError;
pub use receiver::{PostgresReceiver, ReceiveError};
pub use rejoin::RejoinError;
pub use reseed::Saved;
pub use salvage::{POSTGRES_SUMMARY, POSTGRES_WAL, SalvageError, Summary};
pub use seed::SeedError;
pub use waldump::{Changes, Tally, Transaction};
