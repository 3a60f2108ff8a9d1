//! One look at what is to be looked at, within its time.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use understudy_config::{CheckKind, Local};
use understudy_replication::command::{Command, CommandError, OsUser};
use understudy_replication::error_chain;

use super::Connect;
use super::local::{self, Look, bad, good};
use super::network;

/// What it takes to look.
pub(super) struct Looker {
    kind: CheckKind,
    timeout: Duration,
    env: Vec<(String, String)>,
    connect: Option<Connect>,
    /// A look that blocks is on its way, and may be so for ever: no other is begun.
    is_stuck: Arc<AtomicBool>,
}

impl Looker {
    pub(super) fn new(
        check: &understudy_config::Check,
        local: &Local,
        env: Vec<(String, String)>,
        connect: Connect,
    ) -> Self {
        let mut kind = check.kind.clone();
        // From here on paths are those of this machine.
        match &mut kind {
            CheckKind::Disk { path, .. } | CheckKind::Mount { path, .. } => {
                *path = local.resolve(path);
            }
            CheckKind::Process {
                process: understudy_config::ProcessName::PidFile(path),
            } => *path = local.resolve(path),
            CheckKind::Process { .. }
            | CheckKind::Memory { .. }
            | CheckKind::Load { .. }
            | CheckKind::Link { .. }
            | CheckKind::Gateway { .. }
            | CheckKind::Tcp { .. }
            | CheckKind::Http { .. }
            | CheckKind::Command { .. }
            | CheckKind::Postgres { .. } => {}
        }
        let mut env = env;
        env.push(("UNDERSTUDY_CHECK".to_owned(), check.name.to_string()));
        Self {
            kind,
            timeout: check.timeout,
            env,
            connect: Some(connect),
            is_stuck: Arc::default(),
        }
    }

    /// Returns one for a built-in check, whose paths are those of this machine.
    pub(super) fn of_built_in(check: &understudy_config::Check) -> Self {
        Self {
            kind: check.kind.clone(),
            timeout: check.timeout,
            env: Vec::new(),
            connect: None,
            is_stuck: Arc::default(),
        }
    }

    /// Looks once. What takes too long is bad. Safe to cancel.
    pub(super) async fn look(&self) -> Look {
        // A command is given its time by what runs it, which ends it with its children.
        if let CheckKind::Command { command, user } = &self.kind {
            return self.command(command, user.as_deref()).await;
        }
        let looked = tokio::time::timeout(self.timeout, self.begin()).await;
        looked.unwrap_or_else(|_| bad(format!("no answer within {:?}", self.timeout)))
    }

    async fn begin(&self) -> Look {
        match &self.kind {
            CheckKind::Gateway { address } => network::gateway(*address).await,
            CheckKind::Tcp { host, port } => network::tcp(host, *port).await,
            CheckKind::Http {
                url,
                status,
                contains,
            } => network::http(url, *status, contains).await,
            CheckKind::Postgres { query, database } => self.postgres(query, database.clone()).await,
            CheckKind::Command { command, user } => self.command(command, user.as_deref()).await,
            CheckKind::Disk {
                path,
                least,
                recover,
                inodes,
            } => {
                let (path, least, recover, inodes): (PathBuf, _, _, _) =
                    (path.clone(), *least, *recover, *inodes);
                self.apart(move || local::disk(&path, least, recover, inodes))
                    .await
            }
            CheckKind::Memory { least, recover } => {
                let (least, recover) = (*least, *recover);
                self.apart(move || local::memory(least, recover)).await
            }
            CheckKind::Load { most, recover } => {
                let (most, recover) = (*most, *recover);
                self.apart(move || local::load(most, recover)).await
            }
            CheckKind::Link { interface } => {
                let interface = interface.clone();
                self.apart(move || local::link(&interface)).await
            }
            CheckKind::Process { process } => {
                let process = process.clone();
                self.apart(move || local::process(&process)).await
            }
            CheckKind::Mount {
                path,
                fstype,
                write,
            } => {
                let (path, fstype, write) = (path.clone(), fstype.clone(), *write);
                self.apart(move || local::mount(&path, fstype.as_deref(), write))
                    .await
            }
        }
    }

    /// Looks on a thread of its own, at most one at a time: a file system that is gone may keep it for ever,
    /// and nobody waits for it, not even the end of the daemon.
    async fn apart(&self, look: impl FnOnce() -> Look + Send + 'static) -> Look {
        if self.is_stuck.swap(true, Ordering::AcqRel) {
            return bad("an earlier look has not come back yet");
        }
        let (answer, answered) = tokio::sync::oneshot::channel();
        let under_way = UnderWay(self.is_stuck.clone());
        let thread = std::thread::Builder::new().name("check".to_owned());
        let spawned = thread.spawn(move || {
            let found = look();
            drop(under_way);
            // Nobody listens any more where it has taken too long.
            answer.send(found).unwrap_or_default();
        });
        if let Err(error) = spawned {
            return bad(format!("cannot start a thread: {error}"));
        }
        match answered.await {
            Ok(found) => found,
            // The thread has panicked. What it would have found is not known, which is not that it is bad.
            Err(_) => panic!("the thread of the look has broken"),
        }
    }

    async fn command(&self, argv: &[String], user: Option<&str>) -> Look {
        let mut command = Command::new(argv.to_vec()).limit(self.timeout);
        if let Some(user) = user {
            match OsUser::find(user) {
                Ok(user) => command = command.user(&user),
                Err(error) => return bad(error_chain(&error)),
            }
        }
        for (name, value) in &self.env {
            command = command.env(name, value.clone());
        }
        match command.run().await {
            Ok(output) => good(last_line(&output)),
            Err(
                error @ (CommandError::Failed { .. }
                | CommandError::TimedOut { .. }
                | CommandError::NoUser { .. }
                | CommandError::NotRoot { .. }
                | CommandError::Start { .. }),
            ) => bad(error_chain(&error)),
        }
    }

    /// Asks in a task of its own, at most one at a time: a connection lasts for as long as its query, also
    /// when nobody waits any more, and each look would leave one more.
    async fn postgres(&self, query: &str, database: Option<String>) -> Look {
        let Some(connect) = self.connect.clone() else {
            return bad("there is nothing to connect with");
        };
        if self.is_stuck.swap(true, Ordering::AcqRel) {
            return bad("an earlier look has not come back yet");
        }
        let under_way = UnderWay(self.is_stuck.clone());
        let (query, limit) = (query.to_owned(), self.timeout);
        let asked = tokio::spawn(async move {
            let look = ask_postgres(&connect, database, &query, limit).await;
            drop(under_way);
            look
        });
        match asked.await {
            Ok(found) => found,
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(_) => bad("the look was broken off"),
            },
        }
    }
}

/// A look that is under way for as long as this lives.
struct UnderWay(Arc<AtomicBool>);

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

async fn ask_postgres(
    connect: &Connect,
    database: Option<String>,
    query: &str,
    limit: Duration,
) -> Look {
    let client = match connect(database).await {
        Ok(client) => client,
        Err(error) => {
            return bad(format!(
                "Postgres takes no connection: {}",
                error_chain(&*error)
            ));
        }
    };
    // The server ends what nobody waits for. 0 would be no limit.
    let limit = format!("SET statement_timeout = {}", limit.as_millis().max(1));
    let asking = async {
        client.batch_execute(&limit).await?;
        // What it returns is not kept.
        client.batch_execute(query).await
    };
    match asking.await {
        Ok(()) => good("Postgres answers"),
        Err(error) => bad(format!(
            "Postgres does not answer the query: {}",
            error_chain(&error)
        )),
    }
}

fn last_line(output: &str) -> String {
    let mut lines = output.lines().rev().map(str::trim);
    lines
        .find(|line| !line.is_empty())
        .unwrap_or_default()
        .to_owned()
}
