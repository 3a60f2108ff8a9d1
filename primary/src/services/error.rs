//! Why a service is not as it should be.

use std::fmt;
use std::time::Duration;

use understudy_config::StoreName;
use understudy_replication::command::CommandError;

/// Why a service did not start or stop.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    /// Its start command failed.
    #[error("service {service} did not start")]
    Start {
        /// The service.
        service: StoreName,
        /// What its command said.
        source: CommandError,
    },
    /// Its start command succeeded, and its status command did not.
    #[error(
        "service {service} was started, but is not up after {} s{}",
        limit.as_secs(),
        said(line)
    )]
    NotUp {
        /// The service.
        service: StoreName,
        /// How long it had.
        limit: Duration,
        /// The last line that its status command printed.
        line: String,
    },
    /// It was to be stopped before it was up.
    #[error("the start of service {service} was broken off: services are being stopped")]
    BrokenOff {
        /// The service.
        service: StoreName,
    },
    /// Its stop command failed, and it is up.
    #[error("service {service} did not stop")]
    Stop {
        /// The service.
        service: StoreName,
        /// What its command said.
        source: CommandError,
    },
    /// Its stop command succeeded, and it is still up.
    #[error(
        "service {service} was stopped, but is still up after {} s{}",
        limit.as_secs(),
        said(line)
    )]
    StillUp {
        /// The service.
        service: StoreName,
        /// How long it had.
        limit: Duration,
        /// The last line that its status command printed.
        line: String,
    },
}

fn said(line: &str) -> String {
    if line.is_empty() {
        String::new()
    } else {
        format!(": {line}")
    }
}

/// Which services did not stop.
#[derive(Debug)]
pub struct StopError {
    /// Why, for each, in the order in which they were stopped. Never empty.
    pub failures: Vec<ServiceError>,
}

impl fmt::Display for StopError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // No single one of them is the source, so each is told whole here.
        for (at, failure) in self.failures.iter().enumerate() {
            let comma = if at > 0 { "; " } else { "" };
            let told = understudy_replication::error_chain(failure);
            write!(f, "{comma}{told}")?;
        }
        Ok(())
    }
}

impl std::error::Error for StopError {}
