//! Indexes: derived data, rebuilt from the stores and never replicated.
//!
//! ```text
//! Postgres ── source (cursor, batches) ──▶ engine (tantivy) ──▶ FOLDER/NAME/7
//!                                                                  ▲
//! search ──▶ the index that `current` points to, until the new one is whole
//! ```
//! Read first: [`Indexes`]. An index with a command as its engine is built and searched elsewhere.

mod build;
#[cfg(feature = "tantivy")]
mod engine;
#[cfg(not(feature = "tantivy"))]
#[path = "engine_absent.rs"]
mod engine;
mod indexes;
mod routes;
mod search;
mod shelf;
mod source;
#[cfg(test)]
mod tests;

pub use build::RebuildError;
pub use engine::EngineError;
pub use indexes::{Connect, Indexes};
pub use routes::{IsServing, routes};
pub use search::{Hit, LIMIT_MAX, SearchError, SearchResult};
pub use shelf::ShelfError;
pub use source::SourceError;
