//! What is looked at over the network.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::OwnedFd;

use http_body_util::{BodyExt, Empty, Limited};
use hyper::Request;
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use rustix::net::{AddressFamily, SocketFlags, SocketType, ipproto, socket_with};
use tokio::net::{TcpStream, UdpSocket};

use super::local::{Look, bad, good};

/// How much of a page is read.
const PAGE_BYTES_MAX: usize = 64 << 10;
/// The longest answer to an echo that is looked at.
const ECHO_BYTES_MAX: usize = 1500;

pub(super) async fn tcp(host: &str, port: u16) -> Look {
    match TcpStream::connect((host, port)).await {
        Ok(_closed) => good(format!("{host} takes connections at port {port}")),
        Err(error) => bad(format!(
            "{host} takes no connection at port {port}: {error}"
        )),
    }
}

pub(super) async fn http(url: &str, status: Option<u16>, contains: &str) -> Look {
    let (found, page) = match get(url).await {
        Ok(answer) => answer,
        Err(error) => return bad(format!("{url} is not answered: {error}")),
    };
    let is_wanted = status.map_or((200..400).contains(&found), |status| status == found);
    if !is_wanted {
        return bad(format!("{url} is answered with status {found}"));
    }
    if !page.contains(contains) {
        return bad(format!("{url} does not contain `{contains}`"));
    }
    good(format!("{url} is answered with status {found}"))
}

async fn get(url: &str) -> Result<(u16, String), Box<dyn std::error::Error + Send + Sync>> {
    let url: hyper::Uri = url.parse()?;
    let host = url.host().ok_or("it has no host")?;
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let stream = TcpStream::connect((bare, url.port_u16().unwrap_or(80))).await?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let path = url.path_and_query().map_or("/", |path| path.as_str());
    let authority = url.authority().map_or(host, |it| it.as_str());
    let request = Request::get(path)
        .header(hyper::header::HOST, authority)
        .header(hyper::header::USER_AGENT, "understudy-check")
        .header(hyper::header::CONNECTION, "close")
        .body(Empty::<Bytes>::new())?;
    let answer = async {
        let response = sender.send_request(request).await?;
        let status = response.status().as_u16();
        let mut body = Limited::new(response.into_body(), PAGE_BYTES_MAX);
        let mut page = Vec::new();
        // A page that is longer is looked at as far as that.
        while let Some(Ok(frame)) = body.frame().await {
            page.extend(frame.into_data().unwrap_or_default());
        }
        Ok((status, String::from_utf8_lossy(&page).into_owned()))
    };
    tokio::pin!(answer, connection);
    // Both belong to this call: who gives it up leaves nothing behind.
    tokio::select! {
        answer = &mut answer => answer,
        ended = &mut connection => {
            ended?;
            answer.await
        }
    }
}

/// A machine to be reached.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Gateway {
    address: IpAddr,
    /// The network interface that leads to it. An address that is of one link alone (`fe80::…`) is on each link
    /// another machine's.
    interface: Option<String>,
}

impl fmt::Display for Gateway {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.interface {
            Some(interface) => write!(f, "{}%{interface}", self.address),
            None => self.address.fmt(f),
        }
    }
}

impl Gateway {
    /// Returns where it is, for the kernel.
    fn place(&self) -> io::Result<SocketAddr> {
        Ok(match (self.address, &self.interface) {
            (IpAddr::V6(address), Some(interface)) => {
                let index = nix::net::if_::if_nametoindex(interface.as_str())?;
                SocketAddrV6::new(address, 0, 0, index).into()
            }
            (address, _) => SocketAddr::new(address, 0),
        })
    }
}

pub(super) async fn gateway(address: Option<IpAddr>) -> Look {
    let found = match address {
        None => default_gateway(),
        Some(IpAddr::V6(address)) if address.is_unicast_link_local() => link_of(address),
        Some(address) => Ok(Some(Gateway {
            address,
            interface: None,
        })),
    };
    let gateway = match (found, address) {
        (Ok(Some(gateway)), _) => gateway,
        (Ok(None), None) => return bad("this machine has no default route"),
        (Ok(None), Some(address)) => {
            return bad(format!(
                "{address} is of one link alone, and no route of this machine tells which"
            ));
        }
        (Err(error), _) => return bad(format!("cannot read the routes of this machine: {error}")),
    };
    match echo(&gateway).await {
        Ok(()) => good(format!("{gateway} answers")),
        Err(error) => bad(format!("{gateway} does not answer: {error}")),
    }
}

/// Sends an ICMP echo, and waits for its answer.
async fn echo(gateway: &Gateway) -> io::Result<()> {
    let (address, place) = (gateway.address, gateway.place()?);
    let (family, protocol, request, reply) = match address {
        IpAddr::V4(_) => (AddressFamily::INET, ipproto::ICMP, 8, 0),
        IpAddr::V6(_) => (AddressFamily::INET6, ipproto::ICMPV6, 128, 129),
    };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let open = |kind| socket_with(family, kind, flags, Some(protocol));
    // Everybody may have the one where the system allows it, and root the other.
    let socket: OwnedFd = open(SocketType::DGRAM).or_else(|_| open(SocketType::RAW))?;
    // The calls of a UDP socket do for it: it sends and receives single messages.
    let socket = UdpSocket::from_std(std::net::UdpSocket::from(socket))?;
    socket.connect(place).await?;
    let mut token = [0_u8; 16];
    rustix::rand::getrandom(&mut token, rustix::rand::GetRandomFlags::empty())?;
    let mut message = vec![request, 0, 0, 0, token[0], token[1], 0, 1];
    message.extend(token);
    if address.is_ipv4() {
        let sum = checksum(&message).to_be_bytes();
        message[2..4].copy_from_slice(&sum);
    }
    socket.send(&message).await?;
    let mut answer = [0; ECHO_BYTES_MAX];
    loop {
        let length = socket.recv(&mut answer).await?;
        let mut answer = &answer[..length];
        // A raw socket of IPv4 hands out the header as well.
        if let Some(first) = answer
            .first()
            .filter(|first| address.is_ipv4() && **first >> 4 == 4)
        {
            answer = answer
                .get(usize::from(first & 0xf) * 4..)
                .unwrap_or_default();
        }
        if answer.first() == Some(&reply) && answer.ends_with(&token) {
            return Ok(());
        }
    }
}

/// The checksum of the internet (RFC 1071), of an even number of bytes.
fn checksum(bytes: &[u8]) -> u16 {
    let sum: u32 = bytes
        .chunks_exact(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
        .sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let folded = (folded & 0xffff) + (folded >> 16);
    !u16::try_from(folded & 0xffff).unwrap_or_default()
}

/// Returns the gateway of the default route: of IPv4, or else of IPv6.
fn default_gateway() -> io::Result<Option<Gateway>> {
    let table = std::fs::read_to_string("/proc/thread-self/net/route")?;
    if let Some(gateway) = gateway_v4(&table) {
        return Ok(Some(Gateway {
            address: gateway.into(),
            interface: None,
        }));
    }
    let table = routes_v6()?;
    Ok(gateways_v6(&table)
        .find(|(is_default, _)| *is_default)
        .map(|(_, gateway)| gateway))
}

/// Returns the machine of a link's own address, with the link, by the routes that lead through it.
fn link_of(address: Ipv6Addr) -> io::Result<Option<Gateway>> {
    let table = routes_v6()?;
    let mut gateways = gateways_v6(&table).map(|(_, gateway)| gateway);
    Ok(gateways.find(|gateway| gateway.address == address))
}

/// Returns the kernel's table of routes of IPv6, which is empty where there is no IPv6.
fn routes_v6() -> io::Result<String> {
    match std::fs::read_to_string("/proc/thread-self/net/ipv6_route") {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        read => read,
    }
}

/// Finds the gateway in a table with lines of interface, destination, gateway, flags, …, mask; the kernel
/// writes addresses as it keeps them in memory.
fn gateway_v4(table: &str) -> Option<Ipv4Addr> {
    table.lines().skip(1).find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [_, "00000000", gateway, ..] = fields[..] else {
            return None;
        };
        let gateway = u32::from_str_radix(gateway, 16).ok()?;
        let is_default = fields.get(7).is_some_and(|mask| *mask == "00000000");
        (is_default && gateway != 0).then(|| Ipv4Addr::from(gateway.to_ne_bytes()))
    })
}

/// Finds the gateways, each with whether it is that of the default route, in a table with lines of destination,
/// its length, source, its length, gateway, four numbers, interface.
fn gateways_v6(table: &str) -> impl Iterator<Item = (bool, Gateway)> {
    table.lines().filter_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [_, length, _, _, gateway, _, _, _, _, interface] = fields[..] else {
            return None;
        };
        let gateway = u128::from_str_radix(gateway, 16)
            .ok()
            .filter(|it| *it != 0)?;
        let address = Ipv6Addr::from(gateway);
        let interface = address
            .is_unicast_link_local()
            .then(|| interface.to_owned());
        let address = address.into();
        Some((length == "00", Gateway { address, interface }))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_route_is_found() {
        let v4 = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\n\
                  eth0\t0000000A\t00000000\t0001\t0\t0\t0\t00FFFFFF\n\
                  eth0\t00000000\tFE00000A\t0003\t0\t0\t0\t00000000\n";
        let expected = if cfg!(target_endian = "little") {
            [10, 0, 0, 254]
        } else {
            [254, 0, 0, 10]
        };
        assert_eq!(gateway_v4(v4), Some(expected.into()));
        assert_eq!(gateway_v4("Iface\n"), None);
        let v6 = "fd000000000000000000000000000000 40 00000000000000000000000000000000 00 \
                  00000000000000000000000000000000 00000100 00000001 00000000 00000001 eth0\n\
                  00000000000000000000000000000000 00 00000000000000000000000000000000 00 \
                  fd0000000000000000000000000000fe 00000400 00000001 00000000 00000003 eth0\n";
        let found: Vec<_> = gateways_v6(v6)
            .map(|(is_default, gateway)| (is_default, gateway.to_string()))
            .collect();
        assert_eq!(found, [(true, "fd00::fe".to_owned())]);
        assert_eq!(gateways_v6("").count(), 0);
    }

    #[test]
    fn a_gateway_that_is_of_one_link_alone_is_found_with_its_link() {
        // As routers announce themselves, beside what the kernel refuses and a network behind another router.
        let table = "00000000000000000000000000000000 00 00000000000000000000000000000000 00 \
                     fe800000000000000000000000000001 00000400 00000001 00000000 00450003     eth1\n\
                     fd010000000000000000000000000000 20 00000000000000000000000000000000 00 \
                     fe800000000000000000000000000002 00000400 00000001 00000000 00000003     eth2\n\
                     00000000000000000000000000000000 00 00000000000000000000000000000000 00 \
                     00000000000000000000000000000000 ffffffff 00000001 00000000 00200200       lo\n";
        let found: Vec<_> = gateways_v6(table)
            .map(|(is_default, gateway)| (is_default, gateway.to_string()))
            .collect();
        let expected = [(true, "fe80::1%eth1"), (false, "fe80::2%eth2")];
        assert_eq!(found, expected.map(|(is, text)| (is, text.to_owned())));
        let on_loopback = Gateway {
            address: "fe80::1".parse().unwrap(),
            interface: Some("lo".to_owned()),
        };
        let SocketAddr::V6(place) = on_loopback.place().unwrap() else {
            panic!("of IPv6");
        };
        assert_ne!(place.scope_id(), 0);
    }

    #[test]
    fn an_echo_has_the_checksum_that_others_look_at() {
        let mut message = vec![8, 0, 0, 0, 1, 2, 0, 1, 9, 9];
        let sum = checksum(&message).to_be_bytes();
        message[2..4].copy_from_slice(&sum);
        assert_eq!(checksum(&message), 0);
    }
}
