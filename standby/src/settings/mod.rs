//! The standby's end of the settings: pulls, validates, applies.
//!
//! ```text
//! schedule ──▶ pull ──▶ admit ──▶ validate ──▶ install ──▶ reload
//!                         │          │
//!                         └──────────┴──▶ refused: kept visible, not applied
//! ```

mod aside;
mod pull;
mod receiver;
#[cfg(test)]
mod tests;
mod told;

pub use pull::{PullError, Pulled};
pub use receiver::{OpenError, SettingsReceiver};
