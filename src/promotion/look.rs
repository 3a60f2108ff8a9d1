//! Looks at everything that a promotion is planned from, and plans it.

use std::sync::Arc;
use std::time::Duration;

use understudy_config::{KvDurability, NodeName, StoreName};
use understudy_replication::error_chain;
use understudy_replication::kv::protocol::{Tail, survey};
use understudy_replication::role::Role;
use understudy_replication::status::StatusSource;
use understudy_replication::store::{StoreId, StoreKind};
use understudy_replication::transport::PeerClient;
use understudy_replication::wall_time::WallTime;
use understudy_standby::postgres::PostgresReceiver;
use understudy_standby::promote::{
    Basis, Condition, Elsewhere, Observation, Plan, StoreSeen, plan,
};

use super::Order;
use crate::node::{Node, Stage};

/// The stores of a standby that has just started have this long to tell where their copies are.
const STORES_PATIENCE: Duration = Duration::from_secs(15);

/// A primary that an operator says is off has this long to show that it is not.
const FORCED_PATIENCE: Duration = Duration::from_secs(1);

/// A peer that has not answered for so long, though it was asked, is silent,
const SILENCE: Duration = Duration::from_secs(2);
/// and is asked once more for so long at least.
const LAST_WORD: Duration = Duration::from_millis(500);

/// What a promotion is planned from.
pub(crate) struct Seen {
    pub(crate) of: Observation,
    /// What stands against it at other standbys.
    absent: Vec<Condition>,
}

/// Looks, from here and at the other nodes.
pub(crate) async fn look(node: &Arc<Node>, order: Order) -> Seen {
    let (of, absent) = tokio::join!(
        observe(node, order),
        crate::others::absent(node, order.force)
    );
    Seen { of, absent }
}

impl Seen {
    /// Plans what was asked for.
    pub(crate) fn plan(&self) -> Plan {
        let mut plan = plan(&self.of);
        for mut condition in self.absent.iter().cloned() {
            condition.can_be_forced &= !self.of.is_planned;
            if self.of.is_forced && condition.can_be_forced {
                plan.overridden.push(condition);
            } else {
                plan.unmet.push(condition);
            }
        }
        plan
    }
}

/// Waits until every store has told where its copy is: a daemon that has just started may have to
/// start Postgres first. A store that has none makes the plan say so.
pub(super) async fn wait_for_stores(node: &Arc<Node>) {
    if !matches!(node.role(), Role::Standby { .. }) {
        return;
    }
    let have_told = || match node.stage() {
        Stage::Standby(run) => {
            let mut receivers = run.receivers.iter();
            receivers.all(|receiver| receiver.received().applied.is_some())
        }
        // Just being opened.
        Stage::Idle | Stage::Primary(_) => false,
    };
    let told = async {
        while !have_told() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    // One that has run for long has told what it can.
    let since = WallTime::now().0.saturating_sub(node.started.0);
    let patience = STORES_PATIENCE.saturating_sub(Duration::from_millis(since));
    if tokio::time::timeout(patience, told).await.is_err() {
        tracing::warn!("not every store has told where its copy is");
    }
}

/// Returns what a plan is made from, as it is now.
async fn observe(node: &Arc<Node>, order: Order) -> Observation {
    let role = node.role();
    let config = node.config();
    let old = match &role {
        Role::Standby { primary, .. } => Some(primary.clone()),
        Role::Fenced { epoch, .. } if epoch.node != *node.me() => Some(epoch.node.clone()),
        Role::Primary { .. }
        | Role::Returning { .. }
        | Role::Promoting { .. }
        | Role::Fenced { .. } => None,
    };
    let status = node.status();
    let mut primary = None;
    if let Some(name) = &old {
        let answer = match node.peer(name) {
            Some(client) => greet(&client, patience(node, name, order)).await,
            None => Err("it is not in the configuration".to_owned()),
        };
        primary = Some((name.clone(), answer));
    }
    let lag_of = |name: &StoreName| {
        let upstream = status.upstream.as_ref()?;
        upstream
            .stores
            .iter()
            .find(|lag| lag.id.name == *name)
            .cloned()
    };
    Observation {
        me: node.me().clone(),
        role,
        primary,
        stores: crate::stores::ids(&config)
            .into_iter()
            .map(|id| StoreSeen {
                lag: lag_of(&id.name),
                id,
            })
            .collect(),
        cut: status.upstream.as_ref().and_then(|upstream| upstream.cut),
        basis: match node.stage() {
            Stage::Standby(run) => run.basis(),
            Stage::Idle | Stage::Primary(_) => Basis::Nothing,
        },
        indexes: config
            .indexes
            .iter()
            .map(|index| index.name.clone())
            .collect(),
        front: crate::front::observe(node),
        can_power_off: crate::local_check::can_fence(&config),
        failing: node.checks.blocking(),
        broken: broken_copies(node),
        elsewhere: kv_elsewhere(node, old.as_ref()).await,
        is_forced: order.force,
        is_planned: order.planned,
    }
}

/// Returns how long an answer of the old primary is awaited: of one that an operator says is off, or that has
/// not answered the heartbeat, not for long. Nor where it will be switched off: what counts then is that it was
/// silent, not that it is gone. `None` is as long as any request may take.
fn patience(node: &Node, name: &NodeName, order: Order) -> Option<Duration> {
    if order.force || node.links.is_down(name) {
        return Some(FORCED_PATIENCE);
    }
    let is_enough = crate::local_check::can_fence(&node.config()) && !order.planned;
    is_enough.then(|| {
        let silent_for = node.links.silent_for(name);
        SILENCE.saturating_sub(silent_for).max(LAST_WORD)
    })
}

/// Asks the old primary whether it is there.
async fn greet(client: &PeerClient, patience: Option<Duration>) -> Result<(), String> {
    let hello = async {
        let hello = crate::peer_api::hello(client).await;
        hello.map(drop).map_err(|error| error_chain(&error))
    };
    let Some(patience) = patience else {
        return hello.await;
    };
    let silent = || format!("it did not answer within {:.1} s", patience.as_secs_f64());
    let answer = tokio::time::timeout(patience, hello).await;
    answer.unwrap_or_else(|_| Err(silent()))
}

/// Asks the other standbys how much of the key-value store they have: with more than one, any of them may have
/// acknowledged what this node has not.
async fn kv_elsewhere(node: &Arc<Node>, old: Option<&NodeName>) -> Vec<Elsewhere> {
    let config = node.config();
    let Some(kv) = &config.kv else {
        return Vec::new();
    };
    let standbys = config.nodes.len().saturating_sub(1);
    if standbys < 2 {
        return Vec::new();
    }
    let asked = config
        .peers(node.me())
        .filter(|peer| Some(&peer.name) != old)
        .map(async |peer| {
            let end = async {
                let client = node.client(&peer.name)?;
                let answer = client.get("/peer/kv/end").await.ok()?;
                answer.json::<Option<Tail>>(64 << 10).await.ok()?
            };
            let end = tokio::time::timeout(FORCED_PATIENCE, end).await.ok()??;
            Some((peer.name.clone(), end))
        });
    let others: Vec<(NodeName, Tail)> = futures_util::future::join_all(asked)
        .await
        .into_iter()
        .flatten()
        .collect();
    let Some(own) = node.kv_end() else {
        return Vec::new();
    };
    // What is written without waiting for anybody is never sure.
    let acknowledge = match kv.durability {
        KvDurability::StandbyFirst { .. } => kv.acknowledge,
        KvDurability::Async => standbys,
    };
    let outlook = survey(&own, &others, standbys, acknowledge);
    vec![Elsewhere {
        store: crate::stores::name_of(StoreKind::Kv),
        ahead: outlook.adopt,
        missing: outlook.missing,
    }]
}

/// Returns the stores whose copy here is broken, and what to do about each.
fn broken_copies(node: &Arc<Node>) -> Vec<(StoreName, String)> {
    let kv = node.kv_is_half_a_copy().then(|| {
        let mend =
            "let it follow the primary until it is whole; or promote the node that has a whole one";
        (crate::stores::name_of(StoreKind::Kv), mend.to_owned())
    });
    let Some(cluster) = &node.cluster else {
        return kv.into_iter().collect();
    };
    let is_half = |id: &StoreId| {
        let (cluster, pki) = (cluster.clone(), node.local.pki_dir.clone());
        let (name, me, events) = (id.name.clone(), node.me().clone(), node.events.clone());
        id.kind == StoreKind::Postgres
            && PostgresReceiver::new(name, cluster, me, pki, events).is_half_a_copy()
    };
    let mend =
        "run `understudy rejoin`, which completes it; or promote the node that has a whole one";
    let ids = crate::stores::ids(&node.config()).into_iter();
    ids.filter(is_half)
        .map(|id| (id.name, mend.to_owned()))
        .chain(kv)
        .collect()
}
