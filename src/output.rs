//! The one module that prints results. Diagnostics and progress go to standard error.

use std::io::Write;

use serde::Serialize;

use crate::failure::Failure;

/// Prints a line, or a text of lines, on standard output. A reader that has gone away (`| head`) is no
/// failure.
pub(crate) fn print(text: &str) {
    let mut out = std::io::stdout().lock();
    let newline = if text.ends_with('\n') { "" } else { "\n" };
    let _reader_gone = write!(out, "{text}{newline}")
        .and_then(|()| out.flush())
        .is_err();
}

/// Prints a value as JSON on standard output.
pub(crate) fn print_json(value: &impl Serialize) -> Result<(), Failure> {
    print(&serde_json::to_string_pretty(value)?);
    Ok(())
}

/// Prints a word for the person at the terminal on standard error.
pub(crate) fn tell(text: &str) {
    let _reader_gone = writeln!(std::io::stderr().lock(), "{text}").is_err();
}
