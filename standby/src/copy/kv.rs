//! A copy of the key-value store: a snapshot of the table, and what the log has behind it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use understudy_replication::kv::entry::Entry;
use understudy_replication::kv::snapshot::{Begin, Part, SNAPSHOT_PART_BYTES, SnapshotWriter};
use understudy_replication::kv::storage::{Storage, Walk};
use understudy_replication::position::Position;

use super::pace::Pace;
use super::tree::make_folder;
use super::{CopyError, aside};

/// How many entries are appended at once.
const ENTRIES_MAX: usize = 256;

/// A table that was let go of while it was copied is copied again.
const ATTEMPTS_MAX: u32 = 3;

/// What was copied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KvCopied {
    /// The end of the log: what a promotion would serve.
    pub position: Position,
    /// How many keys the copy has.
    pub keys: u64,
    /// The digest of the table at that position, as text.
    pub digest: String,
}

/// Copies the store into `folder`, which a node can open as its own.
///
/// # Errors
/// When it cannot be copied, or the copy is another.
pub async fn copy_kv(
    storage: Arc<Storage>,
    folder: PathBuf,
    pace: Arc<Pace>,
) -> Result<(), CopyError> {
    aside(move || {
        let mut attempt = 0;
        loop {
            attempt += 1;
            match copy(&storage, &folder, &pace) {
                Err(CopyError::Kv(error)) if attempt < ATTEMPTS_MAX => {
                    tracing::debug!(%error, "the key-value store is copied again");
                    super::remove_tree(&folder)?;
                }
                copied => return copied,
            }
        }
    })
    .await
}

fn copy(storage: &Storage, folder: &Path, pace: &Pace) -> Result<(), CopyError> {
    make_folder(folder, 0o700)?;
    // As one that came from another node: its log is still to follow.
    let begin = Begin {
        is_installed: true,
        ..storage.begin_snapshot()
    };
    let start = begin.start.position;
    let mut writer = SnapshotWriter::create(&folder.join("snapshot"), begin)?;
    let mut walk = Walk::default();
    while let Some(operations) = storage.walk(&mut walk) {
        pace.copy(u64::try_from(SNAPSHOT_PART_BYTES).unwrap_or(u64::MAX))?;
        writer.push(&Part::Operations(operations))?;
    }
    let end = storage.end_snapshot();
    let (at, digest) = (end.end, end.digest);
    writer.finish(end)?;
    let (copy, _) = Storage::open(folder)?;
    let mut reader = storage.reader(start)?;
    let mut entries: Vec<Entry> = Vec::new();
    while let Some(entry) = reader.next()? {
        pace.check()?;
        entries.push(entry);
        if entries.len() >= ENTRIES_MAX {
            copy.append(&entries)?;
            entries.clear();
        }
    }
    copy.append(&entries)?;
    let last = copy.sync()?;
    // The table as of the snapshot's end is known; whether the log leads there is shown by going there.
    copy.apply_up_to(at)?;
    let found = copy.visible().table.digest();
    if copy.visible().position() == at && found != digest {
        let what = format!("its table has the digest {found}, and the original's is {digest}");
        return Err(CopyError::KvDiffers { at, what });
    }
    let (ours, theirs) = (copy.tail().digest, storage.digest_at(last));
    if theirs.is_some_and(|theirs| theirs != ours) {
        let what = "its log is another one".to_owned();
        return Err(CopyError::KvDiffers { at: last, what });
    }
    Ok(())
}

/// Opens the copy as a promotion would: all that is durable counts. Leaves it so that it can be opened by a
/// node that is alone.
///
/// # Errors
/// When it cannot be read, or is not whole.
pub async fn take_over_kv(folder: PathBuf) -> Result<KvCopied, CopyError> {
    aside(move || {
        let (storage, opened) = Storage::open(&folder)?;
        tracing::debug!(?opened, "opened the copy of the key-value store");
        if let Some(at) = storage.whole_from() {
            let what = "its log ends before its snapshot".to_owned();
            return Err(CopyError::KvDiffers { at, what });
        }
        let end = storage.sync()?;
        storage.apply_up_to(end)?;
        storage.make_snapshot()?;
        storage.note_settled()?;
        let visible = storage.visible();
        Ok(KvCopied {
            position: visible.position(),
            keys: u64::try_from(visible.table.len()).unwrap_or(u64::MAX),
            digest: visible.table.digest().to_string(),
        })
    })
    .await
}
