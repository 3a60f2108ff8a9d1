//! A checkpoint and a journal of any bytes are read, or told as damaged, and never believed.
#![no_main]

use libfuzzer_sys::fuzz_target;
use understudy_config::StoreName;
use understudy_replication::files::Ledger;

fuzz_target!(|bytes: &[u8]| {
    let folder = tempfile::tempdir().unwrap();
    let store: StoreName = "docs".parse().unwrap();
    let mut content = b"undrmnf2".to_vec();
    content.extend_from_slice(bytes);
    std::fs::write(folder.path().join("manifest"), content).unwrap();
    let ledger = Ledger::open(folder.path(), &store).unwrap();
    assert!(ledger.head().is_none() || ledger.damage.is_empty());
});
