//! Services run on the primary and nowhere else, in order.

use std::fs;

use serde_json::Value;

use crate::world::{Machine, Pair, Plan, until};

fn plan() -> Plan {
    Plan {
        services: vec!["one", "two", "three"],
        ..Plan::settings()
    }
}

fn states(machine: &Machine) -> Vec<String> {
    let services = machine.json(&["services"]);
    let state = |service: &Value| {
        format!(
            "{} {}",
            service["name"].as_str().unwrap(),
            service["state"].as_str().unwrap()
        )
    };
    services.as_array().unwrap().iter().map(state).collect()
}

fn wait_for_states(machine: &Machine, expected: [&str; 3]) {
    until(
        &format!("the services of {}", machine.name),
        Pair::PATIENCE,
        || {
            let states = states(machine);
            if states == expected {
                Ok(())
            } else {
                Err(format!("{states:?}"))
            }
        },
    );
}

fn journal(machine: &Machine) -> String {
    fs::read_to_string(machine.at("/journal")).unwrap_or_default()
}

fn pids(machine: &Machine) -> Vec<String> {
    let pid = |name| fs::read_to_string(machine.at("/run").join(format!("{name}.pid"))).unwrap();
    ["one", "two", "three"].map(pid).to_vec()
}

#[test]
fn services_start_in_order_on_the_primary_and_stop_in_reverse_when_it_is_fenced() {
    let mut pair = Pair::new(plan());
    wait_for_states(&pair.a, ["one online", "two online", "three online"]);
    assert_eq!(journal(&pair.a), "start one\nstart two\nstart three\n");
    assert!(
        states(&pair.b)
            .iter()
            .all(|state| !state.ends_with("online")),
        "{:?}",
        states(&pair.b)
    );
    assert_eq!(journal(&pair.b), "");

    pair.b.understudy(&["promote"]);
    wait_for_states(&pair.b, ["one online", "two online", "three online"]);
    assert_eq!(journal(&pair.b), "start one\nstart two\nstart three\n");
    assert_eq!(
        journal(&pair.a),
        "start one\nstart two\nstart three\nstop three\nstop two\nstop one\n"
    );
    pair.assert_a_is_fenced();
    pair.assert_b_is_primary();
}

#[test]
fn a_daemon_that_restarts_adopts_what_runs() {
    let mut pair = Pair::alone(plan());
    wait_for_states(&pair.a, ["one online", "two online", "three online"]);
    let before = pids(&pair.a);
    assert_eq!(pair.a.stop(), Some(0));
    pair.a.serve();
    wait_for_states(&pair.a, ["one online", "two online", "three online"]);
    pair.a.kill_daemon();
    pair.a.serve();
    wait_for_states(&pair.a, ["one online", "two online", "three online"]);
    assert_eq!(pids(&pair.a), before);
    assert_eq!(journal(&pair.a), "start one\nstart two\nstart three\n");
}

#[test]
fn a_service_that_dies_is_a_fault_that_is_told() {
    let pair = Pair::alone(plan());
    wait_for_states(&pair.a, ["one online", "two online", "three online"]);
    assert_eq!(pair.a.health("/health"), 200);
    let pid: i32 = pids(&pair.a)[1].trim().parse().unwrap();
    crate::world::kill(pid);
    wait_for_states(&pair.a, ["one online", "two fault", "three online"]);
    assert_eq!(pair.a.health("/health"), 503);
    assert_eq!(pair.a.health("/primary"), 200);
    pair.a
        .wait_for_event("service_down", "service two is down and should be up");
}

#[test]
fn a_primary_whose_service_does_not_stop_is_not_called_fenced() {
    let mut pair = Pair::new(plan());
    wait_for_states(&pair.a, ["one online", "two online", "three online"]);
    fs::write(pair.a.at("/stuck"), "").unwrap();
    let refused = pair.b.try_understudy(&["promote"]);
    assert_eq!(refused.status, Some(3), "{refused:?}");
    assert_eq!(pair.b.role(), "standby");
    assert_eq!(
        journal(&pair.b),
        "",
        "a service was started while the other ran"
    );

    // What was owed is done by itself as soon as it can be, and then the promotion goes on.
    fs::remove_file(pair.a.at("/stuck")).unwrap();
    until("the services of a are down", Pair::PATIENCE, || {
        let journal = journal(&pair.a);
        if journal.ends_with("stop three\nstop two\nstop one\n") {
            Ok(())
        } else {
            Err(journal)
        }
    });
    pair.b.understudy(&["promote"]);
    pair.assert_a_is_fenced();
    pair.assert_b_is_primary();
}
