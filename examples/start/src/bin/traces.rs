//! A service whose requests are traced with OpenTelemetry. The stall is an event of the span that
//! blocks, and its report has the ids of the trace.
//!
//! `cargo run -p start --bin traces`; with `twin`, the same without a stall

use axum::Router;
use axum::routing::get;
use std::error::Error;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio_stall::Builder;
// region watch
use opentelemetry::trace::{TraceContextExt as _, TracerProvider as _};
use opentelemetry_sdk::trace::SdkTracerProvider;
use tokio_stall::TraceContext;
use tracing::Dispatch;
use tracing::level_filters::LevelFilter;
use tracing::span::Id;
use tracing_subscriber::prelude::*;

fn trace_of(span: &Id, subscriber: &Dispatch) -> Option<TraceContext> {
    let context = tracing_opentelemetry::get_otel_context(span, subscriber)?;
    let ids = context.span().span_context().clone();
    Some(TraceContext::new(
        ids.trace_id().to_string(),
        ids.span_id().to_string(),
    ))
}

fn observe() -> Result<(SdkTracerProvider, tokio_stall::Guard), tokio_stall::StartError> {
    let provider = SdkTracerProvider::builder()
        .with_batch_exporter(opentelemetry_stdout::SpanExporter::default()) // or that of OTLP
        .build();
    let exported = tracing_opentelemetry::layer().with_tracer(provider.tracer("shop"));
    tracing_subscriber::registry()
        .with(tracing_subscriber::fmt::layer().with_filter(LevelFilter::INFO))
        .with(exported.with_filter(LevelFilter::INFO))
        .with(tokio_stall::layer()) // the span of a stall
        .init();
    let watch = Builder::new().traces(trace_of).start()?; // and its trace
    Ok((provider, watch))
}
// endregion

#[tracing::instrument]
async fn checkout() -> &'static str {
    if std::env::args().any(|argument| argument == "twin") {
        tokio::time::sleep(Duration::from_millis(300)).await;
    } else {
        charge();
    }
    "paid"
}

/// A client that blocks.
#[inline(never)]
fn charge() {
    std::thread::sleep(Duration::from_millis(300)); // planted
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let (provider, watch) = observe()?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let router = Router::new().route("/checkout", get(checkout));
    tokio::spawn(async { axum::serve(listener, router).await });
    // Stalls of the first two seconds are not logged.
    tokio::time::sleep(Builder::DEFAULT_STARTUP_GRACE).await;
    let ask = move || ureq::get(&format!("http://{address}/checkout")).call();
    let answer = tokio::task::spawn_blocking(ask).await??;
    start::settle(&watch).await;
    tokio::task::spawn_blocking(move || provider.shutdown()).await??;
    println!("done: {}", answer.status());
    Ok(())
}
