//! The event of a stall is in the span that blocks: JSON logs have the fields of the request beside
//! those of the stall, and the span of the trace has the stall.
//!
//! A program of its own: its subscriber is that of the process.

mod support;

use opentelemetry::trace::{TraceContextExt as _, TracerProvider as _};
use opentelemetry_sdk::trace::{InMemorySpanExporter, SdkTracerProvider, SpanData};
use serde_json::Value;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use support::stage::Stage;
use support::{FOREVER, wait_until};
use tokio_stall::TraceContext;
use tracing::{Instrument as _, info_span};
use tracing_subscriber::prelude::*;

/// The lines of a log, as a file would have them.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Lines {
    /// The events of stalls so far.
    fn stalls(&self) -> Vec<Value> {
        let text = String::from_utf8(self.0.lock().unwrap().clone()).unwrap();
        let lines = text
            .lines()
            .map(|line| serde_json::from_str::<Value>(line).unwrap());
        let stalls = lines.filter(|line| !line["fields"]["certainty"].is_null());
        stalls.collect()
    }

    /// The events of stalls with this span, once the last one has come.
    fn stalls_in(&self, span: &str) -> Vec<Value> {
        wait_until("the last event", || self.has_ended(span));
        let mut stalls = self.stalls();
        stalls.retain(|line| line["fields"]["in_span"] == span);
        stalls
    }

    fn has_ended(&self, span: &str) -> bool {
        let mut stalls = self.stalls().into_iter();
        stalls.any(|line| line["fields"]["in_span"] == span && line["fields"]["phase"] == "ended")
    }
}

/// A handler that blocks until that is in the log, in the span of a request that goes on until the
/// last event.
async fn request(number: u64, log: Lines) {
    let handler = async { wait_until("an event", || !log.stalls().is_empty()) };
    let request = async {
        handler.instrument(info_span!("handler", number)).await;
        let deadline = Instant::now() + FOREVER;
        while !log.has_ended("request > handler") {
            assert!(Instant::now() < deadline, "no end in the log");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    request.instrument(info_span!("request")).await;
}

fn trace_of(span: &tracing::span::Id, subscriber: &tracing::Dispatch) -> Option<TraceContext> {
    let context = tracing_opentelemetry::get_otel_context(span, subscriber)?;
    let ids = context.span().span_context().clone();
    let (trace_id, span_id) = (ids.trace_id(), ids.span_id());
    Some(TraceContext::new(trace_id.to_string(), span_id.to_string()))
}

/// The spans of the trace with this name.
fn traced(exporter: &InMemorySpanExporter, name: &str) -> Vec<SpanData> {
    let spans = exporter.get_finished_spans().unwrap().into_iter();
    spans.filter(|span| span.name == name).collect()
}

#[test]
fn the_event_of_a_stall_is_in_its_span() {
    let lines = Lines::default();
    let writer = lines.clone();
    let exporter = InMemorySpanExporter::default();
    let provider = SdkTracerProvider::builder()
        .with_simple_exporter(exporter.clone())
        .build();
    tracing_subscriber::registry()
        .with(tokio_stall::layer())
        .with(tracing_opentelemetry::layer().with_tracer(provider.tracer("test")))
        .with(
            tracing_subscriber::fmt::layer()
                .json()
                .with_writer(move || writer.clone()),
        )
        .init();
    let setup = Stage::multi_thread(2);
    let stage = setup
        .settings(|builder| builder.startup_grace(Duration::ZERO).traces(trace_of))
        .start();
    stage.run(request(7, lines.clone()));
    let stalls = lines.stalls_in("request > handler");
    for stall in &stalls {
        assert_eq!(stall["target"], "tokio_stall");
        assert!(
            stall["fields"]["duration_seconds"].as_f64().unwrap() >= 0.1,
            "{stall}"
        );
    }
    // The span of the handler is closed when the last event comes; the first one is in it.
    let span = &stalls[0]["span"];
    assert_eq!(
        (&span["name"], &span["number"]),
        (&"handler".into(), &7.into())
    );

    // The trace has the stall, so it is found from there.
    let spans = traced(&exporter, "handler");
    let events = spans.iter().flat_map(|span| &span.events.events);
    let events = events.filter(|event| {
        let is_site = |key: &opentelemetry::KeyValue| key.key.as_str() == "duration_seconds";
        event.attributes.iter().any(is_site)
    });
    assert!(events.count() > 0, "{spans:#?}");

    // All events and reports have the ids of the trace, also those after the end of the span.
    let ids = &spans[0].span_context;
    let trace = TraceContext::new(ids.trace_id().to_string(), ids.span_id().to_string());
    for stall in &stalls {
        assert_eq!(stall["fields"]["trace_id"], trace.trace_id, "{stall}");
        assert_eq!(stall["fields"]["span_id"], trace.span_id, "{stall}");
    }
    let reports = stage.seen.all();
    assert!(!reports.is_empty());
    for report in reports.iter().chain(&stage.watch.recent()) {
        assert_eq!(report.trace.as_ref(), Some(&trace), "{report}");
    }

    // A stall outside of any span is in none. It lasts until it is in the log.
    let log = lines.clone();
    let outside = move || {
        let mut stalls = log.stalls().into_iter();
        stalls.find(|line| line["fields"]["in_span"].is_null())
    };
    let is_logged = outside.clone();
    stage.run(async move {
        wait_until("an event without a span", || is_logged().is_some());
    });
    assert!(outside().unwrap()["span"].is_null());
}
