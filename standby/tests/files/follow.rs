//! What happens on the primary happens on the standby.

use std::ffi::OsStr;
use std::fs;
use std::io::{Seek, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::time::Instant;

use rustix::fs::{IFlags, ioctl_getflags, ioctl_setflags};
use understudy_replication::store::{Receiver, Shipper};

use super::pair::{Followed, Pair, Primary, agree, epoch, tree, until};

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_change_is_followed() {
    let pair = Pair::new().await;
    let source = pair.source();
    fs::create_dir(source.join("d")).unwrap();
    fs::write(source.join("d/a"), "one").unwrap();
    let primary = pair.primary();
    let receiver = pair.receiver();
    pair.seed(&receiver).await.unwrap();
    assert_eq!(tree(&pair.copy()), tree(&source));
    let following = pair.follow(&receiver);
    let check = || agree(&pair, &primary, &receiver);

    fs::write(source.join("new"), "new").unwrap();
    fs::write(source.join("d/empty"), "").unwrap();
    check().await;
    fs::write(source.join("d/a"), "overwritten").unwrap();
    check().await;
    let mut file = fs::File::options()
        .append(true)
        .open(source.join("d/a"))
        .unwrap();
    file.write_all(b" and appended").unwrap();
    check().await;
    file.rewind().unwrap();
    file.set_len(3).unwrap();
    check().await;
    fs::set_permissions(source.join("new"), fs::Permissions::from_mode(0o4711)).unwrap();
    fs::set_permissions(source.join("d"), fs::Permissions::from_mode(0o750)).unwrap();
    std::os::unix::fs::chown(source.join("d/a"), Some(1234), Some(4321)).unwrap();
    check().await;
    fs::rename(source.join("new"), source.join("d/renamed")).unwrap();
    check().await;
    // A directory made and filled at once, as an archive is unpacked.
    fs::create_dir_all(source.join("deep/er/still")).unwrap();
    for number in 0..200 {
        fs::write(
            source.join(format!("deep/er/still/{number}")),
            format!("{number}"),
        )
        .unwrap();
    }
    fs::create_dir(source.join("deep/empty")).unwrap();
    check().await;
    fs::rename(source.join("deep"), source.join("moved")).unwrap();
    fs::write(source.join("moved/er/after"), "after").unwrap();
    check().await;
    symlink("../anywhere", source.join("link")).unwrap();
    check().await;
    fs::write(source.join(OsStr::from_bytes(b"caf\xe9 \n \xff")), "bytes").unwrap();
    fs::write(source.join("left out.tmp"), "excluded").unwrap();
    check().await;
    assert!(!pair.copy().join("left out.tmp").exists());
    // Types change.
    fs::remove_file(source.join("link")).unwrap();
    fs::create_dir(source.join("link")).unwrap();
    fs::write(source.join("link/inside"), "inside").unwrap();
    fs::remove_dir_all(source.join("moved")).unwrap();
    fs::write(source.join("moved"), "a file now").unwrap();
    check().await;
    fs::remove_dir_all(source.join("link")).unwrap();
    symlink("moved", source.join("link")).unwrap();
    check().await;
    // An empty directory goes, and another one takes its name at once.
    fs::create_dir(source.join("empty")).unwrap();
    fs::create_dir(source.join("full")).unwrap();
    fs::write(source.join("full/inside"), "inside").unwrap();
    check().await;
    fs::remove_dir(source.join("empty")).unwrap();
    fs::rename(source.join("full"), source.join("empty")).unwrap();
    check().await;
    // Two that swap, through a third name.
    fs::rename(source.join("d/a"), source.join("x")).unwrap();
    fs::rename(source.join("moved"), source.join("d/a")).unwrap();
    fs::rename(source.join("x"), source.join("moved")).unwrap();
    check().await;
    fs::write(source.join("large"), vec![7; 5 << 20]).unwrap();
    check().await;
    fs::remove_file(source.join("large")).unwrap();
    check().await;
    let received = receiver.received();
    assert_eq!((received.stalled, received.must_reseed), (None, false));
    assert_eq!(received.flushed, received.applied);
    following.stop().await;
    primary.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_is_seen_within_a_second() {
    let pair = Pair::new().await;
    fs::write(pair.source().join("a"), "0").unwrap();
    let primary = pair.primary();
    let receiver = pair.receiver();
    pair.seed(&receiver).await.unwrap();
    let following = pair.follow(&receiver);
    agree(&pair, &primary, &receiver).await;
    let mut times = Vec::new();
    for round in 1..=20 {
        let begun = Instant::now();
        fs::write(pair.source().join("a"), format!("{round}")).unwrap();
        let seen =
            || fs::read_to_string(pair.copy().join("a")).is_ok_and(|t| t == round.to_string());
        until(seen, || format!("round {round}")).await;
        times.push(begun.elapsed());
    }
    times.sort();
    eprintln!(
        "seen after {:?} (median), {:?} (worst)",
        times[10], times[19]
    );
    assert!(times[10].as_millis() < 1000, "{times:?}");
    following.stop().await;
    primary.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_that_is_dropped_anywhere_goes_on_where_it_was() {
    let pair = Pair::new().await;
    let source = pair.source();
    fs::write(source.join("first"), "first").unwrap();
    let primary = pair.primary();
    let receiver = pair.receiver();
    pair.seed(&receiver).await.unwrap();
    drop(receiver);
    for round in 0_usize..8 {
        let receiver = pair.receiver();
        let following = pair.follow(&receiver);
        for number in 0..30 {
            let content = format!("{round} {number} ").repeat(1000 * (number % 5) + 1);
            fs::write(
                source.join(format!("file {}", number * (round % 3 + 1))),
                content,
            )
            .unwrap();
            tokio::time::sleep(std::time::Duration::from_millis(3 * round as u64)).await;
        }
        following.abort().await;
        drop(receiver);
    }
    let receiver = pair.receiver();
    let following = pair.follow(&receiver);
    agree(&pair, &primary, &receiver).await;
    assert!(
        !pair.events("b").contains(&"files_compare".to_owned()),
        "the log sufficed"
    );
    following.stop().await;
    primary.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_changes_all_the_time_arrives_and_is_whole() {
    let pair = Pair::new().await;
    let source = pair.source();
    fs::write(source.join("busy"), vec![b'0'; 3 << 20]).unwrap();
    let primary = pair.primary();
    let receiver = pair.receiver();
    pair.seed(&receiver).await.unwrap();
    let following = pair.follow(&receiver);
    let path = source.join("busy");
    let writer = std::thread::spawn(move || {
        let mut file = fs::File::options().write(true).open(path).unwrap();
        for round in 0_u32..120 {
            file.rewind().unwrap();
            let digit = b'0' + u8::try_from(round % 10).unwrap();
            for _ in 0..48 {
                file.write_all(&[digit; 64 << 10]).unwrap();
            }
            // The application's own pace, not a wait for anything.
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
    });
    writer.join().unwrap();
    agree(&pair, &primary, &receiver).await;
    following.stop().await;
    primary.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_promoted_copy_continues_the_positions_and_reads_nothing_again() {
    let pair = Pair::new().await;
    let source = pair.source();
    fs::write(source.join("a"), "one").unwrap();
    let primary = pair.primary();
    let receiver = pair.receiver();
    pair.seed(&receiver).await.unwrap();
    let following = pair.follow(&receiver);
    fs::write(source.join("b"), "two").unwrap();
    agree(&pair, &primary, &receiver).await;
    let position = primary.mark().await;
    following.stop().await;
    primary.shipper.fence().await.unwrap();
    primary.stop().await;

    let next = epoch().superseded_by("b".parse().unwrap());
    for _ in 0..2 {
        receiver
            .take_over(&next, &understudy_replication::store::NoProgress)
            .await
            .unwrap();
    }
    drop(receiver);
    let promoted = pair.primary_in(&next, "b");
    assert_eq!(promoted.mark().await, position, "nothing has changed");

    // The former primary follows from its own position: the roots are equal.
    let former = pair.receiver_of("a");
    let following = pair.follow(&former);
    fs::write(pair.copy().join("c"), "three").unwrap();
    let position = promoted.mark().await;
    let received = || former.received().applied;
    until(
        || received().is_some_and(|at| at >= position),
        || format!("{:?}", former.received()),
    )
    .await;
    assert_eq!(tree(&source), tree(&pair.copy()));
    assert_eq!(pair.events("a"), Vec::<String>::new());
    following.stop().await;
    promoted.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_root_is_never_read_as_delete_all() {
    let pair = Pair::new().await;
    let source = pair.source();
    fs::write(source.join("a"), "one").unwrap();
    fs::create_dir(source.join("d")).unwrap();
    fs::write(source.join("d/b"), "two").unwrap();
    let primary = pair.primary();
    let receiver = pair.receiver();
    pair.seed(&receiver).await.unwrap();
    let following = pair.follow(&receiver);
    agree(&pair, &primary, &receiver).await;
    let whole = tree(&pair.copy());
    let halted = || !primary.shipper.report().problems.is_empty();

    // As if it was unmounted: another, empty directory in its place.
    fs::rename(&source, pair.folder.path().join("a/away")).unwrap();
    fs::create_dir(&source).unwrap();
    until(halted, || "the capture to halt".to_owned()).await;
    assert_eq!(primary.shipper.mark().await, None);
    assert_eq!(tree(&pair.copy()), whole);
    // Missing altogether.
    fs::remove_dir(&source).unwrap();
    assert_eq!(primary.shipper.mark().await, None);
    // It comes back, with a change.
    fs::write(pair.folder.path().join("a/away/c"), "three").unwrap();
    fs::rename(pair.folder.path().join("a/away"), &source).unwrap();
    agree(&pair, &primary, &receiver).await;
    assert_eq!(primary.shipper.report().problems, Vec::<String>::new());
    primary.stop().await;

    // Emptied while nobody looked.
    for name in ["a", "c"] {
        fs::remove_file(source.join(name)).unwrap();
    }
    fs::remove_dir_all(source.join("d")).unwrap();
    let primary = pair.primary();
    let halted = || {
        primary
            .shipper
            .report()
            .problems
            .iter()
            .any(|text| text.contains("is empty"))
    };
    until(halted, || "the capture to halt".to_owned()).await;
    assert!(pair.events("a").contains(&"files_halted".to_owned()));
    assert_eq!(tree(&pair.copy()).len(), 4);
    following.stop().await;
    primary.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_superseded_content_holds_the_position_until_a_later_batch_brings_it() {
    let pair = Pair::new().await;
    let source = pair.source();
    fs::write(source.join("a"), "old").unwrap();
    fs::write(source.join("b"), "old").unwrap();
    let primary = pair.primary();
    let receiver = pair.receiver();
    pair.seed(&receiver).await.unwrap();
    let following = pair.follow(&receiver);
    agree(&pair, &primary, &receiver).await;
    let before = receiver.received().applied;
    following.stop().await;
    for name in ["a", "b"] {
        fs::write(source.join(name), "captured").unwrap();
    }
    primary.mark().await;
    let shipper = primary.pause().await;
    for name in ["a", "b"] {
        fs::write(source.join(name), "not captured").unwrap();
    }

    let following = pair.follow(&receiver);
    let awaited = || receiver.received().report.gauges.get("awaited_entries") == Some(&2);
    until(awaited, || format!("{:?}", receiver.received())).await;
    let received = receiver.received();
    assert_eq!((received.applied, received.flushed), (before, before));
    assert_eq!(fs::read_to_string(pair.copy().join("a")).unwrap(), "old");
    following.stop().await;
    drop(receiver);

    // It is remembered; and one file is what it was when it was captured.
    fs::write(source.join("b"), "captured").unwrap();
    let receiver = pair.receiver();
    assert_eq!(receiver.received().applied, before);
    let following = pair.follow(&receiver);
    let primary = Primary::resume(shipper);
    let is_here = |name: &str, text: &str| {
        fs::read_to_string(pair.copy().join(name)).is_ok_and(|content| content == text)
    };
    let is_whole = || is_here("a", "not captured") && is_here("b", "captured");
    until(is_whole, || format!("{:?}", receiver.received())).await;
    agree(&pair, &primary, &receiver).await;
    following.stop().await;
    primary.stop().await;
}

/// Lets nobody remove, rename or change a file, or everybody again; returns `false` where that cannot be.
fn hold(path: &std::path::Path, is_held: bool) -> bool {
    let file = fs::File::open(path).unwrap();
    let Ok(mut flags) = ioctl_getflags(&file) else {
        return false;
    };
    flags.set(IFlags::IMMUTABLE, is_held);
    ioctl_setflags(&file, flags).is_ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn names_that_cannot_be_taken_away_are_told_until_they_have_gone() {
    let mut followed = Followed::of(|root| {
        fs::create_dir_all(root.join("d/inner")).unwrap();
        for name in ["d/inner/deleted", "moved", "made again"] {
            fs::write(root.join(name), name).unwrap();
        }
    })
    .await;
    let (source, copy) = (followed.source(), followed.copy());
    let held = ["d/inner/deleted", "moved", "made again"].map(|name| copy.join(name));
    if !held.iter().all(|path| hold(path, true)) {
        eprintln!("skipped: nothing can be made immutable here");
        for path in &held {
            hold(path, false);
        }
        return followed.end().await;
    }
    let before = followed.receiver.received().applied;
    fs::remove_file(source.join("d/inner/deleted")).unwrap();
    fs::rename(source.join("moved"), source.join("moved away")).unwrap();
    fs::remove_file(source.join("made again")).unwrap();
    let mark = followed.primary.mark().await;
    let paths = |receiver: &dyn Receiver| -> Vec<String> {
        let troubles = receiver.troubles().into_iter();
        let mut paths: Vec<String> = troubles.map(|trouble| trouble.path).collect();
        paths.sort();
        paths
    };
    let told = ["d/inner/deleted", "made again", "moved"];
    let is_told = || paths(&*followed.receiver) == told;
    until(is_told, || format!("{:?}", paths(&*followed.receiver))).await;
    // The others go on, and nothing is claimed.
    fs::write(source.join("after"), "after").unwrap();
    until(|| copy.join("after").exists(), || "what is new".to_owned()).await;
    let applied = followed.receiver.received().applied;
    assert!(applied >= before && applied < Some(mark), "{applied:?}");
    assert!(followed.receiver.received().flushed < Some(mark));
    // The directory that one is in moves, and the standby forgets all that is not on its disk.
    fs::rename(source.join("d"), source.join("e")).unwrap();
    let is_moved = || copy.join("e/inner/deleted").exists();
    until(is_moved, || "the directory".to_owned()).await;
    followed.following.stop().await;
    drop(followed.receiver);
    followed.receiver = followed.pair.receiver();
    let applied = followed.receiver.received().applied;
    assert!(applied < Some(mark), "{applied:?}");
    followed.following = followed.pair.follow(&followed.receiver);
    let told = ["e/inner/deleted", "made again", "moved"];
    let is_told = || paths(&*followed.receiver) == told;
    until(is_told, || format!("{:?}", paths(&*followed.receiver))).await;
    // One is to be there again by now.
    fs::write(source.join("made again"), "another").unwrap();
    for path in [
        copy.join("e/inner/deleted"),
        copy.join("moved"),
        copy.join("made again"),
    ] {
        assert!(hold(&path, false));
    }
    followed.agree().await;
    assert_eq!(paths(&*followed.receiver), Vec::<String>::new());
    followed.end().await;
}
