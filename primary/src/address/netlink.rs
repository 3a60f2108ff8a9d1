//! What the kernel is asked about network interfaces and their addresses, and told to change.
//!
//! Four requests of rtnetlink are needed, each a few bytes; so they are written in `message`.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, bind, recv, sendto, socket_with,
};
use understudy_config::IpPrefix;

use super::message::{self, Link, Present};

/// How long the kernel has to answer; it answers at once.
const ANSWER_LIMIT: Duration = Duration::from_secs(2);
/// The most that comes in one read: the kernel's dumps come in pieces of at most 32 kB.
const ANSWER_BYTES_MAX: usize = 64 << 10;
/// The most messages of one dump, so that a machine with very many addresses costs time, not memory.
const MESSAGES_MAX: usize = 100_000;

/// A conversation with the kernel. Its calls block, for [`ANSWER_LIMIT`] each where the kernel is idle.
pub(super) struct Netlink {
    socket: OwnedFd,
    sequence: u32,
}

impl Netlink {
    pub(super) fn open() -> io::Result<Self> {
        let socket = socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            None,
        )?;
        set_socket_timeout(&socket, Timeout::Recv, Some(ANSWER_LIMIT))?;
        set_socket_timeout(&socket, Timeout::Send, Some(ANSWER_LIMIT))?;
        bind(&socket, &SocketAddrNetlink::new(0, 0))?;
        Ok(Self {
            socket,
            sequence: 0,
        })
    }

    /// Returns every network interface.
    pub(super) fn links(&mut self) -> io::Result<Vec<Link>> {
        let body = [0; 16];
        let mut links = Vec::new();
        self.ask(message::GET_LINK, message::DUMP, &body, |kind, body| {
            links.extend(message::read_link(body).filter(|_| kind == message::NEW_LINK));
        })?;
        Ok(links)
    }

    /// Returns every address of every interface.
    pub(super) fn addresses(&mut self) -> io::Result<Vec<Present>> {
        let body = [0; 8];
        let mut addresses = Vec::new();
        self.ask(message::GET_ADDRESS, message::DUMP, &body, |kind, body| {
            addresses.extend(message::read_address(body).filter(|_| kind == message::NEW_ADDRESS));
        })?;
        Ok(addresses)
    }

    /// Adds an address, or sets how long it stays if it is there: for ever without a `lease`.
    pub(super) fn add(
        &mut self,
        index: u32,
        prefix: IpPrefix,
        lease: Option<Duration>,
    ) -> io::Result<()> {
        let body = message::added(index, prefix, lease);
        self.ask(
            message::NEW_ADDRESS,
            message::ACKNOWLEDGE | message::CREATE | message::REPLACE,
            &body,
            |_, _| {},
        )
    }

    /// Puts an address back that the kernel took away with another one.
    pub(super) fn put_back(&mut self, address: &Present) -> io::Result<()> {
        let mut body =
            message::address_header(address.ip, address.bits, address.scope, address.index);
        body.extend(&address.attributes);
        self.ask(
            message::NEW_ADDRESS,
            message::ACKNOWLEDGE | message::CREATE | message::REPLACE,
            &body,
            |_, _| {},
        )
    }

    /// Removes an address. That it is gone already is no error.
    pub(super) fn remove(&mut self, address: &Present) -> io::Result<()> {
        let mut body = message::address_header(address.ip, address.bits, 0, address.index);
        message::attribute(
            &mut body,
            message::ADDRESS_LOCAL,
            &message::octets(address.ip),
        );
        match self.ask(
            message::DELETE_ADDRESS,
            message::ACKNOWLEDGE,
            &body,
            |_, _| {},
        ) {
            Err(error) if is_gone(&error) => Ok(()),
            removed => removed,
        }
    }

    /// Sends a request, and hands every message of the answer to `each`.
    fn ask(
        &mut self,
        kind: u16,
        flags: u16,
        body: &[u8],
        mut each: impl FnMut(u16, &[u8]),
    ) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let request = message::request(kind, flags | message::REQUEST, self.sequence, body);
        sendto(
            &self.socket,
            &request,
            SendFlags::empty(),
            &SocketAddrNetlink::new(0, 0),
        )?;
        let mut answer = vec![0; ANSWER_BYTES_MAX];
        let mut messages = 0_usize;
        loop {
            let (_, length) = recv(&self.socket, &mut *answer, RecvFlags::TRUNC)?;
            let mut rest = answer
                .get(..length)
                .ok_or_else(|| unreadable("an answer is too long"))?;
            while !rest.is_empty() {
                let (answered, after) = message::read_message(rest)
                    .ok_or_else(|| unreadable("an answer cannot be read"))?;
                rest = after;
                messages = messages.saturating_add(1);
                if messages > MESSAGES_MAX {
                    return Err(unreadable("an answer has no end"));
                }
                if answered.sequence != self.sequence {
                    continue;
                }
                match answered.kind {
                    message::MESSAGE_DONE => return Ok(()),
                    message::MESSAGE_ERROR => return message::read_error(answered.body),
                    kind => each(kind, answered.body),
                }
            }
        }
    }
}

fn unreadable(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// Returns whether there is no such address, or no such interface any more.
fn is_gone(error: &io::Error) -> bool {
    use rustix::io::Errno;
    [Errno::ADDRNOTAVAIL, Errno::NODEV, Errno::NXIO]
        .iter()
        .any(|gone| error.raw_os_error() == Some(gone.raw_os_error()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_interface_is_there_and_is_no_ethernet() {
        let mut netlink = Netlink::open().unwrap();
        let links = netlink.links().unwrap();
        let lo = links.iter().find(|link| link.name == "lo").unwrap();
        assert_eq!((lo.index, lo.is_ethernet), (1, false));
    }
}
