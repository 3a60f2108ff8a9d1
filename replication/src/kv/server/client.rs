//! `CLIENT`, and what is known of one.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::session::Session;
use crate::kv::command::Outcome;
use crate::kv::command::error::{CommandError, excerpt};
use crate::kv::resp::{Args, Protocol, Reply};

/// What clients call themselves at most, in bytes.
const NAME_BYTES_MAX: usize = 1 << 10;

/// What is known of a client, for others to see.
#[derive(Debug)]
pub(super) struct Client {
    pub(super) id: u64,
    peer: SocketAddr,
    local: Option<SocketAddr>,
    since: Instant,
    name: Mutex<Vec<u8>>,
    /// When it was last heard, in seconds since it came.
    heard: AtomicU64,
    is_resp3: AtomicBool,
}

impl Client {
    pub(super) fn new(id: u64, peer: SocketAddr, local: Option<SocketAddr>) -> Self {
        Self {
            id,
            peer,
            local,
            since: Instant::now(),
            name: Mutex::default(),
            heard: AtomicU64::new(0),
            is_resp3: AtomicBool::new(false),
        }
    }

    /// Notes that it was heard now.
    pub(super) fn heard(&self, protocol: Protocol) {
        let seconds = self.since.elapsed().as_secs();
        self.heard.store(seconds, Ordering::Relaxed);
        let is_resp3 = protocol == Protocol::Three;
        self.is_resp3.store(is_resp3, Ordering::Relaxed);
    }

    fn name(&self) -> MutexGuard<'_, Vec<u8>> {
        self.name.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn set_name(&self, name: &[u8]) -> Result<(), CommandError> {
        if !name.iter().all(|byte| (b'!'..=b'~').contains(byte)) {
            return Err(CommandError::Other(
                "Client names cannot contain spaces, newlines or special characters.",
            ));
        }
        if name.len() > NAME_BYTES_MAX {
            return Err(CommandError::Other("Client names cannot be so long."));
        }
        *self.name() = name.to_vec();
        Ok(())
    }

    /// Writes it as `CLIENT LIST` shows it.
    fn line(&self) -> String {
        let age = self.since.elapsed().as_secs();
        let idle = age.saturating_sub(self.heard.load(Ordering::Relaxed));
        let local = self
            .local
            .map_or_else(String::new, |local| local.to_string());
        let name = String::from_utf8_lossy(&self.name()).into_owned();
        let resp = if self.is_resp3.load(Ordering::Relaxed) {
            3
        } else {
            2
        };
        format!(
            "id={} addr={} laddr={local} name={name} age={age} idle={idle} flags=N db=0 user=default resp={resp}\n",
            self.id, self.peer,
        )
    }
}

impl Session {
    pub(super) fn client_command(&mut self, args: Args<'_>, reply: &mut Reply) -> Outcome {
        let subcommand = args.at(1).to_ascii_uppercase();
        let takes = |count: usize, name: &'static str| {
            if args.len() == count {
                Ok(())
            } else {
                Err(CommandError::Arity(name))
            }
        };
        match &subcommand[..] {
            b"ID" => {
                takes(2, "client|id")?;
                reply.integer(i64::try_from(self.client.id).unwrap_or(i64::MAX));
            }
            b"GETNAME" => {
                takes(2, "client|getname")?;
                let name = self.client.name();
                reply.bulk_or_null((!name.is_empty()).then_some(&name));
            }
            b"SETNAME" => {
                takes(3, "client|setname")?;
                self.client.set_name(args.at(2))?;
                reply.ok();
            }
            b"SETINFO" => {
                takes(4, "client|setinfo")?;
                reply.ok();
            }
            b"NO-EVICT" | b"NO-TOUCH" => {
                takes(3, "client|no-evict")?;
                match &args.at(2).to_ascii_uppercase()[..] {
                    b"ON" | b"OFF" => reply.ok(),
                    _ => return Err(CommandError::Syntax),
                }
            }
            b"INFO" => {
                takes(2, "client|info")?;
                reply.verbatim(&self.client.line());
            }
            b"LIST" => {
                takes(2, "client|list")?;
                let clients: Vec<_> = self.shared.clients().values().cloned().collect();
                let lines: String = clients.iter().map(|client| client.line()).collect();
                reply.verbatim(&lines);
            }
            _ => {
                return Err(CommandError::UnknownSubcommand {
                    command: "CLIENT",
                    subcommand: excerpt(args.at(1)),
                });
            }
        }
        Ok(())
    }
}
