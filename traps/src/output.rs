//! What is printed: reports as they come and a table for people, or one JSON object per line.

use crate::corpus::{Entry, Kind};
use crate::outcome::{Outcome, Summary};
use crate::sightings::Sighting;
use serde::Serialize;
use std::fmt::Display;
use std::path::Path;
use std::time::Duration;

#[derive(Clone, Copy, Debug)]
pub(crate) enum Output {
    ForPeople,
    Json,
}

impl Output {
    pub(crate) fn begins(self, entry: &Entry) {
        if let Output::ForPeople = self {
            println!("── {} ──\n", entry.name);
        }
    }

    /// Shows a report as its user would see it.
    pub(crate) fn report(self, report: &dyn Display) {
        if let Output::ForPeople = self {
            println!("{report}\n");
        }
    }

    pub(crate) fn judged(self, outcome: &Outcome) {
        for sighting in &outcome.of_the_host {
            eprintln!("traps: {}: by no fault of the code", outcome.entry.name);
            explain(sighting);
        }
        if let Output::Json = self {
            print_json(&Line::new(outcome));
            // For whoever looks into it; standard output has a fixed form.
            if !outcome.faults().is_empty() {
                eprintln!("traps: {}: {}", outcome.entry.name, verdict(outcome));
                if let Some(truth) = outcome.truth {
                    eprintln!("  {truth:?}");
                }
                for sighting in outcome.caught.iter().chain(&outcome.false_alarms) {
                    explain(sighting);
                }
            }
        }
    }

    pub(crate) fn closes(self, outcomes: &[Outcome], strays: &[Sighting], summary: &Summary) {
        match self {
            Output::ForPeople => {
                print_table(outcomes);
                println!("\n{summary}");
            }
            Output::Json => print_json(&LastLine { summary }),
        }
        for stray in strays {
            eprintln!("traps: reported while nothing was run");
            explain(stray);
        }
    }
}

/// Shows the latest report of a sighting, and the times that only the judge knows.
fn explain(sighting: &Sighting) {
    let Sighting {
        began, announced, ..
    } = sighting;
    eprintln!("  began {began:?}, announced {announced:?}");
    eprintln!("  {}", sighting.text.replace('\n', "\n  "));
}

fn print_table(outcomes: &[Outcome]) {
    println!(
        "{:<22} {:<6} {:<34} {:<20} {:<15} {:>10} {:>10} {:>9}  verdict",
        "trap", "during", "span", "site", "cause", "true", "measured", "error"
    );
    for outcome in outcomes {
        let shown = outcome.shown();
        let during = match (outcome.entry.kind, outcome.was_seen_during()) {
            (Kind::Trap, true) => "yes",
            (Kind::Trap, false) => "no",
            (Kind::Twin | Kind::Control, _) => "",
        };
        println!(
            "{:<22} {:<6} {:<34} {:<20} {:<15} {:>10} {:>10} {:>9}  {}",
            outcome.entry.name,
            during,
            shown
                .and_then(|shown| shown.span.as_deref())
                .unwrap_or_default(),
            shown.and_then(short_site).unwrap_or_default(),
            shown.and_then(cause).unwrap_or_default(),
            milliseconds(true_duration(outcome)),
            milliseconds(measured_duration(shown)),
            milliseconds(outcome.error()),
            verdict(outcome)
        );
    }
}

fn verdict(outcome: &Outcome) -> String {
    let faults = outcome.faults();
    if !faults.is_empty() {
        let faults: Vec<String> = faults.iter().map(ToString::to_string).collect();
        return faults.join(", ");
    }
    match outcome.entry.kind {
        Kind::Trap => "caught".to_owned(),
        Kind::Twin | Kind::Control => "silent".to_owned(),
    }
}

/// The file without the way to it, and the line.
fn short_site(shown: &Sighting) -> Option<String> {
    let site = shown.site.as_ref()?;
    let file = Path::new(site.file.as_ref()?)
        .file_name()?
        .to_string_lossy();
    Some(match site.line {
        Some(line) => format!("{file}:{line}"),
        None => file.into_owned(),
    })
}

fn cause(shown: &Sighting) -> Option<String> {
    shown.cause.map(|cause| cause.to_string())
}

fn milliseconds(duration: Option<Duration>) -> String {
    duration.map_or_else(String::new, |duration| {
        format!("{:.1} ms", duration.as_secs_f64() * 1e3)
    })
}

/// Only traps block: what twins have in the record is how long they worked.
fn true_duration(outcome: &Outcome) -> Option<Duration> {
    let truth = outcome.truth.filter(|_| outcome.entry.kind == Kind::Trap);
    truth.map(|truth| truth.lasted())
}

fn measured_duration(shown: Option<&Sighting>) -> Option<Duration> {
    shown?.measured
}

/// One entry, as JSON.
#[derive(Serialize)]
struct Line<'a> {
    name: &'a str,
    kind: Kind,
    expected: bool,
    reported: bool,
    during: bool,
    span: Option<&'a str>,
    true_ms: Option<f64>,
    measured_ms: Option<f64>,
    site: Option<String>,
    site_ok: Option<bool>,
    cause: Option<String>,
    cause_ok: Option<bool>,
    advice: Option<&'a str>,
    #[cfg(tokio_unstable)]
    task: Option<u64>,
    #[cfg(tokio_unstable)]
    spawned_at: Option<&'a str>,
}

#[derive(Serialize)]
struct LastLine<'a> {
    summary: &'a Summary,
}

impl<'a> Line<'a> {
    fn new(outcome: &'a Outcome) -> Line<'a> {
        let shown = outcome.shown();
        let in_ms = |duration: Duration| duration.as_micros() as f64 / 1e3;
        Line {
            name: &outcome.entry.name,
            kind: outcome.entry.kind,
            expected: outcome.entry.kind == Kind::Trap,
            reported: outcome.is_reported(),
            during: outcome.was_seen_during(),
            span: shown.and_then(|shown| shown.span.as_deref()),
            true_ms: true_duration(outcome).map(in_ms),
            measured_ms: measured_duration(shown).map(in_ms),
            site: shown
                .and_then(|shown| shown.site.as_ref())
                .map(ToString::to_string),
            site_ok: outcome.is_site_right(),
            cause: shown.and_then(cause),
            cause_ok: outcome.is_cause_right(),
            advice: shown.and_then(|shown| shown.advice.as_deref()),
            #[cfg(tokio_unstable)]
            task: shown.and_then(|shown| shown.task),
            #[cfg(tokio_unstable)]
            spawned_at: shown.and_then(|shown| shown.spawned_at.as_deref()),
        }
    }
}

fn print_json(line: &impl Serialize) {
    let line = serde_json::to_string(line).expect("strings, numbers and booleans serialise");
    println!("{line}");
}
