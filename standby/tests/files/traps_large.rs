//! Very many at once. Each test begins with the trap's number.

use std::fs;

use super::pair::Followed;

const ENTRIES: usize = 3_000;

/// Of so many files each goes through so many names.
const STORMY: usize = 20;
const NAMES: usize = 250;

#[tokio::test(flavor = "multi_thread")]
async fn trap_30_a_very_large_directory_and_a_storm_of_renames_in_it() {
    let followed = Followed::of(|root| {
        fs::create_dir(root.join("large")).unwrap();
        for number in 0..ENTRIES {
            fs::File::create(root.join(format!("large/{number}"))).unwrap();
        }
    })
    .await;
    let large = followed.source().join("large");
    for number in 0..STORMY {
        let mut from = large.join(format!("{number}"));
        for turn in 0..NAMES {
            let to = large.join(format!("{number} for the {turn}th time"));
            fs::rename(from, &to).unwrap();
            from = to;
        }
    }
    followed.agree().await;
    // The whole, at once.
    fs::rename(&large, followed.source().join("moved")).unwrap();
    fs::write(followed.source().join("moved/one more"), "one more").unwrap();
    followed.agree().await;
    fs::remove_dir_all(followed.source().join("moved")).unwrap();
    followed.end().await;
}
