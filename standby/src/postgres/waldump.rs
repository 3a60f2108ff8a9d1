//! What a part of the write-ahead log did, as far as `pg_waldump` can tell. Pure.

use std::collections::{BTreeMap, HashSet};

use serde::{Deserialize, Serialize};
use understudy_replication::position::Lsn;

/// So many transactions are listed; those beyond are counted only.
const LISTED_MAX: usize = 10_000;

/// The first object id that is not the system's own (Postgres' `transam.h`, `FirstNormalObjectId`).
const FIRST_USER_OBJECT: u64 = 16_384;

/// What a part of the log did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    /// How many records there are.
    pub records: u64,
    /// How many transactions were committed.
    pub committed: u64,
    /// When the first and the last of them were, by the server's clock.
    pub first_commit: Option<String>,
    /// See `first_commit`.
    pub last_commit: Option<String>,
    /// How many were rolled back.
    pub aborted: u64,
    /// What the committed ones changed, all together; of at most ten thousand relations.
    #[serde(default)]
    pub relations: Changes,
    /// The committed ones, in order; at most ten thousand.
    pub transactions: Vec<Transaction>,
    /// Those of which neither is told: they were open at the end.
    #[serde(skip)]
    open: BTreeMap<u32, Changes>,
}

/// A committed transaction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Transaction {
    /// Its number.
    pub xid: u32,
    /// When it was committed, by the server's clock.
    pub committed: String,
    /// What it changed.
    #[serde(flatten)]
    pub changes: Changes,
}

/// Rows that were changed, by relation: `tablespace/database/filenode`, which
/// `pg_filenode_relation(tablespace, filenode)` gives a name in that database. Large values count as rows of
/// the relation that keeps them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Changes {
    /// Rows that were inserted.
    pub inserted: BTreeMap<String, u64>,
    /// Rows that were updated.
    pub updated: BTreeMap<String, u64>,
    /// Rows that were deleted.
    pub deleted: BTreeMap<String, u64>,
}

impl Changes {
    fn add(&mut self, other: &Self) {
        let pairs = [
            (&mut self.inserted, &other.inserted),
            (&mut self.updated, &other.updated),
            (&mut self.deleted, &other.deleted),
        ];
        for (all, more) in pairs {
            for (relation, rows) in more {
                if all.len() >= LISTED_MAX && !all.contains_key(relation) {
                    continue;
                }
                let sum = all.entry(relation.clone()).or_default();
                *sum = sum.saturating_add(*rows);
            }
        }
    }
}

impl Tally {
    /// Takes one line of `pg_waldump`; lines that are none are passed over.
    pub(super) fn take(&mut self, line: &str) {
        let Some(rest) = line.strip_prefix("rmgr: ") else {
            return;
        };
        self.records = self.records.saturating_add(1);
        let manager = rest.split_whitespace().next().unwrap_or_default();
        let field = |name: &str| {
            let (_, after) = rest.split_once(name)?;
            Some(after.trim_start())
        };
        let xid = field("tx:").and_then(|text| text.split([',', ' ']).next()?.parse().ok());
        let (Some(xid), Some(described)) = (xid.filter(|xid| *xid != 0), field("desc: ")) else {
            return;
        };
        match manager {
            "Transaction" => self.end(xid, described),
            "Heap" | "Heap2" => self.change(xid, described),
            _ => {}
        }
    }

    fn end(&mut self, xid: u32, described: &str) {
        let mut words = described.split_whitespace();
        match words.next() {
            Some("COMMIT" | "COMMIT_PREPARED") => {
                let changes = self.open.remove(&xid).unwrap_or_default();
                let (_, time) = described.split_once(' ').unwrap_or_default();
                let time = time.split(';').next().unwrap_or_default().trim().to_owned();
                self.committed = self.committed.saturating_add(1);
                self.relations.add(&changes);
                self.first_commit.get_or_insert_with(|| time.clone());
                self.last_commit = Some(time.clone());
                if self.transactions.len() < LISTED_MAX {
                    self.transactions.push(Transaction {
                        xid,
                        committed: time,
                        changes,
                    });
                }
            }
            Some("ABORT" | "ABORT_PREPARED") => {
                self.open.remove(&xid);
                self.aborted = self.aborted.saturating_add(1);
            }
            Some(_) | None => {}
        }
    }

    fn change(&mut self, xid: u32, described: &str) {
        let Some((_, relation)) = described.split_once("rel ") else {
            return;
        };
        let relation = relation.split_whitespace().next().unwrap_or_default();
        let file = relation.rsplit('/').next().and_then(|it| it.parse().ok());
        if file.is_none_or(|file: u64| file < FIRST_USER_OBJECT) {
            return;
        }
        // Those of a transaction that never ends must not grow without a bound.
        if self.open.len() >= LISTED_MAX && !self.open.contains_key(&xid) {
            return;
        }
        let kind = described.split([' ', '+']).next().unwrap_or_default();
        let changes = self.open.entry(xid).or_default();
        let (of, rows) = match kind {
            "INSERT" => (&mut changes.inserted, 1),
            "MULTI_INSERT" => {
                let rows = described
                    .split_whitespace()
                    .zip(described.split_whitespace().skip(1))
                    .find(|(_, next)| next.starts_with("tuples"))
                    .and_then(|(rows, _)| rows.parse().ok());
                (&mut changes.inserted, rows.unwrap_or(1))
            }
            "UPDATE" | "HOT_UPDATE" => (&mut changes.updated, 1),
            "DELETE" => (&mut changes.deleted, 1),
            _ => return,
        };
        let count = of.entry(relation.to_owned()).or_default();
        *count = count.saturating_add(rows);
    }

    /// Returns what the committed transactions changed, all together. Bundles of an older version have it of
    /// each of those that they list only.
    pub fn changes(&self) -> Changes {
        let mut all = self.relations.clone();
        if all == Changes::default() {
            for transaction in &self.transactions {
                all.add(&transaction.changes);
            }
        }
        all
    }

    /// Returns it in a sentence.
    pub(super) fn sentence(&self) -> String {
        let changes = self.changes();
        let total =
            |of: fn(&Changes) -> &BTreeMap<String, u64>| -> u64 { of(&changes).values().sum() };
        let when = match (&self.first_commit, &self.last_commit) {
            (Some(first), Some(last)) => format!(", the first at {first}, the last at {last}"),
            (_, _) => String::new(),
        };
        format!(
            "{} committed transactions{when}; {} rows inserted, {} updated, {} deleted",
            self.committed,
            total(|it| &it.inserted),
            total(|it| &it.updated),
            total(|it| &it.deleted)
        )
    }
}

/// Returns where a record begins and how long it is.
pub(super) fn place(line: &str) -> Option<(Lsn, u64)> {
    let rest = line.strip_prefix("rmgr: ")?;
    let (_, after) = rest.split_once("len (rec/tot):")?;
    let (_, total) = after.split_once('/')?;
    let total = total.split(',').next()?.trim().parse().ok()?;
    let (_, lsn) = rest.split_once("lsn: ")?;
    Some((lsn.split(',').next()?.trim().parse().ok()?, total))
}

/// Returns where a checkpoint began of which this line is the record.
pub(super) fn redo(line: &str) -> Option<Lsn> {
    let (_, described) = line.split_once("desc: CHECKPOINT_")?;
    let (_, redo) = described.split_once("redo ")?;
    redo.split(';').next()?.trim().parse().ok()
}

/// So many blocks are told apart; beyond it there are at least so many.
const BLOCKS_MAX: usize = 4_000_000;

/// The blocks of relations that a part of the log has touched.
#[derive(Debug, Default)]
pub(super) struct Touched {
    relations: BTreeMap<String, u32>,
    blocks: HashSet<(u32, u32)>,
    /// There are more than were counted.
    pub(super) is_more: bool,
}

impl Touched {
    /// Takes one line of `pg_waldump`.
    pub(super) fn take(&mut self, line: &str) {
        for reference in line.split("blkref #").skip(1) {
            let Some((_, reference)) = reference.split_once("rel ") else {
                continue;
            };
            let mut words = reference.split_whitespace();
            let (Some(relation), Some(next)) = (words.next(), words.next()) else {
                continue;
            };
            // Other forks are named here, and are copied whole in any case.
            let block = (next == "blk").then(|| words.next()).flatten();
            let block = block.and_then(|it| it.trim_end_matches([',', ';']).parse().ok());
            let Some(block) = block else { continue };
            if self.blocks.len() >= BLOCKS_MAX {
                self.is_more = true;
                return;
            }
            let next = u32::try_from(self.relations.len()).unwrap_or(u32::MAX);
            let number = match self.relations.get(relation) {
                Some(number) => *number,
                None => *self.relations.entry(relation.to_owned()).or_insert(next),
            };
            self.blocks.insert((number, block));
        }
    }

    /// Returns how many there are.
    pub(super) fn count(&self) -> u64 {
        u64::try_from(self.blocks.len()).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DUMP: &str = "\
rmgr: Heap        len (rec/tot):     59/    59, tx:        724, lsn: 0/01762A48, prev 0/01762988, desc: INSERT+INIT off 1 flags 0x00, blkref #0: rel 1663/5/16384 blk 0
rmgr: Heap        len (rec/tot):    203/   203, tx:        724, lsn: 0/01759428, prev 0/017593F8, desc: INSERT off 3 flags 0x00, blkref #0: rel 1663/5/1259 blk 0
rmgr: Heap2       len (rec/tot):    830/   830, tx:        724, lsn: 0/017572F8, prev 0/017569C0, desc: MULTI_INSERT 6 tuples flags 0x02, blkref #0: rel 1663/5/16384 blk 17
rmgr: Heap        len (rec/tot):     69/    69, tx:        724, lsn: 0/01762C28, prev 0/01762BE8, desc: UPDATE off 1 xmax 724 flags 0x40 KEYS_UPDATED ; new off 4 xmax 0, blkref #0: rel 1663/5/16384 blk 0
rmgr: Heap        len (rec/tot):     54/    54, tx:        725, lsn: 0/01762CB0, prev 0/01762C70, desc: DELETE off 2 flags 0x00 KEYS_UPDATED , blkref #0: rel 1663/5/16384 blk 0
rmgr: Btree       len (rec/tot):     64/    64, tx:        724, lsn: 0/01762D28, prev 0/01762CE8, desc: INSERT_LEAF off 5, blkref #0: rel 1663/5/16387 blk 1
rmgr: Transaction len (rec/tot):     94/    94, tx:        724, lsn: 0/01762D68, prev 0/01762D28, desc: COMMIT 2026-11-21 20:22:13.221604 UTC; rels: base/5/16387
rmgr: Transaction len (rec/tot):     34/    34, tx:        725, lsn: 0/01762DA8, prev 0/01762D68, desc: ABORT 2026-11-21 20:22:14.000000 UTC
rmgr: XLOG        len (rec/tot):    114/   114, tx:          0, lsn: 0/01762DC8, prev 0/01762D68, desc: CHECKPOINT_SHUTDOWN redo 0/1762DC8; tli 1
pg_waldump: error: error in WAL record at 0/1762DC8: invalid record length at 0/1762E40: wanted 24, got 0
";

    #[test]
    fn what_was_committed_is_told_and_what_was_not_is_only_counted() {
        let mut tally = Tally::default();
        for line in DUMP.lines() {
            tally.take(line);
        }
        assert_eq!((tally.records, tally.committed, tally.aborted), (9, 1, 1));
        let [transaction] = tally.transactions.as_slice() else {
            panic!("{tally:?}");
        };
        let relation = "1663/5/16384";
        assert_eq!(transaction.xid, 724);
        assert_eq!(transaction.changes.inserted[relation], 7);
        assert_eq!(transaction.changes.updated[relation], 1);
        assert!(transaction.changes.deleted.is_empty());
        assert_eq!(
            tally.sentence(),
            "1 committed transactions, the first at 2026-11-21 20:22:13.221604 UTC, the last at 2026-11-21 \
             20:22:13.221604 UTC; 7 rows inserted, 1 updated, 0 deleted"
        );
    }

    #[test]
    fn blocks_that_are_touched_twice_count_once_and_places_are_understood() {
        let mut touched = Touched::default();
        for line in DUMP.lines() {
            touched.take(line);
        }
        // The table's blocks 0 and 17, one of a system table, and one of the index.
        assert_eq!((touched.count(), touched.is_more), (4, false));
        let vm = "rmgr: Heap2 tx: 1, desc: VISIBLE, blkref #0: rel 1663/5/16384 fork vm blk 0, blkref #1: rel \
             1663/5/16384 blk 3 FPW";
        touched.take(vm);
        assert_eq!(touched.count(), 5);
        let places: Vec<_> = DUMP.lines().filter_map(place).collect();
        assert_eq!(places.len(), 9);
        assert_eq!(places[0], (Lsn(0x0176_2A48), 59));
        let redos: Vec<_> = DUMP.lines().filter_map(redo).collect();
        assert_eq!(redos, [Lsn(0x0176_2DC8)]);
    }

    #[test]
    fn lines_that_are_none_do_no_harm() {
        let mut tally = Tally::default();
        for line in [
            "",
            "rmgr: ",
            "rmgr: Heap tx: x",
            "rmgr: Transaction tx: 5, desc: ",
        ] {
            tally.take(line);
        }
        assert_eq!(tally.committed, 0);
    }
}
