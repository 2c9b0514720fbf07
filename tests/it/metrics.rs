//! Metrics by a recorder given to the builder: the list, the figures that grow, the end.

use crate::support::scraped::{Scraped, wait_for};
use crate::support::stage::{Setup, Stage};
use crate::support::{Held, wait_until};
use metrics_exporter_prometheus::PrometheusHandle;
use metrics_util::MetricKindMask;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use tokio_stall::metrics::{METRICS, MetricKind};
use tokio_stall::prometheus::{self, PrometheusBuilder};
use tokio_stall::{Cause, FutureExt as _, PollTiming};

const STALLS: &str = "tokio_stall_stalls_total";
const STALL_COUNT: &str = "tokio_stall_stall_duration_seconds_count";
const STALLED: &str = "tokio_stall_worker_stalled_seconds";
const LONGEST: &str = "tokio_stall_longest_recent_seconds";
const POLL_COUNT: &str = "tokio_stall_poll_duration_seconds_count";

/// A stage with a recorder of its own.
struct Recorded {
    stage: Stage,
    handle: PrometheusHandle,
}

impl Recorded {
    fn start(name: &str) -> Recorded {
        Recorded::start_with(name, Stage::multi_thread(2), PrometheusBuilder::new())
    }

    fn start_with(name: &str, setup: Setup, builder: PrometheusBuilder) -> Recorded {
        let recorder = prometheus::configure(builder).unwrap().build_recorder();
        let handle = recorder.handle();
        let setup = setup.named(name).settings(|builder| {
            let builder = builder.poll_timing(PollTiming::Every);
            builder.recorder(Arc::new(recorder))
        });
        let stage = setup.start();
        Recorded { stage, handle }
    }

    fn now(&self) -> Scraped {
        Scraped::parse(&self.handle.render())
    }

    /// Waits until everything has been recorded once. A look may come in the midst of that.
    fn whole(&self) -> Scraped {
        let last = label("what", "polls");
        self.wait(|scraped| scraped.with("tokio_stall_dropped_total", &[&last]).count() == 1)
    }

    /// Waits for figures that fit.
    #[track_caller]
    fn wait(&self, fits: impl Fn(&Scraped) -> bool) -> Scraped {
        wait_for(|| Some(self.now()), fits)
    }

    /// A poll of a task, marked, that ends at once.
    fn quick_poll(&self, name: &'static str) {
        let task = async { tokio::task::yield_now().await };
        self.stage.run(task.watched(name));
    }
}

fn label(key: &str, value: &str) -> String {
    format!("{key}=\"{value}\"")
}

/// The labels of a cause.
fn cause_and_kind(cause: Cause) -> (&'static str, &'static str) {
    let parts = cause.as_str().split_once('/');
    parts.unwrap_or((cause.as_str(), ""))
}

/// The sum of the samples with all of these labels.
fn sum(scraped: &Scraped, name: &str, labels: &[(&str, &str)]) -> f64 {
    let labels = labels.iter().map(|(key, value)| label(key, value));
    let labels: Vec<String> = labels.collect();
    let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
    scraped.sum(name, &labels)
}

/// Figures are there from the start, as zeros, before anything has happened.
#[test]
fn every_series_begins_as_zero() {
    let recorded = Recorded::start("zeros");
    let first = recorded.whole();
    let series = |name: &str| first.with(name, &[]).count();
    assert_eq!(first.sum("tokio_stall_workers", &[]), 2.0);
    let certain = label("certainty", "certain");
    assert_eq!(first.with(STALLS, &[&certain]).count(), 11);
    assert_eq!(first.sum(STALLS, &[]), 0.0);
    assert_eq!(series(STALL_COUNT), 6);
    assert_eq!(series(STALLED), 2);
    assert_eq!(series("tokio_stall_worker_turns_total"), 2);
    for part in ["_sum", "_count"] {
        let frozen = format!("tokio_stall_driver_frozen_seconds{part}");
        let frozen: Vec<f64> = first.with(&frozen, &[]).map(|(_, value)| value).collect();
        assert_eq!(frozen, [0.0], "{part}");
    }
    assert_eq!(series("tokio_stall_coverage"), 11);
}

#[test]
fn every_metric_of_the_list_is_there_and_nothing_else() {
    let recorded = Recorded::start("whole list");
    recorded.whole();
    recorded.stage.stall();
    let quick = async { tokio::task::yield_now().await };
    recorded.stage.block_on(quick.watched("quick"));
    recorded.quick_poll("quick");
    let last = recorded.wait(|scraped| {
        let polls = sum(scraped, POLL_COUNT, &[("span", "quick")]);
        scraped.sum(STALL_COUNT, &[]) >= 1.0 && polls >= 1.0
    });
    let listed: BTreeSet<String> = METRICS.iter().map(|metric| metric.name.into()).collect();
    assert_eq!(last.names(), listed);
    for metric in METRICS {
        let (name, kind) = (metric.name, metric.kind);
        assert_eq!(last.types[name], kind.as_str(), "{name}");
        if kind == MetricKind::Histogram {
            // One for each bound, and one for longer values; each series has as many.
            let buckets = last.with(&format!("{name}_bucket"), &[]).count();
            assert_eq!(buckets % (metric.buckets.len() + 1), 0, "{name}");
            assert_ne!(buckets, 0, "{name}");
        }
    }
    assert!(last.samples.len() <= 300, "{} series", last.samples.len());
}

#[test]
fn a_stall_that_goes_on_has_an_age_that_grows() {
    let recorded = Recorded::start("while it lasts");
    recorded.whole();
    let (release, held) = Held::new();
    let stalled = async move { held.wait() }.watched("held");
    let stalled = recorded.stage.runtime.spawn(stalled);
    let age = |scraped: &Scraped| scraped.sum(STALLED, &[]);
    let during = recorded.wait(|scraped| age(scraped) > 0.0);
    let older = recorded.wait(|scraped| age(scraped) > age(&during));
    assert_eq!(during.sum(STALL_COUNT, &[]), 0.0, "not over");
    assert!(older.sum(LONGEST, &[]) > 0.0);
    // It is counted with its cause already: that of its first report. On a busy machine this may
    // be a wait for a CPU.
    let first = recorded.stage.seen.wait(|_| true);
    recorded.wait(|scraped| {
        let (cause, kind) = cause_and_kind(first.cause);
        let labels = [("cause", cause), ("kind", kind), ("certainty", "certain")];
        sum(scraped, STALLS, &labels) == 1.0
    });
    drop(release);
    recorded.stage.block_on(stalled).unwrap();
    recorded.wait(|scraped| scraped.sum(STALL_COUNT, &[]) == 1.0 && age(scraped) == 0.0);
}

#[test]
fn a_stall_that_has_ended_has_its_duration_and_its_site() {
    let recorded = Recorded::start("after it");
    recorded.whole();
    let stall = recorded.stage.block_until_reported("held", |until_told| {
        until_told.recv().ok();
    });
    let after = recorded
        .wait(|scraped| scraped.sum(STALL_COUNT, &[]) == 1.0 && scraped.sum(STALLED, &[]) == 0.0);
    let total = "tokio_stall_stall_duration_seconds_sum";
    let (cause, _) = cause_and_kind(stall.ended.cause);
    let total = sum(&after, total, &[("cause", cause)]);
    let truth = stall.ended.duration;
    let off = total - truth.as_secs_f64();
    assert!(off.abs() < 1e-6, "{total} is not {truth:?}");
    let longest = after.sum(LONGEST, &[]);
    assert!(longest >= total, "remembered for a minute");
    recorded.wait(|scraped| {
        let test = "it::metrics::a_stall_that_has_ended_has_its_duration_and_its_site";
        let site = [("span", "held"), ("site", test)];
        sum(scraped, "tokio_stall_stalls_by_site_total", &site) == 1.0
    });
}

/// Else the last gauge of a watch that has ended would stay for ever.
#[test]
fn gauges_of_a_watch_that_ends_become_zero_and_counters_stay() {
    let recorded = Recorded::start("ends");
    recorded.stage.stall();
    recorded.wait(|scraped| scraped.sum(STALL_COUNT, &[]) == 1.0);
    let is_gauge = |metric: &&tokio_stall::metrics::Metric| metric.kind == MetricKind::Gauge;
    let gauges = |scraped: &Scraped| {
        let gauges = METRICS.iter().filter(is_gauge);
        gauges
            .filter(|gauge| scraped.sum(gauge.name, &[]) != 0.0)
            .count()
    };
    // Positive control: there are others while it goes on.
    assert!(gauges(&recorded.now()) > 0);
    let Recorded { stage, handle } = recorded;
    drop(stage);
    let now = || Some(Scraped::parse(&handle.render()));
    let ended = wait_for(now, |scraped| gauges(scraped) == 0);
    assert_eq!(ended.sum(STALL_COUNT, &[]), 1.0, "counters stay");
}

fn turns(scraped: &Scraped) -> f64 {
    scraped.sum("tokio_stall_worker_turns_total", &[])
}

#[test]
fn turns_are_recorded_for_each_worker_if_they_are_counted() {
    let recorded = Recorded::start("turns");
    let watch = &recorded.stage.watch;
    let first = recorded.whole();
    for _ in 0..1_000 {
        recorded.stage.run(tokio::task::yield_now());
    }
    let sees_turns = |scraped: &Scraped| {
        let labels = [("runtime", "turns"), ("sees", "turns")];
        sum(scraped, "tokio_stall_coverage", &labels)
    };
    if !watch.coverage()[0].turns {
        recorded.wait(|scraped| sees_turns(scraped) == 0.0);
        assert_eq!(turns(&recorded.now()), 0.0);
        return;
    }
    let last = recorded.wait(|scraped| turns(scraped) >= turns(&first) + 1_000.0);
    assert_eq!(sees_turns(&last), 1.0);
    let of_worker = |worker| {
        let worker = [("worker", worker)];
        sum(&last, "tokio_stall_worker_turns_total", &worker)
    };
    assert_eq!(of_worker("0") + of_worker("1"), turns(&last));
    let status: u64 = watch.status().runtimes[0].worker_turns.iter().sum();
    assert!(status as f64 >= turns(&last), "{status} is later");
}

/// The driver's state is known once the worker has been seen in the driver.
#[cfg(target_os = "linux")]
fn wait_for_the_driver(stage: &Stage) {
    wait_until("a stall that knows the driver", || {
        std::thread::sleep(Duration::from_millis(50));
        stage.stall().ended.driver_frozen.is_some()
    });
}

/// The only worker waits in the driver when it has nothing to do. While it is held, nobody does.
#[cfg(target_os = "linux")]
#[test]
fn a_stall_of_the_only_worker_freezes_the_driver() {
    let one_worker = Stage::multi_thread(1);
    let recorded = Recorded::start_with("frozen", one_worker, PrometheusBuilder::new());
    let stage = &recorded.stage;
    wait_for_the_driver(stage);
    let frozen = |scraped: &Scraped| scraped.sum("tokio_stall_driver_frozen_seconds_sum", &[]);
    let before = frozen(&recorded.whole());
    let (release, held) = Held::new();
    let stalled = async move { held.wait() }.watched("freezes");
    let stalled = stage.runtime.spawn(stalled);
    let during = recorded.wait(|scraped| frozen(scraped) > before + 0.1);
    recorded.wait(|scraped| frozen(scraped) > frozen(&during));
    drop(release);
    stage.block_on(stalled).unwrap();
    let ended = stage.seen.wait_for_end_of("freezes");
    let of_stall = ended.driver_frozen.expect("known by now");
    assert!(!of_stall.is_zero() && of_stall <= ended.duration, "{ended}");
    let text = ended.to_string();
    assert!(text.contains("driver    was frozen for"), "{text}");
    let status = stage.watch.status().runtimes[0].driver_frozen;
    recorded.wait(|scraped| (frozen(scraped) - status.as_secs_f64()).abs() < 1e-6);
}

#[test]
fn series_that_were_idle_for_long_go_on_as_they_were() {
    let timeout = Some(Duration::from_millis(2500));
    let builder = PrometheusBuilder::new().idle_timeout(MetricKindMask::ALL, timeout);
    let recorded = Recorded::start_with("idle", Stage::multi_thread(2), builder);
    let stalls = |scraped: &Scraped| sum(scraped, STALLS, &[("certainty", "certain")]);
    recorded.whole();
    recorded.stage.stall();
    recorded.wait(|scraped| stalls(scraped) == 1.0);
    // Longer than the timeout, with no news; each look lets the exporter forget all it may.
    for _ in 0..40 {
        std::thread::sleep(Duration::from_millis(100));
        recorded.now();
    }
    let idle = recorded.now();
    let series = idle.with(STALLS, &[]).count();
    assert_eq!(series, 22, "every series is still there");
    assert_eq!(stalls(&idle), 1.0);
    recorded.stage.stall();
    recorded.wait(|scraped| stalls(scraped) == 2.0);
    // A histogram may have been forgotten; its values after that are not lost.
    recorded.wait(|scraped| scraped.sum(STALL_COUNT, &[]) >= 1.0);
}

#[test]
fn ten_thousand_names_end_as_other() {
    let recorded = Recorded::start("many names");
    recorded.whole();
    for number in 0..10_000 {
        recorded.quick_poll(format!("name {number}").leak());
    }
    let polls = |scraped: &Scraped| scraped.sum("tokio_stall_polls_total", &[]);
    let counted = recorded.wait(|scraped| polls(scraped) >= 20_000.0);
    let spans: Vec<_> = counted.with(POLL_COUNT, &[]).collect();
    assert!(spans.len() <= 18, "{spans:#?}");
    assert!(sum(&counted, POLL_COUNT, &[("span", "other")]) > 0.0);
    let series = counted.samples.len();
    assert!(series <= 600, "{series} series");
}

#[test]
fn two_watches_have_two_recorders() {
    let here = Recorded::start("here");
    let one_worker = Stage::multi_thread(1);
    let there = Recorded::start_with("there", one_worker, PrometheusBuilder::new());
    here.stage.stall();
    here.wait(|scraped| sum(scraped, STALLS, &[("runtime", "here")]) == 1.0);
    let told = there.whole();
    assert_eq!(told.sum("tokio_stall_workers", &[]), 1.0);
    let of_here = label("runtime", "here");
    assert_eq!(told.with("tokio_stall_workers", &[&of_here]).count(), 0);
    assert_eq!(told.sum(STALLS, &[]), 0.0);
}

/// The watch of the first one is kept, so both are exported to one recorder.
#[test]
fn a_runtime_with_the_name_of_one_that_was_shut_down_has_its_own_gauges() {
    let recorder = prometheus::configure(PrometheusBuilder::new()).unwrap();
    let recorder = Arc::new(recorder.build_recorder());
    let handle = recorder.handle();
    let start = || {
        let recorder = recorder.clone();
        let setup = Stage::multi_thread(2).named("main");
        setup.settings(|builder| builder.recorder(recorder)).start()
    };
    let now = || Some(Scraped::parse(&handle.render()));
    let workers = |scraped: &Scraped| scraped.sum("tokio_stall_workers", &[]);
    let Stage { watch, runtime, .. } = start();
    wait_for(now, |scraped| workers(scraped) == 2.0);
    runtime.shutdown_background();
    wait_for(now, |scraped| workers(scraped) == 0.0);
    let _second = start();
    wait_for(now, |scraped| workers(scraped) == 2.0);
    // Each export has a later tick.
    let ticked = |scraped: &Scraped| {
        let last_tick = "tokio_stall_watchdog_last_tick_timestamp_seconds";
        scraped.sum(last_tick, &[])
    };
    for _ in 0..3 {
        let before = ticked(&now().unwrap());
        let next = wait_for(now, |scraped| ticked(scraped) > before);
        assert_eq!(workers(&next), 2.0);
    }
    assert!(watch.status().runtimes[0].shut_down);
}

#[test]
fn time_in_which_nobody_drives_a_runtime_is_no_lag() {
    let stage = Stage::current_thread().start();
    let longest = || {
        let lag = &stage.watch.status().runtimes[0].scheduler_lag;
        lag.as_ref().map(|lag| lag.longest)
    };
    let drive = |time| stage.block_on(async move { tokio::time::sleep(time).await });
    wait_until("a pulse", || {
        drive(Duration::from_millis(50));
        longest().is_some()
    });
    for _ in 0..3 {
        std::thread::sleep(Duration::from_secs(3));
        drive(Duration::from_millis(50));
    }
    // A busy machine has delays of its own, but none as long as that.
    drive(Duration::from_millis(1_500));
    assert!(
        longest() < Some(Duration::from_millis(2_500)),
        "{:?}",
        longest()
    );
}
