//! What peers can ask of a node.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::StatusCode;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Json, Router};
use understudy_replication::epoch::Epoch;
use understudy_replication::kv::protocol::Tail;
use understudy_replication::link::{
    AwaitAnswer, AwaitRequest, BarrierRequest, CheckRequest, FenceAnswer, FenceRequest, Hello,
    RootRequest, StandbyReport, SwitchoverRequest,
};
use understudy_replication::role::{Event, Role};
use understudy_replication::status::RoleName;
use understudy_replication::transport::{Caller, Lineage, PeerClient, PeerError, frames};
use understudy_replication::wall_time::WallTime;

use crate::kv_bundles;
use crate::node::{Node, Stage};
use crate::preflight::Outlook;
use crate::primary_run::PrimaryRun;
use crate::selection::Selection;
use crate::wait::{AWAIT_MAX, POSITION_PATIENCE};

/// A report or a request of a peer is at most this long.
const BODY_BYTES_MAX: usize = 1 << 20;

/// Asks `peer` what it is.
pub(crate) async fn hello(peer: &PeerClient) -> Result<Hello, PeerError> {
    peer.get("/peer/hello").await?.json(64 << 10).await
}

/// Serves the routes that fit what the node is now.
pub(crate) fn refresh(node: &Arc<Node>) {
    let mut stores = Router::new();
    if let Stage::Primary(run) = node.stage() {
        let routes = Router::new()
            .route("/peer/joined", post(joined))
            .route("/peer/prepare", post(prepare))
            .route("/peer/marks", get(marks))
            .route("/peer/report", post(report))
            .route("/peer/outlook", post(outlook))
            .route("/peer/barrier", post(barrier))
            .route("/peer/root", post(root))
            .route("/peer/kv/salvage/show", post(kv_bundles::show))
            .route("/peer/kv/salvage/replay", post(kv_bundles::replay))
            .with_state(node.clone());
        stores = routes.merge(run.routes());
    }
    let router = Router::new()
        .route("/peer/hello", get(say_hello))
        .route("/peer/fence", post(fence))
        .route("/peer/switchover", post(switchover))
        .route("/peer/await", post(await_positions))
        .route("/peer/check", post(check))
        .route("/peer/kv/end", get(say_kv_end))
        .route("/peer/pause", post(crate::pause::hear))
        .route("/peer/probe", get(crate::foresight::send_probe))
        .route("/peer/kv/salvage", get(kv_bundles::list))
        .route("/peer/kv/salvage/{name}", get(kv_bundles::send))
        .with_state(node.clone())
        .merge(stores)
        .fallback_service(axum::handler::Handler::with_state(not_here, node.clone()))
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .layer(middleware::from_fn_with_state(node.clone(), remember));
    node.peer_routes.set(router);
}

/// Logs who asks for what; the transport has already checked the caller and the epoch.
async fn remember(State(node): State<Arc<Node>>, request: Request, next: Next) -> Response {
    tracing::trace!(
        node = %node.me(),
        caller = ?request.extensions().get::<Caller>(),
        path = request.uri().path(),
        "asked by a peer"
    );
    next.run(request).await
}

async fn not_here(State(node): State<Arc<Node>>) -> Response {
    let role = Lineage::role(&*node);
    if node.role().name() == RoleName::Primary && !matches!(node.stage(), Stage::Primary(_)) {
        // Its stores are being opened: who asks may ask again.
        let reason = format!(
            "node {} is {role} and is still opening its stores",
            node.me()
        );
        return (StatusCode::SERVICE_UNAVAILABLE, reason).into_response();
    }
    let reason = format!(
        "node {} is {} and does not answer this",
        node.me(),
        Lineage::role(&*node)
    );
    (StatusCode::CONFLICT, reason).into_response()
}

/// Tells how much of the key-value store this node has.
async fn say_kv_end(State(node): State<Arc<Node>>) -> Json<Option<Tail>> {
    Json(node.kv_end())
}

async fn say_hello(State(node): State<Arc<Node>>) -> Json<Hello> {
    let role = node.role();
    // A proposal that nobody carries out binds nobody: a primary that restarts must not wait for it.
    let epoch = match node.promoting.try_lock() {
        Ok(_idle) => role.epoch().clone(),
        Err(_) => role.highest_epoch().clone(),
    };
    Json(Hello {
        node: node.me().clone(),
        role: role.name(),
        epoch,
        time: WallTime::now(),
        config: Some(node.config_digest()),
        pause: Some(node.pauses.record()),
    })
}

/// Fences this node for a higher epoch, and answers when that is done.
async fn fence(
    State(node): State<Arc<Node>>,
    Extension(caller): Extension<Caller>,
    Json(request): Json<FenceRequest>,
) -> Response {
    let before = node.role();
    let (was, ours) = (before.name(), before.epoch());
    if request.epoch.node != caller.node {
        let reason = format!("node {} cannot open epoch {}", caller.node, request.epoch);
        return (StatusCode::BAD_REQUEST, reason).into_response();
    }
    // Whoever does not know of the epoch that this node is in would supersede it unawares.
    let is_unaware = |known: &Epoch| ours > known && *ours != request.epoch;
    if *ours > request.epoch || request.supersedes.as_ref().is_some_and(is_unaware) {
        let reason = format!("node {} is in epoch {ours} already", node.me());
        return (StatusCode::CONFLICT, reason).into_response();
    }
    // A point from which there is a way back: once the role is another one, there is none.
    if request.hands_over
        && was == RoleName::Primary
        && let Err(reason) = crate::shell::step_aside(&node).await
    {
        let reason = format!("{reason}; node {} serves on", node.me());
        return (StatusCode::CONFLICT, reason).into_response();
    }
    let event = if request.hands_over {
        Event::HandOver(request.epoch.clone())
    } else {
        Event::Heard(request.epoch.clone())
    };
    if was == RoleName::Standby {
        // The new epoch is what matters; whom to follow in it is seen to without the caller, who may have
        // stopped the old primary already.
        if let Err(reason) = record_soon(&node, event, &request.epoch).await {
            return (StatusCode::INTERNAL_SERVER_ERROR, reason).into_response();
        }
    } else if let Err(error) = node.happen(event).await {
        return (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response();
    }
    if *node.role().epoch() != request.epoch {
        let reason = format!("node {} is in epoch {}", node.me(), node.role().epoch());
        return (StatusCode::CONFLICT, reason).into_response();
    }
    if node.is_fence_owed() || node.is_serving() {
        let reason = format!(
            "node {} could not stop everything; see its events",
            node.me()
        );
        return (StatusCode::INTERNAL_SERVER_ERROR, reason).into_response();
    }
    let positions = match node.stage() {
        Stage::Primary(run) => {
            let ends = run
                .all_positions(&Selection::default(), POSITION_PATIENCE)
                .await;
            crate::fenced_at::keep(&node.local.state_dir, &request.epoch, &ends);
            ends
        }
        Stage::Idle if was == RoleName::Fenced => {
            crate::fenced_at::load(&node.local.state_dir, &request.epoch)
        }
        Stage::Idle | Stage::Standby(_) => Default::default(),
    };
    Json(FenceAnswer { was, positions }).into_response()
}

/// Hands `event` to the role machine of a standby, and waits until `epoch` is on its disk: what it calls its
/// epoch is.
async fn record_soon(node: &Arc<Node>, event: Event, epoch: &Epoch) -> Result<(), String> {
    let mut role = node.role.subscribe();
    let happening = node.happen(event);
    let recorded = role.wait_for(|record| record.role.epoch() >= epoch);
    tokio::pin!(happening);
    tokio::select! {
        recorded = recorded => recorded.map(drop).map_err(|_| "the daemon is stopping".to_owned()),
        happened = &mut happening => happened.map_err(|error| error.to_string()),
    }
}

/// Has every store write down what it can, while all of them serve on.
async fn prepare(State(node): State<Arc<Node>>) -> Response {
    match primary(&node) {
        Ok(run) => match run.prepare().await {
            Ok(()) => Json(()).into_response(),
            Err(reason) => (StatusCode::INTERNAL_SERVER_ERROR, reason).into_response(),
        },
        Err(refusal) => *refusal,
    }
}

/// Takes over from the primary that asks for it; goes on when nobody listens any more.
async fn switchover(
    State(node): State<Arc<Node>>,
    Extension(caller): Extension<Caller>,
    Json(request): Json<SwitchoverRequest>,
) -> Response {
    let follows = match node.role() {
        Role::Standby { primary, .. } => primary == caller.node,
        Role::Primary { .. }
        | Role::Returning { .. }
        | Role::Promoting { .. }
        | Role::Fenced { .. } => false,
    };
    if !follows {
        let reason = format!("node {} is no standby of node {}", node.me(), caller.node);
        return (StatusCode::CONFLICT, reason).into_response();
    }
    crate::peer_work::answer(move |progress, _| async move {
        let order = crate::promotion::Order {
            force: false,
            dry_run: request.dry_run,
            planned: true,
        };
        crate::promotion::promote(&node, order, &progress).await
    })
}

fn primary(node: &Node) -> Result<Arc<PrimaryRun>, Box<Response>> {
    match (node.role(), node.stage()) {
        (Role::Primary { .. }, Stage::Primary(run)) => Ok(run),
        (role, _) => {
            let reason = format!("node {} is {}", node.me(), role.name().as_str());
            Err(Box::new((StatusCode::CONFLICT, reason).into_response()))
        }
    }
}

/// Remembers that the caller follows from now on, before it gets a mark.
async fn join(node: &Node, caller: &Caller) -> Result<(), Box<Response>> {
    node.happen(Event::Joined(caller.node.clone()))
        .await
        .map_err(|error| Box::new((StatusCode::CONFLICT, error.to_string()).into_response()))
}

async fn joined(State(node): State<Arc<Node>>, Extension(caller): Extension<Caller>) -> Response {
    if let Err(refusal) = join(&node, &caller).await {
        return *refusal;
    }
    match node.role() {
        Role::Primary { epoch, .. } => Json(epoch).into_response(),
        // Superseded in this very moment: the epoch that it is in now is another's.
        Role::Returning { .. }
        | Role::Standby { .. }
        | Role::Promoting { .. }
        | Role::Fenced { .. } => not_here(State(node)).await,
    }
}

async fn marks(State(node): State<Arc<Node>>, Extension(caller): Extension<Caller>) -> Response {
    let run = match primary(&node) {
        Ok(run) => run,
        Err(refusal) => return *refusal,
    };
    if let Err(refusal) = join(&node, &caller).await {
        return *refusal;
    }
    let (sender, response) = frames();
    let mut marks = run.marks();
    drop(run);
    tokio::spawn(async move {
        loop {
            let mark = marks.borrow_and_update().clone();
            if let Some(mark) = mark
                && let Ok(frame) = serde_json::to_vec(&mark)
                && sender.send(&frame).await.is_err()
            {
                return;
            }
            tokio::select! {
                changed = marks.changed() => if changed.is_err() { return },
                () = sender.closed() => return,
            }
        }
    });
    response
}

async fn report(
    State(node): State<Arc<Node>>,
    Extension(caller): Extension<Caller>,
    Json(report): Json<StandbyReport>,
) -> Response {
    match primary(&node) {
        Ok(run) => {
            run.heard(caller.node, report);
            Json(()).into_response()
        }
        Err(refusal) => *refusal,
    }
}

/// Takes in how a standby says that its promotion would go.
async fn outlook(
    State(node): State<Arc<Node>>,
    Extension(caller): Extension<Caller>,
    Json(outlook): Json<Outlook>,
) -> Response {
    match primary(&node) {
        Ok(run) => {
            run.heard_outlook(caller.node, outlook);
            Json(()).into_response()
        }
        Err(refusal) => *refusal,
    }
}

/// Tells where every store is now, for a standby that waits until it has all of it.
async fn barrier(
    State(node): State<Arc<Node>>,
    Json(request): Json<Option<BarrierRequest>>,
) -> Response {
    let stores = Selection(request.map(|it| it.stores).unwrap_or_default());
    match primary(&node) {
        Ok(run) => Json(run.all_positions(&stores, POSITION_PATIENCE).await).into_response(),
        Err(refusal) => *refusal,
    }
}

async fn check(State(node): State<Arc<Node>>, Json(request): Json<CheckRequest>) -> Response {
    crate::check::answer(node, request)
}

async fn root(State(node): State<Arc<Node>>, Json(request): Json<RootRequest>) -> Response {
    match primary(&node) {
        Ok(_) => Json(crate::check::root(&node, &request)).into_response(),
        Err(refusal) => *refusal,
    }
}

/// Answers the primary as soon as this standby's copies are as far as it asks.
async fn await_positions(
    State(node): State<Arc<Node>>,
    Extension(caller): Extension<Caller>,
    Json(request): Json<AwaitRequest>,
) -> Response {
    let Stage::Standby(run) = node.stage() else {
        return not_here(State(node)).await;
    };
    // Positions are those of the primary that this node follows, and of nobody else.
    if *run.primary() != caller.node {
        let reason = format!("node {} follows node {}", node.me(), run.primary());
        return (StatusCode::CONFLICT, reason).into_response();
    }
    let patience = Duration::from_millis(request.patience_ms).min(AWAIT_MAX);
    let missing = run.reach(&request.until, request.level, patience).await;
    Json(AwaitAnswer { missing }).into_response()
}
