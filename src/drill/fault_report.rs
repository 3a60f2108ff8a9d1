//! The evidence of a fault: what followed it, and when.

use std::path::Path;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use understudy_replication::event::{Event, Severity};
use understudy_replication::reports;
use understudy_replication::status::Status;
use understudy_replication::wall_time::WallTime;

use super::clients::{Clients, Served};
use super::condition::Condition;
use super::fault::Fault;
use crate::failure::Failure;

/// What a report of this kind is called in the file.
const KIND: &str = "fault";

fn kind() -> String {
    KIND.to_owned()
}

/// The evidence of a fault. Moments are seconds after the injection.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct FaultReport {
    version: u32,
    /// [`KIND`].
    #[serde(default = "kind")]
    kind: String,
    pub(super) node: String,
    pub(super) fault: Fault,
    /// When it was injected, by this node's clock.
    pub(super) injected: WallTime,
    /// After how long the daemon told of it first, and how.
    pub(super) detected_seconds: Option<f64>,
    pub(super) detected: Option<Event>,
    /// After how long this node gave up, or took, the address.
    pub(super) address_moved_seconds: Option<f64>,
    /// After how long the role of this node changed.
    pub(super) role_changed_seconds: Option<f64>,
    /// What became of clients, as the probe shows it; `None` if none was given.
    #[serde(default)]
    pub(super) clients: Option<Served>,
    /// After how long the longest outage of clients was over; `None` if there was none, or it was not over.
    pub(super) first_write_seconds: Option<f64>,
    /// How long it was for them: from the last answer before it to the first one after it.
    pub(super) gap_seconds: Option<f64>,
    /// How many outages there were for them.
    #[serde(default)]
    pub(super) outages: u32,
    /// For how long they had had no answer at the end, if they had none then.
    #[serde(default)]
    pub(super) out_seconds: Option<f64>,
    /// How long the slowest answer took.
    #[serde(default)]
    pub(super) slowest_answer_seconds: Option<f64>,
    /// After how long it was mended.
    pub(super) mended_seconds: Option<f64>,
    /// After how long the pair was as before, and stayed so; `None` if it was so all the time, or is not.
    #[serde(default)]
    pub(super) recovered_seconds: Option<f64>,
    /// What was not as before at the end; `None` in reports of versions that did not look.
    #[serde(default)]
    pub(super) missing: Option<Vec<String>>,
    /// What the node told of it, oldest first.
    pub(super) events: Vec<Event>,
}

impl FaultReport {
    /// Returns the report of a fault that is injected now.
    pub(super) fn begin(node: String, fault: Fault) -> Self {
        Self {
            version: 1,
            kind: kind(),
            node,
            fault,
            injected: WallTime::now(),
            detected_seconds: None,
            detected: None,
            address_moved_seconds: None,
            role_changed_seconds: None,
            clients: None,
            first_write_seconds: None,
            gap_seconds: None,
            outages: 0,
            out_seconds: None,
            slowest_answer_seconds: None,
            mended_seconds: None,
            recovered_seconds: None,
            missing: None,
            events: Vec::new(),
        }
    }

    /// Takes in what the daemon tells, if it does.
    pub(super) fn learn(&mut self, after: Duration, before: Option<&Status>, now: Option<&Status>) {
        let seconds = after.as_secs_f64();
        let missing = match now.map(Condition::of) {
            Some(now) => now.missing_since(before.map(Condition::of).as_ref()),
            None => vec!["the daemon does not answer".to_owned()],
        };
        self.note_missing(seconds, missing);
        let Some(now) = now else { return };
        let of_this = |event: &&Event| event.time >= self.injected;
        self.events = now.events.iter().filter(of_this).cloned().collect();
        if self.detected.is_none() {
            let told = |event: &&Event| event.severity >= Severity::Warning;
            self.detected = self.events.iter().find(told).cloned();
            self.detected_seconds = self.detected.as_ref().map(|_| seconds);
        }
        let Some(before) = before else { return };
        let state = |status: &Status| status.address.as_ref().map(|address| address.state);
        if self.address_moved_seconds.is_none() && state(before) != state(now) {
            self.address_moved_seconds = Some(seconds);
        }
        if self.role_changed_seconds.is_none() && before.role != now.role {
            self.role_changed_seconds = Some(seconds);
        }
    }

    /// Takes in what is not as before. What has recovered may fail once more.
    fn note_missing(&mut self, seconds: f64, missing: Vec<String>) {
        let was_missing = self.missing.as_ref().is_some_and(|it| !it.is_empty());
        if !missing.is_empty() {
            self.recovered_seconds = None;
        } else if was_missing {
            self.recovered_seconds = Some(seconds);
        }
        self.missing = Some(missing);
    }

    /// Takes in what clients lived through until `now`.
    pub(super) fn note_clients(&mut self, clients: &Clients, begun: Instant, now: Instant) {
        self.clients = Some(clients.served());
        self.first_write_seconds = clients.first_answer_seconds(begun);
        self.gap_seconds = clients.gap_seconds();
        self.outages = clients.outages();
        self.out_seconds = clients.out_seconds(now);
        self.slowest_answer_seconds = Some(clients.slowest_seconds());
    }

    /// Returns whether it is over: told, mended, and all as it was before.
    pub(super) fn is_over(&self) -> bool {
        self.mended_seconds.is_some()
            && self.detected.is_some()
            && self.missing.as_ref().is_some_and(Vec::is_empty)
            && self.clients != Some(Served::NotAgain)
    }

    /// Keeps it durably.
    pub(super) fn keep(&self, state_dir: &Path) -> Result<(), Failure> {
        let name = reports::Kind::Fault.file_at(self.injected);
        match reports::keep(state_dir, &name, self, 0o640) {
            Ok(_) => Ok(()),
            Err(error) => Err(Failure::failed(format!(
                "the report cannot be kept in {}: {error}",
                reports::folder(state_dir).display()
            ))),
        }
    }

    /// Returns how it ended, in a word, and what more there is to say on one line.
    pub(super) fn outcome(&self) -> (&'static str, String) {
        let fault = self.fault.name();
        let clients = match (self.clients, self.gap_seconds) {
            (Some(Served::NotAgain), _) => ", clients were not served again".to_owned(),
            (_, Some(gap)) => format!(", clients were out for {gap:.1} s"),
            (Some(Served::Always), None) => ", clients were served all the time".to_owned(),
            (Some(Served::Again) | None, None) => String::new(),
        };
        match self.detected_seconds {
            Some(seconds) => (
                "detected",
                format!("{fault}: told after {seconds:.1} s{clients}"),
            ),
            None => ("unnoticed", format!("{fault}{clients}")),
        }
    }

    /// Returns what it tells people.
    pub(super) fn text(&self) -> String {
        let after = |seconds: Option<f64>| match seconds {
            Some(seconds) => format!("after {seconds:.1} s"),
            None => "not seen".to_owned(),
        };
        let mut lines = Vec::new();
        let detected = match &self.detected {
            Some(event) => format!("{}: {}", after(self.detected_seconds), event.message),
            None => after(None),
        };
        lines.push(("detected", detected));
        lines.push(("address moved", after(self.address_moved_seconds)));
        lines.push(("role changed", after(self.role_changed_seconds)));
        lines.push(("mended", after(self.mended_seconds)));
        if let Some(missing) = &self.missing {
            lines.push(("pair as before", self.recovered(missing)));
        }
        match self.clients {
            // Versions before did not say so; neither is there a gap without a probe.
            None => {}
            Some(Served::Always) => {
                let slowest = self.slowest_answer_seconds.unwrap_or_default();
                lines.push((
                    "clients",
                    format!("were served all the time; the slowest answer took {slowest:.1} s"),
                ));
            }
            Some(Served::NotAgain) => {
                let out = self.out_seconds.unwrap_or_default();
                lines.push((
                    "clients",
                    format!("are not served: the last answer was {out:.1} s before the end"),
                ));
            }
            Some(Served::Again) => {}
        }
        if let Some(gap) = self.gap_seconds {
            lines.push(("first write accepted", after(self.first_write_seconds)));
            let of = match self.outages {
                0 | 1 => String::new(),
                outages => format!(", the longest of {outages}"),
            };
            lines.push(("gap for clients", format!("{gap:.1} s{of}")));
        }
        let mut text = format!(
            "Fault drill: {} on node {} at {}.\n",
            self.fault.name(),
            self.node,
            self.injected
        );
        for (what, told) in lines {
            text += &format!("  {what:22} {told}\n");
        }
        text
    }

    fn recovered(&self, missing: &[String]) -> String {
        if !missing.is_empty() {
            return format!("not seen: {}", missing.join("; "));
        }
        let Some(seconds) = self.recovered_seconds else {
            return "all the time".to_owned();
        };
        match self.mended_seconds {
            Some(mended) if mended < seconds => format!(
                "after {seconds:.1} s, {:.1} s after it was mended",
                seconds - mended
            ),
            Some(_) | None => format!("after {seconds:.1} s"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> FaultReport {
        let mut report = FaultReport::begin("a".to_owned(), Fault::CutAll);
        report.injected = WallTime(1_700_000_000_000);
        report.mended_seconds = Some(10.0);
        report
    }

    #[test]
    fn a_pair_has_recovered_when_it_is_as_before_and_stays_so() {
        let gone = || vec!["b is not connected".to_owned()];
        let mut report = report();
        report.note_missing(0.2, Vec::new());
        assert!(
            report
                .text()
                .contains("pair as before         all the time")
        );
        for (seconds, missing) in [
            (6.0, gone()),
            (12.0, Vec::new()),
            (13.0, gone()),
            (19.5, Vec::new()),
            (20.0, Vec::new()),
        ] {
            report.note_missing(seconds, missing);
        }
        assert_eq!(report.recovered_seconds, Some(19.5));
        let text = report.text();
        assert!(
            text.contains("pair as before         after 19.5 s, 9.5 s after it was mended\n"),
            "{text}"
        );
        report.note_missing(21.0, gone());
        let text = report.text();
        assert!(text.contains("not seen: b is not connected\n"), "{text}");
        assert!(!report.is_over());
    }

    #[test]
    fn clients_that_were_served_all_the_time_are_said_to_have_been() {
        let mut report = report();
        let begun = Instant::now();
        let later = |millis| begun + Duration::from_millis(millis);
        let mut clients = Clients::served_at(begun);
        clients.took(later(100), later(1400), true);
        report.note_clients(&clients, begun, later(2000));
        let text = report.text();
        assert!(
            text.contains(
                "clients                were served all the time; the slowest answer took 1.3 s\n"
            ),
            "{text}"
        );
        assert!(!text.contains("first write"), "{text}");
        clients.took(later(1500), later(1600), false);
        report.note_clients(&clients, begun, later(3400));
        let text = report.text();
        assert!(
            text.contains("are not served: the last answer was 2.0 s before the end\n"),
            "{text}"
        );
        clients.took(later(3400), later(3500), true);
        report.note_clients(&clients, begun, later(3600));
        let text = report.text();
        assert!(
            text.contains("first write accepted   after 3.5 s\n  gap for clients        2.1 s\n"),
            "{text}"
        );
    }
}
