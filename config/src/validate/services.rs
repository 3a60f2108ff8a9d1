//! What runs with the role of a node: services, jobs and hooks.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::sections::{command, schedule, word};
use super::{elements, name};
use crate::problem::{Findings, Mistake, Placed};
use crate::{AfterFailover, Hooks, Job, On, Service, StoreName, duration, raw};

/// What is asked more often costs more than it tells.
const INTERVAL_MIN: Duration = Duration::from_millis(100);

/// Returns the services in the order in which they are started.
pub(super) fn services(
    raw: &Option<Placed<Vec<Placed<raw::Service>>>>,
    findings: &mut Findings,
) -> Option<Vec<Service>> {
    let read = elements(raw).map(|it| service(&it.value, findings));
    let read = super::all(read.collect::<Vec<_>>().into_iter());
    let sections: Vec<_> = elements(raw).collect();
    let predecessors = predecessors(&sections, findings)?;
    let mut services = read?;
    let names: Vec<StoreName> = services.iter().map(|it| it.name.clone()).collect();
    for (service, predecessors) in services.iter_mut().zip(&predecessors) {
        service.after = predecessors.iter().map(|at| names[*at].clone()).collect();
    }
    let order = match order(&predecessors) {
        Ok(order) => order,
        Err(circle) => {
            report_circle(&circle, &sections, &names, findings);
            return None;
        }
    };
    Some(order.into_iter().map(|at| services[at].clone()).collect())
}

fn service(raw: &raw::Service, findings: &mut Findings) -> Option<Service> {
    let name = raw
        .name
        .as_ref()
        .and_then(|it| findings.check(it, name::<StoreName>));
    let start = raw.start.as_ref().and_then(|it| command(it, findings));
    let stop = raw.stop.as_ref().and_then(|it| command(it, findings));
    let status = raw.status.as_ref().and_then(|it| command(it, findings));
    let user = raw.user.as_ref().map(|it| findings.check(it, word));
    let on = raw.on.as_ref().and_then(|it| on(it, findings));
    let restart_window = raw
        .restart_window
        .as_ref()
        .and_then(|it| findings.check(it, duration::parse));
    let interval = raw
        .interval
        .as_ref()
        .and_then(|it| findings.check(it, interval));
    let timeout = raw
        .timeout
        .as_ref()
        .and_then(|it| findings.check(it, duration::parse));
    let status_timeout = raw
        .status_timeout
        .as_ref()
        .and_then(|it| findings.check(it, duration::parse));
    let after_failover = after_failover(&raw.after_failover, findings);
    Some(Service {
        name: name?,
        start: start?,
        stop: stop?,
        status: status?,
        user: super::whole(user)?,
        on: on?,
        after: Vec::new(),
        is_critical: raw.critical.as_ref()?.value,
        restarts: raw.restarts.as_ref()?.value,
        restart_window: restart_window?,
        interval: interval?,
        timeout: timeout?,
        status_timeout: status_timeout?,
        after_failover: after_failover?,
        rehearse: raw.rehearse.as_ref()?.value,
    })
}

pub(super) fn job(raw: &raw::Job, findings: &mut Findings) -> Option<Job> {
    let name = raw
        .name
        .as_ref()
        .and_then(|it| findings.check(it, name::<StoreName>));
    let schedule = raw
        .schedule
        .as_ref()
        .and_then(|it| findings.check(it, schedule));
    let command = raw.command.as_ref().and_then(|it| command(it, findings));
    let user = raw.user.as_ref().map(|it| findings.check(it, word));
    let timeout = raw
        .timeout
        .as_ref()
        .and_then(|it| findings.check(it, duration::parse));
    let on = raw.on.as_ref().and_then(|it| on(it, findings));
    let after_failover = after_failover(&raw.after_failover, findings);
    Some(Job {
        name: name?,
        schedule: schedule?,
        command: command?,
        user: super::whole(user)?,
        timeout: timeout?,
        on: on?,
        after_failover: after_failover?,
    })
}

pub(super) fn hooks(raw: &raw::Hooks, findings: &mut Findings) -> Option<Hooks> {
    let online = raw.online.as_ref().map(|it| command(it, findings));
    let offline = raw.offline.as_ref().map(|it| command(it, findings));
    let user = raw.user.as_ref().map(|it| findings.check(it, word));
    let timeout = raw
        .timeout
        .as_ref()
        .and_then(|it| findings.check(it, duration::parse));
    Some(Hooks {
        online: super::whole(online)?,
        offline: super::whole(offline)?,
        user: super::whole(user)?,
        timeout: timeout?,
    })
}

/// Reports every job that has the name of a service: both are started and stopped by their names.
pub(super) fn distinct(file: &raw::ClusterFile, findings: &mut Findings) {
    let services = elements(&file.service).filter_map(|it| it.value.name.as_ref());
    let named: BTreeMap<&str, _> = services.map(|it| (it.value.as_str(), &it.place)).collect();
    for job in elements(&file.job).filter_map(|it| it.value.name.as_ref()) {
        if let Some(place) = named.get(job.value.as_str()) {
            let what = format!("job `{}` has the name of a service", job.value);
            findings
                .report(&job.place, what, "a name that no service has")
                .related(place, "the service is named here");
        }
    }
}

fn on(written: &Placed<String>, findings: &mut Findings) -> Option<On> {
    match written.value.as_str() {
        "primary" => Some(On::Primary),
        "standby" => Some(On::Standby),
        "both" => Some(On::Both),
        other => {
            let what = format!("`{other}` is not where something runs");
            let expected = "\"primary\", \"standby\" or \"both\"";
            findings
                .report(&written.place, what, expected)
                .suggesting(other, ["primary", "standby", "both"]);
            None
        }
    }
}

fn after_failover(
    written: &Option<Placed<String>>,
    findings: &mut Findings,
) -> Option<AfterFailover> {
    let written = written.as_ref()?;
    match written.value.as_str() {
        "start" => Some(AfterFailover::Start),
        "hold" => Some(AfterFailover::Hold),
        other => {
            let what = format!("`{other}` is not what can be done after a failover");
            findings
                .report(&written.place, what, "\"start\" or \"hold\"")
                .suggesting(other, ["start", "hold"]);
            None
        }
    }
}

fn interval(text: &str) -> Result<Duration, Mistake> {
    let interval = duration::parse(text)?;
    if interval < INTERVAL_MIN {
        let what = format!("`{text}` is too often");
        return Err(Mistake::new(what, "at least \"100ms\""));
    }
    Ok(interval)
}

/// Returns which services each of them waits for, by their places in the file.
fn predecessors(
    sections: &[&Placed<raw::Service>],
    findings: &mut Findings,
) -> Option<Vec<BTreeSet<usize>>> {
    let mut at = BTreeMap::new();
    for (number, section) in sections.iter().enumerate() {
        if let Some(name) = &section.value.name {
            at.entry(name.value.as_str()).or_insert(number);
        }
    }
    let mut is_known = true;
    let mut all = Vec::new();
    for (number, section) in sections.iter().enumerate() {
        let Some(after) = &section.value.after else {
            all.push(number.checked_sub(1).into_iter().collect());
            continue;
        };
        let mut predecessors = BTreeSet::new();
        for name in &after.value {
            let known = at.get(name.value.as_str()).copied();
            match known {
                Some(before) if before != number => {
                    predecessors.insert(before);
                }
                Some(_) => {
                    is_known = false;
                    let what = format!("service `{}` waits for itself", name.value);
                    findings.report(&name.place, what, "the names of other services");
                }
                None => {
                    is_known = false;
                    let what = format!("there is no service `{}`", name.value);
                    findings
                        .report(&name.place, what, "the name of a `[[service]]`")
                        .suggesting(&name.value, at.keys().copied());
                }
            }
        }
        all.push(predecessors);
    }
    is_known.then_some(all)
}

/// Returns the order in which each comes after those that it waits for, and otherwise as in the file.
///
/// # Errors
/// With some that wait for each other, each for the next and the last for the first.
fn order(predecessors: &[BTreeSet<usize>]) -> Result<Vec<usize>, Vec<usize>> {
    let mut order = Vec::new();
    let mut left: BTreeSet<usize> = (0..predecessors.len()).collect();
    while let Some(first) = left.first() {
        let ready = left.iter().find(|at| predecessors[**at].is_disjoint(&left));
        let Some(ready) = ready.copied() else {
            return Err(circle(predecessors, &left, *first));
        };
        left.remove(&ready);
        order.push(ready);
    }
    Ok(order)
}

/// Finds a circle among those that are `left`, of which each waits for another of them.
fn circle(predecessors: &[BTreeSet<usize>], left: &BTreeSet<usize>, first: usize) -> Vec<usize> {
    let mut walked = vec![first];
    while let Some(next) = walked
        .last()
        .and_then(|at| predecessors[*at].intersection(left).next())
    {
        if let Some(begin) = walked.iter().position(|at| at == next) {
            walked.drain(..begin);
            break;
        }
        walked.push(*next);
    }
    walked
}

fn report_circle(
    circle: &[usize],
    sections: &[&Placed<raw::Service>],
    names: &[StoreName],
    findings: &mut Findings,
) {
    // Told of one that says what it waits for, since that can be changed.
    let says = |at: &usize| sections[*at].value.after.is_some();
    let begin = circle.iter().position(says).unwrap_or_default();
    let mut told = circle.to_vec();
    told.rotate_left(begin);
    let Some(first) = told.first().copied() else {
        return;
    };
    let section = sections[first];
    let place = section
        .value
        .after
        .as_ref()
        .map_or(&section.place, |after| &after.place);
    let waits: Vec<String> = told
        .iter()
        .skip(1)
        .chain([&first])
        .map(|at| format!("`{}`", names[*at]))
        .collect();
    let what = format!(
        "services wait for each other: `{}` for {}",
        names[first],
        waits.join(", which waits for ")
    );
    let expected = "an order; without `after` a service waits for the one before it in the file, with \
                    `after = []` for none";
    findings.report(place, what, expected);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Edges that all go from later to earlier of some shuffle have no circle.
        #[test]
        fn each_comes_after_those_it_waits_for_and_otherwise_as_in_the_file(
            ranks in Just((0..12_usize).collect::<Vec<_>>()).prop_shuffle(),
            edges in prop::collection::vec((0..12_usize, 0..12_usize), 0..30),
        ) {
            let mut predecessors = vec![BTreeSet::new(); 12];
            for (left, right) in edges {
                if ranks[left] < ranks[right] {
                    predecessors[right].insert(left);
                }
            }
            let order = order(&predecessors).unwrap();
            let mut done = BTreeSet::new();
            for at in &order {
                prop_assert!(predecessors[*at].is_subset(&done));
                // Nothing that stands before it in the file could have gone first.
                let earlier = (0..*at).filter(|it| !done.contains(it));
                for other in earlier {
                    prop_assert!(!predecessors[other].is_subset(&done));
                }
                done.insert(*at);
            }
            prop_assert_eq!(done.len(), 12);
        }

        #[test]
        fn a_circle_is_told_as_one(edges in prop::collection::vec((0..8_usize, 0..8_usize), 0..30)) {
            let mut predecessors = vec![BTreeSet::new(); 8];
            for (left, right) in edges {
                if left != right {
                    predecessors[left].insert(right);
                }
            }
            if let Err(circle) = order(&predecessors) {
                for (at, next) in circle.iter().zip(circle.iter().cycle().skip(1)) {
                    prop_assert!(predecessors[*at].contains(next));
                }
            }
        }
    }
}
