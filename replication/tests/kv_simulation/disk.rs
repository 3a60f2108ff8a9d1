//! What a node keeps through a crash, and what it loses in one.

use std::rc::Rc;

use understudy_replication::epoch::Epoch;
use understudy_replication::kv::point::{EntryDigest, Point};
use understudy_replication::kv::protocol::{EntryHead, Sketch, Tail};
use understudy_replication::position::Position;

use crate::random::Random;

/// How many keys there are.
pub(crate) const KEYS: usize = 3;

/// Values by key; each is written once.
pub(crate) type Table = [Option<u32>; KEYS];

/// Names an entry in the oracle's eyes; a predecessor's is smaller.
pub(crate) type Id = usize;

/// An entry with its operations.
pub(crate) struct Entry {
    pub(crate) id: Id,
    pub(crate) parent: Option<Id>,
    pub(crate) head: EntryHead,
    pub(crate) sets: Vec<(usize, u32)>,
}

impl Entry {
    pub(crate) fn apply(&self, table: &mut Table) {
        for (key, value) in &self.sets {
            table[*key] = Some(*value);
        }
    }
}

/// A place in a log: the point, the entry before it, and the run that made that.
#[derive(Clone)]
pub(crate) struct Place {
    pub(crate) point: Point,
    pub(crate) id: Option<Id>,
    pub(crate) opened: Position,
}

impl Place {
    pub(crate) const ORIGIN: Self = Self {
        point: Point::ORIGIN,
        id: None,
        opened: Position(0),
    };

    fn behind(entry: &Entry) -> Self {
        Self {
            point: entry.head.point(),
            id: Some(entry.id),
            opened: entry.head.opened,
        }
    }
}

/// A table at a place.
#[derive(Clone)]
pub(crate) struct Snapshot {
    pub(crate) place: Place,
    pub(crate) table: Table,
}

/// A node's disk.
pub(crate) struct Disk {
    /// Where the kept log begins.
    first: Place,
    entries: Vec<Rc<Entry>>,
    /// How many of the entries are durable.
    durable: usize,
    /// What the table is built from.
    pub(crate) snapshot: Snapshot,
    /// The highest epoch that the node has recorded.
    pub(crate) promised: Epoch,
    /// It is primary, in that epoch.
    pub(crate) leads: bool,
}

impl Disk {
    pub(crate) fn new(promised: Epoch) -> Self {
        Self {
            first: Place::ORIGIN,
            entries: Vec::new(),
            durable: 0,
            snapshot: Snapshot {
                place: Place::ORIGIN,
                table: Table::default(),
            },
            promised,
            leads: false,
        }
    }

    pub(crate) fn first(&self) -> Position {
        self.first.point.position
    }

    pub(crate) fn end(&self) -> Position {
        self.entries.last().map_or(self.first(), |it| it.head.end)
    }

    pub(crate) fn place(&self) -> Place {
        self.entries
            .last()
            .map_or_else(|| self.first.clone(), |it| Place::behind(it))
    }

    pub(crate) fn tail(&self) -> Tail {
        let place = self.place();
        Tail {
            point: place.point,
            opened: place.opened,
        }
    }

    pub(crate) fn durable_end(&self) -> Position {
        match self.durable.checked_sub(1) {
            Some(last) => self.entries[last].head.end,
            None => self.first(),
        }
    }

    pub(crate) fn durable_id(&self) -> Option<Id> {
        match self.durable.checked_sub(1) {
            Some(last) => Some(self.entries[last].id),
            None => self.first.id,
        }
    }

    /// The place at a position, if an entry ends there or the kept log begins there.
    pub(crate) fn at(&self, position: Position) -> Option<Place> {
        if position == self.first() {
            return Some(self.first.clone());
        }
        let index = self
            .entries
            .binary_search_by_key(&position, |it| it.head.end);
        index.ok().map(|it| Place::behind(&self.entries[it]))
    }

    pub(crate) fn digest_at(&self, position: Position) -> Option<EntryDigest> {
        self.at(position).map(|it| it.point.digest)
    }

    pub(crate) fn behind(&self, position: Position) -> &[Rc<Entry>] {
        let index = self.entries.partition_point(|it| it.head.start < position);
        &self.entries[index..]
    }

    pub(crate) fn sketch(&self) -> Sketch {
        let oldest = if self.first() < self.snapshot.place.point.position {
            self.snapshot.place.point.clone()
        } else {
            self.first.point.clone()
        };
        Sketch::of(&oldest, &self.place().point, |position| {
            let index = self.entries.partition_point(|it| it.head.end <= position);
            match index.checked_sub(1) {
                Some(index) => Some(self.entries[index].head.point()),
                None => Some(self.first.point.clone()),
            }
        })
    }

    /// What the entries and the snapshot say is committed.
    pub(crate) fn known_committed(&self) -> Position {
        let told = self.entries.iter().map(|it| it.head.committed).max();
        told.unwrap_or_default()
            .max(self.snapshot.place.point.position)
            .min(self.end())
    }

    pub(crate) fn table_at(&self, position: Position) -> Table {
        let mut table = self.snapshot.table;
        let base = self.snapshot.place.point.position;
        for entry in self.behind(base) {
            if entry.head.end <= position {
                entry.apply(&mut table);
            }
        }
        table
    }

    pub(crate) fn append(&mut self, entry: Rc<Entry>) {
        self.entries.push(entry);
    }

    pub(crate) fn cut(&mut self, to: Position) {
        let left = self.entries.partition_point(|it| it.head.end <= to);
        self.entries.truncate(left);
        self.durable = self.durable.min(left);
    }

    pub(crate) fn sync(&mut self) {
        self.durable = self.entries.len();
    }

    /// Syncs some of what is not durable.
    pub(crate) fn sync_partly(&mut self, random: &mut Random) {
        let volatile = self.entries.len() - self.durable;
        self.durable += random.below(volatile + 1);
    }

    /// Loses any suffix of what is not durable.
    pub(crate) fn crash(&mut self, random: &mut Random) {
        self.sync_partly(random);
        self.entries.truncate(self.durable);
    }

    /// Keeps the table at a position, and lets go some of the log before it.
    pub(crate) fn snapshot(&mut self, at: Position, table: Table, random: &mut Random) {
        let Some(place) = self.at(at) else { return };
        if at > self.durable_end() {
            return;
        }
        self.snapshot = Snapshot { place, table };
        let before = self.entries.partition_point(|it| it.head.end <= at);
        let released = random.below(before + 1);
        if let Some(last) = released.checked_sub(1) {
            self.first = Place::behind(&self.entries[last]);
            self.entries.drain(..released);
            self.durable -= released;
        }
    }

    pub(crate) fn install(&mut self, snapshot: Snapshot) {
        self.first = snapshot.place.clone();
        self.entries.clear();
        self.durable = 0;
        self.snapshot = snapshot;
    }
}
