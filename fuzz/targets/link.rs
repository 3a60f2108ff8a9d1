//! Any text of a peer is a message between nodes or refused.
#![no_main]

use libfuzzer_sys::fuzz_target;
use understudy_replication::link::{FenceAnswer, FenceRequest, Hello, StandbyReport};

fuzz_target!(|bytes: &[u8]| {
    let _ = serde_json::from_slice::<Hello>(bytes).is_ok();
    let _ = serde_json::from_slice::<StandbyReport>(bytes).is_ok();
    let _ = serde_json::from_slice::<FenceRequest>(bytes).is_ok();
    let _ = serde_json::from_slice::<FenceAnswer>(bytes).is_ok();
});
