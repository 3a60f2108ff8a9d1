//! Verifying and scrubbing the primary's tree.
//!
//! A verification is a look at everything: what it finds is captured, so that the manifest is the tree
//! when it ends. A scrub reads every file again. A content that is another than it was, in a file that
//! nobody has changed, is rot: it is told, the manifest keeps what was, and so no standby takes it over.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use understudy_replication::check::{Checked, Difference, DifferenceKind};
use understudy_replication::event::Severity;
use understudy_replication::files::{
    Digest, Identity, NodeId, RelPath, Root, TOP, identity, stat_fd,
};
use understudy_replication::position::Position;

use super::shared::Shared;

/// How much is read between two looks at the clock.
const STEP_BYTES: usize = 1 << 20;

/// How far a scrub is, for who shows it.
#[derive(Debug, Default)]
pub(super) struct Done {
    pub(super) bytes: AtomicU64,
    /// Nobody waits for it any more.
    pub(super) is_stopped: AtomicBool,
}

/// Returns the manifest's root and position, and how much it holds.
pub(super) fn state(shared: &Shared) -> Checked {
    let mut checked = Checked::default();
    if let Some(ledger) = shared.ledger().as_mut() {
        checked.entries = u64::try_from(ledger.manifest.len()).unwrap_or(u64::MAX);
        checked.bytes = ledger.manifest.bytes();
        checked.position = ledger.head().map(|head| head.position);
        checked.root = Some(ledger.manifest.root().to_string());
    }
    for trouble in shared.troubles() {
        checked.add(Difference {
            what: trouble.path,
            kind: DifferenceKind::Changed,
            is_repaired: false,
            detail: trouble.reason,
        });
    }
    checked
}

/// Returns the root that the store had at `position`, as far back as the log goes.
pub(super) fn root_at(shared: &Shared, position: Position) -> Option<String> {
    use understudy_replication::files::LogEntry;
    {
        let guard = shared.ledger();
        let head = guard.as_ref()?.head()?;
        if head.position == position {
            return Some(head.root.to_string());
        }
    }
    let record = shared.log().reader(position).ok()?.next().ok()??;
    match LogEntry::decode(&record.payload) {
        Ok(LogEntry::Batch(batch)) => Some(batch.before.to_string()),
        Ok(LogEntry::Content(..) | LogEntry::Awaited(_)) | Err(_) => None,
    }
}

/// Reads every file again, no faster than so many bytes a second.
pub(super) fn scrub(
    shared: &Shared,
    bytes_per_second: u64,
    done: &Arc<Done>,
) -> std::io::Result<Checked> {
    let root = Root::open(&shared.root)?;
    let mut files = Vec::new();
    if let Some(ledger) = shared.ledger().as_ref() {
        let manifest = &ledger.manifest;
        let all = manifest.walk(TOP).map(|(_, id)| id);
        files.extend(all.filter(|id| manifest.content(*id).is_some()));
    }
    let mut pace = Pace::new(bytes_per_second);
    let mut rotten = Vec::new();
    for id in files {
        if done.is_stopped.load(Ordering::Acquire) {
            break;
        }
        let Some((path, seen, hash)) = known(shared, id) else {
            continue;
        };
        match read(&root, &path, seen, &mut pace, done) {
            Ok(Some(found)) if found != hash => rotten.push((path, id, hash, found)),
            Ok(_) => {}
            Err(error) => {
                let text = format!("store {}: {path} cannot be read: {error}", shared.id.name);
                shared
                    .events
                    .record(Severity::Error, "files_unreadable", text);
                rotten.push((path, id, hash, hash));
            }
        }
    }
    let mut checked = state(shared);
    checked.bytes = done.bytes.load(Ordering::Acquire);
    for (path, id, hash, found) in rotten {
        // Changed in the meantime, and captured: then it is what it should be.
        if known(shared, id).is_none_or(|(at, _, known)| at != path || known != hash) {
            continue;
        }
        let detail = if found == hash {
            "it cannot be read".to_owned()
        } else {
            format!("it holds {found}, and nobody has changed it since it held {hash}")
        };
        shared.events.record(
            Severity::Error,
            "files_rot",
            format!(
                "store {}: {path} has rotted on the primary: {detail}; the standbys keep what it was",
                shared.id.name
            ),
        );
        checked.add(Difference {
            what: path.to_string(),
            kind: DifferenceKind::Rotten,
            is_repaired: false,
            detail,
        });
    }
    Ok(checked)
}

/// Returns what is known of a file, if it is known how it looks.
fn known(shared: &Shared, id: NodeId) -> Option<(RelPath, Identity, Digest)> {
    let guard = shared.ledger();
    let manifest = &guard.as_ref()?.manifest;
    let path = manifest.path(id)?;
    // The node may have gone since, and its number been given to another.
    if manifest.lookup(&path) != Some(id) {
        return None;
    }
    let seen = manifest
        .local(id)
        .seen()
        .filter(|seen| !seen.is_unsettled())?;
    let (_, hash) = manifest.content(id)?;
    Some((path, seen, hash))
}

/// Returns what a file holds; `None` when it is not the one that was seen, or is changed meanwhile.
fn read(
    root: &Root,
    path: &RelPath,
    seen: Identity,
    pace: &mut Pace,
    done: &Done,
) -> std::io::Result<Option<Digest>> {
    use std::io::Read;
    let mut file = match root.file(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    if identity(&stat_fd(file.as_fd())?) != seen {
        return Ok(None);
    }
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; STEP_BYTES];
    loop {
        let count = file.read(&mut buffer)?;
        if count == 0 {
            break;
        }
        hasher.update(buffer.get(..count).unwrap_or_default());
        let count = u64::try_from(count).unwrap_or(u64::MAX);
        done.bytes.fetch_add(count, Ordering::AcqRel);
        pace.keep(count);
        if done.is_stopped.load(Ordering::Acquire) {
            return Ok(None);
        }
    }
    let is_same = identity(&stat_fd(file.as_fd())?) == seen;
    Ok(is_same.then(|| hasher.finalize().into()))
}

/// Keeps a rate by sleeping.
struct Pace {
    bytes_per_second: u64,
    begun: Instant,
    bytes: u64,
}

impl Pace {
    fn new(bytes_per_second: u64) -> Self {
        Self {
            bytes_per_second: bytes_per_second.max(1),
            begun: Instant::now(),
            bytes: 0,
        }
    }

    fn keep(&mut self, bytes: u64) {
        self.bytes = self.bytes.saturating_add(bytes);
        let milliseconds = self.bytes.saturating_mul(1000) / self.bytes_per_second;
        let due = self.begun + Duration::from_millis(milliseconds);
        thread::sleep(
            due.saturating_duration_since(Instant::now())
                .min(Duration::from_secs(1)),
        );
    }
}
