//! The primary's end of the settings: captures them, and answers the standby that pulls.
//!
//! ```text
//! schedule ─┐
//! mark ─────┼─▶ Ground::refresh ──▶ newest revision ──▶ GET /revision
//! pull ─────┘        ▲
//! rollback ──────────┘ (validate, install, reload: becomes a new revision)
//! ```

mod ground;
mod rollback;
mod shipper;

pub use ground::RefreshError;
pub use rollback::{RollbackError, RolledBack};
pub use shipper::{OpenError, SettingsShipper};
