//! Reads a report from its JSON.
//!
//! *Runs on:* the threads of the programs `tokio-stall` and `cargo-stall`.
//!
//! A log may be of another version, so that fields are missing or unknown. They are left out. A
//! report needs a duration, and nothing else.

use super::{
    Blocking, Cause, Certainty, Frame, Missing, Origin, Phase, Site, StackSample, StallReport,
    TimeSplit,
};
use serde::Deserialize;
use std::time::{Duration, SystemTime};

/// The report as it is written, with what is needed of it.
#[derive(Deserialize)]
#[serde(default)]
struct WrittenReport {
    id: u64,
    phase: String,
    certainty: String,
    runtime: String,
    worker: usize,
    thread: Option<String>,
    tid: Option<u32>,
    span: Option<String>,
    task: Option<u64>,
    started_at: f64,
    duration_seconds: Option<f64>,
    duration_error_seconds: f64,
    time: WrittenSplit,
    cause: String,
    asleep_in: Option<String>,
    site: Option<WrittenSite>,
    dependency: Option<String>,
    stacks: Vec<WrittenStack>,
    representative_stack: Option<usize>,
    advice: Option<String>,
    missing: Vec<serde::de::IgnoredAny>,
}

impl Default for WrittenReport {
    fn default() -> WrittenReport {
        WrittenReport {
            id: 0,
            phase: "ended".to_owned(),
            certainty: "certain".to_owned(),
            runtime: String::new(),
            worker: 0,
            thread: None,
            tid: None,
            span: None,
            task: None,
            started_at: 0.0,
            duration_seconds: None,
            duration_error_seconds: 0.0,
            time: WrittenSplit::default(),
            cause: String::new(),
            asleep_in: None,
            site: None,
            dependency: None,
            stacks: Vec::new(),
            representative_stack: None,
            advice: None,
            missing: Vec::new(),
        }
    }
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct WrittenSplit {
    cpu_seconds: f64,
    asleep_seconds: f64,
    run_queue_seconds: f64,
    throttled_seconds: f64,
    stopped_seconds: f64,
    unknown_seconds: f64,
}

#[derive(Deserialize)]
struct WrittenSite {
    function: String,
    file: Option<String>,
    line: Option<u32>,
}

#[derive(Deserialize)]
struct WrittenStack {
    #[serde(default)]
    after_seconds: f64,
    #[serde(default)]
    count: u32,
    frames: Vec<WrittenFrame>,
    #[serde(default)]
    certain_frames: usize,
    #[serde(default)]
    complete: bool,
    #[serde(default)]
    asleep: bool,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct WrittenFrame {
    function: Option<String>,
    file: Option<String>,
    line: Option<u32>,
    module: Option<String>,
    offset: u64,
    build_id: Option<String>,
    origin: String,
    inlined: bool,
}

impl<'de> Deserialize<'de> for StallReport {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let written = WrittenReport::deserialize(deserializer)?;
        let lacks_duration = || serde::de::Error::missing_field("duration_seconds");
        let duration = written.duration_seconds.ok_or_else(lacks_duration)?;
        Ok(written.report(time(duration)))
    }
}

/// Seconds as a duration. Numbers that are none are zero.
fn time(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).unwrap_or_default()
}

impl WrittenReport {
    fn report(self, duration: Duration) -> StallReport {
        let certainty = match self.certainty.as_str() {
            "likely" => Certainty::Likely,
            _ => Certainty::Certain,
        };
        let stacks: Vec<_> = self.stacks.into_iter().map(WrittenStack::stack).collect();
        let representative = self.representative_stack;
        let from_outside = certainty == Certainty::Likely && !self.missing.is_empty();
        StallReport {
            id: self.id,
            phase: phase(&self.phase),
            certainty,
            runtime: self.runtime,
            worker: self.worker,
            thread: self.thread,
            tid: self.tid,
            span: self.span,
            trace: None,
            task: self.task,
            spawned_at: None,
            started_at: SystemTime::UNIX_EPOCH + time(self.started_at),
            duration,
            duration_error: time(self.duration_error_seconds),
            time: self.time.split(),
            cause: cause(&self.cause),
            asleep_in: self.asleep_in,
            driver_frozen: None,
            victims: None,
            site: self.site.map(WrittenSite::site),
            dependency: self.dependency,
            representative_stack: representative.filter(|index| *index < stacks.len()),
            stacks,
            advice: self.advice,
            seen_here: 0,
            lost_here: Duration::ZERO,
            missing: from_outside
                .then_some(Missing::OnePoll)
                .into_iter()
                .collect(),
            suppressed: 0,
        }
    }
}

impl WrittenSplit {
    fn split(&self) -> TimeSplit {
        TimeSplit {
            cpu: time(self.cpu_seconds),
            asleep: time(self.asleep_seconds),
            run_queue: time(self.run_queue_seconds),
            throttled: time(self.throttled_seconds),
            stopped: time(self.stopped_seconds),
            unknown: time(self.unknown_seconds),
        }
    }
}

impl WrittenSite {
    fn site(self) -> Site {
        Site {
            function: self.function,
            file: self.file,
            line: self.line,
        }
    }
}

impl WrittenStack {
    fn stack(self) -> StackSample {
        StackSample {
            after: time(self.after_seconds),
            count: self.count.max(1),
            certain_frames: self.certain_frames.min(self.frames.len()),
            frames: self.frames.into_iter().map(WrittenFrame::frame).collect(),
            complete: self.complete,
            asleep: self.asleep,
        }
    }
}

impl WrittenFrame {
    fn frame(self) -> Frame {
        Frame {
            origin: match self.origin.as_str() {
                "own" => Origin::Own,
                "dependency" => Origin::Dependency,
                "std" => Origin::Std,
                "runtime" => Origin::Runtime,
                "detector" => Origin::Detector,
                _ => Origin::System,
            },
            function: self.function,
            file: self.file,
            line: self.line,
            module: self.module,
            offset: self.offset,
            build_id: self.build_id,
            inlined: self.inlined,
        }
    }
}

fn phase(text: &str) -> Phase {
    match text {
        "began" => Phase::Began,
        "ongoing" => Phase::Ongoing,
        _ => Phase::Ended,
    }
}

/// The cause that `Display` writes so.
fn cause(text: &str) -> Cause {
    let blocked = [
        Blocking::Sleep,
        Blocking::Lock,
        Blocking::File,
        Blocking::Network,
        Blocking::Process,
        Blocking::Other,
    ];
    let others = [
        Cause::Cpu,
        Cause::Contention,
        Cause::Throttled,
        Cause::Suspended,
    ];
    let all = blocked.map(Cause::Blocked).into_iter().chain(others);
    let mut all = all.filter(|cause| cause.as_str() == text);
    all.next().unwrap_or(Cause::Unknown)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::report::example;

    #[test]
    fn a_report_is_read_as_it_was_written() {
        let mut report = example();
        report.phase = Phase::Ended;
        report.spawned_at = None;
        report.time.asleep = Duration::from_millis(127);
        report.site = Some(Site {
            function: "app::run".to_owned(),
            file: Some("/app/src/run.rs".to_owned()),
            line: Some(7),
        });
        report.stacks = vec![StackSample {
            after: Duration::from_millis(3),
            count: 2,
            frames: vec![Frame::of("app::run", Origin::Own)],
            certain_frames: 1,
            complete: true,
            asleep: true,
        }];
        report.representative_stack = Some(0);
        let text = serde_json::to_string(&report).unwrap();
        let read: StallReport = serde_json::from_str(&text).unwrap();
        assert_eq!(read, report);
    }

    #[test]
    fn fields_of_other_versions_are_left_out() {
        let read: StallReport =
            serde_json::from_str(r#"{"duration_seconds": 0.5, "cause": "cpu", "new": [1]}"#)
                .unwrap();
        assert_eq!(read.duration, Duration::from_millis(500));
        assert_eq!((read.cause, read.phase), (Cause::Cpu, Phase::Ended));
        let without = serde_json::from_str::<StallReport>("{}");
        assert!(
            without
                .unwrap_err()
                .to_string()
                .contains("duration_seconds")
        );
    }

    #[test]
    fn each_cause_is_read_back() {
        for blocking in [Blocking::Sleep, Blocking::Lock, Blocking::Process] {
            let blocked = Cause::Blocked(blocking);
            assert_eq!(cause(blocked.as_str()), blocked);
        }
        assert_eq!(cause(Cause::Throttled.as_str()), Cause::Throttled);
        assert_eq!(cause("no such"), Cause::Unknown);
    }
}
