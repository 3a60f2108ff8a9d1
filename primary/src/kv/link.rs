//! The links to the standbys: entries and what is committed go out, acknowledgements come in.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::{Request, State as With};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Json, Router};
use understudy_config::NodeName;
use understudy_replication::kv::entry::Entry;
use understudy_replication::kv::protocol::{Meeting, Session, Sketch, Welcome, meet};
use understudy_replication::kv::snapshot::Part;
use understudy_replication::kv::storage::{EntryReader, StorageError, Walk};
use understudy_replication::kv::wire::{
    self, FollowerSays, HEARTBEAT_INTERVAL, Hello, KV_LINK_VERSION, LeaderSays, Met, SILENCE_MAX,
};
use understudy_replication::log::LogError;
use understudy_replication::position::Position;
use understudy_replication::store::Stop;
use understudy_replication::transport::{Caller, FramesIn, FramesOut, Offered};

use super::{KvError, Pin, Shared};

/// How many bytes of entries are gathered for one frame, more or less.
const FRAME_BYTES: usize = 512 << 10;

/// How long a standby may take to take a frame.
const SEND_PATIENCE: Duration = Duration::from_secs(20);

/// How long a standby may be silent while it takes a snapshot to its disk.
const INSTALL_PATIENCE: Duration = Duration::from_secs(120);

/// What the handler works with.
#[derive(Clone)]
struct Shop {
    shared: Arc<Shared>,
    stop: Stop,
}

pub(super) fn routes(shared: Arc<Shared>, stop: Stop) -> Router {
    Router::new()
        .route("/link", get(link))
        .route("/meet", post(meet_at))
        .with_state(Shop { shared, stop })
}

async fn link(
    With(shop): With<Shop>,
    Extension(caller): Extension<Caller>,
    mut request: Request,
) -> Response {
    let (offered, response) = match Offered::of(&mut request, caller.node.to_string()) {
        Ok(offered) => offered,
        Err(refusal) => return *refusal,
    };
    // It ends when the peer goes away or the store is closed: every wait within watches both.
    let mut runs = shop.shared.runs.subscribe();
    tokio::spawn(async move {
        let node = caller.node;
        let served = async {
            let mut duplex = offered.link().await?;
            let mut held = None;
            loop {
                let (incoming, outgoing) = (&mut duplex.incoming, &mut duplex.outgoing);
                serve(&shop.shared, &node, incoming, outgoing, &mut held).await?;
            }
        };
        let ended: Result<(), KvError> = tokio::select! {
            ended = served => ended,
            () = shop.stop.wait() => Ok(()),
            // The store was opened anew: sessions of the run before mean nothing any more.
            _ = runs.changed() => Ok(()),
        };
        if let Err(error) = ended {
            let error = understudy_replication::error_chain(&error);
            tracing::info!(%node, error, "the key-value link to a standby ended");
        }
    });
    response
}

/// Tells where a log parts from this one, and how much is behind that. Begins nothing.
async fn meet_at(With(shop): With<Shop>, Json(sketch): Json<Sketch>) -> Response {
    let shared = shop.shared;
    let met = tokio::task::spawn_blocking(move || {
        let storage = shared.storage().ok_or(KvError::Closed)?;
        // Nothing that is read here may go meanwhile.
        let _pin = shared.pin(Position(0));
        let (first, _) = storage.bounds();
        let lookup = |at| {
            let guard = shared.core();
            let recent = guard.as_ref().and_then(|core| core.recent.digest_at(at));
            recent.or_else(|| storage.digest_at(at))
        };
        Ok::<_, KvError>(match meet(&sketch, lookup, first) {
            Meeting::Stream { from } => Met {
                shared: Some(from.position),
                needs_snapshot: false,
                bytes: storage.bytes_behind(from.position)?,
            },
            Meeting::Snapshot { shared } => Met {
                shared: shared.map(|point| point.position),
                needs_snapshot: true,
                bytes: storage.gauges().get("table_bytes").copied().unwrap_or(0),
            },
        })
    });
    match met.await.map_err(|_| KvError::Closed).flatten() {
        Ok(met) => Json(met).into_response(),
        Err(error) => {
            let reason = understudy_replication::error_chain(&error);
            (StatusCode::SERVICE_UNAVAILABLE, reason).into_response()
        }
    }
}

/// Serves a follower from its hello to the end of its session, or through a snapshot; then it says hello again.
async fn serve(
    shared: &Arc<Shared>,
    node: &NodeName,
    incoming: &mut FramesIn,
    outgoing: &mut FramesOut,
    held: &mut Option<Pin>,
) -> Result<(), KvError> {
    let hello = hello(incoming).await?;
    if hello.version != KV_LINK_VERSION {
        let version = hello.version;
        let refused = KvError::Version { version };
        return refuse(outgoing, refused).await;
    }
    let Some(storage) = shared.storage() else {
        return refuse(outgoing, KvError::Closed).await;
    };
    // What is met at must not go before the first of it is sent.
    let pin = shared.pin(Position(0));
    // What a snapshot needs of the log is held by now.
    *held = None;
    let (first, _) = storage.bounds();
    // The lock is held for moments only: what the disk may have to be asked for is not asked with it.
    let recent = |at| {
        let guard = shared.core();
        guard.as_ref().and_then(|core| core.recent.digest_at(at))
    };
    let meeting = meet(
        &hello.sketch,
        |at| recent(at).or_else(|| storage.digest_at(at)),
        first,
    );
    let from = match meeting {
        Meeting::Stream { from } if !hello.wants_snapshot => from,
        Meeting::Stream { from } => {
            *held = Some(send_snapshot(shared, &hello, Some(from), outgoing).await?);
            return Ok(());
        }
        Meeting::Snapshot { shared: point } => {
            *held = Some(send_snapshot(shared, &hello, point, outgoing).await?);
            return Ok(());
        }
    };
    let joined = shared.with_core(|core| {
        let now = Instant::now();
        let promised = Some(&hello.promised);
        match core.leader.join(node, promised, from.position, now) {
            Some((session, actions)) => {
                let news = core.act(actions)?;
                Ok((Some((session, core.handed().position)), news))
            }
            None => Ok((None, Vec::new())),
        }
    })?;
    let Some((session, end)) = joined else {
        let epoch = hello.promised;
        return refuse(outgoing, KvError::Superseded { epoch }).await;
    };
    let policy = shared.policy();
    let says = LeaderSays::Welcome {
        welcome: Welcome {
            attempt: hello.attempt,
            session,
            epoch: shared.epoch()?,
            from: from.clone(),
            end,
        },
        standbys: policy.standbys,
        acknowledge: shared.config.acknowledge,
    };
    outgoing.add(&[&wire::encode(&says)?]);
    tracing::info!(%node, from = %from.position, "a standby follows the key-value store");
    let sending = send(shared, session, from.position, outgoing, &pin);
    let hearing = hear(shared, node, session, incoming);
    let ended = tokio::select! {
        ended = sending => ended,
        ended = hearing => ended,
    };
    drop(pin);
    // The core may be gone with the store; then nobody counts followers any more.
    let _left = shared.with_core(|core| {
        let actions = core.leader.left(node, session, Instant::now());
        Ok(((), core.act(actions)?))
    });
    shared.acknowledged.send_replace(());
    ended
}

async fn refuse(outgoing: &mut FramesOut, error: KvError) -> Result<(), KvError> {
    let reason = understudy_replication::error_chain(&error);
    outgoing.add(&[&wire::encode(&LeaderSays::Refused { reason })?]);
    outgoing.flush(SEND_PATIENCE).await?;
    Err(error)
}

async fn next(incoming: &mut FramesIn, limit: Duration) -> Result<FollowerSays, KvError> {
    let frame = tokio::time::timeout(limit, incoming.next()).await;
    let frame = frame.map_err(|_| KvError::Silent { limit })??;
    let frame = frame.ok_or(KvError::Closed)?;
    Ok(wire::from_follower(&frame)?)
}

async fn hello(incoming: &mut FramesIn) -> Result<Hello, KvError> {
    loop {
        match next(incoming, INSTALL_PATIENCE).await? {
            FollowerSays::Hello(hello) => return Ok(hello),
            FollowerSays::Here => {}
            FollowerSays::Acknowledged { .. } => return Err(KvError::OutOfTurn),
        }
    }
}

/// Takes acknowledgements until the link ends.
async fn hear(
    shared: &Shared,
    node: &NodeName,
    expected: Session,
    incoming: &mut FramesIn,
) -> Result<(), KvError> {
    loop {
        match next(incoming, SILENCE_MAX).await? {
            FollowerSays::Acknowledged { session, position } if session == expected => {
                shared.with_core(|core| {
                    let now = Instant::now();
                    let actions = core.leader.acknowledged(node, session, position, now);
                    Ok(((), core.act(actions)?))
                })?;
                shared.acknowledged.send_replace(());
            }
            FollowerSays::Acknowledged { .. } | FollowerSays::Here => {}
            FollowerSays::Hello(_) => return Err(KvError::OutOfTurn),
        }
    }
}

/// Where the next entries to send come from.
enum Source {
    /// Memory.
    Recent,
    /// The log on the disk.
    Log(EntryReader),
}

/// Sends entries from `cursor` on, and what is committed, until the link ends.
async fn send(
    shared: &Arc<Shared>,
    session: Session,
    mut cursor: Position,
    outgoing: &mut FramesOut,
    pin: &Pin,
) -> Result<(), KvError> {
    let mut handed = shared.handed.subscribe();
    let mut settled = shared.settled.subscribe();
    let mut told = None;
    let mut source = Source::Recent;
    // The log is not let go before what is still to be sent.
    pin.move_to(cursor);
    loop {
        handed.mark_unchanged();
        let committed = settled.borrow_and_update().position;
        let entries;
        (entries, source) = gather(shared, cursor, source).await?;
        if let Some(last) = entries.last() {
            cursor = last.head.end;
            add(outgoing, session, committed, &entries);
            told = Some(committed);
            outgoing.flush(SEND_PATIENCE).await?;
            pin.move_to(cursor);
            continue;
        }
        if told != Some(committed) {
            add(outgoing, session, committed, &[]);
            told = Some(committed);
            outgoing.flush(SEND_PATIENCE).await?;
            continue;
        }
        let beat = tokio::time::sleep(HEARTBEAT_INTERVAL);
        tokio::select! {
            changed = handed.changed() => changed.map_err(|_| KvError::Closed)?,
            changed = settled.changed() => changed.map_err(|_| KvError::Closed)?,
            () = beat => told = None,
        }
    }
}

/// Adds a frame with `entries`, of which each is far shorter than a frame may be.
fn add(outgoing: &mut FramesOut, session: Session, committed: Position, entries: &[Entry]) {
    let head = wire::entries_head(session, committed);
    let lengths: Vec<[u8; 4]> = entries
        .iter()
        .map(|entry| {
            u32::try_from(entry.payload().len())
                .unwrap_or(u32::MAX)
                .to_le_bytes()
        })
        .collect();
    let mut parts: Vec<&[u8]> = Vec::with_capacity(1 + 2 * entries.len());
    parts.push(&head);
    for (entry, length) in entries.iter().zip(&lengths) {
        parts.push(length);
        parts.push(entry.payload());
    }
    outgoing.add(&parts);
}

/// Returns the next entries from `cursor` on, none if there are none yet.
async fn gather(
    shared: &Arc<Shared>,
    cursor: Position,
    source: Source,
) -> Result<(Vec<Entry>, Source), KvError> {
    let recent = {
        let guard = shared.core();
        let core = guard.as_ref().ok_or(KvError::Closed)?;
        core.recent.from(cursor, FRAME_BYTES)
    };
    if let Some(entries) = recent {
        return Ok((entries, Source::Recent));
    }
    let shared = shared.clone();
    let read = tokio::task::spawn_blocking(move || {
        let mut reader = match source {
            Source::Log(reader) => reader,
            Source::Recent => shared.storage().ok_or(KvError::Closed)?.reader(cursor)?,
        };
        let (mut entries, mut bytes) = (Vec::new(), 0);
        while bytes < FRAME_BYTES {
            match reader.next() {
                Ok(Some(entry)) => {
                    bytes += entry.payload().len();
                    entries.push(entry);
                }
                Ok(None) => break,
                // It was let go in between: the follower meets again, and gets a snapshot.
                Err(StorageError::Log(LogError::Gone { .. })) if !entries.is_empty() => break,
                Err(error) => return Err(error.into()),
            }
        }
        Ok((entries, Source::Log(reader)))
    });
    read.await.map_err(|_| KvError::Closed)?
}

/// Sends the table; the follower says hello again when it has it.
async fn send_snapshot(
    shared: &Arc<Shared>,
    hello: &Hello,
    point: Option<understudy_replication::kv::point::Point>,
    outgoing: &mut FramesOut,
) -> Result<Pin, KvError> {
    let storage = shared.storage().ok_or(KvError::Closed)?;
    let begin = storage.begin_snapshot();
    // What the log holds from there on makes it whole.
    let pin = shared.pin(begin.start.position);
    let may_send = {
        let guard = shared.core();
        let core = guard.as_ref().ok_or(KvError::Closed)?;
        core.leader
            .may_send_snapshot(begin.start.position, &hello.sketch)
    };
    if !may_send {
        // The standby asks again, and by then more is known.
        refuse(outgoing, KvError::Unsettled).await?;
    }
    tracing::info!(
        keys = begin.keys,
        "a standby takes a snapshot of the key-value store"
    );
    let says = LeaderSays::Snapshot {
        begin,
        shared: point,
    };
    outgoing.add(&[&wire::encode(&says)?]);
    let mut walk = Walk::default();
    while let Some(operations) = storage.walk(&mut walk) {
        outgoing.add(&[&wire::encode(&LeaderSays::Part(Part::Operations(
            operations,
        )))?]);
        outgoing.flush(SEND_PATIENCE).await?;
    }
    let end = Part::End(storage.end_snapshot());
    outgoing.add(&[&wire::encode(&LeaderSays::Part(end))?]);
    outgoing.flush(SEND_PATIENCE).await?;
    Ok(pin)
}

impl Shared {
    fn epoch(&self) -> Result<understudy_replication::epoch::Epoch, KvError> {
        let guard = self.core();
        let core = guard.as_ref().ok_or(KvError::Closed)?;
        Ok(core.leader.epoch().clone())
    }
}

/// Returns the position that the oldest of the pins holds.
pub(super) fn pinned(shared: &Shared) -> Option<Position> {
    let pins = shared
        .pins
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    pins.iter().map(|(_, position)| *position).min()
}
