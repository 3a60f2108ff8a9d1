//! What clients of a standby can do: read, where the configuration lets them.

use std::time::Duration;

use understudy_replication::kv::keyspace::{Keyspace, Refusal, Standing};
use understudy_replication::kv::space::Space;
use understudy_replication::position::Position;
use understudy_replication::store::BoxFuture;
use understudy_replication::wall_time::WallTime;

use super::KvReceiver;

impl Keyspace for KvReceiver {
    fn read(&self, look: &mut dyn FnMut(&mut Space<'_>)) -> Result<(), Refusal> {
        let (storage, primary) = {
            let state = self.shared.state();
            (state.storage.clone(), state.primary.clone())
        };
        if !self.shared.config.standby_reads {
            return Err(Refusal::NotHere {
                primary: primary.map(|node| node.to_string()),
            });
        }
        let storage = storage.ok_or(Refusal::Loading)?;
        if storage.whole_from().is_some() {
            return Err(Refusal::Loading);
        }
        let visible = storage.visible();
        look(&mut Space::visible(&visible.table, WallTime::now()));
        Ok(())
    }

    fn write(&self, _: &mut dyn FnMut(&mut Space<'_>)) -> Result<Position, Refusal> {
        Err(Refusal::ReadOnly)
    }

    fn settled(&self, _: Position) -> BoxFuture<'_, Result<(), Refusal>> {
        Box::pin(async { Ok(()) })
    }

    fn replicated(&self, _: Position, _: usize, _: Option<Duration>) -> BoxFuture<'_, usize> {
        Box::pin(async { 0 })
    }

    fn refuses_writes(&self) -> Option<Refusal> {
        Some(Refusal::ReadOnly)
    }

    fn standing(&self) -> Standing {
        let state = self.shared.state();
        let storage = state.storage.as_ref();
        Standing {
            is_primary: false,
            primary: state.primary.as_ref().map(ToString::to_string),
            position: storage.map_or(Position(0), |storage| storage.visible().position()),
            standbys: Vec::new(),
            durability: "standby-first",
            memory_bytes_max: self.shared.config.memory_bytes,
            allows_flush: self.shared.config.allow_flush,
        }
    }
}
