//! What is looked at on the machine itself. These looks block, some of them for ever when a file system is gone;
//! so they run on a thread of their own.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use nix::net::if_::InterfaceFlags;
use rustix::fs::{StatVfs, StatVfsMountFlags, statvfs};
use understudy_config::{Amount, ProcessName, Share};

use super::judge::Finding;
use crate::quantity::size;

/// What a look found, and the sentence that tells it.
pub(super) type Look = (Finding, String);

/// The name of the file that a check of a mount writes.
const PROBE_NAME: &str = ".understudy-probe";

pub(super) fn good(message: impl Into<String>) -> Look {
    (Finding::Good, message.into())
}

pub(super) fn bad(message: impl Into<String>) -> Look {
    (Finding::Bad, message.into())
}

/// Looks how much is free on the file system of `path`, or of what there is of it.
pub(super) fn disk(
    path: &Path,
    least: Amount,
    recover: Option<Amount>,
    inodes: Option<Share>,
) -> Look {
    let there = nearest(path);
    let stat = match statvfs(&there) {
        Ok(stat) => stat,
        Err(error) => return bad(format!("cannot look at {}: {error}", there.display())),
    };
    // What others than root can have: the reserve is no room for an appliance.
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    let whole = stat.f_blocks.saturating_mul(stat.f_frsize);
    let mut message = format!(
        "{} of {} ({} %) are free on the file system of {}",
        size(free),
        size(whole),
        percent(free, whole),
        path.display()
    );
    let finding = against(free, whole, least, recover);
    if let Some(inodes) = inodes.filter(|_| stat.f_files > 0)
        && !Amount::Share(inodes).is_reached_by(stat.f_favail, stat.f_files)
    {
        let left = percent(stat.f_favail, stat.f_files);
        message = format!(
            "{left} % of the inodes are free on the file system of {}",
            path.display()
        );
        return bad(message);
    }
    (finding, message)
}

/// Judges what is free by the limit, and by the one that ends a failure.
fn against(free: u64, whole: u64, least: Amount, recover: Option<Amount>) -> Finding {
    if !least.is_reached_by(free, whole) {
        Finding::Bad
    } else if recover.is_none_or(|recover| recover.is_reached_by(free, whole)) {
        Finding::Good
    } else {
        Finding::Between
    }
}

fn percent(part: u64, whole: u64) -> u64 {
    let percent = u128::from(part) * 100 / u128::from(whole.max(1));
    u64::try_from(percent).unwrap_or(100)
}

/// Returns the path, or the lowest of the directories above it that exists: a store may be yet to come.
pub(super) fn nearest(path: &Path) -> PathBuf {
    let there = path.ancestors().find(|path| path.exists());
    there.unwrap_or(Path::new("/")).to_owned()
}

pub(super) fn memory(least: Amount, recover: Option<Amount>) -> Look {
    let text = match fs::read_to_string("/proc/meminfo") {
        Ok(text) => text,
        Err(error) => return bad(format!("cannot read /proc/meminfo: {error}")),
    };
    let (Some(free), Some(whole)) = (
        kilobytes(&text, "MemAvailable:"),
        kilobytes(&text, "MemTotal:"),
    ) else {
        return bad("/proc/meminfo does not tell how much memory is available");
    };
    let message = format!(
        "{} of {} ({} %) of the memory are available",
        size(free),
        size(whole),
        percent(free, whole)
    );
    (against(free, whole, least, recover), message)
}

fn kilobytes(text: &str, key: &str) -> Option<u64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(key))?;
    let number: u64 = rest.split_whitespace().next()?.parse().ok()?;
    number.checked_mul(1024)
}

pub(super) fn load(most: f64, recover: Option<f64>) -> Look {
    let average = fs::read_to_string("/proc/loadavg")
        .ok()
        .and_then(|text| text.split_whitespace().next()?.parse::<f64>().ok());
    let Some(average) = average else {
        return bad("/proc/loadavg cannot be read");
    };
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let each = average / f64::from(u32::try_from(processors).unwrap_or(1));
    let message = format!("{each:.2} threads want to run for each of {processors} processors");
    let finding = if each > most {
        Finding::Bad
    } else if recover.is_none_or(|recover| each <= recover) {
        Finding::Good
    } else {
        Finding::Between
    };
    (finding, message)
}

pub(super) fn link(interface: &str) -> Look {
    let mut addresses = match nix::ifaddrs::getifaddrs() {
        Ok(addresses) => addresses,
        Err(error) => return bad(format!("cannot list network interfaces: {error}")),
    };
    let Some(found) = addresses.find(|it| it.interface_name == interface) else {
        return bad(format!("there is no network interface {interface}"));
    };
    if !found.flags.contains(InterfaceFlags::IFF_UP) {
        return bad(format!("{interface} is down"));
    }
    if !found.flags.contains(InterfaceFlags::IFF_RUNNING) {
        return bad(format!("{interface} has no carrier"));
    }
    good(format!("{interface} is up"))
}

pub(super) fn process(process: &ProcessName) -> Look {
    match process {
        ProcessName::Program(name) => match find(name) {
            Ok(0) => bad(format!("no process {name} runs")),
            Ok(1) => good(format!("{name} runs")),
            Ok(count) => good(format!("{name} runs {count} times")),
            Err(error) => bad(format!("cannot list processes: {error}")),
        },
        ProcessName::PidFile(file) => {
            let shown = file.display();
            let text = match fs::read_to_string(file) {
                Ok(text) => text,
                Err(error) => return bad(format!("cannot read {shown}: {error}")),
            };
            match text
                .split_whitespace()
                .next()
                .and_then(|it| it.parse::<u32>().ok())
            {
                Some(pid) if is_alive(pid) => good(format!("process {pid} of {shown} runs")),
                Some(pid) => bad(format!("process {pid} of {shown} does not run")),
                None => bad(format!("{shown} does not hold the number of a process")),
            }
        }
    }
}

/// Counts the processes of a program: by the name that the kernel knows, or by what it was started as.
fn find(name: &str) -> io::Result<usize> {
    /// The kernel keeps so much of a name.
    const COMM_BYTES_MAX: usize = 15;
    let mut count = 0;
    for entry in fs::read_dir("/proc")? {
        // A process may end while it is looked at.
        let Some(pid) = entry
            .ok()
            .and_then(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
        else {
            continue;
        };
        let comm = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        let short = name.get(..COMM_BYTES_MAX.min(name.len())).unwrap_or(name);
        let is_it =
            comm.trim_end() == short && name.len() <= COMM_BYTES_MAX || is_started_as(pid, name);
        if is_it && is_alive(pid) {
            count += 1;
        }
    }
    Ok(count)
}

fn is_started_as(pid: u32, name: &str) -> bool {
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let program = line.split(|byte| *byte == 0).next().unwrap_or_default();
    let program = String::from_utf8_lossy(program);
    Path::new(&*program)
        .file_name()
        .is_some_and(|it| it == name)
}

/// Returns whether the process is there, and not only its exit status.
fn is_alive(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The name before the state may hold anything but ends with the last parenthesis.
    let state = stat
        .rsplit_once(')')
        .and_then(|(_, rest)| rest.split_whitespace().next());
    state.is_some_and(|state| !matches!(state, "Z" | "X"))
}

pub(super) fn mount(path: &Path, fstype: Option<&str>, write: bool) -> Look {
    let shown = path.display();
    let table = match fs::read_to_string("/proc/thread-self/mounts") {
        Ok(table) => table,
        Err(error) => return bad(format!("cannot read what is mounted: {error}")),
    };
    // What was mounted last hides what was before.
    let found = table.lines().rev().find_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let (place, kind) = (fields.next()?, fields.next()?);
        (Path::new(&unescaped(place)) == path).then(|| kind.to_owned())
    });
    let Some(kind) = found else {
        return bad(format!("nothing is mounted at {shown}"));
    };
    if let Some(wanted) = fstype.filter(|wanted| *wanted != kind) {
        return bad(format!("{kind} is mounted at {shown}, not {wanted}"));
    }
    let stat: StatVfs = match statvfs(path) {
        Ok(stat) => stat,
        Err(error) => return bad(format!("cannot look at {shown}: {error}")),
    };
    if stat.f_flag.contains(StatVfsMountFlags::RDONLY) {
        return bad(format!("{shown} is mounted read-only"));
    }
    if write && let Err(error) = probe(path) {
        return bad(format!("cannot write to {shown}: {error}"));
    }
    good(format!("{kind} is mounted at {shown} and can be written"))
}

/// Writes a file, so that it is on the disk, and removes it again.
fn probe(folder: &Path) -> io::Result<()> {
    let path = folder.join(PROBE_NAME);
    // One that a crash has left behind.
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let mut file = fs::File::options()
        .write(true)
        .create_new(true)
        .open(&path)?;
    let written = file
        .write_all(b"understudy\n")
        .and_then(|()| file.sync_all());
    let removed = fs::remove_file(&path);
    written.and(removed)
}

/// Returns a path as it is, which the kernel writes with blanks and the like as octal numbers.
fn unescaped(text: &str) -> String {
    let escapes = [
        ("\\040", " "),
        ("\\011", "\t"),
        ("\\012", "\n"),
        ("\\134", "\\"),
    ];
    escapes
        .into_iter()
        .fold(text.to_owned(), |text, (from, to)| text.replace(from, to))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn between_the_limits_nothing_is_said() {
        let share = |text: &str| Amount::Share(text.parse().unwrap());
        let found = [4, 5, 9, 10].map(|free| against(free, 100, share("5%"), Some(share("10%"))));
        assert_eq!(
            found,
            [
                Finding::Bad,
                Finding::Between,
                Finding::Between,
                Finding::Good
            ]
        );
        assert_eq!(against(5, 100, share("5%"), None), Finding::Good);
        assert_eq!(against(5, 100, Amount::Bytes(6), None), Finding::Bad);
    }
}
