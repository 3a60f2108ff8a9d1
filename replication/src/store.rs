//! What a store offers its role, and nothing more.

use std::error::Error;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use understudy_config::{NodeName, StoreName};

use crate::check::{Checked, Depth, Trouble};
use crate::epoch::Epoch;
use crate::guard::Withheld;
use crate::position::Position;
use crate::rejoin::{Foreseen, Method, Rejoined, Salvaging};
use crate::stall::StallReason;
use crate::transport::PeerClient;

/// A future that a store returns through its trait object.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Why a store cannot go on; its chain of sources tells the whole story.
pub type StoreFailure = Box<dyn Error + Send + Sync>;

/// What a store refuses to do, or cannot. A caller finds it in a [`StoreFailure`] by its type.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreRefusal {
    /// The kind of store has none.
    #[error("store {0} is of kind {1}, which has no delete guard", id.name, id.kind)]
    NoDeleteGuard {
        /// The store.
        id: StoreId,
    },
    /// The kind of store cannot be verified or scrubbed.
    #[error("store {0} is of kind {1}, which cannot be checked", id.name, id.kind)]
    NoCheck {
        /// The store.
        id: StoreId,
    },
    /// The store cannot tell where it is now.
    #[error("store {} cannot tell its position now", id.name)]
    NoPosition {
        /// The store.
        id: StoreId,
    },
    /// The delete guard holds back what would be deleted.
    #[error("store {} holds back a deletion: {withheld}", id.name)]
    DeletesWithheld {
        /// The store.
        id: StoreId,
        /// How much would go.
        withheld: Withheld,
    },
}

/// The kinds of stores.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StoreKind {
    /// A Postgres cluster; positions are LSNs, lag is in bytes.
    Postgres,
    /// A tree of data files; positions are bytes of its log, lag is in bytes.
    Files,
    /// The key-value store; positions are operations, lag is in operations, and in bytes of its log beside.
    Kv,
    /// Configuration files; positions are revisions, lag is in revisions.
    Settings,
}

impl StoreKind {
    /// Returns the word that messages, keys and metrics use.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Postgres => "postgres",
            Self::Files => "files",
            Self::Kv => "kv",
            Self::Settings => "settings",
        }
    }

    /// Returns whether stores of this kind can be verified and scrubbed.
    pub fn is_checkable(self) -> bool {
        match self {
            Self::Files => true,
            Self::Postgres | Self::Kv | Self::Settings => false,
        }
    }

    /// Returns the unit of positions and of lag, in the plural.
    pub fn unit(self) -> &'static str {
        match self {
            Self::Postgres | Self::Files => "bytes",
            Self::Kv => "operations",
            Self::Settings => "revisions",
        }
    }

    /// Returns the unit as the keys of `/monitor/replication` have it.
    pub fn unit_key(self) -> &'static str {
        match self {
            Self::Postgres | Self::Files | Self::Settings => self.unit(),
            Self::Kv => "ops",
        }
    }

    /// Returns whether stores of this kind tell, beside positions that are not bytes, how many bytes of
    /// their log lie before them: as the gauge [`LOG_POSITION_BYTES`], on either side.
    pub fn tells_bytes(self) -> bool {
        match self {
            Self::Kv => true,
            Self::Postgres | Self::Files | Self::Settings => false,
        }
    }
}

impl fmt::Display for StoreKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The name and the kind of a store.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct StoreId {
    /// The name in the configuration; `postgres` and `settings` for those.
    pub name: StoreName,
    /// What kind of thing it is.
    pub kind: StoreKind,
}

/// A request to stop that many tasks can wait for.
///
/// Cloning is cheap. Dropping the [`Stopper`] also stops: a task never outlives its owner.
#[derive(Clone, Debug)]
pub struct Stop(watch::Receiver<bool>);

/// The end of a [`Stop`] that gives the word.
#[derive(Debug)]
pub struct Stopper(watch::Sender<bool>);

impl Stopper {
    /// Returns a pair of the end that stops and the end that waits.
    pub fn new() -> (Self, Stop) {
        let (sender, receiver) = watch::channel(false);
        (Self(sender), Stop(receiver))
    }

    /// Returns one more end that waits.
    pub fn subscribe(&self) -> Stop {
        Stop(self.0.subscribe())
    }

    /// Tells all who wait to stop.
    pub fn stop(&self) {
        self.0.send_replace(true);
    }
}

impl Stop {
    /// Waits until the word to stop is given. Safe to cancel.
    pub async fn wait(&self) {
        let mut receiver = self.0.clone();
        // An error means that the owner is gone, which is a word to stop as well.
        let _owner_gone = receiver.wait_for(|stopped| *stopped).await.is_err();
    }

    /// Returns whether the word to stop has been given.
    pub fn is_stopped(&self) -> bool {
        *self.0.borrow() || self.0.has_changed().is_err()
    }
}

/// The gauge that tells how many bytes of the store's log lie before its position: on a primary before the
/// end, on a standby before what is applied there.
///
/// Both sides count the same bytes from the same beginning, which a copy that was made of a snapshot learns
/// with it; else the difference would be no lag.
pub const LOG_POSITION_BYTES: &str = "log_position_bytes";

/// The gauge of a primary that tells how many operations it has acknowledged that no standby has: what its
/// loss would take now. It is 0 while [`Durability::Held`].
pub const AT_RISK_OPERATIONS: &str = "at_risk_operations";

/// What a store tells of itself, beside its positions, for status and metrics.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreReport {
    /// What needs an operator, in a sentence; empty when all is well.
    pub problems: Vec<String>,
    /// Figures by their name in metrics, such as `log_bytes`, in base units.
    pub gauges: std::collections::BTreeMap<String, u64>,
    /// Whether what is acknowledged is on a standby, too, where that is asked of the store.
    #[serde(default)]
    pub durability: Option<Durability>,
    /// What holds the data has not answered for some seconds: nobody can write to it.
    #[serde(default)]
    pub is_silent: bool,
}

/// Whether what a store acknowledges is durable on a standby by then.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "state")]
pub enum Durability {
    /// It is.
    Held,
    /// No standby is there, and nothing is acknowledged until one is.
    Waiting {
        /// For how long already.
        seconds: u64,
    },
    /// It is but for some sessions, of which somebody has said that they need not wait.
    Overridden,
    /// It is not: the primary has gone on alone.
    Alone {
        /// For how long already, where the store knows it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        seconds: Option<u64>,
    },
}

impl Durability {
    /// Returns the word that metrics use; JSON has the same as its `state`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Held => "held",
            Self::Waiting { .. } => "waiting",
            Self::Overridden => "overridden",
            Self::Alone { .. } => "alone",
        }
    }

    /// Returns for how long it has not been held, in seconds; `None` where that is not told.
    pub fn seconds(self) -> Option<u64> {
        match self {
            Self::Held => Some(0),
            Self::Waiting { seconds } => Some(seconds),
            Self::Overridden => None,
            Self::Alone { seconds } => seconds,
        }
    }
}

/// How far a standby's copy of a store is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Received {
    /// What is durable here: a failure of the primary can no longer take it.
    pub flushed: Option<Position>,
    /// What is visible here: a promotion would serve it at once.
    pub applied: Option<Position>,
    /// Why it does not advance, in a sentence; `None` while it does.
    pub stalled: Option<String>,
    /// The same in a word, where it has one.
    #[serde(default)]
    pub stall_reason: Option<StallReason>,
    /// The copy cannot catch up from the log any more, and has to be compared whole.
    pub must_reseed: bool,
    /// What it tells beside its positions.
    pub report: StoreReport,
}

/// Shows how far a long work is; implementations must be cheap to call often.
pub trait Progress: Send + Sync {
    /// Starts a piece of work on `what`, of `total` units if that is known.
    fn start(&self, what: &str, total: Option<u64>, unit: Unit);
    /// Sets how much of the present piece is done.
    fn at(&self, done: u64);
    /// Ends the present piece with a word on its outcome.
    fn end(&self, outcome: &str);
}

/// What a progress counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Bytes, shown with a rate and the time left.
    Bytes,
    /// Things: files, rows, documents.
    Items,
}

/// A progress that nobody watches.
#[derive(Debug, Default)]
pub struct NoProgress;

impl Progress for NoProgress {
    fn start(&self, _: &str, _: Option<u64>, _: Unit) {}
    fn at(&self, _: u64) {}
    fn end(&self, _: &str) {}
}

/// What a primary sees of a standby by itself, without the standby's word.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Observed {
    /// The store sees nothing of its standbys; what they report is taken.
    ByReport,
    /// The standby streams.
    Streaming {
        /// What has been sent to it.
        sent: Position,
        /// What it has told to be durable there.
        flushed: Position,
        /// What it has told to be visible there.
        applied: Position,
    },
    /// The standby does not stream, and why.
    NotStreaming {
        /// A sentence.
        reason: String,
        /// What it needs has been removed here.
        must_reseed: bool,
    },
}

/// The primary's end of a store.
pub trait Shipper: Send + Sync {
    /// Returns which store this is.
    fn id(&self) -> &StoreId;

    /// Makes the store serve its application. Repeatable; called before [`Shipper::run`].
    fn open(&self) -> BoxFuture<'_, Result<(), StoreFailure>>;

    /// Ships until told to stop. An error is logged, shown, and tried again by the runtime.
    fn run(self: Arc<Self>, stop: Stop) -> BoxFuture<'static, Result<(), StoreFailure>>;

    /// Writes down what it can while it goes on serving, so that [`Shipper::fence`] is short.
    fn prepare(&self) -> BoxFuture<'_, Result<(), StoreFailure>> {
        Box::pin(async { Ok(()) })
    }

    /// Makes the store refuse writes, as far as it can. Repeatable; nothing is lost by it.
    fn fence(&self) -> BoxFuture<'_, Result<(), StoreFailure>>;

    /// Returns a position that covers everything that happened before the call, or `None` when
    /// that cannot be told now (then the mark has no position of this store, and lag grows).
    fn mark(&self) -> BoxFuture<'_, Option<Position>>;

    /// Returns the routes of the peer API, served beneath `/store/NAME`. Only authenticated peers
    /// reach them; the handler finds the caller in the request's extensions.
    fn routes(self: Arc<Self>) -> axum::Router;

    /// Looks at everything, whatever it knows already, and returns a position that covers what was
    /// there at the call.
    ///
    /// Fails with [`StoreRefusal::DeletesWithheld`] when the delete guard holds back a part of it;
    /// the rest has been taken then.
    fn sync_now(&self) -> BoxFuture<'_, Result<Position, StoreFailure>> {
        Box::pin(async move {
            let no_position = || StoreRefusal::NoPosition {
                id: self.id().clone(),
            };
            Ok(self.mark().await.ok_or_else(no_position)?)
        })
    }

    /// Lets the deletion through that the delete guard holds back now. Harmless when there is none;
    /// the guard is on again for what comes later.
    fn allow_deletes(&self) -> BoxFuture<'_, Result<(), StoreFailure>> {
        Box::pin(async move {
            Err(StoreRefusal::NoDeleteGuard {
                id: self.id().clone(),
            }
            .into())
        })
    }

    /// Checks the store against what is known of it, as deep as asked, until it is done or told to
    /// stop; then what was found so far is lost. One check of a store runs at a time. What is rotten
    /// here is told, and never shipped.
    fn check<'a>(
        &'a self,
        _depth: Depth,
        _progress: &'a dyn Progress,
        _stop: &'a Stop,
    ) -> BoxFuture<'a, Result<Checked, StoreFailure>> {
        Box::pin(async move {
            Err(StoreRefusal::NoCheck {
                id: self.id().clone(),
            }
            .into())
        })
    }

    /// Returns the root that the store had at `position`, if that is still known: a check of a copy that
    /// is somewhat behind is compared with it.
    fn root_at(&self, _position: Position) -> Option<String> {
        None
    }

    /// Returns the entries that cannot be shipped, oldest first; at most
    /// [`TROUBLES_MAX`](crate::check::TROUBLES_MAX), and cheap.
    fn troubles(&self) -> Vec<Trouble> {
        Vec::new()
    }

    /// Returns what it tells beside its position.
    fn report(&self) -> StoreReport;

    /// Returns what the store itself sees of a standby.
    fn observed(&self, _standby: &NodeName) -> Observed {
        Observed::ByReport
    }
}

/// The standby's end of a store.
pub trait Receiver: Send + Sync {
    /// Returns which store this is.
    fn id(&self) -> &StoreId;

    /// Makes the local copy equal to the primary's, from whatever is there: nothing, a part of an
    /// earlier attempt, or an older copy. Repeatable after a crash at any point. Refuses what
    /// exists here and was not put there by a seeding (see `force`).
    fn seed<'a>(
        &'a self,
        primary: &'a PeerClient,
        progress: &'a dyn Progress,
    ) -> BoxFuture<'a, Result<(), StoreFailure>>;

    /// Makes the copy of a node that was primary itself, or whose copy cannot follow any more, equal to
    /// the primary's. What only this side has is salvaged first. Called with everything of the store
    /// stopped. Repeatable after a crash at any point.
    fn rejoin<'a>(
        &'a self,
        primary: &'a PeerClient,
        _salvaging: Salvaging,
        progress: &'a dyn Progress,
    ) -> BoxFuture<'a, Result<Rejoined, StoreFailure>> {
        Box::pin(async move {
            self.seed(primary, progress).await?;
            Ok(Rejoined::by(Method::Seeded))
        })
    }

    /// Tells what [`Receiver::rejoin`] would do now. Changes nothing of the store. `None` where the store
    /// cannot tell.
    fn foresee<'a>(
        &'a self,
        _primary: &'a PeerClient,
    ) -> BoxFuture<'a, Result<Option<Foreseen>, StoreFailure>> {
        Box::pin(async { Ok(None) })
    }

    /// Follows the primary until told to stop, or until it fails; the runtime calls it again.
    fn run(
        self: Arc<Self>,
        primary: Arc<PeerClient>,
        stop: Stop,
    ) -> BoxFuture<'static, Result<(), StoreFailure>>;

    /// Tells that somebody waits for what the primary has now: a store that follows a schedule asks
    /// at once.
    fn hurry(&self) {}

    /// Returns how far the copy is; cheap.
    fn received(&self) -> Received;

    /// Returns what changes whenever the positions of [`Receiver::received`] have, so that who waits
    /// for one hears of it at once. Without it they are asked for again and again.
    fn moves(&self) -> Option<watch::Receiver<()>> {
        None
    }

    /// Checks the copy against what is known of it, as deep as asked, until it is done or told to
    /// stop; then what was found so far is lost. One check of a store runs at a time, beside
    /// [`Receiver::run`]. What is wrong is repaired from `primary`.
    fn check<'a>(
        &'a self,
        _primary: &'a PeerClient,
        _depth: Depth,
        _progress: &'a dyn Progress,
        _stop: &'a Stop,
    ) -> BoxFuture<'a, Result<Checked, StoreFailure>> {
        Box::pin(async move {
            Err(StoreRefusal::NoCheck {
                id: self.id().clone(),
            }
            .into())
        })
    }

    /// Returns the entries of the copy that cannot be brought up to date, oldest first; at most
    /// [`TROUBLES_MAX`](crate::check::TROUBLES_MAX), and cheap.
    fn troubles(&self) -> Vec<Trouble> {
        Vec::new()
    }

    /// Applies what is durable here but not yet visible, and makes the copy the primary's store in
    /// `epoch`. Called with [`Receiver::run`] stopped. Repeatable after a crash at any point.
    fn take_over<'a>(
        &'a self,
        epoch: &'a Epoch,
        progress: &'a dyn Progress,
    ) -> BoxFuture<'a, Result<(), StoreFailure>>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_durability_that_knows_no_time_looks_as_it_always_has() {
        let told = [
            (Durability::Held, r#"{"state":"held"}"#),
            (
                Durability::Waiting { seconds: 3 },
                r#"{"state":"waiting","seconds":3}"#,
            ),
            (Durability::Alone { seconds: None }, r#"{"state":"alone"}"#),
            (
                Durability::Alone { seconds: Some(7) },
                r#"{"state":"alone","seconds":7}"#,
            ),
        ];
        for (durability, json) in told {
            assert_eq!(serde_json::to_string(&durability).unwrap(), json);
            assert_eq!(
                serde_json::from_str::<Durability>(json).unwrap(),
                durability
            );
            assert!(json.contains(&format!("\"{}\"", durability.as_str())));
        }
    }
}
