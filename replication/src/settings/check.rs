//! The operator's commands around a change of the settings.

use std::path::Path;
use std::time::Duration;

use understudy_config::Settings;

use super::apply::{ApplyError, apply};
use super::revision::Revision;
use super::scope::Scope;
use crate::command::{Command, CommandError};
use crate::durable;

/// How long either command may run.
const COMMAND_LIMIT: Duration = Duration::from_secs(30);

/// The variable that tells `validate` where the new settings are.
const DIRECTORY_VARIABLE: &str = "UNDERSTUDY_SETTINGS_DIR";

/// What stands for that folder in the arguments of `validate`.
const DIRECTORY_WORD: &str = "{dir}";

/// Why a revision is not fit to be applied here.
#[derive(Debug, thiserror::Error)]
pub enum RefusedError {
    /// It could not be laid out for the command.
    #[error("cannot stage revision {number} of the settings")]
    Stage {
        /// The revision.
        number: u64,
        /// Why not.
        source: ApplyError,
    },
    /// The staging folder cannot be made.
    #[error("cannot make room to stage revision {number} of the settings")]
    Folder {
        /// The revision.
        number: u64,
        /// Why not.
        source: std::io::Error,
    },
    /// The operator's command said no.
    #[error("revision {number} of the settings did not validate")]
    Validate {
        /// The revision.
        number: u64,
        /// What it said.
        source: CommandError,
    },
}

/// Lays `revision` out beneath the state folder and asks the operator's command whether it is
/// valid. The staged copy is gone afterwards. Without a command, everything is valid.
///
/// # Errors
/// When it cannot be staged, or is not valid.
pub async fn validate(
    config: &Settings,
    scope: &Scope,
    state: &Path,
    revision: &Revision,
) -> Result<(), RefusedError> {
    let Some(argv) = &config.validate else {
        return Ok(());
    };
    let number = revision.number();
    let folder = |source| RefusedError::Folder { number, source };
    let staging = state.join("staging");
    durable::create_directory(&staging, 0o700).map_err(folder)?;
    // Removed when dropped; what a crash leaves behind is removed with the staging folder.
    let staged = tempfile::Builder::new()
        .prefix("settings-")
        .tempdir_in(&staging)
        .map_err(folder)?;
    let (there, copy) = (scope.at(staged.path()), revision.clone());
    let nowhere = staged.path().join(".replaced");
    let laid_out = tokio::task::spawn_blocking(move || apply(&there, &copy, &[], &nowhere)).await;
    match laid_out {
        Ok(Ok(_)) => {}
        Ok(Err(source)) => return Err(RefusedError::Stage { number, source }),
        Err(source) => return Err(folder(std::io::Error::other(source))),
    }
    let place = staged.path().to_string_lossy();
    let argv = argv.iter().map(|word| word.replace(DIRECTORY_WORD, &place));
    let command = Command::new(argv)
        .env(DIRECTORY_VARIABLE, place.as_ref())
        .limit(COMMAND_LIMIT);
    match command.run().await {
        Ok(_) => Ok(()),
        Err(source) => Err(RefusedError::Validate { number, source }),
    }
}

/// Tells the appliance that its settings have changed.
///
/// # Errors
/// When the operator's command fails; the settings stay applied.
pub async fn reload(config: &Settings) -> Result<(), CommandError> {
    match &config.reload {
        Some(argv) => Command::new(argv.clone())
            .limit(COMMAND_LIMIT)
            .run()
            .await
            .map(drop),
        None => Ok(()),
    }
}
