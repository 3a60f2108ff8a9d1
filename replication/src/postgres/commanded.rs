//! Starting and stopping a server by the operator's own commands, such as those of a systemd unit.
//!
//! They are believed of nothing: whether a server runs is told by the data directory alone. A stop that
//! does not stop is made good by a signal, since a fence must not depend on somebody's unit.

use std::time::Duration;

use understudy_config::ServerCommands;

use super::cluster::Cluster;
use super::error::PostgresError;
use super::postmaster;
use crate::command::{Command, CommandError};
use crate::error_chain;
use crate::event::Severity;

/// A command that only tells something may take this long.
const STATUS_PATIENCE: Duration = Duration::from_secs(10);

/// How often a server that starts or ends is looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);

impl Cluster {
    /// Starts the server by the operator's command, and waits until it takes connections.
    ///
    /// # Errors
    /// When the command fails, or no server takes connections within `limit` after it.
    pub(super) async fn start_by(
        &self,
        commands: &ServerCommands,
        limit: Duration,
    ) -> Result<(), PostgresError> {
        if self.status_says_up(commands).await {
            self.warn(format!(
                "`{}` says that postgres runs, and no server works in {}: the command may be that of \
                 another cluster",
                commands.status.join(" "),
                self.data_dir.display()
            ));
        }
        self.run(&commands.start, limit)
            .await
            .map_err(|source| self.control("start", source))?;
        if !self.comes_to(limit, postmaster::is_ready).await {
            return Err(self.commanded(
                &commands.start,
                "ended well",
                "takes no connections; see its log, and whether the command is that of another cluster",
            ));
        }
        if !self.status_says_up(commands).await {
            self.warn(format!(
                "postgres runs in {}, and `{}` says that it does not",
                self.data_dir.display(),
                commands.status.join(" ")
            ));
        }
        Ok(())
    }

    /// Stops the server by the operator's command. What is left running is the caller's to stop.
    pub(super) async fn stop_by(&self, commands: &ServerCommands, limit: Duration) {
        // A unit that is up without a server could be about to start one again.
        if !self.is_running() && !self.status_says_up(commands).await {
            return;
        }
        let stopped = self.run(&commands.stop, limit).await;
        let is_down = match &stopped {
            Ok(()) => {
                self.comes_to(limit, |dir| !postmaster::is_at_work(dir))
                    .await
            }
            Err(_) => !self.is_running(),
        };
        let command = commands.stop.join(" ");
        let data_dir = self.data_dir.display();
        match stopped {
            Ok(()) if is_down => {}
            Ok(()) => self.warn(format!(
                "`{command}` ended well, and postgres runs on in {data_dir}: understudy stops it by a \
                 signal"
            )),
            Err(error) => self.warn(format!(
                "postgres in {data_dir} could not be stopped by command: {}{}",
                error_chain(&error),
                if is_down {
                    "; no server runs there any more"
                } else {
                    "; understudy stops it by a signal"
                }
            )),
        }
    }

    async fn run(&self, argv: &[String], limit: Duration) -> Result<(), CommandError> {
        let command = Command::new(argv.to_vec()).limit(limit);
        let command = self
            .environment
            .iter()
            .fold(command, |command, (name, value)| command.env(name, value));
        command.run().await.map(drop)
    }

    async fn status_says_up(&self, commands: &ServerCommands) -> bool {
        self.run(&commands.status, STATUS_PATIENCE).await.is_ok()
    }

    /// Waits until something is true of the data directory; returns whether it is within `limit`.
    async fn comes_to(&self, limit: Duration, is_true: impl Fn(&std::path::Path) -> bool) -> bool {
        let comes = async {
            while !is_true(&self.data_dir) {
                tokio::time::sleep(LOOK_INTERVAL).await;
            }
        };
        tokio::time::timeout(limit, comes).await.is_ok()
    }

    fn commanded(
        &self,
        command: &[String],
        what: &'static str,
        found: &'static str,
    ) -> PostgresError {
        PostgresError::Commanded {
            command: command.join(" "),
            what,
            data_dir: self.data_dir.clone(),
            found,
        }
    }

    fn warn(&self, message: String) {
        match &self.events {
            Some(events) => events.record(Severity::Warning, "postgres_command", message),
            None => tracing::warn!(message, "postgres_command"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Events;

    fn shell(script: &str) -> Vec<String> {
        ["sh", "-c", script].map(str::to_owned).into()
    }

    fn commands(start: &str, stop: &str, status: &str) -> ServerCommands {
        ServerCommands {
            start: shell(start),
            stop: shell(stop),
            status: shell(status),
        }
    }

    /// A cluster whose server is a sleeping process that works in the data directory.
    fn cluster(folder: &std::path::Path) -> Cluster {
        Cluster {
            data_dir: folder.to_owned(),
            environment: vec![("DATA".to_owned(), folder.display().to_string())],
            events: Some(Events::open(&folder.join("events")).unwrap()),
            ..Cluster::example(false)
        }
    }

    // A shell has what it starts in the background ignore SIGINT.
    const START: &str = "cd $DATA; env --default-signal sleep 1000 >/dev/null 2>&1 & \
         printf '%s\\n\\n\\n5432\\n\\n\\n\\nready\\n' $! > $DATA/postmaster.pid";

    fn told(cluster: &Cluster) -> Vec<String> {
        let events = cluster.events.as_ref().unwrap().newest(10);
        events.into_iter().map(|event| event.message).collect()
    }

    #[tokio::test]
    async fn a_server_is_started_and_stopped_by_command_and_nothing_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let status = "kill -0 $(head -1 $DATA/postmaster.pid)";
        let stop = "kill $(head -1 $DATA/postmaster.pid); rm $DATA/postmaster.pid";
        let mut cluster = cluster(folder.path());
        cluster.commands = Some(commands(START, stop, status));
        cluster.start().await.unwrap();
        assert!(cluster.is_running());
        cluster.stop().await.unwrap();
        assert!(!cluster.is_running());
        assert_eq!(told(&cluster), Vec::<String>::new());
    }

    #[tokio::test]
    async fn a_stop_that_stops_nothing_is_made_good_by_a_signal_and_told() {
        for (stop, part) in [("exit 1", "by command"), ("exit 0", "runs on in")] {
            let folder = tempfile::tempdir().unwrap();
            let mut cluster = cluster(folder.path());
            let commands = commands(START, stop, "true");
            cluster.run(&commands.start, LIMIT).await.unwrap();
            assert!(cluster.is_running());
            cluster.stop_by(&commands, Duration::from_millis(100)).await;
            let told = told(&cluster);
            assert!(
                told[0].contains(part) && told[0].ends_with("by a signal"),
                "{told:?}"
            );
            cluster.commands = None;
            cluster.stop().await.unwrap();
            assert!(!cluster.is_running());
        }
    }

    const LIMIT: Duration = Duration::from_secs(10);

    #[tokio::test]
    async fn a_start_after_which_no_server_runs_has_failed() {
        let folder = tempfile::tempdir().unwrap();
        let cluster = cluster(folder.path());
        let limit = Duration::from_millis(100);
        let error = cluster
            .start_by(&commands("true", "true", "true"), limit)
            .await;
        let error = error.unwrap_err().to_string();
        assert!(error.starts_with("`sh -c true` ended well"), "{error}");
        assert!(told(&cluster)[0].contains("another cluster"));
    }
}
