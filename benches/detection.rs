//! What the detector is for: how soon after the threshold it speaks, how well it knows how long a stall took, what it
//! misses, and what it reports although nothing was held.
//!
//! ```text
//! cargo bench --bench detection
//! ```
//!
//! Linux only. The stalls tell on themselves: the code that stalls takes its own times inside the poll, and counts only its
//! own time towards the threshold, which is a computing thread's CPU time. What a busy host adds is not the code's.

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
    use super::rounds::{self, Row, Table, percentile};
    use parking_lot::Mutex;
    use rustix::time::{ClockId, clock_gettime};
    use std::collections::BTreeMap;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::{Duration, Instant, SystemTime};
    use tokio::runtime::{Handle, Runtime};
    use tokio_stall::{Builder, Certainty, FutureExt as _, Guard, StallReport};

    /// Stalls in each row.
    const STALLS: usize = 70;
    const THRESHOLD: Duration = Builder::DEFAULT_THRESHOLD;
    /// The detector's own choice at this threshold.
    const TICK: Duration = Duration::from_micros(THRESHOLD.as_micros() as u64 / 4);
    /// From this many thresholds on, no stall may be missed.
    const SURE: f64 = 1.25;
    /// The longest stall, in thresholds.
    const LONGEST: f64 = 5.0;
    /// Between two stalls: longer than the tick of an idle detector, and never in step with it.
    const GAP: Duration = Duration::from_millis(15);
    const GAP_SPREAD: Duration = Duration::from_millis(25);
    /// Until threads are known and the detector has come to rest.
    const SETTLE: Duration = Duration::from_millis(1_200);
    /// The last reports are waited for: a poll that a stack was wanted of, and not had, is told of two seconds after.
    const LAST_WORDS: Duration = Duration::from_millis(2_500);
    /// How long honest work is watched.
    const CONTROL: Duration = Duration::from_secs(20);
    /// And the parts of it that have most in common with a stall.
    const SHORT_CONTROL: Duration = Duration::from_secs(5);
    /// A started report may be off from the true start by so much and still be of that stall.
    const SLACK: Duration = Duration::from_millis(5);

    const SHARES: [f64; 4] = [0.5, 0.9, 0.99, 1.0];

    #[derive(Clone, Copy)]
    enum Kind {
        Asleep,
        Computing,
    }

    #[derive(Clone, Copy)]
    enum Mark {
        Watched,
        None,
    }

    /// What goes on besides.
    #[derive(Clone, Copy)]
    enum Scene {
        /// Nothing: all workers are parked when the stall begins.
        Idle,
        /// Timers fire and short polls are made.
        Serving,
        /// The same, and so many computing threads for each CPU.
        Loaded(usize),
    }

    use Kind::{Asleep, Computing};
    use Mark::{None as Unmarked, Watched};
    use Scene::{Idle, Loaded, Serving};

    const ROWS: &[Row] = &[
        row("asleep, marked; else idle", || {
            stalls(Asleep, Watched, Idle)
        }),
        row("asleep, marked; serving", || {
            stalls(Asleep, Watched, Serving)
        }),
        row("asleep, marked; load ×1", || {
            stalls(Asleep, Watched, Loaded(1))
        }),
        row("asleep, marked; load ×2", || {
            stalls(Asleep, Watched, Loaded(2))
        }),
        row("asleep, unmarked; else idle", || {
            stalls(Asleep, Unmarked, Idle)
        }),
        row("asleep, unmarked; serving", || {
            stalls(Asleep, Unmarked, Serving)
        }),
        row("asleep, unmarked; load ×1", || {
            stalls(Asleep, Unmarked, Loaded(1))
        }),
        row("asleep, unmarked; load ×2", || {
            stalls(Asleep, Unmarked, Loaded(2))
        }),
        row("computing, marked; else idle", || {
            stalls(Computing, Watched, Idle)
        }),
        row("computing, marked; serving", || {
            stalls(Computing, Watched, Serving)
        }),
        row("computing, marked; load ×1", || {
            stalls(Computing, Watched, Loaded(1))
        }),
        row("computing, marked; load ×2", || {
            stalls(Computing, Watched, Loaded(2))
        }),
        row("computing, unmarked; else idle", || {
            stalls(Computing, Unmarked, Idle)
        }),
        row("computing, unmarked; serving", || {
            stalls(Computing, Unmarked, Serving)
        }),
        row("computing, unmarked; load ×1", || {
            stalls(Computing, Unmarked, Loaded(1))
        }),
        row("computing, unmarked; load ×2", || {
            stalls(Computing, Unmarked, Loaded(2))
        }),
    ];

    /// What holds no worker, however long it goes on.
    #[derive(Clone, Copy)]
    enum Work {
        /// Polls of a millisecond: as many in a row as a worker makes before it says that it has made any.
        Rows,
        Yields,
        Timers,
        SpawnBlocking,
        BlockInPlace,
    }

    const ALL: &[Work] = &[
        Work::Rows,
        Work::Yields,
        Work::Timers,
        Work::SpawnBlocking,
        Work::BlockInPlace,
    ];
    const ROWS_AND_IN_PLACE: &[Work] = &[Work::Rows, Work::BlockInPlace];

    const CONTROLS: &[Row] = &[
        row("all of it, half of it marked", || {
            honest_work(ALL, &[Watched, Unmarked], Serving, CONTROL)
        }),
        row("the same, load ×2", || {
            honest_work(ALL, &[Watched, Unmarked], Loaded(2), CONTROL)
        }),
        row("rows of polls, marked", || {
            honest_work(&[Work::Rows], &[Watched], Idle, SHORT_CONTROL)
        }),
        row("rows of polls, unmarked", || {
            honest_work(&[Work::Rows], &[Unmarked], Idle, SHORT_CONTROL)
        }),
        row("rows and `block_in_place`, marked", || {
            honest_work(ROWS_AND_IN_PLACE, &[Watched], Idle, SHORT_CONTROL)
        }),
        row("rows and `block_in_place`, unmarked", || {
            honest_work(ROWS_AND_IN_PLACE, &[Unmarked], Idle, SHORT_CONTROL)
        }),
    ];

    const fn row(name: &'static str, measure: fn() -> Vec<f64>) -> Row {
        Row { name, measure }
    }

    pub(super) fn main() {
        rounds::be_the_row_asked_for(&[ROWS, CONTROLS]);

        println!(
            "Threshold {THRESHOLD:?}, tick {TICK:?}, 2 workers; {STALLS} stalls a row, of 1 to {LONGEST} thresholds of the code's own time.\n"
        );
        let table = rounds::measure_in_turn(ROWS, 1);
        print_found(&table);
        print_latency(&table);
        print_durations(&table);

        let table = rounds::measure_in_turn(CONTROLS, 1);
        print_control(&table);
    }

    fn print_found(table: &Table) {
        println!("Stalls of {SURE} thresholds or more, and shorter ones:\n");
        println!(
            "| stalls | ≥ {SURE}: made | told of while they lasted | afterwards | missed | < {SURE}: made | told of | missed | longest missed, thresholds | only \"likely\" | in several pieces | false alarms | watchdog's own longest lateness, ms |"
        );
        println!("|---|---|---|---|---|---|---|---|---|---|---|---|---|");
        for row in ROWS {
            let count = |figure| table.figure(row.name, figure).median;
            println!(
                "| {} | {} | {} | {} | {} | {} | {} | {} | {:.2} | {} | {} | {} | {:.1} |",
                row.name,
                count(Figure::LONG),
                count(Figure::LASTING),
                count(Figure::AFTERWARDS),
                count(Figure::MISSED),
                count(Figure::SHORT),
                count(Figure::SHORT) - count(Figure::SHORT_MISSED),
                count(Figure::SHORT_MISSED),
                count(Figure::LONGEST_MISSED),
                count(Figure::LIKELY),
                count(Figure::PIECES),
                count(Figure::FALSE_ALARMS),
                count(Figure::WATCHDOG),
            );
        }
    }

    fn print_latency(table: &Table) {
        println!(
            "\nFrom the crossing of the threshold to the callback, of all stalls that were told of, in ms (budget: two ticks, {:?}):\n",
            2 * TICK
        );
        println!(
            "| stalls | p50 | p90 | p99 | longest | later than two ticks | until the watchdog has decided: p50 | p90 | p99 | longest |\n|---|---|---|---|---|---|---|---|---|---|"
        );
        for row in ROWS {
            println!(
                "| {} | {} | {} | {} |",
                row.name,
                percentiles(table, row.name, Figure::LATENCY),
                table.figure(row.name, Figure::LATE).median,
                percentiles(table, row.name, Figure::DECIDED)
            );
        }
    }

    fn print_durations(table: &Table) {
        println!("\nError of the reported duration, in ms (budget: one tick, {TICK:?}):\n");
        println!(
            "| stalls | p50 | p90 | p99 | largest | more than a tick |\n|---|---|---|---|---|---|"
        );
        for row in ROWS {
            println!(
                "| {} | {} | {} |",
                row.name,
                percentiles(table, row.name, Figure::ERROR),
                table.figure(row.name, Figure::WRONG).median
            );
        }
    }

    /// Four columns: half, 90 and 99 of 100, and all.
    fn percentiles(table: &Table, row: &str, first: usize) -> String {
        let columns = (first..first + SHARES.len()).map(|figure| {
            let millis = table.figure(row, figure).median;
            if millis.is_nan() {
                "–".to_owned()
            } else {
                format!("{millis:.2}")
            }
        });
        columns.collect::<Vec<_>>().join(" | ")
    }

    fn print_control(table: &Table) {
        println!(
            "\nHonest work: polls of a millisecond and rows of them, yields, timers, `spawn_blocking`, `block_in_place`:\n"
        );
        println!(
            "| | reports | of them only \"likely\" | polls of 1 ms | the longest of them, CPU time | and by the clock |\n|---|---|---|---|---|---|"
        );
        for row in CONTROLS {
            let figure = |figure| table.figure(row.name, figure).median;
            println!(
                "| {} | {} in {:.0} s | {} | {} | {:.1} ms | {:.1} ms |",
                row.name,
                figure(0),
                figure(2),
                figure(1),
                figure(3),
                figure(4),
                figure(5)
            );
        }
    }

    /// Where a row's figures stand.
    struct Figure;

    impl Figure {
        const LONG: usize = 0;
        const LASTING: usize = 1;
        const AFTERWARDS: usize = 2;
        const MISSED: usize = 3;
        const SHORT: usize = 4;
        const SHORT_MISSED: usize = 5;
        const LIKELY: usize = 6;
        const PIECES: usize = 7;
        const FALSE_ALARMS: usize = 8;
        const LATENCY: usize = 9;
        const LATE: usize = 13;
        const ERROR: usize = 14;
        const WRONG: usize = 18;
        const LONGEST_MISSED: usize = 19;
        const DECIDED: usize = 20;
        const WATCHDOG: usize = 24;
        const COUNT: usize = 25;
    }

    /// A stall, as the code that made it knows it.
    #[derive(Clone, Copy)]
    struct True {
        asked: Duration,
        worker: usize,
        start: Instant,
        /// When the code's own time was the threshold.
        crossed: Instant,
        end: Instant,
    }

    /// All reports of one stall, as they were heard.
    struct Heard {
        first_at: Instant,
        /// When the watchdog had seen enough for the first report.
        decided_at: Instant,
        /// The newest.
        report: StallReport,
        start: Instant,
    }

    #[derive(Clone, Default)]
    struct Ear(Arc<Mutex<BTreeMap<u64, Heard>>>);

    impl Ear {
        fn hear(&self, report: &StallReport) {
            let now = Instant::now();
            let ago = SystemTime::now().duration_since(report.started_at);
            let start = now - ago.unwrap_or_default();
            let mut heard = self.0.lock();
            let first = heard.get(&report.id);
            let newest = Heard {
                first_at: first.map_or(now, |first| first.first_at),
                decided_at: first.map_or(start + report.duration, |first| first.decided_at),
                start,
                report: report.clone(),
            };
            heard.insert(newest.report.id, newest);
        }
    }

    fn stalls(kind: Kind, mark: Mark, scene: Scene) -> Vec<f64> {
        let runtime = runtime();
        let (watch, ear) = watch(&runtime);
        let _load = begin(scene, runtime.handle());
        std::thread::sleep(SETTLE);

        let made: Vec<_> = (0..STALLS)
            .map(|number| {
                let length = evenly(number, GOLDEN) * (LONGEST - 1.0) + 1.0;
                std::thread::sleep(GAP + GAP_SPREAD.mul_f64(evenly(number, SILVER)));
                // The poll is nothing but the stall.
                let stall = async move { stall(kind, THRESHOLD.mul_f64(length)) };
                let stall = match mark {
                    Watched => runtime.spawn(stall.watched("stall")),
                    Unmarked => runtime.spawn(stall),
                };
                runtime.block_on(stall).expect("it does not panic")
            })
            .collect();
        std::thread::sleep(LAST_WORDS);
        let status = watch.status();
        assert_eq!(status.dropped_reports, 0, "the callback is quick");
        let mut figures = judge(&made, &std::mem::take(&mut ear.0.lock()));
        let lateness = status.watchdog_lateness;
        figures[Figure::WATCHDOG] = lateness.map_or(0.0, |late| millis(late.longest));
        figures
    }

    fn runtime() -> Runtime {
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .expect("a runtime")
    }

    fn watch(runtime: &Runtime) -> (Guard, Ear) {
        let ear = Ear::default();
        let hearing = ear.clone();
        let watch = Builder::new()
            .runtime("bench", runtime.handle().clone())
            .threshold(THRESHOLD)
            .log(false)
            .on_stall(move |report| hearing.hear(report))
            .start()
            .expect("nothing else is watched");
        (watch, ear)
    }

    /// After so many turns a worker publishes its counters.
    const ROW: usize = 61;
    const GOLDEN: f64 = 0.618_033_988_749_895;
    const SILVER: f64 = 0.414_213_562_373_095;

    /// Numbers from 0 to 1 that fill the range evenly, however many are taken, and are the same in every run.
    fn evenly(number: usize, step: f64) -> f64 {
        (number as f64 * step).fract()
    }

    fn stall(kind: Kind, asked: Duration) -> True {
        let start = Instant::now();
        let crossed = match kind {
            Asleep => {
                std::thread::sleep(asked);
                start + THRESHOLD
            }
            Computing => {
                let cpu = cpu_time();
                compute_until(cpu + THRESHOLD);
                let crossed = Instant::now();
                compute_until(cpu + asked);
                crossed
            }
        };
        True {
            asked,
            worker: tokio::runtime::worker_index().expect("tasks run on workers"),
            start,
            crossed,
            end: Instant::now(),
        }
    }

    fn compute_until(cpu: Duration) {
        while cpu_time() < cpu {
            for _ in 0..500 {
                std::hint::spin_loop();
            }
        }
    }

    /// The CPU time of this thread.
    fn cpu_time() -> Duration {
        let time = clock_gettime(ClockId::ThreadCPUTime);
        Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
    }

    /// What goes on besides, until it is dropped.
    struct Going {
        stop: Arc<AtomicU64>,
        threads: Vec<std::thread::JoinHandle<()>>,
    }

    impl Drop for Going {
        fn drop(&mut self) {
            self.stop.store(1, Ordering::Relaxed);
            for thread in self.threads.drain(..) {
                thread.join().expect("it does not panic");
            }
        }
    }

    fn begin(scene: Scene, runtime: &Handle) -> Going {
        let stop = Arc::new(AtomicU64::new(0));
        if !matches!(scene, Idle) {
            for _ in 0..8 {
                serve(runtime, stop.clone());
            }
        }
        let for_each_cpu = if let Loaded(times) = scene { times } else { 0 };
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        let threads = (0..cpus * for_each_cpu).map(|_| {
            let stop = stop.clone();
            std::thread::spawn(move || {
                while stop.load(Ordering::Relaxed) == 0 {
                    std::hint::spin_loop();
                }
            })
        });
        let threads = threads.collect();
        Going { stop, threads }
    }

    /// Something like a connection: waits, then has a little to do.
    fn serve(runtime: &Handle, stop: Arc<AtomicU64>) {
        runtime.spawn(async move {
            while stop.load(Ordering::Relaxed) == 0 {
                tokio::time::sleep(Duration::from_millis(4)).await;
                compute_until(cpu_time() + Duration::from_micros(50));
            }
        });
    }

    /// Assigns what was heard to what was done, by time and worker.
    fn judge(made: &[True], heard: &BTreeMap<u64, Heard>) -> Vec<f64> {
        let mut told: Vec<Vec<&Heard>> = vec![Vec::new(); made.len()];
        let mut false_alarms = 0;
        for heard in heard.values() {
            match made.iter().position(|stall| is_of(heard, stall)) {
                Some(stall) => told[stall].push(heard),
                None => {
                    false_alarms += 1;
                    eprintln!("a false alarm: {}", heard.report.headline());
                }
            }
        }

        let mut figures = vec![0.0; Figure::COUNT];
        figures[Figure::FALSE_ALARMS] = f64::from(false_alarms);
        let (mut latencies, mut decisions, mut errors) = (Vec::new(), Vec::new(), Vec::new());
        for (stall, told) in made.iter().zip(&told) {
            let is_long = stall.asked >= THRESHOLD.mul_f64(SURE);
            figures[if is_long { Figure::LONG } else { Figure::SHORT }] += 1.0;
            let Some(first) = told.iter().min_by_key(|heard| heard.first_at) else {
                figures[if is_long {
                    Figure::MISSED
                } else {
                    Figure::SHORT_MISSED
                }] += 1.0;
                let missed = stall.asked.div_duration_f64(THRESHOLD);
                figures[Figure::LONGEST_MISSED] = figures[Figure::LONGEST_MISSED].max(missed);
                continue;
            };
            if is_long {
                let lasted = first.first_at < stall.end;
                figures[if lasted {
                    Figure::LASTING
                } else {
                    Figure::AFTERWARDS
                }] += 1.0;
            }
            let certain = |heard: &&&Heard| heard.report.certainty == Certainty::Certain;
            figures[Figure::LIKELY] += f64::from(!told.iter().any(|heard| certain(&heard)));
            figures[Figure::PIECES] += f64::from(told.len() > 1);

            let latency = first.first_at.saturating_duration_since(stall.crossed);
            figures[Figure::LATE] += f64::from(latency > 2 * TICK);
            latencies.push(millis(latency));
            // A report that came when all was over does not tell when that was decided.
            if first.first_at < stall.end {
                let decided = first.decided_at.saturating_duration_since(stall.crossed);
                decisions.push(millis(decided));
            }
            let longest = told.iter().map(|heard| heard.report.duration).max();
            let error = longest
                .unwrap_or_default()
                .abs_diff(stall.end - stall.start);
            figures[Figure::WRONG] += f64::from(error > TICK);
            errors.push(millis(error));
        }
        let all = [
            (Figure::LATENCY, latencies),
            (Figure::DECIDED, decisions),
            (Figure::ERROR, errors),
        ];
        for (first, mut values) in all {
            values.sort_by(f64::total_cmp);
            for (place, share) in SHARES.into_iter().enumerate() {
                figures[first + place] = if values.is_empty() {
                    f64::NAN
                } else {
                    percentile(&values, share)
                };
            }
        }
        figures
    }

    fn is_of(heard: &Heard, stall: &True) -> bool {
        let end = heard.start + heard.report.duration;
        heard.report.worker == stall.worker
            && heard.start < stall.end + SLACK
            && end + SLACK > stall.start
    }

    fn millis(time: Duration) -> f64 {
        time.as_secs_f64() * 1e3
    }

    /// The longest poll of honest work, by CPU time and by the clock, in nanoseconds, and how many there were.
    #[derive(Default)]
    struct Honest {
        polls: AtomicU64,
        cpu: AtomicU64,
        wall: AtomicU64,
    }

    impl Honest {
        fn poll(&self) {
            let (start, cpu) = (Instant::now(), cpu_time());
            compute_until(cpu + Duration::from_millis(1));
            let nanos = |time: Duration| time.as_nanos() as u64;
            self.polls.fetch_add(1, Ordering::Relaxed);
            self.cpu
                .fetch_max(nanos(cpu_time() - cpu), Ordering::Relaxed);
            self.wall
                .fetch_max(nanos(start.elapsed()), Ordering::Relaxed);
        }
    }

    fn honest_work(kinds: &[Work], marks: &[Mark], scene: Scene, time: Duration) -> Vec<f64> {
        let runtime = runtime();
        let (watch, ear) = watch(&runtime);
        let _load = begin(scene, runtime.handle());
        std::thread::sleep(SETTLE);
        let honest = Arc::new(Honest::default());
        let start = Instant::now();
        let until = start + time;
        let kinds = kinds
            .iter()
            .flat_map(|kind| marks.iter().map(move |mark| (*kind, mark)));
        let tasks = kinds.map(|(kind, mark)| {
            let work = work(kind, honest.clone(), until);
            match mark {
                Watched => runtime.spawn(work.watched(kind.name())),
                Unmarked => runtime.spawn(work),
            }
        });
        for task in tasks.collect::<Vec<_>>() {
            runtime.block_on(task).expect("it does not panic");
        }
        let took = start.elapsed();
        std::thread::sleep(LAST_WORDS);
        assert_eq!(watch.status().dropped_reports, 0, "the callback is quick");
        let heard = ear.0.lock();
        for heard in heard.values() {
            eprintln!("a false alarm: {}", heard.report.headline());
        }
        let likely = heard.values().map(|heard| heard.report.certainty);
        let likely = likely.filter(|&certainty| certainty != Certainty::Certain);
        let in_millis = |nanos: &AtomicU64| nanos.load(Ordering::Relaxed) as f64 / 1e6;
        vec![
            heard.len() as f64,
            likely.count() as f64,
            took.as_secs_f64(),
            honest.polls.load(Ordering::Relaxed) as f64,
            in_millis(&honest.cpu),
            in_millis(&honest.wall),
        ]
    }

    impl Work {
        fn name(self) -> &'static str {
            match self {
                Work::Rows => "rows",
                Work::Yields => "yields",
                Work::Timers => "timers",
                Work::SpawnBlocking => "spawn_blocking",
                Work::BlockInPlace => "block_in_place",
            }
        }
    }

    async fn work(kind: Work, honest: Arc<Honest>, until: Instant) {
        let pause = |millis| tokio::time::sleep(Duration::from_millis(millis));
        while Instant::now() < until {
            match kind {
                Work::Rows => {
                    for _ in 0..ROW {
                        honest.poll();
                        tokio::task::yield_now().await;
                    }
                    pause(40).await;
                }
                Work::Yields => {
                    for _ in 0..1_000 {
                        tokio::task::yield_now().await;
                    }
                    pause(5).await;
                }
                Work::Timers => pause(3).await,
                Work::SpawnBlocking => {
                    let slept = tokio::task::spawn_blocking(|| std::thread::sleep(3 * THRESHOLD));
                    slept.await.expect("it does not panic");
                }
                Work::BlockInPlace => {
                    tokio::task::block_in_place(|| std::thread::sleep(3 * THRESHOLD));
                    pause(25).await;
                }
            }
        }
    }
}
