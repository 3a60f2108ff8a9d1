//! Making a copy, from whatever is there.

use std::fs;
use std::os::unix::fs::MetadataExt;

use understudy_replication::store::Receiver;

use super::pair::{Pair, agree, tree, until};

#[tokio::test(flavor = "multi_thread")]
async fn what_no_seeding_has_made_is_refused_and_left_alone() {
    let pair = Pair::new().await;
    fs::write(pair.source().join("a"), "one").unwrap();
    let primary = pair.primary();
    let receiver = pair.receiver();
    fs::create_dir(pair.copy()).unwrap();
    fs::write(pair.copy().join("precious"), "only here").unwrap();
    let error = pair.seed(&receiver).await.unwrap_err();
    let path = pair.copy();
    assert_eq!(
        error.to_string(),
        format!(
            "{} is not empty, and what is in it was not put there by a seeding of store docs; move it \
             away, or choose another path",
            path.display()
        )
    );
    assert_eq!(fs::read_dir(&path).unwrap().count(), 1);
    assert_eq!(
        fs::read_to_string(path.join("precious")).unwrap(),
        "only here"
    );
    primary.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_was_away_too_long_fetches_only_what_differs() {
    let pair = Pair::new().await;
    let source = pair.source();
    for number in 0..50 {
        fs::write(
            source.join(format!("{number}")),
            format!("content {number}"),
        )
        .unwrap();
    }
    fs::write(source.join("gone"), "gone").unwrap();
    let primary = pair.primary();
    let receiver = pair.receiver();
    pair.seed(&receiver).await.unwrap();
    let inodes = || -> Vec<u64> {
        (1..50)
            .map(|n| fs::metadata(pair.copy().join(n.to_string())).unwrap().ino())
            .collect()
    };
    let before = inodes();
    primary.stop().await;
    // The log is lost, and with it all positions.
    fs::remove_dir_all(pair.state("a").join("log")).unwrap();
    fs::write(source.join("0"), "changed").unwrap();
    fs::remove_file(source.join("gone")).unwrap();
    // And the copy was tampered with.
    fs::write(pair.copy().join("foreign"), "not the primary's").unwrap();
    let primary = pair.primary();
    primary.mark().await;
    fs::write(source.join("late"), "late").unwrap();
    let following = pair.follow(&receiver);
    let seen = || pair.copy().join("late").exists() && !pair.copy().join("foreign").exists();
    until(seen, || format!("{:?}", receiver.received())).await;
    agree(&pair, &primary, &receiver).await;
    assert_eq!(inodes(), before, "what was equal was not fetched");
    following.stop().await;
    drop(receiver);
    let receiver = pair.receiver();
    assert!(
        !receiver.received().must_reseed,
        "the new manifest is whole"
    );
    assert_eq!(pair.events("b"), ["files_compare"]);
    primary.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_seeding_that_was_broken_off_goes_on_where_it_was() {
    let pair = Pair::new().await;
    let source = pair.source();
    for number in 0..600 {
        fs::write(
            source.join(format!("{number}")),
            format!("content {number}").repeat(100),
        )
        .unwrap();
    }
    let primary = pair.primary();
    primary.mark().await;
    for patience in [30, 60, 120, 240] {
        let receiver = pair.receiver();
        let limit = std::time::Duration::from_millis(patience);
        // Broken off anywhere; or done, on a fast machine.
        let _broken_off = tokio::time::timeout(limit, pair.seed(&receiver))
            .await
            .is_err();
        drop(receiver);
    }
    let receiver = pair.receiver();
    pair.seed(&receiver).await.unwrap();
    assert_eq!(tree(&pair.copy()), tree(&source));
    primary.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_former_primary_keeps_aside_what_the_new_one_lacks() {
    let pair = Pair::new().await;
    fs::write(pair.source().join("shared"), "shared").unwrap();
    let primary = pair.primary();
    let receiver = pair.receiver();
    pair.seed(&receiver).await.unwrap();
    // Written, and never shipped.
    fs::write(pair.source().join("lost"), "exists only here").unwrap();
    primary.mark().await;
    primary.stop().await;
    let next = super::pair::epoch().superseded_by("b".parse().unwrap());
    receiver
        .take_over(&next, &understudy_replication::store::NoProgress)
        .await
        .unwrap();
    drop(receiver);
    let promoted = pair.primary_in(&next, "b");
    fs::write(pair.copy().join("new"), "new").unwrap();
    promoted.mark().await;
    let former = pair.receiver_of("a");
    let following = pair.follow(&former);
    until(
        || pair.source().join("new").exists(),
        || format!("{:?}", former.received()),
    )
    .await;
    until(
        || former.received().applied.is_some(),
        || format!("{:?}", former.received()),
    )
    .await;
    assert_eq!(tree(&pair.source()), tree(&pair.copy()));
    let kept = pair.source().join(".understudy/kept");
    let kept = fs::read_dir(kept).unwrap().next().unwrap().unwrap().path();
    assert_eq!(
        fs::read_to_string(kept.join("lost")).unwrap(),
        "exists only here"
    );
    assert_eq!(
        fs::read_dir(kept).unwrap().count(),
        1,
        "what both have is not kept twice"
    );
    following.stop().await;
    promoted.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_whose_log_has_flipped_bytes_is_compared_whole() {
    let pair = Pair::new().await;
    let source = pair.source();
    fs::write(source.join("a"), "one").unwrap();
    let primary = pair.primary();
    let receiver = pair.receiver();
    pair.seed(&receiver).await.unwrap();
    let following = pair.follow(&receiver);
    for number in 0..5 {
        fs::write(source.join("b"), format!("{number}")).unwrap();
        agree(&pair, &primary, &receiver).await;
    }
    following.stop().await;
    drop(receiver);
    let log = pair.state("b").join("log");
    let path = fs::read_dir(log).unwrap().next().unwrap().unwrap().path();
    let mut bytes = fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&path, bytes).unwrap();
    let receiver = pair.receiver();
    assert!(receiver.received().must_reseed);
    assert_eq!(receiver.received().applied, None);
    let following = pair.follow(&receiver);
    agree(&pair, &primary, &receiver).await;
    assert!(pair.events("b").contains(&"files_ledger".to_owned()));
    following.stop().await;
    primary.stop().await;
}
