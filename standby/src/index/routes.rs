//! Searching over HTTP.

use std::sync::Arc;

use axum::Json;
use axum::Router;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::http::header::RETRY_AFTER;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde::{Deserialize, Serialize};
use understudy_replication::error_chain;

use super::indexes::Indexes;
use super::search::SearchError;

/// When to ask again for an index that is not there yet.
const RETRY_AFTER_SECONDS: u64 = 2;

/// How many hits are returned unless the caller says it.
const LIMIT_DEFAULT: usize = 10;

/// Tells whether this node is the acting primary; if not, where that is.
pub type IsServing = Arc<dyn Fn() -> Result<(), String> + Send + Sync>;

#[derive(Clone)]
struct Searcher {
    indexes: Arc<Indexes>,
    is_serving: IsServing,
}

#[derive(Debug, Deserialize)]
struct Question {
    q: Option<String>,
    limit: Option<String>,
}

/// Why there is no result, as JSON.
#[derive(Debug, Serialize)]
struct Refusal {
    error: String,
    /// Where the acting primary is.
    #[serde(skip_serializing_if = "Option::is_none")]
    primary: Option<String>,
    /// `rebuilding` or `absent`, if that is why.
    #[serde(skip_serializing_if = "Option::is_none")]
    state: Option<&'static str>,
    /// How far the rebuild is.
    #[serde(skip_serializing_if = "Option::is_none")]
    percent: Option<u8>,
    /// After how many seconds to ask again.
    #[serde(skip_serializing_if = "Option::is_none")]
    retry_after: Option<u64>,
}

/// Returns `GET /index/{name}/search?q=…&limit=…`.
pub fn routes(indexes: Arc<Indexes>, is_serving: IsServing) -> Router {
    Router::new()
        .route("/index/{name}/search", get(search))
        .with_state(Searcher {
            indexes,
            is_serving,
        })
}

async fn search(
    State(searcher): State<Searcher>,
    Path(name): Path<String>,
    Query(question): Query<Question>,
) -> Response {
    if let Err(primary) = (searcher.is_serving)() {
        let error = "this node is not the acting primary".to_owned();
        let refusal = Refusal {
            primary: Some(primary),
            ..Refusal::new(error)
        };
        return (StatusCode::SERVICE_UNAVAILABLE, Json(refusal)).into_response();
    }
    let Some(query) = question.q else {
        return refuse(
            StatusCode::BAD_REQUEST,
            "the query is missing (?q=…)".to_owned(),
        );
    };
    let limit = match question.limit.map(|text| text.parse::<usize>()).transpose() {
        Ok(limit) => limit.unwrap_or(LIMIT_DEFAULT),
        Err(_) => {
            return refuse(
                StatusCode::BAD_REQUEST,
                "`limit` is not a number".to_owned(),
            );
        }
    };
    match searcher.indexes.search(&name, &query, limit).await {
        Ok(result) => Json(result).into_response(),
        Err(error) => answer(&error),
    }
}

impl Refusal {
    fn new(error: String) -> Self {
        Self {
            error,
            primary: None,
            state: None,
            percent: None,
            retry_after: None,
        }
    }
}

fn answer(error: &SearchError) -> Response {
    let status = match error {
        SearchError::Unknown { .. } | SearchError::Elsewhere { .. } => StatusCode::NOT_FOUND,
        SearchError::Query { .. } | SearchError::Limit { .. } => StatusCode::BAD_REQUEST,
        SearchError::Absent { .. } => return unready(error, "absent", None),
        SearchError::Rebuilding { percent, .. } => return unready(error, "rebuilding", *percent),
        SearchError::Elastic { .. } => StatusCode::BAD_GATEWAY,
        SearchError::Failed { .. } | SearchError::Broken { .. } | SearchError::Unusable { .. } => {
            StatusCode::INTERNAL_SERVER_ERROR
        }
    };
    refuse(status, error_chain(error))
}

/// Answers that there is nothing to search yet, and when to ask again.
fn unready(error: &SearchError, state: &'static str, percent: Option<u8>) -> Response {
    let refusal = Refusal {
        state: Some(state),
        percent,
        retry_after: Some(RETRY_AFTER_SECONDS),
        ..Refusal::new(error_chain(error))
    };
    let mut response = (StatusCode::SERVICE_UNAVAILABLE, Json(refusal)).into_response();
    response
        .headers_mut()
        .insert(RETRY_AFTER, RETRY_AFTER_SECONDS.into());
    response
}

fn refuse(status: StatusCode, error: String) -> Response {
    (status, Json(Refusal::new(error))).into_response()
}
