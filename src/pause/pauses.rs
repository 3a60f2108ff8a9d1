//! What a node knows of pauses: kept in its state, told by events.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::de::DeserializeOwned;
use understudy_config::NodeName;
use understudy_replication::event::{Events, Severity};
use understudy_replication::pause::{Pause, PauseRecord};
use understudy_replication::wall_time::WallTime;
use understudy_replication::{durable, error_chain};

use super::Order;
use crate::failure::Failure;

/// A file of a record is no longer, in bytes.
const RECORD_BYTES_MAX: u64 = 16 << 10;

/// What a node knows of pauses, and keeps.
#[derive(Debug)]
pub(crate) struct Pauses {
    path: PathBuf,
    /// Holds the pause of which was told last that it has ended by itself: once is enough, over restarts, too.
    over: PathBuf,
    events: Events,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    record: PauseRecord,
    /// The pause of which it was told that it is on, and not yet that it is over.
    told: Option<Pause>,
    /// What was refused last, so that it is told once.
    refused: Option<PauseRecord>,
}

impl Pauses {
    /// Reads what is kept in the state. What cannot be read counts as no pause, and is told.
    pub(crate) fn load(state_dir: &Path, events: Events) -> Self {
        let path = state_dir.join("pause.json");
        let record = match read(&path) {
            Ok(record) => record,
            Err(error) => {
                let message = format!(
                    "cannot read {}: {error}; if a pause was on, this node hears of it from the others",
                    path.display()
                );
                events.record(Severity::Warning, "pause_unreadable", message);
                PauseRecord::default()
            }
        };
        // One that ended while the daemon did not run is told to be over; what cannot be read is told again.
        let over = state_dir.join("pause-over.json");
        let is_told =
            |pause: &Pause| read::<Option<Pause>>(&over).ok().flatten().as_ref() == Some(pause);
        let told = record.pause.clone().filter(|pause| !is_told(pause));
        let known = Known {
            told,
            record,
            refused: None,
        };
        Self {
            path,
            over,
            events,
            known: Mutex::new(known),
        }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns what is known, for another node.
    pub(crate) fn record(&self) -> PauseRecord {
        self.known().record.clone()
    }

    /// Returns the pause that is on now.
    pub(crate) fn active(&self) -> Option<Pause> {
        self.known().record.active(WallTime::now()).cloned()
    }

    /// Keeps a record durably, then lets it hold, and tells what has changed.
    fn set(&self, known: &mut Known, record: PauseRecord) -> io::Result<()> {
        let text = serde_json::to_vec_pretty(&record)?;
        durable::write(&self.path, &text, 0o644)?;
        known.record = record;
        self.tell(known, WallTime::now());
        Ok(())
    }

    /// Tells by an event that a pause begins, is over, or has ended by itself: each once.
    fn tell(&self, known: &mut Known, now: WallTime) {
        let active = known.record.active(now).cloned();
        if known.told == active {
            return;
        }
        let ended_by = match &known.record {
            PauseRecord {
                changed: Some((_, node)),
                pause: None,
            } => Some(node.clone()),
            PauseRecord { .. } => None,
        };
        match (&known.told, &active) {
            (_, Some(pause)) => {
                self.events
                    .record(Severity::Warning, "paused", pause.sentence());
            }
            (Some(was), None) => match ended_by {
                Some(node) => self.events.record(
                    Severity::Info,
                    "resumed",
                    format!(
                        "the pause of {} ({}) was ended on node {node}",
                        was.owner, was.reason
                    ),
                ),
                None => {
                    self.events.record(
                        Severity::Warning,
                        "pause_expired",
                        format!(
                            "the pause of {} ({}) has ended by itself: understudy acts by itself again",
                            was.owner, was.reason
                        ),
                    );
                    if let Err(error) = self.keep_told(was) {
                        tracing::warn!(%error, path = %self.over.display(), "the end of a pause may be told again");
                    }
                }
            },
            (None, None) => {}
        }
        known.told = active;
    }

    fn keep_told(&self, pause: &Pause) -> io::Result<()> {
        durable::write(&self.over, &serde_json::to_vec(pause)?, 0o644)
    }

    /// Tells of a pause that has ended by itself. Returns whether one was on and is no more.
    pub(crate) fn look(&self) -> bool {
        let mut known = self.known();
        let was_on = known.told.is_some();
        self.tell(&mut known, WallTime::now());
        was_on && known.told.is_none()
    }

    /// Takes over what another node knows, if it is newer.
    pub(crate) fn hear(&self, from: &NodeName, record: PauseRecord) {
        let mut known = self.known();
        if record <= known.record || known.refused.as_ref() == Some(&record) {
            return;
        }
        if let Err(error) = record.check(WallTime::now()) {
            let message = format!(
                "a pause that node {from} tells of is not taken over: {}; compare the clocks of the nodes",
                error_chain(&error)
            );
            self.events
                .record(Severity::Warning, "pause_refused", message);
            known.refused = Some(record);
            return;
        }
        let record = known.record.clone().merge(record);
        if let Err(error) = self.set(&mut known, record) {
            tracing::warn!(%error, path = %self.path.display(), "a pause cannot be kept");
        }
    }

    pub(super) fn begin(&self, node: &NodeName, order: &Order) -> Result<Pause, Failure> {
        let mut known = self.known();
        let length = Duration::from_millis(order.length_ms);
        let now = WallTime::now();
        let record = known
            .record
            .begin(now, node, length, &order.reason, &order.owner)
            .map_err(|error| {
                Failure::refused(error_chain(&error))
                    .hint("give a shorter --for; a pause can be begun again before it ends")
            })?;
        self.set(&mut known, record.clone())
            .map_err(|error| self.not_kept(&error))?;
        let pause = record.active(now).cloned();
        pause.ok_or_else(|| Failure::failed("the pause has ended already"))
    }

    pub(super) fn end(&self, node: &NodeName) -> Result<Option<Pause>, Failure> {
        let mut known = self.known();
        let now = WallTime::now();
        let was = known.record.active(now).cloned();
        if let Some(record) = known.record.end(now, node) {
            self.set(&mut known, record)
                .map_err(|error| self.not_kept(&error))?;
        }
        Ok(was)
    }

    fn not_kept(&self, error: &io::Error) -> Failure {
        Failure::failed(format!(
            "cannot keep the pause in {}: {error}",
            self.path.display()
        ))
        .hint("nothing was changed")
    }
}

fn read<T: Default + DeserializeOwned>(path: &Path) -> Result<T, String> {
    match fs::metadata(path) {
        Ok(found) if found.len() > RECORD_BYTES_MAX => return Err("it is too long".to_owned()),
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Ok(T::default());
        }
        Err(error) => return Err(error.to_string()),
    }
    let text = fs::read(path).map_err(|error| error.to_string())?;
    serde_json::from_slice(&text).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str) -> NodeName {
        name.parse().unwrap()
    }

    fn order() -> Order {
        Order {
            length_ms: 3_600_000,
            reason: "new disks".to_owned(),
            owner: "eva".to_owned(),
        }
    }

    fn pauses(folder: &Path) -> Pauses {
        let events = Events::open(&folder.join("events.jsonl")).unwrap();
        Pauses::load(folder, events)
    }

    fn kinds(pauses: &Pauses) -> Vec<String> {
        let events = pauses.events.newest(100).into_iter();
        events.map(|event| event.kind).collect()
    }

    #[test]
    fn a_pause_survives_a_restart_and_ends_on_another_node() {
        let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let a = pauses(one.path());
        let pause = a.begin(&node("a"), &order()).unwrap();
        drop(a);
        let (a, b) = (pauses(one.path()), pauses(other.path()));
        assert_eq!(a.active(), Some(pause.clone()));
        b.hear(&node("a"), a.record());
        b.hear(&node("a"), a.record());
        assert_eq!(b.active(), Some(pause));
        assert!(b.end(&node("b")).unwrap().is_some());
        a.hear(&node("b"), b.record());
        assert_eq!((a.active(), b.active()), (None, None));
        // What is old does not come back.
        assert_eq!(b.end(&node("b")).unwrap(), None);
        assert_eq!(kinds(&a), ["paused", "resumed"]);
        assert_eq!(kinds(&b), ["paused", "resumed"]);
    }

    #[test]
    fn one_that_ended_while_the_daemon_did_not_run_is_told_once() {
        let folder = tempfile::tempdir().unwrap();
        let past = WallTime(WallTime::now().0 - 7_200_000);
        let record = PauseRecord::default();
        let hour = Duration::from_secs(3600);
        let record = record.begin(past, &node("a"), hour, "r", "o").unwrap();
        let text = serde_json::to_vec(&record).unwrap();
        fs::write(folder.path().join("pause.json"), text).unwrap();
        let a = pauses(folder.path());
        assert_eq!(a.active(), None);
        assert!(a.look());
        assert!(!a.look());
        assert_eq!(kinds(&a), ["pause_expired"]);
        drop(a);
        let again = pauses(folder.path());
        assert!(!again.look());
        assert_eq!(kinds(&again), ["pause_expired"]);
        // Another one is another.
        let record = record.begin(past, &node("a"), hour, "another", "o");
        let text = serde_json::to_vec(&record.unwrap()).unwrap();
        fs::write(folder.path().join("pause.json"), text).unwrap();
        let other = pauses(folder.path());
        assert!(other.look());
        assert_eq!(kinds(&other), ["pause_expired", "pause_expired"]);
    }

    #[test]
    fn what_cannot_be_believed_is_told_once_and_holds_nowhere() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("pause.json"), "{").unwrap();
        let a = pauses(folder.path());
        let future = WallTime(WallTime::now().0 + 2 * 3_600_000);
        let record = PauseRecord::default();
        let hour = Duration::from_secs(3600);
        let record = record.begin(future, &node("b"), hour, "r", "o").unwrap();
        a.hear(&node("b"), record.clone());
        a.hear(&node("b"), record);
        assert_eq!(a.active(), None);
        assert_eq!(kinds(&a), ["pause_unreadable", "pause_refused"]);
        let long = Order {
            length_ms: 8 * 24 * 3_600_000,
            ..order()
        };
        let refused = a.begin(&node("a"), &long).unwrap_err();
        assert_eq!(refused.kind.exit_status(), 3);
    }
}
