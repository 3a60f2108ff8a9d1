//! What an operator asks of a job, and is shown of it.

use tokio::sync::oneshot;
use understudy_config::{AfterFailover, StoreName};
use understudy_replication::event::Severity;
use understudy_replication::status::{JobRun, JobState, JobStatus, StoppedBy};
use understudy_replication::wall_time::WallTime;

use super::{Asked, Job, JobError, Jobs};

impl Jobs {
    /// Holds back those that an operator is to start after a promotion that was not planned, until
    /// [`start`](Self::start) or until this node follows a primary. To be asked before the services are started.
    pub fn hold_after_failover(&self) {
        let held = self
            .jobs
            .iter()
            .filter(|job| job.config.after_failover == AfterFailover::Hold);
        let held: Vec<StoreName> = held.map(|job| job.name().clone()).collect();
        for name in &held {
            let message = format!(
                "job {name} is held back: this node was promoted, and after_failover is \"hold\"; start it with \
                 `understudy services start {name}`"
            );
            self.events.record(Severity::Warning, "job_held", message);
        }
        self.keep(|kept| kept.holds.hold(held));
    }

    /// Lets a job run on its schedule, whatever has held it back.
    ///
    /// # Errors
    /// When there is none, the role of this node does not allow it, or it cannot be written down.
    pub fn start(&self, name: &StoreName) -> Result<(), JobError> {
        self.allowed(name)?;
        self.ledger.change(|kept| kept.holds.let_go(name))?;
        Ok(())
    }

    /// Ends the run of a job that is under way for `by`, and keeps it from running until [`start`](Self::start).
    ///
    /// # Errors
    /// When there is none, the role of this node does not allow it anyway, or it cannot be written down.
    pub async fn stop(&self, name: &StoreName, by: StoppedBy) -> Result<(), JobError> {
        let number = self.allowed(name)?;
        self.ledger
            .change(|kept| kept.holds.stop(name.clone(), by))?;
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
