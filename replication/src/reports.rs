//! The folder of reports: evidence of what was done, a file for each, below the state directory.

use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::durable;

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
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

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
