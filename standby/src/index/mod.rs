//! Indexes: derived data, kept warm from the stores and never replicated.
//!
//! ```text
//! Postgres ── changes since the watermark ──▶ engine: commit of documents and state ──▶ FOLDER/NAME/7
//!    │                                                                                     ▲
//!    └────── every row, by its key ─────────▶ half a build (FOLDER/NAME/8) ── whole ───────┘ `current`
//! ```
//! Read first: [`Indexes`]; then `follow` (keeping warm), `build` (from nothing) and `sweep` (comparing).
//! What decides is pure: [`standing`] (whether an index is of this database's past) and `marks` (from where
//! on rows are read again). An index with a command as its engine is built and searched elsewhere.

mod build;
mod elastic;
#[cfg(feature = "tantivy")]
mod engine;
#[cfg(not(feature = "tantivy"))]
#[path = "engine_absent.rs"]
mod engine;
mod error;
mod follow;
mod indexes;
mod keeper;
mod marks;
mod payload;
mod reading;
mod routes;
mod row;
mod search;
mod session;
mod shape;
mod shelf;
mod source;
mod standing;
mod sweep;
mod target;
#[cfg(test)]
mod tests;

pub use elastic::ElasticError;
pub use engine::EngineError;
pub use error::RebuildError;
pub use indexes::{CaughtUp, Indexes};
pub use routes::{IsServing, routes};
pub use search::{Hit, LIMIT_MAX, SearchError, SearchResult};
pub use shelf::ShelfError;
pub use source::{Ancestry, Connect, Database, SourceError, Tenure, Writer};
pub use standing::{Stamp, Standing, standing};
