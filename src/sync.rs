//! `understudy sync`: looks at everything, and waits until every standby has it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper::Method;
use serde::{Deserialize, Serialize};
use understudy_config::{NodeName, StoreName};
use understudy_replication::event::Severity;
use understudy_replication::lag::Now;
use understudy_replication::link::Level;
use understudy_replication::position::Position;
use understudy_replication::store::{Progress, Unit};

use crate::Place;
use crate::admin_api::acting_primary;
use crate::failure::Failure;
use crate::node::{Node, Stage};
use crate::output::{print, print_json};
use crate::selection::Selection;
use crate::serve::load_local;
use crate::wait::{self, Missing, Waited};

/// Look at everything in a store now, and wait until the standbys have it
#[derive(clap::Args, Debug)]
pub(crate) struct Sync {
    /// The store
    store: StoreName,
    /// Let the deletion through that the delete guard holds back
    #[arg(long)]
    allow_deletes: bool,
    /// Give up after this time: a number of seconds, or a duration such as 90s or 2h
    #[arg(long, default_value = "1h", value_name = "TIME", value_parser = crate::wait_verb::patience)]
    timeout: Duration,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What the daemon is asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Order {
    store: StoreName,
    allow_deletes: bool,
    patience: Duration,
}

/// How it ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Synced {
    store: StoreName,
    /// A position that covers everything that was there.
    position: Position,
    /// The standbys that were connected, and were waited for.
    standbys: Vec<NodeName>,
    /// The standbys that were not connected.
    absent: Vec<NodeName>,
    seconds: f64,
    /// What was not applied in time.
    missing: Vec<Missing>,
}

impl Sync {
    pub(crate) async fn run(self, place: &Place) -> Result<(), Failure> {
        let socket = load_local(place)?.socket();
        let order = Order {
            store: self.store,
            allow_deletes: self.allow_deletes,
            patience: self.timeout,
        };
        let synced: Synced = crate::admin::ask(&socket, Method::POST, "/sync", &order).await?;
        if self.json {
            print_json(&synced)?;
        } else {
            print(&synced.text());
        }
        let waited = Waited {
            level: Level::Applied,
            positions: BTreeMap::new(),
            standbys: synced.standbys,
            seconds: synced.seconds,
            missing: synced.missing,
        };
        waited.in_time(self.timeout).map(drop)
    }
}

impl Synced {
    fn text(&self) -> String {
        let names = |nodes: &[NodeName]| {
            let names: Vec<&str> = nodes.iter().map(NodeName::as_str).collect();
            names.join(", ")
        };
        let mut text = format!(
            "store {}: everything was looked at, up to position {}, in {:.1} s\n",
            self.store, self.position, self.seconds
        );
        let is_late = |node: &&NodeName| self.missing.iter().any(|it| it.standby == **node);
        let there: Vec<NodeName> = self
            .standbys
            .iter()
            .filter(|node| !is_late(node))
            .cloned()
            .collect();
        if !there.is_empty() {
            text += &format!("  applied on {}\n", names(&there));
        }
        if !self.absent.is_empty() {
            text += &format!("  not connected: {}\n", names(&self.absent));
        }
        if self.standbys.is_empty() && self.absent.is_empty() {
            text += "  no standby follows this node\n";
        }
        text
    }
}

/// Carries the order out.
pub(crate) async fn sync(
    node: &Arc<Node>,
    order: &Order,
    progress: &dyn Progress,
) -> Result<Synced, Failure> {
    let store = &order.store;
    Selection::one(store.clone()).of(&node.config())?;
    acting_primary(node).map_err(|reason| {
        Failure::refused(format!(
            "store {store} is synced from the primary only: {reason}"
        ))
    })?;
    let not_open = || Failure::failed(format!("store {store} is not open yet"));
    let Stage::Primary(run) = node.stage() else {
        return Err(not_open());
    };
    let shipper = run.shippers.iter().find(|it| it.id().name == *store);
    let shipper = shipper.ok_or_else(not_open)?;
    let begun = Instant::now();
    if order.allow_deletes {
        let allowed = shipper.allow_deletes().await;
        allowed.map_err(|error| Failure::of_store(&error))?;
        node.events.record(
            Severity::Warning,
            "deletes_allowed",
            format!("an operator has let through what store {store} held back of a deletion"),
        );
    }
    progress.start(
        &format!("looking at everything in store {store}"),
        None,
        Unit::Items,
    );
    let late = |_| {
        Failure::failed(format!(
            "not everything in store {store} was looked at within {} s",
            order.patience.as_secs_f64()
        ))
        .hint("it goes on by itself; see `understudy status`")
    };
    let position = tokio::time::timeout(order.patience, shipper.sync_now())
        .await
        .map_err(late)?
        .map_err(|error| Failure::of_store(&error))?;
    progress.end("everything was looked at");
    let (standbys, absent): (Vec<_>, Vec<_>) = wait::standbys(node)
        .into_iter()
        .partition(|name| run.standby(name, String::new(), Now::read()).is_connected);
    let until = BTreeMap::from([(store.clone(), position)]);
    let left = order.patience.saturating_sub(begun.elapsed());
    let missing = wait::until_reached(node, &run, &standbys, &until, Level::Applied, left).await;
    Ok(Synced {
        store: store.clone(),
        position,
        standbys,
        absent,
        seconds: begun.elapsed().as_secs_f64(),
        missing,
    })
}
