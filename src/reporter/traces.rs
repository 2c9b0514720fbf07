//! The traces of stalls that go on.
//!
//! *Runs on:* `stall-sinks`. It calls the user's code, which may wait for the locks of a span.
//!
//! A span may be closed when the last report comes, so what was found before is kept.

use super::CASES;
use super::sinks::guarded;
use crate::engine::{Shared, WatchState};
use crate::probe::{self, SpanRef};
use crate::report::{Phase, StallReport, TraceContext};
use std::collections::HashMap;

/// The traces found so far, by the number of the stall.
#[derive(Debug, Default)]
pub(super) struct Traces(HashMap<u64, TraceContext>);

impl Traces {
    /// Adds the trace to a report, and to the copy that is kept.
    pub(super) fn add(
        &mut self,
        report: &mut StallReport,
        span: Option<SpanRef>,
        watch: &WatchState,
        shared: &Shared,
    ) {
        let known = self.0.remove(&report.id);
        report.trace = known.or_else(|| find(span?, watch, shared));
        let Some(trace) = &report.trace else {
            return;
        };
        watch.recent.lock().set_trace(report.id, trace);
        if report.phase != Phase::Ended {
            if self.0.len() >= CASES {
                self.0.clear();
            }
            self.0.insert(report.id, trace.clone());
        }
    }
}

/// Asks the user's code for the trace of a span.
fn find(span: SpanRef, watch: &WatchState, shared: &Shared) -> Option<TraceContext> {
    let traces = watch.settings.traces.as_ref()?;
    let mut found = None;
    guarded(shared, || {
        found = probe::with_open_span(span, |id, dispatch| traces(id, dispatch));
    });
    found
}
