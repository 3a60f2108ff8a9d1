//! A primary that means harm.

use std::fs;
use std::os::unix::fs::symlink;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::Router;
use axum::body::Body;
use axum::extract::Query;
use axum::response::Response;
use axum::routing::{get, post};
use understudy_replication::files::wire::{Note, Packer, Wanted, compress};
use understudy_replication::files::{
    Batch, Content, Digest, Entry, Kind, Known, Local, Manifest, Operation, RelPath, Xattrs,
};
use understudy_replication::position::Position;
use understudy_replication::store::Receiver;
use understudy_replication::transport::{FRAME_ROOM, frames};

use super::pair::{Pair, epoch, until};

fn path(text: &str) -> RelPath {
    RelPath::new(text).unwrap()
}

fn entry(kind: Kind) -> Entry {
    Entry {
        kind,
        mode: 0o755,
        uid: 0,
        gid: 0,
        mtime_ns: 0,
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

fn link(target: &str) -> Entry {
    entry(Kind::Symlink {
        target: target.into(),
    })
}

/// What a snapshot lists: any depth, any name.
type List = Vec<(u32, &'static [u8], Entry)>;

/// The manifest of a list that has nothing but names at the top.
fn manifest(list: &List) -> Manifest {
    let mut manifest = Manifest::default();
    for (depth, name, entry) in list {
        if *depth == 1
            && let Ok(path) = RelPath::new(*name)
        {
            let (entry, local) = (entry.clone(), Local::Unknown);
            manifest.insert(&path, Known { entry, local }).unwrap();
        }
    }
    manifest
}

/// Serves a snapshot, the same content for all that is asked for, and what `/log` sends.
fn primary(list: List, content: &'static [u8], log: Vec<u8>) -> Router {
    let root = manifest(&list).root();
    let snapshot = move || {
        let list = list.clone();
        async move {
            let mut packer = Packer::default();
            packer
                .note(&Note::Snapshot {
                    epoch: epoch(),
                    position: Position(10),
                    root,
                    entries: list.len() as u64,
                    bytes: 0,
                })
                .unwrap();
            for (depth, name, entry) in list {
                let listed = Note::Listed(depth, name.to_vec(), entry);
                packer.note(&listed).unwrap();
            }
            packer.note(&Note::End).unwrap();
            let (sender, response) = frames();
            tokio::spawn(async move { sender.send(&packer.take().unwrap()).await });
            response
        }
    };
    let contents = move |body: bytes::Bytes| async move {
        let wanted: Vec<Wanted> = postcard::from_bytes(&body).unwrap();
        let mut packer = Packer::default();
        for _ in wanted {
            packer.chunk(content);
            packer.note(&Note::Complete).unwrap();
        }
        packer.note(&Note::End).unwrap();
        let (sender, response) = frames();
        tokio::spawn(async move { sender.send(&packer.take().unwrap()).await });
        response
    };
    let log = move || {
        let log = log.clone();
        async move {
            let (sender, response) = frames();
            tokio::spawn(async move {
                let _gone = sender.send(&log).await.is_err();
                sender.closed().await;
            });
            response
        }
    };
    Router::new()
        .route("/snapshot", get(snapshot))
        .route("/content", post(contents))
        .route("/log", get(log))
}

/// What `/log` sends to say hello.
fn hello(end: u64) -> Packer {
    let mut packer = Packer::default();
    packer
        .note(&Note::Hello {
            epoch: epoch(),
            position: Position(end),
        })
        .unwrap();
    packer
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_that_leads_out_of_the_tree_is_refused() {
    let outside = tempfile::tempdir().unwrap();
    let target = outside.path().to_str().unwrap();
    let lists: [List; 6] = [
        vec![(1, b"link", link(target)), (2, b"evil", file(b"evil"))],
        vec![
            (1, b"..", entry(Kind::Directory)),
            (2, b"evil", file(b"evil")),
        ],
        vec![(1, b"/etc/evil", file(b"evil"))],
        vec![(1, b"a/../../evil", file(b"evil"))],
        vec![(1, b".understudy", entry(Kind::Directory))],
        vec![
            (1, b"d", entry(Kind::Directory)),
            (3, b"evil", file(b"evil")),
        ],
    ];
    for list in lists {
        let pair = Pair::new().await;
        pair.serve(primary(list, b"evil", Vec::new()));
        let receiver = pair.receiver();
        let error = pair.seed(&receiver).await.unwrap_err();
        assert_eq!(
            error.to_string(),
            "the primary sent a snapshot that is none"
        );
        assert!(receiver.received().must_reseed);
        let made = fs::read_dir(pair.copy())
            .unwrap()
            .map(|made| made.unwrap().file_name());
        assert_eq!(made.collect::<Vec<_>>(), [".understudy"]);
    }
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_leads_through_a_link_writes_nothing() {
    let pair = Pair::new().await;
    let outside = pair.folder.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("target"), "untouched").unwrap();
    let list: List = vec![(1, b"a", file(b"good")), (1, b"d", entry(Kind::Directory))];
    let before = manifest(&list).root();
    let put = |at: &str, entry: Entry| Operation::Put {
        path: path(at),
        entry,
        content: Content::Same,
    };
    let operations = vec![
        put("link", link(outside.to_str().unwrap())),
        put("link/made", entry(Kind::Directory)),
        Operation::Delete {
            path: path("link/target"),
        },
    ];
    let batch = Batch {
        start: Position(10),
        end: Position(20),
        before,
        after: before,
        operations,
    };
    let mut packer = hello(20);
    packer.batch(&batch).unwrap();
    pair.serve(primary(list, b"good", packer.take().unwrap()));
    let receiver = pair.receiver();
    pair.seed(&receiver).await.unwrap();
    let following = pair.follow(&receiver);
    let is_refused = || {
        receiver
            .received()
            .stalled
            .is_some_and(|text| text.contains("does not fit"))
    };
    until(is_refused, || format!("{:?}", receiver.received())).await;
    following.stop().await;
    assert_eq!(
        fs::read_to_string(outside.join("target")).unwrap(),
        "untouched"
    );
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 1);
    assert!(fs::symlink_metadata(pair.copy().join("link")).is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_that_was_swapped_for_a_link_leads_nowhere() {
    let pair = Pair::new().await;
    let outside = pair.folder.path().join("outside");
    fs::create_dir(&outside).unwrap();
    let list: List = vec![(1, b"d", entry(Kind::Directory))];
    let mut target = manifest(&list);
    let before = target.root();
    let put = Operation::Put {
        path: path("d/new"),
        entry: file(b"new"),
        content: Content::Whole,
    };
    target.fold(&put).unwrap();
    let batch = Batch {
        start: Position(10),
        end: Position(20),
        before,
        after: target.root(),
        operations: vec![put],
    };
    let mut packer = hello(20);
    packer.batch(&batch).unwrap();
    packer.chunk(b"new");
    packer.note(&Note::Complete).unwrap();
    pair.serve(primary(list, b"new", packer.take().unwrap()));
    let receiver = pair.receiver();
    pair.seed(&receiver).await.unwrap();
    // By somebody on the standby.
    fs::remove_dir(pair.copy().join("d")).unwrap();
    symlink(&outside, pair.copy().join("d")).unwrap();
    let following = pair.follow(&receiver);
    // It is told, and the directory is made anew.
    let is_whole = || receiver.received().applied == Some(Position(20));
    until(is_whole, || format!("{:?}", receiver.received())).await;
    following.stop().await;
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
    assert_eq!(
        fs::read_to_string(pair.copy().join("d/new")).unwrap(),
        "new"
    );
    assert!(pair.events("b").contains(&"files_entry".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn content_without_the_announced_hash_is_thrown_away() {
    let pair = Pair::new().await;
    let huge = entry(Kind::File {
        size: 1 << 60,
        hash: Digest::of(b"huge"),
    });
    // Nothing is set aside for a length that is only announced.
    let list: List = vec![
        (1, b"a", file(b"good")),
        (1, b"d", entry(Kind::Directory)),
        (2, b"b", file(b"good")),
        (2, b"huge", huge),
    ];
    let mut whole = manifest(&vec![list[0].clone(), list[1].clone()]);
    for (name, at) in [("d/b", 2), ("d/huge", 3)] {
        let (entry, local) = (list[at].2.clone(), Local::Unknown);
        whole.insert(&path(name), Known { entry, local }).unwrap();
    }
    let root = whole.root();
    let router = primary(list.clone(), b"evil", Vec::new());
    let snapshot = move || {
        let list = list.clone();
        async move {
            let mut packer = Packer::default();
            packer
                .note(&Note::Snapshot {
                    epoch: epoch(),
                    position: Position(10),
                    root,
                    entries: list.len() as u64,
                    bytes: 0,
                })
                .unwrap();
            for (depth, name, entry) in list {
                packer
                    .note(&Note::Listed(depth, name.to_vec(), entry))
                    .unwrap();
            }
            packer.note(&Note::End).unwrap();
            let (sender, response) = frames();
            tokio::spawn(async move { sender.send(&packer.take().unwrap()).await });
            response
        }
    };
    pair.serve(
        Router::new()
            .route("/snapshot", get(snapshot))
            .fallback_service(router),
    );
    let receiver = pair.receiver();
    pair.seed(&receiver).await.unwrap();
    for name in ["a", "d/b", "d/huge"] {
        assert!(!pair.copy().join(name).exists(), "{name}");
    }
    // The position of what is not there is not claimed.
    let received = receiver.received();
    assert_eq!((received.applied, received.flushed), (None, None));
    assert_eq!(received.report.gauges["awaited_entries"], 3);
    assert!(pair.events("b").contains(&"files_damaged".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn replayed_and_reordered_batches_change_nothing() {
    let pair = Pair::new().await;
    let list: List = vec![(1, b"a", file(b"good"))];
    let mut target = manifest(&list);
    let mut batch = |name: &str, start: u64| {
        let before = target.root();
        let put = Operation::Put {
            path: path(name),
            entry: entry(Kind::Directory),
            content: Content::Same,
        };
        target.fold(&put).unwrap();
        Batch {
            start: Position(start),
            end: Position(start + 10),
            before,
            after: target.root(),
            operations: vec![put],
        }
    };
    let (first, second) = (batch("b", 10), batch("c", 20));
    for order in [[&first, &first], [&second, &first]] {
        let mut packer = hello(30);
        for batch in order {
            packer.batch(batch).unwrap();
        }
        pair.serve(primary(list.clone(), b"good", packer.take().unwrap()));
        let receiver = pair.receiver();
        pair.seed(&receiver).await.unwrap();
        let following = pair.follow(&receiver);
        let is_refused = || {
            receiver
                .received()
                .stalled
                .is_some_and(|text| text.contains("differs"))
        };
        until(is_refused, || format!("{:?}", receiver.received())).await;
        following.stop().await;
        assert!(!pair.copy().join("c").exists());
    }
}

/// Batches that each make a file with a content, as they are sent.
fn batches(list: &List, count: u64) -> Vec<(Position, Vec<u8>)> {
    let mut target = manifest(list);
    let made = (1..=count).map(|number| {
        let content = format!("content {number}");
        let put = Operation::Put {
            path: path(&format!("made {number}")),
            entry: file(content.as_bytes()),
            content: Content::Whole,
        };
        let before = target.root();
        target.fold(&put).unwrap();
        let batch = Batch {
            start: Position(number * 10),
            end: Position(number * 10 + 10),
            before,
            after: target.root(),
            operations: vec![put],
        };
        let mut packer = Packer::default();
        packer.batch(&batch).unwrap();
        packer.chunk(content.as_bytes());
        packer.note(&Note::Complete).unwrap();
        (batch.start, packer.take().unwrap())
    });
    made.collect()
}

/// A frame as it is on the wire.
fn framed(frame: &[u8]) -> Vec<u8> {
    let length = u32::try_from(frame.len()).unwrap();
    [&length.to_le_bytes(), frame].concat()
}

/// An answer of just these bytes, and then its end.
fn raw(bytes: Vec<u8>) -> Response {
    Response::new(Body::from(bytes))
}

#[derive(serde::Deserialize)]
struct From {
    from: u64,
}

#[tokio::test(flavor = "multi_thread")]
async fn trap_18_a_stream_that_is_cut_anywhere_goes_on_where_it_was_whole() {
    let pair = Pair::new().await;
    let list: List = vec![(1, b"a", file(b"good"))];
    const BATCHES: u64 = 3;
    let all = Arc::new(batches(&list, BATCHES));
    let cut = Arc::new(AtomicUsize::new(1));
    let (served, cutting) = (all.clone(), cut.clone());
    let log = move |Query(asked): Query<From>| async move {
        let rest = served.iter().filter(|(start, _)| start.0 >= asked.from);
        let frames = rest.map(|(_, frame)| framed(frame));
        let mut bytes = framed(&hello(asked.from).take().unwrap());
        bytes.extend(frames.flatten());
        // A few bytes more each time; once a batch is whole, what is asked for begins behind it.
        let length = cutting.fetch_add(3, Ordering::Relaxed) % (bytes.len() + 3);
        bytes.truncate(length);
        raw(bytes)
    };
    let others = primary(list, b"good", Vec::new());
    let routes = Router::new().route("/log", get(log));
    pair.serve(routes.fallback_service(others));
    let receiver = pair.receiver();
    pair.seed(&receiver).await.unwrap();
    let following = pair.follow(&receiver);
    let end = Position(BATCHES * 10 + 10);
    let is_whole = || {
        let applied = receiver.received().applied.unwrap();
        // Only whole batches are ever claimed, and what is claimed is there.
        assert_eq!(applied.0 % 10, 0);
        for number in 1..applied.0 / 10 {
            let content = fs::read_to_string(pair.copy().join(format!("made {number}")));
            assert_eq!(content.unwrap(), format!("content {number}"));
        }
        applied == end
    };
    until(is_whole, || format!("{:?}", receiver.received())).await;
    // It was cut all over one batch at least.
    assert!(cut.load(Ordering::Relaxed) > all[0].1.len());
    following.stop().await;
    assert!(!pair.events("b").contains(&"files_damaged".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn trap_18_what_comes_twice_or_makes_no_sense_is_refused_with_a_reason() {
    let list: List = vec![(1, b"a", file(b"good"))];
    let all = batches(&list, 2);
    let (first, second) = (all[0].1.clone(), all[1].1.clone());
    let note = |note: &Note| {
        let mut packer = Packer::default();
        packer.note(note).unwrap();
        packer.take().unwrap()
    };
    let chunk = |content: &[u8]| {
        let mut packer = Packer::default();
        packer.chunk(content);
        packer.take().unwrap()
    };
    // 64 MiB of zeros in a few kilobytes: far more than a frame is ever unpacked to.
    let bomb = compress(&vec![0; 64 << 20]).unwrap().split_off(FRAME_ROOM);
    let greeted = framed(&hello(30).take().unwrap());
    let cases: [(Vec<u8>, &str); 8] = [
        ([framed(&first), framed(&first)].concat(), "differs"),
        (framed(&second), "differs"),
        (
            [framed(&first), framed(&chunk(b"content 1"))].concat(),
            "content where a batch",
        ),
        (
            [framed(&first), framed(&note(&Note::Complete))].concat(),
            "the end of a content where",
        ),
        (
            framed(&[&first[..first.len() - 6], &chunk(b"more")].concat()),
            "where the end of a content",
        ),
        (framed(&first[..first.len() - 3]), "malformed"),
        (framed(&bomb), "malformed"),
        // Four gigabytes are announced, and nothing is set aside for them.
        (u32::MAX.to_le_bytes().to_vec(), "4294967295"),
    ];
    for (number, (bytes, reason)) in cases.into_iter().enumerate() {
        let pair = Pair::new().await;
        let bytes = [greeted.clone(), bytes].concat();
        let log = move || async move { raw(bytes) };
        let others = primary(list.clone(), b"good", Vec::new());
        let routes = Router::new().route("/log", get(log));
        pair.serve(routes.fallback_service(others));
        let receiver = pair.receiver();
        pair.seed(&receiver).await.unwrap();
        let following = pair.follow(&receiver);
        let is_refused = || {
            let stalled = receiver.received().stalled;
            stalled.is_some_and(|text| text.contains(reason))
        };
        until(is_refused, || {
            format!("case {number}: {:?}", receiver.received())
        })
        .await;
        following.stop().await;
        assert!(!pair.copy().join("made 2").exists(), "case {number}");
        // Who means well is followed as if nothing had been.
        let honest = [greeted.clone(), framed(&first), framed(&second)].concat();
        let from_start = Arc::new((honest, second.clone(), greeted.clone()));
        let log = move |Query(asked): Query<From>| async move {
            let (whole, second, greeted) = &*from_start;
            raw(match asked.from {
                10 => whole.clone(),
                20 => [greeted.clone(), framed(second)].concat(),
                _ => greeted.clone(),
            })
        };
        let others = primary(list.clone(), b"good", Vec::new());
        let routes = Router::new().route("/log", get(log));
        pair.serve(routes.fallback_service(others));
        let following = pair.follow(&receiver);
        let is_whole = || receiver.received().applied == Some(Position(30));
        until(is_whole, || {
            format!("case {number}: {:?}", receiver.received())
        })
        .await;
        following.stop().await;
    }
}
