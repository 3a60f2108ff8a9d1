//! Any frame is messages or refused, and takes no more memory than a frame may.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use understudy_replication::files::wire::{Message, unpack};

fuzz_target!(|bytes: &[u8]| {
    let mut frame = Bytes::copy_from_slice(bytes);
    let mut count = 0_usize;
    while let Ok(Some(message)) = unpack(&mut frame) {
        if let Message::Chunk(chunk) = message {
            count += chunk.len();
        }
        assert!(count <= 8 << 20);
    }
});
