//! A session: what comes is logged, made durable and acknowledged; what is committed becomes visible.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use understudy_replication::epoch::Epoch;
use understudy_replication::kv::entry::Entry;
use understudy_replication::kv::point::EntryDigest;
use understudy_replication::kv::protocol::{self, FollowerAction, Welcome};
use understudy_replication::kv::storage::{EntryReader, StorageError};
use understudy_replication::kv::wire::{self, FollowerSays, FromLeader};
use understudy_replication::log::LogError;
use understudy_replication::position::Position;
use understudy_replication::transport::Duplex;

use super::KvError;
use super::follow::Following;

/// So many bytes are gathered before they are made durable, even if more is there.
const GATHERED_BYTES_MAX: usize = 4 << 20;

/// Snapshots are begun at most so often.
const SNAPSHOT_PAUSE: Duration = Duration::from_secs(2);

/// How many bytes of entries that are not visible yet are kept in memory; more are read from the log again.
const WAITING_BYTES_MAX: usize = 32 << 20;

/// A session with the primary.
pub(super) struct Session {
    epoch: Epoch,
    /// Entries that have to be appended.
    gathered: Vec<Entry>,
    gathered_bytes: usize,
    /// Entries that are appended and not visible.
    waiting: VecDeque<Entry>,
    waiting_bytes: usize,
    /// Walks through what this node had, while what comes is compared with it.
    own: Option<EntryReader>,
    acknowledge: Option<(protocol::Session, Position)>,
    apply: Option<Position>,
    making_snapshot: Option<std::thread::JoinHandle<()>>,
    snapshot_begun: Option<Instant>,
}

impl Session {
    pub(super) fn new(welcome: &Welcome) -> Self {
        Self {
            epoch: welcome.epoch.clone(),
            gathered: Vec::new(),
            gathered_bytes: 0,
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            own: None,
            acknowledge: None,
            apply: None,
            making_snapshot: None,
            snapshot_begun: None,
        }
    }

    /// Takes a frame and all that have come with it, and does what follows.
    pub(super) fn take(
        &mut self,
        following: &mut Following<'_>,
        duplex: &mut Duplex,
        first: FromLeader,
    ) -> Result<(), KvError> {
        following.follower.rebased(following.storage.base());
        self.gather(following, duplex, first)?;
        while self.gathered_bytes < GATHERED_BYTES_MAX
            && let Some(frame) = duplex.incoming.take()?
        {
            self.gather(following, duplex, wire::from_leader(frame)?)?;
        }
        self.finish(following, duplex)
    }

    fn gather(
        &mut self,
        following: &mut Following<'_>,
        duplex: &mut Duplex,
        frame: FromLeader,
    ) -> Result<(), KvError> {
        let FromLeader::Entries {
            session,
            committed,
            entries,
        } = frame
        else {
            return Err(KvError::OutOfTurn);
        };
        for entry in entries {
            let own = self.own(following, &entry)?;
            let actions = following.follower.offered(session, &entry.told(), own);
            for action in actions {
                if action == FollowerAction::Append {
                    self.gathered_bytes += entry.payload().len();
                    self.gathered.push(entry.clone());
                } else {
                    self.act(following, duplex, vec![action])?;
                }
            }
        }
        let actions = following.follower.committed(session, committed);
        self.act(following, duplex, actions)
    }

    /// Returns the digest of this node's own entry that ends where `entry` does, if there is one.
    fn own(
        &mut self,
        following: &Following<'_>,
        entry: &Entry,
    ) -> Result<Option<EntryDigest>, KvError> {
        let (_, end) = following.storage.bounds();
        let is_gathered = self.gathered.last().is_some_and(|it| it.head.end > end);
        if is_gathered || entry.head.end > end {
            self.own = None;
            return Ok(None);
        }
        let reader = match &mut self.own {
            Some(reader) if reader.position() == entry.head.start => reader,
            own => match following.storage.reader(entry.head.start) {
                Ok(reader) => own.insert(reader),
                // No entry of this node begins there: the logs have parted.
                Err(StorageError::Log(LogError::Gone { .. } | LogError::NotABoundary { .. })) => {
                    return Ok(None);
                }
                Err(error) => return Err(error.into()),
            },
        };
        let own = reader.next()?;
        Ok(own
            .filter(|own| own.head.end == entry.head.end)
            .map(|own| own.digest))
    }

    /// Does what the rules say.
    pub(super) fn act(
        &mut self,
        following: &mut Following<'_>,
        duplex: &mut Duplex,
        actions: Vec<FollowerAction>,
    ) -> Result<(), KvError> {
        for action in actions {
            match action {
                FollowerAction::Append | FollowerAction::Have => {}
                FollowerAction::Cut { to, .. } => {
                    self.flush(following, duplex)?;
                    self.own = None;
                    if following.stop.is_stopped() {
                        return Err(KvError::Closed);
                    }
                    following.salvage(&to, Some(self.epoch.clone()))?;
                    match following.storage.truncate(&to) {
                        Ok(()) => {}
                        Err(StorageError::TooFarBack { to, snapshot }) => {
                            tracing::info!(%to, %snapshot, "the copy is made anew: its snapshot is behind the fork");
                            following.wants_snapshot = true;
                            return Err(KvError::Gap);
                        }
                        Err(error) => return Err(error.into()),
                    }
                    self.waiting.clear();
                    self.waiting_bytes = 0;
                }
                FollowerAction::Acknowledge { session, position } => {
                    self.acknowledge = Some((session, position));
                }
                FollowerAction::Apply(position) => self.apply = Some(position),
                FollowerAction::Reopen => return Err(KvError::Gap),
                FollowerAction::NeedSnapshot => {
                    following.wants_snapshot = true;
                    return Err(KvError::Gap);
                }
            }
        }
        Ok(())
    }

    /// Makes durable what was gathered.
    fn flush(&mut self, following: &mut Following<'_>, duplex: &mut Duplex) -> Result<(), KvError> {
        if self.gathered.is_empty() {
            return Ok(());
        }
        following.storage.append(&self.gathered)?;
        let end = following.storage.sync()?;
        for entry in self.gathered.drain(..) {
            self.waiting_bytes += entry.payload().len();
            self.waiting.push_back(entry);
        }
        // What is let go here is read from the log again when it is committed.
        while self.waiting_bytes > WAITING_BYTES_MAX
            && let Some(entry) = self.waiting.pop_back()
        {
            self.waiting_bytes = self.waiting_bytes.saturating_sub(entry.payload().len());
        }
        self.gathered_bytes = 0;
        let actions = following.follower.synced(end);
        self.act(following, duplex, actions)
    }

    /// Makes durable, acknowledges, and makes visible.
    fn finish(
        &mut self,
        following: &mut Following<'_>,
        duplex: &mut Duplex,
    ) -> Result<(), KvError> {
        self.flush(following, duplex)?;
        let mut has_moved = false;
        if let Some((session, position)) = self.acknowledge.take() {
            following.say(duplex, &FollowerSays::Acknowledged { session, position })?;
            has_moved = true;
        }
        if let Some(position) = self.apply.take() {
            self.apply_up_to(following, position)?;
            has_moved = true;
            self.tidy(following);
        }
        if has_moved {
            following.shared.moves.send_replace(());
        }
        Ok(())
    }

    fn apply_up_to(&mut self, following: &Following<'_>, upto: Position) -> Result<(), KvError> {
        let storage = &following.storage;
        while let Some(entry) = self.waiting.pop_front_if(|entry| entry.head.end <= upto) {
            self.waiting_bytes = self.waiting_bytes.saturating_sub(entry.payload().len());
            // What was in the log before the session comes first.
            storage.apply_up_to(entry.head.start)?;
            storage.apply(&entry)?;
            following.shared.state().applied_bytes = entry.bytes_after();
        }
        storage.apply_up_to(upto)?;
        if self.waiting.is_empty() {
            following.shared.state().applied_bytes = storage.bytes_ever();
        }
        Ok(())
    }

    /// Makes a snapshot beside, when one is due, so that the log can go.
    fn tidy(&mut self, following: &Following<'_>) {
        let is_busy = self
            .making_snapshot
            .as_ref()
            .is_some_and(|thread| !thread.is_finished());
        let storage = &following.storage;
        // One that has failed is not tried again at once: each costs a walk through the table.
        let is_early = self
            .snapshot_begun
            .is_some_and(|begun| begun.elapsed() < SNAPSHOT_PAUSE);
        if is_busy || is_early || !storage.is_snapshot_due() || storage.whole_from().is_some() {
            return;
        }
        let storage = storage.clone();
        let made = std::thread::Builder::new()
            .name("kv snapshot".to_owned())
            .spawn(move || {
                let done = storage
                    .make_snapshot()
                    .and_then(|()| storage.release(Position(u64::MAX), u64::MAX));
                if let Err(error) = done {
                    let error = understudy_replication::error_chain(&error);
                    tracing::warn!(
                        error,
                        "no snapshot of the key-value store could be made; its log grows"
                    );
                }
            });
        match made {
            Ok(thread) => {
                self.making_snapshot = Some(thread);
                self.snapshot_begun = Some(Instant::now());
            }
            Err(error) => tracing::warn!(%error, "no thread for a snapshot of the key-value store"),
        }
    }
}
