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
    Identity, Lineage, Offered, PeerClient, PeerServer, SharedRouter, frames,
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

/// A server, and a client of it.
struct Served {
    client: PeerClient,
    stopper: Stopper,
    serving: tokio::task::JoinHandle<std::io::Result<()>>,
}

impl Served {
    async fn start(folder: &Path, routes: Router) -> Self {
        let authority = Authority::create("test").unwrap();
        let [ours, theirs] = ["a", "b"].map(|name| identity(folder, &authority, name));
        let router = SharedRouter::default();
        router.set(routes);
        let server = PeerServer {
            identity: ours,
            peers: router,
            anonymous: Router::new(),
            lineage: Arc::new(Lone),
            is_named: Box::new(|_| true),
            events: Events::open(&folder.join("events")).unwrap(),
            strangers: PeerServer::strangers(),
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stopper, stop) = Stopper::new();
        Self {
            serving: tokio::spawn(server.serve(listener, stop)),
            stopper,
            client: PeerClient::new(node("a"), address, theirs, Arc::new(Lone)),
        }
    }

    async fn stop(self) {
        drop(self.client);
        self.stopper.stop();
        self.serving.await.unwrap().unwrap();
    }
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
    let (told, gone) = oneshot::channel();
    let told = Arc::new(Mutex::new(Some(told)));
    let router = Router::new().route("/beat", post(move || beat(told.clone())));
    let served = Served::start(folder.path(), router).await;

    let mut reader = served.client.stream("/beat", &"now").await.unwrap();
    assert_eq!(reader.next().await.unwrap().unwrap(), "beat");
    drop(reader);
    // The client itself lives on: it is the connection of this answer that ends.
    let limit = Duration::from_secs(5);
    tokio::time::timeout(limit, gone).await.unwrap().unwrap();
    served.stop().await;
}

/// Says everything back, twice as long, until the peer closes the link.
async fn echo(mut request: axum::extract::Request) -> Response {
    let (offered, response) = match Offered::of(&mut request, "b".to_owned()) {
        Ok(taken) => taken,
        Err(refusal) => return *refusal,
    };
    tokio::spawn(async move {
        let mut link = offered.link().await.unwrap();
        while let Some(frame) = link.incoming.next().await.unwrap() {
            link.outgoing.add(&[&frame, &frame]);
            link.outgoing.flush(Duration::from_secs(5)).await.unwrap();
        }
    });
    response
}

#[tokio::test(flavor = "multi_thread")]
async fn both_sides_of_a_link_speak_when_they_like() {
    let folder = tempfile::tempdir().unwrap();
    let router = Router::new().route("/echo", axum::routing::get(echo));
    let served = Served::start(folder.path(), router).await;
    let mut link = served.client.duplex("/echo").await.unwrap();
    let limit = Duration::from_secs(5);
    // Three frames at once, of which one is longer than any buffer on the way.
    let long = vec![7; 1 << 20];
    for frame in [&b"a"[..], b"", &long] {
        link.outgoing.add(&[frame]);
    }
    link.outgoing.flush(limit).await.unwrap();
    for frame in [&b"a"[..], b"", &long] {
        let answer = link.incoming.next().await.unwrap().unwrap();
        assert!(answer == [frame, frame].concat());
    }
    drop(link);
    // What is no such link says so, and who asks for one where there is none hears it.
    let refused = served.client.get("/echo").await.unwrap_err();
    assert!(
        refused.to_string().contains("ask for it by `Upgrade`"),
        "{refused}"
    );
    let refused = served.client.duplex("/nowhere").await.unwrap_err();
    assert!(refused.to_string().contains("404"), "{refused}");
    served.stop().await;
}
