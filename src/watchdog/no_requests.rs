//! Without the feature `tower` there are no requests: news of stalls is passed on at once.
//!
//! *Runs on:* `stall-watchdog`.

use super::News;
use crate::clock::Nanos;
use crate::engine::{StallNews, WatchedRuntime};
use std::sync::Arc;

#[derive(Default)]
pub(super) struct RequestWatch {}

impl RequestWatch {
    pub(super) fn stall(&mut self, _: &WatchedRuntime, news: StallNews, _: Nanos, out: &mut News) {
        out.stalls.push(news);
    }

    pub(super) fn tick(&mut self, _: &Arc<WatchedRuntime>, _: Nanos, _: Nanos, _: &mut News) {}

    pub(super) fn flush(&mut self, _: &Arc<WatchedRuntime>, _: Nanos, _: &mut News) {}

    pub(super) fn driver_is_frozen(_: &WatchedRuntime, _: Option<Nanos>, _: Nanos) {}
}
