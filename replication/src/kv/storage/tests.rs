use std::fs;

use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::epoch::Epoch;
use crate::kv::entry::After;
use crate::kv::snapshot::{End, Part};

fn set(key: &str, value: &str) -> Operation {
    Operation::Set {
        key: Bytes::copy_from_slice(key.as_bytes()),
        value: Bytes::copy_from_slice(value.as_bytes()),
        expires: None,
    }
}

/// Returns the entry behind the log's end, which knows everything before it to be committed.
fn next(storage: &Storage, operations: &[Operation]) -> Entry {
    let tail = storage.tail();
    let after = After {
        epoch: &Epoch::first("a".parse().unwrap()),
        opened: Some(Position(0)),
        point: &tail,
        bytes: storage.bytes_ever(),
        committed: tail.position,
    };
    Entry::make(&after, operations).unwrap()
}

fn put(storage: &Storage, key: &str, value: &str) {
    let entry = next(storage, &[set(key, value)]);
    storage.append([&entry]).unwrap();
    storage.sync().unwrap();
    storage.apply(&entry).unwrap();
}

fn open(folder: &Path) -> Storage {
    Storage::open(folder).unwrap().0
}

/// A store with `count` keys, of which the last is not known to be committed.
fn filled(folder: &Path, count: u64) -> Storage {
    let storage = open(folder);
    for number in 0..count {
        put(
            &storage,
            &format!("key {number}"),
            &format!("value {number}"),
        );
    }
    storage
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut all: Vec<_> = fs::read_dir(folder.join("log"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    all.push(folder.join("snapshot"));
    all.retain(|path| path.exists());
    all.sort();
    all
}

#[test]
fn the_table_is_made_anew_from_snapshot_and_log() {
    let folder = tempfile::tempdir().unwrap();
    let storage = filled(folder.path(), 50);
    storage.make_snapshot().unwrap();
    for number in 50..60 {
        put(&storage, &format!("key {number}"), "later");
    }
    let (digest, tail) = (storage.visible().table.digest(), storage.tail());
    drop(storage);
    let (storage, opened) = Storage::open(folder.path()).unwrap();
    assert_eq!(storage.tail(), tail);
    // The last entry is not known to be committed: nobody has said so behind it.
    assert_eq!(opened.unknown, 1);
    storage.apply_up_to(tail.position).unwrap();
    assert_eq!(storage.visible().table.digest(), digest);
}

#[test]
fn what_a_snapshot_has_made_needless_goes_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let storage = open(folder.path());
    let value = "v".repeat(64 << 10);
    for number in 0..200 {
        put(&storage, &format!("key {}", number % 10), &value);
    }
    assert!(storage.is_snapshot_due());
    storage.make_snapshot().unwrap();
    assert!(!storage.is_snapshot_due());
    let before = storage.log_bytes();
    // Somebody still needs the beginning, but not at any price.
    storage.release(Position(0), u64::MAX).unwrap();
    assert_eq!(storage.log_bytes(), before);
    storage.release(Position(0), 1 << 20).unwrap();
    assert!(storage.log_bytes() < before / 2);
    let digest = storage.visible().table.digest();
    drop(storage);
    let storage = open(folder.path());
    storage.apply_up_to(storage.tail().position).unwrap();
    assert_eq!(storage.visible().table.digest(), digest);
}

#[test]
fn a_lost_snapshot_is_told_and_not_taken_for_an_empty_store() {
    let folder = tempfile::tempdir().unwrap();
    let storage = filled(folder.path(), 5);
    let value = "v".repeat(64 << 10);
    for number in 0..200 {
        put(&storage, &format!("key {}", number % 10), &value);
    }
    storage.make_snapshot().unwrap();
    storage.release(Position(u64::MAX), u64::MAX).unwrap();
    drop(storage);
    fs::remove_file(folder.path().join("snapshot")).unwrap();
    let error = Storage::open(folder.path()).unwrap_err();
    assert!(matches!(error, StorageError::Lost { .. }), "{error}");
}

#[test]
fn a_lost_log_is_told_where_the_snapshot_needs_it() {
    let folder = tempfile::tempdir().unwrap();
    let storage = filled(folder.path(), 20);
    storage.make_snapshot().unwrap();
    drop(storage);
    fs::remove_dir_all(folder.path().join("log")).unwrap();
    // The snapshot ends where it began, so that an empty log behind it is all that it needs.
    let storage = open(folder.path());
    assert_eq!(storage.visible().table.len(), 20);
    drop(storage);
    // A log that ends before the snapshot's beginning is of no use to it.
    let folder = tempfile::tempdir().unwrap();
    let storage = filled(folder.path(), 20);
    storage.make_snapshot().unwrap();
    drop(storage);
    let mut log = open::open_log(&folder.path().join("log"), Position(0)).unwrap();
    log.truncate(Position(10)).unwrap();
    drop(log);
    let error = Storage::open(folder.path()).unwrap_err();
    assert!(matches!(error, StorageError::Short { .. }), "{error}");
}

#[test]
fn an_installed_snapshot_supersedes_another_log_also_after_a_crash_in_between() {
    for is_cut_short in [false, true] {
        let folders = tempfile::tempdir().unwrap();
        let theirs = filled(&folders.path().join("a"), 30);
        let ours = open(&folders.path().join("b"));
        for number in 0..40 {
            put(&ours, &format!("other {number}"), "x");
        }
        let copied = || {
            let mut incoming = ours.begin_incoming(theirs.begin_snapshot()).unwrap();
            let mut walk = Walk::default();
            while let Some(operations) = theirs.walk(&mut walk) {
                incoming.push(operations).unwrap();
            }
            incoming
        };
        let ours = if is_cut_short {
            // The power fails behind the rename: the log is still the old one.
            let end = theirs.end_snapshot();
            let begin = crate::kv::snapshot::Begin {
                is_installed: true,
                ..theirs.begin_snapshot()
            };
            let path = folders.path().join("b/snapshot");
            let mut writer = crate::kv::snapshot::SnapshotWriter::create(&path, begin).unwrap();
            let mut walk = Walk::default();
            while let Some(operations) = theirs.walk(&mut walk) {
                writer.push(&Part::Operations(operations)).unwrap();
            }
            writer.finish(end).unwrap();
            drop(ours);
            let (ours, opened) = Storage::open(&folders.path().join("b")).unwrap();
            assert!(opened.has_reset_log);
            ours
        } else {
            let end: End = theirs.end_snapshot();
            ours.install(copied(), end, || true).unwrap();
            ours
        };
        assert_eq!(
            ours.visible().table.digest(),
            theirs.visible().table.digest()
        );
        assert_eq!(ours.tail(), theirs.tail());
        // It goes on from there, and is found again.
        let entry = next(&theirs, &[set("next", "1")]);
        ours.append([&entry]).unwrap();
        ours.sync().unwrap();
        drop(ours);
        let ours = open(&folders.path().join("b"));
        assert_eq!(ours.tail(), entry.point());
    }
}

#[test]
fn a_cut_takes_back_what_was_visible() {
    let folder = tempfile::tempdir().unwrap();
    let storage = filled(folder.path(), 10);
    storage.make_snapshot().unwrap();
    let kept = storage.tail();
    let digest = storage.visible().table.digest();
    put(&storage, "key 3", "changed");
    put(&storage, "new", "1");
    storage.truncate(&kept).unwrap();
    assert_eq!(storage.visible().table.digest(), digest);
    assert_eq!(storage.tail(), kept);
    // Below the snapshot it cannot be taken back, and nothing is cut.
    let early = storage.point_at(Position(4)).unwrap();
    let error = storage.truncate(&early).unwrap_err();
    assert!(matches!(error, StorageError::TooFarBack { .. }), "{error}");
    assert_eq!(storage.tail(), kept);
    drop(storage);
    let storage = open(folder.path());
    storage.apply_up_to(kept.position).unwrap();
    assert_eq!(storage.visible().table.digest(), digest);
}

#[test]
fn an_entry_that_does_not_follow_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let storage = filled(folder.path(), 3);
    let entry = next(&storage, &[set("k", "v")]);
    put(&storage, "k", "w");
    let error = storage.append([&entry]).unwrap_err();
    assert!(matches!(error, StorageError::Gap { .. }), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn any_flipped_bit_is_detected_or_was_the_torn_end(
        count in 3_u64..40,
        snapshot_at in 0_u64..40,
        place in any::<prop::sample::Index>(),
        bit in 0_u8..8,
    ) {
        let folder = tempfile::tempdir().unwrap();
        let storage = open(folder.path());
        for number in 0..count {
            put(&storage, &format!("key {}", number % 7), &format!("value {number}"));
            if number == snapshot_at {
                storage.make_snapshot().unwrap();
            }
        }
        let tail = storage.tail();
        drop(storage);
        let all = files(folder.path());
        let path = &all[place.index(all.len())];
        let mut bytes = fs::read(path).unwrap();
        let at = place.index(bytes.len());
        bytes[at] ^= 1 << bit;
        fs::write(path, bytes).unwrap();
        // Refused, or all but the last entry is there, as it was: that one may look as if it were torn.
        if let Ok((storage, _)) = Storage::open(folder.path()) {
            let missing = tail.position.ahead_of(storage.tail().position);
            prop_assert!(missing <= 1, "{missing} are missing behind {}", path.display());
            storage.apply_up_to(storage.tail().position).unwrap();
            for number in 0..count - missing {
                let is_last = number + 7 >= count - missing;
                let table = &storage.visible().table;
                let mut draft = crate::kv::draft::Draft::new(tail.position);
                let space = crate::kv::space::Space::newest(
                    table, &mut draft, crate::wall_time::WallTime(0),
                );
                let value = space.string(format!("key {}", number % 7).as_bytes()).unwrap().map(<[u8]>::to_vec);
                if is_last {
                    prop_assert_eq!(value, Some(format!("value {number}").into_bytes()));
                }
            }
        }
    }
}
