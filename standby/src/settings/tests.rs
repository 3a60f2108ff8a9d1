//! A primary and a standby on real files, over the real transport.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use understudy_config::{Globs, NodeName, Settings};
use understudy_primary::settings::{RollbackError, SettingsShipper};
use understudy_replication::epoch::Epoch;
use understudy_replication::event::Events;
use understudy_replication::position::Position;
use understudy_replication::rejoin::{Method, Rejoined, Salvaging, Way};
use understudy_replication::settings::{History, Marker, Origin, Revision};
use understudy_replication::store::{NoProgress, Receiver, Shipper, Stop, Stopper};
use understudy_replication::transport::{Identity, Lineage, PeerClient, PeerServer, SharedRouter};
use understudy_replication::trust::Authority;

use super::{Pulled, SettingsReceiver};

struct Lone(Epoch);

impl Lineage for Lone {
    fn epoch(&self) -> Epoch {
        self.0.clone()
    }

    fn role(&self) -> &'static str {
        "test"
    }

    fn heard(&self, _: &NodeName, _: &Epoch) {}
}

fn node(name: &str) -> NodeName {
    name.parse().unwrap()
}

fn epoch() -> Epoch {
    Epoch::first(node("a"))
}

fn config() -> Settings {
    Settings {
        // Not during a test: what is pulled when is up to each.
        schedule: "0 0 0 1 1 * 2099".parse().unwrap(),
        paths: vec!["/etc/catalog".into()],
        exclude: Globs::new(["node.toml".to_owned()]).unwrap(),
        validate: None,
        reload: None,
    }
}

fn shell(script: &str) -> Option<Vec<String>> {
    Some(["sh", "-c", script].map(str::to_owned).to_vec())
}

/// Two nodes' files in one folder, and the peer port of the first.
struct Pair {
    folder: tempfile::TempDir,
    client: Arc<PeerClient>,
    router: SharedRouter,
    _stopper: Stopper,
}

impl Pair {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::create("test").unwrap();
        let identity = |name: &str| {
            let pki = folder.path().join(name).join("pki");
            fs::create_dir_all(&pki).unwrap();
            let issued = authority
                .issue(&node(name), "127.0.0.1".parse().unwrap())
                .unwrap();
            fs::write(pki.join("ca.crt"), authority.certificate()).unwrap();
            fs::write(pki.join("node.crt"), issued.certificate).unwrap();
            fs::write(pki.join("node.key"), issued.key).unwrap();
            Identity::load(&pki).unwrap()
        };
        let (ours, theirs) = (identity("a"), identity("b"));
        let router = SharedRouter::default();
        let server = PeerServer {
            identity: ours,
            peers: router.clone(),
            anonymous: axum::Router::new(),
            lineage: Arc::new(Lone(epoch())),
            is_named: Box::new(|_| true),
            events: Events::open(&folder.path().join("events")).unwrap(),
            strangers: PeerServer::strangers(),
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stopper, stop) = Stopper::new();
        tokio::spawn(server.serve(listener, stop));
        let client = PeerClient::new(node("a"), address, theirs, Arc::new(Lone(epoch())));
        fs::create_dir_all(folder.path().join("a/root/etc/catalog")).unwrap();
        Self {
            folder,
            client: Arc::new(client),
            router,
            _stopper: stopper,
        }
    }

    fn path(&self, path: &str) -> PathBuf {
        self.folder.path().join(path)
    }

    fn events(&self, node: &str) -> Events {
        Events::open(&self.path(node).join("events")).unwrap()
    }

    fn kinds(&self, node: &str) -> Vec<String> {
        self.events(node)
            .newest(100)
            .into_iter()
            .map(|event| event.kind)
            .collect()
    }

    async fn shipper(&self, config: &Settings) -> Arc<SettingsShipper> {
        let (root, state) = (self.path("a/root"), self.path("a/state"));
        let shipper =
            SettingsShipper::open(config, root, &state, &epoch(), self.events("a")).unwrap();
        let shipper = Arc::new(shipper);
        shipper.open().await.unwrap();
        let routes = shipper.clone().routes();
        self.router
            .set(axum::Router::new().nest("/store/settings", routes));
        shipper
    }

    fn receiver(&self, config: &Settings) -> Arc<SettingsReceiver> {
        let (root, state) = (self.path("b/root"), self.path("b/state"));
        Arc::new(SettingsReceiver::open(config, root, &state, self.events("b")).unwrap())
    }

    /// Writes a setting of a node.
    fn write(&self, node: &str, path: &str, content: &str) {
        let path = self.path(node).join("root").join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    fn read(&self, node: &str, path: &str) -> Option<String> {
        fs::read_to_string(self.path(node).join("root").join(path)).ok()
    }
}

fn position(number: u64) -> Option<Position> {
    Some(Position(number))
}

#[tokio::test]
async fn what_changes_on_the_primary_is_the_same_on_the_standby() {
    let pair = Pair::new().await;
    pair.write("a", "etc/catalog/a.conf", "one");
    pair.write("a", "etc/catalog/gone.conf", "x");
    pair.write("a", "etc/catalog/node.toml", "name = \"a\"");
    pair.write("b", "etc/catalog/node.toml", "name = \"b\"");
    pair.write("b", "etc/catalog/foreign", "mine");
    fs::set_permissions(
        pair.path("a/root/etc/catalog/a.conf"),
        fs::Permissions::from_mode(0o600),
    )
    .unwrap();
    let (shipper, receiver) = (pair.shipper(&config()).await, pair.receiver(&config()));
    assert_eq!(
        (shipper.mark().await, receiver.received().applied),
        (position(1), None)
    );
    receiver.seed(&pair.client, &NoProgress).await.unwrap();
    assert_eq!(receiver.received().applied, position(1));
    assert_eq!(pair.read("b", "etc/catalog/a.conf").as_deref(), Some("one"));
    let mode = fs::metadata(pair.path("b/root/etc/catalog/a.conf"))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o7777, 0o600);

    pair.write("a", "etc/catalog/a.conf", "two");
    fs::remove_file(pair.path("a/root/etc/catalog/gone.conf")).unwrap();
    // The mark itself finds the change: no schedule has come due.
    assert_eq!(shipper.mark().await, position(2));
    assert_eq!(
        receiver.pull(&pair.client).await.unwrap(),
        Pulled::Applied { number: 2 }
    );
    assert_eq!(receiver.pull(&pair.client).await.unwrap(), Pulled::Current);
    assert_eq!(pair.read("b", "etc/catalog/a.conf").as_deref(), Some("two"));
    assert_eq!(pair.read("b", "etc/catalog/gone.conf"), None);
    assert_eq!(
        pair.read("b", "etc/catalog/node.toml").as_deref(),
        Some("name = \"b\"")
    );
    assert_eq!(
        pair.read("b", "etc/catalog/foreign").as_deref(),
        Some("mine")
    );
    let (ours, theirs) = (
        shipper.history().list().unwrap(),
        receiver.history().list().unwrap(),
    );
    assert_eq!(ours, theirs);
}

#[tokio::test]
async fn a_refused_revision_stays_visible_and_a_later_good_one_is_applied() {
    let pair = Pair::new().await;
    let validating = Settings {
        validate: shell("echo checked; ! grep -r bad \"$UNDERSTUDY_SETTINGS_DIR/etc\""),
        reload: shell(&format!("echo x >>{}", pair.path("reloads").display())),
        ..config()
    };
    pair.write("a", "etc/catalog/a.conf", "good");
    let (_shipper, receiver) = (pair.shipper(&config()).await, pair.receiver(&validating));
    assert_eq!(
        receiver.pull(&pair.client).await.unwrap(),
        Pulled::Applied { number: 1 }
    );
    pair.write("a", "etc/catalog/a.conf", "bad");
    for _ in 0..2 {
        let pulled = receiver.pull(&pair.client).await.unwrap();
        let Pulled::Refused { reason } = pulled else {
            panic!("{pulled:?}")
        };
        assert!(reason.starts_with("revision 2 of the settings did not validate: `sh` failed"));
        assert!(reason.ends_with("etc/catalog/a.conf:bad"), "{reason}");
    }
    assert_eq!(
        pair.read("b", "etc/catalog/a.conf").as_deref(),
        Some("good")
    );
    let received = receiver.received();
    assert_eq!(
        (received.applied, received.flushed),
        (position(1), position(1))
    );
    assert_eq!(received.report.problems, [received.stalled.unwrap()]);
    let refused = pair
        .kinds("b")
        .into_iter()
        .filter(|kind| kind == "settings_refused");
    assert_eq!(refused.count(), 1);
    let kept = History::open(&pair.path("b/state"))
        .unwrap()
        .refused()
        .unwrap()
        .unwrap();
    assert_eq!(kept.summary.number, 2);
    // It is still told after a restart.
    drop(receiver);
    let receiver = pair.receiver(&validating);
    assert!(receiver.received().stalled.is_some());
    assert_eq!(receiver.received().applied, position(1));

    pair.write("a", "etc/catalog/a.conf", "better");
    assert_eq!(
        receiver.pull(&pair.client).await.unwrap(),
        Pulled::Applied { number: 3 }
    );
    assert_eq!(receiver.received().stalled, None);
    assert_eq!(receiver.history().refused().unwrap(), None);
    assert_eq!(fs::read_to_string(pair.path("reloads")).unwrap(), "x\nx\n");
    assert_eq!(
        fs::read_dir(pair.path("b/state/staging")).unwrap().count(),
        0
    );
}

#[tokio::test]
async fn a_reload_that_fails_is_told_and_tried_again() {
    let pair = Pair::new().await;
    let flag = pair.path("ready");
    let reloading = Settings {
        reload: shell(&format!("cat {}", flag.display())),
        ..config()
    };
    pair.write("a", "etc/catalog/a.conf", "x");
    let (_shipper, receiver) = (pair.shipper(&config()).await, pair.receiver(&reloading));
    assert_eq!(
        receiver.pull(&pair.client).await.unwrap(),
        Pulled::Applied { number: 1 }
    );
    assert_eq!(receiver.received().stalled, None);
    assert_eq!(receiver.received().report.problems.len(), 1);
    assert!(
        pair.kinds("b")
            .contains(&"settings_reload_failed".to_owned())
    );
    fs::write(&flag, "").unwrap();
    assert_eq!(receiver.pull(&pair.client).await.unwrap(), Pulled::Current);
    assert_eq!(receiver.received().report.problems, Vec::<String>::new());
}

#[tokio::test]
async fn a_rollback_keeps_the_present_becomes_a_revision_and_flows() {
    let pair = Pair::new().await;
    let validating = Settings {
        validate: shell("! grep -rq bad {dir}"),
        reload: shell(&format!("echo x >>{}", pair.path("reloads").display())),
        ..config()
    };
    pair.write("a", "etc/catalog/a.conf", "one");
    let (shipper, receiver) = (pair.shipper(&validating).await, pair.receiver(&config()));
    receiver.pull(&pair.client).await.unwrap();
    pair.write("a", "etc/catalog/a.conf", "bad");
    assert_eq!(shipper.mark().await, position(2));
    pair.write("a", "etc/catalog/a.conf", "not yet seen");
    pair.write("a", "etc/catalog/new.conf", "n");
    let done = shipper.rollback(1).await.unwrap();
    assert_eq!(
        (done.before.number, done.now.number, done.reload_error),
        (3, 4, None)
    );
    assert_eq!(pair.read("a", "etc/catalog/a.conf").as_deref(), Some("one"));
    assert_eq!(pair.read("a", "etc/catalog/new.conf"), None);
    assert_eq!(shipper.mark().await, position(4));
    assert_eq!(
        receiver.pull(&pair.client).await.unwrap(),
        Pulled::Applied { number: 4 }
    );
    assert_eq!(pair.read("b", "etc/catalog/a.conf").as_deref(), Some("one"));
    assert_eq!(fs::read_to_string(pair.path("reloads")).unwrap(), "x\n");

    let refused = shipper.rollback(2).await.unwrap_err();
    assert!(
        matches!(refused, RollbackError::Refused { number: 2, .. }),
        "{refused:?}"
    );
    assert!(matches!(
        shipper.rollback(77).await,
        Err(RollbackError::History { .. })
    ));
    assert!(matches!(
        shipper.rollback(1).await,
        Err(RollbackError::Same { .. })
    ));
    assert_eq!(shipper.mark().await, position(4));
}

#[tokio::test]
async fn a_rollback_that_was_cut_short_is_completed() {
    let pair = Pair::new().await;
    pair.write("a", "etc/catalog/a.conf", "one");
    let shipper = pair.shipper(&config()).await;
    pair.write("a", "etc/catalog/a.conf", "two");
    assert_eq!(shipper.mark().await, position(2));
    let before = shipper.history().applied().unwrap().unwrap();
    shipper.rollback(1).await.unwrap();
    let after = shipper.history().applied().unwrap().unwrap();
    // As a crash before the first file leaves it.
    shipper.history().set_applied(&before).unwrap();
    let pending = serde_json::to_vec(&[&after]).unwrap();
    fs::write(pair.path("a/state/settings/pending.json"), pending).unwrap();
    pair.write("a", "etc/catalog/a.conf", "two");
    let shipper = pair.shipper(&config()).await;
    assert_eq!(shipper.mark().await, position(3));
    assert_eq!(pair.read("a", "etc/catalog/a.conf").as_deref(), Some("one"));
}

#[tokio::test]
async fn a_hostile_revision_is_refused_whole() {
    let pair = Pair::new().await;
    pair.write("a", "etc/catalog/a.conf", "x");
    // The peer's own configuration has a path that ours has not.
    pair.write("a", "etc/passwd", "root::0:0");
    let paths = vec!["/etc/catalog".into(), "/etc/passwd".into()];
    let hostile = Settings { paths, ..config() };
    let (_shipper, receiver) = (pair.shipper(&hostile).await, pair.receiver(&config()));
    let pulled = receiver.pull(&pair.client).await.unwrap();
    let Pulled::Refused { reason } = pulled else {
        panic!("{pulled:?}")
    };
    assert_eq!(
        reason,
        "revision 1 has `/etc/passwd`, which is not within the paths of [settings] on this node"
    );
    assert!(!pair.path("b/root").exists());
    assert!(receiver.seed(&pair.client, &NoProgress).await.is_err());

    let garbage = axum::Router::new().route(
        "/store/settings/revision",
        axum::routing::get(async || {
            let (sender, response) = understudy_replication::transport::frames();
            tokio::spawn(async move { sender.send(b"\x01/../../etc/passwd").await });
            response
        }),
    );
    pair.router.set(garbage);
    let pulled = receiver.pull(&pair.client).await.unwrap();
    assert!(matches!(pulled, Pulled::Refused { .. }), "{pulled:?}");
    assert!(receiver.received().stalled.is_some());
}

#[tokio::test]
async fn local_versions_are_kept_aside_and_local_changes_undone() {
    let pair = Pair::new().await;
    pair.write("a", "etc/catalog/a.conf", "theirs");
    pair.write("b", "etc/catalog/a.conf", "local");
    let (_shipper, receiver) = (pair.shipper(&config()).await, pair.receiver(&config()));
    receiver.seed(&pair.client, &NoProgress).await.unwrap();
    let kept = |number: u64| {
        fs::read_to_string(pair.path(&format!(
            "b/state/settings/replaced/{number}/etc/catalog/a.conf"
        )))
    };
    assert_eq!(kept(1).unwrap(), "local");
    pair.write("b", "etc/catalog/a.conf", "edited on the standby");
    assert_eq!(receiver.pull(&pair.client).await.unwrap(), Pulled::Current);
    assert_eq!(
        pair.read("b", "etc/catalog/a.conf").as_deref(),
        Some("theirs")
    );
    assert_eq!(
        pair.kinds("b").last().map(String::as_str),
        Some("settings_restored")
    );
}

#[tokio::test]
async fn a_new_primary_continues_the_numbers_and_the_old_one_follows() {
    let pair = Pair::new().await;
    pair.write("a", "etc/catalog/a.conf", "one");
    let (shipper, receiver) = (pair.shipper(&config()).await, pair.receiver(&config()));
    receiver.pull(&pair.client).await.unwrap();
    // What the old primary did not get across.
    pair.write("a", "etc/catalog/a.conf", "lost");
    assert_eq!(shipper.mark().await, position(2));
    receiver
        .take_over(&epoch().superseded_by(node("b")), &NoProgress)
        .await
        .unwrap();
    let (root, state) = (pair.path("b/root"), pair.path("b/state"));
    let epoch = epoch().superseded_by(node("b"));
    let promoted =
        Arc::new(SettingsShipper::open(&config(), root, &state, &epoch, pair.events("b")).unwrap());
    promoted.open().await.unwrap();
    assert_eq!(promoted.mark().await, position(1));
    pair.write("b", "etc/catalog/a.conf", "after");
    assert_eq!(promoted.mark().await, position(2));

    pair.router
        .set(axum::Router::new().nest("/store/settings", promoted.clone().routes()));
    let (root, state) = (pair.path("a/root"), pair.path("a/state"));
    let returned = SettingsReceiver::open(&config(), root, &state, pair.events("a")).unwrap();
    // Its own number 2 says nothing in the new epoch.
    assert_eq!(returned.received().applied, None);
    assert_eq!(
        returned.pull(&pair.client).await.unwrap(),
        Pulled::Applied { number: 2 }
    );
    assert_eq!(
        pair.read("a", "etc/catalog/a.conf").as_deref(),
        Some("after")
    );
    assert_eq!(
        returned.history().applied().unwrap().unwrap().origin,
        Origin::Received
    );
    // What was lost exists still.
    let folder = pair.path("a/state/settings/history");
    let superseded = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let superseded: Vec<PathBuf> = superseded
        .filter(|path| path.extension().unwrap() == "superseded")
        .collect();
    let lost = Revision::decode(&fs::read(&superseded[0]).unwrap()).unwrap();
    assert_eq!((superseded.len(), lost.number()), (1, 2));
}

#[tokio::test]
async fn a_rejoin_foresees_and_tells_what_only_this_node_had() {
    let pair = Pair::new().await;
    pair.write("a", "etc/catalog/a.conf", "one");
    pair.write("a", "etc/catalog/b.conf", "b");
    let (shipper, receiver) = (pair.shipper(&config()).await, pair.receiver(&config()));
    receiver.pull(&pair.client).await.unwrap();
    // What the old primary did not get across, and what nobody captured.
    pair.write("a", "etc/catalog/a.conf", "lost");
    assert_eq!(shipper.mark().await, position(2));
    pair.write("a", "etc/catalog/b.conf", "edited");
    let (root, state) = (pair.path("b/root"), pair.path("b/state"));
    let epoch = epoch().superseded_by(node("b"));
    let promoted =
        Arc::new(SettingsShipper::open(&config(), root, &state, &epoch, pair.events("b")).unwrap());
    promoted.open().await.unwrap();
    for (number, content) in [(2, "after"), (3, "later")] {
        pair.write("b", "etc/catalog/a.conf", content);
        assert_eq!(promoted.mark().await, position(number));
    }
    pair.router
        .set(axum::Router::new().nest("/store/settings", promoted.clone().routes()));
    let (root, state) = (pair.path("a/root"), pair.path("a/state"));
    let returned = SettingsReceiver::open(&config(), root, &state, pair.events("a")).unwrap();

    let lost = returned.history().show(2).unwrap();
    let before = returned.history().list().unwrap();
    let foreseen = returned.foresee(&pair.client).await.unwrap().unwrap();
    assert_eq!(foreseen.way, Way::Replaced);
    let length = u64::try_from(lost.encode().len()).unwrap();
    assert_eq!(foreseen.salvaged_bytes, Some(length + 6));
    assert_eq!(
        foreseen.basis,
        "the primary's newest revision, and the files here, of which 1 were edited since, such as \
         /etc/catalog/b.conf, and its history, which never had revision 2 of epoch 1.a here"
    );
    assert_eq!(returned.history().list().unwrap(), before);
    assert_eq!(
        pair.read("a", "etc/catalog/b.conf").as_deref(),
        Some("edited")
    );

    let rejoin = async || {
        let order = Salvaging::Required;
        let rejoined = returned.rejoin(&pair.client, order, &NoProgress).await;
        rejoined.unwrap()
    };
    let rejoined = rejoin().await;
    assert_eq!(rejoined.method, Method::Replaced);
    assert_eq!(rejoined.travelled, foreseen.travelling_bytes);
    let salvaged = rejoined.salvaged.unwrap();
    assert_eq!(Some(salvaged.bytes), foreseen.salvaged_bytes);
    assert!(salvaged.is_complete);
    let told = &salvaged.summary;
    assert!(
        told.starts_with("revision 2 of epoch 1.a, which the primary never had; 1 files"),
        "{told}"
    );
    assert_eq!(
        returned.history().load(2, lost.digest()).unwrap(),
        lost,
        "it is kept"
    );
    let numbers = returned.history().list().unwrap();
    let numbers: Vec<u64> = numbers.iter().map(|it| it.number).collect();
    assert_eq!(numbers, [1, 3], "what the primary never had is none of it");
    assert!(pair.kinds("a").contains(&"settings_kept".to_owned()));

    // Nothing is left to be told.
    let foreseen = returned.foresee(&pair.client).await.unwrap().unwrap();
    assert_eq!(
        (foreseen.way, foreseen.salvaged_bytes),
        (Way::Equal, Some(0))
    );
    assert_eq!(
        rejoin().await,
        Rejoined {
            travelled: Some(0),
            ..Rejoined::by(Method::Equal)
        }
    );
}

#[tokio::test]
async fn what_was_captured_here_and_confirmed_since_can_be_promoted_after_a_restart() {
    let pair = Pair::new().await;
    pair.write("a", "etc/catalog/a.conf", "one");
    let (_shipper, receiver) = (pair.shipper(&config()).await, pair.receiver(&config()));
    receiver.pull(&pair.client).await.unwrap();
    // As a node has it that was primary before, and handed over all that there was.
    let received = receiver.history().applied().unwrap().unwrap();
    let captured = Marker {
        origin: Origin::Captured,
        ..received.clone()
    };
    receiver.history().set_applied(&captured).unwrap();
    let returned = pair.receiver(&config());
    assert_eq!(returned.received().applied, None);
    assert_eq!(returned.pull(&pair.client).await.unwrap(), Pulled::Current);
    // Nobody is there to confirm it again.
    let restarted = pair.receiver(&config());
    assert_eq!(restarted.received().applied, position(1));
    assert_eq!(restarted.history().applied().unwrap().unwrap(), received);
}

#[tokio::test]
async fn what_was_accepted_before_a_crash_is_complete_after_take_over() {
    let pair = Pair::new().await;
    pair.write("a", "etc/catalog/a.conf", "one");
    let (_shipper, receiver) = (pair.shipper(&config()).await, pair.receiver(&config()));
    receiver.pull(&pair.client).await.unwrap();
    let marker = receiver.history().applied().unwrap().unwrap();
    pair.write("a", "etc/catalog/a.conf", "two");
    receiver.pull(&pair.client).await.unwrap();
    let after = receiver.history().applied().unwrap().unwrap();
    // As a crash before the marker leaves it: pending, with the file as it was.
    receiver.history().set_applied(&marker).unwrap();
    let pending = serde_json::to_vec(&[&after]).unwrap();
    fs::write(pair.path("b/state/settings/pending.json"), pending).unwrap();
    pair.write("b", "etc/catalog/a.conf", "one");
    let receiver = pair.receiver(&config());
    assert_eq!(receiver.received().applied, position(1));
    receiver
        .take_over(&epoch().superseded_by(node("b")), &NoProgress)
        .await
        .unwrap();
    assert_eq!(receiver.received().applied, position(2));
    assert_eq!(pair.read("b", "etc/catalog/a.conf").as_deref(), Some("two"));
}

#[tokio::test]
async fn a_schedule_pulls_by_itself_and_stops_when_told() {
    let pair = Pair::new().await;
    let every_second = Settings {
        schedule: "* * * * * *".parse().unwrap(),
        ..config()
    };
    pair.write("a", "etc/catalog/a.conf", "one");
    let _shipper = pair.shipper(&config()).await;
    let receiver = pair.receiver(&every_second);
    let (stopper, stop): (Stopper, Stop) = Stopper::new();
    let running = tokio::spawn(receiver.clone().run(pair.client.clone(), stop));
    let until = async |path: &Path, content: &str| {
        let came = async {
            while fs::read_to_string(path).ok().as_deref() != Some(content) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), came)
            .await
            .unwrap();
    };
    let path = pair.path("b/root/etc/catalog/a.conf");
    until(&path, "one").await;
    pair.write("a", "etc/catalog/a.conf", "two");
    until(&path, "two").await;
    stopper.stop();
    tokio::time::timeout(Duration::from_secs(20), running)
        .await
        .unwrap()
        .unwrap()
        .unwrap();
}

#[tokio::test]
async fn a_large_revision_travels_in_many_frames() {
    let pair = Pair::new().await;
    let large = "0123456789abcdef".repeat(600_000);
    pair.write("a", "etc/catalog/a.conf", &large);
    let (_shipper, receiver) = (pair.shipper(&config()).await, pair.receiver(&config()));
    assert_eq!(
        receiver.pull(&pair.client).await.unwrap(),
        Pulled::Applied { number: 1 }
    );
    assert!(pair.read("b", "etc/catalog/a.conf") == Some(large));
}

#[tokio::test]
async fn the_loss_of_all_settings_is_a_problem_and_not_a_revision() {
    let pair = Pair::new().await;
    pair.write("a", "etc/catalog/a.conf", "one");
    let (shipper, receiver) = (pair.shipper(&config()).await, pair.receiver(&config()));
    receiver.pull(&pair.client).await.unwrap();
    fs::rename(pair.path("a/root"), pair.path("a/away")).unwrap();
    assert_eq!(shipper.mark().await, None);
    assert_eq!(shipper.report().problems.len(), 1);
    assert!(receiver.pull(&pair.client).await.is_err());
    assert_eq!(pair.read("b", "etc/catalog/a.conf").as_deref(), Some("one"));
    fs::rename(pair.path("a/away"), pair.path("a/root")).unwrap();
    assert_eq!(shipper.mark().await, position(1));
    assert_eq!(shipper.report().problems, Vec::<String>::new());
}
