//! The one printer of errors with their sources.

use std::error::Error;

/// Returns the error and its sources, joined by `: `.
pub fn error_chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let cause = error.to_string();
        // Some libraries repeat their source in their own words.
        if !text.ends_with(&cause) {
            text.push_str(": ");
            text.push_str(&cause);
        }
        source = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("cannot stage uploads/a.bin")]
    struct Outer(#[source] std::io::Error);

    #[test]
    fn each_link_is_told_once() {
        let error = Outer(std::io::Error::from_raw_os_error(28));
        assert_eq!(
            error_chain(&error),
            "cannot stage uploads/a.bin: No space left on device (os error 28)"
        );
    }
}
