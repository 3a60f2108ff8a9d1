//! A switch with three machines on it.

use std::os::fd::AsFd;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// How long a condition may take to come true.
const PATIENCE: Duration = Duration::from_secs(20);

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A switch with the machines `a`, `b` and `c`; `c` is nobody's node, and looks.
pub(crate) struct Network {
    name: String,
}

impl Network {
    /// Makes it; says why the test is skipped where that is not possible.
    pub(crate) fn new() -> Option<Self> {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let network = Self {
            name: format!("ad{}x{number}", std::process::id()),
        };
        let switch = network.namespace("switch");
        let mut is_made = ip(&["netns", "add", &switch])
            && ip(&["-n", &switch, "link", "add", "bridge", "type", "bridge"])
            && ip(&["-n", &switch, "link", "set", "bridge", "up"]);
        for (number, machine) in ["a", "b", "c"].into_iter().enumerate() {
            let namespace = network.namespace(machine);
            let [v4, v6] = [
                format!("10.78.0.{}/24", number + 1),
                format!("fd78::{}/64", number + 1),
            ];
            let cable = [
                "link", "add", "name", machine, "netns", &switch, "type", "veth", "peer", "name",
                "eth0", "netns", &namespace,
            ];
            let of_machine = |arguments: &[&str]| ip(&[&["-n", &namespace], arguments].concat());
            is_made = is_made
                && ip(&["netns", "add", &namespace])
                && ip(&cable)
                && ip(&[
                    "-n", &switch, "link", "set", "dev", machine, "master", "bridge", "up",
                ])
                && of_machine(&["link", "set", "lo", "up"])
                && of_machine(&["address", "add", &v4, "dev", "eth0"])
                && of_machine(&["address", "add", &v6, "dev", "eth0", "nodad"])
                && of_machine(&["link", "set", "eth0", "up"]);
        }
        if !is_made {
            eprintln!("skipped: it needs root, `ip` and network namespaces");
            return None;
        }
        for machine in ["a", "b", "c"] {
            wait_for("the cable of a machine", || {
                let link = network.ip(machine, &["link", "show", "eth0"]);
                link.contains("LOWER_UP").then_some(())
            });
        }
        Some(network)
    }

    fn namespace(&self, machine: &str) -> String {
        format!("{}{machine}", self.name)
    }

    /// Runs `ip` on a machine, and returns what it says.
    pub(crate) fn ip(&self, machine: &str, arguments: &[&str]) -> String {
        let mut command = Command::new("ip");
        let said = command
            .args(["-n", &self.namespace(machine)])
            .args(arguments)
            .output()
            .unwrap();
        let error = String::from_utf8_lossy(&said.stderr);
        assert!(said.status.success(), "ip {arguments:?}: {error}");
        String::from_utf8(said.stdout).unwrap()
    }

    pub(crate) fn has(&self, machine: &str, address: &str) -> bool {
        let addresses = self.ip(machine, &["address", "show"]);
        addresses.contains(&format!(" {address} "))
    }

    pub(crate) fn mac(&self, machine: &str) -> String {
        let link = self.ip(machine, &["link", "show", "eth0"]);
        let (_, after) = link.split_once("link/ether ").unwrap();
        after[..17].to_owned()
    }

    /// Runs `work` on a machine: in a thread of its own, which is in its namespace.
    pub(crate) fn on<T: Send + 'static>(
        &self,
        machine: &str,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> JoinHandle<T> {
        let path = format!("/run/netns/{}", self.namespace(machine));
        std::thread::spawn(move || {
            let namespace = std::fs::File::open(path).unwrap();
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
            work()
        })
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for machine in ["a", "b", "c", "switch"] {
            ip(&["netns", "delete", &self.namespace(machine)]);
        }
    }
}

fn ip(arguments: &[&str]) -> bool {
    let said = Command::new("ip").args(arguments).output();
    said.is_ok_and(|said| said.status.success())
}

/// Waits until there is what is looked for.
pub(crate) fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let begin = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(begin.elapsed() < PATIENCE, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
