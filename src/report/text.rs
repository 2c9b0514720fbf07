//! The text of a report: one line for logs, several for people.
//!
//! *Runs on:* every thread that formats a report, mostly `stall-sinks`.

use super::cause::Cause;
use super::certainty::Certainty;
use super::frame::{Frame, Origin, StackSample};
use super::missing::Missing;
use super::stack_lines::StackLines;
use super::stall::{Phase, StallReport};
use std::fmt::{self, Write as _};
use std::time::Duration;

/// The first line of a report, as `Display` writes it; made by [`StallReport::headline`].
#[derive(Clone, Copy, Debug)]
pub struct Headline<'a>(&'a StallReport);

impl<'a> Headline<'a> {
    pub(crate) fn of(report: &'a StallReport) -> Headline<'a> {
        Headline(report)
    }

    /// The part of the time that is the cause, and the longest part if that is another one. `None`
    /// if neither is known: a longest part of less than half of the time says little.
    fn reason(&self) -> Option<String> {
        let report = self.0;
        let parts = Why(report).parts();
        let cause = parts.iter().find(|part| part.is_cause_of(report));
        let most = |part: &&TimePart| part.time * 2 >= report.time.total();
        match (cause, parts.first().filter(most)) {
            (Some(cause), Some(most)) if cause.time < most.time => {
                Some(format!("{}, mostly {}", cause.what, most.what))
            }
            (Some(only), _) | (None, Some(only)) => Some(only.what.clone()),
            (None, None) => None,
        }
    }

    fn verb(&self) -> &'static str {
        let is_over = self.0.phase == Phase::Ended;
        match (self.0.certainty, self.0.phase) {
            _ if self.0.cause.is_host() && is_over => "was held up by the host for",
            // It may still turn out to be the code's.
            _ if self.0.cause.is_host() => "held for",
            (Certainty::Certain, Phase::Ended) => "was blocked for",
            (Certainty::Certain, _) => "blocked for",
            (Certainty::Likely, Phase::Ended) => "was probably blocked for",
            (Certainty::Likely, _) => "probably blocked for",
        }
    }
}

impl fmt::Display for Headline<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let StallReport {
            worker, runtime, ..
        } = self.0;
        let (blocked_for, duration) = (self.verb(), Human(self.0.duration));
        write!(f, "worker {worker} of {runtime:?} {blocked_for} {duration}")?;
        if self.0.phase != Phase::Ended {
            f.write_str(" so far")?;
        }
        if let Some(reason) = self.reason() {
            write!(f, ": {reason}")?;
        }
        if let Some(site) = &self.0.site {
            write!(f, ", {site}")?;
        } else if let Some(dependency) = &self.0.dependency {
            write!(f, ", in {dependency}")?;
        }
        if let Some(span) = &self.0.span {
            write!(f, ", in {}", Plain(span))?;
        }
        match &self.0.victims {
            Some(victims) if victims.requests > 0 => write!(f, "; {}", victims.in_short()),
            _ => Ok(()),
        }
    }
}

/// Writes several lines. A stack has the frames of own code and the call that it made; `{:#}`
/// writes all frames.
impl fmt::Display for StallReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write_title(f)?;
        self.write_blame(f)?;
        self.write_driver(f)?;
        if let Some(victims) = self.victims.as_ref().filter(|victims| victims.is_any()) {
            write!(f, "\n  victims   {victims}")?;
        }
        if let Some(stack) = self.shown_stack() {
            StackLines(stack, self.stacks.len()).fmt(f)?;
        }
        if let Some((module, build_id)) = self.unnamed_module() {
            write!(f, "\n  build id  {build_id} ({module})")?;
        }
        self.write_advice(f)?;
        self.write_trace(f)?;
        self.write_task(f)?;
        self.write_thread(f)?;
        self.write_gaps(f)
    }
}

/// The parts of the text, in its order. Each begins with the end of the line before it.
impl StallReport {
    fn write_title(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            id,
            runtime,
            worker,
            ..
        } = self;
        write!(f, "stall #{id}   runtime {runtime:?}, worker {worker}")?;
        write!(f, ", {}", Human(self.duration))?;
        if self.phase != Phase::Ended {
            f.write_str(" so far")?;
        }
        if self.duration_error >= Duration::from_micros(100) {
            write!(f, " (± {})", Human(self.duration_error))?;
        }
        f.write_str(match self.certainty {
            Certainty::Certain => ", certain",
            Certainty::Likely if self.missing.contains(&Missing::OnePoll) => {
                ", likely: it may be several polls"
            }
            Certainty::Likely => ", likely: the poll may have left its worker",
        })
    }

    fn write_blame(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(site) = &self.site {
            write!(f, "\n  where     {site}")?;
        } else if let Some(dependency) = &self.dependency {
            write!(f, "\n  library   {dependency}")?;
        }
        if let Some(span) = &self.span {
            write!(f, "\n  in        {}", Plain(span))?;
        }
        let why = Why(self).to_string();
        if why.is_empty() {
            return Ok(());
        }
        write!(f, "\n  why       {}: {why}", self.cause)?;
        if self.cause.is_host() {
            f.write_str(" (mostly the host)")?;
        }
        Ok(())
    }

    fn write_driver(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(frozen) = self.driver_frozen.filter(|frozen| !frozen.is_zero()) else {
            return Ok(());
        };
        let (was, so_far) = match self.phase {
            Phase::Ended => ("was ", ""),
            _ => ("", " so far"),
        };
        let frozen = Human(frozen);
        write!(
            f,
            "\n  driver    {was}frozen for {frozen}{so_far}: no socket and no timer of this runtime moved"
        )
    }

    fn write_advice(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(advice) = &self.advice {
            write!(f, "\n  do        {advice}")?;
        }
        if self.seen_here > 1 {
            let (times, lost) = (self.seen_here, Human(self.lost_here));
            write!(f, "\n  seen      {times} times here, {lost} in all")?;
        }
        Ok(())
    }

    fn write_task(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.task, &self.spawned_at) {
            (Some(task), Some(place)) => write!(f, "\n  task      {task}, spawned at {place}"),
            (Some(task), None) => write!(f, "\n  task      {task}"),
            (None, _) => Ok(()),
        }
    }

    fn write_trace(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.trace {
            Some(trace) => write!(
                f,
                "\n  trace     {}, span {}",
                trace.trace_id, trace.span_id
            ),
            None => Ok(()),
        }
    }

    fn write_thread(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.thread.as_deref().map(Plain), self.tid) {
            (Some(thread), Some(tid)) => write!(f, "\n  thread    {thread} ({tid})"),
            (Some(thread), None) => write!(f, "\n  thread    {thread}"),
            (None, _) => Ok(()),
        }
    }

    fn write_gaps(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for missing in &self.missing {
            write!(f, "\n  missing   {missing}")?;
        }
        match self.suppressed {
            0 => Ok(()),
            stalls => write!(f, "\n  unlogged  {stalls} stalls since the last one shown"),
        }
    }
}

impl StallReport {
    /// The module of the first frame without a name, and its build id. With both, names can be
    /// found elsewhere.
    fn unnamed_module(&self) -> Option<(&str, &str)> {
        let frames = &self.shown_stack()?.frames;
        let is_unnamed =
            |frame: &&Frame| frame.function.is_none() && frame.origin != Origin::System;
        let frame = frames.iter().find(is_unnamed)?;
        frame.module.as_deref().zip(frame.build_id.as_deref())
    }

    fn shown_stack(&self) -> Option<&StackSample> {
        self.stacks.get(self.representative_stack?)
    }
}

/// The known parts of a stall's time that are long enough to be mentioned, the longest first.
struct Why<'a>(&'a StallReport);

/// One part of a stall's time, in words.
struct TimePart {
    kind: Spent,
    time: Duration,
    what: String,
}

impl TimePart {
    fn is_cause_of(&self, report: &StallReport) -> bool {
        match waits_for_the_host(report) {
            true => self.kind == Spent::Asleep,
            false => Spent::of(report.cause) == Some(self.kind),
        }
    }
}

/// The kinds of time that a cause can be.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Spent {
    Computing,
    Asleep,
    WithoutCpu,
    Throttled,
    Stopped,
}

impl Spent {
    fn of(cause: Cause) -> Option<Spent> {
        match cause {
            Cause::Cpu => Some(Spent::Computing),
            Cause::Blocked(_) => Some(Spent::Asleep),
            Cause::Contention => Some(Spent::WithoutCpu),
            Cause::Throttled => Some(Spent::Throttled),
            Cause::Suspended => Some(Spent::Stopped),
            Cause::Unknown => None,
        }
    }
}

/// Whether it slept for a lock, and the host is the cause: the lock's holder had no CPU (D192).
fn waits_for_the_host(report: &StallReport) -> bool {
    report.cause == Cause::Contention && report.time.asleep > report.time.host()
}

/// Parts below this share of the whole time are left out.
const LEAST_SHARE: f64 = 0.01;

impl Why<'_> {
    fn parts(&self) -> Vec<TimePart> {
        let StallReport {
            time, asleep_in, ..
        } = self.0;
        let mut asleep = match asleep_in {
            Some(call) => format!("asleep in {call}"),
            None => "asleep".to_owned(),
        };
        if waits_for_the_host(self.0) {
            asleep += " for a lock whose holder has no CPU";
        }
        let stopped = "suspended with the whole process";
        let parts = [
            (Spent::Computing, time.cpu, "computing"),
            (Spent::Asleep, time.asleep, &asleep),
            (Spent::WithoutCpu, time.run_queue, "without a CPU"),
            (Spent::Throttled, time.throttled, "held back by a CPU quota"),
            (Spent::Stopped, time.stopped, stopped),
        ];
        let parts = parts.map(|(kind, time, what)| TimePart {
            kind,
            time,
            what: what.to_owned(),
        });
        let mut parts: Vec<TimePart> = parts.into();
        parts.retain(|part| part.time >= self.least());
        parts.sort_by_key(|part| std::cmp::Reverse(part.time));
        parts
    }

    fn least(&self) -> Duration {
        let share = self.0.time.total().mul_f64(LEAST_SHARE);
        share.max(Duration::from_micros(50))
    }
}

impl fmt::Display for Why<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = self.parts();
        let known = parts.iter().map(|part| (part.time, part.what.as_str()));
        let unknown = Some(self.0.time.unknown).filter(|time| *time >= self.least());
        let all = known.chain(unknown.map(|time| (time, "unknown")));
        for (index, (time, what)) in all.enumerate() {
            let comma = if index > 0 { ", " } else { "" };
            write!(f, "{comma}{what} {}", Human(time))?;
        }
        Ok(())
    }
}

/// A name that the program has given, with its control characters escaped: a terminal obeys them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plain<'a>(pub(super) &'a str);

impl fmt::Display for Plain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in self.0.chars() {
            match c.is_control() {
                true => write!(f, "{}", c.escape_default())?,
                false => f.write_char(c)?,
            }
        }
        Ok(())
    }
}

/// A duration with three figures, in a unit that fits.
#[derive(Clone, Copy, Debug)]
#[cfg_attr(not(feature = "outside"), allow(unreachable_pub))]
pub struct Human(pub Duration);

impl fmt::Display for Human {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.as_secs_f64();
        let (value, unit) = match seconds {
            s if s >= 0.9995 => (s, "s"),
            s if s >= 0.000_999_5 => (s * 1e3, "ms"),
            s => (s * 1e6, "µs"),
        };
        match value {
            v if v >= 99.95 => write!(f, "{v:.0} {unit}"),
            v if v >= 9.995 => write!(f, "{v:.1} {unit}"),
            v => write!(f, "{v:.2} {unit}"),
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::super::missing::Missing;
    use super::super::stall::example as report;
    use super::*;

    fn frame(function: &str, origin: Origin, place: Option<(&str, u32)>) -> Frame {
        Frame {
            file: place.map(|(file, _)| file.to_owned()),
            line: place.map(|(_, line)| line),
            module: Some("api".to_owned()),
            offset: 0x1f40,
            ..Frame::of(function, origin)
        }
    }

    #[test]
    fn a_report_reads_as_documented() {
        let mut report = report();
        report.time.asleep = Duration::from_micros(120_000);
        report.time.cpu = Duration::from_micros(300);
        report.time.run_queue = Duration::from_micros(7_100);
        let file = "/home/me/app/src/handlers.rs";
        let runtime = frame("tokio::runtime::task::poll", Origin::Runtime, None);
        let mut frames = vec![
            frame("clock_nanosleep", Origin::System, None),
            frame(
                "std::thread::sleep",
                Origin::Std,
                Some(("/rustc/ab/library/std/src/thread.rs", 9)),
            ),
            frame(
                "app::handlers::get_user::{closure#0}",
                Origin::Own,
                Some((file, 42)),
            ),
        ];
        frames.extend(std::iter::repeat_n(runtime, 14));
        report.site = crate::report::site::site(&frames);
        report.stacks = vec![StackSample {
            after: Duration::from_millis(8),
            count: 1,
            certain_frames: frames.len(),
            frames,
            complete: true,
            asleep: false,
        }];
        report.advice = Some("use tokio::time::sleep(…).await".to_owned());
        report.representative_stack = Some(0);
        (report.seen_here, report.lost_here) = (3, Duration::from_millis(381));
        assert_eq!(
            report.headline().to_string(),
            "worker 1 of \"api\" blocked for 127 ms so far: asleep in clock_nanosleep, \
             app::handlers::get_user (src/handlers.rs:42), in request > get_user"
        );
        assert_eq!(
            report.to_string(),
            "stall #17   runtime \"api\", worker 1, 127 ms so far, certain\n  \
             where     app::handlers::get_user (src/handlers.rs:42)\n  \
             in        request > get_user\n  \
             why       blocked/sleep: asleep in clock_nanosleep 120 ms, without a CPU 7.10 ms\n  \
             stack     std::thread::sleep (std/src/thread.rs:9)\n            \
             app::handlers::get_user (src/handlers.rs:42)\n            \
             … 15 frames of the system, tokio\n            \
             taken at +8.00 ms\n  \
             do        use tokio::time::sleep(…).await\n  \
             seen      3 times here, 381 ms in all\n  \
             task      318, spawned at src/main.rs:20\n  \
             thread    tokio-rt-worker (4711)"
        );
    }

    #[test]
    fn a_wait_for_a_thread_without_a_cpu_says_so() {
        let mut report = crate::report::example();
        report.phase = Phase::Ongoing;
        report.duration = Duration::from_millis(127);
        report.cause = Cause::Contention;
        report.asleep_in = Some("futex".to_owned());
        report.time = crate::report::TimeSplit {
            asleep: Duration::from_millis(120),
            run_queue: Duration::from_millis(7),
            ..Default::default()
        };
        let headline = report.headline().to_string();
        let said = "held for 127 ms so far: asleep in futex for a lock whose holder \
                    has no CPU, ";
        assert!(headline.contains(said), "{headline}");
        // Where it had none itself, it says that.
        std::mem::swap(&mut report.time.asleep, &mut report.time.run_queue);
        let headline = report.headline().to_string();
        assert!(headline.contains("so far: without a CPU, "), "{headline}");
    }

    #[test]
    fn names_cannot_steer_a_terminal() {
        let report = StallReport {
            span: Some("request{path=\u{1b}[2J\n}".to_owned()),
            thread: Some("\u{7}bell".to_owned()),
            ..report()
        };
        for text in [report.headline().to_string(), report.to_string()] {
            assert!(!text.contains(['\u{1b}', '\u{7}']), "{text:?}");
            assert!(text.contains("path=\\u{1b}[2J\\n}"), "{text:?}");
        }
    }

    #[test]
    fn host_trouble_is_said_to_be_the_host_s() {
        let mut report = report();
        report.time.run_queue = Duration::from_millis(100);
        report.cause = Cause::Contention;
        assert_eq!(
            report.headline().to_string(),
            "worker 1 of \"api\" held for 127 ms so far: without a CPU, in request > get_user"
        );
        report.phase = Phase::Ended;
        assert_eq!(
            report.headline().to_string(),
            "worker 1 of \"api\" was held up by the host for 127 ms: without a CPU, in request > get_user"
        );
        let why = "why       contention: without a CPU 100 ms (mostly the host)";
        assert!(report.to_string().contains(why), "{report}");
    }

    #[test]
    fn the_headline_names_the_cause_and_the_longest_part() {
        let mut report = report();
        (report.cause, report.asleep_in) = (Cause::Cpu, None);
        report.time.cpu = Duration::from_millis(50);
        let headline = |report: &StallReport| report.headline().to_string();
        let computing = "blocked for 127 ms so far: computing, in request";
        assert!(headline(&report).contains(computing), "{report}");
        report.time.run_queue = Duration::from_millis(70);
        let both = "127 ms so far: computing, mostly without a CPU, in request";
        assert!(headline(&report).contains(both), "{report}");
        // Half of the time is unknown, and so is the cause.
        report.cause = Cause::Unknown;
        report.time.unknown = Duration::from_millis(130);
        assert!(headline(&report).contains("127 ms so far, in request"));
    }

    #[test]
    fn without_a_site_the_dependency_is_told() {
        let report = StallReport {
            cause: Cause::Cpu,
            span: None,
            dependency: Some("tower_http::compression::body::poll".to_owned()),
            ..report()
        };
        let headline = report.headline().to_string();
        let told = ", in tower_http::compression::body::poll";
        assert!(headline.ends_with(told), "{headline}");
        let line = "\n  library   tower_http::compression::body::poll";
        assert!(report.to_string().contains(line), "{report}");
    }

    #[test]
    fn a_frozen_driver_is_told_after_the_cause() {
        let mut report = report();
        report.time.asleep = report.duration;
        report.driver_frozen = Some(Duration::from_micros(122_300));
        let frozen = "why       blocked/sleep: asleep in clock_nanosleep 127 ms\n  \
                      driver    frozen for 122 ms so far: no socket and no timer of this runtime moved\n";
        assert!(report.to_string().contains(frozen), "{report}");
        report.phase = Phase::Ended;
        let frozen =
            "\n  driver    was frozen for 122 ms: no socket and no timer of this runtime moved\n";
        assert!(report.to_string().contains(frozen), "{report}");
    }

    #[test]
    fn a_driver_that_ran_on_or_is_not_known_is_not_mentioned() {
        for driver_frozen in [None, Some(Duration::ZERO)] {
            let report = StallReport {
                driver_frozen,
                ..report()
            };
            assert!(!report.to_string().contains("driver"), "{report}");
        }
    }

    #[test]
    fn a_report_says_what_it_does_not_know() {
        let unsure = StallReport {
            phase: Phase::Ended,
            certainty: Certainty::Likely,
            span: None,
            task: None,
            spawned_at: None,
            thread: None,
            duration_error: Duration::from_micros(2_500),
            missing: vec![Missing::Unmarked],
            suppressed: 4,
            ..report()
        };
        assert_eq!(
            unsure.headline().to_string(),
            "worker 1 of \"api\" was probably blocked for 127 ms"
        );
        assert_eq!(
            unsure.to_string(),
            "stall #17   runtime \"api\", worker 1, 127 ms (± 2.50 ms), likely: the poll may have left its worker\n  \
             missing   no name: no span, `watched` or `watch_polls` marked this poll\n  \
             unlogged  4 stalls since the last one shown"
        );
    }

    #[test]
    fn durations_have_three_figures_and_a_unit_that_fits() {
        let shown = |micros| Human(Duration::from_micros(micros)).to_string();
        assert_eq!(shown(0), "0.00 µs");
        assert_eq!(shown(420), "420 µs");
        assert_eq!(shown(9_994), "9.99 ms");
        assert_eq!(shown(9_999), "10.0 ms");
        assert_eq!(shown(126_800), "127 ms");
        assert_eq!(shown(999_900), "1.00 s");
        assert_eq!(shown(61_000_000), "61.0 s");
    }

    #[cfg(feature = "serde")]
    #[test]
    fn json_has_seconds_and_no_line_breaks() {
        let json = serde_json::to_string(&report()).unwrap();
        assert!(!json.contains('\n'));
        let value: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(value["duration_seconds"], 0.1274);
        assert_eq!(value["span"], "request > get_user");
        assert_eq!(value["phase"], "ongoing");
        assert_eq!(value["certainty"], "certain");
        assert_eq!(value["driver_frozen_seconds"], serde_json::Value::Null);
        let frozen = StallReport {
            driver_frozen: Some(Duration::from_millis(120)),
            ..report()
        };
        let value = serde_json::to_value(frozen).unwrap();
        assert_eq!(value["driver_frozen_seconds"], 0.12);
    }
}
