//! What `/metrics` tells: one table of gauges, rendered as Prometheus' text format 0.0.4.

use std::collections::BTreeMap;
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;
use understudy_replication::status::{
    AddressState, CheckState, IndexState, IndexStatus, JobOutcome, JobState, ProofStatus, RoleName,
    ServiceState, Status,
};
use understudy_replication::store::Durability;
use understudy_replication::wall_time::WallTime;

use crate::peer::{Lag, Peer, peers};

/// The content type of [`render`].
pub(crate) const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

const PREFIX: &str = "understudy";

/// One metric: a gauge, with a sample for each set of labels.
#[derive(Debug)]
pub struct Metric {
    /// Its name without the prefix `understudy_`.
    pub name: &'static str,
    /// The names of its labels.
    pub labels: &'static [&'static str],
    /// What it tells, in a fragment without full stop.
    pub help: &'static str,
    /// What it is now. What is unknown has no sample: 0 would be a lie.
    samples: fn(&Status) -> Vec<Sample>,
}

/// The labels of what is told of one store at one peer.
const OF_COPY: &[&str] = &["store", "kind", "peer"];

/// Every metric but those of [`StoreStatus::gauges`], which stores name themselves.
///
/// [`StoreStatus::gauges`]: understudy_replication::status::StoreStatus::gauges
pub const TABLE: &[Metric] = &[
    Metric {
        name: "build_info",
        labels: &["version"],
        help: "1, with the version of the program",
        samples: |status| vec![Sample::new([&status.software], Value::Count(1))],
    },
    Metric {
        name: "start_time_seconds",
        labels: &[],
        help: "when the daemon started, in seconds since 1970",
        samples: |status| vec![Sample::new([""; 0], seconds_since_1970(status.started))],
    },
    Metric {
        name: "role",
        labels: &["role"],
        help: "1 for the role that the node has, 0 for the others",
        samples: |status| {
            const ROLES: [RoleName; 5] = [
                RoleName::Primary,
                RoleName::Returning,
                RoleName::Standby,
                RoleName::Promoting,
                RoleName::Fenced,
            ];
            let of_role =
                |role: RoleName| Sample::new([role.as_str()], (role == status.role).into());
            ROLES.map(of_role).into()
        },
    },
    Metric {
        name: "epoch_number",
        labels: &[],
        help: "the number of the highest epoch that the node has seen; rises with each promotion",
        samples: |status| vec![Sample::new([""; 0], Value::Count(status.epoch.number))],
    },
    Metric {
        name: "peer_connected",
        labels: &["peer"],
        help: "1 while reports of the standby, or marks of the primary, arrive",
        samples: |status| {
            let of_peer = |peer: Peer<'_>| Sample::new([peer.name], peer.is_connected.into());
            peers(status).into_iter().map(of_peer).collect()
        },
    },
    Metric {
        name: "cut_timestamp_seconds",
        labels: &["peer"],
        help: "the moment to which a promotion would return, by the primary's clock, in seconds since 1970",
        samples: |status| {
            let of_peer =
                |peer: Peer<'_>| Some(Sample::new([peer.name], seconds_since_1970(peer.cut?)));
            peers(status).into_iter().filter_map(of_peer).collect()
        },
    },
    Metric {
        name: "replication_lag_bytes",
        labels: OF_COPY,
        help: "bytes that the standby has not applied yet; absent while unknown",
        samples: |status| of_copies(status, |lag| lag.bytes().map(Value::Count)),
    },
    Metric {
        name: "replication_lag_operations",
        labels: OF_COPY,
        help: "operations of the key-value store that the standby has not applied yet; absent while unknown",
        samples: |status| of_copies(status, |lag| in_unit(lag, "operations", lag.applied())),
    },
    Metric {
        name: "replication_lag_revisions",
        labels: OF_COPY,
        help: "revisions of the settings that the standby has not applied yet; absent while unknown",
        samples: |status| of_copies(status, |lag| in_unit(lag, "revisions", lag.applied())),
    },
    Metric {
        name: "replication_flush_lag_bytes",
        labels: OF_COPY,
        help: "bytes that are not durable on the standby yet, which the loss of the primary would take; absent while unknown",
        samples: |status| of_copies(status, |lag| in_unit(lag, "bytes", lag.flushed())),
    },
    Metric {
        name: "replication_flush_lag_operations",
        labels: OF_COPY,
        help: "operations of the key-value store that are not durable on the standby yet; absent while unknown",
        samples: |status| of_copies(status, |lag| in_unit(lag, "operations", lag.flushed())),
    },
    Metric {
        name: "replication_flush_lag_revisions",
        labels: OF_COPY,
        help: "revisions of the settings that are not durable on the standby yet; absent while unknown",
        samples: |status| of_copies(status, |lag| in_unit(lag, "revisions", lag.flushed())),
    },
    Metric {
        name: "replication_lag_seconds",
        labels: OF_COPY,
        help: "the age of the newest mark that the standby has applied; absent while unknown",
        samples: |status| of_copies(status, |lag| lag.seconds().map(Value::Seconds)),
    },
    Metric {
        name: "replication_lag_unknown",
        labels: OF_COPY,
        help: "1 while the lag cannot be told",
        samples: |status| of_copies(status, |lag| Some(lag.unknown().is_some().into())),
    },
    Metric {
        name: "replication_stalled",
        labels: OF_COPY,
        help: "1 while the copy does not advance, although its lag can be told",
        samples: |status| of_copies(status, |lag| Some(lag.stalled().is_some().into())),
    },
    Metric {
        name: "replication_stall_reason",
        labels: &["store", "kind", "peer", "reason"],
        help: "1 for the reason for which the copy does not advance; absent while it does",
        samples: |status| {
            let mut samples = Vec::new();
            for peer in peers(status) {
                for lag in &peer.lags {
                    if let Some(reason) = lag.stall_reason() {
                        let (store, kind) = (lag.id.name.as_str(), lag.id.kind.as_str());
                        let labels = [store, kind, peer.name, reason.as_str()];
                        samples.push(Sample::new(labels, Value::Count(1)));
                    }
                }
            }
            samples
        },
    },
    Metric {
        name: "replication_must_reseed",
        labels: OF_COPY,
        help: "1 when the copy has to be compared whole before it can follow again",
        samples: |status| of_copies(status, |lag| Some(lag.must_reseed().into())),
    },
    Metric {
        name: "store_position",
        labels: &["store", "kind"],
        help: "where the store is on this node, in the unit of its kind",
        samples: |status| {
            let stores = status.stores.iter();
            let positions = stores.filter_map(|store| Some((&store.id, store.position?)));
            positions
                .map(|(id, at)| {
                    Sample::new([id.name.as_str(), id.kind.as_str()], Value::Count(at.0))
                })
                .collect()
        },
    },
    Metric {
        name: "store_troubles",
        labels: &["store", "kind"],
        help: "entries that could not be brought up to date on this node; `understudy status --store` lists them",
        samples: |status| {
            let stores = status.stores.iter();
            let of_store = stores.map(|store| {
                let labels = [store.id.name.as_str(), store.id.kind.as_str()];
                Sample::new(labels, Value::Count(store.troubles))
            });
            of_store.collect()
        },
    },
    Metric {
        name: "store_durability",
        labels: &["store", "kind", "state"],
        help: "1 for the state of what the store promises of writes, 0 for the others; absent where they need not wait for a standby",
        samples: |status| {
            const STATES: [Durability; 4] = [
                Durability::Held,
                Durability::Waiting { seconds: 0 },
                Durability::Overridden,
                Durability::Alone { seconds: None },
            ];
            let mut samples = Vec::new();
            for store in &status.stores {
                let Some(now) = store.durability else {
                    continue;
                };
                samples.extend(STATES.map(|state| {
                    let (store, kind) = (store.id.name.as_str(), store.id.kind.as_str());
                    let is_so = state.as_str() == now.as_str();
                    Sample::new([store, kind, state.as_str()], is_so.into())
                }));
            }
            samples
        },
    },
    Metric {
        name: "store_not_held_seconds",
        labels: &["store", "kind"],
        help: "for how long writes have waited for a standby, or gone on without one; 0 while one has them; absent where that is not told",
        samples: |status| {
            let of_store = status.stores.iter().filter_map(|store| {
                let labels = [store.id.name.as_str(), store.id.kind.as_str()];
                let seconds = store.durability?.seconds()?;
                Some(Sample::new(labels, Value::Count(seconds)))
            });
            of_store.collect()
        },
    },
    Metric {
        name: "service_state",
        labels: &["service", "state"],
        help: "1 for the state that the service is in, 0 for the others",
        samples: |status| {
            const STATES: [ServiceState; 6] = [
                ServiceState::Online,
                ServiceState::Offline,
                ServiceState::GoingOnline,
                ServiceState::GoingOffline,
                ServiceState::Fault,
                ServiceState::Unknown,
            ];
            let services = status.services.iter();
            let of_state = services.flat_map(|service| {
                STATES.map(|state| {
                    Sample::new(
                        [service.name.as_str(), state.as_str()],
                        (state == service.state).into(),
                    )
                })
            });
            of_state.collect()
        },
    },
    Metric {
        name: "service_restarts",
        labels: &["service"],
        help: "how often the service was started again since the daemon started",
        samples: |status| {
            let services = status.services.iter();
            let restarts = services.map(|service| {
                Sample::new(
                    [service.name.as_str()],
                    Value::Count(service.restarts_total),
                )
            });
            restarts.collect()
        },
    },
    Metric {
        name: "service_held",
        labels: &["service"],
        help: "1 while the service is held back after a failover, or was stopped by an operator",
        samples: |status| {
            let services = status.services.iter();
            let held = services
                .map(|service| Sample::new([service.name.as_str()], service.hold.is_some().into()));
            held.collect()
        },
    },
    Metric {
        name: "job_state",
        labels: &["job", "state"],
        help: "1 for the state that the job is in, 0 for the others",
        samples: |status| {
            const STATES: [JobState; 4] = [
                JobState::Waiting,
                JobState::Running,
                JobState::Held,
                JobState::Elsewhere,
            ];
            let of_state = status.jobs.iter().flat_map(|job| {
                STATES.map(|state| {
                    Sample::new(
                        [job.name.as_str(), state.as_str()],
                        (state == job.state).into(),
                    )
                })
            });
            of_state.collect()
        },
    },
    Metric {
        name: "job_failed",
        labels: &["job"],
        help: "1 when the newest run of the job on this node has failed; absent before the first",
        samples: |status| {
            let jobs = status.jobs.iter().filter_map(|job| {
                let has_failed = job.last.as_ref()?.outcome == JobOutcome::Failed;
                Some(Sample::new([job.name.as_str()], has_failed.into()))
            });
            jobs.collect()
        },
    },
    Metric {
        name: "job_ended_timestamp_seconds",
        labels: &["job"],
        help: "when the newest run of the job on this node ended, in seconds since 1970; absent before \
               the first",
        samples: |status| {
            let jobs = status.jobs.iter().filter_map(|job| {
                let ended = seconds_since_1970(job.last.as_ref()?.ended);
                Some(Sample::new([job.name.as_str()], ended))
            });
            jobs.collect()
        },
    },
    Metric {
        name: "index_state",
        labels: &["index", "state"],
        help: "1 for the state that the index is in, 0 for the others",
        samples: |status| {
            const STATES: [IndexState; 4] = [
                IndexState::Absent,
                IndexState::Rebuilding,
                IndexState::Ready,
                IndexState::Failed,
            ];
            let of_state = status.indexes.iter().flat_map(|index| {
                STATES.map(|state| {
                    Sample::new(
                        [index.name.as_str(), state.as_str()],
                        (state == index.state).into(),
                    )
                })
            });
            of_state.collect()
        },
    },
    Metric {
        name: "index_documents",
        labels: &["index"],
        help: "documents that the index holds, or that have been read while it is rebuilt",
        samples: |status| {
            let indexes = status.indexes.iter();
            indexes
                .map(|index| Sample::new([index.name.as_str()], Value::Count(index.documents)))
                .collect()
        },
    },
    Metric {
        name: "address_state",
        labels: &["state"],
        help: "1 for the state of the address that clients use, 0 for the others; absent where none is configured",
        samples: |status| {
            const STATES: [AddressState; 5] = [
                AddressState::Held,
                AddressState::Taking,
                AddressState::Absent,
                AddressState::Fault,
                AddressState::Unknown,
            ];
            let address = status.address.iter();
            let of_state = address.flat_map(|address| {
                STATES.map(|state| Sample::new([state.as_str()], (state == address.state).into()))
            });
            of_state.collect()
        },
    },
    Metric {
        name: "address_conflict",
        labels: &[],
        help: "1 while another machine answers for the address that this node holds; absent where none is configured",
        samples: |status| {
            let address = status.address.iter();
            address
                .map(|address| Sample::new([""; 0], address.conflict.is_some().into()))
                .collect()
        },
    },
    Metric {
        name: "check_state",
        labels: &["check", "kind", "severity", "state"],
        help: "1 for the state that the check is in, 0 for the others",
        samples: |status| {
            const STATES: [CheckState; 3] =
                [CheckState::Ok, CheckState::Failed, CheckState::Unknown];
            let of_state = status.checks.iter().flat_map(|check| {
                STATES.map(|state| {
                    let severity = check.severity.to_string();
                    let labels = [check.name.as_str(), &check.kind, &severity, state.as_str()];
                    Sample::new(labels, (state == check.state).into())
                })
            });
            of_state.collect()
        },
    },
    Metric {
        name: "check_timestamp_seconds",
        labels: &["check", "kind"],
        help: "when the check looked last, in seconds since 1970; absent before the first time",
        samples: |status| {
            let of_check = status.checks.iter().filter_map(|check| {
                let labels = [check.name.as_str(), &check.kind];
                Some(Sample::new(labels, seconds_since_1970(check.checked?)))
            });
            of_check.collect()
        },
    },
    Metric {
        name: "index_warm",
        labels: &["index"],
        help: "1 while the index follows its rows, so that a promotion only catches up, 0 while it does not",
        samples: |status| {
            let warm =
                |index: &IndexStatus| Sample::new([index.name.as_str()], index.is_warm.into());
            status.indexes.iter().map(warm).collect()
        },
    },
    Metric {
        name: "index_behind_seconds",
        labels: &["index"],
        help: "how long ago a warm index was equal to the rows of this node's Postgres",
        samples: |status| {
            let behind = |index: &IndexStatus| {
                let seconds = index.behind_seconds?;
                Some(Sample::new([index.name.as_str()], Value::Count(seconds)))
            };
            status.indexes.iter().filter_map(behind).collect()
        },
    },
    Metric {
        name: "problems",
        labels: &[],
        help: "how many things need an operator now, but for a pause; /monitor/status tells which",
        samples: |status| {
            let problems = u64::try_from(status.problems.len()).unwrap_or(u64::MAX);
            // That was asked for, and has a metric of its own.
            let problems = problems.saturating_sub(status.pause.is_some().into());
            vec![Sample::new([""; 0], Value::Count(problems))]
        },
    },
    Metric {
        name: "proven_recovery_seconds",
        labels: &[],
        help: "how long a promotion of this node took in the newest rehearsal that succeeded; absent if none has",
        samples: |status| {
            let seconds = status.proof.as_ref().and_then(|proof| proof.seconds);
            let sample = |seconds| Sample::new([""; 0], Value::Seconds(seconds));
            seconds.map(sample).into_iter().collect()
        },
    },
    Metric {
        name: "proof_age_seconds",
        labels: &[],
        help: "the age of the newest rehearsal that succeeded; absent if none has",
        samples: |status| {
            let proven = status.proof.as_ref().and_then(|proof| proof.proven);
            let age =
                |proven: WallTime| Duration::from_millis(status.time.0.saturating_sub(proven.0));
            let sample = |proven| Sample::new([""; 0], Value::Seconds(age(proven).as_secs_f64()));
            proven.map(sample).into_iter().collect()
        },
    },
    Metric {
        name: "proof_old",
        labels: &[],
        help: "1 when the newest rehearsal that succeeded is older than the configuration allows, or none has; absent where none is asked for",
        samples: |status| {
            let sample = |proof: &ProofStatus| Sample::new([""; 0], proof.is_old.into());
            status.proof.as_ref().map(sample).into_iter().collect()
        },
    },
    Metric {
        name: "rehearsal_failed",
        labels: &[],
        help: "1 when the newest rehearsal failed, 0 when it succeeded; absent if there was none",
        samples: |status| {
            let tried = status.proof.as_ref().filter(|proof| proof.tried.is_some());
            let sample = |proof: &ProofStatus| Sample::new([""; 0], proof.failure.is_some().into());
            tried.map(sample).into_iter().collect()
        },
    },
    Metric {
        name: "paused",
        labels: &[],
        help: "1 while somebody has asked understudy to do nothing by itself on the cluster",
        samples: |status| vec![Sample::new([""; 0], status.pause.is_some().into())],
    },
    Metric {
        name: "promotion_running",
        labels: &[],
        help: "1 while a promotion runs on this node",
        samples: |status| {
            let is_running = status
                .promotion
                .as_ref()
                .is_some_and(|promotion| promotion.is_running);
            vec![Sample::new([""; 0], is_running.into())]
        },
    },
    Metric {
        name: "promotion_cut_short",
        labels: &[],
        help: "1 when a promotion stopped on this node before its end, and waits for `understudy promote`",
        samples: |status| {
            let is_cut_short = status
                .promotion
                .as_ref()
                .is_some_and(|promotion| !promotion.is_running);
            vec![Sample::new([""; 0], is_cut_short.into())]
        },
    },
];

/// One series at one moment.
#[derive(Debug)]
struct Sample {
    /// The values of the labels, in the order of [`Metric::labels`].
    labels: Vec<String>,
    value: Value,
}

#[derive(Clone, Copy, Debug)]
enum Value {
    Count(u64),
    Seconds(f64),
}

impl Sample {
    fn new<const N: usize>(labels: [impl Into<String>; N], value: Value) -> Self {
        Self {
            labels: labels.map(Into::into).into(),
            value,
        }
    }
}

impl From<bool> for Value {
    fn from(is_so: bool) -> Self {
        Self::Count(is_so.into())
    }
}

fn of_copies(status: &Status, value: fn(&Lag<'_>) -> Option<Value>) -> Vec<Sample> {
    let mut samples = Vec::new();
    for peer in peers(status) {
        for lag in &peer.lags {
            if let Some(value) = value(lag) {
                let labels = [lag.id.name.as_str(), lag.id.kind.as_str(), peer.name];
                samples.push(Sample::new(labels, value));
            }
        }
    }
    samples
}

/// Returns `distance` if that is what the store's positions are counted in.
fn in_unit(lag: &Lag<'_>, unit: &str, distance: Option<u64>) -> Option<Value> {
    if lag.id.kind.unit() == unit {
        distance.map(Value::Count)
    } else {
        None
    }
}

fn seconds_since_1970(time: WallTime) -> Value {
    Value::Seconds(Duration::from_millis(time.0).as_secs_f64())
}

/// Renders `status`.
pub(crate) fn render(status: Status) -> String {
    let mut registry = Registry::with_prefix(PREFIX);
    registry.register_collector(Box::new(Scrape(status)));
    let mut body = String::new();
    text::encode_registry(&mut body, &registry).expect("writing to a string cannot fail");
    body
}

/// The status of one scrape.
#[derive(Debug)]
struct Scrape(Status);

impl Collector for Scrape {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let Self(status) = self;
        for metric in TABLE {
            let samples = (metric.samples)(status);
            encode(
                &mut encoder,
                metric.name,
                metric.labels,
                metric.help,
                &samples,
            )?;
        }
        for (name, samples) in store_gauges(status) {
            let help = "what the store tells of itself";
            encode(&mut encoder, &name, &["store"], help, &samples)?;
        }
        Ok(())
    }
}

/// Writes one metric; one without samples is left out.
fn encode(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    labels: &[&str],
    help: &str,
    samples: &[Sample],
) -> Result<(), std::fmt::Error> {
    if samples.is_empty() {
        return Ok(());
    }
    let mut encoder = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
    for sample in samples {
        let values = sample.labels.iter().map(String::as_str);
        let labels: Vec<_> = labels.iter().copied().zip(values).collect();
        if labels.is_empty() {
            // As a family it would be written with empty braces.
            encode_value(&mut encoder, sample.value)?;
        } else {
            encode_value(&mut encoder.encode_family(&labels)?, sample.value)?;
        }
    }
    Ok(())
}

fn encode_value(encoder: &mut MetricEncoder<'_>, value: Value) -> Result<(), std::fmt::Error> {
    match value {
        Value::Count(count) => encoder.encode_gauge(&count),
        Value::Seconds(seconds) => encoder.encode_gauge(&seconds),
    }
}

/// Returns the gauges that stores name themselves, by name.
fn store_gauges(status: &Status) -> BTreeMap<String, Vec<Sample>> {
    let mut gauges = BTreeMap::<String, Vec<Sample>>::new();
    for store in &status.stores {
        for (gauge, value) in &store.gauges {
            let name = format!("store_{gauge}");
            // One name that is none, or is taken, would spoil the whole scrape.
            let is_name = name
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
            if is_name && TABLE.iter().all(|metric| metric.name != name) {
                let sample = Sample::new([store.id.name.as_str()], Value::Count(*value));
                gauges.entry(name).or_default().push(sample);
            }
        }
    }
    gauges
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::example;

    /// Reads the quoted values of labels with their escapes, and returns what follows `}`.
    fn after_labels(mut rest: &str) -> Option<&str> {
        loop {
            let name = rest
                .bytes()
                .take_while(|b| b.is_ascii_lowercase() || *b == b'_')
                .count();
            rest = rest[name..].strip_prefix("=\"").filter(|_| name > 0)?;
            let mut characters = rest.char_indices();
            let end = loop {
                match characters.next()? {
                    (end, '"') => break end,
                    (_, '\n') => return None,
                    (_, '\\') if !matches!(characters.next()?.1, '\\' | '"' | 'n') => return None,
                    _ => {}
                }
            };
            rest = &rest[end + 1..];
            if let Some(after) = rest.strip_prefix('}') {
                return Some(after);
            }
            rest = rest.strip_prefix(',')?;
        }
    }

    /// Returns the name and the series of a sample line, if it is one.
    fn sample(line: &str) -> Option<(&str, &str)> {
        let name = line
            .bytes()
            .take_while(|b| b.is_ascii_alphanumeric() || *b == b'_')
            .count();
        let rest = match line[name..].strip_prefix('{') {
            Some(labels) => after_labels(labels)?,
            None => &line[name..],
        };
        let value = rest.strip_prefix(' ')?;
        let _: f64 = value.parse().ok()?;
        Some((&line[..name], &line[..line.len() - rest.len()]))
    }

    fn check(body: &str) {
        let mut families = BTreeSet::new();
        let mut series = BTreeSet::new();
        let mut lines = body.lines();
        let mut family = String::new();
        assert!(body.ends_with('\n'));
        while let Some(line) = lines.next() {
            if let Some(help) = line.strip_prefix("# HELP ") {
                let (name, help) = help.split_once(' ').unwrap();
                assert!(!help.is_empty() && !help.contains('\\'), "{line}");
                assert_eq!(lines.next(), Some(format!("# TYPE {name} gauge").as_str()));
                assert!(families.insert(name.to_owned()), "twice: {line}");
                family = name.to_owned();
            } else {
                let (name, one) = sample(line).unwrap_or_else(|| panic!("no sample: {line}"));
                assert_eq!(name, family, "outside its family: {line}");
                assert!(name.starts_with("understudy_"), "{line}");
                assert!(series.insert(one.to_owned()), "twice: {line}");
            }
        }
    }

    #[test]
    fn every_line_is_in_the_format_and_no_series_is_told_twice() {
        for (_, status) in example::all() {
            check(&render(status));
        }
    }

    #[test]
    fn what_a_label_holds_cannot_break_the_format() {
        let mut status = example::primary();
        status.software = "1 \"quoted\" \\ and\nbroken".to_owned();
        let body = render(status);
        check(&body);
        let line = r#"understudy_build_info{version="1 \"quoted\" \\ and\nbroken"} 1"#;
        assert!(body.lines().any(|l| l == line), "{body}");
    }

    #[test]
    fn a_gauge_whose_name_is_taken_or_none_is_left_out() {
        let mut status = example::primary();
        let gauges = [("position", 1), ("log bytes", 2), ("log_bytes", 3)];
        status.stores[1].gauges = gauges.map(|(name, value)| (name.to_owned(), value)).into();
        check(&render(status.clone()));
        let names: Vec<_> = store_gauges(&status).into_keys().collect();
        let of_the_store = ["store_log_bytes", "store_slot_bytes"];
        assert!(
            of_the_store
                .iter()
                .all(|name| names.iter().any(|it| it == name))
        );
        assert!(
            !names
                .iter()
                .any(|name| name == "store_position" || name.contains(' '))
        );
    }

    #[test]
    fn a_lag_that_is_unknown_has_no_sample_and_says_so() {
        let body = render(example::standby_link_down());
        for name in [
            "lag_bytes",
            "lag_revisions",
            "lag_seconds",
            "flush_lag_bytes",
        ] {
            assert!(
                !body.contains(&format!("understudy_replication_{name}")),
                "{name}: {body}"
            );
        }
        let line = r#"understudy_replication_lag_unknown{store="docs",kind="files",peer="a"} 1"#;
        assert!(body.lines().any(|l| l == line), "{body}");
    }

    #[test]
    fn every_metric_has_as_many_labels_as_it_names() {
        for (_, status) in example::all() {
            for metric in TABLE {
                for sample in (metric.samples)(&status) {
                    assert_eq!(sample.labels.len(), metric.labels.len(), "{}", metric.name);
                }
            }
        }
    }
}
