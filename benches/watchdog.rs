//! What it costs to be watched, in CPU time and in memory, and what that cost depends on: the threshold and the workers,
//! and not the tasks.
//!
//! ```text
//! cargo bench --bench watchdog
//! ```
//!
//! Linux only. No recorder is installed: with one, telling it is the thread `stall-metrics`' work.

#[cfg(target_os = "linux")]
mod rounds;

#[cfg(target_os = "linux")]
fn main() {
    linux::main();
}

#[cfg(not(target_os = "linux"))]
fn main() {
    println!("threads do not tell their CPU time here as they do on Linux");
}

#[cfg(target_os = "linux")]
mod linux {
    use super::rounds::{self, Row, Spread, Table};
    use cap::Cap;
    use std::alloc::System;
    use std::future::Future;
    use std::pin::Pin;
    use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
    use std::sync::{Arc, Barrier};
    use std::task::{Context, Poll};
    use std::time::{Duration, Instant};
    use tokio::runtime::{Handle, Runtime};
    use tokio_stall::{Builder, FutureExt as _, Guard};

    /// Knows how much of what was allocated is still in use.
    #[global_allocator]
    static MEMORY: Cap<System> = Cap::new(System, usize::MAX);

    /// Rounds of the rows that have a budget; one of all others.
    const ROUNDS: usize = 3;
    /// Start-up, and until the pulse thread takes the runtime for an idle one.
    const SETTLE: Duration = Duration::from_secs(4);
    /// Long enough for a thousandth of a core to be a measurable time.
    const IDLE: Duration = Duration::from_secs(4);
    const BUSY: Duration = Duration::from_secs(4);
    /// A busy task's poll.
    const POLL: Duration = Duration::from_micros(50);
    /// Tasks whose memory is measured.
    const TASKS: usize = 100_000;
    /// Workers whose memory is measured: a few, and many.
    const FEW: usize = 16;
    const MANY: usize = 64;

    const DEFAULT: Setup = Setup {
        threshold: Builder::DEFAULT_THRESHOLD,
        workers: 2,
        tasks: 0,
        busy: 4,
        turns: true,
    };

    /// What is watched.
    #[derive(Clone, Copy)]
    struct Setup {
        threshold: Duration,
        workers: usize,
        /// That wait for something.
        tasks: usize,
        /// Tasks that compute and yield while the process is busy.
        busy: usize,
        /// Turns are counted, which takes twice as many ticks.
        turns: bool,
    }

    impl Setup {
        const fn threshold(millis: u64) -> Setup {
            Setup {
                threshold: Duration::from_millis(millis),
                ..DEFAULT
            }
        }

        const fn workers(workers: usize) -> Setup {
            Setup {
                workers,
                busy: 2 * workers,
                ..DEFAULT
            }
        }

        const fn tasks(tasks: usize) -> Setup {
            Setup { tasks, ..DEFAULT }
        }

        /// As the detector chooses it.
        fn tick(self) -> Duration {
            let in_a_threshold = if self.turns { 4 } else { 2 };
            (self.threshold / in_a_threshold).clamp(Duration::from_micros(500), LONGEST_TICK)
        }

        /// While all workers are parked, and have been for a second.
        fn idle_tick(self) -> Duration {
            self.threshold.clamp(Duration::from_millis(5), LONGEST_TICK)
        }
    }

    const LONGEST_TICK: Duration = Duration::from_millis(25);

    const OURS: &str = "default: 10 ms, 2 workers";
    const ONLY_WAKES: &str = "a thread that only wakes as often";

    const DEFAULTS: &[Row] = &[
        row(OURS, || watched(DEFAULT)),
        row(ONLY_WAKES, || only_waking(DEFAULT)),
        row("the same without turns", || {
            watched(Setup {
                turns: false,
                ..DEFAULT
            })
        }),
        row("a tick of the same length, without turns", || {
            let runtime = runtime(DEFAULT.workers);
            let builder = builder(&runtime, DEFAULT).turns(false).tick(DEFAULT.tick());
            watched_by(&runtime, builder, DEFAULT)
        }),
    ];

    const THRESHOLDS: &[Row] = &[
        row("1 ms", || watched(Setup::threshold(1))),
        row("only wakes as often as at 1 ms", || {
            only_waking(Setup::threshold(1))
        }),
        row("100 ms", || watched(Setup::threshold(100))),
        row("only wakes as often as at 100 ms", || {
            only_waking(Setup::threshold(100))
        }),
    ];

    const WORKERS: &[Row] = &[
        row("1 worker", || watched(Setup::workers(1))),
        row("16 workers", || watched(Setup::workers(16))),
        row("64 workers", || watched(Setup::workers(64))),
        row("256 workers", || watched(Setup::workers(256))),
        row("256 workers, one task busy", || {
            watched(Setup {
                busy: 1,
                ..Setup::workers(256)
            })
        }),
    ];

    const BY_TASKS: &[Row] = &[
        row("10³ tasks", || watched(Setup::tasks(1_000))),
        row("10⁴ tasks", || watched(Setup::tasks(10_000))),
        row("10⁵ tasks", || watched(Setup::tasks(100_000))),
        row("10⁶ tasks", || watched(Setup::tasks(1_000_000))),
    ];

    const THREAD_MEMORY: &[Row] = &[
        row("few, unwatched", || memory_of_workers(FEW, false)),
        row("few, watched", || memory_of_workers(FEW, true)),
        row("many, unwatched", || memory_of_workers(MANY, false)),
        row("many, watched", || memory_of_workers(MANY, true)),
    ];

    const TASK_MEMORY: &[Row] = &[
        row("plain", || memory_of_tasks(false, spawn_plain)),
        row("plain, under `watch()`", || {
            memory_of_tasks(true, spawn_plain)
        }),
        row("`.watched()`", || memory_of_tasks(false, spawn_marked)),
        row("`.watched()`, under `watch()`", || {
            memory_of_tasks(true, spawn_marked)
        }),
    ];

    const fn row(name: &'static str, measure: fn() -> Vec<f64>) -> Row {
        Row { name, measure }
    }

    pub(super) fn main() {
        rounds::be_the_row_asked_for(&[
            DEFAULTS,
            THRESHOLDS,
            WORKERS,
            BY_TASKS,
            THREAD_MEMORY,
            TASK_MEMORY,
        ]);

        println!(
            "Share of one core that the detector's threads take (each worker has two tasks that compute {POLL:?} and yield, when busy):\n"
        );
        println!(
            "| | | all threads, % | `stall-watchdog`, % | `stall-pulse`, % | ticks/s | CPU time of a tick, µs | stalls reported |"
        );
        println!("|---|---|---|---|---|---|---|---|");
        let defaults = rounds::measure_in_turn(DEFAULTS, ROUNDS);
        print_shares(DEFAULTS, &defaults);
        for rows in [THRESHOLDS, WORKERS, BY_TASKS] {
            print_shares(rows, &rounds::measure_in_turn(rows, 1));
        }
        println!(
            "\nMore than a thread that only wakes as often, % of one core: idle {}, busy {}.",
            defaults.over(OURS, ONLY_WAKES, Shares::ALL).show(3),
            defaults
                .over(OURS, ONLY_WAKES, Shares::COUNT + Shares::ALL)
                .show(3),
        );

        print_thread_memory(&rounds::measure_in_turn(THREAD_MEMORY, 1));
        print_task_memory(&rounds::measure_in_turn(TASK_MEMORY, 1));
    }

    fn print_shares(rows: &[Row], table: &Table) {
        for row in rows {
            for (first, state) in [(0, "idle"), (Shares::COUNT, "busy")] {
                let show = |figure, decimals| {
                    let spread: Spread = table.figure(row.name, first + figure);
                    if spread.low == spread.high {
                        format!("{:.decimals$}", spread.median)
                    } else {
                        spread.show(decimals)
                    }
                };
                println!(
                    "| {} | {state} | {} | {} | {} | {} | {} | {} |",
                    row.name,
                    show(Shares::ALL, 3),
                    show(Shares::WATCHDOG, 3),
                    show(Shares::PULSE, 3),
                    show(Shares::TICKS, 0),
                    show(Shares::TICK, 1),
                    show(Shares::STALLS, 0),
                );
            }
        }
    }

    fn print_thread_memory(table: &Table) {
        let more = |workers: &str, figure| {
            let row = |watched| {
                table
                    .figure(&format!("{workers}, {watched}"), figure)
                    .median
            };
            row("watched") - row("unwatched")
        };
        println!("\nMemory allocated for being watched, in bytes:\n");
        println!(
            "| | {FEW} workers | {MANY} workers | for each worker more | whatever the number of workers |\n|---|---|---|---|---|"
        );
        let states = [
            (0, "all workers known"),
            (1, "later: the program's debug information opened"),
        ];
        for (figure, state) in states {
            let (few, many) = (more("few", figure), more("many", figure));
            let each = (many - few) / (MANY - FEW) as f64;
            println!(
                "| {state} | {few:.0} ({:.0} each) | {many:.0} ({:.0} each) | {each:.0} | {:.0} |",
                few / FEW as f64,
                many / MANY as f64,
                few - each * FEW as f64
            );
        }
        let files = |workers| more(workers, 2);
        println!(
            "\nFiles kept open: {:.1} for each worker more. Besides, the program has zeroed memory for stacks: {} KiB of it were touched before the first stack was taken, {} KiB after one of each of {MANY} workers.",
            (files("many") - files("few")) / (MANY - FEW) as f64,
            table.figure("many, watched", 3).median,
            table.figure("many, watched", 4).median,
        );
    }

    fn print_task_memory(table: &Table) {
        println!("\nMemory of {TASKS} tasks of 16 sizes, in bytes for each task:\n");
        println!("| tasks | each | more than plain ones |\n|---|---|---|");
        for row in TASK_MEMORY {
            println!(
                "| {} | {:.2} | {:.2} |",
                row.name,
                table.figure(row.name, 0).median,
                table.over(row.name, "plain", 0).median
            );
        }
        let plain = Waiting::<0>::new(&Arc::default());
        let size = size_of_val(&plain);
        println!(
            "\nA `Watched` is {} bytes more than the future in it.",
            size_of_val(&plain.watched("task")) - size
        );
    }

    /// The figures of a window, and where they stand.
    struct Shares;

    impl Shares {
        const ALL: usize = 0;
        const WATCHDOG: usize = 1;
        const PULSE: usize = 2;
        const TICKS: usize = 3;
        const TICK: usize = 4;
        const STALLS: usize = 5;
        const COUNT: usize = 6;
    }

    fn runtime(workers: usize) -> Runtime {
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(workers)
            .enable_all()
            .build()
            .expect("a runtime")
    }

    fn builder(runtime: &Runtime, setup: Setup) -> Builder {
        Builder::new()
            .runtime("bench", runtime.handle().clone())
            .threshold(setup.threshold)
            .turns(setup.turns)
            .log(false)
    }

    fn watch(runtime: &Runtime, threshold: Duration) -> Guard {
        let setup = Setup {
            threshold,
            ..DEFAULT
        };
        let watch = builder(runtime, setup).start();
        watch.expect("nothing else is watched")
    }

    /// The detector's threads in an idle process, then in a busy one.
    fn watched(setup: Setup) -> Vec<f64> {
        let runtime = runtime(setup.workers);
        let builder = builder(&runtime, setup);
        watched_by(&runtime, builder, setup)
    }

    fn watched_by(runtime: &Runtime, builder: Builder, setup: Setup) -> Vec<f64> {
        let watch = builder.start().expect("nothing else is watched");
        leave_waiting(runtime.handle(), setup.tasks);
        std::thread::sleep(SETTLE);
        let counts = || {
            let status = watch.status();
            let stalls = &status.runtimes[0];
            (status.ticks, stalls.stalls + stalls.likely_stalls)
        };
        let mut figures = window("stall-", "stall-watchdog", counts, || {
            std::thread::sleep(IDLE);
        });
        figures.extend(window("stall-", "stall-watchdog", counts, || {
            be_busy(runtime, setup.busy);
        }));
        figures
    }

    /// A thread that wakes when the watchdog would, and does nothing: on a virtual machine that is most of it.
    fn only_waking(setup: Setup) -> Vec<f64> {
        let runtime = runtime(setup.workers);
        leave_waiting(runtime.handle(), setup.tasks);
        let wakes = Arc::new(AtomicU64::new(0));
        let busy = Arc::new(AtomicBool::new(false));
        let (count, is_busy) = (wakes.clone(), busy.clone());
        std::thread::Builder::new()
            .name("only-wakes".to_owned())
            .spawn(move || {
                let mut due = Instant::now();
                loop {
                    let now = Instant::now();
                    if now < due {
                        std::thread::park_timeout(due - now);
                        continue;
                    }
                    count.fetch_add(1, Ordering::Relaxed);
                    due += if is_busy.load(Ordering::Relaxed) {
                        setup.tick()
                    } else {
                        setup.idle_tick()
                    };
                    due = due.max(now);
                }
            })
            .expect("a thread");
        std::thread::sleep(SETTLE);
        let counts = || (wakes.load(Ordering::Relaxed), 0);
        let mut figures = window("only-wakes", "only-wakes", counts, || {
            std::thread::sleep(IDLE);
        });
        busy.store(true, Ordering::Relaxed);
        figures.extend(window("only-wakes", "only-wakes", counts, || {
            be_busy(&runtime, setup.busy);
        }));
        figures
    }

    /// What the threads whose names begin so have used up during `work`, and `counts` has counted.
    fn window(
        all: &str,
        ticking: &str,
        counts: impl Fn() -> (u64, u64),
        work: impl FnOnce(),
    ) -> Vec<f64> {
        let names = [all, ticking, "stall-pulse"];
        let before = (Instant::now(), names.map(cpu_nanos), counts());
        work();
        let wall = before.0.elapsed().as_nanos() as f64;
        let cpu = names.map(cpu_nanos);
        let after = counts();
        let spent = |thread: usize| (cpu[thread] - before.1[thread]) as f64;
        let share = |thread| spent(thread) / wall * 100.0;
        let ticks = (after.0 - before.2.0) as f64;
        vec![
            share(0),
            share(1),
            share(2),
            ticks / wall * 1e9,
            spent(1) / ticks / 1e3,
            (after.1 - before.2.1) as f64,
        ]
    }

    /// CPU time so far of the threads whose names begin so.
    fn cpu_nanos(prefix: &str) -> u64 {
        let tasks = std::fs::read_dir("/proc/self/task").expect("Linux has it");
        let times = tasks.flatten().filter_map(|task| {
            let name = std::fs::read_to_string(task.path().join("comm")).ok()?;
            let stat = std::fs::read_to_string(task.path().join("schedstat")).ok()?;
            let cpu: u64 = stat.split_ascii_whitespace().next()?.parse().ok()?;
            name.starts_with(prefix).then_some(cpu)
        });
        times.sum()
    }

    /// Tasks that wait: one in ten for a timer, the others for nothing.
    fn leave_waiting(runtime: &Handle, tasks: usize) {
        let _timers = runtime.enter();
        for number in 0..tasks {
            if number % 10 == 0 {
                runtime.spawn(tokio::time::sleep(Duration::from_secs(3_600)));
            } else {
                runtime.spawn(std::future::pending::<()>());
            }
        }
    }

    fn be_busy(runtime: &Runtime, tasks: usize) {
        runtime.block_on(async {
            let until = Instant::now() + BUSY;
            let busy = (0..tasks).map(|_| {
                tokio::spawn(async move {
                    while Instant::now() < until {
                        compute(POLL);
                        tokio::task::yield_now().await;
                    }
                })
            });
            for busy in busy.collect::<Vec<_>>() {
                busy.await.expect("it does not panic");
            }
        });
    }

    fn compute(time: Duration) {
        let start = Instant::now();
        while start.elapsed() < time {
            std::hint::spin_loop();
        }
    }

    /// In use once every worker has made marks and is known, and later on; files open; and zeroed memory touched, in
    /// KiB, before stacks were taken and after.
    fn memory_of_workers(workers: usize, watched: bool) -> Vec<f64> {
        let runtime = runtime(workers);
        // All workers at one barrier is a stall; it is not what is looked at here.
        let watch = watched.then(|| watch(&runtime, Duration::from_secs(60)));
        let is_known = |watch: &Guard| watch.coverage()[0].known_threads == workers;
        let start = Instant::now();
        loop {
            let all = Arc::new(Barrier::new(workers));
            let tasks = (0..workers).map(|_| {
                let all = all.clone();
                let task = async move {
                    all.wait();
                };
                if watched {
                    runtime.spawn(task.watched("task"))
                } else {
                    runtime.spawn(task)
                }
            });
            for task in tasks.collect::<Vec<_>>() {
                runtime.block_on(task).expect("it does not panic");
            }
            std::thread::sleep(2 * LONGEST_TICK);
            if watch.as_ref().is_none_or(is_known) {
                break;
            }
            assert!(start.elapsed() < SETTLE, "not all workers are known");
        }
        let known = MEMORY.allocated();
        std::thread::sleep(SETTLE);
        let later = MEMORY.allocated();
        let files = std::fs::read_dir("/proc/self/fd").expect("Linux has it");
        let files = files.count();
        let untouched = zeroed_in_use();
        if let Some(watch) = &watch {
            watch.worker_stacks();
        }
        vec![
            known as f64,
            later as f64,
            files as f64,
            untouched,
            zeroed_in_use(),
        ]
    }

    /// KiB of the program's zeroed memory that are in use: the mapping without a name behind those of the program.
    fn zeroed_in_use() -> f64 {
        let maps = std::fs::read_to_string("/proc/self/smaps").expect("Linux has it");
        let program = std::env::current_exe().expect("the path of this program");
        let program = program.to_string_lossy();
        let mut end = None;
        let mut found = false;
        for line in maps.lines() {
            let mut words = line.split_ascii_whitespace();
            let first = words.next().unwrap_or_default();
            if let Some((from, to)) = first.split_once('-') {
                found = words.count() == 4 && end.as_deref() == Some(from);
                end = line.ends_with(&*program).then(|| to.to_owned());
            } else if found && first == "Rss:" {
                let rss = words.next().and_then(|rss| rss.parse().ok());
                return rss.expect("a number of KiB");
            }
        }
        f64::NAN
    }

    /// A task with so many bytes of its own, which it keeps for ever.
    struct Waiting<const SIZE: usize> {
        polled: Arc<AtomicUsize>,
        _own: [u8; SIZE],
    }

    impl<const SIZE: usize> Waiting<SIZE> {
        fn new(polled: &Arc<AtomicUsize>) -> Waiting<SIZE> {
            Waiting {
                polled: polled.clone(),
                _own: [0; SIZE],
            }
        }
    }

    impl<const SIZE: usize> Future for Waiting<SIZE> {
        type Output = ();

        fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<()> {
            self.polled.fetch_add(1, Ordering::Relaxed);
            Poll::Pending
        }
    }

    /// Tokio rounds a task's memory up to 128 bytes. Sizes that fill this range evenly show what is added to a task
    /// as the mean of what it adds to each.
    const SIZES: [usize; 16] = [
        0, 8, 16, 24, 32, 40, 48, 56, 64, 72, 80, 88, 96, 104, 112, 120,
    ];

    macro_rules! spawn_of_all_sizes {
        ($runtime:expr, $polled:expr, $number:expr, |$task:ident| $wrap:expr, [$($at:literal)*]) => {
            match $number % SIZES.len() {
                $($at => {
                    let $task = Waiting::<{ SIZES[$at] }>::new($polled);
                    drop($runtime.spawn($wrap));
                })*
                _ => unreachable!("there are as many sizes"),
            }
        };
    }

    fn spawn_plain(runtime: &Handle, polled: &Arc<AtomicUsize>, number: usize) {
        spawn_of_all_sizes!(runtime, polled, number, |task| task, [0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15]);
    }

    fn spawn_marked(runtime: &Handle, polled: &Arc<AtomicUsize>, number: usize) {
        spawn_of_all_sizes!(runtime, polled, number, |task| task.watched("task"), [0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15]);
    }

    fn memory_of_tasks(watched: bool, spawn: fn(&Handle, &Arc<AtomicUsize>, usize)) -> Vec<f64> {
        let runtime = runtime(2);
        let _watch = watched.then(|| watch(&runtime, DEFAULT.threshold));
        let polled = Arc::new(AtomicUsize::new(0));
        // What a thread's first mark brings with it is not the tasks'.
        for number in 0..SIZES.len() * 100 {
            spawn(runtime.handle(), &polled, number);
        }
        std::thread::sleep(SETTLE);
        polled.store(0, Ordering::Relaxed);
        let before = MEMORY.allocated();
        for number in 0..TASKS {
            spawn(runtime.handle(), &polled, number);
        }
        let start = Instant::now();
        while polled.load(Ordering::Relaxed) < TASKS {
            assert!(start.elapsed() < SETTLE, "not all tasks are polled");
            std::thread::sleep(Duration::from_millis(1));
        }
        vec![(MEMORY.allocated() - before) as f64 / TASKS as f64]
    }
}
