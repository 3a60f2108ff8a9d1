//! What goes wrong on the way to the copy. Each test begins with the trap's number.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::fs::{FallocateFlags, fallocate};
use understudy_config::Share;
use understudy_replication::store::{Receiver, Shipper};

use super::pair::{Followed, Pair, agree, tree, until};

/// Numbers that look random, and are the same in every run.
struct Dice(u64);

impl Dice {
    fn throw(&mut self, sides: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }
}

/// Bytes that do not compress, and are the same in every run.
fn noise(seed: u64, count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    blake3::Hasher::new()
        .update(&seed.to_le_bytes())
        .finalize_xof()
        .fill(&mut bytes);
    bytes
}

/// Does one thing of any kind to a tree of a few names; what does not fit is not done.
fn happen(root: &Path, dice: &mut Dice) {
    let mut name = || root.join(format!("name {}", dice.throw(8)));
    let (one, other) = (name(), name());
    let within = one.join("within");
    // Whether it can be done depends on what is there; either is a case.
    let _either = match dice.throw(10) {
        0 => fs::remove_file(&one),
        1 => fs::remove_dir_all(&one),
        2 => fs::create_dir(&one),
        3 | 4 => fs::rename(&one, &other),
        5 => fs::hard_link(&one, &other),
        6 => fs::write(&within, noise(dice.throw(1000), 3000)),
        7 => fs::write(&one, noise(dice.throw(1000), 400_000)),
        8 => fs::File::options()
            .write(true)
            .open(&one)
            .and_then(|file| file.write_all_at(b"in the middle", dice.throw(400_000))),
        _ => fs::write(&one, format!("{}", dice.throw(1000))),
    };
}

#[tokio::test(flavor = "multi_thread")]
async fn trap_17_the_capture_breaks_off_anywhere_and_begins_again() {
    let mut followed = Followed::of(|_| {}).await;
    let mut dice = Dice(17);
    for round in 0..12 {
        for _ in 0..20 {
            happen(&followed.source(), &mut dice);
        }
        tokio::time::sleep(Duration::from_millis(dice.throw(12))).await;
        followed.primary = followed.primary.crash_and_open(&followed.pair).await;
        if round % 4 == 3 {
            followed.agree().await;
        }
    }
    let events = followed.pair.events("b");
    assert!(!events.contains(&"files_compare".to_owned()), "{events:?}");
    followed.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn trap_17_what_was_noticed_and_not_kept_before_a_crash_is_found_after_it() {
    let mut followed = Followed::of(|root| {
        fs::create_dir_all(root.join("d/deep/er")).unwrap();
        for name in ["same", "d/deep/er/gone", "d/moved"] {
            fs::write(root.join(name), "0").unwrap();
        }
    })
    .await;
    let source = followed.source();
    for round in 1..=5 {
        // Of the same size and time as before, deleted far down, moved, and made: all within the time
        // in which a change is only noticed.
        let same = source.join("same");
        let modified = fs::metadata(&same).unwrap().modified().unwrap();
        fs::write(&same, format!("{}", round % 10)).unwrap();
        let file = fs::File::options().write(true).open(&same).unwrap();
        file.set_modified(modified).unwrap();
        let gone = source.join("d/deep/er/gone");
        if round % 2 == 1 {
            fs::remove_file(&gone).unwrap();
            fs::rename(source.join("d/moved"), source.join("moved")).unwrap();
        } else {
            fs::write(&gone, "again").unwrap();
            fs::rename(source.join("moved"), source.join("d/moved")).unwrap();
        }
        followed.primary = followed.primary.crash_and_open(&followed.pair).await;
        followed.agree().await;
    }
    followed.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn trap_18_a_standby_breaks_off_anywhere_and_goes_on() {
    let mut followed = Followed::of(|_| {}).await;
    let mut dice = Dice(18);
    for _ in 0..15 {
        followed.following.abort().await;
        drop(followed.receiver);
        followed.receiver = followed.pair.receiver();
        followed.following = followed.pair.follow(&followed.receiver);
        for _ in 0..20 {
            happen(&followed.source(), &mut dice);
            tokio::time::sleep(Duration::from_micros(dice.throw(4000))).await;
        }
    }
    followed.agree().await;
    let events = followed.pair.events("b");
    assert!(!events.contains(&"files_compare".to_owned()), "{events:?}");
    followed.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn trap_19_a_root_that_is_replaced_by_another_tree_deletes_nothing() {
    // That a part cannot be read cannot be tried as root, whom no permission stops.
    let pair = Pair::configured(|config| config.delete_guard = Share::HALF).await;
    let followed = Followed::with(pair, |root| {
        for number in 0..20 {
            fs::write(root.join(format!("{number}")), format!("{number}")).unwrap();
        }
    })
    .await;
    let (source, away) = (
        followed.source(),
        followed.pair.folder.path().join("a/away"),
    );
    let before = tree(&followed.copy());
    fs::rename(&source, &away).unwrap();
    fs::create_dir(&source).unwrap();
    fs::write(source.join("other"), "a file of another tree").unwrap();
    let is_told = || !followed.primary.shipper.report().problems.is_empty();
    until(is_told, || "the guard to tell".to_owned()).await;
    assert_eq!(followed.primary.shipper.mark().await, None);
    let mut held = tree(&followed.copy());
    held.remove("other");
    assert_eq!(held, before);
    fs::remove_dir_all(&source).unwrap();
    fs::rename(&away, &source).unwrap();
    followed.agree_after_sync().await;
    // The same tree, copied to another directory: only what differs is a change.
    fs::create_dir(&away).unwrap();
    for name in tree(&source).into_keys() {
        fs::copy(source.join(&name), away.join(&name)).unwrap();
    }
    fs::write(away.join("3"), "changed").unwrap();
    fs::rename(&source, followed.pair.folder.path().join("a/former")).unwrap();
    fs::rename(&away, &source).unwrap();
    followed.agree_after_sync().await;
    let problems = followed.primary.shipper.report().problems;
    assert_eq!(problems, Vec::<String>::new());
    followed.end().await;
}

fn copy_all(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let (path, name) = (entry.as_ref().unwrap().path(), entry.unwrap().file_name());
        if path.is_dir() {
            copy_all(&path, &to.join(name));
        } else {
            fs::copy(&path, to.join(name)).unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn trap_19_what_the_primary_keeps_is_older_than_its_files_and_its_copy() {
    let mut followed = Followed::of(|_| {}).await;
    let (source, copy, state) = (followed.source(), followed.copy(), followed.pair.state("a"));
    let kept = followed.pair.folder.path().join("kept");
    let mut dice = Dice(19);
    for _ in 0..40 {
        happen(&source, &mut dice);
    }
    followed.agree().await;
    followed.primary.stop().await;
    copy_all(&state, &kept);
    followed.primary = followed.pair.primary();
    for _ in 0..60 {
        happen(&source, &mut dice);
    }
    followed.agree().await;
    // The machine's disk is set back to a snapshot, and the tree, which lies elsewhere, is not.
    followed.following.stop().await;
    followed.primary.stop().await;
    fs::remove_dir_all(&state).unwrap();
    fs::rename(&kept, &state).unwrap();
    for _ in 0..20 {
        happen(&source, &mut dice);
    }
    followed.primary = followed.pair.primary();
    followed.primary.mark().await;
    followed.following = followed.pair.follow(&followed.receiver);
    let is_equal = || tree(&copy) == tree(&source);
    until(is_equal, || format!("{:?}", followed.receiver.received())).await;
    fs::write(source.join("last"), "last").unwrap();
    followed.end().await;
}

fn allocated(path: &Path) -> u64 {
    fs::metadata(path).unwrap().blocks() * 512
}

#[tokio::test(flavor = "multi_thread")]
async fn trap_21_holes_are_kept_and_cost_nothing() {
    let followed = Followed::of(|root| {
        let file = fs::File::create(root.join("seeded")).unwrap();
        file.write_all_at(&noise(1, 10_000), 3 << 20).unwrap();
        file.set_len(8 << 20).unwrap();
    })
    .await;
    let (source, copy) = (followed.source(), followed.copy());
    assert!(allocated(&copy.join("seeded")) < 100_000);
    // One that is all hole, and one with some data. Hashing zeros is what takes long in a debug build.
    let empty = fs::File::create(source.join("empty")).unwrap();
    empty.set_len(64 << 20).unwrap();
    let large = fs::File::create(source.join("large")).unwrap();
    large.set_len(256 << 20).unwrap();
    large.write_all_at(b"here", 100 << 20).unwrap();
    followed.agree().await;
    for name in ["empty", "large"] {
        let bytes = allocated(&copy.join(name));
        assert!(bytes < 200_000, "{name} takes {bytes} bytes on the disk");
    }
    followed.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn trap_21_a_hole_is_punched_where_data_was() {
    let names = [("small", 200_000), ("medium", 3 << 20), ("large", 20 << 20)];
    let followed = Followed::of(|root| {
        for (name, bytes) in names {
            fs::write(root.join(name), noise(2, bytes)).unwrap();
        }
    })
    .await;
    for (name, bytes) in names {
        let path = followed.source().join(name);
        let file = fs::File::options().write(true).open(path).unwrap();
        let (half, whole) = (bytes as u64 / 2, bytes as u64);
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        fallocate(&file, flags, 16 << 10, half).unwrap();
        followed.agree().await;
        let copied = allocated(&followed.copy().join(name));
        assert!(copied < whole * 6 / 10, "{name}: {copied} of {whole}");
        // And filled again, in part.
        file.write_all_at(&noise(3, 20_000), 40_000).unwrap();
        followed.agree().await;
    }
    followed.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn trap_26_appended_to_while_it_is_shipped() {
    let followed = Followed::of(|root| fs::write(root.join("log"), "").unwrap()).await;
    let mut log = fs::File::options()
        .append(true)
        .open(followed.source().join("log"))
        .unwrap();
    for round in 0..200_u32 {
        writeln!(log, "{round} {}", "x".repeat(round as usize % 50 * 40)).unwrap();
        tokio::time::sleep(Duration::from_millis(u64::from(round % 3))).await;
        let copied = fs::read(followed.copy().join("log")).unwrap();
        assert!(
            fs::read(followed.source().join("log"))
                .unwrap()
                .starts_with(&copied)
        );
    }
    followed.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn trap_26_a_large_log_that_is_never_at_rest_is_copied_all_the_same() {
    const BEFORE: usize = 5 << 20;
    let followed =
        Followed::of(|root| fs::write(root.join("log"), noise(1, BEFORE)).unwrap()).await;
    let path = followed.source().join("log");
    let mut log = fs::File::options().append(true).open(&path).unwrap();
    let is_done = Arc::new(AtomicBool::new(false));
    let writer = std::thread::spawn({
        let is_done = is_done.clone();
        move || {
            while !is_done.load(Ordering::Relaxed) {
                log.write_all(b"one more line\n").unwrap();
                std::thread::sleep(Duration::from_millis(2));
            }
        }
    });
    let copied = || fs::metadata(followed.copy().join("log")).unwrap().len();
    for lines in [20, 1000] {
        let wanted = BEFORE as u64 + lines * 14;
        until(|| copied() > wanted, || copied().to_string()).await;
    }
    let held = fs::read(followed.copy().join("log")).unwrap();
    is_done.store(true, Ordering::Relaxed);
    writer.join().unwrap();
    assert!(fs::read(&path).unwrap().starts_with(&held));
    assert!(
        !followed
            .pair
            .events("a")
            .iter()
            .any(|event| event.contains("files_unstable")),
        "it is no trouble"
    );
    followed.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn trap_26_logs_are_rotated_by_renaming_and_by_copying() {
    let followed = Followed::of(|root| fs::write(root.join("log"), "0\n").unwrap()).await;
    let source = followed.source();
    let at = |number: u32| source.join(format!("log.{number}"));
    let mut log = fs::File::options()
        .append(true)
        .open(source.join("log"))
        .unwrap();
    for round in 1..=6 {
        let lines = format!("{round}\n").repeat(50_000);
        log.write_all(lines.as_bytes()).unwrap();
        for number in (1..round).rev() {
            fs::rename(at(number), at(number + 1)).unwrap();
        }
        if round % 2 == 0 {
            // As copytruncate does: who writes goes on with the same file.
            fs::copy(source.join("log"), at(1)).unwrap();
            log.set_len(0).unwrap();
        } else {
            fs::rename(source.join("log"), at(1)).unwrap();
            // It is told to open its log anew a little later.
            log.write_all(b"late\n").unwrap();
            log = fs::File::options()
                .append(true)
                .create(true)
                .open(source.join("log"))
                .unwrap();
        }
        writeln!(log, "begun {round}").unwrap();
        if round % 3 == 0 {
            followed.agree().await;
        }
    }
    followed.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn trap_26_room_is_set_aside_beyond_the_end() {
    let followed = Followed::of(|_| {}).await;
    let file = fs::File::create(followed.source().join("log")).unwrap();
    fallocate(&file, FallocateFlags::KEEP_SIZE, 0, 32 << 20).unwrap();
    file.write_all_at(&noise(4, 10_000), 0).unwrap();
    followed.agree().await;
    let copied = followed.copy().join("log");
    assert_eq!(fs::metadata(&copied).unwrap().len(), 10_000);
    assert!(
        allocated(&copied) < 1 << 20,
        "room beyond the end is no data"
    );
    // And within it: zeros that were never written.
    fallocate(&file, FallocateFlags::empty(), 0, 8 << 20).unwrap();
    file.write_all_at(&noise(5, 10_000), 5 << 20).unwrap();
    followed.agree().await;
    assert_eq!(fs::metadata(&copied).unwrap().len(), 8 << 20);
    followed.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn trap_31_what_is_long_does_not_delay_what_is_short() {
    const BIG: usize = 64 << 20;
    let pair = Pair::configured(|config| config.bandwidth = Some(20_000_000)).await;
    let followed = Followed::with(pair, |_| {}).await;
    let (source, copy) = (followed.source(), followed.copy());
    let big = noise(6, BIG);
    let begun = Instant::now();
    fs::write(source.join("big"), &big).unwrap();
    let mut times = Vec::new();
    // While it is read, and while it is on its way.
    let mut round = 0_u64;
    while begun.elapsed() < Duration::from_millis(1500) {
        let small = noise(round, 1024);
        let changed = Instant::now();
        fs::write(source.join("small"), &small).unwrap();
        let is_here = || fs::read(copy.join("small")).is_ok_and(|copied| copied == small);
        until(is_here, || format!("round {round}")).await;
        times.push(changed.elapsed());
        assert!(!copy.join("big").exists(), "it is on its way");
        round += 1;
    }
    times.sort();
    let (middle, worst) = (times[times.len() / 2], times[times.len() - 1]);
    eprintln!(
        "{} short ones, seen after {middle:?}, at worst {worst:?}",
        times.len()
    );
    assert!(middle < Duration::from_secs(1), "{times:?}");
    followed.end().await;
    let took = begun.elapsed();
    assert!(
        took >= Duration::from_secs(2),
        "the limit was kept: {took:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn trap_32_a_rename_across_the_roots_boundary_makes_and_deletes() {
    let followed = Followed::of(|root| {
        fs::create_dir_all(root.join("d/inner")).unwrap();
        fs::write(root.join("d/inner/file"), "within").unwrap();
        fs::write(root.join("a"), "a").unwrap();
    })
    .await;
    let (source, copy) = (followed.source(), followed.copy());
    let outside = followed.pair.folder.path().join("a/outside");
    fs::create_dir_all(outside.join("new/deep")).unwrap();
    fs::write(outside.join("new/deep/file"), "from outside").unwrap();
    // Beside the root, with a name that begins like it.
    let beside = followed.pair.folder.path().join("a/root beside");
    fs::create_dir(&beside).unwrap();
    fs::rename(source.join("d"), outside.join("d")).unwrap();
    fs::rename(source.join("a"), beside.join("a")).unwrap();
    followed.agree().await;
    assert!(!copy.join("d").exists());
    fs::write(outside.join("d/inner/file"), "changed while it was away").unwrap();
    fs::rename(outside.join("d"), source.join("back")).unwrap();
    fs::rename(outside.join("new"), source.join("new")).unwrap();
    followed.agree().await;
    // Out, over what is there, and in again at once.
    fs::rename(source.join("back/inner/file"), beside.join("a")).unwrap();
    fs::rename(beside.join("a"), source.join("new/deep/file")).unwrap();
    followed.agree().await;
    let copied = fs::read_to_string(copy.join("new/deep/file")).unwrap();
    assert_eq!(copied, "changed while it was away");
    followed.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn trap_33_a_file_that_shares_its_extents_is_equal_and_changes_alone() {
    let followed = Followed::of(|root| fs::write(root.join("a"), noise(7, 1 << 20)).unwrap()).await;
    let source = followed.source();
    let (from, to) = (
        fs::File::open(source.join("a")).unwrap(),
        fs::File::create(source.join("clone")).unwrap(),
    );
    if let Err(errno) = rustix::fs::ioctl_ficlone(&to, &from) {
        eprintln!("no clones on this file system ({errno}); copied within the kernel instead");
        let copied = rustix::fs::copy_file_range(&from, None, &to, None, 1 << 20);
        assert_eq!(copied, Ok(1 << 20));
    }
    followed.agree().await;
    to.write_all_at(b"only here", 70_000).unwrap();
    followed.agree().await;
    let copied = fs::read(followed.copy().join("a")).unwrap();
    assert!(
        copied == noise(7, 1 << 20),
        "what it was made of is as it was"
    );
    followed.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn trap_18_a_seeding_breaks_off_anywhere_and_goes_on() {
    let pair = Pair::new().await;
    let mut dice = Dice(180);
    for _ in 0..100 {
        happen(&pair.source(), &mut dice);
    }
    fs::write(pair.source().join("last"), "last").unwrap();
    let primary = pair.primary();
    primary.mark().await;
    for _ in 0..12 {
        let receiver = pair.receiver();
        let limit = Duration::from_millis(dice.throw(40));
        // Broken off anywhere; or done, on a fast machine.
        let _broken_off = tokio::time::timeout(limit, pair.seed(&receiver))
            .await
            .is_err();
        happen(&pair.source(), &mut dice);
    }
    let receiver = pair.receiver();
    pair.seed(&receiver).await.unwrap();
    let following = pair.follow(&receiver);
    agree(&pair, &primary, &receiver).await;
    following.stop().await;
    primary.stop().await;
}
