//! What a rejoin will do, told before it does it.
//!
//! The figures are estimates: of each store what it would keep aside and what would travel, by its own
//! reckoning, and the time by how fast a short answer of the primary comes.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::response::Response;
use indicatif::HumanBytes;
use serde::{Deserialize, Serialize};
use understudy_config::NodeName;
use understudy_replication::error_chain;
use understudy_replication::rejoin::Foreseen;
use understudy_replication::store::{Progress, Receiver, StoreId, Unit};
use understudy_replication::transport::{PeerClient, PeerError, frames};
use understudy_replication::wall_time::WallTime;

use crate::failure::Failure;
use crate::node::{Node, Stage};
use crate::rejoin_report::last_rate;
use crate::returning::{find_primary, known_client, may_rejoin};
use crate::standby_run::StandbyRun;

/// The version of the reports.
const VERSION: u32 = 1;

/// A store may take so long to tell what it would do.
const STORE_PATIENCE: Duration = Duration::from_secs(300);

/// Stores that were opened for a look are closed within this time, which is looked at so often.
const CLOSE_PATIENCE: Duration = Duration::from_secs(10);
const CLOSE_INTERVAL: Duration = Duration::from_millis(20);

/// A probe is so many frames of so many bytes,
const PROBE_FRAMES: usize = 64;
const PROBE_FRAME_BYTES: usize = 64 << 10;
/// and is read for so long at most.
const PROBE_LIMIT: Duration = Duration::from_millis(1500);

/// What this node's disk is taken to read and copy, in bytes per second.
const DISK_RATE: u64 = 200 << 20;

/// What the network is taken to carry where nothing is known of it, in bytes per second.
const RATE_ASSUMED: u64 = 50 << 20;

/// What a rejoin will do.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Prediction {
    version: u32,
    /// This node.
    pub(crate) node: NodeName,
    /// Whom it would follow.
    pub(crate) primary: NodeName,
    /// When it was told, by this node's clock.
    pub(crate) made: WallTime,
    /// The stores, in order.
    pub(crate) stores: Vec<StoreForeseen>,
    /// How fast data are taken to come, in bytes per second.
    pub(crate) bytes_per_second: u64,
    /// Where that figure is from.
    pub(crate) rate: RateSource,
    /// How long all of it takes, in minutes, as far as the stores can tell.
    pub(crate) minutes: f64,
}

/// What a rejoin will do to one store.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct StoreForeseen {
    /// Which store.
    #[serde(flatten)]
    pub(crate) id: StoreId,
    /// What it tells; `None` if it cannot.
    pub(crate) foreseen: Option<Foreseen>,
    /// Why it cannot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) unknown: Option<String>,
    /// How long it takes, in minutes.
    pub(crate) minutes: Option<f64>,
}

/// Where a figure of how fast data come is from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum RateSource {
    /// A short transfer from the primary, just now.
    Probed,
    /// The newest rejoin of this node in which enough travelled.
    LastRejoin,
    /// Nothing: it is assumed.
    Assumed,
}

impl RateSource {
    fn as_str(self) -> &'static str {
        match self {
            Self::Probed => "measured just now",
            Self::LastRejoin => "as in the last rejoin",
            Self::Assumed => "assumed",
        }
    }
}

/// Sends a few megabytes as fast as they are taken.
pub(crate) async fn send_probe() -> Response {
    let (sender, response) = frames();
    tokio::spawn(async move {
        let frame = vec![0; PROBE_FRAME_BYTES];
        for _ in 0..PROBE_FRAMES {
            if sender.send(&frame).await.is_err() {
                return;
            }
        }
    });
    response
}

/// Measures how fast the primary's answers come, in bytes per second.
async fn probe(primary: &PeerClient) -> Result<Option<u64>, PeerError> {
    let mut frames = primary.get("/peer/probe").await?.frames();
    let begun = Instant::now();
    let mut bytes = 0_usize;
    while begun.elapsed() < PROBE_LIMIT {
        let left = PROBE_LIMIT.saturating_sub(begun.elapsed());
        match tokio::time::timeout(left, frames.next()).await {
            Ok(frame) => match frame? {
                Some(frame) => bytes += frame.len(),
                None => break,
            },
            Err(_) => break,
        }
    }
    let micros = begun.elapsed().as_micros().max(1);
    let bytes = u128::try_from(bytes).unwrap_or_default();
    let rate = u64::try_from(bytes * 1_000_000 / micros).unwrap_or(u64::MAX);
    Ok((rate > 0).then_some(rate))
}

/// Tells what a rejoin of this node would do now, and changes nothing of its role and its stores. Whoever
/// changes either has it broken off.
pub(crate) async fn foresee(
    node: &Arc<Node>,
    progress: &dyn Progress,
) -> Result<Prediction, Failure> {
    may_rejoin(node)?;
    let mut look = node.promoting.look().await?;
    let mut role = node.role.subscribe();
    let primary = tokio::select! {
        biased;
        () = look.is_wanted() => return Err(gave_way()),
        found = find_primary(node) => found?,
    };
    // What is begun here is ended: stores that are half open could not be closed.
    let (run, is_ours) = open(node, &primary).await?;
    let told = tokio::select! {
        biased;
        () = look.is_wanted() => Err(gave_way()),
        changed = role.changed() => {
            drop(changed);
            Err(Failure::refused("the role of this node has changed while it was looked at")
                .hint("see `understudy status`"))
        }
        told = predict(node, &primary, &run.receivers, progress) => Ok(told),
    };
    match is_ours {
        true => close(run).await,
        false => drop(run),
    }
    drop(look);
    told
}

fn gave_way() -> Failure {
    Failure::refused("the look gave way to a promotion or a rejoin of this node")
        .hint("run it again when that is over: see `understudy status`")
}

/// Closes stores that were opened for a look: whoever had it broken off is about to open them. A look at one of
/// them may be on a thread that cannot be broken off.
async fn close(run: Arc<StandbyRun>) {
    let left: Vec<_> = run.receivers.iter().map(Arc::downgrade).collect();
    drop(run);
    let until = Instant::now() + CLOSE_PATIENCE;
    while left.iter().any(|it| it.strong_count() > 0) {
        if Instant::now() > until {
            tracing::warn!("a store that was looked at is not closed yet");
            return;
        }
        tokio::time::sleep(CLOSE_INTERVAL).await;
    }
}

/// Returns the stores of this node, and whether they were opened for it.
async fn open(node: &Arc<Node>, primary: &PeerClient) -> Result<(Arc<StandbyRun>, bool), Failure> {
    match node.stage() {
        Stage::Standby(run) => Ok((run, false)),
        Stage::Primary(_) | Stage::Idle => {
            if node.is_fence_owed() || node.is_serving() {
                return Err(Failure::refused(format!(
                    "something of node {} still serves, though it has been superseded",
                    node.me()
                ))
                .hint("see `understudy events`; it is stopped again every few seconds"));
            }
            // Another node is primary: nobody drains these any more, and a store is open once.
            if let Stage::Primary(run) = node.set_stage(Stage::Idle) {
                run.stop().await;
                crate::peer_api::refresh(node);
            }
            let client = known_client(node, primary.node())?;
            let run = StandbyRun::open(node, client)
                .await
                .map_err(Failure::failed)?;
            Ok((run, true))
        }
    }
}

/// Asks every store what a rejoin would do to it. What cannot be told stops nothing.
pub(crate) async fn predict(
    node: &Node,
    primary: &PeerClient,
    receivers: &[Arc<dyn Receiver>],
    progress: &dyn Progress,
) -> Prediction {
    progress.start("look at what has to be done", None, Unit::Items);
    let probed = probe(primary).await.unwrap_or_else(|error| {
        tracing::debug!(%error, "the primary sends no probe");
        None
    });
    let (bytes_per_second, rate) = match (probed, last_rate(node)) {
        (Some(rate), _) => (rate, RateSource::Probed),
        (None, Some(rate)) => (rate, RateSource::LastRejoin),
        (None, None) => (RATE_ASSUMED, RateSource::Assumed),
    };
    let mut stores = Vec::new();
    for receiver in receivers {
        let told = tokio::time::timeout(STORE_PATIENCE, receiver.foresee(primary)).await;
        let (foreseen, unknown) = match told {
            Ok(Ok(Some(foreseen))) => (Some(foreseen), None),
            Ok(Ok(None)) => (None, Some("it cannot tell".to_owned())),
            Ok(Err(error)) => (None, Some(error_chain(error.as_ref()))),
            Err(_) => {
                let limit = STORE_PATIENCE.as_secs();
                (None, Some(format!("it did not tell within {limit} s")))
            }
        };
        let minutes = foreseen
            .as_ref()
            .and_then(|foreseen| minutes(foreseen, bytes_per_second));
        stores.push(StoreForeseen {
            id: receiver.id().clone(),
            foreseen,
            unknown,
            minutes,
        });
    }
    let prediction = Prediction {
        version: VERSION,
        node: node.me().clone(),
        primary: primary.node().clone(),
        made: WallTime::now(),
        minutes: stores.iter().filter_map(|store| store.minutes).sum(),
        stores,
        bytes_per_second,
        rate,
    };
    progress.end("looked");
    prediction
}

/// Returns how long it takes to bring what travels, to read what has to be read, and to copy what is kept.
fn minutes(foreseen: &Foreseen, bytes_per_second: u64) -> Option<f64> {
    let seconds = |bytes: u64, rate: u64| {
        let millis = u128::from(bytes) * 1000 / u128::from(rate.max(1));
        Duration::from_millis(u64::try_from(millis).unwrap_or(u64::MAX)).as_secs_f64()
    };
    let on_disk = foreseen.read_bytes + foreseen.salvaged_bytes.unwrap_or(0);
    let travels = seconds(foreseen.travelling_bytes?, bytes_per_second);
    Some((travels + seconds(on_disk, DISK_RATE)) / 60.0)
}

impl Prediction {
    /// Returns it for people.
    pub(crate) fn text(&self) -> String {
        let bytes = |bytes: Option<u64>| match bytes {
            Some(bytes) => HumanBytes(bytes).to_string(),
            None => "unknown".to_owned(),
        };
        let mut text = String::new();
        for store in &self.stores {
            let name = store.id.name.as_str();
            let told = match (&store.foreseen, &store.unknown) {
                (Some(foreseen), _) => format!(
                    "{}: {} travel, {} only this node has are kept aside first{}\n  {:20} by {}",
                    foreseen.way.as_str(),
                    bytes(foreseen.travelling_bytes),
                    bytes(foreseen.salvaged_bytes),
                    match store.minutes {
                        Some(minutes) => format!("; {}", duration(minutes)),
                        None => String::new(),
                    },
                    "",
                    foreseen.basis
                ),
                (None, Some(reason)) => format!("cannot be told: {reason}"),
                (None, None) => "cannot be told".to_owned(),
            };
            text += &format!("  {name:20} {told}\n");
        }
        text + &format!(
            "  {:20} {}, at {} per second ({})\n",
            "in all",
            duration(self.minutes),
            HumanBytes(self.bytes_per_second),
            self.rate.as_str()
        )
    }
}

fn duration(minutes: f64) -> String {
    if minutes < 1.0 {
        "less than a minute".to_owned()
    } else {
        format!("about {minutes:.0} minutes")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use understudy_replication::rejoin::Way;
    use understudy_replication::store::StoreKind;

    fn foreseen(travelling: Option<u64>, salvaged: u64, read: u64) -> Foreseen {
        Foreseen {
            way: Way::Rewound,
            salvaged_bytes: Some(salvaged),
            travelling_bytes: travelling,
            read_bytes: read,
            basis: "what the log has touched".to_owned(),
        }
    }

    #[test]
    fn the_time_is_that_of_the_network_and_of_the_disk() {
        let told = foreseen(Some(600 << 20), 200 << 20, 1000 << 20);
        // 60 s at 10 MiB per second, and 6 s on the disk.
        assert_eq!(minutes(&told, 10 << 20), Some(1.1));
        assert_eq!(minutes(&foreseen(None, 0, 0), 10 << 20), None);
        assert!(minutes(&told, 0).is_some());
    }

    #[test]
    fn what_is_foreseen_is_told_with_how_it_was_reckoned() {
        let id = |name: &str, kind| StoreId {
            name: name.parse().unwrap(),
            kind,
        };
        let stores = vec![
            StoreForeseen {
                id: id("postgres", StoreKind::Postgres),
                foreseen: Some(foreseen(Some(3 << 30), 16 << 20, 0)),
                unknown: None,
                minutes: Some(5.2),
            },
            StoreForeseen {
                id: id("docs", StoreKind::Files),
                foreseen: None,
                unknown: Some("cannot read /srv/docs: permission denied".to_owned()),
                minutes: None,
            },
        ];
        let prediction = Prediction {
            version: 1,
            node: "a".parse().unwrap(),
            primary: "b".parse().unwrap(),
            made: WallTime(0),
            stores,
            bytes_per_second: 10 << 20,
            rate: RateSource::Probed,
            minutes: 5.2,
        };
        assert_eq!(
            prediction.text(),
            "  postgres             rewound: 3.00 GiB travel, 16.00 MiB only this node has are kept aside first; \
             about 5 minutes\n                       by what the log has touched\n  docs                 cannot be \
             told: cannot read /srv/docs: permission denied\n  in all               about 5 minutes, at 10.00 MiB \
             per second (measured just now)\n"
        );
    }
}
