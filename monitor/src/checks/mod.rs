//! What is looked at on a machine besides its stores and services: disks, memory, the network, programs.
//!
//! ```text
//! each check:  look (bounded) ──▶ Judge ──▶ state, and an event at each turn
//! ```
//! [`Checks`] is what to read; how a look becomes a state is `judge`, which knows no time but what it is told.

mod built_in;
mod judge;
mod local;
mod look;
mod network;

use std::convert::Infallible;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::future::BoxFuture;
use tokio::task::JoinSet;
use tokio_postgres::Client;
use understudy_config::{CheckOn, CheckSeverity, Config, Local, StoreName};
use understudy_replication::event::{Events, Severity};
use understudy_replication::keep_up::{Broken, keep_up};
use understudy_replication::status::{CheckState, CheckStatus, RoleName};
use understudy_replication::store::{Stop, StoreFailure};
use understudy_replication::wall_time::WallTime;

use judge::{Judge, Turn};
use look::Looker;

/// Connects to the database of a name, or to the one that is configured.
pub type Connect =
    Arc<dyn Fn(Option<String>) -> BoxFuture<'static, Result<Client, StoreFailure>> + Send + Sync>;

/// Tells the node's role at any moment.
pub type Role = Arc<dyn Fn() -> RoleName + Send + Sync>;

/// How much of what a look found is told.
const MESSAGE_CHARS_MAX: usize = 500;

/// The checks of this node.
pub struct Checks {
    checks: Vec<Arc<Check>>,
    events: Events,
    is_muted: AtomicBool,
}

/// One check, with what is known of it.
struct Check {
    config: understudy_config::Check,
    looker: Looker,
    known: Mutex<Known>,
}

struct Known {
    judge: Judge,
    checked: Option<WallTime>,
    message: String,
    /// The role of this node is one in which it is looked at.
    applies: bool,
    /// What people were told last: that it has failed.
    told: bool,
}

impl Checks {
    /// Returns the checks of the configuration, and those of the room on the disks that hold its stores and
    /// `state_dir`. Nothing is looked at yet. Commands get `env`; `connect` is for checks of Postgres.
    pub fn new(
        config: &Config,
        local: &Local,
        env: Vec<(String, String)>,
        events: Events,
        connect: Connect,
    ) -> Arc<Self> {
        let now = WallTime::now();
        let of_config = config.checks.iter().map(|check| {
            let looker = Looker::new(check, local, env.clone(), connect.clone());
            (check.clone(), looker)
        });
        let built_in = built_in::disks(config, local).into_iter().map(|check| {
            let looker = Looker::of_built_in(&check);
            (check, looker)
        });
        let check = |(config, looker): (understudy_config::Check, Looker)| {
            let known = Known {
                judge: Judge::new(config.fail_after, config.recover_after, now),
                checked: None,
                message: "not looked at yet".to_owned(),
                applies: config.on == CheckOn::Any,
                told: false,
            };
            Arc::new(Check {
                config,
                looker,
                known: Mutex::new(known),
            })
        };
        Arc::new(Self {
            checks: of_config.chain(built_in).map(check).collect(),
            events,
            is_muted: AtomicBool::new(false),
        })
    }

    /// Looks, each check at its own interval, until told to stop.
    pub async fn run(self: Arc<Self>, role: Role, stop: Stop) {
        let mut tasks = JoinSet::new();
        for check in &self.checks {
            tasks.spawn(self.clone().attend(check.clone(), role.clone()));
        }
        stop.wait().await;
        tasks.shutdown().await;
    }

    /// Returns every check that this node's role asks for.
    pub fn status(&self) -> Vec<CheckStatus> {
        let checks = self.checks.iter().filter_map(|check| {
            let known = check.known();
            known.applies.then(|| CheckStatus {
                name: check.config.name.clone(),
                kind: check.config.kind.as_str().to_owned(),
                state: known.judge.state(),
                severity: severity(check.config.severity),
                since: known.judge.since(),
                checked: known.checked,
                message: known.message.clone(),
                blocks_promotion: check.config.blocks_promotion,
            })
        });
        checks.collect()
    }

    /// Returns the checks that speak against a promotion of this node, each with what was found.
    pub fn blocking(&self) -> Vec<(StoreName, String)> {
        let blocking = self
            .status()
            .into_iter()
            .filter(|check| check.blocks_promotion && check.state == CheckState::Failed);
        blocking.map(|check| (check.name, check.message)).collect()
    }

    /// Tells nobody of failures from now on, or again. What has changed meanwhile, and still is so, is told
    /// then.
    pub fn set_muted(&self, is_muted: bool) {
        self.is_muted.store(is_muted, Ordering::Release);
        if !is_muted {
            for check in &self.checks {
                self.tell(check);
            }
        }
    }

    /// Looks, also after a look has broken.
    async fn attend(self: Arc<Self>, check: Arc<Check>, role: Role) {
        let work = || self.repeat(&check, &role);
        match keep_up(work, |broken| self.note_broken(&check, broken)).await {}
    }

    /// Takes in that nothing is known of a check, since it was not looked at to the end.
    fn note_broken(&self, check: &Check, broken: &Broken) {
        let mut known = check.known();
        known.judge.forget(WallTime::now());
        known.checked = None;
        let message = format!(
            "a look has broken: {}; the next is in {} s",
            broken.why,
            broken.pause.as_secs()
        );
        known.message = message.chars().take(MESSAGE_CHARS_MAX).collect();
        // A failure that is seen again is told again.
        known.told = false;
        drop(known);
        if broken.is_news {
            let message = format!(
                "nothing is known of check {} ({}): {message}; this is a mistake in understudy",
                check.config.name,
                check.config.kind.as_str()
            );
            self.events
                .record(Severity::Error, "check_unknown", message);
        }
    }

    async fn repeat(&self, check: &Check, role: &Role) -> Infallible {
        loop {
            let applies = match check.config.on {
                CheckOn::Any => true,
                CheckOn::Primary => role() == RoleName::Primary,
                CheckOn::Standby => role() == RoleName::Standby,
            };
            if applies {
                let (finding, message) = check.looker.look().await;
                let mut known = check.known();
                let now = WallTime::now();
                let turn: Option<Turn> = known.judge.hear(finding, now);
                known.applies = true;
                known.checked = Some(now);
                known.message = message.chars().take(MESSAGE_CHARS_MAX).collect();
                drop(known);
                if turn.is_some() {
                    self.tell(check);
                }
            } else {
                let mut known = check.known();
                if known.applies {
                    // What it was in another role says nothing.
                    known.judge.forget(WallTime::now());
                    (known.applies, known.told, known.checked) = (false, false, None);
                    known.message = "not looked at yet".to_owned();
                }
            }
            tokio::time::sleep(check.config.interval).await;
        }
    }

    /// Records that a check has failed or recovered, unless that is known or nobody is to be told.
    fn tell(&self, check: &Check) {
        let mut known = check.known();
        let has_failed = known.judge.state() == CheckState::Failed;
        if known.told == has_failed || self.is_muted.load(Ordering::Acquire) {
            return;
        }
        known.told = has_failed;
        let (kind, verb) = match has_failed {
            true => ("check_failed", "fails"),
            false => ("check_recovered", "is well again"),
        };
        let message = format!(
            "check {} ({}) {verb}: {}",
            check.config.name,
            check.config.kind.as_str(),
            known.message
        );
        drop(known);
        self.events
            .record(severity(check.config.severity), kind, message);
    }
}

impl Check {
    fn known(&self) -> std::sync::MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn severity(severity: CheckSeverity) -> Severity {
    match severity {
        CheckSeverity::Info => Severity::Info,
        CheckSeverity::Warning => Severity::Warning,
        CheckSeverity::Error => Severity::Error,
    }
}
