//! The messages of rtnetlink: a header, and attributes behind it (netlink(7), rtnetlink(7)).

#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::io;
use std::net::IpAddr;
use std::time::Duration;

use rustix::net::AddressFamily;
use understudy_config::IpPrefix;

use super::frame::Mac;

/// By this the kernel remembers whose an address is (`IFA_PROTO`, since Linux 5.18): `ip address` shows it
/// as `proto 0x75`. The numbers below 4 are the kernel's own.
pub(super) const PROTOCOL: u8 = 0x75;

const HEADER_BYTES: usize = 16;
pub(super) const MESSAGE_ERROR: u16 = 2;
pub(super) const MESSAGE_DONE: u16 = 3;
pub(super) const NEW_LINK: u16 = 16;
pub(super) const GET_LINK: u16 = 18;
pub(super) const NEW_ADDRESS: u16 = 20;
pub(super) const DELETE_ADDRESS: u16 = 21;
pub(super) const GET_ADDRESS: u16 = 22;
pub(super) const REQUEST: u16 = 0x1;
pub(super) const ACKNOWLEDGE: u16 = 0x4;
pub(super) const REPLACE: u16 = 0x100;
pub(super) const CREATE: u16 = 0x400;
pub(super) const DUMP: u16 = 0x300;

const LINK_ADDRESS: u16 = 1;
const LINK_NAME: u16 = 3;
const LINK_IS_UP: u32 = 0x1;
const LINK_IS_LOOPBACK: u32 = 0x8;
const LINK_HAS_NO_ARP: u32 = 0x80;
const LINK_HAS_CARRIER: u32 = 0x1_0000;
/// `ARPHRD_ETHER`.
const LINK_ETHERNET: u16 = 1;

const ADDRESS_PEER: u16 = 1;
pub(super) const ADDRESS_LOCAL: u16 = 2;
const ADDRESS_LIFETIMES: u16 = 6;
const ADDRESS_FLAGS: u16 = 8;
const ADDRESS_PROTOCOL: u16 = 11;
const IS_SECONDARY: u32 = 0x1;
/// The kernel does not ask whether others have it: we have.
const NO_PROBE: u32 = 0x2;
/// Another has it, or the kernel still asks.
const IS_NOT_USABLE: u32 = 0x8 | 0x40;
const FOR_EVER: u32 = u32::MAX;

/// A network interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) index: u32,
    pub(super) name: String,
    pub(super) mac: Option<Mac>,
    pub(super) is_up: bool,
    pub(super) has_carrier: bool,
    /// It can be asked on it who has an address.
    pub(super) is_ethernet: bool,
}

/// An address that is on an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Present {
    pub(super) index: u32,
    pub(super) ip: IpAddr,
    pub(super) bits: u8,
    flags: u32,
    protocol: u8,
    pub(super) scope: u8,
    /// As the kernel told it, so that it can be put back as it was.
    pub(super) attributes: Vec<u8>,
}

impl Present {
    /// Others get answers from it.
    pub(super) fn is_usable(&self) -> bool {
        self.flags & IS_NOT_USABLE == 0
    }

    /// This program has put it there.
    pub(super) fn is_ours(&self) -> bool {
        self.protocol == PROTOCOL
    }

    /// The kernel takes it away when the first address of its network is removed.
    pub(super) fn is_secondary(&self) -> bool {
        self.ip.is_ipv4() && self.flags & IS_SECONDARY != 0
    }

    /// It is the same address on the same interface.
    pub(super) fn is_at(&self, other: &Self) -> bool {
        (self.index, self.ip, self.bits) == (other.index, other.ip, other.bits)
    }

    /// It is one that only reaches the neighbours.
    pub(super) fn is_link_local(&self) -> bool {
        matches!(self.ip, IpAddr::V6(ip) if ip.is_unicast_link_local())
    }
}

pub(super) struct Message<'a> {
    pub(super) kind: u16,
    pub(super) sequence: u32,
    pub(super) body: &'a [u8],
}

pub(super) fn request(kind: u16, flags: u16, sequence: u32, body: &[u8]) -> Vec<u8> {
    let length = body.len().saturating_add(HEADER_BYTES);
    let length = u32::try_from(length).expect("a request has less than 1 kB");
    let mut message = Vec::new();
    message.extend(length.to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(flags.to_ne_bytes());
    message.extend(sequence.to_ne_bytes());
    message.extend(0_u32.to_ne_bytes());
    message.extend(body);
    message
}

/// Splits the first message off.
pub(super) fn read_message(bytes: &[u8]) -> Option<(Message<'_>, &[u8])> {
    let length = usize::try_from(u32_at(bytes, 0)?).ok()?;
    let message = Message {
        kind: u16_at(bytes, 4)?,
        sequence: u32_at(bytes, 8)?,
        body: bytes.get(HEADER_BYTES..length)?,
    };
    let after = length.checked_next_multiple_of(4)?;
    Some((message, bytes.get(after..).unwrap_or_default()))
}

pub(super) fn read_error(body: &[u8]) -> io::Result<()> {
    let code = u32_at(body, 0)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "an answer cannot be read"))?;
    match code.cast_signed() {
        0 => Ok(()),
        code => Err(io::Error::from_raw_os_error(code.saturating_neg())),
    }
}

pub(super) fn address_header(ip: IpAddr, bits: u8, scope: u8, index: u32) -> Vec<u8> {
    let family = if ip.is_ipv4() {
        AddressFamily::INET
    } else {
        AddressFamily::INET6
    };
    // The families of addresses are numbers below 256.
    let family = u8::try_from(family.as_raw()).unwrap_or_default();
    let mut body = vec![family, bits, 0, scope];
    body.extend(index.to_ne_bytes());
    body
}

pub(super) fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().into(),
        IpAddr::V6(ip) => ip.octets().into(),
    }
}

pub(super) fn added(index: u32, prefix: IpPrefix, lease: Option<Duration>) -> Vec<u8> {
    let mut body = address_header(prefix.ip(), prefix.bits(), 0, index);
    let ip = octets(prefix.ip());
    attribute(&mut body, ADDRESS_LOCAL, &ip);
    attribute(&mut body, ADDRESS_PEER, &ip);
    attribute(&mut body, ADDRESS_FLAGS, &NO_PROBE.to_ne_bytes());
    attribute(&mut body, ADDRESS_PROTOCOL, &[PROTOCOL]);
    let valid = lease.map_or(FOR_EVER, |lease| {
        u32::try_from(lease.as_secs()).unwrap_or(FOR_EVER)
    });
    // An IPv6 address that is not preferred answers whoever comes, and this machine's own connections do
    // not go out from it: they would break when it moves. With IPv4 it is enough to be the second one.
    let preferred = if prefix.ip().is_ipv6() { 0 } else { valid };
    let lifetimes = [preferred, valid, 0, 0].map(u32::to_ne_bytes).concat();
    attribute(&mut body, ADDRESS_LIFETIMES, &lifetimes);
    body
}

pub(super) fn attribute(body: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let length = u16::try_from(value.len().saturating_add(4)).expect("a value has less than 1 kB");
    body.extend(length.to_ne_bytes());
    body.extend(kind.to_ne_bytes());
    body.extend(value);
    body.resize(body.len().next_multiple_of(4), 0);
}

/// Goes through attributes; ends at the first that cannot be read.
fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        /// Nested, or in the byte order of the network: neither is among those that are read.
        const MARKS: u16 = 0xc000;
        let length = usize::from(u16_at(bytes, 0)?);
        let kind = u16_at(bytes, 2)? & !MARKS;
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

pub(super) fn read_link(body: &[u8]) -> Option<Link> {
    let (kind, flags) = (u16_at(body, 2)?, u32_at(body, 8)?);
    let mut link = Link {
        index: u32_at(body, 4)?,
        name: String::new(),
        mac: None,
        is_up: flags & LINK_IS_UP != 0,
        has_carrier: flags & LINK_HAS_CARRIER != 0,
        is_ethernet: kind == LINK_ETHERNET && flags & (LINK_IS_LOOPBACK | LINK_HAS_NO_ARP) == 0,
    };
    for (kind, value) in attributes(body.get(16..)?) {
        match kind {
            LINK_ADDRESS => link.mac = value.try_into().ok().map(Mac),
            LINK_NAME => {
                let name = value.split(|byte| *byte == 0).next()?;
                link.name = String::from_utf8_lossy(name).into_owned();
            }
            _ => {}
        }
    }
    Some(link)
}

pub(super) fn read_address(body: &[u8]) -> Option<Present> {
    let (bits, flags, scope) = (*body.get(1)?, *body.get(2)?, *body.get(3)?);
    let mut address = Present {
        index: u32_at(body, 4)?,
        ip: IpAddr::from([0; 4]),
        bits,
        flags: flags.into(),
        protocol: 0,
        scope,
        attributes: body.get(8..)?.to_vec(),
    };
    let (mut local, mut peer) = (None, None);
    for (kind, value) in attributes(body.get(8..)?) {
        match kind {
            ADDRESS_LOCAL => local = read_ip(value),
            // Without a peer it is the address itself; IPv6 has no other.
            ADDRESS_PEER => peer = read_ip(value),
            ADDRESS_FLAGS => address.flags = u32_at(value, 0)?,
            ADDRESS_PROTOCOL => address.protocol = *value.first()?,
            _ => {}
        }
    }
    address.ip = local.or(peer)?;
    Some(address)
}

fn read_ip(value: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(value).map(IpAddr::from);
    v4.or_else(|_| <[u8; 16]>::try_from(value).map(IpAddr::from))
        .ok()
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    let bytes = bytes.get(at..at.checked_add(2)?)?;
    Some(u16::from_ne_bytes(bytes.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_ne_bytes(bytes.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_address_is_read_as_it_was_written() {
        for (text, protocol) in [("10.0.0.100/24", PROTOCOL), ("fd00::100/64", PROTOCOL)] {
            let prefix: IpPrefix = text.parse().unwrap();
            let body = added(7, prefix, Some(Duration::from_secs(60)));
            let read = read_address(&body).unwrap();
            assert_eq!(
                (
                    read.index,
                    read.ip,
                    read.bits,
                    read.protocol,
                    read.is_usable()
                ),
                (7, prefix.ip(), prefix.bits(), protocol, true)
            );
        }
    }

    proptest! {
        #[test]
        fn no_answer_breaks_the_readers(bytes in proptest::collection::vec(any::<u8>(), 0..120)) {
            let mut rest = bytes.as_slice();
            while let Some((message, after)) = read_message(rest) {
                let _error = read_error(message.body);
                if after.len() >= rest.len() {
                    break;
                }
                rest = after;
            }
            let _read = (read_link(&bytes), read_address(&bytes));
        }
    }
}
