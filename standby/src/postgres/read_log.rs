//! Reads the write-ahead log of a cluster by `pg_waldump`.

use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use understudy_replication::command::{Command, CommandError};
use understudy_replication::position::Lsn;
use understudy_replication::postgres::{Cluster, segment_name};

/// A line of a dump is at most this long.
const LINE_BYTES_MAX: u64 = 64 << 10;

/// A part of the log to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) timeline: u32,
    /// Where it begins,
    pub(super) from: Lsn,
    /// and where it ends; `None` for as far as there is any.
    pub(super) to: Option<Lsn>,
    /// Records of checkpoints and the like alone.
    pub(super) is_of_log_itself: bool,
}

impl Part {
    /// Returns what `pg_waldump` is to be told, of a log in segments of this size of which these files are there.
    fn arguments(&self, segment_bytes: u64, is_there: impl Fn(&str) -> bool) -> Vec<String> {
        let mut arguments = vec![
            format!("--timeline={}", self.timeline),
            format!("--start={}", self.from),
        ];
        if self.is_of_log_itself {
            arguments.push("--rmgr=XLOG".to_owned());
        }
        // Where no file is named, the program asks any of the folder how large segments are, and gives up if that
        // is one made ahead that nothing was written to yet. Where one is named, it reads no further than that; so
        // the last one is named, too, and the end has to be in it.
        let Some(first) = segment_name(self.timeline, self.from, segment_bytes) else {
            return arguments;
        };
        let begin = self.from.0.saturating_sub(self.from.0 % segment_bytes);
        let (mut last, mut end) = (first.clone(), begin.saturating_add(segment_bytes));
        while self.to.is_none_or(|to| to.0 > end)
            && let Some(next) = segment_name(self.timeline, Lsn(end), segment_bytes)
            && is_there(&next)
        {
            (last, end) = (next, end.saturating_add(segment_bytes));
        }
        if let Some(to) = self.to.filter(|to| to.0 <= end) {
            arguments.push(format!("--end={to}"));
        }
        arguments.extend([first, last]);
        arguments
    }
}

/// Runs `pg_waldump` on the log of a cluster, and hands over each of its lines; the error is what the program
/// said, which it does at the end of a log, too.
pub(super) async fn read_log(
    cluster: &Cluster,
    part: Part,
    segment_bytes: u64,
    mut each: impl FnMut(&str),
) -> Result<(), String> {
    let path = cluster.data_dir.join("pg_wal");
    let argv = [
        cluster.bin("pg_waldump"),
        format!("--path={}", path.display()),
    ];
    let arguments = part.arguments(segment_bytes, |name| path.join(name).exists());
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_is_told_in_which_file_to_begin_and_in_which_to_end() {
        let part = |from, to: Option<u64>| Part {
            timeline: 2,
            from: Lsn(from),
            to: to.map(Lsn),
            is_of_log_itself: false,
        };
        // Segments 3, 4 and 5 are there.
        let there = |name: &str| matches!(name.as_bytes().last(), Some(b'3'..=b'5'));
        let told = |part: Part| part.arguments(16 << 20, there)[1..].join(" ");
        let (first, last) = ("000000020000000100000003", "000000020000000100000005");
        let from = 0x1_0300_0028;
        assert_eq!(
            told(part(from, Some(0x1_0500_0007))),
            format!("--start=1/3000028 --end=1/5000007 {first} {last}")
        );
        // The end of a segment is in it.
        for end in [from + 1, 0x1_0400_0000] {
            let expected = format!("--start=1/3000028 --end={} {first} {first}", Lsn(end));
            assert_eq!(told(part(from, Some(end))), expected);
        }
        // As far as there is any.
        for end in [None, Some(0x1_0700_0000)] {
            let expected = format!("--start=1/3000028 {first} {last}");
            assert_eq!(told(part(from, end)), expected);
        }
    }
}
