//! The folder of reports: evidence of what was done, a file for each, below the state directory.
//!
//! ```text
//! STATE/reports/promotion-EPOCH.json
//! STATE/reports/rejoin-TIME.json   drill-TIME.json   switchover-drill-TIME.json   fault-drill-TIME.json
//! ```

use std::fmt::Display;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::durable;
use crate::wall_time::WallTime;

/// What is longer is no report, in bytes.
const REPORT_BYTES_MAX: u64 = 4 << 20;

/// What a report is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A promotion; it is called by the epoch that was opened.
    Promotion,
    /// A rejoin.
    Rejoin,
    /// A rehearsal of a promotion, on copies.
    Rehearsal,
    /// A switchover there and back.
    Switchover,
    /// Something that was broken on purpose.
    Fault,
}

impl Kind {
    fn as_str(self) -> &'static str {
        match self {
            Self::Promotion => "promotion",
            Self::Rejoin => "rejoin",
            Self::Rehearsal => "drill",
            Self::Switchover => "switchover-drill",
            Self::Fault => "fault-drill",
        }
    }

    /// Returns the name of the file for a report of this kind on `what`.
    pub fn file_of(self, what: impl Display) -> String {
        format!("{}-{what}.json", self.as_str())
    }

    /// Returns the name of the file for a report of this kind on what began at `time`.
    pub fn file_at(self, time: WallTime) -> String {
        self.file_of(stamp(time))
    }
}

/// Returns a time as the names of reports have it: without colons, a file can be copied to anywhere.
pub fn stamp(time: WallTime) -> String {
    time.to_string().replace(':', "-")
}

/// Reads the time of a name: as [`stamp`] writes it, or as versions before did, in milliseconds since 1970 or
/// with nothing between the figures but a `T`.
fn read_stamp(text: &str) -> Option<WallTime> {
    if text.bytes().all(|byte| byte.is_ascii_digit()) {
        return text.parse().ok().map(WallTime);
    }
    let text = text.strip_suffix('Z')?.replace(['-', '.'], "");
    let time = chrono::NaiveDateTime::parse_from_str(&text, "%Y%m%dT%H%M%S%3f").ok()?;
    let millis = time.and_utc().timestamp_millis();
    u64::try_from(millis).ok().map(WallTime)
}

/// A report that is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// When that began of which it tells, by its name.
    pub time: WallTime,
    /// The file.
    pub path: PathBuf,
}

/// Returns the reports of a kind that are called by a time, the oldest first. Blocks.
///
/// # Errors
/// When the folder is there and cannot be read.
pub fn found(state_dir: &Path, kind: Kind) -> io::Result<Vec<Found>> {
    let entries = match fs::read_dir(folder(state_dir)) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let time = name
            .strip_prefix(kind.as_str())
            .and_then(|rest| rest.strip_prefix('-')?.strip_suffix(".json"))
            .and_then(read_stamp);
        if let Some(time) = time {
            found.push(Found { time, path });
        }
    }
    found.sort_by(|a, b| (a.time, &a.path).cmp(&(b.time, &b.path)));
    Ok(found)
}

/// Reads a report; `None` for what is none. Blocks.
pub fn load<T: DeserializeOwned>(path: &Path) -> Option<T> {
    if fs::metadata(path).ok()?.len() > REPORT_BYTES_MAX {
        return None;
    }
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

/// Returns where the reports of a node are.
pub fn folder(state_dir: &Path) -> PathBuf {
    state_dir.join("reports")
}

/// Keeps a report as JSON in the file `name`, with permission bits `mode`, durably; returns where. One that was
/// kept under that name is replaced. Blocks.
///
/// # Errors
/// When it cannot be written; what was kept is as it was then.
pub fn keep(
    state_dir: &Path,
    name: &str,
    report: &impl Serialize,
    mode: u32,
) -> io::Result<PathBuf> {
    let text = serde_json::to_vec_pretty(report)?;
    let folder = folder(state_dir);
    durable::create_directory(&folder, 0o755)?;
    let path = folder.join(name);
    durable::write(&path, &text, mode)?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn reports_are_found_by_their_time_whatever_version_has_named_them() {
        let state = tempfile::tempdir().unwrap();
        let times = [1_700_000_000_123, 1_700_000_000_007, 1_700_000_900_000].map(WallTime);
        let named = [
            "rejoin-20231114T221320123Z.json".to_owned(),
            "rejoin-1700000000007.json".to_owned(),
            Kind::Rejoin.file_at(times[2]),
        ];
        assert_eq!(named[2], "rejoin-2023-11-14T22-28-20.000Z.json");
        for name in &named {
            keep(state.path(), name, &1, 0o640).unwrap();
        }
        for other in [
            &*Kind::Promotion.file_of("2.b"),
            "rejoin-x.json",
            "rejoin-17.json.partial",
            "fault-drill-17.json",
        ] {
            keep(state.path(), other, &2, 0o640).unwrap();
        }
        let rejoins = found(state.path(), Kind::Rejoin).unwrap();
        let in_order: Vec<WallTime> = rejoins.iter().map(|it| it.time).collect();
        assert_eq!(in_order, [times[1], times[0], times[2]]);
        assert!(rejoins.iter().all(|it| load(&it.path) == Some(1)));
        // `drill-…` is not the end of a longer word.
        assert_eq!(found(state.path(), Kind::Rehearsal).unwrap(), []);
        assert_eq!(found(state.path(), Kind::Fault).unwrap().len(), 1);
        assert_eq!(load::<u8>(&folder(state.path()).join("none.json")), None);
    }

    #[test]
    fn a_report_is_kept_whole_in_a_folder_that_is_made_for_it() {
        let state = tempfile::tempdir().unwrap();
        let state = state.path().join("state");
        for seconds in [1.5, 2.5] {
            let path = keep(&state, "drill-1.json", &("b", seconds), 0o640).unwrap();
            assert_eq!(path, state.join("reports/drill-1.json"));
            let kept: (String, f64) = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
            assert_eq!(kept, ("b".to_owned(), seconds));
            let mode = fs::metadata(&path).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o640);
        }
        assert_eq!(fs::read_dir(folder(&state)).unwrap().count(), 1);
    }

    #[test]
    fn what_cannot_be_kept_is_an_error_and_leaves_what_was_there() {
        let state = tempfile::tempdir().unwrap();
        keep(state.path(), "drill-1.json", &1, 0o640).unwrap();
        // It has no form as JSON.
        let nameless = std::collections::BTreeMap::from([((1, 2), 3)]);
        keep(state.path(), "drill-1.json", &nameless, 0o640).unwrap_err();
        let kept = fs::read(folder(state.path()).join("drill-1.json")).unwrap();
        assert_eq!(kept, b"1");
    }
}
