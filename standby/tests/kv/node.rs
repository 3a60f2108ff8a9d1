//! Nodes of one key-value store, on one machine: each can be primary or standby.

use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use understudy_config::{Kv, KvDurability, NodeName};
use understudy_primary::kv::KvShipper;
use understudy_replication::epoch::Epoch;
use understudy_replication::event::Events;
use understudy_replication::kv::keyspace::{Keyspace, Refusal};
use understudy_replication::kv::slot::Slot;
use understudy_replication::position::Position;
use understudy_replication::store::{NoProgress, Receiver, Shipper, Stop, Stopper, StoreFailure};
use understudy_replication::transport::{Identity, Lineage, PeerClient, PeerServer, SharedRouter};
use understudy_replication::trust::{self, Authority};
use understudy_standby::kv::KvReceiver;

/// How long a condition may take to come true.
const PATIENCE: Duration = Duration::from_secs(20);

struct Told {
    epoch: Mutex<Epoch>,
    heard: Mutex<BTreeSet<Epoch>>,
}

impl Lineage for Told {
    fn epoch(&self) -> Epoch {
        self.epoch.lock().unwrap().clone()
    }

    fn role(&self) -> &'static str {
        "test"
    }

    fn heard(&self, _: &NodeName, epoch: &Epoch) {
        self.heard.lock().unwrap().insert(epoch.clone());
    }
}

pub(crate) struct Cluster {
    pub(crate) folder: TempDir,
    authority: Authority,
    pub(crate) config: Kv,
}

/// A node that runs, in whichever role.
pub(crate) struct Node {
    name: NodeName,
    told: Arc<Told>,
    routes: SharedRouter,
    address: SocketAddr,
    slot: Slot,
    folder: std::path::PathBuf,
    config: Kv,
    identity: Identity,
    _server: Stopper,
}

pub(crate) struct Running<T> {
    pub(crate) end: Arc<T>,
    stopper: Stopper,
    task: JoinHandle<Result<(), StoreFailure>>,
}

impl<T> Running<T> {
    pub(crate) async fn stop(self) {
        self.stopper.stop();
        // A link that was cut is no failure of the test.
        let _ended = self.task.await.unwrap().is_ok();
    }
}

fn name(text: &str) -> NodeName {
    text.parse().unwrap()
}

pub(crate) fn config() -> Kv {
    Kv {
        durability: KvDurability::StandbyFirst {
            degrade_after: Some(Duration::from_secs(20)),
        },
        write_timeout: Duration::from_millis(300),
        acknowledge: 1,
        standby_reads: true,
        allow_flush: false,
        view: false,
        memory_bytes: 1 << 30,
        log_bytes: 1 << 30,
        password_file: None,
    }
}

impl Cluster {
    pub(crate) fn new(change: impl FnOnce(&mut Kv)) -> Self {
        let mut config = config();
        change(&mut config);
        Self {
            folder: tempfile::tempdir().unwrap(),
            authority: Authority::create("test").unwrap(),
            config,
        }
    }

    pub(crate) async fn node(&self, node: &str) -> Node {
        let folder = self.folder.path().join(node);
        fs::create_dir_all(&folder).unwrap();
        let identity = identity(&self.authority, &folder, node);
        let told = Arc::new(Told {
            epoch: Mutex::new(Epoch::first(name("a"))),
            heard: Mutex::default(),
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let routes = SharedRouter::default();
        let server = PeerServer {
            identity: identity.clone(),
            peers: routes.clone(),
            anonymous: Router::new(),
            lineage: told.clone(),
            is_named: Box::new(|_| true),
            events: events(&folder),
            strangers: PeerServer::strangers(),
        };
        let (stopper, stop) = Stopper::new();
        tokio::spawn(server.serve(listener, stop));
        Node {
            name: name(node),
            told,
            routes,
            address,
            slot: Slot::new(folder.join("kv")),
            folder,
            config: self.config.clone(),
            identity,
            _server: stopper,
        }
    }
}

fn identity(authority: &Authority, folder: &Path, node: &str) -> Identity {
    let pki = folder.join("pki");
    if !pki.exists() {
        let issued = authority
            .issue(&name(node), "127.0.0.1".parse().unwrap())
            .unwrap();
        fs::create_dir_all(&pki).unwrap();
        trust::store(&pki, authority.certificate(), authority.key(), &issued).unwrap();
    }
    Identity::load(&pki).unwrap()
}

fn events(folder: &Path) -> Events {
    Events::open(&folder.join("events")).unwrap()
}

impl Node {
    pub(crate) fn events(&self) -> Vec<String> {
        let all = events(&self.folder).newest(1000);
        all.into_iter().map(|event| event.kind).collect()
    }

    pub(crate) fn salvaged(&self) -> usize {
        fs::read_dir(self.folder.join("salvage")).map_or(0, Iterator::count)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.folder
    }

    /// Forgets what is in memory, as a restart does.
    pub(crate) fn forget(&self) {
        self.slot.close();
    }

    /// Returns the primary's end, which is not opened.
    pub(crate) fn shipper(&self, number: u64, standbys: &Arc<AtomicUsize>) -> Arc<KvShipper> {
        let epoch = Epoch {
            number,
            node: self.name.clone(),
        };
        *self.told.epoch.lock().unwrap() = epoch.clone();
        let standbys = standbys.clone();
        Arc::new(KvShipper::new(
            "kv".parse().unwrap(),
            self.config.clone(),
            self.slot.clone(),
            epoch,
            Arc::new(move || standbys.load(Ordering::SeqCst)),
            events(&self.folder),
        ))
    }

    /// Makes the node primary, with a count of standbys that can be changed.
    pub(crate) async fn lead(
        &self,
        number: u64,
        standbys: &Arc<AtomicUsize>,
    ) -> Running<KvShipper> {
        let shipper = self.shipper(number, standbys);
        shipper.open().await.unwrap();
        let routes = Router::new().nest("/store/kv", shipper.clone().routes());
        self.routes.set(routes);
        let (stopper, stop) = Stopper::new();
        let task = tokio::spawn(shipper.clone().run(stop));
        Running {
            end: shipper,
            stopper,
            task,
        }
    }

    pub(crate) fn copy(&self) -> KvReceiver {
        KvReceiver::open(
            "kv".parse().unwrap(),
            self.name.clone(),
            self.config.clone(),
            self.slot.clone(),
            self.folder.join("salvage"),
            events(&self.folder),
        )
        .unwrap()
    }

    fn client(&self, primary: &Node) -> PeerClient {
        *self.told.epoch.lock().unwrap() = primary.told.epoch.lock().unwrap().clone();
        PeerClient::new(
            primary.name.clone(),
            primary.address,
            self.identity.clone(),
            self.told.clone(),
        )
    }

    /// Makes the node follow.
    pub(crate) fn follow(&self, primary: &Node) -> Running<KvReceiver> {
        let receiver = Arc::new(self.copy());
        let client = Arc::new(self.client(primary));
        let (stopper, stop) = Stopper::new();
        let task = tokio::spawn(always(receiver.clone(), client, stop));
        Running {
            end: receiver,
            stopper,
            task,
        }
    }

    /// Makes the node's copy equal, as a join or a rejoin does.
    pub(crate) async fn seed(&self, primary: &Node) {
        let client = self.client(primary);
        self.copy().seed(&client, &NoProgress).await.unwrap();
    }
}

/// Follows again when it has failed, as the node does.
async fn always(
    receiver: Arc<KvReceiver>,
    client: Arc<PeerClient>,
    stop: Stop,
) -> Result<(), StoreFailure> {
    while !stop.is_stopped() {
        let ended = receiver.clone().run(client.clone(), stop.clone()).await;
        if ended.is_err() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    Ok(())
}

/// Waits until `is_so`.
pub(crate) async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < PATIENCE, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Sets a string, and waits for the answer that a client gets.
pub(crate) async fn put(keyspace: &dyn Keyspace, key: &str, value: &str) -> Result<(), Refusal> {
    let position = write(keyspace, key, value)?;
    keyspace.settled(position).await
}

/// Sets a string, and does not wait.
pub(crate) fn write(keyspace: &dyn Keyspace, key: &str, value: &str) -> Result<Position, Refusal> {
    keyspace.write(&mut |space| {
        space.set(key.as_bytes(), value.as_bytes(), None).unwrap();
        space.end_atom();
    })
}

/// Returns what a client reads.
pub(crate) fn get(keyspace: &dyn Keyspace, key: &str) -> Result<Option<String>, Refusal> {
    let mut value = None;
    keyspace.read(&mut |space| {
        let found = space.string(key.as_bytes()).unwrap();
        value = found.map(|bytes| String::from_utf8(bytes.to_vec()).unwrap());
    })?;
    Ok(value)
}

/// Waits until both have the same tables, at the same position.
pub(crate) async fn equal(one: &Node, other: &Node) {
    until("both tables are equal", || {
        let (one, _) = one.slot.open().unwrap();
        let (other, _) = other.slot.open().unwrap();
        let digest = |storage: &understudy_replication::kv::storage::Storage| {
            let visible = storage.visible();
            (visible.point.clone(), visible.table.digest())
        };
        digest(&one) == digest(&other) && one.whole_from().is_none()
    })
    .await;
}
