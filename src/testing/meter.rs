//! What a stretch of code cost its thread, told by the thread itself: wall time, CPU time, run queue, sleeps.
//!
//! *Runs on:* the measured thread, in tests only; `allow_blocking` asks whether there is a measurement.
//! *Here:* readings at the ends. A reading errs on the side of the code: what falls between two clocks of one
//! reading counts as waiting for a CPU, never as sleep.

use crate::capture::{self, Addressee, RawStack, SleepTimer};
use crate::clock::{self, Nanos};
use crate::os::{self, Usage};
use crate::probe::UNMEASURED;
use crate::slot;
use std::cell::RefCell;
use std::time::Duration;

/// What a stretch of code has cost, without what was allowed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Cost {
    /// By the clock on the wall.
    pub(crate) wall: Duration,
    /// `None` where the system does not tell.
    pub(crate) known: Option<Known>,
}

/// What the system tells of the thread.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Known {
    /// On a CPU.
    pub(crate) cpu: Duration,
    /// Ready, without a CPU.
    pub(crate) run_queue: Duration,
    /// Neither: asleep, or on a CPU that the host of a virtual machine has taken away.
    pub(crate) asleep: Duration,
    /// How often the thread gave its CPU up by itself.
    pub(crate) sleeps: u64,
}

/// The stack of the first sleep that was met.
#[derive(Debug)]
pub(crate) enum Met {
    /// Nobody looked: stacks cannot be taken here, or all places were taken.
    NotAsked,
    /// None lasted for 50 µs in a system call.
    None,
    Sleep(RawStack),
}

#[derive(Clone, Copy, Debug)]
struct Reading {
    wall: Nanos,
    usage: Option<Usage>,
}

impl Reading {
    /// Before the code. A wait after the usage is read is taken off its wall time.
    fn before() -> Reading {
        let usage = os::own_usage();
        Reading {
            usage,
            wall: clock::now(),
        }
    }

    /// After the code. A wait after the clock is read is taken off, too.
    fn after() -> Reading {
        let wall = clock::now();
        Reading {
            wall,
            usage: os::own_usage(),
        }
    }

    fn since(self, before: Reading) -> Cost {
        let wall = self.wall.since(before.wall);
        let known = self.usage.zip(before.usage).map(|(after, before)| {
            let cpu = after.cpu.saturating_sub(before.cpu);
            let run_queue = after.run_queue.saturating_sub(before.run_queue);
            Known {
                cpu,
                run_queue,
                asleep: wall.saturating_sub(cpu + run_queue),
                sleeps: after.sleeps.saturating_sub(before.sleeps),
            }
        });
        Cost { wall, known }
    }
}

impl Cost {
    fn without(self, allowed: Cost) -> Cost {
        let without = |known: Known, allowed: Known| Known {
            cpu: known.cpu.saturating_sub(allowed.cpu),
            run_queue: known.run_queue.saturating_sub(allowed.run_queue),
            asleep: known.asleep.saturating_sub(allowed.asleep),
            sleeps: known.sleeps.saturating_sub(allowed.sleeps),
        };
        Cost {
            wall: self.wall.saturating_sub(allowed.wall),
            known: self
                .known
                .map(|known| without(known, allowed.known.unwrap_or_default())),
        }
    }

    fn plus(self, other: Cost) -> Cost {
        let plus = |a: Known, b: Known| Known {
            cpu: a.cpu + b.cpu,
            run_queue: a.run_queue + b.run_queue,
            asleep: a.asleep + b.asleep,
            sleeps: a.sleeps + b.sleeps,
        };
        Cost {
            wall: self.wall + other.wall,
            known: match (self.known, other.known) {
                (Some(a), Some(b)) => Some(plus(a, b)),
                (one, other) => one.or(other),
            },
        }
    }
}

/// What the calling thread measures.
#[derive(Default)]
struct Meter {
    timer: Timer,
    /// Measurements going on, one inside the other.
    depth: u32,
    /// What the regions of `allow_blocking` have cost so far, and those open now.
    allowed: Cost,
    regions: u32,
    /// How often a measurement inside another one has taken its sleep over.
    taken_over: u64,
}

#[derive(Default)]
enum Timer {
    #[default]
    NotTried,
    None,
    Some(SleepTimer),
}

thread_local! {
    static METER: RefCell<Meter> = RefCell::default();
}

/// With the thread's meter; `None` while the thread is being torn down.
fn with_meter<R>(f: impl FnOnce(&mut Meter) -> R) -> Option<R> {
    METER
        .try_with(|meter| meter.try_borrow_mut().ok().map(|mut meter| f(&mut meter)))
        .ok()
        .flatten()
}

impl Timer {
    fn get(&mut self) -> Option<&mut SleepTimer> {
        if let Timer::NotTried = self {
            *self = make().map_or(Timer::None, Timer::Some);
        }
        match self {
            Timer::Some(timer) => Some(timer),
            Timer::None | Timer::NotTried => None,
        }
    }
}

fn make() -> Option<SleepTimer> {
    capture::install(capture::DEFAULT_SIGNAL).ok()?;
    let slot = slot::mine()?;
    let addressee = Addressee {
        slot,
        tenancy: slot.tenancy(),
    };
    let mut timer = SleepTimer::new(addressee, capture::DEFAULT_SIGNAL)?;
    // Proof that it meets sleeps, on this thread and this system: one that meets none would excuse them all.
    timer.begin();
    std::thread::sleep(PLANTED);
    timer.end().is_some().then_some(timer)
}

/// Some periods of the timer.
const PLANTED: Duration = Duration::from_micros(200);

/// Whether the timer's signal no longer reaches this thread.
fn is_deaf() -> bool {
    let signal = capture::DEFAULT_SIGNAL;
    capture::is_replaced(signal) || os::is_signal_blocked(os::current_tid(), signal)
}

/// A measurement of the calling thread that goes on. Not one to be sent to another thread.
#[derive(Debug)]
pub(crate) struct Measurement {
    before: Reading,
    allowed: Cost,
    taken_over: u64,
    ended: bool,
}

impl Measurement {
    /// Begins to measure. Measurements nest.
    pub(crate) fn begin() -> Measurement {
        UNMEASURED.get_or_init(|| || Some(Box::new(Allowed::begin()?)));
        let (allowed, taken_over) = with_meter(|meter| {
            if meter.depth > 0 {
                meter.taken_over += 1;
            }
            meter.depth += 1;
            if let Some(timer) = meter.timer.get() {
                timer.begin();
            }
            (meter.allowed, meter.taken_over)
        })
        .unwrap_or_default();
        Measurement {
            before: Reading::before(),
            allowed,
            taken_over,
            ended: false,
        }
    }

    /// What the code since `begin` has cost, and where it slept first.
    pub(crate) fn end(mut self) -> (Cost, Met) {
        let cost = Reading::after().since(self.before);
        self.ended = true;
        let (allowed, met) = with_meter(|meter| {
            meter.depth = meter.depth.saturating_sub(1);
            let met = match &mut meter.timer {
                Timer::Some(timer) => match timer.end() {
                    Some(stack) => Met::Sleep(stack),
                    None if meter.taken_over != self.taken_over => Met::NotAsked,
                    None if cost.known.is_some_and(|known| known.sleeps > 0) && is_deaf() => {
                        Met::NotAsked
                    }
                    None => Met::None,
                },
                Timer::None | Timer::NotTried => Met::NotAsked,
            };
            (meter.allowed, met)
        })
        .unwrap_or((self.allowed, Met::NotAsked));
        (cost.without(allowed.without(self.allowed)), met)
    }
}

impl Drop for Measurement {
    fn drop(&mut self) {
        if !self.ended {
            with_meter(|meter| {
                meter.depth = meter.depth.saturating_sub(1);
                if let Timer::Some(timer) = &mut meter.timer {
                    timer.end();
                }
            });
        }
    }
}

/// A region whose cost is allowed. Regions nest; the outermost one counts.
#[derive(Debug)]
pub(super) struct Allowed {
    before: Option<Reading>,
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
                // A sleep that was met already stays met.
                if let Timer::Some(timer) = &mut meter.timer {
                    timer.pause();
                }
            }
            Some(meter.regions == 1)
        });
        Some(Allowed {
            before: is_outermost??.then(Reading::before),
        })
    }
}

impl Drop for Allowed {
    fn drop(&mut self) {
        let after = Reading::after();
        with_meter(|meter| {
            meter.regions = meter.regions.saturating_sub(1);
            if let Some(before) = self.before {
                meter.allowed = meter.allowed.plus(after.since(before));
                if let Timer::Some(timer) = &mut meter.timer {
                    timer.go_on();
                }
            }
        });
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn a_sleep_is_asleep_and_met() {
        let measurement = Measurement::begin();
        std::thread::sleep(MS);
        let (cost, met) = measurement.end();
        let known = cost.known.unwrap();
        // On a busy machine, the signal that meets the sleep turns its rest into a wait for a CPU.
        let away = known.asleep + known.run_queue;
        assert!(known.sleeps >= 1 && away >= MS.mul_f64(0.9), "{cost:?}");
        assert!(cfg!(not(feature = "stacks")) || matches!(met, Met::Sleep(_)));
    }

    #[test]
    fn what_is_allowed_is_taken_off_and_what_follows_is_not() {
        let measurement = Measurement::begin();
        {
            let _outer = Allowed::begin();
            let _inner = Allowed::begin();
            std::thread::sleep(5 * MS);
        }
        let (cost, met) = measurement.end();
        assert_eq!(cost.known.unwrap().sleeps, 0, "{cost:?}");
        assert!(!matches!(met, Met::Sleep(_)));

        let measurement = Measurement::begin();
        {
            let _region = Allowed::begin();
        }
        std::thread::sleep(MS);
        let (cost, met) = measurement.end();
        assert!(cost.known.unwrap().sleeps >= 1, "{cost:?}");
        assert!(cfg!(not(feature = "stacks")) || matches!(met, Met::Sleep(_)));
    }

    #[test]
    fn a_region_outside_of_a_measurement_costs_nothing() {
        drop(Allowed::begin());
        let measurement = Measurement::begin();
        assert_eq!(measurement.end().0.known.unwrap().sleeps, 0);
    }
}
