//! Entries that are still to come: which of them could not be brought up to date, why, and when they
//! are tried again.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use understudy_replication::check::{TROUBLES_MAX, Trouble};
use understudy_replication::files::{Digest, RelPath};
use understudy_replication::wall_time::WallTime;

use super::replica::Replica;

/// The first pause before an entry is tried again; each is twice as long as the one before.
const PAUSE_MIN: Duration = Duration::from_secs(1);

/// The longest.
const PAUSE_MAX: Duration = Duration::from_secs(60);

/// How many are remembered. The others are tried again at once.
const REMEMBERED_MAX: usize = 10_000;

/// What is remembered of entries that were tried in vain.
#[derive(Debug, Default)]
pub(super) struct Awaiting(Mutex<BTreeMap<RelPath, Pause>>);

#[derive(Debug)]
struct Pause {
    /// What was awaited: if it is another by now, there is no reason to wait.
    hash: Option<Digest>,
    until: Instant,
    length: Duration,
    trouble: Option<(String, WallTime)>,
}

impl Awaiting {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<RelPath, Pause>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Remembers that an entry was tried in vain: for a `reason`, or because the primary does not have
    /// it at this moment. Returns whether that is news.
    pub(super) fn failed(
        &self,
        path: &RelPath,
        hash: Option<Digest>,
        reason: Option<String>,
    ) -> bool {
        let now = Instant::now();
        let mut all = self.lock();
        let former = all.remove(path);
        if former.is_none() && all.len() >= REMEMBERED_MAX {
            return false;
        }
        let same = former.filter(|former| former.hash == hash);
        let length = match &same {
            // What the primary does not have, it has soon.
            Some(_) if reason.is_none() => PAUSE_MIN,
            Some(same) => (same.length * 2).min(PAUSE_MAX),
            None => PAUSE_MIN,
        };
        let since = same.and_then(|same| same.trouble).map(|(_, since)| since);
        let is_news = reason.is_some() && since.is_none();
        let trouble = reason.map(|reason| (reason, since.unwrap_or_else(WallTime::now)));
        all.insert(
            path.clone(),
            Pause {
                hash,
                until: now + length,
                length,
                trouble,
            },
        );
        is_news
    }

    /// Forgets an entry that is what it should be.
    pub(super) fn settled(&self, path: &RelPath) {
        let mut all = self.lock();
        if !all.is_empty() {
            all.remove(path);
        }
    }

    /// Returns whether an entry may be tried now.
    pub(super) fn is_due(&self, path: &RelPath, hash: Option<Digest>) -> bool {
        self.lock()
            .get(path)
            .is_none_or(|pause| pause.hash != hash || pause.until <= Instant::now())
    }

    /// Forgets those that are not awaited any more.
    pub(super) fn prune(&self, replica: &Replica) {
        let mut all = self.lock();
        if !all.is_empty() {
            all.retain(|path, _| {
                let manifest = &replica.ledger.manifest;
                let is_awaited = manifest
                    .lookup(path)
                    .is_some_and(|id| manifest.is_awaited(id));
                is_awaited || replica.leftovers.contains(path)
            });
        }
    }

    /// Returns how many are in trouble.
    pub(super) fn count(&self) -> u64 {
        let all = self.lock();
        let count = all.values().filter(|pause| pause.trouble.is_some()).count();
        u64::try_from(count).unwrap_or(u64::MAX)
    }

    /// Returns those in trouble, oldest first.
    pub(super) fn troubles(&self) -> Vec<Trouble> {
        let all = self.lock();
        let troubles = all.iter().filter_map(|(path, pause)| {
            let (reason, since) = pause.trouble.clone()?;
            Some(Trouble {
                path: path.to_string(),
                reason,
                since,
            })
        });
        let mut troubles: Vec<Trouble> = troubles.collect();
        troubles.sort_by_key(|trouble| trouble.since);
        troubles.truncate(TROUBLES_MAX);
        troubles
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trouble_is_news_once_and_is_forgotten_when_it_is_over() {
        let awaiting = Awaiting::default();
        let path = RelPath::new("a").unwrap();
        let hash = Some(Digest::of(b"1"));
        assert!(awaiting.failed(&path, hash, Some("immutable".to_owned())));
        assert!(!awaiting.failed(&path, hash, Some("immutable".to_owned())));
        assert!(!awaiting.is_due(&path, hash));
        assert!(
            awaiting.is_due(&path, Some(Digest::of(b"2"))),
            "another version"
        );
        assert_eq!((awaiting.count(), awaiting.troubles().len()), (1, 1));
        awaiting.settled(&path);
        assert!(awaiting.is_due(&path, hash));
        assert_eq!(awaiting.troubles(), []);
    }
}
