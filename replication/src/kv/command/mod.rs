//! The commands that a client may send.

pub(crate) mod error;
mod expiry;
mod glob;
mod hashes;
mod keys;
mod strings;

use self::error::CommandError;
pub use self::glob::{PATTERN_BYTES_MAX, is_match};
use super::resp::{Args, Reply};
use super::space::Space;

/// What became of a command: its answer was written, or there is an error to be written instead.
pub(crate) type Outcome = Result<(), CommandError>;

type OnKeys = fn(&mut Space<'_>, Args<'_>, &mut Reply) -> Outcome;

/// What a command runs on.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Run {
    /// On keys, which it does not change.
    Read(OnKeys),
    /// On keys, which it may change.
    Write(OnKeys),
    /// On the session with the client.
    Session(SessionCommand),
}

/// The commands that are about the session or the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SessionCommand {
    Auth,
    Client,
    Command,
    Config,
    Discard,
    Echo,
    Exec,
    Flush,
    Hello,
    Info,
    Multi,
    Ping,
    Quit,
    Reset,
    Role,
    Select,
    Unwatch,
    Wait,
    Watch,
}

/// Which arguments of a command are keys: the first, the last (from the end if below 0), and the step.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Keys {
    pub(crate) first: i8,
    pub(crate) last: i8,
    pub(crate) step: i8,
}

impl Keys {
    const NO: Self = Self::of(0, 0, 0);
    const ONE: Self = Self::of(1, 1, 1);
    const ALL: Self = Self::of(1, -1, 1);
    const PAIRS: Self = Self::of(1, -1, 2);

    const fn of(first: i8, last: i8, step: i8) -> Self {
        Self { first, last, step }
    }
}

/// A command.
#[derive(Debug)]
pub(crate) struct Command {
    /// In small letters.
    pub(crate) name: &'static str,
    /// How many arguments it has with its name; below 0, so many at least.
    pub(crate) arity: i8,
    pub(crate) keys: Keys,
    pub(crate) run: Run,
}

const fn command(name: &'static str, arity: i8, keys: Keys, run: Run) -> Command {
    Command {
        name,
        arity,
        keys,
        run,
    }
}

/// Every command, by name.
pub(crate) static COMMANDS: [Command; 66] = [
    command("append", 3, Keys::ONE, Run::Write(strings::append)),
    command("auth", -2, Keys::NO, Run::Session(SessionCommand::Auth)),
    command("client", -2, Keys::NO, Run::Session(SessionCommand::Client)),
    command(
        "command",
        -1,
        Keys::NO,
        Run::Session(SessionCommand::Command),
    ),
    command("config", -2, Keys::NO, Run::Session(SessionCommand::Config)),
    command("dbsize", 1, Keys::NO, Run::Read(keys::dbsize)),
    command("decr", 2, Keys::ONE, Run::Write(strings::decr)),
    command("decrby", 3, Keys::ONE, Run::Write(strings::decrby)),
    command("del", -2, Keys::ALL, Run::Write(keys::del)),
    command(
        "discard",
        1,
        Keys::NO,
        Run::Session(SessionCommand::Discard),
    ),
    command("echo", 2, Keys::NO, Run::Session(SessionCommand::Echo)),
    command("exec", 1, Keys::NO, Run::Session(SessionCommand::Exec)),
    command("exists", -2, Keys::ALL, Run::Read(keys::exists)),
    command("expire", -3, Keys::ONE, Run::Write(expiry::expire)),
    command("expireat", -3, Keys::ONE, Run::Write(expiry::expireat)),
    command("expiretime", 2, Keys::ONE, Run::Read(expiry::expiretime)),
    command(
        "flushall",
        -1,
        Keys::NO,
        Run::Session(SessionCommand::Flush),
    ),
    command("flushdb", -1, Keys::NO, Run::Session(SessionCommand::Flush)),
    command("get", 2, Keys::ONE, Run::Read(strings::get)),
    command("getdel", 2, Keys::ONE, Run::Write(strings::getdel)),
    command("getset", 3, Keys::ONE, Run::Write(strings::getset)),
    command("hdel", -3, Keys::ONE, Run::Write(hashes::hdel)),
    command("hello", -1, Keys::NO, Run::Session(SessionCommand::Hello)),
    command("hexists", 3, Keys::ONE, Run::Read(hashes::hexists)),
    command("hget", 3, Keys::ONE, Run::Read(hashes::hget)),
    command("hgetall", 2, Keys::ONE, Run::Read(hashes::hgetall)),
    command("hincrby", 4, Keys::ONE, Run::Write(hashes::hincrby)),
    command("hkeys", 2, Keys::ONE, Run::Read(hashes::hkeys)),
    command("hlen", 2, Keys::ONE, Run::Read(hashes::hlen)),
    command("hmget", -3, Keys::ONE, Run::Read(hashes::hmget)),
    command("hmset", -4, Keys::ONE, Run::Write(hashes::hmset)),
    command("hscan", -3, Keys::ONE, Run::Read(hashes::hscan)),
    command("hset", -4, Keys::ONE, Run::Write(hashes::hset)),
    command("hsetnx", 4, Keys::ONE, Run::Write(hashes::hsetnx)),
    command("hstrlen", 3, Keys::ONE, Run::Read(hashes::hstrlen)),
    command("hvals", 2, Keys::ONE, Run::Read(hashes::hvals)),
    command("incr", 2, Keys::ONE, Run::Write(strings::incr)),
    command("incrby", 3, Keys::ONE, Run::Write(strings::incrby)),
    command("info", -1, Keys::NO, Run::Session(SessionCommand::Info)),
    command("keys", 2, Keys::NO, Run::Read(keys::keys)),
    command("mget", -2, Keys::ALL, Run::Read(strings::mget)),
    command("mset", -3, Keys::PAIRS, Run::Write(strings::mset)),
    command("msetnx", -3, Keys::PAIRS, Run::Write(strings::msetnx)),
    command("multi", 1, Keys::NO, Run::Session(SessionCommand::Multi)),
    command("persist", 2, Keys::ONE, Run::Write(expiry::persist)),
    command("pexpire", -3, Keys::ONE, Run::Write(expiry::pexpire)),
    command("pexpireat", -3, Keys::ONE, Run::Write(expiry::pexpireat)),
    command("pexpiretime", 2, Keys::ONE, Run::Read(expiry::pexpiretime)),
    command("ping", -1, Keys::NO, Run::Session(SessionCommand::Ping)),
    command("psetex", 4, Keys::ONE, Run::Write(strings::psetex)),
    command("pttl", 2, Keys::ONE, Run::Read(expiry::pttl)),
    command("quit", -1, Keys::NO, Run::Session(SessionCommand::Quit)),
    command("reset", 1, Keys::NO, Run::Session(SessionCommand::Reset)),
    command("role", 1, Keys::NO, Run::Session(SessionCommand::Role)),
    command("scan", -2, Keys::NO, Run::Read(keys::scan)),
    command("select", 2, Keys::NO, Run::Session(SessionCommand::Select)),
    command("set", -3, Keys::ONE, Run::Write(strings::set)),
    command("setex", 4, Keys::ONE, Run::Write(strings::setex)),
    command("setnx", 3, Keys::ONE, Run::Write(strings::setnx)),
    command("strlen", 2, Keys::ONE, Run::Read(strings::strlen)),
    command("ttl", 2, Keys::ONE, Run::Read(expiry::ttl)),
    command("type", 2, Keys::ONE, Run::Read(keys::kind)),
    command("unlink", -2, Keys::ALL, Run::Write(keys::del)),
    command(
        "unwatch",
        1,
        Keys::NO,
        Run::Session(SessionCommand::Unwatch),
    ),
    command("wait", 3, Keys::NO, Run::Session(SessionCommand::Wait)),
    command("watch", -2, Keys::ALL, Run::Session(SessionCommand::Watch)),
];

/// How long the name of a command is at most, in bytes.
const NAME_BYTES_MAX: usize = 16;

impl Command {
    /// Returns the command of a name in any letters.
    pub(crate) fn named(name: &[u8]) -> Option<&'static Self> {
        let mut lower = [0; NAME_BYTES_MAX];
        let lower = lower.get_mut(..name.len())?;
        lower.copy_from_slice(name);
        lower.make_ascii_lowercase();
        let index = COMMANDS.binary_search_by(|command| command.name.as_bytes().cmp(lower));
        COMMANDS.get(index.ok()?)
    }

    /// Returns whether it can have so many arguments, its name included.
    pub(crate) fn takes(&self, count: usize) -> bool {
        let arity = usize::from(self.arity.unsigned_abs());
        if self.arity < 0 {
            count >= arity
        } else {
            count == arity
        }
    }

    /// Returns the keys among the arguments.
    pub(crate) fn keys<'a>(
        &self,
        args: Args<'a>,
    ) -> impl Iterator<Item = &'a [u8]> + Clone + use<'a> {
        let first = usize::try_from(self.keys.first).unwrap_or(0);
        let count = match self.keys {
            Keys { first: 0, .. } => 0,
            Keys { last: 1.., .. } => 1,
            Keys { .. } => usize::MAX,
        };
        let step = usize::try_from(self.keys.step).unwrap_or(1).max(1);
        args.from(first).step_by(step).take(count)
    }
}

/// Returns the error for a command that nobody knows.
pub(crate) fn unknown_command(args: Args<'_>) -> CommandError {
    let mut shown = String::new();
    for arg in args.from(1) {
        let Some(room @ 1..) = 128usize.checked_sub(shown.len()) else {
            break;
        };
        let arg = arg.get(..room).unwrap_or(arg);
        let end = arg.iter().position(|byte| *byte == 0).unwrap_or(arg.len());
        let arg = String::from_utf8_lossy(arg.get(..end).unwrap_or(arg));
        shown.push_str(&format!("'{arg}' "));
    }
    CommandError::Worded(format!(
        "ERR unknown command '{}', with args beginning with: {shown}",
        error::excerpt(args.at(0)),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_is_found_by_its_name() {
        for command in &COMMANDS {
            let upper = command.name.to_ascii_uppercase();
            assert_eq!(Command::named(upper.as_bytes()).unwrap().name, command.name);
        }
        assert!(Command::named(b"").is_none());
        assert!(Command::named(b"a name that is too long for a command").is_none());
    }
}
