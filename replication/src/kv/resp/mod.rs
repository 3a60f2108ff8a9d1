//! RESP, the protocol of Redis: what comes in and what goes out.

mod decode;
mod inline;
mod number;
mod reply;

pub(crate) use self::decode::SPANS_KEPT_MAX;
pub use self::decode::{Args, COMMAND_BYTES_MAX, Decoder, ProtocolError, Span};
pub(crate) use self::number::parse_integer;
pub use self::reply::{Protocol, REPLY_BYTES_MAX, Reply};
