//! One service, and how it is.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use understudy_config::StoreName;
use understudy_replication::command::OsUser;
use understudy_replication::event::{Events, Severity};
use understudy_replication::status::{Hold, ServiceState, ServiceStatus};
use understudy_replication::wall_time::WallTime;

use super::budget::Budget;
use super::error::ServiceError;
use super::output::shortened;
use super::start::{START_PAUSE, START_PAUSE_MAX};

pub(super) struct Service {
    pub(super) config: understudy_config::Service,
    pub(super) user: Option<OsUser>,
    pub(super) env: Vec<(String, String)>,
    pub(super) events: Events,
    live: Mutex<Live>,
    /// Held while it is started or stopped.
    pub(super) busy: tokio::sync::Mutex<()>,
    /// Counts how often an operator has stopped it: a start under way is broken off.
    pub(super) halted: watch::Sender<u64>,
    /// It is to be looked at at once.
    pub(super) poked: Notify,
    changed: watch::Sender<()>,
}

/// How it is.
pub(super) struct Live {
    state: ServiceState,
    since: WallTime,
    message: String,
    /// What its status command said when it answered last, whatever was made of it.
    pub(super) is_up: Option<bool>,
    pub(super) probed: Option<WallTime>,
    budget: Budget,
    restarts_total: u64,
    has_given_up: bool,
    /// Since when it should run and does not.
    down_since: Option<Instant>,
    /// Counts starts and stops: an answer from before says nothing after.
    pub(super) changes: u64,
}

/// How a service has come up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Came {
    /// It was up already.
    Found,
    /// It was started.
    Started,
}

/// What a status command said.
pub(super) enum Answer {
    /// It succeeded.
    Up(String),
    /// It failed.
    Down(String),
    /// It could not be run, which says nothing.
    Unasked(String),
    /// It did not end in time.
    Silent,
}

impl Answer {
    pub(super) fn is_up(&self) -> bool {
        match self {
            Self::Up(_) => true,
            Self::Down(_) | Self::Unasked(_) | Self::Silent => false,
        }
    }

    /// Returns whether it is up, where the answer says that for certain.
    pub(super) fn says(&self) -> Option<bool> {
        match self {
            Self::Up(_) => Some(true),
            Self::Down(_) => Some(false),
            Self::Unasked(_) | Self::Silent => None,
        }
    }

    /// Returns the last line that it printed.
    pub(super) fn line(&self) -> &str {
        match self {
            Self::Up(line) | Self::Down(line) | Self::Unasked(line) => line,
            Self::Silent => "its status command does not answer",
        }
    }
}

impl Service {
    pub(super) fn new(
        config: &understudy_config::Service,
        user: Option<OsUser>,
        env: Vec<(String, String)>,
        events: Events,
        changed: watch::Sender<()>,
    ) -> Self {
        let live = Live {
            state: ServiceState::Unknown,
            since: WallTime::now(),
            message: String::new(),
            is_up: None,
            probed: None,
            budget: Budget::new(config.restarts, config.restart_window),
            restarts_total: 0,
            has_given_up: false,
            down_since: None,
            changes: 0,
        };
        Self {
            config: config.clone(),
            user,
            env,
            events,
            live: Mutex::new(live),
            busy: tokio::sync::Mutex::new(()),
            halted: watch::Sender::new(0),
            poked: Notify::new(),
            changed,
        }
    }

    pub(super) fn name(&self) -> &StoreName {
        &self.config.name
    }

    pub(super) fn live(&self) -> MutexGuard<'_, Live> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn status(&self, is_wanted: bool, hold: Option<Hold>) -> ServiceStatus {
        let live = self.live();
        let name = self.name();
        let message = match (hold, live.state) {
            (Some(Hold::Failover), ServiceState::Offline | ServiceState::Unknown) => {
                format!(
                    "held back since the promotion; `understudy services start {name}` starts it"
                )
            }
            (Some(Hold::Operator), ServiceState::Offline | ServiceState::Unknown) => {
                format!("stopped by an operator; `understudy services start {name}` starts it")
            }
            (None | Some(_), _) => live.message.clone(),
        };
        ServiceStatus {
            name: name.clone(),
            state: live.state,
            since: live.since,
            message,
            on: self.config.on,
            is_critical: self.config.is_critical,
            is_wanted,
            hold,
            stopped: None,
            after: self.config.after.clone(),
            user: self.config.user.clone(),
            probed: live.probed,
            restarts: count(live.budget.used(Instant::now())),
            restarts_max: self.config.restarts.into(),
            restarts_total: live.restarts_total,
        }
    }

    pub(super) fn state(&self) -> ServiceState {
        self.live().state
    }

    /// Returns whether it may be running.
    pub(super) fn may_run(&self) -> bool {
        let live = self.live();
        live.is_up == Some(true)
            || matches!(
                live.state,
                ServiceState::GoingOnline | ServiceState::GoingOffline
            )
    }

    pub(super) fn changes(&self) -> u64 {
        self.live().changes
    }

    pub(super) fn has_given_up(&self) -> bool {
        self.live().has_given_up
    }

    pub(super) fn may_restart(&self) -> bool {
        self.live().budget.is_left(Instant::now())
    }

    /// Counts that it is started again; returns how often it was, in words.
    pub(super) fn take_restart(&self) -> String {
        let mut live = self.live();
        let now = Instant::now();
        live.budget.take(now);
        live.restarts_total = live.restarts_total.saturating_add(1);
        let (count, window) = (self.config.restarts, self.config.restart_window.as_secs());
        format!("restart {} of {count} in {window} s", live.budget.used(now))
    }

    /// Returns the pause after a restart that has failed.
    pub(super) fn pause(&self) -> Duration {
        let used = u32::try_from(self.live().budget.used(Instant::now())).unwrap_or(u32::MAX);
        START_PAUSE
            .saturating_mul(2_u32.saturating_pow(used))
            .min(START_PAUSE_MAX)
    }

    /// Forgets that it was started as often as it may be.
    pub(super) fn clear(&self) {
        let mut live = self.live();
        live.has_given_up = false;
        live.budget.reset();
    }

    /// Returns for how long it has been down that should be up, and that it is not any more.
    pub(super) fn outage(&self) -> Option<Duration> {
        self.live().down_since.take().map(|since| since.elapsed())
    }

    /// Takes in that it is not down any more, or need not be up.
    pub(super) fn end_outage(&self) {
        self.live().down_since = None;
    }

    /// Sets how it is, and returns how it was.
    pub(super) fn set(&self, state: ServiceState, message: &str) -> ServiceState {
        let mut live = self.live();
        let before = live.state;
        if before != state {
            live.state = state;
            live.since = WallTime::now();
        }
        live.message = shortened(message);
        if state == ServiceState::Online {
            live.has_given_up = false;
        }
        let has_changed = before != state;
        drop(live);
        if has_changed {
            self.changed.send_replace(());
        }
        before
    }

    /// Takes in that it is not up, and need not be. What could not be stopped stays a fault until its status says
    /// for certain that it is down: no answer is not one.
    pub(super) fn rest(&self, answer: &Answer) {
        if answer.says().is_some() || self.state() != ServiceState::Fault {
            self.set(ServiceState::Offline, answer.line());
            self.end_outage();
        }
    }

    pub(super) fn begin(&self, state: ServiceState) -> ServiceState {
        let mut live = self.live();
        live.changes = live.changes.wrapping_add(1);
        drop(live);
        self.set(state, "")
    }

    /// Takes in that it is up; tells so when that is the first that is heard of it.
    pub(super) fn adopt(&self, answer: &Answer) {
        let name = self.name();
        match self.set(ServiceState::Online, answer.line()) {
            ServiceState::Online | ServiceState::GoingOnline | ServiceState::GoingOffline => {}
            ServiceState::Unknown | ServiceState::Offline => {
                let message = format!("service {name} was up already, and was not restarted");
                self.events
                    .record(Severity::Info, "service_adopted", message);
            }
            ServiceState::Fault => {
                let message = format!("service {name} is up again");
                self.events
                    .record(Severity::Info, "service_recovered", message);
            }
        }
        self.end_outage();
    }

    /// Takes in that it should run and does not. Told once.
    pub(super) fn note_down(&self, answer: &Answer, why: &str) {
        let mut live = self.live();
        let is_news = live.down_since.is_none();
        live.down_since.get_or_insert_with(Instant::now);
        drop(live);
        let line = answer.line();
        let said = if line.is_empty() {
            "its status says nothing"
        } else {
            line
        };
        let message = if why.is_empty() {
            said.to_owned()
        } else {
            format!("{why}; {said}")
        };
        self.set(ServiceState::Fault, &message);
        if is_news {
            let message = format!(
                "service {} is down and should be up: {message}",
                self.name()
            );
            self.events.record(Severity::Error, "service_down", message);
        }
    }

    /// Takes in that it was started as often as it may be.
    pub(super) fn give_up(&self, reason: &str) {
        let mut live = self.live();
        live.has_given_up = true;
        live.down_since.get_or_insert_with(Instant::now);
        drop(live);
        self.set(ServiceState::Fault, reason);
        let name = self.name();
        let (count, window) = (self.config.restarts, self.config.restart_window.as_secs());
        let message = format!(
            "service {name} stays down: {reason}; it is started again {count} times in {window} s and no \
             more; mend it, then run `understudy services clear {name}`"
        );
        self.events
            .record(Severity::Error, "service_fault", message);
    }

    pub(super) fn failed(&self, error: ServiceError) -> ServiceError {
        let told = understudy_replication::error_chain(&error);
        self.set(ServiceState::Fault, &told);
        self.events.record(Severity::Error, "service_failed", told);
        error
    }
}

fn count(number: usize) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}
