//! What is looked at on the machine itself.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Duration;

use understudy_config::{Amount, CheckKind, ProcessName};
use understudy_replication::status::CheckState::{Failed, Ok as Well};

use crate::watched::{Watched, check, config};

fn share(text: &str) -> Amount {
    Amount::Share(text.parse().unwrap())
}

/// A small file system of its own, gone at the end of the test.
struct Disk(tempfile::TempDir);

impl Disk {
    /// Mounts it; says why the test is skipped where that is not possible.
    fn new() -> Option<Self> {
        let disk = Self(tempfile::tempdir().unwrap());
        if mount(
            &["-t", "tmpfs", "-o", "size=1m,nr_inodes=100", "none"],
            disk.path(),
        ) {
            return Some(disk);
        }
        eprintln!("skipped: it needs the right to mount");
        None
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let ended = Command::new("umount").arg("-l").arg(self.path()).output();
        drop(ended);
    }
}

fn mount(arguments: &[&str], path: &Path) -> bool {
    let said = Command::new("mount").args(arguments).arg(path).output();
    said.is_ok_and(|said| said.status.success())
}

fn disk(path: &Path, least: &str, recover: Option<&str>, inodes: Option<&str>) -> CheckKind {
    CheckKind::Disk {
        path: path.to_owned(),
        least: share(least),
        recover: recover.map(share),
        inodes: inodes.map(|it| it.parse().unwrap()),
    }
}

#[tokio::test]
async fn a_disk_that_fills_fails_and_recovers_past_its_second_limit_only() {
    let Some(small) = Disk::new() else {
        return;
    };
    // A store that is yet to come: its file system is there already.
    let path = small.path().join("yet/to/come");
    let watched = Watched::new(disk(&path, "20%", Some("60%"), None));
    watched.is(Well).await;
    let kilobytes =
        |count: usize| fs::write(small.path().join("filler"), vec![1; count << 10]).unwrap();
    kilobytes(900);
    let told = watched.is(Failed).await;
    assert!(told.contains("are free on the file system of"), "{told}");
    kilobytes(512);
    watched.tells("(50 %)").await;
    assert_eq!(watched.status().unwrap().state, Failed);
    kilobytes(100);
    watched.is(Well).await;
    assert_eq!(watched.events().len(), 2);
}

#[tokio::test]
async fn a_disk_without_inodes_is_full_as_well() {
    let Some(small) = Disk::new() else {
        return;
    };
    let watched = Watched::new(disk(small.path(), "1%", None, Some("50%")));
    watched.is(Well).await;
    for number in 0..60 {
        fs::write(small.path().join(number.to_string()), "").unwrap();
    }
    let told = watched.is(Failed).await;
    assert!(told.contains("% of the inodes are free"), "{told}");
}

#[tokio::test]
async fn a_mount_is_there_of_its_kind_and_can_be_written() {
    let Some(small) = Disk::new() else {
        return;
    };
    let of = |fstype: Option<&str>| {
        Watched::new(CheckKind::Mount {
            path: small.path().to_owned(),
            fstype: fstype.map(str::to_owned),
            write: true,
        })
    };
    let shown = small.path().display();
    let told = of(Some("ext4")).is(Failed).await;
    assert_eq!(told, format!("tmpfs is mounted at {shown}, not ext4"));
    let watched = of(Some("tmpfs"));
    watched.is(Well).await;
    assert!(mount(&["-o", "remount,ro"], small.path()));
    assert_eq!(
        watched.is(Failed).await,
        format!("{shown} is mounted read-only")
    );
    assert!(mount(&["-o", "remount,rw"], small.path()));
    watched.is(Well).await;
    fs::write(small.path().join("filler"), vec![1; 2 << 20]).unwrap_err();
    let told = watched.is(Failed).await;
    assert!(told.contains("No space left on device"), "{told}");
    fs::remove_file(small.path().join("filler")).unwrap();
    watched.is(Well).await;
    let unmounted = Command::new("umount").arg("-l").arg(small.path()).status();
    assert!(unmounted.unwrap().success());
    assert_eq!(
        watched.is(Failed).await,
        format!("nothing is mounted at {shown}")
    );
    // Nothing was written to what the mount had hidden.
    assert_eq!(fs::read_dir(small.path()).unwrap().count(), 0);
}

#[tokio::test]
async fn a_look_that_never_comes_back_is_bad_and_is_the_only_one() {
    let folder = tempfile::tempdir().unwrap();
    let pipe = folder.path().join("pipe");
    let made = Command::new("mkfifo").arg(&pipe).status().unwrap();
    assert!(made.success());
    // Who reads a pipe that nobody writes to waits as he does for a file system that is gone.
    let mut check = check(CheckKind::Process {
        process: ProcessName::PidFile(pipe.clone()),
    });
    check.timeout = Duration::from_millis(30);
    let watched = Watched::of(&config(vec![check]), None);
    watched.is(Failed).await;
    watched.tells("an earlier look has not come back yet").await;
    fs::write(&pipe, std::process::id().to_string()).unwrap();
    fs::remove_file(&pipe).unwrap();
    fs::write(&pipe, std::process::id().to_string()).unwrap();
    watched.is(Well).await;
}

#[tokio::test]
async fn memory_and_load_are_judged_by_their_limits() {
    let memory = |least: &str| CheckKind::Memory {
        least: share(least),
        recover: None,
    };
    Watched::new(memory("0%")).is(Well).await;
    let told = Watched::new(memory("100%")).is(Failed).await;
    assert!(told.ends_with("of the memory are available"), "{told}");
    let load = |most| CheckKind::Load {
        most,
        recover: None,
    };
    Watched::new(load(1e6)).is(Well).await;
    let told = Watched::new(load(-1.0)).is(Failed).await;
    assert!(told.contains("threads want to run"), "{told}");
}

/// A program that sleeps, under a name of its own.
struct Sleeper {
    child: Child,
    name: String,
    folder: tempfile::TempDir,
}

impl Sleeper {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        // Longer than the kernel remembers.
        let name = format!("a-sleeper-of-the-checks-{}", std::process::id());
        let program: PathBuf = folder.path().join(&name);
        fs::copy("/bin/sleep", &program).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        Self {
            child: Command::new(program).arg("600").spawn().unwrap(),
            name,
            folder,
        }
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        // It may have ended already.
        self.child.kill().unwrap_or_default();
        self.child.wait().unwrap();
    }
}

#[tokio::test]
async fn a_process_is_found_by_its_name_and_by_its_file_until_it_ends() {
    let mut sleeper = Sleeper::new();
    let pid_file = sleeper.folder.path().join("pid");
    fs::write(&pid_file, format!("{}\n", sleeper.child.id())).unwrap();
    let ways = [
        ProcessName::Program(sleeper.name.clone()),
        ProcessName::PidFile(pid_file.clone()),
    ];
    let watched = ways.map(|process| Watched::new(CheckKind::Process { process }));
    for watched in &watched {
        watched.is(Well).await;
    }
    // What is left is its exit status, which nobody has asked for yet.
    sleeper.child.kill().unwrap();
    let expected = [
        format!("no process {} runs", sleeper.name),
        format!(
            "process {} of {} does not run",
            sleeper.child.id(),
            pid_file.display()
        ),
    ];
    for (watched, expected) in watched.iter().zip(expected) {
        assert_eq!(watched.is(Failed).await, expected);
    }
}

#[tokio::test]
async fn a_command_decides_by_its_exit_status_and_tells_by_its_last_line() {
    let of = |script: &str, user: Option<&str>| {
        Watched::new(CheckKind::Command {
            command: ["sh", "-c", script].map(str::to_owned).into(),
            user: user.map(str::to_owned),
        })
    };
    let told = of("echo first; echo $GREETING from $UNDERSTUDY_CHECK", None)
        .is(Well)
        .await;
    assert_eq!(told, "hello from it");
    let told = of("echo broken; exit 3", None).is(Failed).await;
    assert_eq!(told, "`sh` failed (exit status: 3): broken");
    let told = of("true", Some("nobody-of-that-name")).is(Failed).await;
    assert!(told.contains("nobody-of-that-name") || !is_root(), "{told}");
    if is_root() {
        assert_eq!(of("id -un", Some("nobody")).is(Well).await, "nobody");
    }
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}
