//! Any list of entries is a tree or refused.
#![no_main]

use libfuzzer_sys::fuzz_target;
use understudy_replication::files::{Entry, Known, Loader, Local, RelPath};

fuzz_target!(|bytes: &[u8]| {
    let Ok(list) = postcard::from_bytes::<Vec<(u32, Vec<u8>, Entry)>>(bytes) else {
        return;
    };
    let mut loader = Loader::default();
    for (depth, name, entry) in list {
        let known = Known {
            entry,
            local: Local::Unknown,
        };
        if loader.push(depth, &name, known).is_err() {
            return;
        }
    }
    let mut manifest = loader.finish();
    manifest.root();
    let entries = manifest.entries();
    assert_eq!(entries.len(), manifest.len());
    for (path, _) in entries {
        assert!(RelPath::new(path.as_bytes()).is_ok());
    }
});
