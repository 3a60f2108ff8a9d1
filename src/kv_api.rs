//! What the command line can ask of the key-value store, carried out in the daemon.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use understudy_config::NodeName;
use understudy_replication::event::Severity;
use understudy_replication::kv::keyspace::{Keyspace, Refusal};
use understudy_replication::kv::operation::{KV_KEY_BYTES_MAX, KV_VALUE_BYTES_MAX};
use understudy_replication::kv::salvage::{
    self, Bundle, ReplayError, ReplayOrder, Replayed, ShownBundle,
};
use understudy_replication::kv::shown::{Content, Shown};
use understudy_replication::kv::space::SpaceError;
use understudy_replication::kv::{PATTERN_BYTES_MAX, is_match};
use understudy_replication::position::Position;
use understudy_replication::role::Role;
use understudy_replication::store::{Stop, Stopper};
use understudy_replication::wall_time::WallTime;

use crate::admin_api::acting_primary;
use crate::failure::Failure;
use crate::kv_bundles;
use crate::node::Node;
use crate::progress::Sender;
use crate::stores::Makings;

/// Of what is at a key so many bytes are told: escaped as JSON they fit into a line of an answer.
const CONTENT_BYTES_MAX: usize = 2 << 20;

/// Of a value in a list of keys.
const LISTED_BYTES_MAX: usize = 1 << 10;

/// So many keys are looked at before others get their turn.
const KEYS_AT_ONCE: usize = 512;

/// The most keys that are listed.
pub(crate) const KEYS_LISTED_MAX: usize = 100_000;

/// A request has at most so many bytes: a command line cannot be longer.
pub(crate) const REQUEST_BYTES_MAX: usize = 16 << 20;

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Get {
    pub(crate) key: Shown,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Put {
    pub(crate) key: Shown,
    pub(crate) value: Shown,
    pub(crate) ttl_ms: Option<u64>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Delete {
    pub(crate) keys: Vec<Shown>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Scan {
    pub(crate) pattern: Option<Shown>,
    pub(crate) limit: usize,
    pub(crate) values: bool,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ShowBundle {
    pub(crate) bundle: String,
    /// The node that has it, if not this one.
    pub(crate) from: Option<NodeName>,
    pub(crate) limit: usize,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ReplayBundle {
    pub(crate) bundle: String,
    /// The node that has it, if not this one.
    pub(crate) from: Option<NodeName>,
    pub(crate) order: ReplayOrder,
}

/// What a change was.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Changed {
    /// How many keys were changed.
    pub(crate) keys: u64,
    /// The position behind the change.
    pub(crate) position: Position,
}

/// Keys that were found.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Scanned {
    pub(crate) keys: Vec<ScannedKey>,
    /// There are more than were asked for.
    pub(crate) has_more: bool,
}

/// A key that was found.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ScannedKey {
    pub(crate) key: Shown,
    /// What it is, in a word.
    pub(crate) kind: String,
    /// What is there, if that was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) content: Option<Content>,
}

/// Returns the store, or why there is none to ask.
fn keyspace(node: &Node) -> Result<Arc<dyn Keyspace>, Failure> {
    node.keyspace().ok_or_else(|| {
        if node.config().kv.is_none() {
            return Failure::usage("there is no [kv] in the configuration");
        }
        let reason = acting_primary(node).err();
        match reason {
            Some(reason) => Failure::refused(format!("the store is not open here: {reason}")),
            None => Failure::failed("the store is not open yet").hint("see `understudy status`"),
        }
    })
}

/// Returns the store of a primary, or a refusal that names the primary.
fn primary(node: &Node) -> Result<Arc<dyn Keyspace>, Failure> {
    if node.config().kv.is_some() {
        acting_primary(node).map_err(|reason| {
            Failure::refused(format!(
                "the key-value store is changed on the primary only: {reason}"
            ))
        })?;
    }
    keyspace(node)
}

/// Says why the store refuses, and what to do about it.
fn refused(node: &Node, refusal: &Refusal) -> Failure {
    let told = refusal.to_string();
    match refusal {
        Refusal::ReadOnly | Refusal::NotHere { .. } => {
            let reason = acting_primary(node).err().unwrap_or(told);
            let reads_here = node.config().kv.as_ref().is_some_and(|it| it.standby_reads);
            let refused = Failure::refused(format!("the store does not answer here: {reason}"));
            refused.hint(match reads_here {
                true => "run the command on the primary",
                false => {
                    "run the command on the primary; or set `standby_reads = true` in [kv] for reads"
                }
            })
        }
        Refusal::NoReplicas => Failure::failed(format!("{told} Whether it was kept is not known."))
            .hint("see `understudy status`: too few standbys follow; look at the key afterwards"),
        Refusal::Closed => {
            Failure::failed(told).hint("see `understudy status`; look at the key on the primary")
        }
        Refusal::Loading | Refusal::Busy => Failure::failed(told).hint("try again in a moment"),
        Refusal::OutOfMemory => {
            Failure::failed(told).hint("remove keys, or raise `memory` in [kv] of understudy.toml")
        }
        Refusal::Storage { .. } => Failure::failed(told)
            .hint("see `Runbooks` in the operations guide: the disk may be full or broken"),
    }
}

/// Looks at a key.
pub(crate) fn get(node: &Node, asked: &Get) -> Result<Content, Failure> {
    let mut content = Content::None;
    keyspace(node)?
        .read(&mut |space| content = Content::of(space, &asked.key.0, CONTENT_BYTES_MAX))
        .map_err(|refusal| refused(node, &refusal))?;
    Ok(content)
}

/// Makes a key a string; when it returns, that is committed.
pub(crate) async fn put(node: &Node, asked: &Put) -> Result<Changed, Failure> {
    if asked.key.0.len() > KV_KEY_BYTES_MAX || asked.value.0.len() > KV_VALUE_BYTES_MAX {
        return Err(Failure::usage(format!(
            "cannot put a key of {} bytes with a value of {}: a key has at most 64 KiB, a value 1 MiB",
            asked.key.0.len(),
            asked.value.0.len()
        )));
    }
    let keyspace = primary(node)?;
    let mut outcome = Ok(());
    let position = keyspace.write(&mut |space| {
        let now = space.now();
        let expires = asked.ttl_ms.map(|ttl| WallTime(now.0.saturating_add(ttl)));
        outcome = space.set(&asked.key.0, &asked.value.0, expires);
    });
    settle(node, keyspace.as_ref(), position, 1, outcome).await
}

/// Removes keys; when it returns, that is committed. Each is removed by itself.
pub(crate) async fn delete(node: &Node, asked: &Delete) -> Result<Changed, Failure> {
    let keyspace = primary(node)?;
    let (mut outcome, mut count) = (Ok(()), 0);
    let position = keyspace.write(&mut |space| {
        for key in &asked.keys {
            match space.delete(&key.0) {
                Ok(was_there) => count += u64::from(was_there),
                Err(error) => outcome = Err(error),
            }
            space.end_atom();
        }
    });
    settle(node, keyspace.as_ref(), position, count, outcome).await
}

async fn settle(
    node: &Node,
    keyspace: &dyn Keyspace,
    position: Result<Position, Refusal>,
    keys: u64,
    outcome: Result<(), SpaceError>,
) -> Result<Changed, Failure> {
    let position = position.map_err(|refusal| refused(node, &refusal))?;
    match outcome {
        Ok(()) => {}
        Err(SpaceError::OutOfMemory) => return Err(refused(node, &Refusal::OutOfMemory)),
        Err(error @ (SpaceError::WrongKind | SpaceError::ReadOnly | SpaceError::TooLarge)) => {
            return Err(error.into());
        }
    }
    keyspace
        .settled(position)
        .await
        .map_err(|refusal| refused(node, &refusal))?;
    Ok(Changed { keys, position })
}

/// Lists keys, in the order of their names as far as they are listed.
pub(crate) async fn scan(node: &Node, asked: &Scan, stop: &Stop) -> Result<Scanned, Failure> {
    let keyspace = keyspace(node)?;
    let limit = asked.limit.min(KEYS_LISTED_MAX);
    let pattern = asked.pattern.as_ref().map(|pattern| pattern.0.as_slice());
    if pattern.is_some_and(|pattern| pattern.len() > PATTERN_BYTES_MAX) {
        return Err(Failure::usage(format!(
            "a pattern has at most {PATTERN_BYTES_MAX} bytes"
        )));
    }
    let mut found = Scanned {
        keys: Vec::new(),
        has_more: false,
    };
    let (mut cursor, mut bytes) = (0, 0_usize);
    loop {
        keyspace
            .read(&mut |space| {
                let mut seen: Vec<(Vec<u8>, String)> = Vec::new();
                cursor = space.scan(cursor, KEYS_AT_ONCE, &mut |key, kind| {
                    if pattern.is_none_or(|pattern| is_match(pattern, key)) {
                        seen.push((key.to_vec(), kind.to_string()));
                    }
                });
                for (key, kind) in seen {
                    if found.keys.len() >= limit || bytes >= CONTENT_BYTES_MAX {
                        found.has_more = true;
                        return;
                    }
                    let content = asked
                        .values
                        .then(|| Content::of(space, &key, LISTED_BYTES_MAX));
                    let shown = content.as_ref().map_or(0, |_| LISTED_BYTES_MAX);
                    bytes = bytes.saturating_add(key.len() + shown);
                    found.keys.push(ScannedKey {
                        key: Shown(key),
                        kind,
                        content,
                    });
                }
            })
            .map_err(|refusal| refused(node, &refusal))?;
        if cursor == 0 || found.has_more || stop.is_stopped() {
            break;
        }
        tokio::task::yield_now().await;
    }
    found.keys.sort_by(|left, right| left.key.cmp(&right.key));
    Ok(found)
}

/// Opens a bundle; one that another node has is copied here first.
async fn open(
    node: &Arc<Node>,
    name: &str,
    from: Option<&NodeName>,
) -> Result<Arc<Bundle>, Failure> {
    if let Some(from) = from.filter(|from| *from != node.me()) {
        kv_bundles::fetch(node, from, name).await?;
    }
    let (folder, name) = (Makings::salvage(&node.local), name.to_owned());
    let opened = tokio::task::spawn_blocking(move || Bundle::open(&folder, &name)).await?;
    Ok(Arc::new(opened?))
}

fn not_replayed(node: &Node, error: ReplayError) -> Failure {
    match error {
        ReplayError::Refused { refusal, done } => {
            let failure = refused(node, &refusal);
            if done.keys == 0 {
                return failure;
            }
            Failure {
                message: format!(
                    "{}; {} keys were looked at by then, and {} added; it can be repeated",
                    failure.message, done.keys, done.added
                ),
                ..failure
            }
        }
        error @ (ReplayError::Bundle(_) | ReplayError::Entry { .. } | ReplayError::CutShort(_)) => {
            Failure::of(&error)
        }
    }
}

/// Shows a bundle of what was superseded, beside what is there now: on the primary, which is asked from here
/// if this node is none.
pub(crate) async fn show(
    node: &Arc<Node>,
    asked: ShowBundle,
    progress: &Sender,
) -> Result<ShownBundle, Failure> {
    if let Some(primary) = other_primary(node) {
        let from = asked.from.unwrap_or_else(|| node.me().clone());
        let asked = ShowBundle {
            from: Some(from),
            ..asked
        };
        return ask_primary(node, &primary, "/peer/kv/salvage/show", &asked, progress).await;
    }
    let keyspace = primary(node)?;
    let bundle = open(node, &asked.bundle, asked.from.as_ref()).await?;
    salvage::show(keyspace.as_ref(), &bundle, asked.limit)
        .await
        .map_err(|error| not_replayed(node, error))
}

/// Replays a bundle of what was superseded: on the primary, which is asked from here if this node is none.
pub(crate) async fn replay(
    node: &Arc<Node>,
    asked: ReplayBundle,
    progress: &Sender,
) -> Result<Replayed, Failure> {
    if let Some(primary) = other_primary(node) {
        let from = asked.from.unwrap_or_else(|| node.me().clone());
        let asked = ReplayBundle {
            from: Some(from),
            ..asked
        };
        return ask_primary(node, &primary, "/peer/kv/salvage/replay", &asked, progress).await;
    }
    let keyspace = primary(node)?;
    let bundle = open(node, &asked.bundle, asked.from.as_ref()).await?;
    let mut done = Replayed::default();
    let replayed = salvage::replay(keyspace.as_ref(), &bundle, asked.order, progress, &mut done)
        .await
        .map_err(|error| not_replayed(node, error));
    if !asked.order.is_dry_run {
        let (severity, what) = match &replayed {
            Ok(()) if done.failed == 0 => (Severity::Info, "was replayed".to_owned()),
            Ok(()) => (Severity::Warning, "was replayed in part".to_owned()),
            Err(failure) => (
                Severity::Warning,
                format!("was not replayed to its end: {}", failure.message),
            ),
        };
        let Replayed {
            added,
            overwritten,
            conflicts,
            failed,
            ..
        } = &done;
        node.events.record(
            severity,
            "kv_replayed",
            format!(
                "{} {what}: {added} keys added, {overwritten} overwritten, {conflicts} left as they are, \
                 {failed} could not be changed",
                bundle.name
            ),
        );
    }
    replayed.map(|()| done)
}

/// Returns the primary that this node follows, if it follows one: there is the store that a bundle, which
/// lies where the log was cut, is compared with.
fn other_primary(node: &Node) -> Option<NodeName> {
    match node.role() {
        Role::Standby { primary, .. } => Some(primary),
        Role::Primary { .. }
        | Role::Returning { .. }
        | Role::Promoting { .. }
        | Role::Fenced { .. } => None,
    }
}

async fn ask_primary<T: serde::de::DeserializeOwned>(
    node: &Arc<Node>,
    primary: &NodeName,
    path: &str,
    asked: &(impl Serialize + Sync),
    progress: &Sender,
) -> Result<T, Failure> {
    let client = node
        .client(primary)
        .ok_or_else(|| Failure::failed(format!("node {primary} is not in the configuration")))?;
    // It goes on when the terminal is closed, as it does on the primary itself.
    let (_stopper, stop) = Stopper::new();
    let told = crate::peer_work::ask(&client, path, asked, progress, &stop).await?;
    told.ok_or_else(|| Failure::failed(format!("node {primary} was not waited for")))
}
