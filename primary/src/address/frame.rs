//! The frames with which machines on one network ask and tell who has an address: ARP (RFC 826, RFC 5227)
//! and Neighbour Discovery (RFC 4861, RFC 4862).

#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The address of a network card.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    const BROADCAST: Self = Self([0xff; 6]);
    const NOBODY: Self = Self([0; 6]);
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// Random bytes by which a machine knows a question that the network hands back to it (RFC 7527).
pub(super) type Nonce = [u8; 6];

const ETHERTYPE_ARP: u16 = 0x0806;
const ETHERTYPE_IPV6: u16 = 0x86dd;
const ARP_REQUEST: u16 = 1;
const ARP_REPLY: u16 = 2;
/// Ethernet, IPv4, 6 bytes of the one and 4 of the other.
const ARP_KIND: [u8; 6] = [0, 1, 8, 0, 6, 4];
const NEIGHBOUR_SOLICITATION: u8 = 135;
const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
const OPTION_SOURCE_MAC: u8 = 1;
const OPTION_TARGET_MAC: u8 = 2;
const OPTION_NONCE: u8 = 14;
const ICMPV6: u8 = 58;
/// No router has passed on what arrives with it.
pub(super) const HOP_LIMIT: u8 = 255;
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

/// What somebody on the network has shown of an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shown {
    /// He has it.
    Has {
        /// Which address.
        ip: IpAddr,
        /// Who has it, where he says so.
        mac: Option<Mac>,
    },
    /// He asks, like us, whether anybody has it, because he is about to take it.
    Probes {
        /// Which address.
        ip: IpAddr,
        /// Who asks, where he says so.
        mac: Option<Mac>,
        /// What he knows his question by.
        nonce: Option<Nonce>,
    },
}

/// Returns the frame that asks who has `ip`. A question without `asker` is a probe: it tells everybody that
/// the address is about to be taken, and changes nobody's table.
pub(super) fn question(mac: Mac, ip: IpAddr, asker: Option<IpAddr>, nonce: Nonce) -> Vec<u8> {
    match (ip, asker) {
        (IpAddr::V4(ip), Some(IpAddr::V4(asker))) => {
            arp(mac, ARP_REQUEST, (mac, asker), (Mac::NOBODY, ip))
        }
        (IpAddr::V4(ip), _) => arp(
            mac,
            ARP_REQUEST,
            (mac, Ipv4Addr::UNSPECIFIED),
            (Mac::NOBODY, ip),
        ),
        (IpAddr::V6(ip), Some(IpAddr::V6(asker))) => {
            let mut message = neighbour(NEIGHBOUR_SOLICITATION, 0, ip);
            message.extend([OPTION_SOURCE_MAC, 1]);
            message.extend(mac.0);
            icmpv6(mac, asker, solicited_node(ip), message)
        }
        (IpAddr::V6(ip), _) => {
            let mut message = neighbour(NEIGHBOUR_SOLICITATION, 0, ip);
            message.extend([OPTION_NONCE, 1]);
            message.extend(nonce);
            icmpv6(mac, Ipv6Addr::UNSPECIFIED, solicited_node(ip), message)
        }
    }
}

/// Returns the frames that tell everybody that `ip` is at `mac` now.
pub(super) fn announcement(mac: Mac, ip: IpAddr) -> Vec<Vec<u8>> {
    match ip {
        // Some devices learn from the one only, and some from the other. In the answer the target is the
        // sender, too, as Linux asks for before it replaces a young entry.
        IpAddr::V4(ip) => vec![
            arp(mac, ARP_REQUEST, (mac, ip), (Mac::NOBODY, ip)),
            arp(mac, ARP_REPLY, (mac, ip), (mac, ip)),
        ],
        IpAddr::V6(ip) => {
            /// What is known of the address so far is to be replaced.
            const OVERRIDE: u8 = 0x20;
            let mut message = neighbour(NEIGHBOUR_ADVERTISEMENT, OVERRIDE, ip);
            message.extend([OPTION_TARGET_MAC, 1]);
            message.extend(mac.0);
            vec![icmpv6(mac, ip, ALL_NODES, message)]
        }
    }
}

/// Returns the group that whoever has `ip` listens to.
pub(super) fn solicited_node(ip: Ipv6Addr) -> Ipv6Addr {
    let [.., a, b, c] = ip.octets();
    let [high, low] = [u16::from_be_bytes([0xff, a]), u16::from_be_bytes([b, c])];
    Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, high, low)
}

fn ethernet(to: Mac, from: Mac, ethertype: u16, payload: &[u8]) -> Vec<u8> {
    let ethertype = ethertype.to_be_bytes();
    [&to.0[..], &from.0, &ethertype, payload].concat()
}

fn arp(from: Mac, operation: u16, sender: (Mac, Ipv4Addr), target: (Mac, Ipv4Addr)) -> Vec<u8> {
    let mut packet = Vec::with_capacity(28);
    packet.extend(ARP_KIND);
    packet.extend(operation.to_be_bytes());
    for (mac, ip) in [sender, target] {
        packet.extend(mac.0);
        packet.extend(ip.octets());
    }
    ethernet(Mac::BROADCAST, from, ETHERTYPE_ARP, &packet)
}

/// Returns a message of Neighbour Discovery without its options and its checksum.
fn neighbour(kind: u8, flags: u8, target: Ipv6Addr) -> Vec<u8> {
    let mut message = vec![kind, 0, 0, 0, flags, 0, 0, 0];
    message.extend(target.octets());
    message
}

/// Wraps a message whose destination is a group.
fn icmpv6(from: Mac, source: Ipv6Addr, group: Ipv6Addr, mut message: Vec<u8>) -> Vec<u8> {
    let length = u16::try_from(message.len()).expect("a message has less than 100 bytes");
    let pseudo = [
        &source.octets()[..],
        &group.octets(),
        &u32::from(length).to_be_bytes(),
        &[0, 0, 0, ICMPV6],
        &message,
    ];
    let sum = checksum(&pseudo.concat()).to_be_bytes();
    for (byte, sum) in message.iter_mut().skip(2).zip(sum) {
        *byte = sum;
    }
    let [a, b] = length.to_be_bytes();
    let mut packet = vec![0x60, 0, 0, 0, a, b, ICMPV6, HOP_LIMIT];
    packet.extend(source.octets());
    packet.extend(group.octets());
    packet.extend(message);
    let [.., c, d, e, f] = group.octets();
    ethernet(Mac([0x33, 0x33, c, d, e, f]), from, ETHERTYPE_IPV6, &packet)
}

/// The checksum of the internet (RFC 1071).
fn checksum(bytes: &[u8]) -> u16 {
    let word = |pair: &[u8]| match pair {
        [high, low] => u64::from(u16::from_be_bytes([*high, *low])),
        [high] => u64::from(u16::from_be_bytes([*high, 0])),
        _ => 0,
    };
    let sum: u64 = bytes.chunks(2).map(word).sum();
    // A frame is so short that two foldings leave 16 bits.
    let folded = (sum & 0xffff).saturating_add(sum >> 16);
    let folded = (folded & 0xffff).saturating_add(folded >> 16);
    !u16::try_from(folded & 0xffff).expect("16 bits are left")
}

/// Reads what a frame of ARP shows, if it shows anything.
pub(super) fn read_arp(frame: &[u8]) -> Option<Shown> {
    let packet = frame.get(14..)?;
    if packet.get(..6)? != ARP_KIND {
        return None;
    }
    let operation = u16::from_be_bytes(packet.get(6..8)?.try_into().ok()?);
    let mac: [u8; 6] = packet.get(8..14)?.try_into().ok()?;
    let source: [u8; 4] = packet.get(14..18)?.try_into().ok()?;
    let target: [u8; 4] = packet.get(24..28)?.try_into().ok()?;
    let (source, target) = (Ipv4Addr::from(source), Ipv4Addr::from(target));
    let mac = Some(Mac(mac));
    // Whoever names himself with an address claims it, whether he asks or answers.
    if !source.is_unspecified() {
        return Some(Shown::Has {
            ip: source.into(),
            mac,
        });
    }
    (operation == ARP_REQUEST).then_some(Shown::Probes {
        ip: target.into(),
        mac,
        nonce: None,
    })
}

/// Reads what an ICMPv6 message from `source` shows, if it shows anything. Its checksum is the kernel's to
/// look at, and its hop limit the caller's.
pub(super) fn read_icmpv6(message: &[u8], source: Ipv6Addr) -> Option<Shown> {
    let kind = *message.first()?;
    let target: [u8; 16] = message.get(8..24)?.try_into().ok()?;
    let ip = IpAddr::from(target);
    let options = message.get(24..)?;
    match kind {
        NEIGHBOUR_ADVERTISEMENT => Some(Shown::Has {
            ip,
            mac: option(options, OPTION_TARGET_MAC).map(Mac),
        }),
        NEIGHBOUR_SOLICITATION if source.is_unspecified() => Some(Shown::Probes {
            ip,
            mac: None,
            nonce: option(options, OPTION_NONCE),
        }),
        _ => None,
    }
}

/// Returns the six bytes of the first option of that kind.
fn option(mut options: &[u8], wanted: u8) -> Option<[u8; 6]> {
    loop {
        let (kind, eights) = (*options.first()?, usize::from(*options.get(1)?));
        let length = eights.checked_mul(8).filter(|length| *length > 0)?;
        let body = options.get(2..length)?;
        if kind == wanted {
            return body.get(..6)?.try_into().ok();
        }
        options = options.get(length..)?;
    }
}

#[cfg(test)]
#[expect(
    clippy::indexing_slicing,
    reason = "a test that reads beyond a frame has failed"
)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ME: Mac = Mac([2, 0, 0, 0, 0, 1]);
    const NONCE: Nonce = [1, 2, 3, 4, 5, 6];

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_probe_names_nobody_and_an_announcement_names_its_sender_twice() {
        let vip = ip("10.0.0.100");
        assert_eq!(
            hex(&question(ME, vip, None, NONCE)),
            "ffffffffffff0200000000010806000108000604000102000000000100000000000000000000\
             0a000064"
        );
        assert_eq!(
            announcement(ME, vip)
                .iter()
                .map(|frame| hex(frame))
                .collect::<Vec<_>>(),
            [
                "ffffffffffff020000000001080600010800060400010200000000010a000064000000000000\
                 0a000064",
                "ffffffffffff020000000001080600010800060400020200000000010a000064020000000001\
                 0a000064"
            ]
        );
    }

    #[test]
    fn a_neighbour_solicitation_has_the_checksum_that_the_kernel_looks_at() {
        let frame = question(ME, ip("fd00::64"), None, NONCE);
        assert_eq!(
            hex(&frame),
            "3333ff000064020000000001\
             86dd6000000000203aff\
             00000000000000000000000000000000ff0200000000000000000001ff000064\
             8700XXXX00000000fd0000000000000000000000000000640e01010203040506"
                .replace("XXXX", &hex(&frame[56..58]))
        );
        // The sum over everything, with the checksum in it, is nothing.
        let message = &frame[54..];
        let whole = [&frame[22..54], &[0, 0, 0, 32, 0, 0, 0, 58], message].concat();
        assert_eq!(checksum(&whole), 0);
    }

    #[test]
    fn what_is_told_is_read_as_it_was_meant() {
        let (v4, v6) = (ip("10.0.0.100"), ip("fd00::64"));
        let icmp = |frame: &[u8]| {
            let source: [u8; 16] = frame[22..38].try_into().unwrap();
            read_icmpv6(&frame[54..], source.into())
        };
        let has = |ip, mac| Some(Shown::Has { ip, mac });
        for frame in announcement(ME, v4) {
            assert_eq!(read_arp(&frame), has(v4, Some(ME)));
        }
        assert_eq!(icmp(&announcement(ME, v6)[0]), has(v6, Some(ME)));
        let probes = |ip, mac, nonce| Some(Shown::Probes { ip, mac, nonce });
        assert_eq!(
            read_arp(&question(ME, v4, None, NONCE)),
            probes(v4, Some(ME), None)
        );
        assert_eq!(
            icmp(&question(ME, v6, None, NONCE)),
            probes(v6, None, Some(NONCE))
        );
        // A question by name is no claim to what it asks for.
        let asker = ip("10.0.0.2");
        assert_eq!(
            read_arp(&question(ME, v4, Some(asker), NONCE)),
            has(asker, Some(ME))
        );
        assert_eq!(icmp(&question(ME, v6, Some(ip("fe80::1")), NONCE)), None);
    }

    proptest! {
        #[test]
        fn no_frame_breaks_the_readers(bytes in proptest::collection::vec(any::<u8>(), 0..80), kind in 130_u8..140) {
            let _arp = read_arp(&bytes);
            let mut message = bytes;
            if let Some(first) = message.first_mut() {
                *first = kind;
            }
            let _icmp = read_icmpv6(&message, Ipv6Addr::UNSPECIFIED);
        }
    }
}
