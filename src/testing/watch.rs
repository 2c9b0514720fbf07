//! `watch()`: a whole test under the detector's eyes, with all tasks that it spawns.
//!
//! *Runs on:* the thread of the test.
//! *Here:* the same watch as in production, with a shorter tick, and proof that it sees: a stall of its own is
//! planted at the start. What it finds is asserted on once the detector has come to rest.

use super::baseline::Baseline;
use super::verdict::{self, Slept};
use crate::probe;
use crate::report::{
    Blocking, Cause, Certainty, Headline, Missing, NoStack, Phase, StallReport, of_the_poll,
};
use crate::slot::{self, Mark, names};
use crate::start::{Builder, Guard};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::runtime::Handle;

/// Watches the runtime of the test until the value is dropped, then fails if a poll stalled a worker.
///
/// A stall is one poll that slept in the kernel, or computed, for 10 ms. Only what is
/// [`Certain`](Certainty::Certain) and the code's own doing counts; stalls that the host has caused are listed on
/// standard error. Works in `#[tokio::test]` of both flavours, and sees all tasks; other runtimes of the same
/// process have watches of their own and are not seen. Another threshold, or names: [`watch_with`].
///
/// In the multi-thread flavour, **the body of the test itself** does not run on a worker, so it cannot stall one and
/// is not seen. Spawn what is to be tested, or use [`assert_never_blocks`](super::assert_never_blocks) or
/// [`block_on`](super::block_on).
///
/// The stack of a stall is taken by a signal, which wakes a sleeper; where much more is to do than there are CPUs, the
/// rest of a short sleep passes in a run queue, and nobody is blamed for that. So there, sleeps of less than some 50 ms
/// can be missed. The other assertions do not have this gap.
///
/// On systems other than Linux the threshold is one second, since nothing tells there what a thread did; standard
/// error says so.
///
/// # Panics
///
/// If no runtime is here, if it is watched already, or if a stall planted on it is not seen within ten seconds: a
/// watch that sees nothing must not pass. When dropped without an assertion, if there were stalls, unless
/// the test is panicking already.
///
/// # Cost
///
/// Some 20 ms for the planted stall, and a few percent of a core.
///
/// # Examples
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let stalls = tokio_stall::testing::watch();
/// tokio::spawn(async { tokio::task::yield_now().await }).await.unwrap();
/// stalls.assert_none();
/// # }
/// ```
///
/// ```should_panic
/// # use std::time::Duration;
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let stalls = tokio_stall::testing::watch();
/// # let long = if cfg!(target_os = "linux") { 50 } else { 3000 };
/// # let sleep = async move { std::thread::sleep(Duration::from_millis(long)) };
/// # #[cfg(any())]
/// let sleep = async { std::thread::sleep(Duration::from_millis(50)) };
/// tokio::spawn(sleep).await.unwrap();
/// stalls.assert_none();
/// # }
/// ```
#[track_caller]
pub fn watch() -> Watch {
    let builder = if crate::os::own_usage().is_some() {
        Builder::new().tick(TICK)
    } else {
        eprintln!(
            "tokio-stall: this system does not tell what threads do, so only stalls of more than a second are found"
        );
        Builder::new().threshold(verdict::NO_PROGRESS)
    };
    watch_with(builder)
}

/// Twenty microseconds of CPU each; in a test, that is nothing.
const TICK: Duration = Duration::from_millis(1);

/// As [`watch`](watch()), with a builder of your own: another threshold, other runtimes, names, callbacks.
///
/// # Panics
///
/// As [`watch`](watch()), and if the builder does not [`start`](Builder::start).
///
/// # Examples
///
/// ```
/// # use std::time::Duration;
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let builder = tokio_stall::Builder::new().threshold(Duration::from_millis(100));
/// let stalls = tokio_stall::testing::watch_with(builder);
/// stalls.assert_none();
/// # }
/// ```
///
/// ```should_panic
/// // No runtime is here.
/// tokio_stall::testing::watch_with(tokio_stall::Builder::new());
/// ```
#[track_caller]
pub fn watch_with(builder: Builder) -> Watch {
    let Ok(runtime) = Handle::try_current() else {
        panic!("`testing::watch` needs a runtime: call it inside `#[tokio::test]` or `block_on`");
    };
    let guard = match builder.log(false).recent(RECENT).driven_here().start() {
        Ok(guard) => guard,
        Err(error) => panic!("`testing::watch` could not start: {error}"),
    };
    let mut watch = Watch {
        guard,
        planted: None,
        expected: Vec::new(),
        known: None,
        asserted: false,
    };
    watch.plant(&runtime);
    watch.gather();
    watch
}

/// More than a test can want to look at.
const RECENT: usize = 4096;

/// How long to wait for the detector, on the busiest of machines.
const PATIENCE: Duration = Duration::from_secs(10);

const PLANTED: &str = "planted by tokio_stall::testing";

/// The stalls of a test; made by [`watch`](watch()).
#[derive(Debug)]
#[must_use = "the watch ends, and fails the test, when this is dropped: bind it to a name"]
pub struct Watch {
    guard: Guard,
    planted: Option<u64>,
    /// The ones that were expected.
    expected: Vec<u64>,
    known: Option<Baseline>,
    asserted: bool,
}

impl Watch {
    /// Lets the sites of a [`baseline`](super::baseline()) pass.
    pub fn known(mut self, baseline: &Baseline) -> Watch {
        self.known = Some(baseline.clone());
        self
    }

    /// The stalls so far that fail a test, oldest first.
    ///
    /// Takes some milliseconds: it waits until the detector has looked at everything that has happened. Whoever
    /// has seen them is not failed for them when the watch is dropped.
    pub fn recorded(&mut self) -> Vec<StallReport> {
        self.asserted = true;
        self.failing()
    }

    /// Fails if there was any stall.
    ///
    /// # Panics
    ///
    /// With all stalls that there were.
    #[track_caller]
    pub fn assert_none(mut self) {
        self.assert_at_most_inner(0);
    }

    /// Fails if there were more than `most` stalls.
    ///
    /// # Panics
    ///
    /// With all stalls that there were.
    ///
    /// # Examples
    ///
    /// ```
    /// # use std::time::Duration;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// let stalls = tokio_stall::testing::watch();
    /// tokio::spawn(async { std::thread::sleep(Duration::from_millis(50)) }).await.unwrap();
    /// stalls.assert_at_most(1);
    /// # }
    /// ```
    ///
    /// ```should_panic
    /// # use std::time::Duration;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// let stalls = tokio_stall::testing::watch();
    /// # let long = if cfg!(target_os = "linux") { 50 } else { 3000 };
    /// for _ in 0..2 {
    ///     # let sleep = async move { std::thread::sleep(Duration::from_millis(long)) };
    ///     # #[cfg(any())]
    ///     let sleep = async { std::thread::sleep(Duration::from_millis(50)) };
    ///     tokio::spawn(sleep).await.unwrap();
    /// }
    /// stalls.assert_at_most(1);
    /// # }
    /// ```
    #[track_caller]
    pub fn assert_at_most(mut self, most: usize) {
        self.assert_at_most_inner(most);
    }

    #[track_caller]
    fn assert_at_most_inner(&mut self, most: usize) {
        self.asserted = true;
        let failing = self.failing();
        if failing.len() > most {
            panic!(
                "{}",
                TooMany {
                    failing: &failing,
                    most
                }
            );
        }
    }

    /// Begins to say which stall is expected; [`Expectation::seen`] asserts it.
    ///
    /// # Examples
    ///
    /// ```
    /// # use std::time::Duration;
    /// use tokio_stall::{Blocking, Cause, FutureExt as _};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// let mut stalls = tokio_stall::testing::watch();
    /// # let (long, cause) = if cfg!(target_os = "linux") {
    /// #     (50, Cause::Blocked(Blocking::Sleep))
    /// # } else {
    /// #     (3000, Cause::Unknown)
    /// # };
    /// # let sleep = async move { std::thread::sleep(Duration::from_millis(long)) };
    /// # #[cfg(any())]
    /// let sleep = async { std::thread::sleep(Duration::from_millis(50)) };
    /// tokio::spawn(sleep.watched("reindex")).await.unwrap();
    ///
    /// # stalls.expect().in_span("reindex").caused_by(cause).seen();
    /// # #[cfg(any())]
    /// stalls.expect().in_span("reindex").caused_by(Cause::Blocked(Blocking::Sleep)).seen();
    /// stalls.assert_none(); // besides that one
    /// # }
    /// ```
    ///
    /// ```should_panic
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// let mut stalls = tokio_stall::testing::watch();
    /// stalls.expect().in_span("reindex").seen(); // nothing has stalled
    /// # }
    /// ```
    pub fn expect(&mut self) -> Expectation<'_> {
        Expectation {
            watch: self,
            span: None,
            site: None,
            cause: None,
        }
    }

    /// Stalls a worker, and waits until that has been seen.
    #[track_caller]
    fn plant(&mut self, runtime: &Handle) {
        let seen = Arc::new(AtomicBool::new(false));
        let name = names::number(names::Name::Text(PLANTED));
        let is_driver = tokio::runtime::worker_index().is_some();
        if !is_driver {
            let seen = seen.clone();
            runtime.spawn(async move {
                stall_until(name, || seen.load(Ordering::Relaxed));
            });
        }
        let look = || {
            let found = self
                .guard
                .recent()
                .into_iter()
                .find(|report| report.certainty == Certainty::Certain && is_planted(report));
            found.map(|report| report.id)
        };
        let planted = if is_driver {
            stall_until(name, || look().is_some());
            look()
        } else {
            let deadline = Instant::now() + PATIENCE;
            while look().is_none() && Instant::now() < deadline {
                std::thread::sleep(STEP);
            }
            seen.store(true, Ordering::Relaxed);
            look()
        };
        self.planted = planted;
        if planted.is_none() {
            self.asserted = true;
            panic!(
                "`testing::watch` is blind: it has not seen a stall of {PATIENCE:?} planted on this runtime; {:?}, {:?}",
                self.guard.coverage(),
                self.guard.status(),
            );
        }
    }

    /// Waits until the threads of all workers are known. Of others it takes ten times as long to be sure, and on a
    /// busy machine a thread may come too late to be known from the start.
    fn gather(&self) {
        let unknown = || {
            let coverage = self.guard.coverage();
            coverage
                .iter()
                .map(|of| of.workers - of.known_threads)
                .sum::<usize>()
        };
        crate::probe::allow_blocking("a test waits for the detector", || {
            let deadline = Instant::now() + PATIENCE;
            while unknown() > 0 && Instant::now() < deadline {
                for runtime in self.guard.runtimes() {
                    probe::gather(&runtime.handle, GATHERING).wait();
                }
                std::thread::sleep(STEP);
            }
        });
        if unknown() > 0 {
            eprintln!(
                "tokio-stall: {} workers get no CPU; of these, only stalls of a tenth of a second are found",
                unknown()
            );
        }
    }

    /// Waits until the detector has seen and said all that has happened until now.
    #[track_caller]
    fn settle(&self) {
        crate::probe::allow_blocking("a test waits for the detector", || {
            let deadline = Instant::now() + PATIENCE;
            let ticks = || self.guard.status().ticks;
            let enough = ticks() + 3;
            while ticks() < enough && Instant::now() < deadline {
                std::thread::sleep(STEP);
            }
            let is_told = || {
                let recent = self.guard.recent();
                let certain = recent
                    .iter()
                    .filter(|report| report.certainty == Certainty::Certain);
                let counted: u64 = self
                    .guard
                    .status()
                    .runtimes
                    .iter()
                    .map(|of| of.stalls)
                    .sum();
                let not_yet = Missing::Stack(NoStack::NotYet);
                certain.count() as u64 >= counted
                    && recent.iter().all(|report| {
                        report.phase == Phase::Ended && !report.missing.contains(&not_yet)
                            || is_planted(report)
                    })
            };
            while !is_told() && Instant::now() < deadline {
                std::thread::sleep(STEP);
            }
        });
    }

    #[track_caller]
    fn failing(&mut self) -> Vec<StallReport> {
        self.settle();
        let dropped = self.guard.status().dropped_reports;
        assert!(
            dropped == 0,
            "{dropped} reports were dropped, since a logger or callback is stuck: the watch cannot tell"
        );
        let mut failing = Vec::new();
        for report in self.guard.recent() {
            if self.planted == Some(report.id)
                || is_planted(&report)
                || self.expected.contains(&report.id)
            {
                continue;
            }
            match blame(&report) {
                Blame::Code => {
                    let passes = |known: &Baseline| known.knows(report.site.as_ref(), report.cause);
                    if !self.known.as_ref().is_some_and(passes) {
                        failing.push(report);
                    }
                }
                Blame::Host => eprintln!(
                    "tokio-stall: by no fault of the code: {}",
                    Headline::of(&report)
                ),
                Blame::Nobody => {}
            }
        }
        failing
    }
}

enum Blame {
    Code,
    Host,
    /// Not certain.
    Nobody,
}

/// Whether a stall fails a test.
fn blame(report: &StallReport) -> Blame {
    if report.certainty != Certainty::Certain {
        return Blame::Nobody;
    }
    let unknown = report.cause == Cause::Unknown && crate::os::own_usage().is_some();
    let is_excused = || {
        let slept = report.stacks.iter().map(|stack| {
            let frames = of_the_poll(&stack.frames);
            verdict::slept(frames)
        });
        let slept: Vec<Slept> = slept.collect();
        let by_code = |slept: &Slept| match slept {
            Slept::In(kind) => *kind != Blocking::Other,
            Slept::InFile => true,
            _ => false,
        };
        let blocked = matches!(report.cause, Cause::Blocked(_));
        let excused = slept.iter().any(|slept| matches!(slept, Slept::Excused(_)));
        // One stack may be of a thread that was about to start another, and the next of its waiting for it.
        blocked && excused && !slept.iter().any(by_code)
    };
    if report.cause.is_host() || unknown || is_excused() {
        Blame::Host
    } else {
        Blame::Code
    }
}

fn is_planted(report: &StallReport) -> bool {
    report
        .span
        .as_deref()
        .is_some_and(|span| span.contains(PLANTED))
}

/// How long each worker is held, so that all come.
const GATHERING: Duration = Duration::from_millis(2);

/// Between two looks.
const STEP: Duration = Duration::from_micros(500);

/// Holds the calling thread in a marked poll until `seen` says so.
fn stall_until(name: u32, seen: impl Fn() -> bool) {
    let slot = slot::begin(Mark::NAME, name.into());
    let deadline = Instant::now() + PATIENCE;
    while !seen() && Instant::now() < deadline {
        std::thread::sleep(STEP);
    }
    slot.end_uncounted();
}

impl Drop for Watch {
    fn drop(&mut self) {
        if self.asserted || std::thread::panicking() {
            return;
        }
        self.asserted = true;
        let failing = self.failing();
        if !failing.is_empty() {
            panic!(
                "{}",
                TooMany {
                    failing: &failing,
                    most: 0
                }
            );
        }
    }
}

struct TooMany<'a> {
    failing: &'a [StallReport],
    most: usize,
}

impl fmt::Display for TooMany<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.most {
            0 => f.write_str("expected no stalls, saw ")?,
            most => write!(f, "expected at most {most} stalls, saw ")?,
        }
        write!(f, "{}", self.failing.len())?;
        for report in self.failing {
            write!(f, "\n\n{report}")?;
        }
        Ok(())
    }
}

/// Which stall is expected; made by [`Watch::expect`]. What is not said may be anything.
#[derive(Debug)]
#[must_use = "nothing is asserted until `seen`"]
pub struct Expectation<'a> {
    watch: &'a mut Watch,
    span: Option<String>,
    site: Option<String>,
    cause: Option<Cause>,
}

impl Expectation<'_> {
    /// In a span, or a future watched under a name, with this in its path.
    pub fn in_span(mut self, part: impl Into<String>) -> Self {
        self.span = Some(part.into());
        self
    }

    /// At a site with this in it: in its function's path, or `file.rs:42`.
    pub fn at_site(mut self, part: impl Into<String>) -> Self {
        self.site = Some(part.into());
        self
    }

    /// For this cause.
    pub fn caused_by(mut self, cause: Cause) -> Self {
        self.cause = Some(cause);
        self
    }

    /// Fails unless there was such a stall. Returns all that fit; later assertions pass over them.
    ///
    /// # Panics
    ///
    /// With what was expected, and all stalls that there were.
    #[track_caller]
    pub fn seen(self) -> Vec<StallReport> {
        let all = self.watch.failing();
        let (fit, others): (Vec<_>, Vec<_>) = all.into_iter().partition(|report| self.fits(report));
        if fit.is_empty() {
            self.watch.asserted = true;
            let several = others.iter().map(|report| format!("\n\n{report}"));
            panic!(
                "expected a stall{}, saw {} others{}",
                self.wanted(),
                others.len(),
                several.collect::<String>()
            );
        }
        self.watch
            .expected
            .extend(fit.iter().map(|report| report.id));
        fit
    }

    fn fits(&self, report: &StallReport) -> bool {
        let has = |part: &Option<String>, text: Option<String>| {
            part.as_ref()
                .is_none_or(|part| text.is_some_and(|text| text.contains(part)))
        };
        has(&self.span, report.span.clone())
            && has(&self.site, report.site.as_ref().map(ToString::to_string))
            && self.cause.is_none_or(|cause| cause == report.cause)
    }

    fn wanted(&self) -> String {
        let mut wanted = String::new();
        if let Some(span) = &self.span {
            wanted.push_str(&format!(" in span {span:?}"));
        }
        if let Some(site) = &self.site {
            wanted.push_str(&format!(" at site {site:?}"));
        }
        if let Some(cause) = self.cause {
            wanted.push_str(&format!(" caused by {cause}"));
        }
        wanted
    }
}
