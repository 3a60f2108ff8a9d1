//! A copy of the standby's Postgres cluster, made while its server replays on: Postgres' own low-level base
//! backup, of which the files are shared or copied here.
//!
//! Order: a slot that keeps the log, the start of the backup, the files, the control file as the last of
//! them, the end of the backup, and then the log from where the backup starts. The control file says up to
//! where the log has to be replayed before the copy is consistent; on a standby that is what stands for the
//! record of a backup's end.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio_postgres::Client;
use understudy_replication::durable::{self, Owner};
use understudy_replication::position::Lsn;
use understudy_replication::postgres::{
    Cluster, MAINTENANCE_DATABASE, connect, lsn, parse_segment,
};

use super::pace::Pace;
use super::tree::{copy_file, copy_tree, make_folder, make_parent, resolved};
use super::{CopyError, Place, aside, failed};

/// Folders whose content means nothing to another server (Postgres' `basebackup.c`, `excludeDirContents`);
/// the log is copied by itself, and the server's own logs are no data.
const EMPTY: [&str; 10] = [
    "pg_wal",
    "pg_replslot",
    "pg_dynshmem",
    "pg_notify",
    "pg_serial",
    "pg_snapshots",
    "pg_stat_tmp",
    "pg_subtrans",
    "log",
    "pg_log",
];

/// Files that belong to the running server, or that say what the copy must not be.
const LEFT_OUT: [&str; 12] = [
    "postmaster.pid",
    "postmaster.opts",
    "postgresql.auto.conf.tmp",
    "current_logfiles",
    "current_logfiles.tmp",
    "backup_label",
    "backup_label.old",
    "tablespace_map",
    "tablespace_map.old",
    "backup_manifest",
    "standby.signal",
    "recovery.signal",
];

/// The file that is copied as the last.
const CONTROL: &str = "global/pg_control";

/// What was copied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PostgresCopied {
    /// From where on the copy replays the log.
    pub start: Lsn,
    /// Up to where the log was copied.
    pub end: Lsn,
}

/// Copies the cluster whose standby server runs here: its data, its tablespaces, its log, its configuration.
///
/// # Errors
/// When the server does not help, or a file cannot be copied.
pub async fn copy_postgres(
    cluster: &Cluster,
    place: &Place,
    pace: Arc<Pace>,
) -> Result<PostgresCopied, CopyError> {
    let client = connect(cluster, MAINTENANCE_DATABASE).await?;
    // Temporary: it goes with this connection, however that ends.
    let slot = format!("rehearsal_{}", std::process::id());
    execute(
        &client,
        "make a slot that keeps the log while it is copied",
        "SELECT pg_create_physical_replication_slot($1, true, true)",
        &[&slot],
    )
    .await?;
    let row = client
        .query_one(
            "SELECT pg_backup_start('understudy rehearsal', true)::text, \
             (SELECT setting::bigint FROM pg_settings WHERE name = 'wal_segment_size')",
            &[],
        )
        .await
        .map_err(query("start a backup"))?;
    let start = lsn(&row, 0)?.unwrap_or_default();
    let segment_bytes: i64 = row.get(1);
    let segment_bytes = u64::try_from(segment_bytes).unwrap_or(16 << 20);
    let (data_dir, tablespaces) = (cluster.data_dir.clone(), place.tablespaces());
    let target = place.of(&data_dir);
    let working = pace.clone();
    let owner = owner_of(cluster);
    aside(move || copy_data(&data_dir, &target, &tablespaces, owner, &working)).await?;
    if cluster.is_split() {
        let (config_dir, target) = (cluster.config_dir.clone(), place.of(&cluster.config_dir));
        let working = pace.clone();
        aside(move || copy_top(&config_dir, &target, &working, &|_| false)).await?;
    }
    let row = client
        .query_one(
            "SELECT labelfile, lsn::text, greatest(pg_last_wal_receive_lsn(), \
             pg_last_wal_replay_lsn(), lsn)::text FROM pg_backup_stop(false)",
            &[],
        )
        .await
        .map_err(query("end a backup"))?;
    let label: String = row.get(0);
    let end = lsn(&row, 2)?.unwrap_or_default();
    let (source, target) = (cluster.data_dir.clone(), place.of(&cluster.data_dir));
    let working = pace.clone();
    let needed = Needed {
        start,
        end,
        segment_bytes,
    };
    aside(move || {
        copy_log(&source, &target, &needed, &working)?;
        let path = target.join("backup_label");
        durable::write_for(&path, label.as_bytes(), 0o600, owner)
            .map_err(failed("write", &path))?;
        // As a standby it replays what it has, and then waits for the word to be promoted.
        let path = target.join("standby.signal");
        durable::write_for(&path, b"", 0o600, owner).map_err(failed("write", &path))
    })
    .await?;
    // Ends the session, and with it the slot.
    drop(client);
    Ok(PostgresCopied { start, end })
}

/// Returns to whom the files of the copy are given.
pub(super) fn owner_of(cluster: &Cluster) -> Option<Owner> {
    rustix::process::geteuid().is_root().then_some(Owner {
        uid: cluster.user.uid,
        gid: cluster.user.gid,
    })
}

fn query(what: &'static str) -> impl FnOnce(tokio_postgres::Error) -> CopyError {
    move |source| CopyError::Query { what, source }
}

async fn execute(
    client: &Client,
    what: &'static str,
    sql: &str,
    parameters: &[&(dyn tokio_postgres::types::ToSql + Sync)],
) -> Result<(), CopyError> {
    client.query(sql, parameters).await.map_err(query(what))?;
    Ok(())
}

/// Makes a folder of the OS user of the cluster.
fn own_folder(path: &Path, owner: Option<Owner>) -> Result<(), CopyError> {
    make_folder(path, 0o700)?;
    let Some(Owner { uid, gid }) = owner else {
        return Ok(());
    };
    std::os::unix::fs::chown(path, Some(uid), Some(gid)).map_err(failed("give away", path))
}

/// Copies a folder of the cluster. Where its name is a link, what that leads to is copied: a link in the copy
/// would lead back to the live server's own files, which would then be written to as the copy's.
fn copy_top(
    source: &Path,
    target: &Path,
    pace: &Pace,
    is_skipped: &dyn Fn(&Path) -> bool,
) -> Result<(), CopyError> {
    make_parent(target)?;
    copy_tree(&resolved(source)?, target, pace, is_skipped)
}

/// Copies all but the log.
fn copy_data(
    source: &Path,
    target: &Path,
    tablespaces: &Path,
    owner: Option<Owner>,
    pace: &Pace,
) -> Result<(), CopyError> {
    copy_top(source, target, pace, &|within| {
        is_left_out(within)
            || within == Path::new(CONTROL)
            || within.parent() == Some(Path::new("pg_tblspc"))
    })?;
    for name in EMPTY {
        if source.join(name).is_dir() {
            own_folder(&target.join(name), owner)?;
        }
    }
    let links = source.join("pg_tblspc");
    for entry in fs::read_dir(&links).map_err(failed("read", &links))? {
        let entry = entry.map_err(failed("read", &links))?;
        let (link, name) = (entry.path(), entry.file_name());
        let place = tablespaces.join(&name);
        make_parent(&place)?;
        copy_tree(&resolved(&link)?, &place, pace, &is_left_out)?;
        own_folder(&place, owner)?;
        let copy = target.join("pg_tblspc").join(&name);
        std::os::unix::fs::symlink(&place, &copy).map_err(failed("make", &copy))?;
    }
    let (from, to) = (source.join(CONTROL), target.join(CONTROL));
    let file = File::open(&from).map_err(failed("open", &from))?;
    copy_file(&file, &from, &to, pace)
}

/// Returns the tablespaces of a cluster by the names of their links, and where they are.
pub fn tablespaces(cluster: &Cluster) -> Vec<(OsString, PathBuf)> {
    let entries = fs::read_dir(cluster.data_dir.join("pg_tblspc"));
    let links = entries.into_iter().flatten().flatten();
    links
        .filter(|entry| entry.file_type().is_ok_and(|it| it.is_symlink()))
        .filter_map(|entry| Some((entry.file_name(), resolved(&entry.path()).ok()?)))
        .collect()
}

/// Links the tablespaces of a copy that has replayed its log to their copies: the making of one, when it is
/// replayed, links it to where the original has it. There the walls of the room had put the copy.
///
/// # Errors
/// When a tablespace has no copy, or it cannot be linked.
pub fn own_tablespaces(data_dir: &Path, place: &Place) -> Result<(), CopyError> {
    let links = data_dir.join("pg_tblspc");
    for entry in fs::read_dir(&links).map_err(failed("read", &links))? {
        let link = entry.map_err(failed("read", &links))?.path();
        let Ok(found) = fs::read_link(&link) else {
            continue;
        };
        let copy = place
            .tablespaces()
            .join(link.file_name().unwrap_or_default());
        if found == copy {
            continue;
        }
        if !copy.is_dir() {
            return Err(CopyError::Outside { path: link, found });
        }
        fs::remove_file(&link).map_err(failed("remove", &link))?;
        std::os::unix::fs::symlink(&copy, &link).map_err(failed("make", &link))?;
    }
    durable::sync_directory_of(&links.join("any")).map_err(failed("sync", &links))
}

/// Returns whether a path within the data directory, or a tablespace, is of no use in a copy.
fn is_left_out(within: &Path) -> bool {
    let name = within.file_name().unwrap_or_default().to_string_lossy();
    // In any folder: files of sessions, and caches that a server makes anew.
    if name.starts_with("pgsql_tmp") || name.starts_with("pg_internal.init") {
        return true;
    }
    let is_top = within.components().count() == 1;
    is_top && (LEFT_OUT.contains(&&*name) || EMPTY.contains(&&*name))
}

/// What of the log a copy needs.
struct Needed {
    start: Lsn,
    end: Lsn,
    segment_bytes: u64,
}

/// Copies the segments that are needed, of every timeline, and the histories of the timelines.
fn copy_log(source: &Path, target: &Path, needed: &Needed, pace: &Pace) -> Result<(), CopyError> {
    let folder = source.join("pg_wal");
    let first = needed.start.0 / needed.segment_bytes;
    let last = needed.end.0 / needed.segment_bytes;
    let mut found = std::collections::BTreeSet::new();
    let entries = fs::read_dir(&folder).map_err(failed("read", &folder))?;
    for entry in entries {
        let path: PathBuf = entry.map_err(failed("read", &folder))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let segment = parse_segment(&name, needed.segment_bytes);
        let number = segment.map(|(_, at)| at.0 / needed.segment_bytes);
        let is_needed = match number {
            Some(number) => (first..=last).contains(&number),
            None => name.ends_with(".history"),
        };
        if !is_needed {
            continue;
        }
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            Err(error) => return Err(failed("open", &path)(error)),
        };
        copy_file(&file, &path, &target.join("pg_wal").join(&*name), pace)?;
        found.extend(number);
    }
    // The end may be the very beginning of a segment that is still to come.
    let last_needed = needed.end.0.saturating_sub(1) / needed.segment_bytes;
    if (first..=last_needed).all(|number| found.contains(&number)) {
        return Ok(());
    }
    Err(CopyError::NoLog {
        folder,
        start: needed.start,
        end: needed.end,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use understudy_replication::store::Stopper;

    #[test]
    fn what_belongs_to_the_running_server_is_left_out() {
        for path in [
            "postmaster.pid",
            "pg_wal",
            "base/pgsql_tmp",
            "base/5/pg_internal.init",
            "standby.signal",
        ] {
            assert!(is_left_out(Path::new(path)), "{path}");
        }
        for path in [
            "base/5/1259",
            "base/log",
            "postgresql.auto.conf",
            "PG_VERSION",
        ] {
            assert!(!is_left_out(Path::new(path)), "{path}");
        }
    }

    #[test]
    fn folders_that_are_links_are_copied_by_what_they_lead_to() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        for name in ["disk/global", "disk/pg_tblspc", "disk/pg_wal", "etc"] {
            fs::create_dir_all(path(name)).unwrap();
        }
        fs::write(path("disk/global/pg_control"), "control").unwrap();
        fs::write(path("etc/postgresql.conf"), "port = 5432\n").unwrap();
        let link = |to: &str, name: &str| std::os::unix::fs::symlink(path(to), path(name)).unwrap();
        link("disk", "data");
        link("etc", "conf");
        let (_stopper, stop) = Stopper::new();
        let pace = Pace::new(None, stop);
        let (data, conf) = (path("copy/data"), path("copy/conf"));
        copy_data(&path("data"), &data, &path("copy/spaces"), None, &pace).unwrap();
        copy_top(&path("conf"), &conf, &pace, &|_| false).unwrap();
        fs::write(conf.join("postgresql.conf"), "port = 1\n").unwrap();
        assert_eq!(
            fs::read_to_string(path("etc/postgresql.conf")).unwrap(),
            "port = 5432\n"
        );
        assert!(data.join("pg_wal").is_dir() && !data.is_symlink());
        assert_eq!(fs::read_to_string(data.join(CONTROL)).unwrap(), "control");
    }

    #[test]
    fn a_tablespace_that_leads_to_the_original_leads_to_its_copy_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let place = Place {
            folder: path("copy"),
            root: "/".into(),
        };
        let links = path("data/pg_tblspc");
        for made in [links.clone(), path("live"), place.tablespaces().join("1")] {
            fs::create_dir_all(made).unwrap();
        }
        std::os::unix::fs::symlink(path("live"), links.join("1")).unwrap();
        own_tablespaces(&path("data"), &place).unwrap();
        assert_eq!(
            fs::read_link(links.join("1")).unwrap(),
            place.tablespaces().join("1")
        );
        std::os::unix::fs::symlink(path("live"), links.join("2")).unwrap();
        let lost = own_tablespaces(&path("data"), &place);
        assert!(matches!(lost, Err(CopyError::Outside { .. })), "{lost:?}");
    }

    #[test]
    fn a_copy_whose_log_has_a_gap_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let (source, target) = (folder.path().join("a"), folder.path().join("b"));
        for folder in [&source, &target] {
            fs::create_dir_all(folder.join("pg_wal")).unwrap();
        }
        let segment = |number: u32| format!("00000002{:08X}{number:08X}", 0);
        for name in [
            segment(1),
            segment(3),
            segment(9),
            "00000002.history".to_owned(),
        ] {
            fs::write(source.join("pg_wal").join(name), "log").unwrap();
        }
        let (_stopper, stop) = Stopper::new();
        let copy = |first: u64, last: u64| {
            let needed = Needed {
                start: Lsn((first << 24) + 5),
                end: Lsn(last << 24),
                segment_bytes: 1 << 24,
            };
            fs::remove_dir_all(target.join("pg_wal")).unwrap();
            fs::create_dir_all(target.join("pg_wal")).unwrap();
            copy_log(&source, &target, &needed, &Pace::new(None, stop.clone()))
        };
        assert!(matches!(copy(1, 3), Err(CopyError::NoLog { .. })));
        copy(3, 4).unwrap();
        let mut names: Vec<_> = fs::read_dir(target.join("pg_wal"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        assert_eq!(names, ["00000002.history".to_owned(), segment(3)]);
    }
}
