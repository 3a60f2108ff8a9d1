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

fn order(service: &Service, argv: &[String], environment: &[(String, String)]) -> Order {
    let name = ("UNDERSTUDY_SERVICE".to_owned(), service.name.to_string());
    let order = Order::new(argv.to_vec(), service.timeout)
        .environment(environment)
        .environment(&[name]);
    // The daemon does not start with a user that is not there.
    match service.user.as_deref().map(OsUser::find) {
        Some(Ok(user)) => order.user(&user),
        Some(Err(_)) | None => order,
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
    seal.run(&order(service, &service.start, environment))
        .await
        .map_err(failed("start", service))?;
    loop {
        let said = match seal
            .run(&order(service, &service.status, environment))
            .await
        {
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
    seal.run(&order(service, &service.stop, environment))
        .await
        .map(drop)
        .map_err(failed("stop", service))
}
