//! The place of the full-text engine in a program that was built without it.

use std::convert::Infallible;
use std::path::Path;

use super::search::{SearchError, SearchResult};
use super::source::Row;

/// Why the engine failed.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The program has no engine.
    #[error("this program was built without the feature `tantivy`")]
    BuiltWithout,
}

/// An index that can be searched: there is none.
pub(super) struct Searchable(Infallible);

impl Searchable {
    pub(super) fn open(_: &Path) -> Result<Self, EngineError> {
        Err(EngineError::BuiltWithout)
    }

    pub(super) fn search(&self, _: &str, _: &str, _: usize) -> Result<SearchResult, SearchError> {
        match self.0 {}
    }
}

/// An index that is being built: there is none.
pub(super) struct Build(Infallible);

impl Build {
    pub(super) fn begin(_: &Path, _: &[String]) -> Result<Self, EngineError> {
        Err(EngineError::BuiltWithout)
    }

    pub(super) fn add(&self, _: Vec<Row>) -> Result<(), EngineError> {
        match self.0 {}
    }

    pub(super) fn finish(self) -> Result<(), EngineError> {
        match self.0 {}
    }
}
