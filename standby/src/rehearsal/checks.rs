//! Reads every table and every index of a copy of Postgres, by its own `pg_amcheck`.

use std::path::Path;
use std::time::Duration;

use super::RehearsalError;
use super::postgres::connect;
use super::seal::{Order, Seal, SealError};
use crate::copy::{ClusterCopy, CopyCheck, check_failed, check_passed, check_skipped};

/// What is looked at, in reports.
const WHAT: &str = "postgres";

/// The status with which `pg_amcheck` says that it has found something (its documentation, "Exit status").
const FOUND: i32 = 2;

/// How many lines of what it has found are told.
const LINES_MAX: usize = 20;

/// Checks every database; `limit` is how long that may take.
///
/// # Errors
/// When it cannot be checked, although it should be possible.
pub(super) async fn amcheck(
    seal: &mut Seal,
    copy: &ClusterCopy,
    limit: Duration,
) -> Result<CopyCheck, RehearsalError> {
    let program = copy.bin("pg_amcheck");
    if !Path::new(&program).exists() {
        return Ok(check_skipped(
            WHAT,
            format!("there is no {program}, which would read every table and index"),
        ));
    }
    let client = connect(copy).await?;
    let known = client
        .query_one(
            "SELECT count(*) FROM pg_available_extensions WHERE name = 'amcheck'",
            &[],
        )
        .await?;
    if known.get::<_, i64>(0) == 0 {
        return Ok(check_skipped(
            WHAT,
            "the extension amcheck is not installed; it is in postgresql-contrib".to_owned(),
        ));
    }
    drop(client);
    let port = copy.served.port.to_string();
    let socket_dir = copy.served.socket_dir.display().to_string();
    let argv = [
        program.as_str(),
        "--all",
        "--install-missing",
        "--heapallindexed",
        "--no-password",
        "-h",
        &socket_dir,
        "-p",
        &port,
        "-U",
        &copy.user().name,
    ];
    let order = Order::new(argv, limit).user(copy.user());
    match seal.run(&order).await {
        Ok(_) => Ok(check_passed(
            WHAT,
            "every table and index of every database was read (pg_amcheck --heapallindexed)"
                .to_owned(),
        )),
        Err(SealError::Failed {
            status: Some(FOUND),
            output,
            ..
        }) => Ok(check_failed(WHAT, first_lines(&output))),
        Err(source) => Err(RehearsalError::Sealed {
            action: "check the copy of postgres".to_owned(),
            source,
        }),
    }
}

fn first_lines(output: &str) -> String {
    let lines = output.lines().map(str::trim);
    let lines: Vec<&str> = lines.filter(|line| !line.is_empty()).collect();
    let shown: Vec<&str> = lines.iter().take(LINES_MAX).copied().collect();
    let more = lines.len().saturating_sub(shown.len());
    match more {
        0 => shown.join("; "),
        more => format!("{}; and {more} lines more", shown.join("; ")),
    }
}
