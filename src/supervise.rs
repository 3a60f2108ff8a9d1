//! Keeps a store's work going: runs it again after a failure, ever more patiently.

use std::time::Duration;

use understudy_replication::error_chain;
use understudy_replication::event::{Events, Severity};
use understudy_replication::store::{BoxFuture, Stop, StoreFailure, StoreId};

/// The first wait after a failure.
const PATIENCE_MIN: Duration = Duration::from_millis(500);

/// The longest wait after a failure.
const PATIENCE_MAX: Duration = Duration::from_secs(10);

/// Work that ran for this long was well; the next failure begins with the first wait again.
const WELL_AFTER: Duration = Duration::from_secs(60);

/// Runs `work` until it ends without a failure or `stop` is given. Each failure is an event, unless it
/// is the same as the one before.
pub(crate) async fn supervise(
    id: StoreId,
    events: Events,
    stop: Stop,
    mut work: impl FnMut() -> BoxFuture<'static, Result<(), StoreFailure>> + Send,
) {
    let mut patience = PATIENCE_MIN;
    let mut told = String::new();
    while !stop.is_stopped() {
        let begun = tokio::time::Instant::now();
        let failure = tokio::select! {
            result = work() => match result {
                Ok(()) => return,
                Err(failure) => error_chain(failure.as_ref()),
            },
            () = stopped_for_long(&stop) => {
                tracing::warn!(store = %id.name, "a store did not stop in time, and is dropped");
                return;
            }
        };
        if begun.elapsed() > WELL_AFTER {
            patience = PATIENCE_MIN;
        }
        if failure == told {
            tracing::debug!(store = %id.name, failure, "failed again");
        } else {
            events.record(
                Severity::Warning,
                "store_failed",
                format!("store {}: {failure}; trying again", id.name),
            );
            told = failure;
        }
        tokio::select! {
            () = tokio::time::sleep(patience) => {}
            () = stop.wait() => return,
        }
        patience = (patience * 2).min(PATIENCE_MAX);
    }
}

/// Waits until some time after the word to stop: work that does not heed it is cut off.
async fn stopped_for_long(stop: &Stop) {
    stop.wait().await;
    tokio::time::sleep(Duration::from_secs(30)).await;
}
