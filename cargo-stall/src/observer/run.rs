//! `cargo stall test` and `cargo stall run`: one program under observation, and the sum of all.
//!
//! *Runs on:* the main thread.

use crate::observer::args::{CargoArguments, Options};
use crate::observer::attach::show;
use crate::observer::build::{self, ReportFolder};
use crate::observer::findings::Findings;
use crate::observer::merge;
use crate::observer::os;
use crate::observer::output;
use crate::observer::problem::Problem;
use crate::observer::target::Target;
use crate::observer::text;
use crate::observer::watch::ProcessWatch;
use std::ffi::OsString;
use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;
use tokio_stall::StallReport;

/// The exit code if there were stalls that count.
const STALLS: u8 = 1;

/// Runs a program under observation, as cargo's runner. Returns its exit code.
pub(crate) fn observe(mut words: impl Iterator<Item = OsString>) -> Result<u8, Problem> {
    let program = words.next();
    let program = program.ok_or_else(|| Problem::Usage("the program is missing".to_owned()))?;
    let mut command = Command::new(&program);
    command.args(words);
    // Ctrl-C is for the program. Its end is awaited.
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register(signal, Arc::new(AtomicBool::new(false)))?;
    }
    let started = os::start_held(command, watch_of);
    let (mut child, watch) =
        started.map_err(|error| Problem::Start(PathBuf::from(&program), error))?;
    let reports = match watch {
        Ok(watch) => watch_child(&mut child, watch)?,
        Err(problem) => {
            eprintln!("cargo-stall: not observed: {problem}");
            Vec::new()
        }
    };
    let status = child.wait()?;
    save(child.id(), &reports)?;
    Ok(code(status))
}

fn watch_of(pid: u32) -> Result<ProcessWatch, Problem> {
    let target = Target::unchecked(pid)?;
    let own = std::env::var(build::OWN).unwrap_or_default();
    let own: Vec<String> = own.split_whitespace().map(str::to_owned).collect();
    let mut watch = ProcessWatch::new(target, threshold(), &own);
    watch.prime();
    Ok(watch)
}

fn threshold() -> Duration {
    let text = std::env::var(build::THRESHOLD).ok();
    let milliseconds = text.and_then(|text| text.parse().ok());
    Duration::from_millis(milliseconds.unwrap_or(100))
}

/// Watches a child until it ends. Returns the last report of each stall.
fn watch_child(child: &mut Child, mut watch: ProcessWatch) -> Result<Vec<StallReport>, Problem> {
    let mut reports = Vec::new();
    while !os::has_ended(child.id()) {
        reports.extend(watch.tick()?);
        std::thread::sleep(watch.tick_length());
    }
    reports.extend(watch.end());
    if let Some(why) = watch.unproven() {
        eprintln!("cargo-stall: {why}");
    }
    reports.retain(|report| report.phase == tokio_stall::Phase::Ended);
    Ok(reports)
}

/// Leaves reports in the folder of `cargo stall`. Without one, they go to standard error.
fn save(pid: u32, reports: &[StallReport]) -> Result<(), Problem> {
    let Some(folder) = std::env::var_os(build::FOLDER) else {
        for report in reports {
            eprintln!("{}\n", text::shown(report));
        }
        return Ok(());
    };
    let path = PathBuf::from(folder).join(format!("{pid:010}.jsonl"));
    let mut lines = Vec::new();
    for report in reports {
        show(report, true, &mut lines)?;
    }
    // The kernel may give the number to another process of the same run.
    let mut options = OpenOptions::new();
    let file = options.create(true).append(true).open(&path);
    let written = file.and_then(|mut file| file.write_all(&lines));
    written.map_err(|error| Problem::File(path, error))
}

fn code(status: ExitStatus) -> u8 {
    let by_signal = || status.signal().map(|signal| 128 + signal);
    let code = status.code().or_else(by_signal).unwrap_or(1);
    u8::try_from(code & 0xff).unwrap_or(1)
}

/// Has cargo build and run, and sums up. Returns the exit code.
pub(crate) fn cargo(
    subcommand: &[&str],
    arguments: &CargoArguments,
    options: &Options,
    out: &mut impl Write,
) -> Result<u8, Problem> {
    let mut findings = Findings::new(options)?;
    let folder = ReportFolder::new()?;
    let milliseconds = options.threshold.as_millis().to_string();
    let variables = [
        (build::FOLDER, folder.path().as_os_str().to_owned()),
        (build::THRESHOLD, milliseconds.into()),
        (build::OWN, options.own.join(" ").into()),
    ];
    let status = build::cargo(subcommand, arguments, &variables)?;
    for file in folder.files() {
        merge::read(&file, |report| findings.add(&report))?;
    }
    tell(&findings, options, out)?;
    Ok(match findings.failures() {
        _ if !status.success() => code(status),
        0 => 0,
        _ => STALLS,
    })
}

fn tell(findings: &Findings, options: &Options, out: &mut impl Write) -> Result<(), Problem> {
    for ended in findings.ended() {
        if options.json {
            show(&ended.report, true, out)?;
        } else if !ended.is_known {
            writeln!(out, "{}\n", output::stall_of_test(ended))?;
        }
    }
    if let Some(path) = &options.junit {
        output::write_junit(findings, path)?;
    }
    if let Some(path) = &options.sarif {
        output::write_sarif(findings, path)?;
    }
    if let Some(path) = &options.flamegraph {
        findings.write_flamegraph("stalls", path)?;
    }
    if std::env::var_os("GITHUB_ACTIONS").is_some() {
        write!(out, "{}", output::github(findings))?;
    }
    let notes = findings.baseline_notes();
    eprintln!("cargo-stall: {}", findings.summary());
    if !notes.is_empty() {
        eprintln!("{}", text::shown(&notes));
    }
    Ok(())
}
