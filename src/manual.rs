//! `understudy completions` and `understudy man`: made from the same definition as the command line.

use std::io::Write;

use clap::CommandFactory;

use crate::failure::Failure;

/// Print completions for a shell
#[derive(clap::Args, Debug)]
pub(crate) struct Completions {
    /// The shell
    shell: clap_complete::Shell,
}

impl Completions {
    pub(crate) fn run<C: CommandFactory>(self) -> Result<(), Failure> {
        let mut text = Vec::new();
        clap_complete::generate(self.shell, &mut C::command(), "understudy", &mut text);
        std::io::stdout().lock().write_all(&text)?;
        Ok(())
    }
}

/// Print the manual page
#[derive(clap::Args, Debug)]
pub(crate) struct Man {}

impl Man {
    #[expect(clippy::unused_self, reason = "every verb is run the same way")]
    pub(crate) fn run<C: CommandFactory>(self) -> Result<(), Failure> {
        let mut text = Vec::new();
        clap_mangen::Man::new(C::command()).render(&mut text)?;
        std::io::stdout().lock().write_all(&text)?;
        Ok(())
    }
}
