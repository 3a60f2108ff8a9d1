//! Serves the key-value store, and ships it: a write is durable on the standbys before it is visible.
//!
//! ```text
//! client ─▶ write() ─▶ Core.draft ─▶ entry ─┬─▶ links ─▶ standbys (durable there) ─┐
//!                                           └─▶ committer: append, fdatasync ──────┤
//!                                    Leader (the rules) ◀──────────────────────────┘
//!                                           └─▶ committed: the table, the answers
//! ```
//! An entry is made at once while nothing is on its way to the disk; what comes meanwhile goes together in the
//! next one.

mod committer;
mod core;
mod error;
mod keyspace;
mod link;
mod recent;
mod upkeep;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::Router;
use tokio::sync::watch;
use understudy_config::{Kv, KvDurability, StoreName};
use understudy_replication::epoch::Epoch;
use understudy_replication::event::{Events, Severity};
use understudy_replication::kv::entry::{After, Entry};
use understudy_replication::kv::protocol::{Leader, Mode, Policy, Session, Start};
use understudy_replication::kv::slot::Slot;
use understudy_replication::kv::storage::Storage;
use understudy_replication::position::Position;
use understudy_replication::store::{
    BoxFuture, Shipper, Stop, StoreFailure, StoreId, StoreKind, StoreReport,
};

pub use error::KvError;

use self::core::{Core, News};

/// How many operations a follower may be behind for writes to wait for it again.
const NEAR_OPERATIONS: u64 = 50_000;

/// How long a fence waits for what was written to become durable here.
const FLUSH_PATIENCE: Duration = Duration::from_secs(10);

/// Who could have a copy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Others {
    /// How many standbys follow this node, linked or not.
    pub joined: usize,
    /// How many other nodes the configuration names.
    pub named: usize,
}

/// Tells who could have a copy now.
pub type Standbys = Arc<dyn Fn() -> Others + Send + Sync>;

/// In which state clients are answered.
#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    /// Nothing is known yet of what the log ended with.
    Opening,
    /// Reads and writes are taken.
    Open,
    /// Reads are; writes are refused, for want of standbys.
    Refusing,
    /// Nothing is taken any more: another node is to be primary. What was written before still settles.
    Fenced,
    /// Nothing settles any more.
    Closed,
    /// The disk has failed.
    Failed(String),
}

/// What clients wait for.
#[derive(Clone, Debug)]
struct Settled {
    position: Position,
    state: State,
    /// Which opening of the store it is of: positions of one mean nothing in another.
    run: u64,
}

/// What its threads and tasks share.
struct Shared {
    id: StoreId,
    config: Kv,
    events: Events,
    standbys: Standbys,
    slot: Slot,
    /// `None` until it is opened.
    core: Mutex<Option<Core>>,
    /// Told when the committer has something to do.
    to_sync: Condvar,
    /// What is visible, and in which state clients are answered.
    settled: watch::Sender<Settled>,
    /// The end of what was handed to the links.
    handed: watch::Sender<Position>,
    /// Changes with what standbys have acknowledged.
    acknowledged: watch::Sender<()>,
    /// Counts how often the store was opened.
    runs: watch::Sender<u64>,
    /// The log is needed from here on by links that send a snapshot.
    pins: Mutex<Vec<(u64, Position)>>,
    pin_numbers: AtomicU64,
    /// When a snapshot last failed, by the wall clock; 0 for never.
    snapshot_failed: AtomicU64,
}

/// The primary's end of the key-value store.
pub struct KvShipper {
    shared: Arc<Shared>,
    epoch: Epoch,
    stopper: understudy_replication::store::Stopper,
}

impl Shared {
    fn core(&self) -> MutexGuard<'_, Option<Core>> {
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn policy(&self) -> Policy {
        let mode = match self.config.durability {
            KvDurability::Async => Mode::Async,
            KvDurability::StandbyFirst { degrade_after } => Mode::StandbyFirst {
                acknowledge: std::num::NonZeroUsize::new(self.config.acknowledge)
                    .unwrap_or(std::num::NonZeroUsize::MIN),
                degrade_after,
                write_timeout: self.config.write_timeout,
            },
        };
        let others = (self.standbys)();
        // A primary that was just promoted has no standby yet, and serves all the same; but one that may never
        // go on alone waits for the first.
        let is_strict = self.config.durability
            == KvDurability::StandbyFirst {
                degrade_after: None,
            };
        Policy {
            mode,
            standbys: if is_strict {
                others.named.max(others.joined)
            } else {
                others.joined
            },
            near: NEAR_OPERATIONS,
        }
    }

    /// Tells who waits, and the operators, what has happened. Called with the core locked, so that what is told
    /// comes in the order in which it happened.
    fn tell(&self, core: &Core, news: &[News]) {
        self.handed.send_if_modified(|handed| {
            let end = core.handed().position;
            std::mem::replace(handed, end) != end
        });
        let position = core.leader.committed();
        let state = if !core.leader.is_open() {
            State::Opening
        } else if core.leader.takes_writes() {
            State::Open
        } else {
            State::Refusing
        };
        self.settled.send_if_modified(|settled| {
            let is_final = match settled.state {
                State::Fenced | State::Closed | State::Failed(_) => true,
                State::Opening | State::Open | State::Refusing => false,
            };
            let state = if is_final {
                settled.state.clone()
            } else {
                state
            };
            let is_news = settled.position != position || settled.state != state;
            settled.position = position;
            settled.state = state;
            is_news
        });
        for news in news {
            self.record(core, *news);
        }
    }

    fn record(&self, core: &Core, news: News) {
        let (severity, kind, message) = match news {
            News::Settled => return,
            News::Degraded(from) => (
                Severity::Error,
                "kv_degraded",
                format!(
                    "no standby has acknowledged a write of the key-value store in time: the primary goes on \
                     alone from operation {from}; what is written now is lost if this node is. Look at the \
                     standby and the network to it"
                ),
            ),
            News::Rejoining => (
                Severity::Info,
                "kv_rejoining",
                "writes to the key-value store wait for the standby again".to_owned(),
            ),
            News::Recovered => (
                Severity::Info,
                "kv_recovered",
                "everything in the key-value store is on the standby again".to_owned(),
            ),
            News::Refusing => (
                Severity::Error,
                "kv_refusing",
                format!(
                    "the key-value store refuses writes: no standby has acknowledged one for {} s, and \
                     degrade_after is \"never\"; {} operations wait. Look at the standby and the network to it",
                    self.config.write_timeout.as_secs(),
                    core.handed().position.ahead_of(core.leader.committed())
                ),
            ),
            News::Accepting => (
                Severity::Info,
                "kv_accepting",
                "the key-value store takes writes again".to_owned(),
            ),
        };
        self.events.record(severity, kind, message);
    }

    /// Notes that the store cannot go on, and tells who waits.
    fn fail(&self, error: &(dyn std::error::Error + 'static)) {
        let reason = understudy_replication::error_chain(error);
        tracing::error!(reason, "the key-value store has failed");
        self.slot.close();
        self.settled.send_if_modified(|settled| {
            let is_closed = settled.state == State::Closed;
            if !is_closed {
                settled.state = State::Failed(reason);
            }
            !is_closed
        });
        self.to_sync.notify_all();
    }

    /// Changes the core, and tells what follows.
    fn with_core<T>(
        &self,
        change: impl FnOnce(&mut Core) -> Result<(T, Vec<News>), KvError>,
    ) -> Result<T, KvError> {
        let mut guard = self.core();
        let core = guard.as_mut().ok_or(KvError::Closed)?;
        match change(core) {
            Ok((value, news)) => {
                self.tell(core, &news);
                Ok(value)
            }
            Err(error) => {
                drop(guard);
                self.fail(&error);
                Err(error)
            }
        }
    }

    /// Opens the store as the primary of `epoch`: begins a run with an entry that is durable before anybody is
    /// told of it.
    fn open(&self, epoch: &Epoch) -> Result<(), KvError> {
        let state = self.settled.borrow().state.clone();
        let has_failed = match state {
            State::Failed(_) => true,
            State::Fenced | State::Closed => return Err(KvError::Closed),
            State::Opening | State::Open | State::Refusing => false,
        };
        if self.core().is_some() && !has_failed {
            return Ok(());
        }
        // Reading all of it takes its time, and nobody waits for that: clients hear that it is being opened, or
        // go on reading what was visible before a failure.
        let (storage, opened) = self.slot.open()?;
        if let Some(opened) = opened {
            tracing::info!(?opened, "the key-value store was read");
        }
        if let Some(until) = storage.whole_from() {
            return Err(KvError::NotWhole { until });
        }
        let committed = storage.visible().position();
        let tail = storage.tail();
        let after = After {
            epoch,
            opened: None,
            point: &tail,
            bytes: storage.bytes_ever(),
            committed,
        };
        let opening = Entry::make(&after, &[]).map_err(KvError::Entry)?;
        storage.append([&opening])?;
        storage.sync()?;
        let start = Start {
            epoch: epoch.clone(),
            opened: tail.position,
            end: opening.head.end,
            committed,
            session: Session(random()?),
        };
        let (leader, actions) = Leader::new(start, self.policy(), Instant::now());
        let mut core = Core::new(storage, &opening, leader);
        let news = core.act(actions)?;
        let mut guard = self.core();
        let is_begun = self.settled.send_if_modified(|settled| {
            let is_over = match settled.state {
                State::Fenced | State::Closed => true,
                State::Opening | State::Open | State::Refusing | State::Failed(_) => false,
            };
            if !is_over {
                settled.position = core.leader.committed();
                settled.state = State::Opening;
                settled.run = settled.run.wrapping_add(1);
            }
            !is_over
        });
        if !is_begun {
            return Err(KvError::Closed);
        }
        self.tell(&core, &news);
        *guard = Some(core);
        drop(guard);
        self.runs.send_modify(|runs| *runs = runs.wrapping_add(1));
        Ok(())
    }

    fn storage(&self) -> Option<Arc<Storage>> {
        self.core().as_ref().map(|core| core.storage().clone())
    }
}

/// Returns a number that nobody can guess.
fn random() -> Result<u64, KvError> {
    let mut bytes = [0; 8];
    let flags = rustix::rand::GetRandomFlags::empty();
    match rustix::rand::getrandom(&mut bytes[..], flags) {
        Ok(8) => Ok(u64::from_le_bytes(bytes)),
        Ok(_) | Err(_) => Err(KvError::Random),
    }
}

impl KvShipper {
    /// Returns the primary's end of the store in `slot`, in `epoch`; it is opened by [`Shipper::open`].
    pub fn new(
        name: StoreName,
        config: Kv,
        slot: Slot,
        epoch: Epoch,
        standbys: Standbys,
        events: Events,
    ) -> Self {
        let settled = Settled {
            position: Position(0),
            state: State::Opening,
            run: 0,
        };
        Self {
            shared: Arc::new(Shared {
                id: StoreId {
                    name,
                    kind: StoreKind::Kv,
                },
                config,
                events,
                standbys,
                slot,
                core: Mutex::new(None),
                to_sync: Condvar::new(),
                settled: watch::Sender::new(settled),
                handed: watch::Sender::new(Position(0)),
                acknowledged: watch::Sender::new(()),
                runs: watch::Sender::new(0),
                pins: Mutex::default(),
                pin_numbers: AtomicU64::new(0),
                snapshot_failed: AtomicU64::new(0),
            }),
            epoch,
            stopper: understudy_replication::store::Stopper::new().0,
        }
    }
}

impl Shipper for KvShipper {
    fn id(&self) -> &StoreId {
        &self.shared.id
    }

    fn open(&self) -> BoxFuture<'_, Result<(), StoreFailure>> {
        let (shared, epoch) = (self.shared.clone(), self.epoch.clone());
        Box::pin(async move {
            tokio::task::spawn_blocking(move || shared.open(&epoch)).await??;
            Ok(())
        })
    }

    fn run(self: Arc<Self>, stop: Stop) -> BoxFuture<'static, Result<(), StoreFailure>> {
        Box::pin(async move {
            let ended = upkeep::run(&self.shared, &stop).await;
            if stop.is_stopped() {
                self.stopper.stop();
                self.shared.end(State::Closed);
            }
            Ok(ended?)
        })
    }

    fn fence(&self) -> BoxFuture<'_, Result<(), StoreFailure>> {
        Box::pin(async move {
            let mut handed = self.shared.handed.subscribe();
            if let State::Failed(_) = self.shared.settled.borrow().state {
                // What could not be written is not waited for.
                self.shared.end(State::Closed);
                return Ok(());
            }
            if let Some(core) = self.shared.core().as_mut() {
                core.leader.fence();
            }
            self.shared.end(State::Fenced);
            // What was written becomes durable here, and goes to the standbys; nothing more is written.
            let flushed = async {
                loop {
                    let is_flushed = match self.shared.core().as_mut() {
                        Some(core) => core.is_flushed(),
                        None => true,
                    };
                    if is_flushed {
                        return;
                    }
                    // Each entry that is made moves it; the last one may be on its way to the disk still.
                    let pause = Duration::from_millis(5);
                    let _moved = tokio::time::timeout(pause, handed.changed()).await.is_ok();
                }
            };
            if tokio::time::timeout(FLUSH_PATIENCE, flushed).await.is_err() {
                tracing::warn!("the last writes to the key-value store are not durable here yet");
            }
            Ok(())
        })
    }

    fn mark(&self) -> BoxFuture<'_, Option<Position>> {
        Box::pin(async move {
            let is_over = match self.shared.settled.borrow().state {
                State::Closed | State::Failed(_) => true,
                State::Opening | State::Open | State::Refusing | State::Fenced => false,
            };
            let guard = self.shared.core();
            let core = guard.as_ref()?;
            // What a failed disk has not taken will never be anywhere.
            Some(if is_over {
                core.leader.committed()
            } else {
                core.draft.end()
            })
        })
    }

    fn routes(self: Arc<Self>) -> Router {
        link::routes(self.shared.clone(), self.stopper.subscribe())
    }

    fn report(&self) -> StoreReport {
        upkeep::report(&self.shared)
    }
}

impl Shared {
    /// Takes nothing from clients any more; who waits is told when nothing can settle any more.
    fn end(&self, state: State) {
        self.settled.send_if_modified(|settled| {
            let is_news = settled.state != state;
            settled.state = state;
            is_news
        });
        self.to_sync.notify_all();
    }

    /// Holds the log from `position` on until what is returned is dropped.
    fn pin(self: &Arc<Self>, position: Position) -> Pin {
        let number = self.pin_numbers.fetch_add(1, Ordering::Relaxed);
        let mut pins = self.pins.lock().unwrap_or_else(PoisonError::into_inner);
        pins.push((number, position));
        Pin {
            shared: self.clone(),
            number,
        }
    }
}

/// Holds a part of the log.
struct Pin {
    shared: Arc<Shared>,
    number: u64,
}

impl Pin {
    /// Lets the log go before `position`.
    fn move_to(&self, position: Position) {
        let mut pins = self
            .shared
            .pins
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        for (number, pinned) in pins.iter_mut() {
            if *number == self.number {
                *pinned = position;
            }
        }
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        let mut pins = self
            .shared
            .pins
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        pins.retain(|(number, _)| *number != self.number);
    }
}
