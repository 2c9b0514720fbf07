//! A stall carries the names of its spans and futures, and an exact duration.
//!
//! A program of its own: its subscriber is that of the process.

mod support;

use std::time::{Duration, Instant};
use support::seen::Seen;
use support::stage::Stage;
use support::{assert_at_least, missing_names};
use tokio_stall::{Certainty, FutureExt as _, Missing, Phase, StallReport};
use tracing::{Instrument as _, info_span, instrument};
use tracing_subscriber::prelude::*;

/// The subscriber is the same for all tests of this process: the first one sets it.
fn stage() -> Stage {
    let registry = tracing_subscriber::registry();
    let registry = registry.with(tokio_stall::layer().with_fields());
    let writer = tracing_subscriber::fmt::layer().with_test_writer();
    registry.with(writer).try_init().ok();
    let stage = Stage::multi_thread(2).start();
    assert!(stage.watch.coverage()[0].spans);
    stage
}

/// Blocks until the first report, and returns for how long.
fn block(seen: &Seen) -> Duration {
    let start = Instant::now();
    seen.wait(|_| true);
    start.elapsed()
}

/// Runs a task that blocks, and compares the names and the durations of its stall.
#[track_caller]
fn assert_named<F>(span: &str, task: impl FnOnce(Seen) -> F)
where
    F: Future<Output = Duration> + Send + 'static,
{
    let stage = stage();
    let task = task(stage.seen.clone());
    assert_named_on(&stage, span, task);
}

#[track_caller]
fn assert_named_on(
    stage: &Stage,
    span: &str,
    task: impl Future<Output = Duration> + Send + 'static,
) {
    let truth = stage.run(task);
    let fits = |report: &StallReport| report.span.as_deref() == Some(span);
    let began = stage.seen.wait(fits);
    let ended = stage.seen.wait_for_end(began.id);
    assert_eq!(began.phase, Phase::Began, "{span}");
    assert_eq!(began.certainty, Certainty::Certain, "{span}");
    assert_eq!(ended.span.as_deref(), Some(span));
    assert_eq!(missing_names(&ended), []);
    // Measured at both ends by the thread itself, around the truth.
    assert!(ended.duration_error.is_zero(), "{ended}");
    assert_at_least(ended.duration, truth);
    assert!(began.duration < ended.duration);
}

#[instrument(skip_all)]
async fn load_profile(seen: Seen) -> Duration {
    tokio::task::yield_now().await;
    block(&seen)
}

#[instrument(skip_all)]
async fn get_user(seen: Seen) -> Duration {
    load_profile(seen).await
}

#[test]
fn a_stall_in_spans_has_their_path_and_their_fields() {
    let path = "request{path=/users/7 status=200} > get_user > load_profile";
    assert_named(path, |seen| {
        let request = info_span!("request", path = "/users/7", status = tracing::field::Empty);
        request.record("status", 200);
        get_user(seen).instrument(request)
    });
}

#[test]
fn a_watched_future_has_its_name() {
    assert_named("reindex", |seen| {
        async move { block(&seen) }.watched("reindex")
    });
}

#[test]
fn a_span_in_a_watched_future_has_both_names() {
    assert_named("job > batch", |seen| {
        let batch = async move {
            let inner = async { block(&seen) };
            inner.instrument(info_span!("batch")).await
        };
        batch.watched("job")
    });
}

/// Another layer has enabled it.
#[test]
fn a_span_more_verbose_than_the_layer_has_its_name() {
    assert_named("outer > inner", |seen| {
        let inner = async move { tracing::debug_span!("inner").in_scope(|| block(&seen)) };
        inner.instrument(info_span!("outer"))
    });
}

#[test]
fn a_parent_that_is_not_entered_is_in_the_path() {
    assert_named("parent > child", |seen| {
        let parent = info_span!("parent");
        let child = async move { block(&seen) };
        child.instrument(info_span!(parent: &parent, "child"))
    });
}

fn nested(depth: u32, seen: &Seen) -> Duration {
    match depth {
        0 => block(seen),
        _ => info_span!("deeper").in_scope(|| nested(depth - 1, seen)),
    }
}

#[test]
fn spans_too_deep_keep_the_innermost_names() {
    let stage = stage();
    let seen = stage.seen.clone();
    stage.run(async move { nested(14, &seen) }.watched("deep"));
    let deep = stage.seen.wait(|report| {
        let span = report.span.as_deref();
        span.is_some_and(|span| span.starts_with("deep > "))
    });
    assert_eq!(missing_names(&deep), [Missing::TooDeep]);
}

#[test]
fn a_panic_ends_its_mark_as_a_return_does() {
    let stage = stage();
    // Without the usual hook: a backtrace of the panic may take longer than the threshold.
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let panics = async { panic!("as intended") }.watched("panics");
    let panicked = stage.block_on(stage.runtime.spawn(panics));
    std::panic::set_hook(usual);
    assert!(panicked.is_err());
    let seen = stage.seen.clone();
    let after = async move { block(&seen) }.watched("after");
    assert_named_on(&stage, "after", after);
}
