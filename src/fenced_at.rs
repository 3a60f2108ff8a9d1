//! Where the stores of a fenced primary ended: kept, because a daemon that is started again has none of them
//! open, and whoever is promoted asks until it has all that there was.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use understudy_config::StoreName;
use understudy_replication::durable;
use understudy_replication::epoch::Epoch;
use understudy_replication::position::Position;

/// Where each store ended.
pub(crate) type Ends = BTreeMap<StoreName, Position>;

/// The version of the file.
const VERSION: u32 = 1;

#[derive(Serialize, Deserialize)]
struct Record {
    version: u32,
    /// The epoch that has superseded this node.
    epoch: Epoch,
    ends: Ends,
}

fn path(state_dir: &Path) -> PathBuf {
    state_dir.join("fenced.json")
}

/// Keeps where the stores ended that were fenced for `epoch`. That it cannot is no reason not to answer now.
pub(crate) fn keep(state_dir: &Path, epoch: &Epoch, ends: &Ends) {
    let record = Record {
        version: VERSION,
        epoch: epoch.clone(),
        ends: ends.clone(),
    };
    let kept = serde_json::to_vec_pretty(&record)
        .map_err(std::io::Error::from)
        .and_then(|text| durable::write(&path(state_dir), &text, 0o644));
    if let Err(error) = kept {
        tracing::warn!(%error, "where the stores ended is not kept, and not known after a restart");
    }
}

/// Returns where the stores ended that were fenced for `epoch`; nothing of a store that is not known.
pub(crate) fn load(state_dir: &Path, epoch: &Epoch) -> Ends {
    let record = std::fs::read(path(state_dir))
        .ok()
        .and_then(|text| serde_json::from_slice::<Record>(&text).ok());
    match record {
        // Of another fence: the stores have gone on since.
        Some(record) if record.epoch != *epoch || record.version != VERSION => Ends::new(),
        Some(record) => record.ends,
        None => Ends::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_fence_that_kept_them_finds_the_ends_again() {
        let folder = tempfile::tempdir().unwrap();
        let epoch: Epoch = "3.b".parse().unwrap();
        assert!(load(folder.path(), &epoch).is_empty());
        let ends = Ends::from([("docs".parse().unwrap(), Position(7))]);
        keep(folder.path(), &epoch, &ends);
        assert_eq!(load(folder.path(), &epoch), ends);
        assert!(load(folder.path(), &"4.b".parse().unwrap()).is_empty());
        std::fs::write(path(folder.path()), b"{").unwrap();
        assert!(load(folder.path(), &epoch).is_empty());
    }
}
