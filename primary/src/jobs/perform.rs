//! One run of a job.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{oneshot, watch};
use understudy_replication::command::{Command, CommandError};
use understudy_replication::error_chain;
use understudy_replication::event::Severity;
use understudy_replication::status::{JobOutcome, JobRun};
use understudy_replication::store::Stop;
use understudy_replication::wall_time::WallTime;

use super::process::Process;
use super::{Job, Jobs};
use crate::services::{Placement, digest, last_line, shortened};

impl Jobs {
    /// Runs a job that has been begun, and takes in how it ended.
    pub(super) async fn perform(
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
        let seconds = Duration::from_millis(millis).as_secs_f64();
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
