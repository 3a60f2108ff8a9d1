//! The language both sides speak.
//!
//! ```text
//!            what                         where
//! decides    Epoch, Position, Marks       epoch, position, mark
//!            Role (the role machine)      role
//!            DeleteGuard                  guard
//!            PauseRecord                  pause
//! does       PeerClient, PeerServer       transport, trust
//!            Shipper, Receiver            store (what a store offers its role)
//!            Log, Table                   log, table (durable forms)
//! tells      Status, Events, Checked      status, event, check
//!            evidence of what was done    reports
//! per store  files, kv, postgres, settings the model that both sides share
//! ```
//! Read first: [`epoch::Epoch`], [`mark::Marks`], [`store::Shipper`] and [`store::Receiver`].

pub mod check;
pub mod command;
pub mod durable;
pub mod epoch;
mod error_chain;
pub mod event;
pub mod guard;
pub mod keep_up;
pub mod lag;
pub mod link;
pub mod mark;
pub mod pause;
pub mod position;
pub mod rejoin;
pub mod reports;
pub mod role;
pub mod stall;
pub mod status;
pub mod store;
pub mod transport;
pub mod trust;
pub mod wall_time;

pub mod files;

pub mod kv;
pub mod log;
pub mod postgres;
pub mod preflight;
pub mod settings;
pub mod table;

pub use error_chain::error_chain;
