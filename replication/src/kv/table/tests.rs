use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

fn bytes(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

fn set(key: &str, value: &str, expires: Option<u64>) -> Operation {
    Operation::Set {
        key: bytes(key),
        value: bytes(value),
        expires: expires.map(WallTime),
    }
}

fn hash_set(key: &str, fields: &[(String, String)]) -> Operation {
    Operation::HashSet {
        key: bytes(key),
        fields: fields
            .iter()
            .map(|(field, value)| (bytes(field), bytes(value)))
            .collect(),
    }
}

fn table<'o>(operations: impl IntoIterator<Item = &'o Operation>) -> Table {
    let mut table = Table::new();
    operations
        .into_iter()
        .for_each(|operation| table.apply(operation));
    table
}

fn fields(count: usize) -> Vec<(String, String)> {
    (0..count)
        .map(|number| (format!("field{number}"), format!("value{number}")))
        .collect()
}

#[test]
fn a_key_that_is_gone_leaves_nothing_behind() {
    let mut table = Table::new();
    for operation in [
        set("a", "1", Some(5)),
        set("a", "2", Some(6)),
        hash_set("h", &fields(100)),
        Operation::Expire {
            key: bytes("h"),
            expires: Some(WallTime(5)),
        },
        set("h", "a string now", None),
        hash_set("a", &fields(1)),
        Operation::Delete { key: bytes("h") },
        Operation::HashDelete {
            key: bytes("a"),
            fields: vec![bytes("field0")],
        },
    ] {
        table.apply(&operation);
    }
    assert_eq!((table.len(), table.live_bytes(), table.bytes()), (0, 0, 0));
    assert_eq!(table.digest(), TableDigest::default());
    assert_eq!(table.expiring_len(), 0);
}

#[test]
fn every_part_of_an_item_counts_in_the_digest() {
    let contents = [
        vec![set("k", "v", None)],
        vec![set("k", "v", Some(0))],
        vec![set("k", "v", Some(1))],
        vec![set("k", "w", None)],
        vec![set("l", "v", None)],
        vec![set("kv", "", None)],
        vec![hash_set("k", &[("f".into(), "v".into())])],
        vec![hash_set("k", &[("v".into(), "f".into())])],
        vec![hash_set("f", &[("k".into(), "v".into())])],
        vec![
            hash_set("k", &[("f".into(), "v".into())]),
            Operation::Expire {
                key: bytes("k"),
                expires: Some(WallTime(1)),
            },
        ],
        vec![],
    ];
    for (index, one) in contents.iter().enumerate() {
        for (other_index, other) in contents.iter().enumerate() {
            let is_equal = table(one).digest() == table(other).digest();
            assert_eq!(is_equal, index == other_index, "{one:?} {other:?}");
        }
    }
}

#[test]
fn keys_are_due_when_their_time_has_come_and_oldest_first() {
    let table = table(&[
        set("b", "", Some(20)),
        set("a", "", Some(10)),
        set("c", "", Some(30)),
        set("d", "", None),
    ]);
    assert_eq!(table.due(WallTime(9), 9), Vec::<Bytes>::new());
    assert_eq!(table.due(WallTime(20), 9), ["a", "b"]);
    assert_eq!(table.due(WallTime(u64::MAX), 1), ["a"]);
}

#[test]
fn a_large_hash_is_walked_in_parts() {
    let table = table(&[
        hash_set("h", &fields(5000)),
        Operation::Expire {
            key: bytes("h"),
            expires: Some(WallTime(1)),
        },
    ]);
    let mut copy = Table::new();
    let (mut parts, mut cursor) = (0, None);
    loop {
        let (operations, next) = table.walk(cursor.as_ref(), 1000);
        assert!(operations.len() <= 2);
        operations
            .iter()
            .for_each(|operation| copy.apply(operation));
        parts += 1;
        cursor = next;
        if cursor.is_none() {
            break;
        }
    }
    assert!(parts > 100, "{parts}");
    assert_eq!(copy.digest(), table.digest());
}

proptest! {
    #[test]
    fn tables_of_equal_content_have_equal_digests_whatever_their_order(
        keys in prop::collection::btree_map("[a-e]{1,3}", (any::<bool>(), any::<u8>(), prop::option::of(0u64..9)), 0..20),
        removed in vec("[f-g]{1,2}", 0..5),
        seed: u64,
    ) {
        let make = |(key, (is_hash, size, expires)): (&String, &(bool, u8, Option<u64>))| {
            if *is_hash {
                let made = hash_set(key, &fields(usize::from(*size) + 1));
                vec![made, Operation::Expire { key: bytes(key), expires: expires.map(WallTime) }]
            } else {
                vec![set(key, &size.to_string(), *expires)]
            }
        };
        let forwards: Vec<_> = keys.iter().flat_map(make).collect();
        let mut backwards: Vec<_> = removed.iter().map(|key| set(key, "gone soon", Some(seed))).collect();
        backwards.extend(keys.iter().rev().flat_map(|(key, _)| [set(key, "old", Some(3)), Operation::Delete { key: bytes(key) }]));
        backwards.extend(keys.iter().rev().flat_map(make));
        backwards.extend(removed.iter().map(|key| Operation::Delete { key: bytes(key) }));
        let (one, other) = (table(&forwards), table(&backwards));
        prop_assert_eq!(one.digest(), other.digest());
        prop_assert_eq!(one.bytes(), other.bytes());
        prop_assert_eq!(one.live_bytes(), other.live_bytes());
        let (operations, next) = one.walk(None, usize::MAX);
        prop_assert!(next.is_none());
        prop_assert_eq!(table(&operations).digest(), one.digest());
    }
}
