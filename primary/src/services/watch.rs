//! The services are asked how they are, again and again, and what follows from it is done.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::task::JoinSet;
use understudy_replication::error_chain;
use understudy_replication::event::Severity;
use understudy_replication::keep_up::{Broken, keep_up};
use understudy_replication::status::ServiceState;
use understudy_replication::store::Stop;

use super::Services;
use super::error::ServiceError;
use super::judge::{Seen, Verdict, judge};
use super::place::{Where, Wish};
use super::service::{Answer, Came, Service};
use super::start::broken_off;

impl Services {
    /// Watches the services until told to stop: starts again what goes down, stops what runs where it must not,
    /// and carries out [`follow`](Self::follow). What runs then goes on.
    pub async fn watch(self: Arc<Self>, stop: Stop) {
        let mut tasks = JoinSet::new();
        for number in 0..self.services.len() {
            tasks.spawn(self.clone().attend(number));
        }
        tokio::select! {
            () = self.follow_always() => {}
            () = stop.wait() => {}
        }
        tasks.shutdown().await;
    }

    /// Looks at a service, also after a look has broken.
    async fn attend(self: Arc<Self>, number: usize) {
        let Some(service) = self.services.get(number) else {
            return;
        };
        let tell = |broken: &Broken| self.note_broken(service, broken);
        match keep_up(|| self.repeat(service), tell).await {}
    }

    /// Takes in that nothing is known of a service, since it was not looked after to the end.
    fn note_broken(&self, service: &Service, broken: &Broken) {
        let message = format!(
            "who looks after it has broken: {}; it goes on in {} s",
            broken.why,
            broken.pause.as_secs()
        );
        service.lose_sight(&message);
        if broken.is_news {
            let message = format!(
                "nothing is known of service {}: {message}; this is a mistake in understudy",
                service.name()
            );
            self.events
                .record(Severity::Error, "service_unknown", message);
        }
    }

    async fn repeat(&self, service: &Service) -> Infallible {
        loop {
            let pause = self.look(service).await;
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = service.poked.notified() => {}
            }
        }
    }

    /// Asks a service how it is, does what follows, and returns how long it may be left alone then.
    pub(super) async fn look(&self, service: &Service) -> Duration {
        let interval = service.config.interval;
        let changes = service.changes();
        let wish = *self.wish.borrow();
        // Nothing is held meanwhile: a status command that hangs must not keep services from being stopped.
        let answer = service.ask().await;
        let Ok(_changing) = self.changing.try_read() else {
            return interval;
        };
        let Ok(_busy) = service.busy.try_lock() else {
            return interval;
        };
        if changes != service.changes() || !self.is_asked(wish) {
            return interval;
        }
        match self.judge(service, wish, &answer) {
            Verdict::Online => {
                service.adopt(&answer);
                interval
            }
            Verdict::Offline => {
                service.rest(&answer);
                interval
            }
            Verdict::Fault => {
                service.note_down(&answer, &self.why_left(service, wish));
                interval
            }
            Verdict::GiveUp => {
                service.note_down(&answer, "");
                service.give_up(answer.line());
                interval
            }
            Verdict::Stray => {
                let why = "it runs, and must not on this node; the cluster is paused";
                if service.set(ServiceState::Fault, why) != ServiceState::Fault {
                    self.tell_stray(service, "it is left alone, since the cluster is paused");
                }
                interval
            }
            Verdict::Stop => {
                self.tell_stray(service, "it is stopped");
                // Why it did not stop is an event; it is tried again.
                let _told = service.stop().await.is_err();
                interval
            }
            Verdict::Restart => self.restart(service, wish, &answer).await,
        }
    }

    fn judge(&self, service: &Service, wish: Wish, answer: &Answer) -> Verdict {
        // A node that is fenced is looked after by who fences it.
        let is_forbidden = match wish.place {
            Where::At(place) => !place.allows(service.config.on),
            Where::Undecided | Where::Nowhere => false,
        };
        judge(Seen {
            is_up: answer.is_up(),
            is_wanted: self.is_wanted(service, wish),
            is_forbidden,
            is_paused: self.is_paused.load(Ordering::SeqCst),
            has_given_up: service.has_given_up(),
            may_restart: service.may_restart(),
            must_wait: self.waits_for(service, wish).is_some(),
        })
    }

    /// Returns one that must be up before a service is started, and is not.
    fn waits_for(&self, service: &Service, wish: Wish) -> Option<&Service> {
        let predecessors = service.config.after.iter();
        let mut predecessors =
            predecessors.filter_map(|name| self.services.iter().find(|it| it.name() == name));
        predecessors.find(|before| {
            before.config.is_critical
                && self.is_wanted(before, wish)
                && before.state() != ServiceState::Online
        })
    }

    /// Says why a service that is down is not started.
    fn why_left(&self, service: &Service, wish: Wish) -> String {
        let name = service.name();
        if self.is_paused.load(Ordering::SeqCst) {
            "it is not started again while the cluster is paused".to_owned()
        } else if service.has_given_up() {
            format!("mend it, then run `understudy services clear {name}`")
        } else if let Some(before) = self.waits_for(service, wish) {
            format!("it waits for service {}", before.name())
        } else {
            String::new()
        }
    }

    fn tell_stray(&self, service: &Service, what: &str) {
        let message = format!(
            "service {} runs {} only, and runs on this node nevertheless; {what}",
            service.name(),
            super::nodes(service.config.on)
        );
        self.events
            .record(Severity::Error, "service_stray", message);
    }

    /// Starts a service again that is down and should be up.
    async fn restart(&self, service: &Service, wish: Wish, answer: &Answer) -> Duration {
        // Asked again: to answer late once is no reason to stop what may run.
        let again = service.ask().await;
        if again.is_up() {
            service.adopt(&again);
            return service.config.interval;
        }
        service.note_down(answer, "");
        let which = service.take_restart();
        let mut until = self.until(service, wish);
        let started = async {
            service.clear_away().await;
            service.start().await
        };
        let started = tokio::select! {
            biased;
            () = until.over() => Err(broken_off(service)),
            started = started => started,
        };
        match started {
            // That is told already.
            Ok(Came::Found) => service.config.interval,
            Ok(Came::Started) => {
                let outage = service.outage().unwrap_or_default().as_secs_f64();
                let message = format!(
                    "service {} was seen down for {outage:.1} s, and is up again; {which}",
                    service.name()
                );
                self.events
                    .record(Severity::Warning, "service_restarted", message);
                service.config.interval
            }
            Err(ServiceError::BrokenOff { .. }) => service.config.interval,
            Err(error) if !service.may_restart() => {
                service.give_up(&error_chain(&error));
                service.config.interval
            }
            Err(_) => service.pause(),
        }
    }
}
