//! When an address that is held is announced again.

use std::time::Duration;

/// How long after the taking it is announced, until [`REPEAT`] follows: frames get lost, and a switch that
/// has just learned of a new port may not pass the first ones on.
const FIRST: [Duration; 4] = [
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(5),
    Duration::from_secs(10),
];
/// How often it is announced after that, for machines that were away meanwhile.
const REPEAT: Duration = Duration::from_secs(60);

/// Returns whether an address that was taken `now` ago, and announced last `last` after it was taken, is to
/// be announced again.
pub(super) fn is_announcement_due(last: Duration, now: Duration) -> bool {
    let next = FIRST
        .into_iter()
        .find(|first| *first > last)
        .unwrap_or(last.saturating_add(REPEAT));
    now >= next
}

/// Returns whether a lease that was renewed so long ago is to be renewed.
pub(super) fn is_renewal_due(lease: Duration, age: Duration) -> bool {
    age >= lease / 4
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_announced_often_at_first_and_then_every_minute() {
        let mut last = Duration::ZERO;
        let mut at = Vec::new();
        for second in 0..200 {
            let now = Duration::from_secs(second);
            if is_announcement_due(last, now) {
                at.push(second);
                last = now;
            }
        }
        assert_eq!(at, [1, 2, 5, 10, 70, 130, 190]);
    }

    #[test]
    fn a_look_that_comes_late_makes_up_for_nothing() {
        let seconds = Duration::from_secs;
        assert!(is_announcement_due(seconds(1), seconds(30)));
        assert!(!is_announcement_due(seconds(30), seconds(31)));
    }

    #[test]
    fn a_lease_outlives_two_renewals_that_fail() {
        let lease = Duration::from_secs(60);
        assert_eq!(
            [14, 15].map(|age| is_renewal_due(lease, Duration::from_secs(age))),
            [false, true]
        );
    }
}
