//! An address together with the size of the network it is in: `10.0.0.100/24`.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use crate::problem::Mistake;

/// An address of one host, and how many of its bits say which network it is in.
///
/// A host can have it as its own: it is neither a network nor everybody in one, neither loopback nor
/// link-local.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IpPrefix {
    ip: IpAddr,
    bits: u8,
}

impl IpPrefix {
    /// Returns the address.
    pub fn ip(&self) -> IpAddr {
        self.ip
    }

    /// Returns how many of its bits say which network it is in: at most 32 or 128.
    pub fn bits(&self) -> u8 {
        self.bits
    }
}

impl FromStr for IpPrefix {
    type Err = Mistake;

    fn from_str(text: &str) -> Result<Self, Mistake> {
        const EXPECTED: &str =
            "an address and its prefix, such as \"10.0.0.100/24\" or \"fd00::100/64\"";
        let wrong = |what: &str| Mistake::new(format!("`{text}` {what}"), EXPECTED);
        let Some((ip, bits)) = text.split_once('/') else {
            let is_ip = text.parse::<IpAddr>().is_ok();
            return Err(wrong(if is_ip {
                "has no prefix, which says how large its network is"
            } else {
                "is not an address with a prefix"
            }));
        };
        let ip: IpAddr = ip
            .parse()
            .map_err(|_| wrong("has no IP address before the `/`"))?;
        let width: u8 = if ip.is_ipv4() { 32 } else { 128 };
        let is_number = !bits.is_empty() && bits.bytes().all(|byte| byte.is_ascii_digit());
        let bits = Some(bits)
            .filter(|_| is_number)
            .and_then(|bits| bits.parse().ok());
        let Some(bits) = bits.filter(|bits| (1..=width).contains(bits)) else {
            return Err(wrong(&format!(
                "has no prefix from 1 to {width} after the `/`"
            )));
        };
        match unfit(ip, width, bits) {
            Some(what) => Err(wrong(what)),
            None => Ok(Self { ip, bits }),
        }
    }
}

/// Returns why no host can have the address as its own for others to reach it.
fn unfit(ip: IpAddr, width: u8, bits: u8) -> Option<&'static str> {
    if ip.is_unspecified() {
        return Some("is no host's address");
    }
    if ip.is_loopback() {
        return Some("is a loopback address, which no other machine can reach");
    }
    if ip.is_multicast() {
        return Some("is a multicast address, which no single host has");
    }
    match ip {
        IpAddr::V4(ip) if ip.is_broadcast() => return Some("is everybody's address"),
        IpAddr::V4(ip) if ip.octets()[0] == 0 || ip.octets()[0] >= 240 => {
            return Some("is in a range that no host can have");
        }
        IpAddr::V4(_) => {}
        IpAddr::V6(ip) if ip.to_ipv4_mapped().is_some() => {
            return Some("is an IPv4 address in the clothes of IPv6");
        }
        // It would be another one on each interface.
        IpAddr::V6(ip) if ip.is_unicast_link_local() => return Some("is a link-local address"),
        IpAddr::V6(_) => {}
    }
    let (number, shift) = match ip {
        IpAddr::V4(ip) => (u128::from(ip.to_bits()), 128 - 32 + u32::from(bits)),
        IpAddr::V6(ip) => (ip.to_bits(), u32::from(bits)),
    };
    let host_bits = width - bits;
    // The bits behind the prefix say which host of the network it is. Where one bit or none is left, every
    // value is a host (RFC 3021, RFC 6164).
    if host_bits < 2 {
        return None;
    }
    let mask = u128::MAX.checked_shr(shift).unwrap_or(0);
    if number & mask == 0 {
        return Some("is the address of the network itself, not of a host in it");
    }
    if ip.is_ipv4() && number & mask == mask {
        return Some("is the broadcast address of its network, not of a host in it");
    }
    None
}

impl fmt::Display for IpPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.ip, self.bits)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_no_host_can_have_is_told_apart() {
        let said = |text: &str| match text.parse::<IpPrefix>() {
            Ok(prefix) => prefix.to_string(),
            Err(mistake) => mistake.what,
        };
        let texts = [
            "10.0.0.100/24",
            "10.0.0.0/31",
            "10.0.0.7/32",
            "fd00::100/64",
            "fd00::/127",
            "10.0.0.100",
            "",
            "10.0.0/24",
            "10.0.0.1/33",
            "10.0.0.1/0",
            "10.0.0.1/+8",
            "10.0.0.0/24",
            "10.0.0.255/24",
            "127.0.0.2/8",
            "::1/128",
            "224.0.0.1/24",
            "ff02::1/64",
            "0.0.0.0/8",
            "240.0.0.1/8",
            "255.255.255.255/32",
            "::ffff:10.0.0.1/120",
            "fe80::1/64",
            "fd00::/64",
            "fd00::ffff/112",
        ];
        insta::assert_snapshot!(texts.map(said).join("\n"), @r"
    10.0.0.100/24
    10.0.0.0/31
    10.0.0.7/32
    fd00::100/64
    fd00::/127
    `10.0.0.100` has no prefix, which says how large its network is
    `` is not an address with a prefix
    `10.0.0/24` has no IP address before the `/`
    `10.0.0.1/33` has no prefix from 1 to 32 after the `/`
    `10.0.0.1/0` has no prefix from 1 to 32 after the `/`
    `10.0.0.1/+8` has no prefix from 1 to 32 after the `/`
    `10.0.0.0/24` is the address of the network itself, not of a host in it
    `10.0.0.255/24` is the broadcast address of its network, not of a host in it
    `127.0.0.2/8` is a loopback address, which no other machine can reach
    `::1/128` is a loopback address, which no other machine can reach
    `224.0.0.1/24` is a multicast address, which no single host has
    `ff02::1/64` is a multicast address, which no single host has
    `0.0.0.0/8` is no host's address
    `240.0.0.1/8` is in a range that no host can have
    `255.255.255.255/32` is everybody's address
    `::ffff:10.0.0.1/120` is an IPv4 address in the clothes of IPv6
    `fe80::1/64` is a link-local address
    `fd00::/64` is the address of the network itself, not of a host in it
    fd00::ffff/112
    ");
    }

    proptest! {
        #[test]
        fn what_is_printed_is_read_as_the_same(v4 in any::<[u8; 4]>(), v6 in any::<[u8; 16]>(), bits in 0_u8..=128) {
            for text in [format!("{}/{}", IpAddr::from(v4), bits % 33), format!("{}/{bits}", IpAddr::from(v6))] {
                if let Ok(prefix) = text.parse::<IpPrefix>() {
                    prop_assert_eq!(prefix.to_string().parse(), Ok(prefix));
                }
            }
        }

        #[test]
        fn no_text_breaks_the_reader(text in "[0-9a-f:./]{0,24}") {
            let _read: Result<IpPrefix, _> = text.parse();
        }
    }
}
