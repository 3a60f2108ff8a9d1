//! The address that clients use is where the primary is, and nowhere else.

use std::process::Command;

use crate::world::{Machine, Network, Pair, Plan, holds, until};

const ADDRESS: &str = "10.77.0.100/24";

/// A pair that moves an address, each node a network namespace of its own.
fn pair(test: &str) -> Option<Pair> {
    let network = Network::new(test)?;
    let section = format!("\n[address]\nip = \"{ADDRESS}\"\ninterface = \"cable\"\n");
    let plan = Plan {
        more: section,
        ..Plan::settings()
    };
    Some(Pair::on(network, plan))
}

/// Runs `ip address` on a machine, and returns what it says.
fn address(pair: &Pair, machine: &Machine, arguments: &[&str]) -> String {
    let namespace = pair.network.as_ref().unwrap().namespace(machine.name);
    let mut command = Command::new("ip");
    let said = command
        .args(["-n", &namespace, "address"])
        .args(arguments)
        .output()
        .unwrap();
    assert!(said.status.success(), "{said:?}");
    String::from_utf8(said.stdout).unwrap()
}

fn has_it(pair: &Pair, machine: &Machine) -> bool {
    address(pair, machine, &["show"]).contains(&format!(" {ADDRESS} "))
}

/// Waits until a has the address, or not, and b likewise.
fn wait_for(pair: &Pair, expected: (bool, bool)) {
    until("the address is where it should be", Pair::PATIENCE, || {
        let has = (has_it(pair, &pair.a), has_it(pair, &pair.b));
        holds(has == expected, has)
    });
}

fn state(machine: &Machine) -> String {
    machine.status()["address"]["state"]
        .as_str()
        .unwrap()
        .to_owned()
}

#[test]
fn m11_the_address_follows_the_primary_there_and_back() {
    let Some(pair) = pair("m11_the_address_follows_the_primary_there_and_back") else {
        return;
    };
    wait_for(&pair, (true, false));
    assert_eq!(
        (state(&pair.a), state(&pair.b)),
        ("held".to_owned(), "absent".to_owned())
    );
    for (from, to, expected) in [
        (&pair.a, &pair.b, (false, true)),
        (&pair.b, &pair.a, (true, false)),
    ] {
        until("the standby has everything", Pair::PATIENCE, || {
            let ended = from.try_understudy(&["wait", "--timeout", "5"]);
            holds(ended.status == Some(0), &ended)
        });
        to.understudy(&["switchover"]);
        wait_for(&pair, expected);
    }
    let moves = pair.a.events("address_given_up");
    assert!(!moves.is_empty());
    assert_eq!(pair.a.events("address_conflict"), Vec::<String>::new());
}

#[test]
fn m11_an_address_that_a_dead_primary_left_behind_is_not_taken_before_it_is_gone() {
    let test = "m11_an_address_that_a_dead_primary_left_behind_is_not_taken_before_it_is_gone";
    let Some(mut pair) = pair(test) else {
        return;
    };
    wait_for(&pair, (true, false));
    pair.wait();
    // The kernel of a goes on without its daemon, and answers for the address.
    pair.a.kill_daemon();
    let promoted = pair.b.try_understudy(&["promote", "--force"]);
    assert_ne!(promoted.status, Some(0), "{promoted:?}");
    assert!(promoted.stderr.contains("has 10.77.0.100"), "{promoted:?}");
    wait_for(&pair, (true, false));
    // Its daemon learns that it has been superseded, and gives the address up: b takes it by itself.
    pair.a.serve();
    wait_for(&pair, (false, true));
    until("b tells that it has it", Pair::PATIENCE, || {
        let state = state(&pair.b);
        holds(state == "held", &state)
    });
}

#[test]
fn l07_a_standby_gives_up_at_its_start_what_clients_would_reach_it_by() {
    let test = "l07_a_standby_gives_up_at_its_start_what_clients_would_reach_it_by";
    let Some(mut pair) = pair(test) else {
        return;
    };
    wait_for(&pair, (true, false));
    pair.wait();
    pair.b.kill_daemon();
    address(&pair, &pair.b, &["add", ADDRESS, "dev", "cable"]);
    pair.b.spawn(&[], &[]);
    wait_for(&pair, (true, false));
    pair.b.wait_until_ready();
    assert_eq!(pair.b.role(), "standby");
}

#[test]
fn m11_a_daemon_that_is_restarted_takes_the_address_from_nobody() {
    let Some(mut pair) = pair("m11_a_daemon_that_is_restarted_takes_the_address_from_nobody")
    else {
        return;
    };
    wait_for(&pair, (true, false));
    pair.wait();
    let before = address(&pair, &pair.a, &["show", "dev", "cable"]);
    pair.a.kill_daemon();
    assert!(has_it(&pair, &pair.a));
    pair.a.serve();
    until("a has it still", Pair::PATIENCE, || {
        let state = state(&pair.a);
        holds(state == "held", &state)
    });
    assert_eq!(address(&pair, &pair.a, &["show", "dev", "cable"]), before);
    let taken = pair.a.events("address_taken");
    assert_eq!(taken.len(), 1, "{taken:?}");
}
