//! The three commands of a service.

use std::time::Duration;

use tokio::time::Instant;
use understudy_replication::command::{Command, CommandError};
use understudy_replication::event::Severity;
use understudy_replication::status::ServiceState;
use understudy_replication::wall_time::WallTime;

use super::error::ServiceError;
use super::output::{digest, last_line};
use super::service::{Answer, Came, Service};

/// How long between two questions while a service comes up or goes down.
const POLL_INTERVAL: Duration = Duration::from_millis(200);

/// How often a stop command that fails is tried.
const STOP_TRIES_MAX: u32 = 3;

/// How long between two tries of a stop command that fails.
const STOP_PAUSE: Duration = Duration::from_secs(1);

/// A stop that has ended well and left the service up is repeated so many times within its limit.
const STOP_REPEATS: u32 = 3;

impl Service {
    async fn run(&self, argv: &[String], limit: Duration) -> Result<String, CommandError> {
        let command = Command::new(argv.to_vec())
            .env("UNDERSTUDY_SERVICE", self.config.name.as_str())
            .limit(limit);
        let command = self
            .env
            .iter()
            .fold(command, |command, (name, value)| command.env(name, value));
        let command = match &self.user {
            Some(user) => command.user(user),
            None => command,
        };
        command.run().await
    }

    /// Tells what a start or stop command printed.
    fn tell(&self, verb: &str, result: &Result<String, CommandError>) {
        let (severity, output) = match result {
            Ok(output) => (Severity::Info, output),
            Err(CommandError::Failed { output, .. } | CommandError::TimedOut { output, .. }) => {
                (Severity::Warning, output)
            }
            // These have printed nothing.
            Err(
                CommandError::NoUser { .. }
                | CommandError::NotRoot { .. }
                | CommandError::Start { .. },
            ) => return,
        };
        if let Some(output) = digest(output) {
            let message = format!("service {}, {verb}: {output}", self.name());
            self.events.record(severity, "service_output", message);
        }
    }

    /// Asks whether it is up.
    pub(super) async fn ask(&self) -> Answer {
        let changes = self.changes();
        let asked = self
            .run(&self.config.status, self.config.status_timeout)
            .await;
        let answer = match asked {
            Ok(output) => Answer::Up(last_line(&output)),
            Err(CommandError::Failed { output, .. }) => Answer::Down(last_line(&output)),
            Err(CommandError::TimedOut { .. }) => Answer::Silent,
            Err(
                error @ (CommandError::NoUser { .. }
                | CommandError::NotRoot { .. }
                | CommandError::Start { .. }),
            ) => Answer::Unasked(understudy_replication::error_chain(&error)),
        };
        let mut live = self.live();
        // A late answer says nothing of what was done since it was asked for.
        if live.changes == changes {
            live.probed = Some(WallTime::now());
            // No answer says nothing either: what was up may still run.
            live.is_up = answer.says().or(live.is_up);
        }
        answer
    }

    /// Asks until the service is up, or the time is over; at least once.
    async fn ask_until_up(&self, deadline: Instant) -> Answer {
        loop {
            let answer = self.ask().await;
            if answer.is_up() || Instant::now() >= deadline {
                return answer;
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    /// Asks until the service is certainly down, or the time is over; at least once.
    async fn ask_until_down(&self, deadline: Instant) -> Answer {
        loop {
            let answer = self.ask().await;
            match answer {
                Answer::Down(_) => return answer,
                Answer::Up(_) | Answer::Unasked(_) | Answer::Silent
                    if Instant::now() >= deadline =>
                {
                    return answer;
                }
                Answer::Up(_) | Answer::Unasked(_) | Answer::Silent => {
                    tokio::time::sleep(POLL_INTERVAL).await;
                }
            }
        }
    }

    /// Starts it, and waits until it is up. One that is up already is left alone. Whoever drops this has the
    /// start command killed.
    pub(super) async fn start(&self) -> Result<Came, ServiceError> {
        let name = self.name();
        let answer = self.ask().await;
        if answer.is_up() {
            self.adopt(&answer);
            return Ok(Came::Found);
        }
        self.begin(ServiceState::GoingOnline);
        let deadline = Instant::now() + self.config.timeout;
        let started = self.run(&self.config.start, self.config.timeout).await;
        self.tell("start", &started);
        if let Err(source) = started {
            return Err(self.failed(ServiceError::Start {
                service: name.clone(),
                source,
            }));
        }
        let answer = self.ask_until_up(deadline).await;
        if !answer.is_up() {
            return Err(self.failed(ServiceError::NotUp {
                service: name.clone(),
                limit: self.config.timeout,
                line: answer.line().to_owned(),
            }));
        }
        self.set(ServiceState::Online, answer.line());
        Ok(Came::Started)
    }

    /// Stops it, and makes sure that it is down. The command is repeated while it does not help.
    pub(super) async fn stop(&self) -> Result<(), ServiceError> {
        let before = self.begin(ServiceState::GoingOffline);
        let name = self.name();
        let limit = self.config.timeout;
        let deadline = Instant::now() + limit;
        let mut failures = 0;
        let (stopped, answer) = loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let stopped = self.run(&self.config.stop, left.max(POLL_INTERVAL)).await;
            let now = Instant::now();
            let next = match &stopped {
                Ok(_) => now + limit / STOP_REPEATS,
                Err(_) => {
                    failures += 1;
                    now + STOP_PAUSE
                }
            };
            // A stop command may also fail because there is nothing to stop.
            let answer = self.ask_until_down(next.min(deadline)).await;
            let is_over = Instant::now() >= deadline || failures >= STOP_TRIES_MAX;
            match answer {
                Answer::Down(_) => break (stopped, answer),
                Answer::Up(_) | Answer::Unasked(_) | Answer::Silent if is_over => {
                    break (stopped, answer);
                }
                Answer::Up(_) | Answer::Unasked(_) | Answer::Silent => {}
            }
        };
        self.tell("stop", &stopped);
        let service = name.clone();
        match (answer, stopped) {
            // What was killed in the middle of stopping it has not stopped it, though its status may fail
            // already: a unit of systemd that is being stopped is not active.
            (Answer::Down(_), Err(source @ CommandError::TimedOut { .. })) => {
                Err(self.failed(ServiceError::Stop { service, source }))
            }
            (Answer::Down(line), _) => {
                self.set(ServiceState::Offline, &line);
                self.end_outage();
                if before != ServiceState::Offline {
                    let message = format!("service {name} is down");
                    self.events
                        .record(Severity::Info, "service_stopped", message);
                }
                Ok(())
            }
            // One that is repeated may fail because the first has done it: what is in doubt is what it is now.
            (answer @ Answer::Unasked(_), Ok(_) | Err(CommandError::Failed { .. }))
            | (answer @ Answer::Silent, _) => {
                let why = answer.line().to_owned();
                Err(self.failed(ServiceError::Silent { service, why }))
            }
            (Answer::Up(_) | Answer::Unasked(_), Err(source)) => {
                Err(self.failed(ServiceError::Stop { service, source }))
            }
            (Answer::Up(line), Ok(_)) => Err(self.failed(ServiceError::StillUp {
                service,
                limit,
                line,
            })),
        }
    }

    /// Clears away what may be left of it before it is started again: one that hangs is down by its status,
    /// and yet there. What comes of it shows in the start.
    pub(super) async fn clear_away(&self) {
        self.begin(ServiceState::GoingOnline);
        let stopped = self.run(&self.config.stop, self.config.timeout).await;
        if stopped.is_ok() {
            self.tell("stop before a restart", &stopped);
        }
    }
}
