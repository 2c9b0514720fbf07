//! A blocking call that was found, and its text: call, site, cause, durations, advice.
//!
//! *Runs on:* the measured thread, after a measurement that shows a sleep or a breach of its
//! budget.
//!
//! It unwinds and names the stack, which takes some ten milliseconds the first time. The work is
//! not measured.

use super::baseline::Baseline;
use super::meter::{Allowed, Cost, FirstSleep, NoSignal, SeenStacks, ThreadCost};
use super::never_blocks::Excused;
use super::verdict::{self, Excuse, Slept, Verdict};
use crate::capture::RawStack;
use crate::explain::{Explainer, OwnCode, advice};
use crate::report::site;
use crate::report::{Blocking, Cause, Frame, Human, Site};
use parking_lot::Mutex;
use std::fmt;
use std::time::Duration;

/// A call that blocked its thread, or a poll that computed for too long, as
/// [`assert_never_blocks`](super::assert_never_blocks) and its relatives find it.
///
/// `Display` writes several lines for people: the text of a failed test.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct BlockingCall {
    /// A description of the poll.
    pub poll: String,
    /// The duration of the poll.
    pub duration: Duration,
    /// The time asleep.
    pub asleep: Duration,
    /// The time on a CPU.
    pub cpu: Duration,
    /// The time of waiting for a CPU, which is not blamed.
    pub run_queue: Duration,
    /// The number of sleeps: voluntary context switches.
    pub sleeps: u64,
    /// The cause.
    pub cause: Cause,
    /// The line of the user's own code, if there is a stack.
    pub site: Option<Site>,
    /// The stack of the first sleep, innermost call first; empty if none could be taken. Of a poll
    /// that computed for too long, the stack when its budget was used up: other lines have computed
    /// before it.
    pub stack: Vec<Frame>,
    /// A sentence with the code to write instead, if there is an advice for the call.
    pub advice: Option<String>,
    /// The budget of CPU time, if the poll has exceeded it.
    pub cpu_budget: Option<Duration>,
    /// Why there is no stack, if `stack` is empty.
    no_stack: &'static str,
}

/// The result for a measured poll.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    /// A sleep, and computing beyond the budget: one poll can do both.
    found: Vec<BlockingCall>,
    /// A delay that is not the code's. It is listed.
    excused: Option<(Excuse, ThreadCost)>,
}

impl Outcome {
    pub(super) fn is_clean(&self) -> bool {
        self.found.is_empty() && self.excused.is_none()
    }

    /// Adds an excuse to the list. Returns the calls that were found and are not in the baseline.
    pub(super) fn unexcused(
        self,
        excused: &mut Excused,
        known: Option<&Baseline>,
    ) -> Vec<BlockingCall> {
        if let Some((excuse, thread)) = self.excused {
            excused.add(excuse, thread.asleep + thread.run_queue);
        }
        let passes = |call: &BlockingCall| {
            known.is_some_and(|known| known.knows(call.site.as_ref(), call.cause))
        };
        let found = self.found.into_iter();
        found.filter(|call| !passes(call)).collect()
    }
}

/// Judges a measured poll.
pub(super) fn look_into(
    cost: &Cost,
    seen: SeenStacks,
    cpu_budget: Option<Duration>,
    poll: impl Fn() -> String,
) -> Outcome {
    let (slept, frames) = look_at(cost, seen.first_sleep);
    let mut outcome = Outcome::default();
    match verdict::judge(cost, slept) {
        Verdict::Clean => {}
        Verdict::Excused(excuse) => {
            outcome.excused = Some((excuse, cost.thread.unwrap_or_default()));
        }
        Verdict::Blocked => {
            let cause = blocked_cause(slept);
            outcome.found.push(found(cost, cause, frames, poll()));
        }
        Verdict::NoProgress => {
            let call = found(cost, Cause::Unknown, Vec::new(), poll());
            outcome.found.push(call);
        }
    }
    if let Some(budget) = verdict::exceeded(cost, cpu_budget) {
        outcome
            .found
            .push(computed(cost, seen.past_budget, budget, poll()));
    }
    outcome
}

/// A poll that has computed beyond its budget, and its stack at that time.
fn computed(
    cost: &Cost,
    seen: Result<RawStack, NoSignal>,
    budget: Duration,
    poll: String,
) -> BlockingCall {
    let went_on = cost.thread.unwrap_or_default().cpu.saturating_sub(budget);
    let (frames, no_stack) = match seen {
        Ok(stack) => (explain(&stack), NOT_FOLLOWED),
        Err(why) => (Vec::new(), why.reason(went_on)),
    };
    BlockingCall {
        cpu_budget: Some(budget),
        no_stack,
        ..found(cost, Cause::Cpu, frames, poll)
    }
}

const NOT_FOLLOWED: &str = "the stack of the thread cannot be followed here";

/// The kind of the first sleep, and its stack if it was worth naming.
fn look_at(cost: &Cost, first_sleep: FirstSleep) -> (Slept, Vec<Frame>) {
    let stack = match first_sleep {
        FirstSleep::NotAsked => return (Slept::NotAsked, Vec::new()),
        FirstSleep::None => return (Slept::NotSeen, Vec::new()),
        FirstSleep::Stack(stack) => stack,
    };
    // Assumed to be the code's own until its stack is named.
    let assumed = Slept::In(Blocking::Other);
    if verdict::judge(cost, assumed) != Verdict::Blocked {
        return (assumed, Vec::new());
    }
    let frames = explain(&stack);
    if frames.is_empty() {
        return (Slept::NotAsked, frames);
    }
    (verdict::slept(&frames), frames)
}

fn blocked_cause(slept: Slept) -> Cause {
    Cause::Blocked(match slept {
        Slept::In(kind) | Slept::InQuickCall(kind) => kind,
        Slept::NotAsked | Slept::NotSeen | Slept::Excused(_) => Blocking::Other,
    })
}

fn found(cost: &Cost, cause: Cause, frames: Vec<Frame>, poll: String) -> BlockingCall {
    let thread = cost.thread.unwrap_or_default();
    let shown = verdict::of_the_measured(&frames);
    // Frames up to the assertion have no scheduler among them.
    let site = match shown.len() < frames.len() {
        true => site::innermost_own(shown),
        false => site::site(shown),
    };
    let call = shown.first().and_then(|frame| frame.function.as_deref());
    BlockingCall {
        poll,
        duration: cost.wall,
        asleep: thread.asleep,
        cpu: thread.cpu,
        run_queue: thread.run_queue,
        sleeps: thread.sleeps,
        cause,
        site,
        advice: advice::advise(shown, cause, call).map(str::to_owned),
        stack: shown.to_vec(),
        cpu_budget: None,
        no_stack: "none could be taken here",
    }
}

/// The explainer of the process: it reads tables and debug information once for all tests.
static EXPLAINER: Mutex<Option<Explainer>> = Mutex::new(None);

fn explain(stack: &RawStack) -> Vec<Frame> {
    // This work does not count for a measurement around this one, nor for a watch.
    let _allowed = Allowed::begin();
    crate::probe::allow_blocking("a test names what it has found", || {
        let mut explainer = EXPLAINER.lock();
        let explained = explainer
            .get_or_insert_with(Explainer::default)
            .explain(stack, &OwnCode::default());
        explained.map_or(Vec::new(), |explained| explained.frames)
    })
}

impl BlockingCall {
    /// The entry for a baseline file that lets this call pass; `None` without a site, and for a
    /// poll that computed for too long: the next time, its budget may end at another line.
    pub fn baseline_entry(&self) -> Option<String> {
        if self.cause == Cause::Cpu {
            return None;
        }
        Baseline::entry(self.site.as_ref()?, self.cause)
    }
}

/// The texts of several calls, with an empty line in between.
pub(super) fn texts(calls: &[BlockingCall]) -> String {
    let texts: Vec<String> = calls.iter().map(ToString::to_string).collect();
    texts.join("\n\n")
}

/// The most frames of libraries shown below the innermost own one.
const CALLED: usize = 6;

impl fmt::Display for BlockingCall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write_headline(f)?;
        if let Some(site) = &self.site {
            write!(f, "\n  where     {site}")?;
            if self.cause == Cause::Cpu {
                f.write_str(", when the budget was used up")?;
            }
        }
        write!(f, "\n  in        {}", self.poll)?;
        self.write_reason(f)?;
        self.write_stack(f)?;
        self.write_advice(f)?;
        f.write_str("\n  or        say why it may: `tokio_stall::allow_blocking(\"…\", || …)`")?;
        if let Some(entry) = self.baseline_entry() {
            f.write_str("; for later, in a baseline file:")?;
            for line in entry.lines() {
                write!(f, "\n                {line}")?;
            }
        } else if self.stack.is_empty() {
            write!(
                f,
                "\n  missing   no stack, hence no line: {}",
                self.no_stack
            )?;
        }
        Ok(())
    }
}

impl BlockingCall {
    fn write_headline(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.cause, self.cpu_budget) {
            (Cause::Cpu, Some(budget)) => write!(
                f,
                "one poll computed for {}, more than its budget of {}",
                Human(self.cpu),
                Human(budget)
            ),
            (Cause::Unknown, _) => write!(
                f,
                "one poll did not come back for {}; this system does not tell what threads do, so only what \
                 takes longer than {} is found, and not why",
                Human(self.duration),
                Human(verdict::NO_PROGRESS)
            ),
            _ => write!(f, "blocked its thread: asleep for {}", Human(self.asleep)),
        }
    }

    fn write_reason(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.cause == Cause::Unknown {
            return Ok(());
        }
        write!(
            f,
            "\n  why       {}: asleep {} in {} sleep{}, computing {}; without a CPU {}, which does not count",
            self.cause,
            Human(self.asleep),
            self.sleeps,
            if self.sleeps == 1 { "" } else { "s" },
            Human(self.cpu),
            Human(self.run_queue)
        )
    }

    fn write_advice(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let advice = match (&self.advice, self.cause) {
            (Some(advice), _) => advice,
            (None, Cause::Cpu) => "Move the computation to `spawn_blocking`, or yield in between.",
            (None, _) => "Await instead of blocking, or move the call to `spawn_blocking`.",
        };
        write!(f, "\n  do        {advice}")
    }

    fn write_stack(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = crate::report::of_the_poll(&self.stack);
        let shown = if shown.is_empty() { &self.stack } else { shown };
        let is_own = |frame: &&Frame| frame.origin == crate::report::Origin::Own;
        let called = shown.iter().take_while(|frame| !is_own(frame)).take(CALLED);
        let lines = called.chain(shown.iter().filter(is_own));
        for (index, line) in lines.enumerate() {
            let title = if index == 0 { "stack" } else { "" };
            write!(f, "\n  {title:8}  {line}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn frame(function: &str, origin: crate::report::Origin) -> Frame {
        Frame {
            file: Some("/home/me/app/src/handlers.rs".to_owned()),
            line: Some(42),
            ..Frame::of(function, origin)
        }
    }

    fn call() -> BlockingCall {
        let stack = vec![
            frame("std::thread::sleep", crate::report::Origin::Std),
            frame(
                "app::handlers::get_user::{{closure}}",
                crate::report::Origin::Own,
            ),
        ];
        BlockingCall {
            poll: "poll 2 of app::main::{{closure}}, asserted at tests/users.rs:9:5".to_owned(),
            duration: 13 * MS,
            asleep: 12 * MS,
            cpu: MS / 4,
            run_queue: MS / 2,
            sleeps: 2,
            cause: Cause::Blocked(Blocking::Sleep),
            site: site::site(&stack),
            stack,
            advice: Some("Use `tokio::time::sleep(…).await`.".to_owned()),
            no_stack: "none could be taken here",
            cpu_budget: None,
        }
    }

    #[test]
    fn a_blocking_call_shows_site_cause_and_advice() {
        assert_eq!(
            call().to_string(),
            "blocked its thread: asleep for 12.0 ms
  where     app::handlers::get_user (src/handlers.rs:42)
  in        poll 2 of app::main::{{closure}}, asserted at tests/users.rs:9:5
  why       blocked/sleep: asleep 12.0 ms in 2 sleeps, computing 250 µs; without a CPU 500 µs, which does not count
  stack     std::thread::sleep (src/handlers.rs:42)
            app::handlers::get_user (src/handlers.rs:42)
  do        Use `tokio::time::sleep(…).await`.
  or        say why it may: `tokio_stall::allow_blocking(\"…\", || …)`; for later, in a baseline file:
                [[known]]
                site = \"app::handlers::get_user\"
                cause = \"blocked/sleep\""
        );
    }

    #[test]
    fn unknown_facts_are_not_claimed() {
        let unseen = BlockingCall {
            site: None,
            stack: Vec::new(),
            advice: None,
            cause: Cause::Blocked(Blocking::Other),
            ..call()
        };
        assert_eq!(
            unseen.to_string(),
            "blocked its thread: asleep for 12.0 ms
  in        poll 2 of app::main::{{closure}}, asserted at tests/users.rs:9:5
  why       blocked/other: asleep 12.0 ms in 2 sleeps, computing 250 µs; without a CPU 500 µs, which does not count
  do        Await instead of blocking, or move the call to `spawn_blocking`.
  or        say why it may: `tokio_stall::allow_blocking(\"…\", || …)`
  missing   no stack, hence no line: none could be taken here"
        );
        let no_progress = BlockingCall {
            cause: Cause::Unknown,
            duration: 1500 * MS,
            ..unseen.clone()
        };
        assert_eq!(
            no_progress.to_string().lines().next().unwrap(),
            "one poll did not come back for 1.50 s; this system does not tell what threads do, so only what \
             takes longer than 1.00 s is found, and not why"
        );
        let computed = BlockingCall {
            cause: Cause::Cpu,
            cpu: 30 * MS,
            cpu_budget: Some(10 * MS),
            ..unseen
        };
        assert_eq!(
            computed.to_string().lines().next().unwrap(),
            "one poll computed for 30.0 ms, more than its budget of 10.0 ms"
        );
    }
}
