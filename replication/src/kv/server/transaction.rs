//! `MULTI`, `EXEC` and `WATCH`.

use super::session::{Access, Need, Scene, Session};
use crate::kv::command::error::CommandError;
use crate::kv::command::{Command, Outcome, Run};
use crate::kv::operation::KV_ATOM_BYTES_MAX;
use crate::kv::resp::{Args, Reply, Span};
use crate::kv::space::SpaceError;

/// How many commands wait for `EXEC` at most.
const QUEUED_MAX: usize = 100_000;

/// How many keys a client watches at most.
const WATCHED_MAX: usize = 10_000;

/// What the arguments of the commands that wait take at most, in bytes, with where each of them lies.
const QUEUED_BYTES_MAX: usize = KV_ATOM_BYTES_MAX;

/// Commands that wait for `EXEC`.
#[derive(Debug, Default)]
pub(super) struct Transaction {
    /// One of its commands was no command, so `EXEC` will not run any.
    pub(super) is_spoiled: bool,
    bytes: Vec<u8>,
    spans: Vec<Span>,
    /// Each with the end of its arguments.
    commands: Vec<(&'static Command, usize)>,
    need: Need,
}

impl Transaction {
    /// Returns how many bytes there would be with these arguments.
    fn bytes_kept(&self, more: Args<'_>) -> usize {
        let spans = self.spans.len().saturating_add(more.len());
        let bytes = self.bytes.len().saturating_add(more.bytes());
        bytes.saturating_add(spans.saturating_mul(size_of::<Span>()))
    }

    pub(super) fn queue(
        &mut self,
        command: &'static Command,
        need: Need,
        args: Args<'_>,
        reply: &mut Reply,
    ) -> Outcome {
        let has_room =
            self.commands.len() < QUEUED_MAX && self.bytes_kept(args) <= QUEUED_BYTES_MAX;
        if !has_room {
            self.is_spoiled = true;
            return Err(SpaceError::TooLarge.into());
        }
        for arg in args.from(0) {
            let start = self.bytes.len();
            self.bytes.extend_from_slice(arg);
            self.spans.push(start..self.bytes.len());
        }
        self.commands.push((command, self.spans.len()));
        self.need = self.need.and(need);
        reply.simple("QUEUED");
        Ok(())
    }
}

impl Session {
    pub(super) fn need_of_exec(&self, transaction: &Transaction) -> Need {
        if transaction.is_spoiled {
            return Need::default();
        }
        let watched = Need {
            access: if self.watches.is_empty() {
                Access::None
            } else {
                Access::Write
            },
            ..Need::default()
        };
        transaction.need.and(watched)
    }

    pub(super) fn multi(&mut self, reply: &mut Reply) -> Outcome {
        if self.transaction.is_some() {
            return Err(CommandError::Other("MULTI calls can not be nested"));
        }
        self.transaction = Some(Transaction::default());
        reply.ok();
        Ok(())
    }

    pub(super) fn discard(&mut self, reply: &mut Reply) -> Outcome {
        let transaction = self.transaction.take();
        transaction.ok_or(CommandError::Other("DISCARD without MULTI"))?;
        self.watches.clear();
        reply.ok();
        Ok(())
    }

    pub(super) fn watch(
        &mut self,
        args: Args<'_>,
        scene: &mut Scene<'_, '_>,
        reply: &mut Reply,
    ) -> Outcome {
        if self.transaction.is_some() {
            return Err(CommandError::Other("WATCH inside MULTI is not allowed"));
        }
        let keys = args.from(1);
        if self.watches.len().saturating_add(keys.len()) > WATCHED_MAX {
            return Err(CommandError::Other(
                "too many keys are watched; EXEC or UNWATCH first",
            ));
        }
        let space = scene.space.as_mut().ok_or(SpaceError::ReadOnly)?;
        for key in keys {
            self.watches.push(space.watch(key)?);
        }
        reply.ok();
        Ok(())
    }

    pub(super) fn exec(&mut self, scene: &mut Scene<'_, '_>, reply: &mut Reply) -> Outcome {
        let transaction = self.transaction.take();
        let transaction = transaction.ok_or(CommandError::Other("EXEC without MULTI"))?;
        let watches = std::mem::take(&mut self.watches);
        if transaction.is_spoiled {
            let text = "EXECABORT Transaction discarded because of previous errors.";
            return Err(CommandError::Worded(text.to_owned()));
        }
        if !watches.is_empty() {
            let space = scene.space.as_mut().ok_or(SpaceError::ReadOnly)?;
            if watches.iter().any(|watch| space.is_touched(watch)) {
                reply.null_array();
                return Ok(());
            }
        }
        reply.array(transaction.commands.len());
        let mut start = 0;
        for (command, end) in transaction.commands {
            let spans = transaction.spans.get(start..end).unwrap_or_default();
            let args = Args::new(&transaction.bytes, spans);
            start = end;
            if reply.is_cut() && matches!(command.run, Run::Read(_)) {
                // Nobody will get what it would read; what changes something has to go on.
                continue;
            }
            let outcome = reply.part(|reply| self.execute(command, args, scene, reply));
            if let Err(error) = outcome {
                reply.error(&error);
            }
        }
        Ok(())
    }
}
