//! What makes the room, from within.

use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::Command;

use nix::sched::{CloneFlags, unshare};
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::mount::{
    MountFlags, MountPropagationFlags, mount, mount_bind, mount_bind_recursive, mount_change,
};
use rustix::process::{Pid, Signal, WaitOptions, set_parent_process_death_signal, wait};

use super::{Walls, loopback, work};

/// This very program, even if another version has been put into its place.
const MYSELF: &str = "/proc/self/exe";

/// Which of the three processes of a room this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SealStage {
    /// Makes the namespaces.
    Enter,
    /// Process 1 of the room.
    First,
    /// Runs orders.
    Work,
}

impl SealStage {
    fn verb(self) -> &'static str {
        match self {
            Self::Enter => "enter",
            Self::First => "first",
            Self::Work => "work",
        }
    }
}

impl std::str::FromStr for SealStage {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        [Self::Enter, Self::First, Self::Work]
            .into_iter()
            .find(|stage| stage.verb() == text)
            .ok_or_else(|| format!("there is no stage `{text}`"))
    }
}

/// Is one of the processes of a room, to its end. Called before any thread is started.
///
/// # Errors
/// When the room cannot be made.
pub fn sealed(stage: SealStage, walls: &str) -> io::Result<()> {
    let parsed: Walls = serde_json::from_str(walls)?;
    match stage {
        SealStage::Enter => {
            unshare(
                CloneFlags::CLONE_NEWNS
                    | CloneFlags::CLONE_NEWPID
                    | CloneFlags::CLONE_NEWNET
                    | CloneFlags::CLONE_NEWIPC
                    | CloneFlags::CLONE_NEWUTS,
            )?;
            let mut first = Command::new(MYSELF)
                .args(["sealed", SealStage::First.verb(), walls])
                .spawn()?;
            let ended = first.wait()?;
            if !ended.success() {
                tracing::debug!(%ended, "a sealed room has ended");
            }
            Ok(())
        }
        SealStage::First => {
            set_parent_process_death_signal(Some(Signal::KILL))?;
            build(&parsed)?;
            loopback::up()?;
            let work = Command::new(MYSELF)
                .args(["sealed", SealStage::Work.verb(), walls])
                .spawn()?;
            let work = i32::try_from(work.id()).ok().and_then(Pid::from_raw);
            // Whoever is left by its parent becomes a child of process 1, which has to take leave of it.
            loop {
                match wait(WaitOptions::empty()) {
                    Ok(Some((ended, _))) if Some(ended) == work => return Ok(()),
                    Ok(_) | Err(rustix::io::Errno::INTR) => {}
                    Err(errno) => return Err(errno.into()),
                }
            }
        }
        SealStage::Work => work::work(),
    }
}

/// Builds the walls. In this order: what is mounted from here on is seen in the room only; what stays open
/// is held before something is laid over it.
fn build(walls: &Walls) -> io::Result<()> {
    mount_change(
        "/",
        MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
    )?;
    let plain = MountFlags::NOSUID | MountFlags::NODEV;
    mount("proc", "/proc", "proc", plain | MountFlags::NOEXEC, None)?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let open = openat(CWD, &walls.open, flags, Mode::empty())?;
    let held = format!("/proc/self/fd/{}", open.as_raw_fd());
    for (place, mode) in [("/dev/shm", c"mode=1777"), ("/run", c"mode=755")] {
        if Path::new(place).is_dir() {
            mount("tmpfs", place, "tmpfs", plain, mode)?;
        }
    }
    for hidden in &walls.hidden {
        // Beneath what is hidden already there is nothing to hide.
        if hidden.is_dir() {
            mount("tmpfs", hidden, "tmpfs", plain, c"mode=755")?;
        }
    }
    fs::create_dir_all(&walls.open)?;
    mount_bind_recursive(held.as_str(), &walls.open)?;
    for (copy, place) in &walls.replaced {
        if !copy.exists() {
            continue;
        }
        if !place.exists() {
            // A place for what the machine does not have: in the room's own /run only, nothing is made
            // outside.
            if !place.starts_with("/run") && !place.starts_with("/var/run") {
                continue;
            }
            fs::create_dir_all(place)?;
        }
        mount_bind(copy, place)?;
    }
    Ok(())
}
