//! Reading a part of a file that others change meanwhile.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Reads as much as there is at `offset`, up to the length of `buffer`, and returns how much that was.
///
/// # Errors
/// When it cannot be read; that the file ends there is none.
pub fn read_at(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut done = 0;
    while let Some(rest) = buffer.get_mut(done..).filter(|rest| !rest.is_empty()) {
        let at = offset.saturating_add(u64::try_from(done).unwrap_or(u64::MAX));
        match file.read_at(rest, at) {
            Ok(0) => break,
            Ok(read) => done = done.saturating_add(read),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}
