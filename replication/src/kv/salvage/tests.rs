//! What a bundle is after a crash, a repetition and damage.

use std::convert::Infallible;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use bytes::Bytes;

use super::*;
use crate::kv::point::{EntryDigest, Point};
use crate::position::Position;
use crate::wall_time::WallTime;

const MADE: WallTime = WallTime(1_700_000_000_123);

fn superseded(end: u64) -> Superseded {
    let point = |position, digest| Point {
        position: Position(position),
        epoch: Some("1.a".parse().unwrap()),
        digest: EntryDigest([digest; 32]),
    };
    Superseded {
        store: "kv".parse().unwrap(),
        node: "a".parse().unwrap(),
        cut_to: point(10, 1),
        end: point(end, 2),
        acknowledged: Acknowledged::Unknown,
        superseded_by: Some("2.b".parse().unwrap()),
    }
}

fn entries() -> Vec<Bytes> {
    vec![
        Bytes::from_static(b"one"),
        Bytes::new(),
        vec![7; 100_000].into(),
    ]
}

fn keep(folder: &Path, end: u64) -> PathBuf {
    let entries = entries().into_iter().map(Ok::<_, Infallible>);
    write(folder, &superseded(end), MADE, entries).unwrap()
}

fn name(path: &Path) -> String {
    path.file_name().unwrap().to_str().unwrap().to_owned()
}

#[test]
fn a_bundle_is_read_as_it_was_written() {
    let folder = tempfile::tempdir().unwrap();
    let path = keep(folder.path(), 13);
    assert_eq!(name(&path), "kv-20231114T221320.123Z-1.a");
    let bundle = Bundle::open(folder.path(), &name(&path)).unwrap();
    let read: Vec<Bytes> = bundle.entries().unwrap().map(Result::unwrap).collect();
    assert_eq!(read, entries());
    let manifest = fs::read_to_string(path.join("manifest.json")).unwrap();
    insta::assert_snapshot!(manifest, @r#"
    {
      "version": 1,
      "store": "kv",
      "node": "a",
      "cut_to": {
        "position": 10,
        "epoch": {
          "number": 1,
          "node": "a"
        },
        "digest": "0101010101010101010101010101010101010101010101010101010101010101"
      },
      "end": {
        "position": 13,
        "epoch": {
          "number": 1,
          "node": "a"
        },
        "digest": "0202020202020202020202020202020202020202020202020202020202020202"
      },
      "operations": 3,
      "entries": 3,
      "bytes": 100015,
      "hash": "13420795a9ab61a455a9831b171b88d87c8389c268fc6b0c43a039c48348f3e9",
      "acknowledged": "unknown",
      "superseded_by": {
        "number": 2,
        "node": "b"
      },
      "made": 1700000000123
    }
    "#);
}

#[test]
fn only_its_owner_may_look_into_a_bundle() {
    let folder = tempfile::tempdir().unwrap();
    let path = keep(folder.path(), 13);
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let modes = [
        &path,
        &path.join("manifest.json"),
        &path.join("entries.log"),
    ]
    .map(|it| mode(it));
    assert_eq!(modes, [0o700, 0o600, 0o600]);
}

#[test]
fn what_is_kept_already_is_not_kept_twice_and_something_else_is() {
    let folder = tempfile::tempdir().unwrap();
    let first = keep(folder.path(), 13);
    assert_eq!(keep(folder.path(), 13), first);
    let second = keep(folder.path(), 14);
    assert_eq!(name(&second), format!("{}-2", name(&first)));
    let listed = list(folder.path()).unwrap();
    let ends = listed
        .iter()
        .map(|it| it.manifest.as_ref().unwrap().end.position.0);
    assert_eq!(ends.collect::<Vec<_>>(), [13, 14]);
}

#[test]
fn an_attempt_that_failed_leaves_no_bundle_and_can_be_repeated() {
    let folder = tempfile::tempdir().unwrap();
    let broken = [Ok(Bytes::from_static(b"one")), Err("the disk is gone")];
    let error = write(folder.path(), &superseded(13), MADE, broken).unwrap_err();
    assert!(matches!(error, SalvageError::Source { .. }), "{error}");
    assert_eq!(list(folder.path()).unwrap().len(), 0);
    keep(folder.path(), 13);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn what_is_kept_twice_at_once_is_whole_and_leaves_nothing_else() {
    let (theirs, ours) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let name = name(&keep(theirs.path(), 13));
    let bundle = Bundle::open(theirs.path(), &name).unwrap();
    // Of a process that was killed.
    fs::create_dir(ours.path().join(format!(".{name}.0-0.partial"))).unwrap();
    // The second copy begins and ends while the first is being written.
    let mut is_first = true;
    let entries = bundle.entries().unwrap().inspect(|_| {
        if std::mem::take(&mut is_first) {
            let entries = bundle.entries().unwrap();
            adopt(ours.path(), &name, &bundle.manifest, entries).unwrap();
        }
    });
    let path = adopt(ours.path(), &name, &bundle.manifest, entries).unwrap();
    assert_eq!(path, ours.path().join(&name));
    Bundle::open(ours.path(), &name).unwrap();
    assert_eq!(fs::read_dir(ours.path()).unwrap().count(), 1);
}

#[test]
fn damage_anywhere_in_the_entries_is_found_before_anything_is_read_of_them() {
    let folder = tempfile::tempdir().unwrap();
    let path = keep(folder.path(), 13);
    let log = path.join("entries.log");
    let whole = fs::read(&log).unwrap();
    let refused = |content: &[u8]| {
        fs::write(&log, content).unwrap();
        Bundle::open(folder.path(), &name(&path))
            .unwrap_err()
            .to_string()
    };
    for at in [0, 3, 4, 8, 20, whole.len() - 1] {
        let mut flipped = whole.clone();
        flipped[at] ^= 0x40;
        let refusal = refused(&flipped);
        assert!(
            refusal.contains("is damaged") || refusal.contains("are allowed"),
            "{refusal}"
        );
    }
    assert!(refused(&whole[..whole.len() - 1]).contains("shorter than its manifest says"));
    fs::write(&log, &whole).unwrap();
    Bundle::open(folder.path(), &name(&path)).unwrap();
}

#[test]
fn a_bundle_that_cannot_be_read_is_listed_with_the_reason() {
    let folder = tempfile::tempdir().unwrap();
    let path = keep(folder.path(), 13);
    fs::write(path.join("manifest.json"), b"{\"version\": 9}").unwrap();
    fs::create_dir(folder.path().join("postgres-1")).unwrap();
    fs::create_dir(folder.path().join("kv-empty")).unwrap();
    let listed = list(folder.path()).unwrap();
    let told: Vec<String> = listed
        .iter()
        .map(|it| it.manifest.as_ref().unwrap_err().to_string())
        .map(|it| it.replace(&folder.path().display().to_string(), "SALVAGE"))
        .collect();
    assert_eq!(
        told,
        [
            "SALVAGE/kv-20231114T221320.123Z-1.a/manifest.json is of version 9, where this program knows \
             1; use the version that wrote it",
            "cannot open SALVAGE/kv-empty/manifest.json"
        ]
    );
}

#[test]
fn a_name_cannot_lead_out_of_the_folder() {
    let folder = tempfile::tempdir().unwrap();
    keep(&folder.path().join("salvage"), 13);
    for name in [
        "",
        ".",
        "..",
        "kv-/../../etc",
        "kv-none",
        "../kv-x",
        "postgres-1",
    ] {
        let error = Bundle::open(&folder.path().join("salvage"), name).unwrap_err();
        assert!(matches!(error, SalvageError::Absent { .. }), "{error}");
    }
}

#[test]
fn where_nothing_was_ever_kept_the_list_is_empty() {
    let folder = tempfile::tempdir().unwrap();
    assert_eq!(list(&folder.path().join("salvage")).unwrap().len(), 0);
}

#[test]
fn a_copy_of_another_nodes_bundle_is_whole_or_not_there() {
    let (theirs, ours) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let name = name(&keep(theirs.path(), 13));
    let bundle = Bundle::open(theirs.path(), &name).unwrap();
    let adopt_some = |count: usize| {
        let entries = bundle.entries().unwrap().take(count);
        adopt(ours.path(), &name, &bundle.manifest, entries)
    };
    let error = adopt_some(2).unwrap_err();
    assert!(matches!(error, SalvageError::Damaged { .. }), "{error}");
    assert_eq!(list(ours.path()).unwrap().len(), 0);
    adopt_some(3).unwrap();
    adopt_some(0).expect("it is here already");
    let copy = Bundle::open(ours.path(), &name).unwrap();
    assert_eq!(copy.manifest, bundle.manifest);
    let other = Manifest {
        operations: 9,
        ..bundle.manifest.clone()
    };
    let error = adopt(
        ours.path(),
        &name,
        &other,
        entries().into_iter().map(Ok::<_, Infallible>),
    );
    assert!(matches!(error, Err(SalvageError::Taken { .. })));
    let outside = adopt(ours.path(), "kv-/../x", &other, [Err("never read")]);
    assert!(matches!(outside, Err(SalvageError::Absent { .. })));
}
