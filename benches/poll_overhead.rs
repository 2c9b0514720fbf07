//! What watching adds to a poll: polled in a loop, where nanoseconds show, and on a worker, where they are paid.
//!
//! ```text
//! cargo bench --bench poll_overhead
//! RUSTFLAGS="--cfg tokio_unstable" cargo bench --bench poll_overhead    # with tokio's hooks
//! ```

mod rounds;
mod yielding;

use rounds::{Row, nanos_each};
use std::future::Future;
use std::hint::black_box;
use std::pin::{Pin, pin};
use std::sync::Barrier;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};
use tokio_metrics::TaskMonitor;
use tokio_stall::{FutureExt as _, Guard, PollTiming, RuntimeBuilderExt as _};
use tracing::Instrument as _;
use tracing_subscriber::layer::Identity;
use tracing_subscriber::prelude::*;
use yielding::{Clocked, TASKS, Yielding, nanos_a_poll};

const ROUNDS: usize = 15;
const TIME: Duration = Duration::from_millis(150);
/// Polls in one batch: long enough for the sampled timing to be in it with its share.
const POLLS: usize = 400_000;

const IN_A_LOOP: &[Row] = &[
    row("bare", || poll_many(Countdown(0), || {})),
    row("watched, untimed", || {
        let _watch = watch(PollTiming::Off);
        poll_many(Countdown(0).watched("poll"), || {})
    }),
    row("watched, default: a sample timed", || {
        let _watch = watch(PollTiming::Sampled);
        poll_many(Countdown(0).watched("poll"), || {})
    }),
    row("watched, each timed", || {
        let _watch = watch(PollTiming::Every);
        poll_many(Countdown(0).watched("poll"), || {})
    }),
    row("`Instant::now` twice", || {
        poll_many(Countdown(0), || {
            black_box(Instant::now().elapsed());
        })
    }),
    row("tokio-metrics `TaskMonitor`", || {
        poll_many(
            TaskMonitor::instrument(&TaskMonitor::new(), Countdown(0)),
            || {},
        )
    }),
    row("tokio-metrics, one monitor on two threads", || {
        let monitor = TaskMonitor::new();
        on_two_threads(|| TaskMonitor::instrument(&monitor, Countdown(0)))
    }),
    row("watched, on two threads", || {
        let _watch = watch(PollTiming::Sampled);
        on_two_threads(|| Countdown(0).watched("poll"))
    }),
];

const ON_A_WORKER: &[Row] = &[
    row("task", || on_a_worker(false, |task| task)),
    row("task, watched", || {
        on_a_worker(true, |task| task.watched("poll"))
    }),
    row("task in a span, registry and an empty layer", || {
        tracing_subscriber::registry().with(Identity::new()).init();
        on_a_worker(false, |task| task.instrument(tracing::info_span!("poll")))
    }),
    row("task in a span, registry and our layer", || {
        tracing_subscriber::registry()
            .with(tokio_stall::layer())
            .init();
        on_a_worker(true, |task| task.instrument(tracing::info_span!("poll")))
    }),
    row("task on a runtime with our hooks", || {
        on_a_hooked_worker(|task| task)
    }),
    row("task with `Instant::now` twice", || {
        on_a_worker(false, |task| Clocked { task })
    }),
    row("task, tokio-metrics `TaskMonitor`", || {
        let monitor = TaskMonitor::new();
        on_a_worker(false, move |task| TaskMonitor::instrument(&monitor, task))
    }),
];

const fn row(name: &'static str, measure: fn() -> Vec<f64>) -> Row {
    Row { name, measure }
}

fn main() {
    rounds::be_the_row_asked_for(&[IN_A_LOOP, ON_A_WORKER]);

    let table = rounds::measure_in_turn(IN_A_LOOP, ROUNDS);
    println!(
        "A poll that does next to nothing, in a loop ({ROUNDS} rounds: median and quartiles):\n"
    );
    println!("| poll | ns | ns over bare | times bare |\n|---|---|---|---|");
    for row in IN_A_LOOP {
        println!(
            "| {} | {} | {} | {:.1} |",
            row.name,
            table.figure(row.name, 0).show(2),
            table.over(row.name, "bare", 0).show(2),
            table.ratio(row.name, "bare", 0).median,
        );
    }
    let ours = table
        .over("watched, default: a sample timed", "bare", 0)
        .median;
    let timed = table.over("watched, each timed", "bare", 0).median;
    let theirs = table.over("tokio-metrics `TaskMonitor`", "bare", 0).median;
    println!(
        "\n`TaskMonitor` adds {:.0} times as much as a watched poll, {:.1} times as much as one that is timed.",
        theirs / ours,
        theirs / timed
    );

    let table = rounds::measure_in_turn(ON_A_WORKER, ROUNDS);
    println!("\nA task that yields, {TASKS} of them on one worker:\n");
    println!("| poll | ns | ns over its base | times its base |\n|---|---|---|---|");
    for row in ON_A_WORKER {
        let base = if row.name.ends_with("our layer") {
            "task in a span, registry and an empty layer"
        } else {
            "task"
        };
        println!(
            "| {} | {} | {} | {:.2} |",
            row.name,
            table.figure(row.name, 0).show(1),
            table.over(row.name, base, 0).show(1),
            table.ratio(row.name, base, 0).median,
        );
    }
    if !cfg!(tokio_unstable) {
        println!("\nBuilt without `tokio_unstable`: our hooks see parks only, no polls.");
    }
}

/// Is never ready, and does next to nothing to find that out.
struct Countdown(u64);

impl Future for Countdown {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<()> {
        self.0 = black_box(self.0).wrapping_sub(1);
        Poll::Pending
    }
}

fn poll_many(future: impl Future<Output = ()>, around: impl Fn()) -> Vec<f64> {
    let mut future = pin!(future);
    let mut context = Context::from_waker(Waker::noop());
    vec![nanos_each(POLLS, TIME, || {
        for _ in 0..POLLS {
            around();
            let _ = black_box(future.as_mut().poll(&mut context));
        }
    })]
}

/// As tokio-metrics' own benchmark does it: what the threads share is what they wait for.
fn on_two_threads<F: Future<Output = ()>>(future: impl Fn() -> F + Sync) -> Vec<f64> {
    let start = Barrier::new(2);
    let figures = std::thread::scope(|scope| {
        let threads = [(); 2].map(|()| {
            scope.spawn(|| {
                start.wait();
                poll_many(future(), || {})
            })
        });
        threads.map(|thread| thread.join().expect("it does not panic")[0])
    });
    vec![figures.iter().sum::<f64>() / 2.0]
}

/// The mode of timing is the process's, and a watch sets it. Its runtime is idle.
fn watch(timing: PollTiming) -> Guard {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .build()
        .expect("a runtime");
    let watch = tokio_stall::Builder::new()
        .runtime("bench", runtime.handle().clone())
        .poll_timing(timing)
        .start()
        .expect("nothing else is watched");
    // It is watched until the process ends.
    std::mem::forget(runtime);
    watch
}

fn on_a_worker<F>(watched: bool, future: impl Fn(Yielding) -> F + Send + Sync + 'static) -> Vec<f64>
where
    F: Future<Output = ()> + Send + 'static,
{
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .build()
        .expect("a runtime");
    run(&runtime, watched, future)
}

fn on_a_hooked_worker<F>(future: impl Fn(Yielding) -> F + Send + Sync + 'static) -> Vec<f64>
where
    F: Future<Output = ()> + Send + 'static,
{
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .watch_polls()
        .build()
        .expect("a runtime");
    run(&runtime, true, future)
}

fn run<F>(
    runtime: &tokio::runtime::Runtime,
    watched: bool,
    future: impl Fn(Yielding) -> F + Send + Sync + 'static,
) -> Vec<f64>
where
    F: Future<Output = ()> + Send + 'static,
{
    let _runtime = runtime.enter();
    let _watch = watched.then(|| tokio_stall::watch().expect("nothing else is watched"));
    nanos_a_poll(runtime, move |task| tokio::spawn(future(task)))
}
