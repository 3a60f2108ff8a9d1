//! What the capture and the routes of one store share.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use rustix::event::{EventfdFlags, eventfd};
use tokio::sync::{oneshot, watch};
use understudy_config::{Files, Globs};
use understudy_replication::check::Trouble;
use understudy_replication::epoch::Epoch;
use understudy_replication::event::{Events, Severity};
use understudy_replication::files::{Blocks, Digest, Ledger, Manifest, NodeId, RelPath, TOP};
use understudy_replication::guard::{DeleteGuard, Withheld};
use understudy_replication::log::{Log, LogView};
use understudy_replication::position::Position;
use understudy_replication::store::StoreId;
use understudy_replication::wall_time::WallTime;

use super::limit::Limits;

/// A content of at least this size is looked for elsewhere in the store before it is shipped.
const ELSEWHERE_FROM: u64 = 64 << 10;

/// How many problems are told; more are only counted.
const PROBLEMS_MAX: usize = 20;

/// As many paths wait for being looked at because a standby has asked for them in vain.
const SUPERSEDED_MAX: usize = 10_000;

pub(super) struct Shared {
    pub(super) id: StoreId,
    pub(super) epoch: Epoch,
    pub(super) root: PathBuf,
    pub(super) state: PathBuf,
    pub(super) config: Files,
    pub(super) events: Events,
    /// `None` once the shipper has been dropped (the other end of this node may open it then), and
    /// after a failed commit (it is read from the disk again, which tells what has got there).
    ledger: Mutex<Option<Ledger>>,
    /// What is shipped. Closed and opened with the ledger; locked after it.
    pub(super) shipped: Mutex<Option<Log>>,
    pub(super) blocks: Blocks,
    /// Which nodes hold a content, by the beginning of its hash; made when it is first asked for.
    contents: Mutex<Option<HashMap<u64, NodeId>>>,
    /// Which node was last seen with an inode; made when it is first asked for. Locked after the ledger.
    inodes: Mutex<Option<HashMap<u64, NodeId>>>,
    pub(super) guard: Mutex<DeleteGuard>,
    /// What the guard holds back.
    pub(super) withheld: Mutex<Option<Withheld>>,
    pub(super) limits: Limits,
    pub(super) log: Mutex<LogView>,
    /// Rises when the log is opened anew: who reads the former one sees nothing new in it.
    pub(super) log_generation: AtomicU64,
    /// The newest position that may be shipped.
    pub(super) position: watch::Sender<Position>,
    /// Everything has been looked at once: the manifest shows the tree.
    pub(super) is_ready: watch::Sender<bool>,
    /// What happens on the tree is not trusted to mean what it seems to.
    pub(super) is_halted: AtomicBool,
    /// The shipper has been dropped: somebody else may have opened what is kept.
    pub(super) is_left: AtomicBool,
    inbox: Mutex<Inbox>,
    pub(super) wake: OwnedFd,
    problems: Mutex<BTreeMap<String, Problem>>,
}

struct Problem {
    text: String,
    since: WallTime,
}

/// What others want of the capture.
#[derive(Default)]
pub(super) struct Inbox {
    pub(super) marks: Vec<MarkRequest>,
    /// Since when somebody wants everything to be looked at: who has asked for a mark then waits for
    /// that.
    pub(super) scan_wanted: Option<Instant>,
    /// What a standby has asked for, and does not look as it is known to.
    pub(super) superseded: BTreeSet<RelPath>,
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
        config: Files,
        events: Events,
        ledger: Ledger,
        shipped: Log,
    ) -> std::io::Result<Self> {
        let position = ledger.head().map_or(Position(0), |head| head.position);
        let log = shipped.view();
        Ok(Self {
            id,
            epoch,
            root,
            blocks: Blocks::open(&state),
            state,
            guard: Mutex::new(DeleteGuard::new(config.delete_guard)),
            withheld: Mutex::default(),
            limits: Limits::new(config.bandwidth),
            config,
            events,
            ledger: Mutex::new(Some(ledger)),
            shipped: Mutex::new(Some(shipped)),
            contents: Mutex::default(),
            inodes: Mutex::default(),
            log: Mutex::new(log),
            log_generation: AtomicU64::new(0),
            position: watch::Sender::new(position),
            is_ready: watch::Sender::new(false),
            is_halted: AtomicBool::new(false),
            is_left: AtomicBool::new(false),
            inbox: Mutex::default(),
            wake: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            problems: Mutex::default(),
        })
    }

    pub(super) fn exclude(&self) -> &Globs {
        &self.config.exclude
    }

    pub(super) fn ledger(&self) -> MutexGuard<'_, Option<Ledger>> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Closes what is kept; the next capture reads it from the disk.
    pub(super) fn close(&self) {
        *self.ledger() = None;
        *self.shipped.lock().unwrap_or_else(PoisonError::into_inner) = None;
        *self.contents.lock().unwrap_or_else(PoisonError::into_inner) = None;
        self.forget_inodes();
    }

    /// Frees what [`Shared::node_with`] has made.
    pub(super) fn forget_inodes(&self) {
        *self.inodes.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Returns a node that was last seen with this inode.
    pub(super) fn node_with(&self, manifest: &Manifest, inode: u64) -> Option<NodeId> {
        let mut inodes = self.inodes.lock().unwrap_or_else(PoisonError::into_inner);
        let inodes = inodes.get_or_insert_with(|| index_inodes(manifest));
        let id = *inodes.get(&inode)?;
        // The node may have gone since, and its number been given to another.
        let path = manifest.path(id)?;
        let is_right = manifest.lookup(&path) == Some(id) && manifest.inode(id) == Some(inode);
        is_right.then_some(id)
    }

    /// Returns the names that are known of the file with this inode.
    pub(super) fn names_with(&self, inode: u64) -> Vec<RelPath> {
        let guard = self.ledger();
        let Some(manifest) = guard.as_ref().map(|ledger| &ledger.manifest) else {
            return Vec::new();
        };
        let mut names: Vec<NodeId> = match manifest.link_of_inode(inode) {
            Some(link) => manifest.linked(link).collect(),
            None => Vec::new(),
        };
        names.extend(self.node_with(manifest, inode));
        names.iter().filter_map(|id| manifest.path(*id)).collect()
    }

    /// Notes with which inode a node was seen.
    pub(super) fn note_inode(&self, manifest: &Manifest, id: NodeId) {
        let mut inodes = self.inodes.lock().unwrap_or_else(PoisonError::into_inner);
        if let (Some(inodes), Some(inode)) = (inodes.as_mut(), manifest.inode(id)) {
            inodes.insert(inode, id);
        }
    }

    /// Returns another file that holds this content.
    pub(super) fn elsewhere(&self, size: u64, hash: Digest, not: &RelPath) -> Option<RelPath> {
        if size < ELSEWHERE_FROM {
            return None;
        }
        let guard = self.ledger();
        let manifest = &guard.as_ref()?.manifest;
        let mut contents = self.contents.lock().unwrap_or_else(PoisonError::into_inner);
        let contents = contents.get_or_insert_with(|| index_contents(manifest));
        let id = *contents.get(&prefix(hash))?;
        // The node may have gone since, and its number been given to another.
        let path = manifest.path(id)?;
        let is_right = manifest.lookup(&path) == Some(id)
            && manifest.content(id) == Some((size, hash))
            && path != *not;
        is_right.then_some(path)
    }

    /// Returns whether a file is known that holds this content.
    pub(super) fn is_held(&self, manifest: &Manifest, size: u64, hash: Digest) -> bool {
        let contents = self.contents.lock().unwrap_or_else(PoisonError::into_inner);
        let id = contents
            .as_ref()
            .and_then(|contents| contents.get(&prefix(hash)));
        id.and_then(|id| manifest.path(*id))
            .and_then(|path| manifest.lookup(&path))
            .is_some_and(|id| manifest.content(id) == Some((size, hash)))
    }

    /// Notes that a node holds a content.
    pub(super) fn note_content(&self, manifest: &Manifest, path: &RelPath) {
        let mut contents = self.contents.lock().unwrap_or_else(PoisonError::into_inner);
        if let (Some(contents), Some(id)) = (contents.as_mut(), manifest.lookup(path))
            && let Some((size, hash)) = manifest.content(id)
            && size >= ELSEWHERE_FROM
        {
            contents.insert(prefix(hash), id);
        }
    }

    /// Returns the number of the file with this inode, which has several names.
    pub(super) fn link_of(&self, inode: u64) -> u64 {
        let guard = self.ledger();
        let Some(ledger) = guard.as_ref() else {
            return inode.max(1);
        };
        if let Some(link) = ledger.manifest.link_of_inode(inode) {
            return link;
        }
        // Another machine may have given the number to another file.
        let mut link = inode.max(1);
        while ledger.manifest.linked(link).next().is_some() {
            link = link.rotate_left(17) ^ 0x9e37_79b9_7f4a_7c15;
        }
        link
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

    /// Has a path looked at that a standby has asked for in vain: not everything that changes how a file
    /// looks is told, such as further names of it.
    pub(super) fn is_superseded(&self, path: &RelPath) {
        self.ask(|inbox| {
            // Who is not heard now asks again.
            if inbox.superseded.len() < SUPERSEDED_MAX {
                inbox.superseded.insert(path.clone());
            }
        });
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
        if problems.get(about).is_some_and(|held| held.text == text) {
            return;
        }
        let is_told = problems.contains_key(about) || problems.len() < PROBLEMS_MAX;
        if is_told {
            let problem = Problem {
                text: text.clone(),
                since: WallTime::now(),
            };
            problems.insert(about.to_owned(), problem);
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
        problems
            .values()
            .map(|problem| problem.text.clone())
            .collect()
    }

    /// Returns the problems of single paths, oldest first.
    pub(super) fn troubles(&self) -> Vec<Trouble> {
        let problems = self.problems.lock().unwrap_or_else(PoisonError::into_inner);
        let of_paths = problems.iter().filter(|(about, _)| !about.is_empty());
        let mut troubles: Vec<Trouble> = of_paths
            .map(|(path, problem)| Trouble {
                path: path.clone(),
                reason: problem.text.clone(),
                since: problem.since,
            })
            .collect();
        troubles.sort_by_key(|trouble| trouble.since);
        troubles
    }
}

fn prefix(hash: Digest) -> u64 {
    let (bytes, _) = hash
        .as_bytes()
        .split_first_chunk()
        .unwrap_or((&[0; 8], &[]));
    u64::from_le_bytes(*bytes)
}

fn index_inodes(manifest: &Manifest) -> HashMap<u64, NodeId> {
    let seen = manifest.walk(TOP);
    seen.filter_map(|(_, id)| Some((manifest.inode(id)?, id)))
        .collect()
}

fn index_contents(manifest: &Manifest) -> HashMap<u64, NodeId> {
    let files = manifest
        .walk(TOP)
        .filter_map(|(_, id)| Some((manifest.content(id)?, id)));
    files
        .filter(|((size, _), _)| *size >= ELSEWHERE_FROM)
        .map(|((_, hash), id)| (prefix(hash), id))
        .collect()
}
