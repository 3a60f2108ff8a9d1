//! What runs on a schedule, where the role of the node allows it and nowhere else.
//!
//! ```text
//! placement, clock ──▶ Timetable (decides) ──▶ run ─▶ the command, ended with the placement
//! ```
//! A run ends with what allowed it: a fence kills it with its process group. One that the daemon left behind
//! when it was killed is ended when it starts again, before anything else is run.

mod process;
#[cfg(test)]
mod tests;
mod timetable;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use understudy_config::{AfterFailover, On, StoreName};
use understudy_replication::command::{Command, OsUser};
use understudy_replication::event::{Events, Severity};
use understudy_replication::status::{Hold, JobOutcome, JobRun, JobState, JobStatus};
use understudy_replication::store::{Stop, Stopper};
use understudy_replication::wall_time::WallTime;
use understudy_replication::{command::CommandError, error_chain};

use crate::services::ledger::{Ledger, LedgerError};
use crate::services::{Placement, ServicesError, digest, last_line, nodes, shortened, user};
use process::Process;
use timetable::{Due, Known, Timetable};

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
    /// Held back since the failover.
    held: BTreeSet<StoreName>,
    /// Stopped by an operator.
    stopped: BTreeSet<StoreName>,
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
        let scheduled = configs.iter().map(|config| (&config.schedule, config.on));
        Ok(Self {
            jobs: jobs?,
            table: Mutex::new(Timetable::new(scheduled, SystemTime::now())),
            ledger: Ledger::open(&state_dir.join("jobs.json"))?,
            place: Mutex::new(None),
            asked,
            asking: Mutex::new(Some(asking)),
            running: watch::Sender::new(0),
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
        self.halt().await;
        runs.shutdown().await;
    }

    /// Ends what an earlier daemon has left running.
    async fn end_left_behind(&self) {
        let left = self.ledger.read(|kept| kept.running.clone());
        for (name, process) in left {
            if !process.end().await {
                continue;
            }
            let message = format!("job {name} still ran when the daemon started, and was ended");
            self.events.record(Severity::Warning, "job_ended", message);
        }
        self.keep(|kept| kept.running.clear());
    }

    /// Takes in where this node is. What a failover holds back and what operators have stopped of a primary is
    /// over once it follows one.
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
            self.keep(|kept| {
                kept.held.clear();
                kept.stopped.retain(is_of_standby);
            });
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
        let name = job.name();
        self.ledger.read(|kept| {
            if kept.stopped.contains(name) {
                Some(Hold::Operator)
            } else if kept.held.contains(name) {
                Some(Hold::Failover)
            } else {
                None
            }
        })
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

    async fn perform(
        self: Arc<Self>,
        number: usize,
        started: WallTime,
        mut place: watch::Receiver<Option<Placement>>,
        stop: Stop,
        reply: Option<oneshot::Sender<JobRun>>,
    ) {
        let Some(job) = self.jobs.get(number) else {
            return;
        };
        // However this ends, the job does not run after it.
        let _running = Running { jobs: &self, job };
        let on = job.config.on;
        let elsewhere = place.wait_for(|place| !place.is_some_and(|place| place.allows(on)));
        let (outcome, message) = tokio::select! {
            biased;
            _ = elsewhere => (JobOutcome::Ended, "the role of this node does not allow it any more".to_owned()),
            () = stop.wait() => (JobOutcome::Ended, "it was told to end".to_owned()),
            result = self.command(job) => self.tell(job, started, result),
        };
        if outcome == JobOutcome::Ended {
            let message = format!("job {} was ended: {message}", job.name());
            self.events.record(Severity::Warning, "job_ended", message);
        }
        let run = JobRun {
            started,
            ended: WallTime::now(),
            outcome,
            message: shortened(&message),
        };
        self.keep(|kept| {
            kept.running.remove(job.name());
            kept.last.insert(job.name().clone(), run.clone());
        });
        if let Some(reply) = reply {
            let _gone = reply.send(run).is_err();
        }
    }

    async fn command(&self, job: &Job) -> Result<String, CommandError> {
        let command = Command::new(job.config.command.clone())
            .env("UNDERSTUDY_JOB", job.name().as_str())
            .limit(job.config.timeout);
        let command = job
            .env
            .iter()
            .fold(command, |command, (name, value)| command.env(name, value));
        let command = match &job.user {
            Some(user) => command.user(user),
            None => command,
        };
        let remember = |pid| {
            if let Some(process) = Process::of(pid) {
                self.keep(|kept| {
                    kept.running.insert(job.name().clone(), process);
                });
            }
        };
        command.run_told(remember).await
    }

    /// Tells how a run ended that has ended by itself; one that had nothing to say and succeeded is no event.
    fn tell(
        &self,
        job: &Job,
        started: WallTime,
        result: Result<String, CommandError>,
    ) -> (JobOutcome, String) {
        let name = job.name();
        let millis = WallTime::now().0.saturating_sub(started.0);
        let seconds = std::time::Duration::from_millis(millis).as_secs_f64();
        match result {
            Ok(output) => {
                if let Some(output) = digest(&output) {
                    let message = format!("job {name} succeeded after {seconds:.1} s: {output}");
                    self.events.record(Severity::Info, "job_done", message);
                }
                (JobOutcome::Succeeded, last_line(&output))
            }
            Err(error) => {
                let told = error_chain(&error);
                let output = match &error {
                    CommandError::Failed { output, .. } | CommandError::TimedOut { output, .. } => {
                        digest(output)
                    }
                    CommandError::NoUser { .. }
                    | CommandError::NotRoot { .. }
                    | CommandError::Start { .. } => None,
                };
                let output =
                    output.map_or_else(String::new, |text| format!("; it printed: {text}"));
                let message = format!("job {name} failed after {seconds:.1} s: {told}{output}");
                self.events.record(Severity::Error, "job_failed", message);
                (JobOutcome::Failed, told)
            }
        }
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

    /// Ends every run that is under way, and waits until it has. A fence asks this after the placement has
    /// been withdrawn, so that none begins again.
    pub async fn halt(&self) {
        for job in &self.jobs {
            if let Some((_, stopper)) = &job.live().run {
                stopper.stop();
            }
        }
        let mut running = self.running.subscribe();
        // The sender is `self`.
        let _held = running.wait_for(|count| *count == 0).await.is_err();
    }

    /// Holds back those that an operator is to start after a failover, until [`start`](Self::start) or until
    /// this node follows a primary. To be asked before the services are started.
    pub fn hold_after_failover(&self) {
        let held = self
            .jobs
            .iter()
            .filter(|job| job.config.after_failover == AfterFailover::Hold);
        let held: BTreeSet<StoreName> = held.map(|job| job.name().clone()).collect();
        for name in &held {
            let message = format!(
                "job {name} is held back, since the primary has failed; start it with `understudy \
                 services start {name}`"
            );
            self.events.record(Severity::Warning, "job_held", message);
        }
        self.keep(|kept| kept.held.extend(held));
    }

    /// Lets a job run on its schedule, whatever has held it back.
    ///
    /// # Errors
    /// When there is none, the role of this node does not allow it, or it cannot be written down.
    pub fn start(&self, name: &StoreName) -> Result<(), JobError> {
        self.allowed(name)?;
        self.ledger.change(|kept| {
            kept.held.remove(name);
            kept.stopped.remove(name);
        })?;
        Ok(())
    }

    /// Ends the run of a job that is under way, and keeps it from running until [`start`](Self::start).
    ///
    /// # Errors
    /// When there is none, the role of this node does not allow it anyway, or it cannot be written down.
    pub async fn stop(&self, name: &StoreName) -> Result<(), JobError> {
        let number = self.allowed(name)?;
        self.ledger.change(|kept| {
            kept.stopped.insert(name.clone());
        })?;
        let Some(job) = self.jobs.get(number) else {
            return Ok(());
        };
        if let Some((_, stopper)) = &job.live().run {
            stopper.stop();
        }
        let mut running = self.running.subscribe();
        let _held = running.wait_for(|_| job.since().is_none()).await.is_err();
        Ok(())
    }

    /// Runs a job now, and returns how it ended.
    ///
    /// # Errors
    /// When there is none, the role of this node does not allow it, or it runs already.
    pub async fn run_now(&self, name: &StoreName) -> Result<JobRun, JobError> {
        let number = self.allowed(name)?;
        let running = |job: &Job| {
            let job = (job.name().clone(), job.since());
            match job {
                (job, Some(since)) => Err(JobError::Running { job, since }),
                (_, None) => Err(JobError::Stopping),
            }
        };
        let Some(job) = self.jobs.get(number) else {
            return Err(JobError::Unknown(name.clone()));
        };
        if job.since().is_some() {
            return running(job);
        }
        let (reply, answer) = oneshot::channel();
        let asked = Asked { number, reply };
        self.asked
            .send(asked)
            .await
            .map_err(|_| JobError::Stopping)?;
        // Without an answer it was begun by its schedule meanwhile, or the daemon stops.
        answer.await.or_else(|_| running(job))
    }

    /// Returns whether there is a job of that name.
    pub fn has(&self, name: &StoreName) -> bool {
        self.jobs.iter().any(|job| job.name() == name)
    }

    fn allowed(&self, name: &StoreName) -> Result<usize, JobError> {
        let number = self.jobs.iter().position(|job| job.name() == name);
        let Some((number, job)) = number.and_then(|number| Some((number, self.jobs.get(number)?)))
        else {
            return Err(JobError::Unknown(name.clone()));
        };
        let on = job.config.on;
        if self.place().is_some_and(|place| place.allows(on)) {
            Ok(number)
        } else {
            let job = name.clone();
            Err(JobError::NotHere { job, on })
        }
    }

    /// Returns how each job is.
    pub fn status(&self) -> Vec<JobStatus> {
        let place = self.place();
        let jobs = self.jobs.iter().enumerate().map(|(number, job)| {
            let config = &job.config;
            let is_allowed = place.is_some_and(|place| place.allows(config.on));
            let hold = self.hold(job).filter(|_| is_allowed);
            let last = self.ledger.read(|kept| kept.last.get(job.name()).cloned());
            let since = job.since();
            let state = match (since, is_allowed, hold) {
                (Some(_), _, _) => JobState::Running,
                (None, false, _) => JobState::Elsewhere,
                (None, true, Some(_)) => JobState::Held,
                (None, true, None) => JobState::Waiting,
            };
            let next = self.table().next(number);
            JobStatus {
                name: config.name.clone(),
                on: config.on,
                schedule: config.schedule.source().to_owned(),
                state,
                since: since
                    .or(last.as_ref().map(|run| run.ended))
                    .unwrap_or(self.started),
                hold,
                last,
                next: next
                    .filter(|_| is_allowed && hold.is_none())
                    .map(WallTime::from),
            }
        });
        jobs.collect()
    }
}

/// A run that is under way; dropped when it is not.
struct Running<'a> {
    jobs: &'a Jobs,
    job: &'a Job,
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.job.live().run = None;
        self.jobs
            .running
            .send_modify(|count| *count = count.saturating_sub(1));
    }
}
