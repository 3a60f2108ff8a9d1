//! How long nobody could write: what a client of the database sees.

use std::time::{Duration, Instant};

use super::appliance::connect;
use super::machine::Machines;
use crate::failure::Failure;

/// How often it is tried.
const INTERVAL: Duration = Duration::from_millis(10);

/// One try, and all of them, may take this long.
const TRY_PATIENCE: Duration = Duration::from_secs(5);
const PATIENCE: Duration = Duration::from_secs(120);

/// Asks node b to take a row until it has, and returns when that was.
pub(super) async fn first_write(machines: &Machines) -> Result<Instant, Failure> {
    let until_taken = async {
        loop {
            let taken = tokio::time::timeout(TRY_PATIENCE, write(machines)).await;
            if matches!(taken, Ok(Ok(()))) {
                return Instant::now();
            }
            tokio::time::sleep(INTERVAL).await;
        }
    };
    let taken = tokio::time::timeout(PATIENCE, until_taken).await;
    taken.map_err(|_| {
        Failure::failed(format!(
            "node b took no row within {} s",
            PATIENCE.as_secs()
        ))
    })
}

async fn write(machines: &Machines) -> Result<(), Failure> {
    // The numbers of the writer begin at 1. Tried again after an answer that was lost.
    let row = "INSERT INTO change (number) VALUES (0) ON CONFLICT DO NOTHING";
    let client = connect(machines, "b", "catalog").await?;
    client.execute(row, &[]).await?;
    Ok(())
}
