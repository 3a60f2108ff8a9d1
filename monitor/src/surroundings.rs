//! What `understudy status` prints of what is around the stores: the address that clients use, the services that
//! somebody has stopped, and what is looked at on the machine.

use understudy_config::On;
use understudy_replication::event::Severity;
use understudy_replication::status::{
    AddressState, AddressStatus, CheckState, CheckStatus, CloneStatus, Hold, RoleName,
    ServiceState, ServiceStatus, Status,
};
use understudy_replication::wall_time::WallTime;

use crate::quantity::{age, plural};
use crate::text::{Page, Table};

/// Returns what is not as it should be, each in a few words.
pub(crate) fn troubles(status: &Status) -> Vec<String> {
    let mut troubles = Vec::new();
    if let Some(address) = &status.address {
        match address.state {
            AddressState::Fault => troubles.push("the address is in fault".to_owned()),
            // It is taken once the critical services are up.
            AddressState::Absent if status.role == RoleName::Primary => {
                troubles.push("the address is not held: clients do not reach it".to_owned());
            }
            AddressState::Held
            | AddressState::Taking
            | AddressState::Absent
            | AddressState::Unknown => {}
        }
        if address.conflict.is_some() {
            troubles.push("another machine has the address, too".to_owned());
        }
    }
    let stopped = stopped_by_hand(status);
    troubles.extend(stopped.map(|it| format!("service {} was stopped by hand", it.name)));
    let failed = status.checks.iter().filter(|check| is_trouble(check));
    troubles.extend(failed.map(|check| format!("check {} fails", check.name)));
    troubles
}

/// Returns why a promotion of this node would be refused by what it sees right now: its own plan is made anew only
/// every few seconds.
pub(crate) fn blocks_promotion(status: &Status) -> Option<String> {
    let is_blocking =
        |check: &&CheckStatus| check.blocks_promotion && check.state == CheckState::Failed;
    let check = status.checks.iter().find(is_blocking)?;
    let colon = if check.message.is_empty() { "" } else { ": " };
    Some(format!(
        "no: check {} fails on node {}{colon}{}; mend what it looks at",
        check.name, status.node, check.message
    ))
}

/// Returns the critical services that should run here if nobody had stopped them: whoever comes after that must
/// not take the appliance for whole.
fn stopped_by_hand(status: &Status) -> impl Iterator<Item = &ServiceStatus> {
    let runs_here = |on: On| match status.role {
        RoleName::Primary => on != On::Standby,
        RoleName::Standby => on != On::Primary,
        RoleName::Returning | RoleName::Promoting | RoleName::Fenced => false,
    };
    status.services.iter().filter(move |service| {
        let is_down = service.state != ServiceState::Online;
        let is_stopped = service.hold == Some(Hold::Operator) && is_down;
        service.is_critical && is_stopped && runs_here(service.on)
    })
}

/// Returns the one thing to do first about them.
pub(crate) fn next_step(status: &Status, now: WallTime) -> Option<String> {
    if let Some(service) = stopped_by_hand(status).next() {
        let name = &service.name;
        let by = match &service.stopped {
            Some(by) => {
                let who = by.who.as_deref().unwrap_or("somebody");
                format!(" by {who}, {} ago", age(by.at, now))
            }
            None => String::new(),
        };
        return Some(format!(
            "start service {name}, which was stopped by hand{by}: `understudy services start {name}`"
        ));
    }
    let is_amiss = |address: &&AddressStatus| {
        address.state == AddressState::Fault || address.conflict.is_some()
    };
    if let Some(address) = status.address.as_ref().filter(is_amiss) {
        let why = address.conflict.as_ref().unwrap_or(&address.message);
        return Some(format!("mend what is wrong with the address: {why}"));
    }
    let check = status.checks.iter().find(|check| is_trouble(check))?;
    Some(match check.message.is_empty() {
        true => format!("wait: what check {} looks at was well just now", check.name),
        false => format!("mend what check {} tells: {}", check.name, check.message),
    })
}

/// What fails and is only worth knowing troubles nobody.
fn is_trouble(check: &CheckStatus) -> bool {
    check.state == CheckState::Failed && check.severity > Severity::Info
}

/// Says on a line among the answers that a node is a clone: nobody must take it for the appliance.
pub(crate) fn show_clone(page: &mut Page, status: &Status) {
    let Some(clone) = &status.clone_of else {
        return;
    };
    page.line(format!(
        "  clone    {} of {}, made{} at {}, to try things on: what is written here stays here",
        clone.name,
        clone
            .of
            .as_ref()
            .map_or("another cluster".to_owned(), |of| format!("cluster {of}")),
        on_maker(clone),
        clone.made,
    ));
}

/// Returns ` on node NAME`, where it is known which node made a clone.
pub(crate) fn on_maker(clone: &CloneStatus) -> String {
    let node = clone.node.iter();
    node.map(|node| format!(" on node {node}")).collect()
}

/// Shows the address on a line among the answers.
pub(crate) fn show_address(page: &mut Page, status: &Status, now: WallTime) {
    let Some(address) = &status.address else {
        return;
    };
    let mut line = format!(
        "  address  {} {} on {} for {}",
        address.ips.join(", "),
        address.state.as_str(),
        address.interface,
        age(address.since, now),
    );
    let told = match address.state {
        AddressState::Held | AddressState::Absent => address.conflict.as_deref(),
        AddressState::Fault | AddressState::Taking | AddressState::Unknown => {
            Some(address.message.as_str())
        }
    };
    if let Some(told) = told.filter(|told| !told.is_empty()) {
        line.push_str(": ");
        line.push_str(told);
    }
    page.line(line);
}

/// Shows on a line among the answers how many checks are well, and the others in a table of their own.
pub(crate) fn show_check_count(page: &mut Page, status: &Status) {
    let count = |state| {
        status
            .checks
            .iter()
            .filter(|check| check.state == state)
            .count()
    };
    let [ok, failed, unknown] =
        [CheckState::Ok, CheckState::Failed, CheckState::Unknown].map(count);
    if status.checks.is_empty() {
        return;
    }
    let mut line = format!("  checks   {ok} ok");
    if failed > 0 {
        line.push_str(&format!(", {failed} failed"));
    }
    if unknown > 0 {
        line.push_str(&format!(", {unknown} unknown"));
    }
    page.line(line);
}

/// Shows the checks that are not well.
pub(crate) fn show_checks(page: &mut Page, status: &Status, now: WallTime) {
    let mut table = Table::new([
        "CHECK",
        "KIND",
        "STATE",
        "SEVERITY",
        "FOR",
        "WHAT WAS FOUND",
    ]);
    let amiss = status
        .checks
        .iter()
        .filter(|check| check.state != CheckState::Ok);
    for check in amiss {
        let message = match check.blocks_promotion {
            true => format!("{} (no promotion meanwhile)", check.message),
            false => check.message.clone(),
        };
        table.row([
            check.name.to_string(),
            check.kind.clone(),
            check.state.as_str().to_owned(),
            check.severity.to_string(),
            age(check.since, now),
            message,
        ]);
    }
    page.table(&table);
}

/// Returns why a load balancer should not take the node for well, if there is a reason.
pub(crate) fn verdict(status: &Status) -> Result<(), String> {
    let is_fault = |address: &&AddressStatus| address.state == AddressState::Fault;
    if let Some(address) = status.address.as_ref().filter(is_fault) {
        return Err(format!("the address is in fault: {}", address.message));
    }
    let is_error = |check: &&CheckStatus| {
        check.state == CheckState::Failed && check.severity == Severity::Error
    };
    let failed: Vec<_> = status.checks.iter().filter(is_error).collect();
    let names: Vec<_> = failed.iter().map(|check| check.name.as_str()).collect();
    match u64::try_from(failed.len()) {
        Ok(0) => Ok(()),
        count => Err(format!(
            "{} failed: {}",
            plural(count.unwrap_or(u64::MAX), "check"),
            names.join(", ")
        )),
    }
}

#[cfg(test)]
mod tests {
    use understudy_replication::status::{LinkStatus, StoppedBy};

    use super::*;
    use crate::example;

    #[test]
    fn a_primary_without_the_address_says_that_clients_do_not_reach_it() {
        let mut status = example::primary_with_a_faulty_service();
        status.address.as_mut().unwrap().state = AddressState::Absent;
        let told = troubles(&status);
        assert_eq!(told, ["the address is not held: clients do not reach it"]);
        assert_eq!(troubles(&example::standby()), Vec::<String>::new());
    }

    #[test]
    fn a_clone_says_that_it_is_one() {
        let mut status = example::primary_alone();
        status.clone_of = Some(CloneStatus {
            name: "test".parse().unwrap(),
            of: Some("catalog".to_owned()),
            node: Some("b".parse().unwrap()),
            made: example::at(-7_600_000),
        });
        let text = crate::text(&status, example::NOW);
        let first: Vec<&str> = text.lines().take(5).collect();
        insta::assert_snapshot!(first.join("\n"), @r"
        node a of cluster catalog is primary in epoch 1.a, mode standalone
          clone    test of cluster catalog, made on node b at 2023-11-14T20:06:40.000Z, to try things on: what is written here stays here
          well     yes
          promote  there is no standby to promote
          do       nothing: try things; `understudy clone remove test --stop` on node b removes it
        ");
        let clone = status.clone_of.as_mut().unwrap();
        (clone.of, clone.node) = (None, None);
        let text = crate::text(&status, example::NOW);
        assert!(
            text.contains("test of another cluster, made at 2023"),
            "{text}"
        );
    }

    #[test]
    fn a_critical_service_that_somebody_has_stopped_is_told_first() {
        let mut status = example::primary();
        let web = &mut status.services[1];
        (web.state, web.hold) = (ServiceState::Offline, Some(Hold::Operator));
        web.stopped = Some(StoppedBy {
            who: Some("eva".to_owned()),
            at: example::at(-10_800_000),
        });
        let first = |status: &Status| {
            let text = crate::text(status, example::NOW);
            let lines = text.lines().filter(|line| {
                let line = line.trim_start();
                line.starts_with("well ") || line.starts_with("do ")
            });
            lines.collect::<Vec<_>>().join("\n")
        };
        insta::assert_snapshot!(first(&status), @r"
          well     no: service web was stopped by hand
          do       start service web, which was stopped by hand by eva, 3 h ago: `understudy services start web`
        ");
        status.services[1].stopped = None;
        assert!(first(&status).contains("which was stopped by hand: `understudy"));
        // What does not belong here is not missed here, and what is not critical may stay down.
        status.services[1].on = On::Standby;
        assert!(first(&status).ends_with("nothing"));
        status.services[1].on = On::Both;
        status.services[1].is_critical = false;
        assert!(first(&status).ends_with("nothing"));
    }

    #[test]
    fn a_check_that_keeps_the_node_from_a_promotion_is_told_before_its_plan_is_made_anew() {
        let mut status = example::standby();
        let promote = |status: &Status| {
            let text = crate::text(status, example::NOW);
            let mut lines = text.lines();
            let line = lines.find(|line| line.starts_with("  promote  "));
            line.unwrap().to_owned()
        };
        assert!(promote(&status).contains("would serve the state"));
        let check = &mut status.checks[0];
        (check.state, check.blocks_promotion) = (CheckState::Failed, true);
        check.message = "the flag is set".to_owned();
        insta::assert_snapshot!(
            promote(&status),
            @"  promote  no: check gateway fails on node b: the flag is set; mend what it looks at"
        );
        // Its last look was good, and it has not been for long enough.
        status.checks[0].message.clear();
        insta::assert_snapshot!(
            promote(&status),
            @"  promote  no: check gateway fails on node b; mend what it looks at"
        );
        assert!(
            crate::text(&status, example::NOW)
                .contains("what check gateway looks at was well just now")
        );
    }

    #[test]
    fn a_standby_shows_where_its_primary_is() {
        let mut status = example::standby();
        let link = |address: &str, is_up| LinkStatus {
            node: "a".parse().unwrap(),
            address: address.to_owned(),
            is_up,
            since: example::NOW,
            round_trip_ms: None,
            message: String::new(),
        };
        status.links = vec![link("10.0.0.1:7479", false), link("[fd00::1]:7479", true)];
        let text = crate::text(&status, example::NOW);
        let shows = |ip: &str| {
            text.lines()
                .any(|line| line.starts_with("a ") && line.contains(ip))
        };
        assert!(shows(" fd00::1 "), "{text}");
    }
}
