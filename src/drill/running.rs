//! What keeps drills apart: one at a time, none beside a promotion, and a promotion never waits for one.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use understudy_replication::status::ProofStatus;
use understudy_replication::store::{Stop, Stopper};
use understudy_replication::wall_time::WallTime;
use understudy_standby::rehearsal::Proof;

use crate::failure::Failure;

/// A promotion goes on after this time, whether the drill has ended or not: it works on copies.
const BAR_PATIENCE: Duration = Duration::from_secs(3);

/// Whoever breaks a drill off is told that it has ended, if it has within this time.
const CANCEL_PATIENCE: Duration = Duration::from_secs(60);

/// The drills of a node.
#[derive(Debug)]
pub(crate) struct Drills {
    running: Mutex<Option<Running>>,
    /// How many works are under way beside which no drill runs.
    bars: AtomicUsize,
    proof: Mutex<Proof>,
}

#[derive(Debug)]
struct Running {
    what: String,
    stopper: Stopper,
    ended: watch::Receiver<bool>,
}

/// The right to run a drill; it ends with this.
#[derive(Debug)]
pub(crate) struct Turn<'a> {
    drills: &'a Drills,
    ended: watch::Sender<bool>,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        *self.drills.running() = None;
        self.ended.send_replace(true);
    }
}

/// No drill begins while this is held.
#[derive(Debug)]
pub(crate) struct Bar<'a>(&'a Drills);

impl Drop for Bar<'_> {
    fn drop(&mut self) {
        self.0.bars.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Drills {
    /// Reads what the reports in `state_dir` prove. Blocks.
    pub(crate) fn load(state_dir: &Path) -> Self {
        Self {
            running: Mutex::new(None),
            bars: AtomicUsize::new(0),
            proof: Mutex::new(Proof::load(state_dir)),
        }
    }

    fn running(&self) -> MutexGuard<'_, Option<Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins a drill, unless one runs, or something runs beside which none may.
    pub(crate) fn begin(&self, what: &str) -> Result<(Turn<'_>, Stop), Failure> {
        let mut running = self.running();
        if let Some(other) = &*running {
            return Err(
                Failure::refused(format!("{} runs on this node", other.what))
                    .hint("wait for it, or break it off with `understudy drill cancel`"),
            );
        }
        if self.bars.load(Ordering::SeqCst) > 0 {
            return Err(
                Failure::refused("a promotion or a rejoin is running on this node")
                    .hint("watch it with `understudy status`"),
            );
        }
        let (stopper, stop) = Stopper::new();
        let (sender, ended) = watch::channel(false);
        *running = Some(Running {
            what: what.to_owned(),
            stopper,
            ended,
        });
        let turn = Turn {
            drills: self,
            ended: sender,
        };
        Ok((turn, stop))
    }

    /// Tells the drill that runs to end; returns what it is, and what tells of its end.
    fn stop(&self) -> Option<(String, watch::Receiver<bool>)> {
        let running = self.running();
        let running = running.as_ref()?;
        running.stopper.stop();
        Some((running.what.clone(), running.ended.clone()))
    }

    /// Breaks off the drill that runs, and waits until nothing is left of it; returns what it was.
    pub(crate) async fn cancel(&self) -> Option<String> {
        self.end_within(CANCEL_PATIENCE).await
    }

    /// Breaks off the drill that runs, and keeps others from beginning. Waits a short while only: what a
    /// drill works on is its own.
    pub(crate) async fn bar(&self) -> Bar<'_> {
        self.bars.fetch_add(1, Ordering::SeqCst);
        let bar = Bar(self);
        if let Some(what) = self.end_within(BAR_PATIENCE).await {
            tracing::info!(what, "was broken off for something that matters more");
        }
        bar
    }

    async fn end_within(&self, patience: Duration) -> Option<String> {
        let (what, mut ended) = self.stop()?;
        // An error means that it has ended.
        let waited = tokio::time::timeout(patience, ended.wait_for(|ended| *ended)).await;
        if waited.is_err() {
            tracing::warn!(what, "has not ended yet");
        }
        Some(what)
    }

    /// Returns what was proved last, as of now.
    pub(crate) fn proof(&self, max_age: Duration, now: WallTime) -> ProofStatus {
        let proof = self.proof.lock().unwrap_or_else(PoisonError::into_inner);
        proof.status(max_age, now)
    }

    /// Reads again what the reports prove. Blocks.
    pub(crate) fn renew_proof(&self, state_dir: &Path) {
        let proof = Proof::load(state_dir);
        *self.proof.lock().unwrap_or_else(PoisonError::into_inner) = proof;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_promotion_ends_a_drill_and_keeps_others_from_beginning() {
        let folder = tempfile::tempdir().unwrap();
        let drills = Drills::load(folder.path());
        let (turn, stop) = drills.begin("a rehearsal").unwrap();
        let refused = drills.begin("a clone").unwrap_err().to_string();
        assert!(refused.contains("a rehearsal runs"), "{refused}");
        let drill = async move {
            stop.wait().await;
            drop(turn);
        };
        let (bar, ()) = tokio::join!(drills.bar(), drill);
        let refused = drills.begin("a rehearsal").unwrap_err();
        assert_eq!(refused.kind, crate::failure::Kind::Refused);
        drop(bar);
        let (_turn, stop) = drills.begin("a rehearsal").unwrap();
        assert!(!stop.is_stopped());
    }

    #[tokio::test]
    async fn there_may_be_nothing_to_cancel() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(Drills::load(folder.path()).cancel().await, None);
    }
}
