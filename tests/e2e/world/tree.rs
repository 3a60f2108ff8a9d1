//! A folder's whole content, to compare with another's.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Path → how it looks: kind, mode, owner, time in whole seconds, and the hash of its content.
pub(crate) type Tree = BTreeMap<String, String>;

/// Returns the content beneath `root`; what a store keeps for itself there is left out.
pub(crate) fn tree(root: &Path) -> Tree {
    let mut found = Tree::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            let path = entry.path();
            let name = path.strip_prefix(root).unwrap().display().to_string();
            let Ok(metadata) = fs::symlink_metadata(&path) else {
                continue;
            };
            if name.starts_with(".understudy") {
                continue;
            }
            let content = if metadata.is_symlink() {
                fs::read_link(&path).map(|target| target.display().to_string())
            } else if metadata.is_dir() {
                folders.push(path.clone());
                Ok("folder".to_owned())
            } else if metadata.is_file() {
                fs::read(&path).map(|content| blake3::hash(&content).to_hex().to_string())
            } else {
                Ok("other".to_owned())
            };
            let (mode, uid, gid) = (metadata.mode(), metadata.uid(), metadata.gid());
            let time = if metadata.is_symlink() {
                0
            } else {
                metadata.mtime()
            };
            let content = content.unwrap_or_else(|error| error.to_string());
            found.insert(name, format!("{mode:o} {uid}:{gid} {time} {content}"));
        }
    }
    found
}
