//! What is started and stopped with the role of a node: in order, in the reverse order, watched.
//!
//! A service is three commands. `status` succeeds while it runs; a start that ends well but leaves
//! `status` failing has failed, and a `status` that hangs means that the service is down.
//!
//! ```text
//! role ──▶ Wish (where) ──▶ start_all, stop_all     every service, in order
//!                      └──▶ watch ─ judge ─▶ restart, stop one service, again and again
//! ```
//!
//! Who works on all of them holds `changing` alone, who works on one of them shares it. What was begun for
//! an earlier wish is broken off: who is fenced must not wait for a start.

mod budget;
mod commands;
mod error;
pub(crate) mod holds;
mod hooks;
mod judge;
pub(crate) mod ledger;
mod operator;
mod output;
mod place;
mod service;
mod start;
#[cfg(test)]
mod tests;
mod watch;

use std::path::Path;
use std::pin::Pin;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::{Notify, RwLock, watch as channel};
use understudy_config::{AfterFailover, On, StoreName};
use understudy_replication::command::OsUser;
use understudy_replication::event::{Events, Severity};
use understudy_replication::status::{Hold, ServiceState, ServiceStatus};

pub(crate) use error::nodes;
pub use error::{OperatorError, ServiceError, ServicesError, StopError};
use holds::Holds;
pub use hooks::Hooks;
use ledger::Ledger;
pub use ledger::LedgerError;
pub(crate) use output::{digest, last_line, shortened};
pub use place::Placement;
use place::{Where, Wish};
use service::Service;

/// The services of this node, in the order in which they are started.
pub struct Services {
    services: Vec<Service>,
    wish: channel::Sender<Wish>,
    /// What a node that follows a primary waits for before its services are started.
    pending: Mutex<Option<Ready>>,
    pended: Notify,
    /// The placement in which the services have been started.
    settled: channel::Sender<Option<Placement>>,
    changing: RwLock<()>,
    is_paused: AtomicBool,
    /// What operators and failovers have asked for: `services.json`.
    ledger: Ledger<Holds>,
    changed: channel::Sender<()>,
    events: Events,
}

/// Ends when the services of a standby may be started.
type Ready = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Looks up who runs the commands of a section.
pub(crate) fn user(
    section: &'static str,
    name: &str,
    user: Option<&str>,
) -> Result<Option<OsUser>, ServicesError> {
    let Some(user) = user else {
        return Ok(None);
    };
    let found = OsUser::find(user).map_err(|source| ServicesError::User {
        section,
        name: name.to_owned(),
        user: user.to_owned(),
        source: Box::new(source),
    })?;
    Ok(Some(found))
}

impl Services {
    /// Returns the services, in the order in which they are given; none of their commands runs yet. Each of
    /// them gets `env`. What operators ask for is kept in `state_dir`.
    ///
    /// # Errors
    /// When there is no such user, or what operators have asked for cannot be read.
    pub fn new(
        configs: &[understudy_config::Service],
        env: Vec<(String, String)>,
        events: Events,
        state_dir: &Path,
    ) -> Result<Self, ServicesError> {
        let (changed, _) = channel::channel(());
        let service = |config: &understudy_config::Service| {
            let user = user("service", config.name.as_str(), config.user.as_deref())?;
            let (env, events, changed) = (env.clone(), events.clone(), changed.clone());
            Ok(Service::new(config, user, env, events, changed))
        };
        let services: Result<_, ServicesError> = configs.iter().map(service).collect();
        let wish = Wish {
            place: Where::Undecided,
            is_open: false,
            generation: 0,
        };
        Ok(Self {
            services: services?,
            wish: channel::Sender::new(wish),
            pending: Mutex::new(None),
            pended: Notify::new(),
            settled: channel::Sender::new(None),
            changing: RwLock::new(()),
            is_paused: AtomicBool::new(false),
            ledger: Ledger::open(&state_dir.join("services.json"))?,
            changed,
            events,
        })
    }

    /// Sets what is asked; what was begun for something else is broken off. Where that `is_open`, what belongs
    /// there may be started.
    fn wish_for(&self, place: Where, is_open: bool) -> Wish {
        self.wish.send_if_modified(|wish| {
            let before = *wish;
            if wish.place != place {
                wish.place = place;
                wish.is_open = false;
                wish.generation = wish.generation.wrapping_add(1);
            }
            wish.is_open |= is_open;
            *wish != before
        });
        // Jobs end at once where they may not run any more, and begin only beside the services.
        self.settled.send_if_modified(|settled| {
            let is_over = settled.is_some() && *settled != place.placement();
            if is_over {
                *settled = None;
            }
            is_over
        });
        *self.wish.borrow()
    }

    fn is_asked(&self, wish: Wish) -> bool {
        self.wish.borrow().generation == wish.generation
    }

    /// Stops every service in the reverse order, and goes on when one does not stop. Repeatable; the
    /// commands run whatever is known of a service, because who is fenced must be down for certain.
    ///
    /// # Errors
    /// When services are still up; the error names each.
    pub async fn stop_all(&self) -> Result<(), StopError> {
        // Before the lock: a start that has it breaks off, since who is fenced must not wait.
        self.wish_for(Where::Nowhere, false);
        let _changing = self.changing.write().await;
        // A start that waits for the lock may have asked for something else meanwhile.
        self.wish_for(Where::Nowhere, false);
        self.stop_those(|_| true).await
    }

    /// Stops those that run on the primary only, in the reverse order; what a standby runs stays.
    ///
    /// # Errors
    /// When services are still up; the error names each.
    pub async fn stop_primary(&self) -> Result<(), StopError> {
        self.wish_for(Where::At(Placement::Standby), false);
        let _changing = self.changing.write().await;
        self.stop_those(|service| service.config.on == On::Primary)
            .await
    }

    /// Asks every service how it is, and returns those that are not certainly down. Whatever their role.
    pub async fn running(&self) -> Vec<StoreName> {
        let mut running = Vec::new();
        for service in &self.services {
            if service.ask().await.says() != Some(false) {
                running.push(service.name().clone());
            }
        }
        running
    }

    /// Stops those that are not certainly down, in the reverse order, and none of the others.
    ///
    /// # Errors
    /// When services are still up; the error names each.
    pub async fn stop_running(&self) -> Result<(), StopError> {
        let running = self.running().await;
        self.wish_for(Where::Nowhere, false);
        let _changing = self.changing.write().await;
        self.stop_those(|service| running.contains(service.name()))
            .await
    }

    async fn stop_those(&self, is_meant: impl Fn(&Service) -> bool) -> Result<(), StopError> {
        let mut failures = Vec::new();
        for service in self.services.iter().rev().filter(|it| is_meant(it)) {
            if let Err(error) = service.stop().await {
                failures.push(error);
            }
        }
        if failures.is_empty() {
            Ok(())
        } else {
            Err(StopError { failures })
        }
    }

    /// Holds back those that an operator is to start after a promotion that was not planned, until
    /// [`start_one`](Self::start_one) or until this node follows a primary. To be asked before the services are
    /// started.
    pub fn hold_after_failover(&self) {
        let held: Vec<StoreName> = self
            .services
            .iter()
            .filter(|service| service.config.after_failover == AfterFailover::Hold)
            .map(|service| service.name().clone())
            .collect();
        for name in &held {
            let message = format!(
                "service {name} is held back: this node was promoted, and after_failover is \"hold\"; start it \
                 with `understudy services start {name}`"
            );
            self.events
                .record(Severity::Warning, "service_held", message);
        }
        self.keep_anyway(|holds| holds.hold(held));
    }

    /// Ends what is over once this node follows a primary.
    fn release(&self) {
        let is_of_standby = |name: &StoreName| {
            self.services
                .iter()
                .any(|it| it.name() == name && Placement::Standby.allows(it.config.on))
        };
        self.keep_anyway(|holds| holds.follow(is_of_standby));
    }

    fn keep_anyway(&self, change: impl FnOnce(&mut Holds)) {
        if let Err(error) = self.ledger.change_anyway(change) {
            let message = format!(
                "{}; a restart of the daemon would forget what is held back",
                understudy_replication::error_chain(&error)
            );
            self.events
                .record(Severity::Error, "service_failed", message);
        }
        self.changed.send_replace(());
    }

    /// Sets whether services are left alone that go down, or that run where they must not.
    pub fn set_paused(&self, is_paused: bool) {
        if self.is_paused.swap(is_paused, Ordering::SeqCst) == is_paused {
            return;
        }
        for service in &self.services {
            service.poked.notify_one();
        }
    }

    fn hold(&self, service: &Service) -> Option<Hold> {
        self.ledger.read(|holds| holds.of(service.name()))
    }

    /// Returns whether a service should run, by what is asked.
    fn is_wanted(&self, service: &Service, wish: Wish) -> bool {
        let place = wish.place.placement().filter(|_| wish.is_open);
        let is_allowed = place.is_some_and(|place| place.allows(service.config.on));
        is_allowed && self.hold(service).is_none()
    }

    /// Returns whether every critical service that should run here is up. Those that are held back, or that an
    /// operator has stopped, should not.
    pub fn are_up(&self) -> bool {
        let wish = *self.wish.borrow();
        wish.is_open
            && self
                .services
                .iter()
                .filter(|service| service.config.is_critical && self.is_wanted(service, wish))
                .all(|service| service.state() == ServiceState::Online)
    }

    /// Returns whether a service may be running that runs on the primary only.
    pub fn is_serving(&self) -> bool {
        self.services
            .iter()
            .any(|service| service.config.on == On::Primary && service.may_run())
    }

    /// Returns what changes whenever the state of a service does.
    pub fn subscribe(&self) -> channel::Receiver<()> {
        self.changed.subscribe()
    }

    /// Returns the placement in which the services have been started, and nothing from the moment on in which
    /// they are to be stopped: what runs beside them goes by it.
    pub fn settled(&self) -> channel::Receiver<Option<Placement>> {
        self.settled.subscribe()
    }

    /// Returns how each service was when it was last asked.
    pub fn status(&self) -> Vec<ServiceStatus> {
        let wish = *self.wish.borrow();
        self.services
            .iter()
            .map(|service| ServiceStatus {
                stopped: self
                    .ledger
                    .read(|holds| holds.stopped_by(service.name()).cloned()),
                ..service.status(self.is_wanted(service, wish), self.hold(service))
            })
            .collect()
    }
}
