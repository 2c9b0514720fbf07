//! Rows of a table, measured in turn: each round runs every row once, in a process of its own, and a row is
//! compared with another one round by round.
//!
//! What drifts (the processor's clock, a neighbour on the host) is then in both of a pair, and what a row leaves
//! behind in its process (a subscriber, a recorder, a watch) is not in the next one's.

// Each benchmark uses its part.
#![allow(dead_code)]

use std::process::Command;
use std::time::{Duration, Instant};

/// The variable that tells a process which row it is.
const ROW: &str = "TOKIO_STALL_BENCH_ROW";

/// One row: its name, and how one round of it is measured. It returns its figures, as many each time.
pub(crate) struct Row {
    pub(crate) name: &'static str,
    pub(crate) measure: fn() -> Vec<f64>,
}

/// What a row's rounds have shown of one figure: median and quartiles.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spread {
    pub(crate) low: f64,
    pub(crate) median: f64,
    pub(crate) high: f64,
}

/// The figures of all rows, by row and round.
pub(crate) struct Table {
    rows: Vec<(&'static str, Vec<Vec<f64>>)>,
}

/// In a process that was started to be one row, measures it and ends the process. The first thing `main` does,
/// with all rows of all its tables.
pub(crate) fn be_the_row_asked_for(rows: &[&[Row]]) {
    let Ok(name) = std::env::var(ROW) else { return };
    let mut rows = rows.iter().copied().flatten();
    let row = rows
        .find(|row| row.name == name)
        .expect("a row by this name");
    let figures: Vec<_> = (row.measure)().iter().map(f64::to_string).collect();
    println!("{}", figures.join(" "));
    std::process::exit(0);
}

/// Measures all rows `rounds` times. Who comes first changes from round to round.
///
/// # Panics
///
/// If a row cannot be measured: a table with a hole in it would be compared with all the same.
pub(crate) fn measure_in_turn(rows: &[Row], rounds: usize) -> Table {
    let mut table = Table {
        rows: rows.iter().map(|row| (row.name, Vec::new())).collect(),
    };
    let start = Instant::now();
    for round in 0..rounds {
        for turn in 0..rows.len() {
            let (name, figures) = &mut table.rows[(turn + round) % rows.len()];
            figures.push(one_round(name));
        }
    }
    let took = start.elapsed().as_secs_f64();
    eprintln!("{} rows, {rounds} rounds: {took:.0} s", rows.len());
    table
}

fn one_round(row: &str) -> Vec<f64> {
    let program = std::env::current_exe().expect("the path of this program");
    let output = Command::new(program)
        .env(ROW, row)
        .stderr(std::process::Stdio::inherit())
        .output()
        .expect("this program starts");
    assert!(output.status.success(), "{row}: {}", output.status);
    let text = String::from_utf8_lossy(&output.stdout);
    // A program under measurement may write to standard output as well; the figures come last.
    let line = text.lines().last().unwrap_or_default();
    let figures = line.split(' ').map(|figure| figure.parse().ok());
    figures
        .collect::<Option<_>>()
        .unwrap_or_else(|| panic!("{row} wrote {text:?}"))
}

impl Table {
    fn figures(&self, row: &str, figure: usize) -> impl Iterator<Item = f64> + '_ {
        let rows = self.rows.iter().find(|(name, _)| *name == row);
        let (_, rounds) = rows.unwrap_or_else(|| panic!("no row {row}"));
        rounds.iter().map(move |figures| figures[figure])
    }

    /// One figure of a row.
    pub(crate) fn figure(&self, row: &str, figure: usize) -> Spread {
        Spread::of(self.figures(row, figure))
    }

    /// What a row has more of it than `base`, in the same round.
    pub(crate) fn over(&self, row: &str, base: &str, figure: usize) -> Spread {
        let pairs = self.figures(row, figure).zip(self.figures(base, figure));
        Spread::of(pairs.map(|(row, base)| row - base))
    }

    /// How many times as much of it a row has as `base`, in the same round.
    pub(crate) fn ratio(&self, row: &str, base: &str, figure: usize) -> Spread {
        let pairs = self.figures(row, figure).zip(self.figures(base, figure));
        Spread::of(pairs.map(|(row, base)| row / base))
    }
}

impl Spread {
    pub(crate) fn of(figures: impl Iterator<Item = f64>) -> Spread {
        let mut sorted: Vec<_> = figures.collect();
        sorted.sort_by(f64::total_cmp);
        Spread {
            low: percentile(&sorted, 0.25),
            median: percentile(&sorted, 0.5),
            high: percentile(&sorted, 0.75),
        }
    }

    /// As "2.1 (1.9–2.4)".
    pub(crate) fn show(self, decimals: usize) -> String {
        let Spread { low, median, high } = self;
        format!("{median:.decimals$} ({low:.decimals$}–{high:.decimals$})")
    }
}

/// The value that this share of the sorted values is below, by nearest rank.
pub(crate) fn percentile(sorted: &[f64], share: f64) -> f64 {
    assert!(!sorted.is_empty(), "nothing was measured");
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted[rank.clamp(1, sorted.len()) - 1]
}

/// Nanoseconds that one of `batch` takes, where `run` does a batch of them, measured for `time` after a fifth of
/// it to warm up. Between two batches the task yields, so that it is a well-behaved one.
pub(crate) async fn nanos_each(batch: usize, time: Duration, mut run: impl FnMut()) -> f64 {
    let (start, warm) = (Instant::now(), time / 5);
    let (mut took, mut batches) = (Duration::ZERO, 0);
    while start.elapsed() < warm + time {
        let counts = start.elapsed() > warm;
        let batch_start = Instant::now();
        run();
        if counts {
            took += batch_start.elapsed();
            batches += 1;
        }
        tokio::task::yield_now().await;
    }
    took.as_nanos() as f64 / (batch * batches) as f64
}
