//! The errors of a start, each with its fix.
//!
//! *Runs on:* the thread that calls `start`.

use std::time::Duration;
use std::{fmt, io};

/// The reason why a watch could not be started. Nothing has been started.
///
/// Only the start can fail. A running detector sees less instead, which
/// [`Coverage`](crate::Coverage) and [`Status`](crate::Status) show. `Display` writes the problem
/// and its fix. So does `Debug`, which is what a program shows whose `main` returns the error.
#[non_exhaustive]
pub enum StartError {
    /// `watch()`, or a builder without `runtime(…)`, was called outside of a runtime.
    NoRuntime,
    /// The threshold is below [`Builder::MIN_THRESHOLD`](crate::Builder::MIN_THRESHOLD).
    ThresholdTooSmall {
        /// The threshold given.
        threshold: Duration,
    },
    /// The tick is zero or longer than the threshold.
    TickOutOfRange {
        /// The tick given.
        tick: Duration,
        /// The threshold that it has to fit into.
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
        /// The name under which it was to be watched.
        name: String,
    },
    /// The guard belongs to the process that this one is a fork of.
    Forked,
    /// This target has no 64-bit atomics, so its tokio has no worker counters.
    UnsupportedTarget,
    /// A signal for stacks was given, and no stacks can be taken on this system or in this build.
    StacksUnsupported,
    /// The signal for stacks does not exist, may not be handled, or is used by the C library.
    SignalUnusable {
        /// The signal given.
        signal: i32,
    },
    /// The signal for stacks has a handler already.
    SignalTaken {
        /// The signal given.
        signal: i32,
    },
    /// The address given to [`Builder::serve`](crate::Builder::serve) could not be bound.
    #[cfg(feature = "serve")]
    Serve {
        /// The address.
        address: std::net::SocketAddr,
        /// The error of the operating system.
        error: io::Error,
    },
    /// The directory given to [`Builder::record_stalls`](crate::Builder::record_stalls) could not
    /// be made, or not be written to.
    #[cfg(feature = "serve")]
    Recordings {
        /// The directory.
        directory: std::path::PathBuf,
        /// The error of the operating system.
        error: io::Error,
    },
    /// The token given to [`Builder::serve_token`](crate::Builder::serve_token) is too short, or
    /// cannot be sent.
    #[cfg(feature = "serve")]
    ServeTokenUnusable {
        /// The reason, as in "has less than 16 characters".
        why: &'static str,
    },
    /// The environment variable `TOKIO_STALL` has a setting that cannot be used; see
    /// [`Builder::from_env`](crate::Builder::from_env).
    EnvUnusable {
        /// The key.
        key: String,
        /// The value, at most its first 60 characters. `None` without one, for a key that does not
        /// exist, and for the token of the server.
        value: Option<String>,
        /// The reason, and what would be right.
        why: String,
    },
    /// The environment variable `TOKIO_STALL` is no Unicode text.
    EnvNotUnicode,
    /// The operating system would not start one of the detector's threads.
    Thread(io::Error),
}

/// The fix for an address that cannot be served at.
#[cfg(feature = "serve")]
const NO_ADDRESS: &str = "give `Builder::serve` an address of this machine and a port that is \
                          free, or port 0 to have one chosen";
/// The fix for a directory that cannot be written to.
#[cfg(feature = "serve")]
const NO_TOKEN: &str = "give `Builder::serve_token` 16 to 256 random letters and digits, as from \
                        `openssl rand -hex 16`";

#[cfg(feature = "serve")]
const NO_DIRECTORY: &str = "give `Builder::record_stalls` a directory that this process can make, \
                            or write to";

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.problem(f)?;
        write!(f, ": {}", self.fix())
    }
}

impl fmt::Debug for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl StartError {
    fn problem(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StartError::NoRuntime => f.write_str("no tokio runtime here"),
            StartError::ThresholdTooSmall { threshold } => {
                write!(f, "the threshold is {threshold:?}, less than 0.1 ms")
            }
            StartError::TickOutOfRange { tick, threshold } => write!(
                f,
                "the tick is {tick:?}, which does not fit into the threshold of {threshold:?}"
            ),
            StartError::RuntimeWatchedTwice { name } => {
                write!(f, "this runtime is being watched already, as {name:?}")
            }
            StartError::NameTaken { name } => write!(
                f,
                "a runtime is being watched under the name {name:?} already"
            ),
            StartError::NameEmpty => f.write_str("a runtime was given an empty name"),
            StartError::RuntimeShutDown { name } => {
                write!(f, "the runtime {name:?} has been shut down")
            }
            StartError::Forked => {
                f.write_str("the guard belongs to the process that this one is a fork of")
            }
            StartError::UnsupportedTarget => f.write_str(
                "this target has no 64-bit atomics, so tokio publishes no worker counters here",
            ),
            StartError::StacksUnsupported => f.write_str(
                "no stacks can be taken on this system or in this build, by whatever signal",
            ),
            StartError::SignalUnusable { signal } => {
                write!(f, "stacks cannot be taken with signal {signal}")
            }
            StartError::SignalTaken { signal } => {
                write!(f, "signal {signal} has a handler already")
            }
            #[cfg(feature = "serve")]
            StartError::Serve { .. }
            | StartError::Recordings { .. }
            | StartError::ServeTokenUnusable { .. } => self.problem_of_the_server(f),
            StartError::EnvUnusable { .. } | StartError::EnvNotUnicode => {
                self.problem_of_the_environment(f)
            }
            StartError::Thread(error) => {
                write!(f, "the detector's thread could not be started ({error})")
            }
        }
    }

    fn problem_of_the_environment(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the environment variable TOKIO_STALL ")?;
        match self {
            StartError::EnvUnusable { key, value, .. } => {
                // A key may be any text.
                let key = key.escape_debug();
                match value {
                    Some(value) => write!(f, "sets {key} to {value:?}"),
                    None => write!(f, "has {key}"),
                }
            }
            _ => f.write_str("is no Unicode text"),
        }
    }

    #[cfg(feature = "serve")]
    fn problem_of_the_server(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StartError::Serve { address, error } => {
                write!(f, "cannot serve at {address} ({error})")
            }
            StartError::Recordings { directory, error } => {
                let directory = directory.display();
                write!(f, "stalls cannot be recorded in {directory} ({error})")
            }
            StartError::ServeTokenUnusable { why } => write!(f, "the token of the server {why}"),
            _ => Ok(()),
        }
    }

    /// The change that lets the watch start.
    fn fix(&self) -> &str {
        match self {
            StartError::NoRuntime => {
                "call `tokio_stall::watch()` inside `#[tokio::main]` or a task, or name the runtime \
                 with `Builder::runtime(\"name\", handle)`"
            }
            StartError::ThresholdTooSmall { .. } => {
                "such polls are ordinary; set `Builder::threshold` to 0.1 ms or more (10 ms is the \
                 default)"
            }
            StartError::TickOutOfRange { .. } => {
                "leave out `Builder::tick`, or choose a tick between the two"
            }
            StartError::RuntimeWatchedTwice { .. } => {
                "keep the first guard, or drop it before starting again"
            }
            StartError::NameTaken { .. } => {
                "give this one another with `Builder::runtime(\"name\", handle)`"
            }
            StartError::NameEmpty => {
                "reports and metrics would not tell whose they are; give it one with \
                 `Builder::runtime(\"name\", handle)`"
            }
            StartError::RuntimeShutDown { .. } => "start the watch while it is running",
            StartError::Forked => "start a watch of this process: it has none of its own yet",
            StartError::UnsupportedTarget => {
                "build for another target, or start the watch only where \
                 `cfg(target_has_atomic = \"64\")` holds"
            }
            StartError::StacksUnsupported => {
                "leave out `Builder::stacks` where it is not Linux on x86-64 or aarch64 with the \
                 feature `stacks`; coverage and reports then say that there are none"
            }
            StartError::SignalUnusable { .. } => {
                "leave out `Builder::stacks` to use SIGURG, or choose a real-time signal that nobody \
                 uses, such as `libc::SIGRTMIN() + 3`"
            }
            StartError::SignalTaken { .. } => {
                "choose another with `Stacks::Signal`, or `Stacks::Off`"
            }
            #[cfg(feature = "serve")]
            StartError::Serve { .. }
            | StartError::Recordings { .. }
            | StartError::ServeTokenUnusable { .. } => self.fix_of_the_server(),
            StartError::EnvUnusable { why, .. } => why,
            StartError::EnvNotUnicode => "unset it, or give it as in TOKIO_STALL=threshold=20ms",
            StartError::Thread(_) => "raise the limit on threads",
        }
    }

    #[cfg(feature = "serve")]
    fn fix_of_the_server(&self) -> &'static str {
        match self {
            StartError::Serve { .. } => NO_ADDRESS,
            StartError::Recordings { .. } => NO_DIRECTORY,
            _ => NO_TOKEN,
        }
    }
}

/// For a `main` that returns `io::Result`, as that of actix-web does.
impl From<StartError> for io::Error {
    fn from(error: StartError) -> io::Error {
        io::Error::other(error)
    }
}

impl std::error::Error for StartError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            #[cfg(feature = "serve")]
            StartError::Serve { error, .. } => Some(error),
            #[cfg(feature = "serve")]
            StartError::Recordings { error, .. } => Some(error),
            StartError::Thread(error) => Some(error),
            _ => None,
        }
    }
}
