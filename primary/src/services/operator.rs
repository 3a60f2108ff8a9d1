//! What an operator asks of one service.

use understudy_config::StoreName;
use understudy_replication::status::{ServiceState, StoppedBy};

use super::Services;
use super::error::{OperatorError, ServiceError};
use super::place::Wish;
use super::service::Service;

impl Services {
    /// Starts a service, whatever has held it back, and waits until it is up.
    ///
    /// # Errors
    /// When there is none, the role of this node does not allow it, or it does not come up.
    pub async fn start_one(&self, name: &StoreName) -> Result<(), OperatorError> {
        let service = self.find(name)?;
        let wish = self.allowed(service)?;
        self.let_go(service)?;
        let _changing = self.changing.read().await;
        Ok(self.bring_up(service, wish).await?)
    }

    /// Stops a service for `by`, and keeps it stopped until [`start_one`](Self::start_one), over restarts of the
    /// daemon.
    ///
    /// # Errors
    /// When there is none, the role of this node does not allow it anyway, or it does not stop. It is not
    /// started again even then.
    pub async fn stop_one(&self, name: &StoreName, by: StoppedBy) -> Result<(), OperatorError> {
        let service = self.find(name)?;
        self.allowed(service)?;
        // On disk first: what an operator has stopped must not come up after a crash.
        self.ledger.change(|holds| holds.stop(name.clone(), by))?;
        let _changing = self.halt(service).await?;
        Ok(())
    }

    /// Stops a service and starts it again.
    ///
    /// # Errors
    /// When there is none, the role of this node does not allow it, or it does not stop or come up.
    pub async fn restart_one(&self, name: &StoreName) -> Result<(), OperatorError> {
        let service = self.find(name)?;
        let wish = self.allowed(service)?;
        let _changing = self.halt(service).await?;
        self.let_go(service)?;
        Ok(self.bring_up(service, wish).await?)
    }

    /// Forgets that a service was started as often as it may be: it is started again if it should run.
    ///
    /// # Errors
    /// When there is none.
    pub fn clear(&self, name: &StoreName) -> Result<(), OperatorError> {
        let service = self.find(name)?;
        service.clear();
        if service.state() == ServiceState::Fault {
            service.set(ServiceState::Unknown, "an operator has cleared the fault");
        }
        service.poked.notify_one();
        Ok(())
    }

    /// Returns whether there is a service of that name.
    pub fn has(&self, name: &StoreName) -> bool {
        self.find(name).is_ok()
    }

    fn find(&self, name: &StoreName) -> Result<&Service, OperatorError> {
        let mut services = self.services.iter();
        services
            .find(|service| service.name() == name)
            .ok_or_else(|| OperatorError::Unknown(name.clone()))
    }

    /// Returns what is asked of this node, if that allows the service.
    fn allowed(&self, service: &Service) -> Result<Wish, OperatorError> {
        let wish = *self.wish.borrow();
        match wish.place.placement() {
            Some(place) if place.allows(service.config.on) => Ok(wish),
            Some(_) | None => Err(OperatorError::NotHere {
                service: service.name().clone(),
                on: service.config.on,
            }),
        }
    }

    /// Ends whatever keeps a service from running.
    fn let_go(&self, service: &Service) -> Result<(), OperatorError> {
        self.ledger.change(|holds| holds.let_go(service.name()))?;
        service.clear();
        Ok(())
    }

    /// Stops a service; a start of it that is under way is broken off.
    async fn halt(
        &self,
        service: &Service,
    ) -> Result<tokio::sync::RwLockReadGuard<'_, ()>, ServiceError> {
        service
            .halted
            .send_modify(|count| *count = count.wrapping_add(1));
        let changing = self.changing.read().await;
        let busy = service.busy.lock().await;
        service.stop().await?;
        drop(busy);
        Ok(changing)
    }
}
