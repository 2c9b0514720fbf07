//! The layer turns no callsite on that would otherwise be off, in any order of layers.

use tracing::level_filters::LevelFilter;
use tracing::{Level, Subscriber, event_enabled, span_enabled};
use tracing_subscriber::Layer;
use tracing_subscriber::prelude::*;
use tracing_subscriber::registry::Registry;

/// The callsites that a set of layers enables.
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
