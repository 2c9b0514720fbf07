//! Reports as `tracing` events: a line when a stall has begun, one if its site is found later, one
//! if it becomes an error, one at its end.
//!
//! *Runs on:* `stall-sinks`; news of a start and of a wrong use on the user's threads.
//!
//! An event takes as long as the user's subscriber does. Nothing waits for `stall-sinks`. The text
//! of an event is for people, and its fields are for machines.

use super::CASES;
use super::early::Early;
use super::limiter::Limiter;
use super::unheard::Unheard;
use super::unlogged::Unlogged;
use crate::clock::Nanos;
use crate::engine::{
    Coverage, ENDLESS_AFTER, Hearing, Settings, TARGET, WatchState, WatchedRuntime,
};
use crate::probe::{self, SpanRef};
use crate::report::{
    Certainty, Missing, NoStack, Phase, PoolWaitReport, StallReport, Victims, write_to_stderr,
};
use crate::turns::NoTurns;
use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::time::Duration;
use tracing::Level;
use tracing::span::Id;

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
    /// When it becomes an error, there is a second decision.
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

/// The reasons why a report without a site has none.
fn missing(report: &StallReport) -> Option<String> {
    let is_final = |missing: &&Missing| {
        matches!(
            missing,
            Missing::NoOwnCode
                | Missing::NoDebugInfo
                | Missing::ModuleReplaced
                | Missing::ModuleUnreadable
                | Missing::SplitDebugInfo
                | Missing::LargeDebugInfo
        ) || matches!(missing, Missing::Stack(why) if *why != NoStack::NotYet)
    };
    let missing: Vec<String> = report
        .missing
        .iter()
        .filter(is_final)
        .map(ToString::to_string)
        .collect();
    (report.site.is_none() && !missing.is_empty()).then(|| missing.join("; "))
}

/// The text for standard error, which has no fields beside it.
fn with_fields(text: String, report: &StallReport) -> String {
    let id = report.id;
    match missing(report) {
        Some(why) => format!("{text} (stall #{id}; {why})"),
        None => format!("{text} (stall #{id})"),
    }
}

/// Seconds, to the microsecond.
fn seconds(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1e6
}

/// Seconds of a part of a stall, to a tenth of a millisecond: smaller parts say nothing.
fn part(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e4).round() / 1e4
}

fn emit(report: &StallReport, parent: Option<Id>, level: Level, text: &str) {
    let frozen = report.driver_frozen.filter(|frozen| !frozen.is_zero());
    let victims = report.victims.as_ref();
    let held_up = victims.filter(|victims| victims.requests > 0);
    let number = |count: fn(&Victims) -> u64| victims.map(count).filter(|count| *count > 0);
    let asleep_in = report.asleep_in.as_deref();
    let time = report.time;
    // A level is part of an event's static description, so each needs its own.
    macro_rules! event {
        ($level:ident) => {
            tracing::$level!(
                target: TARGET,
                parent: parent,
                id = report.id,
                phase = report.phase.as_str(),
                certainty = report.certainty.as_str(),
                runtime = report.runtime,
                worker = report.worker,
                cause = report.cause.as_str(),
                site = report.site.as_ref().map(tracing::field::display),
                dependency = report.dependency,
                in_span = report.span,
                trace_id = report.trace.as_ref().map(|trace| trace.trace_id.as_str()),
                span_id = report.trace.as_ref().map(|trace| trace.span_id.as_str()),
                task = report.task,
                spawned_at = report.spawned_at,
                duration_seconds = seconds(report.duration),
                cpu_seconds = part(time.cpu),
                asleep_seconds = part(time.asleep),
                host_seconds = part(time.host()),
                asleep_in = asleep_in.filter(|_| time.asleep * 20 >= report.duration),
                driver_frozen_seconds = frozen.map(part),
                victims = held_up.map(|victims| victims.requests),
                victims_seconds = held_up.map(|victims| part(victims.total)),
                victims_waiting = number(|victims| victims.waiting),
                victims_frozen = number(|victims| victims.frozen),
                missing = missing(report),
                suppressed = Some(report.suppressed).filter(|stalls| *stalls > 0),
                "{text}"
            )
        };
    }
    match level {
        Level::ERROR => event!(error),
        Level::WARN => event!(warn),
        _ => event!(info),
    }
}

fn emit_pool_wait(report: &PoolWaitReport, level: Level, suppressed: u64) {
    macro_rules! event {
        ($level:ident) => {
            tracing::$level!(
                target: TARGET,
                id = report.id,
                phase = report.phase.as_str(),
                runtime = report.runtime,
                site = report.site().map(tracing::field::display),
                waited_seconds = seconds(report.waited),
                suppressed = Some(suppressed).filter(|waits| *waits > 0),
                "{report}"
            )
        };
    }
    match level {
        Level::ERROR => event!(error),
        _ => event!(warn),
    }
}

/// Logs once what is watched, so that silence is not mistaken for health.
pub(crate) fn watching(runtime: &WatchedRuntime, coverage: &Coverage) {
    tracing::info!(
        target: TARGET,
        runtime = runtime.name,
        workers = coverage.workers,
        all_polls = coverage.all_polls,
        span_names = coverage.spans,
        thread_evidence = coverage.thread_evidence,
        stacks = coverage.stacks,
        lines = coverage.lines,
        no_lines = coverage.no_lines,
        log = coverage.log,
        other_runtimes = coverage.other_runtimes.len(),
        turns = coverage.turns,
        no_turns = coverage.no_turns,
        threshold_seconds = runtime.rules.threshold.as_secs_f64(),
        "watching {coverage}"
    );
}

/// Logs a warning about the way in which a watch was made, on the user's thread. Where the log is
/// not heard, it goes to standard error.
pub(crate) fn warn_of_use(text: &str) {
    tracing::warn!(target: TARGET, "{text}");
    if matches!(Hearing::last(), Hearing::NoSubscriber | Hearing::Hidden) {
        write_to_stderr(text);
    }
}

/// Logs that a runtime is not watched, since the environment has switched the watch off.
pub(crate) fn switched_off(coverage: &Coverage) {
    tracing::info!(target: TARGET, runtime = coverage.runtime, "{coverage}");
}

/// Logs that others than programs of this machine may read stacks and spans.
#[cfg(feature = "serve")]
pub(crate) fn served_to_all(address: std::net::SocketAddr) {
    tracing::warn!(
        target: TARGET,
        %address,
        "stacks and spans are served at {address} to all who reach it: set \
         `Builder::serve_token`, or choose a loopback address"
    );
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::report::{Cause, example};

    #[test]
    fn a_line_on_standard_error_has_the_number_and_the_reason_without_a_site() {
        let mut report = example();
        report.id = 3;
        let line = |report: &StallReport| with_fields("blocked".to_owned(), report);
        assert_eq!(line(&report), "blocked (stall #3)");
        report.missing = vec![Missing::NoDebugInfo];
        let why = Missing::NoDebugInfo;
        assert_eq!(line(&report), format!("blocked (stall #3; {why})"));
    }
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
