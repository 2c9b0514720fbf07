//! The stalls of one or more processes: counted by site, compared with a baseline, written out.
//!
//! *Runs on:* the main thread.

use crate::observer::args::Options;
use crate::observer::problem::Problem;
use std::path::Path;
use std::time::Duration;
use tokio_stall::outside::{Human, KnownStalls, add_to_profile};
use tokio_stall::{Certainty, FoldedBy, Phase, Profile, StallReport};

/// The most stalls that are kept with their stacks.
const KEPT: usize = 10_000;

/// One stall that is over.
#[derive(Clone, Debug)]
pub(crate) struct Ended {
    pub(crate) report: StallReport,
    /// Whether the baseline knows the site.
    pub(crate) is_known: bool,
}

impl Ended {
    /// Whether it is a reason to fail: certain, the code's own doing, and new.
    pub(crate) fn counts(&self) -> bool {
        let is_certain = self.report.certainty == Certainty::Certain;
        is_certain && !self.report.cause.is_host() && !self.is_known
    }
}

/// All stalls so far.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    profile: Profile,
    ended: Vec<Ended>,
    baseline: Option<KnownStalls>,
    dropped: u64,
}

impl Findings {
    /// None so far. Those of the baseline will be known.
    pub(crate) fn new(options: &Options) -> Result<Findings, Problem> {
        let read = |path: &std::path::PathBuf| KnownStalls::read(path).map_err(Problem::Text);
        Ok(Findings {
            baseline: options.baseline.as_ref().map(read).transpose()?,
            ..Findings::default()
        })
    }

    /// Takes a report. Only the last one of a stall counts.
    pub(crate) fn add(&mut self, report: &StallReport) {
        if report.phase != Phase::Ended {
            return;
        }
        add_to_profile(&mut self.profile, report);
        let mut baseline = self.baseline.as_mut();
        let is_known = baseline
            .as_mut()
            .is_some_and(|known| known.knows(report.site.as_ref(), report.cause));
        if self.ended.len() == KEPT {
            self.dropped += 1;
            return;
        }
        self.ended.push(Ended {
            report: report.clone(),
            is_known,
        });
    }

    pub(crate) fn ended(&self) -> &[Ended] {
        &self.ended
    }

    /// The number of stalls that are a reason to fail.
    pub(crate) fn failures(&self) -> usize {
        self.ended.iter().filter(|ended| ended.counts()).count()
    }

    pub(crate) fn profile(&self) -> &Profile {
        &self.profile
    }

    /// The number of stalls, and the sites that took most time; a sentence if there are none.
    pub(crate) fn summary(&self) -> String {
        let sites = self.profile.sites();
        if sites.is_empty() {
            return "no stalls".to_owned();
        }
        let stalls: u64 = sites.iter().map(|site| site.count).sum();
        let lost: Duration = sites.iter().map(|site| site.total).sum();
        let mut lines = vec![format!("{}, {} lost", counted(stalls), Human(lost))];
        lines.push(self.profile.to_string());
        if self.dropped > 0 {
            lines.push(format!("{} of them without details", self.dropped));
        }
        lines.join("\n")
    }

    /// The notes about the baseline, and entries for those that it does not know.
    pub(crate) fn baseline_notes(&self) -> String {
        let notes = self.baseline.as_ref().map(ToString::to_string);
        let mut lines: Vec<String> = notes.into_iter().filter(|text| !text.is_empty()).collect();
        let new = self.ended.iter().filter(|ended| ended.counts());
        let mut entries: Vec<String> = new
            .filter_map(|ended| {
                let site = ended.report.site.as_ref()?;
                KnownStalls::entry(site, ended.report.cause)
            })
            .collect();
        entries.sort();
        entries.dedup();
        if !entries.is_empty() {
            lines.push("a baseline with these entries lets them pass:".to_owned());
            lines.extend(entries);
        }
        lines.join("\n")
    }

    /// Writes the flame graph.
    pub(crate) fn write_flamegraph(&self, title: &str, path: &Path) -> Result<(), Problem> {
        let picture = self.profile.flamegraph(title, FoldedBy::Microseconds);
        write(path, picture)
    }
}

/// Writes a file whole.
pub(crate) fn write(path: &Path, text: String) -> Result<(), Problem> {
    std::fs::write(path, text).map_err(|error| Problem::File(path.to_owned(), error))
}

/// `1 stall`, `3 stalls`.
pub(crate) fn counted(stalls: u64) -> String {
    match stalls {
        1 => "1 stall".to_owned(),
        more => format!("{more} stalls"),
    }
}
