//! Sources that are no plain disk. Each test begins with the trap's number.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::pair::{Followed, Pair};

/// Something that is mounted for one test.
struct Mount(PathBuf);

impl Mount {
    /// Returns `None`, and says so, where nothing of the kind can be mounted.
    fn new(kind: &str, options: &str, at: &Path) -> Option<Self> {
        let mut command = Command::new("mount");
        command
            .args(["-t", kind, "-o", options, "understudy-test"])
            .arg(at);
        let is_mounted = command.output().is_ok_and(|ended| ended.status.success());
        if !is_mounted {
            eprintln!("skipped: {kind} cannot be mounted here");
        }
        is_mounted.then(|| Self(at.to_owned()))
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // Whatever is still open goes on, and nobody finds it any more.
        let _ended = Command::new("umount")
            .arg("--lazy")
            .arg(&self.0)
            .status()
            .is_ok();
    }
}

/// Nothing is looked at by the clock within a test: what is followed was told.
async fn is_followed(folder: tempfile::TempDir, make: impl FnOnce(&Path)) {
    let pair = Pair::within(folder, |_| {}).await;
    let mut followed = Followed::with(pair, |root| {
        make(root);
        fs::create_dir_all(root.join("d/inner")).unwrap();
        fs::write(root.join("d/inner/a"), "a").unwrap();
        fs::write(root.join("large"), vec![b'0'; 600_000]).unwrap();
    })
    .await;
    let source = followed.source();
    for round in 0..2 {
        fs::write(source.join("d/inner/a"), format!("{round}")).unwrap();
        fs::create_dir_all(source.join(format!("new {round}/er"))).unwrap();
        fs::write(source.join(format!("new {round}/er/within")), "within").unwrap();
        followed.agree().await;
        fs::rename(source.join("d"), source.join("moved")).unwrap();
        fs::write(source.join("moved/inner/after"), format!("{round}")).unwrap();
        followed.agree().await;
        fs::rename(source.join("moved"), source.join("d")).unwrap();
        fs::remove_dir_all(source.join(format!("new {round}"))).unwrap();
        fs::hard_link(source.join("large"), source.join(format!("twin {round}"))).unwrap();
        followed.agree().await;
        // And what was not told because nobody listened.
        followed = followed
            .unwatched(|root| {
                fs::write(root.join("large"), vec![b'1'; 500_000]).unwrap();
                fs::remove_file(root.join("d/inner/after")).unwrap();
            })
            .await;
        followed.agree_after_sync().await;
    }
    followed.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn trap_34_a_source_on_an_overlay() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    for name in ["lower", "upper", "work", "a"] {
        fs::create_dir_all(path(name)).unwrap();
    }
    // Files of the layer below are copied up, and change their inode, when they are first written to.
    fs::create_dir_all(path("lower/root/below")).unwrap();
    for name in ["read", "written", "removed"].map(|name| format!("lower/root/below/{name}")) {
        fs::write(path(&name), &name).unwrap();
    }
    let layers = ["lower", "upper", "work"].map(|name| path(name).display().to_string());
    let [lower, upper, work] = layers;
    let options = format!("lowerdir={lower},upperdir={upper},workdir={work}");
    let Some(mount) = Mount::new("overlay", &options, &path("a")) else {
        return;
    };
    let device = |path: &Path| fs::metadata(path).unwrap().dev();
    assert_ne!(device(&path("a/root")), device(folder.path()));
    let copied_up = move |root: &Path| {
        let below = root.join("below");
        fs::write(below.join("written"), "copied up").unwrap();
        fs::remove_file(below.join("removed")).unwrap();
        // A directory of the layer below cannot be renamed (EXDEV): it is copied, as `mv` does.
        fs::rename(below.join("read"), root.join("taken")).unwrap();
    };
    is_followed(folder, copied_up).await;
    drop(mount);
}

#[tokio::test(flavor = "multi_thread")]
async fn trap_34_a_source_in_memory() {
    let folder = tempfile::tempdir().unwrap();
    let node = folder.path().join("a");
    fs::create_dir_all(&node).unwrap();
    let Some(mount) = Mount::new("tmpfs", "size=64m", &node) else {
        return;
    };
    is_followed(folder, |_| {}).await;
    drop(mount);
}
