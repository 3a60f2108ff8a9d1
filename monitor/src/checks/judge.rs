//! When a check has failed, and when it is well again: so many looks in a row, so that it does not waver.

use understudy_replication::status::CheckState;
use understudy_replication::wall_time::WallTime;

/// What one look found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Finding {
    /// It is as it should be.
    Good,
    /// It is neither bad enough to fail nor good enough to recover.
    Between,
    /// It is not as it should be.
    Bad,
}

/// A change that people are told of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    Failed,
    Recovered,
}

/// The judgement of one check.
#[derive(Clone, Debug)]
pub(super) struct Judge {
    fail_after: u16,
    recover_after: u16,
    state: CheckState,
    since: WallTime,
    /// How many looks in a row spoke against the state.
    against: u16,
}

impl Judge {
    /// Returns the judgement before the first look. Both numbers are at least 1.
    pub(super) fn new(fail_after: u16, recover_after: u16, now: WallTime) -> Self {
        Self {
            fail_after,
            recover_after,
            state: CheckState::Unknown,
            since: now,
            against: 0,
        }
    }

    pub(super) fn state(&self) -> CheckState {
        self.state
    }

    pub(super) fn since(&self) -> WallTime {
        self.since
    }

    /// Takes one more finding into account, and returns what has changed by it.
    pub(super) fn hear(&mut self, finding: Finding, now: WallTime) -> Option<Turn> {
        let (contradicts, limit, next) = match self.state {
            CheckState::Ok | CheckState::Unknown => {
                (finding == Finding::Bad, self.fail_after, CheckState::Failed)
            }
            CheckState::Failed => (finding == Finding::Good, self.recover_after, CheckState::Ok),
        };
        if !contradicts {
            self.against = 0;
            // The first look that is not bad is enough to know that there is no failure.
            if self.state == CheckState::Unknown {
                (self.state, self.since) = (CheckState::Ok, now);
            }
            return None;
        }
        self.against = self.against.saturating_add(1);
        if self.against < limit {
            return None;
        }
        self.against = 0;
        (self.state, self.since) = (next, now);
        match next {
            CheckState::Failed => Some(Turn::Failed),
            CheckState::Ok | CheckState::Unknown => Some(Turn::Recovered),
        }
    }

    /// Forgets everything: what was seen says nothing about what is to come.
    pub(super) fn forget(&mut self, now: WallTime) {
        *self = Self::new(self.fail_after, self.recover_after, now);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn findings() -> impl Strategy<Value = Vec<Finding>> {
        let one = prop::sample::select(vec![Finding::Good, Finding::Between, Finding::Bad]);
        prop::collection::vec(one, 0..60)
    }

    /// Returns how many of the newest findings are `wanted`.
    fn streak(findings: &[Finding], wanted: Finding) -> usize {
        findings
            .iter()
            .rev()
            .take_while(|it| **it == wanted)
            .count()
    }

    proptest! {
        #[test]
        fn every_turn_has_its_reason_and_every_reason_its_turn(
            findings in findings(), fail_after in 1_u16..5, recover_after in 1_u16..5,
        ) {
            let mut judge = Judge::new(fail_after, recover_after, WallTime(0));
            let mut has_failed = false;
            // The findings since the last turn.
            let mut begin = 0;
            for (at, finding) in findings.iter().enumerate() {
                let time = WallTime(at.try_into().unwrap());
                let turn = judge.hear(*finding, time);
                let bad = streak(&findings[begin..=at], Finding::Bad);
                let good = streak(&findings[begin..=at], Finding::Good);
                let expected = match has_failed {
                    false if bad == usize::from(fail_after) => Some(Turn::Failed),
                    true if good == usize::from(recover_after) => Some(Turn::Recovered),
                    _ => None,
                };
                prop_assert_eq!(turn, expected);
                if turn.is_some() {
                    has_failed = turn == Some(Turn::Failed);
                    begin = at + 1;
                    prop_assert_eq!(judge.since(), time);
                }
                prop_assert_eq!(judge.state() == CheckState::Failed, has_failed);
            }
        }

        #[test]
        fn what_wavers_faster_than_the_limits_never_turns(
            findings in findings(), fail_after in 2_u16..5, recover_after in 2_u16..5,
        ) {
            let mut judge = Judge::new(fail_after, recover_after, WallTime(0));
            for finding in findings {
                // No finding comes twice in a row.
                prop_assert_eq!(judge.hear(finding, WallTime(1)), None);
                let other = if finding == Finding::Bad { Finding::Good } else { Finding::Between };
                prop_assert_eq!(judge.hear(other, WallTime(1)), None);
            }
        }

        #[test]
        fn what_stays_between_the_limits_never_turns(count in 0_usize..50, failed in any::<bool>()) {
            let mut judge = Judge::new(1, 1, WallTime(0));
            if failed {
                judge.hear(Finding::Bad, WallTime(1));
            }
            for _ in 0..count {
                prop_assert_eq!(judge.hear(Finding::Between, WallTime(2)), None);
            }
        }
    }
}
