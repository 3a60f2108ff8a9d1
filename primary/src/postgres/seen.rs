//! What the last looks at the server have shown. Pure.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use understudy_config::NodeName;
use understudy_replication::position::{Lsn, Position};
use understudy_replication::postgres::{Need, any_of, slot_name};
use understudy_replication::store::{Durability, Observed, StoreReport};

use super::durability::{Action, Streams, Waiting};
use super::look::{Look, Slot, Stream, WaitingSettings};
use super::restart;
use super::retention::Rate;

/// A standby answers each second; one that has not for this long is not there.
const ANSWER_MAX: Duration = Duration::from_secs(3);

/// A server that answers nothing for so long is told to be silent.
const SILENCE_MIN: Duration = Duration::from_secs(3);

/// If a slot will be lost within this time, operators are told.
const LOSS_TOLD_SECONDS: u64 = 6 * 60 * 60;

#[derive(Debug, Default)]
pub(super) struct Seen {
    streams: Vec<Stream>,
    pub(super) slots: Vec<Slot>,
    needs_restart: Vec<Need>,
    settings: Option<WaitingSettings>,
    problem: Option<String>,
    /// Since when no look has been answered.
    silent_since: Option<Instant>,
    is_silence_told: bool,
    /// What each standby has last answered, and when that was first seen.
    answers: BTreeMap<String, (Option<String>, Instant)>,
    pub(super) flushed: Lsn,
    /// What was durable here at the look before.
    flushed_before: Lsn,
    rate: Rate,
    /// `None` where commits are not to wait.
    pub(super) waiting: Option<Waiting>,
}

impl Seen {
    /// Takes what a look has shown.
    pub(super) fn take(&mut self, look: Look, now: Instant) {
        self.answers
            .retain(|name, _| look.streams.iter().any(|stream| stream.name == *name));
        for stream in &look.streams {
            let held = self.answers.get(&stream.name);
            if held.is_none_or(|(answer, _)| *answer != stream.answered) {
                let answer = (stream.answered.clone(), now);
                self.answers.insert(stream.name.clone(), answer);
            }
        }
        self.rate.note(now, look.flushed);
        self.flushed_before = std::mem::replace(&mut self.flushed, look.flushed);
        self.streams = look.streams;
        self.slots = look.slots;
        self.needs_restart = look.needs_restart;
        self.settings = Some(look.waiting);
        self.problem = None;
        self.silent_since = None;
    }

    /// Notes that a look which began at `begun` was not answered; returns whether that is news by now: a restart
    /// takes a moment, too.
    pub(super) fn falls_silent(&mut self, begun: Instant, now: Instant) -> bool {
        let since = *self.silent_since.get_or_insert(begun);
        let is_long = now.saturating_duration_since(since) >= SILENCE_MIN;
        is_long && !std::mem::replace(&mut self.is_silence_told, is_long)
    }

    /// Returns whether the server has been told to answer nothing.
    pub(super) fn is_silent(&self) -> bool {
        self.is_silence_told
    }

    /// Returns whether the server answers again of which it was told that it does not.
    pub(super) fn answers_again(&mut self) -> bool {
        std::mem::take(&mut self.is_silence_told)
    }

    /// Notes that the server does not answer; returns what it is to be told all the same.
    pub(super) fn hears_nothing(&mut self, reason: String, now: Instant) -> Option<Action> {
        self.streams.clear();
        self.problem = Some(reason);
        self.waiting.as_mut()?.hears_nothing(now)
    }

    fn answered(&self, name: &str) -> Option<Instant> {
        self.answers.get(name).map(|(_, at)| *at)
    }

    fn answers(&self, name: &str, now: Instant) -> bool {
        self.answered(name)
            .is_some_and(|at| now.saturating_duration_since(at) < ANSWER_MAX)
    }

    /// Returns what decides whether commits wait for one of `peers`.
    pub(super) fn for_waiting(&self, now: Instant, peers: &[NodeName]) -> Streams {
        let is_peer = |stream: &&Stream| peers.iter().any(|peer| peer.as_str() == stream.name);
        let peers_streams: Vec<&Stream> = self.streams.iter().filter(is_peer).collect();
        let settings = self.settings.as_ref();
        let is_there = |stream: &&&Stream| self.answers(&stream.name, now);
        Streams {
            is_required: settings.is_some_and(|settings| settings.waits_for == any_of(peers)),
            is_overridden: settings.is_none_or(|settings| !settings.overridden.is_empty()),
            is_synced: peers_streams
                .iter()
                .filter(is_there)
                .any(|stream| stream.is_synchronous && is_streaming(stream)),
            has_caught_up: peers_streams
                .iter()
                .filter(is_there)
                .any(|stream| is_streaming(stream) && stream.flushed >= self.flushed_before),
            answered: peers_streams
                .iter()
                .filter_map(|stream| self.answered(&stream.name))
                .max(),
        }
    }

    pub(super) fn is_lost(&self, slot: &str) -> bool {
        self.slots
            .iter()
            .any(|known| known.is_lost && known.name == slot)
    }

    /// Returns what is known of the stream of a standby.
    pub(super) fn observed(&self, standby: &NodeName, now: Instant) -> Observed {
        let not_streaming = |reason: String, must_reseed| Observed::NotStreaming {
            reason,
            must_reseed,
        };
        let mut streams = self.streams.iter();
        let Some(stream) = streams.find(|stream| stream.name == standby.as_str()) else {
            if self.is_lost(&slot_name(standby)) {
                let reason = "the write-ahead log that it needs has been removed";
                return not_streaming(reason.to_owned(), true);
            }
            return not_streaming("postgres streams nothing to it".to_owned(), false);
        };
        if !self.answers(&stream.name, now) {
            let seconds = self
                .answered(&stream.name)
                .map_or(0, |at| now.saturating_duration_since(at).as_secs());
            return not_streaming(format!("it has not answered for {seconds} s"), false);
        }
        match stream.state.as_deref() {
            Some("streaming" | "catchup") => Observed::Streaming {
                sent: Position::from(stream.sent),
                flushed: Position::from(stream.flushed),
                applied: Position::from(stream.applied),
            },
            other => not_streaming(
                format!("its stream is in state {}", other.unwrap_or("unknown")),
                false,
            ),
        }
    }

    pub(super) fn report(&self, now: Instant) -> StoreReport {
        let mut problems: Vec<String> = self.problem.clone().into_iter().collect();
        if !self.needs_restart.is_empty() {
            problems.push(format!(
                "postgres must be restarted for: {}",
                restart::told(&self.needs_restart)
            ));
        }
        let retained = self.slots.iter().map(|slot| slot.retained_bytes).max();
        let mut gauges = BTreeMap::from([(
            "retained_wal_bytes".to_owned(),
            retained.unwrap_or_default(),
        )]);
        if let Some(rate) = self.rate.bytes_per_second() {
            gauges.insert("wal_bytes_per_second".to_owned(), rate);
        }
        let mut soonest = None;
        for slot in &self.slots {
            if slot.is_lost {
                problems.push(format!(
                    "slot {} is lost: run `understudy rejoin` on its standby; only what differs is copied",
                    slot.name
                ));
                continue;
            }
            let left = slot
                .room_bytes
                .and_then(|room| self.rate.seconds_until(room));
            let Some(left) = left.filter(|_| !slot.is_active) else {
                continue;
            };
            soonest = Some(soonest.unwrap_or(left).min(left));
            if left < LOSS_TOLD_SECONDS {
                problems.push(format!(
                    "slot {} is lost in about {} min at the present rate of writing: its standby is away, \
                     and has to be seeded anew then",
                    slot.name,
                    left / 60
                ));
            }
        }
        if let Some(seconds) = soonest {
            gauges.insert("slot_lost_in_seconds".to_owned(), seconds);
        }
        let durability = self.waiting.as_ref().map(|waiting| waiting.claim(now));
        self.report_durability(durability, &mut problems, &mut gauges);
        StoreReport {
            problems,
            gauges,
            durability,
            is_silent: self.is_silence_told,
        }
    }

    fn report_durability(
        &self,
        durability: Option<Durability>,
        problems: &mut Vec<String>,
        gauges: &mut BTreeMap<String, u64>,
    ) {
        let Some(durability) = durability else { return };
        let overridden = self
            .settings
            .iter()
            .flat_map(|settings| &settings.overridden);
        let overridden: Vec<&str> = overridden.map(String::as_str).collect();
        if !overridden.is_empty() {
            problems.push(format!(
                "some commits do not wait for a standby, though durability is \"sync\": overridden by {}; \
                 remove that",
                overridden.join(", ")
            ));
        }
        gauges.insert(
            "sync_held".to_owned(),
            u64::from(durability == Durability::Held),
        );
        let mut at_risk = 0;
        match durability {
            Durability::Held | Durability::Overridden => {}
            Durability::Waiting { seconds } => problems.push(format!(
                "commits have waited for a standby for {seconds} s; none answers"
            )),
            Durability::Alone { .. } => {
                // What a slot keeps back is what its standby has not made durable.
                let kept = self.slots.iter().filter(|slot| !slot.is_lost);
                at_risk = kept
                    .map(|slot| slot.retained_bytes)
                    .min()
                    .unwrap_or(self.flushed.0);
                problems.push(format!(
                    "commits wait for no standby: {at_risk} bytes of write-ahead log are on this node only; \
                     they wait again once a standby has caught up"
                ));
            }
        }
        gauges.insert("at_risk_bytes".to_owned(), at_risk);
    }
}

fn is_streaming(stream: &Stream) -> bool {
    stream.state.as_deref() == Some("streaming")
}
