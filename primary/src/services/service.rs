//! One service.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use understudy_config::StoreName;
use understudy_replication::command::{Command, CommandError};
use understudy_replication::event::{Events, Severity};
use understudy_replication::status::{ServiceState, ServiceStatus};
use understudy_replication::wall_time::WallTime;

use super::error::ServiceError;

/// How long between two questions while a service comes up or goes down.
const POLL_INTERVAL: Duration = Duration::from_millis(200);

/// How much of what a command printed is shown.
const MESSAGE_CHARS_MAX: usize = 500;

pub(super) struct Service {
    config: understudy_config::Service,
    env: Vec<(String, String)>,
    events: Events,
    status: Mutex<ServiceStatus>,
}

/// What a status command said.
pub(super) struct Answer {
    is_up: bool,
    line: String,
}

impl Service {
    pub(super) fn new(
        config: &understudy_config::Service,
        env: Vec<(String, String)>,
        events: Events,
    ) -> Self {
        let status = ServiceStatus {
            name: config.name.clone(),
            state: ServiceState::Unknown,
            since: WallTime::now(),
            message: String::new(),
        };
        Self {
            config: config.clone(),
            env,
            events,
            status: Mutex::new(status),
        }
    }

    pub(super) fn name(&self) -> &StoreName {
        &self.config.name
    }

    pub(super) fn status(&self) -> ServiceStatus {
        self.status
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Sets how it is, and returns how it was.
    fn set(&self, state: ServiceState, message: &str) -> ServiceState {
        let mut status = self.status.lock().unwrap_or_else(PoisonError::into_inner);
        let before = status.state;
        if before != state {
            status.state = state;
            status.since = WallTime::now();
        }
        status.message = message.chars().take(MESSAGE_CHARS_MAX).collect();
        before
    }

    async fn run(&self, argv: &[String]) -> Result<String, CommandError> {
        let command = Command::new(argv.to_vec())
            .env("UNDERSTUDY_SERVICE", self.config.name.as_str())
            .limit(self.config.timeout);
        let command = self
            .env
            .iter()
            .fold(command, |command, (name, value)| command.env(name, value));
        command.run().await.map(|output| last_line(&output))
    }

    /// Asks whether it is up. Whatever is not a plain yes is a no.
    pub(super) async fn ask(&self) -> Answer {
        match self.run(&self.config.status).await {
            Ok(line) => Answer { is_up: true, line },
            Err(CommandError::Failed { output, .. } | CommandError::TimedOut { output, .. }) => {
                Answer {
                    is_up: false,
                    line: last_line(&output),
                }
            }
            Err(
                error @ (CommandError::NoUser { .. }
                | CommandError::NotRoot { .. }
                | CommandError::Start { .. }),
            ) => Answer {
                is_up: false,
                line: understudy_replication::error_chain(&error),
            },
        }
    }

    /// Asks until the answer is as wanted, or the time is over, or there is `no_use`; at least once.
    async fn ask_until(&self, is_up: bool, deadline: Instant, no_use: impl Fn() -> bool) -> Answer {
        loop {
            let answer = self.ask().await;
            if answer.is_up == is_up || no_use() || Instant::now() >= deadline {
                return answer;
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    /// Starts it, and waits until it is up, or until it is not wanted any more.
    pub(super) async fn start(&self, is_wanted: &AtomicBool) -> Result<(), ServiceError> {
        let name = self.name();
        let unwanted = || !is_wanted.load(Ordering::Acquire);
        if unwanted() {
            return Err(ServiceError::BrokenOff {
                service: name.clone(),
            });
        }
        let answer = self.ask().await;
        if answer.is_up {
            if self.set(ServiceState::Online, &answer.line) != ServiceState::Online {
                let message = format!("service {name} was up already, and was not restarted");
                self.events
                    .record(Severity::Info, "service_adopted", message);
            }
            return Ok(());
        }
        self.set(ServiceState::GoingOnline, &answer.line);
        let deadline = Instant::now() + self.config.timeout;
        if let Err(source) = self.run(&self.config.start).await {
            return Err(self.fault(ServiceError::Start {
                service: name.clone(),
                source,
            }));
        }
        let answer = self.ask_until(true, deadline, unwanted).await;
        if !answer.is_up && unwanted() {
            return Err(ServiceError::BrokenOff {
                service: name.clone(),
            });
        }
        if !answer.is_up {
            return Err(self.fault(ServiceError::NotUp {
                service: name.clone(),
                limit: self.config.timeout,
                line: answer.line,
            }));
        }
        self.set(ServiceState::Online, &answer.line);
        self.events.record(
            Severity::Info,
            "service_started",
            format!("service {name} is up"),
        );
        Ok(())
    }

    pub(super) async fn stop(&self) -> Result<(), ServiceError> {
        let name = self.name();
        let before = self.set(ServiceState::GoingOffline, "");
        let deadline = Instant::now() + self.config.timeout;
        let stopped = self.run(&self.config.stop).await;
        let failed = stopped.is_err();
        let answer = if failed {
            // A stop command may fail because there is nothing to stop.
            self.ask().await
        } else {
            self.ask_until(false, deadline, || false).await
        };
        if answer.is_up {
            let service = name.clone();
            let error = match stopped {
                Err(source) => ServiceError::Stop { service, source },
                Ok(_) => ServiceError::StillUp {
                    service,
                    limit: self.config.timeout,
                    line: answer.line,
                },
            };
            return Err(self.fault(error));
        }
        self.set(ServiceState::Offline, &answer.line);
        if before != ServiceState::Offline {
            self.events.record(
                Severity::Info,
                "service_stopped",
                format!("service {name} is down"),
            );
        }
        Ok(())
    }

    /// Takes an answer in. A service that should be up and is not is a fault, told once.
    pub(super) fn note(&self, answer: &Answer, is_wanted: bool) {
        let name = self.name();
        let state = match (answer.is_up, is_wanted) {
            (true, _) => ServiceState::Online,
            (false, true) => ServiceState::Fault,
            (false, false) => ServiceState::Offline,
        };
        let before = self.set(state, &answer.line);
        if !is_wanted || before == state {
            return;
        }
        if answer.is_up {
            let message = format!("service {name} is up again");
            self.events
                .record(Severity::Info, "service_recovered", message);
        } else {
            let said = if answer.line.is_empty() {
                "its status says nothing"
            } else {
                &answer.line
            };
            let message = format!("service {name} is down and should be up: {said}");
            self.events.record(Severity::Error, "service_down", message);
        }
    }

    fn fault(&self, error: ServiceError) -> ServiceError {
        let told = understudy_replication::error_chain(&error);
        self.set(ServiceState::Fault, &told);
        self.events.record(Severity::Error, "service_failed", told);
        error
    }
}

fn last_line(output: &str) -> String {
    let line = output.lines().rev().find(|line| !line.trim().is_empty());
    line.unwrap_or_default()
        .trim()
        .chars()
        .take(MESSAGE_CHARS_MAX)
        .collect()
}
