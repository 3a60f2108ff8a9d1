//! Any payload of a record is an entry of a log or refused.
#![no_main]

use libfuzzer_sys::fuzz_target;
use understudy_replication::files::LogEntry;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(LogEntry::Batch(batch)) = LogEntry::decode(bytes) {
        assert!(batch.start < batch.end);
    }
});
