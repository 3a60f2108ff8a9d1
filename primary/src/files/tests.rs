//! A tree that changes, and the operations that are shipped because of it.

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};

use tokio::task::JoinHandle;
use understudy_config::{NodeName, Share};
use understudy_replication::files::{Content, Digest, LogEntry, Operation, RelPath};

use super::*;

struct Captured {
    folder: tempfile::TempDir,
    shipper: Arc<FilesShipper>,
    task: JoinHandle<Result<(), StoreFailure>>,
    stopper: Stopper,
    seen: Position,
}

fn epoch() -> Epoch {
    let name: NodeName = "a".parse().unwrap();
    Epoch::first(name)
}

fn path(text: &str) -> RelPath {
    RelPath::new(text).unwrap()
}

impl Captured {
    fn start(folder: tempfile::TempDir) -> Self {
        let root = folder.path().join("root");
        fs::create_dir_all(&root).unwrap();
        let config = Files::new("docs".parse().unwrap(), &root);
        let events = Events::open(&folder.path().join("events.jsonl")).unwrap();
        let state = folder.path().join("state");
        let shipper = FilesShipper::open(&config, root, &state, &epoch(), events).unwrap();
        let shipper = Arc::new(shipper);
        let (stopper, stop) = Stopper::new();
        let task = tokio::spawn(shipper.clone().run(stop));
        Self {
            folder,
            shipper,
            task,
            stopper,
            seen: Position(0),
        }
    }

    /// Starts with a tree that `make` makes, and skips what is shipped of that.
    async fn of(make: impl FnOnce(&Path)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("root");
        fs::create_dir_all(&root).unwrap();
        make(&root);
        let mut captured = Self::start(folder);
        captured.operations().await;
        captured
    }

    fn root(&self) -> PathBuf {
        self.folder.path().join("root")
    }

    async fn mark(&self) -> Position {
        let until = Instant::now() + Duration::from_secs(20);
        loop {
            if let Some(position) = self.shipper.mark().await {
                return position;
            }
            assert!(Instant::now() < until, "{:?}", self.shipper.report());
            assert!(!self.task.is_finished(), "the capture has ended");
            tokio::task::yield_now().await;
        }
    }

    /// Returns what is shipped because of what has happened since the last call.
    async fn operations(&mut self) -> Vec<Operation> {
        let end = self.mark().await;
        let mut reader = self.shipper.shared.log().reader(self.seen).unwrap();
        let mut operations = Vec::new();
        while reader.position() < end {
            let record = reader.next().unwrap().unwrap();
            let LogEntry::Batch(batch) = LogEntry::decode(&record.payload).unwrap() else {
                panic!("the primary's log holds batches");
            };
            operations.extend(batch.operations);
        }
        self.seen = end;
        operations
    }

    /// The same, without what only touches directories.
    async fn file_operations(&mut self) -> Vec<Operation> {
        let mut operations = self.operations().await;
        operations.retain(|operation| match operation {
            Operation::Put { entry, .. } => !entry.is_directory(),
            Operation::Delete { .. } | Operation::Move { .. } | Operation::Swap { .. } => true,
        });
        operations
    }

    async fn stop(self) -> tempfile::TempDir {
        self.stopper.stop();
        self.task.await.unwrap().unwrap();
        drop(self.shipper);
        self.folder
    }

    fn manifest<T>(&self, look: impl FnOnce(&understudy_replication::files::Manifest) -> T) -> T {
        look(&self.shipper.shared.ledger().as_ref().unwrap().manifest)
    }
}

fn noise(seed: u64, count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    blake3::Hasher::new()
        .update(&seed.to_le_bytes())
        .finalize_xof()
        .fill(&mut bytes);
    bytes
}

fn many(root: &Path) {
    for directory in 0..10 {
        let directory = root.join(format!("d{directory}"));
        fs::create_dir(&directory).unwrap();
        for file in 0..30 {
            fs::write(directory.join(format!("f{file}")), noise(file, 500)).unwrap();
        }
    }
}

fn literal(operations: &[Operation]) -> u64 {
    operations
        .iter()
        .filter_map(Operation::literal)
        .map(|(bytes, _)| bytes)
        .sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn all_that_is_there_is_known_and_nothing_is_read_again_after_a_restart() {
    let mut captured = Captured::of(many).await;
    captured.manifest(|manifest| assert_eq!((manifest.len(), manifest.bytes()), (310, 150_000)));
    let folder = captured.stop().await;
    captured = Captured::start(folder);
    captured.seen = captured.shipper.shared.log().bounds().1;
    assert_eq!(captured.operations().await, []);
    captured.manifest(|manifest| {
        for (path, known) in manifest.entries() {
            assert!(known.local.seen().is_some(), "{path}");
        }
    });
    captured.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_that_is_renamed_is_one_operation() {
    let mut captured = Captured::of(many).await;
    let root = captured.root();
    fs::rename(root.join("d3"), root.join("renamed")).unwrap();
    let moved = Operation::Move {
        from: path("d3"),
        to: path("renamed"),
    };
    assert_eq!(captured.operations().await, [moved]);
    fs::rename(root.join("d4/f1"), root.join("renamed/g")).unwrap();
    let operations = captured.file_operations().await;
    let moved = Operation::Move {
        from: path("d4/f1"),
        to: path("renamed/g"),
    };
    assert_eq!(operations, [moved]);
    captured.manifest(|manifest| assert_eq!(manifest.len(), 310));
    captured.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_renamed_while_nobody_watched_is_moved_as_well() {
    let captured = Captured::of(many).await;
    let folder = captured.stop().await;
    let root = folder.path().join("root");
    fs::rename(root.join("d3"), root.join("d5/renamed")).unwrap();
    fs::rename(root.join("d6/f1"), root.join("z")).unwrap();
    let mut captured = Captured::start(folder);
    captured.seen = captured.shipper.shared.log().bounds().1;
    let operations = captured.file_operations().await;
    let moved = |from: &str, to: &str| Operation::Move {
        from: path(from),
        to: path(to),
    };
    assert_eq!(operations.len(), 2, "{operations:?}");
    assert!(operations.contains(&moved("d3", "d5/renamed")));
    assert!(operations.contains(&moved("d6/f1", "z")));
    captured.manifest(|manifest| assert_eq!(manifest.len(), 310));
    captured.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn names_that_are_exchanged_and_rotated_bring_no_content() {
    let mut captured = Captured::of(many).await;
    let root = captured.root();
    let exchange = |a: &str, b: &str| {
        use rustix::fs::{CWD, RenameFlags, renameat_with};
        renameat_with(CWD, root.join(a), CWD, root.join(b), RenameFlags::EXCHANGE).unwrap();
    };
    exchange("d1", "d2");
    assert_eq!(literal(&captured.file_operations().await), 0);
    for (from, to) in [("f2", "f3"), ("f1", "f2"), ("f0", "f1")] {
        fs::rename(root.join("d5").join(from), root.join("d5").join(to)).unwrap();
    }
    fs::write(root.join("d5/f0"), b"new").unwrap();
    let operations = captured.file_operations().await;
    assert_eq!(literal(&operations), 3, "{operations:?}");
    // What a directory held goes along with it, wherever it is put.
    fs::create_dir(root.join("d7/inner")).unwrap();
    fs::rename(root.join("d7/inner"), root.join("inner")).unwrap();
    fs::rename(root.join("d7"), root.join("inner/d7")).unwrap();
    let operations = captured.file_operations().await;
    assert_eq!(literal(&operations), 0, "{operations:?}");
    captured.manifest(|manifest| assert!(manifest.lookup(&path("inner/d7/f3")).is_some()));
    captured.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_large_file_only_what_has_changed_is_shipped() {
    let big = noise(1, 3 << 20);
    let mut captured = Captured::of(|root| fs::write(root.join("big"), &big).unwrap()).await;
    let file = captured.root().join("big");
    let opened = fs::File::options().write(true).open(&file).unwrap();
    opened.write_all_at(&noise(2, 100), 1_000_000).unwrap();
    assert_eq!(literal(&captured.operations().await), 4096);
    opened.write_all_at(&noise(3, 777), 3 << 20).unwrap();
    assert_eq!(literal(&captured.operations().await), 777);
    let inserted = [&noise(4, 70_000), fs::read(&file).unwrap().as_slice()].concat();
    fs::write(captured.root().join("new"), &inserted).unwrap();
    fs::rename(captured.root().join("new"), &file).unwrap();
    assert_ne!(literal(&captured.operations().await), 0);
    fs::copy(&file, captured.root().join("copy")).unwrap();
    let operations = captured.file_operations().await;
    let copied = operations.iter().any(|operation| {
        matches!(operation, Operation::Put { content: Content::Copy(from), .. } if *from == path("big"))
    });
    assert!(copied, "{operations:?}");
    captured.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_small_file_that_grows_brings_its_end() {
    let mut captured =
        Captured::of(|root| fs::write(root.join("log"), noise(1, 60_000)).unwrap()).await;
    let log = fs::File::options()
        .append(true)
        .open(captured.root().join("log"))
        .unwrap();
    std::io::Write::write_all(&mut &log, &noise(2, 200)).unwrap();
    assert_eq!(literal(&captured.operations().await), 200);
    captured.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn hard_links_attributes_and_holes_are_seen() {
    let mut captured = Captured::of(|root| {
        fs::write(root.join("a"), noise(1, 5000)).unwrap();
        fs::create_dir(root.join("d")).unwrap();
    })
    .await;
    let root = captured.root();
    fs::hard_link(root.join("a"), root.join("d/b")).unwrap();
    let operations = captured.file_operations().await;
    assert_eq!(literal(&operations), 0, "{operations:?}");
    captured.manifest(|manifest| {
        let link = |name: &str| manifest.get(&path(name)).unwrap().entry.link;
        assert_ne!(link("a"), 0);
        assert_eq!(link("a"), link("d/b"));
    });
    // Changed through one name, it is changed under the other.
    fs::write(root.join("d/b"), b"other").unwrap();
    captured.operations().await;
    captured.manifest(|manifest| {
        let entry = |name: &str| manifest.get(&path(name)).unwrap().entry;
        assert_eq!(entry("a"), entry("d/b"));
        assert_eq!(entry("a").content().unwrap().0, 5);
    });
    fs::remove_file(root.join("a")).unwrap();
    captured.operations().await;
    captured.manifest(|manifest| assert_eq!(manifest.get(&path("d/b")).unwrap().entry.link, 0));

    rustix::fs::setxattr(
        root.join("d/b"),
        "user.colour",
        b"red",
        rustix::fs::XattrFlags::empty(),
    )
    .unwrap();
    rustix::fs::setxattr(
        root.join("d"),
        "user.colour",
        b"blue",
        rustix::fs::XattrFlags::empty(),
    )
    .unwrap();
    captured.operations().await;
    captured.manifest(|manifest| {
        for (name, colour) in [("d/b", b"red".as_slice()), ("d", b"blue")] {
            let entry = manifest.get(&path(name)).unwrap().entry;
            assert_eq!(entry.xattrs.get(b"user.colour"), Some(colour), "{name}");
        }
    });

    // One name becomes a file of its own, with the same content.
    fs::write(root.join("one"), b"content").unwrap();
    fs::hard_link(root.join("one"), root.join("two")).unwrap();
    captured.operations().await;
    fs::write(root.join("copy"), b"content").unwrap();
    fs::rename(root.join("copy"), root.join("two")).unwrap();
    let operations = captured.file_operations().await;
    let two = operations
        .iter()
        .find(|operation| *operation.path() == path("two"));
    assert!(
        matches!(two, Some(Operation::Put { entry, content: Content::Whole | Content::Copy(_), .. }) if entry.link == 0),
        "{operations:?}"
    );

    let sparse = fs::File::create(root.join("sparse")).unwrap();
    sparse.set_len(100 << 20).unwrap();
    sparse.write_all_at(b"here", 50 << 20).unwrap();
    drop(sparse);
    let operations = captured.file_operations().await;
    assert!(literal(&operations) <= 64 << 10, "{}", literal(&operations));
    assert!(fs::metadata(root.join("sparse")).unwrap().blocks() < 1000);

    // Small ones, with the hole at the end, in the middle, and all over.
    for (name, size, at) in [
        ("tail", 5430, 0),
        ("middle", 9000, 8990),
        ("grows", 1500, 0),
    ] {
        let file = fs::File::create(root.join(name)).unwrap();
        file.write_all_at(b"here", at).unwrap();
        file.set_len(size).unwrap();
    }
    fs::File::create(root.join("all"))
        .unwrap()
        .set_len(5000)
        .unwrap();
    captured.operations().await;
    let grows = fs::File::options()
        .write(true)
        .open(root.join("grows"))
        .unwrap();
    grows.write_all_at(b"there", 200_000).unwrap();
    drop(grows);
    let operations = captured.file_operations().await;
    assert!(literal(&operations) <= 8 << 10, "{}", literal(&operations));
    captured.manifest(|manifest| {
        for name in ["tail", "middle", "all", "grows"] {
            let bytes = fs::read(root.join(name)).unwrap();
            let size = u64::try_from(bytes.len()).unwrap();
            let held = manifest
                .get(&path(name))
                .and_then(|known| known.entry.content());
            assert_eq!(held, Some((size, Digest::of(&bytes))), "{name}");
        }
    });
    captured.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_cannot_be_shipped_because_it_looks_otherwise_is_looked_at() {
    let mut captured = Captured::of(many).await;
    let file = captured.root().join("d1/f1");
    // A name outside of the tree, of which nobody tells: only the change time shows it.
    fs::hard_link(&file, captured.folder.path().join("outside")).unwrap();
    captured.operations().await;
    captured.shipper.shared.is_superseded(&path("d1/f1"));
    let until = Instant::now() + Duration::from_secs(20);
    loop {
        let found = fs::metadata(&file).unwrap();
        let known = captured
            .manifest(|manifest| manifest.get(&path("d1/f1")))
            .unwrap();
        let seen = known.local.seen().unwrap();
        if seen.ctime_ns == found.ctime() * 1_000_000_000 + found.ctime_nsec() {
            break;
        }
        assert!(Instant::now() < until, "{seen:?}");
        captured.mark().await;
    }
    captured.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn modes_times_and_links_change_without_content() {
    let mut captured = Captured::of(many).await;
    let root = captured.root();
    fs::set_permissions(root.join("d1/f1"), fs::Permissions::from_mode(0o4755)).unwrap();
    symlink("../elsewhere", root.join("d1/link")).unwrap();
    let operations = captured.file_operations().await;
    assert_eq!(
        (operations.len(), literal(&operations)),
        (2, 0),
        "{operations:?}"
    );
    captured.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_deletion_is_held_back_until_it_is_allowed() {
    let mut captured = Captured::of(many).await;
    assert_eq!(captured.shipper.shared.config.delete_guard, Share::HALF);
    let root = captured.root();
    for directory in 0..8 {
        fs::remove_dir_all(root.join(format!("d{directory}"))).unwrap();
    }
    fs::write(root.join("fresh"), b"1").unwrap();
    let refused = captured.shipper.sync_now().await.unwrap_err();
    let refused = refused.downcast::<StoreRefusal>().unwrap();
    assert!(
        matches!(*refused, StoreRefusal::DeletesWithheld { .. }),
        "{refused}"
    );
    assert!(
        captured.shipper.mark().await.is_none(),
        "no position stands for what is there"
    );
    // Told as a problem of the store, and not as an entry that nobody can find.
    assert_eq!(captured.shipper.report().problems.len(), 1);
    assert_eq!(captured.shipper.troubles(), []);
    captured.manifest(|manifest| {
        assert!(manifest.len() > 150, "{}", manifest.len());
        assert!(
            manifest.lookup(&path("fresh")).is_some(),
            "what is new goes on"
        );
    });
    captured.shipper.allow_deletes().await.unwrap();
    captured.shipper.sync_now().await.unwrap();
    captured.manifest(|manifest| assert_eq!(manifest.len(), 2 * 31 + 1));
    captured.operations().await;
    captured.stop().await;
}
