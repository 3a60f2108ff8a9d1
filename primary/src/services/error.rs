//! Why a service is not as it should be.

use std::fmt;
use std::time::Duration;

use understudy_config::{On, StoreName};
use understudy_replication::command::CommandError;

use super::ledger::LedgerError;

/// Why services cannot be looked after at all.
#[derive(Debug, thiserror::Error)]
pub enum ServicesError {
    /// There is no such user of the operating system.
    #[error("{section} `{name}` cannot run as `{user}`")]
    User {
        /// What it is: `service`, `job`.
        section: &'static str,
        /// Its name.
        name: String,
        /// The user.
        user: String,
        /// Why not.
        source: Box<CommandError>,
    },
    /// What operators have asked for cannot be read.
    #[error(transparent)]
    State(#[from] LedgerError),
}

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
        limit.as_secs_f64(),
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
    /// Its stop command failed, and it is up; or that was killed, whatever its status says then.
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
        limit.as_secs_f64(),
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
    /// Its status command does not answer, or cannot be run, so nobody knows whether it has stopped.
    #[error("service {service} was stopped, but may be up: {why}")]
    Silent {
        /// The service.
        service: StoreName,
        /// Why there is no answer.
        why: String,
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

/// Why something that an operator asks of one service is not done.
#[derive(Debug, thiserror::Error)]
pub enum OperatorError {
    /// There is no such service.
    #[error("there is no service `{0}`")]
    Unknown(StoreName),
    /// The role of this node does not allow it.
    #[error("service {service} runs {} only", nodes(*on))]
    NotHere {
        /// The service.
        service: StoreName,
        /// Where it runs.
        on: On,
    },
    /// What was asked for could not be written down, so it was not done.
    #[error(transparent)]
    State(#[from] LedgerError),
    /// It was tried, and failed.
    #[error(transparent)]
    Failed(#[from] ServiceError),
}

/// Says on which nodes something runs.
pub(crate) fn nodes(on: On) -> &'static str {
    match on {
        On::Primary => "on the primary",
        On::Standby => "on standbys",
        On::Both => "on the primary and on standbys",
    }
}
