//! Why the address is not as it should be.

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::time::Duration;

use understudy_config::IpPrefix;

use super::frame::Mac;

/// Another machine that answers for an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Which address.
    pub ip: IpAddr,
    /// The network card that answers; `None` where it does not say which it is.
    pub mac: Option<Mac>,
    /// It does not have the address yet: it asks, as this node does, because it is about to take it.
    pub is_taking: bool,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.mac {
            Some(mac) => write!(f, "the machine with network card {mac}")?,
            None => f.write_str("another machine")?,
        }
        let verb = if self.is_taking {
            "is about to take"
        } else {
            "has"
        };
        write!(f, " {verb} {}", self.ip)
    }
}

/// Why the address was not taken, given up or looked for.
#[derive(Debug, thiserror::Error)]
pub enum AddressError {
    /// The kernel cannot be asked about network interfaces at all.
    #[error("cannot reach the kernel's network interfaces (netlink)")]
    Netlink {
        /// Why not.
        source: io::Error,
    },
    /// The daemon is not allowed to.
    #[error("the daemon may not {doing}: it lacks {capability}")]
    Forbidden {
        /// What it was doing.
        doing: String,
        /// The capability that it takes.
        capability: &'static str,
    },
    /// The kernel did not answer.
    #[error("the kernel did not {doing} within {} s", limit.as_secs())]
    Slow {
        /// What it was asked to do.
        doing: String,
        /// How long it had.
        limit: Duration,
    },
    /// The kernel refused.
    #[error("cannot {doing}")]
    Kernel {
        /// What it was asked to do.
        doing: String,
        /// Why not.
        source: io::Error,
    },
    /// There is no such interface.
    #[error(
        "this machine has no network interface `{interface}`; it has {}",
        list(there)
    )]
    NoInterface {
        /// The interface of the configuration.
        interface: String,
        /// Those that it has.
        there: Vec<String>,
    },
    /// The interface is switched off.
    #[error("network interface `{interface}` is down")]
    Down {
        /// The interface.
        interface: String,
    },
    /// Its cable is out.
    #[error(
        "network interface `{interface}` has no carrier: nothing is at the other end of its cable"
    )]
    NoCarrier {
        /// The interface.
        interface: String,
    },
    /// Nobody can be asked there who has an address.
    #[error(
        "network interface `{interface}` is not Ethernet: nobody can be asked there who has an address"
    )]
    NotEthernet {
        /// The interface.
        interface: String,
    },
    /// IPv6 is switched off there.
    #[error("cannot add {prefix} to `{interface}`: IPv6 is switched off there")]
    NoIpv6 {
        /// The address.
        prefix: IpPrefix,
        /// The interface.
        interface: String,
    },
    /// Another machine answers for it.
    #[error("{holder}")]
    InUse {
        /// Which.
        holder: Holder,
    },
    /// It was to be given up before it was taken.
    #[error("the taking of the address was broken off: it is being given up")]
    BrokenOff,
}

fn list(names: &[String]) -> String {
    if names.is_empty() {
        return "none".to_owned();
    }
    names.join(", ")
}

impl AddressError {
    /// Returns what to do about it, in a sentence.
    pub fn hint(&self) -> String {
        match self {
            Self::Netlink { .. } => {
                "let the daemon use AF_NETLINK: see RestrictAddressFamilies= in its unit".to_owned()
            }
            Self::Forbidden { capability, .. } => {
                format!(
                    "run the daemon as root, or add {capability} to AmbientCapabilities= in its unit"
                )
            }
            Self::Slow { .. } => "look whether `ip address` hangs as well".to_owned(),
            Self::Kernel { .. } => "look at the interface with `ip -d address`".to_owned(),
            Self::NoInterface { .. } => {
                "put the interface's name under [address] in node.toml, and restart the daemon"
                    .to_owned()
            }
            Self::Down { interface } => format!("run `ip link set {interface} up`"),
            Self::NoCarrier { .. } => "look at the cable and at the switch".to_owned(),
            Self::NotEthernet { .. } => {
                "name the interface to the clients' network in [address]".to_owned()
            }
            Self::NoIpv6 { interface, .. } => {
                format!("run `sysctl net.ipv6.conf.{interface}.disable_ipv6=0`")
            }
            Self::InUse { holder } if holder.is_taking => {
                "let only one node be promoted, then try again".to_owned()
            }
            Self::InUse { holder } => format!(
                "take {} away from that machine (`ip address del`), or cut it off; the address is taken as \
                 soon as nobody answers for it",
                holder.ip
            ),
            Self::BrokenOff => "see `understudy status`: this node's role has changed".to_owned(),
        }
    }
}
