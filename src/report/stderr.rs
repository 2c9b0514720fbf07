//! The last words about a stall that does not end: standard error, past every logger.
//!
//! *Runs on:* the thread `stall-sinks`; also a thread made for it, where the sinks are stuck.

use super::StallReport;

/// Writes a report to standard error past every buffer and lock of this process, since one of those may
/// be what the stalled worker holds.
pub(crate) fn write_last_words(report: &StallReport) {
    let text = format!("tokio-stall: {}\n{report}\n", report.headline());
    #[cfg(target_os = "linux")]
    {
        let mut rest = text.as_bytes();
        while !rest.is_empty() {
            match rustix::io::write(rustix::stdio::stderr(), rest) {
                Ok(written) => rest = &rest[written..],
                Err(rustix::io::Errno::INTR) => {}
                // Nobody is left to be told.
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
