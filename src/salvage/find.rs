//! What was kept aside, found where each store keeps it.
//!
//! ```text
//! STATE/salvage/postgres-… files-… kv-…    bundles
//! TOP/.understudy/kept/…                   files of a bundle; of an older version, without one
//! STATE/settings/replaced/NUMBER/…         settings that a revision has replaced
//! STATE/settings/history/….superseded      revisions that were made in an epoch that lost
//! ```

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use understudy_config::{Config, LoadError, Local, StoreName};
use understudy_replication::kv::salvage::Manifest;
use understudy_replication::store::StoreKind;
use understudy_replication::wall_time::WallTime;
use understudy_standby::files::{KEPT_MANIFEST, KeptManifest};
use understudy_standby::postgres::{POSTGRES_SUMMARY, Summary};

use super::bundle::{Bundle, Held, weigh};
use crate::Place;
use crate::failure::Failure;
use crate::stores::Makings;

/// What a bundle says of itself is no longer, in bytes.
const TEXT_BYTES_MAX: u64 = 64 << 20;

/// Where the trees of files are, in which something may have been kept.
#[derive(Debug, Default)]
pub(super) struct Trees {
    /// Each with its store, as the configuration names it.
    pub(super) named: Vec<(StoreName, PathBuf)>,
    /// Why there may be others.
    pub(super) doubt: Option<String>,
}

impl Trees {
    /// Reads them from the configuration: of one that is not valid, what can be understood.
    pub(super) fn read(place: &Place) -> Self {
        let error = match understudy_config::load(&place.cluster_file(), &place.node_file()) {
            Ok(loaded) => return Self::of(&loaded.config),
            Err(error) => error,
        };
        let why = match error {
            LoadError::Read { file, source } => {
                format!("{} cannot be read: {source}", file.display())
            }
            LoadError::Invalid(_) => format!(
                "{} is not valid: see `understudy config check`",
                place.cluster_file().display()
            ),
        };
        let text = fs::read(place.cluster_file()).unwrap_or_default();
        Self {
            named: understudy_config::trees_named(&String::from_utf8_lossy(&text)),
            doubt: Some(why),
        }
    }

    pub(super) fn of(config: &Config) -> Self {
        let files = config.files.iter();
        Self {
            named: files
                .map(|files| (files.name.clone(), files.path.clone()))
                .collect(),
            doubt: None,
        }
    }
}

/// Finds a bundle by its name.
pub(super) fn find(local: &Local, trees: &Trees, name: &str) -> Result<Bundle, Failure> {
    let bundles = list(local, trees)?;
    let found = bundles.into_iter().find(|bundle| bundle.name == name);
    found.ok_or_else(|| {
        Failure::usage(format!(
            "there is no bundle `{name}` on node {}",
            local.name
        ))
        .hint("`understudy salvage list` lists them")
    })
}

/// Returns all bundles, oldest first.
pub(super) fn list(local: &Local, trees: &Trees) -> Result<Vec<Bundle>, Failure> {
    let folder = Makings::salvage(local);
    let mut bundles = Vec::new();
    for name in names(&folder)? {
        let path = folder.join(&name);
        if name.starts_with('.') {
            continue;
        }
        bundles.push(match name.split_once('-') {
            Some(("postgres", _)) => postgres(name, path),
            Some(("files", _)) => files(name, path),
            Some(("kv", _)) => kv(name, path),
            Some(_) | None => unreadable(
                name,
                path,
                StoreKind::Files,
                "it is of a kind that this program does not know".to_owned(),
            ),
        });
    }
    // A bundle names its tree, where others may be.
    let beside = bundles.iter().filter_map(|bundle| {
        let kept = bundle.tree()?.parent()?.to_owned();
        let store = StoreName::try_from(bundle.store.clone()).ok()?;
        kept.ends_with(".understudy/kept").then_some((store, kept))
    });
    let named = trees.named.iter().map(|(store, path)| {
        let kept = local.resolve(path).join(".understudy/kept");
        (store.clone(), kept)
    });
    let mut places: Vec<(StoreName, PathBuf)> = Vec::new();
    for (store, kept) in named.chain(beside) {
        if !places.iter().any(|(_, known)| *known == kept) {
            places.push((store, kept));
        }
    }
    for (store, kept) in places {
        for name in names(&kept)? {
            let path = kept.join(&name);
            let known = bundles.iter().any(|bundle| bundle.tree() == Some(&path));
            if !known {
                let mut bundle = format!("files-{store}-{name}");
                if bundles.iter().any(|it| it.name == bundle) {
                    // One of that name says that it has its files elsewhere.
                    bundle += "-tree";
                }
                let is_being_made = folder.join(format!(".{bundle}.partial")).exists();
                bundles.push(tree(bundle, store.as_str(), path, &name, is_being_made));
            }
        }
    }
    let settings = local.state_dir.join("settings");
    for name in names(&settings.join("replaced"))? {
        let path = settings.join("replaced").join(&name);
        let summary = format!("files of this node that revision {name} of the settings replaced");
        bundles.push(of_settings(
            format!("settings-replaced-{name}"),
            path,
            summary,
        ));
    }
    for name in names(&settings.join("history"))? {
        if let Some(revision) = name.strip_suffix(".superseded") {
            let path = settings.join("history").join(&name);
            let summary = format!(
                "revision {revision} of the settings, made in an epoch that lost; `understudy settings show` \
                 knows the others"
            );
            bundles.push(of_settings(format!("settings-{revision}"), path, summary));
        }
    }
    bundles.sort_by(|a, b| (a.made, &a.name).cmp(&(b.made, &b.name)));
    Ok(bundles)
}

/// Returns the names in a folder, which may not be there.
fn names(folder: &Path) -> Result<Vec<String>, Failure> {
    let failed = |error: io::Error| {
        Failure::failed(format!("cannot read {}: {error}", folder.display()))
            .hint("run it as the user that the daemon runs as")
    };
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    let mut names = Vec::new();
    for entry in entries {
        names.extend(entry.map_err(failed)?.file_name().into_string().ok());
    }
    names.sort();
    Ok(names)
}

fn read<T: DeserializeOwned>(path: &Path) -> Result<T, String> {
    let failed = |error: &dyn std::fmt::Display| format!("cannot read {}: {error}", path.display());
    let length = fs::metadata(path).map_err(|error| failed(&error))?.len();
    if length > TEXT_BYTES_MAX {
        return Err(failed(&"it is too long"));
    }
    let text = fs::read(path).map_err(|error| failed(&error))?;
    serde_json::from_slice(&text).map_err(|error| failed(&error))
}

fn unreadable(name: String, path: PathBuf, kind: StoreKind, reason: String) -> Bundle {
    Bundle {
        store: kind.as_str().to_owned(),
        kind,
        made: None,
        node: None,
        made_in: None,
        superseded_by: None,
        bytes: weigh(&path).1,
        is_complete: false,
        summary: reason,
        path,
        held: Held::Unreadable,
        name,
    }
}

fn postgres(name: String, path: PathBuf) -> Bundle {
    let summary: Summary = match read(&path.join(POSTGRES_SUMMARY)) {
        Ok(summary) => summary,
        Err(reason) => return unreadable(name, path, StoreKind::Postgres, reason),
    };
    Bundle {
        store: StoreKind::Postgres.as_str().to_owned(),
        kind: StoreKind::Postgres,
        made: Some(summary.made),
        node: summary.node.clone(),
        made_in: summary.made_in.clone(),
        superseded_by: summary.superseded_by.clone(),
        bytes: weigh(&path).1,
        is_complete: summary.is_complete,
        summary: summary.sentence(),
        held: Held::Postgres(Box::new(summary)),
        name,
        path,
    }
}

fn files(name: String, path: PathBuf) -> Bundle {
    let manifest: KeptManifest = match read(&path.join(KEPT_MANIFEST)) {
        Ok(manifest) => manifest,
        Err(reason) => return unreadable(name, path, StoreKind::Files, reason),
    };
    Bundle {
        store: manifest.store.to_string(),
        kind: StoreKind::Files,
        made: Some(manifest.made),
        node: Some(manifest.made_in.node.clone()),
        made_in: Some(manifest.made_in.clone()),
        superseded_by: Some(manifest.superseded_by.clone()),
        bytes: manifest.bytes,
        is_complete: true,
        summary: manifest.counts.sentence(),
        held: Held::Files(Box::new(manifest)),
        name,
        path,
    }
}

fn tree(name: String, store: &str, path: PathBuf, kept: &str, is_being_made: bool) -> Bundle {
    let (files, bytes) = weigh(&path);
    let made_in = kept
        .rsplit_once('-')
        .and_then(|(epoch, _)| epoch.parse().ok());
    let what = if is_being_made {
        "so far; the rejoin that sets them aside has not ended"
    } else {
        "without a list of what became of them"
    };
    Bundle {
        store: store.to_owned(),
        kind: StoreKind::Files,
        made: fs::metadata(&path)
            .and_then(|found| found.modified())
            .ok()
            .map(WallTime::from),
        node: None,
        made_in,
        superseded_by: None,
        bytes,
        is_complete: !is_being_made,
        summary: format!("{files} files that the new primary lacked, {what}"),
        held: Held::Tree,
        name,
        path,
    }
}

fn kv(name: String, path: PathBuf) -> Bundle {
    let manifest: Manifest = match read(&path.join("manifest.json")) {
        Ok(manifest) => manifest,
        Err(reason) => return unreadable(name, path, StoreKind::Kv, reason),
    };
    Bundle {
        store: manifest.store.to_string(),
        kind: StoreKind::Kv,
        made: Some(manifest.made),
        node: Some(manifest.node.clone()),
        made_in: manifest.end.epoch.clone(),
        superseded_by: manifest.superseded_by.clone(),
        bytes: weigh(&path).1,
        is_complete: true,
        summary: format!(
            "{} operations from operation {} on; clients were told that it is kept: {}",
            manifest.operations,
            manifest.cut_to.position,
            manifest.acknowledged.told()
        ),
        held: Held::Kv(Box::new(manifest)),
        name,
        path,
    }
}

fn of_settings(name: String, path: PathBuf, summary: String) -> Bundle {
    let made = fs::metadata(&path).and_then(|found| found.modified());
    Bundle {
        store: StoreKind::Settings.as_str().to_owned(),
        kind: StoreKind::Settings,
        made: made.ok().map(WallTime::from),
        node: None,
        made_in: None,
        superseded_by: None,
        bytes: weigh(&path).1,
        is_complete: true,
        summary,
        held: Held::Settings,
        name,
        path,
    }
}
