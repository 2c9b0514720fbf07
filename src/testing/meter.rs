//! The cost of a stretch of code, measured by its own thread: wall time, CPU time, run queue,
//! sleeps.
//!
//! *Runs on:* the measured thread, in tests only. `allow_blocking` checks whether there is a
//! measurement.
//! *Must not:* count a wait for a CPU as sleep. The time between the two clocks of one reading
//! counts as a wait for a CPU, so errors are in favour of the code.

use crate::capture::{self, Addressee, RawStack, StackTimer};
use crate::clock::{self, Nanos};
use crate::os::{self, Usage};
use crate::probe::UNMEASURED;
use crate::slot;
use std::cell::RefCell;
use std::time::Duration;

/// The cost of a stretch of code, without that of its allowed regions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Cost {
    /// The duration by the wall clock.
    pub(crate) wall: Duration,
    /// The figures of the thread; `None` on systems that have none.
    pub(crate) thread: Option<ThreadCost>,
}

/// The figures of the system about a thread.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct ThreadCost {
    /// The time on a CPU.
    pub(crate) cpu: Duration,
    /// The time in which it was ready and had no CPU.
    pub(crate) run_queue: Duration,
    /// The rest of the time: asleep, or on a CPU that the host of a virtual machine has stolen.
    pub(crate) asleep: Duration,
    /// How often the thread gave up its CPU by itself.
    pub(crate) sleeps: u64,
}

/// The stacks that the timers have taken.
#[derive(Debug)]
pub(crate) struct SeenStacks {
    pub(crate) first_sleep: FirstSleep,
    /// The code that computed when the budget was used up.
    pub(crate) past_budget: Result<RawStack, NoSignal>,
}

impl SeenStacks {
    const NOT_ASKED: SeenStacks = SeenStacks {
        first_sleep: FirstSleep::NotAsked,
        past_budget: Err(NoSignal::NoTimer),
    };
}

/// Why there is no stack of a poll that has computed beyond its budget.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoSignal {
    /// All timers are in use, the system has none, or another handler has the signal.
    NoTimer,
    /// The timer that counts the CPU time of the thread could not be had.
    NoCpuTimer,
    /// A measurement inside this one has used the timer.
    TakenOver,
    /// The timer was set, and no signal of it has arrived.
    NotArrived,
}

impl NoSignal {
    /// The reason in a clause, for a poll that went on for so long after its budget.
    pub(super) fn reason(self, went_on: Duration) -> &'static str {
        match self {
            NoSignal::NoTimer if is_deaf() => DEAF,
            NoSignal::NoTimer => "the timers for stacks could not be had here",
            NoSignal::NoCpuTimer => "a timer of CPU time could not be had here",
            NoSignal::TakenOver => "an assertion inside this one had the timer",
            NoSignal::NotArrived if went_on < LATENESS => "the poll ended soon after its budget",
            NoSignal::NotArrived if is_deaf() => DEAF,
            NoSignal::NotArrived => "the timer of its budget has sent no signal",
        }
    }
}

const DEAF: &str = "the signal for stacks is blocked, or another handler has it";

/// The kernel looks at a budget of CPU time at its ticks.
const LATENESS: Duration = Duration::from_millis(20);

/// The first sleep that the timer has seen.
#[derive(Debug)]
pub(crate) enum FirstSleep {
    /// Unknown: stacks cannot be taken here, or all timers were in use.
    NotAsked,
    /// No sleep in a system call lasted for 50 µs.
    None,
    /// The stack of the sleep.
    Stack(RawStack),
}

/// The thread's figures and the wall clock at one end of a stretch.
#[derive(Clone, Copy, Debug)]
struct UsageReading {
    wall: Nanos,
    usage: Option<Usage>,
}

impl UsageReading {
    /// Reads the usage, then the clock: at a begin, a preemption in between makes the measured
    /// sleep shorter, and at an end longer.
    fn usage_first() -> UsageReading {
        let usage = os::own_usage();
        UsageReading {
            usage,
            wall: clock::now(),
        }
    }

    /// Reads the clock, then the usage: at an end, a preemption in between makes the measured
    /// sleep shorter, and at a begin longer.
    fn clock_first() -> UsageReading {
        let wall = clock::now();
        UsageReading {
            wall,
            usage: os::own_usage(),
        }
    }

    fn since(self, before: UsageReading) -> Cost {
        let wall = self.wall.since(before.wall);
        let thread = self.usage.zip(before.usage).map(|(after, before)| {
            let cpu = after.cpu.saturating_sub(before.cpu);
            let run_queue = after.run_queue.saturating_sub(before.run_queue);
            ThreadCost {
                cpu,
                run_queue,
                asleep: wall.saturating_sub(cpu + run_queue),
                sleeps: after.sleeps.saturating_sub(before.sleeps),
            }
        });
        Cost { wall, thread }
    }
}

impl Cost {
    fn without(self, allowed: Cost) -> Cost {
        let without = |thread: ThreadCost, allowed: ThreadCost| ThreadCost {
            cpu: thread.cpu.saturating_sub(allowed.cpu),
            run_queue: thread.run_queue.saturating_sub(allowed.run_queue),
            asleep: thread.asleep.saturating_sub(allowed.asleep),
            sleeps: thread.sleeps.saturating_sub(allowed.sleeps),
        };
        Cost {
            wall: self.wall.saturating_sub(allowed.wall),
            thread: self
                .thread
                .map(|thread| without(thread, allowed.thread.unwrap_or_default())),
        }
    }

    fn plus(self, other: Cost) -> Cost {
        let plus = |a: ThreadCost, b: ThreadCost| ThreadCost {
            cpu: a.cpu + b.cpu,
            run_queue: a.run_queue + b.run_queue,
            asleep: a.asleep + b.asleep,
            sleeps: a.sleeps + b.sleeps,
        };
        Cost {
            wall: self.wall + other.wall,
            thread: match (self.thread, other.thread) {
                (Some(a), Some(b)) => Some(plus(a, b)),
                (one, other) => one.or(other),
            },
        }
    }
}

/// The measurements of the calling thread.
#[derive(Default)]
struct Meter {
    timer: Timer,
    /// The number of measurements going on, one inside the other.
    depth: u32,
    /// The cost of the regions of `allow_blocking` so far.
    allowed: Cost,
    /// The number of regions of `allow_blocking` that are open.
    regions: u32,
    /// How often a measurement inside another one has taken over the timer.
    taken_over: u64,
}

/// The timers of a thread, which take stacks.
#[derive(Default)]
struct Timer {
    /// `None` if they could not be had.
    had: Option<StackTimer>,
    /// Whether it has been proven to see a sleep. One that sees none would excuse all of them.
    sees_sleeps: bool,
    /// How many measurements have tried to have it and to prove it.
    tries: u32,
}

/// How many measurements of a thread try at most.
const TRIES: u32 = 3;
/// How often each of them tries the proof. On a busy machine it may fail.
const PROOFS: usize = 5;

thread_local! {
    static METER: RefCell<Meter> = RefCell::default();
}

/// Calls `f` with the thread's meter. Returns `None` while the thread is being torn down.
fn with_meter<R>(f: impl FnOnce(&mut Meter) -> R) -> Option<R> {
    METER
        .try_with(|meter| meter.try_borrow_mut().ok().map(|mut meter| f(&mut meter)))
        .ok()
        .flatten()
}

impl Timer {
    /// The timers, if they can be had. The proof sleeps, so it is no part of a measurement.
    fn get(&mut self, is_measured: bool) -> Option<&mut StackTimer> {
        if !is_measured && !self.sees_sleeps && self.tries < TRIES {
            self.tries += 1;
            self.had = self.had.take().or_else(new_timer);
            self.sees_sleeps = self.had.as_mut().is_some_and(sees_sleeps);
        }
        self.had.as_mut()
    }

    /// Ends the timer of a measurement with this cost.
    fn end(&mut self, is_taken_over: bool, cost: &Cost) -> SeenStacks {
        let Some(timer) = &mut self.had else {
            return SeenStacks::NOT_ASKED;
        };
        let stacks = timer.end();
        let has_slept = || cost.thread.is_some_and(|thread| thread.sleeps > 0);
        let first_sleep = match stacks.asleep {
            Some(stack) => FirstSleep::Stack(stack),
            None if is_taken_over || !self.sees_sleeps => FirstSleep::NotAsked,
            None if has_slept() && is_deaf() => FirstSleep::NotAsked,
            None => FirstSleep::None,
        };
        let why_not = match (timer.counts_cpu(), is_taken_over) {
            (false, _) => NoSignal::NoCpuTimer,
            (true, true) => NoSignal::TakenOver,
            (true, false) => NoSignal::NotArrived,
        };
        SeenStacks {
            first_sleep,
            past_budget: stacks.computing.ok_or(why_not),
        }
    }
}

fn new_timer() -> Option<StackTimer> {
    capture::install(capture::DEFAULT_SIGNAL).ok()?;
    let slot = slot::mine()?;
    let addressee = Addressee {
        slot,
        tenancy: slot.tenancy(),
    };
    // The first look at a thread opens files. That may take a sleep, which the timer would see
    // before any of the code's own.
    os::own_usage();
    StackTimer::new(addressee, capture::DEFAULT_SIGNAL)
}

/// Whether it sees a sleep on this thread and this system.
fn sees_sleeps(timer: &mut StackTimer) -> bool {
    (0..PROOFS).any(|_| {
        timer.begin(None);
        std::thread::sleep(PLANTED);
        timer.end().asleep.is_some()
    })
}

/// The sleep that the timer must see: some of its periods.
const PLANTED: Duration = Duration::from_micros(200);

/// Whether the timer's signal no longer reaches this thread.
fn is_deaf() -> bool {
    let signal = capture::DEFAULT_SIGNAL;
    capture::is_replaced(signal) || os::is_signal_blocked(os::current_tid(), signal)
}

/// A measurement of the calling thread that goes on. It must end on the same thread.
#[derive(Debug)]
pub(crate) struct Measurement {
    before: UsageReading,
    allowed: Cost,
    taken_over: u64,
    ended: bool,
}

impl Measurement {
    /// Begins a measurement. Measurements nest. Past a budget of CPU time, a stack is taken.
    pub(crate) fn begin(cpu_budget: Option<Duration>) -> Measurement {
        UNMEASURED.get_or_init(|| || Some(Box::new(Allowed::begin()?)));
        let (allowed, taken_over) = with_meter(|meter| {
            let is_measured = meter.depth > 0;
            if is_measured {
                meter.taken_over += 1;
            }
            meter.depth += 1;
            if let Some(timer) = meter.timer.get(is_measured) {
                timer.begin(cpu_budget);
            }
            (meter.allowed, meter.taken_over)
        })
        .unwrap_or_default();
        Measurement {
            before: UsageReading::usage_first(),
            allowed,
            taken_over,
            ended: false,
        }
    }

    /// Ends it: the cost of the code since `begin`, and the stacks that were seen.
    pub(crate) fn end(mut self) -> (Cost, SeenStacks) {
        let cost = UsageReading::clock_first().since(self.before);
        self.ended = true;
        let (allowed, seen) = with_meter(|meter| {
            meter.depth = meter.depth.saturating_sub(1);
            let is_taken_over = meter.taken_over != self.taken_over;
            let seen = meter.timer.end(is_taken_over, &cost);
            let allowed = meter.allowed;
            if meter.depth > 0 {
                // Judged by itself, and not once more by the measurement around it.
                let own = cost.without(allowed.without(self.allowed));
                meter.allowed = allowed.plus(own);
            }
            (allowed, seen)
        })
        .unwrap_or((self.allowed, SeenStacks::NOT_ASKED));
        (cost.without(allowed.without(self.allowed)), seen)
    }
}

impl Drop for Measurement {
    fn drop(&mut self) {
        if !self.ended {
            with_meter(|meter| {
                meter.depth = meter.depth.saturating_sub(1);
                if let Some(timer) = &mut meter.timer.had {
                    timer.end();
                }
            });
        }
    }
}

/// A region whose cost is allowed. Regions nest; the outermost one counts.
#[derive(Debug)]
pub(super) struct Allowed {
    before: Option<UsageReading>,
}

impl Allowed {
    /// Begins one, if anything is being measured on this thread.
    pub(super) fn begin() -> Option<Allowed> {
        let is_outermost = with_meter(|meter| {
            if meter.depth == 0 {
                return None;
            }
            meter.regions += 1;
            if meter.regions == 1 {
                // A sleep that was seen already is kept.
                if let Some(timer) = &mut meter.timer.had {
                    timer.pause();
                }
            }
            Some(meter.regions == 1)
        });
        Some(Allowed {
            // Rather too long than too short: this sleep is taken off.
            before: is_outermost??.then(UsageReading::clock_first),
        })
    }
}

impl Drop for Allowed {
    fn drop(&mut self) {
        let after = UsageReading::usage_first();
        with_meter(|meter| {
            meter.regions = meter.regions.saturating_sub(1);
            if let Some(before) = self.before {
                meter.allowed = meter.allowed.plus(after.since(before));
                if let Some(timer) = &mut meter.timer.had {
                    timer.go_on();
                }
            }
        });
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn a_missing_stack_has_its_own_reason() {
        let (soon, later) = (LATENESS / 2, LATENESS * 2);
        for (why, went_on, reason) in [
            (NoSignal::NoTimer, soon, "could not be had here"),
            (NoSignal::NoCpuTimer, soon, "a timer of CPU time"),
            (NoSignal::TakenOver, later, "an assertion inside"),
            (NoSignal::NotArrived, soon, "soon after its budget"),
            (NoSignal::NotArrived, later, "has sent no signal"),
        ] {
            let text = why.reason(went_on);
            assert!(text.contains(reason), "{why:?}: {text}");
        }
    }

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn a_sleep_counts_as_asleep_and_is_seen() {
        let measurement = Measurement::begin(None);
        std::thread::sleep(MS);
        let (cost, seen) = measurement.end();
        let thread = cost.thread.unwrap();
        // On a busy machine, the signal of the timer turns the rest of the sleep into a wait for a
        // CPU.
        let away = thread.asleep + thread.run_queue;
        assert!(thread.sleeps >= 1 && away >= MS.mul_f64(0.9), "{cost:?}");
        assert!(cfg!(not(feature = "stacks")) || matches!(seen.first_sleep, FirstSleep::Stack(_)));
    }

    #[test]
    fn allowed_cost_is_taken_off_and_later_cost_is_not() {
        let measurement = Measurement::begin(None);
        {
            let _outer = Allowed::begin();
            let _inner = Allowed::begin();
            std::thread::sleep(5 * MS);
        }
        let (cost, seen) = measurement.end();
        assert_eq!(cost.thread.unwrap().sleeps, 0, "{cost:?}");
        assert!(!matches!(seen.first_sleep, FirstSleep::Stack(_)));

        let measurement = Measurement::begin(None);
        {
            let _region = Allowed::begin();
        }
        std::thread::sleep(MS);
        let (cost, seen) = measurement.end();
        assert!(cost.thread.unwrap().sleeps >= 1, "{cost:?}");
        assert!(cfg!(not(feature = "stacks")) || matches!(seen.first_sleep, FirstSleep::Stack(_)));
    }

    #[test]
    fn the_cost_of_an_inner_measurement_is_not_that_of_the_outer_one() {
        let outer = Measurement::begin(None);
        let inner = Measurement::begin(None);
        std::thread::sleep(5 * MS);
        let (inner, _) = inner.end();
        let (cost, _) = outer.end();
        assert!(inner.thread.unwrap().sleeps >= 1, "{inner:?}");
        assert_eq!(cost.thread.unwrap().sleeps, 0, "{cost:?}");
        // The control: a sleep after the inner one is the outer one's.
        let outer = Measurement::begin(None);
        drop(Measurement::begin(None));
        std::thread::sleep(5 * MS);
        let (cost, _) = outer.end();
        assert!(cost.thread.unwrap().sleeps >= 1, "{cost:?}");
    }

    #[test]
    fn a_region_outside_of_a_measurement_costs_nothing() {
        assert!(Allowed::begin().is_none());
        let measurement = Measurement::begin(None);
        assert!(Allowed::begin().is_some());
        drop(measurement);
    }
}
