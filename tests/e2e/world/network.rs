//! Two network namespaces with a cable between them.

use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A cable between two machines, each a network namespace of its own.
pub(crate) struct Network {
    name: String,
}

impl Network {
    /// Makes it; says why it is skipped where that is not possible.
    pub(crate) fn new(test: &str) -> Option<Self> {
        if !super::is_root(test) {
            return None;
        }
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let network = Self {
            name: format!("us{}x{number}", std::process::id()),
        };
        let (a, b) = (network.namespace("a"), network.namespace("b"));
        let is_made = ip(&["netns", "add", &a])
            && ip(&["netns", "add", &b])
            && ip(&[
                "link", "add", "cable", "netns", &a, "type", "veth", "peer", "cable", "netns", &b,
            ])
            && ["a", "b"].iter().all(|node| {
                let namespace = network.namespace(node);
                let address = format!("{}/24", Self::ip(node));
                ip(&["-n", &namespace, "address", "add", &address, "dev", "cable"])
                    && ip(&["-n", &namespace, "link", "set", "lo", "up"])
            });
        if !is_made {
            super::skip(test, "`ip` and network namespaces");
            return None;
        }
        network.set("up");
        Some(network)
    }

    pub(crate) fn namespace(&self, node: &str) -> String {
        format!("{}{node}", self.name)
    }

    /// Every test has these addresses, in namespaces of its own.
    pub(crate) fn ip(node: &str) -> String {
        format!("10.77.0.{}", if node == "a" { 1 } else { 2 })
    }

    /// Lays a second cable, which is not cut with the first.
    pub(crate) fn add_second(&mut self) {
        let (a, b) = (self.namespace("a"), self.namespace("b"));
        assert!(ip(&[
            "link", "add", "second", "netns", &a, "type", "veth", "peer", "second", "netns", &b,
        ]));
        for node in ["a", "b"] {
            let (namespace, address) = (self.namespace(node), Self::second_ip(node));
            let address = format!("{address}/24");
            assert!(ip(&[
                "-n", &namespace, "address", "add", &address, "dev", "second"
            ]));
            assert!(ip(&["-n", &namespace, "link", "set", "second", "up"]));
        }
    }

    /// Returns a node's address on the second cable.
    pub(crate) fn second_ip(node: &str) -> String {
        format!("10.78.0.{}", if node == "a" { 1 } else { 2 })
    }

    fn set(&self, state: &str) {
        for node in ["a", "b"] {
            assert!(ip(&[
                "-n",
                &self.namespace(node),
                "link",
                "set",
                "cable",
                state
            ]));
        }
    }

    /// Pulls the cable.
    pub(crate) fn cut(&self) {
        self.set("down");
    }

    /// Plugs it in again.
    pub(crate) fn mend(&self) {
        self.set("up");
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for node in ["a", "b"] {
            ip(&["netns", "delete", &self.namespace(node)]);
        }
    }
}

fn ip(arguments: &[&str]) -> bool {
    Command::new("ip")
        .args(arguments)
        .output()
        .is_ok_and(|output| output.status.success())
}
