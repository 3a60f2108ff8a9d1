//! Which files of a data directory a copy consists of: those that `pg_basebackup` takes. Pure.

use super::path::ClusterPath;

/// Their content belongs to a running server, or to one node; the directories themselves are copied.
const EMPTIED: [&str; 8] = [
    // The log comes by the slot.
    "pg_wal",
    "pg_dynshmem",
    "pg_notify",
    // A standby must not hold back log for somebody else's standbys.
    "pg_replslot",
    "pg_serial",
    "pg_snapshots",
    "pg_stat_tmp",
    "pg_subtrans",
];

/// Files at the top that belong to one server, or to one backup.
const OWN: [&str; 7] = [
    "postmaster.pid",
    "postmaster.opts",
    "postgresql.auto.conf.tmp",
    "backup_manifest",
    // A primary that was a standby has none; one that is left there must make nobody a standby.
    "standby.signal",
    "recovery.signal",
    "tablespace_map.old",
];

/// Returns the folder of a tablespace that servers of this version use.
pub fn version_folder(version: u32, catalog_version: u32) -> String {
    format!("PG_{version}_{catalog_version}")
}

/// Returns whether a file or a directory belongs to a copy, as far as its path tells: whether it is of an
/// unlogged relation is told by its neighbours, see [`is_relation_of`].
pub fn is_copied(path: &ClusterPath) -> bool {
    let text = path.as_str();
    let name = path.name();
    let is_emptied = EMPTIED
        .iter()
        .any(|folder| path.is_within(folder) && text != *folder);
    let is_at_top = path.parent().is_none();
    let is_own = is_at_top
        && (OWN.contains(&name)
            || ["backup_label", "tablespace_map", "current_logfiles"]
                .iter()
                .any(|prefix| name.starts_with(prefix)));
    // In any directory: caches that a server builds, and its temporary files.
    let is_transient = name.starts_with("pg_internal.init") || name.starts_with("pgsql_tmp");
    !(is_emptied || is_own || is_transient || is_temporary_relation(name))
}

/// Returns whether `name` is of a temporary relation: `t`, a backend, `_`, then as any other.
fn is_temporary_relation(name: &str) -> bool {
    name.strip_prefix('t')
        .and_then(|rest| rest.split_once('_'))
        .is_some_and(|(backend, rest)| is_number(backend) && relation(rest).is_some())
}

/// Returns the number of the relation whose main, or other, fork `name` is, but for the initial fork of an
/// unlogged one: `1249`, `1249.1`, `1249_fsm`, `1249_vm.2`. A directory that has the file `NUMBER_init` has
/// nothing else of that relation worth copying: the server makes it anew from that.
pub fn is_relation_of(name: &str) -> Option<&str> {
    let (number, fork) = relation(name)?;
    (fork != Some("init")).then_some(number)
}

/// Returns whether `name` is of a relation, or of anything else that is named by a number, as the commit log.
/// Such files are changed in their place, which the write-ahead log tells; others are replaced.
pub fn is_of_relation(name: &str) -> bool {
    relation(name).is_some()
}

/// Parses `NUMBER[_FORK][.SEGMENT]`.
fn relation(name: &str) -> Option<(&str, Option<&str>)> {
    let name = match name.split_once('.') {
        Some((name, segment)) if is_number(segment) => name,
        Some(_) => return None,
        None => name,
    };
    match name.split_once('_') {
        Some((number, fork)) => (is_number(number) && ["fsm", "vm", "init"].contains(&fork))
            .then_some((number, Some(fork))),
        None => is_number(name).then_some((name, None)),
    }
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_consists_of_what_a_base_backup_takes() {
        let copied = [
            "PG_VERSION",
            "base",
            "base/5/1249",
            "base/5/1249_fsm",
            "base/5/1249.1",
            "base/5/PG_VERSION",
            "global/pg_control",
            "global/pg_filenode.map",
            "pg_wal",
            "pg_replslot",
            "pg_xact/0000",
            "pg_hba.conf",
            "postgresql.auto.conf",
            "pg_tblspc/16400/PG_15_1/5/2",
            "pg_logical/mappings",
            "base/5/backup_label",
            "conf.d/postmaster.pid",
            "pg_stat",
            "base/5/t1",
            "base/5/t3_x",
        ];
        let left_out = [
            "pg_wal/000000010000000000000001",
            "pg_wal/archive_status",
            "pg_replslot/understudy_b/state",
            "pg_stat_tmp/x",
            "pg_subtrans/0000",
            "pg_notify/0000",
            "pg_serial/0",
            "pg_snapshots/0",
            "pg_dynshmem/0",
            "postmaster.pid",
            "postmaster.opts",
            "postgresql.auto.conf.tmp",
            "current_logfiles",
            "current_logfiles.tmp",
            "backup_label",
            "backup_label.old",
            "tablespace_map",
            "backup_manifest",
            "standby.signal",
            "base/5/pg_internal.init",
            "global/pg_internal.init.77",
            "base/pgsql_tmp",
            "base/pgsql_tmp/pgsql_tmp1.0",
            "base/5/t3_16384",
            "base/5/t3_16384_fsm.1",
            "pg_tblspc/16400/PG_15_1/pgsql_tmp",
        ];
        for path in copied {
            assert!(is_copied(&path.parse().unwrap()), "{path}");
        }
        for path in left_out {
            assert!(!is_copied(&path.parse().unwrap()), "{path}");
        }
    }

    #[test]
    fn the_forks_of_a_relation_are_known_from_other_files() {
        let table = [
            ("1249", Some("1249")),
            ("1249.12", Some("1249")),
            ("1249_vm", Some("1249")),
            ("1249_fsm.1", Some("1249")),
            ("1249_init", None),
            ("1249_x", None),
            ("1249.x", None),
            ("pg_filenode.map", None),
            ("PG_VERSION", None),
            ("", None),
        ];
        for (name, expected) in table {
            assert_eq!(is_relation_of(name), expected, "{name}");
        }
    }
}
