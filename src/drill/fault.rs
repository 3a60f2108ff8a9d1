//! Fault injection, for pairs that were made to be tested: something is broken on purpose, and what follows is
//! written down.
//!
//! The command line does it itself, and not the daemon, which may be what is broken. What it has broken it
//! mends again when its time is over, and when it is interrupted.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::ValueEnum;
use hyper::Method;
use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};
use tokio::signal::unix::{SignalKind, signal};
use understudy_config::{Config, Local};
use understudy_replication::command::Command;
use understudy_replication::event::{Event, Severity};
use understudy_replication::reports;
use understudy_replication::status::Status;
use understudy_replication::wall_time::WallTime;

use crate::failure::Failure;

/// What a report of this kind is called in the file.
const KIND: &str = "fault";

fn kind() -> String {
    KIND.to_owned()
}

/// How often it is looked what has become of it.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);

/// A look at the daemon, or one try of the probe, has this long.
const LOOK_PATIENCE: Duration = Duration::from_secs(2);

/// How much of a file system a filler leaves free.
const LEFT_FREE_BYTES: u64 = 4096;

/// What can be broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Fault {
    /// End the process of --pid-file at once: a service of yours
    KillProcess,
    /// Stop the process of --pid-file where it is, and let it go on afterwards
    StopProcess,
    /// End the Postgres server at once
    KillPostgres,
    /// Stop the Postgres server where it is, and let it go on afterwards
    StopPostgres,
    /// End the daemon at once
    KillDaemon,
    /// Stop the daemon where it is, and let it go on afterwards
    StopDaemon,
    /// Cut one way to the peers, of --link
    CutLink,
    /// Cut every way to the peers
    CutAll,
    /// Fill the file system of --path
    FillDisk,
}

impl Fault {
    /// Returns it as it is written on the command line.
    fn name(self) -> String {
        let value = self.to_possible_value();
        value.map_or_else(String::new, |value| value.get_name().to_owned())
    }
}

/// Break something on this node on purpose, and report what followed: for pairs made to be tested
#[derive(clap::Args, Debug)]
pub(crate) struct Inject {
    /// What to break
    fault: Fault,
    /// The file with the process number of the service to break
    #[arg(long, value_name = "FILE")]
    pid_file: Option<PathBuf>,
    /// Which way to the peers to cut: 1 for `address`, 2 for `second_address`
    #[arg(long, value_name = "NUMBER", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=2))]
    link: u8,
    /// A directory on the file system to fill
    #[arg(long, value_name = "DIRECTORY")]
    path: Option<PathBuf>,
    /// How long it stays broken, in seconds, where it can be mended again
    #[arg(long = "for", value_name = "SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=3600))]
    seconds: u64,
    /// How long to watch what follows, in seconds, if all is not well before
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=3600))]
    watch: u64,
    /// A command that succeeds while clients are served, such as a write through their address
    #[arg(long, value_name = "COMMAND")]
    probe: Option<String>,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// The evidence of a fault. Moments are seconds after the injection.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct FaultReport {
    version: u32,
    /// [`KIND`].
    #[serde(default = "kind")]
    kind: String,
    pub(crate) node: String,
    pub(crate) fault: Fault,
    /// When it was injected, by this node's clock.
    pub(crate) injected: WallTime,
    /// After how long the daemon told of it first, and how.
    pub(crate) detected_seconds: Option<f64>,
    pub(crate) detected: Option<Event>,
    /// After how long this node gave up, or took, the address.
    pub(crate) address_moved_seconds: Option<f64>,
    /// After how long the role of this node changed.
    pub(crate) role_changed_seconds: Option<f64>,
    /// After how long the probe succeeded again; `None` if it never failed, or was not given.
    pub(crate) first_write_seconds: Option<f64>,
    /// How long the probe did not succeed.
    pub(crate) gap_seconds: Option<f64>,
    /// After how long it was mended.
    pub(crate) mended_seconds: Option<f64>,
    /// What the node told of it, oldest first.
    pub(crate) events: Vec<Event>,
}

/// What mends again what was broken.
enum Mend {
    Nothing,
    Continue(Vec<Pid>),
    Routes(Vec<String>),
    Filler(PathBuf),
}

impl Mend {
    fn carry_out(self) {
        match self {
            Self::Nothing => {}
            // A process that is gone needs nothing.
            Self::Continue(pids) => {
                for pid in pids {
                    let _gone = kill_process(pid, Signal::CONT).is_err();
                }
            }
            Self::Routes(routes) => {
                for route in routes {
                    let _gone = ip(&["route", "del", "blackhole", &route]).is_err();
                }
            }
            Self::Filler(path) => {
                let _gone = fs::remove_file(path).is_err();
            }
        }
    }
}

/// Mends what was broken, at the latest when it is dropped.
struct Broken(Mend);

impl Broken {
    fn mend(&mut self) {
        std::mem::replace(&mut self.0, Mend::Nothing).carry_out();
    }
}

impl Drop for Broken {
    fn drop(&mut self) {
        self.mend();
    }
}

impl Inject {
    /// Breaks it, watches, mends it, and keeps the report.
    pub(crate) async fn run(&self, config: &Config, local: &Local) -> Result<FaultReport, Failure> {
        if !config.drill.faults {
            return Err(Failure::refused(
                "faults are injected only where the configuration says that the pair is there to be tested",
            )
            .hint("set `faults = true` in [drill] of understudy.toml, and never where people work"));
        }
        let socket = local.socket();
        let before = look(&socket).await;
        let injected = WallTime::now();
        let begun = Instant::now();
        let mut broken = self.inject(config, local)?;
        let mut report = FaultReport {
            version: 1,
            kind: kind(),
            node: local.name.to_string(),
            fault: self.fault,
            injected,
            detected_seconds: None,
            detected: None,
            address_moved_seconds: None,
            role_changed_seconds: None,
            first_write_seconds: None,
            gap_seconds: None,
            mended_seconds: None,
            events: Vec::new(),
        };
        let interrupted = interrupted()?;
        tokio::pin!(interrupted);
        let mut failed_at = None;
        let mut is_interrupted = false;
        loop {
            let after = begun.elapsed();
            if report.mended_seconds.is_none()
                && (after >= Duration::from_secs(self.seconds) || is_interrupted)
            {
                broken.mend();
                report.mended_seconds = Some(after.as_secs_f64());
            }
            if let Some(probe) = &self.probe {
                match (self.probe(probe).await, failed_at) {
                    (false, None) => failed_at = Some(begun.elapsed()),
                    (true, Some(failed)) if report.gap_seconds.is_none() => {
                        let now = begun.elapsed();
                        report.first_write_seconds = Some(now.as_secs_f64());
                        report.gap_seconds = Some(now.saturating_sub(failed).as_secs_f64());
                    }
                    (true, _) | (false, Some(_)) => {}
                }
            }
            let now = look(&socket).await;
            report.learn(begun.elapsed(), before.as_ref(), now.as_ref());
            let is_served =
                self.probe.is_none() || failed_at.is_none() || report.gap_seconds.is_some();
            let is_well = report.mended_seconds.is_some()
                && is_served
                && report.detected.is_some()
                && now.is_some_and(|status| status.problems.is_empty());
            if is_well
                || is_interrupted
                || after >= Duration::from_secs(self.watch.max(self.seconds))
            {
                break;
            }
            tokio::select! {
                () = tokio::time::sleep(LOOK_INTERVAL) => {}
                () = &mut interrupted => is_interrupted = true,
            }
        }
        broken.mend();
        keep(&local.state_dir, &report)?;
        Ok(report)
    }

    fn inject(&self, config: &Config, local: &Local) -> Result<Broken, Failure> {
        match self.fault {
            Fault::KillProcess => send(self.process()?, Signal::KILL),
            Fault::StopProcess => send(self.process()?, Signal::STOP),
            Fault::KillPostgres => send(postmaster(config, local)?, Signal::KILL),
            Fault::StopPostgres => stop_with_children(postmaster(config, local)?),
            Fault::KillDaemon => send(daemon(local)?, Signal::KILL),
            Fault::StopDaemon => send(daemon(local)?, Signal::STOP),
            Fault::CutLink => cut(config, local, |number| number == usize::from(self.link)),
            Fault::CutAll => cut(config, local, |_| true),
            Fault::FillDisk => {
                let path = self.path.as_ref().ok_or_else(|| {
                    Failure::usage(
                        "which file system is to be filled? name a directory with --path",
                    )
                })?;
                fill(path)
            }
        }
    }

    fn process(&self) -> Result<Pid, Failure> {
        let file = self.pid_file.as_ref().ok_or_else(|| {
            Failure::usage("which process? name the file with its number with --pid-file")
        })?;
        read_pid(file)
    }

    async fn probe(&self, probe: &str) -> bool {
        let command = Command::new(["sh", "-c", probe]).limit(LOOK_PATIENCE);
        command.run().await.is_ok()
    }
}

impl FaultReport {
    /// Takes in what the daemon tells, if it does.
    fn learn(&mut self, after: Duration, before: Option<&Status>, now: Option<&Status>) {
        let Some(now) = now else { return };
        let seconds = after.as_secs_f64();
        let of_this = |event: &&Event| event.time >= self.injected;
        self.events = now.events.iter().filter(of_this).cloned().collect();
        if self.detected.is_none() {
            let told = |event: &&Event| event.severity >= Severity::Warning;
            self.detected = self.events.iter().find(told).cloned();
            self.detected_seconds = self.detected.as_ref().map(|_| seconds);
        }
        let Some(before) = before else { return };
        let state = |status: &Status| status.address.as_ref().map(|address| address.state);
        if self.address_moved_seconds.is_none() && state(before) != state(now) {
            self.address_moved_seconds = Some(seconds);
        }
        if self.role_changed_seconds.is_none() && before.role != now.role {
            self.role_changed_seconds = Some(seconds);
        }
    }
}

/// Returns what ends when somebody interrupts this program, or the terminal goes.
fn interrupted() -> Result<impl Future<Output = ()>, Failure> {
    let mut signals = Vec::new();
    for kind in [
        SignalKind::interrupt(),
        SignalKind::terminate(),
        SignalKind::hangup(),
    ] {
        signals.push(signal(kind)?);
    }
    Ok(async move {
        let received = signals.iter_mut().map(|signal| Box::pin(signal.recv()));
        futures_util::future::select_all(received).await;
    })
}

/// Asks the daemon how it is, if it answers in time.
async fn look(socket: &Path) -> Option<Status> {
    let status = crate::admin::ask(socket, Method::GET, "/status", &());
    tokio::time::timeout(LOOK_PATIENCE, status).await.ok()?.ok()
}

fn send(pid: Pid, signal: Signal) -> Result<Broken, Failure> {
    kill_process(pid, signal).map_err(|error| {
        Failure::failed(format!(
            "cannot send a signal to process {}: {error}",
            pid.as_raw_nonzero()
        ))
    })?;
    Ok(Broken(if signal == Signal::STOP {
        Mend::Continue(vec![pid])
    } else {
        Mend::Nothing
    }))
}

/// Stops a process and its children: those of a server do its work.
fn stop_with_children(parent: Pid) -> Result<Broken, Failure> {
    let mut broken = send(parent, Signal::STOP)?;
    let number = parent.as_raw_nonzero();
    // Stopped, it has no new ones.
    let children = fs::read_to_string(format!("/proc/{number}/task/{number}/children"))?;
    let children = children
        .split_whitespace()
        .filter_map(|pid| pid.parse().ok());
    for child in children.filter_map(Pid::from_raw) {
        // One that has just ended needs nothing.
        if kill_process(child, Signal::STOP).is_ok()
            && let Mend::Continue(pids) = &mut broken.0
        {
            pids.push(child);
        }
    }
    Ok(broken)
}

fn read_pid(file: &Path) -> Result<Pid, Failure> {
    let failed = |what: &dyn std::fmt::Display| {
        Failure::failed(format!("there is no process in {}: {what}", file.display()))
    };
    let text = fs::read_to_string(file).map_err(|error| failed(&error))?;
    let number = text.lines().next().unwrap_or_default().trim();
    // A group, or every process, is nobody's service.
    let number: i32 = number.parse().map_err(|error| failed(&error))?;
    let pid = (number > 1).then(|| Pid::from_raw(number)).flatten();
    pid.ok_or_else(|| failed(&format!("{number} is not the number of one")))
}

fn postmaster(config: &Config, local: &Local) -> Result<Pid, Failure> {
    let postgres = config
        .postgres
        .as_ref()
        .ok_or_else(|| Failure::usage("there is no [postgres] in the configuration"))?;
    read_pid(&local.resolve(&postgres.data_dir).join("postmaster.pid"))
}

/// Returns the process at the other end of the admin socket.
fn daemon(local: &Local) -> Result<Pid, Failure> {
    let socket = local.socket();
    let failed = |error: std::io::Error| {
        Failure::new(
            crate::failure::Kind::NoDaemon,
            format!("cannot reach the daemon at {}: {error}", socket.display()),
        )
    };
    let stream = std::os::unix::net::UnixStream::connect(&socket).map_err(failed)?;
    let peer =
        rustix::net::sockopt::socket_peercred(&stream).map_err(|error| failed(error.into()))?;
    Ok(peer.pid)
}

/// Has packets to the peers go nowhere, of the ways that `is_meant` names by their number.
fn cut(
    config: &Config,
    local: &Local,
    is_meant: impl Fn(usize) -> bool,
) -> Result<Broken, Failure> {
    let mut broken = Broken(Mend::Routes(Vec::new()));
    for peer in config.peers(&local.name) {
        for (number, address) in (1..).zip(peer.addresses()) {
            if !is_meant(number) {
                continue;
            }
            let route = address.ip().to_string();
            ip(&["route", "add", "blackhole", &route])?;
            if let Mend::Routes(routes) = &mut broken.0 {
                routes.push(route);
            }
        }
    }
    if matches!(&broken.0, Mend::Routes(routes) if routes.is_empty()) {
        return Err(Failure::usage("the peers have no such way to them"));
    }
    Ok(broken)
}

fn ip(arguments: &[&str]) -> Result<(), Failure> {
    let ran = std::process::Command::new("ip").args(arguments).output();
    let said = match ran {
        Ok(output) if output.status.success() => return Ok(()),
        Ok(output) => String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        Err(error) => error.to_string(),
    };
    Err(Failure::failed(format!(
        "`ip {}` failed: {said}",
        arguments.join(" ")
    )))
}

/// Takes all the room of a file system that is left.
fn fill(folder: &Path) -> Result<Broken, Failure> {
    let failed = |error: rustix::io::Errno| {
        Failure::failed(format!("cannot fill {}: {error}", folder.display()))
    };
    let room = rustix::fs::statvfs(folder).map_err(failed)?;
    let free = room.f_bavail.saturating_mul(room.f_frsize);
    let path = folder.join(format!(".understudy-drill-{}", std::process::id()));
    let file = fs::File::create_new(&path)
        .map_err(|error| Failure::failed(format!("cannot make {}: {error}", path.display())))?;
    // Removed, whatever becomes of the rest.
    let broken = Broken(Mend::Filler(path));
    let bytes = free.saturating_sub(LEFT_FREE_BYTES).max(1);
    rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, bytes).map_err(failed)?;
    Ok(broken)
}

fn keep(state_dir: &Path, report: &FaultReport) -> Result<(), Failure> {
    let name = reports::Kind::Fault.file_at(report.injected);
    match reports::keep(state_dir, &name, report, 0o640) {
        Ok(_) => Ok(()),
        Err(error) => Err(Failure::failed(format!(
            "the report cannot be kept in {}: {error}",
            reports::folder(state_dir).display()
        ))),
    }
}

/// Returns how it ended, in a word, and what more there is to say on one line.
pub(super) fn outcome(report: &FaultReport) -> (&'static str, String) {
    let fault = report.fault.name();
    let gap = report
        .gap_seconds
        .map(|gap| format!(", clients were out for {gap:.1} s"));
    let gap = gap.unwrap_or_default();
    match report.detected_seconds {
        Some(seconds) => (
            "detected",
            format!("{fault}: told after {seconds:.1} s{gap}"),
        ),
        None => ("unnoticed", format!("{fault}{gap}")),
    }
}

/// Returns what the report tells people.
pub(crate) fn text(report: &FaultReport) -> String {
    let after = |seconds: Option<f64>| match seconds {
        Some(seconds) => format!("after {seconds:.1} s"),
        None => "not seen".to_owned(),
    };
    let mut text = format!(
        "Fault drill: {} on node {} at {}.\n",
        report.fault.name(),
        report.node,
        report.injected
    );
    let detected = report
        .detected
        .as_ref()
        .map(|event| format!(": {}", event.message));
    for (what, seconds, more) in [
        ("detected", report.detected_seconds, detected),
        ("address moved", report.address_moved_seconds, None),
        ("role changed", report.role_changed_seconds, None),
        ("mended", report.mended_seconds, None),
        ("first write accepted", report.first_write_seconds, None),
    ] {
        text += &format!(
            "  {what:22} {}{}\n",
            after(seconds),
            more.unwrap_or_default()
        );
    }
    if let Some(gap) = report.gap_seconds {
        text += &format!("  {:22} {gap:.1} s\n", "gap for clients");
    }
    text
}
