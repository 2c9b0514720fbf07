//! The layer turns no callsite on that would otherwise be off, in whatever order layers are added.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use tracing::level_filters::LevelFilter;
use tracing::{Level, Subscriber, event_enabled, span_enabled};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;
use tracing_subscriber::prelude::*;
use tracing_subscriber::registry::Registry;

/// What a set of layers enables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Enabled {
    debug_span: bool,
    info_span: bool,
    debug_event: bool,
    info_event: bool,
    warn_event: bool,
}

/// Asks with callsites of its own, since an answer is cached.
macro_rules! enabled_under {
    ($subscriber:expr) => {
        tracing::subscriber::with_default($subscriber, || Enabled {
            debug_span: span_enabled!(Level::DEBUG),
            info_span: span_enabled!(Level::INFO),
            debug_event: event_enabled!(Level::DEBUG),
            info_event: event_enabled!(Level::INFO),
            warn_event: event_enabled!(Level::WARN),
        })
    };
}

fn only_warnings<S>() -> impl Layer<S>
where
    S: Subscriber + for<'span> tracing_subscriber::registry::LookupSpan<'span>,
{
    tracing_subscriber::fmt::layer()
        .with_test_writer()
        .with_filter(LevelFilter::WARN)
}

#[test]
fn beside_a_filtered_layer_only_our_spans_are_added() {
    let without = enabled_under!(Registry::default().with(only_warnings()));
    let expected = Enabled {
        info_span: true,
        ..without
    };
    assert_eq!(
        enabled_under!(
            Registry::default()
                .with(only_warnings())
                .with(tokio_stall::layer())
        ),
        expected
    );
    assert_eq!(
        enabled_under!(
            Registry::default()
                .with(tokio_stall::layer())
                .with(only_warnings())
        ),
        expected
    );
    // Positive control: a layer without a filter does turn everything on.
    let careless = enabled_under!(
        Registry::default()
            .with(only_warnings())
            .with(tracing_subscriber::layer::Identity::new())
    );
    assert!(careless.debug_event && careless.debug_span);
}

#[test]
fn a_filter_for_the_whole_subscriber_holds_for_us_too() {
    let subscriber = Registry::default()
        .with(tokio_stall::layer())
        .with(LevelFilter::WARN);
    let enabled = enabled_under!(subscriber);
    assert!(!enabled.info_span && !enabled.info_event && enabled.warn_event);
}

#[test]
fn a_more_verbose_level_can_be_asked_for() {
    let layer = tokio_stall::layer().with_max_level(LevelFilter::DEBUG);
    let enabled = enabled_under!(Registry::default().with(only_warnings()).with(layer));
    assert!(enabled.debug_span && !enabled.debug_event);
}

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
    assert!(
        asked <= 1,
        "asked {asked} times: our layer must not make an event be asked about each time"
    );
}
