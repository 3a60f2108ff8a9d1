//! A primary that means harm.

use std::fs;
use std::os::unix::fs::symlink;

use axum::Router;
use axum::routing::{get, post};
use understudy_replication::files::wire::{Note, Packer};
use understudy_replication::files::{
    Batch, Digest, Entry, Kind, Known, Manifest, Operation, RelPath,
};
use understudy_replication::position::Position;
use understudy_replication::store::Receiver;
use understudy_replication::transport::frames;

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

/// A manifest with these entries, or what the first misfit leaves of it.
fn manifest(entries: &[(RelPath, Entry)]) -> Manifest {
    let mut manifest = Manifest::default();
    for (path, entry) in entries {
        let _misfit = manifest
            .insert(
                path,
                Known {
                    entry: entry.clone(),
                    local: None,
                },
            )
            .is_err();
    }
    manifest
}

/// Serves a snapshot, the same content for all that is asked for, and one batch.
fn primary(entries: Vec<(RelPath, Entry)>, content: &'static [u8], frame: Vec<u8>) -> Router {
    let root = manifest(&entries).root();
    let snapshot = move || {
        let entries = entries.clone();
        async move {
            let mut packer = Packer::default();
            let (count, position) = (entries.len() as u64, Position(10));
            packer
                .note(&Note::Snapshot {
                    epoch: epoch(),
                    position,
                    root,
                    entries: count,
                    bytes: 0,
                })
                .unwrap();
            for (path, entry) in entries {
                packer.note(&Note::Entry(path, entry)).unwrap();
            }
            packer.note(&Note::End).unwrap();
            let (sender, response) = frames();
            tokio::spawn(async move { sender.send(&packer.take().unwrap()).await });
            response
        }
    };
    let contents = move |body: bytes::Bytes| async move {
        let wanted: Vec<understudy_replication::files::wire::Wanted> =
            postcard::from_bytes(&body).unwrap();
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
        let frame = frame.clone();
        async move {
            let (sender, response) = frames();
            tokio::spawn(async move {
                let _gone = sender.send(&frame).await.is_err();
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

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_that_puts_something_behind_a_link_is_refused() {
    let pair = Pair::new().await;
    let outside = pair.folder.path().join("outside");
    fs::create_dir(&outside).unwrap();
    let entries = vec![
        (path("link"), link(outside.to_str().unwrap())),
        (path("link/evil"), file(b"evil")),
    ];
    pair.serve(primary(entries, b"evil", Vec::new()));
    let receiver = pair.receiver();
    let error = pair.seed(&receiver).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "the primary sent a change that does not fit"
    );
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
    assert!(receiver.received().must_reseed);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_leads_through_a_link_writes_nothing() {
    let pair = Pair::new().await;
    let outside = pair.folder.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("target"), "untouched").unwrap();
    let entries = vec![
        (path("d"), entry(Kind::Directory)),
        (path("a"), file(b"good")),
    ];
    let mut target = manifest(&entries);
    let before = target.root();
    let put = |at: &str, entry: Entry| Operation::Put {
        path: path(at),
        entry,
        has_content: false,
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
    let mut packer = Packer::default();
    packer
        .note(&Note::Hello {
            epoch: epoch(),
            position: Position(20),
        })
        .unwrap();
    packer.batch(&batch).unwrap();
    pair.serve(primary(entries, b"good", packer.take().unwrap()));
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
    assert_eq!(receiver.received().applied, Some(Position(10)));
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
    let entries = vec![(path("d"), entry(Kind::Directory))];
    let mut target = manifest(&entries);
    let before = target.root();
    let put = Operation::Put {
        path: path("d/evil"),
        entry: file(b"evil"),
        has_content: true,
    };
    let _none = target.fold(&put).unwrap();
    let after = target.root();
    let batch = Batch {
        start: Position(10),
        end: Position(20),
        before,
        after,
        operations: vec![put],
    };
    let mut packer = Packer::default();
    packer
        .note(&Note::Hello {
            epoch: epoch(),
            position: Position(20),
        })
        .unwrap();
    packer.batch(&batch).unwrap();
    packer.chunk(b"evil");
    packer.note(&Note::Complete).unwrap();
    pair.serve(primary(entries, b"", packer.take().unwrap()));
    let receiver = pair.receiver();
    pair.seed(&receiver).await.unwrap();
    // By somebody on the standby.
    fs::remove_dir(pair.copy().join("d")).unwrap();
    symlink(&outside, pair.copy().join("d")).unwrap();
    let following = pair.follow(&receiver);
    until(
        || receiver.received().stalled.is_some(),
        || format!("{:?}", receiver.received()),
    )
    .await;
    following.stop().await;
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn content_without_the_announced_hash_is_thrown_away() {
    let pair = Pair::new().await;
    let entries = vec![(path("a"), file(b"good"))];
    pair.serve(primary(entries, b"evil", Vec::new()));
    let receiver = pair.receiver();
    let error = pair.seed(&receiver).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "the content of a does not have the hash that was announced"
    );
    assert!(!pair.copy().join("a").exists());
}
