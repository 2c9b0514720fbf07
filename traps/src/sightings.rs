//! What was reported: the reports of each stall, put together as they come in.

use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::timeout_at;
use tokio_stall::{Cause, Certainty, Phase, PoolWaitReport, Site, StallReport};

/// Silence for so long, and nobody has anything to say about what is over.
const QUIET: Duration = Duration::from_millis(100);

/// How long after its end a stall may still be waiting for its last report: the first stack of a
/// process is slow, and slower on a busy machine.
const LAST_REPORT: Duration = Duration::from_secs(5);

/// A report that has just come in.
#[derive(Debug)]
pub(crate) enum News {
    /// A stall, and the latest moment at which it may have begun.
    Stall(Box<StallReport>, SystemTime),
    PoolWait(PoolWaitReport),
}

/// Where reports are handed in.
#[derive(Clone, Debug)]
pub(crate) struct Desk(UnboundedSender<(Instant, News)>);

impl Desk {
    pub(crate) fn put(&self, news: News) {
        // At the very end there is no judge any more, and the traffic is not judged.
        self.0.send((Instant::now(), news)).ok();
    }
}

/// All reports of one stall, or of one wait for the blocking pool.
#[derive(Clone, Debug)]
pub(crate) struct Sighting {
    pub(crate) subject: Subject,
    pub(crate) certain: bool,
    pub(crate) span: Option<String>,
    pub(crate) task: Option<u64>,
    pub(crate) spawned_at: Option<String>,
    /// From the latest report, as are the cause and the advice.
    pub(crate) site: Option<Site>,
    /// `None` for a wait for the pool, of which there is only one kind.
    pub(crate) cause: Option<Cause>,
    pub(crate) advice: Option<String>,
    /// When it began at the latest, as the first report has it.
    pub(crate) began: Instant,
    /// When it was first reported as something that goes on.
    pub(crate) announced: Option<Instant>,
    /// How long it took, by the last report if there was one.
    pub(crate) measured: Option<Duration>,
    /// How far off that may be, as the report has it.
    pub(crate) duration_error: Duration,
    /// The latest report, as its user sees it.
    pub(crate) text: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Subject {
    Poll,
    Pool,
}

/// What has been seen, and not been judged yet.
#[derive(Debug)]
pub(crate) struct Sightings {
    arrivals: UnboundedReceiver<(Instant, News)>,
    /// By the number that all reports of one stall share.
    seen: BTreeMap<(Subject, u64), Sighting>,
}

impl Sightings {
    pub(crate) fn new() -> (Sightings, Desk) {
        let (sender, arrivals) = unbounded_channel();
        let seen = BTreeMap::new();
        (Sightings { arrivals, seen }, Desk(sender))
    }

    /// Collects reports until all has been said about what was over at `over`. Where a report is
    /// due, it is waited for, whatever else has been reported.
    pub(crate) async fn settle(&mut self, over: Instant, due: Option<&dyn Fn(&Sighting) -> bool>) {
        let mut last_arrival = over;
        loop {
            let has = |is_it: &dyn Fn(&Sighting) -> bool| self.seen.values().any(is_it);
            let is_unfinished = has(&|sighting| sighting.measured.is_none());
            let deadline = if is_unfinished || due.is_some_and(|is_it| !has(is_it)) {
                over + LAST_REPORT
            } else {
                (last_arrival.max(over) + QUIET).min(over + LAST_REPORT)
            };
            match timeout_at(deadline.into(), self.arrivals.recv()).await {
                Ok(Some((at, news))) => {
                    last_arrival = at;
                    self.add(at, news);
                }
                Ok(None) | Err(_) => return,
            }
        }
    }

    /// Everything seen since the last time.
    pub(crate) fn take(&mut self) -> Vec<Sighting> {
        std::mem::take(&mut self.seen).into_values().collect()
    }

    fn add(&mut self, at: Instant, news: News) {
        match news {
            News::Stall(report, begun_at_the_latest) => {
                let text = report.to_string();
                let began = instant(begun_at_the_latest);
                let key = (Subject::Poll, report.id);
                let sighting = self.sighting(key, began, at, report.phase, report.duration);
                sighting.certain |= report.certainty == Certainty::Certain;
                sighting.span = report.span.or(sighting.span.take());
                sighting.task = report.task.or(sighting.task);
                sighting.spawned_at = report.spawned_at.or(sighting.spawned_at.take());
                sighting.duration_error = report.duration_error;
                sighting.site = report.site;
                sighting.cause = Some(report.cause);
                sighting.advice = report.advice;
                sighting.text = text;
            }
            News::PoolWait(report) => {
                let began = instant(report.started_at);
                let key = (Subject::Pool, report.id);
                let sighting = self.sighting(key, began, at, report.phase, report.waited);
                sighting.certain = true;
                sighting.text = report.to_string();
            }
        }
    }

    /// The sighting that a report belongs to, with what all kinds of reports tell.
    fn sighting(
        &mut self,
        key: (Subject, u64),
        began: Instant,
        at: Instant,
        phase: Phase,
        duration: Duration,
    ) -> &mut Sighting {
        let sighting = self.seen.entry(key).or_insert_with(|| Sighting {
            subject: key.0,
            certain: false,
            span: None,
            task: None,
            spawned_at: None,
            site: None,
            cause: None,
            advice: None,
            began,
            announced: None,
            measured: None,
            duration_error: Duration::ZERO,
            text: String::new(),
        });
        if phase == Phase::Ended {
            sighting.measured = Some(duration);
        } else {
            sighting.announced.get_or_insert(at);
        }
        sighting
    }
}

/// The time by the judge's clock. Reports take a while to arrive, so their arrival does not tell.
fn instant(by_the_wall_clock: SystemTime) -> Instant {
    let now = Instant::now();
    let age = by_the_wall_clock.elapsed().unwrap_or_default();
    now.checked_sub(age).unwrap_or(now)
}

impl Sighting {
    /// Whether the report names the host as the cause, and so blames no code.
    pub(crate) fn is_of_the_host(&self) -> bool {
        self.cause.is_some_and(Cause::is_host)
    }

    /// The innermost name in the path of spans.
    pub(crate) fn name(&self) -> Option<&str> {
        self.span.as_deref()?.rsplit(" > ").next()
    }
}
