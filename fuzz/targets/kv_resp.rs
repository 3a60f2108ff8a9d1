//! What clients send is found, or refused, in the same way however it is cut, and within its bounds.
#![no_main]

use libfuzzer_sys::fuzz_target;
use understudy_replication::kv::resp::{Args, COMMAND_BYTES_MAX, Decoder, ProtocolError};

type Command = Vec<Vec<u8>>;

/// Decodes what comes in pieces of `piece` bytes.
fn decode(bytes: &[u8], piece: usize, is_authenticated: bool) -> (Vec<Command>, Option<ProtocolError>) {
    let mut decoder = Decoder::default();
    let (mut buffer, mut commands) = (Vec::new(), Vec::new());
    for part in bytes.chunks(piece) {
        buffer.extend_from_slice(part);
        loop {
            match decoder.decode(&mut buffer, is_authenticated) {
                Ok(None) => break,
                Ok(Some(len)) => {
                    assert!(len > 0 && len <= buffer.len() && len <= COMMAND_BYTES_MAX + 2);
                    let args = Args::new(&buffer, decoder.spans());
                    assert!(args.bytes() <= len);
                    if !args.is_empty() {
                        commands.push(args.from(0).map(<[u8]>::to_vec).collect());
                    }
                    buffer.drain(..len);
                }
                Err(error) => return (commands, Some(error)),
            }
        }
    }
    (commands, None)
}

fuzz_target!(|input: &[u8]| {
    let [piece, mode, bytes @ ..] = input else {
        return;
    };
    let is_authenticated = mode % 2 == 0;
    let whole = decode(bytes, bytes.len().max(1), is_authenticated);
    let pieces = decode(bytes, usize::from(*piece) + 1, is_authenticated);
    assert_eq!(whole, pieces);
});
