//! `understudy switchover`: swaps the roles of the primary and a standby.
//!
//! The standby does the work, by the same steps as a promotion; asked on the primary, the daemon there has
//! its standby do it.

use std::sync::Arc;

use hyper::Method;
use serde::{Deserialize, Serialize};
use understudy_config::NodeName;
use understudy_replication::lag::Now;
use understudy_replication::link::SwitchoverRequest;
use understudy_replication::role::Role;
use understudy_replication::store::Stopper;

use crate::Place;
use crate::failure::Failure;
use crate::node::{Node, Stage};
use crate::progress::Sender;
use crate::promote::show;
use crate::promotion::{self, Outcome};
use crate::serve::load_local;

/// Swap the roles of the primary and a standby, and lose nothing
#[derive(clap::Args, Debug)]
pub(crate) struct Switchover {
    /// The standby that is to be primary (default: on a standby this node, on a primary its only standby)
    #[arg(long, value_name = "NODE")]
    to: Option<NodeName>,
    /// Print the plan, and do nothing
    #[arg(long)]
    dry_run: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What the daemon is asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Order {
    pub(crate) to: Option<NodeName>,
    pub(crate) dry_run: bool,
}

impl Switchover {
    pub(crate) async fn run(self, place: &Place) -> Result<(), Failure> {
        let socket = load_local(place)?.socket();
        let order = Order {
            to: self.to,
            dry_run: self.dry_run,
        };
        let outcome: Outcome =
            crate::admin::ask(&socket, Method::POST, "/switchover", &order).await?;
        show(
            &outcome,
            self.json,
            "the roles cannot be swapped now",
            "That node",
        )
    }
}

/// Swaps the roles, from either side.
pub(crate) async fn switchover(
    node: &Arc<Node>,
    order: Order,
    progress: &Sender,
) -> Result<Outcome, Failure> {
    match node.role() {
        Role::Standby { .. } => {
            if let Some(to) = order.to.filter(|to| to != node.me()) {
                return Err(Failure::usage(format!(
                    "node {} is a standby, and can only take over itself",
                    node.me()
                ))
                .hint(format!("run the command on node {to}, or on the primary")));
            }
            let order = promotion::Order {
                force: false,
                dry_run: order.dry_run,
                planned: true,
            };
            promotion::promote(node, order, progress).await
        }
        Role::Primary { epoch, .. } => {
            if order.to.as_ref() == Some(node.me()) {
                return Ok(Outcome::AlreadyPrimary(epoch));
            }
            let to = successor(node, order.to)?;
            let request = SwitchoverRequest {
                dry_run: order.dry_run,
            };
            let client = node
                .client(&to)
                .ok_or_else(|| Failure::usage(format!("node {to} is not in the configuration")))?;
            // It goes on whether or not it is watched; so it is watched to its end.
            let (_stopper, stop) = Stopper::new();
            crate::peer_work::ask(&client, "/peer/switchover", &request, progress, &stop)
                .await?
                .ok_or_else(|| Failure::failed("the daemon is stopping"))
        }
        role @ (Role::Returning { .. } | Role::Promoting { .. } | Role::Fenced { .. }) => {
            Err(Failure::refused(format!(
                "node {} is {}: a switchover begins on the primary or on a standby that follows it",
                node.me(),
                role.name().as_str()
            ))
            .hint("see `understudy status` on every node"))
        }
    }
}

/// Returns the standby that takes over: the one that was named, or the only one that is connected.
fn successor(node: &Arc<Node>, named: Option<NodeName>) -> Result<NodeName, Failure> {
    let Stage::Primary(run) = node.stage() else {
        return Err(Failure::failed("the stores are not open yet"));
    };
    let mut standbys = crate::wait::standbys(node);
    if let Some(named) = named {
        if standbys.contains(&named) {
            return Ok(named);
        }
        return Err(Failure::usage(format!(
            "node {named} is no standby of node {}",
            node.me()
        )));
    }
    standbys.retain(|name| run.standby(name, String::new(), Now::read()).is_connected);
    match standbys.as_slice() {
        [only] => Ok(only.clone()),
        [] => Err(
            Failure::refused("no standby is connected that could take over")
                .hint("see `understudy status`"),
        ),
        [_, ..] => {
            let names: Vec<&str> = standbys.iter().map(NodeName::as_str).collect();
            Err(
                Failure::usage(format!("several standbys follow: {}", names.join(", ")))
                    .hint("say which with --to NODE"),
            )
        }
    }
}
