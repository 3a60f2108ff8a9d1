//! Searching over HTTP.

use std::sync::Arc;

use axum::Json;
use axum::Router;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde::{Deserialize, Serialize};
use understudy_replication::error_chain;

use super::indexes::Indexes;
use super::search::SearchError;

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
    /// How far the rebuild is.
    #[serde(skip_serializing_if = "Option::is_none")]
    percent: Option<u8>,
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
            error,
            primary: Some(primary),
            percent: None,
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

fn answer(error: &SearchError) -> Response {
    let status = match error {
        SearchError::Unknown { .. } | SearchError::Elsewhere { .. } => StatusCode::NOT_FOUND,
        SearchError::Query { .. } | SearchError::Limit { .. } => StatusCode::BAD_REQUEST,
        SearchError::Absent { .. } => StatusCode::SERVICE_UNAVAILABLE,
        SearchError::Rebuilding { percent, .. } => {
            let refusal = Refusal {
                error: error_chain(error),
                primary: None,
                percent: *percent,
            };
            return (StatusCode::SERVICE_UNAVAILABLE, Json(refusal)).into_response();
        }
        SearchError::Failed { .. } | SearchError::Broken { .. } => {
            StatusCode::INTERNAL_SERVER_ERROR
        }
    };
    refuse(status, error_chain(error))
}

fn refuse(status: StatusCode, error: String) -> Response {
    (
        status,
        Json(Refusal {
            error,
            primary: None,
            percent: None,
        }),
    )
        .into_response()
}
