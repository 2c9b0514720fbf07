//! Reports as `tracing` events, and the last words of a stall that does not end.
//!
//! *Runs on:* the thread `stall-sinks`; `write_last_words` also on a thread made for it, `watching` on the one that
//! starts a watch.
//! *Here:* may wait for whatever the user's subscriber waits for. Nothing depends on this thread.

use super::CASES;
use super::limiter::Limiter;
use crate::clock::Nanos;
use crate::engine::{Coverage, WatchState, WatchedRuntime};
use crate::report::{Certainty, Phase, PoolWaitReport, StallReport};
use crate::turns::NoTurns;
use std::collections::HashMap;
use std::time::Duration;

/// The target of all events: filter with `tokio_stall=off`.
const TARGET: &str = "tokio_stall";

/// What of the stalls is logged.
#[derive(Debug, Default)]
pub(crate) struct Log {
    limiter: Limiter,
    /// Trouble of the host comes in swarms; it must not use up what is left for code.
    host_limiter: Limiter,
    /// What was decided about stalls that go on.
    decided: HashMap<u64, Decision>,
}

#[derive(Clone, Copy, Debug)]
struct Decision {
    shown: bool,
    /// It was an error by then. A stall that grows into one is decided about once more.
    as_error: bool,
}

impl Log {
    /// Logs a report, unless it is too short, too early or too much.
    pub(crate) fn stall(&mut self, report: &mut StallReport, watch: &WatchState, now: Nanos) {
        let settings = &watch.settings;
        let known = self.decided.get(&report.id).copied();
        if report.phase == Phase::Ended {
            self.decided.remove(&report.id);
        }
        let too_early = settings.is_in_grace(watch.started_at, now);
        let worth_it = report.duration >= settings.warn_after && !too_early;
        let shown = known.is_some_and(|known| known.shown);
        if !settings.log || !worth_it && !shown {
            return;
        }
        let as_error = report.duration >= settings.error_after;
        if !shown && known.is_none_or(|known| as_error && !known.as_error) {
            // The site of a stall may come to be known later than its span.
            let site = match (&report.span, &report.site) {
                (Some(span), _) => span.clone(),
                (None, Some(site)) => site.to_string(),
                (None, None) => String::new(),
            };
            let site = format!("{}\n{site}\n{as_error}", report.runtime);
            let limiter = if report.cause.is_host() {
                &mut self.host_limiter
            } else {
                &mut self.limiter
            };
            let admitted = limiter.admit(&site, now);
            report.suppressed = admitted.unwrap_or_default();
            if report.phase != Phase::Ended {
                let shown = admitted.is_some();
                if self.decided.len() >= CASES {
                    self.decided.clear();
                }
                self.decided.insert(report.id, Decision { shown, as_error });
            }
            if admitted.is_none() {
                return;
            }
        } else if !shown {
            return;
        }
        if !crate::os::debugger_attached() {
            emit(report, settings.error_after);
        }
    }

    /// Logs a wait for the blocking pool, under the same limits.
    pub(crate) fn pool_wait(&mut self, report: &PoolWaitReport, watch: &WatchState, now: Nanos) {
        let settings = &watch.settings;
        if !settings.log
            || settings.is_in_grace(watch.started_at, now)
            || report.phase == Phase::Ongoing
        {
            return;
        }
        let site = format!("{}\nblocking pool, {:?}", report.runtime, report.phase);
        if self.limiter.admit(&site, now).is_some() && !crate::os::debugger_attached() {
            tracing::warn!(
                target: TARGET,
                id = report.id,
                runtime = report.runtime,
                waited_seconds = report.waited.as_secs_f64(),
                "{report}"
            );
        }
    }
}

fn emit(report: &StallReport, error_after: Duration) {
    // A level is part of an event's static description, so each needs its own.
    macro_rules! event {
        ($level:ident) => {
            tracing::$level!(
                target: TARGET,
                id = report.id,
                phase = ?report.phase,
                certainty = ?report.certainty,
                runtime = report.runtime,
                worker = report.worker,
                site = report.site.as_ref().map(tracing::field::display),
                cause = report.cause.as_str(),
                span = report.span,
                task = report.task,
                spawned_at = report.spawned_at,
                duration_seconds = report.duration.as_secs_f64(),
                cpu_seconds = report.time.cpu.as_secs_f64(),
                asleep_seconds = report.time.asleep.as_secs_f64(),
                host_seconds = report.time.host().as_secs_f64(),
                asleep_in = report.asleep_in,
                driver_frozen_seconds = report.driver_frozen.map(|frozen| frozen.as_secs_f64()),
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

/// Says once what is watched, so that silence is not mistaken for health.
pub(crate) fn watching(runtime: &WatchedRuntime, coverage: &Coverage) {
    tracing::info!(
        target: TARGET,
        runtime = runtime.name,
        workers = coverage.workers,
        all_polls = coverage.all_polls,
        spans = coverage.spans,
        thread_evidence = coverage.thread_evidence,
        stacks = coverage.stacks,
        turns = coverage.turns,
        no_turns = coverage.no_turns,
        threshold_seconds = runtime.rules.threshold.as_secs_f64(),
        "watching {coverage}"
    );
}

/// Says that a runtime's turns are not counted any more.
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
