//! What a former primary has, and the new one lacks: foreseen, listed, set aside.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use understudy_replication::epoch::Epoch;
use understudy_replication::rejoin::{Foreseen, Method, Rejoined, Salvaging, Way};
use understudy_replication::store::{NoProgress, Receiver};
use understudy_standby::files::{
    FilesReceiver, KEPT_MANIFEST, KEPT_PATHS, KeptManifest, What, findings,
};

use super::pair::{Pair, Primary, epoch, tree};

/// Makes a pair of which b was promoted, with what a had written before and b has written since.
async fn parted() -> (Pair, Primary, Arc<FilesReceiver>) {
    let pair = Pair::new().await;
    let source = pair.source();
    fs::create_dir_all(source.join("folder/deep")).unwrap();
    for name in [
        "same",
        "differs",
        "folder/gone",
        "folder/deep/gone",
        "left",
        "mode",
    ] {
        fs::write(source.join(name), format!("{name} as it was\n")).unwrap();
    }
    let primary = pair.primary();
    let receiver = pair.receiver();
    pair.seed(&receiver).await.unwrap();
    // Seen by the primary, and never shipped.
    fs::write(source.join("lost"), "exists only here").unwrap();
    fs::remove_dir_all(source.join("folder")).unwrap();
    fs::write(source.join("differs"), "the old primary's").unwrap();
    primary.mark().await;
    primary.stop().await;
    // Seen by nobody.
    fs::write(source.join("late"), "written when nobody looked").unwrap();
    fs::set_permissions(source.join("mode"), fs::Permissions::from_mode(0o600)).unwrap();
    let next = next();
    receiver.take_over(&next, &NoProgress).await.unwrap();
    drop(receiver);
    let promoted = pair.primary_in(&next, "b");
    fs::write(pair.copy().join("new"), vec![b'n'; 5000]).unwrap();
    fs::write(pair.copy().join("differs"), "the new primary's").unwrap();
    // A deletion is replayed, and what it takes is only there on the old primary.
    fs::remove_file(pair.copy().join("left")).unwrap();
    promoted.mark().await;
    let former = pair.receiver_of("a");
    (pair, promoted, former)
}

fn next() -> Epoch {
    epoch().superseded_by("b".parse().unwrap())
}

async fn rejoin(pair: &Pair, former: &FilesReceiver) -> Rejoined {
    let rejoined = former.rejoin(&pair.client, Salvaging::Required, &NoProgress);
    rejoined.await.unwrap()
}

async fn foresee(pair: &Pair, former: &FilesReceiver) -> Foreseen {
    former.foresee(&pair.client).await.unwrap().unwrap()
}

fn listed(bundle: &Path) -> BTreeMap<String, What> {
    let found = findings(&bundle.join(KEPT_PATHS)).unwrap();
    found
        .map(|finding| {
            let finding = finding.unwrap();
            (finding.path.to_string(), finding.what)
        })
        .collect()
}

fn bundles(pair: &Pair) -> Vec<PathBuf> {
    let Ok(found) = fs::read_dir(pair.state("a").join("salvage")) else {
        return Vec::new();
    };
    found.map(|entry| entry.unwrap().path()).collect()
}

fn expected() -> BTreeMap<String, What> {
    [
        ("differs", What::Differs),
        ("lost", What::OnlyHere),
        ("late", What::OnlyHere),
        ("left", What::OnlyHere),
        ("folder/gone", What::DeletedHere),
        ("folder/deep/gone", What::DeletedHere),
        ("mode", What::Attributes),
    ]
    .map(|(name, what)| (name.to_owned(), what))
    .into()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_only_a_former_primary_has_is_listed_and_set_aside_and_deletions_are_replayed() {
    let (pair, promoted, former) = parted().await;
    let rejoined = rejoin(&pair, &former).await;
    assert_eq!(tree(&pair.source()), tree(&pair.copy()));
    assert!(!pair.source().join("left").exists());
    let salvaged = rejoined.salvaged.unwrap();
    assert!(salvaged.is_complete, "{salvaged:?}");
    assert_eq!(bundles(&pair), std::slice::from_ref(&salvaged.path));
    assert_eq!(listed(&salvaged.path), expected());
    let manifest = fs::read(salvaged.path.join(KEPT_MANIFEST)).unwrap();
    let manifest: KeptManifest = serde_json::from_slice(&manifest).unwrap();
    assert_eq!(
        (manifest.made_in, manifest.superseded_by),
        (epoch(), next())
    );
    let counts = &manifest.counts;
    let counts = [
        counts.differing,
        counts.only_here,
        counts.deleted_here,
        counts.attributes,
    ];
    assert_eq!(counts, [1, 3, 2, 1]);
    let kept = [
        ("differs", "the old primary's"),
        ("lost", "exists only here"),
        ("late", "written when nobody looked"),
        ("left", "left as it was\n"),
    ];
    let bytes: usize = kept.iter().map(|(_, content)| content.len()).sum();
    assert_eq!(manifest.bytes, u64::try_from(bytes).unwrap());
    for (name, content) in kept {
        assert_eq!(
            fs::read_to_string(manifest.kept.join(name)).unwrap(),
            content
        );
    }
    assert_eq!(fs::read_dir(&manifest.kept).unwrap().count(), kept.len());
    // It is a standby's copy from now on: there is nothing more to keep.
    let again = rejoin(&pair, &former).await;
    assert_eq!(again.salvaged, None);
    assert_eq!(bundles(&pair).len(), 1);
    promoted.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_rejoin_does_is_foreseen_and_foreseeing_it_changes_nothing() {
    let (pair, promoted, former) = parted().await;
    let before = tree(&pair.source());
    let foreseen = foresee(&pair, &former).await;
    assert_eq!(tree(&pair.source()), before);
    assert!(!pair.source().join(".understudy/kept").exists());
    assert_eq!(bundles(&pair), Vec::<PathBuf>::new());
    assert_eq!(foreseen, foresee(&pair, &former).await);
    let rejoined = rejoin(&pair, &former).await;
    assert_eq!(foreseen.way, Way::Compared);
    let salvaged = rejoined.salvaged.unwrap();
    assert_eq!(foreseen.salvaged_bytes, Some(salvaged.bytes));
    let (told, came) = (
        foreseen.travelling_bytes.unwrap(),
        rejoined.travelled.unwrap(),
    );
    assert!(
        told <= came * 2 && came <= told * 2,
        "{told} were foreseen, {came} came"
    );
    assert!(matches!(rejoined.method, Method::Compared { copied, .. } if copied == came));
    promoted.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rejoin_that_is_broken_off_anywhere_ends_with_one_list_of_everything() {
    let (pair, promoted, mut former) = parted().await;
    for number in 0..300 {
        fs::write(pair.source().join(format!("extra-{number}")), "only here").unwrap();
        let new = pair.copy().join(format!("new-{number}"));
        fs::write(new, vec![b'n'; 20_000]).unwrap();
    }
    promoted.mark().await;
    for patience in [5, 20, 40, 80, 120] {
        let limit = std::time::Duration::from_millis(patience);
        let tried = former.rejoin(&pair.client, Salvaging::Required, &NoProgress);
        // Broken off anywhere; or done, on a fast machine.
        let is_done = tokio::time::timeout(limit, tried).await.is_ok();
        drop(former);
        former = pair.receiver_of("a");
        if is_done {
            break;
        }
    }
    rejoin(&pair, &former).await;
    assert_eq!(tree(&pair.source()), tree(&pair.copy()));
    let [bundle] = bundles(&pair).try_into().unwrap();
    let mut all = expected();
    all.extend((0..300).map(|number| (format!("extra-{number}"), What::OnlyHere)));
    assert_eq!(listed(&bundle), all);
    promoted.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_former_primary_that_has_nothing_of_its_own_leaves_no_bundle() {
    let pair = Pair::new().await;
    fs::write(pair.source().join("shared"), "shared").unwrap();
    let primary = pair.primary();
    let receiver = pair.receiver();
    pair.seed(&receiver).await.unwrap();
    primary.mark().await;
    primary.stop().await;
    receiver.take_over(&next(), &NoProgress).await.unwrap();
    drop(receiver);
    let promoted = pair.primary_in(&next(), "b");
    fs::write(pair.copy().join("new"), "new").unwrap();
    promoted.mark().await;
    let former = pair.receiver_of("a");
    assert_eq!(rejoin(&pair, &former).await.salvaged, None);
    assert_eq!(bundles(&pair), Vec::<PathBuf>::new());
    let kept = pair.source().join(".understudy/kept");
    assert_eq!(fs::read_dir(kept).unwrap().count(), 0);
    assert!(!pair.events("a").contains(&"files_kept".to_owned()));
    promoted.stop().await;
}
