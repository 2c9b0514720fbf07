//! Writes text to standard error, past every logger: about a stall that does not end, and stalls
//! that no subscriber hears.
//!
//! *Runs on:* `stall-sinks`, or a thread made for it if the sinks are stuck; the user's threads at
//! the start and the drop of a watch.
//! *Must not:* use a lock or a buffer of this process.

use super::StallReport;

/// Writes a report to standard error past every buffer and lock of this process: the stalled worker
/// may hold one of them.
pub(crate) fn write_last_words(report: &StallReport) {
    write(&format!("tokio-stall: {}\n{report}\n", report.headline()));
}

/// Writes a line to standard error in the same way.
pub(crate) fn write_to_stderr(line: &str) {
    write(&format!("tokio-stall: {line}\n"));
}

/// Line breaks stay, and all other control characters are escaped: the names of spans, functions
/// and threads may have some, and a terminal would obey them.
fn harmless(text: &str) -> String {
    let mut harmless = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' => harmless.push(c),
            c if c.is_control() => harmless.extend(c.escape_default()),
            c => harmless.push(c),
        }
    }
    harmless
}

fn write(text: &str) {
    let text = harmless(text);
    #[cfg(target_os = "linux")]
    {
        let mut rest = text.as_bytes();
        while !rest.is_empty() {
            match rustix::io::write(rustix::stdio::stderr(), rest) {
                Ok(written) => rest = &rest[written..],
                Err(rustix::io::Errno::INTR) => {}
                // No channel is left for this error.
                Err(_) => return,
            }
        }
    }
    #[cfg(not(target_os = "linux"))]
    {
        use std::io::Write as _;
        std::io::stderr().write_all(text.as_bytes()).ok();
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_escaped() {
        assert_eq!(
            harmless("in \u{1b}[2Jx\r\u{9b}\n  ü…"),
            "in \\u{1b}[2Jx\\r\\u{9b}\n  ü…"
        );
    }
}
