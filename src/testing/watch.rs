//! `watch()`: the detector watches a whole test, with all tasks that it spawns.
//!
//! *Runs on:* the thread of the test.
//! *Must not:* pass without proof that the detector sees: a stall is planted at the start.
//!
//! It is the same watch as in production, with a shorter tick. An assertion waits until the
//! detector has reported all stalls.

use super::baseline::Baseline;
use super::verdict::{self, Slept};
use super::wait::wait_until;
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

/// Watches the runtime of the test until the value is dropped, then fails if a poll stalled a
/// worker.
///
/// A stall is one poll that slept in the kernel, or computed, for 10 ms. Only
/// [`Certain`](Certainty::Certain) stalls that the code has caused count. Stalls caused by the host
/// are listed on standard error. For another threshold, or names, see [`watch_with`].
///
/// It works in `#[tokio::test]` of both flavours, and sees all tasks. Other runtimes of the same
/// process have watches of their own and are not seen.
///
/// In the multi-thread flavour, **the body of the test itself** does not run on a worker, so it
/// cannot stall one and is not seen. Spawn the code under test, or use
/// [`assert_never_blocks`](super::assert_never_blocks) or [`block_on`](super::block_on).
///
/// A sleeper whose stack cannot be read without a signal is woken by it. On an overloaded machine
/// the rest of a short sleep then passes in a run queue, and that is not blamed. So such sleeps of
/// less than some 50 ms can be missed there. The other assertions do not have this gap.
///
/// On systems other than Linux the threshold is one second, since nothing shows there when a thread
/// sleeps; a line on standard error explains it.
///
/// # Panics
///
/// If there is no runtime, if it is watched already, or if a stall planted on it is not seen within
/// ten seconds, or longer on a busy machine: a watch that sees nothing must not pass. The drop
/// panics if there were stalls and no assertion, unless the test is panicking already.
///
/// # Cost
///
/// It takes some 20 ms for the planted stall, and a few percent of a core.
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
/// # let long = if cfg!(target_os = "linux") { 250 } else { 3000 };
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

/// The tick in a test. Each takes some 20 µs of CPU.
const TICK: Duration = Duration::from_millis(1);

/// Watches like [`watch`](watch()), with a builder of your own: another threshold, other runtimes,
/// names, callbacks.
///
/// # Panics
///
/// Like [`watch`](watch()), and if the builder does not [`start`](Builder::start).
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

/// The number of stalls kept in a test: more than a test needs.
const RECENT: usize = 4096;

/// The longest wait for the threads of all workers. Beyond it, the watch tells what it misses.
const LONGEST_GATHERING: Duration = Duration::from_secs(10);

/// The name of the planted stall.
const PLANTED: &str = "planted by tokio_stall::testing";

/// The stalls of a test; made by [`watch`](watch()).
#[derive(Debug)]
#[must_use = "the watch ends, and fails the test, when this is dropped: bind it to a name"]
pub struct Watch {
    guard: Guard,
    planted: Option<u64>,
    /// The numbers of the stalls that were expected.
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
    /// It takes some milliseconds, until the detector has reported all stalls so far. After this
    /// call the drop of the watch does not fail the test.
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
    /// # let long = if cfg!(target_os = "linux") { 250 } else { 3000 };
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

    /// Begins the description of an expected stall; [`Expectation::seen`] asserts it.
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
    /// #     (250, Cause::Blocked(Blocking::Sleep))
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

    /// Stalls a worker, and waits until the detector has seen it.
    #[track_caller]
    fn plant(&mut self, runtime: &Handle) {
        let name = names::number(names::Name::Text(PLANTED));
        if tokio::runtime::worker_index().is_some() {
            stall_until(name, || self.planted_stall().is_some());
        } else {
            self.plant_on_a_worker(runtime, name);
        }
        self.planted = self.planted_stall();
        if self.planted.is_none() {
            self.asserted = true;
            panic!(
                "`testing::watch` is blind: it has not seen a stall planted on this runtime; {:?}, {:?}",
                self.guard.coverage(),
                self.guard.status(),
            );
        }
    }

    fn plant_on_a_worker(&self, runtime: &Handle, name: u32) {
        let seen = Arc::new(AtomicBool::new(false));
        let is_seen = seen.clone();
        runtime.spawn(async move {
            stall_until(name, || is_seen.load(Ordering::Relaxed));
        });
        wait_until(|| self.planted_stall().is_some());
        seen.store(true, Ordering::Relaxed);
    }

    /// The number of the planted stall, once it has been reported.
    fn planted_stall(&self) -> Option<u64> {
        let recent = self.guard.recent();
        let is_it =
            |report: &&StallReport| report.certainty == Certainty::Certain && is_planted(report);
        recent.iter().find(is_it).map(|report| report.id)
    }

    /// Waits until the threads of all workers are known. On an unknown thread a stall takes ten
    /// times as long to be certain, and on a busy machine a thread may come too late to be known
    /// from the start.
    fn gather(&self) {
        probe::allow_blocking("a test waits for the detector", || {
            let deadline = Instant::now() + LONGEST_GATHERING;
            while self.unknown_threads() > 0 && Instant::now() < deadline {
                for runtime in self.guard.runtimes() {
                    probe::gather(&runtime.handle, GATHERING).wait();
                }
                std::thread::sleep(STEP);
            }
        });
        let unknown = self.unknown_threads();
        if unknown > 0 {
            eprintln!(
                "tokio-stall: {unknown} workers get no CPU; of these, only stalls of a tenth of a second are found"
            );
        }
    }

    /// The number of workers whose threads are not known.
    fn unknown_threads(&self) -> usize {
        let coverage = self.guard.coverage();
        let unknown = coverage.iter().map(|of| of.workers - of.known_threads);
        unknown.sum()
    }

    /// Waits until the detector has seen and reported all stalls until now.
    #[track_caller]
    fn settle(&self) {
        let ticks = || self.guard.status().ticks;
        let enough = ticks() + 3;
        probe::allow_blocking("a test waits for the detector", || {
            wait_until(|| ticks() >= enough && self.is_all_reported());
        });
        assert!(
            ticks() >= enough,
            "the detector has not looked at the workers for long: the watch cannot tell"
        );
    }

    /// Whether all counted stalls are kept, each with its last report and its stacks.
    fn is_all_reported(&self) -> bool {
        let recent = self.guard.recent();
        let is_certain = |report: &&StallReport| report.certainty == Certainty::Certain;
        let certain = recent.iter().filter(is_certain).count() as u64;
        let status = self.guard.status();
        let counted: u64 = status.runtimes.iter().map(|of| of.stalls).sum();
        let not_yet = Missing::Stack(NoStack::NotYet);
        let is_complete = |report: &StallReport| {
            report.phase == Phase::Ended && !report.missing.contains(&not_yet) || is_planted(report)
        };
        certain >= counted && recent.iter().all(is_complete)
    }

    #[track_caller]
    fn failing(&mut self) -> Vec<StallReport> {
        self.settle();
        let dropped = self.guard.status().dropped_reports;
        assert!(
            dropped == 0,
            "{dropped} reports were dropped, since a logger or callback is stuck: the watch cannot tell"
        );
        let mut reports = self.guard.recent();
        reports.retain(|report| self.fails(report));
        reports
    }

    /// Whether a stall fails the test. A stall of the host is listed.
    fn fails(&self, report: &StallReport) -> bool {
        let is_planted = self.planted == Some(report.id) || is_planted(report);
        if is_planted || self.expected.contains(&report.id) {
            return false;
        }
        match blame(report) {
            Blame::Code => {
                let passes = |known: &Baseline| known.knows(report.site.as_ref(), report.cause);
                !self.known.as_ref().is_some_and(passes)
            }
            Blame::Host => {
                let headline = Headline::of(report);
                eprintln!("tokio-stall: by no fault of the code: {headline}");
                false
            }
            Blame::Nobody => false,
        }
    }
}

/// The cause of a stall, in a test.
enum Blame {
    Code,
    Host,
    /// The stall is not certain.
    Nobody,
}

/// The cause of a stall, for the decision whether it fails a test.
fn blame(report: &StallReport) -> Blame {
    if report.certainty != Certainty::Certain {
        return Blame::Nobody;
    }
    let is_unknown = report.cause == Cause::Unknown && crate::os::own_usage().is_some();
    if report.cause.is_host() || is_unknown || is_excused(report) || is_unexplained(report) {
        Blame::Host
    } else {
        Blame::Code
    }
}

/// Whether a blocked thread slept where no code can avoid it, by all stacks of the stall.
fn is_excused(report: &StallReport) -> bool {
    let kinds = report.stacks.iter().map(|stack| {
        let frames = of_the_poll(&stack.frames);
        verdict::slept(frames)
    });
    let kinds: Vec<Slept> = kinds.collect();
    let is_by_code = |slept: &Slept| match slept {
        Slept::In(kind) => *kind != Blocking::Other,
        Slept::InQuickCall(_) => true,
        _ => false,
    };
    let is_blocked = matches!(report.cause, Cause::Blocked(_));
    let excused = kinds.iter().any(|slept| matches!(slept, Slept::Excused(_)));
    // One stack may show the start of a thread, which is excused, and the next one a wait for it.
    is_blocked && excused && !kinds.iter().any(is_by_code)
}

/// Whether a thread waited for a lock, for no longer than an inner lock is held on a busy machine,
/// and this time no stack was to be had, which would show whose lock it was.
fn is_unexplained(report: &StallReport) -> bool {
    let is_short = report.time.asleep < LONGEST_INNER_WAIT;
    let is_lock = report.cause == Cause::Blocked(Blocking::Lock);
    let not_this_time =
        |missing: &Missing| matches!(missing, Missing::Stack(why) if !why.is_final());
    is_short && is_lock && report.missing.iter().any(not_this_time)
}

/// The longest wait for a lock inside of tokio or the allocator that the host explains (D192).
const LONGEST_INNER_WAIT: Duration = Duration::from_secs(1);

fn is_planted(report: &StallReport) -> bool {
    report
        .span
        .as_deref()
        .is_some_and(|span| span.contains(PLANTED))
}

/// The longest time for which each worker is held to find its thread.
const GATHERING: Duration = Duration::from_millis(2);

/// The time between two checks of a condition.
const STEP: Duration = Duration::from_micros(500);

/// Holds the calling thread in a marked poll until the stall is seen.
fn stall_until(name: u32, seen: impl Fn() -> bool) {
    let slot = slot::begin(Mark::NAME, name.into());
    wait_until(seen);
    slot.end_uncounted();
}

impl Drop for Watch {
    fn drop(&mut self) {
        if self.asserted || std::thread::panicking() {
            return;
        }
        self.assert_at_most_inner(0);
    }
}

/// The text of a failure.
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

/// The description of an expected stall; made by [`Watch::expect`]. A stall fits if all given parts
/// do.
#[derive(Debug)]
#[must_use = "nothing is asserted until `seen`"]
pub struct Expectation<'a> {
    watch: &'a mut Watch,
    span: Option<String>,
    site: Option<String>,
    cause: Option<Cause>,
}

impl Expectation<'_> {
    /// Expects a span, or the name of a watched future, with this in its path.
    pub fn in_span(mut self, part: impl Into<String>) -> Self {
        self.span = Some(part.into());
        self
    }

    /// Expects a site with this in it: in its function's path, or `file.rs:42`.
    pub fn at_site(mut self, part: impl Into<String>) -> Self {
        self.site = Some(part.into());
        self
    }

    /// Expects this cause.
    pub fn caused_by(mut self, cause: Cause) -> Self {
        self.cause = Some(cause);
        self
    }

    /// Fails unless there was such a stall. Returns all that fit; later assertions ignore these.
    ///
    /// # Panics
    ///
    /// With the description, and all stalls that there were.
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

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn waits(blocking: Blocking, time: Duration, missing: Option<NoStack>) -> StallReport {
        let mut report = StallReport::example();
        report.cause = Cause::Blocked(blocking);
        report.time.asleep = time;
        report.missing = missing.map(Missing::Stack).into_iter().collect();
        report
    }

    #[test]
    fn a_short_wait_for_a_lock_is_nobodys_if_no_stack_was_to_be_had_this_time() {
        let short = Duration::from_millis(30);
        for why in [NoStack::MovedOn, NoStack::Busy, NoStack::RateLimited] {
            assert!(is_unexplained(&waits(Blocking::Lock, short, Some(why))));
        }
        // Positive controls: each is the code's.
        let long = Duration::from_secs(1);
        for report in [
            waits(Blocking::Lock, short, None),
            waits(Blocking::Lock, short, Some(NoStack::Off)),
            waits(Blocking::Lock, long, Some(NoStack::MovedOn)),
            waits(Blocking::Sleep, short, Some(NoStack::MovedOn)),
        ] {
            assert!(!is_unexplained(&report), "{report}");
        }
    }
}
