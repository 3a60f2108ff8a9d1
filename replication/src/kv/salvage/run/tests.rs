//! What a replay changes, and what it leaves.

use std::convert::Infallible;

use super::*;
use crate::kv::entry::After;
use crate::kv::memory::MemoryKeyspace;
use crate::kv::operation::Operation;
use crate::kv::point::Point;
use crate::kv::salvage::{Acknowledged, Conflict, Superseded, write};
use crate::kv::space::Space;
use crate::position::Position;
use crate::store::NoProgress;

const NOW: WallTime = WallTime(1000);

fn bytes(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

fn set(key: &str, value: &str, expires: Option<u64>) -> Operation {
    Operation::Set {
        key: bytes(key),
        value: bytes(value),
        expires: expires.map(WallTime),
    }
}

fn hash_set(key: &str, fields: &[(&str, &str)]) -> Operation {
    Operation::HashSet {
        key: bytes(key),
        fields: fields.iter().map(|(f, v)| (bytes(f), bytes(v))).collect(),
    }
}

/// A bundle with an entry for each of the operations.
struct Kept {
    _folder: tempfile::TempDir,
    bundle: Arc<Bundle>,
}

fn kept(operations: &[Operation]) -> Kept {
    let epoch = "1.a".parse().unwrap();
    let after = After {
        epoch: &epoch,
        opened: None,
        point: &Point::ORIGIN,
        bytes: 0,
        committed: Position(0),
    };
    let entry = |it| Entry::make(&after, std::slice::from_ref(it)).unwrap();
    kept_entries(operations.iter().map(|it| entry(it).payload().clone()))
}

fn kept_entries(entries: impl Iterator<Item = Bytes>) -> Kept {
    let folder = tempfile::tempdir().unwrap();
    let what = Superseded {
        store: "kv".parse().unwrap(),
        node: "a".parse().unwrap(),
        cut_to: Point::ORIGIN,
        end: Point::ORIGIN,
        acknowledged: Acknowledged::Yes,
        superseded_by: None,
    };
    let path = write(folder.path(), &what, NOW, entries.map(Ok::<_, Infallible>)).unwrap();
    let name = path.file_name().unwrap().to_str().unwrap();
    let bundle = Arc::new(Bundle::open(folder.path(), name).unwrap());
    Kept {
        _folder: folder,
        bundle,
    }
}

fn store(fill: impl FnOnce(&mut Space<'_>)) -> MemoryKeyspace {
    let keyspace = MemoryKeyspace::new(NOW);
    keyspace.change(fill);
    keyspace
}

async fn replayed(keyspace: &MemoryKeyspace, kept: &Kept, order: ReplayOrder) -> Replayed {
    let mut done = Replayed::default();
    replay(keyspace, &kept.bundle, order, &NoProgress, &mut done)
        .await
        .unwrap();
    done
}

/// Everything that is in a store, by key.
fn all(keyspace: &MemoryKeyspace) -> Vec<(String, String)> {
    let mut found = Vec::new();
    keyspace
        .read(&mut |space| {
            let mut keys = Vec::new();
            assert_eq!(
                space.scan(0, usize::MAX, &mut |key, _| keys.push(key.to_vec())),
                0
            );
            keys.sort();
            for key in keys {
                let content = Content::of(space, &key, 1000);
                let key = String::from_utf8(key).unwrap();
                found.push((key, serde_json::to_string(&content).unwrap()));
            }
        })
        .unwrap();
    found
}

fn verdicts(replayed: &Replayed) -> [u64; 6] {
    let Replayed {
        keys,
        added,
        same,
        expired,
        overwritten,
        conflicts,
        ..
    } = replayed;
    [*keys, *added, *same, *expired, *overwritten, *conflicts]
}

fn full_bundle() -> Kept {
    kept(&[
        set("absent", "1", None),
        set("equal", "1", None),
        set("other", "1", None),
        set("expired", "1", Some(900)),
        set("later", "1", Some(5000)),
        Operation::Delete { key: bytes("gone") },
        Operation::Delete {
            key: bytes("there"),
        },
        Operation::Expire {
            key: bytes("kept"),
            expires: Some(WallTime(7000)),
        },
        hash_set("hash", &[("f", "1"), ("new", "2")]),
        hash_set("clash", &[("f", "1"), ("new", "2")]),
        hash_set("fresh", &[("f", "1")]),
    ])
}

fn fill(space: &mut Space<'_>) {
    for (key, value) in [
        ("equal", "1"),
        ("other", "2"),
        ("there", "x"),
        ("kept", "x"),
    ] {
        space.set(key.as_bytes(), value.as_bytes(), None).unwrap();
    }
    space
        .hash_set(b"hash", &[(b"f", b"1"), (b"g", b"9")])
        .unwrap();
    space.hash_set(b"clash", &[(b"f", b"other")]).unwrap();
}

#[tokio::test]
async fn what_is_missing_is_added_and_nothing_that_is_there_is_touched() {
    let (kept, keyspace) = (full_bundle(), store(fill));
    let done = replayed(&keyspace, &kept, ReplayOrder::default()).await;
    assert_eq!(verdicts(&done), [11, 4, 2, 1, 0, 4]);
    let left: Vec<String> = done
        .conflicts_listed
        .iter()
        .map(|it| format!("{}: {}", it.key, it.what))
        .collect();
    assert_eq!(
        left,
        [
            "clash: fields are there that the bundle would change or remove",
            "kept: it has another expiry than the bundle gives it",
            "other: another value or expiry is there, where the bundle has a string",
            "there: it is there, where the bundle removes it",
        ]
    );
    let found = all(&keyspace);
    let found: Vec<(&str, &str)> = found
        .iter()
        .map(|(k, v)| (k.as_str(), v.as_str()))
        .collect();
    let string = |value: &str| {
        format!(r#"{{"type":"string","value":"{value}","length":1,"truncated":false}}"#)
    };
    let (one, two, x) = (string("1"), string("2"), string("x"));
    assert_eq!(
        found,
        [
            ("absent", one.as_str()),
            (
                "clash",
                r#"{"type":"hash","fields":[{"field":"f","value":"other"}],"length":1,"truncated":false}"#
            ),
            ("equal", &one),
            (
                "fresh",
                r#"{"type":"hash","fields":[{"field":"f","value":"1"}],"length":1,"truncated":false}"#
            ),
            (
                "hash",
                r#"{"type":"hash","fields":[{"field":"f","value":"1"},{"field":"g","value":"9"},{"field":"new","value":"2"}],"length":3,"truncated":false}"#
            ),
            ("kept", &x),
            (
                "later",
                r#"{"type":"string","value":"1","length":1,"truncated":false,"ttl_ms":4000}"#
            ),
            ("other", &two),
            ("there", &x),
        ]
    );
}

#[tokio::test]
async fn a_replay_that_is_repeated_changes_nothing() {
    let (kept, keyspace) = (full_bundle(), store(fill));
    for overwrites in [false, true] {
        let order = ReplayOrder {
            overwrites,
            is_dry_run: false,
        };
        replayed(&keyspace, &kept, order).await;
        let (before, position) = (all(&keyspace), keyspace.standing().position);
        let again = replayed(&keyspace, &kept, order).await;
        assert_eq!((again.added, again.overwritten), (0, 0));
        assert_eq!(
            (all(&keyspace), keyspace.standing().position),
            (before, position)
        );
    }
}

#[tokio::test]
async fn overwriting_makes_of_every_key_what_the_bundle_has() {
    let (kept, keyspace) = (full_bundle(), store(fill));
    let order = ReplayOrder {
        overwrites: true,
        is_dry_run: false,
    };
    let done = replayed(&keyspace, &kept, order).await;
    assert_eq!(verdicts(&done), [11, 4, 2, 1, 4, 0]);
    let found: std::collections::BTreeMap<_, _> = all(&keyspace).into_iter().collect();
    assert!(!found.contains_key("there"));
    assert!(found["other"].contains(r#""value":"1""#));
    assert!(found["kept"].contains(r#""ttl_ms":6000"#));
    assert!(found["clash"].contains(r#""length":2"#));
}

#[tokio::test]
async fn a_dry_run_counts_the_same_and_changes_nothing() {
    let (kept, keyspace) = (full_bundle(), store(fill));
    for overwrites in [false, true] {
        let before = all(&keyspace);
        let order = ReplayOrder {
            overwrites,
            is_dry_run: true,
        };
        let would = replayed(&keyspace, &kept, order).await;
        assert_eq!(all(&keyspace), before);
        let order = ReplayOrder {
            is_dry_run: false,
            ..order
        };
        assert_eq!(replayed(&store(fill), &kept, order).await, would);
    }
}

#[tokio::test]
async fn a_hash_that_the_bundle_knows_whole_replaces_another_only_when_told_to() {
    let kept = kept(&[
        Operation::Delete { key: bytes("h") },
        hash_set("h", &[("f", "1")]),
    ]);
    let keyspace = store(|space| {
        space.hash_set(b"h", &[(b"f", b"1"), (b"g", b"2")]).unwrap();
        space.expire(b"h", None).unwrap();
    });
    let done = replayed(&keyspace, &kept, ReplayOrder::default()).await;
    assert_eq!(done.conflicts, 1);
    let order = ReplayOrder {
        overwrites: true,
        is_dry_run: false,
    };
    replayed(&keyspace, &kept, order).await;
    let (_, hash) = all(&keyspace).remove(0);
    assert!(hash.contains(r#""length":1"#), "{hash}");
}

#[tokio::test]
async fn a_hash_larger_than_an_atom_is_put_back_whole() {
    let value = "v".repeat(600_000);
    let fields: Vec<String> = (0..12).map(|number| format!("f{number:02}")).collect();
    let operations: Vec<Operation> = fields
        .iter()
        .map(|field| hash_set("h", &[(field, &value)]))
        .collect();
    let keyspace = MemoryKeyspace::new(NOW);
    let done = replayed(&keyspace, &kept(&operations), ReplayOrder::default()).await;
    assert_eq!(done.added, 1);
    let (_, hash) = all(&keyspace).remove(0);
    assert!(hash.contains(r#""length":12"#), "{}", hash.len());
}

/// What puts back a hash of many fields, each of which is next to nothing.
fn many_fields() -> Vec<Operation> {
    let fields: Vec<String> = (0..100_000).map(|number| number.to_string()).collect();
    let fields: Vec<(&str, &str)> = fields.iter().map(|field| (&field[..], "")).collect();
    let sets = fields.chunks(10_000).map(|fields| hash_set("h", fields));
    std::iter::once(Operation::Delete { key: bytes("h") })
        .chain(sets)
        .collect()
}

const OVERWRITE: ReplayOrder = ReplayOrder {
    overwrites: true,
    is_dry_run: false,
};

#[tokio::test]
async fn a_hash_of_many_tiny_fields_takes_the_place_of_a_string() {
    let kept = kept(&many_fields());
    let keyspace = store(|space| space.set(b"h", b"string", None).unwrap());
    let done = replayed(&keyspace, &kept, OVERWRITE).await;
    assert_eq!((done.overwritten, done.failed), (1, 0));
    let mut count = 0;
    let look = &mut |space: &mut Space<'_>| {
        count = space.hash(b"h").unwrap().unwrap().field_count();
    };
    keyspace.read(look).unwrap();
    assert_eq!(count, 100_000);
}

#[tokio::test]
async fn a_key_that_cannot_be_put_back_keeps_what_it_has_and_the_others_go_on() {
    let mut operations = many_fields();
    operations.push(set("k", "1", None));
    let kept = kept(&operations);
    let keyspace = store(|space| space.set(b"h", b"string", None).unwrap());
    // There is room for some of it, but not for all.
    keyspace.bound(3 << 20);
    let done = replayed(&keyspace, &kept, OVERWRITE).await;
    assert_eq!(
        (done.keys, done.added, done.overwritten, done.failed),
        (2, 1, 0, 1)
    );
    assert_eq!(
        done.failures_listed,
        [Conflict {
            key: Shown::from(&b"h"[..]),
            what: "OOM command not allowed when used memory > 'maxmemory'.".to_owned(),
        }]
    );
    let found = all(&keyspace);
    assert_eq!(found.len(), 2);
    assert!(found[0].1.contains(r#""value":"string""#), "{}", found[0].1);
}

#[tokio::test]
async fn to_remove_every_key_is_told_and_never_replayed() {
    let kept = kept(&[Operation::Clear, set("k", "1", None)]);
    let keyspace = store(fill);
    let before = all(&keyspace).len();
    let order = ReplayOrder {
        overwrites: true,
        is_dry_run: false,
    };
    let done = replayed(&keyspace, &kept, order).await;
    assert!(done.has_clear);
    assert_eq!(all(&keyspace).len(), before + 1);
}

#[tokio::test]
async fn a_store_that_refuses_is_named_and_the_replay_can_be_repeated() {
    let (kept, keyspace) = (full_bundle(), store(fill));
    keyspace.refuse(Some(Refusal::NoReplicas));
    let order = ReplayOrder::default();
    let mut done = Replayed::default();
    let error = replay(&keyspace, &kept.bundle, order, &NoProgress, &mut done)
        .await
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "the store does not take it now, after 0 of its keys: NOREPLICAS Not enough good replicas to write."
    );
    keyspace.refuse(None);
    assert_eq!(replayed(&keyspace, &kept, order).await.added, 4);
}

#[tokio::test]
async fn a_bundle_is_shown_beside_what_is_there_now() {
    let (kept, keyspace) = (full_bundle(), store(fill));
    let shown = show(&keyspace, &kept.bundle, 4).await.unwrap();
    assert_eq!(verdicts(&shown.would), [11, 4, 2, 1, 0, 4]);
    assert_eq!((shown.keys, shown.shown.len()), (11, 4));
    let lines: Vec<String> = shown
        .shown
        .iter()
        .map(|it| serde_json::to_string(it).unwrap())
        .collect();
    insta::assert_snapshot!(lines.join("\n"), @r#"
    {"key":"absent","bundle":{"type":"string","value":"1","length":1},"now":{"type":"none"},"verdict":"add"}
    {"key":"clash","bundle":{"type":"hash","set":[{"field":"f","value":"1"},{"field":"new","value":"2"}],"removed":[],"length":2,"is_whole":false},"now":{"type":"hash","fields":[{"field":"f","value":"other"}],"length":1,"truncated":false},"verdict":"conflict"}
    {"key":"equal","bundle":{"type":"string","value":"1","length":1},"now":{"type":"string","value":"1","length":1,"truncated":false},"verdict":"same"}
    {"key":"expired","bundle":{"type":"string","value":"1","length":1,"expires":900},"now":{"type":"none"},"verdict":"expired"}
    "#);
}

#[tokio::test]
async fn an_entry_that_cannot_be_read_is_named_before_anything_is_changed() {
    let whole = kept(&[set("a", "1", None)]);
    let first = whole.bundle.entries().unwrap().next().unwrap().unwrap();
    let kept = kept_entries([first, Bytes::from_static(b"\x09 of another version")].into_iter());
    let keyspace = MemoryKeyspace::new(NOW);
    let order = ReplayOrder::default();
    let mut done = Replayed::default();
    let error = replay(&keyspace, &kept.bundle, order, &NoProgress, &mut done)
        .await
        .unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with("cannot read entry 2 of bundle kv-"),
        "{error}"
    );
    assert!(all(&keyspace).is_empty());
}
