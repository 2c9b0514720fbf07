//! The exporter for the whole program lets go of values that nobody scrapes.
//!
//! A program of its own: its allocator counts, and a process has one recorder.

mod support;

use cap::Cap;
use metrics::{Key, Level, Metadata, Recorder};
use std::alloc::System;
use support::scraped::free_address;
use support::wait_until;
use tokio_stall::prometheus::{self, PrometheusBuilder};

#[global_allocator]
static MEMORY: Cap<System> = Cap::new(System, usize::MAX);

const VALUES: usize = 1_000_000;
/// The least that so many values take while they are kept.
const KEPT: usize = VALUES * size_of::<f64>();

fn record(recorder: &dyn Recorder, count: usize) {
    let metadata = Metadata::new("test", Level::INFO, None);
    let histogram = recorder.register_histogram(&Key::from_static_name("values"), &metadata);
    histogram.record_many(1.0, count);
}

#[test]
fn values_that_nobody_scrapes_are_drained() {
    let builder = PrometheusBuilder::new().with_http_listener(free_address());
    let upkeep = std::time::Duration::from_millis(100);
    prometheus::install(builder.upkeep_timeout(upkeep)).unwrap();
    let kept = |before: usize| MEMORY.allocated().saturating_sub(before);
    let before = MEMORY.allocated();
    metrics::with_recorder(|recorder| record(recorder, VALUES));
    wait_until("the values to be let go", || {
        // Memory is given back by later calls.
        metrics::with_recorder(|recorder| record(recorder, 1));
        kept(before) < KEPT / 4
    });
    // Positive control: a recorder without an exporter keeps them.
    let alone = PrometheusBuilder::new().build_recorder();
    let before = MEMORY.allocated();
    record(&alone, VALUES);
    assert!(kept(before) >= KEPT);
    // It lets go when it is told to.
    alone.handle().run_upkeep();
    wait_until("the values to be let go", || {
        record(&alone, 1);
        alone.handle().run_upkeep();
        kept(before) < KEPT / 4
    });
}
