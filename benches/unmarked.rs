//! Polls that nothing marks: which stalls are found in a service whose workers are never idle, and whether rows
//! of short polls are ever taken for one.
//!
//! ```text
//! cargo bench --bench unmarked
//! TOKIO_STALL_SECONDS=600 cargo bench --bench unmarked    # each row of short polls for ten minutes
//! TOKIO_STALL_ROWS=LxM cargo bench --bench unmarked       # only rows with this in their name
//! ```
//!
//! Linux only, as `detection` is: the stalls compute by the CPU clock of their thread.

#[cfg(target_os = "linux")]
mod rounds;
#[cfg(target_os = "linux")]
#[path = "../examples/unmarked/rows.rs"]
mod rows;

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
    use super::rounds::{self, Row};
    use super::rows::{self, GoesOn, MS, compute, goes_on_for};
    use parking_lot::Mutex;
    use std::collections::HashMap;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::{Duration, Instant, SystemTime};
    use tokio::runtime::{self, Runtime};
    use tokio::task::yield_now;
    use tokio_stall::{Builder, Certainty, Guard, Phase, StallReport};

    /// Stalls in each row.
    const STALLS: usize = 200;
    /// Between two of them.
    const GAP: Duration = Duration::from_millis(20);
    /// Until threads are known.
    const SETTLE: Duration = Duration::from_millis(1_200);
    /// The last reports are waited for.
    const LAST_WORDS: Duration = Duration::from_millis(1_000);
    /// A report may be off from the true times by so much and still be of that stall.
    const SLACK: Duration = Duration::from_millis(3);
    /// How long a row of short polls goes on, unless told otherwise.
    const SECONDS: u64 = 10;

    /// Ordinary work of the saturated service.
    const ORDINARY: Duration = Duration::from_micros(50);

    const FOUND: &[Row] = &[
        row("computing for 15 ms", || stalls(compute, 15)),
        row("computing for 30 ms", || stalls(compute, 30)),
        row("computing for 60 ms", || stalls(compute, 60)),
        row("asleep for 15 ms", || stalls(std::thread::sleep, 15)),
        row("asleep for 30 ms", || stalls(std::thread::sleep, 30)),
        row("asleep for 60 ms", || stalls(std::thread::sleep, 60)),
    ];

    const SILENT: &[Row] = &[
        row("rows of 61 polls of 1 ms by many tasks", || {
            silent(workers(), rows::rows_with_pauses)
        }),
        row("one task that yields every 1 ms", || {
            silent(workers(), |goes_on| rows::yields(goes_on, MS))
        }),
        row("one task that yields every 9 ms", || {
            silent(workers(), |goes_on| rows::yields(goes_on, 9 * MS))
        }),
        row("one task that wakes itself every 3 ms", || {
            silent(workers(), |goes_on| rows::wakes_itself(goes_on, 3 * MS))
        }),
        row("ping-pong of 1 ms and 3 ms", || {
            silent(workers(), |goes_on| rows::ping_pong(goes_on, MS, 3 * MS))
        }),
        row("ping-pong of 6 ms and nothing", || {
            silent(workers(), |goes_on| {
                rows::ping_pong(goes_on, 6 * MS, Duration::ZERO)
            })
        }),
        row("polls of 5 ms by many tasks, workers saturated", || {
            silent(workers(), |goes_on| rows::many_tasks(goes_on, 5 * MS))
        }),
        row("`FuturesUnordered` and `select!`, 4 ms a poll", || {
            silent(workers(), rows::together)
        }),
        row("`block_in_place`, alone", || {
            silent(workers(), |goes_on| rows::in_place(goes_on, 0))
        }),
        row("`block_in_place`, then short polls, beside rows", || {
            silent(workers(), rows::in_place_beside_rows)
        }),
        row("short turns, as many as there are", || {
            silent(workers(), |goes_on| rows::yields(goes_on, Duration::ZERO))
        }),
        row("a `current_thread` runtime driven now and then", undriven),
        row("rows on `current_thread`", || {
            silent(current_thread(), async |goes_on| {
                let rows = [
                    tokio::spawn(rows::yields(goes_on.clone(), 9 * MS)),
                    tokio::spawn(rows::wakes_itself(goes_on.clone(), 3 * MS)),
                    tokio::spawn(rows::ping_pong(goes_on, 6 * MS, MS)),
                ];
                for row in rows {
                    row.await.expect("it does not panic");
                }
            })
        }),
    ];

    const fn row(name: &'static str, measure: fn() -> Vec<f64>) -> Row {
        Row { name, measure }
    }

    pub(super) fn main() {
        rounds::be_the_row_asked_for(&[FOUND, SILENT]);
        let wanted = std::env::var("TOKIO_STALL_ROWS").unwrap_or_default();
        let wanted = |rows: &'static [Row]| -> Vec<Row> {
            let rows = rows.iter().filter(|row| row.name.contains(&wanted));
            rows.map(|Row { name, measure }| row(name, *measure))
                .collect()
        };
        let (found, silent) = (wanted(FOUND), wanted(SILENT));

        let table = rounds::measure_in_turn(&found, 1);
        if !found.is_empty() {
            println!(
                "Two workers full of polls of {ORDINARY:?}, {STALLS} unmarked stalls a row, threshold {:?}:\n",
                Builder::DEFAULT_THRESHOLD
            );
            println!(
                "| stalls | found | of them while they lasted | only \"likely\" | with the right line | reports of anything else |\n|---|---|---|---|---|---|"
            );
        }
        for Row { name, .. } in &found {
            let figures = (0..5).map(|figure| table.figure(name, figure).median.to_string());
            println!("| {name} | {} |", figures.collect::<Vec<_>>().join(" | "));
        }

        let table = rounds::measure_in_turn(&silent, 1);
        if !silent.is_empty() {
            println!("\nNothing to report, and nothing marks a poll:\n");
            println!("| | for | reports, \"likely\" ones included | turns |\n|---|---|---|---|");
        }
        for Row { name, .. } in &silent {
            let figure = |figure| table.figure(name, figure).median;
            println!(
                "| {name} | {:.0} s | {} | {} |",
                figure(0),
                figure(1),
                figure(2)
            );
        }
    }

    fn workers() -> Runtime {
        let mut builder = runtime::Builder::new_multi_thread();
        let builder = builder.worker_threads(2).enable_all();
        builder.build().expect("a runtime")
    }

    fn current_thread() -> Runtime {
        let mut builder = runtime::Builder::new_current_thread();
        builder.enable_all().build().expect("a runtime")
    }

    /// The reports of each stall: when the first one was heard, and the newest.
    type Heard = Arc<Mutex<HashMap<u64, (Instant, StallReport)>>>;

    fn watch(runtime: &Runtime) -> (Guard, Heard) {
        let heard = Heard::default();
        let hearing = heard.clone();
        let watch = Builder::new()
            .runtime("bench", runtime.handle().clone())
            .log(false)
            .recent(2 * STALLS)
            .on_stall(move |report| {
                let mut heard = hearing.lock();
                let first = heard
                    .get(&report.id)
                    .map_or_else(Instant::now, |first| first.0);
                heard.insert(report.id, (first, report.clone()));
            })
            .start()
            .expect("nothing else is watched");
        assert!(watch.coverage()[0].turns, "{}", watch.coverage()[0]);
        (watch, heard)
    }

    /// A stall, as the code that made it knows it.
    struct True {
        start: Instant,
        end: Instant,
        worker: usize,
    }

    #[inline(never)]
    fn hold(held: fn(Duration), length: Duration) -> True {
        let start = Instant::now();
        held(length);
        True {
            start,
            end: Instant::now(),
            worker: tokio::runtime::worker_index().expect("tasks run on workers"),
        }
    }

    /// Stalls of one length in a service whose workers have work all the time.
    fn stalls(held: fn(Duration), millis: u64) -> Vec<f64> {
        let runtime = workers();
        let stop = Arc::new(AtomicBool::new(false));
        for _ in 0..4 {
            let stop = stop.clone();
            runtime.spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    compute(ORDINARY);
                    yield_now().await;
                }
            });
        }
        let (_watch, heard) = watch(&runtime);
        std::thread::sleep(SETTLE);
        let made: Vec<True> = (0..STALLS)
            .map(|number| {
                std::thread::sleep(GAP + Duration::from_micros(number as u64 * 379 % 7_000));
                let length = Duration::from_millis(millis);
                let stall = runtime.spawn(async move { hold(held, length) });
                runtime.block_on(stall).expect("it does not panic")
            })
            .collect();
        stop.store(true, Ordering::Relaxed);
        std::thread::sleep(LAST_WORDS);
        judge(&made, &heard.lock())
    }

    /// Found, while they lasted, likely only, with the right line, and reports of anything else.
    fn judge(made: &[True], heard: &HashMap<u64, (Instant, StallReport)>) -> Vec<f64> {
        let mut figures = vec![0.0; 5];
        let mut found = vec![false; made.len()];
        for (first, report) in heard.values() {
            let ago = SystemTime::now().duration_since(report.started_at);
            let start = Instant::now() - ago.unwrap_or_default();
            let is_of = |stall: &True| {
                report.worker == stall.worker
                    && start < stall.end + SLACK
                    && start + report.duration + SLACK > stall.start
            };
            let Some(stall) = made.iter().position(is_of) else {
                figures[4] += 1.0;
                eprintln!("of nothing: {}", report.headline());
                continue;
            };
            if std::mem::replace(&mut found[stall], true) {
                continue;
            }
            let site = report.site.as_ref().map(ToString::to_string);
            figures[0] += 1.0;
            figures[1] += f64::from(*first < made[stall].end);
            figures[2] += f64::from(report.certainty == Certainty::Likely);
            figures[3] += f64::from(
                site.is_some_and(|site| site.contains("unmarked.rs") || site.contains("rows.rs")),
            );
        }
        figures
    }

    fn seconds() -> Duration {
        let seconds = std::env::var("TOKIO_STALL_SECONDS").ok();
        let seconds = seconds.and_then(|seconds| seconds.parse().ok());
        Duration::from_secs(seconds.unwrap_or(SECONDS))
    }

    /// Runs what is not to be reported, and then one stall that must be.
    fn silent(runtime: Runtime, row: impl AsyncFnOnce(GoesOn)) -> Vec<f64> {
        let (watch, heard) = watch(&runtime);
        let start = Instant::now();
        runtime.block_on(row(goes_on_for(seconds())));
        told(start, &watch, &heard, || {
            runtime.block_on(async {
                let stall = tokio::spawn(async { compute(40 * MS) });
                stall.await.expect("it does not panic");
            });
        })
    }

    fn undriven() -> Vec<f64> {
        let runtime = current_thread();
        let (watch, heard) = watch(&runtime);
        let start = Instant::now();
        rows::driven_now_and_then(&runtime, &goes_on_for(seconds()));
        told(start, &watch, &heard, || {
            runtime.block_on(async { compute(40 * MS) });
        })
    }

    fn told(start: Instant, watch: &Guard, heard: &Heard, control: impl FnOnce()) -> Vec<f64> {
        let took = start.elapsed();
        std::thread::sleep(LAST_WORDS / 4);
        let reports = heard.lock().len();
        for (_, report) in heard.lock().values() {
            eprintln!("of nothing: {report}");
        }
        control();
        // Its line is read from debug information for the first time.
        let patience = Instant::now() + 10 * LAST_WORDS;
        let has_ended = |(_, report): &&(Instant, StallReport)| report.phase == Phase::Ended;
        while heard.lock().values().filter(has_ended).count() <= reports {
            assert!(Instant::now() < patience, "the positive control was missed");
            std::thread::sleep(MS);
        }
        let turns: u64 = watch.status().runtimes[0].worker_turns.iter().sum();
        vec![took.as_secs_f64(), reports as f64, turns as f64]
    }
}
