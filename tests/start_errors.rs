//! Bad input has an error of its own, with its fix in the text, and starts nothing.
//!
//! A program of its own: the detector's threads belong to the process.
#![cfg(target_os = "linux")]

mod support;

use std::collections::BTreeSet;
use std::time::Duration;
use support::{FOREVER, wait_until};
use tokio::runtime::{Handle, Runtime};
use tokio_stall::{Builder, StartError, watch};

/// The error of this start, which leaves no thread of the detector and no task of this runtime.
#[track_caller]
fn error(runtime: &Runtime, builder: Builder) -> StartError {
    // Those of an earlier test may be listed for a moment.
    wait_until("no threads", || threads().is_empty());
    let error = builder.start().expect_err("this must not start");
    // A thread that was joined may be listed for a moment.
    wait_until("the threads of a failed start to end", || {
        threads().is_empty()
    });
    wait_until("tasks of a failed start to end", || {
        runtime.metrics().num_alive_tasks() == 0
    });
    error
}

/// The detector's threads by name. A thread that has just been started bears its parent's name for
/// a moment, so names are counted once.
fn threads() -> BTreeSet<String> {
    support::process::detector_threads().into_iter().collect()
}

/// Watchdog, pulse, reporter, explainer, sinks; and metrics, with that feature.
const THREADS: usize = 5 + cfg!(feature = "metrics") as usize;

fn api(runtime: &Runtime) -> Builder {
    Builder::new().runtime("api", runtime.handle().clone())
}

#[test]
fn a_watch_without_a_runtime_is_an_error() {
    wait_until("no threads", || threads().is_empty());
    let no_runtime = watch().expect_err("no runtime here");
    assert!(matches!(no_runtime, StartError::NoRuntime));
    let text = no_runtime.to_string();
    assert!(text.contains("Builder::runtime"), "{text}");
    assert_eq!(threads(), BTreeSet::new());
}

#[test]
fn a_small_threshold_is_an_error() {
    let runtime = Runtime::new().unwrap();
    for threshold in [Duration::ZERO, Duration::from_micros(99)] {
        let small = error(&runtime, api(&runtime).threshold(threshold));
        assert!(matches!(small, StartError::ThresholdTooSmall { threshold: t } if t == threshold));
        assert!(small.to_string().contains("0.1 ms"), "{small}");
    }
}

#[test]
fn a_tick_out_of_its_range_is_an_error() {
    let runtime = Runtime::new().unwrap();
    for tick in [Duration::ZERO, Duration::from_millis(11)] {
        let long = error(&runtime, api(&runtime).tick(tick));
        assert!(matches!(long, StartError::TickOutOfRange { tick: t, .. } if t == tick));
        assert!(
            long.to_string().contains("leave out `Builder::tick`"),
            "{long}"
        );
    }
}

#[test]
fn an_empty_name_is_an_error() {
    let runtime = Runtime::new().unwrap();
    let unnamed = error(
        &runtime,
        Builder::new().runtime("", runtime.handle().clone()),
    );
    assert!(matches!(unnamed, StartError::NameEmpty), "{unnamed}");
}

#[test]
fn a_runtime_or_a_name_given_twice_is_an_error() {
    let (runtime, other) = (Runtime::new().unwrap(), Runtime::new().unwrap());
    let twice = error(
        &runtime,
        api(&runtime).runtime("again", runtime.handle().clone()),
    );
    assert!(
        matches!(&twice, StartError::RuntimeWatchedTwice { name } if name == "api"),
        "{twice}"
    );
    let same_name = error(
        &runtime,
        api(&runtime).runtime("api", other.handle().clone()),
    );
    assert!(
        matches!(&same_name, StartError::NameTaken { name } if name == "api"),
        "{same_name}"
    );
}

#[test]
fn a_runtime_that_was_shut_down_is_an_error() {
    let (runtime, gone) = (Runtime::new().unwrap(), Runtime::new().unwrap());
    let handle = gone.handle().clone();
    gone.shutdown_timeout(FOREVER);
    let shut_down = error(&runtime, api(&runtime).runtime("gone", handle));
    assert!(
        matches!(&shut_down, StartError::RuntimeShutDown { name } if name == "gone"),
        "{shut_down}"
    );
    // Positive control for all of these: without bad input there is a watch, with its threads.
    let _watch = api(&runtime).start().unwrap();
    wait_until("the detector's threads", || threads().len() == THREADS);
}

#[test]
fn a_watch_that_runs_has_its_runtime_and_its_name() {
    let (runtime, other) = (Runtime::new().unwrap(), Runtime::new().unwrap());
    let _watch = api(&runtime).start().unwrap();
    // A thread gives itself its name, in its own time.
    wait_until("the detector's threads", || threads().len() == THREADS);
    let twice = api(&runtime).start().expect_err("it is watched");
    assert!(matches!(twice, StartError::RuntimeWatchedTwice { .. }));
    let taken = api(&other).start().expect_err("the name is taken");
    assert!(matches!(taken, StartError::NameTaken { .. }));
    let worker = Builder::new().runtime("worker", other.handle().clone());
    let joined = worker.start();
    assert!(joined.is_ok(), "another runtime under another name joins");
    // A thread that a probe starts for the pool has the name of its parent for a moment.
    wait_until("no more threads than before", || threads().len() == THREADS);
    let inside = runtime.block_on(async { Handle::current().name().map(str::to_owned) });
    assert_eq!(inside, None);
}
