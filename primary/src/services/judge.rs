//! What follows from how a service is.

/// How a service is, and what is asked of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Seen {
    /// Its status command has succeeded.
    pub(super) is_up: bool,
    /// It should run here.
    pub(super) is_wanted: bool,
    /// The role of the node forbids it.
    pub(super) is_forbidden: bool,
    /// Nothing is to be done by itself.
    pub(super) is_paused: bool,
    /// It was started as often as it may be.
    pub(super) has_given_up: bool,
    /// It may be started once more.
    pub(super) may_restart: bool,
    /// One that must be up before it is not.
    pub(super) must_wait: bool,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Nothing: it runs, and may.
    Online,
    /// Nothing: it does not run, and need not.
    Offline,
    /// Tell that it should run and does not.
    Fault,
    /// Tell that it runs and must not.
    Stray,
    /// Start it again.
    Restart,
    /// Tell that it was started as often as it may be.
    GiveUp,
    /// Stop it.
    Stop,
}

/// Judges a service.
pub(super) fn judge(seen: Seen) -> Verdict {
    match seen {
        Seen {
            is_up: true,
            is_forbidden: true,
            is_paused,
            ..
        } => {
            if is_paused {
                Verdict::Stray
            } else {
                Verdict::Stop
            }
        }
        Seen { is_up: true, .. } => Verdict::Online,
        Seen {
            is_wanted: false, ..
        } => Verdict::Offline,
        Seen {
            is_paused: true, ..
        }
        | Seen {
            has_given_up: true, ..
        }
        | Seen {
            must_wait: true, ..
        } => Verdict::Fault,
        Seen {
            may_restart: true, ..
        } => Verdict::Restart,
        Seen { .. } => Verdict::GiveUp,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOWN: Seen = Seen {
        is_up: false,
        is_wanted: true,
        is_forbidden: false,
        is_paused: false,
        has_given_up: false,
        may_restart: true,
        must_wait: false,
    };

    #[test]
    fn what_should_run_and_does_not_is_started_as_often_as_it_may() {
        let spent = Seen {
            may_restart: false,
            ..DOWN
        };
        let cases = [
            (DOWN, Verdict::Restart),
            (spent, Verdict::GiveUp),
            (
                Seen {
                    has_given_up: true,
                    ..spent
                },
                Verdict::Fault,
            ),
            (
                Seen {
                    must_wait: true,
                    ..spent
                },
                Verdict::Fault,
            ),
            (
                Seen {
                    is_paused: true,
                    ..DOWN
                },
                Verdict::Fault,
            ),
        ];
        for (seen, verdict) in cases {
            assert_eq!(judge(seen), verdict, "{seen:?}");
        }
    }

    #[test]
    fn nothing_that_is_up_is_touched_but_where_the_role_forbids_it() {
        // Every combination, by its bits.
        for bits in 0..64_u8 {
            let has = |bit: u8| bits & (1 << bit) != 0;
            let seen = Seen {
                is_up: true,
                is_wanted: has(0),
                is_forbidden: has(1),
                is_paused: has(2),
                has_given_up: has(3),
                may_restart: has(4),
                must_wait: has(5),
            };
            let expected = match (seen.is_forbidden, seen.is_paused) {
                (false, _) => Verdict::Online,
                (true, true) => Verdict::Stray,
                (true, false) => Verdict::Stop,
            };
            assert_eq!(judge(seen), expected, "{seen:?}");
            let down = Seen {
                is_up: false,
                is_wanted: false,
                ..seen
            };
            assert_eq!(judge(down), Verdict::Offline);
        }
    }
}
