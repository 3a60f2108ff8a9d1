//! The address that clients use: `[address]` of both files.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::elements;
use crate::problem::{Findings, Mistake, Place, Placed};
use crate::{Address, IpPrefix, duration, raw};

/// The longest name of an interface: `IFNAMSIZ` without its NUL.
const INTERFACE_BYTES_MAX: usize = 15;
/// Shorter, and a host that is busy has no time to answer; longer, and a promotion waits for nothing.
const PROBE_MIN: Duration = Duration::from_millis(100);
const PROBE_MAX: Duration = Duration::from_secs(10);
/// Shorter, and a restart of the daemon takes the address away.
const LEASE_MIN: Duration = Duration::from_secs(30);
/// The most addresses that move together.
const IPS_MAX: usize = 16;

/// Validates `[address]`, in a cluster of these nodes.
pub(super) fn address(
    raw: &raw::Address,
    nodes: Option<&Placed<Vec<Placed<raw::Node>>>>,
    findings: &mut Findings,
) -> Option<Address> {
    let first = raw
        .ip
        .as_ref()
        .map(|it| (it, findings.check(it, str::parse::<IpPrefix>)));
    let also = elements(&raw.also).map(|it| (it, findings.check(it, str::parse::<IpPrefix>)));
    let written: Vec<_> = first.into_iter().chain(also.collect::<Vec<_>>()).collect();
    if let Some(also) = raw.also.as_ref().filter(|_| written.len() > IPS_MAX) {
        let what = format!("{} addresses are to move together", written.len());
        findings.report(&also.place, what, format!("at most {IPS_MAX}"));
    }
    are_free(&written, nodes, findings);
    let interface = raw
        .interface
        .as_ref()
        .and_then(|it| findings.check(it, interface));
    let probe = raw.probe.as_ref().and_then(|it| findings.check(it, probe));
    let lease = raw.lease.as_ref().and_then(|it| findings.check(it, lease));
    Some(Address {
        ips: super::all(written.into_iter().map(|(_, ip)| ip)).filter(|ips| !ips.is_empty())?,
        interface: interface?,
        probe: probe?,
        lease: lease?,
    })
}

/// Reports addresses that are given twice, and such as a node has for its own.
fn are_free(
    written: &[(&Placed<String>, Option<IpPrefix>)],
    nodes: Option<&Placed<Vec<Placed<raw::Node>>>>,
    findings: &mut Findings,
) {
    let of_node = |node: &Placed<raw::Node>| {
        let address = node.value.address.as_ref()?;
        let ip = address
            .value
            .parse::<SocketAddr>()
            .ok()?
            .ip()
            .to_canonical();
        Some((ip, address.place.clone()))
    };
    let of_nodes: BTreeMap<IpAddr, Place> = nodes
        .iter()
        .flat_map(|nodes| &nodes.value)
        .filter_map(of_node)
        .collect();
    let mut seen: BTreeMap<IpAddr, &Place> = BTreeMap::new();
    for (written, prefix) in written {
        let Some(ip) = prefix.map(|prefix| prefix.ip()) else {
            continue;
        };
        if let Some(node) = of_nodes.get(&ip) {
            let what = format!("`{ip}` is the address of a node, which it has whatever its role");
            findings
                .report(
                    &written.place,
                    what,
                    "an address that no machine has for its own",
                )
                .related(node, "the node has it here");
        }
        if let Some(first) = seen.insert(ip, &written.place) {
            let what = format!("address `{ip}` is given twice");
            findings
                .report(&written.place, what, "each address once")
                .related(first, "it is given here first");
        }
    }
}

/// Reads the name of a network interface.
pub(super) fn interface(text: &str) -> Result<String, Mistake> {
    const EXPECTED: &str =
        "the name of a network interface as `ip link` shows it, such as \"eth0\"";
    let what = if text.len() > INTERFACE_BYTES_MAX {
        format!(
            "`{text}` has {} bytes, and no interface has more than {INTERFACE_BYTES_MAX}",
            text.len()
        )
    } else if text.is_empty() || text == "." || text == ".." {
        format!("`{text}` is not the name of a network interface")
    } else if text == "lo" {
        "`lo` is the loopback interface, which no other machine can reach".to_owned()
    } else if let Some(odd) = text
        .chars()
        .find(|c| !c.is_ascii_graphic() || matches!(c, '/' | ':' | '%'))
    {
        format!("`{text}` holds {odd:?}, which no interface has in its name")
    } else {
        return Ok(text.to_owned());
    };
    Err(Mistake::new(what, EXPECTED))
}

fn probe(text: &str) -> Result<Duration, Mistake> {
    let probe = duration::parse(text)?;
    if (PROBE_MIN..=PROBE_MAX).contains(&probe) {
        return Ok(probe);
    }
    let what = format!(
        "`{text}` is too {} to wait for an answer",
        if probe < PROBE_MIN { "short" } else { "long" }
    );
    Err(Mistake::new(what, "from \"100ms\" to \"10s\""))
}

fn lease(text: &str) -> Result<Option<Duration>, Mistake> {
    let lease = duration::parse_or_never(text)?;
    if lease.is_none_or(|lease| lease >= LEASE_MIN) {
        return Ok(lease);
    }
    let what =
        format!("`{text}` is so short that a restart of the daemon would take the address away");
    Err(Mistake::new(what, "at least \"30s\", or \"never\""))
}
