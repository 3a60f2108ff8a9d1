//! A batch that is taken is one that is written again as it was, and folds without a panic.
#![no_main]

use libfuzzer_sys::fuzz_target;
use understudy_replication::files::{Batch, Manifest};

fuzz_target!(|bytes: &[u8]| {
    let mut versioned = vec![2];
    versioned.extend_from_slice(bytes);
    let Ok(batch) = Batch::decode(&versioned) else {
        return;
    };
    assert_eq!(Batch::decode(&batch.encode().unwrap()).unwrap(), batch);
    let mut manifest = Manifest::default();
    for operation in &batch.operations {
        let before = manifest.root();
        if manifest.fold(operation).is_err() {
            assert_eq!(manifest.root(), before, "what does not fit changes nothing");
        }
        assert_eq!(manifest.entries().len(), manifest.len());
    }
});
