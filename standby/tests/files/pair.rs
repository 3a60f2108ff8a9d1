//! A primary and a standby of one files store, on one machine.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use understudy_config::{Files, Globs, NodeName, Share};
use understudy_primary::files::FilesShipper;
use understudy_replication::epoch::Epoch;
use understudy_replication::event::Events;
use understudy_replication::position::Position;
use understudy_replication::store::{NoProgress, Receiver, Shipper, Stopper, StoreFailure};
use understudy_replication::transport::{Identity, Lineage, PeerClient, PeerServer, SharedRouter};
use understudy_replication::trust::{self, Authority};
use understudy_standby::files::FilesReceiver;

/// How long a condition may take to come true.
const PATIENCE: Duration = Duration::from_secs(20);

struct Fixed(Epoch);

impl Lineage for Fixed {
    fn epoch(&self) -> Epoch {
        self.0.clone()
    }

    fn role(&self) -> &'static str {
        "test"
    }

    fn heard(&self, _: &NodeName, _: &Epoch) {}
}

/// The parts that both nodes need, and the folders of both.
pub(crate) struct Pair {
    pub(crate) folder: tempfile::TempDir,
    routes: SharedRouter,
    pub(crate) client: Arc<PeerClient>,
    _server: Stopper,
}

fn name(text: &str) -> NodeName {
    text.parse().unwrap()
}

pub(crate) fn epoch() -> Epoch {
    Epoch::first(name("a"))
}

impl Pair {
    pub(crate) async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        for part in ["a/root", "a/state", "b/state"] {
            fs::create_dir_all(folder.path().join(part)).unwrap();
        }
        let authority = Authority::create("test").unwrap();
        let identity = |node: &str| {
            let pki = folder.path().join(node).join("pki");
            let issued = authority
                .issue(&name(node), "127.0.0.1".parse().unwrap())
                .unwrap();
            trust::store(&pki, authority.certificate(), authority.key(), &issued).unwrap();
            Identity::load(&pki).unwrap()
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let routes = SharedRouter::default();
        let server = PeerServer {
            identity: identity("a"),
            peers: routes.clone(),
            anonymous: Router::new(),
            lineage: Arc::new(Fixed(epoch())),
            is_named: Box::new(|_| true),
            events: events(folder.path(), "server"),
            strangers: PeerServer::strangers(),
        };
        let (stopper, stop) = Stopper::new();
        tokio::spawn(server.serve(listener, stop));
        let lineage = Arc::new(Fixed(epoch()));
        let client = PeerClient::new(name("a"), address, identity("b"), lineage);
        Self {
            folder,
            routes,
            client: Arc::new(client),
            _server: stopper,
        }
    }

    /// The primary's tree.
    pub(crate) fn source(&self) -> PathBuf {
        self.folder.path().join("a/root")
    }

    /// The standby's tree.
    pub(crate) fn copy(&self) -> PathBuf {
        self.folder.path().join("b/root")
    }

    pub(crate) fn state(&self, node: &str) -> PathBuf {
        self.folder.path().join(node).join("state")
    }

    pub(crate) fn events(&self, node: &str) -> Vec<String> {
        let events = events(self.folder.path(), node);
        events
            .newest(1000)
            .into_iter()
            .map(|event| event.kind)
            .collect()
    }

    pub(crate) fn serve(&self, router: Router) {
        self.routes.set(Router::new().nest("/store/docs", router));
    }

    pub(crate) fn primary(&self) -> Primary {
        self.primary_in(&epoch(), "a")
    }

    pub(crate) fn primary_in(&self, epoch: &Epoch, node: &str) -> Primary {
        let root = self.folder.path().join(node).join("root");
        let shipper = FilesShipper::open(
            &config(),
            root,
            &self.state(node),
            epoch,
            events(self.folder.path(), node),
        );
        let shipper = Arc::new(shipper.unwrap());
        self.serve(shipper.clone().routes());
        let (stopper, stop) = Stopper::new();
        let task = tokio::spawn(shipper.clone().run(stop));
        Primary {
            shipper,
            task,
            stopper,
        }
    }

    pub(crate) fn receiver(&self) -> Arc<FilesReceiver> {
        self.receiver_of("b")
    }

    pub(crate) fn receiver_of(&self, node: &str) -> Arc<FilesReceiver> {
        let root = self.folder.path().join(node).join("root");
        let receiver = FilesReceiver::open(
            &config(),
            root,
            &self.state(node),
            events(self.folder.path(), node),
        );
        Arc::new(receiver.unwrap())
    }

    pub(crate) async fn seed(&self, receiver: &FilesReceiver) -> Result<(), StoreFailure> {
        receiver.seed(&self.client, &NoProgress).await
    }

    /// Follows as the runtime does: tries again after a failure.
    pub(crate) fn follow(&self, receiver: &Arc<FilesReceiver>) -> Following {
        let (stopper, stop) = Stopper::new();
        let (receiver, client) = (receiver.clone(), self.client.clone());
        let task = tokio::spawn(async move {
            while !stop.is_stopped() {
                let run = receiver.clone().run(client.clone(), stop.clone());
                if let Err(error) = run.await {
                    eprintln!("following failed: {error:?}");
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            }
        });
        Following { stopper, task }
    }
}

pub(crate) struct Primary {
    pub(crate) shipper: Arc<FilesShipper>,
    task: JoinHandle<Result<(), StoreFailure>>,
    stopper: Stopper,
}

impl Primary {
    /// Returns a position that covers all that has happened.
    pub(crate) async fn mark(&self) -> Position {
        let until = Instant::now() + PATIENCE;
        loop {
            if let Some(position) = self.shipper.mark().await {
                return position;
            }
            assert!(
                Instant::now() < until,
                "no mark: {:?}",
                self.shipper.report()
            );
            assert!(!self.task.is_finished(), "the capture has ended");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    pub(crate) async fn stop(self) {
        self.stopper.stop();
        self.task.await.unwrap().unwrap();
    }

    /// Stops the capture; the routes go on.
    pub(crate) async fn pause(self) -> Arc<FilesShipper> {
        self.stopper.stop();
        self.task.await.unwrap().unwrap();
        self.shipper
    }

    pub(crate) fn resume(shipper: Arc<FilesShipper>) -> Self {
        let (stopper, stop) = Stopper::new();
        let task = tokio::spawn(shipper.clone().run(stop));
        Self {
            shipper,
            task,
            stopper,
        }
    }
}

pub(crate) struct Following {
    stopper: Stopper,
    task: JoinHandle<()>,
}

impl Following {
    pub(crate) async fn stop(self) {
        self.stopper.stop();
        self.task.await.unwrap();
    }

    /// As a crash would: the task is dropped wherever it is.
    pub(crate) async fn abort(self) {
        self.task.abort();
        let _aborted = self.task.await.is_err();
        drop(self.stopper);
    }
}

/// Waits until the copy has applied all that has happened on the primary, and then compares.
pub(crate) async fn agree(pair: &Pair, primary: &Primary, receiver: &FilesReceiver) {
    let position = primary.mark().await;
    until(
        || {
            receiver
                .received()
                .applied
                .is_some_and(|applied| applied >= position)
        },
        || format!("position {position}: {:?}", receiver.received()),
    )
    .await;
    assert_eq!(tree(&pair.copy()), tree(&pair.source()));
}

pub(crate) async fn until(is_true: impl Fn() -> bool, describe: impl Fn() -> String) {
    let end = Instant::now() + PATIENCE;
    while !is_true() {
        assert!(Instant::now() < end, "waited for {}", describe());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn config() -> Files {
    Files {
        exclude: Globs::new(["*.tmp".to_owned()]).unwrap(),
        delete_guard: Share::WHOLE,
        ..Files::new("docs".parse().unwrap(), "/not/used")
    }
}

fn events(folder: &Path, node: &str) -> Events {
    Events::open(&folder.join(format!("{node}-events.jsonl"))).unwrap()
}

/// Everything that is to be equal on both sides, by path.
pub(crate) fn tree(root: &Path) -> BTreeMap<String, String> {
    fn walk(root: &Path, at: &Path, found: &mut BTreeMap<String, String>) {
        for entry in fs::read_dir(at).unwrap() {
            let path = entry.unwrap().path();
            let name = path
                .strip_prefix(root)
                .unwrap()
                .as_os_str()
                .as_bytes()
                .escape_ascii()
                .to_string();
            if name == ".understudy" || name.ends_with(".tmp") {
                continue;
            }
            let metadata = fs::symlink_metadata(&path).unwrap();
            let content = if metadata.is_symlink() {
                format!("-> {:?}", fs::read_link(&path).unwrap())
            } else if metadata.is_dir() {
                walk(root, &path, found);
                "directory".to_owned()
            } else if metadata.is_file() {
                let content = fs::read(&path).unwrap();
                format!(
                    "{} bytes {}",
                    content.len(),
                    blake3::hash(&content).to_hex()
                )
            } else {
                continue;
            };
            let mode = metadata.permissions().mode() & 0o7777;
            let owner = (metadata.uid(), metadata.gid());
            let time = (metadata.mtime(), metadata.mtime_nsec());
            found.insert(name, format!("{content} {mode:o} {owner:?} {time:?}"));
        }
    }
    let mut found = BTreeMap::new();
    walk(root, root, &mut found);
    found
}
