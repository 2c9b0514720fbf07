//! Stalls for programs that read them: JUnit, SARIF, and the lines of GitHub Actions.
//!
//! *Runs on:* the main thread.
//!
//! All names come from the other program. Each format has its own escape.

use crate::observer::findings::{Ended, Findings, write};
use crate::observer::problem::Problem;
use crate::observer::target::plain;
use crate::observer::text;
use quick_junit::{NonSuccessKind, Report, TestCase, TestCaseStatus, TestSuite};
use serde_json::{Value, json};
use std::path::Path;
use tokio_stall::StallReport;

/// The text of one stall, with its test.
pub(crate) fn stall_of_test(ended: &Ended) -> String {
    let report = &ended.report;
    let test = report.thread.as_deref().unwrap_or("a thread");
    let counts = if ended.counts() {
        ""
    } else {
        " (does not count)"
    };
    let (test, program) = (plain(test), plain(&report.runtime));
    format!(
        "{test} in {program} blocked a worker{counts}\n{}",
        text::shown(report)
    )
}

/// The place in the source, below the current directory if it is there.
fn place(report: &StallReport) -> Option<(String, u32)> {
    let site = report.site.as_ref()?;
    let (file, line) = (site.file.as_deref()?, site.line?);
    let here = std::env::current_dir().unwrap_or_default();
    let path = Path::new(file);
    let path = path.strip_prefix(here).unwrap_or(path);
    Some((path.to_string_lossy().into_owned(), line))
}

/// The lines that GitHub shows beside the code: an error for each stall that counts, a warning for
/// others that are not known.
pub(crate) fn github(findings: &Findings) -> String {
    let new = findings.ended().iter().filter(|ended| !ended.is_known);
    new.map(|ended| {
        let kind = if ended.counts() { "error" } else { "warning" };
        let message = escaped(&stall_of_test(ended), false);
        match place(&ended.report) {
            Some((file, line)) => {
                format!(
                    "::{kind} file={},line={line}::{message}\n",
                    escaped(&file, true)
                )
            }
            None => format!("::{kind}::{message}\n"),
        }
    })
    .collect()
}

/// A text in a line of GitHub Actions. Properties have two more characters that separate.
fn escaped(text: &str, property: bool) -> String {
    let text = text
        .replace('%', "%25")
        .replace('\r', "%0D")
        .replace('\n', "%0A");
    match property {
        true => text.replace(':', "%3A").replace(',', "%2C"),
        false => text,
    }
}

/// Writes a JUnit report: a case for each stall. Stalls that do not count have passed.
pub(crate) fn write_junit(findings: &Findings, path: &Path) -> Result<(), Problem> {
    let mut suite = TestSuite::new("stalls");
    for ended in findings.ended() {
        let report = &ended.report;
        let status = match ended.counts() {
            true => {
                let mut status = TestCaseStatus::non_success(NonSuccessKind::Failure);
                status.set_message(plain(&report.headline().to_string()));
                status.set_type(report.cause.as_str());
                status.set_description(text::shown(report));
                status
            }
            false => TestCaseStatus::success(),
        };
        let name = plain(report.thread.as_deref().unwrap_or("a thread"));
        let mut case = TestCase::new(name, status);
        case.set_classname(plain(&report.runtime));
        case.set_time(report.duration);
        suite.add_test_case(case);
    }
    let mut junit = Report::new("cargo-stall");
    junit.add_test_suite(suite);
    let text = junit.to_string().map_err(std::io::Error::other)?;
    write(path, text)
}

/// Writes a SARIF report: a result for each stall that is not known.
pub(crate) fn write_sarif(findings: &Findings, path: &Path) -> Result<(), Problem> {
    let new = findings.ended().iter().filter(|ended| !ended.is_known);
    let results: Vec<Value> = new.map(result).collect();
    let sarif = json!({
        "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
        "version": "2.1.0",
        "runs": [{
            "tool": {"driver": {
                "name": "cargo-stall",
                "version": env!("CARGO_PKG_VERSION"),
                "rules": [{
                    "id": "blocked-worker",
                    "shortDescription": {"text": "A poll has blocked a worker of a Tokio runtime."},
                }],
            }},
            "results": results,
        }],
    });
    let text = serde_json::to_string_pretty(&sarif).map_err(std::io::Error::from)?;
    write(path, text)
}

fn result(ended: &Ended) -> Value {
    let report = &ended.report;
    let locations: Vec<Value> = place(report)
        .map(|(file, line)| {
            json!({"physicalLocation": {
                "artifactLocation": {"uri": file},
                "region": {"startLine": line},
            }})
        })
        .into_iter()
        .collect();
    json!({
        "ruleId": "blocked-worker",
        "level": if ended.counts() { "error" } else { "note" },
        "message": {"text": stall_of_test(ended)},
        "locations": locations,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings() -> Findings {
        let line = r#"{"runtime":"<app>","thread":"a,b::c\u001b[2J","duration_seconds":0.5,
            "cause":"cpu","site":{"function":"app::f","file":"/x,y/src/a.rs","line":7}}"#;
        let report: StallReport = serde_json::from_str(line).unwrap();
        let mut findings = Findings::default();
        findings.add(&report);
        findings
    }

    #[test]
    fn lines_for_github_cannot_be_broken_by_names() {
        let lines = github(&findings());
        assert!(
            lines.starts_with("::error file=/x%2Cy/src/a.rs,line=7::a,b::c"),
            "{lines}"
        );
        assert_eq!(lines.matches('\n').count(), 1);
        assert!(!lines.contains('\u{1b}'));
    }

    #[test]
    fn junit_and_sarif_have_the_stall() {
        let folder = tempfile::tempdir().unwrap();
        let (junit, sarif) = (folder.path().join("j.xml"), folder.path().join("s.json"));
        write_junit(&findings(), &junit).unwrap();
        let text = std::fs::read_to_string(junit).unwrap();
        assert!(
            text.contains("failures=\"1\"") && text.contains("&lt;app&gt;"),
            "{text}"
        );
        write_sarif(&findings(), &sarif).unwrap();
        let sarif: Value = serde_json::from_slice(&std::fs::read(sarif).unwrap()).unwrap();
        let result = &sarif["runs"][0]["results"][0];
        assert_eq!(result["level"], "error");
        let place = &result["locations"][0]["physicalLocation"];
        assert_eq!(place["region"]["startLine"], 7);
    }
}
