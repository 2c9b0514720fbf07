//! The layer costs nothing for events: tracing decides once for all whether one is wanted.
//!
//! A program of its own: with a second subscriber alive, tracing asks about every event each time.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use tracing::Subscriber;
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;
use tracing_subscriber::prelude::*;
use tracing_subscriber::registry::Registry;

static COSTLY: AtomicUsize = AtomicUsize::new(0);
static ASKED: AtomicBool = AtomicBool::new(false);

/// A layer without a filter that counts how often it is asked whether a callsite is enabled.
struct Counts;

impl<S: Subscriber> Layer<S> for Counts {
    fn enabled(&self, metadata: &tracing::Metadata<'_>, _: Context<'_, S>) -> bool {
        if metadata.is_event() {
            COSTLY.fetch_add(1, Ordering::Relaxed);
        }
        true
    }

    fn on_event(&self, _: &tracing::Event<'_>, _: Context<'_, S>) {
        ASKED.store(true, Ordering::Relaxed);
    }
}

#[test]
fn events_stay_decided_once_for_all() {
    let subscriber = Registry::default().with(tokio_stall::layer()).with(Counts);
    tracing::subscriber::with_default(subscriber, || {
        for _ in 0..100 {
            tracing::info!("an event that another layer wants");
        }
    });
    assert!(ASKED.load(Ordering::Relaxed), "the event did arrive");
    let asked = COSTLY.load(Ordering::Relaxed);
    assert!(asked <= 1, "asked {asked} times: not once for all");
}
