//! Why a watch could not be started, each with what to do about it.
//!
//! *Runs on:* the thread that calls `start`.
//! *Here:* plain data. Starting is the only thing that can fail; nothing has been started then.

use std::time::Duration;
use std::{fmt, io};

/// The watch could not be started, and nothing was.
///
/// Only starting can fail. Once running, the detector degrades instead and says so in
/// [`Coverage`](crate::Coverage) and [`Status`](crate::Status).
#[derive(Debug)]
#[non_exhaustive]
pub enum StartError {
    /// `watch()`, or a builder without `runtime(…)`, was called outside of a runtime.
    NoRuntime,
    /// The threshold is below [`Builder::MIN_THRESHOLD`](crate::Builder::MIN_THRESHOLD).
    ThresholdTooSmall {
        /// What was asked for.
        threshold: Duration,
    },
    /// The tick is zero or longer than the threshold.
    TickOutOfRange {
        /// What was asked for.
        tick: Duration,
        /// The threshold it has to fit into.
        threshold: Duration,
    },
    /// This runtime is being watched already.
    RuntimeWatchedTwice {
        /// The name under which it is watched.
        name: String,
    },
    /// Another runtime is being watched under this name.
    NameTaken {
        /// The name.
        name: String,
    },
    /// A runtime was given an empty name.
    NameEmpty,
    /// The runtime has been shut down.
    RuntimeShutDown {
        /// The name it was to be watched under.
        name: String,
    },
    /// This target has no 64-bit atomics, so its tokio has no worker counters.
    UnsupportedTarget,
    /// The signal for stacks does not exist, may not be handled, or is used by the C library; or no stacks
    /// are taken on this system.
    SignalUnusable {
        /// What was asked for.
        signal: i32,
    },
    /// Somebody else handles the signal for stacks.
    SignalTaken {
        /// What was asked for.
        signal: i32,
    },
    /// The address given to [`Builder::serve`](crate::Builder::serve) could not be bound.
    #[cfg(feature = "serve")]
    Serve {
        /// The address.
        address: std::net::SocketAddr,
        /// What the operating system says.
        error: io::Error,
    },
    /// The operating system would not start one of the detector's threads.
    Thread(io::Error),
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StartError::NoRuntime => f.write_str(
                "no tokio runtime here: call `tokio_stall::watch()` inside `#[tokio::main]` or a task, \
                 or name the runtime with `Builder::runtime(\"name\", handle)`",
            ),
            StartError::ThresholdTooSmall { threshold } => write!(
                f,
                "the threshold is {threshold:?}, less than 0.1 ms: such polls are ordinary; set \
                 `Builder::threshold` to 0.1 ms or more (10 ms is the default)",
            ),
            StartError::TickOutOfRange { tick, threshold } => write!(
                f,
                "the tick is {tick:?}, which does not fit into the threshold of {threshold:?}: leave out \
                 `Builder::tick` to have half the threshold, or choose a tick between the two",
            ),
            StartError::RuntimeWatchedTwice { name } => write!(
                f,
                "this runtime is being watched already, as {name:?}: keep the first guard, or drop it \
                 before starting again",
            ),
            StartError::NameTaken { name } => write!(
                f,
                "a runtime is being watched under the name {name:?} already: give this one another with \
                 `Builder::runtime(\"name\", handle)`",
            ),
            StartError::NameEmpty => f.write_str(
                "a runtime was given an empty name: reports and metrics would not tell whose they are; \
                 give it one with `Builder::runtime(\"name\", handle)`",
            ),
            StartError::RuntimeShutDown { name } => write!(
                f,
                "the runtime {name:?} has been shut down: start the watch while it is running",
            ),
            StartError::UnsupportedTarget => f.write_str(
                "this target has no 64-bit atomics, so tokio publishes no worker counters here: build \
                 for another target, or start the watch only where `cfg(target_has_atomic = \"64\")` holds",
            ),
            StartError::SignalUnusable { signal } => write!(
                f,
                "stacks cannot be taken with signal {signal}: leave out `Builder::stacks` to use SIGURG, or \
                 choose a real-time signal that nobody uses, such as `libc::SIGRTMIN() + 3`",
            ),
            StartError::SignalTaken { signal } => write!(
                f,
                "signal {signal} has a handler already: choose another with `Stacks::Signal`, or \
                 `Stacks::Off`",
            ),
            #[cfg(feature = "serve")]
            StartError::Serve { address, error } => write!(
                f,
                "cannot serve at {address} ({error}): give `Builder::serve` an address of this machine and a \
                 port that is free, or port 0 to have one chosen",
            ),
            StartError::Thread(error) => write!(
                f,
                "the detector's thread could not be started ({error}): raise the limit on threads",
            ),
        }
    }
}

impl std::error::Error for StartError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            #[cfg(feature = "serve")]
            StartError::Serve { error, .. } => Some(error),
            StartError::Thread(error) => Some(error),
            _ => None,
        }
    }
}
