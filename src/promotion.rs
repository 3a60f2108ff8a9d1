//! Carries a promotion out: observe, plan, execute step by step, report.
//!
//! The record of a promotion (`promotion.json`) is for the report only. What has to be done after a
//! crash follows from the role on disk and from what is observed then, never from the record.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use understudy_config::{Config, KvDurability, NodeName, StoreName};
use understudy_replication::command::Command;
use understudy_replication::epoch::Epoch;
use understudy_replication::error_chain;
use understudy_replication::event::Severity;
use understudy_replication::kv::protocol::{Tail, survey};
use understudy_replication::link::{FenceAnswer, FenceRequest, Level};
use understudy_replication::position::Position;
use understudy_replication::role::{Event, Role};
use understudy_replication::status::{RoleName, StatusSource};
use understudy_replication::store::{Progress, StoreId, StoreKind, Unit};
use understudy_replication::transport::PeerClient;
use understudy_replication::wall_time::WallTime;
use understudy_standby::index::CaughtUp;
use understudy_standby::postgres::PostgresReceiver;
use understudy_standby::promote::{Basis, Elsewhere, Observation, Plan, Step, StoreSeen, plan};

use crate::failure::Failure;
use crate::node::{Node, Stage};
use crate::report::{Report, StepTime};
use crate::selection::Selection;
use crate::standby_run::StandbyRun;

/// A peer has this long to stop its stores, beside what its services and hooks may take,
const FENCE_PATIENCE: Duration = Duration::from_secs(180);
/// what a command that is ended may take beyond its time,
const KILL_PATIENCE: Duration = Duration::from_secs(7);
/// and in all.
const FENCE_PATIENCE_MAX: Duration = Duration::from_secs(3600);

/// What stands against a switchover has this long to pass.
const READY_PATIENCE: Duration = Duration::from_secs(5);

/// A try of the daemon's own to change the role is over within this long.
const TURN_PATIENCE: Duration = Duration::from_secs(15);

/// The stores of a standby that has just started have this long to tell where their copies are.
const STORES_PATIENCE: Duration = Duration::from_secs(15);

/// A primary that an operator says is off has this long to show that it is not.
const FORCED_PATIENCE: Duration = Duration::from_secs(1);

/// The primary has this long to write down what it can, and this node to catch up with it.
const PREPARE_PATIENCE: Duration = Duration::from_secs(600);

/// The stores have this long to serve before a promotion is told to be done.
const OPEN_PATIENCE: Duration = Duration::from_secs(20);

/// An index has this long to catch up before the promotion goes on without it.
const INDEX_PATIENCE: Duration = Duration::from_secs(5);

/// What a fenced primary still had must arrive within this long.
const DRAIN_PATIENCE: Duration = Duration::from_secs(60);

/// What the operator asks.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Order {
    /// The operator answers for it that the old primary is off.
    pub(crate) force: bool,
    /// Only make the plan.
    pub(crate) dry_run: bool,
    /// Swap the roles in peace.
    #[serde(default)]
    pub(crate) planned: bool,
}

/// What a promotion ends with.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Outcome {
    /// The plan, for a dry run.
    Plan(Plan),
    /// The node was primary already, and nothing was to be done.
    AlreadyPrimary(Epoch),
    /// It is primary now.
    Promoted(Report),
}

/// Tells a promotion that an earlier run of the daemon has left unfinished; one of which only the
/// report was missing is finished.
pub(crate) fn remember(node: &Arc<Node>) {
    let Some(report) = Report::load(node) else {
        return;
    };
    match node.role() {
        Role::Promoting { .. } => node.set_promotion(Some(report.status(None, false, None))),
        Role::Primary { epoch, .. } if epoch == report.epoch => {
            if let Err(failure) = report.finish(node) {
                tracing::warn!(failure = failure.message, "cannot keep the report");
            }
        }
        Role::Primary { .. }
        | Role::Returning { .. }
        | Role::Standby { .. }
        | Role::Fenced { .. } => {}
    }
}

/// Promotes this node, or makes the plan for it.
pub(crate) async fn promote(
    node: &Arc<Node>,
    order: Order,
    progress: &dyn Progress,
) -> Result<Outcome, Failure> {
    // The daemon's own tries to come back, or to open stores, hold it for a moment only.
    let Ok(_promoting) = tokio::time::timeout(TURN_PATIENCE, node.promoting.lock()).await else {
        return Err(
            Failure::failed("a promotion or a rejoin is running on this node")
                .hint("watch it with `understudy status`"),
        );
    };
    wait_for_stores(node).await;
    // A rehearsal gives way; a plan alone disturbs none.
    let _no_drills = match order.dry_run {
        true => None,
        false => Some(node.drills.bar().await),
    };
    let (mut seen, mut plan) = make_plan(node, order).await;
    if order.planned && !order.dry_run {
        // A stream that has just broken and is being opened again is no reason to send the operator away.
        let until = Instant::now() + READY_PATIENCE;
        while !plan.unmet.is_empty() && Instant::now() < until {
            tokio::time::sleep(Duration::from_millis(250)).await;
            (seen, plan) = make_plan(node, order).await;
        }
    }
    if order.dry_run {
        return Ok(Outcome::Plan(plan));
    }
    if let Role::Primary { epoch, .. } = node.role() {
        are_stores_open(node).await?;
        // Only its end was missing.
        let unfinished = Report::load(node).filter(|it| it.epoch == epoch);
        if let (true, Some(report)) = (plan.steps.is_empty(), unfinished) {
            node.set_promotion(None);
            report.finish(node)?;
        }
    }
    if plan.steps.is_empty() && plan.unmet.is_empty() {
        return Ok(Outcome::AlreadyPrimary(node.role().epoch().clone()));
    }
    if let [first, rest @ ..] = plan.unmet.as_slice() {
        let others = match rest.len() {
            0 => String::new(),
            more => format!(" (and {more} more; see `understudy promote --dry-run`)"),
        };
        return Err(Failure::refused(format!("{}{others}", first.what)).hint(first.mend.clone()));
    }
    let mut report = match (&seen.role, Report::load(node)) {
        // What is left to do is the end of the promotion that opened the epoch.
        (Role::Primary { epoch, .. }, _) => {
            let mut report = Report::load(node)
                .filter(|it| it.epoch == *epoch)
                .or_else(|| Report::finished(node, epoch))
                .unwrap_or_else(|| Report::new(node, epoch.clone(), &plan));
            report.attempts = report.attempts.saturating_add(1);
            report
        }
        (Role::Promoting { epoch }, Some(mut report)) if report.epoch == *epoch => {
            report.attempts = report.attempts.saturating_add(1);
            report
        }
        _ => {
            let epoch = plan.steps.iter().find_map(|step| match step {
                Step::Open(epoch) => Some(epoch.clone()),
                Step::Prepare(_)
                | Step::Fence(_)
                | Step::PowerOff(_)
                | Step::Drain
                | Step::TakeOver(_)
                | Step::Index(_)
                | Step::Serve
                | Step::Services
                | Step::Address => None,
            });
            let epoch = epoch.unwrap_or_else(|| node.role().epoch().clone());
            let mut report = Report::new(node, epoch, &plan);
            report.inherit(node, seen.role.epoch());
            report
        }
    };
    node.events.record(
        Severity::Warning,
        "promotion_started",
        format!("promoting node {} to epoch {}", node.me(), report.epoch),
    );
    let before = report.steps.len();
    let executed = execute(node, &plan, &mut report, order, progress).await;
    if let Err(failure) = executed {
        node.set_promotion(Some(report.status(
            None,
            false,
            Some(failure.message.clone()),
        )));
        node.events.record(
            Severity::Error,
            "promotion_stopped",
            format!("the promotion stopped: {}", failure.message),
        );
        if matches!(node.role(), Role::Fenced { .. }) {
            // What a step has started after the fence had looked is stopped at once.
            node.happen(Event::Started).await?;
        }
        return Err(failure);
    }
    node.set_promotion(None);
    let report = report.finish(node)?;
    let front = [Step::Serve, Step::Services, Step::Address].map(|step| step.to_string());
    let failed = report.steps.iter().skip(before).find_map(|step| {
        let failure = step.failure.as_ref()?;
        front.contains(&step.name).then_some((&step.name, failure))
    });
    match failed {
        None => {
            node.hooks.online().await;
            Ok(Outcome::Promoted(report))
        }
        Some((step, failure)) => Err(Failure::failed(format!(
            "node {} is primary in epoch {}, but clients do not reach all of it: {step}: {failure}",
            node.me(),
            report.epoch
        ))
        .hint("mend that, then run `understudy promote` again: it does what is left")),
    }
}

/// Observes, and makes the plan of what is observed.
async fn make_plan(node: &Arc<Node>, order: Order) -> (Observation, Plan) {
    let seen = observe(node, order).await;
    let mut plan = plan(&seen);
    for mut condition in crate::others::absent(node, order.force).await {
        condition.can_be_forced &= !order.planned;
        if order.force && condition.can_be_forced {
            plan.overridden.push(condition);
        } else {
            plan.unmet.push(condition);
        }
    }
    (seen, plan)
}

/// Makes sure that the stores of a primary serve before anything is led to them.
async fn are_stores_open(node: &Node) -> Result<(), Failure> {
    let open = async {
        loop {
            match node.stage() {
                Stage::Primary(run) => return run.are_open(OPEN_PATIENCE).await,
                // A daemon that has just started is opening them.
                Stage::Standby(_) | Stage::Idle => {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
    };
    if tokio::time::timeout(OPEN_PATIENCE, open)
        .await
        .is_ok_and(|are_open| are_open)
    {
        return Ok(());
    }
    Err(Failure::failed(format!(
        "node {} is primary, but not every store of it is open",
        node.me()
    ))
    .hint("`understudy status` says which, and why; it is tried again by itself"))
}

/// Waits until every store has told where its copy is: a daemon that has just started may have to
/// start Postgres first. A store that has none makes the plan say so.
async fn wait_for_stores(node: &Arc<Node>) {
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
pub(crate) async fn observe(node: &Arc<Node>, order: Order) -> Observation {
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
            // Who has not answered the heartbeat need not be waited for as long as one that has.
            Some(client) => greet(&client, order.force || node.links.is_down(name)).await,
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
        can_power_off: config.fence.is_some(),
        failing: node.checks.blocking(),
        broken: broken_copies(node),
        elsewhere: kv_elsewhere(node, old.as_ref()).await,
        is_forced: order.force,
        is_planned: order.planned,
    }
}

/// Asks the old primary whether it is there. Of one that an operator says is off, or that has been silent,
/// no answer is awaited for long.
async fn greet(client: &PeerClient, is_brief: bool) -> Result<(), String> {
    let hello = async {
        let hello = crate::peer_api::hello(client).await;
        hello.map(drop).map_err(|error| error_chain(&error))
    };
    if !is_brief {
        return hello.await;
    }
    let silent = || format!("it did not answer within {} s", FORCED_PATIENCE.as_secs());
    let answer = tokio::time::timeout(FORCED_PATIENCE, hello).await;
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

async fn execute(
    node: &Arc<Node>,
    plan: &Plan,
    report: &mut Report,
    order: Order,
    progress: &dyn Progress,
) -> Result<(), Failure> {
    let mut fenced_at = BTreeMap::new();
    // Whoever keeps the front up waits: the steps do it, and tell how far they are.
    let _front = node.front.lock().await;
    let known = node.role().epoch().clone();
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
                match fence(node, peer, &report.epoch, &known, order.planned).await {
                    Ok(answer) => {
                        fenced_at = answer.positions;
                        report.fenced = Some(peer.clone());
                        None
                    }
                    // It answers, and cannot stop all that it runs. Other standbys hear of the epoch first: a
                    // machine that is off may be switched on again, and ask just those.
                    Err(failure) if node.config().fence.is_some() && !order.planned => {
                        crate::others::record(node, &report.epoch, &known, order.force).await?;
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
                crate::others::record(node, &report.epoch, &known, order.force).await?;
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
                let unasked = crate::others::record(node, epoch, &known, order.force).await?;
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
                if !order.planned {
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
    Ok(())
}

/// Returns the client of a peer, whose connections are open already.
fn known(node: &Arc<Node>, peer: &NodeName) -> Result<Arc<PeerClient>, Failure> {
    let unknown = || Failure::failed(format!("node {peer} is not in the configuration"));
    node.client(peer).ok_or_else(unknown)
}

/// Asks `peer` to fence itself for `epoch`.
async fn fence(
    node: &Arc<Node>,
    peer: &NodeName,
    epoch: &Epoch,
    superseded: &Epoch,
    hands_over: bool,
) -> Result<FenceAnswer, Failure> {
    let client = known(node, peer)?;
    let request = FenceRequest {
        epoch: epoch.clone(),
        hands_over,
        supersedes: Some(superseded.clone()),
    };
    let patience = fence_patience(&node.config());
    let answer: FenceAnswer = client.call("/peer/fence", &request, patience).await?;
    if answer.was == RoleName::Primary {
        tracing::info!(%peer, positions = ?answer.positions, "the old primary is fenced");
    }
    Ok(answer)
}

/// Returns how long a node may take that stops in order all that the configuration has it run.
fn fence_patience(config: &Config) -> Duration {
    let hooks = config.hooks.iter().map(|hooks| hooks.timeout);
    let services = config
        .services
        .iter()
        .map(|service| service.timeout.saturating_add(service.status_timeout));
    let stopping = hooks.chain(services).fold(FENCE_PATIENCE, |all, one| {
        all.saturating_add(one).saturating_add(KILL_PATIENCE)
    });
    stopping.min(FENCE_PATIENCE_MAX)
}

/// Has the operator's command switch `peer` off.
async fn power_off(node: &Node, peer: &NodeName) -> Result<(), Failure> {
    let config = node.config();
    let (Some(fence), Some(named)) = (&config.fence, config.node(peer)) else {
        return Err(Failure::failed(format!(
            "there is no command that could switch node {peer} off"
        )));
    };
    node.events.record(
        Severity::Warning,
        "switching_off",
        format!("the command of [fence] is to switch node {peer} off"),
    );
    let environment = crate::serve::environment(&config, &node.local);
    let command = environment
        .into_iter()
        .fold(
            Command::new(fence.command.clone()),
            |command, (name, value)| command.env(&name, value),
        )
        .env("UNDERSTUDY_FENCE_NODE", peer.as_str())
        .env("UNDERSTUDY_FENCE_IP", named.address.ip().to_string())
        .limit(fence.timeout);
    match command.run().await {
        Ok(_) => {
            let message = format!("node {peer} is off, says the command of [fence]");
            node.events
                .record(Severity::Warning, "switched_off", message);
            Ok(())
        }
        Err(error) => Err(Failure::refused(format!(
            "node {peer} does not stop, and could not be switched off: {}",
            error_chain(&error)
        ))
        .hint(format!(
            "switch {peer} off by other means (or cut it off from every client), then run `understudy \
             promote --force`"
        ))),
    }
}

/// Waits until everything that the fenced primary had is durable here.
async fn drain(
    node: &Arc<Node>,
    until: &BTreeMap<StoreName, Position>,
    is_forced: bool,
) -> Result<(), Failure> {
    let Stage::Standby(run) = node.stage() else {
        return Ok(());
    };
    let untold: Vec<&str> = run
        .receivers
        .iter()
        .map(|receiver| receiver.id().name.as_str())
        .filter(|name| !until.keys().any(|told| told.as_str() == *name))
        .collect();
    if !untold.is_empty() && !is_forced {
        return Err(Failure::refused(format!(
            "the old primary is fenced, but could not tell where these stores ended: {}",
            untold.join(", ")
        ))
        .hint(
            "run `understudy promote` again to ask it once more; to go back to the old primary, which has \
             everything, run `understudy promote --force` there; `understudy promote --force` here gives up \
             what may be missing",
        ));
    }
    let missing = crate::wait::until_received(&run, until, DRAIN_PATIENCE).await;
    if missing.is_empty() {
        return Ok(());
    }
    let missing: Vec<&str> = missing.iter().map(StoreName::as_str).collect();
    let missing = missing.join(", ");
    Err(Failure::refused(format!(
        "the old primary is fenced, but not all that it had has arrived: {missing}"
    ))
    .hint(
        "see `understudy status` for why; run `understudy promote` again to wait once more; to go back to the \
         old primary, which has everything, run `understudy promote --force` there; `understudy promote \
         --force` here gives up what is missing",
    ))
}

/// Tells what is lost, from the last thing that is known before the epoch is opened.
fn account(node: &Arc<Node>, report: &mut Report, fenced_at: &BTreeMap<StoreName, Position>) {
    let Stage::Standby(run) = node.stage() else {
        return;
    };
    if report.fenced.is_none() {
        for loss in &mut report.lost {
            *loss = loss.clone().uncertain(run.primary());
        }
        report.cut = run.upstream(understudy_replication::lag::Now::read()).cut;
        return;
    }
    // The primary has stopped, and everything up to where it stopped has been waited for.
    for loss in &mut report.lost {
        let Some(receiver) = run.receivers.iter().find(|it| it.id().name == loss.id.name) else {
            continue;
        };
        match (fenced_at.get(&loss.id.name), receiver.received().flushed) {
            (Some(end), Some(flushed)) => {
                loss.amount = Some(end.ahead_of(flushed));
                loss.amount_at_least = loss.amount;
                loss.basis = Basis::Fenced;
                if loss.amount == Some(0) || loss.unit == "bytes" {
                    loss.bytes = loss.amount;
                }
                loss.unknown = None;
            }
            (None, _) | (_, None) => {
                loss.amount = None;
                loss.unknown = Some("where it ended on the old primary is not known".to_owned());
            }
        }
        if loss.amount == Some(0) {
            loss.seconds = Some(0.0);
        }
    }
    report.cut = if report.lost.iter().all(|loss| loss.amount == Some(0)) {
        run.newest_mark()
    } else {
        run.upstream(understudy_replication::lag::Now::read()).cut
    };
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
