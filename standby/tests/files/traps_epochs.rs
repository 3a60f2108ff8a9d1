//! Two that both take themselves for the primary. Each test begins with the trap's number.

use std::fs;

use understudy_replication::epoch::Epoch;
use understudy_replication::store::{NoProgress, Receiver};

use super::pair::{Pair, agree_at, epoch, tree, until};

#[tokio::test(flavor = "multi_thread")]
async fn trap_20_the_frames_of_a_primary_that_was_superseded_are_not_taken() {
    let pair = Pair::new().await;
    fs::write(pair.source().join("shared"), "by all").unwrap();
    let former = pair.primary();
    let (first, second) = (pair.receiver(), pair.receiver_of("c"));
    let (client, told) = pair.client_of("c", pair.address);
    pair.seed(&first).await.unwrap();
    second.seed(&client, &NoProgress).await.unwrap();
    let following = Pair::follow_by(&second, &client);
    let copy = pair.folder.path().join("c/root");
    agree_at(&pair, &former, &second, &copy).await;

    // The first standby is promoted, and its former primary does not know it.
    let superseding: Epoch = epoch().superseded_by("b".parse().unwrap());
    first.take_over(&superseding, &NoProgress).await.unwrap();
    following.stop().await;
    told.raise(&superseding);
    let before = (tree(&copy), second.received().applied);
    fs::write(pair.source().join("shared"), "by the former primary").unwrap();
    fs::write(pair.source().join("astray"), "by the former primary").unwrap();
    former.mark().await;
    let following = Pair::follow_by(&second, &client);
    let is_refused = || {
        let stalled = second.received().stalled.unwrap_or_default();
        stalled.contains("node a is in epoch 1.a, which 2.b has superseded")
    };
    until(is_refused, || format!("{:?}", second.received())).await;
    assert_eq!((tree(&copy), second.received().applied), before);
    // It has been told, and can fence itself.
    assert!(pair.told.has_heard(&superseding));
    following.stop().await;

    // The same standby, of the same log, takes what comes in the higher epoch.
    drop(first);
    pair.told.raise(&superseding);
    let promoted = pair.primary_in(&superseding, "b");
    let shipped = pair.copy();
    fs::write(shipped.join("shared"), "by the promoted").unwrap();
    let following = Pair::follow_by(&second, &client);
    let position = promoted.mark().await;
    let is_there = || second.received().applied.is_some_and(|at| at >= position);
    until(is_there, || format!("{:?}", second.received())).await;
    assert_eq!(tree(&copy), tree(&shipped));
    assert!(!copy.join("astray").exists());
    following.stop().await;
    promoted.stop().await;
    former.stop().await;
}
