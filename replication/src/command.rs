//! Running other programs: as their own OS user, within a time limit, with bounded output.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use nix::unistd::{Uid, User};
use rustix::process::{Pid, Signal, kill_process_group, test_kill_process_group};

/// How much of a program's output is kept: its end, where the reason stands.
pub const OUTPUT_BYTES_MAX: u64 = 64 << 10;

/// How long a program has between TERM and KILL.
const TERM_PATIENCE: Duration = Duration::from_secs(5);

/// How long is waited for the end of what has been killed: a process that waits for a disk or a network mount
/// that does not answer ends only when that does.
const KILL_PATIENCE: Duration = Duration::from_secs(2);

/// Why a program could not be run, or failed.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// There is no such OS user.
    #[error("there is no operating system user `{name}`")]
    NoUser {
        /// The name.
        name: String,
    },
    /// Only root may become somebody else.
    #[error("cannot run `{program}` as user `{name}` without being root")]
    NotRoot {
        /// The program.
        program: String,
        /// The user.
        name: String,
    },
    /// The program could not be started.
    #[error("cannot run `{program}`")]
    Start {
        /// The program.
        program: String,
        /// Why not.
        source: io::Error,
    },
    /// It did not end in time, and was killed with its process group.
    #[error("`{program}` did not end within {} s and was killed{}", tenths(*limit), said(output))]
    TimedOut {
        /// The program.
        program: String,
        /// How long it had.
        limit: Duration,
        /// What it printed.
        output: String,
    },
    /// It ended with a failure.
    #[error("`{program}` failed ({status}){}", said(output))]
    Failed {
        /// The program.
        program: String,
        /// How it ended.
        status: ExitStatus,
        /// What it printed.
        output: String,
    },
}

/// Returns a time in seconds, with a fraction only where there is one.
fn tenths(time: Duration) -> f64 {
    (time.as_secs_f64() * 10.0).round() / 10.0
}

fn said(output: &str) -> String {
    match output
        .trim()
        .lines()
        .rev()
        .find(|line| !line.trim().is_empty())
    {
        Some(line) => format!(": {}", line.trim()),
        None => String::new(),
    }
}

/// An OS user that programs run as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OsUser {
    /// Its name.
    pub name: String,
    /// Its number.
    pub uid: u32,
    /// Its primary group.
    pub gid: u32,
    /// Its home.
    pub home: PathBuf,
}

impl OsUser {
    /// Looks a user up. When this process is not root, the user that it runs as is returned whatever
    /// the name: an unprivileged node runs everything as itself.
    ///
    /// # Errors
    /// When root asks for a user that does not exist.
    pub fn find(name: &str) -> Result<Self, CommandError> {
        let no_user = || CommandError::NoUser {
            name: name.to_owned(),
        };
        let found = if Uid::effective().is_root() {
            User::from_name(name)
        } else {
            User::from_uid(Uid::effective())
        };
        let user = found.ok().flatten().ok_or_else(no_user)?;
        Ok(user.into())
    }

    /// Returns the name of the user of a number, if there is one.
    pub fn name_of(uid: u32) -> Option<String> {
        let user = User::from_uid(Uid::from_raw(uid)).ok().flatten();
        user.map(|user| user.name)
    }

    /// Looks up to whom a file belongs.
    ///
    /// # Errors
    /// When it cannot be looked at, or its owner has no name.
    pub fn owner(path: &Path) -> io::Result<Self> {
        let uid = std::fs::metadata(path)?.uid();
        let user = User::from_uid(Uid::from_raw(uid))?;
        let user = user.ok_or_else(|| io::Error::other(format!("user {uid} has no name")))?;
        Ok(user.into())
    }
}

impl From<User> for OsUser {
    fn from(user: User) -> Self {
        Self {
            name: user.name,
            uid: user.uid.as_raw(),
            gid: user.gid.as_raw(),
            home: user.dir,
        }
    }
}

/// A program to be run.
#[derive(Clone, Debug)]
pub struct Command {
    argv: Vec<String>,
    user: Option<OsUser>,
    environment: Vec<(String, String)>,
    limit: Duration,
    input: Option<String>,
}

impl Command {
    /// Returns the program `argv[0]` with its arguments; it may run for a minute.
    pub fn new(argv: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self {
            argv: argv.into_iter().map(Into::into).collect(),
            user: None,
            environment: Vec::new(),
            limit: Duration::from_secs(60),
            input: None,
        }
    }

    /// Runs it as `user`, with that user's environment and nothing of this process'.
    #[must_use]
    pub fn user(mut self, user: &OsUser) -> Self {
        self.user = Some(user.clone());
        self
    }

    /// Sets a variable.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl Into<String>) -> Self {
        self.environment.push((name.to_owned(), value.into()));
        self
    }

    /// Sets how long it may run.
    #[must_use]
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// Gives it `input` on its standard input, which is empty otherwise.
    #[must_use]
    pub fn input(mut self, input: impl Into<String>) -> Self {
        self.input = Some(input.into());
        self
    }

    /// Runs it to its end and returns what it printed on standard output and standard error.
    ///
    /// Output goes to a file and not to a pipe: a daemon that the program leaves behind and that
    /// keeps its output open does not keep us waiting. Dropping the future kills the program with its process group.
    ///
    /// # Errors
    /// When it cannot be started, fails, or takes too long.
    pub async fn run(&self) -> Result<String, CommandError> {
        self.run_told(|_| {}).await
    }

    /// Does what [`run`](Self::run) does, and tells `started` the process, which leads a group of its own.
    ///
    /// # Errors
    /// When it cannot be started, fails, or takes too long.
    pub async fn run_told(&self, started: impl FnOnce(Pid) + Send) -> Result<String, CommandError> {
        let program = self.argv.first().cloned().unwrap_or_default();
        let start = |source| CommandError::Start {
            program: program.clone(),
            source,
        };
        let mut output = unnamed_file().map_err(start)?;
        let mut command = self.prepare()?;
        command
            .stdout(output.try_clone().map_err(start)?)
            .stderr(output.try_clone().map_err(start)?);
        match &self.input {
            Some(text) => {
                use std::io::Write;
                let mut input = tempfile::tempfile().map_err(start)?;
                input.write_all(text.as_bytes()).map_err(start)?;
                input.seek(SeekFrom::Start(0)).map_err(start)?;
                command.stdin(input);
            }
            None => {
                command.stdin(Stdio::null());
            }
        }
        let mut child = command.kill_on_drop(true).spawn().map_err(start)?;
        let group = child
            .id()
            .and_then(|id| i32::try_from(id).ok())
            .and_then(Pid::from_raw);
        let mut abandoned = KillOnDrop(group);
        if let Some(group) = group {
            started(group);
        }
        let waited = tokio::time::timeout(self.limit, child.wait()).await;
        // It has ended, or is ended below; what it has left behind on purpose (a daemon) may stay.
        abandoned.0 = None;
        let status = match waited {
            Ok(status) => status.map_err(start)?,
            Err(_) => {
                if let Some(group) = group {
                    end(group, &mut child).await;
                }
                return Err(CommandError::TimedOut {
                    program: program.clone(),
                    limit: self.limit,
                    output: tail(&mut output).map_err(start)?,
                });
            }
        };
        let printed = tail(&mut output).map_err(start)?;
        if status.success() {
            Ok(printed)
        } else {
            Err(CommandError::Failed {
                program,
                status,
                output: printed,
            })
        }
    }

    /// Starts it with piped output, for a program whose output tells how far it is. The caller reads
    /// the output, bounds the time and waits for the end; dropping the child kills it.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn_piped(&self) -> Result<tokio::process::Child, CommandError> {
        self.prepare()?
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|source| CommandError::Start {
                program: self.argv.first().cloned().unwrap_or_default(),
                source,
            })
    }

    fn prepare(&self) -> Result<tokio::process::Command, CommandError> {
        let program = self.argv.first().cloned().unwrap_or_default();
        let mut command = tokio::process::Command::new(&program);
        command
            .args(self.argv.iter().skip(1))
            // A group of its own, so that it can be ended with all its children.
            .process_group(0)
            // The working directory of this process may be unreadable to the user.
            .current_dir("/");
        if let Some(user) = &self.user {
            let me = Uid::effective();
            if me.is_root() {
                command.uid(user.uid).gid(user.gid);
            } else if me.as_raw() != user.uid {
                return Err(CommandError::NotRoot {
                    program,
                    name: user.name.clone(),
                });
            }
            let path =
                std::env::var_os("PATH").unwrap_or_else(|| "/usr/sbin:/usr/bin:/sbin:/bin".into());
            command
                .env_clear()
                .env("PATH", path)
                .env("HOME", &user.home)
                .env("USER", &user.name)
                .env("LOGNAME", &user.name)
                .env("LC_ALL", "C.UTF-8");
        }
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        Ok(command)
    }
}

/// Kills a process group when it is dropped: a caller that goes away must leave nothing running that
/// would come up later.
struct KillOnDrop(Option<Pid>);

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            signal(group, Signal::KILL);
        }
    }
}

/// Ends a process group: TERM, and KILL for what is left of it. It has a bounded time, and what does not even
/// end then is reaped whenever it does.
async fn end(group: Pid, child: &mut tokio::process::Child) {
    signal(group, Signal::TERM);
    let ended = async {
        let _reaped = child.wait().await.is_ok();
        // Its children have their time, too: the leader may have left them to their work.
        while test_kill_process_group(group).is_ok() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    if tokio::time::timeout(TERM_PATIENCE, ended).await.is_err() {
        signal(group, Signal::KILL);
        if tokio::time::timeout(KILL_PATIENCE, child.wait())
            .await
            .is_err()
        {
            tracing::warn!(?group, "what was killed has not ended yet");
        }
    }
}

/// Returns a file without a name: on a disk, or in memory where the disk is full, since what stops a service
/// must run even then.
fn unnamed_file() -> io::Result<File> {
    tempfile::tempfile().or_else(|_| {
        let file = rustix::fs::memfd_create("output", rustix::fs::MemfdFlags::CLOEXEC)?;
        Ok(File::from(file))
    })
}

fn signal(group: Pid, signal: Signal) {
    if let Err(error) = kill_process_group(group, signal)
        && error != rustix::io::Errno::SRCH
    {
        tracing::warn!(?group, ?signal, %error, "cannot signal a process group");
    }
}

/// Returns the end of what was printed.
fn tail(output: &mut File) -> io::Result<String> {
    let length = output.seek(SeekFrom::End(0))?;
    output.seek(SeekFrom::Start(length.saturating_sub(OUTPUT_BYTES_MAX)))?;
    let mut bytes = Vec::new();
    output.take(OUTPUT_BYTES_MAX).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Returns the exit code that a command failed with, if it ran to an end of its own.
pub fn exit_code(error: &CommandError) -> Option<i32> {
    match error {
        CommandError::Failed { status, .. } if status.signal().is_none() => status.code(),
        CommandError::Failed { .. }
        | CommandError::NoUser { .. }
        | CommandError::NotRoot { .. }
        | CommandError::Start { .. }
        | CommandError::TimedOut { .. } => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        Command::new(["sh", "-c", script])
    }

    #[tokio::test]
    async fn a_failure_tells_the_last_line_that_was_printed() {
        let error = shell("echo first; echo 'no space' >&2; exit 7")
            .run()
            .await
            .unwrap_err();
        assert_eq!(error.to_string(), "`sh` failed (exit status: 7): no space");
        assert_eq!(exit_code(&error), Some(7));
    }

    #[tokio::test]
    async fn a_daemon_that_keeps_its_output_open_does_not_keep_us_waiting() {
        let output = shell("sleep 1000 & echo $!").run().await.unwrap();
        let pid = Pid::from_raw(output.trim().parse().unwrap()).unwrap();
        rustix::process::kill_process(pid, Signal::KILL).unwrap();
    }

    #[tokio::test]
    async fn a_program_that_hangs_is_killed_with_its_children() {
        let command = shell("sleep 1000 & echo $!; wait").limit(Duration::from_millis(200));
        let CommandError::TimedOut { output, .. } = command.run().await.unwrap_err() else {
            panic!("it was not killed");
        };
        let pid = Pid::from_raw(output.trim().parse().unwrap()).unwrap();
        // The signal has been sent; the kernel needs a moment.
        let gone = async {
            while rustix::process::test_kill_process(pid).is_ok() {
                let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero()));
                if stat.map_or(true, |stat| stat.contains(") Z ")) {
                    break;
                }
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(5), gone)
            .await
            .unwrap();
    }

    #[tokio::test]
    async fn m04_children_that_ignore_term_are_killed_though_their_parent_has_ended() {
        let script = "sh -c 'trap \"\" TERM; echo $$; while :; do sleep 1; done' & wait";
        let command = shell(script).limit(Duration::from_millis(300));
        let CommandError::TimedOut { output, .. } = command.run().await.unwrap_err() else {
            panic!("it was not killed");
        };
        let pid = Pid::from_raw(output.trim().parse().unwrap()).unwrap();
        let gone = async {
            loop {
                let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero()));
                if stat.map_or(true, |stat| stat.contains(") Z ")) {
                    break;
                }
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(5), gone)
            .await
            .unwrap();
    }

    #[tokio::test]
    async fn a_missing_program_is_named() {
        let error = Command::new(["/no/such/program"]).run().await.unwrap_err();
        assert_eq!(error.to_string(), "cannot run `/no/such/program`");
    }
}
