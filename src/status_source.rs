//! Tells a node's status, from what its parts know.

use std::sync::PoisonError;

use understudy_replication::lag::Now;
use understudy_replication::position::{Lsn, Position};
use understudy_replication::role::Role;
use understudy_replication::status::{
    ReplicationMode, STATUS_VERSION, Status, StatusSource, StoreStatus,
};
use understudy_replication::store::{StoreId, StoreKind, StoreReport};

use crate::node::{Node, Stage};

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
                stores.extend(run.shippers.iter().map(|shipper| {
                    let id = shipper.id();
                    store(id, run.position(&id.name), shipper.report())
                }));
            }
            Stage::Standby(run) => {
                if matches!(record.role, Role::Standby { .. }) {
                    upstream = Some(run.upstream(now));
                }
                stores.extend(run.receivers.iter().map(|receiver| {
                    let received = receiver.received();
                    store(receiver.id(), received.applied, received.report)
                }));
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
        problems.extend(self.config_problem());
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
            indexes: self.indexes.status(),
            promotion,
            problems,
            events: self.events.newest(EVENTS_SHOWN),
        }
    }
}

fn store(id: &StoreId, position: Option<Position>, report: StoreReport) -> StoreStatus {
    let position_text = position.map(|position| match id.kind {
        StoreKind::Postgres => Lsn(position.0).to_string(),
        StoreKind::Files | StoreKind::Settings => position.to_string(),
    });
    StoreStatus {
        id: id.clone(),
        position,
        position_text,
        problems: report.problems,
        gauges: report.gauges,
    }
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
        Role::Fenced { epoch } => vec![format!(
            "this node has been superseded by node {} in epoch {epoch}, and serves nothing; to make it \
             a standby, see `The old primary becomes the standby` in the operations guide",
            epoch.node
        )],
        Role::Primary { .. } | Role::Standby { .. } | Role::Promoting { .. } => Vec::new(),
    }
}
