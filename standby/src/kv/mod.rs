//! Follows the key-value store of the primary: log first, visible once it is committed.
//!
//! ```text
//! link ─▶ Follower (the rules) ─▶ append, one fdatasync for all that has come ─▶ acknowledge
//!                             ├─▶ committed: the table
//!                             └─▶ cut off what the primary has not, into a salvage bundle first
//! ```

mod error;
mod follow;
mod keyspace;
mod session;

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::watch;
use understudy_config::{Kv, NodeName, StoreName};
use understudy_replication::epoch::Epoch;
use understudy_replication::event::{Events, Severity};
use understudy_replication::kv::slot::Slot;
use understudy_replication::kv::storage::Storage;
use understudy_replication::kv::wire::Met;
use understudy_replication::position::Position;
use understudy_replication::rejoin::{Foreseen, Method, Rejoined, Salvaged, Salvaging, Way};
use understudy_replication::store::{
    BoxFuture, LOG_POSITION_BYTES, Progress, Received, Receiver, Stop, Stopper, StoreFailure,
    StoreId, StoreKind, StoreReport,
};
use understudy_replication::transport::PeerClient;

pub use error::KvError;

use error::why;

/// The primary has so long to find where two logs part.
const MEETING_PATIENCE: Duration = Duration::from_secs(20);

/// What the copy's threads and tasks share.
struct Shared {
    id: StoreId,
    me: NodeName,
    config: Kv,
    slot: Slot,
    salvage: PathBuf,
    events: Events,
    state: Mutex<State>,
    /// Changes whenever a position does.
    moves: watch::Sender<()>,
    /// How much has come from the primary since this was opened, in bytes.
    came: AtomicU64,
}

/// What is told of the copy.
#[derive(Default)]
struct State {
    storage: Option<Arc<Storage>>,
    /// Who is followed.
    primary: Option<NodeName>,
    /// Why it does not advance.
    stalled: Option<String>,
    /// What was put aside since the copy was last asked to be made equal.
    salvaged: Option<Salvaged>,
    /// A snapshot was taken since then.
    has_installed: bool,
    /// The bytes of the log before what is visible, so far as entries have told.
    applied_bytes: u64,
}

/// The standby's end of the key-value store.
pub struct KvReceiver {
    shared: Arc<Shared>,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the store, read now if it is not open. Blocks.
    fn storage(&self) -> Result<Arc<Storage>, KvError> {
        if let Some((aside, error)) = self.slot.open_or_set_aside()? {
            self.events.record(
                Severity::Error,
                "kv_damaged",
                format!(
                    "the copy of the key-value store is damaged: {}; it was moved to {}, and a new one is copied \
                     from the primary",
                    understudy_replication::error_chain(&error),
                    aside.display()
                ),
            );
        }
        let (storage, opened) = self.slot.open()?;
        if let Some(opened) = opened {
            tracing::info!(?opened, "the key-value store was read");
        }
        self.state().storage = Some(storage.clone());
        Ok(storage)
    }
}

impl KvReceiver {
    /// Opens the copy in `slot`, and makes an empty one if there is none. Blocks.
    ///
    /// # Errors
    /// When what is there cannot be read.
    pub fn open(
        name: StoreName,
        me: NodeName,
        config: Kv,
        slot: Slot,
        salvage: PathBuf,
        events: Events,
    ) -> Result<Self, KvError> {
        let shared = Arc::new(Shared {
            id: StoreId {
                name,
                kind: StoreKind::Kv,
            },
            me,
            config,
            slot,
            salvage,
            events,
            state: Mutex::default(),
            moves: watch::Sender::new(()),
            came: AtomicU64::new(0),
        });
        shared.storage()?;
        Ok(Self { shared })
    }

    /// Follows until the copy has everything that the primary had when it was asked.
    async fn catch_up(
        &self,
        primary: &PeerClient,
        progress: &dyn Progress,
    ) -> Result<(), StoreFailure> {
        {
            let mut state = self.shared.state();
            state.salvaged = None;
            state.has_installed = false;
        }
        let (_stopper, stop) = Stopper::new();
        let (shared, handle) = (self.shared.clone(), Handle::current());
        let until = follow::Until::CaughtUp;
        tokio::task::block_in_place(|| {
            follow::follow(&shared, &handle, primary, &stop, until, progress)
        })?;
        Ok(())
    }
}

/// Tells what becomes of the log here, by where it meets the primary's.
fn foresee(storage: &Storage, met: &Met, epoch: &Epoch) -> Result<Foreseen, KvError> {
    let (first, _) = storage.bounds();
    let from = met.shared.unwrap_or(first).max(first);
    let (mut operations, mut bytes) = (0_u64, 0_u64);
    let mut reader = storage.reader(from)?;
    while let Some(entry) = reader.next()? {
        // See what is put aside in `follow`: what was made in the epoch that is followed was promised to nobody.
        if entry.head.epoch == *epoch {
            continue;
        }
        operations += entry.head.end.ahead_of(entry.head.start);
        bytes += 4 + u64::try_from(entry.payload().len()).unwrap_or(u64::MAX);
    }
    let way = if met.needs_snapshot {
        Way::Seeded
    } else {
        Way::Followed
    };
    Ok(Foreseen {
        way,
        salvaged_bytes: Some(bytes),
        travelling_bytes: Some(met.bytes),
        read_bytes: 0,
        basis: match met.shared {
            Some(shared) => format!(
                "both logs have the first {shared} operations; this one has {operations} further ones"
            ),
            None => format!(
                "the logs are not known to share anything; this one has {operations} operations"
            ),
        },
    })
}

impl Receiver for KvReceiver {
    fn id(&self) -> &StoreId {
        &self.shared.id
    }

    fn seed<'a>(
        &'a self,
        primary: &'a PeerClient,
        progress: &'a dyn Progress,
    ) -> BoxFuture<'a, Result<(), StoreFailure>> {
        Box::pin(self.catch_up(primary, progress))
    }

    fn rejoin<'a>(
        &'a self,
        primary: &'a PeerClient,
        _: Salvaging,
        progress: &'a dyn Progress,
    ) -> BoxFuture<'a, Result<Rejoined, StoreFailure>> {
        Box::pin(async move {
            let before = self.shared.came.load(Ordering::Relaxed);
            self.catch_up(primary, progress).await?;
            let came = self.shared.came.load(Ordering::Relaxed);
            let mut state = self.shared.state();
            Ok(Rejoined {
                method: if state.has_installed {
                    Method::Seeded
                } else {
                    Method::Followed
                },
                salvaged: state.salvaged.take(),
                travelled: Some(came.saturating_sub(before)),
            })
        })
    }

    fn foresee<'a>(
        &'a self,
        primary: &'a PeerClient,
    ) -> BoxFuture<'a, Result<Option<Foreseen>, StoreFailure>> {
        Box::pin(async move {
            let shared = self.shared.clone();
            let storage = tokio::task::spawn_blocking(move || shared.storage());
            let storage = storage.await.map_err(|_| KvError::Ended)??;
            let path = format!("/store/{}/meet", self.shared.id.name);
            let met: Met = primary
                .call(&path, &storage.sketch(), MEETING_PATIENCE)
                .await?;
            let epoch = primary.epoch();
            let foreseen = tokio::task::spawn_blocking(move || foresee(&storage, &met, &epoch));
            Ok(Some(foreseen.await.map_err(|_| KvError::Ended)??))
        })
    }

    fn run(
        self: Arc<Self>,
        primary: Arc<PeerClient>,
        stop: Stop,
    ) -> BoxFuture<'static, Result<(), StoreFailure>> {
        Box::pin(async move {
            let (shared, handle) = (self.shared.clone(), Handle::current());
            shared.state().primary = Some(primary.node().clone());
            let following = tokio::task::spawn_blocking(move || {
                let progress = understudy_replication::store::NoProgress;
                let until = follow::Until::Stopped;
                let ended = follow::follow(&shared, &handle, &primary, &stop, until, &progress);
                if let Err(error) = &ended {
                    shared.state().stalled = Some(understudy_replication::error_chain(error));
                }
                ended
            });
            Ok(following.await.map_err(|_| KvError::Ended)??)
        })
    }

    fn received(&self) -> Received {
        let state = self.shared.state();
        let Some(storage) = state.storage.as_ref() else {
            return Received {
                stalled: state.stalled.clone(),
                ..Received::default()
            };
        };
        let mut gauges = storage.gauges();
        gauges.insert(LOG_POSITION_BYTES.to_owned(), state.applied_bytes);
        let whole_from = storage.whole_from();
        let told = |position: Position| whole_from.is_none().then_some(position);
        let (_, flushed) = storage.bounds();
        let problems = whole_from.map(|until| {
            format!(
                "this copy is not whole, and cannot be promoted: {}",
                why(until)
            )
        });
        Received {
            flushed: told(flushed),
            applied: told(storage.visible().position()),
            stalled: state.stalled.clone(),
            stall_reason: None,
            must_reseed: false,
            report: StoreReport {
                problems: problems.into_iter().collect(),
                gauges,
                ..StoreReport::default()
            },
        }
    }

    fn moves(&self) -> Option<watch::Receiver<()>> {
        Some(self.shared.moves.subscribe())
    }

    fn take_over<'a>(
        &'a self,
        _: &'a Epoch,
        _: &'a dyn Progress,
    ) -> BoxFuture<'a, Result<(), StoreFailure>> {
        Box::pin(async move {
            let shared = self.shared.clone();
            let taken = tokio::task::spawn_blocking(move || {
                let storage = shared.storage()?;
                if let Some(until) = storage.whole_from() {
                    return Err(KvError::NotWhole { until });
                }
                // Everything that is durable here counts as committed: some of it may have been acknowledged.
                let end = storage.sync()?;
                storage.apply_up_to(end)?;
                Ok(())
            });
            Ok(taken.await.map_err(|_| KvError::Ended)??)
        })
    }
}
