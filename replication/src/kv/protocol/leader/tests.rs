use std::num::NonZeroUsize;
use std::time::Duration;

use super::*;
use crate::kv::point::Point;

const DEGRADE_AFTER: Duration = Duration::from_secs(5);
const WRITE_TIMEOUT: Duration = Duration::from_secs(3);

fn node(name: &str) -> NodeName {
    name.parse().unwrap()
}

fn policy(acknowledge: usize, degrade_after: Option<Duration>) -> Policy {
    Policy {
        mode: Mode::StandbyFirst {
            acknowledge: NonZeroUsize::new(acknowledge).unwrap(),
            degrade_after,
            write_timeout: WRITE_TIMEOUT,
        },
        standbys: 2,
        near: 10,
    }
}

/// A leader whose log ended at 100, of which 90 are known to be committed, and that has opened a run.
struct Scene {
    leader: Leader,
    now: Instant,
}

impl Scene {
    fn restarted(policy: Policy) -> Self {
        Self::started(policy, Position(90))
    }

    fn started(policy: Policy, committed: Position) -> Self {
        let now = Instant::now();
        let start = Start {
            epoch: Epoch::first(node("a")),
            opened: Position(100),
            end: Position(101),
            committed,
            session: Session(7),
        };
        let (leader, _) = Leader::new(start, policy, now);
        Self { leader, now }
    }

    /// With one standby that has everything.
    fn held(policy: Policy) -> (Self, Session) {
        let mut scene = Self::restarted(policy);
        let session = scene.join("b", 101);
        assert_eq!(scene.leader.durability(), Durability::Held);
        (scene, session)
    }

    fn join(&mut self, name: &str, matched: u64) -> Session {
        let epoch = self.leader.epoch().clone();
        let joined = self
            .leader
            .join(&node(name), Some(&epoch), Position(matched), self.now);
        joined.unwrap().0
    }

    fn acknowledge(&mut self, name: &str, session: Session, upto: u64) -> Vec<LeaderAction> {
        self.leader
            .acknowledged(&node(name), session, Position(upto), self.now)
    }

    fn write(&mut self, end: u64) -> Vec<LeaderAction> {
        let mut actions = self.leader.appended(Position(end), self.now);
        actions.extend(self.leader.synced(Position(end), self.now));
        actions
    }

    fn wait(&mut self, time: Duration) -> Vec<LeaderAction> {
        self.now += time;
        self.leader.tick(self.now)
    }
}

#[test]
fn a_write_is_committed_when_it_is_durable_here_and_on_a_standby() {
    let (mut scene, session) = Scene::held(policy(1, None));
    assert_eq!(scene.leader.appended(Position(105), scene.now), []);
    assert_eq!(scene.acknowledge("b", session, 105), []);
    assert_eq!(
        scene.leader.synced(Position(105), scene.now),
        [LeaderAction::Commit(Position(105))]
    );
    assert_eq!(scene.write(106), []);
    assert_eq!(
        scene.acknowledge("b", session, 106),
        [LeaderAction::Commit(Position(106))]
    );
    assert_eq!(scene.leader.at_risk(), 0);
}

#[test]
fn two_demanded_standbys_are_waited_for() {
    let (mut scene, b) = Scene::held(policy(1, None));
    let c = scene.join("c", 101);
    scene.leader.regulate(policy(2, None), scene.now);
    scene.write(110);
    assert_eq!(scene.acknowledge("b", b, 110), []);
    assert_eq!(
        scene.acknowledge("c", c, 104),
        [LeaderAction::Commit(Position(104))]
    );
}

#[test]
fn a_standby_that_claims_more_than_there_is_is_believed_what_there_is() {
    let (mut scene, session) = Scene::held(policy(1, None));
    scene.acknowledge("b", session, 1_000);
    assert_eq!(scene.write(110), []);
    assert_eq!(scene.leader.committed(), Position(101));
}

#[test]
fn an_acknowledgement_of_a_session_that_is_over_counts_for_nothing() {
    let (mut scene, old) = Scene::held(policy(1, None));
    scene.write(110);
    let new = scene.join("b", 101);
    assert_ne!(old, new);
    assert_eq!(scene.acknowledge("b", old, 110), []);
    assert_eq!(scene.leader.left(&node("b"), old, scene.now), []);
    assert_eq!(scene.leader.durability(), Durability::Held);
}

#[test]
fn a_standby_that_has_promised_to_follow_another_is_not_taken_in() {
    let mut scene = Scene::restarted(policy(1, None));
    let higher = scene.leader.epoch().superseded_by(node("b"));
    let joined = scene
        .leader
        .join(&node("b"), Some(&higher), Position(101), scene.now);
    assert_eq!(joined, None);
}

#[test]
fn what_a_standby_had_before_it_promised_to_follow_counts_once_it_acknowledges_it() {
    let mut scene = Scene::started(policy(1, None), Position(100));
    let joined = scene.leader.join(&node("b"), None, Position(95), scene.now);
    let session = joined.unwrap().0;
    assert_eq!(scene.leader.at_risk(), 100);
    scene.acknowledge("b", session, 95);
    assert_eq!(scene.leader.at_risk(), 5);
}

#[test]
fn a_restarted_primary_serves_nothing_before_the_fate_of_its_tail_is_known() {
    let mut scene = Scene::restarted(policy(1, Some(DEGRADE_AFTER)));
    assert!(!scene.leader.is_open() && !scene.leader.takes_writes());
    // Acknowledging what another run has written decides nothing.
    let session = scene.join("b", 95);
    assert_eq!(scene.acknowledge("b", session, 100), []);
    assert!(!scene.leader.is_open());
    assert_eq!(
        scene.acknowledge("b", session, 101),
        [LeaderAction::Commit(Position(101)), LeaderAction::Open]
    );
    assert_eq!(scene.leader.durability(), Durability::Held);
}

#[test]
fn a_restarted_primary_opens_alone_when_nobody_comes() {
    let mut scene = Scene::restarted(policy(1, Some(DEGRADE_AFTER)));
    assert_eq!(scene.leader.deadline(), Some(scene.now + DEGRADE_AFTER));
    assert_eq!(
        scene.wait(DEGRADE_AFTER),
        [
            LeaderAction::Degrade { from: Position(90) },
            LeaderAction::Commit(Position(101)),
            LeaderAction::Open
        ]
    );
    assert_eq!(scene.leader.at_risk(), 101);
}

#[test]
fn a_promoted_standby_serves_at_once_and_does_not_claim_that_others_have_it() {
    let scene = Scene::started(policy(1, None), Position(100));
    assert!(scene.leader.is_open() && scene.leader.takes_writes());
    assert_eq!(
        scene.leader.durability(),
        Durability::Waiting { since: scene.now }
    );
    assert_eq!(scene.leader.at_risk(), 100);
}

#[test]
fn a_silent_standby_is_given_up_and_waited_for_again_when_it_has_caught_up() {
    let (mut scene, session) = Scene::held(policy(1, Some(DEGRADE_AFTER)));
    scene.write(150);
    assert_eq!(scene.wait(DEGRADE_AFTER / 2), []);
    assert_eq!(
        scene.wait(DEGRADE_AFTER / 2),
        [
            LeaderAction::Degrade {
                from: Position(101)
            },
            LeaderAction::Commit(Position(150))
        ]
    );
    assert_eq!(scene.leader.at_risk(), 49);
    assert_eq!(scene.write(160), [LeaderAction::Commit(Position(160))]);
    assert_eq!(scene.acknowledge("b", session, 149), []);
    // Near enough to be waited for, but it lacks some of what was committed alone.
    assert_eq!(scene.acknowledge("b", session, 150), [LeaderAction::Rejoin]);
    assert_eq!(scene.leader.at_risk(), 10);
    assert_eq!(scene.write(170), []);
    assert_eq!(scene.acknowledge("b", session, 159), []);
    assert_eq!(
        scene.acknowledge("b", session, 170),
        [LeaderAction::Commit(Position(170)), LeaderAction::Recover]
    );
    assert_eq!(scene.leader.durability(), Durability::Held);
}

#[test]
fn a_standby_whose_disk_hangs_is_not_waited_for_because_its_link_came_back() {
    let (mut scene, _) = Scene::held(policy(1, Some(DEGRADE_AFTER)));
    scene.write(105);
    scene.wait(DEGRADE_AFTER);
    // Within the distance, and silent.
    scene.join("b", 101);
    assert_eq!(scene.write(106), [LeaderAction::Commit(Position(106))]);
}

#[test]
fn a_slow_standby_is_not_given_up_while_it_acknowledges() {
    let (mut scene, session) = Scene::held(policy(1, Some(DEGRADE_AFTER)));
    scene.write(150);
    for upto in 102..150 {
        assert_eq!(scene.wait(DEGRADE_AFTER * 9 / 10), []);
        assert_eq!(
            scene.acknowledge("b", session, upto),
            [LeaderAction::Commit(Position(upto))]
        );
    }
}

#[test]
fn waiting_for_the_own_disk_is_no_reason_to_do_without_standbys() {
    let (mut scene, session) = Scene::held(policy(1, Some(DEGRADE_AFTER)));
    scene.leader.appended(Position(110), scene.now);
    scene.acknowledge("b", session, 110);
    assert_eq!(scene.wait(DEGRADE_AFTER * 3), []);
    assert_eq!(scene.leader.deadline(), None);
}

#[test]
fn with_never_writes_are_refused_once_the_oldest_has_waited_long_enough() {
    let (mut scene, session) = Scene::held(policy(1, None));
    scene.write(110);
    scene.now += WRITE_TIMEOUT / 2;
    scene.write(120);
    assert_eq!(scene.wait(WRITE_TIMEOUT / 2), [LeaderAction::Refuse]);
    assert!(scene.leader.is_open() && !scene.leader.takes_writes());
    assert_eq!(scene.wait(WRITE_TIMEOUT * 100), []);
    assert_eq!(scene.leader.committed(), Position(101));
    // The second has waited too long as well.
    assert_eq!(
        scene.acknowledge("b", session, 110),
        [LeaderAction::Commit(Position(110))]
    );
    assert_eq!(
        scene.acknowledge("b", session, 120),
        [LeaderAction::Commit(Position(120)), LeaderAction::Accept]
    );
}

#[test]
fn a_primary_without_standbys_commits_alone_and_the_first_standby_does_not_stop_it() {
    let alone = Policy {
        standbys: 0,
        ..policy(1, None)
    };
    let mut scene = Scene::restarted(alone);
    assert_eq!(scene.leader.durability(), Durability::Standalone);
    assert!(scene.leader.is_open());
    assert_eq!(scene.leader.at_risk(), 0);
    scene.write(500);
    scene.leader.regulate(policy(1, None), scene.now);
    let session = scene.join("b", 0);
    assert_eq!(scene.write(510), [LeaderAction::Commit(Position(510))]);
    assert_eq!(scene.leader.at_risk(), 510);
    assert_eq!(
        scene.acknowledge("b", session, 510),
        [LeaderAction::Rejoin, LeaderAction::Recover]
    );
    // From here on it is strict.
    assert_eq!(scene.write(520), []);
}

#[test]
fn async_commits_what_is_durable_here_and_tells_what_no_standby_has() {
    let (mut scene, session) = Scene::held(policy(1, None));
    scene.write(150);
    let policy = Policy {
        mode: Mode::Async,
        ..policy(1, None)
    };
    assert_eq!(
        scene.leader.regulate(policy, scene.now),
        [LeaderAction::Commit(Position(150))]
    );
    scene.acknowledge("b", session, 120);
    assert_eq!(scene.leader.at_risk(), 30);
}

#[test]
fn a_standby_that_leaves_still_has_what_it_had() {
    let (mut scene, session) = Scene::held(policy(1, Some(DEGRADE_AFTER)));
    scene.leader.left(&node("b"), session, scene.now);
    assert_eq!(
        scene.leader.durability(),
        Durability::Waiting { since: scene.now }
    );
    assert_eq!(scene.leader.at_risk(), 0);
    // Nothing waits for it yet.
    assert_eq!(scene.wait(DEGRADE_AFTER * 2), []);
    scene.leader.forget(&node("b"), scene.now);
    assert_eq!(scene.leader.at_risk(), 101);
}

#[test]
fn more_appends_than_are_remembered_apart_are_not_forgotten() {
    let (mut scene, session) = Scene::held(policy(1, None));
    for end in 102..5_000 {
        scene.write(end);
    }
    assert!(scene.leader.appends.len() <= APPENDS_MAX);
    scene.acknowledge("b", session, 4_998);
    assert_eq!(scene.wait(WRITE_TIMEOUT), [LeaderAction::Refuse]);
}

#[test]
fn a_leader_that_is_not_open_gives_its_table_only_to_who_has_nothing_beyond_it() {
    let point = |position| Point {
        position: Position(position),
        ..Point::ORIGIN
    };
    let sketch = |position| Sketch::try_from(vec![point(position)]).unwrap();
    let mut scene = Scene::restarted(policy(1, None));
    assert!(!scene.leader.may_send_snapshot(Position(90), &sketch(95)));
    assert!(scene.leader.may_send_snapshot(Position(90), &sketch(90)));
    scene.join("c", 101);
    assert!(scene.leader.is_open());
    assert!(scene.leader.may_send_snapshot(Position(101), &sketch(500)));
}
