//! The one thing a caller without a certificate may ask: to join, with a token.

use std::net::SocketAddr;
use std::sync::{Arc, PoisonError};

use axum::extract::{DefaultBodyLimit, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Extension, Json, Router};
use understudy_replication::event::Severity;
use understudy_replication::role::Role;
use understudy_replication::transport::RefusalEvent;
use understudy_replication::trust::{Authority, JoinAnswer, JoinRequest};
use understudy_replication::wall_time::WallTime;
use understudy_replication::{durable, error_chain};

use crate::invites::Invites;
use crate::node::Node;

/// A request to join is at most this long.
const BODY_BYTES_MAX: usize = 64 << 10;

/// Returns the routes for callers without a certificate.
pub(crate) fn routes(node: Arc<Node>) -> Router {
    Router::new()
        .route("/join", post(join))
        .fallback(no_certificate)
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .with_state(node)
}

async fn no_certificate(Extension(address): Extension<SocketAddr>) -> Response {
    let event = RefusalEvent {
        kind: "peer_refused",
        message: format!(
            "refused a request from {} without a certificate",
            address.ip()
        ),
    };
    let reason = "this needs a certificate of the cluster; `understudy join` gets one".to_owned();
    refuse(StatusCode::UNAUTHORIZED, event, reason)
}

async fn join(
    State(node): State<Arc<Node>>,
    Extension(address): Extension<SocketAddr>,
    Json(request): Json<JoinRequest>,
) -> Response {
    let asked = request.node.clone();
    match admit(&node, request) {
        Ok(answer) => {
            node.events.record(
                Severity::Info,
                "joined",
                format!("node {asked} got its certificate, from {}", address.ip()),
            );
            Json(answer).into_response()
        }
        Err((status, reason)) => {
            let event = RefusalEvent {
                kind: "join_refused",
                message: format!("refused {} to join as node {asked}: {reason}", address.ip()),
            };
            refuse(status, event, reason)
        }
    }
}

/// Checks the token, and makes everything that the new node needs. The token is used up last but
/// for the answer itself.
fn admit(node: &Arc<Node>, request: JoinRequest) -> Result<JoinAnswer, (StatusCode, String)> {
    use base64::Engine;
    let forbidden = |reason: String| (StatusCode::FORBIDDEN, reason);
    let broken = |error: &(dyn std::error::Error + 'static)| {
        (StatusCode::INTERNAL_SERVER_ERROR, error_chain(error))
    };
    let _joining = node.joining.lock().unwrap_or_else(PoisonError::into_inner);
    let role = node.role();
    let Role::Primary { epoch, .. } = &role else {
        return Err((
            StatusCode::CONFLICT,
            format!(
                "node {} is {}; join the primary",
                node.me(),
                role.name().as_str()
            ),
        ));
    };
    if request.node == *node.me() {
        return Err(forbidden(format!("node {} is this node", request.node)));
    }
    let secret = base64::engine::general_purpose::URL_SAFE_NO_PAD
        .decode(&request.secret)
        .map_err(|_| forbidden("the secret is malformed".to_owned()))?;
    // The secret first: nothing is computed for strangers.
    let invites = Invites::of(&node.local.state_dir);
    invites
        .check(&request.node, &secret, WallTime::now())
        .map_err(|error| broken(&error))?
        .map_err(|rejection| forbidden(rejection.to_string()))?;
    let text = std::fs::read_to_string(&node.config_file).map_err(|error| broken(&error))?;
    let text = understudy_config::edit::add_node(&text, &request.node, request.address)
        .map_err(|error| forbidden(error_chain(&error)))?;
    let file_name = node.config_file.display().to_string();
    let config = understudy_config::parse_cluster(&file_name, &text)
        .map_err(|problems| forbidden(problems.to_string()))?;
    let authority = Authority::load(&node.local.pki_dir).map_err(|error| broken(&error))?;
    let certificate = authority
        .sign(&request.request, &request.node, request.address.ip())
        .map_err(|error| forbidden(error_chain(&error)))?;
    invites
        .redeem(&request.node, &secret, WallTime::now())
        .map_err(|error| broken(&error))?
        .map_err(|rejection| forbidden(rejection.to_string()))?;
    durable::write(&node.config_file, text.as_bytes(), 0o644).map_err(|error| broken(&error))?;
    node.set_config(config);
    Ok(JoinAnswer {
        authority: authority.certificate().to_owned(),
        authority_key: authority.key().to_owned(),
        certificate,
        configuration: text,
        epoch: epoch.clone(),
    })
}

/// Returns a refusal, with the event that the server of the port is to record.
fn refuse(status: StatusCode, event: RefusalEvent, reason: String) -> Response {
    let mut response = (status, reason).into_response();
    response.extensions_mut().insert(event);
    response
}
