//! A store in the memory of this process: no log, no standbys, nothing is kept. For the tests of whatever
//! speaks to a [`Keyspace`].

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::draft::Draft;
use super::keyspace::{Keyspace, Refusal, Standing};
use super::space::Space;
use super::table::Table;
use crate::position::Position;
use crate::store::BoxFuture;
use crate::wall_time::WallTime;

/// A store in memory, at a time that stands still.
#[derive(Debug)]
pub struct MemoryKeyspace {
    stores: Mutex<(Table, Draft)>,
    now: WallTime,
    refusal: Mutex<Option<Refusal>>,
    bytes_max: AtomicUsize,
}

impl MemoryKeyspace {
    /// Returns an empty one at `now`.
    pub fn new(now: WallTime) -> Self {
        Self {
            stores: Mutex::new((Table::new(), Draft::new(Position(0)))),
            now,
            refusal: Mutex::default(),
            bytes_max: AtomicUsize::new(usize::MAX),
        }
    }

    /// Makes it refuse everything from now on; nothing with `None`.
    pub fn refuse(&self, refusal: Option<Refusal>) {
        *self.refusal.lock().unwrap_or_else(PoisonError::into_inner) = refusal;
    }

    /// Bounds the memory that its keys may take before they may not grow.
    pub fn bound(&self, bytes_max: usize) {
        self.bytes_max.store(bytes_max, Ordering::Relaxed);
    }

    /// Changes it.
    pub fn change(&self, act: impl FnOnce(&mut Space<'_>)) -> Position {
        let mut stores = self.stores();
        let (table, draft) = &mut *stores;
        let bytes_max = self.bytes_max.load(Ordering::Relaxed);
        let mut space = Space::newest(table, draft, self.now).bounded(bytes_max);
        act(&mut space);
        space.end_atom();
        while let Some(taken) = draft.take(usize::MAX) {
            for operation in &taken.operations {
                table.apply(operation);
            }
            draft.settle(taken.end);
        }
        draft.end()
    }

    fn stores(&self) -> MutexGuard<'_, (Table, Draft)> {
        self.stores.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn answer(&self) -> Result<(), Refusal> {
        let refusal = self.refusal.lock().unwrap_or_else(PoisonError::into_inner);
        refusal.clone().map_or(Ok(()), Err)
    }
}

impl Keyspace for MemoryKeyspace {
    fn read(&self, look: &mut dyn FnMut(&mut Space<'_>)) -> Result<(), Refusal> {
        self.answer()?;
        look(&mut Space::visible(&self.stores().0, self.now));
        Ok(())
    }

    fn write(&self, act: &mut dyn FnMut(&mut Space<'_>)) -> Result<Position, Refusal> {
        self.answer()?;
        Ok(self.change(act))
    }

    fn settled(&self, _: Position) -> BoxFuture<'_, Result<(), Refusal>> {
        Box::pin(async { self.answer() })
    }

    fn replicated(&self, _: Position, _: usize, _: Option<Duration>) -> BoxFuture<'_, usize> {
        Box::pin(async { 0 })
    }

    fn standing(&self) -> Standing {
        Standing {
            is_primary: true,
            primary: None,
            position: self.stores().1.end(),
            standbys: vec![("b".to_owned(), Position(0))],
            durability: "async",
            memory_bytes_max: 1 << 30,
            allows_flush: false,
        }
    }
}
