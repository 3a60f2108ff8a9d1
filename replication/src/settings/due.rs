//! Waiting for a schedule.

use std::time::{Duration, SystemTime};

use understudy_config::Schedule;

use crate::store::Stop;

/// How long one sleep is at most: a wall clock that is set while we sleep is noticed after it.
const NAP_MAX: Duration = Duration::from_secs(10);

/// Waits until `schedule` comes due the next time, or until told to stop; returns whether it came
/// due. Safe to cancel.
pub async fn wait_until_due(schedule: &Schedule, stop: &Stop) -> bool {
    let start = SystemTime::now();
    let due = schedule.next_after(start);
    loop {
        let now = SystemTime::now();
        let nap = match due {
            // The clock was set back: what was due in a minute must not take a day.
            Some(_) if now < start => return true,
            Some(due) => match due.duration_since(now) {
                Ok(left) if !left.is_zero() => left.min(NAP_MAX),
                Ok(_) | Err(_) => return true,
            },
            None => NAP_MAX,
        };
        tokio::select! {
            () = tokio::time::sleep(nap) => {}
            () = stop.wait() => return false,
        }
    }
}
