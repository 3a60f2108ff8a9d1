use super::*;
use crate::kv::operation::{KV_ATOM_BYTES_MAX, KV_VALUE_BYTES_MAX};
use crate::position::Position;

fn writes(act: impl FnOnce(&mut Space<'_>)) -> Draft {
    let (table, mut draft) = (Table::new(), Draft::new(Position(0)));
    act(&mut Space::newest(&table, &mut draft, WallTime(100)));
    draft
}

fn commit(table: &mut Table, draft: &mut Draft) {
    while let Some(taken) = draft.take(usize::MAX) {
        taken.operations.iter().for_each(|it| table.apply(it));
        draft.settle(taken.end);
    }
}

#[test]
fn what_is_made_together_is_never_taken_apart() {
    let mut draft = writes(|space| {
        for pair in [[b"a", b"b"], [b"c", b"d"]] {
            pair.iter()
                .for_each(|key| space.set(&key[..], b"value", None).unwrap());
            space.end_atom();
        }
        space.set(b"e", b"not complete", None).unwrap();
    });
    let taken = draft.take(1).unwrap();
    assert_eq!((taken.start, taken.end), (Position(0), Position(2)));
    let taken = draft.take(usize::MAX).unwrap();
    assert_eq!((taken.start, taken.end), (Position(2), Position(4)));
    assert_eq!(draft.take(usize::MAX), None);
    assert_eq!(draft.end(), Position(5));
}

#[test]
fn what_is_too_large_is_refused_and_changes_nothing() {
    let large = vec![0; KV_VALUE_BYTES_MAX];
    let draft = writes(|space| {
        assert_eq!(
            space.set(b"k", &vec![0; KV_VALUE_BYTES_MAX + 1], None),
            Err(SpaceError::TooLarge)
        );
        assert_eq!(space.set(&large, b"", None), Err(SpaceError::TooLarge));
        assert_eq!(
            space.hash_set(b"k", &[(&large, b"")]),
            Err(SpaceError::TooLarge)
        );
        assert!(space.is_empty());
        space.set(b"1", &large, None).unwrap();
        space.set(b"2", &large, None).unwrap();
        assert_eq!(space.set(b"3", &large, None), Err(SpaceError::TooLarge));
        space.end_atom();
        space.set(b"3", &large, None).unwrap();
    });
    assert!(draft.open_bytes() <= KV_ATOM_BYTES_MAX);
    assert_eq!(draft.end(), Position(3));
}

#[test]
fn without_memory_nothing_is_added_and_everything_can_be_removed() {
    let (mut table, mut draft) = (Table::new(), Draft::new(Position(0)));
    let mut space = Space::newest(&table, &mut draft, WallTime(100)).bounded(0);
    // What is made together is refused as a whole or not at all.
    space.set(b"s", &[0; 1000], None).unwrap();
    space.hash_set(b"h", &[(b"f", b"v"), (b"g", b"v")]).unwrap();
    space.set(b"x", b"v", Some(WallTime(150))).unwrap();
    space.end_atom();
    assert_eq!(space.set(b"k", b"v", None), Err(SpaceError::OutOfMemory));
    commit(&mut table, &mut draft);
    let full = table.bytes();

    let mut space = Space::newest(&table, &mut draft, WallTime(200)).bounded(full - 1);
    let oom = Err(SpaceError::OutOfMemory);
    assert_eq!(space.set(b"s", b"", None), oom);
    assert_eq!(space.check_sets([(&b"s"[..], &b""[..])].into_iter()), oom);
    assert_eq!(
        space.hash_set(b"h", &[(b"f", b"")]),
        Err(SpaceError::OutOfMemory)
    );
    assert_eq!(
        SpaceError::OutOfMemory.to_string(),
        "OOM command not allowed when used memory > 'maxmemory'."
    );
    assert!(space.purge(b"x").unwrap());
    assert_eq!(space.hash_delete(b"h", &[b"f"]), Ok(1));
    assert!(space.expire(b"h", Some(WallTime(500))).unwrap());
    assert!(space.delete(b"s").unwrap());
    space.end_atom();
    commit(&mut table, &mut draft);
    let mut space = Space::newest(&table, &mut draft, WallTime(200)).bounded(full - 1);
    space.set(b"k", b"v", None).unwrap();
}

#[test]
fn nothing_can_be_changed_in_what_is_visible() {
    let table = Table::new();
    let mut space = Space::visible(&table, WallTime(0));
    assert_eq!(space.set(b"k", b"v", None), Err(SpaceError::ReadOnly));
    assert_eq!(space.clear(), Err(SpaceError::ReadOnly));
    assert_eq!(space.watch(b"k").unwrap_err(), SpaceError::ReadOnly);
}

#[test]
fn who_watches_a_key_hears_of_every_change_and_of_nothing_else() {
    type Act = fn(&mut Space<'_>);
    let acts: [(Act, bool); 9] = [
        (
            |space| assert_eq!(space.kind(b"k"), Some(Kind::String)),
            false,
        ),
        (|space| space.set(b"other", b"v", None).unwrap(), false),
        (|space| space.set(b"k", b"v", None).unwrap(), true),
        (|space| assert!(space.delete(b"k").unwrap()), true),
        (|space| assert!(!space.delete(b"absent").unwrap()), false),
        (
            |space| assert!(space.expire(b"k", Some(WallTime(500))).unwrap()),
            true,
        ),
        (|space| space.clear().unwrap(), true),
        (
            |space| {
                assert!(space.delete(b"k").unwrap());
                space.set(b"k", b"old", None).unwrap();
            },
            true,
        ),
        (|space| assert!(!space.purge(b"k").unwrap()), false),
    ];
    for (index, (act, is_change)) in acts.into_iter().enumerate() {
        let (table, mut draft) = (Table::new(), Draft::new(Position(0)));
        let mut space = Space::newest(&table, &mut draft, WallTime(100));
        space.set(b"k", b"old", None).unwrap();
        let watch = space.watch(b"k").unwrap();
        act(&mut space);
        assert_eq!(space.is_touched(&watch), is_change, "act {index}");
    }
}

#[test]
fn who_watches_a_key_hears_that_it_expired_once_it_has() {
    let (table, mut draft) = (Table::new(), Draft::new(Position(0)));
    let mut space = Space::newest(&table, &mut draft, WallTime(100));
    space.set(b"k", b"v", Some(WallTime(200))).unwrap();
    let watch = space.watch(b"k").unwrap();
    assert!(!space.is_touched(&watch));
    let mut space = Space::newest(&table, &mut draft, WallTime(200));
    assert!(space.is_touched(&watch));
    let late = space.watch(b"k").unwrap();
    assert!(space.purge(b"k").unwrap());
    assert!(
        !space.is_touched(&late),
        "it was gone already when the watch began"
    );
    space.set(b"k", b"again", None).unwrap();
    assert!(space.is_touched(&late));
}

#[test]
fn a_watch_that_is_over_leaves_nothing_behind() {
    let (table, mut draft) = (Table::new(), Draft::new(Position(0)));
    for round in 0..10_000u32 {
        let mut space = Space::newest(&table, &mut draft, WallTime(100));
        drop(space.watch(&round.to_le_bytes()).unwrap());
    }
    let live = Space::newest(&table, &mut draft, WallTime(100))
        .watch(b"live")
        .unwrap();
    assert!(draft.watch_count() < 1000);
    draft.reset(Position(3));
    assert!(live.is_touched());
}

#[test]
fn a_watch_of_a_store_that_was_opened_again_counts_as_touched() {
    let (table, mut draft) = (Table::new(), Draft::new(Position(0)));
    let mut space = Space::newest(&table, &mut draft, WallTime(100));
    let watch = space.watch(b"k").unwrap();
    assert!(!space.is_touched(&watch));
    // Whatever was changed between both, nobody has told the watch.
    let mut other = Draft::new(Position(0));
    let space = Space::newest(&table, &mut other, WallTime(100));
    assert!(space.is_touched(&watch));
}

#[test]
fn a_hash_that_was_copied_while_its_fields_changed_keeps_its_expiry() {
    let (mut table, mut draft) = (Table::new(), Draft::new(Position(0)));
    let mut space = Space::newest(&table, &mut draft, WallTime(100));
    space.hash_set(b"h", &[(b"a", b""), (b"g", b"")]).unwrap();
    space.expire(b"h", Some(WallTime(500))).unwrap();
    let before = draft.end();
    let mut space = Space::newest(&table, &mut draft, WallTime(100));
    space.hash_delete(b"h", &[b"a"]).unwrap();
    space.hash_set(b"h", &[(b"a", b"")]).unwrap();
    space.hash_delete(b"h", &[b"g"]).unwrap();
    space.end_atom();
    let taken = draft.take(usize::MAX).unwrap();
    taken
        .operations
        .iter()
        .for_each(|operation| table.apply(operation));

    // The copy was begun before the fields changed, and came to the hash after that: deleting `a` from it
    // again leaves nothing for a moment.
    let mut copy = Table::new();
    let (copied, _) = table.walk(None, usize::MAX);
    let changed = taken
        .operations
        .iter()
        .skip(usize::try_from(before.0).unwrap());
    copied
        .iter()
        .chain(changed)
        .for_each(|operation| copy.apply(operation));
    assert_eq!(copy.digest(), table.digest());
}
