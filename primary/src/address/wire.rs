//! The network that an address is on: asking who has it, telling who has it, and listening.

use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddrV6};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use nix::sys::socket::{
    ControlMessageOwned, MsgFlags, SockaddrIn6, bind, recvmsg, setsockopt, sockopt,
};
use rustix::net::sockopt::set_ipv6_add_membership;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, eth, ipproto, recv, send,
    socket_with,
};
use tokio::io::unix::AsyncFd;
use tokio::time::Instant;

use super::error::Holder;
use super::frame::{self, HOP_LIMIT, Mac, Nonce, Shown};
use super::message::Link;

/// The largest message that is read: those that matter have less than 200 bytes.
const MESSAGE_BYTES_MAX: usize = 2048;
/// The most messages from before a question that are thrown away.
const STALE_MAX: usize = 10_000;

/// Open sockets on one interface, before there is anybody who waits for them.
pub(super) struct Sockets {
    sender: OwnedFd,
    arp: OwnedFd,
    icmpv6: Option<OwnedFd>,
}

impl Sockets {
    /// Opens them. This may take tens of milliseconds: the kernel waits until every core has taken notice.
    pub(super) fn open(link: &Link, ips: &[IpAddr]) -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let packets =
            |protocol| socket_with(AddressFamily::PACKET, SocketType::RAW, flags, protocol);
        // A packet socket without a protocol receives nothing: it is for sending.
        let (sender, arp) = (packets(None)?, packets(Some(eth::ARP))?);
        for socket in [&sender, &arp] {
            bind_to(socket, &link.name)?;
        }
        let mut icmpv6 = None;
        if ips.iter().any(IpAddr::is_ipv6) {
            let protocol = Some(ipproto::ICMPV6);
            let socket = socket_with(AddressFamily::INET6, SocketType::RAW, flags, protocol)?;
            setsockopt(&socket, sockopt::BindToDevice, &link.name.clone().into())?;
            setsockopt(&socket, sockopt::Ipv6RecvHopLimit, &true)?;
            for ip in ips {
                if let IpAddr::V6(ip) = ip {
                    // So that the questions of others arrive as well.
                    let group = frame::solicited_node(*ip);
                    set_ipv6_add_membership(&socket, &group, link.index)?;
                }
            }
            icmpv6 = Some(socket);
        }
        Ok(Self {
            sender,
            arp,
            icmpv6,
        })
    }
}

fn waited_for(socket: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    #[expect(
        unsafe_code,
        reason = "tokio has no other way to wait for a socket of such a family"
    )]
    // SAFETY: an `OwnedFd` is an open descriptor, and the same one for as long as it lives, which is as long
    // as the `AsyncFd` that owns it.
    let socket = unsafe { AsyncFd::register(socket) };
    Ok(socket?)
}

/// Binds a packet socket to an interface. The protocol that it was made with stays.
fn bind_to(socket: &OwnedFd, interface: &str) -> io::Result<()> {
    // The kernel's own address of the interface is the only one that can be had without unsafe code.
    let address = nix::ifaddrs::getifaddrs()?
        .filter(|it| it.interface_name == interface)
        .find_map(|it| it.address?.as_link_addr().copied());
    let address = address.ok_or(rustix::io::Errno::NODEV)?;
    Ok(bind(socket.as_raw_fd(), &address)?)
}

/// A question about addresses.
pub(super) struct Question<'a> {
    pub(super) ips: &'a [IpAddr],
    /// Who asks, of each family, where the question is no probe.
    pub(super) askers: &'a [IpAddr],
    /// The network cards of this machine, whose answers are none.
    pub(super) own: &'a [Mac],
    /// How long is waited for an answer.
    pub(super) wait: Duration,
    /// How often it is asked within that time.
    pub(super) rounds: u32,
}

/// One interface, with everything to hear and to speak there.
pub(super) struct Wire {
    pub(super) link: Link,
    mac: Mac,
    sender: OwnedFd,
    arp: AsyncFd<OwnedFd>,
    icmpv6: Option<AsyncFd<OwnedFd>>,
    nonce: Nonce,
}

impl Wire {
    pub(super) fn new(link: Link, sockets: Sockets) -> io::Result<Self> {
        let mac = link.mac.ok_or(rustix::io::Errno::NODEV)?;
        let mut nonce = Nonce::default();
        rustix::rand::getrandom(&mut nonce, rustix::rand::GetRandomFlags::empty())?;
        Ok(Self {
            link,
            mac,
            sender: sockets.sender,
            arp: waited_for(sockets.arp)?,
            icmpv6: sockets.icmpv6.map(waited_for).transpose()?,
            nonce,
        })
    }

    /// Returns whether it is this very interface, and can be used for `link` as it is now.
    pub(super) fn is_of(&self, link: &Link) -> bool {
        (self.link.index, self.link.mac, &self.link.name) == (link.index, link.mac, &link.name)
    }

    /// Tells everybody that the addresses are here.
    pub(super) fn announce(&self, ips: &[IpAddr]) -> io::Result<()> {
        for frame in ips.iter().flat_map(|ip| frame::announcement(self.mac, *ip)) {
            self.send(&frame)?;
        }
        Ok(())
    }

    /// Asks once who has the addresses; who listens hears the answers.
    pub(super) fn put(&self, question: &Question<'_>) -> io::Result<()> {
        for ip in question.ips {
            let asker = question
                .askers
                .iter()
                .find(|it| it.is_ipv4() == ip.is_ipv4());
            self.send(&frame::question(self.mac, *ip, asker.copied(), self.nonce))?;
        }
        Ok(())
    }

    /// Asks who has the addresses, and returns the first that answers.
    pub(super) async fn ask(&self, question: &Question<'_>) -> io::Result<Option<Holder>> {
        self.forget();
        let begin = Instant::now();
        for round in 1..=question.rounds {
            self.put(question)?;
            let until = begin + question.wait * round / question.rounds;
            match tokio::time::timeout_at(until, self.heard(question)).await {
                Ok(holder) => return holder.map(Some),
                Err(_nobody) => {}
            }
        }
        Ok(None)
    }

    /// Waits until another machine shows that it has one of the addresses, or is about to take it.
    pub(super) async fn heard(&self, question: &Question<'_>) -> io::Result<Holder> {
        loop {
            let (ip, mac, is_taking) = match self.next().await? {
                Shown::Has { ip, mac } => (ip, mac, false),
                Shown::Probes { nonce, .. } if nonce == Some(self.nonce) => continue,
                // Who only wants to know takes nothing, and so meets nobody who is about to.
                Shown::Probes { .. } if !question.askers.is_empty() => continue,
                Shown::Probes { ip, mac, .. } => (ip, mac, true),
            };
            let is_own = mac.is_some_and(|mac| question.own.contains(&mac));
            if !is_own && question.ips.contains(&ip) {
                return Ok(Holder { ip, mac, is_taking });
            }
        }
    }

    async fn next(&self) -> io::Result<Shown> {
        loop {
            let shown = match &self.icmpv6 {
                Some(icmpv6) => tokio::select! {
                    shown = read(&self.arp, receive_arp) => shown?,
                    shown = read(icmpv6, receive_icmpv6) => shown?,
                },
                None => read(&self.arp, receive_arp).await?,
            };
            if let Some(shown) = shown {
                return Ok(shown);
            }
        }
    }

    /// Throws away what has come before, and the error of an interface that was down meanwhile.
    fn forget(&self) {
        for _ in 0..STALE_MAX {
            match receive_arp(self.arp.as_fd()) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Ok(_) | Err(_) => {}
            }
        }
        for _ in 0..STALE_MAX {
            match self.icmpv6.as_ref().map(|it| receive_icmpv6(it.as_fd())) {
                None => break,
                Some(Err(error)) if error.kind() == io::ErrorKind::WouldBlock => break,
                Some(Ok(_) | Err(_)) => {}
            }
        }
    }

    fn send(&self, frame: &[u8]) -> io::Result<()> {
        send(&self.sender, frame, SendFlags::empty()).map(drop)?;
        Ok(())
    }
}

async fn read(
    socket: &AsyncFd<OwnedFd>,
    receive: fn(BorrowedFd<'_>) -> io::Result<Option<Shown>>,
) -> io::Result<Option<Shown>> {
    let mut ready = socket.readable().await?;
    ready
        .try_io(|socket| receive(socket.as_fd()))
        .unwrap_or(Ok(None))
}

fn receive_arp(socket: BorrowedFd<'_>) -> io::Result<Option<Shown>> {
    let mut frame = [0; MESSAGE_BYTES_MAX];
    let (received, _) = recv(socket, &mut frame[..], RecvFlags::empty())?;
    Ok(frame.get(..received).and_then(frame::read_arp))
}

fn receive_icmpv6(socket: BorrowedFd<'_>) -> io::Result<Option<Shown>> {
    let mut message = [0; MESSAGE_BYTES_MAX];
    let mut control = nix::cmsg_space!(libc::c_int);
    let mut parts = [io::IoSliceMut::new(&mut message)];
    let received = recvmsg::<SockaddrIn6>(
        socket.as_raw_fd(),
        &mut parts,
        Some(&mut control),
        MsgFlags::empty(),
    )?;
    // What a router has passed on is no neighbour's (RFC 4861, section 7.1).
    let is_near = received
        .cmsgs()?
        .any(|it| it == ControlMessageOwned::Ipv6HopLimit(HOP_LIMIT.into()));
    let source = received.address.map(SocketAddrV6::from);
    let source = source.map_or(Ipv6Addr::UNSPECIFIED, |source| *source.ip());
    let length = received.bytes;
    Ok(message
        .get(..length)
        .filter(|_| is_near)
        .and_then(|message| frame::read_icmpv6(message, source)))
}
