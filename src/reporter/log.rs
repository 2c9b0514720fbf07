//! Decides which reports are logged: a line when a stall has begun, one if its site is found later,
//! one if it becomes an error, one at its end.
//!
//! *Runs on:* `stall-sinks`, for which nothing waits.

use super::CASES;
use super::early::Early;
use super::event::{emit, emit_pool_wait, seconds, with_fields};
use super::limiter::Limiter;
use super::unheard::Unheard;
use super::unlogged::Unlogged;
use crate::clock::Nanos;
use crate::engine::{Coverage, ENDLESS_AFTER, Settings, TARGET, WatchState, WatchedRuntime};
use crate::probe::{self, SpanRef};
use crate::report::{Certainty, Missing, NoStack, Phase, PoolWaitReport, StallReport};
use crate::turns::NoTurns;
use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::time::Duration;
use tracing::Level;

/// Decides which reports are logged, and logs them.
#[derive(Debug, Default)]
pub(crate) struct Log {
    limiter: Limiter,
    /// For stalls caused by the host. Many come at once, and must not use up the limit for code.
    host_limiter: Limiter,
    /// The decisions about stalls that go on.
    decided: HashMap<u64, Decision>,
    unheard: Unheard,
    early: Early,
    unlogged: Unlogged,
}

/// The decision about one stall, and the last event of it.
#[derive(Clone, Copy, Debug)]
struct Decision {
    shown: bool,
    /// The worst so far.
    level: Level,
    has_site: bool,
    /// Which limit it was counted under.
    is_of_the_host: bool,
    /// The age at the last event.
    age: Duration,
    /// The advice that was given last, by its hash.
    advice: Option<u64>,
}

/// The parts of a report that decide whether it is logged.
struct Loggable {
    id: u64,
    phase: Phase,
    age: Duration,
    level: Level,
    is_of_the_host: bool,
    has_site: bool,
    /// The place that the limit counts.
    place: String,
}

impl Loggable {
    /// The limit counts errors by themselves.
    fn key(&self) -> String {
        let is_error = self.level == Level::ERROR;
        format!("{}\n{is_error}", self.place)
    }

    /// Whether the limit would count it differently now: it has become an error, or its site has
    /// been found.
    fn is_another_than(&self, known: Decision) -> bool {
        let is_error = |level| level == Level::ERROR;
        is_error(self.level) && !is_error(known.level) || self.has_site && !known.has_site
    }
}

impl Log {
    /// Logs a report, unless it is too short, too early or over the limit. The event is in the span
    /// of the poll as long as that is open, so it has the fields and the trace of the request.
    pub(crate) fn stall(
        &mut self,
        report: &mut StallReport,
        span: Option<SpanRef>,
        watch: &WatchState,
        now: Nanos,
    ) {
        let settings = &watch.settings;
        let stall = Loggable {
            id: report.id,
            phase: report.phase,
            age: report.duration,
            level: level(report, settings.error_after),
            is_of_the_host: report.cause.is_host(),
            has_site: report.site.is_some(),
            place: place_of(report),
        };
        if settings.log && settings.is_in_grace(watch.started_at, now) {
            let text = || text_of(report, report.advice.as_deref());
            self.early.note(report, settings, text);
        } else {
            self.tell_of_early_stalls();
        }
        let advised = self.decided.get(&report.id).and_then(|it| it.advice);
        let Some(suppressed) = self.admit(&stall, watch, now) else {
            return self.leave_out(report, settings, watch.started_at, now);
        };
        report.suppressed = suppressed;
        let advice = report.advice.as_deref();
        let advice = advice.filter(|text| !may_change(report) && advised != Some(hash(text)));
        if let (Some(text), Some(it)) = (advice, self.decided.get_mut(&report.id)) {
            it.advice = Some(hash(text));
        }
        if crate::os::debugger_attached() {
            return;
        }
        let parent = span.and_then(probe::parent_for_events);
        let text = text_of(report, advice);
        emit(report, parent, stall.level, &text);
        if settings.on_stall.is_none() {
            self.unheard.tell(stall.level, &with_fields(text, report));
        }
    }

    /// Counts a stall that is not logged, and logs their sum if it is worth it.
    fn leave_out(
        &mut self,
        report: &StallReport,
        settings: &Settings,
        started_at: Nanos,
        now: Nanos,
    ) {
        if !settings.log || settings.is_in_grace(started_at, now) {
            return;
        }
        let sum = self.unlogged.note(report, now);
        let Some(sum) = sum.filter(|_| !crate::os::debugger_attached()) else {
            return;
        };
        let most = sum.most.as_ref();
        tracing::warn!(
            target: TARGET,
            unlogged_stalls = sum.stalls,
            unlogged_seconds = seconds(sum.total),
            runtime = most.map(|most| most.runtime.as_str()),
            in_span = most.and_then(|most| most.span.as_deref()),
            site = most.and_then(|most| most.site.as_deref()),
            "{sum}"
        );
        if settings.on_stall.is_none() {
            self.unheard.tell(Level::WARN, &sum.to_string());
        }
    }

    /// Logs a wait for the blocking pool, by the ages and the limit of stalls.
    pub(crate) fn pool_wait(&mut self, report: &PoolWaitReport, watch: &WatchState, now: Nanos) {
        let is_error = report.waited >= watch.settings.error_after;
        let wait = Loggable {
            id: report.id,
            phase: report.phase,
            age: report.waited,
            level: if is_error { Level::ERROR } else { Level::WARN },
            is_of_the_host: false,
            has_site: false,
            place: format!("{}\nblocking pool", report.runtime),
        };
        let suppressed = self.admit(&wait, watch, now);
        if let Some(suppressed) = suppressed.filter(|_| !crate::os::debugger_attached()) {
            emit_pool_wait(report, wait.level, suppressed);
            if watch.settings.on_pool_wait.is_none() {
                self.unheard.tell(wait.level, &report.to_string());
            }
        }
    }

    /// Logs that there are runtimes that nobody watches.
    pub(super) fn other_runtimes(&mut self, runtime: &WatchedRuntime) {
        let coverage = Coverage::of(runtime);
        if let Some(gap) = coverage.of_other_runtimes() {
            tracing::warn!(
                target: TARGET,
                other_runtimes = coverage.other_runtimes.len(),
                "{gap}"
            );
            self.unheard.tell(Level::WARN, &gap);
        }
    }

    /// Logs that a runtime's turns are not counted any more.
    pub(super) fn turns_lost(&mut self, runtime: &WatchedRuntime, why: NoTurns) {
        if !runtime.watch.settings.log {
            return;
        }
        let why = why.as_str();
        let text = format!(
            "turns of {:?} are not counted: {why}; polls without a mark are told apart only if \
             they sleep",
            runtime.name
        );
        tracing::warn!(target: TARGET, runtime = runtime.name, no_turns = why, "{text}");
        self.unheard.tell(Level::WARN, &text);
    }

    /// Logs once how many stalls came too early to be logged.
    pub(super) fn tell_of_early_stalls(&mut self) {
        let early = std::mem::take(&mut self.early);
        if early.stalls == 0 {
            return;
        }
        let text = early.to_string();
        tracing::info!(
            target: TARGET,
            early_stalls = early.stalls,
            longest_seconds = seconds(early.longest),
            "{text}"
        );
        if !early.is_heard {
            self.unheard.tell(Level::INFO, &text);
        }
    }

    /// Returns how many have been suppressed before, if this one is to be logged.
    fn admit(&mut self, what: &Loggable, watch: &WatchState, now: Nanos) -> Option<u64> {
        let settings = &watch.settings;
        let known = self.decided.get(&what.id).copied();
        if what.phase == Phase::Ended {
            self.decided.remove(&what.id);
        }
        let too_early = settings.is_in_grace(watch.started_at, now);
        let worth_it = what.age >= settings.warn_after && !too_early;
        let shown = known.is_some_and(|known| known.shown);
        if !settings.log || !worth_it && !shown {
            return None;
        }
        match known {
            Some(known) if shown => self.again(what, known, now),
            Some(known) if what.is_another_than(known) => {
                self.limiter_for(known.is_of_the_host).take_back();
                self.decide(what, now)
            }
            Some(_) => None,
            None => self.decide(what, now),
        }
    }

    fn limiter_for(&mut self, is_of_the_host: bool) -> &mut Limiter {
        match is_of_the_host {
            true => &mut self.host_limiter,
            false => &mut self.limiter,
        }
    }

    /// Whether a stall that is in the log gets another event: at its end, when its site has been
    /// found, when it becomes an error or certain, and at doubled ages from ten seconds on.
    fn again(&mut self, what: &Loggable, known: Decision, now: Nanos) -> Option<u64> {
        let is_old = what.age >= ENDLESS_AFTER && what.age >= known.age * 2;
        let is_worse = what.level < known.level;
        let is_found = what.has_site && !known.has_site;
        // The site may have been found since the first event.
        self.limiter_for(what.is_of_the_host).note(&what.key(), now);
        if what.phase == Phase::Ended {
            return Some(0);
        }
        (is_worse || is_old || is_found).then(|| {
            let decision = Decision {
                level: known.level.min(what.level),
                age: what.age,
                has_site: known.has_site || what.has_site,
                ..known
            };
            self.decided.insert(what.id, decision);
            0
        })
    }

    /// Decides by the limits, and keeps the decision while it goes on.
    fn decide(&mut self, what: &Loggable, now: Nanos) -> Option<u64> {
        let admitted = self
            .limiter_for(what.is_of_the_host)
            .admit(&what.key(), now);
        if what.phase != Phase::Ended {
            if self.decided.len() >= CASES {
                self.decided.clear();
            }
            let decision = Decision {
                shown: admitted.is_some(),
                level: what.level,
                has_site: what.has_site,
                is_of_the_host: what.is_of_the_host,
                age: what.age,
                advice: None,
            };
            self.decided.insert(what.id, decision);
        }
        admitted
    }
}

/// The place that the limit counts: runtime, function, span and cause. A stall that computes is
/// found at another line of its function each time.
fn place_of(report: &StallReport) -> String {
    let site = report.site.as_ref().map(|site| site.function.clone());
    let parts = [
        Some(report.runtime.clone()),
        site.or_else(|| report.dependency.clone()),
        report.span_names(),
        Some(report.cause.as_str().to_owned()),
    ];
    parts.map(Option::unwrap_or_default).join("\n")
}

fn level(report: &StallReport, error_after: Duration) -> Level {
    match report.certainty {
        Certainty::Likely => Level::INFO,
        Certainty::Certain if report.duration >= error_after => Level::ERROR,
        Certainty::Certain => Level::WARN,
    }
}

/// The text of an event: the headline, and the advice if it is new.
fn text_of(report: &StallReport, advice: Option<&str>) -> String {
    match advice {
        Some(advice) => format!("{}. {advice}", report.headline()),
        None => report.headline().to_string(),
    }
}

/// Whether there may still be a better advice. Without a stack it is that of a call. A stall that
/// has waited for a CPU may yet be the code's.
fn may_change(report: &StallReport) -> bool {
    let is_to_come =
        |missing: &Missing| matches!(missing, Missing::Stack(NoStack::NotYet | NoStack::Busy));
    let awaits_a_stack = report.missing.iter().any(is_to_come);
    report.phase != Phase::Ended && (awaits_a_stack || report.cause.is_host())
}

fn hash(text: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    hasher.finish()
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::report::{Cause, example};

    #[test]
    fn an_advice_waits_for_a_better_one() {
        let mut report = example();
        report.phase = Phase::Began;
        assert!(!may_change(&report));
        report.missing = vec![Missing::Stack(NoStack::NotYet)];
        assert!(may_change(&report), "a stack is to come");
        report.missing.clear();
        report.cause = Cause::Contention;
        assert!(may_change(&report), "a wait for a CPU so far");
        report.phase = Phase::Ended;
        report.missing = vec![Missing::Stack(NoStack::NotYet)];
        assert!(!may_change(&report), "nothing is to come after the end");
    }
}
