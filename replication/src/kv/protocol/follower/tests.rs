use super::*;
use understudy_config::NodeName;

fn epoch(number: u64) -> Epoch {
    let node: NodeName = "a".parse().unwrap();
    Epoch { number, node }
}

fn digest(of: u8) -> EntryDigest {
    EntryDigest([of; 32])
}

/// An entry of ten operations whose digest is `of`, behind the one whose digest is `previous`.
fn entry(start: u64, previous: u8, of: u8) -> EntryHead {
    EntryHead {
        epoch: epoch(1),
        opened: Position(0),
        start: Position(start),
        end: Position(start + 10),
        previous: digest(previous),
        committed: Position(0),
        digest: digest(of),
    }
}

fn point(position: u64, of: u8) -> Point {
    Point {
        position: Position(position),
        epoch: Some(epoch(1)),
        digest: digest(of),
    }
}

const SESSION: Session = Session(3);

fn welcome(attempt: Attempt, from: Point) -> Welcome {
    Welcome {
        attempt,
        session: SESSION,
        epoch: epoch(2),
        from,
        end: Position(1000),
    }
}

/// A follower with a log up to 40, a table up to 30, and a session from 20 on.
fn streaming() -> Follower {
    let kept = Kept {
        base: Position(0),
        tail: Position(40),
        applied: Position(30),
    };
    let mut follower = Follower::new(kept, Some(epoch(1)), Attempt(5));
    let attempt = follower.connect();
    let actions = follower.welcomed(&welcome(attempt, point(20, 2)), Some(digest(2)));
    assert_eq!(actions, [acknowledge(20)]);
    follower
}

fn acknowledge(position: u64) -> FollowerAction {
    FollowerAction::Acknowledge {
        session: SESSION,
        position: Position(position),
    }
}

#[test]
fn equal_entries_are_acknowledged_and_not_written_again() {
    let mut follower = streaming();
    let actions = follower.offered(SESSION, &entry(20, 2, 3), Some(digest(3)));
    assert_eq!(actions, [FollowerAction::Have, acknowledge(30)]);
}

#[test]
fn a_new_entry_is_acknowledged_once_it_is_durable_and_applied_once_it_is_committed() {
    let mut follower = streaming();
    follower.offered(SESSION, &entry(20, 2, 3), Some(digest(3)));
    follower.offered(SESSION, &entry(30, 3, 4), Some(digest(4)));
    let actions = follower.offered(SESSION, &entry(40, 4, 5), None);
    assert_eq!(actions, [FollowerAction::Append]);
    assert_eq!(
        follower.committed(SESSION, Position(50)),
        [FollowerAction::Apply(Position(40))]
    );
    assert_eq!(
        follower.synced(Position(50)),
        [acknowledge(50), FollowerAction::Apply(Position(50))]
    );
}

#[test]
fn what_differs_is_cut_once_and_the_table_rebuilt_if_it_held_some_of_it() {
    let mut follower = streaming();
    let actions = follower.offered(SESSION, &entry(20, 2, 9), Some(digest(3)));
    assert_eq!(
        actions,
        [
            FollowerAction::Cut {
                to: point(20, 2),
                rebuild: true
            },
            FollowerAction::Append
        ]
    );
    assert_eq!(follower.applied(), Position(20));
    let actions = follower.offered(SESSION, &entry(30, 9, 10), None);
    assert_eq!(actions, [FollowerAction::Append]);
    // What the disk had before the cut counts for nothing.
    assert_eq!(follower.synced(Position(30)), [acknowledge(30)]);
}

#[test]
fn a_cut_below_the_own_snapshot_is_no_cut() {
    let mut follower = streaming();
    follower.rebased(Position(30));
    let actions = follower.offered(SESSION, &entry(20, 2, 9), Some(digest(3)));
    assert_eq!(actions, [FollowerAction::NeedSnapshot]);
    assert_eq!(follower.session(), None);
}

#[test]
fn a_gap_or_a_broken_chain_ends_the_session_and_is_never_appended() {
    for head in [entry(30, 3, 4), entry(20, 7, 3)] {
        let mut follower = streaming();
        let actions = follower.offered(SESSION, &head, None);
        assert_eq!(actions, [FollowerAction::Reopen], "{head:?}");
        let again = follower.offered(SESSION, &entry(20, 2, 3), Some(digest(3)));
        assert_eq!(again, []);
    }
}

#[test]
fn what_another_session_or_a_lower_epoch_says_changes_nothing() {
    let mut follower = streaming();
    let other = Session(4);
    assert_eq!(follower.offered(other, &entry(20, 2, 9), None), []);
    assert_eq!(follower.committed(other, Position(40)), []);
    follower.promise(&epoch(3));
    assert_eq!(follower.offered(SESSION, &entry(20, 2, 9), None), []);
    let attempt = follower.connect();
    follower.welcomed(&welcome(attempt, point(20, 2)), Some(digest(2)));
    assert_eq!(follower.session(), None, "the welcome was of epoch 2");
}

#[test]
fn a_welcome_to_an_older_try_or_from_a_point_that_is_not_there_is_not_followed() {
    let mut follower = streaming();
    let old = follower.connect();
    let new = follower.connect();
    follower.welcomed(&welcome(old, point(20, 2)), Some(digest(2)));
    assert_eq!(follower.session(), None);
    let actions = follower.welcomed(&welcome(new, point(20, 2)), Some(digest(8)));
    assert_eq!(actions, [FollowerAction::Reopen]);
}

#[test]
fn an_installed_snapshot_is_the_whole_log_and_table() {
    let mut follower = streaming();
    follower.installed(&point(500, 7));
    assert_eq!(follower.applied(), Position(500));
    let attempt = follower.connect();
    follower.welcomed(&welcome(attempt, point(500, 7)), Some(digest(7)));
    let actions = follower.offered(SESSION, &entry(500, 7, 8), None);
    assert_eq!(actions, [FollowerAction::Append]);
}
