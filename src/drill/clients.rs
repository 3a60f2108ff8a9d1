//! What clients live through while something is broken: requests, one after the other, as one of them would
//! send them.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use understudy_replication::command::Command;

use crate::failure::Failure;

/// A request has this long.
const REQUEST_PATIENCE: Duration = Duration::from_secs(2);

/// How long after the end of a request the next one is sent.
const REQUEST_INTERVAL: Duration = Duration::from_millis(100);

/// What became of clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Served {
    /// Every request was answered.
    Always,
    /// Some were not; at the end they were answered again.
    Again,
    /// They were not answered any more at the end.
    NotAgain,
}

/// What the requests of a client have shown so far.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Clients {
    /// When the newest answer came.
    answered: Instant,
    /// The newest request was not answered.
    is_out: bool,
    /// The longest time from one answer to the next with a failure between them.
    longest: Option<(Instant, Instant)>,
    /// How often there was such a time.
    outages: u32,
    /// How long the slowest answer took.
    slowest: Duration,
}

impl Clients {
    /// Takes in that a client was answered at `answered`, before anything was broken.
    pub(super) fn served_at(answered: Instant) -> Self {
        Self {
            answered,
            is_out: false,
            longest: None,
            outages: 0,
            slowest: Duration::ZERO,
        }
    }

    /// Takes in a request that was sent at `asked` and had ended at `ended`.
    pub(super) fn took(&mut self, asked: Instant, ended: Instant, is_answered: bool) {
        if !is_answered {
            self.is_out = true;
            return;
        }
        self.slowest = self.slowest.max(ended.saturating_duration_since(asked));
        let length = |(from, to): (Instant, Instant)| to.saturating_duration_since(from);
        if std::mem::take(&mut self.is_out) {
            self.outages += 1;
            let gap = (self.answered, ended);
            if self
                .longest
                .is_none_or(|longest| length(longest) < length(gap))
            {
                self.longest = Some(gap);
            }
        }
        self.answered = ended;
    }

    pub(super) fn served(&self) -> Served {
        match (self.is_out, self.longest) {
            (true, _) => Served::NotAgain,
            (false, Some(_)) => Served::Again,
            (false, None) => Served::Always,
        }
    }

    /// Returns how long the longest outage was, from the last answer before it to the first one after it, in
    /// seconds.
    pub(super) fn gap_seconds(&self) -> Option<f64> {
        let (from, to) = self.longest?;
        Some(to.saturating_duration_since(from).as_secs_f64())
    }

    /// Returns how long after `begun` that outage was over, in seconds.
    pub(super) fn first_answer_seconds(&self, begun: Instant) -> Option<f64> {
        let (_, to) = self.longest?;
        Some(to.saturating_duration_since(begun).as_secs_f64())
    }

    /// Returns for how long nothing has been answered at `now`, in seconds, if the newest request was not.
    pub(super) fn out_seconds(&self, now: Instant) -> Option<f64> {
        let out = now.saturating_duration_since(self.answered);
        self.is_out.then_some(out.as_secs_f64())
    }

    pub(super) fn outages(&self) -> u32 {
        self.outages
    }

    pub(super) fn slowest_seconds(&self) -> f64 {
        self.slowest.as_secs_f64()
    }
}

/// A client that sends requests for as long as this is kept.
pub(super) struct Probing {
    clients: watch::Receiver<Clients>,
    task: JoinHandle<()>,
}

impl Drop for Probing {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Probing {
    /// Sends a request, which has to be answered unless `force`, and goes on with others.
    pub(super) async fn begin(probe: &str, force: bool) -> Result<Self, Failure> {
        let asked = Instant::now();
        let answered = request(probe).await;
        let mut clients = Clients::served_at(Instant::now());
        match answered {
            Ok(_) => clients.took(asked, Instant::now(), true),
            Err(_) if force => clients.took(asked, Instant::now(), false),
            Err(error) => {
                let why = understudy_replication::error_chain(&error);
                return Err(Failure::refused(format!(
                    "the probe fails before anything is broken: {why}"
                ))
                .hint("it has to succeed while clients are served: try it in a shell"));
            }
        }
        let (sender, receiver) = watch::channel(clients);
        let probe = probe.to_owned();
        let task = tokio::spawn(async move {
            loop {
                tokio::time::sleep(REQUEST_INTERVAL).await;
                let asked = Instant::now();
                let is_answered = request(&probe).await.is_ok();
                sender.send_modify(|clients| clients.took(asked, Instant::now(), is_answered));
            }
        });
        Ok(Self {
            clients: receiver,
            task,
        })
    }

    /// Returns what has been seen by now.
    pub(super) fn seen(&self) -> Clients {
        self.clients.borrow().clone()
    }
}

async fn request(probe: &str) -> Result<String, understudy_replication::command::CommandError> {
    let command = Command::new(["sh", "-c", probe]).limit(REQUEST_PATIENCE);
    command.run().await
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns what a client saw whose requests were sent and had ended at these tenths of a second after the
    /// beginning, which was a second after its first answer.
    fn seen(requests: &[(u64, u64, bool)]) -> (Clients, Instant) {
        let first = Instant::now();
        let begun = first + Duration::from_secs(1);
        let at = |tenths: u64| begun + Duration::from_millis(100 * tenths);
        let mut clients = Clients::served_at(first);
        for (asked, ended, is_answered) in requests {
            clients.took(at(*asked), at(*ended), *is_answered);
        }
        (clients, begun)
    }

    #[test]
    fn a_gap_is_from_the_last_answer_before_to_the_first_one_after() {
        // The first request that fails takes its two seconds: they are a part of the gap.
        let (clients, begun) = seen(&[
            (1, 2, true),
            (3, 23, false),
            (24, 44, false),
            (45, 117, true),
            (118, 119, true),
        ]);
        assert_eq!(clients.served(), Served::Again);
        assert_eq!(clients.gap_seconds(), Some(11.5));
        assert_eq!(clients.first_answer_seconds(begun), Some(11.7));
        assert_eq!(clients.slowest_seconds(), 7.2);
        assert_eq!(clients.outages(), 1);
    }

    #[test]
    fn of_several_outages_the_longest_is_the_gap() {
        let (clients, begun) = seen(&[
            (0, 1, false),
            (2, 3, true),
            (4, 5, false),
            (9, 43, true),
            (44, 45, false),
            (46, 47, true),
        ]);
        // The first began before anything was broken, with the answer a second earlier.
        assert_eq!(clients.outages(), 3);
        assert_eq!(clients.gap_seconds(), Some(4.0));
        assert_eq!(clients.first_answer_seconds(begun), Some(4.3));
    }

    #[test]
    fn clients_that_were_never_refused_were_served_all_the_time() {
        let (clients, begun) = seen(&[(1, 2, true), (3, 18, true)]);
        assert_eq!(clients.served(), Served::Always);
        assert_eq!(clients.gap_seconds(), None);
        assert_eq!(clients.first_answer_seconds(begun), None);
        assert_eq!(clients.slowest_seconds(), 1.5);
        assert_eq!(clients.out_seconds(begun), None);
    }

    #[test]
    fn an_outage_that_is_not_over_is_no_gap_yet() {
        let (clients, begun) = seen(&[(1, 2, true), (3, 4, false)]);
        assert_eq!(clients.served(), Served::NotAgain);
        assert_eq!(clients.gap_seconds(), None);
        let now = begun + Duration::from_millis(5200);
        assert_eq!(clients.out_seconds(now), Some(5.0));
    }
}
