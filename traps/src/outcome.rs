//! What an entry's reports are worth, and the sum of it all.

use crate::corpus::{Detector, Diagnosis, Entry, Expects, Kind};
use crate::record::Blocked;
use crate::sightings::{Sighting, Subject};
use serde::Serialize;
use std::fmt;
use std::time::Duration;

/// A duration is right within half a threshold; the threshold is ten milliseconds.
const TICK: Duration = Duration::from_millis(5);

/// And by this part of itself, for the note in the record is made a little later than the poll began.
const PART: f64 = 0.05;

/// From outside, stalls of less than three thresholds may be reported at their end.
const SHORT_FROM_OUTSIDE: Duration = Duration::from_millis(30);

/// Four thresholds: a shorter stall may be over before a watchdog without a CPU looks again.
const SHORT: Duration = Duration::from_millis(40);

/// The blocking pool is probed this often, so a wait is seen from the next probe on.
const PROBE_INTERVAL: Duration = Duration::from_millis(250);

#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) entry: Entry,
    pub(crate) truth: Option<Blocked>,
    /// What was reported about the trap, right or wrong.
    pub(crate) caught: Option<Sighting>,
    pub(crate) false_alarms: Vec<Sighting>,
    /// What was reported besides, with the host as its cause: true, and no alarm.
    pub(crate) of_the_host: Vec<Sighting>,
}

/// What is wrong with an outcome.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    Missed,
    Misnamed,
    /// Reported as likely, where it is promised to be certain.
    Unsure,
    /// Reported only once it was over, where it is promised while it lasts.
    Late,
    /// The last report did not come.
    Unfinished,
    WrongDuration,
    WrongSite,
    WrongCause,
    WrongAdvice,
    FalseAlarms(usize),
}

impl Outcome {
    pub(crate) fn new(
        entry: Entry,
        truth: Option<Blocked>,
        mut sightings: Vec<Sighting>,
    ) -> Outcome {
        let caught = match truth {
            Some(truth) if entry.kind == Kind::Trap => take_best(&mut sightings, &entry, truth),
            _ => None,
        };
        let (of_the_host, false_alarms) = sightings.into_iter().partition(Sighting::is_of_the_host);
        Outcome {
            entry,
            truth,
            caught,
            false_alarms,
            of_the_host,
        }
    }

    /// Whether there was a report: about the trap, or one that there should not have been.
    pub(crate) fn is_reported(&self) -> bool {
        match self.entry.kind {
            Kind::Trap => self.caught.is_some(),
            Kind::Twin | Kind::Control => !self.false_alarms.is_empty(),
        }
    }

    /// What there is to show: the trap's report, or else that of a false alarm.
    pub(crate) fn shown(&self) -> Option<&Sighting> {
        match self.entry.kind {
            Kind::Trap => self.caught.as_ref(),
            Kind::Twin | Kind::Control => self.false_alarms.first(),
        }
    }

    /// Whether the trap was reported while it lasted.
    pub(crate) fn was_seen_during(&self) -> bool {
        let announced = self.caught.as_ref().and_then(|caught| caught.announced);
        match (announced, self.truth) {
            (Some(announced), Some(truth)) => announced < truth.until,
            _ => false,
        }
    }

    /// How far the measured duration is off.
    pub(crate) fn error(&self) -> Option<Duration> {
        let measured = self.caught.as_ref()?.measured?;
        Some(measured.abs_diff(self.truth?.lasted()))
    }

    /// Whether the report shows the code that blocked; `None` where no code is expected.
    pub(crate) fn is_site_right(&self) -> Option<bool> {
        self.holds(|right, caught| {
            let site = caught.site.as_ref();
            site.is_some_and(|site| right.is_site(site))
        })
    }

    /// Whether the report says why it blocked; `None` where no reason is expected.
    pub(crate) fn is_cause_right(&self) -> Option<bool> {
        self.holds(|right, caught| caught.cause.is_some_and(|cause| right.is_cause(cause)))
    }

    /// Whether the report says what to write instead; `None` where no advice is expected.
    fn is_advice_right(&self) -> Option<bool> {
        self.holds(|right, caught| {
            let advice = caught.advice.as_ref();
            advice.is_some_and(|advice| right.is_advice(advice, caught.cause))
        })
    }

    /// Holds the report of a stall against what is right. Without a report, nothing is.
    fn holds(&self, is_right: impl FnOnce(&Diagnosis, &Sighting) -> bool) -> Option<bool> {
        let right = self.entry.expects.diagnosis()?;
        let caught = self.caught.as_ref();
        Some(caught.is_some_and(|caught| is_right(right, caught)))
    }

    pub(crate) fn faults(&self) -> Vec<Fault> {
        let mut faults = Vec::new();
        if self.entry.kind == Kind::Trap {
            match &self.caught {
                None => faults.push(Fault::Missed),
                Some(caught) => self.find_faults(caught, &mut faults),
            }
        }
        if !self.false_alarms.is_empty() {
            faults.push(Fault::FalseAlarms(self.false_alarms.len()));
        }
        faults
    }

    /// Whether it is a trap of a few thresholds that was not caught as it should be.
    pub(crate) fn is_short_and_not_caught(&self) -> bool {
        let is_own = |fault: &Fault| !matches!(fault, Fault::FalseAlarms(_));
        let is_short = self.entry.kind == Kind::Trap && self.lasted() < SHORT;
        is_short && self.faults().iter().any(is_own)
    }

    fn find_faults(&self, caught: &Sighting, faults: &mut Vec<Fault>) {
        let is_short = match self.entry.expects {
            Expects::ShortStall(_) => true,
            // A poll that computes is proven up to a threshold after its begin.
            _ if self.entry.detector == Detector::Outside => self.lasted() < SHORT_FROM_OUTSIDE,
            _ => false,
        };
        if !is_named(caught, &self.entry) {
            faults.push(Fault::Misnamed);
        }
        if !caught.certain && !is_short {
            faults.push(Fault::Unsure);
        }
        if !self.was_seen_during() && !is_short {
            faults.push(Fault::Late);
        }
        match (self.error(), self.allowed_error(caught)) {
            (None, _) => faults.push(Fault::Unfinished),
            (Some(error), allowed) if error > allowed => faults.push(Fault::WrongDuration),
            _ => {}
        }
        if self.is_site_right() == Some(false) {
            faults.push(Fault::WrongSite);
        }
        if self.is_cause_right() == Some(false) {
            faults.push(Fault::WrongCause);
        }
        if self.is_advice_right() == Some(false) {
            faults.push(Fault::WrongAdvice);
        }
    }

    fn allowed_error(&self, caught: &Sighting) -> Duration {
        let probe = match caught.subject {
            Subject::Poll => Duration::ZERO,
            Subject::Pool => PROBE_INTERVAL,
        };
        // Begin and end of a poll without a mark are not seen. The report says how uncertain they
        // are; ours come from ticks, of which a late one may not excuse all.
        let unseen = match self.entry.detector {
            Detector::Outside => caught.duration_error,
            Detector::Unmarked => caught.duration_error.min(2 * TICK),
            Detector::Marked => Duration::ZERO,
        };
        TICK + probe + unseen + self.lasted().mul_f64(PART)
    }

    fn lasted(&self) -> Duration {
        self.truth.map_or(Duration::ZERO, |truth| truth.lasted())
    }
}

/// Takes out what is about the trap: best a certain report of its name, or of its place where names
/// are not to be had, else any of its time.
fn take_best(sightings: &mut Vec<Sighting>, entry: &Entry, truth: Blocked) -> Option<Sighting> {
    let subject = match entry.expects {
        Expects::PoolWait => Subject::Pool,
        _ => Subject::Poll,
    };
    let (best, _) = sightings
        .iter()
        .enumerate()
        .filter(|(_, sighting)| sighting.subject == subject && sighting.began < truth.until)
        .min_by_key(|(_, sighting)| (!is_of_trap(sighting, entry), !sighting.certain))?;
    Some(sightings.remove(best))
}

/// Whether the report is of the trap, and not of something else at the same time.
pub(crate) fn is_of_trap(sighting: &Sighting, entry: &Entry) -> bool {
    match entry.expects.diagnosis() {
        Some(right) if entry.detector != Detector::Marked => {
            let site = sighting.site.as_ref();
            site.is_some_and(|site| right.is_site(site))
        }
        _ => is_named(sighting, entry),
    }
}

/// Whether the report has the names that there are. With `tokio_unstable` this includes the task.
fn is_named(sighting: &Sighting, entry: &Entry) -> bool {
    match entry.expects.diagnosis() {
        Some(right) if entry.detector == Detector::Marked => {
            let is_task_named = sighting.task.is_some() && sighting.spawned_at.is_some();
            sighting.name() == Some(right.span) && (is_task_named || !cfg!(tokio_unstable))
        }
        _ => true,
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::Missed => f.write_str("missed"),
            Fault::Misnamed => f.write_str("misnamed"),
            Fault::Unsure => f.write_str("not certain"),
            Fault::Late => f.write_str("not seen while it lasted"),
            Fault::Unfinished => f.write_str("its end was not reported"),
            Fault::WrongDuration => f.write_str("wrong duration"),
            Fault::WrongSite => f.write_str("wrong site"),
            Fault::WrongCause => f.write_str("wrong cause"),
            Fault::WrongAdvice => f.write_str("wrong advice"),
            Fault::FalseAlarms(1) => f.write_str("a false alarm"),
            Fault::FalseAlarms(count) => write!(f, "{count} false alarms"),
        }
    }
}

/// The sum of a run.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Summary {
    traps: usize,
    /// Traps reported as they should be in every respect.
    caught: usize,
    false_alarms: usize,
    /// Reports besides, with the host as their cause.
    of_the_host: usize,
    /// Times that a short stall was run once more, since it had not been caught.
    again: usize,
    misnamed: usize,
    wrong_site: usize,
    wrong_cause: usize,
    wrong_advice: usize,
}

impl Summary {
    pub(crate) fn new(outcomes: &[Outcome], strays: &[Sighting], again: usize) -> Summary {
        let traps = outcomes
            .iter()
            .filter(|outcome| outcome.entry.kind == Kind::Trap);
        let is_own = |fault: &Fault| !matches!(fault, Fault::FalseAlarms(_));
        let with = |fault| {
            let traps = traps.clone();
            traps
                .filter(|outcome| outcome.faults().contains(&fault))
                .count()
        };
        let false_alarms = outcomes.iter().map(|outcome| outcome.false_alarms.len());
        let of_the_host = outcomes.iter().map(|outcome| outcome.of_the_host.len());
        let strays_of_the_host = strays.iter().filter(|stray| stray.is_of_the_host()).count();
        Summary {
            traps: traps.clone().count(),
            caught: traps
                .clone()
                .filter(|outcome| !outcome.faults().iter().any(is_own))
                .count(),
            false_alarms: false_alarms.sum::<usize>() + strays.len() - strays_of_the_host,
            of_the_host: of_the_host.sum::<usize>() + strays_of_the_host,
            again,
            misnamed: with(Fault::Misnamed),
            wrong_site: with(Fault::WrongSite),
            wrong_cause: with(Fault::WrongCause),
            wrong_advice: with(Fault::WrongAdvice),
        }
    }

    pub(crate) fn is_clean(&self) -> bool {
        self.caught == self.traps && self.false_alarms == 0
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} of {} traps caught, {} misnamed, {} false alarms",
            self.caught, self.traps, self.misnamed, self.false_alarms
        )?;
        match self.again {
            0 => Ok(()),
            times => write!(f, "; short stalls were run again {times} times"),
        }
    }
}
