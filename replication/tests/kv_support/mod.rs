//! A key-value store without a log and without standbys, and its server.
#![allow(dead_code, reason = "each test uses a part of it")]

pub(crate) mod client;
pub(crate) mod commands;
pub(crate) mod pair;
pub(crate) mod redis;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, RwLock};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use understudy_replication::kv::draft::Draft;
use understudy_replication::kv::keyspace::{Keyspace, Refusal, Standing};
use understudy_replication::kv::server::{Server, ServerOptions};
use understudy_replication::kv::space::Space;
use understudy_replication::kv::table::Table;
use understudy_replication::position::Position;
use understudy_replication::store::{BoxFuture, Stop, Stopper};
use understudy_replication::wall_time::WallTime;

/// How long anything may take that a test waits for.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// What a store does with what was written.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Commits {
    /// It is committed at once.
    AtOnce,
    /// It is committed a little later, by somebody else.
    Later,
    /// It is committed when the test says so.
    WhenTold,
}

/// A store without a log.
pub(crate) struct Store {
    table: RwLock<Table>,
    draft: Mutex<Draft>,
    settled: watch::Sender<Position>,
    commits: Commits,
    pub(crate) standing: Mutex<Standing>,
    /// Why writes are not settled, once there is a reason.
    pub(crate) failure: watch::Sender<Option<Refusal>>,
    /// Why nothing is read and written.
    pub(crate) refusal: Mutex<Option<Refusal>>,
    /// How many more writes are taken, if not any number.
    pub(crate) writes_left: Mutex<Option<usize>>,
}

impl Store {
    pub(crate) fn new(commits: Commits) -> Arc<Self> {
        Arc::new(Self {
            table: RwLock::new(Table::new()),
            draft: Mutex::new(Draft::new(Position(0))),
            settled: watch::Sender::new(Position(0)),
            commits,
            standing: Mutex::new(Standing {
                is_primary: true,
                primary: None,
                position: Position(0),
                standbys: Vec::new(),
                durability: "async",
                memory_bytes_max: 1 << 30,
                allows_flush: true,
            }),
            failure: watch::Sender::new(None),
            refusal: Mutex::new(None),
            writes_left: Mutex::new(None),
        })
    }

    /// Commits everything that was appended.
    pub(crate) fn commit(&self) {
        let mut draft = self.draft.lock().unwrap();
        let mut table = self.table.write().unwrap();
        while let Some(taken) = draft.take(1 << 20) {
            taken
                .operations
                .iter()
                .for_each(|operation| table.apply(operation));
            draft.settle(taken.end);
        }
        drop(table);
        self.settled.send_replace(draft.end());
    }

    /// Returns how many bytes are appended and not committed.
    pub(crate) fn pending_bytes(&self) -> usize {
        self.draft.lock().unwrap().pending_bytes()
    }

    /// Returns how much was appended.
    pub(crate) fn end(&self) -> Position {
        self.draft.lock().unwrap().end()
    }
}

impl Keyspace for Store {
    fn read(&self, look: &mut dyn FnMut(&mut Space<'_>)) -> Result<(), Refusal> {
        if let Some(refusal) = self.refusal.lock().unwrap().clone() {
            return Err(refusal);
        }
        let table = self.table.read().unwrap();
        look(&mut Space::visible(&table, WallTime::now()));
        Ok(())
    }

    fn write(&self, act: &mut dyn FnMut(&mut Space<'_>)) -> Result<Position, Refusal> {
        if let Some(refusal) = self.refusal.lock().unwrap().clone() {
            return Err(refusal);
        }
        if let Some(left) = self.writes_left.lock().unwrap().as_mut() {
            *left = left.checked_sub(1).ok_or(Refusal::NoReplicas)?;
        }
        let mut draft = self.draft.lock().unwrap();
        let table = self.table.read().unwrap();
        act(&mut Space::newest(&table, &mut draft, WallTime::now()));
        drop(table);
        let end = draft.end();
        drop(draft);
        if self.commits == Commits::AtOnce {
            self.commit();
        }
        Ok(end)
    }

    fn settled(&self, position: Position) -> BoxFuture<'_, Result<(), Refusal>> {
        let mut settled = self.settled.subscribe();
        let mut failure = self.failure.subscribe();
        Box::pin(async move {
            tokio::select! {
                biased;
                failed = failure.wait_for(Option::is_some) => match failed.ok().and_then(|why| why.clone()) {
                    Some(why) => Err(why),
                    None => Err(Refusal::Closed),
                },
                _ = settled.wait_for(|settled| *settled >= position) => Ok(()),
            }
        })
    }

    fn replicated(
        &self,
        _: Position,
        count: usize,
        limit: Option<Duration>,
    ) -> BoxFuture<'_, usize> {
        Box::pin(async move {
            let has = self.standing.lock().unwrap().standbys.len();
            if has < count {
                match limit {
                    Some(limit) => tokio::time::sleep(limit).await,
                    None => std::future::pending().await,
                }
            }
            has
        })
    }

    fn refuses_writes(&self) -> Option<Refusal> {
        let refusal = self.refusal.lock().unwrap().clone();
        refusal.filter(|refusal| *refusal == Refusal::ReadOnly)
    }

    fn standing(&self) -> Standing {
        self.standing.lock().unwrap().clone()
    }
}

/// A server over a store, with a thread of its own for as long as it lives.
pub(crate) struct Running {
    pub(crate) store: Arc<Store>,
    pub(crate) address: SocketAddr,
    /// Whether the store is there.
    pub(crate) is_open: Arc<std::sync::atomic::AtomicBool>,
    stopper: Stopper,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Running {
    pub(crate) fn start(commits: Commits, options: ServerOptions) -> Self {
        let store = Store::new(commits);
        let is_open = Arc::new(std::sync::atomic::AtomicBool::new(true));
        let (stopper, stop) = Stopper::new();
        let (told, address) = std::sync::mpsc::channel();
        let thread = std::thread::spawn({
            let (store, is_open) = (Arc::clone(&store), Arc::clone(&is_open));
            move || serve(store, is_open, options, stop, told)
        });
        let address = address.recv_timeout(PATIENCE).unwrap();
        Self {
            store,
            address,
            is_open,
            stopper,
            thread: Some(thread),
        }
    }
}

#[tokio::main(flavor = "current_thread")]
async fn serve(
    store: Arc<Store>,
    is_open: Arc<std::sync::atomic::AtomicBool>,
    options: ServerOptions,
    stop: Stop,
    told: std::sync::mpsc::Sender<SocketAddr>,
) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    told.send(listener.local_addr().unwrap()).unwrap();
    if store.commits == Commits::Later {
        let (store, stop) = (Arc::clone(&store), stop.clone());
        tokio::spawn(async move {
            while !stop.is_stopped() {
                tokio::time::sleep(Duration::from_micros(300)).await;
                store.commit();
            }
        });
    }
    let source = Arc::new(move || {
        let is_open = is_open.load(std::sync::atomic::Ordering::SeqCst);
        is_open.then(|| Arc::clone(&store) as Arc<dyn Keyspace>)
    });
    Server::serve(listener, source, options, stop).await;
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stopper.stop();
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

/// Waits until `is_so`.
pub(crate) fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(
            Instant::now() < deadline,
            "{what} has not come to be in time"
        );
        std::thread::sleep(Duration::from_millis(2));
    }
}
