//! Instructions that marking costs, counted by callgrind: they hardly differ from run to run, so that continuous
//! integration can tell when they become more. Each row is counted in a process of its own.
//!
//! ```text
//! benches/instructions/run
//! ```
//!
//! Fails if a row has more over its base than its limit. Budgets are what DESIGN.md promises; a limit above its
//! budget holds what is reached until the budget is met.

mod work;

use std::process::{Command, ExitCode};
use tokio_stall::PollTiming::{Every, Off};
use work::Layer::{Empty, Ours};
use work::{TIMES, Through};

const POLL: &str = "poll";
const SPAN: &str = "span, empty layer";
const INNER_SPAN: &str = "span in a span, empty layer";
const REQUEST: &str = "request, empty layer";
const REQUEST_THROUGH: &str = "request, empty layer of tower";
const REQUEST_ALONE: &str = "request on `current_thread`, empty layer";

/// Budgets and limits are of instructions over the row's base.
#[rustfmt::skip]
const ROWS: &[Row] = &[
    base(POLL, work::poll),
    ours(POLL, "watched", budget(15), limit(22), || work::watched_poll(Off)),
    ours(POLL, "watched, timed", budget(80), limit(375), || work::watched_poll(Every)),
    peer(POLL, "`Instant::now` twice", work::poll_between_clock_readings),
    peer(POLL, "tokio-metrics `TaskMonitor`", work::poll_in_task_monitor),

    base(SPAN, || work::span(Empty)),
    ours(SPAN, "our layer", budget(25), limit(42), || work::span(Ours(Off))),
    ours(SPAN, "our layer, timed", None, limit(480), || work::span(Ours(Every))),
    base(INNER_SPAN, || work::span_in_a_span(Empty)),
    ours(INNER_SPAN, "our layer", budget(25), limit(92), || work::span_in_a_span(Ours(Off))),

    base(REQUEST, || work::request(Empty)),
    ours(REQUEST, "our layer", budget(70), limit(142), || work::request(Ours(Off))),
    ours(REQUEST, "our layer, timed", None, limit(985), || work::request(Ours(Every))),
    base(REQUEST_ALONE, || work::request_on_current_thread(Empty)),
    // In some processes it is 650, in others 1,016; why is not known.
    ours(REQUEST_ALONE, "our layer", budget(70), limit(1_100), || work::request_on_current_thread(Ours(Off))),

    base(REQUEST_THROUGH, || work::request_through(Through::Empty)),
    ours(REQUEST_THROUGH, "`RequestLayer`", budget(265), limit(3_500), || work::request_through(Through::Ours)),
    peer(REQUEST_THROUGH, "tower-http `TraceLayer`", || work::request_through(Through::Trace)),
];

struct Row {
    base: &'static str,
    /// What is different from the base.
    variant: Option<&'static str>,
    budget: Option<f64>,
    limit: Option<f64>,
    work: fn(),
}

const fn base(base: &'static str, work: fn()) -> Row {
    Row {
        base,
        variant: None,
        budget: None,
        limit: None,
        work,
    }
}

const fn ours(
    base: &'static str,
    variant: &'static str,
    budget: Option<f64>,
    limit: Option<f64>,
    work: fn(),
) -> Row {
    Row {
        base,
        variant: Some(variant),
        budget,
        limit,
        work,
    }
}

/// What others cost is shown and not held to anything.
const fn peer(base: &'static str, variant: &'static str, work: fn()) -> Row {
    ours(base, variant, None, None, work)
}

const fn budget(instructions: u32) -> Option<f64> {
    Some(instructions as f64)
}

const fn limit(instructions: u32) -> Option<f64> {
    Some(instructions as f64)
}

fn main() -> ExitCode {
    if let Some(index) = std::env::args().nth(1) {
        let index: usize = index.parse().expect("the index of a row");
        (ROWS[index].work)();
        return ExitCode::SUCCESS;
    }

    println!("Instructions, counted by callgrind over {TIMES} times each:\n");
    println!("| what | instructions | over its base | budget | |\n|---|---|---|---|---|");
    let mut base = 0.0;
    let mut broken = Vec::new();
    for (index, row) in ROWS.iter().enumerate() {
        let is_within = |each: f64| row.limit.is_none_or(|limit| each - base <= limit);
        let each = fewest(index, is_within);
        let Some(variant) = row.variant else {
            base = each;
            println!("| **{}** | {each:.1} | | | |", row.base);
            continue;
        };
        let over = each - base;
        let (budget, verdict) = match row.budget {
            Some(budget) if over <= budget => (format!("{budget}"), "met"),
            Some(budget) => (format!("{budget}"), "missed"),
            None => (String::new(), ""),
        };
        println!("| {variant} | {each:.1} | {over:.1} | {budget} | {verdict} |");
        if let Some(limit) = row.limit.filter(|limit| over > *limit) {
            broken.push(format!(
                "{}, {variant}: {over:.1} over its base, limit {limit}",
                row.base
            ));
        }
    }
    if broken.is_empty() {
        return ExitCode::SUCCESS;
    }
    eprintln!("\nMore instructions than the limit:\n{}", broken.join("\n"));
    ExitCode::FAILURE
}

/// The instructions of one time: the first count that is within the limit, or the least of three.
///
/// Work that reads the clock does more now and then, as when the clock is set right meanwhile.
fn fewest(index: usize, is_within: impl Fn(f64) -> bool) -> f64 {
    let mut fewest = f64::MAX;
    for _ in 0..3 {
        fewest = fewest.min(count(index) as f64 / TIMES as f64);
        if is_within(fewest) {
            break;
        }
    }
    fewest
}

/// Callgrind itself fails an assertion now and then while a process with threads ends, and more often
/// on a busy machine.
const TRIES: usize = 40;

/// Instructions of [`work::counted`] in a process that does one row's work.
///
/// # Panics
///
/// If nothing was counted: a table with a hole in it would pass.
fn count(row: usize) -> u64 {
    let mut log = String::new();
    for _ in 0..TRIES {
        match try_to_count(row) {
            Ok(count) => return count,
            Err(failed) => log = failed,
        }
    }
    panic!("row {row} was not counted:\n{log}");
}

/// The count, or what callgrind has written.
fn try_to_count(row: usize) -> Result<u64, String> {
    let valgrind = std::env::var_os("VALGRIND").unwrap_or_else(|| "valgrind".into());
    let output = Command::new(valgrind)
        .args(["--tool=callgrind", "--toggle-collect=*::work::counted"])
        .arg("--callgrind-out-file=/dev/null")
        .arg(std::env::current_exe().expect("the path of this program"))
        .arg(row.to_string())
        .output()
        .expect("valgrind starts");
    let log = String::from_utf8_lossy(&output.stderr);
    let collected = log.lines().find_map(|line| line.split_once("Collected : "));
    match collected.and_then(|(_, count)| count.trim().parse().ok()) {
        Some(count) if count > 0 && output.status.success() => Ok(count),
        _ => Err(log.into_owned()),
    }
}
