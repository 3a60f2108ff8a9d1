//! Who the client is, and how it wants to be spoken to.

use super::info::loading;
use super::session::Session;
use crate::kv::command::Outcome;
use crate::kv::command::error::{CommandError, excerpt};
use crate::kv::keyspace::Standing;
use crate::kv::resp::{Args, Protocol, Reply, parse_integer};

/// The version of Redis whose commands and answers these are.
pub(super) const REDIS_VERSION: &str = "7.0.15";

/// The only user there is.
const USER: &[u8] = b"default";

const WRONG_PASSWORD: &str = "WRONGPASS invalid username-password pair or user is disabled.";

impl Session {
    pub(super) fn auth(&mut self, args: Args<'_>, reply: &mut Reply) -> Outcome {
        let (user, password) = match args.len() {
            2 if self.shared.options.password.is_none() => {
                return Err(CommandError::Other(
                    "AUTH <password> called without any password configured for the default user. Are you sure \
                     your configuration is correct?",
                ));
            }
            2 => (USER, args.at(1)),
            3 => (args.at(1), args.at(2)),
            _ => return Err(CommandError::Syntax),
        };
        self.authenticate(user, password)?;
        reply.ok();
        Ok(())
    }

    fn authenticate(&mut self, user: &[u8], told: &[u8]) -> Result<(), CommandError> {
        let password = self.shared.options.password.as_ref();
        if user != USER || !password.is_none_or(|password| password.is(told)) {
            self.is_suspect = true;
            return Err(CommandError::Worded(WRONG_PASSWORD.to_owned()));
        }
        self.is_authenticated = true;
        Ok(())
    }

    pub(super) fn hello(
        &mut self,
        args: Args<'_>,
        standing: Option<&Standing>,
        reply: &mut Reply,
    ) -> Outcome {
        let mut protocol = reply.protocol;
        if let Some(version) = args.get(1) {
            let Some(version) = parse_integer(version) else {
                return Err(CommandError::Other(
                    "Protocol version is not an integer or out of range",
                ));
            };
            protocol = match version {
                2 => Protocol::Two,
                3 => Protocol::Three,
                _ => {
                    let text = "NOPROTO unsupported protocol version";
                    return Err(CommandError::Worded(text.to_owned()));
                }
            };
        }
        let mut words = args.from(2);
        let (mut login, mut name) = (None, None);
        while let Some(word) = words.next() {
            let left = words.len();
            match &word.to_ascii_uppercase()[..] {
                b"AUTH" if left >= 2 => login = words.next().zip(words.next()),
                b"SETNAME" if left >= 1 => name = words.next(),
                _ => {
                    return Err(CommandError::Worded(format!(
                        "ERR Syntax error in HELLO option '{}'",
                        excerpt(word)
                    )));
                }
            }
        }
        if let Some((user, password)) = login {
            self.authenticate(user, password)?;
        }
        if !self.is_authenticated {
            return Err(CommandError::Worded(
                "NOAUTH HELLO must be called with the client already authenticated, otherwise the HELLO <proto> AUTH \
                 <user> <pass> option can be used to authenticate the client and select the RESP protocol version at \
                 the same time"
                    .to_owned(),
            ));
        }
        // Who does not know the password does not hear how the store is.
        let is_primary = standing.ok_or_else(loading)?.is_primary;
        if let Some(name) = name {
            self.client.set_name(name)?;
        }
        reply.protocol = protocol;
        reply.map(7);
        reply.bulk(b"server");
        reply.bulk(b"redis");
        reply.bulk(b"version");
        reply.bulk(REDIS_VERSION.as_bytes());
        reply.bulk(b"proto");
        reply.integer(match protocol {
            Protocol::Two => 2,
            Protocol::Three => 3,
        });
        reply.bulk(b"id");
        reply.integer(i64::try_from(self.client.id).unwrap_or(i64::MAX));
        reply.bulk(b"mode");
        reply.bulk(b"standalone");
        reply.bulk(b"role");
        reply.bulk(if is_primary { b"master" } else { b"replica" });
        reply.bulk(b"modules");
        reply.array(0);
        Ok(())
    }

    pub(super) fn reset(&mut self, reply: &mut Reply) -> Outcome {
        self.transaction = None;
        self.watches.clear();
        self.is_authenticated = self.shared.options.password.is_none();
        self.client.set_name(b"")?;
        reply.protocol = Protocol::Two;
        reply.simple("RESET");
        Ok(())
    }
}

pub(super) fn select(args: Args<'_>, reply: &mut Reply) -> Outcome {
    let number = parse_integer(args.at(1)).ok_or(CommandError::NotAnInteger)?;
    match i32::try_from(number) {
        Ok(0) => reply.ok(),
        Ok(_) => return Err(CommandError::NoSuchDatabase),
        Err(_) => {
            return Err(CommandError::Other(
                "value is out of range, value must between -2147483648 and 2147483647",
            ));
        }
    }
    Ok(())
}
