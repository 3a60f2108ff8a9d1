//! The heartbeat: every peer is greeted over every way to it, now and then, whatever the roles.
//!
//! Each side hears the other's epoch by it: two nodes that both served during a partition meet here, and
//! the lesser fences itself. And an operator learns that one of two ways is cut before the other one is.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use understudy_config::NodeName;
use understudy_replication::error_chain;
use understudy_replication::event::Severity;
use understudy_replication::link::ConfigDigest;
use understudy_replication::status::LinkStatus;
use understudy_replication::store::Stop;
use understudy_replication::transport::PeerClient;
use understudy_replication::wall_time::WallTime;

use crate::node::Node;

/// How often the peers are greeted.
const GREETING_INTERVAL: Duration = Duration::from_secs(1);

/// A peer, and where it is reached.
type Way = (NodeName, SocketAddr);

/// Every way to every peer, and how it is.
#[derive(Default)]
pub(crate) struct Links(Mutex<BTreeMap<Way, Link>>);

/// How a greeting went: how long the answer took, and what the peer's configuration says.
type Greeted = Result<(Duration, Option<ConfigDigest>), String>;

struct Link {
    client: Arc<PeerClient>,
    /// What the newest greeting has found; `None` before the first.
    status: Option<LinkStatus>,
    /// When it was greeted first of those times that have had no answer.
    unanswered: Option<Instant>,
    /// The peer has told that its configuration says something else than this node's.
    is_other_config: bool,
}

impl Links {
    /// Returns how every way is that has been tried, in the order of names and addresses.
    pub(crate) fn status(&self) -> Vec<LinkStatus> {
        let links = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        links
            .values()
            .filter_map(|link| link.status.clone())
            .collect()
    }

    /// Returns what an operator has to do about configurations that differ.
    pub(crate) fn problems(&self) -> Vec<String> {
        let links = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut peers: Vec<&NodeName> = links
            .iter()
            .filter(|(_, link)| link.is_other_config)
            .map(|((name, _), _)| name)
            .collect();
        peers.dedup();
        let problem = |name: &NodeName| {
            format!(
                "the configuration in force on node {name} differs from this node's, though it is to be the \
                 same on every node: copy understudy.toml from the node that has it right, then reload or \
                 restart the daemon there"
            )
        };
        peers.into_iter().map(problem).collect()
    }

    /// Returns whether a peer was silent when it was greeted last, on every way to it.
    pub(crate) fn is_down(&self, peer: &NodeName) -> bool {
        let links = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut ways = links
            .iter()
            .filter(|((name, _), _)| name == peer)
            .peekable();
        let is_down = |link: &Link| link.status.as_ref().is_some_and(|status| !status.is_up);
        ways.peek().is_some() && ways.all(|(_, link)| is_down(link))
    }

    /// Returns for how long a peer has owed the answer to a greeting, on every way to it.
    pub(crate) fn silent_for(&self, peer: &NodeName) -> Duration {
        let links = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let ways = links.iter().filter(|((name, _), _)| name == peer);
        let silent_for = |link: &Link| {
            link.unanswered
                .map_or(Duration::ZERO, |since| since.elapsed())
        };
        ways.map(|(_, link)| silent_for(link))
            .min()
            .unwrap_or_default()
    }

    /// Takes in that a peer is being greeted.
    fn greeting(&self, client: &PeerClient, now: Instant) {
        let mut links = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(link) = links.get_mut(&(client.node().clone(), client.address())) {
            link.unanswered.get_or_insert(now);
        }
    }

    /// Returns a client for each way that the configuration names, and forgets the others.
    fn clients(&self, node: &Arc<Node>) -> Vec<Arc<PeerClient>> {
        let config = node.config();
        let ways: Vec<Way> = config
            .peers(node.me())
            .flat_map(|peer| peer.addresses().map(|address| (peer.name.clone(), address)))
            .collect();
        let mut links = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        links.retain(|way, _| ways.contains(way));
        for way in ways {
            links.entry(way).or_insert_with_key(|(name, address)| Link {
                client: Arc::new(PeerClient::new(
                    name.clone(),
                    *address,
                    node.identity.clone(),
                    node.clone(),
                )),
                status: None,
                unanswered: None,
                is_other_config: false,
            });
        }
        links.values().map(|link| link.client.clone()).collect()
    }

    /// Takes in how a greeting went. Where there is another way to the same peer, each change is an event: a
    /// peer with one way is told to be lost by those who follow it.
    fn note(&self, node: &Node, client: &PeerClient, answer: Greeted) {
        let now = WallTime::now();
        let way = (client.node().clone(), client.address());
        let mut links = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_one_of_several = links.keys().filter(|(name, _)| *name == way.0).count() > 1;
        let Some(link) = links.get_mut(&way) else {
            return;
        };
        let before = link.status.as_ref();
        let was_up = before.map(|status| status.is_up);
        let is_up = answer.is_ok();
        let since = match before {
            Some(status) if status.is_up == is_up => status.since,
            Some(_) | None => now,
        };
        let (round_trip_ms, message) = match answer {
            Ok((round_trip, theirs)) => {
                let ours = node.config_digest();
                // Another version may read more, or less, of the same file.
                let is_other = |theirs: ConfigDigest| {
                    theirs.software == ours.software && theirs.digest != ours.digest
                };
                link.is_other_config = theirs.is_some_and(is_other);
                link.unanswered = None;
                (Some(round_trip.as_secs_f64() * 1000.0), String::new())
            }
            Err(reason) => (None, reason),
        };
        let (name, address) = &way;
        if is_one_of_several && was_up != Some(is_up) {
            if !is_up {
                let message = format!(
                    "node {name} does not answer at {address}: {message}; look at that network, since \
                     what is left is one way to it"
                );
                node.events.record(Severity::Warning, "link_lost", message);
            } else if was_up == Some(false) {
                let message = format!("node {name} answers at {address} again");
                node.events.record(Severity::Info, "link_back", message);
            }
        }
        link.status = Some(LinkStatus {
            node: name.clone(),
            address: address.to_string(),
            is_up,
            since,
            round_trip_ms,
            message,
        });
    }
}

/// Greets every peer over every way until told to stop.
pub(crate) async fn greet_always(node: Arc<Node>, stop: Stop) {
    let mut tick = tokio::time::interval(GREETING_INTERVAL);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = tick.tick() => {}
            () = stop.wait() => return,
        }
        crate::pause::look(&node);
        let greetings = node.links.clients(&node).into_iter().map(|client| {
            let node = node.clone();
            async move {
                let begun = Instant::now();
                node.links.greeting(&client, begun);
                let (answer, pause) = match crate::peer_api::hello(&client).await {
                    Ok(hello) => (Ok((begun.elapsed(), hello.config)), Some(hello.pause)),
                    Err(error) => (Err(error_chain(&error)), None),
                };
                node.links.note(&node, &client, answer);
                if let Some(pause) = pause {
                    crate::pause::meet(&node, &client, pause).await;
                }
            }
        });
        tokio::select! {
            _ = join_all(greetings) => {}
            () = stop.wait() => return,
        }
    }
}
