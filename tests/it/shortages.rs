//! Descriptors and threads that are short: the detector leaves them to the program, says what it
//! lacks, and goes on as soon as there are some.
//!
//! Limits belong to a process, so each test has one of its own.
#![allow(unsafe_code)]

use crate::support::child::alone;
use crate::support::process::{detector_threads, open_files};
use crate::support::seen::Seen;
use crate::support::{FOREVER, Held, wait_until};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::collections::HashSet;
use std::fs::File;
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;
use tokio_stall::{
    Builder, Certainty, Coverage, FutureExt as _, Guard, RuntimeStatus, StallReport, StartError,
};

fn limit(resource: Resource, most: u64) {
    let limit = Rlimit {
        current: Some(most),
        maximum: getrlimit(resource).maximum,
    };
    setrlimit(resource, limit).unwrap();
}

/// Without sockets: these would take descriptors, too.
fn workers(number: usize) -> Runtime {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder
        .worker_threads(number)
        .enable_time()
        .build()
        .unwrap()
}

/// Whether a report has the evidence of the thread's files.
fn has_evidence(report: &StallReport) -> bool {
    report.certainty == Certainty::Certain && report.asleep_in.is_some()
}

#[test]
fn workers_are_seen_again_when_there_are_descriptors_again() {
    alone(|| {
        const WORKERS: usize = 8;
        limit(Resource::Nofile, 64);
        let runtime = workers(WORKERS);
        let mut taken: Vec<_> = std::iter::from_fn(|| File::open("/dev/null").ok()).collect();
        taken.truncate(taken.len() - 4);
        let (builder, seen) = Seen::builder();
        let builder = builder.runtime("main", runtime.handle().clone());
        let watch = builder.start().unwrap();
        let blind = watch.status().ticks + 100;
        wait_until("some ticks", || watch.status().ticks >= blind);
        drop(taken);

        let evident = || {
            let reports = seen.all().into_iter().filter(has_evidence);
            reports.map(|report| report.worker).collect::<HashSet<_>>()
        };
        // A stall that begins before the next try is told by the clock alone.
        let deadline = Instant::now() + FOREVER;
        while evident().len() < WORKERS {
            assert!(
                Instant::now() < deadline,
                "{:?} of {:#?}",
                evident(),
                seen.all()
            );
            let (release, held) = Held::new();
            let stalls = [(); WORKERS].map(|()| {
                let held = held.clone();
                runtime.spawn(async move { held.wait() }.watched("held"))
            });
            std::thread::sleep(Duration::from_millis(300));
            drop(release);
            for stall in stalls {
                runtime.block_on(stall).unwrap();
            }
        }
    });
}

/// Coverage has no evidence, and names the shortage, as long as no descriptor is left.
#[test]
fn descriptors_that_are_short_are_a_gap() {
    alone(|| {
        limit(Resource::Nofile, 64);
        let runtime = workers(1);
        let builder = Builder::new().runtime("main", runtime.handle().clone());
        let watch = builder.start().unwrap();
        let coverage = || watch.coverage().remove(0);
        assert!(coverage().thread_evidence, "{}", coverage());
        let gap = |coverage: &Coverage| {
            let gaps = coverage.gaps().into_iter();
            gaps.filter(|gap| gap.sees == "causes")
                .map(|gap| gap.why)
                .next()
        };
        let mut taken = Vec::new();
        wait_until("a round without descriptors", || {
            // The detector may just have let one go.
            taken.extend(std::iter::from_fn(|| File::open("/dev/null").ok()));
            gap(&coverage()).is_some_and(|why| why.contains("descriptors"))
        });
        assert!(!coverage().thread_evidence, "{}", coverage());
        drop(taken);
        wait_until("a round with them", || coverage().thread_evidence);
        assert_eq!(gap(&coverage()), None);
    });
}

#[test]
fn many_workers_leave_most_descriptors_to_the_program() {
    alone(|| {
        const RUNTIMES: usize = 200;
        const LIMIT: usize = 1024;
        limit(Resource::Nofile, LIMIT as u64);
        let runtimes: Vec<_> = [(); RUNTIMES].map(|()| workers(2)).into();
        let before = open_files();
        let (mut builder, seen) = Seen::builder();
        for (nth, runtime) in runtimes.iter().enumerate() {
            builder = builder.runtime(format!("{nth}"), runtime.handle().clone());
        }
        let watch = builder.start().unwrap();
        // All workers have something to do now and then, and none has for long.
        for runtime in &runtimes {
            for _ in 0..2 {
                runtime.spawn(async {
                    loop {
                        tokio::time::sleep(Duration::from_millis(250)).await;
                    }
                });
            }
        }
        let mut most = 0;
        let enough = watch.status().ticks + 200;
        wait_until("some ticks", || {
            most = most.max(open_files());
            watch.status().ticks >= enough
        });
        println!("{before} descriptors before, up to {most} under watch");
        assert!(most - before <= LIMIT / 8 + 16, "{most}");
        assert!(most > before + 64, "or nothing is looked at: {most}");

        let held = &runtimes[RUNTIMES - 1];
        let report = held.block_on(async {
            let (send, until_told) = std::sync::mpsc::channel::<()>();
            let task = async move { until_told.recv().ok() };
            let task = tokio::spawn(task.watched("held"));
            let seen = seen.clone();
            let told = tokio::task::spawn_blocking(move || {
                seen.wait(|report| report.span.as_deref() == Some("held") && has_evidence(report))
            });
            let told = told.await.unwrap();
            drop(send);
            task.await.unwrap();
            told
        });
        assert_eq!(report.runtime, format!("{}", RUNTIMES - 1));
        seen.wait_for_end_of("held");
    });
}

/// Becomes a user of whom there is no other process, since a limit of threads is a user's, and root
/// has none. `None` without the privilege to do so.
fn become_somebody() -> Option<()> {
    let user = 1_000_000 + std::process::id();
    // SAFETY: only numbers go in.
    unsafe {
        let became = libc::setgid(user) == 0 && libc::setuid(user) == 0;
        // The kernel shows system calls of this process to it again.
        libc::prctl(libc::PR_SET_DUMPABLE, 1, 0, 0, 0);
        became.then_some(())
    }
}

/// Leaves room for so many threads more.
fn leave_threads(number: usize) {
    let all = std::fs::read_dir("/proc/self/task").unwrap().count();
    limit(Resource::Nproc, (all + number) as u64);
}

#[test]
fn threads_that_are_short_at_the_start_are_an_error_and_later_none() {
    alone(|| {
        if become_somebody().is_none() {
            println!("skipped: the limit of threads needs the privilege to become another user");
            return;
        }
        let runtime = workers(2);
        let start = |free: usize| {
            leave_threads(free);
            let (builder, seen) = Seen::builder();
            let watch = builder.runtime("main", runtime.handle().clone()).start();
            watch.map(|watch| (watch, seen))
        };
        let threads = (1..20).find(|free| match start(*free) {
            Ok(_) => true,
            Err(StartError::Thread(_)) => {
                wait_until("the threads to end", || detector_threads().is_empty());
                false
            }
            Err(other) => panic!("{other}"),
        });
        let threads = threads.expect("a start with enough threads");
        assert!(threads > 1, "the limit does not hold");
        wait_until("the threads to end", || detector_threads().is_empty());

        // All run, and there is no other: stalls are told while they last, with their stacks.
        let (watch, seen) = start(threads).unwrap();
        leave_threads(0);
        assert!(std::thread::Builder::new().spawn(|| ()).is_err());
        for name in ["first", "second"] {
            let (release, held) = Held::new();
            let stall = runtime.spawn(async move { held.wait() }.watched(name));
            let is_it = |report: &StallReport| report.span.as_deref() == Some(name);
            let told = seen.wait(is_it);
            assert!(told.certainty == Certainty::Certain, "{told:#?}");
            seen.wait(|report| is_it(report) && !report.stacks.is_empty());
            drop(release);
            runtime.block_on(stall).unwrap();
            seen.wait_for_end_of(name);
        }
        assert_probes_go_on(&watch);
    });
}

/// There is no thread for a probe of the pool. As soon as there is one again, probes go on.
#[track_caller]
fn assert_probes_go_on(watch: &Guard) {
    let status = || watch.status().runtimes.remove(0);
    let failed = |status: &RuntimeStatus| status.probes_without_thread;
    let so_far = failed(&status());
    wait_until("a probe without a thread", || failed(&status()) > so_far);
    // None is under way now, so this wait is that of an earlier one.
    let before = status().blocking_queue_wait;
    leave_threads(20);
    wait_until("a probe of the pool", || {
        status().blocking_queue_wait != before
    });
    let threads = detector_threads();
    assert!(
        threads.iter().any(|name| name == "stall-pulse"),
        "{threads:?}"
    );
}
