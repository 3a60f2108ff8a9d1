//! The services of a placement are started, and what does not belong there is stopped.

use std::sync::PoisonError;
use std::time::Duration;

use understudy_replication::event::Severity;
use understudy_replication::status::ServiceState;
use understudy_replication::store::{NoProgress, Progress, Unit};

use super::error::ServiceError;
use super::place::{Until, Where, Wish};
use super::service::{Came, Service};
use super::{Placement, Ready, Services};

/// The pause before a start is tried a second time; it doubles with each further try.
pub(super) const START_PAUSE: Duration = Duration::from_millis(500);

/// The longest pause between two tries of a start.
pub(super) const START_PAUSE_MAX: Duration = Duration::from_secs(10);

impl Services {
    /// Makes the services those of `place`: stops what does not belong there, then starts what does, each after
    /// those before it are up. One that is up already is left alone. Repeatable.
    ///
    /// # Errors
    /// At the first critical service that does not come up; those before it stay up. Where this node follows
    /// a primary: when one that must not run there cannot be stopped.
    pub async fn start_all(
        &self,
        place: Placement,
        progress: &dyn Progress,
    ) -> Result<(), ServiceError> {
        let wish = self.wish_for(Where::At(place), true);
        self.carry_out(wish, place, progress, self.services.len())
            .await
    }

    /// Starts the services of a primary up to the last one that is critical: what comes after is nothing that
    /// clients should wait for. [`start_all`](Self::start_all) starts the rest.
    ///
    /// # Errors
    /// As those of [`start_all`](Self::start_all).
    pub async fn start_critical(&self, progress: &dyn Progress) -> Result<(), ServiceError> {
        let place = Placement::Primary;
        let is_critical =
            |service: &Service| service.config.is_critical && place.allows(service.config.on);
        let last = self.services.iter().rposition(is_critical);
        let count = last.map_or(0, |last| last + 1);
        let wish = self.wish_for(Where::At(place), true);
        self.carry_out(wish, place, progress, count).await
    }

    /// Takes in that this node follows a primary: [`watch`](Self::watch) stops what runs on the primary only.
    /// Nothing is started before [`follow`](Self::follow).
    pub fn arrive(&self) {
        self.wish_for(Where::At(Placement::Standby), false);
    }

    /// Asks that the services of a node that follows a primary run here, once `ready` has ended, unless something
    /// else is asked meanwhile. [`watch`](Self::watch) carries it out.
    pub fn follow(&self, ready: impl Future<Output = ()> + Send + 'static) {
        let wish = self.wish_for(Where::At(Placement::Standby), false);
        // They run already: the node has only found another primary.
        if !wish.is_open {
            let ready: Ready = Box::pin(ready);
            *self.pending.lock().unwrap_or_else(PoisonError::into_inner) = Some(ready);
            self.pended.notify_one();
        }
    }

    /// Waits until somebody asks that the services of a standby be started, and returns what they wait for.
    async fn next_ready(&self) -> Option<Ready> {
        self.pended.notified().await;
        self.pending
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
    }

    /// Starts the services of a standby whenever it is asked and ready.
    pub(super) async fn follow_always(&self) {
        let mut asked: Option<Ready> = None;
        loop {
            let Some(ready) = asked.take() else {
                asked = self.next_ready().await;
                continue;
            };
            let mut wishes = self.wish.subscribe();
            let wish = *wishes.borrow_and_update();
            if wish.place != Where::At(Placement::Standby) {
                continue;
            }
            tokio::select! {
                () = ready => {}
                // The sender is `self`.
                _ = wishes.wait_for(|now| now.generation != wish.generation) => continue,
                // Somebody asks anew, with something else to wait for.
                next = self.next_ready() => {
                    asked = next;
                    continue;
                }
            }
            let place = Placement::Standby;
            let count = self.services.len();
            if let Err(error) = self.carry_out(wish, place, &NoProgress, count).await {
                // Its service has told it as an event.
                let error = understudy_replication::error_chain(&error);
                tracing::warn!(error, "not every service is in place");
            }
        }
    }

    /// Allows that what belongs to a placement is started; `None` when something else is asked meanwhile.
    fn open(&self, wish: Wish) -> Option<Wish> {
        // In one step: a fence that comes between must not be undone.
        self.wish.send_if_modified(|now| {
            let is_new = now.generation == wish.generation && !now.is_open;
            now.is_open |= is_new;
            is_new
        });
        Some(*self.wish.borrow()).filter(|now| now.generation == wish.generation)
    }

    async fn carry_out(
        &self,
        wish: Wish,
        place: Placement,
        progress: &dyn Progress,
        count: usize,
    ) -> Result<(), ServiceError> {
        let _changing = self.changing.write().await;
        let Some(wish) = self.open(wish) else {
            return match self.services.first() {
                Some(first) => Err(broken_off(first)),
                None => Ok(()),
            };
        };
        if place == Placement::Standby {
            self.release();
        }
        let strays = self.stop_strays(wish, place).await;
        for service in self.services.iter().take(count) {
            if !self.is_wanted(service, wish) {
                continue;
            }
            let name = service.name();
            // The watch does not start again what has been given up; nor is it tried for each who asks.
            if service.has_given_up() && !service.config.is_critical {
                continue;
            }
            progress.start(&format!("service {name}"), None, Unit::Items);
            match self.bring_up(service, wish).await {
                Ok(()) => progress.end(&format!("service {name} is up")),
                // An operator has stopped it meanwhile, and nobody has stopped them all.
                Err(ServiceError::BrokenOff { .. }) if self.is_asked(wish) => {
                    progress.end(&format!("service {name} was stopped by an operator"));
                }
                Err(error) => {
                    progress.end(&format!("service {name} failed"));
                    if service.config.is_critical || !self.is_asked(wish) {
                        self.settle(wish, place);
                        return Err(error);
                    }
                }
            }
        }
        if count == self.services.len() {
            self.settle(wish, place);
        }
        match (strays, place) {
            (Some(error), Placement::Standby) => Err(error),
            // A primary must not stay down because a report still runs that is a standby's.
            (Some(_), Placement::Primary) | (None, _) => Ok(()),
        }
    }

    /// Has what goes by the placement begin, unless something else is asked meanwhile.
    fn settle(&self, wish: Wish, place: Placement) {
        self.settled.send_if_modified(|settled| {
            let is_new = self.is_asked(wish) && *settled != Some(place);
            if is_new {
                *settled = Some(place);
            }
            is_new
        });
        self.changed.send_replace(());
    }

    /// Stops what runs and does not belong to a placement; returns why the first of them did not stop.
    async fn stop_strays(&self, wish: Wish, place: Placement) -> Option<ServiceError> {
        let elsewhere = |service: &&Service| !place.allows(service.config.on);
        let asked = self.services.iter().filter(elsewhere).map(async |service| {
            let answer = service.ask().await;
            (service, answer)
        });
        let answers = futures_util::future::join_all(asked).await;
        let mut failure = None;
        for (service, answer) in answers.into_iter().rev() {
            if !self.is_asked(wish) {
                return None;
            }
            if !answer.is_up() {
                service.rest(&answer);
                continue;
            }
            if let Err(error) = service.stop().await {
                failure.get_or_insert(error);
            }
        }
        failure
    }

    /// Starts a service, and tries again as often as it may be started again.
    pub(super) async fn bring_up(&self, service: &Service, wish: Wish) -> Result<(), ServiceError> {
        let _busy = service.busy.lock().await;
        let mut until = self.until(service, wish);
        let mut pause = START_PAUSE;
        let mut tries = 0_u16;
        loop {
            let started = tokio::select! {
                biased;
                () = until.over() => Err(broken_off(service)),
                started = service.start() => started,
            };
            let error = match started {
                Ok(Came::Found) => return Ok(()),
                Ok(Came::Started) => {
                    service.end_outage();
                    let message = match tries {
                        0 => format!("service {} is up", service.name()),
                        tries => format!("service {} is up at try {}", service.name(), tries + 1),
                    };
                    self.events
                        .record(Severity::Info, "service_started", message);
                    return Ok(());
                }
                Err(error @ ServiceError::BrokenOff { .. }) => return Err(error),
                Err(error) => error,
            };
            if tries >= service.config.restarts {
                service.give_up(&understudy_replication::error_chain(&error));
                return Err(error);
            }
            tries += 1;
            let again = async {
                tokio::time::sleep(pause).await;
                service.clear_away().await;
            };
            tokio::select! {
                biased;
                () = until.over() => return Err(broken_off(service)),
                () = again => {}
            }
            pause = (pause * 2).min(START_PAUSE_MAX);
        }
    }

    pub(super) fn until(&self, service: &Service, wish: Wish) -> Until {
        let (wishes, halted) = (self.wish.subscribe(), service.halted.subscribe());
        Until::new(wishes, wish.generation, halted)
    }
}

/// Takes in that the start of a service is broken off, and returns that as an error.
pub(super) fn broken_off(service: &Service) -> ServiceError {
    if service.state() == ServiceState::GoingOnline {
        // Whether it is, is asked next.
        service.set(ServiceState::Offline, "its start was broken off");
    }
    ServiceError::BrokenOff {
        service: service.name().clone(),
    }
}
