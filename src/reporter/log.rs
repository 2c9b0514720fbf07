//! Reports as `tracing` events.
//!
//! *Runs on:* `stall-sinks`; `watching` on the thread that starts a watch.
//!
//! An event takes as long as the user's subscriber does. Nothing waits for `stall-sinks`.

use super::CASES;
use super::limiter::Limiter;
use crate::clock::Nanos;
use crate::engine::{Coverage, WatchState, WatchedRuntime};
use crate::probe::{self, SpanRef};
use crate::report::{Certainty, Phase, PoolWaitReport, StallReport};
use crate::turns::NoTurns;
use std::collections::HashMap;
use std::time::Duration;
use tracing::span::Id;

/// The target of all events: filter with `tokio_stall=off`.
const TARGET: &str = "tokio_stall";

/// Decides which reports are logged, and logs them.
#[derive(Debug, Default)]
pub(crate) struct Log {
    limiter: Limiter,
    /// For stalls caused by the host. Many come at once, and must not use up the limit for code.
    host_limiter: Limiter,
    /// The decisions about stalls that go on.
    decided: HashMap<u64, Decision>,
}

#[derive(Clone, Copy, Debug)]
struct Decision {
    shown: bool,
    /// Whether it was old enough for an error. When it becomes so, there is a second decision.
    as_error: bool,
}

/// The parts of a report that decide whether it is logged.
struct Loggable {
    id: u64,
    phase: Phase,
    age: Duration,
    is_of_the_host: bool,
    /// The site that the limit counts.
    site: String,
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
        let stall = Loggable {
            id: report.id,
            phase: report.phase,
            age: report.duration,
            is_of_the_host: report.cause.is_host(),
            site: site_of(report),
        };
        if let Some(suppressed) = self.admit(&stall, watch, now) {
            report.suppressed = suppressed;
            if !crate::os::debugger_attached() {
                let parent = span.and_then(probe::parent_for_events);
                emit(report, parent, watch.settings.error_after);
            }
        }
    }

    /// Logs a wait for the blocking pool, by the ages and the limit of stalls.
    pub(crate) fn pool_wait(&mut self, report: &PoolWaitReport, watch: &WatchState, now: Nanos) {
        let wait = Loggable {
            id: report.id,
            phase: report.phase,
            age: report.waited,
            is_of_the_host: false,
            site: format!("{}\nblocking pool", report.runtime),
        };
        let suppressed = self.admit(&wait, watch, now);
        if let Some(suppressed) = suppressed.filter(|_| !crate::os::debugger_attached()) {
            emit_pool_wait(report, watch.settings.error_after, suppressed);
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
        let as_error = what.age >= settings.error_after;
        if shown || known.is_some_and(|known| !as_error || known.as_error) {
            return shown.then_some(0);
        }
        self.decide(what, as_error, now)
    }

    /// Decides by the limits, and keeps the decision while it goes on.
    fn decide(&mut self, what: &Loggable, as_error: bool, now: Nanos) -> Option<u64> {
        let limiter = if what.is_of_the_host {
            &mut self.host_limiter
        } else {
            &mut self.limiter
        };
        let admitted = limiter.admit(&format!("{}\n{as_error}", what.site), now);
        let shown = admitted.is_some();
        if what.phase != Phase::Ended {
            if self.decided.len() >= CASES {
                self.decided.clear();
            }
            self.decided.insert(what.id, Decision { shown, as_error });
        }
        admitted
    }
}

/// The site that the limit counts. The span comes first: the site on the stack may follow later.
fn site_of(report: &StallReport) -> String {
    let site = match (&report.span, &report.site) {
        (Some(span), _) => span.clone(),
        (None, Some(site)) => site.to_string(),
        (None, None) => String::new(),
    };
    format!("{}\n{site}", report.runtime)
}

fn emit(report: &StallReport, parent: Option<Id>, error_after: Duration) {
    // A level is part of an event's static description, so each needs its own.
    macro_rules! event {
        ($level:ident) => {
            tracing::$level!(
                target: TARGET,
                parent: parent,
                id = report.id,
                phase = ?report.phase,
                certainty = ?report.certainty,
                runtime = report.runtime,
                worker = report.worker,
                site = report.site.as_ref().map(tracing::field::display),
                dependency = report.dependency,
                cause = report.cause.as_str(),
                span = report.span,
                trace_id = report.trace.as_ref().map(|trace| trace.trace_id.as_str()),
                span_id = report.trace.as_ref().map(|trace| trace.span_id.as_str()),
                task = report.task,
                spawned_at = report.spawned_at,
                duration_seconds = report.duration.as_secs_f64(),
                cpu_seconds = report.time.cpu.as_secs_f64(),
                asleep_seconds = report.time.asleep.as_secs_f64(),
                host_seconds = report.time.host().as_secs_f64(),
                asleep_in = report.asleep_in,
                driver_frozen_seconds = report.driver_frozen.map(|frozen| frozen.as_secs_f64()),
                victims = report.victims.as_ref().map(|victims| victims.requests),
                victims_seconds = report.victims.as_ref().map(|victims| victims.total.as_secs_f64()),
                advice = report.advice,
                suppressed = report.suppressed,
                "{}",
                report.headline()
            )
        };
    }
    match report.certainty {
        Certainty::Likely => event!(info),
        Certainty::Certain if report.duration >= error_after => event!(error),
        Certainty::Certain => event!(warn),
    }
}

fn emit_pool_wait(report: &PoolWaitReport, error_after: Duration, suppressed: u64) {
    macro_rules! event {
        ($level:ident) => {
            tracing::$level!(
                target: TARGET,
                id = report.id,
                phase = ?report.phase,
                runtime = report.runtime,
                site = report.site().map(tracing::field::display),
                waited_seconds = report.waited.as_secs_f64(),
                suppressed,
                "{report}"
            )
        };
    }
    if report.waited >= error_after {
        event!(error);
    } else {
        event!(warn);
    }
}

/// Logs once what is watched, so that silence is not mistaken for health.
pub(crate) fn watching(runtime: &WatchedRuntime, coverage: &Coverage) {
    tracing::info!(
        target: TARGET,
        runtime = runtime.name,
        workers = coverage.workers,
        all_polls = coverage.all_polls,
        spans = coverage.spans,
        thread_evidence = coverage.thread_evidence,
        stacks = coverage.stacks,
        other_runtimes = coverage.other_runtimes.len(),
        turns = coverage.turns,
        no_turns = coverage.no_turns,
        threshold_seconds = runtime.rules.threshold.as_secs_f64(),
        "watching {coverage}"
    );
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

/// Logs that there are runtimes that nobody watches.
pub(super) fn other_runtimes(runtime: &WatchedRuntime) {
    let coverage = Coverage::of(runtime);
    if let Some(gap) = coverage.of_other_runtimes() {
        tracing::warn!(
            target: TARGET,
            other_runtimes = coverage.other_runtimes.len(),
            "{gap}"
        );
    }
}

/// Logs that a runtime's turns are not counted any more.
pub(super) fn turns_lost(runtime: &WatchedRuntime, why: NoTurns) {
    if !runtime.watch.settings.log {
        return;
    }
    tracing::warn!(
        target: TARGET,
        runtime = runtime.name,
        no_turns = why.as_str(),
        "turns of {:?} are not counted: {}; polls without a mark are told apart only if they sleep",
        runtime.name,
        why.as_str(),
    );
}
