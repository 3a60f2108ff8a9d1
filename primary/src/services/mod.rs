//! What runs on the primary only: started in order, stopped in the reverse order, watched.
//!
//! A service is three commands. `status` succeeds while it runs; a start that ends well but leaves
//! `status` failing has failed, and a `status` that hangs means that the service is down.

mod error;
mod service;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use understudy_replication::event::Events;
use understudy_replication::status::{ServiceState, ServiceStatus};
use understudy_replication::store::{Progress, Stop, Unit};

pub use error::{ServiceError, StopError};
use service::Service;

/// How often services are asked how they are.
const WATCH_INTERVAL: Duration = Duration::from_secs(5);

/// The services of this node, in the order of the configuration.
pub struct Services {
    services: Vec<Service>,
    /// Starting and stopping exclude each other.
    changing: tokio::sync::Mutex<()>,
    /// This node should run them.
    is_wanted: AtomicBool,
    /// How often they were started or stopped: an answer from before says nothing after.
    changes: AtomicU64,
}

impl Services {
    /// Returns the services; none of their commands runs yet. Each of them gets `env`.
    pub fn new(
        configs: &[understudy_config::Service],
        env: Vec<(String, String)>,
        events: Events,
    ) -> Self {
        let service = |config| Service::new(config, env.clone(), events.clone());
        Self {
            services: configs.iter().map(service).collect(),
            changing: tokio::sync::Mutex::new(()),
            is_wanted: AtomicBool::new(false),
            changes: AtomicU64::new(0),
        }
    }

    /// Starts every service, each after the one before it is up. One that is up already is left
    /// alone. Repeatable.
    ///
    /// # Errors
    /// At the first service that does not come up; those before it stay up.
    pub async fn start_all(&self, progress: &dyn Progress) -> Result<(), ServiceError> {
        let _changing = self.changing.lock().await;
        self.is_wanted.store(true, Ordering::Release);
        self.changes.fetch_add(1, Ordering::AcqRel);
        for service in &self.services {
            progress.start(&format!("service {}", service.name()), None, Unit::Items);
            match service.start(&self.is_wanted).await {
                Ok(()) => progress.end("up"),
                Err(error) => {
                    progress.end("failed");
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Stops every service in the reverse order, and goes on when one does not stop. Repeatable; the
    /// commands run whatever is known of a service, because who is fenced must be down for certain.
    ///
    /// # Errors
    /// When services are still up; the error names each.
    pub async fn stop_all(&self) -> Result<(), StopError> {
        // Before the lock: a start that has it breaks off, since who is fenced must not wait.
        self.is_wanted.store(false, Ordering::Release);
        let _changing = self.changing.lock().await;
        // A start that was about to get the lock may have wanted them meanwhile.
        self.is_wanted.store(false, Ordering::Release);
        self.changes.fetch_add(1, Ordering::AcqRel);
        let mut failures = Vec::new();
        for service in self.services.iter().rev() {
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

    /// Asks how the services are, again and again, until told to stop. One that should be up and is
    /// not is a fault, and an event once.
    pub async fn watch(self: Arc<Self>, stop: Stop) {
        loop {
            tokio::select! {
                () = self.look() => {}
                () = stop.wait() => return,
            }
            tokio::select! {
                () = tokio::time::sleep(WATCH_INTERVAL) => {}
                () = stop.wait() => return,
            }
        }
    }

    /// Asks every service once how it is, unless they are being started or stopped.
    async fn look(&self) {
        let Ok(changing) = self.changing.try_lock() else {
            return;
        };
        let changes = self.changes.load(Ordering::Acquire);
        // A status command that hangs must not keep the services from being stopped.
        drop(changing);
        // Nor must it keep the others from being looked at.
        let answers = futures_util::future::join_all(self.services.iter().map(Service::ask)).await;
        let Ok(_changing) = self.changing.try_lock() else {
            return;
        };
        if changes != self.changes.load(Ordering::Acquire) {
            return;
        }
        let is_wanted = self.is_wanted.load(Ordering::Acquire);
        for (service, answer) in self.services.iter().zip(&answers) {
            service.note(answer, is_wanted);
        }
    }

    /// Returns whether every service is up.
    pub fn are_up(&self) -> bool {
        let is_up = |service: &Service| service.status().state == ServiceState::Online;
        self.services.iter().all(is_up)
    }

    /// Returns how each service was when it was last asked.
    pub fn status(&self) -> Vec<ServiceStatus> {
        self.services.iter().map(Service::status).collect()
    }
}
