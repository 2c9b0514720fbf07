//! Polls without any mark: a long one is certain while it lasts, and rows of short ones are not
//! reported at all, not even as likely. No layer, no `watched` future and no hook is in use, except
//! in the last test.

#[path = "../../examples/unmarked/rows.rs"]
mod rows;

use crate::support::load::Hogs;
use crate::support::seen::Seen;
use crate::support::stage::{Setup, Stage, sleeps};
use crate::support::{FOREVER, Held, Stop, threads_known, wait_for_threads, wait_until};
use rows::{GoesOn, MS, compute, goes_on_for};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tokio_stall::{Certainty, FutureExt as _, Phase, StallReport};

/// Far over the threshold of 10 ms.
const LONG: Duration = Duration::from_millis(100);

/// The length of a row.
fn goes_on() -> GoesOn {
    goes_on_for(Duration::from_millis(1_500))
}

/// Runs the future on a stage that counts turns and knows all threads, which takes a moment on a
/// busy machine.
fn on_stage<T>(setup: Setup, future: impl AsyncFnOnce(&Stage) -> T) -> T {
    let stage = setup.start();
    stage.block_on(async {
        threads_known(&stage.watch).await;
        let coverage = &stage.watch.coverage()[0];
        assert!(coverage.turns, "{coverage}");
        future(&stage).await
    })
}

/// Runs `quiet`, of which nothing may be reported, and then a real stall in the same place, which
/// must be.
fn silent(setup: Setup, quiet: impl AsyncFnOnce()) {
    on_stage(setup, async |stage| {
        quiet().await;
        stage.seen.assert_nothing();
        hold_until_told(&stage.seen).await;
        let ended = stage.seen.wait_for_an_end();
        assert_eq!(ended.certainty, Certainty::Certain, "{ended}");
    });
}

fn two_workers() -> Setup {
    Stage::multi_thread(2)
}

/// One poll that holds its worker until a report of it, however busy the machine is.
async fn hold_until_told(seen: &Seen) {
    let seen = seen.clone();
    let held = async move {
        let start = Instant::now();
        while seen.all().is_empty() {
            assert!(start.elapsed() < FOREVER, "no report while it lasts");
            std::thread::sleep(MS);
        }
    };
    tokio::spawn(held).await.unwrap();
}

#[test]
fn many_tasks_of_a_millisecond_are_silent() {
    silent(two_workers(), async || {
        rows::rows_with_pauses(goes_on()).await
    });
}

#[test]
fn many_tasks_of_five_milliseconds_on_all_workers_are_silent() {
    silent(two_workers(), async || {
        rows::many_tasks(goes_on(), 5 * MS).await
    });
}

#[test]
fn a_task_that_yields_every_millisecond_is_silent() {
    silent(two_workers(), async || rows::yields(goes_on(), MS).await);
}

#[test]
fn a_task_that_yields_every_nine_milliseconds_is_silent() {
    silent(two_workers(), async || {
        rows::yields(goes_on(), 9 * MS).await
    });
}

#[test]
fn a_task_that_wakes_itself_is_silent() {
    silent(two_workers(), async || {
        rows::wakes_itself(goes_on(), 3 * MS).await
    });
}

#[test]
fn two_tasks_that_wake_each_other_are_silent() {
    silent(two_workers(), async || {
        rows::ping_pong(goes_on(), MS, MS).await;
        rows::ping_pong(goes_on(), 3 * MS, 3 * MS).await;
        // Nobody sees the short one between two long ones, and the turn takes more than the
        // threshold.
        rows::ping_pong(goes_on(), 6 * MS, Duration::ZERO).await;
    });
}

#[test]
fn futures_polled_together_within_the_threshold_are_silent() {
    silent(two_workers(), async || rows::together(goes_on()).await);
}

#[test]
fn block_in_place_alone_and_followed_by_short_polls_is_silent() {
    silent(two_workers(), async || {
        rows::in_place(goes_on(), 0).await;
        rows::in_place_beside_rows(goes_on()).await;
    });
}

#[test]
fn a_million_short_turns_are_silent() {
    silent(two_workers(), async || {
        let turns = [(); 4].map(|()| {
            tokio::spawn(async {
                for _ in 0..250_000 {
                    tokio::task::yield_now().await;
                }
            })
        });
        for task in turns {
            task.await.unwrap();
        }
    });
}

#[test]
fn rows_on_a_current_thread_runtime_are_silent() {
    silent(Stage::current_thread(), async || {
        rows::rows_with_pauses(goes_on()).await;
        rows::yields(goes_on(), 9 * MS).await;
        rows::ping_pong(goes_on(), 6 * MS, Duration::ZERO).await;
        // In the future of `block_on` itself.
        let goes_on = goes_on();
        while goes_on() {
            compute(9 * MS);
            tokio::task::yield_now().await;
        }
    });
}

#[test]
fn a_current_thread_runtime_driven_now_and_then_is_silent() {
    let stage = Stage::current_thread().start();
    let coverage = &stage.watch.coverage()[0];
    assert!(coverage.turns, "{coverage}");
    rows::driven_now_and_then(&stage.runtime, &goes_on());
    stage.seen.assert_nothing();
    // Positive control.
    stage.block_on(async { compute(LONG) });
    let ended = stage.seen.wait_for_an_end();
    assert_eq!(ended.certainty, Certainty::Certain, "{ended}");
    assert_eq!(ended.task, None, "not in a task");
}

#[test]
fn rows_on_a_busy_machine_are_silent() {
    silent(two_workers(), async || {
        let _hogs = Hogs::start(4);
        rows::yields(goes_on(), 3 * MS).await;
        rows::rows_with_pauses(goes_on()).await;
        rows::ping_pong(goes_on(), 3 * MS, MS).await;
    });
}

/// A stall is reported as certain while it lasts. Returns its last report.
fn is_found(seen: &Seen, fits: impl Fn(&StallReport) -> bool) -> StallReport {
    // The wait for its end would be another stall.
    tokio_stall::allow_blocking("a test waits for a report", || {
        let began = seen.wait(|report| report.phase == Phase::Began && fits(report));
        assert_eq!(began.certainty, Certainty::Certain, "{began}");
        seen.wait_for_end(began.id)
    })
}

#[test]
fn computing_and_sleeping_tasks_are_found_one_by_one() {
    for workers in [
        Stage::multi_thread(1),
        two_workers(),
        Stage::current_thread(),
    ] {
        on_stage(workers, async |stage| {
            let seen = &stage.seen;
            tokio::spawn(async { compute(LONG) }).await.unwrap();
            let computed = is_found(seen, |report| report.task.is_some());
            assert!(computed.time.cpu >= LONG / 2, "{computed}");
            // The signal of its stack wakes the sleeper, who may then wait for a CPU.
            tokio::spawn(sleeps(LONG * 10)).await.unwrap();
            let slept = is_found(seen, |report| report.id > computed.id);
            assert!(slept.time.asleep >= LONG / 2, "{slept}");
            let ids = seen.ids();
            assert_eq!(ids.len(), 2, "two stalls in a row are two: {ids:?}");
        });
    }
}

/// The future of `block_on` of a `current_thread` runtime runs on its worker.
#[test]
fn computing_is_found_in_the_future_of_block_on() {
    let stage = Stage::current_thread().start();
    stage.block_on(async {
        // Once round the loop, so that the thread is known.
        tokio::time::sleep(LONG).await;
        compute(LONG);
        tokio::task::yield_now().await;
        let ended = is_found(&stage.seen, |_| true);
        assert_eq!(ended.task, None, "{ended}");
    });
}

#[test]
fn the_task_of_a_report_is_the_one_that_stalls() {
    on_stage(two_workers(), async |stage| {
        let seen = &stage.seen;
        for _ in 0..3 {
            let known = seen.ids();
            let task = tokio::spawn(async {
                compute(LONG);
                tokio::task::id().to_string()
            });
            let id = task.await.unwrap();
            let is_new = |report: &StallReport| !known.contains(&report.id);
            let ended = seen.wait(|report| report.phase == Phase::Ended && is_new(report));
            assert_eq!(ended.task.map(|task| task.to_string()), Some(id), "{ended}");
        }
    });
}

/// Four tasks that make the workers busy before the watch starts.
fn busy_beforehand(setup: Setup) -> (Stage, Stop) {
    let (stop, stopped) = Stop::new();
    let stage = setup.start_after(|runtime| {
        for _ in 0..4 {
            let stopped = stopped.clone();
            runtime.spawn(async move {
                while !stopped.load(Ordering::Relaxed) {
                    compute(MS / 20);
                    tokio::task::yield_now().await;
                }
            });
        }
        std::thread::sleep(LONG);
    });
    (stage, stop)
}

#[test]
fn workers_that_are_busy_already_are_watched() {
    let (stage, stop) = busy_beforehand(two_workers());
    let seen = &stage.seen;
    wait_for_threads(&stage.watch);
    assert!(stage.watch.coverage()[0].turns);
    for length in [60, 100, 200] {
        let known = seen.ids();
        stage.run(async move { compute(length * MS) });
        let is_new = |report: &StallReport| !known.contains(&report.id);
        let ended = seen.wait(|report| report.phase == Phase::Ended && is_new(report));
        assert!(ended.duration >= length * MS / 2, "{ended}");
    }
    drop(stop);
    assert_eq!(seen.ids().len(), 3, "nothing but these: {:#?}", seen.all());
    let turns = &stage.watch.status().runtimes[0].worker_turns;
    assert!(turns.iter().sum::<u64>() > 1_000, "{turns:?}");
}

#[test]
fn a_runtime_whose_only_worker_is_held_has_a_frozen_driver() {
    on_stage(Stage::multi_thread(1), async |stage| {
        // Until the worker has been seen to wait in the driver.
        tokio::time::sleep(3 * LONG).await;
        // The figure of the status begins with the first report.
        tokio::spawn(sleeps(LONG * 10)).await.unwrap();
        let ended = stage.seen.wait_for_an_end();
        let frozen = ended.driver_frozen.expect("it has been seen");
        assert!(frozen >= LONG / 2 && frozen <= ended.duration, "{ended}");
        let status = stage.watch.status();
        assert!(status.runtimes[0].driver_frozen >= LONG / 2, "{status:?}");
    });
}

/// While a worker that nobody knows is blocked, and no other takes its tasks, they do not pile up.
#[test]
fn a_blocked_runtime_is_not_filled_with_our_tasks() {
    let (release, held) = Held::new();
    let stage = Stage::multi_thread(1).start_after(|runtime| {
        runtime.spawn(async move { held.wait() });
        std::thread::sleep(LONG);
    });
    // Dropped before the stage, whose runtime waits for its threads.
    let release = release;
    let later = stage.watch.status().ticks + 1_000;
    wait_until("some ticks", || stage.watch.status().ticks > later);
    assert_eq!(stage.watch.coverage()[0].known_threads, 0);
    let queue = || stage.runtime.metrics().global_queue_depth();
    assert!(queue() > 0, "the gathering of the start is there");
    assert!(queue() <= 4, "{}", queue());
    drop(release);
    wait_for_threads(&stage.watch);
}

#[test]
fn turns_that_are_switched_off_leave_only_marks() {
    let stage = two_workers().settings(|builder| builder.turns(false));
    let stage = stage.start();
    let coverage = &stage.watch.coverage()[0];
    assert_eq!(
        (coverage.turns, coverage.no_turns),
        (false, Some("switched off by `Builder::turns`"))
    );
    stage.run(async { compute(LONG) });
    stage.seen.assert_nothing();
    stage.silent_beside(|| async { compute(LONG) });
}

/// Polls this on a `current_thread` runtime until one of the polls is told of, and returns its end.
fn told_on_current_thread(poll: impl AsyncFn(&Seen)) -> StallReport {
    on_stage(Stage::current_thread(), async |stage| {
        let start = Instant::now();
        while stage.seen.all().is_empty() {
            assert!(start.elapsed() < FOREVER, "no report while it lasts");
            poll(&stage.seen).await;
            tokio::task::yield_now().await;
        }
        stage.seen.wait_for_an_end()
    })
}

#[test]
fn a_poll_that_takes_random_numbers_from_its_runtime_is_one_poll() {
    let ended = told_on_current_thread(async |seen| {
        let start = Instant::now();
        while seen.all().is_empty() {
            assert!(start.elapsed() < FOREVER, "no report while it lasts");
            tokio::select! {
                () = std::future::ready(()) => compute(2 * MS),
                () = std::future::ready(()) => compute(2 * MS),
            }
        }
    });
    assert_eq!(ended.certainty, Certainty::Certain, "{ended}");
}

#[test]
fn tasks_of_a_local_set_are_in_the_span_of_its_poll() {
    let ended = told_on_current_thread(async |_| {
        let local = tokio::task::LocalSet::new();
        for _ in 0..50 {
            local.spawn_local(async { compute(3 * MS) });
        }
        local.watched("set").await;
    });
    assert_eq!(ended.certainty, Certainty::Certain, "{ended}");
    assert_eq!(ended.span.as_deref(), Some("set"), "{ended}");
}

/// Its drop takes long.
struct SlowToDrop;

impl Drop for SlowToDrop {
    fn drop(&mut self) {
        compute(LONG);
    }
}

#[test]
fn the_output_of_another_task_is_dropped_in_the_span_of_the_poll() {
    on_stage(two_workers(), async |stage| {
        let start = Instant::now();
        while stage.seen.all().is_empty() {
            assert!(start.elapsed() < FOREVER, "no report while it lasts");
            let other = tokio::spawn(async { SlowToDrop });
            while !other.is_finished() {
                tokio::time::sleep(MS).await;
            }
            let drops = async move {
                compute(8 * MS);
                drop(other);
            };
            tokio::spawn(drops.watched("drops")).await.unwrap();
        }
        let ended = stage.seen.wait_for_an_end();
        assert_eq!(ended.span.as_deref(), Some("drops"), "{ended}");
    });
}
