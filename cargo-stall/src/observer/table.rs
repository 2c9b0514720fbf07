//! The live table of `attach`: a line for each worker, drawn again over the last one.
//!
//! *Runs on:* the main thread.

use crate::observer::dump::words;
use crate::observer::target::plain;
use crate::observer::text::cut;
use crate::observer::tracked::Tracked;
use crate::observer::watch::ProcessWatch;
use std::io::Write;
use std::time::{Duration, Instant};
use tokio_stall::outside::Human;

/// The time between two pictures.
const PERIOD: Duration = Duration::from_millis(200);

/// The most characters of a line.
const WIDTH: usize = 110;

/// The table on a terminal.
#[derive(Debug)]
pub(crate) struct LiveTable {
    lines: usize,
    due: Instant,
}

impl LiveTable {
    pub(crate) fn new() -> LiveTable {
        LiveTable {
            lines: 0,
            due: Instant::now(),
        }
    }

    /// Takes the table away, so that other text can follow.
    pub(crate) fn clear(&mut self, out: &mut impl Write) -> std::io::Result<()> {
        if self.lines > 0 {
            write!(out, "\x1b[{}A\x1b[J", self.lines)?;
        }
        self.lines = 0;
        self.due = Instant::now();
        Ok(())
    }

    /// Draws it, if that is due.
    pub(crate) fn draw(
        &mut self,
        watch: &ProcessWatch,
        out: &mut impl Write,
    ) -> std::io::Result<()> {
        let now = Instant::now();
        if now < self.due {
            return Ok(());
        }
        self.clear(out)?;
        self.due = now + PERIOD;
        let lines = lines(watch);
        for line in &lines {
            writeln!(out, "{}", cut(line, WIDTH))?;
        }
        self.lines = lines.len();
        out.flush()
    }
}

fn lines(watch: &ProcessWatch) -> Vec<String> {
    let mut workers: Vec<&Tracked> = watch.workers().collect();
    workers.sort_by_key(|thread| thread.worker);
    let head = format!(
        "{:<7} {:<16} {:<22} {:>8}  {}",
        "worker", "thread", "state", "held for", "site"
    );
    let mut lines = vec![head];
    lines.extend(workers.into_iter().map(|thread| line(watch, thread)));
    if lines.len() == 1 {
        lines.push("no worker has been seen so far".to_owned());
    }
    lines
}

fn line(watch: &ProcessWatch, thread: &Tracked) -> String {
    let number = thread.worker.unwrap_or_default();
    let (held, site) = match &thread.hold {
        None => (String::new(), String::new()),
        Some(hold) => {
            let report = watch.process().report(&hold.evidence);
            let site = report
                .site
                .map(|site| site.to_string())
                .or(report.dependency);
            let cause = report.cause.as_str();
            let site = site.unwrap_or_default();
            (Human(hold.age()).to_string(), format!("{cause} {site}"))
        }
    };
    let state = words(thread.place).trim_start_matches("worker, ");
    let name = plain(&thread.name);
    format!(
        "{number:<7} {name:<16} {state:<22} {held:>8}  {}",
        plain(&site)
    )
}
