//! The stored form of a revision, which is also its form on the wire.
//!
//! ```text
//! version (1 byte) | summary (postcard) | entries (postcard)
//! ```
//! The summary stands first, so that a list of revisions reads the beginning of each file only.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::collections::BTreeMap;

use super::path::SettingPath;
use super::revision::{Entry, Revision, RevisionError, RevisionSummary};

/// The version of the form.
const VERSION: u8 = 1;

/// How long an encoded revision may be: its contents, and what is said about each entry.
pub const ENCODED_BYTES_MAX: usize = (64 << 20) + (1 << 20);

/// How much of a file has its summary for certain.
pub(super) const SUMMARY_BYTES_MAX: u64 = 1024;

/// Why bytes are no revision.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// Another version of the form, or nothing at all.
    #[error("it has version {found:?} of the form, this program reads {VERSION}")]
    Version {
        /// What the first byte says.
        found: Option<u8>,
    },
    /// The bytes are torn or not what the form says.
    #[error("it is torn or damaged")]
    Malformed {
        /// What could not be read.
        source: postcard::Error,
    },
    /// The entries are not what the summary says.
    #[error("its entries do not match its digest")]
    Digest,
    /// The entries are no revision.
    #[error("it is not acceptable")]
    Revision {
        /// Why not.
        source: RevisionError,
    },
}

impl Revision {
    /// Returns the stored form.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![VERSION];
        for part in [
            postcard::to_allocvec(&self.summary()),
            postcard::to_allocvec(self.entries()),
        ] {
            // Plain data into memory; there is nothing that could fail.
            bytes.extend_from_slice(&part.expect("a revision can be encoded"));
        }
        bytes
    }

    /// Reads the stored form, and checks everything: the bytes may come from a peer.
    ///
    /// # Errors
    /// When they are not a revision that could have been encoded here.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let (summary, rest) = decode_summary(bytes)?;
        let entries: BTreeMap<SettingPath, Entry> =
            postcard::from_bytes(rest).map_err(|source| DecodeError::Malformed { source })?;
        let revision = Self::new(summary.number, summary.epoch.clone(), summary.time, entries)
            .map_err(|source| DecodeError::Revision { source })?;
        if revision.summary() == summary {
            Ok(revision)
        } else {
            Err(DecodeError::Digest)
        }
    }
}

/// Reads the summary, and returns what follows it.
pub(super) fn decode_summary(bytes: &[u8]) -> Result<(RevisionSummary, &[u8]), DecodeError> {
    let Some((&VERSION, rest)) = bytes.split_first() else {
        return Err(DecodeError::Version {
            found: bytes.first().copied(),
        });
    };
    postcard::take_from_bytes(rest).map_err(|source| DecodeError::Malformed { source })
}

#[cfg(test)]
#[expect(clippy::indexing_slicing, reason = "a test may panic")]
mod tests {
    use super::super::revision::tests::{file, revision};
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_flipped_byte_is_noticed_wherever_it_is() {
        let bytes = revision(7, &[("/etc/a", file("hello")), ("/etc/b", file(""))]).encode();
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0x20;
            let Ok(read) = Revision::decode(&damaged) else {
                continue;
            };
            // What is not part of the digest may differ (number, epoch, time), contents never.
            let original = Revision::decode(&bytes).unwrap();
            assert_eq!(read.digest(), original.digest(), "byte {at}");
        }
    }

    #[test]
    fn a_hostile_path_is_no_revision() {
        let bytes = revision(7, &[("/etc/aa/b", file("x"))]).encode();
        let at = bytes
            .windows(9)
            .position(|window| window == b"/etc/aa/b")
            .unwrap();
        let mut hostile = bytes;
        hostile[at + 5..at + 7].copy_from_slice(b"..");
        assert!(matches!(
            Revision::decode(&hostile),
            Err(DecodeError::Malformed { .. })
        ));
    }

    proptest! {
        #[test]
        fn what_was_encoded_is_decoded(number: u64, content in ".{0,50}", name in "[a-z]{1,9}") {
            let revision = revision(number, &[(&format!("/etc/{name}"), file(&content))]);
            prop_assert_eq!(Revision::decode(&revision.encode()).unwrap(), revision);
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            drop(Revision::decode(&bytes));
            drop(Revision::decode(&[&[VERSION], bytes.as_slice()].concat()));
        }
    }
}
