//! Names, attributes, and what is no file. Each test begins with the trap's number.

use std::ffi::OsStr;
use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, chown};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, XattrFlags, mknodat, removexattr, setxattr};
use understudy_replication::store::Shipper;

use super::pair::{Followed, xattrs};

fn set(path: &Path, name: &str, value: &[u8]) {
    setxattr(path, name, value, XattrFlags::empty()).unwrap();
}

fn mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn trap_14_names_of_any_bytes_and_of_255() {
    let long = "n".repeat(255);
    let names: [&[u8]; 12] = [
        b"caf\xe9",
        b"\xff\xfe",
        b"new\nline",
        b"back\\slash and \"quotes\"",
        b" ",
        b"-rf",
        b"...",
        "u\u{308}".as_bytes(),
        "\u{fc}".as_bytes(),
        b"Case",
        b"case",
        long.as_bytes(),
    ];
    let followed = Followed::of(|root| {
        for name in names {
            fs::create_dir(root.join(OsStr::from_bytes(name))).unwrap();
        }
    })
    .await;
    let source = followed.source();
    for name in names {
        let name = OsStr::from_bytes(name);
        fs::write(source.join(name).join(name), name.as_bytes()).unwrap();
    }
    followed.agree().await;
    for (number, name) in names.into_iter().enumerate() {
        let name = OsStr::from_bytes(name);
        fs::rename(source.join(name), source.join(format!("moved {number}"))).unwrap();
        std::os::unix::fs::symlink(name, source.join(name)).unwrap();
    }
    followed.agree().await;
    let copied = followed.copy().join("moved 2/new\nline");
    assert_eq!(fs::read(copied).unwrap(), b"new\nline");
    followed.end().await;
}

/// What is open, as a path that is short however deep it lies.
fn here(file: &fs::File) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

#[tokio::test(flavor = "multi_thread")]
async fn trap_14_a_path_that_is_longer_than_a_system_call_takes() {
    let name = "d".repeat(250);
    let followed = Followed::of(|_| {}).await;
    let descend = |root: &Path, is_made: bool| {
        let mut at = fs::File::open(root).unwrap();
        for depth in 0..20 {
            let path = here(&at).join(&name);
            if is_made {
                fs::create_dir(&path).unwrap();
                fs::write(here(&at).join("file"), format!("{depth}")).unwrap();
            }
            at = fs::File::open(path).unwrap();
        }
        at
    };
    let deepest = descend(&followed.source(), true);
    fs::write(here(&deepest).join("deepest"), "made").unwrap();
    followed.agree().await;
    fs::write(here(&deepest).join("deepest"), "changed").unwrap();
    fs::rename(
        here(&deepest).join("deepest"),
        here(&deepest).join("renamed"),
    )
    .unwrap();
    followed.agree().await;
    fs::rename(followed.source().join(&name), followed.source().join("top")).unwrap();
    followed.agree().await;
    let copied = fs::File::open(followed.copy().join("top")).unwrap();
    assert!(here(&copied).join(&name).exists());
    fs::rename(followed.source().join("top"), followed.source().join(&name)).unwrap();
    followed.agree().await;
    let copied = descend(&followed.copy(), false);
    assert_eq!(
        fs::read_to_string(here(&copied).join("renamed")).unwrap(),
        "changed"
    );
    fs::remove_dir_all(followed.source().join(&name)).unwrap();
    followed.end().await;
}

/// The list that lets one user read: as `setfacl -m u:1234:r` makes it.
fn access_list() -> Vec<u8> {
    let entries: [(u16, u16, u32); 5] = [
        (0x01, 6, u32::MAX),
        (0x02, 4, 1234),
        (0x04, 4, u32::MAX),
        (0x10, 4, u32::MAX),
        (0x20, 0, u32::MAX),
    ];
    let mut bytes = 2_u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        bytes.extend(tag.to_le_bytes());
        bytes.extend(permissions.to_le_bytes());
        bytes.extend(id.to_le_bytes());
    }
    bytes
}

/// What `setcap cap_net_bind_service=ep` writes.
fn capability() -> Vec<u8> {
    [0x0200_0001_u32, 1 << 10, 0, 0, 0]
        .into_iter()
        .flat_map(u32::to_le_bytes)
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn trap_22_attributes_and_access_lists_are_set_changed_and_removed() {
    let followed = Followed::of(|root| {
        fs::create_dir(root.join("d")).unwrap();
        for name in ["a", "d/b"] {
            fs::write(root.join(name), "content").unwrap();
            set(&root.join(name), "user.colour", b"red");
        }
        set(&root.join("d"), "user.kind", b"\0 binary \xff");
        set(&root.join("d"), "system.posix_acl_default", &access_list());
    })
    .await;
    let (source, copy) = (followed.source(), followed.copy());
    set(&source.join("a"), "user.colour", b"blue");
    set(&source.join("a"), "user.empty", b"");
    set(&source.join("a"), "system.posix_acl_access", &access_list());
    set(&source.join("d"), "system.posix_acl_access", &access_list());
    followed.agree().await;
    assert_eq!(fs::metadata(copy.join("a")).unwrap().mode() & 0o777, 0o640);
    // What is made in it has the list of its directory, and what is moved there has not.
    fs::write(source.join("d/inherits"), "new").unwrap();
    fs::create_dir(source.join("d/also")).unwrap();
    fs::write(source.join("plain"), "plain").unwrap();
    fs::rename(source.join("plain"), source.join("d/plain")).unwrap();
    followed.agree().await;
    assert!(xattrs(&copy.join("d/inherits")).contains("posix_acl_access"));
    assert!(!xattrs(&copy.join("d/plain")).contains("posix_acl_access"));
    // With new content, they stay.
    fs::write(source.join("a"), "new content").unwrap();
    followed.agree().await;
    assert!(xattrs(&copy.join("a")).contains("user.colour=blue"));
    for (name, attribute) in [
        ("a", "user.colour"),
        ("a", "system.posix_acl_access"),
        ("d", "system.posix_acl_default"),
        ("d", "user.kind"),
    ] {
        removexattr(source.join(name), attribute).unwrap();
    }
    followed.agree().await;
    assert_eq!(xattrs(&copy.join("a")), " user.empty=");
    let followed = followed.unwatched(|root| set(&root.join("d/b"), "user.colour", b"green"));
    followed.await.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn trap_22_a_capability_is_kept_although_a_change_of_the_owner_takes_it() {
    const NAME: &str = "security.capability";
    let followed = Followed::of(|root| fs::write(root.join("tool"), "tool").unwrap()).await;
    let (tool, copied) = (followed.source().join("tool"), followed.copy().join("tool"));
    chown(&tool, Some(1234), Some(1234)).unwrap();
    if let Err(errno) = setxattr(&tool, NAME, &capability(), XattrFlags::empty()) {
        eprintln!("skipped: no capability can be set here: {errno}");
        return followed.end().await;
    }
    followed.agree().await;
    assert!(xattrs(&copied).contains(NAME));
    // The owner changes, which takes it, and it is set again.
    chown(&tool, Some(4321), None).unwrap();
    assert!(!xattrs(&tool).contains(NAME));
    setxattr(&tool, NAME, &capability(), XattrFlags::empty()).unwrap();
    followed.agree().await;
    assert!(xattrs(&copied).contains(NAME));
    // Writing takes it, too, here and there.
    fs::write(&tool, "changed").unwrap();
    followed.agree().await;
    setxattr(&tool, NAME, &capability(), XattrFlags::empty()).unwrap();
    followed.agree().await;
    removexattr(&tool, NAME).unwrap();
    followed.agree().await;
    assert!(!xattrs(&copied).contains(NAME));
    followed.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn trap_23_owners_by_number_and_bits_that_a_change_of_the_owner_takes() {
    let followed = Followed::of(|root| {
        fs::create_dir(root.join("sticky")).unwrap();
        mode(&root.join("sticky"), 0o1777);
        fs::write(root.join("tool"), "tool").unwrap();
        chown(root.join("tool"), Some(54_321), Some(0)).unwrap();
        mode(&root.join("tool"), 0o6711);
    })
    .await;
    let (source, copy) = (followed.source(), followed.copy());
    chown(source.join("tool"), Some(u32::MAX - 1), Some(12_345)).unwrap();
    mode(&source.join("tool"), 0o4755);
    fs::create_dir(source.join("group")).unwrap();
    chown(source.join("group"), Some(1), Some(2)).unwrap();
    mode(&source.join("group"), 0o2775);
    // The group comes from the directory, and so does its bit.
    fs::create_dir(source.join("group/inner")).unwrap();
    fs::write(source.join("group/file"), "file").unwrap();
    std::os::unix::fs::symlink("file", source.join("group/link")).unwrap();
    std::os::unix::fs::lchown(source.join("group/link"), Some(7), Some(8)).unwrap();
    followed.agree().await;
    let tool = fs::metadata(copy.join("tool")).unwrap();
    assert_eq!((tool.mode() & 0o7777, tool.uid()), (0o4755, u32::MAX - 1));
    // No bit that was there before is there again with new content.
    fs::write(source.join("tool"), "other").unwrap();
    mode(&source.join("tool"), 0o755);
    followed.agree().await;
    mode(&source.join("tool"), 0);
    followed.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn trap_23_pipes_and_sockets_block_nothing_and_are_told() {
    let pipe = |path: &Path| {
        mknodat(CWD, path, FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
    };
    let followed = Followed::of(|root| {
        fs::create_dir(root.join("d")).unwrap();
        pipe(&root.join("d/pipe"));
    })
    .await;
    let source = followed.source();
    let _listener = UnixListener::bind(source.join("socket")).unwrap();
    pipe(&source.join("d/other pipe"));
    fs::write(source.join("d/file"), "goes on").unwrap();
    followed.agree().await;
    let problems = followed.primary.shipper.report().problems;
    for name in ["d/pipe", "d/other pipe", "socket"] {
        let told = problems
            .iter()
            .filter(|text| text.contains(&format!(": {name} is not replicated")));
        assert_eq!(told.count(), 1, "{name}: {problems:?}");
        assert!(fs::symlink_metadata(followed.copy().join(name)).is_err());
    }
    // A file becomes a pipe, and a pipe a file.
    fs::remove_file(source.join("d/file")).unwrap();
    pipe(&source.join("d/file"));
    fs::remove_file(source.join("d/pipe")).unwrap();
    fs::write(source.join("d/pipe"), "a file now").unwrap();
    followed.agree().await;
    assert!(!followed.copy().join("d/file").exists());
    for name in ["d/file", "d/other pipe", "socket"] {
        fs::remove_file(source.join(name)).unwrap();
    }
    followed.agree_after_sync().await;
    let problems = followed.primary.shipper.report().problems;
    assert_eq!(problems, Vec::<String>::new(), "what is gone is no problem");
    followed.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn trap_24_a_directory_keeps_its_time_whatever_happens_within() {
    let old = std::time::UNIX_EPOCH + std::time::Duration::new(1_000_000_000, 123_456_789);
    let set_old = |path: &Path| fs::File::open(path).unwrap().set_modified(old).unwrap();
    let followed = Followed::of(|root| {
        fs::create_dir_all(root.join("d/inner")).unwrap();
        for number in 0..20 {
            fs::write(root.join(format!("d/inner/{number}")), "before").unwrap();
        }
        set_old(&root.join("d/inner"));
        set_old(&root.join("d"));
    })
    .await;
    let (source, copy) = (followed.source(), followed.copy());
    let time = |name: &str| fs::metadata(copy.join(name)).unwrap().modified().unwrap();
    assert_eq!((time("d"), time("d/inner")), (old, old));
    // The content of a file changes, which no directory's time shows; on the copy it is renamed there.
    fs::write(source.join("d/inner/3"), "after").unwrap();
    followed.agree().await;
    assert_eq!((time("d"), time("d/inner")), (old, old));
    // Everything changes, and the time is set back.
    for number in 0..10 {
        fs::remove_file(source.join(format!("d/inner/{number}"))).unwrap();
        fs::write(source.join(format!("d/inner/new {number}")), "new").unwrap();
    }
    fs::rename(source.join("d/inner/15"), source.join("d/15")).unwrap();
    set_old(&source.join("d/inner"));
    set_old(&source.join("d"));
    followed.agree().await;
    assert_eq!((time("d"), time("d/inner")), (old, old));
    fs::rename(source.join("d"), source.join("e")).unwrap();
    followed.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn trap_25_directories_that_nobody_may_write_to() {
    // As root these permissions stop nobody; that they are kept, and are in nobody's way, shows.
    let followed = Followed::of(|root| {
        fs::create_dir_all(root.join("d/inner")).unwrap();
        fs::write(root.join("d/inner/a"), "one").unwrap();
        for name in ["d/inner/a", "d/inner", "d"] {
            mode(&root.join(name), 0o555);
        }
    })
    .await;
    let (source, copy) = (followed.source(), followed.copy());
    let append = fs::File::options()
        .write(true)
        .open(source.join("d/inner/a"));
    append.unwrap().write_all_at(b"two", 0).unwrap();
    fs::write(source.join("d/inner/b"), "new").unwrap();
    fs::create_dir(source.join("d/inner/none")).unwrap();
    mode(&source.join("d/inner/none"), 0);
    followed.agree().await;
    assert_eq!(
        fs::metadata(copy.join("d/inner")).unwrap().mode() & 0o777,
        0o555
    );
    fs::rename(source.join("d/inner"), source.join("inner")).unwrap();
    fs::remove_dir_all(source.join("d")).unwrap();
    followed.end().await;
}
