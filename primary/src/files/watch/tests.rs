//! Both backends against the kernel of the machine.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use proptest::prelude::*;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{CWD, FileType, Mode, OFlags, RenameFlags, mkdirat, openat, renameat_with};
use understudy_replication::files::{Identity, RESERVED, identity};

use super::*;

const PATIENCE: Duration = Duration::from_secs(10);

/// Made last: once it is told of, all before it has been.
const LAST: &str = "last";

/// A tree with a neighbour on the same file system.
struct Ground {
    _all: tempfile::TempDir,
    tree: PathBuf,
    outside: PathBuf,
}

impl Ground {
    fn new() -> Self {
        let all = tempfile::tempdir().unwrap();
        let (tree, outside) = (all.path().join("tree"), all.path().join("outside"));
        fs::create_dir(&tree).unwrap();
        fs::create_dir(&outside).unwrap();
        Self {
            _all: all,
            tree,
            outside,
        }
    }
}

/// Opens a watch on a tree; `None`, and a word why, where the machine does not permit it.
fn open(tree: &Path, backend: Backend) -> Option<(Root, Watch)> {
    let root = Root::open(tree).unwrap();
    match Watch::open(&root, Some(backend)) {
        Ok(mut watch) => {
            assert_eq!(watch.backend(), backend);
            add_all(&root, &mut watch, None);
            Some((root, watch))
        }
        Err(error) if backend == Backend::Fanotify => {
            eprintln!("skipped: fanotify is not to be had here: {error}");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

fn add_all(root: &Root, watch: &mut Watch, path: Option<&RelPath>) {
    watch
        .add(path, root.directory(path).unwrap().as_fd())
        .unwrap();
    for name in root.names(path).unwrap() {
        if let Ok(child) = RelPath::child(path, &name)
            && identity(&root.stat(&child).unwrap()).file_type() == FileType::Directory
        {
            add_all(root, watch, Some(&child));
        }
    }
}

fn text(happening: &Happening) -> String {
    match happening {
        Happening::At(path, is_deep) => format!("{path}{}", if *is_deep { "/" } else { "" }),
        Happening::Moved {
            from,
            to,
            is_directory,
        } if *is_directory => format!("{from}/ -> {to}/"),
        Happening::Moved { from, to, .. } => format!("{from} -> {to}"),
        Happening::Anywhere => "*".into(),
        Happening::Through(path, _) => format!("through {path}"),
    }
}

/// Drains until `last` is told of.
fn drain_until(watch: &mut Watch, last: &str) -> Vec<String> {
    let deadline = Instant::now() + PATIENCE;
    let mut told = Vec::new();
    while !told.iter().any(|told| told == last) {
        let left = deadline.saturating_duration_since(Instant::now());
        assert!(!left.is_zero(), "`{last}` is not told: {told:?}");
        let timeout = Timespec::try_from(left).unwrap();
        let fd = watch.fd();
        poll(
            &mut [PollFd::from_borrowed_fd(fd, PollFlags::IN)],
            Some(&timeout),
        )
        .unwrap();
        let happenings = watch.drain().unwrap();
        let others = happenings
            .iter()
            .filter(|happening| !matches!(happening, Happening::Through(..)));
        told.extend(others.map(text));
    }
    told
}

/// Returns what is told of what `act` does: moves in order, then the other places, sorted.
fn told_of(ground: &Ground, watch: &mut Watch, act: impl FnOnce(&Ground)) -> Vec<String> {
    act(ground);
    symlink("-", ground.tree.join(LAST)).unwrap();
    let mut told = drain_until(watch, LAST);
    told.retain(|told| told != LAST);
    told.sort_by_key(|told| {
        let is_move = told.contains(" -> ");
        (!is_move, if is_move { String::new() } else { told.clone() })
    });
    // Where the file system is busy there may have been two drains.
    told.dedup();
    told
}

fn write(path: PathBuf) {
    let mut file = OpenOptions::new().append(true).create(true).open(path);
    file.as_mut().unwrap().write_all(b"content").unwrap();
}

fn set_mode(path: PathBuf, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

fn rename(from: PathBuf, to: PathBuf) {
    fs::rename(from, to).unwrap();
}

fn exchange(one: PathBuf, other: PathBuf) {
    renameat_with(CWD, one, CWD, other, RenameFlags::EXCHANGE).unwrap();
}

type Act = fn(&Ground);

struct Case {
    what: &'static str,
    act: Act,
    told: &'static [&'static str],
}

/// On `f`, `d/f`, `e/f`, and `outside/f` and `outside/d/f` beside it.
const CASES: &[Case] = &[
    Case {
        what: "nothing",
        act: |_| {},
        told: &[],
    },
    Case {
        what: "a file is made at the top",
        act: |at| write(at.tree.join("new")),
        told: &["new"],
    },
    Case {
        what: "a file is made in a directory",
        act: |at| write(at.tree.join("d/new")),
        told: &["d", "d/new"],
    },
    Case {
        what: "a file is written to",
        act: |at| write(at.tree.join("d/f")),
        told: &["d/f"],
    },
    Case {
        what: "a file is removed",
        act: |at| fs::remove_file(at.tree.join("d/f")).unwrap(),
        told: &["d", "d/f"],
    },
    Case {
        what: "modes are set",
        act: |at| {
            set_mode(at.tree.join("d/f"), 0o600);
            set_mode(at.tree.join("e"), 0o700);
            set_mode(at.tree.clone(), 0o700);
        },
        told: &["d/f", "e"],
    },
    Case {
        what: "a link is made, to nowhere",
        act: |at| symlink("nowhere", at.tree.join("d/l")).unwrap(),
        told: &["d", "d/l"],
    },
    Case {
        what: "a hard link is made",
        act: |at| fs::hard_link(at.tree.join("d/f"), at.tree.join("e/l")).unwrap(),
        told: &["e", "e/l"],
    },
    Case {
        what: "a directory is made, and one in a directory",
        act: |at| {
            fs::create_dir(at.tree.join("new")).unwrap();
            fs::create_dir(at.tree.join("d/new")).unwrap();
        },
        told: &["d", "d/new/", "new/"],
    },
    Case {
        what: "names are not UTF-8, or strange",
        act: |at| {
            write(at.tree.join(OsStr::from_bytes(b"\xff\xfe")));
            rename(
                at.tree.join("d"),
                at.tree.join(OsStr::from_bytes(b"x (deleted)")),
            );
            write(at.tree.join("x (deleted)/f"));
        },
        told: &["d/ -> x (deleted)/", "\\xff\\xfe", "x (deleted)/f"],
    },
    Case {
        what: "a file is renamed, and over another",
        act: |at| {
            rename(at.tree.join("f"), at.tree.join("g"));
            rename(at.tree.join("d/f"), at.tree.join("e/f"));
        },
        told: &["f -> g", "d/f -> e/f", "d", "e"],
    },
    Case {
        what: "a directory is renamed into another, and then written into",
        act: |at| {
            rename(at.tree.join("d"), at.tree.join("e/d"));
            write(at.tree.join("e/d/f"));
            write(at.tree.join("e/d/deep/f"));
        },
        told: &["d/ -> e/d/", "e", "e/d/deep/f", "e/d/f"],
    },
    Case {
        what: "a directory is written into, and then renamed",
        act: |at| {
            write(at.tree.join("d/f"));
            rename(at.tree.join("d"), at.tree.join("c"));
        },
        told: &["d/ -> c/", "c/f"],
    },
    Case {
        what: "a chain: what is renamed is then renamed with its directory",
        act: |at| {
            rename(at.tree.join("d/deep"), at.tree.join("d/deeper"));
            rename(at.tree.join("d"), at.tree.join("c"));
        },
        told: &[
            "d/deep/ -> d/deeper/",
            "d/ -> c/",
            "c",
            "c/deep",
            "c/deeper/",
        ],
    },
    Case {
        what: "an empty directory makes room for another",
        act: |at| {
            fs::remove_dir(at.tree.join("empty")).unwrap();
            rename(at.tree.join("d"), at.tree.join("empty"));
        },
        told: &["d/ -> empty/", "empty"],
    },
    Case {
        what: "a file is written under another name first",
        act: |at| {
            write(at.tree.join("d/.f"));
            rename(at.tree.join("d/.f"), at.tree.join("d/f"));
        },
        told: &["d", "d/.f", "d/f"],
    },
    Case {
        what: "two files are exchanged",
        act: |at| exchange(at.tree.join("d/f"), at.tree.join("f")),
        told: &["d/f -> f", "f -> d/f", "d"],
    },
    Case {
        what: "files and directories are moved in",
        act: |at| {
            rename(at.outside.join("f"), at.tree.join("in"));
            rename(at.outside.join("d"), at.tree.join("d/in"));
        },
        told: &["d", "d/in/", "in"],
    },
    Case {
        what: "files and directories are moved out",
        act: |at| {
            rename(at.tree.join("f"), at.outside.join("out"));
            rename(at.tree.join("d"), at.outside.join("out.d"));
        },
        told: &["d", "f"],
    },
    Case {
        what: "a directory is moved out, and comes back under another name",
        act: |at| {
            rename(at.tree.join("d"), at.outside.join("out"));
            rename(at.outside.join("out"), at.tree.join("back"));
        },
        told: &["back/", "d"],
    },
    Case {
        what: "much happens outside",
        act: |at| {
            write(at.outside.join("f"));
            write(at.outside.join("d/new"));
            rename(at.outside.join("d"), at.outside.join("e"));
            fs::create_dir(at.outside.join("new")).unwrap();
            fs::remove_file(at.outside.join("f")).unwrap();
        },
        told: &[],
    },
    Case {
        what: "something is staged",
        act: |at| {
            write(at.tree.join(".understudy/new"));
            fs::create_dir(at.tree.join(".understudy/stage")).unwrap();
            rename(at.tree.join(".understudy/f"), at.tree.join("from"));
            rename(at.tree.join("f"), at.tree.join(".understudy/to"));
        },
        told: &["f", "from"],
    },
];

fn lay(ground: &Ground) {
    for name in ["d/deep", "e", "empty", ".understudy"] {
        fs::create_dir_all(ground.tree.join(name)).unwrap();
    }
    for name in ["f", "d/f", "d/deep/f", "e/f", ".understudy/f"] {
        write(ground.tree.join(name));
    }
    fs::create_dir(ground.outside.join("d")).unwrap();
    write(ground.outside.join("f"));
    write(ground.outside.join("d/f"));
}

#[test]
fn both_tell_the_same() {
    for backend in [Backend::Fanotify, Backend::Inotify] {
        for Case { what, act, told } in CASES {
            let ground = Ground::new();
            lay(&ground);
            let Some((_root, mut watch)) = open(&ground.tree, backend) else {
                break;
            };
            assert_eq!(
                told_of(&ground, &mut watch, act),
                *told,
                "{backend:?}: {what}"
            );
        }
    }
}

#[test]
fn a_directory_with_many_files_is_renamed_once() {
    for backend in [Backend::Fanotify, Backend::Inotify] {
        let ground = Ground::new();
        for number in 0..500 {
            let directory = ground.tree.join(format!("big/{}", number % 10));
            fs::create_dir_all(&directory).unwrap();
            write(directory.join(number.to_string()));
        }
        let Some((_root, mut watch)) = open(&ground.tree, backend) else {
            continue;
        };
        let told = told_of(&ground, &mut watch, |at| {
            rename(at.tree.join("big"), at.tree.join("bigger"));
        });
        assert_eq!(told, ["big/ -> bigger/"], "{backend:?}");
        // The watches have come along.
        let told = told_of(&ground, &mut watch, |at| {
            fs::remove_file(at.tree.join(LAST)).unwrap();
            write(at.tree.join("bigger/7/7"));
        });
        assert_eq!(told, ["bigger/7/7"], "{backend:?}");
    }
}

/// Where one of them tells more than the other.
struct Difference {
    what: &'static str,
    act: Act,
    fanotify: &'static [&'static str],
    inotify: &'static [&'static str],
}

const DIFFERENCES: &[Difference] = &[
    Difference {
        what: "fanotify knows a new directory at once",
        act: |at| {
            fs::create_dir(at.tree.join("new")).unwrap();
            write(at.tree.join("new/f"));
        },
        fanotify: &["new/", "new/f"],
        inotify: &["new/"],
    },
    Difference {
        what: "fanotify does not know where a directory was that is gone",
        act: |at| fs::remove_dir_all(at.tree.join("e")).unwrap(),
        fanotify: &["e"],
        inotify: &["e", "e/f"],
    },
    Difference {
        what: "inotify knows that a log was written before it was rotated",
        act: |at| {
            write(at.tree.join("d/f"));
            rename(at.tree.join("d/f"), at.tree.join("d/f.1"));
            write(at.tree.join("d/f"));
        },
        fanotify: &["d/f -> d/f.1", "d", "d/f"],
        inotify: &["d/f -> d/f.1", "d", "d/f", "d/f.1"],
    },
    Difference {
        what: "directories change places: fanotify may have merged several such changes",
        act: |at| {
            rename(at.tree.join("d"), at.tree.join("t"));
            rename(at.tree.join("e"), at.tree.join("d"));
            rename(at.tree.join("t"), at.tree.join("e"));
        },
        fanotify: &["d/ -> t/", "e/ -> d/", "t/ -> e/", "d/", "e/", "t/"],
        inotify: &["d/ -> t/", "e/ -> d/", "t/ -> e/"],
    },
    Difference {
        what: "directories are exchanged: inotify cannot tell their watches from each other",
        act: |at| exchange(at.tree.join("d"), at.tree.join("e")),
        fanotify: &["d/ -> e/", "e/ -> d/", "d/", "e/"],
        inotify: &["d/", "e/"],
    },
];

#[test]
fn they_differ_where_they_must() {
    for difference in DIFFERENCES {
        for (backend, expected) in [
            (Backend::Fanotify, difference.fanotify),
            (Backend::Inotify, difference.inotify),
        ] {
            let ground = Ground::new();
            lay(&ground);
            let Some((_root, mut watch)) = open(&ground.tree, backend) else {
                continue;
            };
            let told = told_of(&ground, &mut watch, difference.act);
            assert_eq!(told, expected, "{backend:?}: {}", difference.what);
        }
    }
}

#[test]
fn a_directory_may_be_exchanged_with_one_that_is_not_watched_yet() {
    let ground = Ground::new();
    lay(&ground);
    let (root, mut watch) = open(&ground.tree, Backend::Inotify).unwrap();
    fs::create_dir(ground.tree.join("late")).unwrap();
    assert_eq!(told_of(&ground, &mut watch, |_| {}), ["late/"]);
    fs::remove_file(ground.tree.join(LAST)).unwrap();
    let told = told_of(&ground, &mut watch, |at| {
        exchange(at.tree.join("d"), at.tree.join("late"));
    });
    assert_eq!(told, ["d/ -> late/", "d/", "late/"]);
    add_all(&root, &mut watch, None);
    fs::remove_file(ground.tree.join(LAST)).unwrap();
    let told = told_of(&ground, &mut watch, |at| {
        write(at.tree.join("late/deep/f"));
        write(at.tree.join("d/new"));
    });
    assert_eq!(told, ["d", "d/new", "late/deep/f"]);
}

#[test]
fn a_top_that_is_renamed_leads_to_a_look_everywhere() {
    for backend in [Backend::Fanotify, Backend::Inotify] {
        let mut ground = Ground::new();
        lay(&ground);
        let Some((_root, mut watch)) = open(&ground.tree, backend) else {
            continue;
        };
        let new = ground.tree.with_file_name("renamed");
        rename(ground.tree.clone(), new.clone());
        ground.tree = new;
        assert_eq!(drain_until(&mut watch, "*"), ["*"], "{backend:?}");
        let told = told_of(&ground, &mut watch, |at| write(at.tree.join("d/f")));
        assert_eq!(told, ["d/f"], "{backend:?}");
    }
}

#[test]
fn paths_that_are_too_long_for_the_kernel_are_told() {
    for backend in [Backend::Fanotify, Backend::Inotify] {
        let all = tempfile::tempdir().unwrap();
        // The top is deep already; what is in it has a path of nearly the longest of a store.
        let name = "n".repeat(250);
        let tree = all.path().join([name.as_str(); 6].join("/"));
        fs::create_dir_all(&tree).unwrap();
        let root = Root::open(&tree).unwrap();
        let mut at = root.directory(None).unwrap();
        for _ in 0..140 {
            mkdirat(&at, &*name, Mode::RWXU).unwrap();
            let flags = OFlags::RDONLY | OFlags::DIRECTORY;
            at = openat(&at, &*name, flags, Mode::empty()).unwrap();
        }
        let Some((root, mut watch)) = open(&tree, backend) else {
            continue;
        };
        let deep = RelPath::new([name.as_str(); 13].join("/")).unwrap();
        let make = |directory: &std::os::fd::OwnedFd, name: &str| {
            let flags = OFlags::WRONLY | OFlags::CREATE;
            let made = openat(directory, name, flags, Mode::RWXU).unwrap();
            File::from(made).write_all(b"content").unwrap();
        };
        // Too deep for a store.
        make(&at, "f");
        make(&root.directory(Some(&deep)).unwrap(), "f");
        symlink("-", tree.join(LAST)).unwrap();
        assert_eq!(
            drain_until(&mut watch, LAST),
            [deep.to_string(), format!("{deep}/f"), LAST.into()],
            "{backend:?}"
        );
    }
}

#[test]
fn a_drain_takes_no_more_than_it_should_and_says_so() {
    for backend in [Backend::Fanotify, Backend::Inotify] {
        let ground = Ground::new();
        let Some((_root, mut watch)) = open(&ground.tree, backend) else {
            continue;
        };
        const COUNT: usize = 12_000;
        for number in 0..COUNT {
            symlink("-", ground.tree.join(number.to_string())).unwrap();
        }
        let mut told = BTreeSet::new();
        let mut drains = 0;
        loop {
            let happenings = watch.drain().unwrap();
            assert!(happenings.len() <= 10_000);
            told.extend(happenings.iter().map(text));
            drains += 1;
            if !watch.has_more() {
                break;
            }
        }
        assert_eq!(told.len(), COUNT, "{backend:?}");
        assert!(drains > 1, "{backend:?}");
    }
}

#[test]
fn where_fanotify_is_not_to_be_had_directories_are_watched() {
    let root = Root::open(Path::new("/proc/self/task")).unwrap();
    assert!(Watch::open(&root, Some(Backend::Fanotify)).is_err());
    let watch = Watch::open(&root, None).unwrap();
    assert_eq!(watch.backend(), Backend::Inotify);
}

/// What is known of a tree by looking only where something is told.
struct Observer {
    root: Root,
    watch: Watch,
    known: BTreeMap<RelPath, Identity>,
    /// Believes moves whose inode is right, instead of looking into what has moved.
    follows: bool,
}

impl Observer {
    fn new(tree: &Path, backend: Backend, follows: bool) -> Option<Self> {
        let (root, watch) = open(tree, backend)?;
        let mut observer = Self {
            root,
            watch,
            known: BTreeMap::new(),
            follows,
        };
        observer.look_into(None);
        Some(observer)
    }

    fn observe(&mut self) {
        loop {
            for happening in self.watch.drain().unwrap() {
                match happening {
                    Happening::At(path, is_deep) => self.look(&path, is_deep),
                    Happening::Moved { from, to, .. } => self.follow(&from, &to),
                    Happening::Through(..) => {}
                    Happening::Anywhere => panic!("nothing was lost"),
                }
            }
            if !self.watch.has_more() {
                return;
            }
        }
    }

    fn follow(&mut self, from: &RelPath, to: &RelPath) {
        let inode = self.root.stat(to).map(|found| found.stx_ino).ok();
        let known = self.known.get(from).map(|known| known.inode);
        let is_true = self.follows && known.is_some() && inode == known;
        if is_true {
            self.forget(to);
            for at in told::beneath(&self.known, from) {
                let known = self.known.remove(&at).unwrap();
                self.known
                    .insert(told::rebased(&at, from, to).unwrap(), known);
            }
            let known = self.known.remove(from).unwrap();
            self.known.insert(to.clone(), known);
        }
        self.look(from, false);
        self.look(to, !is_true);
    }

    fn forget(&mut self, path: &RelPath) {
        for at in told::beneath(&self.known, path) {
            self.known.remove(&at);
        }
        self.known.remove(path);
    }

    fn look(&mut self, path: &RelPath, is_deep: bool) {
        if let Some(parent) = path.parent()
            && !self.known.contains_key(&parent)
        {
            return self.look(&parent, true);
        }
        let Ok(found) = self.root.stat(path) else {
            return self.forget(path);
        };
        let found = identity(&found);
        let known = self.known.insert(path.clone(), found);
        let is_directory = |found: &Identity| found.file_type() == FileType::Directory;
        if !is_directory(&found) {
            self.forget(path);
            self.known.insert(path.clone(), found);
        } else if is_deep || !known.as_ref().is_some_and(is_directory) {
            for at in told::beneath(&self.known, path) {
                self.known.remove(&at);
            }
            self.look_into(Some(path));
        }
    }

    fn look_into(&mut self, path: Option<&RelPath>) {
        let Ok(directory) = self.root.directory(path) else {
            return;
        };
        self.watch.add(path, directory.as_fd()).unwrap();
        for name in self.root.names(path).unwrap() {
            if let Ok(child) = RelPath::child(path, &name) {
                self.look(&child, true);
            }
        }
    }
}

/// What is there.
fn listing(root: &Root, path: Option<&RelPath>, found: &mut BTreeMap<RelPath, Identity>) {
    for name in root.names(path).unwrap() {
        if name == RESERVED {
            continue;
        }
        let child = RelPath::child(path, &name).unwrap();
        let identity = identity(&root.stat(&child).unwrap());
        found.insert(child.clone(), identity);
        if identity.file_type() == FileType::Directory {
            listing(root, Some(&child), found);
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    Write(String),
    MakeDirectory(String),
    Remove(String),
    Rename(String, String),
    Exchange(String, String),
    SetMode(String, u32),
    Observe,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let path = || "(tree|tree|tree|outside)(/[abc]){1,3}";
    let step = prop_oneof![
        3 => path().prop_map(Step::Write),
        3 => path().prop_map(Step::MakeDirectory),
        1 => path().prop_map(Step::Remove),
        6 => (path(), path()).prop_map(|(from, to)| Step::Rename(from, to)),
        1 => (path(), path()).prop_map(|(one, other)| Step::Exchange(one, other)),
        1 => (path(), 0o700_u32..0o777).prop_map(|(path, mode)| Step::SetMode(path, mode)),
        2 => Just(Step::Observe),
    ];
    prop::collection::vec(step, 1..60)
}

fn take(all: &Path, step: &Step) {
    // Many a step is not possible, and nothing happens.
    let _done = match step {
        Step::Write(path) => OpenOptions::new()
            .append(true)
            .create(true)
            .open(all.join(path))
            .and_then(|mut file| file.write_all(b"x"))
            .is_ok(),
        Step::MakeDirectory(path) => fs::create_dir_all(all.join(path)).is_ok(),
        Step::Remove(path) => {
            fs::remove_file(all.join(path)).is_ok() || fs::remove_dir_all(all.join(path)).is_ok()
        }
        Step::Rename(from, to) => fs::rename(all.join(from), all.join(to)).is_ok(),
        Step::Exchange(one, other) => renameat_with(
            CWD,
            all.join(one),
            CWD,
            all.join(other),
            RenameFlags::EXCHANGE,
        )
        .is_ok(),
        Step::SetMode(path, mode) => {
            fs::set_permissions(all.join(path), fs::Permissions::from_mode(*mode)).is_ok()
        }
        Step::Observe => true,
    };
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn after_any_history_the_tree_is_known(steps in steps()) {
        observe(&steps);
    }
}

/// Whoever looks where he is told to knows the tree, whether he believes what is told of moves or not.
fn observe(steps: &[Step]) {
    let ground = Ground::new();
    let all = ground.tree.parent().unwrap().to_owned();
    for name in ["a/a/a", "a/b", "b/a", "c"] {
        fs::create_dir_all(ground.tree.join(name)).unwrap();
        write(ground.tree.join(name).join("f"));
    }
    let mut observers = Vec::new();
    for (backend, follows) in [
        (Backend::Fanotify, false),
        (Backend::Fanotify, true),
        (Backend::Inotify, false),
        (Backend::Inotify, true),
    ] {
        observers.extend(Observer::new(&ground.tree, backend, follows));
    }
    for step in steps {
        take(&all, step);
        if matches!(step, Step::Observe) {
            observers.iter_mut().for_each(Observer::observe);
        }
    }
    for observer in &mut observers {
        observer.observe();
        let mut there = BTreeMap::new();
        listing(&observer.root, None, &mut there);
        assert_eq!(
            observer.known,
            there,
            "{:?}, follows: {}, {steps:?}",
            observer.watch.backend(),
            observer.follows
        );
    }
}

#[test]
fn after_histories_that_were_once_misread_the_tree_is_known() {
    let make = |path: &str| Step::MakeDirectory(path.into());
    let write = |path: &str| Step::Write(path.into());
    let rename = |from: &str, to: &str| Step::Rename(from.into(), to.into());
    let exchange = |one: &str, other: &str| Step::Exchange(one.into(), other.into());
    // A directory gets the inode number of the one before it.
    observe(&[
        Step::Remove("tree/a".into()),
        make("tree/a"),
        rename("tree/a", "tree/b/b"),
    ]);
    // An exchange with a directory that inotify does not watch yet.
    observe(&[
        make("tree/c/a"),
        write("tree/a/c"),
        exchange("tree/a/b", "tree/a/a/a"),
        exchange("tree/a", "tree/c/a"),
    ]);
    // What is left goes on to be left by a directory that moves.
    observe(&[
        make("tree/c/b"),
        rename("tree/b/a", "tree/c/b/a"),
        rename("tree/b", "tree/a/c"),
    ]);
    // A directory and a file change places.
    observe(&[
        write("outside/b"),
        exchange("outside/b", "tree/c"),
        exchange("tree/a", "tree/c"),
    ]);
    // A move before an exchange of the directories that it was between.
    observe(&[
        rename("tree/a/a", "tree/c/a"),
        exchange("tree/a", "tree/c"),
        write("tree/a"),
    ]);
}
