//! The stalls that the log has left out, in one line: many short ones may cost more than a long
//! one.
//!
//! *Runs on:* `stall-sinks`.
//! *Must not:* read a clock. Time is handed in.
//!
//! Stalls are left out if they are too short, or over the limit. Once they have held workers for
//! [`WORTH`] together, a line says so, with the place that has cost most. The next one comes after
//! a minute at the earliest, and then later and later.

use crate::clock::Nanos;
use crate::report::{Certainty, Human, Phase, StallReport};
use std::collections::HashMap;
use std::fmt;
use std::time::Duration;

/// The time of left-out stalls that is worth a line.
const WORTH: Duration = Duration::from_secs(1);
/// The pause after the first line. Each pause is twice as long as the one before.
const FIRST_PAUSE: Duration = Duration::from_secs(60);
const LONGEST_PAUSE: Duration = Duration::from_secs(3600);
/// The most places that are remembered. Time at further ones counts without a place.
const PLACES: usize = 256;

/// The most lines of one span that are remembered.
const SITES: usize = 32;

/// The stalls that have been left out since the last line.
#[derive(Debug, Default)]
pub(super) struct Unlogged {
    since: Option<Nanos>,
    stalls: u64,
    total: Duration,
    places: HashMap<LostPlace, LostTime>,
    quiet_until: Option<Nanos>,
    pause: Duration,
}

/// A span of a runtime, or a line without any span. Many stalls of one span have no stack, and
/// those that have one show the line.
#[derive(Debug, PartialEq, Eq, Hash)]
struct LostPlace {
    runtime: String,
    span: Option<String>,
    site: Option<String>,
}

/// The time lost at one place.
#[derive(Debug, Default)]
struct LostTime {
    time: Duration,
    /// The lines that stacks have shown, each with its number of stalls.
    sites: HashMap<String, u64>,
}

/// The stalls that were left out in a stretch of time.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Sum {
    pub(super) stalls: u64,
    pub(super) total: Duration,
    pub(super) most: Option<Most>,
    stretch: Duration,
}

/// The place at which most of the time was lost.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Most {
    pub(super) runtime: String,
    pub(super) span: Option<String>,
    /// The line that was found most often.
    pub(super) site: Option<String>,
    time: Duration,
}

impl Unlogged {
    /// Counts a stall that is over and was not logged. The host's are left out: no code can avoid
    /// them. Returns the sum if it is worth a line now.
    pub(super) fn note(&mut self, report: &StallReport, now: Nanos) -> Option<Sum> {
        let is_of_code = report.certainty == Certainty::Certain && !report.cause.is_host();
        if report.phase != Phase::Ended || !is_of_code {
            return None;
        }
        self.since.get_or_insert(now.minus(report.duration));
        self.stalls += 1;
        self.total += report.duration;
        self.note_place(report);
        let is_quiet = self.quiet_until.is_some_and(|until| now < until);
        (self.total >= WORTH && !is_quiet).then(|| self.take(now))
    }

    fn note_place(&mut self, report: &StallReport) {
        let site = report.site.as_ref().map(ToString::to_string);
        let site = site.or_else(|| report.dependency.clone());
        let span = report.span_names();
        let place = LostPlace {
            runtime: report.runtime.clone(),
            site: site.clone().filter(|_| span.is_none()),
            span,
        };
        if self.places.len() >= PLACES && !self.places.contains_key(&place) {
            return;
        }
        let lost = self.places.entry(place).or_default();
        lost.time += report.duration;
        if let Some(site) = site {
            if lost.sites.len() < SITES || lost.sites.contains_key(&site) {
                *lost.sites.entry(site).or_default() += 1;
            }
        }
    }

    fn take(&mut self, now: Nanos) -> Sum {
        let pause = (self.pause * 2).clamp(FIRST_PAUSE, LONGEST_PAUSE);
        let next = Unlogged {
            quiet_until: Some(now.plus(pause)),
            pause,
            ..Unlogged::default()
        };
        let taken = std::mem::replace(self, next);
        let known = taken.places.into_iter();
        let known = known.filter(|(place, _)| place.span.is_some() || place.site.is_some());
        let most = known.max_by_key(|(_, lost)| lost.time);
        Sum {
            stalls: taken.stalls,
            total: taken.total,
            most: most.map(|(place, lost)| Most {
                runtime: place.runtime,
                span: place.span,
                site: lost
                    .sites
                    .into_iter()
                    .max_by_key(|(_, stalls)| *stalls)
                    .map(|(site, _)| site),
                time: lost.time,
            }),
            stretch: taken.since.map_or(Duration::ZERO, |since| now.since(since)),
        }
    }
}

impl fmt::Display for Sum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (stalls, total) = (self.stalls, Human(self.total));
        let seconds = self.stretch.as_secs() + 1;
        match stalls {
            1 => f.write_str("1 stall that was not logged has")?,
            _ => write!(f, "{stalls} stalls that were not logged have")?,
        }
        write!(f, " held workers for {total}")?;
        write!(f, " within {seconds} s")?;
        if let Some(most) = &self.most {
            match most.time == self.total {
                true => write!(f, ", all of it in {:?}", most.runtime)?,
                false => write!(f, ", for {} of it in {:?}", Human(most.time), most.runtime)?,
            }
            if let Some(span) = &most.span {
                write!(f, ", in {span}")?;
            }
            if let Some(site) = &most.site {
                write!(f, ", at {site}")?;
            }
        }
        f.write_str("; metrics and `Guard::recent` have each of them")
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::report::{Cause, Frame, Origin, example};

    const SECOND: Duration = Duration::from_secs(1);
    const START: Nanos = Nanos(1_000_000_000_000);

    fn report(milliseconds: u64) -> StallReport {
        let mut report = example();
        report.phase = Phase::Ended;
        report.certainty = Certainty::Certain;
        report.duration = Duration::from_millis(milliseconds);
        report
    }

    /// The sum of so many stalls of 20 ms, one each second.
    fn sum_of(unlogged: &mut Unlogged, stalls: u32, from: Nanos) -> Vec<Sum> {
        let times = (0..stalls).map(|number| from.plus(SECOND * number));
        times
            .filter_map(|now| unlogged.note(&report(20), now))
            .collect()
    }

    #[test]
    fn many_short_stalls_are_told_in_one_line() {
        let mut unlogged = Unlogged::default();
        assert_eq!(sum_of(&mut unlogged, 49, START), []);
        let mut elsewhere = report(990);
        elsewhere.site = None;
        elsewhere.span = None;
        elsewhere.dependency = Some("library::call".to_owned());
        let sum = unlogged.note(&elsewhere, START.plus(SECOND * 49));
        let sum = sum.expect("it is worth a line");
        assert_eq!((sum.stalls, sum.total), (50, Duration::from_millis(1970)));
        let text = sum.to_string();
        assert!(
            text.starts_with(
                "50 stalls that were not logged have held workers for 1.97 s within 5"
            ),
            "{text}"
        );
        assert!(text.contains("for 990 ms of it in"), "{text}");
        assert!(text.contains("at library::call; metrics and"), "{text}");
    }

    #[test]
    fn one_long_stall_over_the_limit_is_told_as_one() {
        let sum = Unlogged::default().note(&report(1150), START).unwrap();
        let text = sum.to_string();
        let begin = "1 stall that was not logged has held workers for 1.15 s within 2 s, all of it";
        assert!(text.starts_with(begin), "{text}");
    }

    #[test]
    fn stalls_without_a_stack_count_at_their_span() {
        let mut unlogged = Unlogged::default();
        for number in 0..49 {
            let mut stall = report(20);
            stall.span = Some("request > charge".to_owned());
            let frames = [Frame::of("app::charge", Origin::Own)];
            stall.site = crate::report::site::site(&frames).filter(|_| number == 0);
            assert_eq!(unlogged.note(&stall, START), None);
        }
        let sum = unlogged.note(&report(20), START).expect("a second");
        let most = sum.most.expect("a place");
        assert_eq!(most.span.as_deref(), Some("request > charge"));
        assert_eq!(most.site.as_deref(), Some("app::charge"));
        assert_eq!(most.time, Duration::from_millis(980));
    }

    #[test]
    fn lines_come_less_and_less_often() {
        let mut unlogged = Unlogged::default();
        // A second of stalls every fifty seconds.
        let sums = sum_of(&mut unlogged, 4000, START);
        let stalls: Vec<_> = sums.iter().map(|sum| sum.stalls).collect();
        assert_eq!(stalls, [50, 60, 120, 240, 480, 960, 1920]);
    }

    #[test]
    fn neither_the_host_nor_a_guess_is_counted() {
        let mut unlogged = Unlogged::default();
        let mut of_the_host = report(5000);
        of_the_host.cause = Cause::Contention;
        assert_eq!(unlogged.note(&of_the_host, START), None);
        let mut likely = report(5000);
        likely.certainty = Certainty::Likely;
        assert_eq!(unlogged.note(&likely, START), None);
        let mut ongoing = report(5000);
        ongoing.phase = Phase::Ongoing;
        assert_eq!(unlogged.note(&ongoing, START), None);
        // Control.
        assert!(unlogged.note(&report(5000), START).is_some());
    }
}
