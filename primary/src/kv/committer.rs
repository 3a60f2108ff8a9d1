//! The thread that makes entries durable here: one `fdatasync` for all that has come.

use std::sync::PoisonError;
use std::time::{Duration, Instant};

use super::{KvError, Shared, State};

/// How often the thread looks whether it is to end, if nobody wakes it.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);

/// Makes entries durable until `is_over`, or until the disk fails. Blocks.
pub(super) fn run(shared: &Shared, is_over: impl Fn() -> bool) -> Result<(), KvError> {
    loop {
        let (entries, storage) = {
            let mut guard = shared.core();
            loop {
                if let State::Failed(_) = shared.settled.borrow().state {
                    return Err(KvError::Closed);
                }
                let core = guard.as_mut().ok_or(KvError::Closed)?;
                let entries = core.begin_sync();
                if !entries.is_empty() {
                    break (entries, core.storage().clone());
                }
                // Everything that was written before the end is made durable first.
                if is_over() {
                    return Ok(());
                }
                guard = shared
                    .to_sync
                    .wait_timeout(guard, LOOK_INTERVAL)
                    .unwrap_or_else(PoisonError::into_inner)
                    .0;
            }
        };
        let synced = storage.append(&entries).and_then(|()| storage.sync());
        match synced {
            Ok(end) => shared.with_core(|core| Ok(((), core.synced(end, Instant::now())?)))?,
            Err(error) => {
                let error = KvError::from(error);
                shared.fail(&error);
                return Err(error);
            }
        }
    }
}
