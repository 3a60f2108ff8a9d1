//! The stores of a standby, as something to copy.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use understudy_config::{Config, Local, StoreName};
use understudy_replication::kv::storage::Storage;
use understudy_replication::position::Position;
use understudy_replication::postgres::Cluster;
use understudy_replication::store::{Progress, StoreId, StoreKind, Unit};

use super::listening::{ClusterCopy, Purpose, Served};
use super::pace::{Copied, Pace};
use super::{CopyError, Place, aside, copy_kv, copy_postgres, copy_settings, take_over_kv, tree};
use crate::files::FilesReceiver;

/// The stores of a standby.
#[derive(Clone)]
pub struct Originals {
    /// What the cluster is made of.
    pub config: Arc<Config>,
    /// This machine.
    pub local: Local,
    /// Its Postgres cluster.
    pub cluster: Option<Cluster>,
    /// Its trees of files.
    pub files: Vec<Arc<FilesReceiver>>,
    /// Its key-value store.
    pub kv: Option<Arc<Storage>>,
}

impl std::fmt::Debug for Originals {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Originals of {}", self.local.name)
    }
}

/// How a check has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CheckOutcome {
    /// What was looked at is as it should be.
    Passed,
    /// It is not.
    Failed,
    /// It could not be looked at.
    Skipped,
}

/// What a check of a copy has found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyCheck {
    /// What was looked at, such as `files docs`.
    pub what: String,
    /// How it ended.
    pub outcome: CheckOutcome,
    /// What was compared, or what is wrong.
    pub detail: String,
}

/// A store that was copied.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreCopied {
    /// Which store.
    #[serde(flatten)]
    pub id: StoreId,
    /// Where the copy is, as the store counts.
    pub position: Option<Position>,
    /// The same as people write it.
    pub position_text: Option<String>,
    /// How much there was to copy.
    #[serde(flatten)]
    pub copied: Copied,
}

/// A store with its copy's checks.
pub type CopiedAndChecked = (StoreCopied, Vec<CopyCheck>);

impl Originals {
    /// Returns the stores, in the order in which a promotion takes them over.
    pub fn ids(&self) -> Vec<StoreId> {
        let one = |kind: StoreKind| {
            let name: Option<StoreName> = kind.as_str().parse().ok();
            name.map(|name| StoreId { name, kind })
        };
        let postgres = self.cluster.as_ref().and_then(|_| one(StoreKind::Postgres));
        let files = self.config.files.iter().map(|files| StoreId {
            name: files.name.clone(),
            kind: StoreKind::Files,
        });
        let kv = self.kv.as_ref().and_then(|_| one(StoreKind::Kv));
        let settings = self.config.settings.as_ref();
        let settings = settings.and_then(|_| one(StoreKind::Settings));
        postgres
            .into_iter()
            .chain(files)
            .chain(kv)
            .chain(settings)
            .collect()
    }

    /// Returns how much room the copies need that cannot share blocks with the originals. Blocks.
    pub fn room_needed(&self, place: &Place, can_share: bool) -> u64 {
        use std::os::unix::fs::MetadataExt;
        let device = |path: &std::path::Path| std::fs::metadata(path).map(|it| it.dev()).ok();
        let ours = device(place.folder());
        // What is copied is what it leads to.
        let cluster = self
            .cluster
            .iter()
            .map(|it| std::fs::canonicalize(&it.data_dir).unwrap_or_else(|_| it.data_dir.clone()));
        let files = self.config.files.iter();
        let files = files.map(|files| self.local.resolve(&files.path));
        let settings = self.config.settings.iter().flat_map(|it| &it.paths);
        let settings = settings.map(|path| self.local.resolve(path));
        let trees = cluster.chain(files).chain(settings);
        let bytes = trees
            .filter(|path| !can_share || device(path) != ours)
            .map(|path| tree::tree_bytes(&path))
            .fold(0, u64::saturating_add);
        let table = self.kv.as_ref().map_or(0, |kv| {
            u64::try_from(kv.visible().table.live_bytes()).unwrap_or(u64::MAX)
        });
        bytes.saturating_add(table)
    }

    /// Copies one store, and compares the copy with what it should be.
    ///
    /// # Errors
    /// When it cannot be copied. That the copy is another is no error, but a check that failed.
    pub async fn copy(
        &self,
        id: &StoreId,
        (place, served, purpose): (&Place, &Served, Purpose),
        pace: &Arc<Pace>,
        progress: &dyn Progress,
    ) -> Result<CopiedAndChecked, CopyError> {
        let before = pace.copied();
        progress.start(&format!("copy {}", id.name), None, Unit::Bytes);
        let mut copied = StoreCopied {
            id: id.clone(),
            position: None,
            position_text: None,
            copied: Copied::default(),
        };
        let checks = {
            let copying = self.copy_kind(id, place, served, purpose, pace, &mut copied);
            tokio::pin!(copying);
            loop {
                tokio::select! {
                    checks = &mut copying => break checks?,
                    () = tokio::time::sleep(std::time::Duration::from_millis(500)) => {
                        progress.at(pace.copied().bytes().saturating_sub(before.bytes()));
                    }
                }
            }
        };
        let after = pace.copied();
        copied.copied = Copied {
            copied_bytes: after.copied_bytes.saturating_sub(before.copied_bytes),
            shared_bytes: after.shared_bytes.saturating_sub(before.shared_bytes),
        };
        Ok((copied, checks))
    }

    async fn copy_kind(
        &self,
        id: &StoreId,
        place: &Place,
        served: &Served,
        purpose: Purpose,
        pace: &Arc<Pace>,
        copied: &mut StoreCopied,
    ) -> Result<Vec<CopyCheck>, CopyError> {
        match id.kind {
            StoreKind::Postgres => {
                let Some(cluster) = &self.cluster else {
                    return Ok(Vec::new());
                };
                let made = copy_postgres(cluster, place, pace.clone()).await?;
                ClusterCopy::new(cluster, place, served.clone()).configure(purpose)?;
                copied.position = Some(made.end.into());
                copied.position_text = Some(made.end.to_string());
                Ok(Vec::new())
            }
            StoreKind::Files => self.copy_files(id, place, pace, copied).await,
            StoreKind::Kv => {
                let Some(storage) = &self.kv else {
                    return Ok(Vec::new());
                };
                let folder = place.state().join("kv");
                match copy_kv(storage.clone(), folder.clone(), pace.clone()).await {
                    Ok(()) => {}
                    Err(error @ CopyError::KvDiffers { .. }) => {
                        return Ok(vec![failed(
                            "kv",
                            understudy_replication::error_chain(&error),
                        )]);
                    }
                    Err(error) => return Err(error),
                }
                let made = take_over_kv(folder).await?;
                copied.position = Some(made.position);
                copied.position_text = Some(made.position.to_string());
                let detail = format!("{} keys, digest {}", made.keys, made.digest);
                Ok(vec![passed("kv", detail)])
            }
            StoreKind::Settings => {
                let Some(config) = &self.config.settings else {
                    return Ok(Vec::new());
                };
                let (local, place) = (self.local.clone(), place.clone());
                let made = copy_settings(config.clone(), local, place, pace.clone()).await?;
                copied.position = made.position;
                copied.position_text = made.position.map(|position| position.to_string());
                Ok(vec![match &made.expected {
                    Some(expected) if !made.is_equal() => failed(
                        "settings",
                        format!(
                            "the files have the digest {}, and the revision that was applied has \
                             {expected}",
                            made.found
                        ),
                    ),
                    Some(_) | None => passed("settings", made.found),
                }])
            }
        }
    }

    async fn copy_files(
        &self,
        id: &StoreId,
        place: &Place,
        pace: &Arc<Pace>,
        copied: &mut StoreCopied,
    ) -> Result<Vec<CopyCheck>, CopyError> {
        use understudy_replication::store::Receiver;
        let Some(receiver) = self.files.iter().find(|it| it.id() == id).cloned() else {
            return Err(CopyError::Broken);
        };
        let Some(config) = self.config.files.iter().find(|it| it.name == id.name) else {
            return Err(CopyError::Broken);
        };
        let target = place.of(&self.local.resolve(&config.path));
        let working = pace.clone();
        let (made, differences) = aside(move || {
            if let Some(parent) = target.parent() {
                tree::make_folder(parent, 0o755)?;
            }
            let mut made = receiver.copy_to(&target, &working)?;
            let differences = made.verify(&target, &working)?;
            Ok((made, differences))
        })
        .await?;
        copied.position = Some(made.head.position);
        copied.position_text = Some(made.head.position.to_string());
        let what = format!("files {}", id.name);
        let mut checks = Vec::new();
        if made.awaited > 0 {
            checks.push(failed(
                &what,
                format!(
                    "{} entries have not come from the primary, and would be served as they were before",
                    made.awaited
                ),
            ));
        }
        checks.push(match differences.first() {
            None => passed(
                &what,
                format!("{} entries, root {}", made.entries(), made.root()),
            ),
            Some(first) => failed(
                &what,
                format!("{} entries differ, the first is {first}", differences.len()),
            ),
        });
        Ok(checks)
    }
}

pub(crate) fn passed(what: &str, detail: String) -> CopyCheck {
    CopyCheck {
        what: what.to_owned(),
        outcome: CheckOutcome::Passed,
        detail,
    }
}

pub(crate) fn failed(what: &str, detail: String) -> CopyCheck {
    CopyCheck {
        what: what.to_owned(),
        outcome: CheckOutcome::Failed,
        detail,
    }
}

pub(crate) fn skipped(what: &str, detail: String) -> CopyCheck {
    CopyCheck {
        what: what.to_owned(),
        outcome: CheckOutcome::Skipped,
        detail,
    }
}
