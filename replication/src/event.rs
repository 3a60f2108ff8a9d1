//! What happened, for the people who run the cluster.

use std::collections::VecDeque;
use std::fmt;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use crate::wall_time::WallTime;

/// How many events a node keeps in memory and shows.
pub const EVENTS_MAX: usize = 1000;

/// How large the file of events may grow before the older half of it is dropped.
pub const EVENTS_FILE_BYTES_MAX: u64 = 1 << 20;

/// How much an event asks of the people who run the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// What an operator would want to read the next day.
    Info,
    /// Somebody should look.
    Warning,
    /// Something does not work, or is lost.
    Error,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Info => "info",
            Self::Warning => "warning",
            Self::Error => "error",
        })
    }
}

/// One thing that happened on a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// When, by this node's clock.
    pub time: WallTime,
    /// How much it asks for.
    pub severity: Severity,
    /// What kind of thing it is, such as `peer_refused`; stable, for alarms to match.
    pub kind: String,
    /// A sentence that says what happened, to what, and what to do.
    pub message: String,
}

/// The events of a node: in memory for status, and in a file that survives a restart.
///
/// Cloning shares it. Writing an event never fails its caller: that the file cannot be written is
/// logged, and the event is still in memory and in the log.
#[derive(Clone, Debug)]
pub struct Events(Arc<Mutex<Inner>>);

#[derive(Debug)]
struct Inner {
    recent: VecDeque<Event>,
    path: PathBuf,
}

impl Events {
    /// Opens the events in `path`, which need not exist yet. Lines that are no events (a line torn
    /// by a crash) are skipped.
    ///
    /// # Errors
    /// When the file exists and cannot be read.
    pub fn open(path: &Path) -> io::Result<Self> {
        let mut recent = VecDeque::new();
        match File::open(path) {
            Ok(file) => {
                for line in BufReader::new(file).split(b'\n') {
                    if let Ok(event) = serde_json::from_slice(&line?) {
                        if recent.len() == EVENTS_MAX {
                            recent.pop_front();
                        }
                        recent.push_back(event);
                    }
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        Ok(Self(Arc::new(Mutex::new(Inner {
            recent,
            path: path.to_owned(),
        }))))
    }

    /// Records that something happened, and logs it.
    pub fn record(&self, severity: Severity, kind: &str, message: impl Into<String>) {
        let event = Event {
            time: WallTime::now(),
            severity,
            kind: kind.to_owned(),
            message: message.into(),
        };
        match severity {
            Severity::Info => tracing::info!(kind, message = event.message, "event"),
            Severity::Warning => tracing::warn!(kind, message = event.message, "event"),
            Severity::Error => tracing::error!(kind, message = event.message, "event"),
        }
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if inner.recent.len() == EVENTS_MAX {
            inner.recent.pop_front();
        }
        inner.recent.push_back(event);
        if let Err(error) = inner.append() {
            tracing::warn!(path = %inner.path.display(), %error, "cannot write the file of events");
        }
    }

    /// Returns the newest `count` events, oldest first.
    pub fn newest(&self, count: usize) -> Vec<Event> {
        let inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let skipped = inner.recent.len().saturating_sub(count);
        inner.recent.iter().skip(skipped).cloned().collect()
    }
}

impl Inner {
    fn append(&self) -> io::Result<()> {
        let Some(event) = self.recent.back() else {
            return Ok(());
        };
        let mut file = File::options().create(true).append(true).open(&self.path)?;
        if file.metadata()?.len() > EVENTS_FILE_BYTES_MAX {
            let mut kept = Vec::new();
            for event in self.recent.iter().skip(self.recent.len() / 2) {
                serde_json::to_writer(&mut kept, event)?;
                kept.push(b'\n');
            }
            return crate::durable::write(&self.path, &kept, 0o640);
        }
        let mut line = serde_json::to_vec(event)?;
        line.push(b'\n');
        file.write_all(&line)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_survive_a_restart_and_a_torn_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("events.jsonl");
        let events = Events::open(&path).unwrap();
        events.record(Severity::Info, "started", "node a started");
        events.record(
            Severity::Warning,
            "peer_refused",
            "a certificate of another cluster",
        );
        let mut file = File::options().append(true).open(&path).unwrap();
        file.write_all(b"{\"time\":17").unwrap();
        let again = Events::open(&path).unwrap();
        assert_eq!(again.newest(10), events.newest(10));
        assert_eq!(again.newest(1)[0].kind, "peer_refused");
    }

    #[test]
    fn the_file_of_events_is_bounded() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("events.jsonl");
        let events = Events::open(&path).unwrap();
        let message = "x".repeat(4096);
        for _ in 0..600 {
            events.record(Severity::Info, "filler", message.clone());
        }
        let bytes = std::fs::metadata(&path).unwrap().len();
        assert!(bytes < EVENTS_FILE_BYTES_MAX * 3, "{bytes}");
        assert_eq!(Events::open(&path).unwrap().newest(1), events.newest(1));
    }
}
