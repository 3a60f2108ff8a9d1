//! What a standby does: receives its stores, and takes over.
//!
//! ```text
//! files     peer API ─▶ log ─▶ apply ─▶ manifest        postgres  base backup, streaming
//! settings  schedule ─▶ validate ─▶ apply ─▶ history    index     built from stores
//! promote   plan ─▶ execute
//! ```

pub mod copy;
pub mod files;
pub mod index;
pub mod kv;
pub mod postgres;
pub mod promote;
pub mod rehearsal;
pub mod settings;
