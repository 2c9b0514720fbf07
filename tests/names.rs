//! A stall carries the names of its spans and futures, and an exact duration.

mod seen;

use seen::{Seen, missing_names};
use std::time::{Duration, Instant};
use tokio_stall::{Certainty, FutureExt as _, Missing, Phase};
use tracing::{Instrument as _, info_span, instrument};
use tracing_subscriber::prelude::*;

const LONG: Duration = Duration::from_millis(80);

fn block() -> Duration {
    let start = Instant::now();
    std::thread::sleep(LONG);
    start.elapsed()
}

#[instrument]
async fn load_profile() -> Duration {
    tokio::task::yield_now().await;
    block()
}

#[instrument]
async fn get_user() -> Duration {
    load_profile().await
}

/// One test: the subscriber belongs to the process.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stalls_are_named_by_what_their_polls_are_in() {
    tracing_subscriber::registry()
        .with(tokio_stall::layer().with_fields())
        .with(tracing_subscriber::fmt::layer().with_test_writer())
        .init();
    let (watch, seen) = Seen::watch();
    assert!(watch.coverage()[0].spans);

    let told = seen.clone();
    let expect = async |span: &str, blocked: tokio::task::JoinHandle<Duration>| {
        let truth = blocked.await.unwrap();
        let fits = |report: &tokio_stall::StallReport| report.span.as_deref() == Some(span);
        let began = told.wait(fits);
        let ended = told.wait_for_end(began.id);
        assert_eq!(
            (began.phase, began.certainty),
            (Phase::Began, Certainty::Certain),
            "{span}"
        );
        assert_eq!(ended.span.as_deref(), Some(span));
        assert_eq!(missing_names(&ended), []);
        // Measured at both ends by the thread itself, around the truth.
        assert!(ended.duration_error.is_zero(), "{ended}");
        assert!(ended.duration >= truth, "{truth:?} in {ended}");
        assert!(began.duration < ended.duration);
    };

    let request = info_span!("request", path = "/users/7", status = tracing::field::Empty);
    request.record("status", 200);
    expect(
        "request{path=/users/7 status=200} > get_user > load_profile",
        tokio::spawn(get_user().instrument(request)),
    )
    .await;
    expect(
        "reindex",
        tokio::spawn(async { block() }.watched("reindex")),
    )
    .await;
    expect(
        "job > batch",
        tokio::spawn(
            async { async { block() }.instrument(info_span!("batch")).await }.watched("job"),
        ),
    )
    .await;

    // A span more verbose than the layer asks for marks the poll without a name of its own.
    expect(
        "outer",
        tokio::spawn(
            async { tracing::debug_span!("inner").in_scope(block) }.instrument(info_span!("outer")),
        ),
    )
    .await;

    // A parent that is not entered is in the path all the same.
    let parent = info_span!("parent");
    expect(
        "parent > child",
        tokio::spawn(async { block() }.instrument(info_span!(parent: &parent, "child"))),
    )
    .await;

    // The innermost names survive deep nesting.
    fn nested(depth: u32) -> Duration {
        match depth {
            0 => block(),
            _ => info_span!("deeper").in_scope(|| nested(depth - 1)),
        }
    }
    tokio::spawn(async { nested(14) }.watched("deep"))
        .await
        .unwrap();
    let deep = seen.wait(|report| {
        report
            .span
            .as_deref()
            .is_some_and(|span| span.starts_with("deep > "))
    });
    assert_eq!(missing_names(&deep), [Missing::TooDeep]);

    // A panic ends its mark like a return does.
    let panicked = tokio::spawn(async { panic!("as intended") }.watched("panics")).await;
    assert!(panicked.is_err());
    expect("after", tokio::spawn(async { block() }.watched("after"))).await;
}
