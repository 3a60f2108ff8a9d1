//! What has changed in a file, as pieces of what it was and of what comes along.

#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use serde::{Deserialize, Serialize};

use super::entry::Digest;

/// How many pieces a patch may have: with as many it still fits into a batch.
pub const PIECES_MAX: usize = 50_000;

/// How many bytes a piece takes in a batch, at most.
const PIECE_BYTES: usize = 21;

/// How a file is made from the one that was there before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Patch {
    /// What the file must hold for this.
    pub base: Digest,
    /// How long that is.
    pub base_size: u64,
    /// What the new file consists of, from its beginning.
    pub pieces: Vec<Piece>,
    /// The digest of all literal pieces, one after the other.
    pub literal: Digest,
}

/// A part of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Piece {
    /// So many bytes of the base, from an offset on.
    Keep {
        /// Where in the base.
        offset: u64,
        /// How many.
        bytes: u64,
    },
    /// So many of the bytes that come along.
    Literal(u64),
    /// So many zeros, which take no room on the disk.
    Zero(u64),
}

impl Piece {
    /// Returns how long it is.
    pub fn bytes(&self) -> u64 {
        match self {
            Self::Keep { bytes, .. } | Self::Literal(bytes) | Self::Zero(bytes) => *bytes,
        }
    }
}

impl Patch {
    /// Returns how many bytes come along.
    pub fn literal_bytes(&self) -> u64 {
        self.pieces.iter().fold(0, |sum, piece| match piece {
            Piece::Literal(bytes) => bytes.saturating_add(sum),
            Piece::Keep { .. } | Piece::Zero(_) => sum,
        })
    }

    /// Returns the literal parts of the new file: where, and how long.
    pub fn literals(&self) -> impl Iterator<Item = (u64, u64)> {
        self.placed().filter_map(|(offset, piece)| match piece {
            Piece::Literal(bytes) => Some((offset, bytes)),
            Piece::Keep { .. } | Piece::Zero(_) => None,
        })
    }

    /// Returns the pieces with their place in the new file.
    pub fn placed(&self) -> impl Iterator<Item = (u64, Piece)> {
        self.pieces.iter().scan(0_u64, |at, piece| {
            let offset = *at;
            *at = at.saturating_add(piece.bytes());
            Some((offset, *piece))
        })
    }

    /// Returns whether all that is kept stays where it is: only then can the file be changed in place.
    pub fn is_in_place(&self) -> bool {
        self.placed().all(|(at, piece)| match piece {
            Piece::Keep { offset, .. } => offset == at,
            Piece::Literal(_) | Piece::Zero(_) => true,
        })
    }

    /// Returns whether the file only becomes longer: all that it was is still its beginning.
    pub fn is_append(&self) -> bool {
        let Some((Piece::Keep { offset: 0, bytes }, more)) = self.pieces.split_first() else {
            return false;
        };
        *bytes == self.base_size
            && more
                .iter()
                .all(|piece| !matches!(piece, Piece::Keep { .. }))
    }

    /// Returns how many bytes it takes in a batch, at most.
    pub(super) fn metadata_bytes(&self) -> usize {
        self.pieces
            .len()
            .saturating_mul(PIECE_BYTES)
            .saturating_add(80)
    }

    /// Returns whether it makes a file of `size` bytes out of its base.
    pub(super) fn is_valid(&self, size: u64) -> bool {
        let total = self
            .pieces
            .iter()
            .try_fold(0_u64, |sum, piece| sum.checked_add(piece.bytes()));
        let is_within = |piece: &Piece| match piece {
            Piece::Keep { offset, bytes } => offset
                .checked_add(*bytes)
                .is_some_and(|end| end <= self.base_size),
            Piece::Literal(_) | Piece::Zero(_) => true,
        };
        total == Some(size)
            && self.pieces.len() <= PIECES_MAX
            && self
                .pieces
                .iter()
                .all(|piece| piece.bytes() > 0 && is_within(piece))
    }
}

/// Puts pieces together so that there are as few as there can be.
#[derive(Debug, Default)]
pub(super) struct Pieces {
    pieces: Vec<Piece>,
}

impl Pieces {
    pub(super) fn push(&mut self, piece: Piece) {
        if piece.bytes() == 0 {
            return;
        }
        match (self.pieces.last_mut(), piece) {
            (
                Some(Piece::Keep { offset, bytes }),
                Piece::Keep {
                    offset: next,
                    bytes: more,
                },
            ) if offset.saturating_add(*bytes) == next => *bytes = bytes.saturating_add(more),
            (Some(Piece::Literal(bytes)), Piece::Literal(more))
            | (Some(Piece::Zero(bytes)), Piece::Zero(more)) => *bytes = bytes.saturating_add(more),
            (Some(_) | None, piece) => self.pieces.push(piece),
        }
    }

    /// Returns them, or `None` when there are too many.
    pub(super) fn finish(self) -> Option<Vec<Piece>> {
        (self.pieces.len() <= PIECES_MAX).then_some(self.pieces)
    }

    /// Returns how many bytes come along.
    pub(super) fn literal_bytes(&self) -> u64 {
        self.pieces.iter().fold(0, |sum, piece| match piece {
            Piece::Literal(bytes) => bytes.saturating_add(sum),
            Piece::Keep { .. } | Piece::Zero(_) => sum,
        })
    }
}

/// Turns the parts of `literals` that lie in holes of the file into zeros. `data` are the parts of the
/// file that are no holes, in order.
pub fn punch(pieces: Vec<Piece>, data: &[(u64, u64)]) -> Option<Vec<Piece>> {
    let mut punched = Pieces::default();
    let mut at = 0_u64;
    for piece in pieces {
        let Piece::Literal(bytes) = piece else {
            at = at.saturating_add(piece.bytes());
            punched.push(piece);
            continue;
        };
        let end = at.saturating_add(bytes);
        let from = data.partition_point(|(start, length)| start.saturating_add(*length) <= at);
        for (start, length) in data.iter().skip(from).take_while(|(start, _)| *start < end) {
            let (start, stop) = ((*start).max(at), start.saturating_add(*length).min(end));
            punched.push(Piece::Zero(start.saturating_sub(at)));
            punched.push(Piece::Literal(stop.saturating_sub(start)));
            at = stop;
        }
        punched.push(Piece::Zero(end.saturating_sub(at)));
        at = end;
    }
    punched.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holes_do_not_travel() {
        let pieces = vec![
            Piece::Literal(100),
            Piece::Keep {
                offset: 0,
                bytes: 50,
            },
            Piece::Literal(50),
        ];
        let punched = punch(pieces, &[(10, 20), (90, 80), (190, 10)]);
        assert_eq!(
            punched.unwrap(),
            [
                Piece::Zero(10),
                Piece::Literal(20),
                Piece::Zero(60),
                Piece::Literal(10),
                Piece::Keep {
                    offset: 0,
                    bytes: 50
                },
                Piece::Literal(20),
                Piece::Zero(20),
                Piece::Literal(10),
            ]
        );
        assert_eq!(
            punch(vec![Piece::Literal(7)], &[]).unwrap(),
            [Piece::Zero(7)]
        );
    }

    #[test]
    fn what_only_becomes_longer_is_known_from_its_pieces() {
        let keep = |offset, bytes| Piece::Keep { offset, bytes };
        let is_append = |pieces: &[Piece]| {
            let patch = Patch {
                base: Digest::of(b""),
                base_size: 100,
                pieces: pieces.to_vec(),
                literal: Digest::of(b""),
            };
            patch.is_append()
        };
        assert!(is_append(&[keep(0, 100), Piece::Literal(5)]));
        assert!(is_append(&[
            keep(0, 100),
            Piece::Zero(9),
            Piece::Literal(5)
        ]));
        assert!(!is_append(&[keep(0, 99), Piece::Literal(5)]), "cut");
        assert!(!is_append(&[keep(1, 99), Piece::Literal(5)]), "shifted");
        assert!(!is_append(&[keep(0, 100), Piece::Literal(5), keep(0, 100)]));
        assert!(!is_append(&[Piece::Literal(105)]));
        assert!(!is_append(&[]));
    }

    #[test]
    fn a_patch_that_makes_no_file_is_refused() {
        let patch = |pieces: &[Piece]| Patch {
            base: Digest::of(b""),
            base_size: 100,
            pieces: pieces.to_vec(),
            literal: Digest::of(b""),
        };
        let keep = |offset, bytes| Piece::Keep { offset, bytes };
        assert!(patch(&[keep(0, 100), Piece::Literal(5)]).is_valid(105));
        assert!(!patch(&[keep(0, 100), Piece::Literal(5)]).is_valid(104));
        assert!(!patch(&[keep(1, 100)]).is_valid(100));
        assert!(!patch(&[keep(u64::MAX, 2)]).is_valid(2));
        assert!(!patch(&[Piece::Literal(u64::MAX), Piece::Literal(2)]).is_valid(1));
        assert!(!patch(&[Piece::Literal(0)]).is_valid(0));
    }
}
