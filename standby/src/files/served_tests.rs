//! The standby's end with a primary made by hand: seeding, fetching, following, checking.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::routing::{get, post};
use tokio::net::TcpListener;
use understudy_config::{Files, NodeName};
use understudy_replication::check::{Depth, DifferenceKind};
use understudy_replication::epoch::Epoch;
use understudy_replication::event::Events;
use understudy_replication::files::wire::{CHUNK_BYTES_MAX, Note, Packer, Part, Wanted};
use understudy_replication::files::{
    Batch, Content, Digest, Entry, Kind, Known, Local, Manifest, Operation, RelPath, TOP, Xattrs,
};
use understudy_replication::position::Position;
use understudy_replication::store::{NoProgress, Receiver, Stopper};
use understudy_replication::transport::{
    Identity, Lineage, PeerClient, PeerServer, SharedRouter, frames,
};
use understudy_replication::trust::{self, Authority};

use super::FilesReceiver;

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

fn name(text: &str) -> NodeName {
    text.parse().unwrap()
}

fn path(text: &str) -> RelPath {
    RelPath::new(text).unwrap()
}

fn entry(kind: Kind) -> Entry {
    Entry {
        mode: if matches!(kind, Kind::Symlink { .. }) {
            0
        } else {
            0o750
        },
        kind,
        uid: rustix::process::geteuid().as_raw(),
        gid: rustix::process::getegid().as_raw(),
        mtime_ns: 1_500_000_000_000_000_001,
        link: 0,
        xattrs: Xattrs::default(),
    }
}

/// What the hand-made primary has.
#[derive(Default)]
struct Source {
    model: Manifest,
    contents: BTreeMap<Digest, Vec<u8>>,
    /// These are superseded when they are asked for.
    missing: Vec<Digest>,
    /// What `/log` sends.
    log: Vec<Vec<u8>>,
}

struct Pair {
    folder: tempfile::TempDir,
    source: Arc<Mutex<Source>>,
    requests: Arc<AtomicUsize>,
    is_cut: Arc<AtomicBool>,
    client: Arc<PeerClient>,
    _server: Stopper,
}

const POSITION: Position = Position(10);

impl Source {
    fn put(&mut self, name: &str, entry: Entry) {
        let local = Local::Unknown;
        self.model
            .insert(&path(name), Known { entry, local })
            .unwrap();
    }

    fn file(&mut self, name: &str, content: &[u8]) -> Entry {
        let hash = Digest::of(content);
        self.contents.insert(hash, content.to_vec());
        let size = content.len() as u64;
        let entry = entry(Kind::File { size, hash });
        self.put(name, entry.clone());
        entry
    }

    fn snapshot(&mut self) -> Vec<Vec<u8>> {
        let mut packer = Packer::default();
        let mut frames = Vec::new();
        packer
            .note(&Note::Snapshot {
                epoch: Epoch::first(name("a")),
                position: POSITION,
                root: self.model.root(),
                entries: self.model.len() as u64,
                bytes: self.model.bytes(),
            })
            .unwrap();
        let model = &self.model;
        let visited: Result<(), ()> = model.walk(TOP).try_for_each(|(depth, id)| {
            let name = model.name(id).to_vec();
            packer
                .note(&Note::Listed(depth, name, model.entry(id)))
                .unwrap();
            if packer.is_full() {
                frames.extend(packer.take());
            }
            Ok(())
        });
        visited.unwrap();
        packer.note(&Note::End).unwrap();
        frames.extend(packer.take());
        frames
    }

    fn answer(&self, wanted: Vec<Wanted>) -> Vec<Vec<u8>> {
        let mut packer = Packer::default();
        let mut frames = Vec::new();
        for wanted in wanted {
            if self.missing.contains(&wanted.hash) {
                packer.note(&Note::Superseded).unwrap();
                continue;
            }
            let content = &self.contents[&wanted.hash];
            let Part::From(from) = wanted.part else {
                panic!("no ranges are asked for")
            };
            let mut rest = &content[usize::try_from(from).unwrap()..];
            // Long runs of zeros travel as holes.
            while !rest.is_empty() {
                let zeros = rest.iter().take_while(|byte| **byte == 0).count();
                if zeros >= 4096 {
                    packer.note(&Note::Hole(zeros as u64)).unwrap();
                    rest = &rest[zeros..];
                    continue;
                }
                let some = rest.len().min(CHUNK_BYTES_MAX);
                packer.chunk(&rest[..some]);
                rest = &rest[some..];
                if packer.is_full() {
                    frames.extend(packer.take());
                }
            }
            packer.note(&Note::Complete).unwrap();
        }
        packer.note(&Note::End).unwrap();
        frames.extend(packer.take());
        frames
    }
}

impl Pair {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::create("test").unwrap();
        let identity = |node: &str| {
            let pki = folder.path().join(node).join("pki");
            fs::create_dir_all(&pki).unwrap();
            let issued = authority
                .issue(&name(node), "127.0.0.1".parse().unwrap())
                .unwrap();
            trust::store(&pki, authority.certificate(), authority.key(), &issued).unwrap();
            Identity::load(&pki).unwrap()
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let routes = SharedRouter::default();
        let lineage = || Arc::new(Fixed(Epoch::first(name("a"))));
        let server = PeerServer {
            identity: identity("a"),
            peers: routes.clone(),
            anonymous: Router::new(),
            lineage: lineage(),
            is_named: Box::new(|_| true),
            events: Events::open(&folder.path().join("server.jsonl")).unwrap(),
            strangers: PeerServer::strangers(),
        };
        let (stopper, stop) = Stopper::new();
        tokio::spawn(server.serve(listener, stop));
        let client = PeerClient::new(name("a"), address, identity("b"), lineage());
        let source: Arc<Mutex<Source>> = Arc::default();
        let requests = Arc::new(AtomicUsize::new(0));
        let is_cut = Arc::new(AtomicBool::new(false));
        routes.set(Router::new().nest(
            "/store/docs",
            router(source.clone(), requests.clone(), is_cut.clone()),
        ));
        Self {
            folder,
            source,
            requests,
            is_cut,
            client: Arc::new(client),
            _server: stopper,
        }
    }

    fn root(&self) -> PathBuf {
        self.folder.path().join("root")
    }

    fn receiver(&self) -> Arc<FilesReceiver> {
        let config = Files::new("docs".parse().unwrap(), "/not/used");
        let events = Events::open(&self.folder.path().join("b.jsonl")).unwrap();
        let state = self.folder.path().join("state");
        Arc::new(FilesReceiver::open(&config, self.root(), &state, events).unwrap())
    }

    fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.root().join(name)).unwrap()
    }

    /// The tree is that of the primary, as far as a walk can tell.
    fn assert_equal(&self) {
        let source = self.source.lock().unwrap();
        let entries = source.model.entries();
        for (path, known) in &entries {
            let place = self.root().join(path.as_path());
            let metadata = fs::symlink_metadata(&place).unwrap();
            let time = metadata.mtime() * 1_000_000_000 + metadata.mtime_nsec();
            assert_eq!(time, known.entry.mtime_ns, "{path}");
            match &known.entry.kind {
                Kind::File { hash, .. } => {
                    assert_eq!(Digest::of(&fs::read(&place).unwrap()), *hash, "{path}");
                    assert_eq!(metadata.mode() & 0o7777, known.entry.mode, "{path}");
                }
                Kind::Directory => assert_eq!(metadata.mode() & 0o7777, known.entry.mode),
                Kind::Symlink { target } => {
                    assert_eq!(
                        fs::read_link(&place).unwrap().to_str().unwrap().as_bytes(),
                        target
                    );
                }
            }
        }
        let walk = walkdir::WalkDir::new(self.root()).min_depth(1).into_iter();
        let walk = walk.filter_entry(|entry| entry.file_name() != ".understudy");
        assert_eq!(walk.count(), entries.len());
    }
}

fn stream(list: Vec<Vec<u8>>, is_kept_open: bool) -> axum::response::Response {
    let (sender, response) = frames();
    tokio::spawn(async move {
        for frame in list {
            if sender.send(&frame).await.is_err() {
                return;
            }
        }
        if is_kept_open {
            let mut packer = Packer::default();
            loop {
                packer
                    .note(&Note::Heartbeat { position: POSITION })
                    .unwrap();
                if sender.send(&packer.take().unwrap()).await.is_err() {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
        }
    });
    response
}

fn router(
    source: Arc<Mutex<Source>>,
    requests: Arc<AtomicUsize>,
    is_cut: Arc<AtomicBool>,
) -> Router {
    let (snapshots, contents, logs) = (source.clone(), source.clone(), source);
    let snapshot = move || async move { stream(snapshots.lock().unwrap().snapshot(), false) };
    let content = move |body: bytes::Bytes| async move {
        requests.fetch_add(1, Ordering::Relaxed);
        let wanted = postcard::from_bytes(&body).unwrap();
        let mut answer = contents.lock().unwrap().answer(wanted);
        if is_cut.load(Ordering::Relaxed) {
            answer.truncate(answer.len() / 2);
        }
        stream(answer, false)
    };
    let log = move || async move {
        let log = logs.lock().unwrap().log.clone();
        stream(log, true)
    };
    Router::new()
        .route("/snapshot", get(snapshot))
        .route("/content", post(content))
        .route("/log", get(log))
}

async fn until(is_true: impl Fn() -> bool, describe: impl Fn() -> String) {
    let end = Instant::now() + Duration::from_secs(20);
    while !is_true() {
        assert!(Instant::now() < end, "waited for {}", describe());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn fill(source: &mut Source) {
    source.put("d", entry(Kind::Directory));
    source.put("d/e", entry(Kind::Directory));
    for number in 0..1200_u32 {
        let at = if number % 2 == 0 { "d" } else { "d/e" };
        source.file(&format!("{at}/{number}"), &number.to_le_bytes());
    }
    source.file("top", b"at the top");
    source.file("empty", b"");
    let target = b"d/e".to_vec();
    source.put("link", entry(Kind::Symlink { target }));
    let mut large = vec![7; 9 << 20];
    large[1 << 20..5 << 20].fill(0);
    source.file("d/large", &large);
    let mut linked = source.file("d/one", b"of two names");
    linked.link = 3;
    for name in ["d/one", "top of two"] {
        source.put(name, linked.clone());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_is_seeded_and_seeded_again() {
    let pair = Pair::new().await;
    fill(&mut pair.source.lock().unwrap());
    let receiver = pair.receiver();
    receiver.seed(&pair.client, &NoProgress).await.unwrap();
    pair.assert_equal();
    let received = receiver.received();
    assert_eq!(
        (received.applied, received.flushed),
        (Some(POSITION), Some(POSITION))
    );
    let inode = |name: &str| fs::metadata(pair.root().join(name)).unwrap().ino();
    assert_eq!(inode("d/one"), inode("top of two"));
    let large = fs::metadata(pair.root().join("d/large")).unwrap();
    assert!(
        large.blocks() * 512 < 6 << 20,
        "its hole is kept: {}",
        large.blocks()
    );

    // Tampered with: something more, something less, something else.
    fs::write(pair.root().join("foreign"), "x").unwrap();
    fs::remove_file(pair.root().join("d/0")).unwrap();
    fs::write(pair.root().join("d/2"), "else").unwrap();
    fs::remove_file(pair.root().join("link")).unwrap();
    fs::create_dir(pair.root().join("link")).unwrap();
    let kept = inode("d/e/1");
    let before = pair.requests.load(Ordering::Relaxed);
    receiver.seed(&pair.client, &NoProgress).await.unwrap();
    pair.assert_equal();
    assert_eq!(inode("d/e/1"), kept, "what is right is left alone");
    assert_eq!(pair.requests.load(Ordering::Relaxed), before + 1);
    assert_eq!(receiver.received().report.gauges["awaited_entries"], 0);

    // Everything is known: nothing is read again, and the check agrees.
    drop(receiver);
    let receiver = pair.receiver();
    let (_stopper, stop) = Stopper::new();
    let checked = receiver
        .check(&pair.client, Depth::Verify, &NoProgress, &stop)
        .await
        .unwrap();
    assert_eq!(checked.differences, []);
    assert_eq!(
        checked.entries,
        pair.source.lock().unwrap().model.len() as u64
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_seeding_that_breaks_off_goes_on() {
    let pair = Pair::new().await;
    fill(&mut pair.source.lock().unwrap());
    let receiver = pair.receiver();
    pair.is_cut.store(true, Ordering::Relaxed);
    for _ in 0..3 {
        receiver.seed(&pair.client, &NoProgress).await.unwrap_err();
        assert!(receiver.received().must_reseed);
        assert!(
            !pair.root().join("d").exists(),
            "it appears when it is whole"
        );
    }
    pair.is_cut.store(false, Ordering::Relaxed);
    drop(receiver);
    let receiver = pair.receiver();
    receiver.seed(&pair.client, &NoProgress).await.unwrap();
    pair.assert_equal();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_did_not_come_along_is_fetched() {
    let pair = Pair::new().await;
    {
        let mut source = pair.source.lock().unwrap();
        source.put("d", entry(Kind::Directory));
        source.file("d/a", b"old");
    }
    let receiver = pair.receiver();
    receiver.seed(&pair.client, &NoProgress).await.unwrap();
    let long = vec![5; 40 << 20];
    let end = {
        let mut source = pair.source.lock().unwrap();
        let before = source.model.root();
        let put = |path: &str, entry: Entry| Operation::Put {
            path: RelPath::new(path).unwrap(),
            entry,
            content: Content::Whole,
        };
        let operations = vec![
            put("d/a", source.file("d/a", b"new")),
            put("d/long", source.file("d/long", &long)),
        ];
        let batch = Batch {
            start: POSITION,
            end: Position(1000),
            before,
            after: source.model.root(),
            operations,
        };
        source.missing.push(Digest::of(b"new"));
        let mut packer = Packer::default();
        let epoch = Epoch::first(name("a"));
        packer
            .note(&Note::Hello {
                epoch,
                position: batch.end,
            })
            .unwrap();
        packer.batch(&batch).unwrap();
        packer.note(&Note::Superseded).unwrap();
        packer.note(&Note::Deferred).unwrap();
        source.log = vec![packer.take().unwrap()];
        batch.end
    };
    pair.is_cut.store(true, Ordering::Relaxed);
    let (stopper, stop) = Stopper::new();
    let following = tokio::spawn(receiver.clone().run(pair.client.clone(), stop));
    let awaited = || receiver.received().report.gauges["awaited_entries"];
    until(|| awaited() == 2, || format!("{:?}", receiver.received())).await;
    assert_eq!(receiver.received().flushed, Some(POSITION));
    // Some of the long one has come by then, and is not asked for again.
    until(
        || pair.requests.load(Ordering::Relaxed) >= 4,
        || format!("{:?}", receiver.received()),
    )
    .await;
    pair.is_cut.store(false, Ordering::Relaxed);
    until(|| awaited() == 1, || format!("{:?}", receiver.received())).await;
    assert_eq!(Digest::of(&pair.read("d/long")), Digest::of(&long));
    assert_eq!(
        (pair.read("d/a"), receiver.received().applied),
        (b"old".to_vec(), Some(POSITION))
    );
    pair.source.lock().unwrap().missing.clear();
    let applied = || receiver.received().applied == Some(end);
    until(applied, || format!("{:?}", receiver.received())).await;
    assert_eq!(receiver.received().flushed, Some(end));
    pair.assert_equal();
    stopper.stop();
    following.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_check_finds_what_was_changed_or_has_rotted_and_repairs_it() {
    let pair = Pair::new().await;
    fill(&mut pair.source.lock().unwrap());
    let receiver = pair.receiver();
    receiver.seed(&pair.client, &NoProgress).await.unwrap();
    let (stopper, stop) = Stopper::new();
    let following = tokio::spawn(receiver.clone().run(pair.client.clone(), stop.clone()));
    until(|| receiver.received().applied.is_some(), String::new).await;
    let root = pair.root();
    fs::write(root.join("d/0"), "changed").unwrap();
    fs::remove_file(root.join("d/2")).unwrap();
    fs::create_dir(root.join("more")).unwrap();
    fs::write(root.join("more/inside"), "x").unwrap();
    // As a disk does it: nothing shows but the content. What is known of it is made to fit.
    fs::write(root.join("d/4"), "rot!").unwrap();
    {
        let mut replica = receiver.inner.replica();
        let manifest = &mut replica.ledger.manifest;
        let id = manifest.lookup(&path("d/4")).unwrap();
        let found = fs::metadata(root.join("d/4")).unwrap();
        let mut looks = manifest.local(id).seen().unwrap();
        looks.mtime_ns = found.mtime() * 1_000_000_000 + found.mtime_nsec();
        looks.ctime_ns = found.ctime() * 1_000_000_000 + found.ctime_nsec();
        manifest.learn(id, Local::Seen(looks));
    }
    let depth = Depth::Scrub {
        bytes_per_second: 1 << 30,
    };
    let checked = receiver
        .check(&pair.client, depth, &NoProgress, &stop)
        .await
        .unwrap();
    let mut found: Vec<_> = checked
        .differences
        .iter()
        .map(|difference| {
            (
                difference.what.as_str(),
                difference.kind,
                difference.is_repaired,
            )
        })
        .collect();
    found.sort();
    // The directories' times have changed with what they hold.
    found.retain(|(what, ..)| *what != "d");
    assert_eq!(
        found,
        [
            ("d/0", DifferenceKind::Changed, true),
            ("d/2", DifferenceKind::Missing, true),
            ("d/4", DifferenceKind::Rotten, true),
            ("more", DifferenceKind::Extra, true),
        ]
    );
    pair.assert_equal();
    let again = receiver
        .check(&pair.client, depth, &NoProgress, &stop)
        .await
        .unwrap();
    assert_eq!(again.differences, []);
    assert_eq!(again.position, Some(POSITION));
    stopper.stop();
    following.await.unwrap().unwrap();
}

/// Not a claim about speed: prints what a seeding of many files takes.
#[tokio::test(flavor = "multi_thread")]
async fn many_files_are_seeded() {
    let count: usize = std::env::var("SEED_FILES").map_or(3000, |text| text.parse().unwrap());
    let pair = Pair::new().await;
    {
        let mut source = pair.source.lock().unwrap();
        for number in 0..count {
            if number % 200 == 0 {
                source.put(&format!("d{:05}", number / 200), entry(Kind::Directory));
            }
            let content = format!("{number} ").repeat(5000 / 7);
            source.file(
                &format!("d{:05}/{number:07}", number / 200),
                content.as_bytes(),
            );
        }
    }
    let receiver = pair.receiver();
    let begun = Instant::now();
    receiver.seed(&pair.client, &NoProgress).await.unwrap();
    eprintln!("{count} files seeded in {:?}", begun.elapsed());
    assert_eq!(
        fs::read_dir(pair.root()).unwrap().count(),
        count.div_ceil(200) + 1
    );
}
