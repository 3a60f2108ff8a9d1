//! What runs on a schedule, where the role of the node allows it and nowhere else.
//!
//! ```text
//! placement, clock ──▶ Timetable (decides) ──▶ run ─▶ the command, ended with the placement
//! ```
//! A run ends with what allowed it: a fence kills it with its process group. One that the daemon left behind
//! when it was killed is ended when it starts again, before anything else is run.

mod operator;
mod perform;
mod process;
#[cfg(test)]
mod tests;
mod timetable;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use understudy_config::{On, StoreName};
use understudy_replication::command::OsUser;
use understudy_replication::error_chain;
use understudy_replication::event::{Events, Severity};
use understudy_replication::status::{Hold, JobRun};
use understudy_replication::store::{Stop, Stopper};
use understudy_replication::wall_time::WallTime;

use crate::services::holds::Holds;
use crate::services::ledger::{Ledger, LedgerError};
use crate::services::{Placement, ServicesError, nodes, user};
use process::Process;
use timetable::{Due, Known, Timetable};

/// What was killed has this long to end.
const HALT_PATIENCE: Duration = Duration::from_secs(10);

/// How many operators may wait for a run to begin.
const ASKED_MAX: usize = 16;

/// The jobs of this node.
pub struct Jobs {
    jobs: Vec<Job>,
    table: Mutex<Timetable>,
    ledger: Ledger<Kept>,
    place: Mutex<Option<Placement>>,
    asked: mpsc::Sender<Asked>,
    /// Taken by [`run`](Self::run).
    asking: Mutex<Option<mpsc::Receiver<Asked>>>,
    /// How many run.
    running: watch::Sender<usize>,
    /// Nothing runs by itself.
    is_paused: AtomicBool,
    events: Events,
    started: WallTime,
}

struct Job {
    config: understudy_config::Job,
    user: Option<OsUser>,
    env: Vec<(String, String)>,
    live: Mutex<Live>,
}

#[derive(Default)]
struct Live {
    /// The run that is under way.
    run: Option<(WallTime, Stopper)>,
    /// That it was skipped because it runs has been told.
    is_overlap_told: bool,
}

/// A run that an operator asks for.
struct Asked {
    number: usize,
    reply: oneshot::Sender<JobRun>,
}

/// What must survive a restart of the daemon: `jobs.json`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
struct Kept {
    #[serde(flatten)]
    holds: Holds,
    /// The newest run of each that has ended.
    last: BTreeMap<StoreName, JobRun>,
    /// The runs under way.
    running: BTreeMap<StoreName, Process>,
}

/// Why something that an operator asks of a job is not done.
#[derive(Debug, thiserror::Error)]
pub enum JobError {
    /// There is no such job.
    #[error("there is no job `{0}`")]
    Unknown(StoreName),
    /// The role of this node does not allow it.
    #[error("job {job} runs {} only", nodes(*on))]
    NotHere {
        /// The job.
        job: StoreName,
        /// Where it runs.
        on: On,
    },
    /// It runs already.
    #[error("job {job} runs already, since {since}")]
    Running {
        /// The job.
        job: StoreName,
        /// Since when.
        since: WallTime,
    },
    /// What was asked for could not be written down, so it was not done.
    #[error(transparent)]
    State(#[from] LedgerError),
    /// The daemon stops.
    #[error("the daemon is stopping")]
    Stopping,
}

impl Job {
    fn live(&self) -> MutexGuard<'_, Live> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn name(&self) -> &StoreName {
        &self.config.name
    }

    fn since(&self) -> Option<WallTime> {
        self.live().run.as_ref().map(|(since, _)| *since)
    }
}

impl Jobs {
    /// Returns the jobs; none runs yet. Each of them gets `env`. What is to be remembered is kept in
    /// `state_dir`.
    ///
    /// # Errors
    /// When there is no such user, or what was remembered cannot be read.
    pub fn new(
        configs: &[understudy_config::Job],
        env: &[(String, String)],
        events: Events,
        state_dir: &Path,
    ) -> Result<Self, ServicesError> {
        let job = |config: &understudy_config::Job| {
            Ok(Job {
                config: config.clone(),
                user: user("job", config.name.as_str(), config.user.as_deref())?,
                env: env.to_vec(),
                live: Mutex::default(),
            })
        };
        let jobs: Result<_, ServicesError> = configs.iter().map(job).collect();
        let (asked, asking) = mpsc::channel(ASKED_MAX);
        let ledger: Ledger<Kept> = Ledger::open(&state_dir.join("jobs.json"))?;
        // What an earlier daemon has left counts until it is known to have ended: a fence waits for it.
        let left = usize::from(ledger.read(|kept| !kept.running.is_empty()));
        let scheduled = configs.iter().map(|config| (&config.schedule, config.on));
        Ok(Self {
            jobs: jobs?,
            table: Mutex::new(Timetable::new(scheduled, SystemTime::now())),
            ledger,
            place: Mutex::new(None),
            asked,
            asking: Mutex::new(Some(asking)),
            running: watch::Sender::new(left),
            is_paused: AtomicBool::new(false),
            events,
            started: WallTime::now(),
        })
    }

    fn table(&self) -> MutexGuard<'_, Timetable> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn place(&self) -> Option<Placement> {
        *self.place.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs the jobs when they are due and `place` allows it, until told to stop. What runs then is killed, as
    /// it is when `place` does not allow it any more.
    pub async fn run(self: Arc<Self>, mut place: watch::Receiver<Option<Placement>>, stop: Stop) {
        let asking = self
            .asking
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        let Some(mut asking) = asking else {
            return;
        };
        self.end_left_behind().await;
        let mut runs = JoinSet::new();
        loop {
            let here = *place.borrow_and_update();
            self.arrive(here);
            let now = SystemTime::now();
            let due = self.table().step(now, here, |number| self.known(number));
            for due in due {
                match due {
                    Due::Run(_) if self.is_paused.load(Ordering::SeqCst) => {
                        tracing::info!("a job that is due is left out: the cluster is paused");
                    }
                    Due::Run(number) => self.begin(&mut runs, number, &place, None),
                    Due::Overlap(number) => self.tell_overlap(number),
                    Due::Missed(number, at) => self.tell_missed(number, at.into()),
                }
            }
            let pause = self.table().pause(SystemTime::now());
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                changed = place.changed() => if changed.is_err() { break },
                Some(asked) = asking.recv() => {
                    self.begin(&mut runs, asked.number, &place, Some(asked.reply));
                }
                Some(_) = runs.join_next() => {}
                () = stop.wait() => break,
            }
        }
        if !self.halt().await {
            tracing::warn!("a job is left behind");
        }
        runs.shutdown().await;
    }

    /// Leaves out what comes due, while the cluster is paused; an operator can still have a job run.
    pub fn set_paused(&self, is_paused: bool) {
        self.is_paused.store(is_paused, Ordering::SeqCst);
    }

    /// Ends what an earlier daemon has left running.
    async fn end_left_behind(&self) {
        let left = self.ledger.read(|kept| kept.running.clone());
        if left.is_empty() {
            return;
        }
        for (name, process) in left {
            if !process.end().await {
                continue;
            }
            let message = format!("job {name} still ran when the daemon started, and was ended");
            self.events.record(Severity::Warning, "job_ended", message);
        }
        self.keep(|kept| kept.running.clear());
        self.running
            .send_modify(|count| *count = count.saturating_sub(1));
    }

    /// Takes in where this node is.
    fn arrive(&self, here: Option<Placement>) {
        let mut place = self.place.lock().unwrap_or_else(PoisonError::into_inner);
        let is_news = *place != here;
        *place = here;
        drop(place);
        if is_news && here == Some(Placement::Standby) {
            let is_of_standby = |name: &StoreName| {
                let mut jobs = self.jobs.iter();
                jobs.any(|job| job.name() == name && Placement::Standby.allows(job.config.on))
            };
            self.keep(|kept| kept.holds.follow(is_of_standby));
        }
    }

    fn known(&self, number: usize) -> Known {
        let Some(job) = self.jobs.get(number) else {
            return Known::default();
        };
        Known {
            is_held: self.hold(job).is_some(),
            is_running: job.since().is_some(),
        }
    }

    fn hold(&self, job: &Job) -> Option<Hold> {
        self.ledger.read(|kept| kept.holds.of(job.name()))
    }

    /// Changes what is remembered; that it cannot be written keeps nothing from being done.
    fn keep(&self, change: impl FnOnce(&mut Kept)) {
        if let Err(error) = self.ledger.change_anyway(change) {
            tracing::warn!(error = error_chain(&error), "a restart would forget this");
        }
    }

    /// Begins a run, unless one is under way.
    fn begin(
        self: &Arc<Self>,
        runs: &mut JoinSet<()>,
        number: usize,
        place: &watch::Receiver<Option<Placement>>,
        reply: Option<oneshot::Sender<JobRun>>,
    ) {
        let Some(job) = self.jobs.get(number) else {
            return;
        };
        let mut live = job.live();
        if live.run.is_some() {
            return;
        }
        let (stopper, stop) = Stopper::new();
        let started = WallTime::now();
        live.run = Some((started, stopper));
        live.is_overlap_told = false;
        drop(live);
        self.running
            .send_modify(|count| *count = count.saturating_add(1));
        let (jobs, place) = (self.clone(), place.clone());
        runs.spawn(async move {
            jobs.perform(number, started, place, stop, reply).await;
        });
    }

    fn tell_overlap(&self, number: usize) {
        let Some(job) = self.jobs.get(number) else {
            return;
        };
        let mut live = job.live();
        let Some((since, _)) = live.run.as_ref().filter(|_| !live.is_overlap_told) else {
            return;
        };
        let message = format!(
            "job {} is due and still runs, since {since}: it is not run a second time",
            job.name()
        );
        live.is_overlap_told = true;
        drop(live);
        self.events
            .record(Severity::Warning, "job_skipped", message);
    }

    fn tell_missed(&self, number: usize, at: WallTime) {
        if let Some(job) = self.jobs.get(number) {
            let message = format!(
                "job {} was due at {at}, and was missed: this machine slept, or its clock was set",
                job.name()
            );
            self.events.record(Severity::Warning, "job_missed", message);
        }
    }

    /// Ends every run that is under way, and returns whether they have ended. A fence asks this after the
    /// placement has been withdrawn, so that none begins again.
    pub async fn halt(&self) -> bool {
        for job in &self.jobs {
            if let Some((_, stopper)) = &job.live().run {
                stopper.stop();
            }
        }
        let mut running = self.running.subscribe();
        let ended = running.wait_for(|count| *count == 0);
        tokio::time::timeout(HALT_PATIENCE, ended).await.is_ok()
    }
}
