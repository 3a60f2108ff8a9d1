//! Two standbys of one primary: what one of them does costs the other nothing.

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use understudy_replication::store::{NoProgress, Receiver};
use understudy_replication::transport::PeerClient;
use understudy_standby::files::FilesReceiver;

use super::pair::{Followed, Following, Pair, agree_at, until};

/// A link to the primary on which nothing passes while it is held up, and nobody hangs up either.
struct Link {
    address: SocketAddr,
    is_open: watch::Sender<bool>,
}

impl Link {
    async fn to(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (is_open, gate) = watch::channel(true);
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let gate = gate.clone();
                tokio::spawn(async move {
                    let far = TcpStream::connect(target).await?;
                    let ((near_in, near_out), (far_in, far_out)) =
                        (near.into_split(), far.into_split());
                    tokio::spawn(carry(near_in, far_out, gate.clone()));
                    carry(far_in, near_out, gate).await
                });
            }
        });
        Self { address, is_open }
    }
}

async fn carry(
    mut from: impl AsyncReadExt + Unpin,
    mut to: impl AsyncWriteExt + Unpin,
    mut gate: watch::Receiver<bool>,
) -> std::io::Result<()> {
    let mut buffer = vec![0; 16 << 10];
    loop {
        let count = from.read(&mut buffer).await?;
        if count == 0 || gate.wait_for(|is_open| *is_open).await.is_err() {
            return to.shutdown().await;
        }
        to.write_all(&buffer[..count]).await?;
    }
}

/// The second standby.
struct Other {
    copy: PathBuf,
    client: Arc<PeerClient>,
    receiver: Arc<FilesReceiver>,
    following: Following,
}

impl Other {
    async fn of(pair: &Pair, address: SocketAddr) -> Self {
        let (client, _) = pair.client_of("c", address);
        let receiver = pair.receiver_of("c");
        receiver.seed(&client, &NoProgress).await.unwrap();
        let following = Pair::follow_by(&receiver, &client);
        Self {
            copy: pair.folder.path().join("c/root"),
            client,
            receiver,
            following,
        }
    }

    async fn agree(&self, followed: &Followed) {
        agree_at(
            &followed.pair,
            &followed.primary,
            &self.receiver,
            &self.copy,
        )
        .await;
    }
}

/// Small and large, made, changed, moved and deleted.
fn change(followed: &Followed, round: usize) {
    let source = followed.source();
    let folder = source.join(format!("{round}"));
    fs::create_dir(&folder).unwrap();
    for number in 0..20 {
        fs::write(
            folder.join(format!("{number}")),
            format!("{round} {number}"),
        )
        .unwrap();
    }
    fs::write(
        source.join("patched"),
        vec![u8::try_from(round).unwrap(); 600_000],
    )
    .unwrap();
    fs::write(folder.join("large"), vec![b'l'; 2 << 20]).unwrap();
    if let Some(former) = round.checked_sub(1) {
        let former = source.join(format!("{former}"));
        fs::rename(former.join("3"), folder.join("moved")).unwrap();
        fs::remove_dir_all(former).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_that_is_away_or_held_up_costs_the_other_nothing() {
    let followed = Followed::of(|_| {}).await;
    let link = Link::to(followed.pair.address).await;
    let mut other = Other::of(&followed.pair, link.address).await;
    change(&followed, 0);
    followed.agree().await;
    other.agree(&followed).await;

    // Held up in the middle of whatever it does.
    link.is_open.send_replace(false);
    let held_up = other.receiver.received().applied;
    for round in 1..4 {
        change(&followed, round);
        followed.agree().await;
    }
    let behind = other.receiver.received().applied;
    assert_eq!(behind, held_up, "nothing has passed");
    assert!(behind < followed.receiver.received().applied);
    link.is_open.send_replace(true);
    other.agree(&followed).await;

    // Away, and the first one goes on.
    other.following.stop().await;
    drop(other.receiver);
    for round in 4..6 {
        change(&followed, round);
        followed.agree().await;
    }
    other.receiver = followed.pair.receiver_of("c");
    assert!(other.receiver.received().applied < followed.receiver.received().applied);
    other.following = Pair::follow_by(&other.receiver, &other.client);
    // While one catches up the other is served.
    change(&followed, 6);
    followed.agree().await;
    other.agree(&followed).await;
    let events = [followed.pair.events("b"), followed.pair.events("c")].concat();
    assert!(!events.contains(&"files_compare".to_owned()), "{events:?}");

    // Now the first is the one that is away.
    let first = followed.receiver.received().applied;
    let Followed {
        pair,
        primary,
        receiver,
        following,
    } = followed;
    following.stop().await;
    fs::write(pair.source().join("late"), "late").unwrap();
    agree_at(&pair, &primary, &other.receiver, &other.copy).await;
    assert_eq!(receiver.received().applied, first);
    let following = pair.follow(&receiver);
    let is_there = || pair.copy().join("late").exists();
    until(is_there, || format!("{:?}", receiver.received())).await;
    other.following.stop().await;
    Followed {
        pair,
        primary,
        receiver,
        following,
    }
    .end()
    .await;
}
