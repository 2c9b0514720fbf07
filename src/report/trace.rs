//! A trace in the trace-event format, which Perfetto and `chrome://tracing` open, as plain data.
//!
//! *Runs on:* `stall-serve` and `stall-recorder` make it and write it as JSON.
//!
//! A process of the trace is a runtime, and a thread is a lane of one of its workers. Times are
//! microseconds of the detector's clock.

use std::borrow::Cow;

/// A trace.
#[derive(Debug, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Trace {
    pub(crate) display_time_unit: &'static str,
    pub(crate) other_data: TraceAbout,
    pub(crate) trace_events: Vec<TraceEvent>,
}

/// The facts about a trace as a whole.
#[derive(Debug, Default, serde::Serialize)]
pub(crate) struct TraceAbout {
    /// The program that made it.
    pub(crate) made_by: &'static str,
    /// The stall that it was made for.
    pub(crate) stall: Option<u64>,
    /// The time at which it was made, in microseconds of its own clock.
    pub(crate) made_at: f64,
    /// The same, in seconds since 1970.
    pub(crate) made_at_unix_seconds: f64,
    /// Workers beyond those that the process has rings for.
    pub(crate) unrecorded_workers: usize,
    /// Segments and stalls that were left out, the oldest first, to bound the size.
    pub(crate) left_out: usize,
}

/// One event.
#[derive(Debug, serde::Serialize)]
pub(crate) struct TraceEvent {
    /// The phase: `M` names a process or a thread, `X` is a time, `C` is a value.
    pub(crate) ph: &'static str,
    pub(crate) name: Cow<'static, str>,
    pub(crate) pid: usize,
    pub(crate) tid: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) ts: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) dur: Option<f64>,
    /// The colour, by the names of `chrome://tracing`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) cname: Option<&'static str>,
    pub(crate) args: TraceArgs,
}

/// The details of an event.
#[derive(Debug, serde::Serialize)]
#[serde(untagged)]
pub(crate) enum TraceArgs {
    Name { name: String },
    Order { sort_index: usize },
    Segment(TraceSegment),
    Stall(Box<TraceStall>),
    Lag { milliseconds: f64 },
}

/// The time of a worker in one state. Times are milliseconds; they are left out if not known.
#[derive(Debug, serde::Serialize)]
pub(crate) struct TraceSegment {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) cpu_ms: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) asleep_ms: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) run_queue_ms: Option<f64>,
    pub(crate) turns: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) stall: Option<u64>,
}

/// A stall, as its latest report has it.
#[derive(Debug, serde::Serialize)]
pub(crate) struct TraceStall {
    pub(crate) id: u64,
    pub(crate) cause: &'static str,
    pub(crate) certainty: &'static str,
    /// Whether it went on when the trace was made.
    pub(crate) goes_on: bool,
    pub(crate) site: Option<String>,
    pub(crate) span: Option<String>,
    pub(crate) task: Option<u64>,
    pub(crate) thread: Option<String>,
    pub(crate) advice: Option<String>,
    /// The report as text, with the stack.
    pub(crate) report: String,
}
