//! The certainty of a report.
//!
//! *Runs on:* every thread: plain data.

/// Whether it is proven that one poll held its worker for the whole time;
/// [`StallReport`](crate::StallReport) has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize),
    serde(rename_all = "snake_case")
)]
#[non_exhaustive]
pub enum Certainty {
    /// A marked poll that may have left its worker by `block_in_place`: turns are not visible, and
    /// there is no stack that shows it. It is never a reason to alert or to fail a test.
    Likely,
    /// One poll, proven by its turn and task, by a mark, by one sleep in the kernel, or by
    /// counting.
    Certain,
}

impl Certainty {
    /// The word that logs and JSON have for it: `"likely"` or `"certain"`.
    pub fn as_str(self) -> &'static str {
        match self {
            Certainty::Likely => "likely",
            Certainty::Certain => "certain",
        }
    }
}
