//! What is kept of large files, as any bytes, is theirs or nothing.
#![no_main]

use libfuzzer_sys::fuzz_target;
use understudy_replication::files::{Chunks, Digest, Outboard};

fuzz_target!(|bytes: &[u8]| {
    let values: Vec<Vec<u8>> = bytes.chunks(4096).map(<[u8]>::to_vec).collect();
    let size = u64::try_from(bytes.len()).unwrap() * 256;
    // Of nothing, nothing is kept, and that is right.
    assert!(bytes.is_empty() || Outboard::decode(size, Digest::of(bytes), &values).is_none());
    let _chunks = Chunks::decode(size, &values);
});
