//! Carries out the steps of a plan, one after the other.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use understudy_config::{NodeName, StoreName};
use understudy_replication::epoch::Epoch;
use understudy_replication::error_chain;
use understudy_replication::link::Level;
use understudy_replication::role::{Event, Role};
use understudy_replication::store::{NoProgress, Progress, Unit};
use understudy_standby::index::CaughtUp;
use understudy_standby::promote::{Plan, Step};

use super::fencing::{account, drain, fence, known, power_off};
use super::{OPEN_PATIENCE, Order};
use crate::failure::Failure;
use crate::node::{Node, Stage};
use crate::report::{Report, StepTime};
use crate::selection::Selection;
use crate::standby_run::StandbyRun;

/// The primary has this long to write down what it can, and this node to catch up with it.
const PREPARE_PATIENCE: Duration = Duration::from_secs(600);

/// An index has this long to catch up before the promotion goes on without it.
const INDEX_PATIENCE: Duration = Duration::from_secs(5);

/// Carries the plan out, and keeps in the report how far it is. What fails may be tried again: each step can be
/// repeated.
pub(super) async fn execute(
    node: &Arc<Node>,
    plan: &Plan,
    report: &mut Report,
    order: Order,
    progress: &dyn Progress,
) -> Result<(), Failure> {
    let mut fenced_at = BTreeMap::new();
    // Whoever keeps the front up waits: the steps do it, and tell how far they are.
    let _front = node.front.lock().await;
    let superseded = node.role().epoch().clone();
    let mut asking = None;
    crate::others::confirm(node, order.force).await?;
    for step in &plan.steps {
        let name = step.to_string();
        node.set_promotion(Some(report.status(Some(name.clone()), true, None)));
        progress.start(&name, None, Unit::Items);
        tracing::info!(step = name, "promotion step");
        let begun = Instant::now();
        still_rising(node, step, &report.epoch)?;
        if matches!(step, Step::Fence(_) | Step::PowerOff(_) | Step::Open(_))
            && matches!(node.role(), Role::Standby { .. })
        {
            // Durable before a peer hears of it: the same epoch is proposed again after a crash.
            node.happen(Event::Propose).await?;
            crate::others::still_proposed(node, &report.epoch)?;
        }
        let failure = match step {
            Step::Prepare(peer) => {
                prepare(node, peer).await?;
                None
            }
            Step::Fence(peer) => {
                match fence(node, peer, &report.epoch, &superseded, order.planned).await {
                    Ok(answer) => {
                        fenced_at = answer.positions;
                        report.fenced = Some(peer.clone());
                        None
                    }
                    // It answers, and cannot stop all that it runs. Other standbys hear of the epoch first: a
                    // machine that is off may be switched on again, and ask just those.
                    Err(failure) if node.config().fence.is_some() && !order.planned => {
                        crate::others::record(node, &report.epoch, &superseded, order.force)
                            .await?;
                        match power_off(node, peer).await {
                            Ok(()) => {
                                report.switched_off = Some(peer.clone());
                                Some(failure.message)
                            }
                            Err(refused) if order.force => {
                                Some(format!("{}; {}", failure.message, refused.message))
                            }
                            Err(refused) => return Err(refused),
                        }
                    }
                    Err(failure) if order.force => Some(failure.message),
                    Err(failure) if order.planned => {
                        return Err(Failure::refused(failure.message).hint(format!(
                            "see `understudy status` on {peer}: as long as it is primary, mend what did not stop \
                             there and swap the roles again; if it is fenced, run `understudy promote`"
                        )));
                    }
                    Err(failure) => {
                        return Err(Failure::refused(failure.message).hint(format!(
                            "make sure that {peer} is switched off, then run `understudy promote \
                             --force`; or run `understudy promote` again"
                        )));
                    }
                }
            }
            Step::PowerOff(peer) => {
                // Before it is off: one that is off may be switched on again, and ask just those.
                crate::others::record(node, &report.epoch, &superseded, order.force).await?;
                power_off(node, peer).await?;
                report.switched_off = Some(peer.clone());
                None
            }
            // Who is off has nothing more to send.
            Step::Drain if report.switched_off.is_some() => None,
            Step::Drain => match drain(node, &fenced_at, order.force).await {
                Ok(()) => None,
                Err(failure) if order.force => Some(failure.message),
                Err(failure) => return Err(failure),
            },
            Step::Open(epoch) => {
                let unasked = crate::others::record(node, epoch, &superseded, order.force).await?;
                account(node, report, &fenced_at);
                // These figures cannot be had again once the epoch is open.
                report.keep(node);
                node.happen(Event::Open(epoch.clone())).await?;
                (!unasked.is_empty()).then(|| unasked.join("; "))
            }
            Step::TakeOver(store) => {
                take_over(node, store, &report.epoch, progress).await?;
                None
            }
            Step::Index(index) => {
                match node
                    .indexes
                    .catch_up(index.as_str(), INDEX_PATIENCE, progress)
                    .await
                {
                    Ok(CaughtUp::Ready { .. }) => None,
                    // What can be built at any time must not keep the appliance down.
                    Ok(CaughtUp::RebuildingInBackground { percent }) => Some(format!(
                        "it is built anew while the rest serves, {percent} % is done; see `understudy index \
                         status`"
                    )),
                    Err(error) => {
                        let failure = format!(
                            "{}; run `understudy index rebuild {index}`",
                            error_chain(&error)
                        );
                        Some(failure)
                    }
                }
            }
            Step::Services => {
                let started = crate::front::start_services(node, progress).await;
                started.err().map(|failure| failure.message)
            }
            Step::Address if !node.services.are_up() => {
                Some("it is not taken before the critical services are up".to_owned())
            }
            Step::Address => {
                let taken = crate::front::take_address(node).await;
                taken.err().map(|failure| failure.message)
            }
            Step::Serve => {
                if !report.planned {
                    // Before the role allows them to run: whoever asked for it decides what runs after a
                    // failure, and when.
                    node.services.hold_after_failover();
                    node.jobs.hold_after_failover();
                }
                node.happen(Event::Risen).await?;
                let is_open = match node.stage() {
                    Stage::Primary(run) => run.are_open(OPEN_PATIENCE).await,
                    Stage::Standby(_) | Stage::Idle => false,
                };
                // It is primary, and goes on trying; its status says which store does not open, and why.
                (!is_open).then(|| "not every store serves yet: see `understudy status`".to_owned())
            }
        };
        if failure.is_some() && matches!(step, Step::Serve | Step::Services | Step::Address) {
            // Whoever keeps the front up tells it once it is: from when it is free again, which is later.
            node.set_announcement_owed(true);
        }
        let seconds = begun.elapsed().as_secs_f64();
        progress.end(&match &failure {
            None => format!("{name} ({seconds:.3} s)"),
            Some(failure) => format!("{name} ({seconds:.3} s): {failure}"),
        });
        let time = StepTime {
            name: name.clone(),
            seconds,
            failure,
        };
        report.add(node, time);
        // The old primary has given the address up, or is off: who has it now should not.
        if let (Step::Open(_), Some(address), None) = (step, &node.address, &asking) {
            let address = address.clone();
            asking = Some(tokio::spawn(async move {
                // What is found is found again, and told, where it is taken.
                let _found = address.prepare().await.is_err();
            }));
        }
        crash_point(&name);
    }
    // Whoever was fenced during the last step is no primary.
    still_rising(node, &Step::Address, &report.epoch)
}

/// Makes sure that nobody has superseded the promotion while it ran: a node that was fenced meanwhile
/// must not go on to start anything.
fn still_rising(node: &Node, step: &Step, epoch: &Epoch) -> Result<(), Failure> {
    let role = node.role();
    let is_still = match step {
        Step::Prepare(_) | Step::Fence(_) | Step::PowerOff(_) | Step::Drain | Step::Open(_) => true,
        Step::TakeOver(_) | Step::Index(_) | Step::Serve => {
            matches!(&role, Role::Promoting { epoch: ours } if ours == epoch)
        }
        Step::Services | Step::Address => {
            matches!(&role, Role::Primary { epoch: ours, .. } if ours == epoch)
        }
    };
    if !is_still {
        return Err(Failure::refused(format!(
            "epoch {} has superseded this promotion to {epoch}; node {} is {} now",
            role.epoch(),
            node.me(),
            role.name().as_str()
        ))
        .hint("see `understudy status` on every node"));
    }
    Ok(())
}

/// Has the primary write down what it can while it still serves, and waits until nearly all of it is
/// here: what is left to do once it is fenced is short then. Nothing has changed when this fails.
async fn prepare(node: &Arc<Node>, peer: &NodeName) -> Result<(), Failure> {
    let client = known(node, peer)?;
    let _prepared: () = client.call("/peer/prepare", &(), PREPARE_PATIENCE).await?;
    let order = crate::wait::Order {
        stores: Selection::default(),
        level: Level::Applied,
        patience: PREPARE_PATIENCE,
    };
    crate::wait::wait(node, &order)
        .await?
        .in_time(PREPARE_PATIENCE)
        .map_err(|failure| {
            failure.hint("nothing was changed, and the primary serves on; see `understudy status`")
        })?;
    // What the indexes have to read once the stores have changed hands is then what was written since.
    for index in node.indexes.status() {
        if index.is_warm {
            let caught_up = node
                .indexes
                .catch_up(index.name.as_str(), INDEX_PATIENCE, &NoProgress);
            if let Err(error) = caught_up.await {
                let error = error_chain(&error);
                tracing::info!(
                    index = index.name.as_str(),
                    error,
                    "an index is not up to date yet"
                );
            }
        }
    }
    Ok(())
}

async fn take_over(
    node: &Arc<Node>,
    store: &StoreName,
    epoch: &Epoch,
    progress: &dyn Progress,
) -> Result<(), Failure> {
    let run = match node.stage() {
        Stage::Standby(run) => run,
        // After a restart nothing is open yet.
        Stage::Idle | Stage::Primary(_) => {
            if let Stage::Primary(run) = node.set_stage(Stage::Idle) {
                run.stop().await;
            }
            // Nobody is followed; the client is only what the stores' ends are made with.
            let myself = node.peer(node.me()).ok_or_else(|| {
                Failure::failed(format!("node {} is not in the configuration", node.me()))
            })?;
            let run = StandbyRun::open(node, myself)
                .await
                .map_err(Failure::failed)?;
            node.set_stage(Stage::Standby(run.clone()));
            run
        }
    };
    let receiver = run
        .receivers
        .iter()
        .find(|receiver| receiver.id().name == *store)
        .ok_or_else(|| Failure::failed(format!("there is no store {store}")))?;
    receiver.take_over(epoch, progress).await.map_err(|error| {
        Failure::failed(format!(
            "cannot take over store {store}: {}",
            error_chain(error.as_ref())
        ))
        .hint("mend the cause, then run `understudy promote` again: it goes on from here")
    })
}

/// Ends the process at once after the step named by a variable, in builds for tests: so that a crash
/// after every step can be tried.
fn crash_point(step: &str) {
    if cfg!(debug_assertions) && std::env::var("UNDERSTUDY_CRASH_AFTER").is_ok_and(|it| it == step)
    {
        tracing::error!(step, "crashing, as UNDERSTUDY_CRASH_AFTER asks");
        std::process::abort();
    }
}
