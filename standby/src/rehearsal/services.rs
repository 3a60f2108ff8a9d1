//! The services that may be run in a rehearsal.

use std::time::Duration;

use tokio::time::Instant;
use understudy_config::Service;
use understudy_replication::command::OsUser;

use super::RehearsalError;
use super::seal::{Order, Seal, SealError};

/// How long between two questions while a service comes up.
const POLL_INTERVAL: Duration = Duration::from_millis(200);

/// The variable by which a service learns that it is rehearsed.
pub(super) const REHEARSAL: &str = "UNDERSTUDY_REHEARSAL";

fn order(
    service: &Service,
    argv: &[String],
    environment: &[(String, String)],
) -> Result<Order, RehearsalError> {
    let name = ("UNDERSTUDY_SERVICE".to_owned(), service.name.to_string());
    let order = Order::new(argv.to_vec(), service.timeout)
        .environment(environment)
        .environment(&[name]);
    // It was there when the daemon started, but what knows of users may be away now: then it runs as nobody,
    // and not as the daemon's.
    match service.user.as_deref().map(OsUser::find) {
        Some(Ok(user)) => Ok(order.user(&user)),
        Some(Err(source)) => Err(RehearsalError::User {
            service: service.name.to_string(),
            source,
        }),
        None => Ok(order),
    }
}

fn failed(action: &str, service: &Service) -> impl FnOnce(SealError) -> RehearsalError {
    let action = format!("{action} service {}", service.name);
    move |source| RehearsalError::Sealed { action, source }
}

/// Starts a service, and waits until its status says that it is up.
pub(super) async fn start(
    seal: &mut Seal,
    service: &Service,
    environment: &[(String, String)],
) -> Result<(), RehearsalError> {
    let deadline = Instant::now() + service.timeout;
    seal.run(&order(service, &service.start, environment)?)
        .await
        .map_err(failed("start", service))?;
    let status = order(service, &service.status, environment)?;
    loop {
        let said = match seal.run(&status).await {
            Ok(_) => return Ok(()),
            Err(SealError::Failed {
                message, output, ..
            }) => {
                let last = output.lines().rev().find(|line| !line.trim().is_empty());
                last.map_or(message, |line| line.trim().to_owned())
            }
            Err(error) => return Err(failed("ask", service)(error)),
        };
        if Instant::now() >= deadline {
            return Err(RehearsalError::NotUp {
                service: service.name.to_string(),
                limit: service.timeout,
                said,
            });
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

/// Stops a service.
pub(super) async fn stop(
    seal: &mut Seal,
    service: &Service,
    environment: &[(String, String)],
) -> Result<(), RehearsalError> {
    seal.run(&order(service, &service.stop, environment)?)
        .await
        .map(drop)
        .map_err(failed("stop", service))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_whose_user_is_not_found_does_not_run_as_the_daemons() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let argv = vec!["true".to_owned()];
        let mut service = Service::new(
            "web".parse().unwrap(),
            argv.clone(),
            argv.clone(),
            argv.clone(),
        );
        service.user = Some("nobody-of-that-name".to_owned());
        let found = order(&service, &argv, &[]);
        assert!(
            matches!(found, Err(RehearsalError::User { .. })),
            "{found:?}"
        );
    }
}
