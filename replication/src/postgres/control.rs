//! Starting, stopping and promoting a cluster's server.
//!
//! `pg_ctl` looks ten times a second at what it waits for, and a switchover has no such tenths to give
//! away: a stop signals the server itself and waits for its end, a promotion is the file and the signal
//! that `pg_ctl promote` would send, and a start is over as soon as the server says so.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::OpenOptionsExt;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::cluster::Cluster;
use super::error::PostgresError;
use super::postmaster::{self, Held, Server};
use super::replay::REPLAY_PATIENCE;
use super::wal::segment_name;
use crate::command::{Command, CommandError};
use crate::position::Lsn;

/// Starting may take this long: a crash is recovered from first. A standby's replay may take longer, as
/// long as it gets on.
const START_PATIENCE: Duration = Duration::from_secs(120);

/// The operator's own way to stop may take this long. With what comes after it, it has to be less than
/// whoever asks for a fence waits: 180 seconds.
const COMMAND_PATIENCE: Duration = Duration::from_secs(30);

/// Stopping in peace may take this long: everything is sent to the standbys first.
const FAST_PATIENCE: Duration = Duration::from_secs(60);

/// Stopping at once, or being killed, may take this long.
const IMMEDIATE_PATIENCE: Duration = Duration::from_secs(20);

/// One that answers nothing is killed sooner.
const SILENT_PATIENCE: Duration = Duration::from_secs(3);

/// A server that was killed is forgotten by the system within this long.
const BURIAL_PATIENCE: Duration = Duration::from_secs(15);
const BURIAL_INTERVAL: Duration = Duration::from_millis(20);

/// Reading the end of a log that was not closed may take this long.
const LOG_END_PATIENCE: Duration = Duration::from_secs(60);

/// Recovering from a crash without serving anybody may take this long.
const RECOVERY_PATIENCE: Duration = Duration::from_secs(3600);

/// The server's own log is set aside at a start when it is larger.
const SERVER_LOG_BYTES_MAX: u64 = 64 << 20;

/// The file that tells a server to leave recovery (Postgres' `xlog.h`, `PROMOTE_SIGNAL_FILE`).
const PROMOTE: &str = "promote";

impl Cluster {
    /// Returns whether a server runs on the data directory. What cannot be found out counts as running:
    /// fencing rests on this.
    pub fn is_running(&self) -> bool {
        match postmaster::find(&self.data_dir) {
            Server::None => false,
            Server::Unknown | Server::Runs { .. } => true,
        }
    }

    /// Starts the server, if it does not run, and waits until it takes connections.
    ///
    /// # Errors
    /// When it does not start.
    pub async fn start(&self) -> Result<(), PostgresError> {
        if self.is_running() {
            return Ok(());
        }
        self.check_settled(self.is_standby())?;
        self.start_server().await?;
        // A fence may have looked for it while it was about to be there.
        if let Err(error) = self.check_settled(self.is_standby()) {
            self.stop().await?;
            return Err(error);
        }
        Ok(())
    }

    async fn start_server(&self) -> Result<(), PostgresError> {
        if let Some(commands) = &self.commands {
            return self.start_by(commands, START_PATIENCE).await;
        }
        // What ends the waiting for a standby is that its replay does not get on.
        let limit = if self.is_standby() {
            REPLAY_PATIENCE
        } else {
            START_PATIENCE
        };
        let log = self.state.join("server.log");
        if fs::metadata(&log).is_ok_and(|log| log.len() > SERVER_LOG_BYTES_MAX) {
            let aside = self.state.join("server.log.1");
            fs::rename(&log, &aside).map_err(|source| self.file("set aside", &log, source))?;
        }
        let cluster = self.clone();
        // A task of its own: pg_ctl ends up to a tenth of a second after the server is there.
        let mut starting = tokio::spawn(async move {
            let log = log.display().to_string();
            let seconds = limit.as_secs().to_string();
            let arguments = ["-l", &log, "-w", "-t", &seconds, "start"];
            cluster.pg_ctl(arguments, limit, "start").await
        });
        tokio::select! {
            started = &mut starting => match started {
                Ok(started) => started.map_err(|error| self.with_server_log(error)),
                Err(_) => Err(PostgresError::Late { what: "start" }),
            },
            // pg_ctl first, which knows better what is the matter.
            is_ready = self.gets_ready(START_PATIENCE + Duration::from_secs(5)) => {
                if is_ready {
                    return Ok(());
                }
                // The server goes on, in a session of its own.
                starting.abort();
                Err(PostgresError::Late { what: "start" })
            }
        }
    }

    /// Stops the server, if it runs: in peace (which sends everything to the standbys), after a while at
    /// once, and in the end by force. The operator's own command comes first, where there is one. What was
    /// acknowledged is safe in any case: it is in the log.
    ///
    /// # Errors
    /// When it still runs, or has been stopped and could be started again by somebody else.
    pub async fn stop(&self) -> Result<(), PostgresError> {
        let in_peace = (Signal::INT, FAST_PATIENCE);
        self.stop_by_signals([in_peace, (Signal::QUIT, IMMEDIATE_PATIENCE)])
            .await
    }

    /// Stops a server, if it runs, that answers nothing: it would not stop in peace, either. Otherwise as
    /// [`Cluster::stop`].
    ///
    /// # Errors
    /// As those of [`Cluster::stop`].
    pub async fn stop_at_once(&self) -> Result<(), PostgresError> {
        self.stop_by_signals([(Signal::QUIT, SILENT_PATIENCE)])
            .await
    }

    async fn stop_by_signals<const N: usize>(
        &self,
        signals: [(Signal, Duration); N],
    ) -> Result<(), PostgresError> {
        // Before anything: what is stopped must not be started again by somebody else. A fence stops it
        // nevertheless where that fails.
        let disavowed = self.unlink();
        if let Some(commands) = &self.commands {
            self.stop_by(commands, COMMAND_PATIENCE).await;
        }
        let fence = |source| self.file("stop the server of", &self.data_dir, source);
        let in_the_end = [(Signal::KILL, IMMEDIATE_PATIENCE)];
        for (signal, patience) in signals.into_iter().chain(in_the_end) {
            let Some(server) = Held::take(&self.data_dir).map_err(fence)? else {
                break;
            };
            let children = match signal {
                Signal::KILL => Held::take_children(&self.data_dir),
                _ => Vec::new(),
            };
            server.signal(signal).map_err(fence)?;
            for child in children {
                child.signal(signal).map_err(fence)?;
            }
            if server.ended(patience).await {
                break;
            }
            tracing::warn!(
                data_dir = %self.data_dir.display(),
                seconds = patience.as_secs(),
                ?signal,
                "postgres did not stop in time"
            );
        }
        if self.is_running() {
            return Err(PostgresError::StillRuns {
                data_dir: self.data_dir.clone(),
            });
        }
        disavowed
    }

    /// Makes the server read its configuration again.
    ///
    /// # Errors
    /// When it does not run.
    pub async fn reload(&self) -> Result<(), PostgresError> {
        self.signal(Signal::HUP, "reload the server of")
    }

    /// Tells a standby server to become a primary; returns before it is one.
    ///
    /// # Errors
    /// When it does not run, or cannot be told.
    pub async fn promote(&self) -> Result<(), PostgresError> {
        self.check_settled(false)?;
        let path = self.data_dir.join(PROMOTE);
        let made = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path);
        match made {
            Ok(made) => self.own_opened(&made, &path)?,
            // Of a promotion that a crash has cut short, perhaps; its presence is all that it says.
            Err(error) if error.kind() == ErrorKind::AlreadyExists => self.expect_file(&path)?,
            Err(source) => return Err(self.file("write", &path, source)),
        }
        self.signal(Signal::USR1, "promote the server of")
    }

    /// Brings a cluster that was not shut down in peace to the end of its log, without serving anybody:
    /// as a server for a single user that is asked nothing. Its fsync stays on.
    ///
    /// # Errors
    /// When a server runs, or it cannot be recovered.
    pub async fn recover(&self) -> Result<(), PostgresError> {
        let until = Instant::now() + BURIAL_PATIENCE;
        while postmaster::is_unburied(&self.data_dir) && Instant::now() < until {
            tokio::time::sleep(BURIAL_INTERVAL).await;
        }
        let data_dir = self.data_dir.display().to_string();
        let argv = [self.bin("postgres").as_str(), "--single", "-D", &data_dir]
            .map(str::to_owned)
            .into_iter()
            .chain(
                self.config_file()
                    .map(|path| format!("--config_file={}", path.display())),
            )
            .chain(["template1".to_owned()]);
        Command::new(argv)
            .user(&self.user)
            .input("")
            .limit(RECOVERY_PATIENCE)
            .run()
            .await
            .map_err(|source| self.control("recover", source))?;
        Ok(())
    }

    /// Returns where the log of a cluster ends that was not shut down in peace, before it is recovered: whoever has
    /// all up to there has everything that was committed, and what a recovery adds is its own. `None` where that
    /// cannot be told.
    pub async fn log_end(&self) -> Option<Lsn> {
        let control = self.control_data().await.ok()?;
        // Its newest timeline has no checkpoint yet.
        if self.newest_timeline() != control.timeline {
            return None;
        }
        let path = self.data_dir.join("pg_wal");
        // Named, since the program would ask any file how large they are, of those made ahead, too.
        let name = |at| segment_name(control.timeline, at, control.segment_bytes);
        let first = name(control.checkpoint)?;
        let (mut last, mut at) = (first.clone(), control.checkpoint.0);
        loop {
            at = at.checked_add(control.segment_bytes)?;
            match name(Lsn(at)).filter(|name| path.join(name).exists()) {
                Some(next) => last = next,
                None => break,
            }
        }
        let argv = [
            self.bin("pg_waldump"),
            "--quiet".to_owned(),
            format!("--path={}", path.display()),
            format!("--timeline={}", control.timeline),
            format!("--start={}", control.checkpoint),
            first,
            last,
        ];
        let read = Command::new(argv)
            .user(&self.user)
            .limit(LOG_END_PATIENCE)
            .run()
            .await;
        match read {
            // The end of a log is an error to the program.
            Err(CommandError::Failed { output, .. }) => end_told(&output),
            Ok(_) | Err(_) => None,
        }
    }

    fn signal(&self, signal: Signal, action: &'static str) -> Result<(), PostgresError> {
        let failed = |source| self.file(action, &self.data_dir, source);
        let server = Held::take(&self.data_dir).map_err(failed)?;
        let Some(server) = server else {
            return Err(PostgresError::NotRunning {
                data_dir: self.data_dir.clone(),
            });
        };
        server.signal(signal).map_err(failed)
    }

    async fn pg_ctl<const N: usize>(
        &self,
        arguments: [&str; N],
        limit: Duration,
        action: &'static str,
    ) -> Result<(), PostgresError> {
        let data_dir = self.data_dir.display().to_string();
        let options = self.config_file().map(|path| {
            // pg_ctl hands its options to a shell.
            let path = path.display().to_string().replace('\'', r"'\''");
            ["-o".to_owned(), format!("-c config_file='{path}'")]
        });
        let argv = [self.bin("pg_ctl"), "-D".to_owned(), data_dir]
            .into_iter()
            .chain(options.into_iter().flatten())
            .chain(arguments.map(str::to_owned));
        Command::new(argv)
            .user(&self.user)
            .limit(limit + Duration::from_secs(10))
            .run()
            .await
            .map_err(|source| self.control(action, source))?;
        Ok(())
    }

    /// Adds the server's own last words to a failed start: pg_ctl says only "examine the log".
    fn with_server_log(&self, error: PostgresError) -> PostgresError {
        let PostgresError::Control {
            action,
            data_dir,
            source:
                CommandError::Failed {
                    program,
                    status,
                    output,
                },
        } = error
        else {
            return error;
        };
        let log = fs::read(self.state.join("server.log")).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let fatal = log
            .lines()
            .rev()
            .take(50)
            .find(|line| line.contains("FATAL"));
        let output = match fatal {
            Some(line) => format!("{output}\n{line}"),
            None => output,
        };
        PostgresError::Control {
            action,
            data_dir,
            source: CommandError::Failed {
                program,
                status,
                output,
            },
        }
    }
}

/// Returns where `pg_waldump` says that the next record should be and is not.
fn end_told(said: &str) -> Option<Lsn> {
    let (_, at) = said.split_once("invalid record length at ")?;
    let digits = |c: char| c.is_ascii_hexdigit() || c == '/';
    at.split(|c| !digits(c)).next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_log_is_where_the_next_record_should_be() {
        let said = "pg_waldump: error: error in WAL record at 0/35CCE10: invalid record length at 0/35CCE48: wanted \
                    24, got 0";
        assert_eq!(end_told(said), Some(Lsn(0x35C_CE48)));
        let torn = "pg_waldump: error: error in WAL record at 0/35CCE10: invalid magic number 0000 in log segment \
                    000000010000000000000003, offset 6078464";
        assert_eq!(end_told(torn), None);
        assert_eq!(end_told(""), None);
    }

    #[tokio::test]
    async fn a_server_is_stopped_though_it_cannot_be_disavowed_and_that_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let cluster = Cluster {
            data_dir: folder.path().to_owned(),
            run_dir: folder.path().join("run"),
            ..Cluster::example(false)
        };
        // What cannot be removed as a file.
        fs::create_dir_all(cluster.vouched_hba()).unwrap();
        let mut server = std::process::Command::new("sleep")
            .arg("1000")
            .current_dir(folder.path())
            .spawn()
            .unwrap();
        let lock_file = folder.path().join("postmaster.pid");
        fs::write(lock_file, format!("{}\n", server.id())).unwrap();
        assert!(cluster.is_running());
        let error = cluster.stop().await.unwrap_err();
        assert!(matches!(error, PostgresError::File { .. }), "{error}");
        assert!(!cluster.is_running());
        server.wait().unwrap();
    }

    #[tokio::test]
    async fn a_promotion_leaves_alone_what_a_link_in_its_place_leads_to() {
        let folder = tempfile::tempdir().unwrap();
        let cluster = Cluster {
            data_dir: folder.path().to_owned(),
            ..Cluster::example(false)
        };
        cluster.settle();
        let link = folder.path().join(PROMOTE);
        std::os::unix::fs::symlink("/etc/passwd", &link).unwrap();
        let error = cluster.promote().await.unwrap_err();
        assert!(matches!(error, PostgresError::Misled { .. }), "{error}");
        fs::remove_file(&link).unwrap();
        for _ in 0..2 {
            let error = cluster.promote().await.unwrap_err();
            assert!(matches!(error, PostgresError::NotRunning { .. }), "{error}");
            assert!(link.symlink_metadata().unwrap().is_file());
        }
    }
}
