//! The standby's end by itself, with batches made by hand.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::mpsc;
use understudy_config::Files;
use understudy_replication::epoch::Epoch;
use understudy_replication::event::Events;
use understudy_replication::files::wire::{CHUNK_BYTES_MAX, Note, Packer};
use understudy_replication::files::{
    Batch, Content, Digest, Entry, Head, Kind, Manifest, Operation, Patch, Piece, RelPath, Xattrs,
};
use understudy_replication::position::Position;

use super::applier::Applier;
use super::logger::Logger;
use super::place::Placing;
use super::plan::Plan;
use super::trash::Trash;
use super::{FilesReceiver, Inner};

fn path(text: &str) -> RelPath {
    RelPath::new(text).unwrap()
}

fn entry(kind: Kind) -> Entry {
    let mode = match kind {
        Kind::Directory => 0o755,
        Kind::File { .. } => 0o640,
        Kind::Symlink { .. } => 0,
    };
    Entry {
        kind,
        mode,
        uid: rustix::process::geteuid().as_raw(),
        gid: rustix::process::getegid().as_raw(),
        mtime_ns: 1_600_000_000_123_456_789,
        link: 0,
        xattrs: Xattrs::default(),
    }
}

fn file(content: &[u8]) -> Entry {
    entry(Kind::File {
        size: content.len() as u64,
        hash: Digest::of(content),
    })
}

fn directory(name: &str) -> Operation {
    Operation::Put {
        path: path(name),
        entry: entry(Kind::Directory),
        content: Content::Same,
    }
}

fn whole(name: &str, content: &[u8]) -> Operation {
    Operation::Put {
        path: path(name),
        entry: file(content),
        content: Content::Whole,
    }
}

fn renamed(from: &str, to: &str) -> Operation {
    Operation::Move {
        from: path(from),
        to: path(to),
    }
}

fn delete(name: &str) -> Operation {
    Operation::Delete { path: path(name) }
}

/// What comes along with an operation.
#[derive(Clone)]
enum Comes {
    Whole(Vec<u8>),
    Superseded,
}

/// A copy, and the tree that it should be.
struct Bench {
    _folder: tempfile::TempDir,
    inner: Arc<Inner>,
    model: Manifest,
    contents: BTreeMap<Digest, Vec<u8>>,
    root: Digest,
    position: Position,
}

impl Bench {
    fn new() -> Self {
        Self::with_trash(false)
    }

    fn with_trash(is_kept: bool) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut config = Files::new("docs".parse().unwrap(), "/not/used");
        if !is_kept {
            config.trash = std::time::Duration::ZERO;
        }
        let root = folder.path().join("root");
        let events = Events::open(&folder.path().join("events.jsonl")).unwrap();
        let state = folder.path().join("state");
        let receiver = FilesReceiver::open(&config, root, &state, events).unwrap();
        let inner = receiver.inner;
        let mut model = Manifest::default();
        let root = model.root();
        let position = Position(10);
        let head = Head {
            epoch: Epoch::first("a".parse().unwrap()),
            position,
            complete: position,
            root,
        };
        {
            let mut replica = inner.replica();
            replica.log.lock().reset(position).unwrap();
            replica.ledger.replace(Manifest::default(), head).unwrap();
            replica.open_tree().unwrap();
        }
        Self {
            _folder: folder,
            inner,
            model,
            contents: BTreeMap::new(),
            root,
            position,
        }
    }

    fn root(&self) -> PathBuf {
        self.inner.root.clone()
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.root().join(name)).unwrap()
    }

    fn keep(&mut self, content: &[u8]) {
        self.contents.insert(Digest::of(content), content.to_vec());
    }

    fn batch(&mut self, operations: Vec<Operation>) -> Batch {
        let (start, before) = (self.position, self.model.root());
        let mut cost = 1;
        for operation in &operations {
            self.model.fold(operation).unwrap();
            cost += operation.cost();
        }
        self.position = Position(start.0 + cost);
        Batch {
            start,
            end: self.position,
            before,
            after: self.model.root(),
            operations,
        }
    }

    /// Logs batches with what comes along.
    fn log(&mut self, batches: &[(Batch, Vec<Comes>)]) {
        let mut frames = Vec::new();
        let mut packer = Packer::default();
        for (batch, coming) in batches {
            packer.batch(batch).unwrap();
            for comes in coming {
                match comes {
                    Comes::Whole(bytes) => {
                        for chunk in bytes.chunks(CHUNK_BYTES_MAX) {
                            packer.chunk(chunk);
                            frames.extend(packer.take());
                        }
                        packer.note(&Note::Complete).unwrap();
                    }
                    Comes::Superseded => packer.note(&Note::Superseded).unwrap(),
                }
            }
        }
        frames.extend(packer.take());
        let root = self.root;
        self.root = batches.last().unwrap().0.after;
        self.feed(root, frames).unwrap();
    }

    fn feed(&self, root: Digest, frames: Vec<Vec<u8>>) -> Result<(), super::FilesError> {
        let parts = {
            let mut replica = self.inner.replica();
            (replica.log.clone(), replica.blocks())
        };
        let logger = Logger::new(&self.inner, parts, root).unwrap();
        let (sender, receiver) = mpsc::channel(frames.len().max(1));
        for frame in frames {
            sender.try_send(Bytes::from(frame)).unwrap();
        }
        drop(sender);
        logger.run(receiver)
    }

    /// Logs and applies one batch whose contents are known.
    fn follow(&mut self, operations: Vec<Operation>, contents: &[&[u8]]) {
        for content in contents {
            self.keep(content);
        }
        let coming: Vec<Comes> = contents.iter().map(|c| Comes::Whole(c.to_vec())).collect();
        let batch = self.batch(operations);
        let applier = Applier::open(&self.inner.replica()).unwrap();
        self.log(&[(batch, coming)]);
        self.apply_by(applier);
    }

    fn apply(&self) {
        let applier = Applier::open(&self.inner.replica()).unwrap();
        self.apply_by(applier);
    }

    fn apply_by(&self, mut applier: Applier) {
        let mut replica = self.inner.replica();
        while applier.apply_group(&self.inner, &mut replica).unwrap() {}
    }

    /// As if the process had died in the middle of what is applied next: `count` operations of it are
    /// in the tree, and nothing is known of that.
    fn crash_after(&self, batches: &[(Batch, Vec<Comes>)], mut count: usize) {
        {
            let mut locked = self.inner.replica();
            let replica = &mut *locked;
            let blocks = replica.blocks();
            let tree = replica.tree.as_ref().unwrap();
            let mut manifest = replica.ledger.manifest.clone();
            for (batch, coming) in batches {
                let mut logged = super::plan::Logged {
                    batch: batch.clone(),
                    contents: BTreeMap::new(),
                    awaited: std::collections::BTreeSet::new(),
                };
                let literals = (0_u32..)
                    .zip(&batch.operations)
                    .filter(|(_, operation)| operation.literal().is_some());
                for ((index, _), comes) in literals.zip(coming) {
                    match comes {
                        Comes::Whole(bytes) => {
                            logged.contents.insert(index, bytes.clone());
                        }
                        Comes::Superseded => {
                            logged.awaited.insert(index);
                        }
                    }
                }
                let plan = Plan::new(&mut manifest, batch).unwrap();
                let some = count.min(logged.batch.operations.len());
                count -= some;
                logged.batch.operations.truncate(some);
                let mut trash = Trash::of(self.inner.trash, batch.start);
                let mut placing = Placing::new(tree, &blocks, &mut trash, (false, true));
                placing.perform(&mut manifest, &mut logged, &plan).unwrap();
                if count == 0 {
                    break;
                }
            }
        }
        self.restart();
    }

    fn restart(&self) {
        self.inner.reload().unwrap();
        self.inner.replica().open_tree().unwrap();
    }

    fn recover(&self) {
        let mut replica = self.inner.replica();
        self.inner.recover(&mut replica).unwrap();
    }

    fn awaited(&self) -> Vec<String> {
        let replica = self.inner.replica();
        let manifest = &replica.ledger.manifest;
        let paths = manifest.awaited().filter_map(|id| manifest.path(id));
        paths.map(|path| path.to_string()).collect()
    }

    /// The copy is what it should be, in the tree and in what is known of it.
    fn assert_equal(&self) {
        let mut expected = BTreeMap::new();
        let mut links: BTreeMap<u64, u64> = BTreeMap::new();
        for (path, known) in self.model.entries() {
            let entry = known.entry;
            let text = match &entry.kind {
                Kind::File { hash, .. } => format!("{hash} {:o}", entry.mode),
                Kind::Directory => format!("directory {:o}", entry.mode),
                Kind::Symlink { target } => format!("link {}", target.escape_ascii()),
            };
            expected.insert(path.to_string(), format!("{text} {}", entry.mtime_ns));
            if entry.link != 0 {
                let inode = fs::metadata(self.root().join(path.as_path()))
                    .unwrap()
                    .ino();
                assert_eq!(*links.entry(entry.link).or_insert(inode), inode, "{path}");
            }
        }
        let mut found = BTreeMap::new();
        for item in walkdir::WalkDir::new(self.root()).min_depth(1) {
            let item = item.unwrap();
            let name = item
                .path()
                .strip_prefix(self.root())
                .unwrap()
                .to_str()
                .unwrap()
                .to_owned();
            if name.starts_with(".understudy") {
                continue;
            }
            let metadata = item.metadata().unwrap();
            let mode = metadata.permissions().mode() & 0o7777;
            let text = if metadata.is_file() {
                let content = fs::read(item.path()).unwrap();
                format!("{} {mode:o}", Digest::of(&content))
            } else if metadata.is_dir() {
                format!("directory {mode:o}")
            } else {
                let target = fs::read_link(item.path()).unwrap();
                format!("link {}", target.display())
            };
            let mtime = metadata.mtime() * 1_000_000_000 + metadata.mtime_nsec();
            found.insert(name, format!("{text} {mtime}"));
        }
        assert_eq!(found, expected);
        let replica = self.inner.replica();
        let head = replica.ledger.head().unwrap();
        assert_eq!(
            (head.position, head.complete),
            (self.position, self.position)
        );
        for (path, _) in self.model.entries() {
            let id = replica.ledger.manifest.lookup(&path).unwrap();
            let looks = replica.tree().unwrap().look(&path).unwrap().unwrap();
            assert!(
                replica.ledger.manifest.looks(id, &looks),
                "{path}: {looks:?}, and not {:?}",
                replica.ledger.manifest.local(id)
            );
        }
    }
}

#[test]
fn every_operation_is_applied() {
    let mut bench = Bench::new();
    bench.follow(
        vec![
            directory("d"),
            directory("d/e"),
            whole("d/a", b"one"),
            whole("b", b""),
        ],
        &[b"one", b""],
    );
    bench.assert_equal();
    let link = Operation::Put {
        path: path("l"),
        entry: entry(Kind::Symlink {
            target: b"d/a".to_vec(),
        }),
        content: Content::Same,
    };
    let copy = Operation::Put {
        path: path("c"),
        entry: file(b"one"),
        content: Content::Copy(path("d/a")),
    };
    let mut same = file(b"one");
    same.mode = 0o4755;
    same.mtime_ns += 5;
    same.xattrs = Xattrs::new(vec![(b"user.a".to_vec(), b"1".to_vec())]);
    let same = Operation::Put {
        path: path("f/a"),
        entry: same,
        content: Content::Same,
    };
    bench.follow(
        vec![renamed("d", "f"), link, copy, same, whole("b", b"two")],
        &[b"two"],
    );
    bench.assert_equal();
    let place = bench.root().join("f/a");
    let mut value = [0; 8];
    assert_eq!(
        rustix::fs::getxattr(&place, "user.a", &mut value).unwrap(),
        1
    );
    bench.follow(
        vec![
            Operation::Swap {
                a: path("b"),
                b: path("f/a"),
            },
            delete("f/e"),
        ],
        &[],
    );
    bench.assert_equal();
    bench.follow(
        vec![delete("f"), delete("b"), whole("l", b"a file now")],
        &[b"a file now"],
    );
    bench.assert_equal();
    bench.restart();
    bench.assert_equal();
}

#[test]
fn names_of_one_file_share_it() {
    let mut bench = Bench::new();
    let mut linked = file(b"one");
    linked.link = 7;
    let put = |name: &str, content| Operation::Put {
        path: path(name),
        entry: linked.clone(),
        content,
    };
    bench.follow(
        vec![put("a", Content::Whole), put("b", Content::Link(path("a")))],
        &[b"one"],
    );
    bench.assert_equal();
    // One more, and one less.
    bench.follow(vec![put("c", Content::Link(path("b"))), delete("a")], &[]);
    bench.assert_equal();
    // The content changes: a fresh file, and its names again.
    linked = Entry {
        link: 7,
        ..file(b"two")
    };
    let put = |name: &str, content| Operation::Put {
        path: path(name),
        entry: linked.clone(),
        content,
    };
    bench.follow(
        vec![put("b", Content::Whole), put("c", Content::Link(path("b")))],
        &[b"two"],
    );
    bench.assert_equal();
    // The last other name goes.
    let alone = Operation::Put {
        path: path("b"),
        entry: file(b"two"),
        content: Content::Same,
    };
    bench.follow(vec![alone, delete("c")], &[]);
    bench.assert_equal();
}

fn noise(seed: u64, bytes: usize) -> Vec<u8> {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes());
    let mut content = vec![0; bytes];
    hasher.finalize_xof().fill(&mut content);
    content
}

/// The patch that turns `old` into `new`, which differ at `changed`.
fn patch(old: &[u8], new: &[u8], changed: &[(usize, usize)]) -> (Patch, Vec<u8>) {
    let mut pieces = Vec::new();
    let mut literal = Vec::new();
    let mut at = 0;
    for (start, end) in changed {
        if at < *start {
            pieces.push(Piece::Keep {
                offset: at as u64,
                bytes: (start - at) as u64,
            });
        }
        pieces.push(Piece::Literal((end - start) as u64));
        literal.extend_from_slice(&new[*start..*end]);
        at = *end;
    }
    if at < new.len() {
        pieces.push(Piece::Keep {
            offset: at as u64,
            bytes: (new.len() - at) as u64,
        });
    }
    let patch = Patch {
        base: Digest::of(old),
        base_size: old.len() as u64,
        pieces,
        literal: Digest::of(&literal),
    };
    (patch, literal)
}

fn patched(name: &str, new: &[u8], patch: Patch) -> Operation {
    Operation::Put {
        path: path(name),
        entry: file(new),
        content: Content::Patch(patch),
    }
}

/// Found by failing calls: what was awaited when it moved stayed where it had been.
#[test]
fn what_is_awaited_and_moves_onto_another_leaves_its_place_however_often_that_is_tried() {
    for is_done_before in [false, true] {
        let mut bench = Bench::new();
        bench.follow(
            vec![whole("a", b"old"), whole("b", b"other")],
            &[b"old", b"other"],
        );
        let batch = bench.batch(vec![whole("a", b"new")]);
        bench.log(&[(batch, vec![Comes::Superseded])]);
        bench.apply();
        assert_eq!(bench.awaited(), ["a"]);
        let batch = bench.batch(vec![renamed("a", "b")]);
        bench.log(&[(batch.clone(), vec![])]);
        bench.crash_after(&[(batch, vec![])], usize::from(is_done_before));
        bench.recover();
        assert!(!bench.root().join("a").exists(), "{is_done_before}");
        assert_eq!(bench.awaited(), ["b"]);
    }
}

#[test]
fn a_doubtful_copy_is_called_whole_once_a_look_at_everything_has_found_nothing() {
    let mut bench = Bench::new();
    bench.follow(vec![whole("a", b"one")], &[b"one"]);
    let whole_until = |bench: &Bench| bench.inner.replica().complete().unwrap();
    let before = whole_until(&bench);
    bench.inner.replica().raise_doubt().unwrap();
    bench.follow(vec![whole("b", b"two")], &[b"two"]);
    assert_eq!(whole_until(&bench), before);
    bench.restart();
    assert_eq!(whole_until(&bench), before, "after a restart");
    // What nobody knows of, and what is not what it is known to be.
    fs::write(bench.root().join("stray"), "nobody's").unwrap();
    fs::remove_file(bench.root().join("a")).unwrap();
    super::check::look_at_all(&bench.inner).unwrap();
    assert!(!bench.root().join("stray").exists());
    assert_eq!(bench.awaited(), ["a"]);
    assert_eq!(whole_until(&bench), before, "something was found");
    fs::write(bench.root().join("a"), "one").unwrap();
    let mut replica = bench.inner.replica();
    bench.inner.adopt_awaited(&mut replica).unwrap();
    drop(replica);
    super::check::look_at_all(&bench.inner).unwrap();
    assert_eq!(whole_until(&bench), bench.position);
    bench.assert_equal();
}

#[test]
fn a_further_name_of_a_file_with_another_content_is_not_made() {
    let mut bench = Bench::new();
    bench.follow(vec![whole("a", b"one")], &[b"one"]);
    let wrong = Operation::Put {
        path: path("b"),
        entry: file(b"two"),
        content: Content::Link(path("a")),
    };
    let batch = bench.batch(vec![wrong]);
    bench.log(&[(batch, vec![])]);
    bench.restart();
    bench.recover();
    assert!(!bench.root().join("b").exists(), "it is asked for");
    assert_eq!(fs::read(bench.root().join("a")).unwrap(), b"one");
}

#[test]
fn what_is_to_be_a_file_of_its_own_is_not_adopted_while_it_has_other_names() {
    let mut bench = Bench::new();
    bench.follow(
        vec![whole("a", b"one"), whole("b", b"old")],
        &[b"one", b"old"],
    );
    // As if a link that was broken had not been broken here.
    fs::remove_file(bench.root().join("b")).unwrap();
    fs::hard_link(bench.root().join("a"), bench.root().join("b")).unwrap();
    let before = fs::metadata(bench.root().join("a")).unwrap().mtime_nsec();
    let mut entry = file(b"one");
    entry.mtime_ns += 1000;
    let same = Operation::Put {
        path: path("b"),
        entry,
        content: Content::Copy(path("gone")),
    };
    let batch = bench.batch(vec![same]);
    bench.log(&[(batch, vec![])]);
    bench.restart();
    bench.recover();
    let a = fs::metadata(bench.root().join("a")).unwrap();
    assert_eq!(a.mtime_nsec(), before, "the other name is as it was");
}

#[test]
fn what_is_kept_of_a_sparse_file_keeps_its_holes() {
    let mut bench = Bench::new();
    let mut old = vec![0; 4 << 20];
    old[1 << 20..][..5000].copy_from_slice(&noise(1, 5000));
    let zero = |bytes: u64| Piece::Zero(bytes);
    let made = Patch {
        base: Digest::of(b""),
        base_size: 0,
        pieces: vec![zero(1 << 20), Piece::Literal(5000), zero((3 << 20) - 5000)],
        literal: Digest::of(&old[1 << 20..][..5000]),
    };
    let literal = old[1 << 20..][..5000].to_vec();
    bench.follow(vec![patched("sparse", &old, made)], &[&literal]);
    let new = [&old[..], b"more"].concat();
    let (made, literal) = patch(&old, &new, &[(4 << 20, (4 << 20) + 4)]);
    bench.follow(vec![patched("sparse", &new, made)], &[&literal]);
    bench.assert_equal();
    assert_eq!(fs::read(bench.root().join("sparse")).unwrap(), new);
    let kept = fs::metadata(bench.root().join("sparse")).unwrap().blocks() * 512;
    assert!(kept <= 64 << 10, "{kept}");
}

#[test]
fn a_large_file_is_changed_in_place_and_again_after_a_crash() {
    let mut bench = Bench::new();
    let old = noise(1, 17 << 20);
    bench.follow(vec![whole("large", &old)], &[&old]);
    bench.assert_equal();
    let inode = fs::metadata(bench.root().join("large")).unwrap().ino();
    let mut new = old.clone();
    let changed = [
        (5000, 9000),
        (3 << 20, (3 << 20) + 70_000),
        ((17 << 20) - 10, 17 << 20),
    ];
    for (start, end) in changed {
        new[start..end].copy_from_slice(&noise(2, end - start));
    }
    let (made, literal) = patch(&old, &new, &changed);
    let batch = bench.batch(vec![patched("large", &new, made)]);
    bench.log(&[(batch, vec![Comes::Whole(literal)])]);
    // A part of it was written, and torn.
    let mut file = fs::File::options()
        .write(true)
        .open(bench.root().join("large"))
        .unwrap();
    file.seek(SeekFrom::Start(6000)).unwrap();
    file.write_all(&[0; 2000]).unwrap();
    drop(file);
    bench.restart();
    bench.recover();
    bench.assert_equal();
    assert_eq!(
        fs::metadata(bench.root().join("large")).unwrap().ino(),
        inode
    );
    // Shorter, with a hole.
    let mut next = new[..(16 << 20) + 100].to_vec();
    next[1 << 20..2 << 20].fill(0);
    let keep = |offset: u64, bytes: u64| Piece::Keep { offset, bytes };
    let made = Patch {
        base: Digest::of(&new),
        base_size: new.len() as u64,
        pieces: vec![
            keep(0, 1 << 20),
            Piece::Zero(1 << 20),
            keep(2 << 20, (14 << 20) + 100),
        ],
        literal: Digest::of(b""),
    };
    bench.follow(vec![patched("large", &next, made)], &[b""]);
    bench.assert_equal();
    let metadata = fs::metadata(bench.root().join("large")).unwrap();
    assert_eq!(metadata.ino(), inode);
    assert!(
        metadata.blocks() * 512 <= (15 << 20) + 8192,
        "{} blocks",
        metadata.blocks()
    );
}

/// What makes `old` longer by `more`.
fn appended(name: &str, old: &[u8], more: &[u8]) -> (Operation, Vec<u8>) {
    let new = [old, more].concat();
    let (made, _) = patch(old, &new, &[(old.len(), new.len())]);
    (patched(name, &new, made), new)
}

#[test]
fn a_file_that_grows_is_made_longer_in_place_and_again_after_a_crash() {
    let old = noise(1, 70_000);
    let (first, longer) = appended("log", &old, b"a line and ");
    let (second, longest) = appended("log", &longer, &noise(2, 9000));
    let torn = [&old[..], &[0; 300]].concat();
    let half = [&longer[..], &longest[longer.len()..][..4000], &[0; 9000]].concat();
    // Whatever of it was there when the process or the power went.
    for there in [&old, &torn, &longer, &half, &longest] {
        let mut bench = Bench::new();
        bench.follow(vec![whole("log", &old)], &[&old]);
        let place = bench.root().join("log");
        let inode = fs::metadata(&place).unwrap().ino();
        let both = [
            (
                bench.batch(vec![first.clone()]),
                vec![Comes::Whole(longer[old.len()..].to_vec())],
            ),
            (
                bench.batch(vec![second.clone()]),
                vec![Comes::Whole(longest[longer.len()..].to_vec())],
            ),
        ];
        bench.log(&both);
        let file = fs::File::options().write(true).open(&place).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, there, 0).unwrap();
        bench.restart();
        bench.recover();
        bench.assert_equal();
        assert_eq!(fs::metadata(&place).unwrap().ino(), inode, "in place");
    }
}

#[test]
fn a_file_that_was_replaced_after_it_had_grown_is_right_after_a_crash() {
    let mut bench = Bench::new();
    let old = noise(1, 5000);
    bench.follow(vec![whole("log", &old)], &[&old]);
    let (grown, longer) = appended("log", &old, b"and more");
    let other = noise(2, 6000);
    let (again, _) = appended("log", &other, b"and again");
    let batches = [
        (
            bench.batch(vec![grown]),
            vec![Comes::Whole(b"and more".to_vec())],
        ),
        (
            bench.batch(vec![Operation::Put {
                path: path("copied"),
                entry: file(&longer),
                content: Content::Copy(path("log")),
            }]),
            vec![],
        ),
        (
            bench.batch(vec![whole("log", &other)]),
            vec![Comes::Whole(other)],
        ),
        (
            bench.batch(vec![again]),
            vec![Comes::Whole(b"and again".to_vec())],
        ),
    ];
    bench.log(&batches);
    for count in [4, 1, 3, 2, 4] {
        bench.crash_after(&batches, count);
    }
    bench.recover();
    bench.assert_equal();
}

#[test]
fn what_is_to_be_copied_is_found_in_a_file_that_has_grown_since() {
    let mut bench = Bench::new();
    let old = noise(1, 5000);
    bench.follow(vec![whole("log", &old)], &[&old]);
    let (grown, longer) = appended("log", &old, b"and more");
    let copied = Operation::Put {
        path: path("copied"),
        entry: file(&old),
        content: Content::Copy(path("log")),
    };
    let batch = bench.batch(vec![copied, grown]);
    bench.log(&[(batch, vec![Comes::Whole(b"and more".to_vec())])]);
    // As if the power had failed when only the end of the file was on the disk.
    fs::write(bench.root().join("log"), &longer).unwrap();
    bench.restart();
    bench.recover();
    bench.assert_equal();
}

#[test]
fn a_file_with_another_name_is_replaced_when_it_grows() {
    let mut bench = Bench::new();
    let old = noise(1, 5000);
    bench.follow(vec![whole("log", &old)], &[&old]);
    let other = bench.root().parent().unwrap().join("another name");
    fs::hard_link(bench.root().join("log"), &other).unwrap();
    let (grown, _) = appended("log", &old, b"and more");
    bench.follow(vec![grown], &[b"and more"]);
    bench.assert_equal();
    assert!(
        fs::read(other).unwrap() == old,
        "the other name is as it was"
    );
}

#[test]
fn names_of_one_file_are_not_lengthened_in_place() {
    let mut bench = Bench::new();
    let old = noise(1, 5000);
    let linked = |mut operation: Operation| {
        if let Operation::Put { entry, .. } = &mut operation {
            entry.link = 7;
        }
        operation
    };
    let link = |content: &[u8]| {
        linked(Operation::Put {
            path: path("name"),
            entry: file(content),
            content: Content::Link(path("log")),
        })
    };
    bench.follow(vec![linked(whole("log", &old)), link(&old)], &[&old]);
    let (grown, longer) = appended("log", &old, b"and more");
    bench.follow(vec![linked(grown), link(&longer)], &[b"and more"]);
    bench.assert_equal();
}

#[test]
fn a_file_that_does_not_begin_as_it_should_is_not_lengthened() {
    let old = noise(1, 5000);
    let mut other = old.clone();
    other[4000] ^= 1;
    let shorter = &old[..4999];
    for there in [&other[..], shorter] {
        let mut bench = Bench::new();
        bench.follow(vec![whole("log", &old)], &[&old]);
        let place = bench.root().join("log");
        fs::write(&place, there).unwrap();
        let (grown, _) = appended("log", &old, b"and more");
        bench.follow(vec![grown], &[b"and more"]);
        assert_eq!(bench.awaited(), ["log"], "it is asked for");
        assert!(fs::read(&place).unwrap() == there, "it is left alone");
    }
}

#[test]
fn after_a_failed_sync_a_file_that_grows_is_made_anew() {
    let mut bench = Bench::new();
    let old = noise(1, 5000);
    bench.follow(vec![whole("log", &old)], &[&old]);
    let place = bench.root().join("log");
    let inode = fs::metadata(&place).unwrap().ino();
    bench
        .inner
        .has_lost_writes
        .store(true, std::sync::atomic::Ordering::Relaxed);
    let (grown, _) = appended("log", &old, b"and more");
    bench.follow(vec![grown], &[b"and more"]);
    bench.assert_equal();
    assert_ne!(fs::metadata(&place).unwrap().ino(), inode);
}

#[test]
fn a_large_file_that_grows_keeps_the_digests_of_its_parts() {
    let mut bench = Bench::new();
    let old = noise(1, 3 << 20);
    bench.follow(vec![whole("log", &old)], &[&old]);
    let (grown, longer) = appended("log", &old, &noise(2, 100_000));
    let more = longer[old.len()..].to_vec();
    bench.follow(vec![grown], &[&more]);
    bench.assert_equal();
    let blocks = bench.inner.replica().blocks();
    let size = longer.len() as u64;
    assert!(blocks.get(size, Digest::of(&longer)).is_some());
}

#[test]
fn a_file_that_was_tampered_with_is_no_base_for_a_patch() {
    let mut bench = Bench::new();
    let old = noise(1, 17 << 20);
    bench.follow(vec![whole("large", &old)], &[&old]);
    let mut file = fs::File::options()
        .write(true)
        .open(bench.root().join("large"))
        .unwrap();
    file.seek(SeekFrom::Start(10 << 20)).unwrap();
    file.write_all(b"not the primary's").unwrap();
    drop(file);
    let mut new = old.clone();
    new[0] ^= 1;
    let (made, literal) = patch(&old, &new, &[(0, 100)]);
    bench.follow(vec![patched("large", &new, made)], &[&literal]);
    assert_eq!(bench.awaited(), ["large"]);
    let mut byte = [0];
    fs::File::open(bench.root().join("large"))
        .unwrap()
        .read_exact(&mut byte)
        .unwrap();
    assert_eq!(byte[0], old[0], "the old version is left alone");
}

#[test]
fn a_file_that_is_moved_and_changed_at_once_is_changed_where_it_is_then() {
    let mut bench = Bench::new();
    let old = noise(1, 300_000);
    bench.follow(vec![directory("d"), whole("a", &old)], &[&old]);
    let mut new = old.clone();
    new[5..9].fill(0);
    new.extend_from_slice(b"and more");
    let changed = [(0, 4096), (300_000, new.len())];
    let (made, literal) = patch(&old, &new, &changed);
    let operations = vec![renamed("a", "d/b"), patched("d/b", &new, made)];
    bench.follow(operations, &[&literal]);
    bench.assert_equal();
}

#[test]
fn a_content_that_does_not_come_holds_the_position() {
    let mut bench = Bench::new();
    bench.follow(
        vec![whole("a", b"old"), whole("b", b"old")],
        &[b"old", b"old"],
    );
    let before = bench.position;
    let batch = bench.batch(vec![whole("a", b"new"), whole("b", b"new")]);
    bench.log(&[(
        batch,
        vec![Comes::Superseded, Comes::Whole(b"new".to_vec())],
    )]);
    let told = || {
        let told = bench.inner.told.lock().unwrap().clone();
        (told.flushed, told.applied)
    };
    assert_eq!(told(), (Some(before), Some(before)));
    bench.apply();
    assert_eq!(told(), (Some(before), Some(before)));
    assert_eq!(
        (bench.read("a").as_str(), bench.read("b").as_str()),
        ("old", "new")
    );
    assert_eq!(bench.awaited(), ["a"]);
    bench.restart();
    assert_eq!(bench.awaited(), ["a"]);
    bench.follow(vec![whole("a", b"newer")], &[b"newer"]);
    bench.assert_equal();
    let told = bench.inner.told.lock().unwrap().clone();
    assert_eq!(told.flushed, Some(bench.position));
}

#[test]
fn content_without_its_digest_is_awaited_and_told() {
    let mut bench = Bench::new();
    let batch = bench.batch(vec![whole("a", b"good"), whole("b", b"good")]);
    let coming = vec![
        Comes::Whole(b"evil".to_vec()),
        Comes::Whole(b"good".to_vec()),
    ];
    bench.log(&[(batch, coming)]);
    bench.apply();
    assert_eq!(bench.awaited(), ["a"]);
    assert!(!bench.root().join("a").exists());
    assert_eq!(bench.inner.events.newest(1)[0].kind, "files_damaged");
}

#[test]
fn a_batch_that_does_not_follow_is_not_logged() {
    let mut bench = Bench::new();
    let batch = bench.batch(vec![directory("d")]);
    let replayed = bench.batch(vec![directory("e")]);
    for wrong in [
        Batch {
            start: Position(9),
            ..batch.clone()
        },
        Batch {
            before: Digest::of(b"another"),
            ..batch.clone()
        },
        replayed,
    ] {
        let mut packer = Packer::default();
        packer.batch(&wrong).unwrap();
        let fed = bench.feed(bench.root, vec![packer.take().unwrap()]);
        assert!(
            matches!(fed, Err(super::FilesError::Diverged { .. })),
            "{fed:?}"
        );
    }
    assert_eq!(bench.inner.replica().log.lock().end(), Position(10));
}

#[test]
fn an_entry_that_cannot_be_placed_does_not_stop_the_others() {
    let mut bench = Bench::new();
    bench.follow(vec![directory("d"), whole("d/old", b"old")], &[b"old"]);
    // By somebody on the standby.
    fs::remove_dir_all(bench.root().join("d")).unwrap();
    bench.follow(
        vec![whole("b", b"two"), whole("d/new", b"new")],
        &[b"two", b"new"],
    );
    assert_eq!(bench.read("b"), "two");
    assert_eq!(bench.awaited().len(), 3, "{:?}", bench.awaited());
    assert_eq!(bench.inner.awaiting.troubles().len(), 1);
}

#[test]
fn what_was_deleted_is_in_the_trash_for_a_while() {
    let mut bench = Bench::with_trash(true);
    bench.follow(
        vec![directory("d"), whole("d/a", b"one"), whole("b", b"two")],
        &[b"one", b"two"],
    );
    bench.follow(vec![delete("d"), delete("b")], &[]);
    bench.assert_equal();
    let trash = bench.root().join(".understudy/trash");
    let deletion = fs::read_dir(&trash)
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .path();
    assert_eq!(fs::read_to_string(deletion.join("0-d/a")).unwrap(), "one");
    assert_eq!(fs::read_to_string(deletion.join("1-b")).unwrap(), "two");
    bench.inner.sweep(false).unwrap();
    assert!(deletion.exists(), "not old enough");
    bench.inner.empty_trash();
    assert_eq!(fs::read_dir(&trash).unwrap().count(), 0);
}

/// Histories of batches, broken off anywhere and applied again.
#[test]
fn a_group_that_was_broken_off_anywhere_is_done_again() {
    for seed in 0..25 {
        let mut random = Random(seed * 7919 + 1);
        let mut bench = Bench::with_trash(seed % 2 == 0);
        for round in 0..6 {
            let mut batches = Vec::new();
            for _ in 0..random.below(3) + 1 {
                batches.extend(random_batch(&mut bench, &mut random));
            }
            if batches.is_empty() {
                continue;
            }
            bench.log(&batches);
            // The first group alone can have been begun.
            let is_apart = |batch: &Batch| {
                let moves = |operation: &Operation| {
                    matches!(operation, Operation::Move { .. } | Operation::Swap { .. })
                };
                batch.operations.iter().any(moves)
            };
            let first = if is_apart(&batches[0].0) {
                1
            } else {
                batches
                    .iter()
                    .take_while(|(batch, _)| !is_apart(batch))
                    .count()
            };
            for _ in 0..random.below(3) {
                let all: usize = batches[..first]
                    .iter()
                    .map(|(b, _)| b.operations.len())
                    .sum();
                let count = random.below(all + 1);
                if count > 0 {
                    bench.crash_after(&batches[..first], count);
                }
            }
            bench.recover();
            assert_eq!(
                bench.awaited(),
                [""; 0],
                "seed {seed} round {round}: {batches:#?}",
                batches = batches
                    .iter()
                    .map(|(b, _)| &b.operations)
                    .collect::<Vec<_>>()
            );
            bench.assert_equal();
        }
    }
}

struct Random(u64);

impl Random {
    /// Permissions: `base` and some more.
    fn mode(&mut self, base: u32, bound: usize) -> u32 {
        base + u32::try_from(self.below(bound)).unwrap()
    }

    fn below(&mut self, bound: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) as usize) % bound
    }
}

/// Moves, then puts, then deletes, as a primary makes them.
fn random_batch(bench: &mut Bench, random: &mut Random) -> Option<(Batch, Vec<Comes>)> {
    let mut trial = bench.model.clone();
    let mut operations = Vec::new();
    let mut coming = Vec::new();
    let mut try_one = |trial: &mut Manifest, operation: Operation| {
        if trial.fold(&operation).is_ok() {
            operations.push(operation);
            true
        } else {
            false
        }
    };
    let paths = |trial: &Manifest| -> Vec<RelPath> {
        trial.entries().into_iter().map(|(path, _)| path).collect()
    };
    let any_name = |random: &mut Random, trial: &Manifest| {
        let name = ["a", "b", "c", "d"][random.below(4)];
        let mut directories = vec![None];
        let all = trial.entries();
        directories.extend(
            all.into_iter()
                .filter(|(_, k)| k.entry.is_directory())
                .map(|(p, _)| Some(p)),
        );
        let parent = directories.swap_remove(random.below(directories.len()));
        RelPath::child(parent.as_ref(), name.as_bytes()).unwrap()
    };
    if random.below(2) == 0 {
        for _ in 0..random.below(3) {
            let all = paths(&trial);
            if all.is_empty() {
                break;
            }
            let from = all[random.below(all.len())].clone();
            let operation = if random.below(4) == 0 {
                let b = all[random.below(all.len())].clone();
                if from == b {
                    continue;
                }
                Operation::Swap { a: from, b }
            } else {
                let to = any_name(random, &trial);
                if from == to {
                    continue;
                }
                Operation::Move { from, to }
            };
            try_one(&mut trial, operation);
        }
    }
    // A copy is of what was there before the batch, which has to be a file that is not changed in it.
    for _ in 0..random.below(5) {
        let at = any_name(random, &trial);
        let there = trial.get(&at).and_then(|known| known.entry.content());
        let there = there.and_then(|(_, hash)| bench.contents.get(&hash).cloned());
        match random.below(5) {
            0 => {
                let mut known = entry(Kind::Directory);
                known.mode = random.mode(0o700, 8);
                let operation = Operation::Put {
                    path: at,
                    entry: known,
                    content: Content::Same,
                };
                try_one(&mut trial, operation);
            }
            1 => {
                let operation = Operation::Put {
                    path: at,
                    entry: entry(Kind::Symlink {
                        target: format!("{}", random.below(100)).into_bytes(),
                    }),
                    content: Content::Same,
                };
                try_one(&mut trial, operation);
            }
            2 if trial
                .get(&at)
                .is_some_and(|known| known.entry.content().is_some()) =>
            {
                let mut known = trial.get(&at).unwrap().entry;
                known.mode = random.mode(0o600, 64);
                known.mtime_ns += 1;
                let operation = Operation::Put {
                    path: at,
                    entry: known,
                    content: Content::Same,
                };
                try_one(&mut trial, operation);
            }
            3 if there.as_ref().is_some_and(|old| !old.is_empty()) => {
                let old = there.unwrap_or_default();
                let bytes = random.below(300) + 1;
                let more = noise(random.0, bytes);
                let (operation, longer) = appended(&at.to_string(), &old, &more);
                if try_one(&mut trial, operation) {
                    bench.keep(&longer);
                    coming.push(Comes::Whole(more));
                }
            }
            _ => {
                let bytes = random.below(3000);
                let content = noise(random.0, bytes);
                bench.keep(&content);
                let operation = Operation::Put {
                    path: at,
                    entry: file(&content),
                    content: Content::Whole,
                };
                if try_one(&mut trial, operation) {
                    coming.push(Comes::Whole(content));
                }
            }
        }
    }
    for _ in 0..random.below(2) {
        let all = paths(&trial);
        if !all.is_empty() {
            let operation = Operation::Delete {
                path: all[random.below(all.len())].clone(),
            };
            try_one(&mut trial, operation);
        }
    }
    if operations.is_empty() {
        return None;
    }
    Some((bench.batch(operations), coming))
}
