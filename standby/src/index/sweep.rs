//! Comparing an index with its rows, key by key.
//!
//! Both sides are read in the order of the bytes of the keys, a batch at a time, so that the memory is the
//! same however many there are.

use std::collections::VecDeque;

use super::engine::Manner;
use super::error::RebuildError;
use super::payload::Payload;
use super::reading::Reading;
use super::row::{Applied, Change, Entry, Row, mark_hash};
use super::target::{ENTRIES, Target};

/// How many rows are asked for by their keys at once, and written at once.
const BATCH: usize = 1000;

/// What is compared of each row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Depth {
    /// Its watermark: it finds deletions, and rows whose change came too late to be read.
    Marks,
    /// All that it holds.
    Contents,
}

/// The documents of an index, in order.
struct Entries<'a> {
    target: &'a Target,
    page: VecDeque<Entry>,
    after: Option<String>,
    is_last: bool,
}

impl Entries<'_> {
    async fn first(&mut self) -> Result<Option<&Entry>, RebuildError> {
        if self.page.is_empty() && !self.is_last {
            let page = self.target.entries(self.after.take()).await?;
            self.is_last = page.len() < ENTRIES;
            self.after = page.last().map(|entry| entry.key.clone());
            self.page = page.into();
        }
        Ok(self.page.front())
    }
}

/// A row, as deep as it is looked at.
enum Seen {
    Mark(String, Option<String>),
    Whole(Row),
}

impl Seen {
    fn key(&self) -> &str {
        match self {
            Self::Mark(key, _) => key,
            Self::Whole(row) => row.key(),
        }
    }

    fn is_as(&self, entry: &Entry) -> bool {
        match self {
            Self::Mark(_, mark) => entry
                .hashes
                .is_some_and(|(_, theirs)| theirs == mark_hash(mark.as_deref())),
            Self::Whole(row) => entry.hashes.is_some_and(|(theirs, _)| theirs == row.hash()),
        }
    }
}

/// What has been found, and is yet to be written.
struct Findings<'a> {
    target: &'a Target,
    payload: &'a Payload,
    changes: Vec<Change>,
    keys: Vec<String>,
    applied: Applied,
}

impl Findings<'_> {
    async fn write(&mut self, reading: &Reading<'_>, is_end: bool) -> Result<(), RebuildError> {
        let is_full = |length: usize| length >= BATCH || is_end && length > 0;
        if is_full(self.keys.len()) {
            let rows = reading.rows_of(&self.keys).await?;
            self.keys.clear();
            self.changes.extend(rows.into_iter().map(Change::of));
        }
        if is_full(self.changes.len()) {
            let changes = std::mem::take(&mut self.changes);
            self.applied += self
                .target
                .apply(changes, Manner::Replace, self.payload, false)
                .await?;
        }
        Ok(())
    }
}

/// Makes an index equal to the rows of a reading. What is written is committed with `payload`. `tell` is
/// called with how many rows have been compared.
pub(super) async fn sweep(
    reading: &Reading<'_>,
    target: &Target,
    depth: Depth,
    payload: &Payload,
    tell: impl Fn(u64),
) -> Result<Applied, RebuildError> {
    target.settle().await?;
    let mut entries = Entries {
        target,
        page: VecDeque::new(),
        after: None,
        is_last: false,
    };
    let mut findings = Findings {
        target,
        payload,
        changes: Vec::new(),
        keys: Vec::new(),
        applied: Applied::default(),
    };
    let portal = match depth {
        Depth::Marks => reading.marks_by_bytes(None).await?,
        Depth::Contents => reading.rows_by_bytes(None).await?,
    };
    let mut compared = 0_u64;
    let mut before: Option<String> = None;
    loop {
        let batch: Vec<Seen> = match depth {
            Depth::Marks => {
                let marks = reading.next_marks(&portal).await?;
                let seen = marks.into_iter().map(|(key, mark)| Seen::Mark(key, mark));
                seen.collect()
            }
            Depth::Contents => {
                let rows = reading.next(&portal).await?;
                rows.into_iter().map(Seen::Whole).collect()
            }
        };
        if batch.is_empty() {
            break;
        }
        for seen in batch {
            compared = compared.saturating_add(1);
            // A second row of one key: there is one document.
            if before.as_deref() == Some(seen.key()) {
                continue;
            }
            let mut is_right = false;
            while let Some(entry) = entries.first().await? {
                match entry.key.as_str().cmp(seen.key()) {
                    std::cmp::Ordering::Less => {
                        findings.changes.push(Change::Remove(entry.key.clone()));
                        entries.page.pop_front();
                        findings.write(reading, false).await?;
                    }
                    std::cmp::Ordering::Equal => {
                        is_right = seen.is_as(entry);
                        entries.page.pop_front();
                        break;
                    }
                    std::cmp::Ordering::Greater => break,
                }
            }
            before = Some(seen.key().to_owned());
            if !is_right {
                match seen {
                    Seen::Mark(key, _) => findings.keys.push(key),
                    Seen::Whole(row) => findings.changes.push(Change::Put(row)),
                }
                findings.write(reading, false).await?;
            }
        }
        tell(compared);
    }
    while let Some(entry) = entries.first().await? {
        findings.changes.push(Change::Remove(entry.key.clone()));
        entries.page.pop_front();
        findings.write(reading, false).await?;
    }
    findings.write(reading, true).await?;
    Ok(findings.applied)
}
