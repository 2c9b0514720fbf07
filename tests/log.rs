//! Stalls as `tracing` events: levels, fields, limits, and the line at the start.

mod seen;

use seen::{FOREVER, Seen};
use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio_stall::{FutureExt as _, Phase};
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
    fn wait(&self, text: &str) -> Line {
        let deadline = Instant::now() + FOREVER;
        loop {
            let lines = self.0.lock().unwrap().clone();
            if let Some(line) = lines.iter().find(|line| line.fields.contains(text)) {
                return line.clone();
            }
            assert!(Instant::now() < deadline, "no {text:?} in {lines:#?}");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn lines_with(&self, text: &str) -> usize {
        self.0
            .lock()
            .unwrap()
            .iter()
            .filter(|line| line.fields.contains(text))
            .count()
    }
}

async fn stall(name: &'static str, length: Duration) {
    tokio::spawn(async move { std::thread::sleep(length) }.watched(name))
        .await
        .unwrap();
}

/// One test: the subscriber belongs to the process.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stalls_are_logged_by_their_length_and_not_without_end() {
    let log = Log::default();
    tracing_subscriber::registry().with(log.clone()).init();
    let (builder, seen) = Seen::builder();
    let watch = builder
        .threshold(Duration::from_millis(5))
        .warn_after(Duration::from_millis(40))
        .error_after(Duration::from_secs(1))
        .startup_grace(Duration::ZERO)
        .start()
        .unwrap();
    let start = log.wait("watching");
    assert_eq!(start.level, Level::INFO);
    assert!(
        start.fields.contains("2 workers") && start.fields.contains("threshold_seconds=0.005"),
        "{start:?}"
    );
    let coverage = &watch.coverage()[0];
    let turns = format!("turns={} ", coverage.turns);
    assert!(start.fields.contains(&turns), "{turns}in {start:?}");
    if let Some(why) = coverage.no_turns {
        assert!(
            start.fields.contains(&format!("no_turns={why:?} ")),
            "{start:?}"
        );
    }

    stall("worth_a_warning", Duration::from_millis(100)).await;
    let warning = log.wait("worth_a_warning");
    assert_eq!(warning.level, Level::WARN);
    for field in [
        "span=\"worth_a_warning\"",
        "runtime=\"main\"",
        "certainty=Certain",
        "blocked for",
        "so far",
        #[cfg(target_os = "linux")]
        "asleep_in=\"clock_nanosleep\"",
    ] {
        assert!(warning.fields.contains(field), "{field} in {warning:?}");
    }
    // Said while it lasted, and closed.
    log.wait("was blocked for");

    stall("worth_an_error", Duration::from_millis(1_300)).await;
    log.wait("worth_an_error");
    let end = seen.wait(|report| {
        report.phase == Phase::Ended && report.span.as_deref() == Some("worth_an_error")
    });
    let deadline = Instant::now() + FOREVER;
    while !log
        .0
        .lock()
        .unwrap()
        .iter()
        .any(|line| line.level == Level::ERROR)
    {
        assert!(Instant::now() < deadline, "no error for {end}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }

    // Too short to be logged, but told all the same.
    stall("short", Duration::from_millis(15)).await;
    let short =
        seen.wait(|report| report.span.as_deref() == Some("short") && report.phase == Phase::Ended);
    let too_long = short.duration >= Duration::from_millis(40);
    assert!(log.lines_with("short") == 0 || too_long, "{short}");

    // The same site again is counted instead, and the next line of another says so.
    let lines = log.lines_with("worth_a_warning");
    for _ in 0..3 {
        stall("worth_a_warning", Duration::from_millis(60)).await;
    }
    let again = |seen: &Seen| {
        let of_site =
            |report: &&tokio_stall::StallReport| report.span.as_deref() == Some("worth_a_warning");
        seen.all()
            .iter()
            .filter(of_site)
            .filter(|report| report.phase == Phase::Ended)
            .count()
    };
    while again(&seen) < 4 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    stall("another", Duration::from_millis(60)).await;
    let another = log.wait("span=\"another\"");
    assert_eq!(log.lines_with("worth_a_warning"), lines, "limited");
    assert!(another.fields.contains("suppressed=3"), "{another:?}");

    // What panics in the user's code does not end the reports.
    drop(watch);
    let panicking = tokio_stall::Builder::new()
        .on_stall(|_| panic!("as intended"))
        .log(false)
        .start()
        .unwrap();
    stall("panics", Duration::from_millis(60)).await;
    while panicking
        .recent()
        .last()
        .is_none_or(|report| report.phase != Phase::Ended)
    {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert!(panicking.status().failed_callbacks > 0);
    assert_eq!(log.lines_with("panics"), 0, "logging is off");
}
