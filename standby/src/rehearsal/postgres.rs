//! The server of a copy, in its room.

use std::time::Duration;

use tokio_postgres::Client;
use understudy_replication::postgres::MAINTENANCE_DATABASE;

use super::RehearsalError;
use super::seal::{Order, Seal, SealError};
use crate::copy::ClusterCopy;

/// Stopping in peace may take this long.
const STOP_PATIENCE: Duration = Duration::from_secs(120);

/// Runs `pg_ctl` in the room.
async fn pg_ctl(
    seal: &mut Seal,
    copy: &ClusterCopy,
    arguments: &[&str],
    limit: Duration,
) -> Result<(), RehearsalError> {
    let seconds = limit.as_secs().to_string();
    let argv = copy.pg_ctl().into_iter();
    let argv = argv.chain(["-w", "-t", &seconds].map(str::to_owned));
    let argv = argv.chain(arguments.iter().map(|it| (*it).to_owned()));
    let order = Order::new(argv, limit + Duration::from_secs(10)).user(copy.user());
    let failed = |source| RehearsalError::Sealed {
        action: format!(
            "{} the copy of postgres",
            arguments.last().unwrap_or(&"run")
        ),
        source: with_log(copy, source),
    };
    seal.run(&order).await.map(drop).map_err(failed)
}

fn log(copy: &ClusterCopy) -> String {
    copy.served
        .socket_dir
        .join("server.log")
        .display()
        .to_string()
}

/// Adds the server's own last word to a failure: pg_ctl says only "examine the log".
fn with_log(copy: &ClusterCopy, error: SealError) -> SealError {
    let SealError::Failed {
        status,
        message,
        output,
    } = error
    else {
        return error;
    };
    let log = std::fs::read(log(copy)).unwrap_or_default();
    let log = String::from_utf8_lossy(&log);
    let last = log
        .lines()
        .rev()
        .take(50)
        .find(|line| line.contains("FATAL") || line.contains("PANIC"));
    let message = match last {
        Some(last) => format!("{message}: {last}"),
        None => message,
    };
    SealError::Failed {
        status,
        message,
        output,
    }
}

/// Starts the server as a standby that follows nobody: it replays what it has, until it is consistent.
///
/// # Errors
/// When it does not get there.
pub async fn recover(
    seal: &mut Seal,
    copy: &ClusterCopy,
    limit: Duration,
) -> Result<(), RehearsalError> {
    pg_ctl(seal, copy, &["-l", &log(copy), "start"], limit).await
}

/// Replays the rest, and makes the server a primary on a timeline of its own.
///
/// # Errors
/// When it does not become one.
pub async fn take_over(
    seal: &mut Seal,
    copy: &ClusterCopy,
    limit: Duration,
) -> Result<(), RehearsalError> {
    pg_ctl(seal, copy, &["promote"], limit).await?;
    let client = connect(copy).await?;
    let row = client.query_one("SELECT pg_is_in_recovery()", &[]).await?;
    if row.get(0) {
        return Err(RehearsalError::StillInRecovery);
    }
    Ok(())
}

pub(super) async fn connect(copy: &ClusterCopy) -> Result<Client, RehearsalError> {
    Ok(copy.connect(MAINTENANCE_DATABASE).await?)
}

/// Writes a checkpoint, so that the control file tells the new timeline.
///
/// # Errors
/// When it cannot be written.
pub async fn settle(copy: &ClusterCopy) -> Result<(), RehearsalError> {
    let client = connect(copy).await?;
    Ok(client.batch_execute("CHECKPOINT").await?)
}

/// Stops the server in peace.
///
/// # Errors
/// When it does not stop.
pub async fn stop(seal: &mut Seal, copy: &ClusterCopy) -> Result<(), RehearsalError> {
    pg_ctl(seal, copy, &["-m", "fast", "stop"], STOP_PATIENCE).await
}
