//! A test's folder, and the end of all that works beneath it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::processes::{beneath, kill_beneath};

/// A folder that takes with it every process and every mount beneath it.
pub(crate) struct Folder(PathBuf);

impl Folder {
    pub(crate) fn new() -> Self {
        let folder = tempfile::Builder::new()
            .prefix("understudy-e2e-")
            .tempdir()
            .unwrap()
            .keep();
        // The OS user of Postgres has to reach its data.
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o755)).unwrap();
        Self(folder)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// Mounts a file system of `megabytes` at `path`, beneath this folder.
    pub(crate) fn mount(&self, path: &Path, megabytes: u32) {
        assert!(path.starts_with(&self.0));
        fs::create_dir_all(path).unwrap();
        let done = Command::new("mount")
            .args([
                "-t",
                "tmpfs",
                "-o",
                &format!("size={megabytes}m,mode=755"),
                "tmpfs",
            ])
            .arg(path)
            .status()
            .unwrap();
        assert!(done.success(), "cannot mount {}", path.display());
    }

    fn unmount(&self) {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        for line in mounts.lines().rev() {
            let place = line.split(' ').nth(1).unwrap_or_default();
            if Path::new(place).starts_with(&self.0) {
                let _is_kept = Command::new("umount")
                    .arg("-l")
                    .arg(place)
                    .status()
                    .is_err();
            }
        }
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // A second panic would abort all other tests.
            for _ in 0..200 {
                let found = beneath(&self.0);
                if found.is_empty() {
                    break;
                }
                found.into_iter().for_each(super::kill);
                std::thread::sleep(std::time::Duration::from_millis(50));
            }
        } else {
            kill_beneath(&self.0);
        }
        self.unmount();
        if std::env::var_os("E2E_KEEP").is_some() {
            eprintln!("kept: {}", self.0.display());
            return;
        }
        if let Err(error) = fs::remove_dir_all(&self.0) {
            eprintln!("cannot remove {}: {error}", self.0.display());
        }
    }
}
