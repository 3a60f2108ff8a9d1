//! The body of `/monitor/replication`: the page that operators of Alation know, and beside it what
//! that page cannot show.
//!
//! Every figure is a string, and the string `unknown` where there is none: that is how the scripts
//! that read this page tell "not replicating" from "not behind".

use std::collections::BTreeMap;

use serde::Serialize;
use understudy_replication::status::{ReplicationMode, Status};
use understudy_replication::store::StoreKind;
use understudy_replication::wall_time::WallTime;

use crate::peer::{Lag, lags, peers};

const UNKNOWN: &str = "unknown";

/// The whole body.
#[derive(Debug, Serialize)]
pub(crate) struct Page {
    /// On a primary: by address, how each standby's copy is.
    #[serde(flatten)]
    standbys: BTreeMap<String, Copy>,
    /// On a standby: how its own copy is.
    #[serde(flatten)]
    own: Option<OwnCopy>,
    replication_mode: ReplicationMode,
}

/// A standby's copy of its own.
#[derive(Debug, Serialize)]
struct OwnCopy {
    primary: String,
    primary_seen: String,
    #[serde(flatten)]
    copy: Copy,
}

/// How a copy of all stores is.
#[derive(Debug, Serialize)]
struct Copy {
    /// `<kind>_lag_<unit>` and `<kind>_lag_seconds` for each kind of store.
    #[serde(flatten)]
    kinds: BTreeMap<String, String>,
    cut: String,
    stores: BTreeMap<String, Store>,
}

/// How a copy of one store is.
#[derive(Debug, Serialize)]
struct Store {
    #[serde(flatten)]
    figures: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    unknown: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    unknown_since: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stalled: Option<String>,
    /// Only there when it is so.
    #[serde(skip_serializing_if = "Option::is_none")]
    must_reseed: Option<&'static str>,
}

impl Page {
    /// Renders `status`.
    pub(crate) fn new(status: &Status) -> Self {
        let (standbys, own) = match status.replication_mode {
            ReplicationMode::Master => (standbys(status), None),
            ReplicationMode::Slave => (BTreeMap::new(), Some(OwnCopy::new(status))),
            ReplicationMode::Standalone => (BTreeMap::new(), None),
        };
        Self {
            standbys,
            own,
            replication_mode: status.replication_mode,
        }
    }
}

/// Returns each standby's copy by its address, and by address and name where nodes share a machine.
fn standbys(status: &Status) -> BTreeMap<String, Copy> {
    let mut standbys = BTreeMap::new();
    for peer in peers(status) {
        let ip = peer.ip.unwrap_or(peer.name);
        let key = if standbys.contains_key(ip) {
            format!("{ip} ({})", peer.name)
        } else {
            ip.to_owned()
        };
        standbys.insert(key, Copy::new(&peer.lags, peer.cut));
    }
    standbys
}

impl OwnCopy {
    fn new(status: &Status) -> Self {
        let upstream = status.upstream.as_ref();
        let primary = upstream
            .map(|upstream| &upstream.primary)
            .or(status.primary.as_ref());
        // A node on its way from or to the role of a standby follows nobody: then nothing is known
        // of any of its stores.
        let told = upstream.map_or(&[][..], |upstream| &upstream.stores);
        Self {
            primary: or_unknown(primary),
            primary_seen: or_unknown(upstream.and_then(|upstream| upstream.seen)),
            copy: Copy::new(
                &lags(&status.stores, told),
                upstream.and_then(|upstream| upstream.cut),
            ),
        }
    }
}

impl Copy {
    fn new(lags: &[Lag<'_>], cut: Option<WallTime>) -> Self {
        let mut by_kind = BTreeMap::<StoreKind, Vec<&Lag<'_>>>::new();
        for lag in lags {
            by_kind.entry(lag.id.kind).or_default().push(lag);
        }
        let mut kinds = BTreeMap::new();
        for (kind, lags) in by_kind {
            // One store whose lag is unknown makes the kind unknown: a sum without it would lie.
            let lag = lags
                .iter()
                .try_fold(0_u64, |sum, lag| sum.checked_add(lag.applied()?));
            let seconds = lags
                .iter()
                .try_fold(0.0, |max, lag| Some(lag.seconds()?.max(max)));
            kinds.insert(format!("{kind}_lag_{}", kind.unit_key()), or_unknown(lag));
            if kind.tells_bytes() {
                let bytes = lags
                    .iter()
                    .try_fold(0_u64, |sum, lag| sum.checked_add(lag.bytes()?));
                kinds.insert(format!("{kind}_lag_bytes"), or_unknown(bytes));
            }
            kinds.insert(
                format!("{kind}_lag_seconds"),
                or_unknown(seconds.map(milliseconds)),
            );
        }
        Self {
            kinds,
            cut: or_unknown(cut),
            stores: lags
                .iter()
                .map(|lag| (lag.id.name.to_string(), Store::new(lag)))
                .collect(),
        }
    }
}

impl Store {
    fn new(lag: &Lag<'_>) -> Self {
        let unit = lag.id.kind.unit_key();
        let unknown = lag.unknown();
        let mut figures = BTreeMap::from([
            (format!("lag_{unit}"), or_unknown(lag.applied())),
            (format!("flushed_lag_{unit}"), or_unknown(lag.flushed())),
            (
                "lag_seconds".to_owned(),
                or_unknown(lag.seconds().map(milliseconds)),
            ),
        ]);
        if lag.id.kind.tells_bytes() {
            figures.insert("lag_bytes".to_owned(), or_unknown(lag.bytes()));
        }
        Self {
            figures,
            unknown: unknown.map(|(reason, _)| reason.to_owned()),
            unknown_since: unknown
                .and_then(|(_, since)| since)
                .map(|since| since.to_string()),
            stalled: lag.stalled().map(str::to_owned),
            must_reseed: lag.must_reseed().then_some("true"),
        }
    }
}

fn milliseconds(seconds: f64) -> String {
    format!("{seconds:.3}")
}

fn or_unknown(figure: Option<impl ToString>) -> String {
    figure.map_or_else(|| UNKNOWN.to_owned(), |figure| figure.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::example;

    #[test]
    fn a_pair_with_postgres_alone_looks_as_operators_know_it() {
        let mut status = example::primary();
        status.stores.truncate(1);
        status.standbys[0].stores.truncate(1);
        let page = serde_json::to_value(Page::new(&status)).unwrap();
        assert_eq!(page["10.0.0.2"]["postgres_lag_bytes"], "12595");
        assert_eq!(page["replication_mode"], "master");
        assert_eq!(page.as_object().unwrap().len(), 2);
        let body = serde_json::to_string(&Page::new(&status)).unwrap();
        assert!(
            body.starts_with(r#"{"10.0.0.2":{"postgres_lag_bytes":"12595","#),
            "{body}"
        );
        assert!(body.ends_with(r#""replication_mode":"master"}"#), "{body}");
    }

    #[test]
    fn two_standbys_on_one_machine_have_two_keys() {
        let mut status = example::primary();
        let mut second = status.standbys[0].clone();
        second.node = "c".parse().unwrap();
        status.standbys.push(second);
        let page = Page::new(&status);
        assert_eq!(
            page.standbys.keys().collect::<Vec<_>>(),
            ["10.0.0.2", "10.0.0.2 (c)"]
        );
    }

    #[test]
    fn the_key_value_store_tells_operations_bytes_and_seconds() {
        let mut status = example::primary();
        let page = serde_json::to_value(Page::new(&status)).unwrap();
        let copy = &page["10.0.0.2"];
        let told = ["kv_lag_ops", "kv_lag_bytes", "kv_lag_seconds"].map(|key| copy[key].clone());
        assert_eq!(told, ["3", "384", "0.412"]);
        status.standbys[0].stores[3].lag_bytes = None;
        let page = serde_json::to_value(Page::new(&status)).unwrap();
        assert_eq!(page["10.0.0.2"]["kv_lag_bytes"], "unknown");
        assert_eq!(page["10.0.0.2"]["kv_lag_ops"], "3");
    }

    #[test]
    fn one_store_of_unknown_lag_makes_its_kind_unknown_and_no_other() {
        let mut status = example::primary();
        let lag = &mut status.standbys[0].stores[1];
        (lag.lag, lag.lag_flushed, lag.lag_seconds) = (None, None, None);
        lag.unknown = Some(example::unknown("no report from b", example::at(-4_000)));
        let page = serde_json::to_value(Page::new(&status)).unwrap();
        let copy = &page["10.0.0.2"];
        assert_eq!(copy["files_lag_bytes"], "unknown");
        assert_eq!(copy["files_lag_seconds"], "unknown");
        assert_eq!(copy["postgres_lag_bytes"], "12595");
    }
}
