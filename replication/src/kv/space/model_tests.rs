use std::collections::BTreeMap;

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::kv::draft::Taken;
use crate::kv::operation::Operation;
use crate::position::Position;

/// What a key is in the model.
#[derive(Clone, Debug, PartialEq)]
enum Value {
    String(Vec<u8>),
    Hash(BTreeMap<Vec<u8>, Vec<u8>>),
}

/// The whole store in the simplest form: nothing pending, expired keys gone at once.
#[derive(Clone, Debug, Default, PartialEq)]
struct Model(BTreeMap<Vec<u8>, (Value, Option<WallTime>)>);

impl Model {
    fn forget_expired(&mut self, now: WallTime) {
        self.0
            .retain(|_, (_, expires)| expires.is_none_or(|expires| expires > now));
    }
}

#[derive(Clone, Debug)]
enum Step {
    Set(u8, u8, Option<u8>),
    Delete(u8),
    HashSet(u8, Vec<(u8, u8)>),
    HashDelete(u8, Vec<u8>),
    Expire(u8, Option<u8>),
    Clear,
    Purge(u8),
    EndAtom,
    /// Time goes on.
    Wait(u8),
    /// The committer takes some.
    Take(u16),
    /// Some of what was taken is committed, and settled then or with the next.
    Commit(u8, bool),
    /// A snapshot is begun, or goes on.
    Walk(u8),
}

fn step() -> impl Strategy<Value = Step> {
    let key = || 0u8..5;
    let field = || prop_oneof![4 => 0u8..4, 1 => any::<u8>()];
    let time = || prop::option::weighted(0.4, 0u8..30);
    prop_oneof![
        6 => (key(), any::<u8>(), time()).prop_map(|(key, value, time)| Step::Set(key, value, time)),
        4 => key().prop_map(Step::Delete),
        9 => (key(), vec((field(), any::<u8>()), 1..6)).prop_map(|(key, fields)| Step::HashSet(key, fields)),
        1 => (key(), vec((any::<u8>(), any::<u8>()), 60)).prop_map(|(key, fields)| Step::HashSet(key, fields)),
        7 => (key(), vec(field(), 1..4)).prop_map(|(key, fields)| Step::HashDelete(key, fields)),
        4 => (key(), time()).prop_map(|(key, time)| Step::Expire(key, time)),
        1 => Just(Step::Clear),
        1 => key().prop_map(Step::Purge),
        3 => Just(Step::EndAtom),
        2 => (0u8..5).prop_map(Step::Wait),
        5 => any::<u16>().prop_map(Step::Take),
        6 => (1u8..20, any::<bool>()).prop_map(|(count, settles)| Step::Commit(count, settles)),
        4 => any::<u8>().prop_map(Step::Walk),
    ]
}

fn read(space: &Space<'_>, keys: impl Iterator<Item = u8>) -> Model {
    let mut model = Model::default();
    for key in keys.map(|key| vec![key]) {
        let Some(kind) = space.kind(&key) else {
            assert_eq!(space.expires(&key), None);
            continue;
        };
        let value = match kind {
            Kind::String => {
                assert_eq!(space.hash(&key).unwrap_err(), SpaceError::WrongKind);
                Value::String(space.string(&key).unwrap().unwrap().to_vec())
            }
            Kind::Hash => {
                assert_eq!(space.string(&key).unwrap_err(), SpaceError::WrongKind);
                let hash = space.hash(&key).unwrap().unwrap();
                let mut fields = BTreeMap::new();
                hash.visit(&mut |field, value| {
                    assert_eq!(hash.get(field), Some(value));
                    assert_eq!(fields.insert(field.to_vec(), value.to_vec()), None);
                });
                assert_eq!(hash.field_count(), fields.len());
                let mut cursor = 0;
                let mut scanned = BTreeMap::new();
                loop {
                    cursor = hash.scan(cursor, 3, &mut |field, value| {
                        assert_eq!(scanned.insert(field.to_vec(), value.to_vec()), None);
                    });
                    if cursor == 0 {
                        break;
                    }
                }
                assert_eq!(scanned, fields);
                Value::Hash(fields)
            }
        };
        let expires = space.expires(&key).unwrap();
        model.0.insert(key, (value, expires));
    }
    let mut scanned = Vec::new();
    let mut cursor = 0;
    loop {
        cursor = space.scan(cursor, 2, &mut |key, kind| {
            scanned.push((key.to_vec(), kind))
        });
        if cursor == 0 {
            break;
        }
    }
    scanned.sort_by(|a, b| a.0.cmp(&b.0));
    let kinds = model.0.iter().map(|(key, (value, _))| match value {
        Value::String(_) => (key.clone(), Kind::String),
        Value::Hash(_) => (key.clone(), Kind::Hash),
    });
    assert_eq!(scanned, kinds.collect::<Vec<_>>());
    model
}

/// A store whose committer is a series of steps.
struct Store {
    table: Table,
    draft: Draft,
    now: WallTime,
    /// What was taken and is not committed.
    taken: std::collections::VecDeque<Operation>,
    committed: Position,
    /// What was committed, all of it.
    log: Vec<Operation>,
    model: Model,
    /// Where in the log the snapshot began, what it has, and where it goes on.
    snapshot: Option<(usize, Vec<Operation>, Option<crate::kv::table::Cursor>)>,
}

impl Store {
    fn new() -> Self {
        Self {
            table: Table::new(),
            draft: Draft::new(Position(7)),
            now: WallTime(1000),
            taken: Default::default(),
            committed: Position(7),
            log: Vec::new(),
            model: Model::default(),
            snapshot: None,
        }
    }

    fn space(&mut self) -> Space<'_> {
        Space::newest(&self.table, &mut self.draft, self.now)
    }

    fn time(&self, offset: Option<u8>) -> Option<WallTime> {
        offset.map(|offset| WallTime(self.now.0 + u64::from(offset)))
    }

    fn step(&mut self, step: Step) {
        self.model.forget_expired(self.now);
        match step {
            Step::Set(key, value, time) => {
                let expires = self.time(time);
                self.space().set(&[key], &[value], expires).unwrap();
                self.model
                    .0
                    .insert(vec![key], (Value::String(vec![value]), expires));
            }
            Step::Delete(key) => {
                let was = self.space().delete(&[key]).unwrap();
                assert_eq!(was, self.model.0.remove(&vec![key]).is_some());
            }
            Step::HashSet(key, fields) => {
                let bytes: Vec<_> = fields
                    .iter()
                    .map(|(field, value)| ([*field], [*value]))
                    .collect();
                let pairs: Vec<_> = bytes
                    .iter()
                    .map(|(field, value)| (&field[..], &value[..]))
                    .collect();
                let outcome = self.space().hash_set(&[key], &pairs);
                let fresh = (Value::Hash(BTreeMap::new()), None);
                let (value, _) = self.model.0.entry(vec![key]).or_insert(fresh);
                let Value::Hash(hash) = value else {
                    assert_eq!(outcome, Err(SpaceError::WrongKind));
                    return;
                };
                let before = hash.len();
                hash.extend(
                    fields
                        .iter()
                        .map(|(field, value)| (vec![*field], vec![*value])),
                );
                assert_eq!(outcome, Ok(hash.len() - before));
            }
            Step::HashDelete(key, fields) => {
                let bytes: Vec<_> = fields.iter().map(|field| [*field]).collect();
                let named: Vec<_> = bytes.iter().map(|field| &field[..]).collect();
                let outcome = self.space().hash_delete(&[key], &named);
                match self.model.0.get_mut(&vec![key]) {
                    None => assert_eq!(outcome, Ok(0)),
                    Some((Value::String(_), _)) => assert_eq!(outcome, Err(SpaceError::WrongKind)),
                    Some((Value::Hash(hash), _)) => {
                        let before = hash.len();
                        hash.retain(|field, _| !fields.contains(&field[0]));
                        assert_eq!(outcome, Ok(before - hash.len()));
                        if hash.is_empty() {
                            self.model.0.remove(&vec![key]);
                        }
                    }
                }
            }
            Step::Expire(key, time) => {
                let expires = self.time(time);
                let was = self.space().expire(&[key], expires).unwrap();
                let entry = self.model.0.get_mut(&vec![key]);
                assert_eq!(was, entry.is_some());
                if let Some((_, own)) = entry {
                    *own = expires;
                }
            }
            Step::Clear => {
                self.space().clear().unwrap();
                self.model = Model::default();
            }
            Step::Purge(key) => {
                self.space().purge(&[key]).unwrap();
            }
            Step::EndAtom => self.draft.end_atom(),
            Step::Wait(time) => self.now.0 += u64::from(time),
            Step::Take(bytes) => {
                let Some(Taken {
                    start,
                    end,
                    operations,
                }) = self.draft.take(bytes.into())
                else {
                    return;
                };
                assert_eq!(end.0 - start.0, operations.len() as u64);
                assert_eq!(start.0, self.committed.0 + self.taken.len() as u64);
                self.taken.extend(operations);
            }
            Step::Commit(count, settles) => {
                for _ in 0..count {
                    let Some(operation) = self.taken.pop_front() else {
                        break;
                    };
                    self.table.apply(&operation);
                    self.committed.0 += 1;
                    self.log.push(operation);
                }
                if settles {
                    self.draft.settle(self.committed);
                }
            }
            Step::Walk(bytes) => {
                let (_, operations, cursor) = self
                    .snapshot
                    .get_or_insert_with(|| (self.log.len(), Vec::new(), None));
                let is_complete = !operations.is_empty() && cursor.is_none();
                if !is_complete {
                    let (part, next) = self.table.walk(cursor.as_ref(), bytes.into());
                    operations.extend(part);
                    *cursor = next;
                    // An empty table is complete at once, and begun anew with the next step.
                    if operations.is_empty() {
                        self.snapshot = None;
                    }
                }
            }
        }
    }

    fn settle_everything(&mut self) {
        self.draft.end_atom();
        if let Some(taken) = self.draft.take(usize::MAX) {
            self.taken.extend(taken.operations);
        }
        self.step(Step::Commit(u8::MAX, true));
        while !self.taken.is_empty() {
            self.step(Step::Commit(u8::MAX, true));
        }
    }

    /// Makes the table from the snapshot and the log behind its start.
    fn restored(&mut self) -> Option<Table> {
        let (start, mut operations, mut cursor) = self.snapshot.take()?;
        while let Some(next) = cursor.take() {
            let (part, next) = self.table.walk(Some(&next), 50);
            operations.extend(part);
            cursor = next;
        }
        let mut table = Table::new();
        operations
            .iter()
            .chain(&self.log[start..])
            .for_each(|operation| table.apply(operation));
        Some(table)
    }
}

fn keys() -> impl Iterator<Item = u8> {
    0..5
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn commands_see_what_they_would_see_without_a_draft(steps in vec(step(), 0..120)) {
        let mut store = Store::new();
        for step in steps {
            store.step(step);
            store.model.forget_expired(store.now);
            let model = store.model.clone();
            prop_assert_eq!(read(&store.space(), keys()), model);
            prop_assert!(store.space().len() >= store.model.0.len());
        }
        store.settle_everything();
        prop_assert_eq!(store.draft.pending_bytes(), 0);
        prop_assert_eq!(store.draft.untaken_bytes(), 0);
        prop_assert_eq!(store.draft.end(), store.committed);
        prop_assert_eq!(read(&Space::visible(&store.table, store.now), keys()), store.model.clone());
        for key in store.table.due(store.now, usize::MAX) {
            prop_assert!(store.space().purge(&key).unwrap());
        }
        store.settle_everything();
        prop_assert_eq!(store.table.len(), store.model.0.len());
        prop_assert!(store.table.due(store.now, 1).is_empty());

        // The other side, and one that starts from a snapshot that was made meanwhile.
        let mut copy = Table::new();
        store.log.iter().for_each(|operation| copy.apply(operation));
        prop_assert_eq!(copy.digest(), store.table.digest());
        if let Some(restored) = store.restored() {
            prop_assert_eq!(read(&Space::visible(&restored, store.now), keys()), store.model.clone());
            prop_assert_eq!(restored.digest(), store.table.digest());
            prop_assert_eq!(restored.bytes(), store.table.bytes());
        }
    }
}
