//! A stall that no subscriber hears is on standard error, with the fix; unless that is meant.
//!
//! A program of its own: a subscriber and an environment belong to a process, and each test starts
//! one.

mod support;

use std::io::stdout;
use std::time::Duration;
use support::child;
use support::stage::Stage;
use tokio_stall::{Builder, FutureExt as _, Phase, Stacks};
use tracing_subscriber::filter::EnvFilter;
use tracing_subscriber::fmt;
use tracing_subscriber::prelude::*;

const CHILD: &str = "TOKIO_STALL_TEST_UNHEARD";

/// The subscriber of the child.
fn subscribe(kind: &str) {
    let registry = tracing_subscriber::registry();
    match kind {
        "none" | "early" | "callback" | "log off" => {}
        // What `fmt::init()` does in a program with the feature `env-filter`.
        "environment" => registry
            .with(EnvFilter::from_default_env())
            .with(fmt::layer().with_writer(stdout))
            .init(),
        "of the layer" => {
            let filtered = fmt::layer()
                .with_writer(stdout)
                .with_filter(EnvFilter::from_default_env());
            registry.with(tokio_stall::layer()).with(filtered).init();
        }
        "of one thread" => {
            let subscriber = registry.with(fmt::layer());
            // It lasts as long as the process.
            std::mem::forget(tracing::subscriber::set_default(subscriber));
        }
        other => panic!("{other}"),
    }
}

#[test]
fn unheard_child() {
    let Ok(kind) = std::env::var(CHILD) else {
        return;
    };
    subscribe(&kind);
    let grace = match kind.as_str() {
        "early" => Builder::DEFAULT_STARTUP_GRACE * 1_000,
        _ => Duration::ZERO,
    };
    let setup = Stage::multi_thread(1)
        .named("api")
        .settings(|with_callback| {
            let builder = match kind.as_str() {
                "callback" => with_callback,
                _ => Builder::new(),
            };
            let builder = builder.startup_grace(grace).log(kind != "log off");
            // The limit of the log counts sites. A stack may come to one stall, and to the other
            // not.
            let builder = builder.stacks(Stacks::Off);
            builder.warn_after(Duration::from_millis(50))
        });
    let stage = setup.start();
    for _ in 0..2 {
        stage.run(async { std::thread::sleep(Duration::from_millis(150)) }.watched("blocks"));
    }
    support::wait_until("both stalls", || {
        let recent = stage.watch.recent();
        let ended = recent.iter().filter(|stall| stall.phase == Phase::Ended);
        ended.count() == 2
    });
    // The drop waits for the sinks.
    drop(stage);
}

/// How often the child uses the crate in the wrong way.
const MISUSES: usize = 5;

#[test]
fn misused_child() {
    if std::env::var(CHILD).as_deref() != Ok("misused") {
        return;
    }
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let _entered = runtime.enter();
    // The guard is dropped at once, unless this thread loses its CPU in between.
    for _ in 0..MISUSES {
        let _ = tokio_stall::watch().unwrap();
    }
    drop(tokio_stall::Builder::from_env().log(false).start().unwrap());
    let watch = tokio_stall::Builder::from_env().start().unwrap();
    std::thread::sleep(Duration::from_millis(50));
    drop(watch);
}

#[test]
fn a_dropped_guard_and_a_variable_that_nobody_reads_are_told() {
    let mut command = child::command("misused_child", CHILD);
    command
        .env(CHILD, "misused")
        .env("TOKIO_STALL", "threshold=20ms");
    let output = command.output().unwrap();
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{errors}");
    // The other watches are used as they should be, or are to be silent.
    let dropped = errors.matches("bind it to a name").count();
    assert!((1..=MISUSES).contains(&dropped), "{errors}");
    let unread = errors.matches("`Builder::from_env()`").count();
    assert_eq!(unread, MISUSES, "{errors}");
}

/// The standard error and the log of a child.
struct Words {
    errors: String,
    log: String,
}

#[track_caller]
fn said_with(kind: &str, filter: Option<&str>) -> Words {
    let mut command = child::command("unheard_child", CHILD);
    command.env(CHILD, kind).env_remove("RUST_LOG");
    command.envs(filter.map(|filter| ("RUST_LOG", filter)));
    let output = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    let words = Words {
        errors: text(output.stderr),
        log: text(output.stdout),
    };
    assert!(output.status.success(), "{}\n{}", words.errors, words.log);
    words
}

/// The first stall is there, with one fix. The second stall is at the same site.
#[track_caller]
fn assert_told(words: &Words, fix: &str) {
    let errors = &words.errors;
    assert!(
        errors.contains("tokio-stall: worker 0 of \"api\""),
        "{errors}"
    );
    assert!(errors.contains("in blocks"), "{errors}");
    assert_eq!(errors.matches("was blocked for").count(), 1, "{errors}");
    assert_eq!(
        errors.matches("nobody hears this in the log").count(),
        1,
        "{errors}"
    );
    assert!(errors.contains(fix), "{errors}");
}

#[track_caller]
fn assert_silent(words: &Words) {
    assert!(!words.errors.contains("tokio-stall"), "{}", words.errors);
}

#[test]
fn without_a_subscriber_the_headline_is_on_standard_error() {
    assert_told(
        &said_with("none", None),
        "`tracing_subscriber::fmt().init()`",
    );
}

/// A program that is over before the log begins.
#[test]
fn stalls_of_the_start_are_on_standard_error_at_the_end() {
    let errors = said_with("early", None).errors;
    let told = "tokio-stall: 2 stalls of the start were not logged";
    assert_eq!(errors.matches(told).count(), 1, "{errors}");
    assert!(
        errors.contains("`tracing_subscriber::fmt().init()`"),
        "{errors}"
    );
}

#[test]
fn a_subscriber_of_one_thread_is_none_of_the_process() {
    assert_told(&said_with("of one thread", None), "has no subscriber");
}

#[test]
fn a_filter_for_the_own_modules_hides_a_stall_by_mistake() {
    for kind in ["environment", "of the layer"] {
        let words = said_with(kind, Some("my_app=info"));
        assert_told(&words, "add `tokio_stall=info` to the filter");
        assert!(!words.log.contains("blocked for"), "{}", words.log);
    }
}

/// Without `RUST_LOG` such a filter lets errors pass. The first headline has the fix, and that is
/// all.
#[test]
fn a_filter_for_errors_is_told_of_once() {
    for kind in ["environment", "of the layer"] {
        let errors = said_with(kind, None).errors;
        assert_eq!(errors.matches("blocked for").count(), 1, "{errors}");
        assert!(
            errors.contains("lets errors pass and no warnings"),
            "{errors}"
        );
    }
}

#[test]
fn a_filter_that_is_meant_to_hide_stalls_hides_them() {
    for filter in [
        "tokio_stall=off",
        "my_app=info,tokio_stall=off",
        "info,tokio_stall=off",
        "info,tokio_stall=error",
    ] {
        for kind in ["environment", "of the layer"] {
            let words = said_with(kind, Some(filter));
            assert_silent(&words);
            assert!(!words.log.contains("blocked for"), "{}", words.log);
        }
    }
}

#[test]
fn a_stall_that_is_heard_is_not_said_twice() {
    for (kind, filter) in [
        ("environment", "info"),
        ("of the layer", "my_app=info,tokio_stall=warn"),
    ] {
        let words = said_with(kind, Some(filter));
        assert_silent(&words);
        assert!(words.log.contains("was blocked for"), "{}", words.log);
    }
}

#[test]
fn a_callback_hears_and_a_log_that_is_off_is_meant() {
    assert_silent(&said_with("callback", None));
    assert_silent(&said_with("log off", None));
}
