//! What a client has said so far, and what its commands do.

use std::fmt;
use std::sync::Arc;

use super::Shared;
use super::client::Client;
use super::transaction::Transaction;
use crate::kv::command::error::CommandError;
use crate::kv::command::{Command, Outcome, Run, SessionCommand, unknown_command};
use crate::kv::draft::Watch;
use crate::kv::keyspace::{Refusal, Standing};
use crate::kv::resp::{Args, Reply};
use crate::kv::space::{Space, SpaceError};
use crate::position::Position;

/// What of the store a command runs on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Access {
    /// Nothing.
    #[default]
    None,
    /// What is visible.
    Read,
    /// The newest state.
    Write,
}

/// What a command needs before it can run.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Need {
    pub(super) access: Access,
    /// It asks what the node is.
    pub(super) standing: bool,
    /// It waits for standbys.
    pub(super) waits: bool,
    /// Where the store is not there or refuses, it has something to tell all the same.
    pub(super) does_without: bool,
}

impl Need {
    fn access(access: Access) -> Self {
        Self {
            access,
            ..Self::default()
        }
    }

    fn with_standing(self) -> Self {
        Self {
            standing: true,
            ..self
        }
    }

    /// Returns what both need together.
    pub(super) fn and(self, other: Self) -> Self {
        Self {
            access: self.access.max(other.access),
            standing: self.standing || other.standing,
            waits: false,
            does_without: false,
        }
    }
}

/// A session with a client.
pub(super) struct Session {
    pub(super) shared: Arc<Shared>,
    pub(super) client: Arc<Client>,
    pub(super) is_authenticated: bool,
    pub(super) transaction: Option<Transaction>,
    pub(super) watches: Vec<Watch>,
    /// The position behind the last that the client has written.
    pub(super) last_write: Position,
    /// Why no write is taken, if that was so when the commands at hand came in.
    pub(super) refuses_writes: Option<Refusal>,
    /// The client has said goodbye.
    pub(super) is_closing: bool,
    /// The client has told a wrong password, and waits a little for the answer.
    pub(super) is_suspect: bool,
}

/// What a command can see of the store while it runs: what [`Session::need`] has told.
pub(super) struct Scene<'s, 'a> {
    pub(super) space: Option<&'s mut Space<'a>>,
    pub(super) standing: Option<&'s Standing>,
}

impl Session {
    pub(super) fn new(shared: Arc<Shared>, client: Arc<Client>) -> Self {
        Self {
            is_authenticated: shared.options.password.is_none(),
            shared,
            client,
            transaction: None,
            watches: Vec::new(),
            last_write: Position(0),
            refuses_writes: None,
            is_closing: false,
            is_suspect: false,
        }
    }

    /// Returns what a command needs, if it were the next.
    pub(super) fn need(&self, command: Option<&'static Command>, args: Args<'_>) -> Need {
        let Ok(command) = self.admit(command, args) else {
            return Need::default();
        };
        match &self.transaction {
            Some(_) if is_queued(command) => Need::default(),
            Some(transaction) if is(command, SessionCommand::Exec) => {
                self.need_of_exec(transaction)
            }
            Some(_) | None => need_of(command),
        }
    }

    /// Runs a command, and writes its answer.
    pub(super) fn run(
        &mut self,
        command: Option<&'static Command>,
        args: Args<'_>,
        scene: &mut Scene<'_, '_>,
        reply: &mut Reply,
    ) {
        let command = match self.admit(command, args) {
            Ok(command) => command,
            Err(error) => {
                if let Some(transaction) = &mut self.transaction {
                    transaction.is_spoiled = true;
                }
                let is_exec = command.is_some_and(|command| is(command, SessionCommand::Exec));
                reply.answer(|_| Err(if is_exec { self.abort(&error) } else { error }));
                return;
            }
        };
        match &mut self.transaction {
            Some(transaction) if is_queued(command) => {
                let need = need_of(command);
                match &self.refuses_writes {
                    Some(refusal) if need.access == Access::Write => {
                        transaction.is_spoiled = true;
                        reply.answer(|_| Err(refusal));
                    }
                    Some(_) | None => {
                        reply.answer(|reply| transaction.queue(command, need, args, reply));
                    }
                }
            }
            Some(_) | None => reply.answer(|reply| self.execute(command, args, scene, reply)),
        }
    }

    /// Tells that a command was refused by the store.
    pub(super) fn refuse(
        &mut self,
        command: Option<&'static Command>,
        refusal: &Refusal,
        reply: &mut Reply,
    ) {
        let is_exec = command.is_some_and(|command| is(command, SessionCommand::Exec));
        let error = if is_exec {
            self.abort(refusal)
        } else {
            CommandError::Worded(refusal.to_string())
        };
        reply.answer(|_| Err(error));
    }

    /// Forgets the transaction, and returns the answer to its `EXEC`.
    fn abort(&mut self, reason: &dyn fmt::Display) -> CommandError {
        self.transaction = None;
        self.watches.clear();
        let reason = reason.to_string();
        let reason = reason.strip_prefix("ERR ").unwrap_or(&reason);
        CommandError::Worded(format!(
            "EXECABORT Transaction discarded because of: {reason}"
        ))
    }

    /// Does what a command says, without regard to a transaction.
    pub(super) fn execute(
        &mut self,
        command: &'static Command,
        args: Args<'_>,
        scene: &mut Scene<'_, '_>,
        reply: &mut Reply,
    ) -> Outcome {
        match command.run {
            Run::Read(run) | Run::Write(run) => {
                let space = scene.space.as_mut().ok_or(SpaceError::ReadOnly)?;
                run(space, args, reply)
            }
            Run::Session(SessionCommand::Auth) => self.auth(args, reply),
            Run::Session(SessionCommand::Client) => self.client_command(args, reply),
            Run::Session(SessionCommand::Command) => super::describe::command(args, reply),
            Run::Session(SessionCommand::Config) => super::describe::config(args, reply),
            Run::Session(SessionCommand::Discard) => self.discard(reply),
            Run::Session(SessionCommand::Echo) => {
                reply.bulk(args.at(1));
                Ok(())
            }
            Run::Session(SessionCommand::Exec) => self.exec(scene, reply),
            Run::Session(SessionCommand::Flush) => flush(args, scene, reply),
            Run::Session(SessionCommand::Hello) => self.hello(args, scene.standing, reply),
            Run::Session(SessionCommand::Info) => self.info(args, scene, reply),
            Run::Session(SessionCommand::Multi) => self.multi(reply),
            Run::Session(SessionCommand::Ping) => ping(args, reply),
            Run::Session(SessionCommand::Quit) => {
                self.is_closing = true;
                reply.ok();
                Ok(())
            }
            Run::Session(SessionCommand::Reset) => self.reset(reply),
            Run::Session(SessionCommand::Role) => super::info::role(scene.standing, reply),
            Run::Session(SessionCommand::Select) => super::greet::select(args, reply),
            Run::Session(SessionCommand::Unwatch) => {
                self.watches.clear();
                reply.ok();
                Ok(())
            }
            Run::Session(SessionCommand::Wait) => self.wait_in_transaction(args, scene, reply),
            Run::Session(SessionCommand::Watch) => self.watch(args, scene, reply),
        }
    }

    /// Returns the command if the client may send it, as it is.
    fn admit(
        &self,
        command: Option<&'static Command>,
        args: Args<'_>,
    ) -> Result<&'static Command, CommandError> {
        let command = command.ok_or_else(|| unknown_command(args))?;
        if !command.takes(args.len()) {
            return Err(CommandError::Arity(command.name));
        }
        if !self.is_authenticated && !is_for_strangers(command) {
            let text = "NOAUTH Authentication required.";
            return Err(CommandError::Worded(text.to_owned()));
        }
        Ok(command)
    }
}

pub(super) fn is(command: &Command, wanted: SessionCommand) -> bool {
    matches!(command.run, Run::Session(own) if own == wanted)
}

/// Whether somebody may send it who has not told the password.
fn is_for_strangers(command: &Command) -> bool {
    use SessionCommand::{Auth, Hello, Quit, Reset};
    matches!(command.run, Run::Session(Auth | Hello | Quit | Reset))
}

/// Whether it waits for `EXEC`.
fn is_queued(command: &Command) -> bool {
    use SessionCommand::{Discard, Exec, Multi, Quit, Reset, Watch};
    !matches!(
        command.run,
        Run::Session(Discard | Exec | Multi | Quit | Reset | Watch)
    )
}

/// Returns what a command needs outside a transaction.
fn need_of(command: &Command) -> Need {
    let session = match command.run {
        Run::Read(_) => return Need::access(Access::Read),
        Run::Write(_) => return Need::access(Access::Write),
        Run::Session(session) => session,
    };
    match session {
        SessionCommand::Flush => Need::access(Access::Write).with_standing(),
        SessionCommand::Info => Need {
            does_without: true,
            ..Need::access(Access::Read).with_standing()
        },
        SessionCommand::Watch => Need::access(Access::Write),
        SessionCommand::Hello => Need {
            does_without: true,
            ..Need::default().with_standing()
        },
        SessionCommand::Role => Need::default().with_standing(),
        SessionCommand::Wait => Need {
            waits: true,
            ..Need::default().with_standing()
        },
        SessionCommand::Auth
        | SessionCommand::Client
        | SessionCommand::Command
        | SessionCommand::Config
        | SessionCommand::Discard
        | SessionCommand::Echo
        | SessionCommand::Exec
        | SessionCommand::Multi
        | SessionCommand::Ping
        | SessionCommand::Quit
        | SessionCommand::Reset
        | SessionCommand::Select
        | SessionCommand::Unwatch => Need::default(),
    }
}

fn ping(args: Args<'_>, reply: &mut Reply) -> Outcome {
    match args.len() {
        1 => reply.simple("PONG"),
        2 => reply.bulk(args.at(1)),
        _ => return Err(CommandError::Arity("ping")),
    }
    Ok(())
}

fn flush(args: Args<'_>, scene: &mut Scene<'_, '_>, reply: &mut Reply) -> Outcome {
    let is_plain = match args.len() {
        1 => true,
        2 => {
            let how = args.at(1).to_ascii_uppercase();
            how == b"ASYNC" || how == b"SYNC"
        }
        _ => false,
    };
    if !is_plain {
        return Err(CommandError::Syntax);
    }
    if !scene.standing.is_some_and(|standing| standing.allows_flush) {
        return Err(CommandError::Other(
            "this would remove every key on all nodes; it is allowed by `allow_flush = true` in [kv] only",
        ));
    }
    scene.space.as_mut().ok_or(SpaceError::ReadOnly)?.clear()?;
    reply.ok();
    Ok(())
}
