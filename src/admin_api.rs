//! What the command line can ask of the daemon, over the admin socket.
//!
//! Every answer is a stream of lines, each one [`Line`] as JSON: news of the progress, then one result
//! or one failure.

use std::convert::Infallible;
use std::path::Path;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use axum::body::Body;
use axum::extract::{DefaultBodyLimit, Query, State};
use axum::response::Response;
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use tokio::net::UnixListener;
use tokio::sync::mpsc;
use understudy_config::{NodeName, StoreName};
use understudy_replication::event::{Event, Severity};
use understudy_replication::role::Role;
use understudy_replication::status::{Status, StatusSource};
use understudy_replication::store::{Stop, Stopper};
use understudy_replication::trust::{Authority, Token};
use understudy_replication::wall_time::WallTime;

use crate::failure::Failure;
use crate::invites::Invites;
use crate::node::{Node, Stage};
use crate::progress::{News, Sender};
use crate::promotion::Order;
use crate::{
    check, clone, drill, kv_api, returning, services, status_source, switchover, sync, wait,
};

/// How much news may wait for a slow terminal.
pub(crate) const NEWS_WAITING_MAX: usize = 256;

/// One line of an answer.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Line {
    News(News),
    Result(serde_json::Value),
    Failure(Failure),
}

/// The answer to an invitation.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Invitation {
    pub(crate) node: NodeName,
    pub(crate) url: String,
    pub(crate) token: String,
    pub(crate) expires: WallTime,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Invite {
    pub(crate) node: NodeName,
    pub(crate) lifetime_seconds: u64,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Rebuild {
    pub(crate) index: StoreName,
    /// From the first row, even if half a build is there.
    #[serde(default)]
    pub(crate) fresh: bool,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Search {
    pub(crate) index: StoreName,
    pub(crate) query: String,
    pub(crate) limit: usize,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Rollback {
    pub(crate) revision: u64,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct StoreAsked {
    pub(crate) store: StoreName,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct EventCount {
    pub(crate) count: usize,
}

/// Makes the admin socket: who connects from now on is answered as soon as it is served. Only the
/// daemon's own user may connect.
pub(crate) fn listen(socket: &Path) -> std::io::Result<UnixListener> {
    use std::os::unix::fs::PermissionsExt;
    if let Some(folder) = socket.parent() {
        understudy_replication::durable::create_directory(folder, 0o755)?;
    }
    // The lock on the state folder shows that no other daemon listens on a socket that is here.
    match std::fs::remove_file(socket) {
        Ok(()) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let listener = UnixListener::bind(socket)?;
    std::fs::set_permissions(socket, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Serves the admin socket until told to stop.
pub(crate) async fn serve(
    node: Arc<Node>,
    listener: UnixListener,
    stop: Stop,
) -> std::io::Result<()> {
    let router = Router::new()
        .route("/status", get(status))
        .route("/status/store", get(store_status))
        .route("/events", get(events))
        .route("/invite", post(invite))
        .route("/wait", post(wait_for_standbys))
        .route("/sync", post(synchronize))
        .route("/check", post(check_stores))
        .route("/promote", post(promote))
        .route("/switchover", post(switchover))
        .route("/pause", post(pause))
        .route("/resume", post(resume))
        .route("/rejoin", post(rejoin))
        .route("/rejoin/foresee", post(foresee))
        .route("/drill/rehearsal", post(rehearse))
        .route("/drill/cancel", post(cancel_drill))
        .route("/drill/switchover", post(drill_switchover))
        .route("/clone", post(clone_to))
        .route("/index/rebuild", post(rebuild))
        .route("/index/search", post(search))
        .route("/settings/rollback", post(rollback))
        .route("/services", post(order_service))
        .merge(kv_routes())
        .with_state(node);
    axum::serve(listener, router)
        .with_graceful_shutdown(async move { stop.wait().await })
        .await
}

/// Returns the routes of the key-value store: keys and values may be long.
fn kv_routes() -> Router<Arc<Node>> {
    type Asked<T> = (State<Arc<Node>>, Json<T>);
    let get = |(State(node), Json(asked)): Asked<kv_api::Get>| async move {
        stream(move |_| async move { kv_api::get(&node, &asked) })
    };
    let put = |(State(node), Json(asked)): Asked<kv_api::Put>| async move {
        stream(move |_| async move { kv_api::put(&node, &asked).await })
    };
    let delete = |(State(node), Json(asked)): Asked<kv_api::Delete>| async move {
        stream(move |_| async move { kv_api::delete(&node, &asked).await })
    };
    let scan = |(State(node), Json(asked)): Asked<kv_api::Scan>| async move {
        stream_while_heard(move |_, stop| async move { kv_api::scan(&node, &asked, &stop).await })
    };
    let show = |(State(node), Json(asked)): Asked<kv_api::ShowBundle>| async move {
        stream(move |progress| async move { kv_api::show(&node, asked, &progress).await })
    };
    let replay = |(State(node), Json(asked)): Asked<kv_api::ReplayBundle>| async move {
        stream(move |progress| async move { kv_api::replay(&node, asked, &progress).await })
    };
    Router::new()
        .route("/kv/get", post(get))
        .route("/kv/put", post(put))
        .route("/kv/del", post(delete))
        .route("/kv/scan", post(scan))
        .route("/kv/salvage/show", post(show))
        .route("/kv/salvage/replay", post(replay))
        .layer(DefaultBodyLimit::max(kv_api::REQUEST_BYTES_MAX))
}

/// Runs `work`, and returns its progress and its result as a stream of lines. The work goes on when the
/// caller goes away: a promotion must not stop because a terminal was closed.
fn stream<T, F, R>(work: F) -> Response
where
    T: Serialize,
    F: FnOnce(Sender) -> R + Send + 'static,
    R: Future<Output = Result<T, Failure>> + Send + 'static,
{
    stream_lines(|news, lines| async move {
        let line = line_of(work(news).await);
        (line, lines)
    })
}

/// Does the same for work that is told to stop when the caller goes away.
fn stream_while_heard<T, F, R>(work: F) -> Response
where
    T: Serialize + Send,
    F: FnOnce(Sender, Stop) -> R + Send + 'static,
    R: Future<Output = Result<T, Failure>> + Send + 'static,
{
    stream_lines(|news, lines| async move {
        let (stopper, stop) = Stopper::new();
        let mut work = Box::pin(work(news, stop));
        let result = tokio::select! {
            result = &mut work => result,
            () = lines.closed() => {
                stopper.stop();
                work.await
            }
        };
        (line_of(result), lines)
    })
}

fn line_of<T: Serialize>(result: Result<T, Failure>) -> Line {
    match result.and_then(|value| Ok(serde_json::to_value(value)?)) {
        Ok(value) => Line::Result(value),
        Err(failure) => Line::Failure(failure),
    }
}

/// Returns an answer of lines: what `work` sends, then what it returns.
fn stream_lines<F, R>(work: F) -> Response
where
    F: FnOnce(Sender, mpsc::Sender<Line>) -> R,
    R: Future<Output = (Line, mpsc::Sender<Line>)> + Send + 'static,
{
    let (lines, receiver) = mpsc::channel::<Line>(8);
    let (news, mut news_receiver) = mpsc::channel(NEWS_WAITING_MAX);
    let forward = lines.clone();
    let forwarding = tokio::spawn(async move {
        while let Some(news) = news_receiver.recv().await {
            if forward.send(Line::News(news)).await.is_err() {
                return;
            }
        }
    });
    let work = work(Sender::new(news), lines);
    tokio::spawn(async move {
        let (line, lines) = work.await;
        // All news comes before the result.
        if let Err(error) = forwarding.await {
            tracing::warn!(%error, "news of the progress was cut short");
        }
        let _caller_gone = lines.send(line).await.is_err();
    });
    let body = futures_util::stream::unfold(receiver, |mut receiver| async move {
        let line = receiver.recv().await?;
        let mut text = serde_json::to_vec(&line).unwrap_or_default();
        text.push(b'\n');
        Some((Ok::<_, Infallible>(text), receiver))
    });
    Response::new(Body::from_stream(body))
}

async fn status(State(node): State<Arc<Node>>) -> Response {
    stream(|_| async move { Ok::<Status, Failure>(node.status()) })
}

async fn store_status(State(node): State<Arc<Node>>, Query(asked): Query<StoreAsked>) -> Response {
    stream(move |_| async move { status_source::detail(&node, &asked.store) })
}

async fn events(State(node): State<Arc<Node>>, Query(asked): Query<EventCount>) -> Response {
    stream(move |_| async move { Ok::<Vec<Event>, Failure>(node.events.newest(asked.count)) })
}

async fn wait_for_standbys(
    State(node): State<Arc<Node>>,
    Json(order): Json<wait::Order>,
) -> Response {
    stream(move |_| async move { wait::wait(&node, &order).await })
}

async fn synchronize(State(node): State<Arc<Node>>, Json(order): Json<sync::Order>) -> Response {
    stream(move |progress| async move { sync::sync(&node, &order, &progress).await })
}

async fn check_stores(State(node): State<Arc<Node>>, Json(order): Json<check::Order>) -> Response {
    stream_while_heard(move |progress, stop| async move {
        check::run(&node, &order, &progress, &stop).await
    })
}

async fn promote(State(node): State<Arc<Node>>, Json(order): Json<Order>) -> Response {
    stream(move |progress| async move {
        node.tell_pause(&progress);
        crate::promotion::promote(&node, order, &progress).await
    })
}

async fn switchover(
    State(node): State<Arc<Node>>,
    Json(order): Json<switchover::Order>,
) -> Response {
    stream(move |progress| async move {
        node.tell_pause(&progress);
        switchover::switchover(&node, order, &progress).await
    })
}

async fn rejoin(State(node): State<Arc<Node>>, Json(order): Json<returning::Order>) -> Response {
    stream(move |progress| async move {
        node.tell_pause(&progress);
        returning::rejoin(&node, order, &progress).await
    })
}

async fn pause(State(node): State<Arc<Node>>, Json(order): Json<crate::pause::Order>) -> Response {
    stream(move |_| async move { crate::pause::begin(&node, &order).await })
}

async fn resume(State(node): State<Arc<Node>>) -> Response {
    stream(move |_| async move { crate::pause::end(&node).await })
}

async fn foresee(State(node): State<Arc<Node>>) -> Response {
    stream(move |progress| async move { crate::foresight::foresee(&node, &progress).await })
}

async fn rehearse(State(node): State<Arc<Node>>) -> Response {
    stream(move |progress| async move { drill::rehearse(&node, "operator", &progress).await })
}

async fn drill_switchover(
    State(node): State<Arc<Node>>,
    Json(to): Json<Option<NodeName>>,
) -> Response {
    stream(move |progress| async move { drill::there_and_back(&node, to, &progress).await })
}

async fn cancel_drill(State(node): State<Arc<Node>>) -> Response {
    stream(move |_| async move { Ok::<_, Failure>(node.drills.cancel().await) })
}

async fn clone_to(State(node): State<Arc<Node>>, Json(order): Json<clone::Order>) -> Response {
    stream(move |progress| async move { clone::make(&node, order, &progress).await })
}

async fn rebuild(State(node): State<Arc<Node>>, Json(asked): Json<Rebuild>) -> Response {
    stream(move |progress| async move {
        // In every role: each node keeps its own.
        let name = asked.index.as_str();
        let rebuilt = match asked.fresh {
            false => node.indexes.rebuild(name, &progress).await,
            true => node.indexes.rebuild_fresh(name, &progress).await,
        };
        rebuilt?;
        Ok(())
    })
}

async fn search(State(node): State<Arc<Node>>, Json(asked): Json<Search>) -> Response {
    stream(move |_| async move {
        acting_primary(&node).map_err(Failure::refused)?;
        let found = node
            .indexes
            .search(asked.index.as_str(), &asked.query, asked.limit)
            .await?;
        Ok(serde_json::to_value(found)?)
    })
}

/// Says why this node does not answer for the appliance, and who does.
pub(crate) fn acting_primary(node: &Node) -> Result<(), String> {
    match node.role() {
        Role::Primary { .. } => Ok(()),
        role @ (Role::Returning { .. }
        | Role::Standby { .. }
        | Role::Promoting { .. }
        | Role::Fenced { .. }) => {
            let primary = match role.primary(node.me()) {
                Some(primary) => format!("; ask node {primary}"),
                None => String::new(),
            };
            Err(format!(
                "node {} is {}{primary}",
                node.me(),
                role.name().as_str()
            ))
        }
    }
}

async fn order_service(
    State(node): State<Arc<Node>>,
    Json(order): Json<services::Order>,
) -> Response {
    stream(move |_| async move { services::carry_out(&node, &order).await })
}

async fn rollback(State(node): State<Arc<Node>>, Json(asked): Json<Rollback>) -> Response {
    stream(move |_| async move {
        acting_primary(&node).map_err(|reason| {
            Failure::refused(format!(
                "settings are changed on the primary only: {reason}"
            ))
        })?;
        let Stage::Primary(run) = node.stage() else {
            return Err(Failure::failed("the stores are not open yet"));
        };
        let settings = run
            .settings
            .clone()
            .ok_or_else(|| Failure::usage("there is no [settings] in the configuration"))?;
        Ok(serde_json::to_value(
            settings.rollback(asked.revision).await?,
        )?)
    })
}

async fn invite(State(node): State<Arc<Node>>, Json(asked): Json<Invite>) -> Response {
    stream(move |_| async move { make_invitation(&node, &asked) })
}

fn make_invitation(node: &Node, asked: &Invite) -> Result<Invitation, Failure> {
    acting_primary(node)
        .map_err(|reason| Failure::refused(format!("only the primary invites: {reason}")))?;
    if let Some(clone) = &node.clone_of {
        let of = clone.of.as_deref().unwrap_or("another cluster");
        return Err(Failure::refused(format!(
            "this is clone {} of {of}, made to try things on: it listens on this machine only, and no node joins it",
            clone.name
        ))
        .hint(format!("to add a standby, invite it on the primary of {of}")));
    }
    if asked.node == *node.me() {
        return Err(Failure::usage(format!("node {} is this node", asked.node)));
    }
    // A node that is being admitted changes the same file.
    let _joining = node.joining.lock().unwrap_or_else(PoisonError::into_inner);
    let authority = Authority::load(&node.local.pki_dir)?;
    let mut secret = [0; 32];
    rustix::rand::getrandom(&mut secret, rustix::rand::GetRandomFlags::empty())?;
    let token = Token {
        issuer: node.me().clone(),
        node: asked.node.clone(),
        fingerprint: authority.fingerprint()?,
        secret,
    };
    let now = WallTime::now();
    let lifetime = Duration::from_secs(asked.lifetime_seconds);
    Invites::of(&node.local.state_dir).add(&asked.node, &token, now, lifetime)?;
    node.events.record(
        Severity::Info,
        "invited",
        format!(
            "node {} is invited for {} s",
            asked.node, asked.lifetime_seconds
        ),
    );
    let config = node.config();
    let me = config
        .node(node.me())
        .ok_or_else(|| Failure::failed("this node is not in the configuration"))?;
    Ok(Invitation {
        node: asked.node.clone(),
        url: format!("https://{}", me.address),
        token: token.to_string(),
        expires: WallTime(
            now.0
                .saturating_add(asked.lifetime_seconds.saturating_mul(1000)),
        ),
    })
}
