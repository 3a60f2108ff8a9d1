//! What holds for every check, whatever it looks at.

use std::fs;
use std::path::Path;

use understudy_config::{Check, CheckKind, CheckOn};
use understudy_replication::status::CheckState::{Failed, Ok as Well, Unknown};

use crate::watched::{Watched, check, config, wait_for};

/// Returns a check that is well while the file is there.
fn of_file(path: &Path) -> Check {
    check(CheckKind::Command {
        command: vec![
            "test".to_owned(),
            "-e".to_owned(),
            path.display().to_string(),
        ],
        user: None,
    })
}

#[tokio::test]
async fn m16_what_speaks_against_a_promotion_is_told_with_its_reason() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("well");
    fs::write(&path, "").unwrap();
    let mut check = of_file(&path);
    check.blocks_promotion = true;
    let watched = Watched::of(&config(vec![check]), None);
    watched.is(Well).await;
    assert_eq!(watched.checks.blocking(), []);
    fs::remove_file(&path).unwrap();
    watched.is(Failed).await;
    let reason = "`test` failed (exit status: 1)".to_owned();
    assert_eq!(watched.checks.blocking(), [("it".parse().unwrap(), reason)]);
}

#[tokio::test]
async fn who_is_muted_tells_in_the_end_what_is_still_so() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("well");
    let watched = Watched::of(&config(vec![of_file(&path)]), None);
    watched.checks.set_muted(true);
    watched.is(Failed).await;
    fs::write(&path, "").unwrap();
    watched.is(Well).await;
    watched.checks.set_muted(false);
    assert_eq!(watched.events(), []);

    watched.checks.set_muted(true);
    fs::remove_file(&path).unwrap();
    watched.is(Failed).await;
    assert_eq!(watched.events(), []);
    watched.checks.set_muted(false);
    let kinds: Vec<_> = watched
        .events()
        .into_iter()
        .map(|event| event.kind)
        .collect();
    assert_eq!(kinds, ["check_failed"]);
}

#[tokio::test]
async fn a_check_of_another_role_is_not_told_and_begins_anew() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("well");
    let mut check = of_file(&path);
    check.on = CheckOn::Primary;
    check.blocks_promotion = true;
    let watched = Watched::of(&config(vec![check]), None);
    watched.is(Failed).await;
    watched.set_primary(false);
    wait_for("the end of the check", || {
        watched.status().is_none().then_some(())
    })
    .await;
    assert_eq!(watched.checks.blocking(), []);
    fs::write(&path, "").unwrap();
    watched.set_primary(true);
    watched.is(Well).await;
    assert_eq!(watched.events().len(), 1);
}

#[tokio::test]
async fn the_disk_of_the_state_is_looked_at_unless_a_check_has_its_name_or_its_disk() {
    let names = |checks: Vec<Check>| {
        let watched = Watched::of(&config(checks), None);
        let status = watched.checks.status().into_iter();
        status
            .map(|check| format!("{} ({})", check.name, check.kind))
            .collect::<Vec<_>>()
    };
    assert_eq!(names(vec![]), ["disk-state (disk)"]);
    let mut named = check(CheckKind::Load {
        most: 100.0,
        recover: None,
    });
    named.name = "disk-state".parse().unwrap();
    assert_eq!(names(vec![named]), ["disk-state (load)"]);
    let same = check(CheckKind::Disk {
        path: std::env::temp_dir(),
        least: understudy_config::Amount::Bytes(1),
        recover: None,
        inodes: None,
    });
    assert_eq!(names(vec![same]), ["it (disk)"]);
}

#[tokio::test]
async fn a_look_that_breaks_leaves_nothing_known_and_is_begun_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("well");
    fs::write(&path, "").unwrap();
    let mut check = of_file(&path);
    check.on = CheckOn::Primary;
    let watched = Watched::of(&config(vec![check]), None);
    watched.is(Well).await;
    watched.set_broken(true);
    let message = watched.is(Unknown).await;
    assert_eq!(
        message,
        "a look has broken: a mistake of ours; the next is in 1 s"
    );
    watched.set_broken(false);
    watched.is(Well).await;
    let kinds: Vec<_> = watched.events().into_iter().map(|it| it.kind).collect();
    assert_eq!(kinds, ["check_unknown"]);
}
