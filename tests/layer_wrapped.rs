//! The layer inside of `Option`, `Vec`, `Box` and `reload`, and on subscribers that take no filters,
//! names spans.
//!
//! A program of its own: a global subscriber belongs to a process, and each test starts one for
//! itself.

mod support;

use std::sync::mpsc;
use support::child::alone;
use support::stage::Stage;
use tracing::info_span;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::layer::{Identity, SubscriberExt as _};
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{Layer as _, Registry, registry, reload};

/// A stall inside of a span has the span's name.
fn assert_named() {
    let stage = Stage::multi_thread(1).start();
    let (send, until_told) = mpsc::channel::<()>();
    let in_span = async move {
        info_span!("inside").in_scope(|| until_told.recv().ok());
    };
    let blocked = stage.runtime.spawn(in_span);
    let told = stage
        .seen
        .wait(|report| !report.missing.is_empty() || report.span.is_some());
    drop(send);
    stage.block_on(blocked).unwrap();
    assert_eq!(told.span.as_deref(), Some("inside"));
}

#[test]
fn a_layer_in_an_option_names_spans() {
    alone(|| {
        registry().with(Some(tokio_stall::layer())).init();
        assert_named();
    });
}

#[test]
fn a_layer_in_a_vector_names_spans() {
    alone(|| {
        let layers = vec![tokio_stall::layer::<Registry>().boxed()];
        registry().with(layers).init();
        assert_named();
    });
}

#[test]
fn a_layer_in_a_box_names_spans() {
    alone(|| {
        registry().with(tokio_stall::layer().boxed()).init();
        assert_named();
    });
}

#[test]
fn a_layer_that_can_be_reloaded_names_spans() {
    alone(|| {
        let (layer, _handle) = reload::Layer::new(Some(tokio_stall::layer()));
        registry().with(layer).init();
        assert_named();
    });
}

/// A tree of layers asks for filters when it is made, before the subscriber is known.
#[test]
fn a_layer_upon_another_one_in_a_tree_names_spans_and_hides_no_events() {
    alone(|| {
        let layers = Identity::new().and_then(tokio_stall::layer());
        registry().with(Identity::new()).with(layers).init();
        assert_eq!(LevelFilter::current(), LevelFilter::TRACE);
        assert_named();
    });
}

#[test]
fn a_layer_below_another_one_in_a_tree_names_spans_and_hides_no_events() {
    alone(|| {
        let layers = tokio_stall::layer().and_then(Identity::new());
        registry().with(Identity::new()).with(layers).init();
        assert_eq!(LevelFilter::current(), LevelFilter::TRACE);
        assert_named();
    });
}

/// More often than there is room for subscribers.
#[test]
fn a_layer_that_is_replaced_again_and_again_names_spans() {
    alone(|| {
        let (layer, handle) = reload::Layer::new(tokio_stall::layer());
        registry().with(layer).init();
        for _ in 0..30 {
            drop(info_span!("registers"));
            handle.reload(tokio_stall::layer()).unwrap();
        }
        assert_named();
    });
}

#[test]
fn a_layer_on_a_subscriber_without_filters_of_layers_names_spans() {
    alone(|| {
        let subscriber = tracing_subscriber::fmt().with_test_writer().finish();
        subscriber.with(tokio_stall::layer().with_fields()).init();
        assert_named();
    });
}

/// Its type has no arguments in its name.
#[test]
fn a_layer_on_the_subscriber_with_all_defaults_names_spans() {
    alone(|| {
        let subscriber = tracing_subscriber::fmt().finish();
        subscriber.with(tokio_stall::layer()).init();
        assert_named();
    });
}

#[test]
fn a_layer_above_another_one_on_such_a_subscriber_names_spans() {
    alone(|| {
        let subscriber = tracing_subscriber::fmt().with_env_filter("info").finish();
        let subscriber = subscriber.with(Identity::new());
        subscriber.with(tokio_stall::layer()).init();
        assert_named();
    });
}
