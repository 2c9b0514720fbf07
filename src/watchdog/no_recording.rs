//! Without the feature `serve` nothing is recorded: nothing could show it.
//!
//! *Runs on:* `stall-watchdog`.

use crate::clock::Nanos;
use crate::detect::Sample;
use crate::engine::{StallId, WatchedRuntime};

#[derive(Debug, Default)]
pub(super) struct Tape {}

#[derive(Clone, Copy, Debug, Default)]
#[allow(dead_code)] // Nothing reads it in this build.
pub(super) struct Decided {
    pub(super) hold: Option<u64>,
    pub(super) stall: Option<StallId>,
    pub(super) is_undriven: bool,
}

impl Tape {
    pub(super) fn look(&mut self, _: (&WatchedRuntime, usize), _: &Sample, _: u64, _: Decided) {}

    pub(super) fn rest(&mut self, _: (&WatchedRuntime, usize), _: Nanos) {}
}

pub(super) fn ticked(_: &WatchedRuntime, _: Nanos) {}
