//! The checks that nobody has to configure: the room on the disks of the stores.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use understudy_config::{
    Amount, Check, CheckKind, CheckOn, CheckSeverity, Config, Local, StoreName,
};

use super::local::nearest;

/// Returns a check for each file system that holds a store or the state of this node, where the configuration
/// has none of that name or on that file system; and where the path is on this machine.
pub(super) fn disks(config: &Config, local: &Local) -> Vec<Check> {
    let names: BTreeSet<&StoreName> = config.checks.iter().map(|check| &check.name).collect();
    let mut seen: BTreeSet<u64> = BTreeSet::new();
    for check in &config.checks {
        if let CheckKind::Disk { path, .. } = &check.kind {
            seen.extend(device(&local.resolve(path)));
        }
    }
    let state = [("state".to_owned(), local.state_dir.clone())];
    let postgres = config
        .postgres
        .iter()
        .map(|it| ("postgres".to_owned(), local.resolve(&it.data_dir)));
    let files = config
        .files
        .iter()
        .map(|it| (it.name.to_string(), local.resolve(&it.path)));
    let mut checks = Vec::new();
    for (of, path) in state.into_iter().chain(postgres).chain(files) {
        // A store's name may be so long that this is none: its disk is then that of another.
        let Ok(name) = format!("disk-{of}").parse::<StoreName>() else {
            continue;
        };
        let is_new = device(&path).is_none_or(|device| seen.insert(device));
        if is_new && !names.contains(&name) {
            checks.push(check(name, path));
        }
    }
    checks
}

/// How long a file system has to answer: one that is gone must not keep the daemon from starting.
const DEVICE_LIMIT: Duration = Duration::from_millis(500);

/// Returns which file system the path is on, or will be; `None` where that cannot be told.
fn device(path: &Path) -> Option<u64> {
    let (answer, answered) = std::sync::mpsc::channel();
    let path = path.to_owned();
    let look = move || {
        let metadata = nearest(&path).metadata();
        // Nobody listens any more where it has taken too long.
        answer.send(metadata).unwrap_or_default();
    };
    let _thread = std::thread::Builder::new().spawn(look).ok()?;
    let metadata = answered.recv_timeout(DEVICE_LIMIT).ok()?;
    Some(metadata.ok()?.dev())
}

fn check(name: StoreName, path: PathBuf) -> Check {
    let share = |text: &str| text.parse().ok().map(Amount::Share);
    Check {
        name,
        kind: CheckKind::Disk {
            path,
            least: share("5%").unwrap_or(Amount::Bytes(0)),
            recover: share("7%"),
            inodes: None,
        },
        interval: Duration::from_secs(60),
        timeout: Duration::from_secs(10),
        fail_after: 3,
        recover_after: 2,
        severity: CheckSeverity::Warning,
        on: CheckOn::Any,
        blocks_promotion: false,
    }
}
