//! What is not taken, and why.

use rustix::thread::CapabilitySet;
use understudy_primary::address::AddressError;
use understudy_replication::status::AddressState;

use crate::network::Network;
use crate::node::{Node, config};
use crate::{V4, V6};

#[test]
fn m11_an_address_that_somebody_else_answers_for_is_not_taken() {
    let Some(network) = Network::new() else {
        return;
    };
    let mac = network.mac("c");
    for (address, ip) in [(V4, "10.78.0.100"), (V6, "fd78::100")] {
        network.ip("c", &["address", "add", address, "dev", "eth0", "nodad"]);
        let node = Node::new(&network, "a", &[V4, V6]);
        assert!(matches!(node.prepare(), Err(AddressError::InUse { .. })));
        let error = node.take().unwrap_err();
        let message = format!("the machine with network card {mac} has {ip}");
        assert_eq!(error.to_string(), message);
        assert!(!network.has("a", V4) && !network.has("a", V6));
        assert_eq!(node.state(), (AddressState::Fault, message));
        assert_eq!(node.holder(), Some((ip.to_owned(), Some(mac.clone()))));
        network.ip("c", &["address", "del", address, "dev", "eth0"]);
        assert_eq!(node.holder(), None);
        node.take().unwrap();
        assert!(network.has("a", V4) && network.has("a", V6));
        assert!(node.give_up().unwrap());
    }
}

#[test]
fn why_an_interface_cannot_be_used_is_told() {
    let Some(network) = Network::new() else {
        return;
    };
    let refused = |interface: &str| {
        let mut config = config(&[V4]);
        config.interface = interface.to_owned();
        let node = Node::with(&network, "a", config, CapabilitySet::empty());
        let error = node.take().unwrap_err();
        (error.to_string(), error.hint())
    };
    let told = |message: &str, hint: &str| (message.to_owned(), hint.to_owned());
    assert_eq!(
        refused("eth7"),
        told(
            "this machine has no network interface `eth7`; it has eth0",
            "put the interface's name under [address] in node.toml, and restart the daemon"
        )
    );
    assert_eq!(
        refused("lo"),
        told(
            "network interface `lo` is not Ethernet: nobody can be asked there who has an address",
            "name the interface to the clients' network in [address]"
        )
    );
    network.ip("switch", &["link", "set", "dev", "a", "down"]);
    assert_eq!(
        refused("eth0"),
        told(
            "network interface `eth0` has no carrier: nothing is at the other end of its cable",
            "look at the cable and at the switch"
        )
    );
    network.ip("a", &["link", "set", "dev", "eth0", "down"]);
    assert_eq!(
        refused("eth0"),
        told(
            "network interface `eth0` is down",
            "run `ip link set eth0 up`"
        )
    );
}

#[test]
fn a_daemon_that_may_not_change_addresses_is_told_what_it_lacks() {
    let Some(network) = Network::new() else {
        return;
    };
    let lacking = [
        (CapabilitySet::NET_ADMIN, "CAP_NET_ADMIN"),
        (CapabilitySet::NET_RAW, "CAP_NET_RAW"),
    ];
    for (without, name) in lacking {
        let node = Node::with(&network, "a", config(&[V4]), without);
        let error = node.take().unwrap_err();
        assert!(matches!(error, AddressError::Forbidden { .. }), "{error:?}");
        assert!(
            error.to_string().ends_with(&format!("it lacks {name}")),
            "{error}"
        );
        assert!(!network.has("a", V4));
    }
}

#[test]
fn an_interface_without_ipv6_leaves_nothing_half_taken() {
    let Some(network) = Network::new() else {
        return;
    };
    let switch = "/proc/sys/net/ipv6/conf/eth0/disable_ipv6";
    let off = network.on("a", move || std::fs::write(switch, "1"));
    off.join().unwrap().unwrap();
    let node = Node::new(&network, "a", &[V4, V6]);
    let error = node.take().unwrap_err();
    assert!(matches!(error, AddressError::NoIpv6 { .. }), "{error:?}");
    assert!(!network.has("a", V4));
}
