//! Text that is shown: names of the other program cannot steer the terminal.
//!
//! *Runs on:* the main thread.

use crate::observer::target::plain;
use std::fmt::Display;

/// A text of several lines, in which control characters other than the ends of lines are replaced.
pub(crate) fn shown(text: &impl Display) -> String {
    let text = text.to_string();
    let lines: Vec<String> = text.lines().map(plain).collect();
    lines.join("\n")
}

/// A text cut to so many characters.
pub(crate) fn cut(text: &str, most: usize) -> String {
    match text.chars().count() > most {
        true => text
            .chars()
            .take(most.saturating_sub(1))
            .chain(['…'])
            .collect(),
        false => text.to_owned(),
    }
}
