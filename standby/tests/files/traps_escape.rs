//! Somebody on the standby puts a link where a directory is. Each test begins with the trap's number.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{CWD, RenameFlags, XattrFlags, renameat_with, setxattr};
use understudy_replication::check::Depth;
use understudy_replication::store::{NoProgress, Receiver, Stopper};

use super::pair::{Followed, tree};

/// The names that are in the directory, and in what a link leads to instead.
const NAMES: [&str; 7] = [
    "changed", "dressed", "patched", "moved", "swapped", "deleted", "linked",
];

fn fill(directory: &Path, with: &str) {
    fs::create_dir(directory).unwrap();
    for name in NAMES {
        fs::write(directory.join(name), format!("{name} {with}")).unwrap();
    }
    fs::write(directory.join("patched"), vec![b'0'; 400_000]).unwrap();
    fs::create_dir(directory.join("inner")).unwrap();
    fs::write(directory.join("inner/within"), with).unwrap();
}

/// One of each that a standby does at a path.
const OPERATIONS: [fn(&Path, usize); 13] = [
    |d, round| fs::write(d.join("made"), format!("{round}")).unwrap(),
    |d, round| fs::write(d.join("changed"), format!("{round}")).unwrap(),
    |d, round| {
        let mode = 0o600 | u32::try_from(round % 8).unwrap();
        fs::set_permissions(d.join("dressed"), fs::Permissions::from_mode(mode)).unwrap();
    },
    |d, round| {
        let owner = Some(1000 + u32::try_from(round).unwrap());
        std::os::unix::fs::chown(d.join("dressed"), owner, owner).unwrap();
    },
    |d, round| {
        let value = format!("{round}");
        let flags = XattrFlags::empty();
        setxattr(d.join("dressed"), "user.trap", value.as_bytes(), flags).unwrap();
    },
    |d, round| {
        let mut content = vec![b'0'; 400_000];
        content[round * 5000..][..4].copy_from_slice(b"here");
        fs::write(d.join("patched"), content).unwrap();
    },
    |d, round| fs::rename(d.join("moved"), d.join(format!("moved {round}"))).unwrap(),
    |d, round| fs::rename(d.join(format!("moved {round}")), d.join("moved")).unwrap(),
    |d, _| {
        let (one, other) = (d.join("swapped"), d.join("changed"));
        renameat_with(CWD, one, CWD, other, RenameFlags::EXCHANGE).unwrap();
    },
    |d, round| {
        let link = d.join(format!("link {round}"));
        symlink("deleted", link).unwrap();
        fs::hard_link(d.join("linked"), d.join(format!("name {round}"))).unwrap();
    },
    |d, round| {
        fs::create_dir(d.join(format!("new {round}"))).unwrap();
        fs::write(d.join(format!("new {round}/within")), "within").unwrap();
        fs::copy(d.join("patched"), d.join(format!("copy {round}"))).unwrap();
    },
    |d, _| {
        fs::remove_file(d.join("deleted")).unwrap();
        fs::write(d.join("inner/within"), "changed").unwrap();
    },
    |d, _| {
        fs::write(d.join("deleted"), "again").unwrap();
        fs::remove_dir_all(d.join("inner")).unwrap();
        fs::create_dir(d.join("inner")).unwrap();
        fs::write(d.join("inner/within"), "again").unwrap();
    },
];

/// Where a link leads that must lead nowhere, and how it looked.
struct Outside {
    path: std::path::PathBuf,
    was: BTreeMap<String, super::pair::Part>,
    mode: u32,
}

impl Outside {
    fn of(followed: &Followed) -> Self {
        let path = followed.pair.folder.path().join("outside");
        fill(&path, "that must not be touched");
        Self {
            was: tree(&path),
            mode: fs::metadata(&path).unwrap().permissions().mode(),
            path,
        }
    }

    fn assert_untouched(&self) {
        assert_eq!(tree(&self.path), self.was);
        let mode = fs::metadata(&self.path).unwrap().permissions().mode();
        assert_eq!(mode, self.mode);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn trap_13_no_operation_goes_through_a_link_in_place_of_a_directory() {
    let followed = Followed::of(|root| fill(&root.join("d"), "of the primary")).await;
    let outside = Outside::of(&followed);
    let (source, copy) = (followed.source().join("d"), followed.copy().join("d"));
    for operation in OPERATIONS {
        fs::remove_dir_all(&copy).unwrap();
        symlink(&outside.path, &copy).unwrap();
        operation(&source, 1);
        // Where that changes nothing in the copy, the link is found by a check.
        followed.primary.mark().await;
        check(&followed).await;
        followed.agree().await;
        assert!(!copy.is_symlink());
        outside.assert_untouched();
    }
    followed.end().await;
}

async fn check(followed: &Followed) {
    let (_stopper, stop) = Stopper::new();
    let (client, receiver) = (&followed.pair.client, &followed.receiver);
    let checking = receiver.check(client, Depth::Verify, &NoProgress, &stop);
    checking.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn trap_13_a_directory_that_becomes_a_link_between_two_calls_leads_nowhere() {
    let followed = Followed::of(|root| fill(&root.join("d"), "of the primary")).await;
    let outside = Outside::of(&followed);
    let (source, copy) = (followed.source().join("d"), followed.copy().join("d"));
    let decoy = followed.pair.folder.path().join("decoy");
    symlink(&outside.path, &decoy).unwrap();
    let is_over = Arc::new(AtomicBool::new(false));
    let swapper = std::thread::spawn({
        let (is_over, copy, decoy) = (is_over.clone(), copy.clone(), decoy.clone());
        move || {
            let mut count = 0_u64;
            while !is_over.load(Ordering::Relaxed) {
                // The standby may be making the directory anew.
                let swapped = renameat_with(CWD, &copy, CWD, &decoy, RenameFlags::EXCHANGE);
                count += u64::from(swapped.is_ok());
            }
            count
        }
    });
    for round in 0..6 {
        for operation in OPERATIONS {
            operation(&source, round);
            followed.primary.mark().await;
        }
    }
    is_over.store(true, Ordering::Relaxed);
    assert!(swapper.join().unwrap() > 1000);
    outside.assert_untouched();
    check(&followed).await;
    followed.agree().await;
    outside.assert_untouched();
    followed.end().await;
}
