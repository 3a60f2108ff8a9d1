//! What a disk does by itself, in the tree and in what is kept beside it. Each test begins with the
//! trap's number.

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use understudy_replication::check::{Checked, Depth, DifferenceKind};
use understudy_replication::store::{NoProgress, Receiver, Shipper, Stopper};

use super::mapping::Mapping;
use super::pair::{Followed, Pair};

const SCRUB: Depth = Depth::Scrub {
    bytes_per_second: u64::MAX,
};

/// A pair on a file system where writes through a mapping leave no trace in the times of a file that has
/// been written to before: what a disk does by itself leaves none either.
async fn untold() -> Option<Followed> {
    let memory = Path::new("/dev/shm");
    let Ok(folder) = tempfile::tempdir_in(memory) else {
        eprintln!("skipped: there is no {}", memory.display());
        return None;
    };
    let pair = Pair::within(folder, |_| {}).await;
    let make = |root: &Path| {
        for name in ["good", "rots"] {
            fs::write(root.join(name), vec![b'0'; 10_000]).unwrap();
        }
    };
    Some(Followed::with(pair, make).await)
}

/// Flips a byte of what `mapping` maps without a trace, or returns `false`.
fn rot(path: &Path, mapping: &Mapping) -> bool {
    let times = |path: &Path| {
        let found = fs::metadata(path).unwrap();
        (found.ctime(), found.ctime_nsec(), found.mtime_nsec())
    };
    let before = times(path);
    mapping.write(1234, b'1');
    let is_traceless = times(path) == before;
    if !is_traceless {
        eprintln!("skipped: a mapping leaves a trace on {}", path.display());
    }
    is_traceless
}

/// Maps a file and writes what is there already, so that the kernel has marked it as changed.
fn prepare(path: &Path) -> Mapping {
    let file = fs::File::options().read(true).write(true).open(path);
    let mapping = Mapping::new(&file.unwrap());
    mapping.write(1234, b'0');
    mapping
}

fn found(checked: &Checked) -> Vec<(&str, DifferenceKind, bool)> {
    let differences = checked.differences.iter();
    differences
        .map(|found| (found.what.as_str(), found.kind, found.is_repaired))
        .collect()
}

async fn scrub_copy(followed: &Followed) -> Checked {
    let (_stopper, stop) = Stopper::new();
    let checking = followed
        .receiver
        .check(&followed.pair.client, SCRUB, &NoProgress, &stop);
    checking.await.unwrap()
}

async fn scrub_source(followed: &Followed) -> Checked {
    let (_stopper, stop) = Stopper::new();
    let checking = followed.primary.shipper.check(SCRUB, &NoProgress, &stop);
    checking.await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn trap_28_a_copy_that_rots_is_found_and_repaired() {
    let Some(followed) = untold().await else {
        return;
    };
    let path = followed.copy().join("rots");
    let mapping = prepare(&path);
    // What the preparation has changed is put right, in the same file.
    scrub_copy(&followed).await;
    let mapping = if rot(&path, &mapping) {
        mapping
    } else {
        return followed.end().await;
    };
    let checked = scrub_copy(&followed).await;
    assert_eq!(found(&checked), [("rots", DifferenceKind::Rotten, true)]);
    drop(mapping);
    followed.agree().await;
    assert_eq!(found(&scrub_copy(&followed).await), []);
    followed.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn trap_28_a_copy_that_somebody_changed_is_repaired_though_its_time_was_set_back() {
    let followed = Followed::of(|root| {
        fs::write(root.join("a"), "content").unwrap();
        fs::write(root.join("big"), vec![b'0'; 600_000]).unwrap();
    })
    .await;
    for name in ["a", "big"] {
        let path = followed.copy().join(name);
        let file = fs::File::options().write(true).open(&path).unwrap();
        let modified = fs::metadata(&path).unwrap().modified().unwrap();
        file.write_all_at(b"?", 3).unwrap();
        file.set_modified(modified).unwrap();
    }
    let checked = scrub_copy(&followed).await;
    let expected = ["a", "big"].map(|name| (name, DifferenceKind::Changed, true));
    assert_eq!(found(&checked), expected);
    followed.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn trap_28_a_primary_that_rots_is_told_and_never_shipped() {
    let Some(followed) = untold().await else {
        return;
    };
    let path = followed.source().join("rots");
    let mapping = prepare(&path);
    // A change that is younger than a tick could have been followed by another one.
    let changed = fs::metadata(&path).unwrap().modified().unwrap();
    let is_settled = || changed.elapsed().is_ok_and(|age| age.as_millis() > 100);
    super::pair::until(is_settled, || "the tick".to_owned()).await;
    followed.agree_after_sync().await;
    if !rot(&path, &mapping) {
        return followed.end().await;
    }
    let checked = scrub_source(&followed).await;
    assert_eq!(found(&checked), [("rots", DifferenceKind::Rotten, false)]);
    assert!(followed.pair.events("a").contains(&"files_rot".to_owned()));
    // Another change goes on, and the rot does not go along.
    fs::write(followed.source().join("good"), "changed").unwrap();
    followed.primary.shipper.sync_now().await.unwrap();
    let is_here = || fs::read(followed.copy().join("good")).is_ok_and(|text| text == b"changed");
    super::pair::until(is_here, || "the change".to_owned()).await;
    let kept = fs::read(followed.copy().join("rots")).unwrap();
    assert!(kept == vec![b'0'; 10_000], "the copy keeps what it was");
    // Put right by who is told.
    drop(mapping);
    fs::copy(followed.copy().join("rots"), &path).unwrap();
    followed.agree().await;
    assert_eq!(found(&scrub_source(&followed).await), []);
    followed.end().await;
}

/// What is done to bytes, and in words.
type Damage = (&'static str, fn(&mut Vec<u8>));

/// In how many ways a file may be damaged.
const DAMAGES: [Damage; 4] = [
    ("flipped in the middle", |bytes| {
        let at = bytes.len() / 2;
        bytes[at] ^= 1;
    }),
    ("flipped at the beginning", |bytes| bytes[0] ^= 0x80),
    ("cut", |bytes| bytes.truncate(bytes.len() / 2)),
    ("empty", Vec::clear),
];

/// Returns the files of a store's state that hold something: the manifest, its journal, the log, and the
/// digests of blocks.
fn kept(state: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for part in ["manifest", "journal", "log", "blocks"] {
        for entry in walkdir::WalkDir::new(state.join(part)) {
            let Ok(entry) = entry else { continue };
            if entry.file_type().is_file() && entry.metadata().unwrap().len() > 0 {
                files.push(entry.into_path());
            }
        }
    }
    files
}

fn damage(path: &Path, how: fn(&mut Vec<u8>)) {
    let mut bytes = fs::read(path).unwrap();
    how(&mut bytes);
    fs::write(path, bytes).unwrap();
}

/// Damages one file after the other, each in all ways, and makes a change that is to arrive.
async fn damage_each(node: &str) {
    let mut followed = Followed::of(|root| {
        fs::create_dir(root.join("d")).unwrap();
        fs::write(root.join("d/a"), "one").unwrap();
        fs::write(root.join("big"), vec![b'0'; 600_000]).unwrap();
    })
    .await;
    let state = followed.pair.state(node);
    let mut round = 0;
    for (what, how) in DAMAGES {
        for part in ["manifest", "journal", "log", "blocks"] {
            round += 1;
            let source = followed.source();
            fs::write(source.join("d/a"), format!("before {round}")).unwrap();
            followed.agree().await;
            followed.following.stop().await;
            followed.primary.stop().await;
            drop(followed.receiver);
            let is_of_part = |path: &PathBuf| path.starts_with(state.join(part));
            let damaged: Vec<PathBuf> = kept(&state).into_iter().filter(is_of_part).collect();
            eprintln!("{part} {what}: {damaged:?}");
            for path in damaged {
                damage(&path, how);
            }
            // Something happens meanwhile, and something afterwards.
            fs::write(source.join(format!("d/{round}")), "meanwhile").unwrap();
            let pair = followed.pair;
            let primary = pair.primary();
            let receiver = pair.receiver();
            followed = Followed {
                following: pair.follow(&receiver),
                pair,
                primary,
                receiver,
            };
            let big = fs::File::options().write(true).open(source.join("big"));
            big.unwrap().write_all_at(b"changed", round * 1000).unwrap();
            followed.agree().await;
        }
    }
    let events = followed.pair.events(node);
    assert!(events.contains(&"files_ledger".to_owned()), "{events:?}");
    followed.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn trap_29_what_the_primary_keeps_is_damaged() {
    damage_each("a").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn trap_29_what_the_standby_keeps_is_damaged() {
    damage_each("b").await;
}
