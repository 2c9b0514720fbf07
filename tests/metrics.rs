//! Metrics by a recorder given to the builder: what is there, what grows, what ends.

mod scraped;
mod seen;

use metrics_exporter_prometheus::PrometheusHandle;
use metrics_util::MetricKindMask;
use scraped::Scraped;
use seen::{FOREVER, Seen};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio_stall::metrics::{METRICS, MetricKind};
use tokio_stall::prometheus::{self, PrometheusBuilder};
use tokio_stall::{FutureExt as _, Guard, PollTiming};

struct Recorded(PrometheusHandle);

impl Recorded {
    fn now(&self) -> Scraped {
        Scraped::parse(&self.0.render())
    }

    /// Waits until everything has been told once. A look may come while it is being told: this is the last of it.
    fn whole(&self) -> Scraped {
        let last = label("what", "polls");
        self.wait(|scraped| scraped.with("tokio_stall_dropped_total", &[&last]).count() == 1)
    }

    /// Waits for figures that fit.
    fn wait(&self, fits: impl Fn(&Scraped) -> bool) -> Scraped {
        let deadline = Instant::now() + FOREVER;
        loop {
            let scraped = self.now();
            if fits(&scraped) {
                return scraped;
            }
            assert!(Instant::now() < deadline, "waited in vain: {scraped:#?}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Watches the runtime the caller is in under this name, with a recorder of its own.
fn watch(name: &str, builder: PrometheusBuilder) -> (Guard, Seen, Recorded) {
    let recorder = prometheus::configure(builder).unwrap().build_recorder();
    let recorded = Recorded(recorder.handle());
    let (builder, seen) = Seen::builder();
    let guard = builder
        .runtime(name, tokio::runtime::Handle::current())
        .poll_timing(PollTiming::Every)
        .recorder(Arc::new(recorder))
        .start()
        .unwrap();
    (guard, seen, recorded)
}

fn label(key: &str, value: &str) -> String {
    format!("{key}=\"{value}\"")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_metric_of_the_list_is_there_and_nothing_else() {
    let (watch, seen, recorded) = watch("whole list", PrometheusBuilder::new());
    // Present from the start, as zeros, before anything has happened.
    let first = recorded.whole();
    assert_eq!(first.sum("tokio_stall_workers", &[]), 2.0);
    let certain = label("certainty", "certain");
    assert_eq!(
        first.with("tokio_stall_stalls_total", &[&certain]).count(),
        11
    );
    assert_eq!(first.sum("tokio_stall_stalls_total", &[]), 0.0);
    assert_eq!(
        first
            .with("tokio_stall_stall_duration_seconds_count", &[])
            .count(),
        6
    );
    assert_eq!(
        first
            .with("tokio_stall_worker_stalled_seconds", &[])
            .count(),
        2
    );
    assert_eq!(first.with("tokio_stall_worker_turns_total", &[]).count(), 2);
    for part in ["_sum", "_count"] {
        let frozen = format!("tokio_stall_driver_frozen_seconds{part}");
        let frozen: Vec<f64> = first.with(&frozen, &[]).map(|(_, value)| value).collect();
        assert_eq!(frozen, [0.0], "{part}");
    }
    assert_eq!(first.with("tokio_stall_coverage", &[]).count(), 6);

    seen.marked_stall_until_told().await;
    async { tokio::task::yield_now().await }
        .watched("quick")
        .await;
    tokio::spawn(async { tokio::task::yield_now().await }.watched("quick"))
        .await
        .unwrap();
    let last = recorded.wait(|scraped| {
        scraped.sum("tokio_stall_stall_duration_seconds_count", &[]) >= 1.0
            && scraped.sum(
                "tokio_stall_poll_duration_seconds_count",
                &[&label("span", "quick")],
            ) >= 1.0
    });
    let listed: BTreeSet<String> = METRICS
        .iter()
        .map(|metric| metric.name.to_owned())
        .collect();
    assert_eq!(last.names(), listed);
    for metric in METRICS {
        assert_eq!(
            last.types[metric.name],
            metric.kind.as_str(),
            "{}",
            metric.name
        );
        if metric.kind == MetricKind::Histogram {
            // One for each bound, and one for what is longer; each series has as many.
            let buckets = last.with_bucket(metric.name);
            assert_eq!(buckets % (metric.buckets.len() + 1), 0, "{}", metric.name);
            assert_ne!(buckets, 0, "{}", metric.name);
        }
    }
    assert!(last.samples.len() <= 300, "{} series", last.samples.len());
    drop(watch);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stall_is_told_while_it_lasts_and_after_it() {
    let (watch, seen, recorded) = watch("while it lasts", PrometheusBuilder::new());
    recorded.whole();
    let (release, held) = std::sync::mpsc::channel::<()>();
    let stalled = tokio::spawn(async move { held.recv().ok() }.watched("held"));
    let (during, recorded, older) = tokio::task::spawn_blocking(move || {
        let age = |scraped: &Scraped| scraped.sum("tokio_stall_worker_stalled_seconds", &[]);
        let during = recorded.wait(|scraped| age(scraped) > 0.0);
        // The age grows while we look.
        let older = recorded.wait(|scraped| age(scraped) > age(&during));
        (during, recorded, older)
    })
    .await
    .unwrap();
    assert_eq!(
        during.sum("tokio_stall_stall_duration_seconds_count", &[]),
        0.0,
        "not over"
    );
    assert!(older.sum("tokio_stall_longest_recent_seconds", &[]) > 0.0);
    let blocked = [
        label("cause", "blocked"),
        label("kind", "lock"),
        label("certainty", "certain"),
    ];
    let blocked: Vec<&str> = blocked.iter().map(String::as_str).collect();
    recorded.wait(|scraped| scraped.sum("tokio_stall_stalls_total", &blocked) == 1.0);
    release.send(()).unwrap();
    stalled.await.unwrap();
    let ended = seen.wait(|report| report.phase == tokio_stall::Phase::Ended);
    let after = recorded.wait(|scraped| {
        scraped.sum("tokio_stall_stall_duration_seconds_count", &[]) == 1.0
            && scraped.sum("tokio_stall_worker_stalled_seconds", &[]) == 0.0
    });
    let sum = after.sum(
        "tokio_stall_stall_duration_seconds_sum",
        &[&label("cause", "blocked")],
    );
    assert!(
        (sum - ended.duration.as_secs_f64()).abs() < 1e-6,
        "{sum} is not {:?}",
        ended.duration
    );
    let site = [
        label("span", "held"),
        label(
            "site",
            "metrics::a_stall_is_told_while_it_lasts_and_after_it",
        ),
    ];
    let site: Vec<&str> = site.iter().map(String::as_str).collect();
    recorded.wait(|scraped| scraped.sum("tokio_stall_stalls_by_site_total", &site) == 1.0);
    assert!(
        after.sum("tokio_stall_longest_recent_seconds", &[]) >= sum,
        "remembered for a minute"
    );

    // The last gauge of a watch that has ended would else stay for ever.
    drop(watch);
    let ended = recorded.wait(|scraped| {
        let mut gauges = METRICS
            .iter()
            .filter(|metric| metric.kind == MetricKind::Gauge);
        gauges.all(|gauge| scraped.sum(gauge.name, &[]) == 0.0)
    });
    assert_eq!(
        ended.sum("tokio_stall_stall_duration_seconds_count", &[]),
        1.0,
        "counters stay"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn turns_are_told_by_worker_where_they_are_counted() {
    let (watch, _, recorded) = watch("turns", PrometheusBuilder::new());
    let turns = |scraped: &Scraped| scraped.sum("tokio_stall_worker_turns_total", &[]);
    let first = recorded.whole();
    for _ in 0..1_000 {
        tokio::spawn(tokio::task::yield_now()).await.unwrap();
    }
    let seen = [label("runtime", "turns"), label("sees", "turns")];
    let seen: Vec<&str> = seen.iter().map(String::as_str).collect();
    let sees_turns = |scraped: &Scraped| scraped.sum("tokio_stall_coverage", &seen);
    if !watch.coverage()[0].turns {
        recorded.wait(|scraped| sees_turns(scraped) == 0.0);
        assert_eq!(turns(&recorded.now()), 0.0);
        return;
    }
    let last = recorded.wait(|scraped| turns(scraped) >= turns(&first) + 1_000.0);
    assert_eq!(sees_turns(&last), 1.0);
    let by_worker: Vec<f64> = ["0", "1"]
        .map(|worker| {
            last.sum(
                "tokio_stall_worker_turns_total",
                &[&label("worker", worker)],
            )
        })
        .into();
    assert_eq!(by_worker.iter().sum::<f64>(), turns(&last));
    let status: u64 = watch.status().runtimes[0].worker_turns.iter().sum();
    assert!(status as f64 >= turns(&last), "{status} is told later");
}

/// The only worker waits in the driver when it has nothing to do. While it is held nobody does.
#[cfg(target_os = "linux")]
#[test]
fn a_stall_of_the_only_worker_freezes_the_driver() {
    let runtime = seen::workers(1);
    let (watch, seen, recorded) = {
        let _inside = runtime.enter();
        watch("frozen", PrometheusBuilder::new())
    };
    let deadline = Instant::now() + FOREVER;
    // What is frozen is known once the worker has been seen in the driver.
    loop {
        let began = runtime.block_on(seen.marked_stall_until_told());
        if seen.wait_for_end(began.id).driver_frozen.is_some() {
            break;
        }
        assert!(Instant::now() < deadline, "never seen: {began}");
        std::thread::sleep(Duration::from_millis(50));
    }
    let frozen = |scraped: &Scraped| scraped.sum("tokio_stall_driver_frozen_seconds_sum", &[]);
    let before = frozen(&recorded.whole());
    let (release, held) = std::sync::mpsc::channel::<()>();
    let stalled = runtime.spawn(async move { held.recv().ok() }.watched("freezes"));
    let during = recorded.wait(|scraped| frozen(scraped) > before + 0.1);
    recorded.wait(|scraped| frozen(scraped) > frozen(&during));
    release.send(()).unwrap();
    runtime.block_on(stalled).unwrap();
    let ended = seen.wait(|report| {
        report.phase == tokio_stall::Phase::Ended && report.span.as_deref() == Some("freezes")
    });
    let of_stall = ended.driver_frozen.expect("known by now");
    assert!(!of_stall.is_zero() && of_stall <= ended.duration, "{ended}");
    let text = ended.to_string();
    assert!(text.contains("driver    was frozen for"), "{text}");
    let status = watch.status().runtimes[0].driver_frozen;
    recorded.wait(|scraped| (frozen(scraped) - status.as_secs_f64()).abs() < 1e-6);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn series_that_were_idle_for_long_go_on_as_they_were() {
    let timeout = Some(Duration::from_millis(2500));
    let builder = PrometheusBuilder::new().idle_timeout(MetricKindMask::ALL, timeout);
    let (_watch, seen, recorded) = watch("idle", builder);
    let stalls = |scraped: &Scraped| {
        scraped.sum(
            "tokio_stall_stalls_total",
            &[&label("certainty", "certain")],
        )
    };
    recorded.whole();
    seen.marked_stall_until_told().await;
    recorded.wait(|scraped| stalls(scraped) == 1.0);
    // Longer than the timeout, with nothing to tell; each look lets the exporter forget what it may.
    for _ in 0..40 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        recorded.now();
    }
    let idle = recorded.now();
    assert_eq!(
        idle.with("tokio_stall_stalls_total", &[]).count(),
        22,
        "every series is still there"
    );
    assert_eq!(stalls(&idle), 1.0);
    seen.marked_stall_until_told().await;
    recorded.wait(|scraped| stalls(scraped) == 2.0);
    // A histogram may have been forgotten; what comes after that is not lost.
    recorded.wait(|scraped| scraped.sum("tokio_stall_stall_duration_seconds_count", &[]) >= 1.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_names_end_as_other() {
    let (_watch, _, recorded) = watch("many names", PrometheusBuilder::new());
    recorded.whole();
    for number in 0..10_000 {
        let name: &'static str = format!("name {number}").leak();
        let task = async { tokio::task::yield_now().await }.watched(name);
        tokio::spawn(task).await.unwrap();
    }
    let polls = |scraped: &Scraped| scraped.sum("tokio_stall_polls_total", &[]);
    let counted = recorded.wait(|scraped| polls(scraped) >= 20_000.0);
    let spans = counted.with("tokio_stall_poll_duration_seconds_count", &[]);
    let spans: Vec<_> = spans.collect();
    assert!(spans.len() <= 18, "{spans:#?}");
    let other = label("span", "other");
    assert!(counted.sum("tokio_stall_poll_duration_seconds_count", &[&other]) > 0.0);
    assert!(
        counted.samples.len() <= 600,
        "{} series",
        counted.samples.len()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_watches_tell_two_recorders_apart() {
    let (_here, seen, recorded) = watch("here", PrometheusBuilder::new());
    let there = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .build()
        .unwrap();
    let (_there, there_seen, there_recorded) = {
        let _inside = there.enter();
        watch("there", PrometheusBuilder::new())
    };
    seen.marked_stall_until_told().await;
    recorded.wait(|scraped| {
        scraped.sum("tokio_stall_stalls_total", &[&label("runtime", "here")]) == 1.0
    });
    let told = there_recorded.whole();
    assert_eq!(told.sum("tokio_stall_workers", &[]), 1.0);
    assert_eq!(
        told.with("tokio_stall_workers", &[&label("runtime", "here")])
            .count(),
        0
    );
    assert_eq!(told.sum("tokio_stall_stalls_total", &[]), 0.0);
    drop(there_seen);
    there.shutdown_background();
}

impl Scraped {
    /// How many buckets there are of this metric.
    fn with_bucket(&self, name: &str) -> usize {
        let bucket = format!("{name}_bucket");
        self.with(&bucket, &[]).count()
    }
}
