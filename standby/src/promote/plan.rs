//! The planner of promotions: pure.

use std::fmt;

use serde::{Deserialize, Serialize};
use understudy_config::{NodeName, StoreName};
use understudy_replication::epoch::Epoch;
pub use understudy_replication::preflight::{Basis, Condition, Loss};
use understudy_replication::role::Role;
use understudy_replication::status::{RoleName, StoreLag};
use understudy_replication::store::StoreId;
use understudy_replication::wall_time::WallTime;

/// What a plan is made from.
#[derive(Clone, Debug, PartialEq)]
pub struct Observation {
    /// This node.
    pub me: NodeName,
    /// What it is.
    pub role: Role,
    /// The node that is or was primary, and whether it answers; `None` if there is no other node.
    pub primary: Option<(NodeName, Result<(), String>)>,
    /// The stores, in the order of the configuration.
    pub stores: Vec<StoreSeen>,
    /// The newest mark that every store has applied.
    pub cut: Option<WallTime>,
    /// What the lags rest on.
    pub basis: Basis,
    /// The indexes, in order.
    pub indexes: Vec<StoreName>,
    /// What clients meet, and how far it is up here.
    pub front: Front,
    /// There is a command that switches an old primary off.
    pub can_power_off: bool,
    /// Checks that fail here and speak against serving, and what each found.
    pub failing: Vec<(StoreName, String)>,
    /// The stores whose copy here is only half of one, and what to do about each.
    pub broken: Vec<(StoreName, String)>,
    /// What is known of the copies on the other standbys, of stores that a standby acknowledges on its own.
    pub elsewhere: Vec<Elsewhere>,
    /// The operator answers for it that the old primary is off.
    pub is_forced: bool,
    /// The roles are to be swapped while both nodes are well, and nothing is to be lost.
    pub is_planned: bool,
}

/// What clients meet: services, then the address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Front {
    /// Whether the services are up; `None` if there are none.
    pub services: Option<bool>,
    /// Whether this node has the address; `None` if none is configured.
    pub address: Option<bool>,
}

/// What other standbys may have of a store that this one has not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Elsewhere {
    /// The store.
    pub store: StoreName,
    /// A standby that has more of it.
    pub ahead: Option<NodeName>,
    /// How many further standbys would have to answer before nothing acknowledged can be missing here.
    pub missing: usize,
}

/// A store, as the planner sees it.
#[derive(Clone, Debug, PartialEq)]
pub struct StoreSeen {
    /// Which store.
    pub id: StoreId,
    /// How far its copy is behind; `None` on a node that is no standby.
    pub lag: Option<StoreLag>,
}

/// One step; each can be repeated.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// Have the primary write down what it can while it still serves, and catch up with it.
    Prepare(NodeName),
    /// Ask the old primary to fence itself, and wait until it has.
    Fence(NodeName),
    /// Have the operator's command switch the old primary off.
    PowerOff(NodeName),
    /// Receive what the fenced primary still had.
    Drain,
    /// Stop receiving, and make the new epoch durable.
    Open(Epoch),
    /// Make the copy of a store the primary's.
    TakeOver(StoreName),
    /// Bring an index up to the stores; one that has to be built anew goes on behind the rest.
    Index(StoreName),
    /// Be primary: the stores take writes.
    Serve,
    /// Start the services in order.
    Services,
    /// Take the address that clients use, and announce it.
    Address,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Prepare(node) => write!(f, "prepare {node}"),
            Self::Fence(node) => write!(f, "fence {node}"),
            Self::PowerOff(node) => write!(f, "switch off {node}"),
            Self::Drain => f.write_str("drain"),
            Self::Open(epoch) => write!(f, "open epoch {epoch}"),
            Self::TakeOver(store) => write!(f, "take over {store}"),
            Self::Index(index) => write!(f, "catch up index {index}"),
            Self::Serve => f.write_str("serve"),
            Self::Services => f.write_str("start services"),
            Self::Address => f.write_str("take the address"),
        }
    }
}

/// What a promotion now would do.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// The steps, in order; none if the node is primary already.
    pub steps: Vec<Step>,
    /// What stands against it. With one of these, nothing is executed.
    pub unmet: Vec<Condition>,
    /// What stood against it, and has been overridden.
    pub overridden: Vec<Condition>,
    /// What would be lost.
    pub loss: Vec<Loss>,
    /// The moment that the promotion would return to, by the old primary's clock.
    pub cut: Option<WallTime>,
}

/// Makes the plan for what was observed.
pub fn plan(seen: &Observation) -> Plan {
    let mut conditions = Vec::new();
    let mut steps = Vec::new();
    let fence = |conditions: &mut Vec<Condition>, steps: &mut Vec<Step>| match &seen.primary {
        Some((node, Ok(()))) => {
            steps.push(Step::Fence(node.clone()));
            if seen.role.name() == RoleName::Standby {
                steps.push(Step::Drain);
            }
        }
        // Whoever forces it says that the old primary is off.
        Some((node, Err(_))) if seen.can_power_off && !seen.is_forced && !seen.is_planned => {
            steps.push(Step::PowerOff(node.clone()));
        }
        Some((node, Err(reason))) => conditions.push(Condition {
            what: format!("node {node} cannot be asked to fence itself: {reason}"),
            mend: format!(
                "make sure that {node} is switched off (or cut off from every client), then run \
                 `understudy promote --force`"
            ),
            can_be_forced: true,
        }),
        None => {}
    };
    let rise = |steps: &mut Vec<Step>| {
        steps.extend(
            seen.stores
                .iter()
                .map(|store| Step::TakeOver(store.id.name.clone())),
        );
        steps.extend(seen.indexes.iter().cloned().map(Step::Index));
        // Services find stores that take writes; clients find services.
        steps.push(Step::Serve);
        steps.extend(seen.front.services.map(|_| Step::Services));
        steps.extend(seen.front.address.map(|_| Step::Address));
    };
    if seen.role.name() != RoleName::Primary {
        // Before anybody is fenced for it: the node that has a whole one may be the only one.
        conditions.extend(seen.broken.iter().map(|(store, mend)| Condition {
            what: format!("the copy of store {store} here is half a copy"),
            mend: mend.clone(),
            can_be_forced: false,
        }));
    }
    // What a crash has cut short goes on: what a check looks at may be down for just that reason.
    if !matches!(seen.role.name(), RoleName::Primary | RoleName::Promoting) {
        conditions.extend(seen.failing.iter().map(|(check, found)| Condition {
            what: match found.is_empty() {
                // It is well again, and not yet for long enough.
                true => format!("check {check} fails on node {}", seen.me),
                false => format!("check {check} fails on node {}: {found}", seen.me),
            },
            mend: format!("mend what check {check} looks at; see `understudy status`"),
            can_be_forced: true,
        }));
    }
    match &seen.role {
        Role::Primary { .. } => {
            // What a crash, or a service that did not come up, has left to do.
            let is_down = |is_up: Option<bool>| is_up == Some(false);
            if is_down(seen.front.services) {
                steps.push(Step::Services);
            }
            if is_down(seen.front.address) {
                steps.push(Step::Address);
            }
        }
        Role::Promoting { .. } => rise(&mut steps),
        Role::Standby { .. } => {
            if let (Some((node, Ok(()))), true) = (&seen.primary, seen.is_planned) {
                steps.push(Step::Prepare(node.clone()));
            }
            fence(&mut conditions, &mut steps);
            for store in &seen.stores {
                conditions.extend(unfit(store));
                if seen.is_planned {
                    conditions.extend(unready(store));
                }
            }
            // A primary that answers is drained, and has everything.
            if let Some((_, Err(_))) = &seen.primary {
                conditions.extend(seen.elsewhere.iter().flat_map(unsure));
            }
            steps.push(Step::Open(seen.role.next_epoch(&seen.me)));
            rise(&mut steps);
        }
        Role::Returning { .. } => {
            conditions.push(Condition {
                what: format!(
                    "node {} was primary, and has not heard whether it has been superseded",
                    seen.me
                ),
                mend: "start a peer, which settles it; or make sure that no peer has been \
                       promoted, then run `understudy promote --force`"
                    .to_owned(),
                can_be_forced: true,
            });
            steps.push(Step::Open(seen.role.next_epoch(&seen.me)));
            rise(&mut steps);
        }
        Role::Fenced { epoch, .. } => {
            // The node that superseded this one is to stop first, if it can be asked.
            fence(&mut conditions, &mut steps);
            conditions.push(Condition {
                what: format!(
                    "node {} has been superseded in epoch {epoch}: what was written since then is \
                     not here",
                    seen.me
                ),
                mend: "use the node that superseded it; to go back to this node's data and give \
                       up the other's, run `understudy promote --force`"
                    .to_owned(),
                can_be_forced: true,
            });
            steps.push(Step::Open(seen.role.next_epoch(&seen.me)));
            rise(&mut steps);
        }
    }
    if seen.is_planned {
        // Whatever stands against it: while the roles can be swapped in peace, nothing is forced.
        for condition in &mut conditions {
            condition.can_be_forced = false;
        }
        if let Some((node, Err(_))) = &seen.primary {
            conditions.insert(0, only_promotion(node));
        }
    }
    let (overridden, unmet) = conditions
        .into_iter()
        .partition(|condition| seen.is_forced && condition.can_be_forced);
    Plan {
        steps,
        unmet,
        overridden,
        loss: seen
            .stores
            .iter()
            .filter_map(|store| loss(store, seen.role.name(), &seen.basis))
            .map(|loss| match &seen.primary {
                Some((node, Err(_))) => loss.uncertain(node),
                Some((_, Ok(()))) | None => loss,
            })
            .collect(),
        cut: seen.cut,
    }
}

/// Tells that a switchover needs both nodes.
fn only_promotion(primary: &NodeName) -> Condition {
    Condition {
        what: format!("a switchover needs the primary, and node {primary} does not answer"),
        mend: format!(
            "if {primary} is lost, run `understudy promote`; if not, look whether it runs, and at the \
             network to it"
        ),
        can_be_forced: false,
    }
}

/// Returns why a switchover would wait for a store's copy, or lose something of it, if so.
fn unready(store: &StoreSeen) -> Option<Condition> {
    let name = &store.id.name;
    let lag = store.lag.as_ref()?;
    let reason = match (&lag.stalled, &lag.unknown) {
        (Some(reason), _) => reason.clone(),
        (None, Some(unknown)) => unknown.reason.clone(),
        (None, None) => return None,
    };
    Some(Condition {
        what: format!("store {name} does not follow well enough to swap roles: {reason}"),
        mend: "mend that first, see `understudy status`; the primary serves on meanwhile"
            .to_owned(),
        can_be_forced: false,
    })
}

/// Returns why a store's copy must not be promoted, if so.
fn unfit(store: &StoreSeen) -> Option<Condition> {
    let lag = store.lag.as_ref()?;
    let name = &store.id.name;
    if lag.applied.is_none() && lag.flushed.is_none() {
        return Some(Condition {
            what: format!("store {name} has no copy here that could be promoted"),
            mend: format!(
                "see `understudy status` for the reason; seed it with `understudy join`, or take \
                 `{name}` out of the configuration"
            ),
            can_be_forced: false,
        });
    }
    if let (Some(reason), true) = (&lag.stalled, lag.lag.is_some_and(|lag| lag > 0)) {
        return Some(Condition {
            what: format!("store {name} is behind, and does not advance: {reason}"),
            mend: "mend that first; `--force` gives up what is missing".to_owned(),
            can_be_forced: true,
        });
    }
    lag.must_reseed.then(|| Condition {
        what: format!("the copy of store {name} could not follow any more: it is old"),
        mend: "run `understudy rejoin` while the primary lives; `--force` promotes the old \
               copy"
            .to_owned(),
        can_be_forced: true,
    })
}

fn loss(store: &StoreSeen, role: RoleName, basis: &Basis) -> Option<Loss> {
    let Some(lag) = &store.lag else {
        let unknown = "where its copy was is not known".to_owned();
        return (role == RoleName::Standby).then(|| Loss {
            id: store.id.clone(),
            unit: store.id.kind.unit().to_owned(),
            amount: None,
            amount_at_least: None,
            seconds: None,
            bytes: None,
            basis: Basis::Nothing,
            unknown: Some(unknown),
        });
    };
    // What is durable here will be applied before the store is taken over, so it is not lost.
    let at_least = match (lag.current, lag.flushed) {
        (Some(current), Some(flushed)) => Some(current.ahead_of(flushed)),
        (None, _) | (_, None) => None,
    };
    Some(Loss {
        id: store.id.clone(),
        unit: lag.unit.clone(),
        amount: at_least.filter(|_| lag.unknown.is_none()),
        amount_at_least: at_least,
        seconds: lag.lag_seconds,
        bytes: match at_least {
            Some(0) => Some(0),
            _ if lag.unit == "bytes" => at_least,
            _ => lag.lag_bytes,
        },
        basis: basis.clone(),
        unknown: lag.unknown.as_ref().map(|unknown| {
            format!(
                "{}: what was written since {} is not counted",
                unknown.reason, unknown.since
            )
        }),
    })
}

/// Returns what stands against a promotion because other standbys may have acknowledged what this one has not.
fn unsure(elsewhere: &Elsewhere) -> Vec<Condition> {
    let store = &elsewhere.store;
    let ahead = elsewhere.ahead.as_ref().map(|node| Condition {
        what: format!("node {node} has more of store {store} than this node"),
        mend: format!("promote {node} instead, or lose what only it has with `--force`"),
        can_be_forced: true,
    });
    let missing = (elsewhere.missing > 0).then(|| Condition {
        what: format!(
            "{} more of the other standbys would have to answer to be sure that this node has every acknowledged \
             write of store {store}",
            elsewhere.missing
        ),
        mend: "start them, or promote with `--force` and lose what only they have".to_owned(),
        can_be_forced: true,
    });
    ahead.into_iter().chain(missing).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use understudy_replication::position::Position;
    use understudy_replication::store::StoreKind;

    fn name<T: std::str::FromStr<Err: std::fmt::Debug>>(text: &str) -> T {
        text.parse().unwrap()
    }

    fn store(lag: impl FnOnce(&mut StoreLag)) -> StoreSeen {
        let id = StoreId {
            name: name("postgres"),
            kind: StoreKind::Postgres,
        };
        let mut seen = StoreLag {
            id: id.clone(),
            unit: "bytes".to_owned(),
            current: Some(Position(1000)),
            sent: None,
            flushed: Some(Position(900)),
            applied: Some(Position(800)),
            lag: Some(200),
            lag_flushed: Some(100),
            lag_bytes: None,
            lag_seconds: Some(1.5),
            unknown: None,
            must_reseed: false,
            stalled: None,
            stall_reason: None,
        };
        lag(&mut seen);
        StoreSeen {
            id,
            lag: Some(seen),
        }
    }

    fn standby() -> Observation {
        Observation {
            me: name("b"),
            role: Role::Standby {
                epoch: name("1.a"),
                primary: name("a"),
                proposed: None,
            },
            primary: Some((name("a"), Ok(()))),
            stores: vec![store(|_| {})],
            cut: Some(WallTime(5000)),
            basis: Basis::Fenced,
            indexes: vec![name("search")],
            front: Front {
                services: Some(true),
                address: Some(false),
            },
            can_power_off: false,
            failing: vec![],
            broken: vec![],
            elsewhere: vec![],
            is_forced: false,
            is_planned: false,
        }
    }

    fn steps(seen: &Observation) -> Vec<String> {
        plan(seen).steps.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_standby_fences_drains_opens_and_only_then_takes_over() {
        assert_eq!(
            steps(&standby()),
            [
                "fence a",
                "drain",
                "open epoch 2.b",
                "take over postgres",
                "catch up index search",
                "serve",
                "start services",
                "take the address",
            ]
        );
        assert_eq!(plan(&standby()).unmet, []);
        assert_eq!(plan(&standby()).loss[0].amount, Some(100));
    }

    #[test]
    fn a_switchover_prepares_the_primary_and_is_never_forced() {
        let mut seen = standby();
        seen.is_planned = true;
        assert_eq!(steps(&seen)[..3], ["prepare a", "fence a", "drain"]);
        assert_eq!(plan(&seen).unmet, []);
        seen.is_forced = true;
        seen.stores = vec![store(|lag| {
            lag.stalled = Some("replay is paused".to_owned())
        })];
        assert!(!plan(&seen).unmet.is_empty());
        seen.stores = vec![];
        seen.primary = Some((name("a"), Err("no route to host".to_owned())));
        assert!(plan(&seen).unmet[0].mend.contains("understudy promote"));
    }

    #[test]
    fn a_silent_primary_needs_the_operators_word() {
        let mut seen = standby();
        seen.primary = Some((name("a"), Err("no route to host".to_owned())));
        let refused = plan(&seen);
        assert_eq!(refused.unmet.len(), 1);
        assert!(refused.unmet[0].mend.contains("promote --force"));
        seen.is_forced = true;
        let forced = plan(&seen);
        assert_eq!((forced.unmet.len(), forced.overridden.len()), (0, 1));
        let loss = &forced.loss[0];
        assert_eq!((loss.amount, loss.amount_at_least), (None, Some(100)));
        assert!(loss.unknown.is_some());
        assert_eq!(forced.steps[0], Step::Open(name("2.b")));
    }

    #[test]
    fn a_silent_primary_is_switched_off_where_there_is_a_command_for_it() {
        let mut seen = standby();
        seen.can_power_off = true;
        assert_eq!(
            steps(&seen)[0],
            "fence a",
            "it is asked as long as it answers"
        );
        seen.primary = Some((name("a"), Err("no route to host".to_owned())));
        assert_eq!(steps(&seen)[..2], ["switch off a", "open epoch 2.b"]);
        assert_eq!(plan(&seen).unmet, []);
        assert!(plan(&seen).loss[0].unknown.is_some());
        // An operator who says that it is off is believed.
        seen.is_forced = true;
        assert_eq!(steps(&seen)[0], "open epoch 2.b");
        // Nobody is switched off for a switchover.
        (seen.is_forced, seen.is_planned) = (false, true);
        assert!(!steps(&seen).contains(&"switch off a".to_owned()));
        assert!(!plan(&seen).unmet.is_empty());
    }

    #[test]
    fn m16_a_node_whose_check_fails_is_refused_with_the_reason_and_can_be_forced() {
        let mut seen = standby();
        seen.failing = vec![(name("uploads-mounted"), "nothing is mounted".to_owned())];
        let unmet = plan(&seen).unmet;
        assert!(unmet[0].what.contains("uploads-mounted") && unmet[0].can_be_forced);
        // Well again, and not yet for long enough.
        seen.failing[0].1.clear();
        assert_eq!(
            plan(&seen).unmet[0].what,
            "check uploads-mounted fails on node b"
        );
        seen.is_forced = true;
        assert_eq!(plan(&seen).unmet, []);
        // What serves already is not kept from it.
        seen.is_forced = false;
        seen.role = Role::Primary {
            epoch: name("2.b"),
            standbys: vec![],
        };
        assert_eq!(plan(&seen).unmet, []);
    }

    #[test]
    fn a_store_without_a_copy_is_not_promoted_even_by_force() {
        let mut seen = standby();
        seen.is_forced = true;
        seen.stores = vec![store(|lag| {
            lag.applied = None;
            lag.flushed = None;
        })];
        assert_eq!(plan(&seen).unmet.len(), 1);
    }

    #[test]
    fn what_is_not_known_of_a_store_is_not_called_nothing() {
        let mut seen = standby();
        seen.is_forced = true;
        seen.stores[0].lag = None;
        let [loss] = plan(&seen).loss.try_into().unwrap();
        assert_eq!((loss.amount, loss.unknown.is_some()), (None, true));
    }

    #[test]
    fn half_a_copy_is_promoted_in_no_role_and_nobody_is_fenced_for_it() {
        let mut seen = standby();
        seen.is_forced = true;
        seen.broken = vec![(name("postgres"), "run `understudy rejoin`".to_owned())];
        for role in [
            seen.role.clone(),
            Role::Fenced {
                epoch: name("3.a"),
                follows: false,
            },
        ] {
            seen.role = role;
            let unmet = plan(&seen).unmet;
            assert!(unmet.iter().any(|it| !it.can_be_forced), "{unmet:?}");
        }
    }

    #[test]
    fn after_a_crash_the_plan_begins_where_the_epoch_was_opened() {
        let mut seen = standby();
        seen.role = Role::Promoting { epoch: name("2.b") };
        assert_eq!(
            steps(&seen),
            [
                "take over postgres",
                "catch up index search",
                "serve",
                "start services",
                "take the address",
            ]
        );
        seen.role = Role::Standby {
            epoch: name("1.a"),
            primary: name("a"),
            proposed: Some(name("2.b")),
        };
        assert_eq!(steps(&seen)[2], "open epoch 2.b");
    }

    #[test]
    fn a_primary_has_nothing_to_do_and_a_fenced_node_needs_force() {
        let mut seen = standby();
        seen.role = Role::Primary {
            epoch: name("2.b"),
            standbys: vec![],
        };
        assert_eq!(steps(&seen), ["take the address"]);
        seen.front.address = Some(true);
        assert_eq!(steps(&seen), Vec::<String>::new());
        seen.front.services = Some(false);
        assert_eq!(steps(&seen), ["start services"]);
        seen.role = Role::Fenced {
            epoch: name("3.a"),
            follows: false,
        };
        assert_eq!(plan(&seen).unmet.len(), 1);
        seen.is_forced = true;
        assert_eq!(steps(&seen)[..2], ["fence a", "open epoch 4.b"]);
        seen.primary = Some((name("a"), Err("no route to host".to_owned())));
        assert_eq!(steps(&seen)[0], "open epoch 4.b");
    }

    #[test]
    fn a_node_that_may_lack_what_another_standby_acknowledged_is_not_promoted_unasked() {
        let elsewhere = |ahead: Option<&str>, missing| {
            vec![Elsewhere {
                store: "kv".parse().unwrap(),
                ahead: ahead.map(|name| name.parse().unwrap()),
                missing,
            }]
        };
        let mut seen = standby();
        seen.elsewhere = elsewhere(Some("c"), 1);
        // A primary that answers is drained: nothing can be missing.
        assert!(plan(&seen).unmet.is_empty());
        seen.primary = Some(("a".parse().unwrap(), Err("no answer".to_owned())));
        let told: Vec<String> = plan(&seen).unmet.into_iter().map(|it| it.what).collect();
        let tells = |part: &str| told.iter().any(|what| what.contains(part));
        assert!(tells("node c has more of store kv"), "{told:?}");
        assert!(tells("1 more of the other standbys"), "{told:?}");
        seen.is_forced = true;
        assert!(plan(&seen).unmet.is_empty());
        seen.is_forced = false;
        seen.elsewhere = elsewhere(None, 0);
        assert_eq!(plan(&seen).unmet.len(), told.len() - 2);
    }
}
