//! A primary and a standby of one files store, on one machine.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use rustix::fs::{SeekFrom, lgetxattr, llistxattr, seek};
use rustix::io::Errno;
use tempfile::TempDir;
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

/// What a node says of its epoch, and what it has heard of others'.
pub(crate) struct Told {
    epoch: Mutex<Epoch>,
    heard: Mutex<BTreeSet<Epoch>>,
}

impl Told {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            epoch: Mutex::new(epoch()),
            heard: Mutex::default(),
        })
    }

    pub(crate) fn raise(&self, epoch: &Epoch) {
        *self.epoch.lock().unwrap() = epoch.clone();
    }

    pub(crate) fn has_heard(&self, epoch: &Epoch) -> bool {
        self.heard.lock().unwrap().contains(epoch)
    }
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

/// The parts that both nodes need, and the folders of both.
pub(crate) struct Pair {
    pub(crate) folder: TempDir,
    routes: SharedRouter,
    pub(crate) client: Arc<PeerClient>,
    /// Where the primary answers.
    pub(crate) address: SocketAddr,
    /// What the primary says of its epoch.
    pub(crate) told: Arc<Told>,
    authority: Authority,
    config: Files,
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
        Self::configured(|_| {}).await
    }

    /// With another configuration than [`config`] gives.
    pub(crate) async fn configured(change: impl FnOnce(&mut Files)) -> Self {
        Self::within(tempfile::tempdir().unwrap(), change).await
    }

    /// In a folder of the test's choice.
    pub(crate) async fn within(folder: TempDir, change: impl FnOnce(&mut Files)) -> Self {
        let mut config = config();
        change(&mut config);
        for part in ["a/root", "a/state", "b/state"] {
            fs::create_dir_all(folder.path().join(part)).unwrap();
        }
        let authority = Authority::create("test").unwrap();
        let told = Told::new();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let routes = SharedRouter::default();
        let server = PeerServer {
            identity: identity(&authority, folder.path(), "a"),
            peers: routes.clone(),
            anonymous: Router::new(),
            lineage: told.clone(),
            is_named: Box::new(|_| true),
            events: events(folder.path(), "server"),
            strangers: PeerServer::strangers(),
        };
        let (stopper, stop) = Stopper::new();
        tokio::spawn(server.serve(listener, stop));
        let identity = identity(&authority, folder.path(), "b");
        let client = PeerClient::new(name("a"), address, identity, Told::new());
        Self {
            folder,
            routes,
            client: Arc::new(client),
            address,
            told,
            authority,
            config,
            _server: stopper,
        }
    }

    /// A further standby's way to the primary, and what it says of its epoch.
    pub(crate) fn client_of(
        &self,
        node: &str,
        address: SocketAddr,
    ) -> (Arc<PeerClient>, Arc<Told>) {
        let told = Told::new();
        let identity = identity(&self.authority, self.folder.path(), node);
        let client = PeerClient::new(name("a"), address, identity, told.clone());
        (Arc::new(client), told)
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
            &self.config,
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
            &self.config,
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
        Self::follow_by(receiver, &self.client)
    }

    pub(crate) fn follow_by(receiver: &Arc<FilesReceiver>, client: &Arc<PeerClient>) -> Following {
        let (stopper, stop) = Stopper::new();
        let (receiver, client) = (receiver.clone(), client.clone());
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

    /// As near to a crash as it gets in one process: the task is dropped wherever it is, and all is
    /// opened again from the disk.
    pub(crate) async fn crash_and_open(self, pair: &Pair) -> Self {
        self.task.abort();
        let _aborted = self.task.await.is_err();
        drop(self.shipper);
        pair.primary()
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
    agree_at(pair, primary, receiver, &pair.copy()).await;
}

/// The same of a copy that is elsewhere.
pub(crate) async fn agree_at(
    pair: &Pair,
    primary: &Primary,
    receiver: &FilesReceiver,
    copy: &Path,
) {
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
    assert_equal(&tree(copy), &tree(&pair.source()));
}

fn identity(authority: &Authority, folder: &Path, node: &str) -> Identity {
    let pki = folder.join(node).join("pki");
    let issued = authority.issue(&name(node), "127.0.0.1".parse().unwrap());
    trust::store(
        &pki,
        authority.certificate(),
        authority.key(),
        &issued.unwrap(),
    )
    .unwrap();
    Identity::load(&pki).unwrap()
}

/// Shows what is different, and nothing else.
fn assert_equal(copy: &BTreeMap<String, Part>, source: &BTreeMap<String, Part>) {
    let is_different = |name: &&String| copy.get(*name) != source.get(*name);
    let names: BTreeSet<&String> = copy
        .keys()
        .chain(source.keys())
        .filter(is_different)
        .collect();
    let differences: Vec<String> = names
        .into_iter()
        .map(|name| format!("{name}: {:?} for {:?}", copy.get(name), source.get(name)))
        .collect();
    assert!(
        differences.is_empty(),
        "the copy has {}",
        differences.join("\n")
    );
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

/// A part of a tree that is to be equal on both sides.
#[derive(Clone, Debug)]
pub(crate) struct Part {
    what: String,
    /// How much of a file is no hole, and in how many pieces.
    data: (u64, u64),
}

/// What one edge of a hole may be off by: a block of a file system, which may be larger on the other side.
const EDGE_BYTES_MAX: u64 = 4096;

impl PartialEq for Part {
    fn eq(&self, other: &Self) -> bool {
        let ((bytes, pieces), (other_bytes, other_pieces)) = (self.data, other.data);
        let tolerance = (pieces + other_pieces) * 2 * EDGE_BYTES_MAX;
        self.what == other.what && bytes.abs_diff(other_bytes) <= tolerance
    }
}

/// Everything that is to be equal on both sides, by path. Paths may be longer than a system call takes:
/// each is relative to an open directory.
pub(crate) fn tree(root: &Path) -> BTreeMap<String, Part> {
    let mut found = BTreeMap::new();
    let mut names = BTreeMap::new();
    walk("", &fs::File::open(root).unwrap(), &mut found, &mut names);
    for names in names.into_values().filter(|names| names.len() > 1) {
        for name in &names {
            if let Some(part) = found.get_mut(name) {
                part.what += &format!(" the same as {}", names[0]);
            }
        }
    }
    found
}

/// Which paths an inode has, in order.
type Names = BTreeMap<u64, Vec<String>>;

fn walk(above: &str, directory: &fs::File, found: &mut BTreeMap<String, Part>, inodes: &mut Names) {
    let place = PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd()));
    let entries = fs::read_dir(&place).unwrap();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    for path in paths {
        let name = path.file_name().unwrap().as_bytes().escape_ascii();
        let name = format!("{above}{name}");
        if name == ".understudy" || name.ends_with(".tmp") {
            continue;
        }
        let metadata = fs::symlink_metadata(&path).unwrap();
        let mut data = (0, 0);
        let content = if metadata.is_symlink() {
            format!("-> {:?}", fs::read_link(&path).unwrap())
        } else if metadata.is_dir() {
            let inner = fs::File::open(&path).unwrap();
            walk(&format!("{name}/"), &inner, found, inodes);
            "directory".to_owned()
        } else if metadata.is_file() {
            inodes.entry(metadata.ino()).or_default().push(name.clone());
            let file = fs::File::open(&path).unwrap();
            data = data_of(&file);
            let mut hasher = blake3::Hasher::new();
            hasher.update_reader(&file).unwrap();
            format!("{} bytes {}", metadata.len(), hasher.finalize().to_hex())
        } else {
            continue;
        };
        let mode = metadata.permissions().mode() & 0o7777;
        let owner = (metadata.uid(), metadata.gid());
        let time = (metadata.mtime(), metadata.mtime_nsec());
        let xattrs = xattrs(&path);
        let what = format!("{content} {mode:o} {owner:?} {time:?}{xattrs}");
        found.insert(name, Part { what, data });
    }
}

/// Returns how many bytes of a file are no holes, and in how many pieces.
fn data_of(file: &fs::File) -> (u64, u64) {
    let (mut bytes, mut pieces, mut at) = (0, 0, 0);
    loop {
        let start = match seek(file, SeekFrom::Data(at)) {
            Ok(start) => start,
            Err(Errno::NXIO) => break,
            Err(errno) => panic!("{errno}"),
        };
        at = seek(file, SeekFrom::Hole(start)).unwrap();
        bytes += at - start;
        pieces += 1;
    }
    seek(file, SeekFrom::Start(0)).unwrap();
    (bytes, pieces)
}

/// Returns the attributes that belong to the data, in order.
pub(crate) fn xattrs(path: &Path) -> String {
    let mut names = vec![0; 64 << 10];
    let length = llistxattr(path, names.as_mut_slice()).unwrap();
    let mut names: Vec<&[u8]> = names[..length]
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty() && *name != b"security.selinux")
        .collect();
    names.sort_unstable();
    let mut text = String::new();
    for name in names {
        let mut value = vec![0; 64 << 10];
        let length = lgetxattr(path, name, value.as_mut_slice()).unwrap();
        let (name, value) = (name.escape_ascii(), value[..length].escape_ascii());
        text += &format!(" {name}={value}");
    }
    text
}

/// A primary, and a standby that follows it.
pub(crate) struct Followed {
    pub(crate) pair: Pair,
    pub(crate) primary: Primary,
    pub(crate) receiver: Arc<FilesReceiver>,
    pub(crate) following: Following,
}

impl Followed {
    /// Begins with the tree that `make` makes.
    pub(crate) async fn of(make: impl FnOnce(&Path)) -> Self {
        Self::with(Pair::new().await, make).await
    }

    pub(crate) async fn with(pair: Pair, make: impl FnOnce(&Path)) -> Self {
        fs::write(pair.source().join("anything"), "so that it is not empty").unwrap();
        make(&pair.source());
        let primary = pair.primary();
        let receiver = pair.receiver();
        pair.seed(&receiver).await.unwrap();
        let following = pair.follow(&receiver);
        let followed = Self {
            pair,
            primary,
            receiver,
            following,
        };
        followed.agree().await;
        followed
    }

    pub(crate) fn source(&self) -> PathBuf {
        self.pair.source()
    }

    pub(crate) fn copy(&self) -> PathBuf {
        self.pair.copy()
    }

    pub(crate) async fn agree(&self) {
        agree(&self.pair, &self.primary, &self.receiver).await;
    }

    /// Has everything looked at, and then compares.
    pub(crate) async fn agree_after_sync(&self) {
        // It has begun when there is a position.
        self.primary.mark().await;
        self.primary.shipper.sync_now().await.unwrap();
        self.agree().await;
    }

    /// Makes changes while nothing is captured.
    pub(crate) async fn unwatched(mut self, change: impl FnOnce(&Path)) -> Self {
        let shipper = self.primary.pause().await;
        change(&self.pair.source());
        self.primary = Primary::resume(shipper);
        self
    }

    /// Compares, and stops both.
    pub(crate) async fn end(self) {
        self.agree().await;
        self.following.stop().await;
        self.primary.stop().await;
    }
}
