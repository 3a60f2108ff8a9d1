//! A segment of a log whose records are any bytes is opened, cut off, or refused; what is appended then
//! is read again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use understudy_replication::log::Log;
use understudy_replication::position::Position;

fuzz_target!(|bytes: &[u8]| {
    let folder = tempfile::tempdir().unwrap();
    let log = Log::open(folder.path(), "docs", Position(0)).unwrap();
    drop(log);
    let segment = std::fs::read_dir(folder.path()).unwrap().next().unwrap().unwrap().path();
    let mut content = std::fs::read(&segment).unwrap();
    content.extend_from_slice(bytes);
    std::fs::write(&segment, content).unwrap();
    let Ok(mut log) = Log::open(folder.path(), "docs", Position(0)) else {
        return;
    };
    let end = log.end();
    log.append(b"more", Position(end.0.saturating_add(1))).unwrap();
    log.sync().unwrap();
    let mut reader = log.view().reader(end).unwrap();
    assert_eq!(reader.next().unwrap().unwrap().payload, b"more");
});
