//! Tells a node's status, from what its parts know.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use understudy_config::StoreName;
use understudy_monitor::KvSource;
use understudy_replication::check::Trouble;
use understudy_replication::kv::keyspace::Keyspace;
use understudy_replication::lag::Now;
use understudy_replication::pause::Pause;
use understudy_replication::position::{Lsn, Position};
use understudy_replication::role::Role;
use understudy_replication::status::{
    CopyStatus, PauseStatus, ProofStatus, ReplicationMode, STATUS_VERSION, STORE_DETAIL_VERSION,
    Status, StatusSource, StoreDetail, StoreLag, StoreStatus,
};
use understudy_replication::store::{Received, Receiver, Shipper, StoreId, StoreKind, StoreReport};

use understudy_replication::wall_time::WallTime;

use crate::failure::Failure;
use crate::node::{Node, Stage};
use crate::primary_run::PrimaryRun;
use crate::selection::Selection;

impl KvSource for Node {
    fn kv_view(&self) -> Option<bool> {
        self.config().kv.as_ref().map(|kv| kv.view)
    }

    fn keyspace(&self) -> Option<Arc<dyn Keyspace>> {
        Self::keyspace(self)
    }
}

/// How many events a status holds.
const EVENTS_SHOWN: usize = 50;

impl StatusSource for Node {
    fn status(&self) -> Status {
        let now = Now::read();
        let record = self.role.borrow().clone();
        let config = self.config();
        let promotion = self
            .promotion
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        let (mut standbys, mut upstream, mut stores) = (Vec::new(), None, Vec::new());
        match self.stage() {
            Stage::Primary(run) => {
                if let Role::Primary {
                    standbys: names, ..
                } = &record.role
                {
                    standbys = names
                        .iter()
                        .map(|name| {
                            let ip = config.node(name).map_or_else(
                                || name.to_string(),
                                |node| node.address.ip().to_string(),
                            );
                            run.standby(name, ip, now)
                        })
                        .collect();
                }
                stores.extend(run.shippers.iter().map(|it| shipped(&run, it.as_ref())));
            }
            Stage::Standby(run) => {
                if matches!(record.role, Role::Standby { .. }) {
                    upstream = Some(run.upstream(now));
                }
                stores.extend(run.receivers.iter().map(|it| received(it.as_ref())));
            }
            Stage::Idle => {}
        }
        let replication_mode = match &record.role {
            Role::Primary { standbys, .. } if standbys.is_empty() => ReplicationMode::Standalone,
            Role::Primary { .. } => ReplicationMode::Master,
            Role::Returning { .. }
            | Role::Standby { .. }
            | Role::Promoting { .. }
            | Role::Fenced { .. } => ReplicationMode::Slave,
        };
        let mut problems = role_problems(
            &record.role,
            promotion.as_ref().is_some_and(|p| p.is_running),
        );
        let pause = self.pauses.active();
        problems.extend(pause.as_ref().map(Pause::sentence));
        problems.extend(self.config_problem());
        problems.extend(self.stores_problem());
        problems.extend(self.links.problems());
        if let Role::Primary { standbys, .. } = &record.role {
            let strays = config
                .peers(self.me())
                .filter(|peer| !standbys.contains(&peer.name));
            problems.extend(strays.map(|peer| {
                format!(
                    "node {0} is in the configuration and does not follow this node; if it was primary \
                     before, make sure that it serves nothing, then see `The old primary becomes the \
                     standby` in the operations guide; or take it out of understudy.toml",
                    peer.name
                )
            }));
        }
        for store in &stores {
            let name = &store.id.name;
            problems.extend(
                store
                    .problems
                    .iter()
                    .map(|problem| format!("{name}: {problem}")),
            );
        }
        let is_standby = matches!(record.role, Role::Standby { .. });
        let proof = node_proof(self, is_standby, now);
        if let (true, Some(proof)) = (is_standby, &proof) {
            let max_age = config.drill.max_age;
            problems.extend(proof_problem(proof, record.since, max_age, now.wall));
        }
        Status {
            version: STATUS_VERSION,
            software: env!("CARGO_PKG_VERSION").to_owned(),
            cluster: config.cluster.name.clone(),
            node: self.me().clone(),
            role: record.role.name(),
            role_since: record.since,
            replication_mode,
            epoch: record.role.epoch().clone(),
            time: now.wall,
            started: self.started,
            primary: record.role.primary(self.me()),
            standbys,
            upstream,
            stores,
            services: self.services.status(),
            jobs: self.jobs.status(),
            indexes: self.indexes.status(),
            promotion,
            address: self.address.as_ref().map(|address| address.status()),
            checks: self.checks.status(),
            links: self.links.status(),
            pause: pause.map(PauseStatus::from),
            clone_of: self.clone_of.clone(),
            preflight: self
                .preflight
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .clone(),
            proof,
            problems,
            events: self.events.newest(EVENTS_SHOWN),
        }
    }
}

/// Returns what rehearsals have proved of this node; `None` on a node that is no standby and never rehearsed.
fn node_proof(node: &Node, is_standby: bool, now: Now) -> Option<ProofStatus> {
    let proof = node.drills.proof(node.config().drill.max_age, now.wall);
    (is_standby || proof.tried.is_some()).then_some(proof)
}

/// Returns what is to be done about a proof that is none any more. A standby has as long for its first one as
/// a proof may be old.
fn proof_problem(
    proof: &ProofStatus,
    standby_since: WallTime,
    max_age: Duration,
    now: WallTime,
) -> Option<String> {
    if let Some(failure) = &proof.failure {
        return Some(format!(
            "the newest rehearsal of a promotion failed: {failure}; see `understudy drill show last`, mend \
             the cause, and run `understudy drill`"
        ));
    }
    if !proof.is_old {
        return None;
    }
    let days = |from: WallTime| now.0.saturating_sub(from.0) / 86_400_000;
    let limit = u64::try_from(max_age.as_millis()).unwrap_or(u64::MAX);
    match proof.proven {
        Some(proven) => Some(format!(
            "that this node could take over was last proven {} days ago, which [drill] max_age calls too long; \
             run `understudy drill`",
            days(proven)
        )),
        None if now.0.saturating_sub(standby_since.0) > limit => Some(format!(
            "that this node could take over has never been proven in the {} days that it is a standby; run \
             `understudy drill`",
            days(standby_since)
        )),
        None => None,
    }
}

/// Tells everything of one store.
pub(crate) fn detail(node: &Node, store: &StoreName) -> Result<StoreDetail, Failure> {
    Selection::one(store.clone()).of(&node.config())?;
    let now = Now::read();
    let not_open = || {
        Failure::failed(format!(
            "node {} is {}, and its stores are not open",
            node.me(),
            node.role().name().as_str()
        ))
        .hint("see `understudy status`")
    };
    let of_store = |lags: Vec<StoreLag>| lags.into_iter().find(|lag| lag.id.name == *store);
    let (status, copies, troubles) = match node.stage() {
        Stage::Primary(run) => {
            let shipper = run.shippers.iter().find(|it| it.id().name == *store);
            let shipper = shipper.ok_or_else(not_open)?;
            let copies = crate::wait::standbys(node).into_iter().filter_map(|name| {
                let lag = of_store(run.standby(&name, String::new(), now).stores)?;
                Some(CopyStatus { node: name, lag })
            });
            let status = shipped(&run, shipper.as_ref());
            (status, copies.collect(), shipper.troubles())
        }
        Stage::Standby(run) => {
            let receiver = run.receivers.iter().find(|it| it.id().name == *store);
            let receiver = receiver.ok_or_else(not_open)?;
            let lag = of_store(run.upstream(now).stores);
            let copies = lag.map(|lag| CopyStatus {
                node: node.me().clone(),
                lag,
            });
            let copies = copies.into_iter().collect();
            (received(receiver.as_ref()), copies, receiver.troubles())
        }
        Stage::Idle => return Err(not_open()),
    };
    Ok(StoreDetail {
        version: STORE_DETAIL_VERSION,
        node: node.me().clone(),
        role: node.role().name(),
        time: now.wall,
        store: status,
        copies,
        troubles,
    })
}

fn shipped(run: &PrimaryRun, shipper: &dyn Shipper) -> StoreStatus {
    let id = shipper.id();
    let position = run.position(&id.name);
    store(id, position, shipper.report(), &shipper.troubles())
}

fn received(receiver: &dyn Receiver) -> StoreStatus {
    let Received {
        applied, report, ..
    } = receiver.received();
    store(receiver.id(), applied, report, &receiver.troubles())
}

fn store(
    id: &StoreId,
    position: Option<Position>,
    report: StoreReport,
    troubles: &[Trouble],
) -> StoreStatus {
    let position_text = position.map(|position| match id.kind {
        StoreKind::Postgres => Lsn(position.0).to_string(),
        StoreKind::Files | StoreKind::Kv | StoreKind::Settings => position.to_string(),
    });
    StoreStatus {
        id: id.clone(),
        position,
        position_text,
        is_silent: report.is_silent,
        problems: report
            .problems
            .into_iter()
            .chain(trouble_problem(id, troubles))
            .collect(),
        gauges: report.gauges,
        troubles: u64::try_from(troubles.len()).unwrap_or(u64::MAX),
        durability: report.durability,
    }
}

/// Returns what is told of the entries that are not up to date, where there are any.
fn trouble_problem(id: &StoreId, troubles: &[Trouble]) -> Option<String> {
    let first = troubles.first()?;
    Some(format!(
        "{} entries are not up to date here, the first is {}: {}; `understudy status --store {}` lists \
         them",
        troubles.len(),
        first.path,
        first.reason,
        id.name
    ))
}

/// Returns what a role itself asks of the operators.
fn role_problems(role: &Role, is_promotion_running: bool) -> Vec<String> {
    match role {
        Role::Returning { .. } => vec![
            "this node was primary before a restart, and serves nothing until a peer has answered; \
             start a peer, or, if none has been promoted, run `understudy promote --force` here"
                .to_owned(),
        ],
        Role::Promoting { epoch } if !is_promotion_running => vec![format!(
            "the promotion to epoch {epoch} was cut short; run `understudy promote` again"
        )],
        Role::Fenced { follows: true, .. } => vec![
            "this node handed over in a switchover; it follows as soon as the new primary serves"
                .to_owned(),
        ],
        Role::Fenced {
            epoch,
            follows: false,
        } => vec![format!(
            "this node has been superseded by node {} in epoch {epoch}, and serves nothing; make it a \
             standby of that node with `understudy rejoin` (`understudy rejoin --dry-run` tells before what only \
             this node has, how much would travel, and how long it takes)",
            epoch.node
        )],
        Role::Primary { .. } | Role::Standby { .. } | Role::Promoting { .. } => Vec::new(),
    }
}
