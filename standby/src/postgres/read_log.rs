//! Reads the write-ahead log of a cluster by `pg_waldump`.

use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use understudy_replication::command::{Command, CommandError};
use understudy_replication::postgres::Cluster;

/// A line of a dump is at most this long.
const LINE_BYTES_MAX: u64 = 64 << 10;

/// Runs `pg_waldump` on the log of a cluster, and hands over each of its lines; the error is what the program
/// said, which it does at the end of a log, too.
pub(super) async fn read_log(
    cluster: &Cluster,
    arguments: impl IntoIterator<Item = String>,
    mut each: impl FnMut(&str),
) -> Result<(), String> {
    let path = cluster.data_dir.join("pg_wal");
    let argv = [
        cluster.bin("pg_waldump"),
        format!("--path={}", path.display()),
    ];
    let mut child = Command::new(argv.into_iter().chain(arguments))
        .user(&cluster.user)
        .spawn_piped()
        .map_err(|error: CommandError| error.to_string())?;
    let stderr = child.stderr.take();
    // Read beside the output: a full pipe would stop the program.
    let said = tokio::spawn(async move {
        let mut said = Vec::new();
        if let Some(stderr) = stderr {
            let mut stderr = stderr.take(LINE_BYTES_MAX);
            // What it could not say is missed in a message only.
            let _read = stderr.read_to_end(&mut said).await.is_ok();
        }
        String::from_utf8_lossy(&said).trim().to_owned()
    });
    if let Some(stdout) = child.stdout.take() {
        let mut lines = BufReader::with_capacity(1 << 16, stdout);
        let mut line = Vec::new();
        loop {
            line.clear();
            let read = (&mut lines)
                .take(LINE_BYTES_MAX)
                .read_until(b'\n', &mut line)
                .await
                .map_err(|error| error.to_string())?;
            if read == 0 {
                break;
            }
            each(&String::from_utf8_lossy(&line));
        }
    }
    let status = child.wait().await.map_err(|error| error.to_string())?;
    let said = said.await.unwrap_or_default();
    if status.success() {
        Ok(())
    } else {
        Err(format!("pg_waldump: {said}"))
    }
}
