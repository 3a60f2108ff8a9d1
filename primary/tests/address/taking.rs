//! Taking and giving up.

use std::collections::BTreeSet;
use std::net::{IpAddr, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::thread::CapabilitySet;
use understudy_primary::address::AddressError;
use understudy_replication::status::AddressState;

use crate::network::{Network, wait_for};
use crate::node::{Node, config};
use crate::prober::{Prober, mac};
use crate::{V4, V6};

fn figures(mut seconds: Vec<f64>) -> String {
    seconds.sort_by(f64::total_cmp);
    let at = |share: usize| seconds[(seconds.len() - 1) * share / 100] * 1000.0;
    format!(
        "median {:.1} ms, 95 % {:.1} ms, most {:.1} ms",
        at(50),
        at(95),
        at(100)
    )
}

#[test]
fn m11_one_node_at_most_has_the_address_while_it_moves_a_hundred_times() {
    let Some(network) = Network::new() else {
        return;
    };
    let nodes = ["a", "b"].map(|machine| Node::new(&network, machine, &[V4, V6]));
    let prober = Prober::new(&network, [10, 78, 0, 100]);
    nodes[0].take().unwrap();
    let mut seconds = Vec::new();
    for swap in 0..100 {
        let [from, to] = [swap % 2, (swap + 1) % 2];
        assert!(nodes[from].give_up().unwrap());
        nodes[to].prepare().unwrap();
        let taken = nodes[to].take().unwrap();
        assert!(!taken.was_held);
        seconds.push(taken.seconds);
        let has = ["a", "b"].map(|machine| [V4, V6].map(|it| network.has(machine, it)));
        assert_eq!((has[from], has[to]), ([false; 2], [true; 2]));
    }
    let rounds = prober.end();
    eprintln!(
        "taken and announced, when others were asked before: {}",
        figures(seconds)
    );
    let seen: BTreeSet<_> = rounds.iter().flatten().copied().collect();
    let both = ["a", "b"].map(|machine| mac(&network.mac(machine)));
    assert_eq!(seen, BTreeSet::from(both));
    let most = rounds.iter().map(BTreeSet::len).max();
    eprintln!("asked {} times from outside", rounds.len());
    assert_eq!(most, Some(1), "two answered the same question");
}

#[test]
fn m11_of_two_who_take_it_at_once_at_most_one_gets_it() {
    let Some(network) = Network::new() else {
        return;
    };
    for ips in [[V4], [V6]] {
        let nodes = ["a", "b"].map(|machine| Arc::new(Node::new(&network, machine, &ips)));
        for _ in 0..5 {
            let taking = nodes
                .clone()
                .map(|node| std::thread::spawn(move || node.take().is_ok()));
            let taken = taking.map(|it| it.join().unwrap());
            assert!(taken.iter().filter(|is_taken| **is_taken).count() <= 1);
            assert_eq!(
                ["a", "b"].map(|machine| network.has(machine, ips[0])),
                taken
            );
            for node in &nodes {
                node.give_up().unwrap();
            }
        }
    }
}

/// Has machine `c` talk to an address, so that it learns where it is.
fn reach(network: &Network, ip: &str) {
    let ip: IpAddr = ip.parse().unwrap();
    let any = if ip.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let talked = network.on("c", move || {
        UdpSocket::bind(any)
            .unwrap()
            .send_to(b"hello", (ip, 9))
            .unwrap();
    });
    talked.join().unwrap();
}

#[test]
fn m11_neighbours_learn_at_once_where_the_address_is() {
    let Some(network) = Network::new() else {
        return;
    };
    let nodes = ["a", "b"].map(|machine| Node::new(&network, machine, &[V4, V6]));
    for (node, machine) in nodes.iter().zip(["a", "b"]) {
        node.take().unwrap();
        for ip in ["10.78.0.100", "fd78::100"] {
            if machine == "a" {
                // Linux takes up no neighbour that it has not asked for.
                reach(&network, ip);
            }
            wait_for("the table of the neighbour", || {
                let table = network.ip("c", &["neighbour", "show", ip]);
                table.contains(&network.mac(machine)).then_some(())
            });
        }
        node.give_up().unwrap();
    }
}

#[test]
fn m11_what_a_crash_left_behind_is_removed_at_the_start_of_a_node_that_is_not_to_have_it() {
    let Some(network) = Network::new() else {
        return;
    };
    let before = Node::new(&network, "a", &[V4, V6]);
    before.take().unwrap();
    drop(before);
    // Meanwhile the configuration has changed, and somebody has been at work by hand.
    network.ip("a", &["address", "add", "10.78.0.101/32", "dev", "lo"]);
    let after = Node::new(&network, "a", &["10.78.0.101/24"]);
    assert_eq!(after.state().0, AddressState::Unknown);
    let has = |addresses: &[&str]| addresses.iter().filter(|it| network.has("a", it)).count();
    assert_eq!(has(&[V4, V6]), 2);
    assert!(after.give_up().unwrap());
    assert_eq!(has(&[V4, V6, "10.78.0.101/32"]), 0);
    assert_eq!(has(&["10.78.0.1/24", "fd78::1/64"]), 2);
    assert!(!after.give_up().unwrap());
    assert_eq!(after.count("address_given_up"), 1);
    assert_eq!(after.state().0, AddressState::Absent);
}

#[test]
fn a_daemon_that_was_restarted_has_the_address_still() {
    let Some(network) = Network::new() else {
        return;
    };
    let before = Node::new(&network, "a", &[V4, V6]);
    before.take().unwrap();
    drop(before);
    let after = Node::new(&network, "a", &[V4, V6]);
    assert!(after.take().unwrap().was_held);
    assert_eq!(after.count("address_taken"), 0);
    assert!(network.has("a", V4) && network.has("a", V6));
}

#[test]
fn an_address_elsewhere_on_the_machine_is_moved_to_where_it_belongs() {
    let Some(network) = Network::new() else {
        return;
    };
    network.ip("a", &["address", "add", "10.78.0.100/32", "dev", "eth0"]);
    let node = Node::new(&network, "a", &[V4]);
    assert!(!node.take().unwrap().was_held);
    assert!(network.has("a", V4) && !network.has("a", "10.78.0.100/32"));
}

#[test]
fn giving_up_takes_none_of_the_machines_own_addresses_with_it() {
    let Some(network) = Network::new() else {
        return;
    };
    // The kernel removes the second address of a network together with the first.
    network.ip("a", &["address", "del", "10.78.0.1/24", "dev", "eth0"]);
    let node = Node::new(&network, "a", &[V4]);
    node.take().unwrap();
    let own = ["10.78.0.1/24", "dev", "eth0", "label", "eth0:own"];
    network.ip("a", &[&["address", "add"], &own[..]].concat());
    let shown = || network.ip("a", &["address", "show"]);
    assert!(shown().contains("10.78.0.1/24 scope global secondary eth0:own"));
    node.give_up().unwrap();
    assert!(shown().contains("10.78.0.1/24 scope global eth0:own"));
}

#[test]
fn own_connections_do_not_go_out_from_the_address() {
    let Some(network) = Network::new() else {
        return;
    };
    let node = Node::new(&network, "a", &[V4, V6]);
    node.take().unwrap();
    let sources = network.on("a", || {
        let ways = [("0.0.0.0:0", "10.78.0.3:9"), ("[::]:0", "[fd78::3]:9")];
        ways.map(|(from, to)| {
            let socket = UdpSocket::bind(from).unwrap();
            socket.connect(to).unwrap();
            socket.local_addr().unwrap().ip().to_string()
        })
    });
    assert_eq!(sources.join().unwrap(), ["10.78.0.1", "fd78::1"]);
}

#[test]
fn giving_up_does_not_wait_for_a_taking() {
    let Some(network) = Network::new() else {
        return;
    };
    let mut config = config(&[V4]);
    // Longer than giving up would wait for.
    config.probe = Duration::from_secs(60);
    let node = Node::with(&network, "a", config, CapabilitySet::empty());
    let (taken, given_up) = node.run(|runtime, address| {
        runtime.block_on(async {
            let giving_up = async {
                while address.status().state != AddressState::Taking {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                address.give_up().await
            };
            tokio::join!(address.take(), giving_up)
        })
    });
    assert!(matches!(taken, Err(AddressError::BrokenOff)), "{taken:?}");
    assert!(!given_up.unwrap());
    assert!(!network.has("a", V4));
    assert_eq!(node.state().0, AddressState::Absent);
}

#[test]
fn with_a_lease_the_address_goes_when_nobody_renews_it() {
    let Some(network) = Network::new() else {
        return;
    };
    let mut config = config(&[V4, V6]);
    config.lease = Some(Duration::from_secs(3));
    let node = Node::with(&network, "a", config, CapabilitySet::empty());
    node.take().unwrap();
    let watching = node.watch();
    let begin = Instant::now();
    wait_for("more than the lease", || {
        assert!(network.has("a", V4) && network.has("a", V6));
        (begin.elapsed() > Duration::from_secs(5)).then_some(())
    });
    watching.end();
    drop(node);
    wait_for("the end of the lease", || {
        (!network.has("a", V4) && !network.has("a", V6)).then_some(())
    });
}
