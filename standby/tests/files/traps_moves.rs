//! Names that move, and files that have several. Each test begins with the trap's number.

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use rustix::fs::{CWD, RenameFlags};
use understudy_replication::store::Shipper;

use super::pair::{Followed, until};
use super::traps_capture::set_mtime;

/// Two directories with a file each, two files, and an empty directory.
fn movable(root: &Path) {
    for name in ["a", "b", "c"] {
        fs::create_dir_all(root.join(name).join("inner")).unwrap();
        fs::write(root.join(name).join("inner/file"), format!("in {name}")).unwrap();
    }
    fs::create_dir(root.join("empty")).unwrap();
    for name in ["f", "g", "h"] {
        fs::write(root.join(name), format!("file {name}")).unwrap();
    }
}

fn exchange(a: &Path, b: &Path) {
    rustix::fs::renameat_with(CWD, a, CWD, b, RenameFlags::EXCHANGE).unwrap();
}

/// What is done, and in words.
type Act = (&'static str, fn(&Path));

/// What is done with a tree that [`movable`] has made.
const MOVES: [Act; 9] = [
    ("directories exchanged", |root| {
        exchange(&root.join("a"), &root.join("b"));
    }),
    ("a directory and a file exchanged", |root| {
        exchange(&root.join("a"), &root.join("f"));
    }),
    ("a chain", |root| {
        fs::rename(root.join("a"), root.join("x")).unwrap();
        fs::rename(root.join("c"), root.join("a")).unwrap();
        fs::rename(root.join("b"), root.join("c")).unwrap();
        fs::rename(root.join("f"), root.join("y")).unwrap();
        fs::rename(root.join("g"), root.join("f")).unwrap();
        fs::rename(root.join("h"), root.join("g")).unwrap();
    }),
    ("a circle", |root| {
        for names in [["f", "x"], ["g", "f"], ["h", "g"], ["x", "h"]] {
            fs::rename(root.join(names[0]), root.join(names[1])).unwrap();
        }
        for names in [["a", "x"], ["b", "a"], ["x", "b"]] {
            fs::rename(root.join(names[0]), root.join(names[1])).unwrap();
        }
    }),
    ("into what was its child", |root| {
        fs::rename(root.join("a/inner"), root.join("inner")).unwrap();
        fs::rename(root.join("a"), root.join("inner/a")).unwrap();
    }),
    ("the child takes the name of what held it", |root| {
        fs::rename(root.join("a"), root.join("x")).unwrap();
        fs::rename(root.join("x/inner"), root.join("a")).unwrap();
        fs::rename(root.join("x"), root.join("a/inner")).unwrap();
    }),
    ("over what is there", |root| {
        fs::rename(root.join("f"), root.join("g")).unwrap();
        fs::rename(root.join("a"), root.join("empty")).unwrap();
    }),
    ("an empty one goes and a full one takes its name", |root| {
        fs::remove_dir(root.join("empty")).unwrap();
        fs::rename(root.join("b"), root.join("empty")).unwrap();
        fs::create_dir(root.join("b")).unwrap();
        fs::write(root.join("b/new"), "new").unwrap();
    }),
    ("moved, and what it held changed at once", |root| {
        fs::rename(root.join("a"), root.join("moved")).unwrap();
        fs::write(root.join("moved/inner/file"), "after").unwrap();
        fs::rename(root.join("moved/inner/file"), root.join("b/inner/other")).unwrap();
        fs::remove_dir(root.join("moved/inner")).unwrap();
        fs::write(root.join("moved/inner"), "a file now").unwrap();
    }),
];

#[tokio::test(flavor = "multi_thread")]
async fn trap_10_names_are_swapped_chained_and_taken_over() {
    let top = |root: &Path, number: usize| root.join(format!("{number}"));
    let followed = Followed::of(|root| {
        for number in 0..MOVES.len() {
            fs::create_dir(top(root, number)).unwrap();
            movable(&top(root, number));
        }
    })
    .await;
    for (number, (what, act)) in MOVES.iter().enumerate() {
        eprintln!("{what}");
        act(&top(&followed.source(), number));
        followed.agree().await;
    }
    followed.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn trap_10_names_are_swapped_chained_and_taken_over_at_once_and_unwatched() {
    let top = |root: &Path, number: usize| root.join(format!("{number}"));
    let make = |root: &Path| {
        for number in 0..MOVES.len() * 2 {
            fs::create_dir(top(root, number)).unwrap();
            movable(&top(root, number));
        }
    };
    let followed = Followed::of(make).await;
    for (number, (_, act)) in MOVES.iter().enumerate() {
        act(&top(&followed.source(), number));
    }
    followed.agree().await;
    let followed = followed.unwatched(|root| {
        for (number, (_, act)) in MOVES.iter().enumerate() {
            act(&top(root, MOVES.len() + number));
        }
    });
    followed.await.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn trap_11_an_inode_is_used_again() {
    let make = |path: &Path, text: &str| {
        fs::write(path, text).unwrap();
        set_mtime(path, 1_000_000_000, 0);
        fs::metadata(path).unwrap().ino()
    };
    let followed = Followed::of(|root| {
        make(&root.join("a"), "before");
        make(&root.join("b"), "before");
    })
    .await;
    let mut reused = 0;
    for round in 0..10 {
        // The same name, and another one; the same size and time.
        let source = followed.source();
        for (gone, made) in [
            ("a", "a"),
            ("b", &format!("b{round}")),
            (&format!("b{round}"), "b"),
        ] {
            let before = fs::metadata(source.join(gone)).unwrap().ino();
            fs::remove_file(source.join(gone)).unwrap();
            let text = format!("new {:02}", round * 3 % 100);
            reused += u32::from(make(&source.join(made), &text) == before);
            if round % 2 == 0 {
                followed.agree().await;
            }
        }
        followed.agree().await;
    }
    let followed = followed.unwatched(|root| {
        let before = fs::metadata(root.join("a")).unwrap().ino();
        fs::remove_file(root.join("a")).unwrap();
        let made = make(&root.join("other"), "quite another");
        eprintln!(
            "used again {reused} times of 30, and unwatched: {}",
            made == before
        );
    });
    followed.await.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn trap_12_hard_links_are_made_broken_renamed_and_changed() {
    let followed = Followed::of(|root| {
        fs::create_dir(root.join("d")).unwrap();
        fs::write(root.join("a"), "linked").unwrap();
        fs::hard_link(root.join("a"), root.join("d/b")).unwrap();
        fs::write(root.join("single"), "single").unwrap();
    })
    .await;
    let (source, copy) = (followed.source(), followed.copy());
    let inode = |name: &str| fs::metadata(copy.join(name)).unwrap().ino();
    assert_eq!(inode("a"), inode("d/b"));
    // A third name, and a first link to what had one name.
    fs::hard_link(source.join("a"), source.join("c")).unwrap();
    fs::hard_link(source.join("single"), source.join("double")).unwrap();
    followed.agree().await;
    // Changed through one name, in content and in mode.
    fs::write(source.join("c"), "changed through c").unwrap();
    followed.agree().await;
    let mut mode = fs::metadata(source.join("d/b")).unwrap().permissions();
    mode.set_readonly(true);
    fs::set_permissions(source.join("d/b"), mode).unwrap();
    followed.agree().await;
    // One name is renamed, and the directory of another one.
    fs::rename(source.join("c"), source.join("d/e")).unwrap();
    followed.agree().await;
    fs::rename(source.join("d"), source.join("f")).unwrap();
    followed.agree().await;
    assert_eq!(inode("a"), inode("f/e"));
    // Broken by a copy that takes the place of one name.
    fs::copy(source.join("a"), source.join("next")).unwrap();
    fs::rename(source.join("next"), source.join("f/e")).unwrap();
    fs::remove_file(source.join("double")).unwrap();
    followed.agree().await;
    assert_ne!(inode("a"), inode("f/e"));
    // Renamed over another name of the same file: the kernel does nothing.
    fs::rename(source.join("a"), source.join("f/b")).unwrap();
    followed.agree().await;
    let followed = followed.unwatched(|root| {
        fs::write(root.join("f/b"), "unwatched").unwrap();
        fs::rename(root.join("a"), root.join("z")).unwrap();
        fs::hard_link(root.join("single"), root.join("again")).unwrap();
    });
    followed.await.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn trap_12_a_name_and_then_its_new_directory_are_renamed_at_once() {
    let followed = Followed::of(|root| {
        for number in 0..8 {
            let directory = root.join(format!("d{number}"));
            fs::create_dir(&directory).unwrap();
            fs::write(root.join(format!("a{number}")), "linked").unwrap();
            let name = root.join(format!("a{number}"));
            fs::hard_link(&name, directory.join("b")).unwrap();
            fs::hard_link(&name, root.join(format!("c{number}"))).unwrap();
        }
    })
    .await;
    let source = followed.source();
    for number in 0..8 {
        let directory = source.join(format!("d{number}"));
        fs::rename(source.join(format!("c{number}")), directory.join("e")).unwrap();
        fs::rename(directory, source.join(format!("f{number}"))).unwrap();
        followed.agree().await;
    }
    followed.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn trap_12_a_linked_file_is_written_through_a_name_made_just_before() {
    let followed = Followed::of(|root| {
        for number in 0..8 {
            let name = root.join(format!("a{number}"));
            fs::write(&name, "as it was").unwrap();
            if number % 2 == 0 {
                fs::hard_link(&name, root.join(format!("b{number}"))).unwrap();
            }
        }
    })
    .await;
    let source = followed.source();
    for number in 0..8 {
        let name = source.join(format!("a{number}"));
        let before = fs::metadata(&name).unwrap().modified().unwrap();
        let new = source.join(format!("new{number}"));
        fs::hard_link(&name, &new).unwrap();
        // Same size and time: of the other names, nothing but the change time tells.
        fs::write(&new, "as it is.").unwrap();
        let file = fs::File::options().write(true).open(&new).unwrap();
        file.set_modified(before).unwrap();
        drop(file);
        followed.agree().await;
    }
    followed.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn trap_12_a_file_is_changed_through_a_name_that_is_gone_when_it_is_looked_at() {
    let followed = Followed::of(|root| {
        for number in 0..8 {
            fs::write(root.join(format!("a{number}")), "as it was").unwrap();
        }
        fs::create_dir(root.join("d")).unwrap();
    })
    .await;
    let source = followed.source();
    for number in 0..8 {
        let name = source.join(format!("a{number}"));
        let new = source.join(format!("d/new{number}"));
        fs::hard_link(&name, &new).unwrap();
        if number % 2 == 0 {
            fs::write(&new, "as it is.").unwrap();
        }
        let file = fs::File::options().write(true).open(&new).unwrap();
        file.set_modified(std::time::SystemTime::UNIX_EPOCH)
            .unwrap();
        drop(file);
        match number % 3 {
            0 => fs::remove_file(&new).unwrap(),
            1 => fs::write(source.join("d/other"), "another").unwrap(),
            _ => {}
        }
        if number % 3 != 0 {
            fs::write(source.join("d/over"), "over").unwrap();
            fs::rename(source.join("d/over"), &new).unwrap();
        }
        followed.agree().await;
    }
    // The name of an open file is gone, and it is written to all the same.
    let file = fs::File::options()
        .write(true)
        .open(source.join("a1"))
        .unwrap();
    fs::hard_link(source.join("a1"), source.join("left")).unwrap();
    fs::remove_file(source.join("a1")).unwrap();
    followed.agree().await;
    file.write_all_at(b"by nobody's name", 0).unwrap();
    followed.agree().await;
    followed.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn trap_10_a_directory_is_replaced_by_a_new_one_while_what_is_in_it_is_looked_at() {
    let followed = Followed::of(|root| {
        fs::create_dir(root.join("d")).unwrap();
        fs::write(root.join("d/x"), "first").unwrap();
    })
    .await;
    let source = followed.source();
    for number in 0..40 {
        fs::write(source.join("d/x"), format!("old {number}")).unwrap();
        fs::rename(source.join("d"), source.join(format!("away{number}"))).unwrap();
        fs::create_dir_all(source.join("d/below")).unwrap();
        fs::write(source.join("d/x"), format!("new {number}")).unwrap();
        fs::write(source.join("d/below/y"), format!("new {number}")).unwrap();
        followed.agree().await;
    }
    followed.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn trap_12_a_hard_link_with_a_name_outside_the_root() {
    let followed = Followed::of(|root| fs::write(root.join("a"), "one").unwrap()).await;
    let (source, copy) = (followed.source(), followed.copy());
    let outside = followed.pair.folder.path().join("a/outside");
    fs::hard_link(source.join("a"), &outside).unwrap();
    followed.agree().await;
    // Nobody can tell by which name it was written to.
    fs::write(&outside, "through the other name").unwrap();
    followed.primary.shipper.sync_now().await.unwrap();
    let is_here =
        || fs::read_to_string(copy.join("a")).is_ok_and(|text| text == "through the other name");
    until(is_here, || format!("{:?}", fs::read(copy.join("a")))).await;
    fs::remove_file(&outside).unwrap();
    followed.agree().await;
    assert_eq!(fs::metadata(copy.join("a")).unwrap().nlink(), 1);
    followed.end().await;
}
