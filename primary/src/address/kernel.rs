//! What the kernel is asked to do, off the threads that serve others and within a time limit.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use understudy_config::IpPrefix;

use super::error::AddressError;
use super::frame::Mac;
use super::message::{Link, Present};
use super::netlink::Netlink;
use super::wire::{Sockets, Wire};

/// How long the kernel has for one change: a lock of its own may be held while it removes interfaces.
const CALL_LIMIT: Duration = Duration::from_secs(3);

/// The network interfaces and the addresses of this machine, at one moment.
pub(super) struct Seen {
    links: Vec<Link>,
    addresses: Vec<Present>,
}

impl Seen {
    /// Returns the interface of that name, if the address can be taken on it.
    pub(super) fn usable_link(&self, interface: &str) -> Result<&Link, AddressError> {
        let name = || interface.to_owned();
        let Some(link) = self.links.iter().find(|link| link.name == interface) else {
            let there = self.links.iter().map(|link| link.name.clone());
            return Err(AddressError::NoInterface {
                interface: name(),
                there: there.filter(|name| name != "lo").collect(),
            });
        };
        if !link.is_ethernet || link.mac.is_none() {
            return Err(AddressError::NotEthernet { interface: name() });
        }
        if !link.is_up {
            return Err(AddressError::Down { interface: name() });
        }
        if !link.has_carrier {
            return Err(AddressError::NoCarrier { interface: name() });
        }
        Ok(link)
    }

    /// Returns the addresses that are on an interface.
    pub(super) fn on(&self, link: &Link) -> impl Iterator<Item = &Present> {
        let index = link.index;
        self.addresses.iter().filter(move |it| it.index == index)
    }

    /// Returns whether the address is on that interface, as it should be.
    pub(super) fn is_on(&self, link: &Link, prefix: IpPrefix) -> bool {
        self.on(link).any(|it| is_as(it, prefix) && it.is_usable())
    }

    /// Returns which of the addresses are anywhere on this machine.
    pub(super) fn anywhere(&self, ips: &[IpAddr]) -> Vec<Present> {
        let there = self.addresses.iter().filter(|it| ips.contains(&it.ip));
        there.cloned().collect()
    }

    /// Returns the network cards of this machine: what one of them answers, this machine answers.
    pub(super) fn own_macs(&self) -> Vec<Mac> {
        self.links.iter().filter_map(|link| link.mac).collect()
    }
}

fn is_as(address: &Present, prefix: IpPrefix) -> bool {
    (address.ip, address.bits) == (prefix.ip(), prefix.bits())
}

/// The kernel of this machine.
pub(super) struct Kernel {
    /// A call that does not come back keeps the others from following it: at most one is stuck.
    call: Arc<tokio::sync::Mutex<()>>,
}

impl Kernel {
    pub(super) fn new() -> Result<Self, AddressError> {
        match Netlink::open() {
            Ok(_closed) => Ok(Self {
                call: Arc::default(),
            }),
            Err(source) => Err(AddressError::Netlink { source }),
        }
    }

    /// Looks at the interfaces and the addresses.
    pub(super) async fn look(&self) -> Result<Seen, AddressError> {
        let doing = "list network interfaces and addresses";
        self.call(doing, "CAP_NET_ADMIN", move || {
            let mut netlink = Netlink::open()?;
            Ok(Seen {
                links: netlink.links()?,
                addresses: netlink.addresses()?,
            })
        })
        .await
    }

    /// Opens what it takes to ask and to tell others on an interface.
    pub(super) async fn wire(&self, link: &Link, ips: &[IpAddr]) -> Result<Wire, AddressError> {
        let doing = format!("listen on {}", link.name);
        let (of, ips) = (link.clone(), ips.to_vec());
        let open = move || Sockets::open(&of, &ips);
        let sockets = self.call(&doing, "CAP_NET_RAW", open).await?;
        Wire::new(link.clone(), sockets).map_err(|source| error(&doing, source, "CAP_NET_RAW"))
    }

    /// Adds the addresses, and sets how long they stay; those that are there already, too. An error comes
    /// with those that were added before it.
    pub(super) async fn add(
        &self,
        link: &Link,
        prefixes: &[IpPrefix],
        lease: Option<Duration>,
    ) -> Result<(), (Vec<IpAddr>, AddressError)> {
        let mut added = Vec::new();
        for prefix in prefixes {
            let doing = format!("add {prefix} to {}", link.name);
            let (index, prefix) = (link.index, *prefix);
            let add = move || Netlink::open()?.add(index, prefix, lease);
            match self.call(&doing, "CAP_NET_ADMIN", add).await {
                Ok(()) => added.push(prefix.ip()),
                Err(error) => return Err((added, of_ipv6(error, prefix, link))),
            }
        }
        Ok(())
    }

    /// Removes the addresses from whatever interface they are on, and those of earlier configurations
    /// `with_former`. Returns what was removed.
    pub(super) async fn remove(
        &self,
        ips: &[IpAddr],
        with_former: bool,
    ) -> Result<Vec<Present>, AddressError> {
        let ips = ips.to_vec();
        self.remove_such(move |it| ips.contains(&it.ip) || with_former && it.is_ours())
            .await
    }

    /// Removes the addresses from every other place than where they should be.
    pub(super) async fn remove_strays(
        &self,
        link: &Link,
        prefixes: &[IpPrefix],
    ) -> Result<Vec<Present>, AddressError> {
        let (index, prefixes) = (link.index, prefixes.to_vec());
        self.remove_such(move |it| {
            let is_meant = it.is_ours() || prefixes.iter().any(|prefix| prefix.ip() == it.ip);
            let is_right = it.index == index && prefixes.iter().any(|prefix| is_as(it, *prefix));
            is_meant && !is_right
        })
        .await
    }

    async fn remove_such(
        &self,
        is_such: impl Fn(&Present) -> bool + Send + 'static,
    ) -> Result<Vec<Present>, AddressError> {
        let removed = self.call("remove addresses", "CAP_NET_ADMIN", move || {
            remove(&mut Netlink::open()?, &is_such)
        });
        removed.await
    }

    /// Runs `operation` on a thread that may block.
    async fn call<T: Send + 'static>(
        &self,
        doing: &str,
        capability: &'static str,
        operation: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> Result<T, AddressError> {
        let slow = |_elapsed| AddressError::Slow {
            doing: doing.to_owned(),
            limit: CALL_LIMIT,
        };
        let turn = tokio::time::timeout(CALL_LIMIT, self.call.clone().lock_owned()).await;
        let turn = turn.map_err(slow)?;
        let called = tokio::task::spawn_blocking(move || {
            let done = operation();
            drop(turn);
            done
        });
        let called = tokio::time::timeout(CALL_LIMIT, called)
            .await
            .map_err(slow)?;
        let done = called.map_err(io::Error::other).and_then(|done| done);
        done.map_err(|source| error(doing, source, capability))
    }
}

/// Removes addresses. Where one of them was the first of its network on an interface, the kernel takes
/// the others of that network away with it, the machine's own among them: those are put back.
fn remove(netlink: &mut Netlink, is_such: &dyn Fn(&Present) -> bool) -> io::Result<Vec<Present>> {
    let before = netlink.addresses()?;
    let (removed, kept): (Vec<_>, Vec<_>) = before.into_iter().partition(is_such);
    for address in &removed {
        netlink.remove(address)?;
    }
    let may_be_lost: Vec<_> = kept.iter().filter(|it| it.is_secondary()).collect();
    if removed.is_empty() || may_be_lost.is_empty() {
        return Ok(removed);
    }
    let after = netlink.addresses()?;
    for address in may_be_lost {
        if !after.iter().any(|it| it.is_at(address)) {
            netlink.put_back(address)?;
        }
    }
    Ok(removed)
}

/// Tells the error of an operation for what it is.
pub(super) fn error(doing: &str, source: io::Error, capability: &'static str) -> AddressError {
    let doing = doing.to_owned();
    // Linux says EPERM to who lacks a capability, and EACCES for other reasons.
    if source.raw_os_error() == Some(rustix::io::Errno::PERM.raw_os_error()) {
        return AddressError::Forbidden { doing, capability };
    }
    AddressError::Kernel { doing, source }
}

/// Tells that an interface does without IPv6, which the kernel says as EACCES.
fn of_ipv6(error: AddressError, prefix: IpPrefix, link: &Link) -> AddressError {
    let is_so = matches!(&error, AddressError::Kernel { source, .. }
        if prefix.ip().is_ipv6() && source.kind() == io::ErrorKind::PermissionDenied);
    if !is_so {
        return error;
    }
    AddressError::NoIpv6 {
        prefix,
        interface: link.name.clone(),
    }
}
