//! One runtime, its watch, and the reports of this watch.

use super::seen::Seen;
use super::{FOREVER, wait_for_threads, wait_until};
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};
use tokio::runtime::{self, Runtime};
use tokio_stall::{Builder, Certainty, FutureExt as _, Guard, Phase, StallReport, StartError};

/// A runtime under watch. The watch ends before its runtime does.
pub struct Stage {
    pub watch: Guard,
    pub seen: Seen,
    pub runtime: Runtime,
}

/// A stage that has not started yet.
pub struct Setup {
    name: String,
    runtime: runtime::Builder,
    /// Whether the runtime has workers of its own, and nobody has to drive it.
    has_workers: bool,
    builder: Builder,
    seen: Seen,
}

/// One stall of a stage: a report from its duration, and the last one.
pub struct Stall {
    pub told: StallReport,
    pub ended: StallReport,
}

impl Stage {
    pub fn multi_thread(workers: usize) -> Setup {
        let mut runtime = runtime::Builder::new_multi_thread();
        runtime.worker_threads(workers);
        Setup::new(runtime, true)
    }

    pub fn current_thread() -> Setup {
        Setup::new(runtime::Builder::new_current_thread(), false)
    }

    /// Drives the runtime on the calling thread.
    pub fn block_on<F: Future>(&self, future: F) -> F::Output {
        self.runtime.block_on(future)
    }

    /// Runs a task to its end.
    pub fn run<F>(&self, task: F) -> F::Output
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        self.runtime.block_on(self.runtime.spawn(task)).unwrap()
    }

    /// Runs a task with this mark to its end, which is a stall. Returns the last report.
    pub fn run_stalling(
        &self,
        name: &'static str,
        task: impl Future<Output = ()> + Send + 'static,
    ) -> StallReport {
        self.run(task.watched(name));
        self.seen.wait_for_end_of(name)
    }

    /// Blocks a worker in `block` until a report with this mark has a site.
    pub fn block_until_reported(
        &self,
        name: &'static str,
        block: impl FnOnce(Receiver<()>) + Send + 'static,
    ) -> Stall {
        self.block_until(name, |report| report.site.is_some(), block)
    }

    /// Blocks a worker in `block` until a report with this mark fits.
    pub fn block_until(
        &self,
        name: &'static str,
        fits: impl Fn(&StallReport) -> bool,
        block: impl FnOnce(Receiver<()>) + Send + 'static,
    ) -> Stall {
        let earlier = self.seen.all().iter().map(|report| report.id).max();
        let (send, until_told) = mpsc::channel();
        let blocked = async move { block(until_told) }.watched(name);
        let blocked = self.runtime.spawn(blocked);
        let told = self.seen.wait(|report| {
            let is_new = Some(report.id) > earlier;
            is_new && report.span.as_deref() == Some(name) && fits(report)
        });
        drop(send);
        self.runtime.block_on(blocked).unwrap();
        let ended = self.seen.wait_for_end(told.id);
        Stall { told, ended }
    }

    /// One stall, as short as a report of it allows.
    pub fn stall(&self) -> Stall {
        self.block_until(
            "stalls",
            |_| true,
            |until_told| {
                until_told.recv().ok();
            },
        )
    }

    /// Nothing is reported so far, and nothing but this control is reported in the end. Returns a
    /// last report of the control.
    #[track_caller]
    pub fn silent_beside<F>(&self, control: impl Fn() -> F) -> StallReport
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let ended = self.control(control, |_| true);
        let mut others = self.seen.all();
        others.retain(|report| report.span.as_deref() != Some("control"));
        assert!(others.is_empty(), "false alarm: {others:#?}");
        ended
    }

    /// Runs a control, of which there must be a report that is certain. Returns the last one.
    #[track_caller]
    pub fn certain_control<F>(&self, control: impl Fn() -> F) -> StallReport
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.control(control, |report| report.certainty == Certainty::Certain)
    }

    /// Runs a control until its end is reported in a way that fits. On a busy machine one may be
    /// over before the watchdog runs.
    #[track_caller]
    fn control<F>(
        &self,
        control: impl Fn() -> F,
        fits: impl Fn(&StallReport) -> bool,
    ) -> StallReport
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let is_it = |report: &StallReport| {
            let has_ended = report.phase == Phase::Ended;
            has_ended && report.span.as_deref() == Some("control") && fits(report)
        };
        wait_until("a report of the control", || {
            self.run(control().watched("control"));
            self.seen.all().iter().any(is_it)
        });
        self.seen.all().into_iter().find(is_it).unwrap()
    }

    /// Takes so many stacks of workers that are in one of these functions.
    #[track_caller]
    pub fn take_stacks_in(&self, functions: &[&str], wanted: usize) {
        let deadline = Instant::now() + FOREVER * 3;
        let mut taken = 0;
        while taken < wanted {
            let stacks = self.watch.worker_stacks();
            let fitting = stacks.iter().filter(|stack| {
                let mut frames = stack.frames.iter().flatten();
                frames.any(|frame| {
                    let name = frame.function.as_deref();
                    name.is_some_and(|name| functions.contains(&name))
                })
            });
            taken += fitting.count();
            assert!(Instant::now() < deadline, "{taken}, and then {stacks:#?}");
        }
    }
}

impl Setup {
    fn new(mut runtime: runtime::Builder, has_workers: bool) -> Setup {
        runtime.enable_all();
        let (builder, seen) = Seen::builder();
        let name = "stage".to_owned();
        Setup {
            name,
            runtime,
            has_workers,
            builder,
            seen,
        }
    }

    /// Names the runtime. Two of one name cannot be watched at once.
    pub fn named(mut self, name: impl Into<String>) -> Setup {
        self.name = name.into();
        self
    }

    pub fn runtime(
        mut self,
        change: impl FnOnce(&mut runtime::Builder) -> &mut runtime::Builder,
    ) -> Setup {
        change(&mut self.runtime);
        self
    }

    pub fn settings(mut self, change: impl FnOnce(Builder) -> Builder) -> Setup {
        self.builder = change(self.builder);
        self
    }

    /// Starts, and waits until the watch knows the thread of each worker. A worker that is blocked
    /// before that, as on a busy machine it may be, is not looked at.
    #[track_caller]
    pub fn start(self) -> Stage {
        let has_workers = self.has_workers;
        let stage = self.start_at_once();
        if has_workers {
            wait_for_threads(&stage.watch);
        }
        stage
    }

    /// Starts, and waits for nothing.
    #[track_caller]
    pub fn start_at_once(self) -> Stage {
        self.try_start().expect("the watch starts")
    }

    pub fn try_start(self) -> Result<Stage, StartError> {
        self.try_start_after(|_| ())
    }

    /// Starts the watch after the runtime has done this.
    #[track_caller]
    pub fn start_after(self, before: impl FnOnce(&Runtime)) -> Stage {
        self.try_start_after(before).expect("the watch starts")
    }

    fn try_start_after(mut self, before: impl FnOnce(&Runtime)) -> Result<Stage, StartError> {
        let runtime = self.runtime.build().unwrap();
        before(&runtime);
        let builder = self.builder.runtime(self.name, runtime.handle().clone());
        Ok(Stage {
            watch: builder.start()?,
            seen: self.seen,
            runtime,
        })
    }
}

/// A sleep that blocks its thread.
pub async fn sleeps(time: Duration) {
    std::thread::sleep(time);
}
