//! The processes of the sealed room in which copies are tried: this program under a verb that nobody types.

use std::process::ExitCode;

use understudy_standby::rehearsal::{SealStage, sealed};

use crate::output::tell;

/// Be a process of a sealed room
#[derive(clap::Args, Debug)]
pub(crate) struct Sealed {
    /// Which of them
    stage: SealStage,
    /// How the room differs from the machine, as JSON
    walls: String,
}

impl Sealed {
    pub(crate) fn run(&self) -> ExitCode {
        match sealed(self.stage, &self.walls) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                tell(&format!("error: cannot seal a room: {error}"));
                ExitCode::FAILURE
            }
        }
    }
}
