//! Somebody who asks for the address all the time, from outside.

use std::collections::BTreeSet;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, eth, recv, send, socket_with,
};

use crate::network::Network;

/// The address of machine `c`.
const OWN: [u8; 4] = [10, 78, 0, 3];

pub(crate) type Mac = [u8; 6];

pub(crate) struct Prober {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Vec<BTreeSet<Mac>>>,
}

impl Prober {
    /// Starts on machine `c`, and asks under its name: who asks without a name says that he is about to take
    /// the address.
    pub(crate) fn new(network: &Network, address: [u8; 4]) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = network.on("c", move || {
            let (socket, mac) = open();
            let mut rounds = Vec::new();
            while !stopped.load(Ordering::Relaxed) {
                rounds.push(ask(&socket, mac, address));
            }
            rounds
        });
        Self { stop, thread }
    }

    /// Returns who answered, for each question.
    pub(crate) fn end(self) -> Vec<BTreeSet<Mac>> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

fn open() -> (OwnedFd, Mac) {
    let flags = SocketFlags::CLOEXEC;
    let socket = socket_with(
        AddressFamily::PACKET,
        SocketType::RAW,
        flags,
        Some(eth::ARP),
    );
    let socket = socket.unwrap();
    let mut addresses = nix::ifaddrs::getifaddrs().unwrap();
    let eth0 = addresses.find(|it| it.interface_name == "eth0").unwrap();
    let link = *eth0.address.unwrap().as_link_addr().unwrap();
    nix::sys::socket::bind(socket.as_raw_fd(), &link).unwrap();
    let quiet = Duration::from_millis(3);
    set_socket_timeout(&socket, Timeout::Recv, Some(quiet)).unwrap();
    (socket, link.addr().unwrap())
}

/// Asks once, and returns who answers until nobody does for a while.
fn ask(socket: &OwnedFd, mac: Mac, address: [u8; 4]) -> BTreeSet<Mac> {
    let question = [
        &[0xff; 6],
        &mac[..],
        &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1],
        &mac,
        &OWN,
        &[0; 6],
        &address,
    ];
    send(socket, &question.concat(), SendFlags::empty()).unwrap();
    let mut answers = BTreeSet::new();
    let mut frame = [0; 100];
    while let Ok((length, _)) = recv(socket, &mut frame[..], RecvFlags::empty()) {
        // An announcement goes to everybody, an answer to who asks.
        let is_answer = frame[..6] == mac && frame[20..22] == [0, 2] && frame[28..32] == address;
        if length >= 42 && is_answer {
            answers.insert(frame[22..28].try_into().unwrap());
        }
    }
    answers
}

/// Reads what `ip link` prints.
pub(crate) fn mac(text: &str) -> Mac {
    let mut bytes = text
        .split(':')
        .map(|it| u8::from_str_radix(it, 16).unwrap());
    std::array::from_fn(|_| bytes.next().unwrap())
}
