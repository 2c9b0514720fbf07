//! Tells long polls from rows of short ones without layer, wrapper or hook: nothing here marks a poll.
//!
//! ```text
//! cargo run --release --example unmarked
//! cargo run --release --example unmarked -- 600    # each row of short polls for ten minutes
//! ```
//!
//! Each row must be silent, with no report at all, and is followed by a stall that must be found, for certain
//! and while it lasts. One that is missed is tried once more if turns were not counted at that time. Otherwise the
//! exit code is 1.

mod rows;

use rows::{GoesOn, MS, compute, goes_on_for};
use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::runtime::{Builder, Runtime};
use tokio_stall::{Certainty, Guard, Phase, StallReport};

/// How long each row goes on, unless told otherwise.
const SECONDS: f64 = 1.0;

/// The stall after each row, in time on a CPU.
const STALL: Duration = Duration::from_millis(250);

/// For so long its report is waited for: the debug information of a large program takes a while to read.
const PATIENCE: Duration = Duration::from_secs(20);

/// Words of tokio's memory that contradict each other are not read for a second. Until then, a stall
/// that computes is not told from short polls. On a busy machine this was met once.
const DISTRUST: Duration = Duration::from_millis(1_500);

/// The first and the latest report of each stall.
type Known = BTreeMap<u64, (StallReport, StallReport)>;
type Reports = Arc<Mutex<Known>>;

fn main() -> ExitCode {
    let seconds = std::env::args().nth(1).map(|argument| argument.parse());
    let Ok(seconds) = seconds.unwrap_or(Ok(SECONDS)) else {
        eprintln!("unmarked: not a number of seconds; try `-- 600`");
        return ExitCode::from(2);
    };
    let time = Duration::from_secs_f64(seconds);
    let mut clean = true;
    clean &= row(
        "many tasks of 1 ms, with pauses",
        time,
        rows::rows_with_pauses,
    );
    clean &= row("many tasks of 5 ms on all workers", time, |goes_on| {
        rows::many_tasks(goes_on, 5 * MS)
    });
    clean &= row("a task that yields every 1 ms", time, |goes_on| {
        rows::yields(goes_on, MS)
    });
    clean &= row("a task that yields every 9 ms", time, |goes_on| {
        rows::yields(goes_on, 9 * MS)
    });
    clean &= row("a task that wakes itself every 3 ms", time, |goes_on| {
        rows::wakes_itself(goes_on, 3 * MS)
    });
    clean &= row("ping-pong of 1 ms and 3 ms", time, |goes_on| {
        rows::ping_pong(goes_on, MS, 3 * MS)
    });
    clean &= row("ping-pong of 6 ms and nothing", time, |goes_on| {
        rows::ping_pong(goes_on, 6 * MS, Duration::ZERO)
    });
    clean &= row("`FuturesUnordered` and `select!`", time, rows::together);
    clean &= row("`block_in_place`", time, |goes_on| {
        rows::in_place(goes_on, 0)
    });
    clean &= row(
        "`block_in_place` beside rows",
        time,
        rows::in_place_beside_rows,
    );
    clean &= row("as many turns as there are", time, |goes_on| {
        rows::yields(goes_on, Duration::ZERO)
    });
    clean &= current_thread("a `current_thread` runtime, driven now and then", time);
    if clean {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// A row on two workers, and then a stall.
fn row<F>(name: &str, time: Duration, row: impl FnOnce(GoesOn) -> F) -> bool
where
    F: Future<Output = ()>,
{
    let mut builder = Builder::new_multi_thread();
    let runtime = builder
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    let (watch, reports) = watch(&runtime);
    runtime.block_on(row(goes_on_for(time)));
    judge(name, &watch, &reports, || {
        runtime.block_on(async { tokio::spawn(async { compute(STALL) }).await.ok() });
    })
}

fn current_thread(name: &str, time: Duration) -> bool {
    let runtime = Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let (watch, reports) = watch(&runtime);
    rows::driven_now_and_then(&runtime, &goes_on_for(time));
    judge(name, &watch, &reports, || {
        runtime.block_on(async { compute(STALL) });
    })
}

fn watch(runtime: &Runtime) -> (Guard, Reports) {
    let reports = Reports::default();
    let heard = reports.clone();
    let watch = tokio_stall::Builder::new()
        .runtime("rows", runtime.handle().clone())
        .on_stall(move |report| {
            let mut reports = heard.lock().expect("nobody panics with it");
            let known = reports.entry(report.id);
            known.or_insert_with(|| (report.clone(), report.clone())).1 = report.clone();
        })
        .start()
        .expect("nothing else is watched");
    (watch, reports)
}

/// Stalls, and waits for the first report of it. Returns also whether turns were counted at its end.
fn found(
    before: &Known,
    reports: &Reports,
    stall: impl Fn(),
    are_counted: impl Fn() -> bool,
) -> (Option<StallReport>, bool) {
    stall();
    let still_counted = are_counted();
    let since = Instant::now();
    loop {
        let reports = reports.lock().expect("nobody panics with it").clone();
        let mut reports = reports.into_iter();
        if let Some(found) = reports.find(|(id, _)| !before.contains_key(id)) {
            return (Some(found.1.0), still_counted);
        }
        if since.elapsed() > PATIENCE {
            return (None, still_counted);
        }
        std::thread::sleep(MS);
    }
}

/// Holds what was reported against what happened, and prints a line of it.
fn judge(name: &str, watch: &Guard, reports: &Reports, stall: impl Fn()) -> bool {
    let before = reports.lock().expect("nobody panics with it").clone();
    let is_alarm = |report: &StallReport| !report.cause.is_host();
    let false_alarms = before.values().filter(|(_, last)| is_alarm(last)).count();
    let are_counted = || watch.coverage()[0].turns;
    let were_counted = are_counted();
    let (first, still_counted) = found(&before, reports, &stall, are_counted);
    let found = match first {
        None if !(were_counted && still_counted) => {
            println!("{name}: once more, since turns were not counted");
            std::thread::sleep(DISTRUST);
            found(&before, reports, &stall, are_counted).0
        }
        first => first,
    };
    let turns: u64 = watch.status().runtimes[0].worker_turns.iter().sum();
    let verdict = match &found {
        _ if !watch.coverage()[0].turns => "turns are not counted",
        _ if false_alarms > 0 => "a false alarm",
        None => "its stall was missed",
        Some(first) if first.certainty != Certainty::Certain => "its stall was only likely",
        Some(first) if first.phase == Phase::Ended => "its stall was found too late",
        Some(_) => "",
    };
    println!(
        "{:<50} {turns:>9} turns  {}",
        name,
        if verdict.is_empty() { "ok" } else { verdict }
    );
    // Also those of the host, which blame no code: a thread without a CPU may hold a lock of tokio.
    for (_, report) in before.values() {
        println!("{report}\n");
    }
    if let Some(first) = found.filter(|_| !verdict.is_empty()) {
        println!("{first}\n{}", watch.coverage()[0]);
    }
    verdict.is_empty()
}
