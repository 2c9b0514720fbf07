//! Bad input: each with its own error, its mend in the text, and nothing started.

mod seen;

use std::collections::BTreeSet;
use std::time::Duration;
use tokio::runtime::{Handle, Runtime};
use tokio_stall::{Builder, StartError, watch};

fn error(builder: Builder) -> StartError {
    builder.start().expect_err("this must not start")
}

/// The detector's threads by name, which must not exist after a failed start. A thread that one of them
/// has just started for tokio bears its parent's name for a moment, so names are counted once.
fn detector_threads() -> BTreeSet<String> {
    let names = seen::thread_names().into_iter();
    names.filter(|name| name.starts_with("stall-")).collect()
}

/// Watchdog, pulse, reporter, sinks; and metrics, with that feature.
const THREADS: usize = 4 + cfg!(feature = "metrics") as usize;

/// One test, since what was started is the whole process's.
#[test]
fn every_error_names_its_mend_and_starts_nothing() {
    let no_runtime = watch().expect_err("no runtime here");
    assert!(matches!(no_runtime, StartError::NoRuntime));
    assert!(
        no_runtime.to_string().contains("Builder::runtime"),
        "{no_runtime}"
    );

    let runtime = Runtime::new().unwrap();
    let here = || Builder::new().runtime("api", runtime.handle().clone());

    for threshold in [Duration::ZERO, Duration::from_micros(99)] {
        let small = error(here().threshold(threshold));
        assert!(matches!(small, StartError::ThresholdTooSmall { threshold: t } if t == threshold));
        assert!(small.to_string().contains("0.1 ms"), "{small}");
    }

    for tick in [Duration::ZERO, Duration::from_millis(11)] {
        let long = error(here().tick(tick));
        assert!(matches!(long, StartError::TickOutOfRange { tick: t, .. } if t == tick));
        assert!(long.to_string().contains("half the threshold"), "{long}");
    }

    let unnamed = error(Builder::new().runtime("", runtime.handle().clone()));
    assert!(matches!(unnamed, StartError::NameEmpty), "{unnamed}");

    let twice = error(here().runtime("again", runtime.handle().clone()));
    assert!(
        matches!(&twice, StartError::RuntimeWatchedTwice { name } if name == "api"),
        "{twice}"
    );

    let other = Runtime::new().unwrap();
    let same_name = error(here().runtime("api", other.handle().clone()));
    assert!(
        matches!(&same_name, StartError::NameTaken { name } if name == "api"),
        "{same_name}"
    );

    let gone = Runtime::new().unwrap();
    let handle = gone.handle().clone();
    gone.shutdown_timeout(seen::FOREVER);
    let shut_down = error(here().runtime("gone", handle));
    assert!(
        matches!(&shut_down, StartError::RuntimeShutDown { name } if name == "gone"),
        "{shut_down}"
    );

    assert_eq!(
        detector_threads(),
        BTreeSet::new(),
        "a failed start must leave nothing behind"
    );
    let deadline = std::time::Instant::now() + seen::FOREVER;
    while runtime.metrics().num_alive_tasks() > 0 {
        assert!(std::time::Instant::now() < deadline, "nor a task");
        std::thread::yield_now();
    }

    // Positive control, and the same errors against a watch that runs.
    let _watch = here().start().unwrap();
    // A thread gives itself its name, in its own time.
    let deadline = std::time::Instant::now() + seen::FOREVER;
    while detector_threads().len() < THREADS {
        assert!(
            std::time::Instant::now() < deadline,
            "{:?}",
            detector_threads()
        );
        std::thread::yield_now();
    }
    assert!(matches!(
        error(here()),
        StartError::RuntimeWatchedTwice { .. }
    ));
    let taken = error(Builder::new().runtime("api", other.handle().clone()));
    assert!(matches!(taken, StartError::NameTaken { .. }));
    let joined = Builder::new()
        .runtime("worker", other.handle().clone())
        .start();
    assert!(joined.is_ok(), "another runtime under another name joins");
    assert_eq!(detector_threads().len(), THREADS, "and shares the threads");
    let inside = runtime.block_on(async { Handle::current().name().map(str::to_owned) });
    assert_eq!(inside, None);
}
