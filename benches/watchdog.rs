//! How much CPU the detector's own threads take, in an idle process and in a busy one.
//!
//! Run with: `cargo bench --bench watchdog`. Linux only. Takes twenty seconds. No recorder is installed: with one, telling
//! it is the thread `stall-metrics`' work.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use tokio::runtime::Builder;

/// Long enough for a thousandth of a core to be a measurable time.
const SPAN: Duration = Duration::from_secs(8);

/// The detector's threads, whose names begin with "stall-".
const THREADS: [&str; 5] = ["watchdog", "pulse", "reporter", "sinks", "metrics"];

fn main() {
    let runtime = Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    let _guard = runtime.enter();
    let watch = tokio_stall::watch().expect("nothing else is watched");
    std::thread::sleep(Duration::from_secs(4)); // start-up, and the pulse thread's idea of "idle"

    println!("share of one core, default settings, 2 workers");
    let threads = THREADS.map(|thread| format!("{thread:>9}")).concat();
    println!("{:<6}{threads} {:>9} {:>8}", "", "all", "ticks/s");
    row("idle", &watch, || std::thread::sleep(SPAN));
    row("busy", &watch, || {
        runtime.block_on(async {
            let until = Instant::now() + SPAN;
            let busy = (0..2).map(|_| {
                tokio::spawn(async move {
                    while Instant::now() < until {
                        let round = Instant::now();
                        while round.elapsed() < Duration::from_micros(50) {
                            std::hint::spin_loop();
                        }
                        tokio::task::yield_now().await;
                    }
                })
            });
            for busy in busy.collect::<Vec<_>>() {
                busy.await.expect("it does not panic");
            }
        });
    });
}

fn row(name: &str, watch: &tokio_stall::Guard, work: impl FnOnce()) {
    let ticks = watch.status().ticks;
    let (start, before) = (Instant::now(), cpu_times());
    work();
    let (wall, after) = (start.elapsed(), cpu_times());
    let shares = THREADS.map(|thread| {
        let thread = format!("stall-{thread}");
        let time = |times: &BTreeMap<String, u64>| times.get(&thread).copied().unwrap_or_default();
        (time(&after) - time(&before)) as f64 / wall.as_nanos() as f64 * 100.0
    });
    println!(
        "{name:<6}{} {:>8.3}% {:>8.0}",
        shares.map(|share| format!("{share:>8.3}%")).concat(),
        shares.iter().sum::<f64>(),
        (watch.status().ticks - ticks) as f64 / wall.as_secs_f64()
    );
}

/// CPU time so far, in nanoseconds, by name of thread.
fn cpu_times() -> BTreeMap<String, u64> {
    let tasks = std::fs::read_dir("/proc/self/task")
        .into_iter()
        .flatten()
        .flatten();
    let times = tasks.filter_map(|task| {
        let name = std::fs::read_to_string(task.path().join("comm")).ok()?;
        let stat = std::fs::read_to_string(task.path().join("schedstat")).ok()?;
        let cpu = stat.split_ascii_whitespace().next()?.parse().ok()?;
        Some((name.trim().to_owned(), cpu))
    });
    times.collect()
}
