use super::*;
use proptest::prelude::*;

fn open(folder: &Path) -> Result<Log, LogError> {
    Log::open_bounded(folder, "docs", Position(0), 256, 1 << 20)
}

/// A log with `count` records of ten positions each, and some that take none.
fn filled(folder: &Path, count: u64) -> Log {
    let mut log = open(folder).unwrap();
    for number in 1..=count {
        if number % 3 == 0 {
            log.append(b"content", log.end()).unwrap();
        }
        log.append(format!("record {number}").as_bytes(), Position(number * 10))
            .unwrap();
    }
    log.sync().unwrap();
    log
}

fn read(log: &Log, from: Position) -> Result<Vec<(u64, String)>, LogError> {
    let mut reader = log.view().reader(from)?;
    let mut records = Vec::new();
    while let Some(record) = reader.next()? {
        records.push((record.end.0, String::from_utf8(record.payload).unwrap()));
    }
    Ok(records)
}

fn last_segment(folder: &Path) -> PathBuf {
    let mut paths: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|e| e.unwrap().path())
        .collect();
    paths.sort();
    paths.pop().unwrap()
}

#[test]
fn what_was_synced_is_read_again_from_any_boundary() {
    let folder = tempfile::tempdir().unwrap();
    drop(filled(folder.path(), 40));
    assert!(
        fs::read_dir(folder.path()).unwrap().count() > 3,
        "it has several segments"
    );
    let log = open(folder.path()).unwrap();
    assert_eq!(log.end(), Position(400));
    let all = read(&log, Position(0)).unwrap();
    assert_eq!(all.len(), 40 + 13);
    for from in 0..=40 {
        let tail = read(&log, Position(from * 10)).unwrap();
        assert_eq!(tail, all[all.len() - tail.len()..]);
        // What belongs to the next record comes with it.
        let belongs = (from + 1) % 3 == 0 && from < 40;
        assert_eq!(
            tail.first().is_some_and(|(_, text)| text == "content"),
            belongs,
            "{from}"
        );
    }
}

#[test]
fn nothing_is_read_before_it_is_durable() {
    let folder = tempfile::tempdir().unwrap();
    let mut log = filled(folder.path(), 1);
    let mut reader = log.view().reader(Position(10)).unwrap();
    log.append(b"late", Position(20)).unwrap();
    assert_eq!(reader.next().unwrap(), None);
    log.sync().unwrap();
    assert_eq!(reader.next().unwrap().unwrap().payload, b"late");
}

#[test]
fn what_a_failed_sync_leaves_is_not_read_when_the_log_is_opened_again() {
    let folder = tempfile::tempdir().unwrap();
    let mut log = filled(folder.path(), 1);
    log.append(b"never on the disk", Position(20)).unwrap();
    log.forget_unsynced();
    drop(log);
    let mut log = open(folder.path()).unwrap();
    assert_eq!(log.end(), Position(10));
    log.append(b"another", Position(20)).unwrap();
    log.sync().unwrap();
    assert_eq!(read(&log, Position(10)).unwrap().len(), 1);
}

#[test]
fn a_position_within_a_record_is_refused_and_so_is_one_that_was_dropped() {
    let folder = tempfile::tempdir().unwrap();
    let mut log = filled(folder.path(), 40);
    assert!(matches!(
        read(&log, Position(15)),
        Err(LogError::NotABoundary { .. })
    ));
    assert!(matches!(
        read(&log, Position(401)),
        Err(LogError::Gone { .. })
    ));
    log.release(Position(200)).unwrap();
    assert!(matches!(
        read(&log, Position(0)),
        Err(LogError::Gone { .. })
    ));
    assert_eq!(read(&log, Position(200)).unwrap().last().unwrap().0, 400);
    drop(log);
    assert_eq!(open(folder.path()).unwrap().end(), Position(400));
}

#[test]
fn a_log_is_bounded_by_dropping_its_oldest() {
    let folder = tempfile::tempdir().unwrap();
    let mut log = Log::open_bounded(folder.path(), "docs", Position(0), 256, 2048).unwrap();
    for number in 1..=1000 {
        log.append(b"some payload", Position(number)).unwrap();
    }
    log.sync().unwrap();
    assert!(log.view().bytes() < 4096, "{}", log.view().bytes());
    assert!(log.view().bounds().0 > Position(0));
}

#[test]
fn a_log_that_was_reset_begins_where_it_was_told() {
    let folder = tempfile::tempdir().unwrap();
    let mut log = filled(folder.path(), 40);
    log.reset(Position(400)).unwrap();
    log.append(b"next", Position(410)).unwrap();
    log.sync().unwrap();
    drop(log);
    let log = open(folder.path()).unwrap();
    assert_eq!(
        read(&log, Position(400)).unwrap(),
        [(410, "next".to_owned())]
    );
}

#[test]
fn what_is_cut_off_is_gone_for_good_and_the_log_goes_on_from_there() {
    let folder = tempfile::tempdir().unwrap();
    let whole = read(&filled(folder.path(), 40), Position(0)).unwrap();
    for to in (0..=40).rev() {
        let is_kept = |(end, text): &&(u64, String)| *end <= to * 10 && text != "content";
        // What takes no positions belongs to what follows it.
        let kept = whole.iter().rposition(|record| is_kept(&record));
        let kept = &whole[..kept.map_or(0, |last| last + 1)];
        let mut log = open(folder.path()).unwrap();
        log.truncate(Position(to * 10)).unwrap();
        assert_eq!(read(&log, Position(0)).unwrap(), kept);
        drop(log);
        let log = open(folder.path()).unwrap();
        assert_eq!(read(&log, Position(0)).unwrap(), kept);
    }
    let mut log = open(folder.path()).unwrap();
    log.append(b"anew", Position(3)).unwrap();
    log.sync().unwrap();
    assert_eq!(read(&log, Position(0)).unwrap(), [(3, "anew".to_owned())]);
}

#[test]
fn a_log_is_not_cut_within_a_record() {
    let folder = tempfile::tempdir().unwrap();
    let mut log = filled(folder.path(), 5);
    let whole = read(&log, Position(0)).unwrap();
    let error = log.truncate(Position(whole[1].0 + 1)).unwrap_err();
    assert!(matches!(error, LogError::NotABoundary { .. }), "{error}");
    assert_eq!(read(&log, Position(0)).unwrap(), whole);
}

#[test]
fn the_log_of_another_store_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    drop(filled(folder.path(), 2));
    let other = Log::open(folder.path(), "other", Position(0));
    assert!(matches!(other, Err(LogError::Foreign { .. })));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_truncation_of_the_last_segment_leaves_a_prefix(count in 1_u64..30, keep in 0.0..1.0_f64) {
        let folder = tempfile::tempdir().unwrap();
        let all = read(&filled(folder.path(), count), Position(0)).unwrap();
        let path = last_segment(folder.path());
        let length = fs::metadata(&path).unwrap().len();
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss, reason = "a share of a small file")]
        let kept = (length as f64 * keep) as u64;
        File::options().write(true).open(&path).unwrap().set_len(kept).unwrap();
        let mut log = open(folder.path()).unwrap();
        let left = read(&log, Position(0)).unwrap();
        prop_assert_eq!(&left[..], &all[..left.len()]);
        let next = Position(log.end().0 + 1);
        log.append(b"goes on", next).unwrap();
        log.sync().unwrap();
        prop_assert_eq!(read(&log, Position(0)).unwrap().len(), left.len() + 1);
    }

    #[test]
    fn any_flipped_bit_is_detected(count in 1_u64..20, place in any::<prop::sample::Index>(), bit in 0_u8..8) {
        let folder = tempfile::tempdir().unwrap();
        let all = read(&filled(folder.path(), count), Position(0)).unwrap();
        let mut paths: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().path()).collect();
        paths.sort();
        let path = &paths[place.index(paths.len())];
        let mut bytes = fs::read(path).unwrap();
        let at = place.index(bytes.len());
        bytes[at] ^= 1 << bit;
        fs::write(path, &bytes).unwrap();
        match open(folder.path()) {
            Err(LogError::Damaged { .. } | LogError::Foreign { .. }) => {}
            Err(error) => panic!("{error}"),
            // Only the very last record may look as if it were torn.
            Ok(log) => {
                let left = read(&log, Position(0)).unwrap();
                prop_assert_eq!(left.len(), all.len() - 1);
                prop_assert_eq!(&left[..], &all[..left.len()]);
            }
        }
    }
}
