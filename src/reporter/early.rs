//! The stalls of the start, in one line: a program that warms up is not news.
//!
//! *Runs on:* `stall-sinks`.

use crate::engine::Settings;
use crate::report::{Phase, StallReport};
use std::fmt;
use std::time::Duration;

/// The stalls of the time after the start in which none is logged.
#[derive(Debug, Default)]
pub(super) struct Early {
    pub(super) stalls: u64,
    pub(super) longest: Duration,
    /// The text of the longest.
    text: String,
    /// A callback has had them.
    pub(super) is_heard: bool,
}

impl Early {
    /// Counts a stall that is over, if it would have been logged later.
    pub(super) fn note(
        &mut self,
        report: &StallReport,
        settings: &Settings,
        text: impl FnOnce() -> String,
    ) {
        if report.phase == Phase::Ended && report.duration >= settings.warn_after {
            self.stalls += 1;
            self.is_heard = settings.on_stall.is_some();
            if report.duration >= self.longest {
                self.longest = report.duration;
                self.text = text();
            }
        }
    }
}

impl fmt::Display for Early {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Early { stalls, text, .. } = self;
        let (are, longest) = match stalls {
            1 => ("stall of the start was", ": "),
            _ => ("stalls of the start were", "; the longest: "),
        };
        write!(
            f,
            "{stalls} {are} not logged (`Builder::startup_grace`){longest}{text}"
        )
    }
}
