//! What of the primary's files a standby is told: which there are, and what differs in them. All of it blocks.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;

use understudy_replication::postgres::reseed::{
    BLOCK_BYTES, Change, ClusterPath, Entry, Found, Piece, digest, is_copied, is_relation_of,
    read_at,
};

use super::backups::Backup;
use super::reseed::{FRAME_BYTES, Sender, StreamError};

/// The file that says what all others mean: it is read until it stands still.
const CONTROL: &str = "global/pg_control";

/// Tells every file and directory of the copy, a directory before what is in it.
pub(super) fn walk(
    backup: &Backup,
    tell: &mut dyn FnMut(Entry) -> Result<(), StreamError>,
) -> Result<(), StreamError> {
    let tablespaces: BTreeMap<String, u32> = backup
        .roots
        .tablespaces()
        .map(|oid| (format!("pg_tblspc/{oid}"), oid))
        .collect();
    let mut ahead: Vec<Option<ClusterPath>> = vec![None];
    while let Some(directory) = ahead.pop() {
        let listed = match backup.roots.list(directory.as_ref()) {
            Ok(listed) => listed,
            // Dropped meanwhile, which the log says too.
            Err(error) if error.kind() == io::ErrorKind::NotFound && directory.is_some() => {
                continue;
            }
            Err(source) => {
                let path = directory.map_or_else(|| ".".to_owned(), String::from);
                return Err(StreamError::Read { path, source });
            }
        };
        let unlogged: BTreeSet<String> = listed
            .iter()
            .filter_map(|(path, _)| path.name().strip_suffix("_init").map(str::to_owned))
            .collect();
        for (path, found) in listed {
            let is_unlogged =
                is_relation_of(path.name()).is_some_and(|number| unlogged.contains(number));
            if !is_copied(&path) || is_unlogged || backup.log_folder.as_ref() == Some(&path) {
                continue;
            }
            match found {
                Found::File(size) => tell(Entry {
                    path,
                    size: Some(size),
                })?,
                Found::Directory => {
                    tell(Entry {
                        path: path.clone(),
                        size: None,
                    })?;
                    ahead.push(Some(path));
                }
                Found::Other if tablespaces.contains_key(path.as_str()) => {
                    if let Ok(path) = path.child(&backup.version_folder) {
                        tell(Entry {
                            path: path.clone(),
                            size: None,
                        })?;
                        ahead.push(Some(path));
                    }
                }
                // As pg_basebackup does; pg_wal may be a link, and is nothing of the copy.
                Found::Other => tracing::debug!(%path, "not a file, and not copied"),
            }
        }
    }
    Ok(())
}

/// Sends what the standby lacks of a piece.
pub(super) fn compare(sender: &mut Sender, number: u32, piece: &Piece) -> Result<(), StreamError> {
    let failed = |source| StreamError::Read {
        path: piece.path.to_string(),
        source,
    };
    // Only what is listed is shown, whoever asks.
    if !is_copied(&piece.path) {
        return sender.change(Change::Done {
            piece: number,
            end: None,
        });
    }
    let file = match sender.backup.roots.read(&piece.path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return sender.change(Change::Done {
                piece: number,
                end: None,
            });
        }
        Err(source) => return Err(failed(source)),
    };
    if piece.path.as_str() == CONTROL {
        let bytes = still(&file).map_err(failed)?;
        let end = u64::try_from(bytes.len())
            .unwrap_or(u64::MAX)
            .min(piece.bytes);
        let bytes = bytes
            .into_iter()
            .take(usize::try_from(end).unwrap_or(usize::MAX))
            .collect();
        sender.change(Change::Bytes {
            piece: number,
            offset: 0,
            bytes,
        })?;
        return sender.change(Change::Done {
            piece: number,
            end: Some(end),
        });
    }
    let piece_end = piece.offset.saturating_add(piece.bytes);
    let mut offset = piece.offset;
    let mut digests = piece.digests.iter();
    let mut block = vec![0; usize::try_from(BLOCK_BYTES).unwrap_or(usize::MAX)];
    // Neighbours that differ are one change.
    let mut run: Option<(u64, Vec<u8>)> = None;
    let tell = |sender: &mut Sender, run: &mut Option<(u64, Vec<u8>)>| match run.take() {
        Some((offset, bytes)) => sender.change(Change::Bytes {
            piece: number,
            offset,
            bytes,
        }),
        None => Ok(()),
    };
    while offset < piece_end {
        let wanted = usize::try_from((piece_end - offset).min(BLOCK_BYTES)).unwrap_or(usize::MAX);
        let read =
            read_at(&file, block.get_mut(..wanted).unwrap_or_default(), offset).map_err(failed)?;
        let content = block.get(..read).unwrap_or_default();
        if content.is_empty() {
            break;
        }
        if digests.next() == Some(&digest(content)) {
            tell(sender, &mut run)?;
        } else {
            let (_, bytes) = run.get_or_insert_with(|| (offset, Vec::new()));
            bytes.extend_from_slice(content);
            if bytes.len() >= FRAME_BYTES {
                tell(sender, &mut run)?;
            }
        }
        offset = offset.saturating_add(u64::try_from(read).unwrap_or(u64::MAX));
        if read < wanted {
            break;
        }
    }
    tell(sender, &mut run)?;
    let end = if offset < piece_end {
        // It may end before the piece begins.
        Some(file.metadata().map_err(failed)?.len().min(offset))
    } else {
        Some(piece_end)
    };
    sender.change(Change::Done { piece: number, end })
}

/// Reads a small file that may be overwritten meanwhile, until two readings are equal.
fn still(file: &File) -> io::Result<Vec<u8>> {
    const TRIES: usize = 100;
    let read = || -> io::Result<Vec<u8>> {
        let mut content = vec![0; 64 << 10];
        let length = read_at(file, &mut content, 0)?;
        content.truncate(length);
        Ok(content)
    };
    let mut before = read()?;
    for _ in 0..TRIES {
        let content = read()?;
        if content == before {
            return Ok(content);
        }
        before = content;
    }
    Err(io::Error::other("it never stands still"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::reseed::{list, stream};
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::path::Path;
    use std::sync::Arc;
    use understudy_replication::postgres::reseed::{Roots, decode_changes, decode_entries};

    fn write(path: &Path, content: &[u8]) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    fn backup(data_dir: &Path, tablespaces: &BTreeMap<u32, std::path::PathBuf>) -> Arc<Backup> {
        let roots = Roots::open(data_dir, tablespaces).unwrap();
        Arc::new(Backup::of(roots, Some("log".parse().unwrap())))
    }

    /// Runs what sends, and returns the frames.
    async fn frames_of(
        backup: Arc<Backup>,
        work: impl FnOnce(&mut Sender) -> Result<(), StreamError> + Send + 'static,
    ) -> Vec<Vec<u8>> {
        let body = stream(backup, work).into_body();
        let mut bytes = &axum::body::to_bytes(body, usize::MAX).await.unwrap()[..];
        let mut frames = Vec::new();
        while let Some((length, rest)) = bytes.split_first_chunk::<4>() {
            let length = usize::try_from(u32::from_le_bytes(*length)).unwrap();
            let (frame, rest) = rest.split_at(length);
            frames.push(frame.to_vec());
            bytes = rest;
        }
        frames
    }

    async fn changes_of(backup: Arc<Backup>, pieces: Vec<Piece>) -> Vec<Change> {
        let asked = pieces.clone();
        let frames = frames_of(backup, move |sender| {
            for (number, piece) in (0..).zip(&asked) {
                compare(sender, number, piece)?;
            }
            sender.flush()
        })
        .await;
        let changes = frames
            .iter()
            .flat_map(|frame| decode_changes(frame, &pieces).unwrap());
        changes.collect()
    }

    #[tokio::test]
    async fn the_list_is_that_of_a_base_backup() {
        let folder = tempfile::tempdir().unwrap();
        let (data, space) = (folder.path().join("data"), folder.path().join("space"));
        let files = [
            "PG_VERSION",
            "base/5/10",
            "base/5/20",
            "base/5/20_init",
            "base/5/20_vm",
            "base/5/20.1",
            "base/5/t3_7",
            "base/5/pg_internal.init",
            "global/pg_control",
            "log/today",
            "postmaster.pid",
            "pg_wal/000000010000000000000001",
            "pg_replslot/b/state",
            "pg_tblspc/.keep",
        ];
        for file in files {
            write(&data.join(file), b"x");
        }
        write(&space.join("PG_15_1/5/30"), b"xyz");
        write(&space.join("PG_14_9/5/30"), b"of another server");
        symlink(&space, data.join("pg_tblspc/77")).unwrap();
        symlink("/etc", data.join("base/out")).unwrap();
        let tablespaces = BTreeMap::from([(77, space)]);
        let frames = frames_of(backup(&data, &tablespaces), list).await;
        let (end, lists) = frames.split_last().unwrap();
        assert_eq!(decode_entries(end).unwrap(), []);
        let mut told: Vec<String> = lists
            .iter()
            .flat_map(|frame| decode_entries(frame).unwrap())
            .map(|entry| match entry.size {
                Some(size) => format!("{} {size}", entry.path),
                None => entry.path.to_string(),
            })
            .collect();
        told.sort();
        assert_eq!(
            told,
            [
                "PG_VERSION 1",
                "base",
                "base/5",
                "base/5/10 1",
                "base/5/20_init 1",
                "global",
                "global/pg_control 1",
                "pg_replslot",
                "pg_tblspc",
                "pg_tblspc/.keep 1",
                "pg_tblspc/77/PG_15_1",
                "pg_tblspc/77/PG_15_1/5",
                "pg_tblspc/77/PG_15_1/5/30 3",
                "pg_wal",
            ]
        );
    }

    #[tokio::test]
    async fn only_what_differs_is_sent() {
        let folder = tempfile::tempdir().unwrap();
        let blocks: Vec<u8> = (0..5).flat_map(|number| vec![number; 8192]).collect();
        write(&folder.path().join("base/1"), &blocks);
        write(&folder.path().join("postmaster.pid"), b"secret");
        symlink("/etc/passwd", folder.path().join("base/link")).unwrap();
        let piece = |path: &str, offset, bytes, digests| Piece {
            path: path.parse().unwrap(),
            offset,
            bytes,
            digests,
        };
        let same = |number| digest(&[number; 8192]);
        let pieces = vec![
            // The second and the third differ, the last is missing.
            piece(
                "base/1",
                0,
                40_960,
                vec![same(0), [9; 16], [9; 16], same(3)],
            ),
            // It is shorter by now.
            piece("base/1", 32_768, 16_384, vec![same(4), same(5)]),
            piece("base/1", 81_920, 8192, vec![same(4)]),
            piece("base/gone", 0, 8192, vec![]),
            piece("postmaster.pid", 0, 6, vec![]),
        ];
        let backup = backup(folder.path(), &BTreeMap::new());
        let bytes = |piece, from: usize, to: usize| Change::Bytes {
            piece,
            offset: u64::try_from(from).unwrap(),
            bytes: blocks[from..to].to_vec(),
        };
        let done = |piece, end| Change::Done { piece, end };
        assert_eq!(
            changes_of(backup.clone(), pieces).await,
            [
                bytes(0, 8192, 24_576),
                bytes(0, 32_768, 40_960),
                done(0, Some(40_960)),
                done(1, Some(40_960)),
                done(2, Some(40_960)),
                done(3, None),
                done(4, None),
            ]
        );
        // A link is not followed: the stream breaks off.
        let hostile = vec![piece("base/link", 0, 8192, vec![])];
        assert_eq!(changes_of(backup, hostile).await, []);
    }
}
