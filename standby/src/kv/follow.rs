//! A link to the primary, from its opening to its end: hellos, snapshots, sessions. In a thread that blocks:
//! it reads the socket, syncs the disk and answers, and nobody has to be woken in between.

use std::cell::Cell;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use understudy_replication::durable;
use understudy_replication::event::Severity;
use understudy_replication::kv::point::Point;
use understudy_replication::kv::protocol::{Attempt, Follower, Kept, Welcome};
use understudy_replication::kv::salvage::{self, Acknowledged, SalvageError, Superseded};
use understudy_replication::kv::snapshot::{Begin, Part};
use understudy_replication::kv::storage::{Storage, StorageError};
use understudy_replication::kv::wire::{
    self, FollowerSays, FromLeader, HEARTBEAT_INTERVAL, Hello, KV_LINK_VERSION, LeaderSays,
    SILENCE_MAX,
};
use understudy_replication::position::Position;
use understudy_replication::rejoin::Salvaged;
use understudy_replication::store::{Progress, Stop, Unit};
use understudy_replication::transport::{Duplex, PeerClient};
use understudy_replication::wall_time::WallTime;

use super::session::Session;
use super::{KvError, Shared};

/// How long the primary may take to take what it is told.
const SEND_PATIENCE: Duration = Duration::from_secs(10);

/// Links are opened anew at most so often.
const RETRY_INTERVAL: Duration = Duration::from_millis(100);

/// How long the primary may take to answer a hello: it looks through its log.
const WELCOME_PATIENCE: Duration = Duration::from_secs(20);

/// When to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Until {
    /// When told to.
    Stopped,
    /// When the copy has what the primary had at the beginning, or when told to.
    CaughtUp,
}

/// What is needed to follow.
pub(super) struct Following<'a> {
    pub(super) shared: &'a Arc<Shared>,
    pub(super) storage: Arc<Storage>,
    pub(super) handle: &'a Handle,
    pub(super) stop: &'a Stop,
    pub(super) follower: Follower,
    pub(super) until: Until,
    /// Where the primary was when it was first asked: what has to be reached.
    pub(super) goal: Option<Position>,
    /// The next hello asks for the table.
    pub(super) wants_snapshot: bool,
    /// When this node last said something on the link.
    said: Cell<Instant>,
    primary: &'a PeerClient,
    progress: &'a dyn Progress,
}

/// Follows `primary` until `until`. Blocks.
///
/// # Errors
/// When the link fails, or the disk; called again, it goes on from what is there.
pub(super) fn follow(
    shared: &Arc<Shared>,
    handle: &Handle,
    primary: &PeerClient,
    stop: &Stop,
    until: Until,
    progress: &dyn Progress,
) -> Result<(), KvError> {
    let storage = shared.storage()?;
    let kept = Kept {
        base: storage.base(),
        tail: storage.sync()?,
        applied: storage.visible().position(),
    };
    // Each link is a connection of its own, so that no answer to an older try can come on it.
    let attempt = Attempt(WallTime::now().0);
    let mut following = Following {
        shared,
        storage,
        handle,
        stop,
        follower: Follower::new(kept, Some(primary.epoch()), attempt),
        until,
        goal: None,
        wants_snapshot: false,
        said: Cell::new(Instant::now()),
        primary,
        progress,
    };
    let ended = following.run();
    if let Err(KvError::Storage(_)) = &ended {
        // What is in memory may not be what is on the disk: it is read again.
        shared.slot.close();
        shared.state().storage = None;
    }
    ended
}

impl Following<'_> {
    fn run(&mut self) -> Result<(), KvError> {
        loop {
            let opened = self.wait(
                self.primary
                    .duplex(&format!("/store/{}/link", self.shared.id.name)),
            );
            let Some(duplex) = opened else {
                return Ok(());
            };
            let mut duplex = duplex?;
            let ended = self.talk(&mut duplex);
            drop(duplex);
            self.follower.session_lost();
            match ended {
                Err(KvError::Gap) => {
                    tracing::info!("the key-value link to the primary is opened anew");
                    if self.wait(tokio::time::sleep(RETRY_INTERVAL)).is_none() {
                        return Ok(());
                    }
                }
                ended => return ended,
            }
        }
    }

    /// Waits for something to be ready; `None` when told to stop meanwhile.
    pub(super) fn wait<T>(&self, ready: impl Future<Output = T>) -> Option<T> {
        self.handle.block_on(async {
            tokio::select! {
                biased;
                () = self.stop.wait() => None,
                value = ready => Some(value),
            }
        })
    }

    /// Sends a frame.
    pub(super) fn say(&self, duplex: &mut Duplex, says: &FollowerSays) -> Result<(), KvError> {
        self.said.set(Instant::now());
        duplex.outgoing.add(&[&wire::encode(says)?]);
        let sent = self.wait(duplex.outgoing.flush(SEND_PATIENCE));
        Ok(sent.unwrap_or(Ok(()))?)
    }

    /// Returns the next frame, telling meanwhile that this node is there; `None` when told to stop.
    pub(super) fn next(
        &self,
        duplex: &mut Duplex,
        limit: Duration,
    ) -> Result<Option<FromLeader>, KvError> {
        let begun = Instant::now();
        loop {
            // Whatever is heard: the primary has to know that somebody is here.
            if self.said.get().elapsed() >= HEARTBEAT_INTERVAL {
                self.say(duplex, &FollowerSays::Here)?;
            }
            // Made within the runtime, whose timer it is.
            let frame =
                async { tokio::time::timeout(HEARTBEAT_INTERVAL, duplex.incoming.next()).await };
            let Some(frame) = self.wait(frame) else {
                return Ok(None);
            };
            match frame {
                Ok(frame) => {
                    let frame = frame?.ok_or(KvError::Closed)?;
                    let bytes = u64::try_from(frame.len()).unwrap_or(u64::MAX);
                    self.shared.came.fetch_add(bytes, Ordering::Relaxed);
                    return Ok(Some(wire::from_leader(frame)?));
                }
                Err(_) if begun.elapsed() >= limit => return Err(KvError::Silent { limit }),
                Err(_) => {}
            }
        }
    }

    /// Says hello, and does what the answer asks for, until the link ends.
    fn talk(&mut self, duplex: &mut Duplex) -> Result<(), KvError> {
        loop {
            let attempt = self.follower.connect();
            let hello = Hello {
                version: KV_LINK_VERSION,
                attempt,
                promised: self.primary.epoch(),
                sketch: self.storage.sketch(),
                wants_snapshot: self.wants_snapshot,
            };
            self.say(duplex, &FollowerSays::Hello(hello))?;
            let Some(answer) = self.next(duplex, WELCOME_PATIENCE)? else {
                return Ok(());
            };
            match answer {
                FromLeader::Says(LeaderSays::Welcome { welcome, .. }) => {
                    return self.session(duplex, &welcome);
                }
                FromLeader::Says(LeaderSays::Snapshot { begin, shared }) => {
                    if !self.take_snapshot(duplex, begin, shared)? {
                        return Ok(());
                    }
                    self.wants_snapshot = false;
                }
                FromLeader::Says(LeaderSays::Refused { reason }) => {
                    return Err(KvError::Refused { reason });
                }
                FromLeader::Says(LeaderSays::Part(_)) | FromLeader::Entries { .. } => {
                    return Err(KvError::OutOfTurn);
                }
            }
        }
    }

    fn session(&mut self, duplex: &mut Duplex, welcome: &Welcome) -> Result<(), KvError> {
        let own = self.storage.digest_at(welcome.from.position);
        let actions = self.follower.welcomed(welcome, own);
        self.shared.state().stalled = None;
        if self.goal.is_none() {
            self.goal = Some(welcome.end);
            let missing = welcome.end.ahead_of(welcome.from.position);
            self.progress
                .start("key-value store: log", Some(missing), Unit::Items);
        }
        let mut session = Session::new(welcome);
        session.act(self, duplex, actions)?;
        while !self.is_there(welcome)? {
            let Some(frame) = self.next(duplex, SILENCE_MAX)? else {
                return Ok(());
            };
            session.take(self, duplex, frame)?;
            let done = self.storage.bounds().1.ahead_of(welcome.from.position);
            self.progress.at(done);
        }
        self.progress.end("copied");
        Ok(())
    }

    /// Returns whether what was to be reached is.
    fn is_there(&self, welcome: &Welcome) -> Result<bool, KvError> {
        let goal = self.goal.unwrap_or(welcome.end);
        let verified = self.follower.verified();
        let is_reached =
            verified.is_some_and(|point| point.position >= goal) && self.storage.bounds().1 >= goal;
        if is_reached {
            self.storage.seeded()?;
        }
        Ok(self.until == Until::CaughtUp && is_reached && self.storage.whole_from().is_none())
    }

    /// Takes the table; returns whether it came whole.
    fn take_snapshot(
        &mut self,
        duplex: &mut Duplex,
        begin: Begin,
        shared: Option<Point>,
    ) -> Result<bool, KvError> {
        self.shared.state().stalled = None;
        let keys = begin.keys;
        let start = begin.start.clone();
        let epoch = start.epoch.clone();
        self.shared.events.record(
            Severity::Info,
            "kv_snapshot",
            format!(
                "the key-value store is copied from node {}: {keys} keys",
                self.primary.node()
            ),
        );
        self.progress
            .start("key-value store: keys", Some(keys), Unit::Items);
        let mut incoming = self.storage.begin_incoming(begin)?;
        let mut done: u64 = 0;
        let end = loop {
            let Some(frame) = self.next(duplex, SILENCE_MAX)? else {
                return Ok(false);
            };
            match frame {
                FromLeader::Says(LeaderSays::Part(Part::Operations(operations))) => {
                    done = done.saturating_add(u64::try_from(operations.len()).unwrap_or(u64::MAX));
                    incoming.push(operations)?;
                    self.progress.at(done.min(keys));
                }
                FromLeader::Says(LeaderSays::Part(Part::End(end))) => break end,
                FromLeader::Says(_) | FromLeader::Entries { .. } => return Err(KvError::OutOfTurn),
            }
        };
        // What both share stays in the bundle's past; without anything shared, all that is kept goes into it.
        let kept = match shared {
            Some(point) if self.storage.digest_at(point.position) == Some(point.digest) => point,
            Some(_) | None => {
                let (first, _) = self.storage.bounds();
                let known = self.storage.point_at(first);
                known.unwrap_or(Point {
                    position: first,
                    ..Point::ORIGIN
                })
            }
        };
        self.salvage_all(&kept, epoch)?;
        match self
            .storage
            .install(incoming, end, || !self.stop.is_stopped())
        {
            Ok(()) => {}
            Err(StorageError::Stopped) => return Ok(false),
            Err(error) => return Err(error.into()),
        }
        self.follower.installed(&start);
        self.shared.state().has_installed = true;
        self.shared.moves.send_replace(());
        self.progress.end("copied");
        Ok(true)
    }

    /// Puts aside what only this node may have, before all of it is replaced.
    fn salvage_all(
        &self,
        to: &Point,
        superseded_by: Option<understudy_replication::epoch::Epoch>,
    ) -> Result<(), KvError> {
        let made_in = self.storage.tail().epoch;
        // Of the epoch that it follows it has nothing that was ever acknowledged and that the primary lacks.
        if made_in
            .as_ref()
            .is_none_or(|epoch| *epoch == self.primary.epoch())
        {
            return Ok(());
        }
        self.salvage(to, superseded_by)?;
        // What it wrote as a primary may be in its snapshot only, and no more in its log.
        let was_primary = made_in.is_some_and(|epoch| epoch.node == self.shared.me);
        let snapshot = self.storage.folder().join("snapshot");
        if !was_primary || !snapshot.exists() {
            return Ok(());
        }
        let salvaged = self.shared.state().salvaged.clone();
        let Some(bundle) = salvaged else {
            return Ok(());
        };
        let kept = bundle.path.join("snapshot");
        let linked = match std::fs::hard_link(&snapshot, &kept) {
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
            linked => linked,
        };
        let linked = linked.and_then(|()| durable::sync_directory_of(&kept));
        Ok(linked.map_err(|source| SalvageError::File {
            action: "link the snapshot to",
            path: kept,
            source,
        })?)
    }

    /// Puts aside what lies behind `to`, if there is anything, before it is cut off or replaced.
    pub(super) fn salvage(
        &self,
        to: &Point,
        superseded_by: Option<understudy_replication::epoch::Epoch>,
    ) -> Result<(), KvError> {
        let end = self.storage.tail();
        if end.position <= to.position {
            return Ok(());
        }
        let is_visible = self.storage.visible().position() > to.position;
        let what = Superseded {
            store: self.shared.id.name.clone(),
            node: self.shared.me.clone(),
            cut_to: to.clone(),
            end: end.clone(),
            acknowledged: if is_visible {
                Acknowledged::Yes
            } else {
                Acknowledged::Unknown
            },
            superseded_by,
        };
        // What was made in the epoch that is followed, and is not in its primary's log, was never durable there:
        // nobody was told that it is kept.
        let epoch = self.primary.epoch();
        let mut reader = self.storage.reader(to.position)?;
        let mut entries = std::iter::from_fn(|| reader.next().transpose())
            .filter(|entry| !entry.as_ref().is_ok_and(|entry| entry.head.epoch == epoch))
            .map(|entry| entry.map(|entry| entry.payload().clone()))
            .peekable();
        if entries.peek().is_none() {
            return Ok(());
        }
        let path = salvage::write(&self.shared.salvage, &what, WallTime::now(), entries)?;
        let operations = end.position.ahead_of(to.position);
        let summary = format!(
            "{operations} operations of the key-value store that only this node has, from operation {} on",
            to.position
        );
        self.shared.events.record(
            Severity::Warning,
            "kv_salvaged",
            format!(
                "{summary}, are kept in {}; `understudy kv salvage show` tells what they are",
                path.display()
            ),
        );
        let bytes = std::fs::metadata(path.join("entries.log")).map_or(0, |found| found.len());
        self.shared.state().salvaged = Some(Salvaged {
            path,
            bytes,
            summary,
            is_complete: true,
        });
        Ok(())
    }
}
