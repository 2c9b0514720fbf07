//! What is run, in which order, and what ought to be reported.

use crate::controls;
use crate::traps::{self, Twin};
use serde::Serialize;
use std::path::Path;
use tokio_stall::{Cause, Site};

/// One thing to run and to judge.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    /// Also its path on the server.
    pub(crate) name: String,
    pub(crate) kind: Kind,
    pub(crate) expects: Expects,
    pub(crate) detector: Detector,
    pub(crate) drive: Drive,
    pub(crate) over: Over,
    /// The trap it belongs to, unless it is a control.
    pub(crate) trap: Option<&'static str>,
}

/// The detector, and how it knows of polls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Detector {
    /// Layer and wrapper mark them. A report must have the name of its span.
    Marked,
    /// Nothing marks them.
    Unmarked,
    /// `tokio-stall attach` looks at this process. Nothing of the detector is in it.
    Outside,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Kind {
    Trap,
    Twin,
    Control,
}

/// What the detector should say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Expects {
    /// A certain stall, with all that is to be said about it.
    Stall(Diagnosis),
    /// A stall of less than two thresholds: one that is likely will do, and so will a report at its
    /// end.
    ShortStall(Diagnosis),
    /// That the blocking pool is exhausted.
    PoolWait,
    /// Nothing.
    Silence,
}

impl Expects {
    /// What is to be said about a stall, if one is expected.
    pub(crate) fn diagnosis(&self) -> Option<&Diagnosis> {
        match self {
            Expects::Stall(right) | Expects::ShortStall(right) => Some(right),
            Expects::PoolWait | Expects::Silence => None,
        }
    }
}

/// What is right to say about a stall.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Diagnosis {
    /// The name of the span.
    pub(crate) span: &'static str,
    /// The source file of the code that blocks.
    pub(crate) file: &'static str,
    /// The path of the module which that file is.
    pub(crate) module: &'static str,
    /// Each of these is a right cause.
    pub(crate) causes: &'static [Cause],
    /// What tells the right advice from any other.
    pub(crate) advice: &'static str,
}

impl Diagnosis {
    /// Whether `site` is in the right file and module.
    pub(crate) fn is_site(&self, site: &Site) -> bool {
        // Debug information may have the whole path, where `file!()` begins at the workspace.
        let is_in_file = |file: &String| Path::new(file).ends_with(self.file);
        site.file.as_ref().is_some_and(is_in_file)
            && site.function.contains(&format!("{}::", self.module))
    }

    /// Whether the cause is right. On a busy machine, code that computes may wait for a CPU for many
    /// times as long as it has one: then the host is the cause.
    pub(crate) fn is_cause(&self, cause: Cause) -> bool {
        let computes = self.causes.contains(&Cause::Cpu);
        self.causes.contains(&cause) || computes && cause.is_host()
    }

    /// Whether `advice` is right, for this cause. Where the host is the cause, so is its advice.
    pub(crate) fn is_advice(&self, advice: &str, cause: Option<Cause>) -> bool {
        advice.contains(match cause {
            Some(Cause::Contention) => "Give the process more CPU",
            Some(Cause::Suspended) => "Leave the code as it is",
            Some(Cause::Throttled) => "Look at the CPU limit",
            _ => self.advice,
        })
    }
}

impl Detector {
    /// Whether a trap of this kind is to be reported. From outside, neither a pool without a free
    /// thread is seen, nor each stall of less than two thresholds.
    fn promises(self, expects: &Expects) -> bool {
        let is_shown = matches!(expects, Expects::Stall(_));
        self != Detector::Outside || is_shown
    }
}

/// What the client does.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Drive {
    /// Sends one request.
    Once,
    /// Sends one request while it keeps the server busy with ordinary ones.
    OnceInARush,
    /// Keeps the server busy with ordinary requests.
    Saturate,
}

/// When it is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Over {
    /// Once it has been answered.
    WhenAnswered,
    /// Once it has put its note into the record, which may be after the answer.
    WhenRecorded,
}

/// Everything with a name that begins with `prefix`, as far as the detector promises to see it.
pub(crate) fn entries(prefix: &str, detector: Detector) -> Vec<Entry> {
    let promised = traps::ALL
        .iter()
        .filter(|trap| detector.promises(&trap.caught));
    let traps = promised.flat_map(|trap| {
        let caught = Entry {
            name: trap.name.to_owned(),
            kind: Kind::Trap,
            expects: trap.caught,
            detector,
            drive: trap.drive,
            over: Over::WhenRecorded,
            trap: Some(trap.name),
        };
        let over = match trap.twin {
            Twin::Waits => Some(Over::WhenAnswered),
            Twin::InBackground => Some(Over::WhenRecorded),
            Twin::None => None,
        };
        let twin = over.map(|over| Entry {
            name: format!("{}/twin", trap.name),
            kind: Kind::Twin,
            expects: Expects::Silence,
            over,
            ..caught.clone()
        });
        [Some(caught), twin].into_iter().flatten()
    });
    let controls = controls::ALL.iter().map(|control| Entry {
        name: control.name.to_owned(),
        kind: Kind::Control,
        expects: Expects::Silence,
        detector,
        drive: control.drive,
        over: Over::WhenAnswered,
        trap: None,
    });
    traps
        .chain(controls)
        .filter(|entry| entry.name.starts_with(prefix))
        .collect()
}
