//! Keeping what was taken, and keeping away what was given up.

use understudy_replication::status::AddressState;

use crate::network::{Network, wait_for};
use crate::node::Node;
use crate::{V4, V6};

#[test]
fn what_somebody_removes_is_put_back_and_what_appears_is_removed() {
    let Some(network) = Network::new() else {
        return;
    };
    let node = Node::new(&network, "a", &[V4, V6]);
    node.take().unwrap();
    let watching = node.watch();
    network.ip("a", &["address", "del", V4, "dev", "eth0"]);
    wait_for("the address", || network.has("a", V4).then_some(()));
    let told = wait_for("the event", || node.event("address_restored"));
    assert_eq!(
        told,
        "10.78.0.100 on eth0: somebody had removed it from this node: put back and announced"
    );
    watching.end();

    node.give_up().unwrap();
    let watching = node.watch();
    network.ip("a", &["address", "add", V4, "dev", "eth0"]);
    wait_for("the removal", || (!network.has("a", V4)).then_some(()));
    let told = wait_for("the event", || node.event("address_removed"));
    assert!(told.starts_with("10.78.0.100 appeared on this node, which should not have it"));
    assert_eq!(watching.state().0, AddressState::Absent);
    watching.end();
}

#[test]
fn an_interface_that_comes_back_has_the_address_again() {
    let Some(network) = Network::new() else {
        return;
    };
    let node = Node::new(&network, "a", &[V4, V6]);
    node.take().unwrap();
    let watching = node.watch();
    // The kernel forgets the addresses of IPv6 then.
    network.ip("a", &["link", "set", "eth0", "down"]);
    wait_for("the fault", || {
        let down = "network interface `eth0` is down".to_owned();
        (watching.state() == (AddressState::Fault, down)).then_some(())
    });
    network.ip("a", &["link", "set", "eth0", "up"]);
    wait_for("the address", || {
        let is_held = watching.state().0 == AddressState::Held;
        (is_held && network.has("a", V4) && network.has("a", V6)).then_some(())
    });
    assert_eq!(node.count("address_lost"), 1);
    watching.end();
}

#[test]
fn m11_a_node_that_was_refused_takes_the_address_once_nobody_else_has_it() {
    let Some(network) = Network::new() else {
        return;
    };
    network.ip("c", &["address", "add", V4, "dev", "eth0"]);
    let node = Node::new(&network, "a", &[V4]);
    node.take().unwrap_err();
    let watching = node.watch();
    network.ip("c", &["address", "del", V4, "dev", "eth0"]);
    wait_for("the address", || network.has("a", V4).then_some(()));
    wait_for("the event", || node.event("address_restored"));
    assert_eq!(watching.state().0, AddressState::Held);
    assert_eq!(node.count("address_not_taken"), 1);
    watching.end();
}

#[test]
fn another_machine_that_comes_up_with_the_address_is_told() {
    let Some(network) = Network::new() else {
        return;
    };
    for (address, ip) in [(V4, "10.78.0.100"), (V6, "fd78::100")] {
        let node = Node::new(&network, "a", &[address]);
        node.take().unwrap();
        let watching = node.watch();
        network.ip("c", &["address", "add", address, "dev", "eth0", "nodad"]);
        let told = wait_for("the event", || node.event("address_conflict"));
        let mac = network.mac("c");
        let conflict = format!("the machine with network card {mac} has {ip} as well as this node");
        assert!(told.starts_with(&conflict), "{told}");
        assert_eq!(watching.conflict(), Some(conflict));
        assert_eq!(watching.state().0, AddressState::Held);
        network.ip("c", &["address", "del", address, "dev", "eth0"]);
        watching.end();
        node.give_up().unwrap();
    }
}

#[test]
fn before_anybody_has_said_who_is_to_have_it_nothing_is_changed() {
    let Some(network) = Network::new() else {
        return;
    };
    network.ip("a", &["address", "add", V4, "dev", "eth0"]);
    let node = Node::new(&network, "a", &[V4]);
    let watching = node.watch();
    wait_for("the first look", || {
        let told = "10.78.0.100 is on this machine, as somebody has left it".to_owned();
        (watching.state() == (AddressState::Unknown, told)).then_some(())
    });
    watching.end();
    assert!(network.has("a", V4));
    assert_eq!(node.count("address_removed"), 0);
}
