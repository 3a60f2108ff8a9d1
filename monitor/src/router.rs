//! The routes of the monitor port. All only read, and no answer may be kept by a cache.

use std::sync::Arc;

use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::{HeaderValue, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodFilter, get, on};
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use understudy_replication::status::StatusSource;

use crate::health::{Answer, CHECKS, Check, LagMax};
use crate::metrics;
use crate::replication::Page;

type Source = Arc<dyn StatusSource>;

/// Paths beside those of [`CHECKS`].
const PAGES: [&str; 3] = ["/monitor/replication", "/monitor/status", "/metrics"];

/// Returns the routes that tell what `source` tells.
///
/// It has a fallback of its own, so a router that is merged with it must have none.
pub fn router(source: Arc<dyn StatusSource>) -> Router {
    let [replication_path, status_path, metrics_path] = PAGES;
    let mut router = Router::new()
        .route(replication_path, get(replication))
        .route(status_path, get(status))
        .route(metrics_path, get(scrape));
    for (path, check) in CHECKS {
        let methods = MethodFilter::GET
            .or(MethodFilter::HEAD)
            .or(MethodFilter::OPTIONS);
        let answer = move |State(source): State<Source>, method, query| async move {
            health(check, &source, &method, query)
        };
        router = router.route(path, on(methods, answer));
    }
    router
        .fallback(not_found)
        .layer(axum::middleware::map_response(uncached))
        .with_state(source)
}

pub(crate) async fn uncached(mut response: Response) -> Response {
    let no_store = HeaderValue::from_static("no-store");
    response
        .headers_mut()
        .insert(header::CACHE_CONTROL, no_store);
    response
}

async fn replication(State(source): State<Source>) -> Response {
    Json(Page::new(&source.status())).into_response()
}

async fn status(State(source): State<Source>) -> Response {
    Json(source.status()).into_response()
}

async fn scrape(State(source): State<Source>) -> Response {
    let headers = [(header::CONTENT_TYPE, metrics::CONTENT_TYPE)];
    (headers, metrics::render(source.status())).into_response()
}

/// What a caller of a check may add.
#[derive(Debug, Deserialize)]
struct Bound {
    lag: Option<String>,
}

/// Why a request is not answered.
#[derive(Debug, Serialize)]
struct Refusal {
    error: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    endpoints: Option<Vec<&'static str>>,
}

fn health(
    check: Check,
    source: &Source,
    method: &Method,
    bound: Result<Query<Bound>, QueryRejection>,
) -> Response {
    let (code, body) = match lag_max(check, bound) {
        Ok(lag_max) => {
            let answer = Answer::new(check, lag_max, &source.status());
            let code = match answer.reason {
                None => StatusCode::OK,
                Some(_) => StatusCode::SERVICE_UNAVAILABLE,
            };
            (code, Json(answer).into_response())
        }
        Err(error) => {
            let refusal = Refusal {
                error,
                endpoints: None,
            };
            (StatusCode::BAD_REQUEST, Json(refusal).into_response())
        }
    };
    // A load balancer that asks with OPTIONS reads the status line alone. For HEAD axum drops the body.
    if method == Method::OPTIONS {
        code.into_response()
    } else {
        (code, body).into_response()
    }
}

/// Returns the bound that the caller sets, where the check has one; elsewhere a query means nothing.
fn lag_max(
    check: Check,
    bound: Result<Query<Bound>, QueryRejection>,
) -> Result<Option<LagMax>, String> {
    if check != Check::Standby {
        return Ok(None);
    }
    let Query(bound) = bound.map_err(|rejection| rejection.body_text())?;
    let Some(text) = bound.lag else {
        return Ok(None);
    };
    let lag_max: Result<LagMax, _> = text.parse();
    lag_max.map(Some).map_err(|error| error.to_string())
}

async fn not_found(uri: Uri) -> Response {
    let checks = CHECKS.map(|(path, _)| path);
    let refusal = Refusal {
        error: format!("there is nothing at {}", uri.path()),
        endpoints: Some(PAGES.into_iter().chain(checks).collect()),
    };
    (StatusCode::NOT_FOUND, Json(refusal)).into_response()
}

#[cfg(test)]
mod tests {
    use std::fmt::Write;

    use axum::body::Body;
    use axum::http::Request;
    use http_body_util::BodyExt;
    use tower::ServiceExt;
    use understudy_replication::status::Status;

    use super::*;
    use crate::example::{self, Told};

    /// Returns the whole answer: status line, headers, body.
    async fn ask(status: Status, method: &str, path: &str) -> String {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .body(Body::empty())
            .unwrap();
        let response = router(Arc::new(Told(status)))
            .oneshot(request)
            .await
            .unwrap();
        let mut answer = format!("{}\n", response.status());
        for (name, value) in response.headers() {
            writeln!(answer, "{name}: {}", value.to_str().unwrap()).unwrap();
        }
        let body = response.into_body().collect().await.unwrap().to_bytes();
        if !body.is_empty() {
            write!(answer, "\n{}", std::str::from_utf8(&body).unwrap()).unwrap();
        }
        answer
    }

    #[tokio::test]
    async fn every_endpoint_in_every_state() {
        for (name, status) in example::all() {
            let mut answers = String::new();
            for path in PAGES.into_iter().chain(CHECKS.map(|(path, _)| path)) {
                let answer = ask(status.clone(), "GET", path).await;
                let (head, body) = answer.split_once("\n\n").unwrap();
                // Indented only to be read: what is compared is all that was answered.
                let body = match serde_json::from_str::<serde_json::Value>(body) {
                    Ok(json) => serde_json::to_string_pretty(&json).unwrap(),
                    Err(_) => body.to_owned(),
                };
                writeln!(answers, "### GET {path}\n{head}\n\n{body}\n").unwrap();
            }
            insta::assert_snapshot!(format!("answers_{name}"), answers);
        }
    }

    #[tokio::test]
    async fn head_and_options_get_no_body() {
        for (path, _) in CHECKS {
            let got = ask(example::standby(), "GET", path).await;
            let (head, body) = got.split_once("\n\n").unwrap();
            assert!(!body.is_empty());
            let answer = ask(example::standby(), "HEAD", path).await;
            assert_eq!(answer, format!("{head}\n"), "{path}");
            let code = head.lines().next().unwrap();
            let answer = ask(example::standby(), "OPTIONS", path).await;
            let expected = format!("{code}\ncache-control: no-store\ncontent-length: 0\n");
            assert_eq!(answer, expected, "{path}");
        }
    }

    #[tokio::test]
    async fn nothing_can_be_changed_here() {
        for path in PAGES.into_iter().chain(CHECKS.map(|(path, _)| path)) {
            for method in ["POST", "PUT", "PATCH", "DELETE"] {
                let answer = ask(example::primary(), method, path).await;
                assert!(answer.starts_with("405 "), "{method} {path}: {answer}");
            }
        }
    }

    #[tokio::test]
    async fn the_bound_on_the_lag_decides_where_it_applies() {
        let mut table = String::new();
        for path in [
            "/replica?lag=12595",
            "/replica?lag=12594",
            "/replica?lag=16kB",
            "/standby?lag=10MB&other=1",
            "/standby?lag=0",
            "/standby?lag=",
            "/standby?lag=10mb",
            "/standby?lag=-1",
            "/standby?lag=1%00",
            "/standby?lag=1&lag=2",
            "/health?lag=nonsense",
            "/primary?lag=nonsense",
        ] {
            let answer = ask(example::standby(), "GET", path).await;
            let (code, body) = (
                answer.lines().next().unwrap(),
                answer.lines().last().unwrap(),
            );
            writeln!(table, "{path}\n    {code}\n    {body}").unwrap();
        }
        insta::assert_snapshot!(table);
    }

    #[tokio::test]
    async fn an_unknown_path_tells_the_known_ones() {
        insta::assert_snapshot!(ask(example::primary(), "GET", "/primry?x=1").await);
        assert_eq!(
            ask(example::primary(), "GET", "/").await.lines().next(),
            Some("404 Not Found")
        );
    }

    #[tokio::test]
    async fn another_router_fits_beside() {
        let beside = Router::new().route("/index/{name}/search", get(|| async { "found" }));
        let router = router(Arc::new(Told(example::primary()))).merge(beside);
        let request = Request::builder()
            .uri("/index/search/search")
            .body(Body::empty())
            .unwrap();
        let response = router.oneshot(request).await.unwrap();
        assert_eq!(
            response.into_body().collect().await.unwrap().to_bytes(),
            "found"
        );
    }
}
