//! The place of a poll in a distributed trace.
//!
//! *Runs on:* every thread: plain data. `stall-sinks` makes it.

/// The trace and the span of a poll, as a tracing system knows them.
///
/// [`Builder::traces`](crate::Builder::traces) finds them; its example is for OpenTelemetry.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct TraceContext {
    /// The trace's id: with OpenTelemetry 32 hexadecimal digits.
    pub trace_id: String,
    /// The span's id: with OpenTelemetry 16 hexadecimal digits.
    pub span_id: String,
}

impl TraceContext {
    /// The trace and the span with these ids.
    pub fn new(trace_id: impl Into<String>, span_id: impl Into<String>) -> TraceContext {
        TraceContext {
            trace_id: trace_id.into(),
            span_id: span_id.into(),
        }
    }
}
