//! Any request for contents is one whose paths lie within the store, or refused.
#![no_main]

use libfuzzer_sys::fuzz_target;
use understudy_replication::files::wire::Wanted;

fuzz_target!(|bytes: &[u8]| {
    let Ok(wanted) = postcard::from_bytes::<Vec<Wanted>>(bytes) else {
        return;
    };
    for wanted in wanted {
        assert!(wanted.path.names().all(|name| !name.is_empty() && name != b".." && name != b"."));
    }
});
