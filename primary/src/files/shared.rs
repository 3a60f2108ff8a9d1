//! What the capture and the routes of one store share.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use rustix::event::{EventfdFlags, eventfd};
use tokio::sync::{oneshot, watch};
use understudy_config::Globs;
use understudy_replication::epoch::Epoch;
use understudy_replication::event::{Events, Severity};
use understudy_replication::files::{Ledger, RelPath};
use understudy_replication::log::LogView;
use understudy_replication::position::Position;
use understudy_replication::store::StoreId;

/// How many problems are told; more are only counted.
const PROBLEMS_MAX: usize = 20;

pub(super) struct Shared {
    pub(super) id: StoreId,
    pub(super) epoch: Epoch,
    pub(super) root: PathBuf,
    pub(super) state: PathBuf,
    pub(super) exclude: Globs,
    pub(super) events: Events,
    /// `None` once the shipper has been dropped (the other end of this node may open it then), and
    /// after a failed commit (it is read from the disk again, which tells what has got there).
    pub(super) ledger: Mutex<Option<Ledger>>,
    pub(super) log: Mutex<LogView>,
    /// Rises when the log is opened anew: who reads the former one sees nothing new in it.
    pub(super) log_generation: AtomicU64,
    /// The newest position that may be shipped.
    pub(super) position: watch::Sender<Position>,
    /// Everything has been looked at once: the manifest shows the tree.
    pub(super) is_ready: watch::Sender<bool>,
    /// What happens on the tree is not trusted to mean what it seems to.
    pub(super) is_halted: AtomicBool,
    inbox: Mutex<Inbox>,
    pub(super) wake: OwnedFd,
    problems: Mutex<BTreeMap<String, String>>,
}

/// What others want of the capture.
#[derive(Default)]
pub(super) struct Inbox {
    pub(super) marks: Vec<MarkRequest>,
    /// Files whose content a standby could not be sent.
    pub(super) owed: BTreeSet<RelPath>,
}

pub(super) struct MarkRequest {
    pub(super) asked: Instant,
    pub(super) until: Instant,
    pub(super) reply: oneshot::Sender<Option<Position>>,
}

impl Shared {
    #[expect(
        clippy::too_many_arguments,
        reason = "the parts of one value, each named there"
    )]
    pub(super) fn new(
        id: StoreId,
        epoch: Epoch,
        root: PathBuf,
        state: PathBuf,
        exclude: Globs,
        events: Events,
        ledger: Ledger,
        position: Position,
    ) -> std::io::Result<Self> {
        let log = ledger.log_view();
        Ok(Self {
            id,
            epoch,
            root,
            state,
            exclude,
            events,
            ledger: Mutex::new(Some(ledger)),
            log: Mutex::new(log),
            log_generation: AtomicU64::new(0),
            position: watch::Sender::new(position),
            is_ready: watch::Sender::new(false),
            is_halted: AtomicBool::new(false),
            inbox: Mutex::default(),
            wake: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            problems: Mutex::default(),
        })
    }

    pub(super) fn ledger(&self) -> MutexGuard<'_, Option<Ledger>> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn log(&self) -> LogView {
        self.log
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Leaves something in the inbox and wakes the capture.
    pub(super) fn ask(&self, leave: impl FnOnce(&mut Inbox)) {
        leave(&mut self.inbox.lock().unwrap_or_else(PoisonError::into_inner));
        // It can only fail when the counter is full, and then the capture wakes, too.
        let _woken = rustix::io::write(&self.wake, &1_u64.to_ne_bytes()).is_ok();
    }

    pub(super) fn take_inbox(&self) -> Inbox {
        let mut count = [0; 8];
        // Nothing to read means that nobody has asked.
        let _asked = rustix::io::read(&self.wake, &mut count).is_ok();
        std::mem::take(&mut *self.inbox.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Tells the operators of a problem, once as long as it lasts.
    pub(super) fn problem(&self, about: &str, severity: Severity, kind: &str, text: String) {
        let mut problems = self.problems.lock().unwrap_or_else(PoisonError::into_inner);
        if problems.get(about) == Some(&text) {
            return;
        }
        let is_told = problems.contains_key(about) || problems.len() < PROBLEMS_MAX;
        if is_told {
            problems.insert(about.to_owned(), text.clone());
            drop(problems);
            self.events.record(severity, kind, text);
        }
    }

    /// Notes that a problem is over.
    pub(super) fn mended(&self, about: &(impl ToString + ?Sized)) {
        let mut problems = self.problems.lock().unwrap_or_else(PoisonError::into_inner);
        // Asked for every path that is looked at; there is hardly ever one.
        if !problems.is_empty() {
            problems.remove(&about.to_string());
        }
    }

    pub(super) fn problems(&self) -> Vec<String> {
        let problems = self.problems.lock().unwrap_or_else(PoisonError::into_inner);
        problems.values().cloned().collect()
    }
}
