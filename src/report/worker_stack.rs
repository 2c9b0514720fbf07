//! The stack of one worker now.
//!
//! *Runs on:* every thread: plain data.

use super::{Frame, NoStack};
use std::fmt;

/// The stack of one worker's thread at one moment, made by
/// [`Guard::worker_stacks`](crate::Guard::worker_stacks). `Display` writes it with a line for each
/// call.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct WorkerStack {
    /// The name under which the runtime is watched.
    pub runtime: String,
    /// The index of the worker, as in tokio's `RuntimeMetrics`.
    pub worker: usize,
    /// The name of the thread that drives the worker.
    pub thread: Option<String>,
    /// The calls, innermost first, or why there are none.
    pub frames: Result<Vec<Frame>, NoStack>,
    /// The number of innermost frames that are certain. If code has no unwind table, the calls
    /// beyond it are guesses.
    pub certain_frames: usize,
    /// Whether the stack was followed to the root of its thread, with no frame guessed.
    pub complete: bool,
}

impl fmt::Display for WorkerStack {
    /// One line for the worker, then one for each call.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            runtime, worker, ..
        } = self;
        write!(f, "worker {worker} of {runtime:?}")?;
        if let Some(thread) = &self.thread {
            write!(f, ", {thread}")?;
        }
        match &self.frames {
            Ok(frames) => frames.iter().enumerate().try_for_each(|(index, frame)| {
                let is_guessed = index >= self.certain_frames;
                write!(
                    f,
                    "\n  {frame}{}",
                    if is_guessed { " (a guess)" } else { "" }
                )
            }),
            Err(why) => write!(f, "\n  no stack: {why}"),
        }
    }
}
