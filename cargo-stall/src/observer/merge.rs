//! `tokio-stall report`: sums up a log of reports, one JSON object a line.
//!
//! *Runs on:* the main thread.

use crate::observer::args::Options;
use crate::observer::findings::{Findings, counted};
use crate::observer::problem::Problem;
use crate::observer::text;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead as _, BufReader, Write};
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio_stall::outside::Human;
use tokio_stall::{FoldedBy, Phase, StallReport};

/// Reads a log, and calls `f` with each report in it.
///
/// # Errors
///
/// The file cannot be read, or a line is no report. A last line without an end is left out: the
/// program that wrote it was killed.
pub(crate) fn read(path: &Path, mut f: impl FnMut(StallReport)) -> Result<(), Problem> {
    let failed = |error| Problem::File(path.to_owned(), error);
    let mut file = BufReader::new(File::open(path).map_err(failed)?);
    let mut line = String::new();
    for number in 1_u64.. {
        line.clear();
        if file.read_line(&mut line).map_err(failed)? == 0 {
            break;
        }
        if line.trim().is_empty() {
            continue;
        }
        match serde_json::from_str(&line) {
            Ok(report) => f(report),
            Err(_) if !line.ends_with('\n') => break,
            Err(error) => {
                let path = path.display();
                return Err(Problem::Text(format!("{path}, line {number}: {error}")));
            }
        }
    }
    Ok(())
}

/// The time lost in one minute.
#[derive(Default)]
struct Minute {
    stalls: u64,
    lost: Duration,
}

pub(crate) fn report(path: &Path, options: &Options, out: &mut impl Write) -> Result<(), Problem> {
    let mut findings = Findings::default();
    let mut minutes: BTreeMap<u64, Minute> = BTreeMap::new();
    // Of a stall that was cut off, the last report counts.
    let mut open: BTreeMap<(String, u64), StallReport> = BTreeMap::new();
    let mut add = |report: &StallReport| {
        let minute = minutes.entry(minute_of(report.started_at)).or_default();
        minute.stalls += 1;
        minute.lost += report.duration;
        findings.add(report);
    };
    read(path, |report| {
        let key = (report.runtime.clone(), report.id);
        if report.phase == Phase::Ended {
            open.remove(&key);
            add(&report);
        } else {
            open.insert(key, report);
        }
    })?;
    for report in open.into_values() {
        let ended = with_end(report);
        add(&ended);
    }
    if let Some(path) = &options.flamegraph {
        findings.write_flamegraph("stalls", path)?;
    }
    if options.json {
        for site in findings.profile().sites() {
            let line = serde_json::to_string(&site).map_err(std::io::Error::from)?;
            writeln!(out, "{line}")?;
        }
        return Ok(());
    }
    write_text(&findings, &minutes, out)
}

fn with_end(mut report: StallReport) -> StallReport {
    report.phase = Phase::Ended;
    report
}

fn write_text(
    findings: &Findings,
    minutes: &BTreeMap<u64, Minute>,
    out: &mut impl Write,
) -> Result<(), Problem> {
    writeln!(out, "{}", findings.summary())?;
    let worst = minutes.iter().max_by_key(|(_, minute)| minute.lost);
    if let Some((minute, sum)) = worst {
        let (stalls, lost) = (counted(sum.stalls), Human(sum.lost));
        let at = clock_of(*minute);
        writeln!(out, "\nworst minute: {at}, {stalls}, {lost} lost")?;
    }
    let folded = findings.profile().folded(FoldedBy::Microseconds);
    if !folded.is_empty() {
        writeln!(
            out,
            "\nstacks, with microseconds lost:\n{}",
            text::shown(&folded)
        )?;
    }
    Ok(())
}

fn minute_of(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    since.as_secs() / 60
}

/// A minute since 1970 as `2026-11-27 09:14 UTC`.
fn clock_of(minute: u64) -> String {
    let (days, of_day) = (minute / 1440, minute % 1440);
    let (year, month, day) = date_of(days);
    let (hour, minute) = (of_day / 60, of_day % 60);
    format!("{year}-{month:02}-{day:02} {hour:02}:{minute:02} UTC")
}

/// The date so many days after the first of 1970: years are taken to begin in March, so that the
/// day of a leap year is the last one.
fn date_of(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let (era, of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 {
        shifted_month + 3
    } else {
        shifted_month - 9
    };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_minute_has_its_date() {
        assert_eq!(clock_of(0), "1970-01-01 00:00 UTC");
        // `date -u -d @1709210040`
        assert_eq!(clock_of(1_709_210_040 / 60), "2024-02-29 12:34 UTC");
    }

    fn summed(log: &str) -> Result<String, String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), log).unwrap();
        let mut out = Vec::new();
        let done = report(file.path(), &Options::default(), &mut out);
        done.map_err(|problem| problem.to_string())?;
        Ok(String::from_utf8(out).unwrap())
    }

    #[test]
    fn a_log_is_summed_up_by_site() {
        let line = |id: u32, phase: &str, seconds: f64, started: u32| {
            let site = json!({"function": "app::f", "file": null, "line": null});
            let report = json!({
                "id": id, "phase": phase, "runtime": "api", "duration_seconds": seconds,
                "cause": "cpu", "started_at": started, "site": site,
            });
            report.to_string()
        };
        let log = [
            line(1, "began", 0.1, 60),
            line(1, "ended", 0.2, 60),
            line(2, "ended", 0.5, 120),
            line(3, "ongoing", 0.4, 130),
            r#"{"id":4,"dur"#.to_owned(),
        ];
        let text = summed(&log.join("\n")).unwrap();
        assert!(text.starts_with("3 stalls, 1.10 s lost"), "{text}");
        assert!(text.contains("app::f"), "{text}");
        let worst = "worst minute: 1970-01-01 00:02 UTC, 2 stalls, 900 ms lost";
        assert!(text.contains(worst), "{text}");
    }

    #[test]
    fn a_line_that_is_no_report_is_an_error_with_its_number() {
        let error = summed("\n{\"cause\":\"cpu\"}\n").unwrap_err();
        assert!(
            error.contains("line 2: missing field `duration_seconds`"),
            "{error}"
        );
        assert_eq!(summed("").unwrap(), "no stalls\n");
    }
}
