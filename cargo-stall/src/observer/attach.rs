//! `tokio-stall attach`: watches a process until it ends, or for a time.
//!
//! *Runs on:* the main thread.

use crate::observer::args::Options;
use crate::observer::findings::Findings;
use crate::observer::problem::Problem;
use crate::observer::table::LiveTable;
use crate::observer::target::Target;
use crate::observer::text;
use crate::observer::watch::ProcessWatch;
use std::io::{IsTerminal as _, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio_stall::StallReport;
use tokio_stall::outside::Human;

/// After so long without a worker, the reason is looked for.
const PATIENCE: Duration = Duration::from_secs(3);

pub(crate) fn attach(pid: u32, options: &Options, out: &mut impl Write) -> Result<(), Problem> {
    let target = Target::open(pid)?;
    let mut findings = Findings::new(options)?;
    let mut watch = ProcessWatch::new(target, options.threshold, &options.own);
    watch = watch.with_likely(options.likely);
    let is_live = std::io::stdout().is_terminal() && !options.json;
    let mut table = is_live.then(LiveTable::new);
    watch.prime();
    let begun = Instant::now();
    let end = options.duration.map(|duration| begun + duration);
    let stop = interrupted()?;
    while !is_over(&stop, end) {
        let reports = watch.tick()?;
        if let Some(table) = table.as_mut().filter(|_| !reports.is_empty()) {
            table.clear(out)?;
        }
        for report in &reports {
            show(report, options.json, out)?;
            findings.add(report);
        }
        if !watch.is_there() {
            break;
        }
        if let Some(table) = &mut table {
            table.draw(&watch, out)?;
        }
        check_names(&watch, pid, begun)?;
        std::thread::sleep(watch.tick_length());
    }
    if let Some(table) = &mut table {
        table.clear(out)?;
    }
    finish(&mut watch, &mut findings, options, begun, out)
}

/// A flag that Ctrl-C raises.
fn interrupted() -> Result<Arc<AtomicBool>, Problem> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register(signal, stop.clone())?;
    }
    Ok(stop)
}

fn is_over(stop: &AtomicBool, end: Option<Instant>) -> bool {
    // Relaxed: the flag alone is of interest; the handler stores it.
    stop.load(Ordering::Relaxed) || end.is_some_and(|end| Instant::now() >= end)
}

/// A program without names shows no workers, ever.
fn check_names(watch: &ProcessWatch, pid: u32, begun: Instant) -> Result<(), Problem> {
    let is_nameless = begun.elapsed() > PATIENCE && watch.is_nameless();
    match is_nameless && watch.has_taken_stacks() {
        true => Err(Problem::Stripped(pid)),
        false => Ok(()),
    }
}

/// Writes a report: JSON in a line, or text.
pub(crate) fn show(report: &StallReport, json: bool, out: &mut impl Write) -> Result<(), Problem> {
    if json {
        let line = serde_json::to_string(report).map_err(std::io::Error::from)?;
        writeln!(out, "{line}")?;
    } else {
        writeln!(out, "{}\n", text::shown(report))?;
    }
    Ok(out.flush()?)
}

fn finish(
    watch: &mut ProcessWatch,
    findings: &mut Findings,
    options: &Options,
    begun: Instant,
    out: &mut impl Write,
) -> Result<(), Problem> {
    for report in watch.end() {
        show(&report, options.json, out)?;
        findings.add(&report);
    }
    if let Some(path) = &options.flamegraph {
        findings.write_flamegraph(watch.name(), path)?;
    }
    let (workers, stops) = (watch.workers().count(), watch.stops());
    let watched = Human(begun.elapsed());
    // With `--json`, standard output has nothing but reports.
    let mut text = format!(
        "{workers} workers watched for {watched}: {}",
        findings.summary()
    );
    if stops.count > 0 {
        let each = Human(stops.total / u32::try_from(stops.count).unwrap_or(u32::MAX));
        let longest = Human(stops.longest);
        text += &format!(
            "\n{} stops of a thread, {each} each with the wait for a CPU, {longest} at most",
            stops.count
        );
    }
    if stops.failed > 0 {
        text += &format!(
            "\n{} times a thread could not be stopped for its stack: it waits for a disk, for a \
             child, or for a CPU",
            stops.failed
        );
    }
    if let Some(why) = watch.unproven() {
        text += &format!("\n{why}");
    }
    match options.json {
        true => eprintln!("{text}"),
        false => writeln!(out, "{text}")?,
    }
    Ok(())
}
