//! What `understudy status` prints of what is around the stores: the address that clients use, and what is
//! looked at on the machine.

use understudy_replication::event::Severity;
use understudy_replication::status::{
    AddressState, AddressStatus, CheckState, CheckStatus, Status,
};
use understudy_replication::wall_time::WallTime;

use crate::quantity::{age, plural};
use crate::text::{Page, Table};

/// Returns what is not as it should be, each in a few words.
pub(crate) fn troubles(status: &Status) -> Vec<String> {
    let mut troubles = Vec::new();
    if let Some(address) = &status.address {
        if address.state == AddressState::Fault {
            troubles.push("the address is in fault".to_owned());
        }
        if address.conflict.is_some() {
            troubles.push("another machine has the address, too".to_owned());
        }
    }
    let failed = status.checks.iter().filter(|check| is_trouble(check));
    troubles.extend(failed.map(|check| format!("check {} fails", check.name)));
    troubles
}

/// Returns the one thing to do first about them.
pub(crate) fn next_step(status: &Status) -> Option<String> {
    let is_amiss = |address: &&AddressStatus| {
        address.state == AddressState::Fault || address.conflict.is_some()
    };
    if let Some(address) = status.address.as_ref().filter(is_amiss) {
        let why = address.conflict.as_ref().unwrap_or(&address.message);
        return Some(format!("mend what is wrong with the address: {why}"));
    }
    let check = status.checks.iter().find(|check| is_trouble(check))?;
    Some(format!(
        "mend what check {} tells: {}",
        check.name, check.message
    ))
}

/// What fails and is only worth knowing troubles nobody.
fn is_trouble(check: &CheckStatus) -> bool {
    check.state == CheckState::Failed && check.severity > Severity::Info
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
