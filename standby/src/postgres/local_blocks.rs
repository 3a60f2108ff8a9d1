//! The blocks of a copy on this machine: reading and digesting what is there, and putting what differs in
//! place. All of it blocks.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

use rustix::fs::OFlags;
use understudy_replication::postgres::reseed::{
    BLOCK_BYTES, Change, ClusterPath, Entry, Found, Piece, digest, is_of_relation, read_at,
};

use super::local_copy::{LocalCopy, failed};
use super::seed::SeedError;

/// A file is compared in parts of this length.
const PIECE_BYTES: u64 = 16 << 20;

/// What a question may hold: so much of digests and paths, and so much to be compared.
const QUESTION_BYTES: usize = 256 << 10;
const QUESTION_COMPARED_BYTES: u64 = 32 << 20;

/// A question, and how much it compares.
#[derive(Debug, Default)]
pub(super) struct Question {
    pub(super) pieces: Vec<Piece>,
    pub(super) compares: u64,
    bytes: usize,
}

impl LocalCopy {
    /// Opens a file of the copy, which is made if it is missing, and is no longer than `size` afterwards.
    /// Returns how long it is.
    fn open(&self, path: &ClusterPath, size: u64) -> io::Result<(File, u64)> {
        let file = match self.roots.open_at(path, OFlags::RDWR, 0) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL;
                let file: OwnedFd = self.roots.open_at(path, flags, 0o600)?;
                self.own(&file)?;
                file
            }
            Err(error) => return Err(error),
        };
        let file = File::from(file);
        let length = file.metadata()?.len();
        if length > size {
            file.set_len(size)?;
        }
        Ok((file, length.min(size)))
    }

    /// Reads every file, and hands the questions to `ask`, which says whether to go on.
    pub(super) fn questions(
        &self,
        wanted: &[Entry],
        ask: impl Fn(Question) -> bool,
    ) -> Result<(), SeedError> {
        let mut question = Question::default();
        let mut block = vec![0; usize::try_from(BLOCK_BYTES).unwrap_or(usize::MAX)];
        for entry in wanted {
            let path = &entry.path;
            let Some(size) = entry.size else { continue };
            self.check_wanted()?;
            let (file, length) = self
                .open(&self.place_of(path), size)
                .map_err(failed("open", path))?;
            // One that is no relation may have been replaced by a longer one since it was listed, and no log
            // tells of it: so it is asked for beyond its end, and if it was empty too.
            let is_replaced = !is_of_relation(path.name());
            if size == 0 && !is_replaced {
                continue;
            }
            let mut offset = 0;
            loop {
                let bytes = (size - offset).min(PIECE_BYTES);
                let mut digests = Vec::new();
                let mut at = offset;
                let end = length.min(offset.saturating_add(bytes));
                while at < end {
                    let count = usize::try_from((end - at).min(BLOCK_BYTES)).unwrap_or(usize::MAX);
                    let content = block.get_mut(..count).unwrap_or_default();
                    let read = read_at(&file, content, at).map_err(failed("read", path))?;
                    if read < count {
                        // An answer has shortened it meanwhile: what is not there is asked for.
                        break;
                    }
                    digests.push(digest(content));
                    at = at.saturating_add(BLOCK_BYTES);
                }
                // The path, the digests, and some figures.
                let cost = path.as_str().len() + digests.len() * 16 + 40;
                let is_full = question.bytes + cost > QUESTION_BYTES
                    || question.compares.saturating_add(bytes) > QUESTION_COMPARED_BYTES;
                if is_full && !question.pieces.is_empty() && !ask(std::mem::take(&mut question)) {
                    return Ok(());
                }
                question.bytes += cost;
                question.compares = question.compares.saturating_add(bytes);
                question.pieces.push(Piece {
                    path: path.clone(),
                    offset,
                    bytes: if is_replaced { PIECE_BYTES } else { bytes },
                    digests,
                });
                offset = offset.saturating_add(bytes);
                if offset >= size {
                    break;
                }
            }
        }
        if !question.pieces.is_empty() {
            ask(question);
        }
        Ok(())
    }

    /// Puts changes in place; returns how many bytes they had.
    pub(super) fn apply(&self, pieces: &[Piece], changes: &[Change]) -> Result<u64, SeedError> {
        let mut copied: u64 = 0;
        let mut open: Option<(u32, File)> = None;
        for change in changes {
            let number = match change {
                Change::Bytes { piece, .. } | Change::Done { piece, .. } => *piece,
            };
            let index = usize::try_from(number).unwrap_or(usize::MAX);
            let Some(piece) = pieces.get(index) else {
                continue;
            };
            let path = &self.place_of(&piece.path);
            if let Change::Done { end: None, .. } = change {
                // Dropped on the primary meanwhile: so says the log, too.
                let removed = self.roots.remove(path, Found::File(0));
                removed.map_err(failed("remove", path))?;
                continue;
            }
            if open.as_ref().is_none_or(|(of, _)| *of != number) {
                let flags = OFlags::RDWR;
                open = match self.roots.open_at(path, flags, 0) {
                    Ok(file) => Some((number, File::from(file))),
                    // Another piece of it has found that it was dropped.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => None,
                    Err(error) => return Err(failed("open", path)(error)),
                };
            }
            let Some((_, file)) = &open else { continue };
            match change {
                Change::Bytes { offset, bytes, .. } => {
                    file.write_all_at(bytes, *offset)
                        .map_err(failed("write", path))?;
                    copied = copied.saturating_add(u64::try_from(bytes.len()).unwrap_or(u64::MAX));
                }
                Change::Done { end: Some(end), .. }
                    if *end < piece.offset.saturating_add(piece.bytes) =>
                {
                    let length = file.metadata().map_err(failed("look at", path))?.len();
                    file.set_len(length.min(*end))
                        .map_err(failed("shorten", path))?;
                }
                Change::Done { .. } => {}
            }
        }
        Ok(copied)
    }
}

#[cfg(test)]
mod tests {
    use super::super::local_copy::tests::{copy, entry};
    use super::*;
    use std::fs;

    #[test]
    fn a_file_becomes_what_the_changes_say() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("base")).unwrap();
        let path = folder.path().join("base/1");
        fs::write(&path, vec![1; 50_000]).unwrap();
        let copy = copy(folder.path());
        let wanted = [entry("base/1", Some(40_000)), entry("base/2", Some(100))];
        let asked = std::sync::Mutex::new(Vec::new());
        copy.questions(&wanted, |question| {
            asked.lock().unwrap().extend(question.pieces);
            true
        })
        .unwrap();
        let pieces = asked.into_inner().unwrap();
        let told: Vec<_> = pieces
            .iter()
            .map(|piece| (piece.bytes, piece.digests.len()))
            .collect();
        assert_eq!(told, [(40_000, 5), (100, 0)]);
        assert_eq!(
            fs::metadata(&path).unwrap().len(),
            40_000,
            "it is shortened at once"
        );
        let changes = [
            Change::Bytes {
                piece: 0,
                offset: 8192,
                bytes: vec![2; 8192],
            },
            Change::Done {
                piece: 0,
                end: Some(20_000),
            },
            Change::Done {
                piece: 1,
                end: None,
            },
        ];
        assert_eq!(copy.apply(&pieces, &changes).unwrap(), 8192);
        let expected = [vec![1; 8192], vec![2; 8192], vec![1; 20_000 - 16_384]].concat();
        assert_eq!(fs::read(&path).unwrap(), expected);
        assert!(!folder.path().join("base/2").exists());
    }

    fn pieces_of(copy: &LocalCopy, wanted: &[Entry]) -> Vec<(String, u64, u64, usize)> {
        let asked = std::sync::Mutex::new(Vec::new());
        copy.questions(wanted, |question| {
            let pieces = question.pieces.into_iter().map(|piece| {
                let path = String::from(piece.path);
                (path, piece.offset, piece.bytes, piece.digests.len())
            });
            asked.lock().unwrap().extend(pieces);
            true
        })
        .unwrap();
        asked.into_inner().unwrap()
    }

    #[test]
    fn a_file_that_may_have_been_replaced_by_a_longer_one_is_asked_for_beyond_its_end() {
        let folder = tempfile::tempdir().unwrap();
        let conf = folder.path().join("pg_hba.conf");
        fs::write(&conf, "local\nhost\n").unwrap();
        fs::write(folder.path().join("1249"), vec![1; 20_000]).unwrap();
        let copy = copy(folder.path());
        let wanted = [
            entry("pg_hba.conf", Some(6)),
            entry("postgresql.auto.conf", Some(0)),
            entry("1249", Some(10_000)),
            entry("1250", Some(0)),
        ];
        assert_eq!(
            pieces_of(&copy, &wanted),
            [
                ("pg_hba.conf".to_owned(), 0, PIECE_BYTES, 1),
                ("postgresql.auto.conf".to_owned(), 0, PIECE_BYTES, 0),
                ("1249".to_owned(), 0, 10_000, 2),
            ]
        );
        let piece = Piece {
            path: "pg_hba.conf".parse().unwrap(),
            offset: 0,
            bytes: PIECE_BYTES,
            digests: Vec::new(),
        };
        let changes = [
            Change::Bytes {
                piece: 0,
                offset: 0,
                bytes: b"hostssl all\n".to_vec(),
            },
            Change::Done {
                piece: 0,
                end: Some(12),
            },
        ];
        copy.apply(&[piece], &changes).unwrap();
        assert_eq!(fs::read(&conf).unwrap(), b"hostssl all\n");
    }

    #[test]
    fn a_file_that_an_answer_shortens_is_read_as_far_as_it_goes() {
        let folder = tempfile::tempdir().unwrap();
        let size = 4 * PIECE_BYTES;
        let file = File::create(folder.path().join("1249")).unwrap();
        file.set_len(size).unwrap();
        let copy = copy(folder.path());
        let asked = std::sync::Mutex::new(Vec::new());
        copy.questions(&[entry("1249", Some(size))], |question| {
            // It was truncated on the primary meanwhile.
            let done = Change::Done {
                piece: 0,
                end: Some(100),
            };
            copy.apply(&question.pieces, &[done]).unwrap();
            let blocks = question.pieces.into_iter().map(|it| it.digests.len());
            asked.lock().unwrap().extend(blocks);
            true
        })
        .unwrap();
        // The third was read before the first two were answered.
        assert_eq!(asked.into_inner().unwrap(), [2048, 2048, 2048, 0]);
    }
}
