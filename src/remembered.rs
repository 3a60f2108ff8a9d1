//! What a standby remembers of its primary's marks over a restart of its daemon.
//!
//! Both machines may lose their power, and only the standby's come back: the loss statement of its promotion
//! then rests on the last marks that it had heard. They are written down now and then, and when the link breaks.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use understudy_config::StoreName;
use understudy_replication::durable;
use understudy_replication::epoch::Epoch;
use understudy_replication::lag::Now;
use understudy_replication::mark::{Mark, Marks};
use understudy_replication::position::Position;
use understudy_replication::wall_time::WallTime;

/// The version of the file.
const VERSION: u32 = 1;

/// What is written down.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Record {
    version: u32,
    /// When the primary was heard last, by this node's clock.
    heard: WallTime,
    /// The newest mark and those that tell how far each store is, with when they were heard; the oldest first.
    marks: Vec<(WallTime, Mark)>,
}

fn path(state_dir: &Path) -> PathBuf {
    state_dir.join("marks.json")
}

/// Writes down what matters of `marks`, where the stores have `applied` so much. That it cannot costs only how
/// much a later loss statement can say.
pub(crate) fn keep(
    state_dir: &Path,
    marks: &Marks,
    heard: Instant,
    applied: &BTreeMap<StoreName, Option<Position>>,
    now: Now,
) {
    let covered = applied
        .iter()
        .filter_map(|(store, applied)| marks.covered(store, (*applied)?));
    let mut found: Vec<&(Instant, Mark)> = covered
        .chain(marks.cut(applied, now.instant))
        .chain(marks.newest())
        .collect();
    found.sort_by_key(|(at, _)| *at);
    found.dedup_by_key(|(at, _)| *at);
    let record = Record {
        version: VERSION,
        heard: now.wall_at(heard),
        marks: found
            .into_iter()
            .map(|(at, mark)| (now.wall_at(*at), mark.clone()))
            .collect(),
    };
    let kept = serde_json::to_vec(&record)
        .map_err(std::io::Error::from)
        .and_then(|text| durable::write(&path(state_dir), &text, 0o644));
    if let Err(error) = kept {
        tracing::warn!(%error, "the primary's marks are not kept");
    }
}

/// Returns the marks of `epoch` that were kept, and when the primary was heard last.
pub(crate) fn load(state_dir: &Path, epoch: &Epoch, now: Now) -> Option<(Marks, Instant)> {
    let text = std::fs::read(path(state_dir)).ok()?;
    // A damaged record costs what it would have told, and nothing else.
    let record: Record = serde_json::from_slice(&text).ok()?;
    let at = |wall: WallTime| {
        let ago = Duration::from_millis(now.wall.0.saturating_sub(wall.0));
        now.instant.checked_sub(ago).unwrap_or(now.instant)
    };
    let mut marks = Marks::default();
    for (heard, mark) in record.marks {
        if mark.epoch == *epoch && record.version == VERSION {
            marks.push(mark, at(heard));
        }
    }
    marks.newest()?;
    Some((marks, at(record.heard)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_marks_are_known_after_a_restart_and_those_of_another_epoch_are_not() {
        let folder = tempfile::tempdir().unwrap();
        let docs: StoreName = "docs".parse().unwrap();
        let epoch: Epoch = "3.a".parse().unwrap();
        let start = Now {
            instant: Instant::now(),
            wall: WallTime(1_000_000),
        };
        let mut marks = Marks::default();
        for number in 1..=9 {
            let mark = Mark {
                number,
                run: WallTime(1),
                epoch: epoch.clone(),
                time: WallTime(500 + number),
                positions: BTreeMap::from([(docs.clone(), Position(number * 10))]),
                bytes: BTreeMap::new(),
                is_awaited: false,
            };
            marks.push(mark, start.instant + Duration::from_secs(number));
        }
        let later = |seconds: u64| Now {
            instant: start.instant + Duration::from_secs(seconds),
            wall: WallTime(start.wall.0 + seconds * 1000),
        };
        let applied = BTreeMap::from([(docs.clone(), Some(Position(45)))]);
        let heard = start.instant + Duration::from_secs(9);
        keep(folder.path(), &marks, heard, &applied, later(9));

        let now = later(100);
        let (marks, heard) = load(folder.path(), &epoch, now).unwrap();
        assert_eq!(now.wall_at(heard), WallTime(1_009_000));
        let number = |found: Option<&(Instant, Mark)>| found.map(|(_, mark)| mark.number);
        assert_eq!(number(marks.newest()), Some(9));
        assert_eq!(number(marks.cut(&applied, now.instant)), Some(4));
        assert!(load(folder.path(), &"4.b".parse().unwrap(), now).is_none());
        std::fs::write(path(folder.path()), b"{").unwrap();
        assert!(load(folder.path(), &epoch, now).is_none());
    }
}
