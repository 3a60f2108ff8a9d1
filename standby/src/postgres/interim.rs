use understudy_replication::durable;
use understudy_replication::postgres::{SeedInfo, SlotInfo};
use understudy_replication::store::{Progress, StoreFailure};
use understudy_replication::transport::PeerClient;

use super::receiver::PostgresReceiver;
use super::seed::SeedError;

pub(super) struct Saved {
    pub(super) compared: u64,
    pub(super) copied: u64,
}

impl PostgresReceiver {
    pub(super) async fn reseed(
        &self,
        _: &PeerClient,
        _: &SeedInfo,
        _: &SlotInfo,
        _: &dyn Progress,
    ) -> Result<Saved, StoreFailure> {
        Err(Box::new(SeedError::FormerPrimary {
            data_dir: self.cluster.data_dir.clone(),
        }))
    }

    pub(super) fn unmark_half(&self) -> Result<(), SeedError> {
        let mark = self.cluster.state.join("seeding");
        match std::fs::remove_file(&mark) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(self.file("remove", mark)(error)),
        }
        durable::sync_directory_of(&mark).map_err(self.file("sync", mark))
    }
}
