//! A sealed room: processes in it have no network but a loopback of their own, see no process, socket or
//! certificate of the node, and are gone with the room, whatever they have tried to become.
//!
//! ```text
//! daemon ──▶ enter   makes the namespaces: network, processes, mounts, shared memory, host name
//!              └──▶ first   process 1 of the room: builds its walls, waits for whoever is left behind
//!                     └──▶ work   runs one order after the other; ends when the daemon's end of its input does
//! ```
//! All three are this program under another verb. When process 1 ends, the kernel ends every process of the
//! room with it, and its mounts, sockets and shared memory go with the last of them: nothing has to be found
//! and ended one by one, and a daemon that is killed leaves nothing behind.

mod inside;
mod loopback;
mod work;

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use understudy_replication::command::OsUser;

pub use inside::{SealStage, sealed};

/// The walls are up within this time.
const BUILD_PATIENCE: Duration = Duration::from_secs(20);

/// An answer may come so much later than its order's limit: what hangs is killed first.
const ANSWER_PATIENCE: Duration = Duration::from_secs(30);

/// The room is empty within this time after the word to end.
const END_PATIENCE: Duration = Duration::from_secs(20);

/// How the room differs from the machine around it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Walls {
    /// The folder that stays visible, and can be written, whatever lies over it.
    pub open: PathBuf,
    /// Folders that are empty in the room.
    pub hidden: Vec<PathBuf>,
    /// What of the copy is seen in the place of the machine's own: the copy, then the place.
    pub replaced: Vec<(PathBuf, PathBuf)>,
}

/// Something to be run in the room.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Order {
    /// The program and its arguments.
    pub argv: Vec<String>,
    /// The user that it runs as; without one, as the daemon's.
    pub user: Option<Resident>,
    /// Variables that it finds.
    pub environment: Vec<(String, String)>,
    /// How long it may run, in milliseconds.
    pub limit_ms: u64,
}

/// A user, who was looked up outside: what answers that may be hidden in the room.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resident {
    name: String,
    uid: u32,
    gid: u32,
    home: PathBuf,
}

impl From<&OsUser> for Resident {
    fn from(user: &OsUser) -> Self {
        Self {
            name: user.name.clone(),
            uid: user.uid,
            gid: user.gid,
            home: user.home.clone(),
        }
    }
}

impl From<Resident> for OsUser {
    fn from(user: Resident) -> Self {
        Self {
            name: user.name,
            uid: user.uid,
            gid: user.gid,
            home: user.home,
        }
    }
}

impl Order {
    /// Returns an order that runs as the daemon's user.
    pub fn new(argv: impl IntoIterator<Item = impl Into<String>>, limit: Duration) -> Self {
        Self {
            argv: argv.into_iter().map(Into::into).collect(),
            user: None,
            environment: Vec::new(),
            limit_ms: u64::try_from(limit.as_millis()).unwrap_or(u64::MAX),
        }
    }

    /// Runs it as `user`.
    #[must_use]
    pub fn user(mut self, user: &OsUser) -> Self {
        self.user = Some(user.into());
        self
    }

    /// Adds variables.
    #[must_use]
    pub fn environment(mut self, environment: &[(String, String)]) -> Self {
        self.environment.extend_from_slice(environment);
        self
    }

    fn limit(&self) -> Duration {
        Duration::from_millis(self.limit_ms)
    }
}

/// How an order ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Answer {
    /// The walls are up; said once, first.
    Ready,
    /// It succeeded, and printed this.
    Done(String),
    /// It ended with this status, and printed that.
    Failed {
        /// `None` if a signal has ended it, or it never ran.
        status: Option<i32>,
        /// What happened, in a sentence.
        message: String,
        /// What it printed.
        output: String,
    },
}

/// Why nothing could be run in the room, or what was run failed.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// The room cannot be made.
    #[error("cannot seal a room for the rehearsal; it needs the daemon to be root, and namespaces")]
    Make(#[source] std::io::Error),
    /// It was not made in time, or has ended.
    #[error("the sealed room of the rehearsal has ended: {said}")]
    Ended {
        /// What was said last.
        said: String,
    },
    /// An order took far too long.
    #[error("`{program}` did not end, and is ended with the room")]
    Late {
        /// The program.
        program: String,
    },
    /// An order failed.
    #[error("{message}")]
    Failed {
        /// Its exit status, if it has one.
        status: Option<i32>,
        /// What happened.
        message: String,
        /// What it printed.
        output: String,
    },
    /// An order or an answer is none.
    #[error("the sealed room of the rehearsal said something that cannot be understood")]
    Malformed(#[from] serde_json::Error),
}

/// A sealed room. Dropping it ends everything in it.
#[derive(Debug)]
pub struct Seal {
    outer: Child,
    orders: Option<ChildStdin>,
    answers: Lines<BufReader<ChildStdout>>,
}

impl Seal {
    /// Makes a room. `program` is this program, which understands the verb `sealed`.
    ///
    /// # Errors
    /// When the room cannot be made.
    pub async fn make(program: &str, walls: &Walls) -> Result<Self, SealError> {
        let mut outer = Command::new(program)
            .args(["sealed", "enter"])
            .arg(serde_json::to_string(walls)?)
            .env_remove("NOTIFY_SOCKET")
            .env_remove("UNDERSTUDY_TOKEN")
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            // Who signals the daemon's group (a terminal) leaves the end of the room to the daemon.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(SealError::Make)?;
        let gone = || SealError::Make(std::io::ErrorKind::BrokenPipe.into());
        let orders = outer.stdin.take().ok_or_else(gone)?;
        let answers = BufReader::new(outer.stdout.take().ok_or_else(gone)?).lines();
        let mut seal = Self {
            outer,
            orders: Some(orders),
            answers,
        };
        match seal.answer(BUILD_PATIENCE, "the room").await? {
            Answer::Ready => Ok(seal),
            Answer::Done(said) | Answer::Failed { message: said, .. } => {
                Err(SealError::Make(std::io::Error::other(said)))
            }
        }
    }

    /// Runs something in the room to its end, and returns what it printed.
    ///
    /// # Errors
    /// When it fails, takes too long, or the room has ended. Orders come one after the other: a future that
    /// was dropped in the middle leaves a room that is to be dropped, too.
    pub async fn run(&mut self, order: &Order) -> Result<String, SealError> {
        let ended = |error: &dyn std::fmt::Display| SealError::Ended {
            said: error.to_string(),
        };
        let mut line = serde_json::to_string(order)?;
        line.push('\n');
        let orders = self.orders.as_mut().ok_or_else(|| ended(&"it was left"))?;
        orders
            .write_all(line.as_bytes())
            .await
            .map_err(|error| ended(&error))?;
        let program = order.argv.first().cloned().unwrap_or_default();
        match self
            .answer(order.limit() + ANSWER_PATIENCE, &program)
            .await?
        {
            Answer::Done(output) => Ok(output),
            Answer::Failed {
                status,
                message,
                output,
            } => Err(SealError::Failed {
                status,
                message,
                output,
            }),
            Answer::Ready => Err(ended(&"it was made again")),
        }
    }

    async fn answer(&mut self, limit: Duration, program: &str) -> Result<Answer, SealError> {
        let line = tokio::time::timeout(limit, self.answers.next_line()).await;
        let line = line.map_err(|_| SealError::Late {
            program: program.to_owned(),
        })?;
        match line {
            Ok(Some(line)) => Ok(serde_json::from_str(&line)?),
            Ok(None) => Err(SealError::Ended {
                said: "see the log of the daemon".to_owned(),
            }),
            Err(error) => Err(SealError::Ended {
                said: error.to_string(),
            }),
        }
    }

    /// Ends everything in the room, and waits until it is gone; returns whether it is.
    pub async fn end(mut self) -> bool {
        drop(self.orders.take());
        if tokio::time::timeout(END_PATIENCE, self.outer.wait())
            .await
            .is_ok()
        {
            return true;
        }
        tracing::warn!("a sealed room did not end by itself, and is killed");
        // Process 1 of the room goes with its parent, and everything with it.
        tokio::time::timeout(END_PATIENCE, self.outer.kill())
            .await
            .is_ok_and(|killed| killed.is_ok())
    }
}
