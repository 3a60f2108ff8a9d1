//! `understudy pause` and `resume`, and what a node knows of it.
//!
//! ```text
//! verb ─▶ admin socket ─▶ STATE/pause.json ─▶ every peer at once, and with each greeting from then on
//! ```

mod pauses;

use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::Json;
use axum::extract::State;
use hyper::Method;
use serde::{Deserialize, Serialize};
use understudy_config::{Mistake, NodeName};
use understudy_replication::error_chain;
use understudy_replication::pause::{PAUSE_MAX, Pause, PauseRecord};
use understudy_replication::status::PauseStatus;
use understudy_replication::store::Progress;
use understudy_replication::transport::{Caller, PeerClient, PeerError};

use crate::Place;
use crate::failure::Failure;
use crate::node::Node;
use crate::output::{print, print_json};
use crate::serve::load_local;
use crate::who::who_runs_this;
pub(crate) use pauses::Pauses;

/// A peer has so long to take a change that somebody waits for.
const SPREAD_PATIENCE: Duration = Duration::from_secs(3);

/// Have understudy do nothing by itself on the cluster for a while: you work on it by hand
///
/// No service is restarted, no node rejoins by itself, no drill runs. Replication goes on, `promote` and
/// `switchover` work, and a node that was superseded still fences itself. Said once on any node, it holds on all.
#[derive(clap::Args, Debug)]
pub(crate) struct PauseVerb {
    /// For how long, such as 30m or 2h; 7d at most
    #[arg(long = "for", value_name = "TIME", value_parser = length)]
    length: Duration,
    /// Why: everybody who looks at the cluster reads it
    #[arg(long)]
    reason: String,
    /// Who is to be asked about it (default: who runs this)
    #[arg(long)]
    owner: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// End a pause on the whole cluster
#[derive(clap::Args, Debug)]
pub(crate) struct Resume {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What the operator asks.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Order {
    length_ms: u64,
    reason: String,
    owner: String,
}

/// What became of it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Changed {
    /// The pause that is on; of a resume, the one that was ended.
    pause: Option<PauseStatus>,
    /// The nodes that know of it now.
    told: Vec<NodeName>,
    /// Those that do not, and why; they hear of it as soon as they can.
    not_told: Vec<(NodeName, String)>,
}

/// Reads for how long a pause is to last.
fn length(text: &str) -> Result<Duration, Mistake> {
    understudy_config::duration::parse_up_to(text, PAUSE_MAX)
}

impl PauseVerb {
    pub(crate) async fn run(self, place: &Place) -> Result<(), Failure> {
        let socket = load_local(place)?.socket();
        let order = Order {
            length_ms: u64::try_from(self.length.as_millis()).unwrap_or(u64::MAX),
            reason: self.reason,
            owner: self.owner.unwrap_or_else(who_runs_this),
        };
        let changed: Changed = crate::admin::ask(&socket, Method::POST, "/pause", &order).await?;
        if self.json {
            return print_json(&changed);
        }
        let until = changed.pause.as_ref().map(|pause| pause.until);
        print(&format!(
            "Understudy does nothing by itself until {}; `understudy resume` ends that.\n{}",
            until.unwrap_or_default(),
            changed.spread_text()
        ));
        Ok(())
    }
}

impl Resume {
    pub(crate) async fn run(self, place: &Place) -> Result<(), Failure> {
        let socket = load_local(place)?.socket();
        let changed: Changed = crate::admin::ask(&socket, Method::POST, "/resume", &()).await?;
        if self.json {
            return print_json(&changed);
        }
        print(&match &changed.pause {
            Some(pause) => format!(
                "The pause of {} ({}) is over.\n{}",
                pause.owner,
                pause.reason,
                changed.spread_text()
            ),
            None => "No pause was on.".to_owned(),
        });
        Ok(())
    }
}

impl Changed {
    fn spread_text(&self) -> String {
        let told: Vec<&str> = self.told.iter().map(NodeName::as_str).collect();
        let mut text = match told.as_slice() {
            [] => "No other node knows of it yet.\n".to_owned(),
            told => format!("Known on: {}.\n", told.join(", ")),
        };
        for (node, reason) in &self.not_told {
            text += &format!("Node {node} hears of it as soon as it answers: {reason}\n");
        }
        text
    }
}

impl Node {
    /// Returns whether understudy is to do nothing by itself now.
    pub(crate) fn is_paused(&self) -> bool {
        self.pauses.active().is_some()
    }

    /// Has everything that does something by itself know whether it may.
    pub(crate) fn heed_pause(&self) {
        let is_paused = self.is_paused();
        self.services.set_paused(is_paused);
        self.jobs.set_paused(is_paused);
        self.checks.set_muted(is_paused);
    }

    /// Tells whoever acts by hand that somebody has paused the cluster.
    pub(crate) fn tell_pause(&self, progress: &dyn Progress) {
        if let Some(pause) = self.pauses.active() {
            progress.end(&format!("note: {}", pause.sentence()));
        }
    }
}

/// Begins a pause on this node, and tells the others.
pub(crate) async fn begin(node: &Arc<Node>, order: &Order) -> Result<Changed, Failure> {
    let pause = node.pauses.begin(node.me(), order)?;
    node.heed_pause();
    Ok(spread(node, Some(pause)).await)
}

/// Ends a pause on this node, and tells the others.
pub(crate) async fn end(node: &Arc<Node>) -> Result<Changed, Failure> {
    let was = node.pauses.end(node.me())?;
    node.heed_pause();
    crate::returning::come_back(node);
    Ok(spread(node, was).await)
}

/// Tells every peer at once what this node knows.
async fn spread(node: &Arc<Node>, pause: Option<Pause>) -> Changed {
    let config = node.config();
    let clients = config
        .peers(node.me())
        .filter_map(|peer| node.client(&peer.name));
    let answers = clients.map(async |client| {
        let told = tokio::time::timeout(SPREAD_PATIENCE, tell(node, &client)).await;
        let told = match told {
            Ok(told) => told.map_err(|error| error_chain(&error)),
            Err(_) => Err(format!(
                "it did not answer within {} s",
                SPREAD_PATIENCE.as_secs()
            )),
        };
        (client.node().clone(), told)
    });
    let mut changed = Changed {
        pause: pause.map(PauseStatus::from),
        told: Vec::new(),
        not_told: Vec::new(),
    };
    for (name, told) in futures_util::future::join_all(answers).await {
        match told {
            Ok(()) => changed.told.push(name),
            Err(reason) => changed.not_told.push((name, reason)),
        }
    }
    changed
}

/// Tells a peer what this node knows.
async fn tell(node: &Node, peer: &PeerClient) -> Result<(), PeerError> {
    let record = node.pauses.record();
    peer.call("/peer/pause", &record, SPREAD_PATIENCE).await
}

/// Takes what a peer has told with its greeting, and tells it what it does not know.
pub(crate) async fn meet(node: &Arc<Node>, peer: &PeerClient, theirs: Option<PauseRecord>) {
    let theirs = theirs.unwrap_or_default();
    if theirs > node.pauses.record() {
        node.pauses.hear(peer.node(), theirs.clone());
        node.heed_pause();
        crate::returning::come_back(node);
    }
    if node.pauses.record() > theirs
        && let Err(error) = tell(node, peer).await
    {
        tracing::debug!(peer = %peer.node(), %error, "a peer does not take a pause");
    }
}

/// Looks whether a pause has ended, and goes on with what waited for that.
pub(crate) fn look(node: &Arc<Node>) {
    let has_ended = node.pauses.look();
    node.heed_pause();
    if has_ended {
        crate::returning::come_back(node);
    }
}

/// Takes what a peer knows.
pub(crate) async fn hear(
    State(node): State<Arc<Node>>,
    Extension(caller): Extension<Caller>,
    Json(record): Json<PauseRecord>,
) -> Json<()> {
    node.pauses.hear(&caller.node, record);
    node.heed_pause();
    // It may be the end of one.
    crate::returning::come_back(&node);
    Json(())
}
