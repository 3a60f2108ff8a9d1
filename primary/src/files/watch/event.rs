//! What fanotify gives to a reader, as events. Pure.
//!
//! Each event has a head of 24 bytes, and then records that say where: which directory, by a handle, and
//! which name in it. See fanotify(7).

#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use nix::sys::fanotify::{FANOTIFY_METADATA_VERSION, MaskFlags};

const HEAD_BYTES: usize = 24;
const FILE_SYSTEM_ID_BYTES: usize = 8;

/// Something happened, or several things that the kernel has merged.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Event<'a> {
    /// What.
    pub(super) mask: MaskFlags,
    /// To what.
    pub(super) place: Place<'a>,
    /// The handle of what the name led to.
    pub(super) target: Option<&'a [u8]>,
}

/// Where something happened.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Place<'a> {
    /// Nobody knows: the kernel has dropped events.
    Lost,
    /// At an entry.
    Entry(Entry<'a>),
    /// What was the one entry is the other now.
    Renamed { from: Entry<'a>, to: Entry<'a> },
    /// It is not said.
    Unsaid,
}

/// A name in a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry<'a> {
    /// The handle of the directory: a whole `struct file_handle`.
    pub(super) directory: &'a [u8],
    /// The name; `.` is the directory itself.
    pub(super) name: &'a [u8],
}

/// Why bytes are not events.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum EventError {
    /// The kernel speaks a newer language.
    #[error("events of version {0}")]
    Version(u8),
    /// A length leads out of what there is.
    #[error("an event that is cut off")]
    Length,
}

/// Returns the events in what one or several reads gave.
pub(super) fn parse(mut bytes: &[u8]) -> Result<Vec<Event<'_>>, EventError> {
    let mut events = Vec::new();
    while !bytes.is_empty() {
        let mut head = bytes;
        let event_bytes = length(u32::from_ne_bytes(take(&mut head)?))?;
        let [version, _reserved] = take(&mut head)?;
        if version != FANOTIFY_METADATA_VERSION {
            return Err(EventError::Version(version));
        }
        let head_bytes = usize::from(u16::from_ne_bytes(take(&mut head)?));
        let mask = MaskFlags::from_bits_retain(u64::from_ne_bytes(take(&mut head)?));
        if head_bytes < HEAD_BYTES {
            return Err(EventError::Length);
        }
        let event = split(&mut bytes, event_bytes)?;
        let records = event.get(head_bytes..).ok_or(EventError::Length)?;
        events.push(read(mask, records)?);
    }
    Ok(events)
}

fn read(mask: MaskFlags, mut records: &[u8]) -> Result<Event<'_>, EventError> {
    let (mut at, mut from, mut to, mut target) = (None, None, None, None);
    while !records.is_empty() {
        let mut head = records;
        let [kind, _padding] = take(&mut head)?;
        let record_bytes = usize::from(u16::from_ne_bytes(take(&mut head)?));
        let mut record = split(&mut records, record_bytes)?;
        let _head: [u8; 4] = take(&mut record)?;
        match kind {
            libc::FAN_EVENT_INFO_TYPE_FID => target = Some(handle(&mut record)?),
            libc::FAN_EVENT_INFO_TYPE_DFID_NAME => at = Some(entry(record)?),
            libc::FAN_EVENT_INFO_TYPE_OLD_DFID_NAME => from = Some(entry(record)?),
            libc::FAN_EVENT_INFO_TYPE_NEW_DFID_NAME => to = Some(entry(record)?),
            _ => {}
        }
    }
    let place = match (at, from, to) {
        _ if mask.contains(MaskFlags::FAN_Q_OVERFLOW) => Place::Lost,
        (_, Some(from), Some(to)) => Place::Renamed { from, to },
        (Some(entry), _, _) | (None, Some(entry), None) | (None, None, Some(entry)) => {
            Place::Entry(entry)
        }
        (None, None, None) => Place::Unsaid,
    };
    Ok(Event {
        mask,
        place,
        target,
    })
}

/// Takes a whole `struct file_handle`, behind the number of its file system.
fn handle<'a>(record: &mut &'a [u8]) -> Result<&'a [u8], EventError> {
    let _file_system: [u8; FILE_SYSTEM_ID_BYTES] = take(record)?;
    let mut head = *record;
    let handle_bytes = length(u32::from_ne_bytes(take(&mut head)?))?;
    let _kind: [u8; 4] = take(&mut head)?;
    let head_bytes = 8_usize;
    let whole = head_bytes
        .checked_add(handle_bytes)
        .ok_or(EventError::Length)?;
    split(record, whole)
}

fn entry(mut record: &[u8]) -> Result<Entry<'_>, EventError> {
    let directory = handle(&mut record)?;
    // The name ends in a zero byte, and is padded with more of them.
    let end = record.iter().position(|byte| *byte == 0);
    let name = end
        .and_then(|end| record.get(..end))
        .ok_or(EventError::Length)?;
    Ok(Entry { directory, name })
}

fn take<const N: usize>(bytes: &mut &[u8]) -> Result<[u8; N], EventError> {
    let (taken, rest) = bytes.split_first_chunk().ok_or(EventError::Length)?;
    *bytes = rest;
    Ok(*taken)
}

/// Takes `count` bytes, which are at least one: so whoever takes in a loop comes to its end.
fn split<'a>(bytes: &mut &'a [u8], count: usize) -> Result<&'a [u8], EventError> {
    let taken = bytes.split_at_checked(count).filter(|_| count > 0);
    let (taken, rest) = taken.ok_or(EventError::Length)?;
    *bytes = rest;
    Ok(taken)
}

fn length(length: u32) -> Result<usize, EventError> {
    usize::try_from(length).map_err(|_| EventError::Length)
}

#[cfg(test)]
#[expect(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "a test may panic"
)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn handle(number: u8) -> Vec<u8> {
        let mut handle = 8_u32.to_ne_bytes().to_vec();
        handle.extend(1_i32.to_ne_bytes());
        handle.extend([number; 8]);
        handle
    }

    fn record(kind: u8, directory: &[u8], name: &[u8]) -> Vec<u8> {
        let mut body = vec![7; FILE_SYSTEM_ID_BYTES];
        body.extend(directory);
        body.extend(name);
        body.push(0);
        while !body.len().is_multiple_of(4) {
            body.push(0);
        }
        let length = u16::try_from(body.len() + 4).unwrap();
        let mut record = vec![kind, 0];
        record.extend(length.to_ne_bytes());
        record.extend(body);
        record
    }

    fn event(mask: MaskFlags, records: &[u8]) -> Vec<u8> {
        let length = u32::try_from(HEAD_BYTES + records.len()).unwrap();
        let mut event = length.to_ne_bytes().to_vec();
        event.extend([FANOTIFY_METADATA_VERSION, 0]);
        event.extend(24_u16.to_ne_bytes());
        event.extend(mask.bits().to_ne_bytes());
        event.extend((-1_i32).to_ne_bytes());
        event.extend(4711_i32.to_ne_bytes());
        event.extend(records);
        event
    }

    #[test]
    fn each_kind_of_event_is_read() {
        let (one, two) = (handle(1), handle(2));
        let created = MaskFlags::FAN_CREATE | MaskFlags::FAN_ONDIR;
        let renamed = MaskFlags::FAN_RENAME;
        let mut bytes = event(created, &record(2, &one, b"a\xff"));
        let mut both = record(10, &one, b"from");
        both.extend(record(12, &two, b"to"));
        // The handle of the file itself, and a record of the future.
        both.extend(record(1, &two, b""));
        both.extend([99, 0, 4, 0]);
        bytes.extend(event(renamed, &both));
        bytes.extend(event(MaskFlags::FAN_Q_OVERFLOW, &[]));
        bytes.extend(event(MaskFlags::FAN_ATTRIB, &[]));
        let at = |directory, name| Entry { directory, name };
        let expected = vec![
            Event {
                mask: created,
                place: Place::Entry(at(&one, b"a\xff")),
                target: None,
            },
            Event {
                mask: renamed,
                place: Place::Renamed {
                    from: at(&one, b"from"),
                    to: at(&two, b"to"),
                },
                target: Some(&two),
            },
            Event {
                mask: MaskFlags::FAN_Q_OVERFLOW,
                place: Place::Lost,
                target: None,
            },
            Event {
                mask: MaskFlags::FAN_ATTRIB,
                place: Place::Unsaid,
                target: None,
            },
        ];
        assert_eq!(parse(&bytes), Ok(expected));
    }

    #[test]
    fn what_is_cut_off_or_of_another_version_is_an_error() {
        let whole = event(MaskFlags::FAN_CREATE, &record(2, &handle(1), b"name"));
        for end in 1..whole.len() {
            assert_eq!(parse(&whole[..end]), Err(EventError::Length), "{end}");
        }
        let mut newer = whole.clone();
        newer[4] = 4;
        assert_eq!(parse(&newer), Err(EventError::Version(4)));
        // A length of zero would never come to an end.
        for at in [0, 6, HEAD_BYTES + 2] {
            let mut endless = whole.clone();
            endless[at] = 0;
            assert_eq!(parse(&endless), Err(EventError::Length), "{at}");
        }
        let mut nameless = event(MaskFlags::FAN_CREATE, &record(2, &handle(1), b"nam"));
        *nameless.last_mut().unwrap() = b'e';
        assert_eq!(parse(&nameless), Err(EventError::Length));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..512)) {
            let _any = parse(&bytes).is_ok();
        }

        #[test]
        fn nor_do_events_with_a_changed_byte(
            name in "[a-z]{1,20}", at in any::<prop::sample::Index>(), byte in any::<u8>(), kind in 0_u8..16,
        ) {
            let mut bytes = event(MaskFlags::FAN_CREATE, &record(kind, &handle(1), name.as_bytes()));
            bytes.extend(event(MaskFlags::FAN_RENAME, &record(2, &handle(1), b"last")));
            let at = at.index(bytes.len());
            bytes[at] = byte;
            let _any = parse(&bytes).is_ok();
        }
    }
}
