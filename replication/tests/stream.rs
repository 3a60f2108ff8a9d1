//! A stream of frames whose reader goes away.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::response::Response;
use axum::routing::post;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use understudy_config::NodeName;
use understudy_replication::epoch::Epoch;
use understudy_replication::event::Events;
use understudy_replication::store::Stopper;
use understudy_replication::transport::{
    Identity, Lineage, PeerClient, PeerServer, SharedRouter, frames,
};
use understudy_replication::trust::Authority;

fn node(name: &str) -> NodeName {
    name.parse().unwrap()
}

/// A node whose epoch never changes.
struct Lone;

impl Lineage for Lone {
    fn epoch(&self) -> Epoch {
        Epoch::first(node("a"))
    }

    fn role(&self) -> &'static str {
        "primary"
    }

    fn heard(&self, _: &NodeName, _: &Epoch) {}
}

fn identity(folder: &Path, authority: &Authority, name: &str) -> Identity {
    let pki = folder.join(name);
    fs::create_dir(&pki).unwrap();
    let ip = "127.0.0.1".parse().unwrap();
    let issued = authority.issue(&node(name), ip).unwrap();
    fs::write(pki.join("ca.crt"), authority.certificate()).unwrap();
    fs::write(pki.join("node.crt"), issued.certificate).unwrap();
    fs::write(pki.join("node.key"), issued.key).unwrap();
    Identity::load(&pki).unwrap()
}

/// Answers with a frame every now and then, until nobody reads them.
async fn beat(gone: Arc<Mutex<Option<oneshot::Sender<()>>>>) -> Response {
    let (sender, response) = frames();
    tokio::spawn(async move {
        let mut tick = tokio::time::interval(Duration::from_millis(20));
        loop {
            tokio::select! {
                _ = tick.tick() => drop(sender.send(b"beat").await),
                () = sender.closed() => break,
            }
        }
        let told = gone.lock().unwrap().take().unwrap();
        told.send(()).unwrap();
    });
    response
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_streams_learns_that_its_reader_is_gone() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::create("test").unwrap();
    let [ours, theirs] = ["a", "b"].map(|name| identity(folder.path(), &authority, name));
    let (told, gone) = oneshot::channel();
    let told = Arc::new(Mutex::new(Some(told)));
    let router = SharedRouter::default();
    router.set(Router::new().route("/beat", post(move || beat(told.clone()))));
    let server = PeerServer {
        identity: ours,
        peers: router,
        anonymous: Router::new(),
        lineage: Arc::new(Lone),
        is_named: Box::new(|_| true),
        events: Events::open(&folder.path().join("events")).unwrap(),
        strangers: PeerServer::strangers(),
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stopper, stop) = Stopper::new();
    let serving = tokio::spawn(server.serve(listener, stop));
    let client = PeerClient::new(node("a"), address, theirs, Arc::new(Lone));

    let mut reader = client.stream("/beat", &"now").await.unwrap();
    assert_eq!(reader.next().await.unwrap().unwrap(), "beat");
    drop(reader);
    // The client itself lives on: it is the connection of this answer that ends.
    let limit = Duration::from_secs(5);
    tokio::time::timeout(limit, gone).await.unwrap().unwrap();
    drop(client);
    stopper.stop();
    serving.await.unwrap().unwrap();
}
