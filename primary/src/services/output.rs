//! What a command printed, as it is told.

/// How many of the last lines are told.
const LINES_MAX: usize = 20;

/// How many bytes of them are told at most.
const BYTES_MAX: usize = 2048;

/// How much of a line is shown where there is room for one.
const MESSAGE_CHARS_MAX: usize = 500;

/// Returns the end of what was printed, on one line without control characters; `None` if that is nothing.
pub(crate) fn digest(output: &str) -> Option<String> {
    let lines: Vec<String> = output
        .lines()
        .map(plain)
        .filter(|line| !line.is_empty())
        .collect();
    let skipped = lines.len().saturating_sub(LINES_MAX);
    let text = lines[skipped..].join(" | ");
    if text.len() <= BYTES_MAX {
        return (!text.is_empty()).then_some(text);
    }
    let mut begin = text.len() - BYTES_MAX;
    while !text.is_char_boundary(begin) {
        begin += 1;
    }
    Some(format!("…{}", &text[begin..]))
}

/// Returns the last line that says something, shortened.
pub(crate) fn last_line(output: &str) -> String {
    let line = output
        .lines()
        .rev()
        .map(plain)
        .find(|line| !line.is_empty());
    shortened(&line.unwrap_or_default())
}

/// Returns the beginning of a message.
pub(crate) fn shortened(message: &str) -> String {
    message.chars().take(MESSAGE_CHARS_MAX).collect()
}

/// Returns a line without what would move a cursor or change a colour.
fn plain(line: &str) -> String {
    let mut text = String::new();
    let mut rest = line.chars().peekable();
    while let Some(c) = rest.next() {
        // `ESC [ … letter`: what follows the escape would stay behind as noise.
        if c == '\u{1b}' && rest.next_if_eq(&'[').is_some() {
            while rest.next_if(|c| matches!(c, '\x20'..='\x3f')).is_some() {}
            rest.next_if(|c| matches!(c, '\x40'..='\x7e'));
        } else {
            text.push(if c.is_control() { ' ' } else { c });
        }
    }
    text.trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_is_told_on_one_line_without_control_characters() {
        let output = "one\r\n\n\u{1b}[31mtwo\u{1b}[0m\tthree\u{7}\n";
        assert_eq!(digest(output).as_deref(), Some("one | two three"));
        assert_eq!(last_line(output), "two three");
        assert_eq!(digest(" \n\u{1b}[0m\n"), None);
    }

    #[test]
    fn of_much_output_the_end_is_told() {
        let many: String = (0..100).map(|n| format!("line {n}\n")).collect();
        let told = digest(&many).unwrap();
        assert!(
            told.starts_with("line 80 | ") && told.ends_with(" | line 99"),
            "{told}"
        );
        let long = "ä".repeat(5000);
        let told = digest(&long).unwrap();
        assert!(told.len() <= BYTES_MAX + '…'.len_utf8() && told.starts_with("…ä"));
    }
}
