//! Writes to standard error what nobody hears in the log.
//!
//! *Runs on:* `stall-sinks`.
//!
//! A program without a subscriber, or with a filter that was not meant for the detector, would show
//! nothing of a stall. Its headline is written to standard error then, with the change that brings
//! it into the log. A filter that is meant to hide it, hides it.

use crate::engine::Hearing;
use crate::report::write_to_stderr;
use tracing::Level;

/// The lines that the log has shown to nobody.
#[derive(Debug, Default)]
pub(super) struct Unheard {
    /// The fix has been written.
    hinted: bool,
}

impl Unheard {
    /// Writes the text of an event to standard error, if nobody hears it.
    pub(super) fn tell(&mut self, level: Level, text: &str) {
        let hearing = Hearing::ask();
        for line in lines(hearing, level, self.hinted, text) {
            write_to_stderr(&line);
            self.hinted = true;
        }
    }
}

/// The lines for an event. A filter for errors may be meant, so it gets the fix, once.
fn lines(hearing: Hearing, level: Level, hinted: bool, text: &str) -> Vec<String> {
    let is_silent = match hearing {
        Hearing::NoSubscriber | Hearing::Hidden => true,
        Hearing::OnlyErrors => level == Level::WARN && !hinted,
        Hearing::Unknown | Hearing::Heard | Hearing::Off => false,
    };
    if !is_silent {
        return Vec::new();
    }
    let mut lines = vec![text.replace('\n', "\\n")];
    if let (Some(why), false) = (hearing.why_not(), hinted) {
        lines.push(format!(
            "nobody hears this in the log: {why} (`Builder::log(false)` turns such lines off)"
        ));
    }
    lines
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn the_fix_is_written_once() {
        for hearing in [Hearing::NoSubscriber, Hearing::Hidden] {
            let first = lines(hearing, Level::WARN, false, "blocked\nhere");
            assert_eq!((first.len(), first[0].as_str()), (2, "blocked\\nhere"));
            assert_eq!(lines(hearing, Level::INFO, true, "blocked"), ["blocked"]);
        }
        assert_eq!(lines(Hearing::OnlyErrors, Level::WARN, false, "x").len(), 2);
    }

    #[test]
    fn a_log_that_is_heard_or_meant_to_be_silent_needs_no_more() {
        let none: [String; 0] = [];
        for hearing in [Hearing::Heard, Hearing::Off, Hearing::Unknown] {
            assert_eq!(lines(hearing, Level::ERROR, false, "x"), none);
        }
        assert_eq!(lines(Hearing::OnlyErrors, Level::WARN, true, "x"), none);
        assert_eq!(lines(Hearing::OnlyErrors, Level::INFO, false, "x"), none);
        assert_eq!(lines(Hearing::OnlyErrors, Level::ERROR, false, "x"), none);
    }
}
