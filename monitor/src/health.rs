//! Health checks for load balancers, with the paths and answers that Patroni has made customary.

use std::str::FromStr;

use serde::Serialize;
use understudy_replication::status::{RoleName, ServiceState, Status};
use understudy_replication::store::StoreKind;

use crate::peer::{Lag, Peer, peers};
use crate::quantity::{parse_size, plural};
use crate::surroundings;

/// What a load balancer asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Check {
    /// Does the node take writes?
    Primary,
    /// Does the node keep a copy whose lag is known, and within the bound that the caller sets?
    Standby,
    /// Does the node do what its role asks for, services included?
    Health,
    /// Is the node primary, or following one?
    Readiness,
    /// Does the daemon answer?
    Liveness,
}

/// The paths of the checks.
pub(crate) const CHECKS: [(&str, Check); 7] = [
    ("/primary", Check::Primary),
    ("/read-write", Check::Primary),
    ("/replica", Check::Standby),
    ("/standby", Check::Standby),
    ("/health", Check::Health),
    ("/readiness", Check::Readiness),
    ("/liveness", Check::Liveness),
];

/// The largest lag that a caller of [`Check::Standby`] accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LagMax(u64);

/// Why a text is not a [`LagMax`].
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a lag (expected bytes, such as 1048576, 16kB, 10MB or 1GB)")]
pub(crate) struct ParseLagMaxError(String);

impl FromStr for LagMax {
    type Err = ParseLagMaxError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || ParseLagMaxError(text.chars().take(40).collect());
        parse_size(text).map(Self).ok_or_else(error)
    }
}

/// The body of an answer.
#[derive(Debug, Serialize)]
pub(crate) struct Answer {
    node: String,
    role: RoleName,
    epoch: String,
    /// Why the check fails; nothing when it passes.
    pub(crate) reason: Option<String>,
}

impl Answer {
    /// Answers `check` from `status`.
    pub(crate) fn new(check: Check, lag_max: Option<LagMax>, status: &Status) -> Self {
        let outcome = match check {
            Check::Primary => takes_writes(status),
            Check::Standby => is_current(status, lag_max),
            Check::Health => does_its_part(status)
                .and_then(|()| services_are_well(status))
                .and_then(|()| surroundings::verdict(status)),
            Check::Readiness => does_its_part(status),
            Check::Liveness => Ok(()),
        };
        Self {
            node: status.node.to_string(),
            role: status.role,
            epoch: status.epoch.to_string(),
            reason: outcome.err(),
        }
    }
}

/// `Ok`, or the reason against it.
type Verdict = Result<(), String>;

fn does_its_part(status: &Status) -> Verdict {
    match status.role {
        RoleName::Primary => takes_writes(status).and_then(|()| stores_answer(status)),
        RoleName::Standby => follows(status).map(drop),
        RoleName::Returning | RoleName::Promoting | RoleName::Fenced => {
            Err(format!("this node is {}", status.role.as_str()))
        }
    }
}

fn takes_writes(status: &Status) -> Verdict {
    if status.role != RoleName::Primary {
        return Err(format!(
            "this node is {}, not primary",
            status.role.as_str()
        ));
    }
    // A promotion that was cut short may have left its services down: it counts as unfinished, not
    // as done, until `understudy promote` has run to its end.
    match &status.promotion {
        Some(promotion) if promotion.is_running => Err("a promotion runs".to_owned()),
        Some(_) => Err("a promotion was cut short; run `understudy promote` again".to_owned()),
        None => Ok(()),
    }
}

fn stores_answer(status: &Status) -> Verdict {
    match status.stores.iter().find(|store| store.is_silent) {
        Some(store) => Err(format!("store {} does not answer", store.id.name)),
        None => Ok(()),
    }
}

/// Returns the primary that the node follows.
fn follows(status: &Status) -> Result<Peer<'_>, String> {
    if status.role != RoleName::Standby {
        return Err(format!(
            "this node is {}, not standby",
            status.role.as_str()
        ));
    }
    let primary = peers(status)
        .pop()
        .ok_or("this node does not follow a primary yet")?;
    if !primary.is_connected {
        return Err(format!("not connected to the primary, {}", primary.name));
    }
    match primary.lags.iter().find(|lag| lag.must_reseed()) {
        Some(lag) => Err(format!("store {} must be reseeded", lag.id.name)),
        None => Ok(primary),
    }
}

fn is_current(status: &Status, lag_max: Option<LagMax>) -> Verdict {
    let primary = follows(status)?;
    for lag in &primary.lags {
        if let Some((reason, _)) = lag.unknown() {
            return Err(format!(
                "the lag of store {} is unknown: {reason}",
                lag.id.name
            ));
        }
    }
    let Some(LagMax(max)) = lag_max else {
        return Ok(());
    };
    let meant = bounded(&primary.lags);
    let mut sum = 0_u64;
    for lag in &meant {
        let Some(bytes) = lag.bytes() else {
            return Err(format!(
                "the lag of store {} in bytes is unknown",
                lag.id.name
            ));
        };
        sum = sum.saturating_add(bytes);
    }
    if sum <= max {
        return Ok(());
    }
    let mut kinds: Vec<_> = meant.iter().map(|lag| lag.id.kind.as_str()).collect();
    kinds.dedup();
    Err(format!(
        "the lag of {} is {sum} bytes, more than {max}",
        kinds.join(" and ")
    ))
}

/// Returns the stores that a caller's bound is about: Postgres, as in Patroni; and where there is none, all
/// that holds data of the application, together. Settings have revisions and are not among them.
fn bounded<'a, 'b>(lags: &'b [Lag<'a>]) -> Vec<&'b Lag<'a>> {
    let has_postgres = lags.iter().any(|lag| lag.id.kind == StoreKind::Postgres);
    let is_meant = |lag: &&Lag<'_>| match lag.id.kind {
        StoreKind::Postgres => true,
        StoreKind::Files | StoreKind::Kv => !has_postgres,
        StoreKind::Settings => false,
    };
    let mut meant: Vec<_> = lags.iter().filter(is_meant).collect();
    meant.sort_by_key(|lag| lag.id.kind);
    meant
}

fn services_are_well(status: &Status) -> Verdict {
    let faulty: Vec<_> = status
        .services
        .iter()
        // One that is not critical is an alarm, and no reason to send clients elsewhere.
        .filter(|service| service.is_critical && service.state == ServiceState::Fault)
        .map(|service| service.name.as_str())
        .collect();
    match u64::try_from(faulty.len()) {
        Ok(0) => Ok(()),
        count => Err(format!(
            "{} in fault: {}",
            plural(count.unwrap_or(u64::MAX), "service"),
            faulty.join(", ")
        )),
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write;

    use super::*;
    use crate::example;

    #[test]
    fn m05_a_service_that_is_not_critical_does_not_send_clients_away() {
        let mut status = example::primary_with_a_faulty_service();
        let reason = |status: &Status| Answer::new(Check::Health, None, status).reason;
        assert_eq!(reason(&status).as_deref(), Some("1 service in fault: web"));
        status.services[1].is_critical = false;
        assert_eq!(reason(&status), None);
    }

    #[test]
    fn a_primary_whose_postgres_hangs_is_neither_ready_nor_well() {
        let mut status = example::primary();
        let reason = |status: &Status, check| Answer::new(check, None, status).reason;
        assert_eq!(reason(&status, Check::Readiness), None);
        status.stores[0].is_silent = true;
        for check in [Check::Readiness, Check::Health] {
            let told = reason(&status, check).unwrap();
            assert!(told.contains("does not answer"), "{told}");
        }
        // It is primary all the same: nobody else takes writes.
        assert_eq!(reason(&status, Check::Primary), None);
    }

    #[test]
    fn every_check_in_every_state() {
        let mut table = String::new();
        for (name, status) in example::all() {
            writeln!(table, "{name}").unwrap();
            for (path, check) in CHECKS {
                let answer = Answer::new(check, None, &status);
                let (code, reason) = match answer.reason {
                    None => (200, String::new()),
                    Some(reason) => (503, reason),
                };
                writeln!(
                    table,
                    "{}",
                    format!("    {path:<12} {code} {reason}").trim_end()
                )
                .unwrap();
            }
        }
        insta::assert_snapshot!(table);
    }

    fn replica(status: &Status, lag_max: &str) -> Option<String> {
        Answer::new(Check::Standby, Some(lag_max.parse().unwrap()), status).reason
    }

    #[test]
    fn the_bound_is_on_the_lag_of_postgres_alone_where_there_is_one() {
        let status = example::standby();
        assert_eq!(replica(&status, "12595"), None);
        assert_eq!(replica(&status, "16kB"), None);
        assert_eq!(
            replica(&status, "12594"),
            Some("the lag of postgres is 12595 bytes, more than 12594".to_owned())
        );
    }

    #[test]
    fn without_postgres_the_bound_is_on_all_data_together() {
        let mut status = example::standby();
        status.stores.remove(0);
        let lags = &mut status.upstream.as_mut().unwrap().stores;
        lags.remove(0);
        lags[2].lag_bytes = Some(100);
        assert_eq!(replica(&status, "3145828"), None);
        assert_eq!(
            replica(&status, "3145827"),
            Some("the lag of files and kv is 3145828 bytes, more than 3145827".to_owned())
        );
    }

    #[test]
    fn a_bound_in_bytes_fails_where_the_bytes_are_unknown() {
        let mut status = example::standby();
        status.stores.remove(0);
        let lags = &mut status.upstream.as_mut().unwrap().stores;
        lags.remove(0);
        lags[2].lag_bytes = None;
        assert_eq!(
            replica(&status, "1TB"),
            Some("the lag of store kv in bytes is unknown".to_owned())
        );
    }

    #[test]
    fn a_bound_that_is_no_size_is_refused_by_name() {
        assert_eq!(
            "10XB".parse::<LagMax>().unwrap_err().to_string(),
            "`10XB` is not a lag (expected bytes, such as 1048576, 16kB, 10MB or 1GB)"
        );
    }
}
