//! How changes hide from who looks for them. Each test begins with the trap's number.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, UTIME_OMIT};
use understudy_replication::store::Shipper;

use super::mapping::Mapping;
use super::pair::Followed;

/// Sets when something was changed, a link included.
pub(crate) fn set_mtime(path: &Path, seconds: i64, nanoseconds: u32) {
    let times = Timestamps {
        last_access: Timespec {
            tv_sec: 0,
            tv_nsec: UTIME_OMIT,
        },
        last_modification: Timespec {
            tv_sec: seconds,
            tv_nsec: nanoseconds.into(),
        },
    };
    rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

fn mtime(path: &Path) -> SystemTime {
    fs::metadata(path).unwrap().modified().unwrap()
}

fn open(path: &Path) -> fs::File {
    fs::File::options()
        .read(true)
        .write(true)
        .open(path)
        .unwrap()
}

/// Reads `path` again and again while `write` runs in a thread, and hands each content to `check`.
fn observe(path: &Path, write: impl FnOnce() + Send + 'static, mut check: impl FnMut(&[u8])) {
    let is_over = Arc::new(AtomicBool::new(false));
    let over = is_over.clone();
    let writer = thread::spawn(move || {
        write();
        over.store(true, Ordering::Release);
    });
    while !is_over.load(Ordering::Acquire) {
        if let Ok(content) = fs::read(path) {
            check(&content);
        }
        // The observer's own pace: the copier needs the processor, too.
        thread::sleep(Duration::from_millis(2));
    }
    writer.join().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn trap_01_overwritten_in_the_same_tick_with_the_same_size() {
    let followed = Followed::of(|root| fs::write(root.join("a"), "00000000").unwrap()).await;
    let file = open(&followed.source().join("a"));
    for round in 0..30_u64 {
        // The second one falls anywhere into the look at the first one.
        file.write_all_at(b"between!", 0).unwrap();
        tokio::time::sleep(Duration::from_micros(round * 211)).await;
        file.write_all_at(format!("{round:08}").as_bytes(), 0)
            .unwrap();
        followed.agree().await;
    }
    followed.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn trap_02_mtime_set_back_with_new_content() {
    let followed = Followed::of(|root| {
        for name in ["touched", "replaced", "unwatched", "moved over"] {
            fs::write(root.join(name), "before").unwrap();
            set_mtime(&root.join(name), 1_000_000_000, 5);
        }
    })
    .await;
    let change = |path: &Path| {
        let before = mtime(path);
        fs::write(path, "after!").unwrap();
        set_mtime(path, 1_000_000_000, 5);
        assert_eq!(mtime(path), before);
    };
    let replace = |root: &Path, name: &str| {
        // As an archive is unpacked.
        let next = root.join("next");
        fs::write(&next, "after!").unwrap();
        set_mtime(&next, 1_000_000_000, 5);
        fs::rename(next, root.join(name)).unwrap();
    };
    let source = followed.source();
    change(&source.join("touched"));
    replace(&source, "replaced");
    followed.agree().await;
    let followed = followed.unwatched(|root| {
        change(&root.join("unwatched"));
        replace(root, "moved over");
    });
    let followed = followed.await;
    followed.agree().await;
    for name in ["touched", "replaced", "unwatched", "moved over"] {
        let copied = fs::read_to_string(followed.copy().join(name)).unwrap();
        assert_eq!(copied, "after!", "{name}");
    }
    followed.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn trap_03_a_file_from_the_future_and_one_from_before_1970() {
    /// 2200, a moment before 1970, the epoch itself, 1901.
    const TIMES: [(i64, u32); 4] = [
        (7_258_118_400, 999_999_999),
        (-1, 500_000_000),
        (0, 0),
        (-2_147_483_648, 0),
    ];
    let followed = Followed::of(|root| {
        for (number, (seconds, nanoseconds)) in TIMES.into_iter().enumerate() {
            let path = root.join(format!("early {number}"));
            fs::write(&path, "early").unwrap();
            set_mtime(&path, seconds, nanoseconds);
        }
    })
    .await;
    let source = followed.source();
    for (number, (seconds, nanoseconds)) in TIMES.into_iter().enumerate() {
        // Changed, and from the same moment again.
        let path = source.join(format!("early {number}"));
        fs::write(&path, "later").unwrap();
        set_mtime(&path, seconds, nanoseconds);
        let directory = source.join(format!("directory {number}"));
        fs::create_dir(&directory).unwrap();
        std::os::unix::fs::symlink("nowhere", source.join(format!("link {number}"))).unwrap();
        set_mtime(&directory, seconds, nanoseconds);
        set_mtime(&source.join(format!("link {number}")), seconds, nanoseconds);
    }
    followed.agree().await;
    let copied = fs::metadata(followed.copy().join("early 1")).unwrap();
    assert_eq!((copied.mtime(), copied.mtime_nsec()), (-1, 500_000_000));
    followed.end().await;
}

/// The versions that the parts of a file have, part by part.
fn versions(content: &[u8], part_bytes: usize) -> Vec<u32> {
    let parts = content.chunks(part_bytes);
    let version = |part: &[u8]| {
        let version = part.first_chunk().map_or(0, |v| u32::from_le_bytes(*v));
        let is_whole = part.chunks(4).all(|some| some == version.to_le_bytes());
        assert!(is_whole, "a part is torn");
        version
    };
    parts.map(version).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn trap_04_a_file_that_is_rewritten_while_it_is_read_is_never_a_mixture() {
    const PART_BYTES: usize = 4096;
    const PARTS: u64 = 128;
    let part = |version: u32| version.to_le_bytes().repeat(PART_BYTES / 4);
    let followed = Followed::of(|root| {
        let bytes = part(0).repeat(usize::try_from(PARTS).unwrap());
        fs::write(root.join("busy"), bytes).unwrap();
    })
    .await;
    let file = open(&followed.source().join("busy"));
    let copy = followed.copy().join("busy");
    let copied = copy.clone();
    let write = move || {
        for version in 1..=40 {
            for number in 0..PARTS {
                let offset = number * PART_BYTES as u64;
                file.write_all_at(&part(version), offset).unwrap();
            }
            // Now and then it is left alone until it has arrived; within five seconds or not at all.
            let begun = Instant::now();
            let has_arrived =
                || fs::read(&copied).is_ok_and(|bytes| bytes.ends_with(&part(version)));
            while version % 10 == 0 && !has_arrived() && begun.elapsed() < Duration::from_secs(5) {
                thread::sleep(Duration::from_millis(5));
            }
        }
    };
    let mut seen = BTreeSet::new();
    tokio::task::block_in_place(|| {
        observe(&copy, write, |content| {
            let versions = versions(content, PART_BYTES);
            // It is written from its beginning: at any moment that was, what is new comes first.
            let is_moment = versions.is_sorted_by(|a, b| a >= b)
                && versions.first().copied().unwrap_or(0)
                    <= versions.last().copied().unwrap_or(0) + 1;
            assert!(is_moment, "no moment had {versions:?}");
            seen.extend(versions);
        });
    });
    eprintln!("seen {} versions", seen.len());
    assert!(
        seen.len() > 1,
        "it was followed while it changed: {}",
        seen.len()
    );
    followed.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn trap_05_a_file_that_is_truncated_while_it_is_read() {
    let content: Vec<u8> = (0..400_000_u32).flat_map(u32::to_le_bytes).collect();
    let content = Arc::new(content);
    let followed = Followed::of(|root| fs::write(root.join("cut"), &*content).unwrap()).await;
    let (path, whole) = (followed.source().join("cut"), content.clone());
    let write = move || {
        for round in 0..40_usize {
            let mut file = fs::File::create(&path).unwrap();
            file.write_all(&whole).unwrap();
            thread::sleep(Duration::from_millis(round as u64 % 5 * 8));
            file.set_len((round as u64 * 37_501) % 1_600_000).unwrap();
            thread::sleep(Duration::from_millis(round as u64 % 3 * 10));
        }
    };
    let copy = followed.copy().join("cut");
    tokio::task::block_in_place(|| {
        observe(&copy, write, |copied| {
            assert!(
                content.starts_with(copied),
                "{} bytes that no moment had",
                copied.len()
            );
        });
    });
    followed.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn trap_06_a_file_that_is_replaced_by_a_rename_while_it_is_open() {
    let bytes = |version: u32| version.to_le_bytes().repeat(75_000);
    let followed = Followed::of(|root| fs::write(root.join("current"), bytes(0)).unwrap()).await;
    let source = followed.source();
    let former = open(&source.join("current"));
    let write = move || {
        for version in 1..=40 {
            let next = source.join("next.tmp");
            fs::write(&next, bytes(version)).unwrap();
            fs::rename(next, source.join("current")).unwrap();
            // Who holds what it was before writes on: that has no name any more.
            former.write_all_at(&bytes(1_000_000 + version), 0).unwrap();
            thread::sleep(Duration::from_millis(u64::from(version % 4) * 6));
        }
    };
    let copy = followed.copy().join("current");
    let mut newest = 0;
    tokio::task::block_in_place(|| {
        observe(&copy, write, |content| {
            let versions = versions(content, content.len());
            assert_eq!(content.len(), 300_000);
            assert!(versions[0] >= newest && versions[0] <= 40, "{versions:?}");
            newest = versions[0];
        });
    });
    followed.agree().await;
    assert_eq!(
        fs::read(&copy).unwrap(),
        40_u32.to_le_bytes().repeat(75_000)
    );
    followed.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn trap_07_what_is_written_through_a_mapping_is_found_by_a_sync() {
    let followed =
        Followed::of(|root| fs::write(root.join("mapped"), vec![b'0'; 20_000]).unwrap()).await;
    let file = open(&followed.source().join("mapped"));
    let mapping = Mapping::new(&file);
    for round in 1..=3_u8 {
        mapping.write(100 * usize::from(round), b'0' + round);
        if round % 2 == 0 {
            mapping.sync();
        }
        followed.agree_after_sync().await;
        // The copy's sync has cleaned the page, so that the next write shows in the times.
        file.sync_all().unwrap();
    }
    let copied = fs::read(followed.copy().join("mapped")).unwrap();
    assert_eq!((copied[100], copied[200], copied[300]), (b'1', b'2', b'3'));
    drop(mapping);
    followed.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn trap_08_what_nobody_tells_of_is_found_by_one_look_at_everything() {
    let followed = Followed::of(|root| {
        for number in 0..40 {
            let directory = root.join(format!("d{number}"));
            fs::create_dir(&directory).unwrap();
            for file in 0..10 {
                fs::write(directory.join(format!("f{file}")), "before").unwrap();
            }
        }
    })
    .await;
    // A lost event and a stopped capture leave the same: something has happened, and who knows what.
    let followed = followed.unwatched(|root| {
        for number in 0..40 {
            let directory = root.join(format!("d{number}"));
            match number % 5 {
                0 => fs::remove_dir_all(&directory).unwrap(),
                1 => fs::rename(&directory, root.join(format!("renamed {number}"))).unwrap(),
                2 => fs::write(directory.join("f3"), "after!").unwrap(),
                3 => {
                    fs::rename(directory.join("f1"), root.join(format!("out {number}"))).unwrap();
                }
                _ => fs::write(directory.join("new"), "new").unwrap(),
            }
        }
    });
    let followed = followed.await;
    followed.agree_after_sync().await;
    // What it reads itself does not make it look again.
    let position = followed.primary.mark().await;
    followed.primary.shipper.sync_now().await.unwrap();
    assert_eq!(followed.primary.mark().await, position);
    followed.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn trap_09_directories_are_filled_as_soon_as_they_are_made() {
    let followed = Followed::of(|_| {}).await;
    let source = followed.source();
    let writers = (0..4).map(|writer| {
        let root = source.join(format!("tree {writer}"));
        thread::spawn(move || {
            let mut directory = root;
            for depth in 0..30 {
                fs::create_dir(&directory).unwrap();
                for file in 0..3 {
                    fs::write(directory.join(format!("f{file}")), format!("{depth}")).unwrap();
                }
                directory.push(format!("{depth}"));
            }
        })
    });
    let writers: Vec<_> = writers.collect();
    for writer in writers {
        writer.join().unwrap();
    }
    followed.agree().await;
    let deep: std::path::PathBuf = (0..29).map(|depth| depth.to_string()).collect();
    let copied = fs::read_to_string(followed.copy().join("tree 3").join(deep).join("f2"));
    assert_eq!(copied.unwrap(), "29");
    followed.end().await;
}
