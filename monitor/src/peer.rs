//! The nodes at the other end, seen alike from both sides.

use understudy_replication::stall::StallReason;
use understudy_replication::status::{Status, StoreLag, StoreStatus};
use understudy_replication::store::StoreId;
use understudy_replication::wall_time::WallTime;

/// A standby that follows this node, or the primary that this node follows.
pub(crate) struct Peer<'a> {
    pub(crate) name: &'a str,
    /// Its address without the port, where the status tells it.
    pub(crate) ip: Option<&'a str>,
    pub(crate) seen: Option<WallTime>,
    pub(crate) is_connected: bool,
    pub(crate) cut: Option<WallTime>,
    pub(crate) lags: Vec<Lag<'a>>,
}

/// Returns the peers of the node: its standbys, or the primary that it follows.
pub(crate) fn peers(status: &Status) -> Vec<Peer<'_>> {
    let standbys = status.standbys.iter().map(|standby| Peer {
        name: standby.node.as_str(),
        ip: Some(&standby.ip),
        seen: standby.seen,
        is_connected: standby.is_connected,
        cut: standby.cut,
        lags: lags(&status.stores, &standby.stores),
    });
    let upstream = status.upstream.iter().map(|upstream| Peer {
        name: upstream.primary.as_str(),
        ip: ip_of(status, upstream.primary.as_str()),
        seen: upstream.seen,
        is_connected: upstream.is_connected,
        cut: upstream.cut,
        lags: lags(&status.stores, &upstream.stores),
    });
    standbys.chain(upstream).collect()
}

/// Returns where a peer is reached: on a way that is up, if one is.
fn ip_of<'a>(status: &'a Status, name: &str) -> Option<&'a str> {
    let ways = || status.links.iter().filter(|it| it.node.as_str() == name);
    let way = ways().find(|it| it.is_up).or_else(|| ways().next())?;
    let (ip, _port) = way.address.rsplit_once(':')?;
    Some(ip.trim_start_matches('[').trim_end_matches(']'))
}

/// How far a copy of a store is behind, or that nothing has been told of it.
pub(crate) struct Lag<'a> {
    pub(crate) id: &'a StoreId,
    told: Option<&'a StoreLag>,
}

/// Returns a lag for each of the node's `own` stores and for each store that a peer `told` of: a
/// store of which nothing has been told is unknown, and not absent.
pub(crate) fn lags<'a>(own: &'a [StoreStatus], told: &'a [StoreLag]) -> Vec<Lag<'a>> {
    let of_own = own.iter().map(|store| Lag {
        id: &store.id,
        told: told.iter().find(|lag| lag.id == store.id),
    });
    let of_others = told
        .iter()
        .filter(|lag| !own.iter().any(|store| store.id == lag.id))
        .map(|lag| Lag {
            id: &lag.id,
            told: Some(lag),
        });
    of_own.chain(of_others).collect()
}

impl<'a> Lag<'a> {
    /// Returns how much the copy has yet to apply, in the unit of the store's kind.
    pub(crate) fn applied(&self) -> Option<u64> {
        self.known()?.lag
    }

    /// Returns how many bytes the copy has yet to apply, where the store counts them.
    pub(crate) fn bytes(&self) -> Option<u64> {
        let known = self.known()?;
        if self.id.kind.tells_bytes() {
            known.lag_bytes
        } else if self.id.kind.unit() == "bytes" {
            known.lag
        } else {
            None
        }
    }

    /// Returns how much is not durable on the standby yet, in the unit of the store's kind.
    pub(crate) fn flushed(&self) -> Option<u64> {
        self.known()?.lag_flushed
    }

    /// Returns the age of the newest mark that the copy has applied.
    pub(crate) fn seconds(&self) -> Option<f64> {
        self.known()?.lag_seconds
    }

    /// Returns why the lag cannot be told, and since when.
    pub(crate) fn unknown(&self) -> Option<(&'a str, Option<WallTime>)> {
        let Some(told) = self.told else {
            return Some(("nothing has been reported of this store", None));
        };
        if let Some(unknown) = &told.unknown {
            return Some((&unknown.reason, Some(unknown.since)));
        }
        if told.lag.is_none() || told.lag_seconds.is_none() {
            return Some(("no figure has been reported", None));
        }
        None
    }

    pub(crate) fn must_reseed(&self) -> bool {
        self.told.is_some_and(|lag| lag.must_reseed)
    }

    /// Returns why the copy does not advance, although its lag can be told.
    pub(crate) fn stalled(&self) -> Option<&'a str> {
        self.told?.stalled.as_deref()
    }

    /// Returns the same in a word; an older peer tells none.
    pub(crate) fn stall_reason(&self) -> Option<StallReason> {
        let told = self.told.filter(|told| told.stalled.is_some())?;
        Some(told.stall_reason.unwrap_or(StallReason::Other))
    }

    /// A lag that is half told, or told beside a reason against it, is not shown at all.
    fn known(&self) -> Option<&'a StoreLag> {
        if self.unknown().is_some() {
            None
        } else {
            self.told
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::example;

    #[test]
    fn a_figure_beside_a_reason_against_it_is_not_shown() {
        let mut status = example::standby();
        let upstream = status.upstream.as_mut().unwrap();
        upstream.stores[0].unknown = Some(example::unknown("no mark from a", example::at(-4_000)));
        let peers = peers(&status);
        let lag = &peers[0].lags[0];
        assert_eq!(
            (lag.applied(), lag.flushed(), lag.seconds()),
            (None, None, None)
        );
        assert_eq!(
            lag.unknown(),
            Some(("no mark from a", Some(example::at(-4_000))))
        );
    }

    #[test]
    fn a_store_that_nobody_told_of_is_unknown_and_not_absent() {
        let mut status = example::primary();
        status.standbys[0].stores.clear();
        let unknown: Vec<_> = peers(&status)[0]
            .lags
            .iter()
            .map(|lag| lag.unknown().is_some())
            .collect();
        assert_eq!(unknown, [true; 5]);
    }
}
