//! What goes on beside the clients and the links: time passes, keys expire, snapshots let the log go.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use understudy_replication::kv::protocol::Durability as Promise;
use understudy_replication::kv::storage::Storage;
use understudy_replication::position::Position;
use understudy_replication::store::{
    AT_RISK_OPERATIONS, Durability, LOG_POSITION_BYTES, Stop, StoreReport,
};
use understudy_replication::wall_time::WallTime;

use super::{KvError, Shared, State, committer, link};

/// How often the rules are told that time has passed.
const TICK_INTERVAL: Duration = Duration::from_millis(50);

/// After so many ticks the log is looked at, whether a snapshot is due.
const TICKS_PER_LOOK: u64 = 10;

/// How many expired keys are deleted at once: the lock is held so long.
const EXPIRED_AT_ONCE: usize = 256;

/// Runs the store until told to stop, or until it fails.
pub(super) async fn run(shared: &Arc<Shared>, stop: &Stop) -> Result<(), KvError> {
    let is_over = Arc::new(AtomicBool::new(false));
    let committing = {
        let (shared, is_over) = (shared.clone(), is_over.clone());
        tokio::task::spawn_blocking(move || {
            committer::run(&shared, || is_over.load(Ordering::SeqCst))
        })
    };
    let mut committing = std::pin::pin!(committing);
    let mut snapshot: Option<tokio::task::JoinHandle<()>> = None;
    let mut tick = tokio::time::interval(TICK_INTERVAL);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut ticks: u64 = 0;
    let ended = loop {
        tokio::select! {
            _ = tick.tick() => {}
            ended = &mut committing => break ended.map_err(|_| KvError::Closed)?,
            () = stop.wait() => {
                is_over.store(true, Ordering::SeqCst);
                shared.to_sync.notify_all();
                break committing.await.map_err(|_| KvError::Closed)?;
            }
        }
        pass(shared)?;
        ticks = ticks.wrapping_add(1);
        let is_free = snapshot
            .as_ref()
            .is_none_or(tokio::task::JoinHandle::is_finished);
        if ticks.is_multiple_of(TICKS_PER_LOOK) && is_free {
            snapshot = shared.storage().map(|storage| {
                let shared = shared.clone();
                tokio::task::spawn_blocking(move || tidy(&shared, &storage))
            });
        }
    };
    if ended.is_ok()
        && let Some(storage) = shared.storage()
        && let Err(error) = storage.note_settled()
    {
        let error = understudy_replication::error_chain(&error);
        tracing::warn!(
            error,
            "the next start of the key-value store will wait for a standby"
        );
    }
    if let Some(snapshot) = snapshot {
        // It is short, or it is a snapshot, which is bounded by the size of the table.
        let _done = snapshot.await.is_ok();
    }
    ended
}

/// Tells the rules that time has passed, and deletes what has expired.
fn pass(shared: &Shared) -> Result<(), KvError> {
    let state = shared.settled.borrow().state.clone();
    match state {
        State::Opening | State::Open | State::Refusing => {}
        // A node that is fenced decides nothing any more.
        State::Fenced | State::Closed | State::Failed(_) => return Ok(()),
    }
    let policy = shared.policy();
    shared.with_core(|core| {
        let now = Instant::now();
        let mut actions = core.leader.regulate(policy, now);
        actions.extend(core.leader.tick(now));
        Ok(((), core.act(actions)?))
    })?;
    if state == State::Open {
        expire(shared);
    }
    Ok(())
}

fn expire(shared: &Shared) {
    let Some(storage) = shared.storage() else {
        return;
    };
    let due = storage
        .visible()
        .table
        .due(WallTime::now(), EXPIRED_AT_ONCE);
    if due.is_empty() {
        return;
    }
    let purged = shared.write(&mut |space| {
        for key in &due {
            // A key that was changed since has not expired any more.
            let _purged = space.purge(key).is_ok();
            space.end_atom();
        }
    });
    if let Err(refusal) = purged {
        tracing::debug!(%refusal, "keys that have expired are deleted later");
    }
}

/// Makes a snapshot if one is due, and lets the log go as far as nobody needs it.
fn tidy(shared: &Shared, storage: &Storage) {
    if storage.is_snapshot_due()
        && let Err(error) = storage.make_snapshot()
    {
        let error = understudy_replication::error_chain(&error);
        tracing::warn!(
            error,
            "no snapshot of the key-value store could be made; its log grows"
        );
        return;
    }
    let needed = needed(shared);
    if let Err(error) = storage.release(needed, shared.config.log_bytes) {
        let error = understudy_replication::error_chain(&error);
        tracing::warn!(error, "the log of the key-value store could not be let go");
    }
}

/// Returns from where on the log is needed by standbys.
fn needed(shared: &Shared) -> Position {
    let standbys = (shared.standbys)();
    let guard = shared.core();
    let Some(core) = guard.as_ref() else {
        return Position(0);
    };
    let followers = core.leader.followers();
    // One that has not been seen since the start may need all of it.
    let slowest = if followers.len() < standbys {
        Position(0)
    } else {
        let acknowledged = followers.values().map(|seen| seen.acknowledged);
        acknowledged.min().unwrap_or(Position(u64::MAX))
    };
    match link::pinned(shared) {
        Some(pinned) => slowest.min(pinned),
        None => slowest,
    }
}

/// Tells what the store is like.
pub(super) fn report(shared: &Shared) -> StoreReport {
    let guard = shared.core();
    let Some(core) = guard.as_ref() else {
        return StoreReport::default();
    };
    let storage = core.storage().clone();
    let leader = &core.leader;
    let (at_risk, promise) = (leader.at_risk(), leader.durability());
    let waiting = core.draft.end().ahead_of(leader.committed());
    let (group, pending) = (core.group, core.draft.pending_bytes());
    let (is_open, takes_writes) = (leader.is_open(), leader.takes_writes());
    drop(guard);
    let now = Instant::now();
    let seconds = |since: Instant| now.saturating_duration_since(since).as_secs();
    let durability = match promise {
        Promise::Held => Some(Durability::Held),
        Promise::Waiting { since } => Some(Durability::Waiting {
            seconds: seconds(since),
        }),
        Promise::Alone { since, .. } => Some(Durability::Alone {
            seconds: Some(seconds(since)),
        }),
        Promise::Async | Promise::Standalone => None,
    };
    let mut gauges = storage.gauges();
    let count = |number: usize| u64::try_from(number).unwrap_or(u64::MAX);
    gauges.extend([
        (AT_RISK_OPERATIONS.to_owned(), at_risk),
        (LOG_POSITION_BYTES.to_owned(), storage.bytes_ever()),
        ("waiting_operations".to_owned(), waiting),
        ("waiting_bytes".to_owned(), count(pending)),
        ("group_commit_operations".to_owned(), group),
    ]);
    let mut problems = Vec::new();
    if let State::Failed(reason) = &shared.settled.borrow().state {
        problems.push(format!("it has failed: {reason}"));
    } else if !is_open {
        problems.push(
            "it answers nobody yet: the last writes before the start have to be on a standby, or \
             degrade_after has to be over"
                .to_owned(),
        );
    } else if !takes_writes {
        problems.push(format!(
            "it refuses writes (NOREPLICAS): no standby acknowledges, and degrade_after is \"never\"; {waiting} \
             operations wait. Start the standby, or mend the network to it"
        ));
    } else if let Promise::Alone { since, .. } = promise {
        problems.push(format!(
            "degraded for {} s: the primary goes on alone, and {at_risk} operations are on no standby; look at \
             the standby and the network to it",
            seconds(since)
        ));
    }
    StoreReport {
        problems,
        gauges,
        durability,
    }
}
