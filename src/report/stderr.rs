//! The last words about a stall that does not end: standard error, past every logger.
//!
//! *Runs on:* `stall-sinks`, or a thread made for it if the sinks are stuck.
//! *Must not:* use a lock or a buffer of this process.

use super::StallReport;

/// Writes a report to standard error past every buffer and lock of this process: the stalled worker
/// may hold one of them.
pub(crate) fn write_last_words(report: &StallReport) {
    let text = format!("tokio-stall: {}\n{report}\n", report.headline());
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
