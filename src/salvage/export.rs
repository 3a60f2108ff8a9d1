//! A copy of a bundle for people, in a folder of their own.
//!
//! It is made under another name, synced, and gets its name at last: a folder that has the name of the bundle is
//! whole. What is there already is never touched.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};

use fs_extra::dir::CopyOptions;
use rustix::fs::{CWD, RenameFlags, renameat_with, statvfs, syncfs};
use understudy_config::Local;
use understudy_replication::settings::{Entry, Revision};

use super::bundle::{Bundle, Held, weigh};
use super::show::{Change, operations};
use crate::failure::Failure;
use crate::stores::Makings;

/// So much is left free on the disk that the copy is written to, in bytes.
const FREE_BYTES_MIN: u64 = 64 << 20;

fn failed(action: &str, path: &Path, error: &dyn std::fmt::Display) -> Failure {
    Failure::failed(format!("cannot {action} {}: {error}", path.display()))
}

/// Copies a bundle into a folder of its name beneath `to`; returns that, and how much was copied.
pub(super) fn export(bundle: &Bundle, local: &Local, to: &Path) -> Result<(PathBuf, u64), Failure> {
    fs::create_dir_all(to).map_err(|error| failed("create", to, &error))?;
    let real = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let (to, state) = (real(to), real(&local.state_dir));
    if to.starts_with(&state)
        || to
            .components()
            .any(|part| part.as_os_str() == ".understudy")
    {
        return Err(Failure::usage(format!(
            "{} belongs to understudy; choose another folder",
            to.display()
        )));
    }
    let target = to.join(&bundle.name);
    if fs::symlink_metadata(&target).is_ok() {
        return Err(
            Failure::refused(format!("{} is there already", target.display()))
                .hint("nothing is overwritten: choose another folder, or move it away"),
        );
    }
    let mut bytes = weigh(&bundle.path).1;
    if let Some(tree) = bundle.tree().filter(|tree| *tree != bundle.path) {
        bytes = bytes.saturating_add(weigh(tree).1);
    }
    let disk = statvfs(&to).map_err(|error| failed("ask the room in", &to, &error))?;
    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
    if free < bytes.saturating_add(FREE_BYTES_MIN) {
        return Err(Failure::refused(format!(
            "the bundle has {bytes} bytes, and {free} are free in {}",
            to.display()
        ))
        .hint("make room, or choose another folder"));
    }
    let partial = to.join(format!(".{}.{}.partial", bundle.name, std::process::id()));
    let written = write(bundle, local, &partial);
    let named = written.and_then(|()| {
        let folder = File::open(&partial).map_err(|error| failed("open", &partial, &error))?;
        syncfs(&folder).map_err(|error| failed("sync", &partial, &error))?;
        renameat_with(CWD, &partial, CWD, &target, RenameFlags::NOREPLACE)
            .map_err(|error| failed("name", &target, &error))?;
        understudy_replication::durable::sync_directory_of(&target)
            .map_err(|error| failed("sync", &to, &error))
    });
    if let Err(failure) = named {
        // It is a copy: what is left of it is of no use.
        let _left = fs::remove_dir_all(&partial).is_err();
        return Err(failure);
    }
    Ok((target, bytes))
}

fn write(bundle: &Bundle, local: &Local, partial: &Path) -> Result<(), Failure> {
    // What is in it was closed to others where it was kept.
    let made = fs::DirBuilder::new().mode(0o700).create(partial);
    made.map_err(|error| failed("create", partial, &error))?;
    let skipped = match &bundle.held {
        Held::Tree => copy_tree(&bundle.path, &partial.join("files"))?,
        Held::Files(manifest) => {
            copy_plain(&bundle.path, partial)?;
            copy_tree(&manifest.kept, &partial.join("files"))?
        }
        Held::Settings if bundle.path.is_dir() => copy_tree(&bundle.path, &partial.join("files"))?,
        Held::Settings => {
            copy_plain(&bundle.path, partial)?;
            write_revision(&bundle.path, &partial.join("files"))?;
            Vec::new()
        }
        Held::Postgres(_) | Held::Unreadable => {
            copy_plain(&bundle.path, partial)?;
            Vec::new()
        }
        Held::Kv(_) => {
            copy_plain(&bundle.path, partial)?;
            write_operations(bundle, local, &partial.join("operations.jsonl"))?;
            Vec::new()
        }
    };
    let path = partial.join("README.txt");
    fs::write(&path, readme(bundle, &skipped)).map_err(|error| failed("write", &path, &error))
}

/// Copies a folder of plain files, which understudy wrote, or one of them.
fn copy_plain(from: &Path, to: &Path) -> Result<(), Failure> {
    if from.is_dir() {
        let options = CopyOptions::new().content_only(true);
        let copied = fs_extra::dir::copy(from, to, &options);
        copied.map_err(|error| failed("copy", from, &error))?;
    } else if let Some(name) = from.file_name() {
        let options = fs_extra::file::CopyOptions::new();
        let copied = fs_extra::file::copy(from, to.join(name), &options);
        copied.map_err(|error| failed("copy", from, &error))?;
    }
    Ok(())
}

/// Copies a tree of users' files as it is: links stay links, and modes and times stay. Returns what is neither
/// a file nor a folder nor a link, and was left out.
fn copy_tree(from: &Path, to: &Path) -> Result<Vec<PathBuf>, Failure> {
    let mut left = Vec::new();
    let mut waiting = vec![(from.to_owned(), to.to_owned())];
    // Their times are set when nothing is put into them any more.
    let mut folders = Vec::new();
    while let Some((source, target)) = waiting.pop() {
        let found = match fs::symlink_metadata(&source) {
            Ok(found) => found,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(failed("look at", &source, &error)),
        };
        let kind = found.file_type();
        if kind.is_dir() {
            fs::create_dir(&target).map_err(|error| failed("create", &target, &error))?;
            let entries = fs::read_dir(&source).map_err(|error| failed("read", &source, &error))?;
            for entry in entries {
                let entry = entry.map_err(|error| failed("read", &source, &error))?;
                waiting.push((entry.path(), target.join(entry.file_name())));
            }
            folders.push((target, found));
        } else if kind.is_symlink() {
            let linked = fs::read_link(&source).and_then(|to| symlink(to, &target));
            linked.map_err(|error| failed("copy", &source, &error))?;
        } else if kind.is_fifo()
            || kind.is_socket()
            || kind.is_char_device()
            || kind.is_block_device()
        {
            left.push(source);
        } else {
            let options = fs_extra::file::CopyOptions::new();
            let copied = fs_extra::file::copy(&source, &target, &options);
            copied.map_err(|error| failed("copy", &source, &error))?;
            keep_time(&target, &found).map_err(|error| failed("copy", &source, &error))?;
        }
    }
    for (target, found) in folders.into_iter().rev() {
        keep_time(&target, &found).map_err(|error| failed("change", &target, &error))?;
        fs::set_permissions(&target, found.permissions())
            .map_err(|error| failed("change", &target, &error))?;
    }
    Ok(left)
}

fn keep_time(target: &Path, found: &fs::Metadata) -> io::Result<()> {
    let times = fs::FileTimes::new().set_modified(found.modified()?);
    File::open(target)?.set_times(times)
}

/// Writes the files of a revision of the settings as they were, for its owner only.
fn write_revision(revision: &Path, to: &Path) -> Result<(), Failure> {
    let revision = Revision::decode(&fs::read(revision)?)?;
    for (path, entry) in revision.entries() {
        let target = to.join(path.to_string().trim_start_matches('/'));
        let parent = match entry {
            Entry::Directory { .. } => Some(target.as_path()),
            Entry::File { .. } | Entry::Symlink { .. } => target.parent(),
        };
        if let Some(parent) = parent {
            fs::create_dir_all(parent).map_err(|error| failed("create", parent, &error))?;
        }
        let written = match entry {
            Entry::File { content, .. } => File::options()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&target)
                .and_then(|mut file| file.write_all(content)),
            Entry::Directory { .. } => Ok(()),
            Entry::Symlink { target: to } => symlink(to, &target),
        };
        written.map_err(|error| failed("write", &target, &error))?;
    }
    Ok(())
}

fn write_operations(bundle: &Bundle, local: &Local, path: &Path) -> Result<(), Failure> {
    let created = File::create_new(path).map_err(|error| failed("create", path, &error))?;
    let mut out = BufWriter::new(created);
    operations(&Makings::salvage(local), &bundle.name, |operation| {
        let line = serde_json::to_string(&Change::of(operation, usize::MAX))?;
        writeln!(out, "{line}").map_err(|error| failed("write", path, &error))?;
        Ok(true)
    })?;
    out.flush().map_err(|error| failed("write", path, &error))
}

/// Returns what a person who finds the copy in a year has to know.
fn readme(bundle: &Bundle, left: &[PathBuf]) -> String {
    let mut text = format!(
        "{}\n\nWhat node {} had of store {} when it was made equal to another primary{}, and that primary \
         lacked.\nKept {}; {} bytes{}.\n\n{}.\n\n",
        bundle.name,
        match &bundle.node {
            Some(node) => node.as_str(),
            None => "(not known)",
        },
        bundle.store,
        bundle.why(),
        match bundle.made {
            Some(made) => made.to_string(),
            None => "at an unknown time".to_owned(),
        },
        bundle.bytes,
        if bundle.is_complete {
            ""
        } else {
            ", which is NOT all of it"
        },
        bundle.summary
    );
    text += &match &bundle.held {
        Held::Postgres(summary) => {
            let mut text = "summary.json   what the log did, as far as pg_waldump could tell\n\
                            wal/           the files of the write-ahead log\n\n\
                            To read it (pg_waldump of the same major version):\n\n"
                .to_owned();
            for range in &summary.ranges {
                text += &format!(
                    "  pg_waldump --path=wal --timeline={} --start={} --end={}\n",
                    range.timeline, range.from, range.to
                );
            }
            text + "\nRelations are named tablespace/database/filenode. In that database, \
                    SELECT pg_filenode_relation(tablespace, filenode) gives the name, with 0 for tablespace 1663.\n\
                    To get rows back, restore a base backup from before the first LSN, recover it with these \
                    files up to the last, and copy what is wanted.\n"
        }
        Held::Files(_) => "files/         the files that were set aside, under the paths that they had\n\
                           paths.jsonl    one line for each path that differed: `differs` and `only_here` are in \
                           files/;\n               `deleted_here` were deleted on this node, and came back from \
                           the primary;\n               of `attributes` only the mode, the owner or the time was \
                           another one, told in `had`\n\
                           manifest.json  when and why\n"
            .to_owned(),
        Held::Tree => "files/         the files that were set aside, under the paths that they had\n".to_owned(),
        Held::Kv(_) => "operations.jsonl  what clients did, one operation per line, in order; bytes that are no text \
                        are {\"base64\": …}\n\
                        entries.log       the same as it was logged\n\
                        manifest.json     when and why\n\n\
                        `understudy kv salvage replay` puts it back, from the node's own copy of the bundle.\n"
            .to_owned(),
        Held::Settings => "Settings as this node had them.\n".to_owned(),
        Held::Unreadable => "It could not be read, and was copied as it is.\n".to_owned(),
    };
    if !left.is_empty() {
        text += "\nLeft out, because they are no files:\n";
        for path in left {
            text += &format!("  {}\n", path.display());
        }
    }
    text
}
