//! What a search returns, and why it cannot.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::elastic::ElasticError;
use super::engine::EngineError;

/// How many hits one search returns at most.
pub const LIMIT_MAX: usize = 1000;

/// The longest query.
const QUERY_BYTES_MAX: usize = 4096;

/// How deep parentheses may be nested: the parser of queries calls itself for each.
const QUERY_DEPTH_MAX: usize = 16;

/// What was found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SearchResult {
    /// How long the search took.
    pub took_ms: u64,
    /// How many documents match, whatever the limit.
    pub total: u64,
    /// The best of them, the best first.
    pub hits: Vec<Hit>,
}

/// One document that was found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Hit {
    /// How well it matches; meaningful within one result only.
    pub score: f32,
    /// Its columns; those that are null are absent.
    pub fields: BTreeMap<String, String>,
}

/// Why there is no result.
#[derive(Debug, thiserror::Error)]
pub enum SearchError {
    /// The configuration has no such index.
    #[error("there is no index `{name}`")]
    Unknown {
        /// The name asked for.
        name: String,
    },
    /// It has never been built here.
    #[error("index {name} has not been built on this node")]
    Absent {
        /// The index.
        name: String,
    },
    /// It is being built, and there was none before.
    #[error("index {name} is not ready: rebuilding{}", percent.map_or_else(String::new, |p| format!(" {p} %")))]
    Rebuilding {
        /// The index.
        name: String,
        /// How far, where that is known.
        percent: Option<u8>,
    },
    /// A command builds it; it is searched where that command puts it.
    #[error("index {name} is built by a command, and is searched where that command puts it")]
    Elsewhere {
        /// The index.
        name: String,
    },
    /// The query cannot be understood.
    #[error("the query cannot be understood: {message}")]
    Query {
        /// What is wrong with it.
        message: String,
    },
    /// Too many hits are asked for.
    #[error("at most {LIMIT_MAX} hits can be asked for, not {limit}")]
    Limit {
        /// How many were.
        limit: usize,
    },
    /// The index cannot be read.
    #[error("cannot search index {name}")]
    Failed {
        /// The index.
        name: String,
        /// Why not.
        source: EngineError,
    },
    /// Elasticsearch cannot be asked.
    #[error("cannot search index {name}")]
    Elastic {
        /// The index.
        name: String,
        /// Why not.
        source: ElasticError,
    },
    /// It is set up in a way that does not work.
    #[error("index {name} cannot be used: {why}")]
    Unusable {
        /// The index.
        name: String,
        /// Why not.
        why: String,
    },
    /// The work was broken off: the program is ending.
    #[error("the search of index {name} was broken off")]
    Broken {
        /// The index.
        name: String,
        /// How.
        source: tokio::task::JoinError,
    },
}

/// Refuses what would cost the parser too much.
pub(super) fn check(query: &str, limit: usize) -> Result<(), SearchError> {
    if limit > LIMIT_MAX {
        return Err(SearchError::Limit { limit });
    }
    let query_error = |message: &str| {
        Err(SearchError::Query {
            message: message.to_owned(),
        })
    };
    if query.len() > QUERY_BYTES_MAX {
        return query_error("it is too long");
    }
    let mut depth = 0_usize;
    for byte in query.bytes() {
        match byte {
            b'(' => depth += 1,
            b')' => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > QUERY_DEPTH_MAX {
            return query_error("its parentheses are nested too deep");
        }
    }
    Ok(())
}
