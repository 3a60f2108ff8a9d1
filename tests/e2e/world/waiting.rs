//! Waiting for conditions: always with a deadline, never for a duration.

use std::time::{Duration, Instant};

const LOOK_INTERVAL: Duration = Duration::from_millis(50);

/// Waits until `look` finds something, and returns it. `look` tells why it has not.
///
/// # Panics
/// When that does not happen within `limit`.
pub(crate) fn until<T>(
    what: &str,
    limit: Duration,
    mut look: impl FnMut() -> Result<T, String>,
) -> T {
    let begun = Instant::now();
    loop {
        match look() {
            Ok(found) => return found,
            Err(reason) if begun.elapsed() > limit => {
                panic!(
                    "not within {} s: {what}; the last look: {reason}",
                    limit.as_secs()
                )
            }
            Err(_) => std::thread::sleep(LOOK_INTERVAL),
        }
    }
}

/// Says a condition in the form that [`until`] takes.
pub(crate) fn holds(condition: bool, otherwise: impl std::fmt::Debug) -> Result<(), String> {
    if condition {
        Ok(())
    } else {
        Err(format!("{otherwise:?}"))
    }
}
