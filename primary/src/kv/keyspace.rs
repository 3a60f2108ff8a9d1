//! What clients of the primary can do.

use std::time::{Duration, Instant};

use understudy_replication::kv::keyspace::{Keyspace, Refusal, Standing};
use understudy_replication::kv::protocol::Durability;
use understudy_replication::kv::space::Space;
use understudy_replication::position::Position;
use understudy_replication::store::BoxFuture;
use understudy_replication::wall_time::WallTime;

use super::core::Core;
use super::{KvShipper, Shared, State};

/// How many bytes of operations may wait for the standbys.
const PENDING_BYTES_MAX: usize = 64 << 20;

/// How long a write that was under way when the node was fenced may still settle.
const DRAIN_PATIENCE: Duration = Duration::from_secs(10);

impl Shared {
    /// Returns why a read is refused now.
    fn refuses_read(&self) -> Option<Refusal> {
        match &self.settled.borrow().state {
            // What is visible is committed, whatever has become of the disk.
            State::Open | State::Refusing | State::Failed(_) => None,
            State::Opening => Some(Refusal::Loading),
            // Who is primary now is not known here.
            State::Fenced | State::Closed => Some(Refusal::NotHere { primary: None }),
        }
    }

    /// Returns why a write is refused now.
    fn refuses_write(&self, core: &Core) -> Option<Refusal> {
        match &self.settled.borrow().state {
            State::Refusing => return Some(Refusal::NoReplicas),
            State::Fenced | State::Closed => return Some(Refusal::ReadOnly),
            State::Failed(reason) => {
                let reason = reason.clone();
                return Some(Refusal::Storage { reason });
            }
            State::Opening | State::Open => {}
        }
        let has_room = core.draft.pending_bytes() < PENDING_BYTES_MAX;
        self.refuses_read()
            .or_else(|| (!has_room).then_some(Refusal::Busy))
    }

    pub(super) fn write(&self, act: &mut dyn FnMut(&mut Space<'_>)) -> Result<Position, Refusal> {
        if let State::Opening = self.settled.borrow().state {
            return Err(Refusal::Loading);
        }
        let mut guard = self.core();
        let Some(core) = guard.as_mut() else {
            return Err(self.refuses_read().unwrap_or(Refusal::Loading));
        };
        if let Some(refusal) = self.refuses_write(core) {
            return Err(refusal);
        }
        let storage = core.storage().clone();
        {
            let visible = storage.visible();
            let bytes_max = usize::try_from(self.config.memory_bytes).unwrap_or(usize::MAX);
            let mut space =
                Space::newest(&visible.table, &mut core.draft, WallTime::now()).bounded(bytes_max);
            act(&mut space);
            space.end_atom();
        }
        let end = core.draft.end();
        match core.make_if_idle(Instant::now()) {
            Ok((is_made, news)) => {
                if is_made {
                    self.to_sync.notify_one();
                    self.tell(core, &news);
                }
                Ok(end)
            }
            Err(error) => {
                drop(guard);
                self.fail(&error);
                // It was done; that it cannot be kept is told to who waits for it.
                Ok(end)
            }
        }
    }

    /// Waits until everything up to `position` is visible.
    async fn settle(&self, position: Position) -> Result<(), Refusal> {
        let mut settled = self.settled.subscribe();
        let run = settled.borrow().run;
        loop {
            {
                let now = settled.borrow_and_update();
                if now.run != run {
                    return Err(Refusal::Closed);
                }
                if now.position >= position {
                    return Ok(());
                }
                match &now.state {
                    State::Opening | State::Open | State::Fenced => {}
                    State::Refusing => return Err(Refusal::NoReplicas),
                    State::Closed => return Err(Refusal::Closed),
                    State::Failed(reason) => {
                        let reason = reason.clone();
                        return Err(Refusal::Storage { reason });
                    }
                }
            }
            let is_fenced = settled.borrow().state == State::Fenced;
            let limit = if is_fenced {
                DRAIN_PATIENCE
            } else {
                Duration::MAX
            };
            match tokio::time::timeout(limit, settled.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) | Err(_) => return Err(Refusal::Closed),
            }
        }
    }

    fn replicas(&self, position: Position) -> usize {
        let guard = self.core();
        let followers = guard.as_ref().map(|core| core.leader.followers().values());
        followers
            .into_iter()
            .flatten()
            .filter(|follower| follower.session.is_some() && follower.acknowledged >= position)
            .count()
    }
}

impl Keyspace for KvShipper {
    fn read(&self, look: &mut dyn FnMut(&mut Space<'_>)) -> Result<(), Refusal> {
        if let Some(refusal) = self.shared.refuses_read() {
            return Err(refusal);
        }
        let storage = self.shared.storage().ok_or(Refusal::Loading)?;
        let visible = storage.visible();
        look(&mut Space::visible(&visible.table, WallTime::now()));
        Ok(())
    }

    fn write(&self, act: &mut dyn FnMut(&mut Space<'_>)) -> Result<Position, Refusal> {
        self.shared.write(act)
    }

    fn settled(&self, position: Position) -> BoxFuture<'_, Result<(), Refusal>> {
        Box::pin(self.shared.settle(position))
    }

    fn replicated(
        &self,
        position: Position,
        count: usize,
        limit: Option<Duration>,
    ) -> BoxFuture<'_, usize> {
        Box::pin(async move {
            let mut acknowledged = self.shared.acknowledged.subscribe();
            let mut settled = self.shared.settled.subscribe();
            let enough = async {
                loop {
                    acknowledged.mark_unchanged();
                    let have = self.shared.replicas(position);
                    let is_over = match settled.borrow_and_update().state {
                        State::Fenced | State::Closed | State::Failed(_) => true,
                        State::Opening | State::Open | State::Refusing => false,
                    };
                    if have >= count || is_over {
                        return;
                    }
                    tokio::select! {
                        changed = acknowledged.changed() => if changed.is_err() { return },
                        changed = settled.changed() => if changed.is_err() { return },
                    }
                }
            };
            match limit {
                None => enough.await,
                Some(limit) => {
                    let _in_time = tokio::time::timeout(limit, enough).await.is_ok();
                }
            }
            self.shared.replicas(position)
        })
    }

    fn refuses_writes(&self) -> Option<Refusal> {
        match self.shared.settled.borrow().state {
            State::Fenced | State::Closed => Some(Refusal::ReadOnly),
            State::Opening | State::Open | State::Refusing | State::Failed(_) => None,
        }
    }

    fn standing(&self) -> Standing {
        let is_over = match self.shared.settled.borrow().state {
            State::Fenced | State::Closed => true,
            State::Opening | State::Open | State::Refusing | State::Failed(_) => false,
        };
        let guard = self.shared.core();
        let core = guard.as_ref();
        let followers = core.map(|core| core.leader.followers());
        Standing {
            is_primary: !is_over,
            primary: None,
            position: core.map_or(Position(0), |core| core.leader.committed()),
            standbys: followers
                .into_iter()
                .flatten()
                .filter(|(_, seen)| seen.session.is_some())
                .map(|(name, seen)| (name.to_string(), seen.acknowledged))
                .collect(),
            durability: match core.map(|core| core.leader.durability()) {
                Some(Durability::Async) => "async",
                Some(Durability::Alone { .. }) => "degraded",
                Some(Durability::Standalone) => "standalone",
                Some(Durability::Held | Durability::Waiting { .. }) | None => "standby-first",
            },
            memory_bytes_max: self.shared.config.memory_bytes,
            allows_flush: self.shared.config.allow_flush,
        }
    }
}
