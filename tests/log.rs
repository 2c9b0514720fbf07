//! Stalls as `tracing` events: levels, fields, limits, and the line at the start.
//!
//! A program of its own: its subscriber is that of the process.

mod support;

use std::fmt;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;
use support::stage::{Setup, Stage, sleeps};
use support::wait_until;
use tokio_stall::{FutureExt as _, Phase, Stacks, StallReport};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;
use tracing_subscriber::prelude::*;

/// An event of the detector: its level and all its fields as text.
#[derive(Clone, Debug)]
struct Line {
    level: Level,
    fields: String,
}

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<Line>>>);

impl<S: Subscriber> Layer<S> for Log {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        struct Fields(String);
        impl Visit for Fields {
            fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
                self.0 += &format!("{}={value:?} ", field.name());
            }
        }
        if event.metadata().target() == "tokio_stall" {
            let mut fields = Fields(String::new());
            event.record(&mut fields);
            self.0.lock().unwrap().push(Line {
                level: *event.metadata().level(),
                fields: fields.0,
            });
        }
    }
}

impl Log {
    /// The log from here on. The subscriber is the same for all tests of this process.
    fn from_here() -> Log {
        static LOG: OnceLock<Log> = OnceLock::new();
        let log = LOG.get_or_init(|| {
            let log = Log::default();
            tracing_subscriber::registry().with(log.clone()).init();
            log
        });
        log.0.lock().unwrap().clear();
        log.clone()
    }

    fn lines(&self) -> Vec<Line> {
        self.0.lock().unwrap().clone()
    }

    #[track_caller]
    fn wait(&self, fits: impl Fn(&Line) -> bool) -> Line {
        let mut found = None;
        wait_until("a line", || {
            found = self.lines().into_iter().find(&fits);
            found.is_some()
        });
        found.unwrap()
    }

    #[track_caller]
    fn wait_for(&self, text: &str) -> Line {
        self.wait(|line| line.fields.contains(text))
    }

    /// The last line of a stall with this span. The tests share one log.
    #[track_caller]
    fn wait_for_end_of(&self, span: &str) -> Line {
        self.wait(|line| line.fields.contains("was blocked for") && line.fields.contains(span))
    }

    fn lines_with(&self, text: &str) -> usize {
        let lines = self.lines();
        let with_text = lines.iter().filter(|line| line.fields.contains(text));
        with_text.count()
    }
}

/// Lines begin with stalls of 40 ms.
fn setup() -> Setup {
    let setup = Stage::multi_thread(2).named("main");
    setup.settings(|builder| {
        builder
            .threshold(Duration::from_millis(5))
            .warn_after(Duration::from_millis(40))
            .error_after(Duration::from_secs(1))
            .startup_grace(Duration::ZERO)
    })
}

fn stall(stage: &Stage, name: &'static str, milliseconds: u64) {
    let task = sleeps(Duration::from_millis(milliseconds));
    stage.run(task.watched(name));
}

#[test]
fn the_start_is_logged_with_settings_and_coverage() {
    let log = Log::from_here();
    let stage = setup().start();
    let start = log.wait_for("watching");
    assert_eq!(start.level, Level::INFO);
    let coverage = &stage.watch.coverage()[0];
    let mut fields = vec![
        "2 workers".to_owned(),
        "threshold_seconds=0.005".to_owned(),
        format!("turns={} ", coverage.turns),
    ];
    fields.extend(coverage.no_turns.map(|why| format!("no_turns={why:?} ")));
    for field in fields {
        assert!(start.fields.contains(&field), "{field} in {start:?}");
    }
}

#[test]
fn a_stall_is_a_warning_while_it_lasts_and_has_an_end() {
    let log = Log::from_here();
    // The signal of a stack wakes the sleeper, who may then wait for a CPU.
    let stage = setup().settings(|builder| builder.stacks(Stacks::Off));
    let stage = stage.start();
    stall(&stage, "worth_a_warning", 500);
    let warning = log.wait_for("worth_a_warning");
    assert_eq!(warning.level, Level::WARN);
    for field in [
        "span=\"worth_a_warning\"",
        "runtime=\"main\"",
        "certainty=\"certain\"",
        "blocked for",
        "so far",
        #[cfg(target_os = "linux")]
        "asleep_in=\"clock_nanosleep\"",
    ] {
        assert!(warning.fields.contains(field), "{field} in {warning:?}");
    }
    log.wait_for_end_of("worth_a_warning");
}

#[test]
fn a_long_stall_is_an_error_and_has_few_lines() {
    let log = Log::from_here();
    let stage = setup().start();
    stall(&stage, "worth_an_error", 1_300);
    log.wait_for_end_of("worth_an_error");
    let reports = stage.seen.all();
    let of_it = |report: &&StallReport| report.span.as_deref() == Some("worth_an_error");
    let reports = reports.iter().filter(of_it).count();
    let lines = log.lines();
    let lines: Vec<_> = lines
        .iter()
        .filter(|line| line.fields.contains("worth_an_error"))
        .collect();
    assert_eq!(lines.last().unwrap().level, Level::ERROR);
    // Its begin, its site if that was not known yet, the error, and its end.
    assert!(
        lines.len() <= 4 && reports > 4,
        "{reports} reports, {lines:#?}"
    );
    let advised = lines
        .iter()
        .filter(|line| line.fields.contains("tokio::time::sleep"));
    assert!(advised.count() <= 1, "{lines:#?}");
}

/// As in a service in which all requests have the same span.
#[cfg(all(
    target_os = "linux",
    any(target_arch = "x86_64", target_arch = "aarch64")
))]
#[test]
fn two_places_in_one_span_do_not_silence_each_other() {
    #[inline(never)]
    fn another_place() {
        std::thread::sleep(Duration::from_millis(100));
    }
    let log = Log::from_here();
    let stage = setup().start();
    stall(&stage, "request", 100);
    stage.run(async { another_place() }.watched("request"));
    // The last report of a stall has its site.
    log.wait(|line| line.fields.contains("was blocked") && line.fields.contains("stage::sleeps"));
    log.wait(|line| line.fields.contains("was blocked") && line.fields.contains("another_place"));
}

/// The task is a future of a dependency, which calls the standard library.
#[cfg(all(
    target_os = "linux",
    any(target_arch = "x86_64", target_arch = "aarch64")
))]
#[test]
fn a_stall_without_own_code_names_the_dependency() {
    let log = Log::from_here();
    let stage = setup().start();
    let time = futures::future::ready(Duration::from_millis(100));
    let sleeps = futures::future::FutureExt::map(time, std::thread::sleep);
    stage.run(sleeps.watched("no_own_code"));
    let ended = log.wait_for_end_of("no_own_code");
    assert!(ended.fields.contains("dependency=\""), "{ended:?}");
    assert!(!ended.fields.contains("site="), "{ended:?}");
}

#[test]
fn stalls_of_the_start_are_told_when_it_is_over() {
    let log = Log::from_here();
    let grace = Duration::from_secs(3600);
    let stage = setup().settings(|builder| {
        let builder = builder
            .threshold(Duration::from_millis(5))
            .startup_grace(grace);
        builder.warn_after(Duration::from_millis(40))
    });
    let stage = stage.start();
    stall(&stage, "early", 100);
    stage.seen.wait_for_end_of("early");
    assert_eq!(log.lines_with("blocked for"), 0, "{:#?}", log.lines());
    drop(stage);
    let told = log.wait_for("of the start was not logged");
    assert_eq!(told.level, Level::INFO);
    for part in [
        "early_stalls=1",
        "longest_seconds=0.",
        "in early",
        "startup_grace",
    ] {
        assert!(told.fields.contains(part), "{part} in {told:?}");
    }
}

/// Stalls for 15 ms until that is reported: a busy machine may hide one.
#[track_caller]
fn reported_short_stall(stage: &Stage) -> StallReport {
    let is_end = |report: &StallReport| {
        report.phase == Phase::Ended && report.span.as_deref() == Some("short")
    };
    for _ in 0..100 {
        stall(stage, "short", 15);
        std::thread::sleep(Duration::from_millis(100));
        if let Some(end) = stage.seen.all().into_iter().find(is_end) {
            return end;
        }
    }
    panic!("none of 100 is reported: {:#?}", stage.seen.all());
}

#[test]
fn a_short_stall_is_reported_and_not_logged() {
    let log = Log::from_here();
    let stage = setup().start();
    let short = reported_short_stall(&stage);
    // Positive control, and later than a line about the short one.
    stall(&stage, "long", 100);
    log.wait_for("span=\"long\"");
    let is_long = |report: &StallReport| report.duration >= Duration::from_millis(40);
    let of_it = |report: &&StallReport| report.span == short.span;
    let too_long = stage.seen.all().iter().filter(of_it).any(is_long);
    assert!(log.lines_with("short") == 0 || too_long, "{short}");
}

#[test]
fn many_short_stalls_have_one_line_together() {
    let log = Log::from_here();
    let none_by_itself = |builder: tokio_stall::Builder| {
        builder
            .warn_after(Duration::from_secs(100))
            .error_after(Duration::from_secs(200))
    };
    let stage = setup().settings(none_by_itself).start();
    wait_until("a second of short stalls", || {
        stall(&stage, "many", 20);
        log.lines_with("unlogged_stalls=") > 0
    });
    let sum = log.wait_for("unlogged_stalls=");
    assert_eq!(sum.level, Level::WARN);
    for field in ["runtime=\"main\"", "span=\"many\"", "unlogged_seconds=1"] {
        assert!(sum.fields.contains(field), "{field} in {sum:?}");
    }
    assert_eq!(log.lines_with("phase="), 0, "none by itself");
}

/// The next line of another site has the number.
///
/// The limit counts sites and causes. A stack would come to some of these stalls and not to others,
/// and its signal would wake the sleeper, who then waits for a CPU.
#[test]
fn a_site_that_stalls_again_is_counted_instead() {
    let log = Log::from_here();
    let stage = setup().settings(|builder| builder.stacks(Stacks::Off));
    let stage = stage.start();
    stall(&stage, "again", 100);
    log.wait_for_end_of("again");
    let lines = log.lines_with("span=\"again\"");
    for _ in 0..3 {
        stall(&stage, "again", 60);
    }
    let is_end = |report: &&StallReport| {
        report.phase == Phase::Ended && report.span.as_deref() == Some("again")
    };
    wait_until("four ends", || {
        stage.seen.all().iter().filter(is_end).count() == 4
    });
    stall(&stage, "another", 60);
    let another = log.wait_for("span=\"another\"");
    assert_eq!(log.lines_with("span=\"again\""), lines, "limited");
    assert!(another.fields.contains("suppressed=3"), "{another:?}");
}

#[test]
fn a_wait_for_the_blocking_pool_is_logged_again_and_becomes_an_error() {
    let log = Log::from_here();
    let setup = setup().runtime(|builder| builder.max_blocking_threads(1));
    let setup = setup.settings(|builder| {
        let builder = builder.pool_threshold(Duration::from_millis(100));
        // On a busy machine the pool is known to be exhausted after a second or two.
        builder.error_after(Duration::from_secs(4))
    });
    let stage = setup.start();
    let (release, held) = support::Held::new();
    let holds = stage.runtime.spawn_blocking(move || held.wait());
    let error = log.wait(|line| line.level == Level::ERROR);
    assert!(error.fields.contains("is exhausted"), "{error:?}");
    let lines = log.lines();
    let warned = lines.iter().filter(|line| line.level == Level::WARN);
    let exhausted = warned.filter(|line| line.fields.contains("is exhausted"));
    assert_eq!(
        exhausted.count(),
        1,
        "once, and once as an error: {lines:#?}"
    );
    drop(release);
    stage.runtime.block_on(holds).unwrap();
    log.wait_for("let a closure wait");
}

/// A panic in the user's code does not end the reports.
#[test]
fn a_callback_that_panics_is_counted() {
    let log = Log::from_here();
    let stage = setup().settings(|builder| {
        let builder = builder.on_stall(|_| panic!("as intended"));
        builder.log(false)
    });
    let stage = stage.start();
    wait_until("the panic to be counted", || {
        stall(&stage, "panics", 60);
        stage.watch.status().failed_callbacks > 0
    });
    assert_eq!(log.lines_with("panics"), 0, "logging is off");
    // Positive control: this log hears of others.
    drop(stage);
    let stage = setup().start();
    stall(&stage, "does_not_panic", 100);
    log.wait_for("does_not_panic");
}

/// Marked polls on a runtime that nobody watches. The line comes once.
#[test]
fn a_runtime_that_nobody_watches_is_a_warning_once() {
    let log = Log::from_here();
    let _stage = setup().start();
    let other = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name("other")
        .enable_all()
        .build()
        .unwrap();
    other.spawn(async {
        loop {
            async {}.watched("request").await;
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    let told = log.wait_for("not watched");
    assert_eq!(told.level, Level::WARN);
    for part in ["1 other runtime is", "\"other\"", "other_runtimes=1"] {
        assert!(told.fields.contains(part), "{part} in {told:?}");
    }
    // The start of another watch names them, too.
    let second = setup().named("second").start();
    let names = |line: &Line| line.fields.contains("second") && line.fields.contains("not watched");
    assert_eq!(log.wait(names).level, Level::INFO);
    let coverage = &second.watch.coverage()[0];
    assert_eq!(coverage.other_runtimes.len(), 1, "{coverage}");
    let warned = log
        .lines()
        .into_iter()
        .filter(|line| line.level == Level::WARN);
    assert_eq!(warned.count(), 1);
}
