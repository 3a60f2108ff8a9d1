//! What a primary does: ships its stores, and holds what only a primary has.
//!
//! ```text
//! files     capture ─▶ manifest ─▶ log ─▶ peer API      postgres  control, slots ─▶ peer API
//! settings  schedule ─▶ revision ─▶ peer API            services  start, watch, stop
//! ```

pub mod address;
pub mod files;
pub mod jobs;
pub mod kv;
pub mod postgres;
pub mod services;
pub mod settings;
