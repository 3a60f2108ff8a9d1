//! Fault injection, for pairs that were made to be tested: something is broken on purpose, and what follows is
//! written down.
//!
//! The command line does it itself, and not the daemon, which may be what is broken. What it has broken it
//! mends again when its time is over, and when it is interrupted.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::ValueEnum;
use hyper::Method;
use rustix::process::{Pid, Signal};
use serde::{Deserialize, Serialize};
use tokio::signal::unix::{SignalKind, signal};
use understudy_config::{Config, Local};
use understudy_replication::status::Status;

use super::broken::{Broken, cut, daemon, fill, postmaster, read_pid, send, stop_with_children};
use super::clients::Probing;
use super::condition::Condition;
use super::fault_report::FaultReport;
use crate::failure::Failure;

/// How often it is looked what has become of it.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);

/// A look at the daemon has this long.
const LOOK_PATIENCE: Duration = Duration::from_secs(2);

/// A pair that is not well has this long to be well before something is broken: a standby that has just come
/// back is for a moment not.
const BEGIN_PATIENCE: Duration = Duration::from_secs(5);

/// What can be broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Fault {
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
    pub(super) fn name(self) -> String {
        let value = self.to_possible_value();
        value.map_or_else(String::new, |value| value.get_name().to_owned())
    }
}

/// Break something on this node on purpose, and report what followed: for pairs made to be tested
#[derive(clap::Args, Debug)]
pub(super) struct Inject {
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
    /// How long to watch on after that, in seconds, until the pair is as it was before
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=3600))]
    watch: u64,
    /// A command that succeeds while clients are served, such as a write through their address
    #[arg(long, value_name = "COMMAND")]
    probe: Option<String>,
    /// Break it although the pair, or the probe, is not well before
    #[arg(long)]
    force: bool,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

impl Inject {
    /// Breaks it, watches, mends it, and keeps the report.
    pub(super) async fn run(&self, config: &Config, local: &Local) -> Result<FaultReport, Failure> {
        if !config.drill.faults {
            return Err(Failure::refused(
                "faults are injected only where the configuration says that the pair is there to be tested",
            )
            .hint("set `faults = true` in [drill] of understudy.toml, and never where people work"));
        }
        let socket = local.socket();
        let before = self.before(&socket).await?;
        let probing = match &self.probe {
            Some(probe) => Some(Probing::begin(probe, self.force).await?),
            None => None,
        };
        let interrupted = interrupted()?;
        tokio::pin!(interrupted);
        let mut report = FaultReport::begin(local.name.to_string(), self.fault);
        let begun = Instant::now();
        let mut broken = self.inject(config, local)?;
        let (broken_for, watched_for) = (
            Duration::from_secs(self.seconds),
            Duration::from_secs(self.seconds.saturating_add(self.watch)),
        );
        let mut is_interrupted = false;
        loop {
            let after = begun.elapsed();
            if report.mended_seconds.is_none() && (after >= broken_for || is_interrupted) {
                broken.mend();
                report.mended_seconds = Some(after.as_secs_f64());
            }
            let now = look(&socket).await;
            report.learn(begun.elapsed(), before.as_ref(), now.as_ref());
            if let Some(probing) = &probing {
                report.note_clients(&probing.seen(), begun, Instant::now());
            }
            if report.is_over() || is_interrupted || after >= watched_for {
                break;
            }
            tokio::select! {
                () = tokio::time::sleep(LOOK_INTERVAL) => {}
                () = &mut interrupted => is_interrupted = true,
            }
        }
        broken.mend();
        report.keep(&local.state_dir)?;
        Ok(report)
    }

    /// Returns how the node is before anything is broken. What an earlier outage has left would be taken for
    /// what this one has done, so that all has to be well, unless it is forced.
    async fn before(&self, socket: &Path) -> Result<Option<Status>, Failure> {
        let begun = Instant::now();
        loop {
            let status = look(socket).await;
            let unwell = match &status {
                Some(status) => Condition::of(status).unwell(),
                None => vec!["the daemon does not answer".to_owned()],
            };
            if unwell.is_empty() || self.force {
                return Ok(status);
            }
            if begun.elapsed() >= BEGIN_PATIENCE {
                return Err(Failure::refused(format!(
                    "the pair is not well before anything is broken: {}",
                    unwell.join("; ")
                ))
                .hint(
                    "wait until `understudy status` says `well yes`; or add --force, and what is \
                     there already is told as if this had done it",
                ));
            }
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
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
