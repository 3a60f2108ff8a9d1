//! The task that owns the role machine: takes events, decides by [`Role::step`], and acts.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use understudy_replication::event::Severity;
use understudy_replication::role::{Action, Event, Impossible, Role};
use understudy_replication::store::{Receiver, Stop};

use crate::node::{Node, Stage};
use crate::primary_run::PrimaryRun;
use crate::role_file::{RoleFileError, RoleRecord};
use crate::standby_run::StandbyRun;

/// How many events may wait.
pub(crate) const EVENTS_WAITING_MAX: usize = 64;

/// How often what has failed is tried again: a fence, or opening the stores.
const RETRY_INTERVAL: Duration = Duration::from_secs(5);

/// The stores of a standby have this long to tell where they are, before what runs beside them is started.
const READY_PATIENCE: Duration = Duration::from_secs(60);

/// Whoever brings the front up is waited for so long before it is brought down.
const FRONT_PATIENCE: Duration = Duration::from_secs(5);

/// How long a restarted primary leaves running what it found while no peer answers.
const RETURNING_GRACE: Duration = Duration::from_secs(10);

/// How long one that nobody had joined waits for a peer that knows better.
const SOLE_GRACE: Duration = Duration::from_secs(3);

/// An event for the role machine.
#[derive(Debug)]
pub(crate) struct Asked {
    pub(crate) event: Event,
    pub(crate) reply: Option<oneshot::Sender<Result<(), ShellError>>>,
}

/// Why an event had no effect, or only a part of it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ShellError {
    #[error(transparent)]
    Impossible(#[from] Impossible),
    #[error(transparent)]
    Record(#[from] RoleFileError),
    #[error("cannot {what}: {reason}")]
    Action { what: &'static str, reason: String },
    #[error("the daemon is stopping")]
    Stopped,
}

/// Runs the role machine until told to stop.
pub(crate) async fn run(node: Arc<Node>, mut events: mpsc::Receiver<Asked>, stop: Stop) {
    let mut tick = tokio::time::interval(RETRY_INTERVAL);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    // A node that was taken out of the configuration while the daemon did not run is not waited for.
    let mut first: Vec<Event> = left(&node);
    first.push(Event::Started);
    let mut first = first.into_iter();
    loop {
        let asked = match first.next() {
            Some(event) => Asked { event, reply: None },
            None => tokio::select! {
                asked = events.recv() => match asked {
                    Some(asked) => asked,
                    None => return,
                },
                // What must not serve is looked at again and again: a stop may have failed, and an
                // operating system that has just booted may start what it was told to start.
                _ = tick.tick() => {
                    // Whoever changes the role now has the stores in hand.
                    let Ok(_nobody) = node.promoting.try_lock() else { continue };
                    if must_not_serve(&node) && (node.is_fence_owed() || node.is_serving()) {
                        fence(&node).await;
                    }
                    record_again(&node);
                    if !stop.is_stopped() {
                        // A store is open once, and who looks at a standby's may have opened it.
                        if !node.promoting.is_looked_at() {
                            open_again(&node).await;
                        }
                        crate::returning::come_back(&node);
                        crate::returning::take_back(&node);
                    }
                    continue;
                }
                () = stop.wait() => return,
            },
        };
        let result = handle(&node, asked.event).await;
        if let Err(error) = &result {
            tracing::warn!(%error, "an event of the role machine failed");
        }
        if let Some(reply) = asked.reply {
            // Whoever asked may have gone away.
            let _gone = reply.send(result).is_err();
        }
    }
}

async fn handle(node: &Arc<Node>, event: Event) -> Result<(), ShellError> {
    let before = node.role();
    let heard = format!("{event:?}");
    let (next, actions) = before.step(node.me(), event)?;
    if next != before {
        tracing::info!(event = heard, from = ?before, to = ?next, ?actions, "role machine");
    }
    let since = node.role.borrow().since;
    // From the first moment in which the role allows it: what a fence forbids must stay forbidden.
    if let (Role::Primary { .. } | Role::Promoting { .. }, Some(cluster)) = (&next, &node.cluster) {
        cluster.settle();
    }
    let mut record = RoleRecord::new(node.me().clone(), next.clone());
    if next.name() == before.name() {
        record.since = since;
    }
    // A fenced node calls itself so from the first moment. Any other role is taken only once it is
    // on disk: what peers hear of us must survive a crash.
    let mut is_published = false;
    if actions.first() == Some(&Action::Fence) || !actions.contains(&Action::Record) {
        node.role.send_replace(record.clone());
        is_published = true;
    }
    for action in actions {
        match action {
            Action::Record => {
                record.store(&node.local.state_dir)?;
                if !is_published {
                    node.role.send_replace(record.clone());
                    is_published = true;
                }
                if next.name() != before.name() {
                    node.events.record(
                        Severity::Info,
                        "role",
                        format!(
                            "node {} is now {} in epoch {} (was {})",
                            node.me(),
                            next.name().as_str(),
                            next.epoch(),
                            before.name().as_str()
                        ),
                    );
                }
            }
            Action::Fence => {
                let reason = match (&before, &next) {
                    (Role::Returning { .. }, Role::Returning { .. }) => {
                        "no peer has answered since the restart".to_owned()
                    }
                    _ => format!("epoch {} has superseded it", next.epoch()),
                };
                node.events.record(
                    Severity::Warning,
                    "fencing",
                    format!("node {} stops its services and stores: {reason}", node.me()),
                );
                node.set_alone(matches!(next, Role::Returning { .. }));
                fence(node).await;
            }
            Action::Serve => serve(node, &next).await?,
            // Whoever makes its stores equal to the primary's has it follow afterwards.
            Action::Follow if node.is_rejoining.load(Ordering::SeqCst) => {}
            Action::Follow => follow(node, &next).await?,
            Action::AskPeers => ask_peers(node),
            Action::StopReceiving => {
                if let Stage::Standby(run) = node.stage() {
                    run.stop().await;
                }
            }
        }
    }
    crate::peer_api::refresh(node);
    crate::returning::come_back(node);
    Ok(())
}

/// Returns that standbys have left which the configuration does not name any more.
pub(crate) fn left(node: &Node) -> Vec<Event> {
    let Role::Primary { standbys, .. } = node.role() else {
        return Vec::new();
    };
    let config = node.config();
    let gone = standbys
        .into_iter()
        .filter(|name| config.node(name).is_none());
    gone.map(Event::Left).collect()
}

/// Records that this node is fenced, where a disk that was full then has kept that from being on it.
fn record_again(node: &Node) {
    let record = node.role.borrow().clone();
    if !matches!(record.role, Role::Fenced { .. }) {
        return;
    }
    let state_dir = &node.local.state_dir;
    let is_recorded = RoleRecord::load(state_dir, node.me())
        .is_ok_and(|kept| kept.is_some_and(|kept| kept.role == record.role));
    if is_recorded {
        return;
    }
    match record.store(state_dir) {
        Ok(()) => tracing::info!("the fence is on disk now"),
        Err(error) => tracing::warn!(%error, "the fence is not on disk yet"),
    }
}

/// Returns whether nothing may serve on this node, by its role.
fn must_not_serve(node: &Node) -> bool {
    match node.role() {
        Role::Fenced { .. } => true,
        Role::Returning { .. } => node.is_alone(),
        Role::Primary { .. } | Role::Standby { .. } | Role::Promoting { .. } => false,
    }
}

/// Gives up the address, stops the services and the stores. What fails is told, and owed: [`run`] tries it again.
async fn fence(node: &Arc<Node>) {
    let mut is_done = true;
    node.set_announcement_owed(false);
    // First of all, so that a promotion under way does not start what is about to be stopped.
    if let Some(Err(error)) = node.cluster.as_ref().map(|cluster| cluster.disavow()) {
        tracing::warn!(%error, "postgres could be started by somebody else");
    }
    if let Stage::Primary(run) = node.stage() {
        run.stop_leading().await;
    }
    // Taken last, given up first: from here on no client comes.
    if !crate::front::give_up_address(node).await {
        is_done = false;
    }
    let failures = if matches!(node.role(), Role::Fenced { follows: true, .. }) {
        // In peace: what services write while they stop is waited for, and not lost. They have stopped by now,
        // unless the daemon was started again meanwhile.
        let mut failures = match node.services.is_serving() {
            true => stop_services(node).await,
            false => Vec::new(),
        };
        failures.extend(stop_stores(node).await);
        failures
    } else {
        // Another node may be primary already: whatever is written from now on is written in vain.
        let (services, stores) = tokio::join!(stop_services(node), stop_stores(node));
        services.into_iter().chain(stores).collect()
    };
    for failure in failures {
        node.events.record(Severity::Error, "fence_failed", failure);
        is_done = false;
    }
    node.set_fence_owed(!is_done);
}

/// Stops in peace what clients meet here, before this node hands over: whatever does not stop is found while
/// there is a way back. Where something does not, all of it is brought up again, and the reason returned.
pub(crate) async fn step_aside(node: &Arc<Node>) -> Result<(), String> {
    let failures = {
        // Whoever brings the front up behind the scenes waits, and finds another role after it; one who does it
        // now breaks off once the services are to stop.
        let _front = tokio::time::timeout(FRONT_PATIENCE, node.front.lock()).await;
        node.hooks.offline().await;
        let mut failures = Vec::new();
        if !crate::front::give_up_address(node).await {
            failures.push("cannot give up the address that clients use".to_owned());
        }
        failures.extend(stop_services(node).await);
        failures
    };
    if failures.is_empty() {
        return Ok(());
    }
    let reason = failures.join("; ");
    node.events.record(
        Severity::Error,
        "handover_failed",
        format!(
            "node {} does not hand over, and brings up what it had stopped: {reason}",
            node.me()
        ),
    );
    let restored = node.clone();
    tokio::spawn(async move { crate::front::restore(&restored).await });
    Err(reason)
}

/// Stops the services and the jobs; returns what could not be stopped.
async fn stop_services(node: &Node) -> Vec<String> {
    let mut failures = Vec::new();
    if let Err(error) = node.services.stop_all().await {
        let error = understudy_replication::error_chain(&error);
        failures.push(format!("cannot stop: {error}"));
    }
    // They are being killed since the services were told to stop.
    if !node.jobs.halt().await {
        failures.push("cannot stop: a job still runs".to_owned());
    }
    failures
}

/// Makes every store refuse writes; returns what could not be stopped.
async fn stop_stores(node: &Node) -> Vec<String> {
    match (node.stage(), &node.cluster) {
        (Stage::Primary(run), _) => run.fence().await,
        // Whatever it is: a promotion may be about to make a primary of it.
        (Stage::Idle | Stage::Standby(_), Some(cluster)) => match cluster.stop().await {
            Ok(()) => Vec::new(),
            Err(error) => vec![understudy_replication::error_chain(&error)],
        },
        (Stage::Idle | Stage::Standby(_), None) => Vec::new(),
    }
}

/// Opens the stores of a node whose stores could not be opened when it should have begun: a disk that has
/// failed once, or was not there yet.
async fn open_again(node: &Arc<Node>) {
    let role = node.role();
    match (node.stage(), &role) {
        (Stage::Idle, _) => {}
        // Its stores were to be taken over, and were not.
        (Stage::Standby(run), Role::Standby { .. }) if run.is_stopped() => {}
        (Stage::Standby(_) | Stage::Primary(_), _) => return,
    }
    let opened = match &role {
        Role::Standby { .. } => follow(node, &role).await,
        Role::Primary { .. } => serve(node, &role).await,
        Role::Returning { .. } | Role::Promoting { .. } | Role::Fenced { .. } => return,
    };
    match opened {
        Ok(()) => crate::peer_api::refresh(node),
        Err(error) => tracing::debug!(%error, "failed again"),
    }
}

/// Returns what follows when the stores cannot be opened. It is told once, and a problem for as long as it
/// lasts.
fn not_opened(node: &Node) -> impl FnOnce(String) -> ShellError {
    move |reason| {
        let what = "open the stores";
        let problem = format!("cannot {what}, which is tried again: {reason}");
        if node.set_stores_problem(Some(problem.clone())).as_ref() != Some(&problem) {
            node.events
                .record(Severity::Warning, "stores_closed", problem);
        }
        ShellError::Action { what, reason }
    }
}

async fn serve(node: &Arc<Node>, role: &Role) -> Result<(), ShellError> {
    node.set_fence_owed(false);
    node.set_alone(false);
    if let Stage::Standby(run) = node.set_stage(Stage::Idle) {
        run.stop().await;
    }
    let run = PrimaryRun::start(node, role.epoch().clone())
        .await
        .map_err(not_opened(node))?;
    node.set_stores_problem(None);
    node.set_stage(Stage::Primary(run));
    Ok(())
}

async fn follow(node: &Arc<Node>, role: &Role) -> Result<(), ShellError> {
    let Role::Standby { primary, epoch, .. } = role else {
        return Ok(());
    };
    node.services.arrive();
    let config = node.config();
    let address = config.node(primary).map(|it| it.address);
    match node.stage() {
        // The same node may be primary in a new epoch, and its address may have been changed in the
        // configuration.
        Stage::Standby(run)
            if run.primary() == primary
                && run.epoch() == epoch
                && address.is_none_or(|it| it == run.client().address())
                && !run.is_stopped() =>
        {
            return Ok(());
        }
        Stage::Standby(run) => run.stop().await,
        Stage::Idle | Stage::Primary(_) => {}
    }
    node.set_stage(Stage::Idle);
    let Some(client) = node.peer(primary) else {
        return Err(ShellError::Action {
            what: "follow the primary",
            reason: format!("node {primary} is not in the configuration"),
        });
    };
    let run = StandbyRun::start(node, client)
        .await
        .map_err(not_opened(node))?;
    node.set_stores_problem(None);
    node.set_stage(Stage::Standby(run.clone()));
    // What reads the stores is started when they can be read, and anyway after a while.
    // The stores are not kept open by it: the next that is followed opens them anew.
    let run = Arc::downgrade(&run);
    node.services.follow(async move {
        let has_told = |it: &Arc<dyn Receiver>| it.received().applied.is_some();
        let have_told = async {
            while run
                .upgrade()
                .is_some_and(|run| !run.receivers.iter().all(has_told))
            {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        if tokio::time::timeout(READY_PATIENCE, have_told)
            .await
            .is_err()
        {
            tracing::warn!("services of a standby are started beside stores that are not ready");
        }
    });
    Ok(())
}

/// Asks every peer what it is, until one answers and knows of no higher epoch.
fn ask_peers(node: &Arc<Node>) {
    let node = node.clone();
    tokio::spawn(async move {
        let started = tokio::time::Instant::now();
        let mut is_alone = false;
        while let Role::Returning { epoch, standbys } = node.role() {
            let others = node.config().peers(node.me()).count();
            let grace = if standbys.is_empty() && others <= 1 {
                SOLE_GRACE
            } else {
                RETURNING_GRACE
            };
            // All at once: who is dead must not keep the word of another waiting, and the word of one that has
            // not heard of a higher epoch is nothing beside that of one that has.
            let config = node.config();
            let asked = config
                .peers(node.me())
                .filter_map(|peer| node.peer(&peer.name))
                .map(async |client| (client.node().clone(), crate::peer_api::hello(&client).await));
            let mut is_reassured = false;
            let mut is_superseded = false;
            for (peer, answer) in futures_util::future::join_all(asked).await {
                // A higher epoch in the answer reaches the role machine by itself.
                match answer {
                    Ok(hello) if hello.epoch <= epoch => is_reassured = true,
                    Ok(hello) => {
                        is_superseded = true;
                        tracing::warn!(%peer, epoch = %hello.epoch, "superseded");
                    }
                    Err(error) => tracing::info!(%peer, %error, "no answer yet"),
                }
            }
            if is_reassured && !is_superseded {
                if let Err(error) = node.happen(Event::Reassured).await {
                    tracing::warn!(%error, "cannot return to primary");
                }
                return;
            }
            if !is_alone && started.elapsed() > grace {
                is_alone = true;
                if let Err(error) = node.happen(Event::Alone { others }).await {
                    tracing::warn!(%error, "cannot stop what a restart left running");
                }
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    });
}
