//! The threads that look at the tree beside the capture.
//!
//! Two for what is quick, and one for large files, so that nothing waits behind them. Nothing is looked
//! at twice at the same time: the capture holds back what concerns a path that is being looked at.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;
use std::io;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Instant;

use understudy_replication::files::RelPath;

use super::look::{Found, Looker, Tree};
use super::shared::Shared;

/// How many threads look at what is quick. More would take the processor from the application.
const QUICK_THREADS_MAX: usize = 4;

/// Something to look at.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Job {
    /// Single paths; and what they hold, where that is said; and how often each was found changing.
    Paths(Vec<(RelPath, bool, u32)>),
    /// What directories hold; all beneath them in a scan.
    Directories(Vec<Option<RelPath>>, Why),
    /// A large file, and how often it was found changing.
    Large(RelPath, u32),
}

/// Why a directory is listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Why {
    /// It is new.
    New,
    /// Everything is looked at, and marks wait for it.
    Scan,
    /// Everything is looked at, in case something was missed.
    Patrol,
}

/// A job that is done.
pub(super) struct Done {
    pub(super) number: u64,
    pub(super) found: Found,
}

struct Order {
    number: u64,
    job: Job,
    tree: Arc<Tree>,
}

/// The threads and what they are at.
pub(super) struct Jobs {
    quick: Sender<Order>,
    large: Sender<Order>,
    done: Receiver<Done>,
    next: u64,
    /// What is being looked at, and the oldest moment that it has to cover.
    running: BTreeMap<u64, (Job, Option<Instant>)>,
    /// How many of these look at a path, and at all that is in a directory.
    paths: HashMap<RelPath, usize>,
    directories: HashMap<Option<RelPath>, usize>,
}

impl Jobs {
    pub(super) fn start(shared: &Arc<Shared>) -> io::Result<Self> {
        let (done_sender, done) = channel();
        let (quick, quick_orders) = channel();
        let (large, large_orders) = channel();
        let count =
            thread::available_parallelism().map_or(2, |count| count.get().min(QUICK_THREADS_MAX));
        let quick_orders = Arc::new(Mutex::new(quick_orders));
        let large_orders = Arc::new(Mutex::new(large_orders));
        let names = std::iter::repeat_n(("look", &quick_orders), count)
            .chain(std::iter::once(("read", &large_orders)));
        for (what, orders) in names {
            let (shared, orders, done) = (shared.clone(), orders.clone(), done_sender.clone());
            // They end when the capture does, which drops the other end of their orders.
            thread::Builder::new()
                .name(format!("files-{what}"))
                .spawn(move || work(&shared, &orders, &done))?;
        }
        Ok(Self {
            quick,
            large,
            done,
            next: 0,
            running: BTreeMap::new(),
            paths: HashMap::new(),
            directories: HashMap::new(),
        })
    }

    /// Begins a job that has to cover all that happened before `since`; `None` covers nothing.
    pub(super) fn begin(&mut self, job: Job, since: Option<Instant>, tree: &Arc<Tree>) {
        let number = self.next;
        self.next = self.next.saturating_add(1);
        let order = Order {
            number,
            job: job.clone(),
            tree: tree.clone(),
        };
        let sender = match job {
            Job::Paths(_) | Job::Directories(..) => &self.quick,
            Job::Large(..) => &self.large,
        };
        if sender.send(order).is_ok() {
            self.count(&job, |count| count.saturating_add(1));
            self.running.insert(number, (job, since));
        }
    }

    fn count(&mut self, job: &Job, change: impl Fn(usize) -> usize) {
        match job {
            Job::Paths(paths) => {
                for (path, ..) in paths {
                    recount(&mut self.paths, path, &change);
                }
            }
            Job::Large(path, _) => recount(&mut self.paths, path, &change),
            Job::Directories(directories, _) => {
                for directory in directories {
                    recount(&mut self.directories, directory, &change);
                }
            }
        }
    }

    fn has_ended(&mut self, number: u64) -> Option<(Job, Option<Instant>)> {
        let (job, since) = self.running.remove(&number)?;
        self.count(&job, |count| count.saturating_sub(1));
        Some((job, since))
    }

    /// Takes a job that is done, with what it was and what it had to cover.
    pub(super) fn take(&mut self) -> Option<(Job, Option<Instant>, Found)> {
        let done = self.done.try_recv().ok()?;
        let (job, since) = self.has_ended(done.number)?;
        Some((job, since, done.found))
    }

    /// Waits for a job that is done.
    pub(super) fn wait(&mut self) -> Option<(Job, Option<Instant>, Found)> {
        if self.running.is_empty() {
            return None;
        }
        let done = self.done.recv().ok()?;
        let (job, since) = self.has_ended(done.number)?;
        Some((job, since, done.found))
    }

    /// Returns whether a look at `path` is under way: its outcome would be older than one begun now.
    pub(super) fn is_at(&self, path: &RelPath) -> bool {
        self.paths.contains_key(path) || self.directories.contains_key(&path.parent())
    }

    /// Returns whether everything that happened before `asked` is covered by what is done.
    pub(super) fn covers(&self, asked: Instant) -> bool {
        self.running
            .values()
            .all(|(_, since)| since.is_none_or(|since| since > asked))
    }

    /// Returns the number of the job that begins next.
    pub(super) fn next(&self) -> u64 {
        self.next
    }

    /// Returns whether all the jobs before this one are done.
    pub(super) fn are_done_before(&self, number: u64) -> bool {
        self.running
            .keys()
            .next()
            .is_none_or(|first| *first >= number)
    }

    /// Returns whether nothing is under way.
    pub(super) fn is_idle(&self) -> bool {
        self.running.is_empty()
    }

    /// Returns whether many paths are being looked at.
    pub(super) fn is_listing(&self) -> bool {
        self.running.values().any(|(job, _)| match job {
            Job::Directories(..) => true,
            Job::Paths(paths) => paths.len() > 1,
            Job::Large(..) => false,
        })
    }

    /// Returns whether a large file is being read, or waits for it.
    pub(super) fn is_reading(&self, path: &RelPath) -> bool {
        self.running
            .values()
            .any(|(job, _)| matches!(job, Job::Large(at, _) if at == path))
    }
}

fn recount<K: Clone + Eq + Hash>(
    counts: &mut HashMap<K, usize>,
    key: &K,
    change: impl Fn(usize) -> usize,
) {
    let now = change(counts.get(key).copied().unwrap_or(0));
    if now == 0 {
        counts.remove(key);
    } else {
        counts.insert(key.clone(), now);
    }
}

fn work(shared: &Shared, orders: &Mutex<Receiver<Order>>, done: &Sender<Done>) {
    loop {
        let order = orders.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(Order { number, job, tree }) = order else {
            return;
        };
        let mut looker = Looker::new(shared, &tree);
        match job {
            Job::Paths(paths) => {
                for (path, is_deep, tries) in paths {
                    looker.look_once_more(&path, is_deep, tries);
                }
            }
            Job::Directories(directories, why) => {
                for directory in directories {
                    let is_scan = match why {
                        Why::New => false,
                        Why::Scan | Why::Patrol => true,
                    };
                    looker.list(directory.as_ref(), is_scan);
                }
            }
            Job::Large(path, tries) => looker.look_at_large(&path, tries),
        }
        let found = looker.found;
        if done.send(Done { number, found }).is_err() {
            return;
        }
        shared.ask(|_| {});
    }
}
