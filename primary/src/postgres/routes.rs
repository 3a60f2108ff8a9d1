//! What standbys ask of the primary's end of the store.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Json, Router};
use understudy_replication::postgres::{Configuration, PostgresError, Sizes};
use understudy_replication::transport::Caller;

use super::{PostgresShipper, checkpoint, reseed};

/// Returns all of them.
pub(super) fn routes() -> Router<Arc<PostgresShipper>> {
    Router::new()
        .route("/seed-info", get(seed_info))
        .route("/configuration", get(configuration))
        .route("/history", get(history))
        .route("/sizes", get(sizes))
        .route("/checkpoint", post(checkpoint::write))
        .route("/slot", post(make_slot).get(show_slot))
        .merge(reseed::routes())
}

pub(super) fn failed(error: &PostgresError) -> Response {
    let reason = understudy_replication::error_chain(error);
    (StatusCode::SERVICE_UNAVAILABLE, reason).into_response()
}

async fn seed_info(State(shipper): State<Arc<PostgresShipper>>) -> Response {
    match shipper.seed_info().await {
        Ok(info) => Json(info).into_response(),
        Err(error) => failed(&error),
    }
}

/// Sends the folder of the configuration, for a standby that has none.
async fn configuration(State(shipper): State<Arc<PostgresShipper>>) -> Response {
    if !shipper.cluster.is_split() {
        let reason = "the configuration is in the data directory, and comes with a base backup";
        return (StatusCode::CONFLICT, reason).into_response();
    }
    match Configuration::read(&shipper.cluster.config_dir) {
        Ok(configuration) => Json(configuration).into_response(),
        Err(error) => {
            let reason = understudy_replication::error_chain(&error);
            (StatusCode::SERVICE_UNAVAILABLE, reason).into_response()
        }
    }
}

async fn history(State(shipper): State<Arc<PostgresShipper>>) -> Response {
    match shipper.history().await {
        Ok(history) => Json(history).into_response(),
        Err(error) => failed(&error),
    }
}

/// Tells how large the data directory is, for a former primary to foresee what its rejoin will copy.
async fn sizes(State(shipper): State<Arc<PostgresShipper>>) -> Response {
    let data_dir = shipper.cluster.data_dir.clone();
    let sizes = tokio::task::spawn_blocking(move || Sizes::of(&data_dir)).await;
    match sizes.map_err(std::io::Error::other).flatten() {
        Ok(sizes) => Json(sizes).into_response(),
        Err(error) => (StatusCode::SERVICE_UNAVAILABLE, error.to_string()).into_response(),
    }
}

async fn make_slot(
    State(shipper): State<Arc<PostgresShipper>>,
    Extension(caller): Extension<Caller>,
) -> Response {
    match shipper.make_slot(&caller.node).await {
        Ok(slot) => Json(slot).into_response(),
        Err(error) => failed(&error),
    }
}

async fn show_slot(
    State(shipper): State<Arc<PostgresShipper>>,
    Extension(caller): Extension<Caller>,
) -> Response {
    match shipper.show_slot(&caller.node).await {
        Ok(slot) => Json(slot).into_response(),
        Err(error) => failed(&error),
    }
}
