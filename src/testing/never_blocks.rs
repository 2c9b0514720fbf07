//! `assert_never_blocks(future).await`: the polling thread measures every poll of one future.
//!
//! *Runs on:* the thread that polls the future, in any runtime.
//!
//! A poll costs about 3 µs more. At the end of a poll that blocked it panics, with all facts about
//! it.

use super::baseline::Baseline;
use super::finding;
use super::meter::{Cost, Measurement};
use super::verdict::{self, Excuse};
use crate::os;
use crate::report::Human;
use pin_project_lite::pin_project;
use std::future::Future;
use std::panic::Location;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

/// The budget of a poll for which none is given. A second has room for stolen time.
const DEFAULT_CPU_BUDGET: Duration = Duration::from_secs(1);

/// Awaits `future`, and fails if one of its polls blocks the thread.
///
/// A poll blocks if its thread goes to sleep in a system call of the code's own: a sleep, a lock
/// that another thread holds, a file that is synchronised, a channel, a join, a connection, another
/// process. The kernel's count of voluntary context switches and the time asleep decide, and never
/// the duration of the poll. So a busy machine neither fails the test nor hides a fault. A poll
/// that computes for more than a second fails, too, by the CPU time of its thread; a smaller
/// [budget](NeverBlocks::cpu_budget) finds more.
///
/// Delays by the host are listed on standard error and never fail: waits for a CPU, page faults,
/// and locks inside of the runtime, the allocator and the kernel whose holder has no CPU. Code
/// inside of [`allow_blocking`](crate::probe::allow_blocking), `spawn_blocking` or `block_in_place`
/// does not count.
///
/// In each poll the first sleep of 50 µs or more is judged. If it is excused, it hides later ones.
///
/// Only the future's own polls are measured, not tasks that it spawns; see
/// [`watch`](super::watch()) and [`block_on`](super::block_on) for those.
///
/// # Where there is less evidence
///
/// Without stacks there is no site, and sleeps shorter than 0.5 ms pass. See
/// [`Stacks`](crate::Stacks); there are also none if more than 32 threads measure at one time.
/// Systems other than Linux do not show when a thread sleeps: only polls of more than a second fail
/// there, and the failure explains it.
///
/// # Panics
///
/// At the end of the first poll that blocks.
///
/// # Cost
///
/// About 3 µs a poll, and a signal every 50 µs while a poll goes on.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
/// use tokio_stall::testing::assert_never_blocks;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let answer = assert_never_blocks(async {
///     tokio::time::sleep(Duration::from_millis(1)).await;
///     42
/// })
/// .await;
/// assert_eq!(answer, 42);
/// # }
/// ```
///
/// ```should_panic
/// use std::time::Duration;
/// use tokio_stall::testing::assert_never_blocks;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// # #[cfg(not(target_os = "linux"))]
/// # std::thread::sleep(Duration::from_secs(1));
/// assert_never_blocks(async { std::thread::sleep(Duration::from_millis(1)) }).await;
/// # #[cfg(not(target_os = "linux"))]
/// # panic!("one millisecond is not seen on this system");
/// # }
/// ```
#[track_caller]
pub fn assert_never_blocks<F: Future>(future: F) -> NeverBlocks<F> {
    NeverBlocks {
        future,
        asserted_at: Location::caller(),
        cpu_budget: None,
        known: None,
        polls: 0,
        excused: Excused::default(),
    }
}

pin_project! {
    /// A future whose polls must not block; made by [`assert_never_blocks`].
    #[derive(Debug)]
    #[must_use = "nothing is asserted unless it is awaited"]
    pub struct NeverBlocks<F> {
        #[pin]
        future: F,
        asserted_at: &'static Location<'static>,
        cpu_budget: Option<Duration>,
        known: Option<Baseline>,
        polls: u64,
        excused: Excused,
    }
}

impl<F> NeverBlocks<F> {
    /// Fails also if one poll computes for longer than this, by the CPU time of its thread.
    ///
    /// By default, the budget is a second: no honest poll takes that, and a query of a synchronous
    /// database may. `Duration::MAX` is no budget. Unoptimised code takes some ten times longer
    /// than optimised code. While the host of a virtual machine takes CPU time away, the thread's
    /// clock goes on. The time that the kernel counts as stolen is added to a budget that is given
    /// here.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::time::Duration;
    /// use tokio_stall::testing::assert_never_blocks;
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// let sum = async { (0..1000).sum::<u32>() };
    /// assert_never_blocks(sum).cpu_budget(Duration::from_millis(50)).await;
    /// # }
    /// ```
    ///
    /// ```should_panic
    /// use std::time::{Duration, Instant};
    /// use tokio_stall::testing::assert_never_blocks;
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// let spin = async {
    ///     let start = Instant::now();
    ///     while start.elapsed() < Duration::from_millis(200) {}
    /// };
    /// assert_never_blocks(spin).cpu_budget(Duration::from_millis(10)).await;
    /// # #[cfg(not(target_os = "linux"))]
    /// # panic!("CPU time is not told on this system");
    /// # }
    /// ```
    pub fn cpu_budget(mut self, budget: Duration) -> NeverBlocks<F> {
        self.cpu_budget = Some(budget);
        self
    }

    /// Lets the sites of a [`baseline`](super::baseline()) pass.
    pub fn known(mut self, baseline: &Baseline) -> NeverBlocks<F> {
        self.known = Some(baseline.clone());
        self
    }
}

impl<F: Future> Future for NeverBlocks<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        *this.polls += 1;
        let stolen_before = this.cpu_budget.and_then(|_| os::stolen());
        let measurement = Measurement::begin(Some(this.cpu_budget.unwrap_or(DEFAULT_CPU_BUDGET)));
        let result = this.future.poll(cx);
        let (cost, seen) = measurement.end();
        let budget = extended(*this.cpu_budget, &cost, stolen_before);
        let budget = Some(budget.unwrap_or(DEFAULT_CPU_BUDGET));
        let poll = || {
            let future = std::any::type_name::<F>();
            format!(
                "poll {} of {future}, asserted at {}",
                this.polls, this.asserted_at
            )
        };
        let outcome = finding::look_into(&cost, seen, budget, poll);
        let found = outcome.unexcused(this.excused, this.known.as_ref());
        if !found.is_empty() {
            panic!("{}", finding::texts(&found));
        }
        result
    }
}

/// The budget of a poll. If the poll exceeds it, the CPU time that the host has stolen is added.
fn extended(
    budget: Option<Duration>,
    cost: &Cost,
    stolen_before: Option<Duration>,
) -> Option<Duration> {
    let most = budget?;
    if cost.thread.is_none_or(|thread| thread.cpu <= most) {
        return budget;
    }
    let stolen = os::stolen().zip(stolen_before);
    let stolen = stolen.map(|(after, before)| after.saturating_sub(before));
    Some(verdict::with_stolen(most, stolen.unwrap_or_default()))
}

/// Excused delays by reason: how often, and how long in all. The drop lists them.
#[derive(Debug, Default)]
pub(super) struct Excused(Vec<(Excuse, u64, Duration)>);

impl Excused {
    pub(super) fn add(&mut self, excuse: Excuse, time: Duration) {
        match self.0.iter_mut().find(|(known, ..)| *known == excuse) {
            Some((_, count, total)) => {
                *count += 1;
                *total += time;
            }
            None => self.0.push((excuse, 1, time)),
        }
    }

    fn lines(&self) -> Vec<String> {
        let line = |(excuse, count, total): &(Excuse, u64, Duration)| {
            let (total, why) = (Human(*total), excuse.as_str());
            format!(
                "tokio-stall: held up {count} times, {total} in all, by no fault of the code: {why}"
            )
        };
        self.0.iter().map(line).collect()
    }
}

impl Drop for Excused {
    fn drop(&mut self) {
        for line in self.lines() {
            eprintln!("{line}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_by_the_host_are_listed_by_reason() {
        let mut excused = Excused::default();
        assert!(excused.lines().is_empty());
        excused.add(Excuse::NoCpu, Duration::from_millis(20));
        excused.add(Excuse::NoCpu, Duration::from_millis(22));
        assert_eq!(
            excused.lines(),
            [
                "tokio-stall: held up 2 times, 42.0 ms in all, by no fault of the code: without a CPU"
            ]
        );
        excused.0.clear();
    }
}
