//! What watching adds to a poll: polled in a loop, where nanoseconds show, and on a worker, where they are paid.
//!
//! ```text
//! cargo bench --bench poll_overhead
//! RUSTFLAGS="--cfg tokio_unstable" cargo bench --bench poll_overhead    # with tokio's hooks
//! ```

mod rounds;

use rounds::{Row, nanos_each};
use std::future::Future;
use std::hint::black_box;
use std::pin::{Pin, pin};
use std::sync::{Arc, Barrier};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};
use tokio::runtime::{self, Runtime};
use tokio_metrics::TaskMonitor;
use tokio_stall::{FutureExt as _, Guard, PollTiming, RuntimeBuilderExt as _};
use tracing::Instrument as _;
use tracing_subscriber::layer::Identity;
use tracing_subscriber::prelude::*;

const ROUNDS: usize = 15;
const TIME: Duration = Duration::from_millis(200);
/// Polls in one batch: shorter than any threshold also where each is timed.
const POLLS: usize = 20_000;
/// Polls of tasks, all together, and the tasks.
const TASK_POLLS: usize = 3_000_000;
const TASKS: usize = 16;

const IN_A_LOOP: &[Row] = &[
    row("bare", || in_a_loop(None, || Countdown(0))),
    row("watched, untimed", || {
        in_a_loop(Some(PollTiming::Off), || Countdown(0).watched("poll"))
    }),
    row("watched, default: a sample timed", || {
        in_a_loop(Some(PollTiming::Sampled), || Countdown(0).watched("poll"))
    }),
    row("watched, each timed", || {
        in_a_loop(Some(PollTiming::Every), || Countdown(0).watched("poll"))
    }),
    row("`Instant::now` twice", || {
        in_a_loop(None, || Clocked {
            inner: Countdown(0),
        })
    }),
    row("tokio-metrics `TaskMonitor`", || {
        in_a_loop(None, || {
            TaskMonitor::instrument(&TaskMonitor::new(), Countdown(0))
        })
    }),
    row("watched, default, on two threads", || {
        on_two_threads(Some(PollTiming::Sampled), || Countdown(0).watched("poll"))
    }),
    row("tokio-metrics, one monitor on two threads", || {
        let monitor = TaskMonitor::new();
        on_two_threads(None, move || {
            TaskMonitor::instrument(&monitor, Countdown(0))
        })
    }),
];

const TASK_ROWS: &[Row] = &[
    row("task", || tasks(false, |task| task)),
    row("task, watched", || tasks(true, |task| task.watched("poll"))),
    row("task in a span, registry and an empty layer", || {
        tracing_subscriber::registry().with(Identity::new()).init();
        tasks(false, |task| task.instrument(tracing::info_span!("poll")))
    }),
    row("task in a span, registry and our layer", || {
        tracing_subscriber::registry()
            .with(tokio_stall::layer())
            .init();
        tasks(true, |task| task.instrument(tracing::info_span!("poll")))
    }),
    row("task on a runtime with our hooks", || {
        let hooked = runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .watch_polls()
            .build()
            .expect("a runtime");
        tasks_on(&hooked, true, |task| task)
    }),
    row("task with `Instant::now` twice", || {
        tasks(false, |task| Clocked { inner: task })
    }),
    row("task, tokio-metrics `TaskMonitor`", || {
        let monitor = TaskMonitor::new();
        tasks(false, move |task| TaskMonitor::instrument(&monitor, task))
    }),
];

const fn row(name: &'static str, measure: fn() -> Vec<f64>) -> Row {
    Row { name, measure }
}

fn main() {
    rounds::be_the_row_asked_for(&[IN_A_LOOP, TASK_ROWS]);

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

    let table = rounds::measure_in_turn(TASK_ROWS, ROUNDS);
    println!("\nA task that yields, {TASKS} of them on one worker:\n");
    println!("| poll | ns | ns over its base | times its base |\n|---|---|---|---|");
    for row in TASK_ROWS {
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

/// Polls a future again and again, inside a task on a worker.
fn in_a_loop<F>(watch: Option<PollTiming>, future: impl FnOnce() -> F + Send + 'static) -> Vec<f64>
where
    F: Future<Output = ()> + Send + 'static,
{
    let runtime = one_worker();
    let _watch = watch.map(|timing| watched(&runtime, "bench", timing));
    let work = runtime.spawn(poll_many(future));
    vec![runtime.block_on(work).expect("it does not panic")]
}

async fn poll_many<F: Future<Output = ()>>(future: impl FnOnce() -> F) -> f64 {
    let mut future = pin!(future());
    nanos_each(POLLS, TIME, || {
        let mut context = Context::from_waker(Waker::noop());
        for _ in 0..POLLS {
            let _ = black_box(future.as_mut().poll(&mut context));
        }
    })
    .await
}

/// As tokio-metrics' own benchmark does it: what the threads share is what they wait for.
fn on_two_threads<F>(
    watch: Option<PollTiming>,
    future: impl Fn() -> F + Clone + Send + 'static,
) -> Vec<f64>
where
    F: Future<Output = ()> + Send + 'static,
{
    let runtimes = [one_worker(), one_worker()];
    let mut watches = Vec::new();
    for (runtime, name) in runtimes.iter().zip(["first", "second"]) {
        watches.extend(watch.map(|timing| watched(runtime, name, timing)));
    }
    let start = Arc::new(Barrier::new(2));
    let works = runtimes.each_ref().map(|runtime| {
        let (start, future) = (start.clone(), future.clone());
        runtime.spawn(async move {
            start.wait();
            poll_many(future).await
        })
    });
    let mut figures = Vec::new();
    for (runtime, work) in runtimes.iter().zip(works) {
        figures.push(runtime.block_on(work).expect("it does not panic"));
    }
    vec![figures.iter().sum::<f64>() / 2.0]
}

fn one_worker() -> Runtime {
    runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .build()
        .expect("a runtime")
}

fn watched(runtime: &Runtime, name: &str, timing: PollTiming) -> Guard {
    tokio_stall::Builder::new()
        .runtime(name, runtime.handle().clone())
        .poll_timing(timing)
        .start()
        .expect("nothing else is watched")
}

/// Asks to be polled again, so many times.
struct Yielding(usize);

impl Future for Yielding {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if self.0 == 0 {
            return Poll::Ready(());
        }
        self.0 -= 1;
        context.waker().wake_by_ref();
        Poll::Pending
    }
}

pin_project_lite::pin_project! {
    struct Clocked<F> {
        #[pin]
        inner: F,
    }
}

impl<F: Future> Future for Clocked<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let start = Instant::now();
        let poll = self.project().inner.poll(context);
        black_box(start.elapsed());
        poll
    }
}

fn tasks<F>(watch: bool, future: impl Fn(Yielding) -> F + Send + Sync + 'static) -> Vec<f64>
where
    F: Future<Output = ()> + Send + 'static,
{
    tasks_on(&one_worker(), watch, future)
}

fn tasks_on<F>(
    runtime: &Runtime,
    watch: bool,
    future: impl Fn(Yielding) -> F + Send + Sync + 'static,
) -> Vec<f64>
where
    F: Future<Output = ()> + Send + 'static,
{
    let _watch = watch.then(|| watched(runtime, "bench", PollTiming::default()));
    // Spawned from the worker itself: the thread in `block_on` is none.
    let work = runtime.spawn(async move {
        yield_many(TASK_POLLS / 5, &future).await;
        let start = Instant::now();
        yield_many(TASK_POLLS, &future).await;
        start.elapsed().as_nanos() as f64 / TASK_POLLS as f64
    });
    vec![runtime.block_on(work).expect("it does not panic")]
}

async fn yield_many<F>(polls: usize, future: &(impl Fn(Yielding) -> F + Sync))
where
    F: Future<Output = ()> + Send + 'static,
{
    let tasks: Vec<_> = (0..TASKS)
        .map(|_| tokio::spawn(future(Yielding(polls / TASKS))))
        .collect();
    for task in tasks {
        task.await.expect("it does not panic");
    }
}
