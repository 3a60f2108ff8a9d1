//! The place of the full-text engine in a program that was built without it.

use std::convert::Infallible;
use std::path::Path;
use std::sync::Arc;

use super::row::{Applied, Change, Entry};
use super::search::{SearchError, SearchResult};

/// Why the engine failed.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The program has no engine.
    #[error("this program was built without the feature `tantivy`")]
    BuiltWithout,
}

impl EngineError {
    pub(super) fn is_passing(&self) -> bool {
        false
    }
}

/// An index that can be searched: there is none.
pub(super) struct Searchable(Infallible);

impl Searchable {
    pub(super) fn open(_: &Path) -> Result<Self, EngineError> {
        Err(EngineError::BuiltWithout)
    }

    pub(super) fn documents(&self) -> u64 {
        match self.0 {}
    }

    pub(super) fn search(&self, _: &str, _: &str, _: usize) -> Result<SearchResult, SearchError> {
        match self.0 {}
    }
}

/// How a batch becomes part of an index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Manner {
    /// None of its keys is in the index yet.
    Add,
    /// What is as it should be already is left alone.
    Replace,
}

/// An index that is written: there is none.
#[derive(Clone)]
pub(super) struct Written {
    pub(super) searchable: Arc<Searchable>,
}

impl Written {
    pub(super) fn begin(_: &Path, _: &[String], _: &str) -> Result<Self, EngineError> {
        Err(EngineError::BuiltWithout)
    }

    pub(super) fn open(searchable: Arc<Searchable>) -> Result<Self, EngineError> {
        match searchable.0 {}
    }

    pub(super) fn state(&self) -> Result<Option<String>, EngineError> {
        match self.searchable.0 {}
    }

    pub(super) fn apply(
        &self,
        _: Vec<Change>,
        _: Manner,
        _: &str,
        _: bool,
    ) -> Result<Applied, EngineError> {
        match self.searchable.0 {}
    }

    pub(super) fn entries(&self, _: Option<&str>, _: usize) -> Result<Vec<Entry>, EngineError> {
        match self.searchable.0 {}
    }
}
