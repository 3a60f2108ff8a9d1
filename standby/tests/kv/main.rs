//! Two nodes of a key-value store, with real links and real disks.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod node;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use understudy_config::KvDurability;
use understudy_replication::epoch::Epoch;
use understudy_replication::kv::keyspace::{Keyspace, Refusal};
use understudy_replication::store::{
    AT_RISK_OPERATIONS, Durability, NoProgress, Receiver, Shipper,
};

use node::{Cluster, equal, get, put, until, write};

fn standbys(count: usize) -> Arc<AtomicUsize> {
    Arc::new(AtomicUsize::new(count))
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_acknowledged_is_durable_on_the_standby() {
    let cluster = Cluster::new(|_| {});
    let (a, b) = (cluster.node("a").await, cluster.node("b").await);
    let primary = a.lead(1, &standbys(1)).await;
    let standby = b.follow(&a);
    until("it is open", || get(&*primary.end, "k").is_ok()).await;
    for number in 0..200 {
        put(&*primary.end, &format!("key {number}"), "value")
            .await
            .unwrap();
        let flushed = standby.end.received().flushed.unwrap();
        assert!(flushed >= primary.end.standing().position);
    }
    assert_eq!(primary.end.report().durability, Some(Durability::Held));
    assert_eq!(primary.end.report().gauges[AT_RISK_OPERATIONS], 0);
    equal(&a, &b).await;
    assert_eq!(get(&*standby.end, "key 7"), Ok(Some("value".to_owned())));
    assert_eq!(write(&*standby.end, "k", "v"), Err(Refusal::ReadOnly));
    standby.stop().await;
    primary.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_visible_that_no_standby_has() {
    let cluster = Cluster::new(|_| {});
    let (a, b) = (cluster.node("a").await, cluster.node("b").await);
    let primary = a.lead(1, &standbys(1)).await;
    let standby = b.follow(&a);
    until("it is open", || get(&*primary.end, "k").is_ok()).await;
    put(&*primary.end, "k", "old").await.unwrap();
    standby.stop().await;
    let position = write(&*primary.end, "k", "new").unwrap();
    let settled = primary.end.settled(position);
    let waited = tokio::time::timeout(Duration::from_millis(300), settled).await;
    assert!(waited.is_err(), "it was acknowledged");
    // Reads go on, of what is on the standby.
    assert_eq!(get(&*primary.end, "k"), Ok(Some("old".to_owned())));
    let standby = b.follow(&a);
    primary.end.settled(position).await.unwrap();
    assert_eq!(get(&*primary.end, "k"), Ok(Some("new".to_owned())));
    standby.stop().await;
    primary.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_does_not_freeze_the_primary_and_what_is_at_risk_is_told() {
    let cluster = Cluster::new(|config| {
        config.durability = KvDurability::StandbyFirst {
            degrade_after: Some(Duration::from_millis(300)),
        };
    });
    let (a, b) = (cluster.node("a").await, cluster.node("b").await);
    let primary = a.lead(1, &standbys(1)).await;
    put(&*primary.end, "alone", "1").await.unwrap();
    let report = primary.end.report();
    assert!(matches!(report.durability, Some(Durability::Alone { .. })));
    assert!(report.gauges[AT_RISK_OPERATIONS] > 0);
    assert!(
        report.problems[0].starts_with("degraded for "),
        "{:?}",
        report.problems
    );
    let standby = b.follow(&a);
    until("it is held again", || {
        primary.end.report().durability == Some(Durability::Held)
    })
    .await;
    assert_eq!(primary.end.report().gauges[AT_RISK_OPERATIONS], 0);
    let events = a.events();
    assert!(
        events.contains(&"kv_degraded".to_owned()) && events.contains(&"kv_recovered".to_owned())
    );
    equal(&a, &b).await;
    standby.stop().await;
    primary.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_strict_store_refuses_writes_while_no_standby_answers() {
    let cluster = Cluster::new(|config| {
        config.durability = KvDurability::StandbyFirst {
            degrade_after: None,
        };
    });
    let (a, b) = (cluster.node("a").await, cluster.node("b").await);
    let primary = a.lead(1, &standbys(1)).await;
    let standby = b.follow(&a);
    until("it is open", || get(&*primary.end, "k").is_ok()).await;
    put(&*primary.end, "k", "old").await.unwrap();
    standby.stop().await;
    assert_eq!(
        put(&*primary.end, "k", "new").await,
        Err(Refusal::NoReplicas)
    );
    // Others are told so at once, and reads go on.
    assert_eq!(write(&*primary.end, "k", "newer"), Err(Refusal::NoReplicas));
    assert_eq!(get(&*primary.end, "k"), Ok(Some("old".to_owned())));
    let standby = b.follow(&a);
    until("it takes writes", || {
        write(&*primary.end, "k", "newer").is_ok()
    })
    .await;
    put(&*primary.end, "k", "newest").await.unwrap();
    equal(&a, &b).await;
    standby.stop().await;
    primary.stop().await;
    // After a stop in peace it answers reads at once, standby or not.
    a.forget();
    let primary = a.lead(1, &standbys(1)).await;
    assert_eq!(get(&*primary.end, "k"), Ok(Some("newest".to_owned())));
    assert_eq!(
        put(&*primary.end, "k", "newer").await,
        Err(Refusal::NoReplicas)
    );
    primary.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_that_is_too_far_behind_takes_a_snapshot_while_writes_go_on() {
    let cluster = Cluster::new(|_| {});
    let (a, b) = (cluster.node("a").await, cluster.node("b").await);
    let count = standbys(0);
    let primary = a.lead(1, &count).await;
    let value = "x".repeat(10_000);
    let first = a.path().join("kv/log/00000000000000000000.log");
    let mut number: u64 = 0;
    until("the log's beginning is gone", || {
        for _ in 0..100 {
            number += 1;
            write(&*primary.end, &format!("key {}", number % 700), &value).unwrap();
        }
        !first.exists()
    })
    .await;
    count.store(1, Ordering::SeqCst);
    let writer = primary.end.clone();
    let writing = tokio::spawn(async move {
        for number in 0..500 {
            put(&*writer, &format!("late {number}"), "v").await.unwrap();
        }
    });
    b.seed(&a).await;
    let standby = b.follow(&a);
    writing.await.unwrap();
    equal(&a, &b).await;
    assert!(b.events().contains(&"kv_snapshot".to_owned()));
    standby.stop().await;
    // It is there after a restart of both, too.
    primary.stop().await;
    for node in [&a, &b] {
        node.forget();
    }
    let primary = a.lead(1, &count).await;
    let standby = b.follow(&a);
    until("it is open", || get(&*primary.end, "late 499").is_ok()).await;
    assert_eq!(get(&*primary.end, "late 499"), Ok(Some("v".to_owned())));
    equal(&a, &b).await;
    standby.stop().await;
    primary.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_superseded_primary_keeps_aside_what_only_it_had_and_follows() {
    let cluster = Cluster::new(|config| {
        config.durability = KvDurability::StandbyFirst {
            degrade_after: Some(Duration::from_millis(200)),
        };
    });
    let (a, b) = (cluster.node("a").await, cluster.node("b").await);
    let primary = a.lead(1, &standbys(1)).await;
    let standby = b.follow(&a);
    until("it is open", || get(&*primary.end, "k").is_ok()).await;
    put(&*primary.end, "k", "both").await.unwrap();
    standby.stop().await;
    // The link is cut: the old primary goes on alone.
    put(&*primary.end, "k", "only a").await.unwrap();
    put(&*primary.end, "lost", "only a").await.unwrap();
    let copy = b.copy();
    let epoch = Epoch {
        number: 2,
        node: "b".parse().unwrap(),
    };
    copy.take_over(&epoch, &NoProgress).await.unwrap();
    let none = standbys(0);
    let successor = b.lead(2, &none).await;
    put(&*successor.end, "k", "b").await.unwrap();
    primary.end.fence().await.unwrap();
    assert_eq!(write(&*primary.end, "k", "late"), Err(Refusal::ReadOnly));
    primary.stop().await;
    a.seed(&b).await;
    let follower = a.follow(&b);
    equal(&a, &b).await;
    assert_eq!(get(&*follower.end, "k"), Ok(Some("b".to_owned())));
    assert_eq!(get(&*follower.end, "lost"), Ok(None));
    assert_eq!(a.salvaged(), 1);
    follower.stop().await;
    successor.stop().await;
}

/// Damages the beginning of the node's log.
fn damage(node: &node::Node) {
    let path = node.path().join("kv/log/00000000000000000000.log");
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[80] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    node.forget();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_copy_is_set_aside_and_copied_anew_and_is_not_promoted_before() {
    let cluster = Cluster::new(|_| {});
    let (a, b) = (cluster.node("a").await, cluster.node("b").await);
    let primary = a.lead(1, &standbys(1)).await;
    let standby = b.follow(&a);
    until("it is open", || get(&*primary.end, "k").is_ok()).await;
    for number in 0..50 {
        put(&*primary.end, &format!("key {number}"), "v")
            .await
            .unwrap();
    }
    standby.stop().await;
    damage(&b);
    let epoch = Epoch {
        number: 2,
        node: "b".parse().unwrap(),
    };
    let refused = b.copy().take_over(&epoch, &NoProgress).await.unwrap_err();
    assert!(refused.to_string().contains("it was damaged"), "{refused}");
    // Nor after a restart.
    b.forget();
    let copy = b.copy();
    assert!(copy.take_over(&epoch, &NoProgress).await.is_err());
    assert_eq!(get(&copy, "key 1"), Err(Refusal::Loading));
    assert_eq!(copy.received().applied, None);
    let standby = b.follow(&a);
    equal(&a, &b).await;
    assert!(b.events().contains(&"kv_damaged".to_owned()));
    assert!(b.path().join("kv.damaged-1/log").exists());
    standby.stop().await;
    b.copy().take_over(&epoch, &NoProgress).await.unwrap();
    primary.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_original_is_refused_and_left_as_it_is() {
    let cluster = Cluster::new(|_| {});
    let a = cluster.node("a").await;
    let primary = a.lead(1, &standbys(0)).await;
    for number in 0..50 {
        put(&*primary.end, &format!("key {number}"), "v")
            .await
            .unwrap();
    }
    primary.stop().await;
    damage(&a);
    let refused = a.shipper(1, &standbys(0)).open().await.unwrap_err();
    let refused = understudy_replication::error_chain(refused.as_ref());
    assert!(refused.contains("is damaged at byte"), "{refused}");
    assert!(refused.contains("promote"), "{refused}");
    assert!(a.path().join("kv/log/00000000000000000000.log").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_on_which_nothing_happens_stays() {
    let cluster = Cluster::new(|_| {});
    let (a, b) = (cluster.node("a").await, cluster.node("b").await);
    let primary = a.lead(1, &standbys(1)).await;
    let standby = b.follow(&a);
    put(&*primary.end, "k", "v").await.unwrap();
    let linked = || primary.end.standing().standbys.len();
    assert_eq!(linked(), 1);
    // Longer than either side puts up with silence.
    let begun = std::time::Instant::now();
    until("it was quiet for long", || {
        assert_eq!(linked(), 1, "after {:?}", begun.elapsed());
        begun.elapsed() > Duration::from_secs(8)
    })
    .await;
    standby.stop().await;
    primary.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_is_gone_is_not_taken_for_an_empty_one() {
    let cluster = Cluster::new(|_| {});
    let (a, b) = (cluster.node("a").await, cluster.node("b").await);
    let primary = a.lead(1, &standbys(1)).await;
    let standby = b.follow(&a);
    put(&*primary.end, "k", "v").await.unwrap();
    equal(&a, &b).await;
    standby.stop().await;
    primary.stop().await;
    for node in [&a, &b] {
        std::fs::remove_dir_all(node.path().join("kv")).unwrap();
        node.forget();
    }
    let refused = a.shipper(1, &standbys(1)).open().await.unwrap_err();
    let refused = understudy_replication::error_chain(refused.as_ref());
    assert!(refused.contains("is gone"), "{refused}");
    // A copy is made anew, and is not promoted before.
    let epoch = Epoch {
        number: 2,
        node: "b".parse().unwrap(),
    };
    assert!(b.copy().take_over(&epoch, &NoProgress).await.is_err());
    assert!(b.events().contains(&"kv_damaged".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_primary_that_is_fenced_answers_nobody_that_it_has_written_alone() {
    let cluster = Cluster::new(|config| {
        config.durability = KvDurability::StandbyFirst {
            degrade_after: Some(Duration::from_millis(500)),
        };
    });
    let (a, b) = (cluster.node("a").await, cluster.node("b").await);
    let primary = a.lead(1, &standbys(1)).await;
    let standby = b.follow(&a);
    put(&*primary.end, "k", "both").await.unwrap();
    standby.stop().await;
    let position = write(&*primary.end, "k", "in flight").unwrap();
    primary.end.fence().await.unwrap();
    assert_eq!(primary.end.settled(position).await, Err(Refusal::Closed));
    assert!(!a.events().contains(&"kv_degraded".to_owned()));
    primary.stop().await;
}
