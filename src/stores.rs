//! Makes the two ends of every configured store: the one place that knows stores by kind.

use std::path::PathBuf;
use std::sync::Arc;

use understudy_config::{Config, Local, NodeName, StoreName};
use understudy_primary::files::FilesShipper;
use understudy_primary::kv::{KvShipper, Standbys};
use understudy_primary::postgres::PostgresShipper;
use understudy_primary::settings::SettingsShipper;
use understudy_replication::epoch::Epoch;
use understudy_replication::event::Events;
use understudy_replication::kv::keyspace::Keyspace;
use understudy_replication::kv::slot::Slot;
use understudy_replication::postgres::Cluster;
use understudy_replication::store::{Receiver, Shipper, StoreId, StoreKind};
use understudy_standby::files::FilesReceiver;
use understudy_standby::kv::KvReceiver;
use understudy_standby::postgres::PostgresReceiver;
use understudy_standby::settings::SettingsReceiver;

/// What the ends of the stores are made from.
#[derive(Clone)]
pub(crate) struct Makings {
    pub(crate) config: Arc<Config>,
    pub(crate) local: Local,
    pub(crate) cluster: Option<Cluster>,
    pub(crate) events: Events,
    /// Where the key-value store is kept open, whatever the node's role.
    pub(crate) kv: Slot,
    /// How many standbys the node has, while it is primary.
    pub(crate) standbys: Standbys,
}

/// The standby's ends.
pub(crate) struct Receivers {
    pub(crate) all: Vec<Arc<dyn Receiver>>,
    /// The key-value store once more, for its clients.
    pub(crate) keyspace: Option<Arc<dyn Keyspace>>,
    /// The trees of files once more, to be copied.
    pub(crate) files: Vec<Arc<FilesReceiver>>,
}

/// The primary's ends.
pub(crate) struct Shippers {
    pub(crate) all: Vec<Arc<dyn Shipper>>,
    /// The settings once more, for a rollback.
    pub(crate) settings: Option<Arc<SettingsShipper>>,
    /// The key-value store once more, for its clients.
    pub(crate) keyspace: Option<Arc<dyn Keyspace>>,
}

/// Returns the name of a store that there is one of. The names are reserved in the configuration.
pub(crate) fn name_of(kind: StoreKind) -> StoreName {
    // The three words are valid names, as a test of this module shows.
    kind.as_str()
        .parse()
        .expect("the word for a kind is a valid name")
}

/// Returns the stores of the configuration, in the order in which they are shown and taken over.
pub(crate) fn ids(config: &Config) -> Vec<StoreId> {
    let one = |kind| StoreId {
        name: name_of(kind),
        kind,
    };
    let postgres = config.postgres.iter().map(|_| one(StoreKind::Postgres));
    let files = config.files.iter().map(|files| StoreId {
        name: files.name.clone(),
        kind: StoreKind::Files,
    });
    let kv = config.kv.iter().map(|_| one(StoreKind::Kv));
    let settings = config.settings.iter().map(|_| one(StoreKind::Settings));
    postgres.chain(files).chain(kv).chain(settings).collect()
}

/// Returns how many bytes per second a scrub of a store reads, by the configuration.
pub(crate) fn scrub_rate(config: &Config, id: &StoreId) -> Option<u64> {
    let files = config.files.iter().find(|files| files.name == id.name)?;
    Some(files.scrub_rate)
}

impl Makings {
    fn files_state(&self, name: &StoreName) -> PathBuf {
        self.local.state_dir.join("files").join(name.as_str())
    }

    /// Returns where the key-value store is.
    pub(crate) fn kv_slot(local: &Local) -> Slot {
        Slot::new(local.state_dir.join("kv"))
    }

    /// Returns where what was superseded is kept.
    pub(crate) fn salvage(local: &Local) -> PathBuf {
        local.state_dir.join("salvage")
    }

    /// Returns where the history of the settings is.
    pub(crate) fn settings_state(local: &Local) -> PathBuf {
        // The history makes a folder of its own there.
        local.state_dir.clone()
    }

    /// Makes the primary's ends. Blocks: tables are loaded.
    pub(crate) fn shippers(&self, epoch: &Epoch) -> Result<Shippers, String> {
        let mut all: Vec<Arc<dyn Shipper>> = Vec::new();
        if let Some(cluster) = &self.cluster {
            all.push(Arc::new(PostgresShipper::new(
                name_of(StoreKind::Postgres),
                cluster.clone(),
                self.local.pki_dir.clone(),
                self.events.clone(),
            )));
        }
        for files in &self.config.files {
            let shipper = FilesShipper::open(
                files,
                self.local.resolve(&files.path),
                &self.files_state(&files.name),
                epoch,
                self.events.clone(),
            );
            all.push(Arc::new(shipper.map_err(|error| told(&error))?));
        }
        let mut keyspace: Option<Arc<dyn Keyspace>> = None;
        if let Some(config) = &self.config.kv {
            let shipper = Arc::new(KvShipper::new(
                name_of(StoreKind::Kv),
                config.clone(),
                self.kv.clone(),
                epoch.clone(),
                self.standbys.clone(),
                self.events.clone(),
            ));
            all.push(shipper.clone());
            keyspace = Some(shipper);
        }
        let mut settings = None;
        if let Some(config) = &self.config.settings {
            let shipper = SettingsShipper::open(
                config,
                self.local.root.clone(),
                &Self::settings_state(&self.local),
                epoch,
                self.events.clone(),
            );
            let shipper = Arc::new(shipper.map_err(|error| told(&error))?);
            all.push(shipper.clone());
            settings = Some(shipper);
        }
        Ok(Shippers {
            all,
            settings,
            keyspace,
        })
    }

    /// Makes the standby's ends. Blocks: tables are loaded.
    pub(crate) fn receivers(&self, me: &NodeName) -> Result<Receivers, String> {
        let mut all: Vec<Arc<dyn Receiver>> = Vec::new();
        let mut trees: Vec<Arc<FilesReceiver>> = Vec::new();
        if let Some(cluster) = &self.cluster {
            all.push(Arc::new(PostgresReceiver::new(
                name_of(StoreKind::Postgres),
                cluster.clone(),
                me.clone(),
                self.local.pki_dir.clone(),
                self.events.clone(),
            )));
        }
        for files in &self.config.files {
            let receiver = FilesReceiver::open(
                files,
                self.local.resolve(&files.path),
                &self.files_state(&files.name),
                self.events.clone(),
            );
            let receiver = Arc::new(receiver.map_err(|error| told(&error))?);
            all.push(receiver.clone());
            trees.push(receiver);
        }
        let mut keyspace: Option<Arc<dyn Keyspace>> = None;
        if let Some(config) = &self.config.kv {
            let receiver = KvReceiver::open(
                name_of(StoreKind::Kv),
                me.clone(),
                config.clone(),
                self.kv.clone(),
                Self::salvage(&self.local),
                self.events.clone(),
            );
            let receiver = Arc::new(receiver.map_err(|error| told(&error))?);
            all.push(receiver.clone());
            keyspace = Some(receiver);
        }
        if let Some(config) = &self.config.settings {
            let receiver = SettingsReceiver::open(
                config,
                self.local.root.clone(),
                &Self::settings_state(&self.local),
                self.events.clone(),
            );
            all.push(Arc::new(receiver.map_err(|error| told(&error))?));
        }
        Ok(Receivers {
            all,
            keyspace,
            files: trees,
        })
    }
}

fn told(error: &(dyn std::error::Error + 'static)) -> String {
    understudy_replication::error_chain(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_word_for_every_kind_is_a_valid_name() {
        for kind in [
            StoreKind::Postgres,
            StoreKind::Files,
            StoreKind::Kv,
            StoreKind::Settings,
        ] {
            assert_eq!(name_of(kind).as_str(), kind.as_str());
        }
    }
}
