//! When jobs run: decides, and does nothing.

use std::time::{Duration, SystemTime};

use understudy_config::{On, Schedule};

use crate::services::Placement;

/// A job that is found to be due later than this was missed: the machine slept, or its clock was set.
const LATE_MAX: Duration = Duration::from_secs(60);

/// A clock that goes back by more than this was wrong before, and what is due is told anew. By less, it is
/// waited for, so that nothing runs twice.
const BACK_MAX: Duration = Duration::from_secs(60 * 60);

/// How long nothing is looked at at most: a clock may be set meanwhile.
const PAUSE_MAX: Duration = Duration::from_secs(30);

/// The jobs by their numbers, and when each is due.
#[derive(Debug)]
pub(super) struct Timetable {
    entries: Vec<Entry>,
    /// When it was last looked at.
    seen: SystemTime,
}

#[derive(Debug)]
struct Entry {
    schedule: Schedule,
    on: On,
    next: Option<SystemTime>,
}

/// What else is known of a job.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Known {
    /// It is held back.
    pub(super) is_held: bool,
    /// It runs.
    pub(super) is_running: bool,
}

/// What is due of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Due {
    /// It is to be run.
    Run(usize),
    /// It would be, but runs still.
    Overlap(usize),
    /// It would have been, at this time.
    Missed(usize, SystemTime),
}

impl Timetable {
    /// Returns the timetable of jobs, as of `now`.
    pub(super) fn new<'a>(
        jobs: impl IntoIterator<Item = (&'a Schedule, On)>,
        now: SystemTime,
    ) -> Self {
        let entries = jobs.into_iter().map(|(schedule, on)| Entry {
            schedule: schedule.clone(),
            on,
            next: schedule.next_after(now),
        });
        Self {
            entries: entries.collect(),
            seen: now,
        }
    }

    /// Returns what is due `now` at this placement, in the order of the jobs.
    pub(super) fn step(
        &mut self,
        now: SystemTime,
        place: Option<Placement>,
        known: impl Fn(usize) -> Known,
    ) -> Vec<Due> {
        let went_back = self.seen.duration_since(now).unwrap_or_default();
        if went_back <= BACK_MAX && went_back > Duration::ZERO {
            return Vec::new();
        }
        self.seen = now;
        let mut due = Vec::new();
        for (number, entry) in self.entries.iter_mut().enumerate() {
            if went_back > BACK_MAX {
                entry.next = entry.schedule.next_after(now);
            }
            let Some(at) = entry.next.filter(|at| *at <= now) else {
                continue;
            };
            // Once, however often it would have been meanwhile.
            entry.next = entry.schedule.next_after(now);
            let known = known(number);
            if !place.is_some_and(|place| place.allows(entry.on)) || known.is_held {
                continue;
            }
            let late = now.duration_since(at).unwrap_or_default();
            due.push(match (known.is_running, late > LATE_MAX) {
                (true, _) => Due::Overlap(number),
                (false, true) => Due::Missed(number, at),
                (false, false) => Due::Run(number),
            });
        }
        due
    }

    /// Returns when a job is due next.
    pub(super) fn next(&self, number: usize) -> Option<SystemTime> {
        self.entries.get(number)?.next
    }

    /// Returns how long nothing needs to be looked at.
    pub(super) fn pause(&self, now: SystemTime) -> Duration {
        let next = self.entries.iter().filter_map(|entry| entry.next).min();
        let until = next.map(|next| next.duration_since(now).unwrap_or_default());
        until.unwrap_or(PAUSE_MAX).min(PAUSE_MAX)
    }
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;

    /// 2026-01-01 00:00:00 and so many seconds.
    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(1_767_225_600 + seconds)
    }

    fn table(jobs: &[(&str, On)]) -> Timetable {
        let jobs: Vec<(Schedule, On)> = jobs
            .iter()
            .map(|(line, on)| (line.parse().unwrap(), *on))
            .collect();
        Timetable::new(jobs.iter().map(|(schedule, on)| (schedule, *on)), at(0))
    }

    fn idle(_: usize) -> Known {
        Known::default()
    }

    const PRIMARY: Option<Placement> = Some(Placement::Primary);
    const STANDBY: Option<Placement> = Some(Placement::Standby);

    #[test]
    fn l15_jobs_run_where_the_role_allows_and_nowhere_else() {
        let jobs = [
            ("* * * * *", On::Primary),
            ("* * * * *", On::Standby),
            ("* * * * *", On::Both),
        ];
        let mut table = table(&jobs);
        assert_eq!(table.step(at(59), PRIMARY, idle), []);
        assert_eq!(
            table.step(at(60), PRIMARY, idle),
            [Due::Run(0), Due::Run(2)]
        );
        assert_eq!(table.step(at(61), PRIMARY, idle), []);
        assert_eq!(
            table.step(at(120), STANDBY, idle),
            [Due::Run(1), Due::Run(2)]
        );
        assert_eq!(table.step(at(180), None, idle), []);
        // What was due while nothing might run is not made up for.
        assert_eq!(table.step(at(181), PRIMARY, idle), []);
    }

    #[test]
    fn l15_a_job_that_is_held_does_not_run_and_one_that_runs_is_not_run_twice() {
        let mut table = table(&[("* * * * *", On::Primary), ("* * * * *", On::Primary)]);
        let known = |number| Known {
            is_held: number == 0,
            is_running: true,
        };
        assert_eq!(table.step(at(60), PRIMARY, known), [Due::Overlap(1)]);
        assert_eq!(
            table.step(at(120), PRIMARY, idle),
            [Due::Run(0), Due::Run(1)]
        );
    }

    #[test]
    fn after_a_sleep_or_a_leap_of_the_clock_nothing_is_made_up_for() {
        let mut table = table(&[("* * * * *", On::Primary), ("0 0 * * *", On::Primary)]);
        let day = 24 * 60 * 60;
        assert_eq!(
            table.step(at(day + 3600 + 30), PRIMARY, idle),
            [Due::Missed(0, at(60)), Due::Missed(1, at(day))]
        );
        assert_eq!(table.step(at(day + 3660), PRIMARY, idle), [Due::Run(0)]);
        // Back by ten minutes: nothing runs twice.
        assert_eq!(table.step(at(day + 3060), PRIMARY, idle), []);
        assert_eq!(table.step(at(day + 3659), PRIMARY, idle), []);
        assert_eq!(table.step(at(day + 3720), PRIMARY, idle), [Due::Run(0)]);
        // Back by a day: the clock was wrong.
        assert_eq!(table.step(at(3600), PRIMARY, idle), []);
        assert_eq!(table.step(at(3660), PRIMARY, idle), [Due::Run(0)]);
        assert_eq!(table.next(1), Some(at(day)));
    }

    #[test]
    fn nobody_looks_more_often_than_needed() {
        let table = table(&[("*/10 * * * * *", On::Primary)]);
        assert_eq!(table.pause(at(3)), Duration::from_secs(7));
        assert_eq!(table.pause(at(60)), Duration::ZERO);
        assert_eq!(self::table(&[]).pause(at(0)), PAUSE_MAX);
    }
}
