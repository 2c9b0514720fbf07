//! A recording: the rings of all workers and the stalls of a time, as a trace.
//!
//! *Runs on:* `stall-serve` and `stall-recorder`. `stall-reporter` offers stalls.
//! *Must not:* grow with the program: segments, stalls and texts each have a limit.

use super::{Lane, Segment, View, WatchedRuntime};
use crate::clock::{self, Nanos, wall_clock};
use crate::report::trace::{Trace, TraceAbout, TraceArgs, TraceEvent, TraceSegment, TraceStall};
use crate::report::{Certainty, Phase, StallReport};
use std::borrow::Cow;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::SyncSender;
use std::time::{Duration, SystemTime};

/// The most segments in a recording, of all workers together. Each takes some 150 bytes.
const SEGMENTS: usize = 40_000;
/// The most stalls.
const STALLS: usize = 128;
/// The most characters of a stall's report.
const REPORT: usize = 16 * 1024;
/// The most characters of a name, such as a span's with its fields.
const NAME: usize = 1024;
/// Lanes of stalls have the numbers of their workers, and this many more.
const STALL_LANES: usize = 100_000;

/// The time that a recording is of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Window {
    pub(crate) from: Nanos,
    pub(crate) to: Nanos,
}

impl Window {
    /// Whether some of the time from one to the other is inside.
    fn has_part_of(&self, from: Nanos, to: Nanos) -> bool {
        to > self.from && from < self.to
    }
}

/// The recording of a window, and of one stall in it if it is made for one.
pub(crate) fn record(view: &View, window: Window, of: Option<&StallReport>) -> Trace {
    let now = clock::now();
    let runtimes = view.runtimes();
    let workers: usize = runtimes.iter().map(|one| one.recorder.workers()).sum();
    let stalls = stalls(view, window, of);
    let mut maker = TraceMaker {
        window,
        now,
        segments_each: SEGMENTS / workers.max(1),
        events: Vec::new(),
        left_out: stalls.len().saturating_sub(STALLS),
    };
    let stalls = &stalls[maker.left_out..];
    for (index, runtime) in runtimes.iter().enumerate() {
        maker.add_runtime(index + 1, runtime, stalls);
    }
    let all: usize = runtimes.iter().map(|one| one.metrics.num_workers()).sum();
    Trace {
        display_time_unit: "ms",
        other_data: TraceAbout {
            made_by: concat!("tokio-stall ", env!("CARGO_PKG_VERSION")),
            stall: of.map(|report| report.id),
            made_at: micros(now),
            made_at_unix_seconds: unix_seconds(wall_clock(now)),
            unrecorded_workers: all - workers,
            left_out: maker.left_out,
        },
        trace_events: maker.events,
    }
}

/// The stalls of a window, oldest first. A report that is given goes before a kept one.
fn stalls(view: &View, window: Window, of: Option<&StallReport>) -> Vec<StallReport> {
    let mut stalls = view.stalled_now();
    stalls.extend(view.recent());
    if let Some(of) = of {
        stalls.retain(|stall| stall.id != of.id);
        stalls.push(of.clone());
    }
    stalls.retain(|stall| {
        let (from, to) = times(stall);
        window.has_part_of(from, to)
    });
    stalls.sort_by_key(|stall| stall.id);
    // One that goes on is kept as well: the first is the younger report.
    stalls.dedup_by_key(|stall| stall.id);
    stalls
}

/// The begin and the end of a stall, or its end so far.
fn times(stall: &StallReport) -> (Nanos, Nanos) {
    let ago = SystemTime::now().duration_since(stall.started_at);
    let from = clock::now().minus(ago.unwrap_or_default());
    (from, from.plus(stall.duration))
}

struct TraceMaker {
    window: Window,
    now: Nanos,
    segments_each: usize,
    events: Vec<TraceEvent>,
    left_out: usize,
}

impl TraceMaker {
    fn add_runtime(&mut self, pid: usize, runtime: &WatchedRuntime, stalls: &[StallReport]) {
        let name = shortened(&runtime.name, NAME);
        self.name("process_name", pid, 0, format!("runtime {name}"));
        for (at, lag) in runtime.recorder.lags.since(self.window.from) {
            if at < self.window.to {
                let milliseconds = lag.as_secs_f64() * 1000.0;
                let args = TraceArgs::Lag { milliseconds };
                self.events.push(TraceEvent {
                    ts: Some(micros(at)),
                    ..event("C", "scheduler lag", pid, 0, args)
                });
            }
        }
        for worker in 0..runtime.recorder.workers() {
            let of_worker =
                |stall: &&StallReport| stall.runtime == runtime.name && stall.worker == worker;
            let stalls: Vec<_> = stalls.iter().filter(of_worker).collect();
            self.add_worker(pid, worker, runtime);
            self.add_stalls(pid, worker, &stalls);
        }
    }

    fn add_worker(&mut self, pid: usize, worker: usize, runtime: &WatchedRuntime) {
        let tid = worker + 1;
        self.name("thread_name", pid, tid, format!("worker {worker}"));
        let sort_index = worker * 2;
        let order = TraceArgs::Order { sort_index };
        self.events
            .push(event("M", "thread_sort_index", pid, tid, order));
        let mut segments = runtime.recorder.segments(worker, self.window.from);
        segments.retain(|segment| segment.from < self.window.to);
        let left_out = segments.len().saturating_sub(self.segments_each);
        self.left_out += left_out;
        let kept = segments.iter().skip(left_out);
        let events = kept.map(|segment| segment_event(pid, tid, segment));
        self.events.extend(events);
    }

    /// Adds the stalls of a worker in a lane of their own: their times are more exact than those of
    /// ticks, so they would not nest with the segments.
    fn add_stalls(&mut self, pid: usize, worker: usize, stalls: &[&StallReport]) {
        if stalls.is_empty() {
            return;
        }
        let tid = STALL_LANES + worker + 1;
        self.name("thread_name", pid, tid, format!("worker {worker}: stalls"));
        let sort_index = worker * 2 + 1;
        let order = TraceArgs::Order { sort_index };
        self.events
            .push(event("M", "thread_sort_index", pid, tid, order));
        let mut free_from = Nanos(0);
        for stall in stalls {
            // Two of one worker follow each other; the errors of their times may overlap.
            let (from, to) = times(stall);
            let from = from.max(free_from).min(self.now);
            let to = to.max(from);
            free_from = to;
            self.events.push(stall_event(pid, tid, stall, from, to));
        }
    }

    fn name(&mut self, kind: &'static str, pid: usize, tid: usize, name: String) {
        let name = TraceArgs::Name { name };
        self.events.push(event("M", kind, pid, tid, name));
    }
}

fn event(
    ph: &'static str,
    name: impl Into<Cow<'static, str>>,
    pid: usize,
    tid: usize,
    args: TraceArgs,
) -> TraceEvent {
    TraceEvent {
        ph,
        name: name.into(),
        pid,
        tid,
        ts: None,
        dur: None,
        cname: None,
        args,
    }
}

fn segment_event(pid: usize, tid: usize, segment: &Segment) -> TraceEvent {
    let (name, colour) = match segment.lane {
        Lane::Unknown => ("unknown", "generic_work"),
        Lane::Parked => ("parked", "grey"),
        Lane::Busy => ("busy", "good"),
        Lane::Held => ("held", "terrible"),
    };
    let milliseconds = |time: Duration| time.as_secs_f64() * 1000.0;
    let args = TraceArgs::Segment(TraceSegment {
        cpu_ms: segment.cpu.map(milliseconds),
        asleep_ms: segment.asleep.map(milliseconds),
        run_queue_ms: segment.run_queue.map(milliseconds),
        turns: segment.turns,
        stall: segment.stall.map(|stall| stall.0),
    });
    TraceEvent {
        ts: Some(micros(segment.from)),
        dur: Some(micros_of(segment.to.since(segment.from))),
        cname: Some(colour),
        ..event("X", name, pid, tid, args)
    }
}

fn stall_event(pid: usize, tid: usize, stall: &StallReport, from: Nanos, to: Nanos) -> TraceEvent {
    let name = |text: &String| shortened(text, NAME);
    let site = stall.site.as_ref().map(|site| name(&site.to_string()));
    let place = site.as_ref().or(stall.span.as_ref()).map(name);
    let title = match place {
        Some(place) => format!("{}: {place}", stall.cause),
        None => stall.cause.to_string(),
    };
    let args = TraceArgs::Stall(Box::new(TraceStall {
        id: stall.id,
        cause: stall.cause.as_str(),
        certainty: match stall.certainty {
            Certainty::Certain => "certain",
            Certainty::Likely => "likely",
        },
        goes_on: stall.phase != Phase::Ended,
        site,
        span: stall.span.as_ref().map(name),
        task: stall.task,
        thread: stall.thread.as_ref().map(name),
        advice: stall.advice.as_ref().map(name),
        report: shortened(&stall.to_string(), REPORT),
    }));
    TraceEvent {
        ts: Some(micros(from)),
        dur: Some(micros_of(to.since(from))),
        cname: Some("terrible"),
        ..event("X", title, pid, tid, args)
    }
}

fn micros(at: Nanos) -> f64 {
    at.0 as f64 / 1000.0
}

fn micros_of(time: Duration) -> f64 {
    time.as_nanos() as f64 / 1000.0
}

fn unix_seconds(at: SystemTime) -> f64 {
    let since = at.duration_since(SystemTime::UNIX_EPOCH);
    since.unwrap_or_default().as_secs_f64()
}

/// The text, or so many characters of it.
fn shortened(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        Some((end, _)) => format!("{} …", &text[..end]),
        None => text.to_owned(),
    }
}

/// Which stalls are recorded as files, and where.
#[derive(Clone, Debug)]
pub(crate) struct RecordStalls {
    pub(crate) directory: PathBuf,
    pub(crate) longer_than: Duration,
    /// The most files in the directory.
    pub(crate) keep: usize,
}

/// News for the thread that writes recordings.
#[derive(Debug)]
pub(crate) enum RecordingNews {
    /// A long stall goes on, or is over.
    Stall(Box<StallReport>),
    Stop,
}

/// The way to the thread that writes recordings, and what has become of them.
#[derive(Debug, Default)]
pub(crate) struct RecordingCounts {
    news: OnceLock<SyncSender<RecordingNews>>,
    pub(crate) written: AtomicU64,
    pub(crate) failed: AtomicU64,
    /// Stalls that were too many.
    pub(crate) left_out: AtomicU64,
}

impl RecordingCounts {
    /// Keeps the channel to the thread.
    pub(crate) fn go_to(&self, news: SyncSender<RecordingNews>) {
        self.news.set(news).ok();
    }

    /// Passes on the report of a stall that is long enough. Never waits.
    pub(crate) fn offer(&self, report: &StallReport, stalls: Option<&RecordStalls>) {
        let is_long = stalls.is_some_and(|stalls| report.duration > stalls.longer_than);
        if let Some(news) = self.news.get().filter(|_| is_long) {
            let stall = RecordingNews::Stall(Box::new(report.clone()));
            if news.try_send(stall).is_err() {
                // Relaxed: a count.
                self.left_out.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::super::{Figures, Packed, Shared, StallId};
    use super::*;
    use crate::report::example;
    use serde_json::Value;
    use std::sync::Arc;

    const HOSTILE: &str = "</script><b>\u{1b}[31m\"\\\n\u{202e}";

    /// A watch that nothing drives, of one worker.
    struct Scene {
        _tokio: tokio::runtime::Runtime,
        runtime: Arc<WatchedRuntime>,
        view: View,
    }

    impl Scene {
        fn new() -> Scene {
            let mut builder = tokio::runtime::Builder::new_current_thread();
            let tokio = builder.build().expect("a runtime");
            let runtime = WatchedRuntime::for_tests(tokio.handle());
            let shared = Arc::new(Shared::default());
            shared.watched.lock().push(runtime.clone());
            let watch = runtime.watch.clone();
            Scene {
                _tokio: tokio,
                runtime,
                view: View { watch, shared },
            }
        }

        /// The worker is in this state for so long.
        fn lane(&self, lane: Lane, milliseconds: u64) {
            let ring = self.runtime.recorder.ring(0).expect("a ring");
            let length = Duration::from_millis(milliseconds);
            let closed = Packed::new(lane, length, &Figures::default(), 17);
            let nothing = Packed::new(lane, Duration::ZERO, &Figures::default(), 17);
            ring.write(Some(closed), nothing, Some(StallId(17)));
        }

        fn record(&self, of: Option<&StallReport>) -> Value {
            let window = Window {
                from: Nanos(0),
                to: Nanos(u64::MAX),
            };
            serde_json::to_value(record(&self.view, window, of)).expect("plain data")
        }
    }

    fn events<'a>(trace: &'a Value, phase: &str) -> Vec<&'a Value> {
        let events = trace["traceEvents"].as_array().expect("events");
        let is_wanted = |event: &&Value| event["ph"] == phase;
        events.iter().filter(is_wanted).collect()
    }

    fn stall() -> StallReport {
        StallReport {
            runtime: "test".to_owned(),
            worker: 0,
            started_at: SystemTime::now() - Duration::from_secs(1),
            ..example()
        }
    }

    #[test]
    fn a_recording_has_the_states_the_stalls_and_the_lag() {
        let scene = Scene::new();
        scene.lane(Lane::Parked, 40);
        scene.lane(Lane::Held, 20);
        let lag = Duration::from_micros(1500);
        scene.runtime.recorder.lags.note(clock::now(), lag);
        scene.view.watch.recent.lock().keep(stall());
        let trace = scene.record(None);
        let times = events(&trace, "X");
        let names: Vec<_> = times.iter().map(|event| &event["name"]).collect();
        assert_eq!(
            names,
            ["parked", "held", "blocked/sleep: request > get_user"]
        );
        assert_eq!(times[0]["dur"], 40_000.0);
        assert_eq!(times[1]["args"]["stall"], 17);
        assert_eq!(times[0]["args"].get("stall"), None);
        assert_eq!(times[2]["dur"], 127_400.0);
        assert_eq!(times[2]["args"]["cause"], "blocked/sleep");
        assert_ne!(times[2]["tid"], times[1]["tid"]);
        assert_eq!(events(&trace, "C")[0]["args"]["milliseconds"], 1.5);
        assert_eq!(trace["otherData"]["left_out"], 0);
    }

    #[test]
    fn a_stall_that_goes_on_is_there_once_and_the_given_report_counts() {
        let scene = Scene::new();
        scene.view.watch.recent.lock().keep(stall());
        let over = StallReport {
            phase: Phase::Ended,
            ..stall()
        };
        let goes_on = |of| {
            let trace = scene.record(of);
            let stalls = events(&trace, "X");
            assert_eq!(stalls.len(), 1);
            stalls[0]["args"]["goes_on"].as_bool()
        };
        assert_eq!(goes_on(None), Some(true));
        assert_eq!(goes_on(Some(&over)), Some(false));
    }

    #[test]
    fn names_of_the_program_are_data() {
        let scene = Scene::new();
        let long = StallReport {
            id: 18,
            span: Some("x".repeat(100_000)),
            ..stall()
        };
        let hostile = StallReport {
            span: Some(HOSTILE.to_owned()),
            ..stall()
        };
        scene.view.watch.recent.lock().keep(hostile);
        scene.view.watch.recent.lock().keep(long);
        let trace = scene.record(None);
        let text = trace.to_string();
        assert!(
            !text.contains('\u{1b}') && text.contains("\\u001b"),
            "{text}"
        );
        assert!(text.len() < 2 * REPORT + 4 * NAME + 4096, "{}", text.len());
        let read: Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(events(&read, "X")[0]["args"]["span"], HOSTILE);
    }

    #[test]
    fn the_size_has_a_bound() {
        let scene = Scene::new();
        let mut recent = crate::report::Recent::new(2 * STALLS);
        (1..=2 * STALLS as u64).for_each(|id| recent.keep(StallReport { id, ..stall() }));
        *scene.view.watch.recent.lock() = recent;
        let trace = scene.record(None);
        let stalls = events(&trace, "X");
        assert_eq!(stalls.len(), STALLS);
        assert_eq!(stalls[0]["args"]["id"], STALLS + 1, "the newest are kept");
        assert_eq!(trace["otherData"]["left_out"], STALLS);
    }
}
