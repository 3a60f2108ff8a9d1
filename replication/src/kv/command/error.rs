//! Why a command is not done, in the words of Redis.

use crate::kv::space::SpaceError;

/// Why a command is not done. `Display` is the text that the client gets.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum CommandError {
    #[error(transparent)]
    Space(#[from] SpaceError),
    #[error("ERR wrong number of arguments for '{0}' command")]
    Arity(&'static str),
    #[error("ERR syntax error")]
    Syntax,
    #[error("ERR value is not an integer or out of range")]
    NotAnInteger,
    #[error("ERR hash value is not an integer")]
    FieldNotAnInteger,
    #[error("ERR increment or decrement would overflow")]
    Overflow,
    #[error("ERR decrement would overflow")]
    NegationOverflow,
    #[error("ERR invalid expire time in '{0}' command")]
    InvalidExpiry(&'static str),
    #[error("ERR invalid cursor")]
    InvalidCursor,
    #[error("ERR Unsupported option {0}")]
    UnsupportedOption(String),
    #[error("ERR NX and XX, GT or LT options at the same time are not compatible")]
    NxWithOthers,
    #[error("ERR GT and LT options at the same time are not compatible")]
    GtWithLt,
    #[error("ERR DB index is out of range")]
    NoSuchDatabase,
    #[error("ERR unknown subcommand '{subcommand}'. Try {command} HELP.")]
    UnknownSubcommand {
        command: &'static str,
        subcommand: String,
    },
    #[error("ERR {0}")]
    Other(&'static str),
    #[error("{0}")]
    Worded(String),
}

/// Returns at most 128 bytes of what a client sent, for an error.
pub(crate) fn excerpt(bytes: &[u8]) -> String {
    let shown = bytes.get(..128).unwrap_or(bytes);
    let end = shown.iter().position(|byte| *byte == 0);
    String::from_utf8_lossy(shown.get(..end.unwrap_or(shown.len())).unwrap_or(shown)).into_owned()
}
