//! The process that is looked at: this one, or another one of the machine.
//!
//! *Runs on:* every thread: plain data.

use std::num::NonZeroU32;
use std::path::PathBuf;

/// The number of a process whose threads, memory and files are looked at. The default is this one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Pid(Option<NonZeroU32>);

impl Pid {
    /// This process.
    pub(crate) const OWN: Pid = Pid(None);

    /// The process with this number.
    #[cfg(feature = "outside")]
    #[allow(dead_code)] // Used where stacks can be had.
    pub(crate) fn other(number: NonZeroU32) -> Pid {
        Pid(Some(number))
    }

    /// The kernel's number for it.
    pub(crate) fn number(self) -> u32 {
        self.0.map_or_else(std::process::id, NonZeroU32::get)
    }

    /// Its file with this name in `/proc`.
    pub(crate) fn file(self, name: &str) -> PathBuf {
        PathBuf::from(match self.0 {
            None => format!("/proc/self/{name}"),
            Some(number) => format!("/proc/{number}/{name}"),
        })
    }

    /// The path under which this process finds a file that the other one calls so. A container has
    /// a root of its own.
    #[allow(dead_code)] // Used for stacks only.
    pub(crate) fn seen_from_here(self, path: &str) -> PathBuf {
        match self.0 {
            None => PathBuf::from(path),
            Some(number) => PathBuf::from(format!("/proc/{number}/root{path}")),
        }
    }
}
