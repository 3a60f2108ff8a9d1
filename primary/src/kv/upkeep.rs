//! What goes on beside the clients and the links: time passes, keys expire, snapshots let the log go.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use understudy_replication::event::Severity;
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

/// After a snapshot has failed, none is made for so long.
const SNAPSHOT_PAUSE_MS: u64 = 60_000;

/// After so many ticks the log is looked at, whether a snapshot is due.
const TICKS_PER_LOOK: u64 = 10;

/// How many expired keys are deleted at once: the lock is held so long.
const EXPIRED_AT_ONCE: usize = 256;

/// How many are deleted per tick: far more than clients can set meanwhile.
const EXPIRED_PER_TICK: usize = 16_384;

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
    let mut has_ended = false;
    let ended = loop {
        tokio::select! {
            _ = tick.tick() => {}
            ended = &mut committing => {
                has_ended = true;
                break ended.unwrap_or(Err(KvError::Closed));
            }
            () = stop.wait() => break Ok(()),
        }
        if let Err(error) = pass(shared) {
            break Err(error);
        }
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
    // Nobody else may use the files before this thread is gone.
    is_over.store(true, Ordering::SeqCst);
    {
        let _core = shared.core();
        shared.to_sync.notify_all();
    }
    let ended = if has_ended {
        ended
    } else {
        let committed = committing.await.unwrap_or(Err(KvError::Closed));
        ended.and(committed)
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
    // What was deleted is in the table until it is committed: the same keys are looked at once.
    let now = WallTime::now();
    let due = storage.visible().table.due(now, EXPIRED_PER_TICK);
    for keys in due.chunks(EXPIRED_AT_ONCE) {
        let purged = shared.write(&mut |space| {
            for key in keys {
                // A key that was changed since has not expired any more.
                let _purged = space.purge(key).is_ok();
                space.end_atom();
            }
        });
        if let Err(refusal) = purged {
            tracing::debug!(%refusal, "keys that have expired are deleted later");
            return;
        }
    }
}

/// Makes a snapshot if one is due, and lets the log go as far as nobody needs it.
fn tidy(shared: &Shared, storage: &Storage) {
    let failed = shared.snapshot_failed.load(Ordering::SeqCst);
    let now = WallTime::now().0;
    let may_try = now.saturating_sub(failed) >= SNAPSHOT_PAUSE_MS;
    if may_try
        && storage.is_snapshot_due()
        && let Err(error) = storage.make_snapshot()
    {
        let error = understudy_replication::error_chain(&error);
        // Each try costs a walk through the table, and space that may be what is missing.
        shared.snapshot_failed.store(now, Ordering::SeqCst);
        shared.events.record(
            Severity::Warning,
            "kv_snapshot_failed",
            format!(
                "no snapshot of the key-value store could be made, and its log grows; it is tried again in a \
                 minute: {error}"
            ),
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
    let standbys = (shared.standbys)().joined;
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
    let promise = leader.durability();
    let lonely = core.lonely();
    // Before anybody has joined this run, what it began with is not known to be missing anywhere.
    let has_joined = !leader.followers().is_empty();
    let at_risk = if has_joined {
        leader.at_risk()
    } else {
        leader.at_risk().min(lonely.operations)
    };
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
        // Nobody has joined since it was promoted: it serves, and it serves alone.
        Promise::Standalone if (shared.standbys)().named > 0 => Some(Durability::Alone {
            seconds: Some(seconds(lonely.since)),
        }),
        Promise::Async | Promise::Standalone => None,
    };
    let at_risk = match (promise, durability) {
        (Promise::Standalone, Some(Durability::Alone { .. })) => lonely.operations,
        _ => at_risk,
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
    } else if let Some(Durability::Alone {
        seconds: Some(seconds),
    }) = durability
    {
        problems.push(format!(
            "degraded for {seconds} s: the primary goes on alone; operations that are on no standby: {at_risk}; \
             look at the standby and the network to it"
        ));
    }
    StoreReport {
        problems,
        gauges,
        durability,
        is_silent: false,
    }
}
