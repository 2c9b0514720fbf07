//! The detector's events of `tracing`, each a text for people with fields for machines.
//!
//! *Runs on:* `stall-sinks`; news of a start and of a wrong use on the user's threads.
//!
//! An event takes as long as the user's subscriber does. docs/log-format.md has the fields.

use crate::engine::{Coverage, Hearing, TARGET, WatchedRuntime};
use crate::report::{Missing, NoStack, PoolWaitReport, StallReport, Victims, write_to_stderr};
use std::time::Duration;
use tracing::Level;
use tracing::span::Id;

/// The reasons why a report without a site has none.
fn why_no_site(report: &StallReport) -> Option<String> {
    let is_reason = |missing: &&Missing| {
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
        .filter(is_reason)
        .map(ToString::to_string)
        .collect();
    (report.site.is_none() && !missing.is_empty()).then(|| missing.join("; "))
}

/// The text for standard error, which has no fields beside it.
pub(super) fn with_fields(text: String, report: &StallReport) -> String {
    let id = report.id;
    match why_no_site(report) {
        Some(why) => format!("{text} (stall #{id}; {why})"),
        None => format!("{text} (stall #{id})"),
    }
}

/// Seconds, to the microsecond.
pub(super) fn seconds(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1e6
}

/// Seconds of a part of a stall, to a tenth of a millisecond: smaller parts say nothing.
fn part(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e4).round() / 1e4
}

/// Logs a stall, in the span that blocks if it is open in this subscriber.
pub(super) fn emit(report: &StallReport, parent: Option<Id>, level: Level, text: &str) {
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
                missing = why_no_site(report),
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

/// Logs a wait for the blocking pool.
pub(super) fn emit_pool_wait(report: &PoolWaitReport, level: Level, suppressed: u64) {
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
    let hearing = match Hearing::last() {
        // No thread of the detector has asked. This one has logged.
        Hearing::Unknown => Hearing::here(),
        known => known,
    };
    if matches!(hearing, Hearing::NoSubscriber | Hearing::Hidden) {
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
    use crate::report::example;

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
}
