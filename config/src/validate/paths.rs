//! Paths, and which of them must not overlap.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use super::elements;
use crate::problem::{Findings, Mistake, Place, Placed};
use crate::raw;

/// A path of a store, as it stands in `understudy.toml`.
pub(super) struct StorePath {
    /// What the path belongs to: "store `uploads`".
    pub(super) owner: String,
    pub(super) path: PathBuf,
    pub(super) place: Place,
}

/// Reads an absolute path, in its shortest form.
pub(super) fn absolute(text: &str) -> Result<PathBuf, Mistake> {
    let path = Path::new(text);
    let what = if !path.is_absolute() {
        "is not an absolute path"
    } else if path.components().any(|part| part == Component::ParentDir) {
        "leads upwards with `..`"
    } else if text.contains('\0') {
        "holds a NUL"
    } else {
        return Ok(path.components().collect());
    };
    let what = format!("`{text}` {what}");
    Err(Mistake::new(
        what,
        "a path that starts with `/` and has no `..`",
    ))
}

/// Reads a path of a machine that may be its root.
pub(super) fn store_or_root(text: &str) -> Result<PathBuf, Mistake> {
    absolute(text)
}

/// Reads the path of a store.
pub(super) fn store(text: &str) -> Result<PathBuf, Mistake> {
    let path = absolute(text)?;
    if path.parent().is_none() {
        return Err(Mistake::new("`/` is the whole machine", "a path below `/`"));
    }
    Ok(path)
}

/// Returns the paths of all stores that are valid by themselves.
pub(super) fn stores(file: &raw::ClusterFile) -> Vec<StorePath> {
    let postgres = file
        .postgres
        .iter()
        .filter_map(|it| it.value.data_dir.as_ref());
    let postgres = postgres.map(|path| ("store `postgres`".to_owned(), path));
    let wal = file
        .postgres
        .iter()
        .filter_map(|it| it.value.wal_dir.as_ref());
    let wal = wal.map(|path| ("the WAL of store `postgres`".to_owned(), path));
    let configuration = file
        .postgres
        .iter()
        .filter_map(|it| it.value.config_dir.as_ref());
    let configuration =
        configuration.map(|path| ("the configuration of `postgres`".to_owned(), path));
    let files = elements(&file.files).filter_map(|it| {
        let owner = match &it.value.name {
            Some(name) => format!("store `{}`", name.value),
            None => "a files store".to_owned(),
        };
        Some((owner, it.value.path.as_ref()?))
    });
    let settings = file
        .settings
        .iter()
        .flat_map(|it| elements(&it.value.paths));
    let settings = settings.map(|path| ("store `settings`".to_owned(), path));
    let valid = |(owner, written): (String, &Placed<String>)| {
        let path = store(&written.value).ok()?;
        Some(StorePath {
            owner,
            path,
            place: written.place.clone(),
        })
    };
    postgres
        .chain(wal)
        .chain(configuration)
        .chain(files)
        .chain(settings)
        .filter_map(valid)
        .collect()
}

/// Reports every path that equals another or lies inside one.
pub(super) fn report_overlaps(stores: &[StorePath], findings: &mut Findings) {
    let mut first: BTreeMap<&Path, &StorePath> = BTreeMap::new();
    let mut report = |inner: &StorePath, outer: &StorePath, what: String| {
        findings
            .report(
                &inner.place,
                what,
                "paths of which none lies inside another",
            )
            .related(&outer.place, format!("{} is here", outer.owner));
    };
    for store in stores {
        let Some(other) = first.get(store.path.as_path()) else {
            first.insert(&store.path, store);
            continue;
        };
        let what = format!("{} has the path of {}", store.owner, other.owner);
        report(store, other, what);
    }
    for store in first.values() {
        let above = store
            .path
            .ancestors()
            .skip(1)
            .find_map(|path| first.get(path));
        if let Some(outer) = above {
            let what = format!("{} lies inside {}", store.owner, outer.owner);
            report(store, outer, what);
        }
    }
}

/// Returns whether one of the paths is the other, or inside it.
pub(super) fn overlap(left: &Path, right: &Path) -> bool {
    left.starts_with(right) || right.starts_with(left)
}
