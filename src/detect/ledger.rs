//! The ledger: what a worker's time went into, also when no piece of it is long enough for a stall.
//!
//! *Runs on:* the watchdog thread.
//! *Here:* arithmetic on samples the detector has looked at anyway, once a second and worker. Pure: time is
//! handed in.
//!
//! Tokio counts how long a worker was busy; the kernel counts how long its thread computed and how long it
//! waited for a CPU. What is left of the busy time was spent asleep in a poll:
//!
//! > blocked = busy − CPU time − run-queue wait
//!
//! That is a lower bound: a worker also computes while tokio does not call it busy.

use super::sample::Sample;
use crate::clock::Nanos;
use crate::os::{ThreadEvidence, ThreadState};
use std::time::Duration;

/// What a worker spends its time on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WorkerState {
    Cpu,
    Blocked,
    Contention,
    Parked,
    Unknown,
}

impl WorkerState {
    pub(crate) const ALL: [WorkerState; 5] = [
        WorkerState::Cpu,
        WorkerState::Blocked,
        WorkerState::Contention,
        WorkerState::Parked,
        WorkerState::Unknown,
    ];

    #[cfg(feature = "metrics")]
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            WorkerState::Cpu => "cpu",
            WorkerState::Blocked => "blocked",
            WorkerState::Contention => "contention",
            WorkerState::Parked => "parked",
            WorkerState::Unknown => "unknown",
        }
    }
}

/// A page of the ledger is closed after this long, at a moment when the worker is parked: everything has
/// been published then …
const PAGE: Duration = Duration::from_secs(1);
/// … or after this long at any moment that will do …
const LONG_PAGE: Duration = Duration::from_millis(1500);
/// … or after this long at any moment at all.
const LONGEST_PAGE: Duration = Duration::from_secs(5);

/// One worker's ledger.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    opened: Option<Reading>,
    /// Below zero: what was busy too little so far, since the moment of a publication is known only to within a
    /// tick. What is found too much next is taken from it first.
    owed: Duration,
}

/// Everything that a page is the difference of.
#[derive(Clone, Copy, Debug)]
struct Reading {
    at: Nanos,
    busy: Duration,
    thread: Option<((usize, u64), ThreadEvidence)>,
}

/// How the time of a page was spent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Page {
    cpu: Duration,
    blocked: Duration,
    contention: Duration,
    parked: Duration,
    unknown: Duration,
}

impl Page {
    /// The parts, in the order of [`WorkerState::ALL`].
    pub(crate) fn parts(&self) -> [(WorkerState, Duration); 5] {
        [
            (WorkerState::Cpu, self.cpu),
            (WorkerState::Blocked, self.blocked),
            (WorkerState::Contention, self.contention),
            (WorkerState::Parked, self.parked),
            (WorkerState::Unknown, self.unknown),
        ]
    }
}

/// What one sample adds to the ledger.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Increment {
    /// For how long the worker has been busy without tokio's counter saying so.
    pub(crate) unpublished: Duration,
    /// A page that has been closed.
    pub(crate) page: Option<Page>,
}

impl Ledger {
    /// Takes in a sample. `moved_at` is the tick at which the worker's counters were first seen as they are;
    /// `driven` says that an active worker cannot be one that nobody drives.
    pub(crate) fn observe(
        &mut self,
        sample: &Sample,
        moved_at: Nanos,
        driven: bool,
        tick: Duration,
    ) -> Increment {
        let parked = sample.after.parks % 2 == 1;
        let moved = sample.at.since(moved_at);
        let unpublished = if parked || !driven {
            Duration::ZERO
        } else {
            moved
        };
        let reading = Reading {
            at: sample.at,
            busy: sample.after.busy + unpublished,
            thread: sample.slot.map(|slot| slot.thread).zip(sample.thread),
        };
        // An active worker that may be nobody's says nothing until it moves on.
        let is_somebodys = driven || parked || moved.is_zero();
        let page = match self.opened {
            None => {
                self.opened = Some(reading);
                None
            }
            Some(opened) if is_time(&opened, sample, is_somebodys) => {
                self.opened = Some(reading);
                is_somebodys.then(|| self.page(&opened, &reading, tick * 2))
            }
            Some(_) => None,
        };
        Increment { unpublished, page }
    }

    /// What was between two readings. The parts add up to the time between them.
    fn page(&mut self, opened: &Reading, closed: &Reading, slack: Duration) -> Page {
        let wall = closed.at.since(opened.at);
        let (before, now) = match (opened.thread, closed.thread) {
            (Some((same, before)), Some((thread, now))) if same == thread => (before, now),
            _ => {
                return Page {
                    unknown: wall,
                    ..Page::default()
                };
            }
        };
        let cpu = now.cpu.saturating_sub(before.cpu).min(wall);
        let busy = closed.busy.saturating_sub(opened.busy);
        let mut contention = now.run_queue.saturating_sub(before.run_queue);
        if now.state == ThreadState::Waiting {
            // A wait that has lasted for a whole page, and is not counted yet.
            contention = contention.max(busy.saturating_sub(cpu));
        }
        let contention = contention.min(wall - cpu);
        let awake = cpu + contention;
        let is_asleep = matches!(now.state, ThreadState::Asleep(_));
        let blocked = if now.runs == before.runs && !is_asleep {
            // Never put on a CPU anew, so it has never slept: the time is a stolen CPU's, or an error.
            Duration::ZERO
        } else {
            let found = busy.saturating_sub(awake);
            let blocked = found.saturating_sub(self.owed);
            self.owed = (self.owed.saturating_sub(found) + awake.saturating_sub(busy)).min(slack);
            blocked.min(wall - awake)
        };
        Page {
            cpu,
            blocked,
            contention,
            parked: wall - awake - blocked,
            unknown: Duration::ZERO,
        }
    }
}

/// Whether a page is to be closed at this sample. The kernel counts a wait for a CPU when it ends, so a page
/// must not end in one.
fn is_time(opened: &Reading, sample: &Sample, is_somebodys: bool) -> bool {
    let parked = sample.after.parks % 2 == 1;
    let waits = sample
        .thread
        .is_some_and(|thread| thread.state == ThreadState::Waiting);
    let long_enough = if parked && !waits {
        PAGE
    } else if is_somebodys && !waits {
        LONG_PAGE
    } else {
        LONGEST_PAGE
    };
    sample.at.since(opened.at) >= long_enough
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::super::sample::{Counters, SlotSeen};
    use super::*;

    fn ms(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    /// A worker's life in steps; each is looked at, at its end.
    struct Life {
        ledger: Ledger,
        time: [Duration; WorkerState::ALL.len()],
        unpublished: Duration,
        sample: Sample,
        moved_at: Nanos,
        driven: bool,
    }

    impl Life {
        fn new() -> Life {
            let at = Nanos(1_000_000_000);
            let mut life = Life {
                ledger: Ledger::default(),
                time: [Duration::ZERO; WorkerState::ALL.len()],
                unpublished: Duration::ZERO,
                sample: Sample {
                    at,
                    late: Duration::ZERO,
                    before: Counters::default(),
                    after: Counters {
                        parks: 1,
                        busy: Duration::ZERO,
                    },
                    slot: Some(SlotSeen {
                        thread: (1, 1),
                        epoch: 0,
                        started: None,
                        allowed: false,
                        allowed_until: None,
                        loops: 0,
                    }),
                    thread: Some(ThreadEvidence {
                        cpu: Duration::ZERO,
                        run_queue: Duration::ZERO,
                        runs: 1,
                        state: ThreadState::Asleep(None),
                    }),
                    own_wait: None,
                    signalled: false,
                    throttled: Duration::ZERO,
                    turn: None,
                    settled: true,
                },
                moved_at: at,
                driven: true,
            };
            life.look();
            life
        }

        fn look(&mut self) {
            let entry = self
                .ledger
                .observe(&self.sample, self.moved_at, self.driven, ms(5));
            self.unpublished = entry.unpublished;
            for (state, time) in entry.page.iter().flat_map(Page::parts) {
                self.time[state as usize] += time;
            }
        }

        fn thread(&mut self) -> &mut ThreadEvidence {
            self.sample.thread.as_mut().unwrap()
        }

        /// Busy for a time, some of it computing and some of it without a CPU; then parked, or not.
        fn busy(&mut self, wall: u64, cpu: u64, waited: u64, parks: bool) {
            self.sample.at = self.sample.at.plus(ms(wall));
            let thread = self.thread();
            thread.cpu += ms(cpu);
            thread.run_queue += ms(waited);
            thread.runs += 1;
            if parks {
                self.sample.after.busy += ms(wall);
                self.sample.after.parks = (self.sample.after.parks + 1) | 1;
                self.moved_at = self.sample.at;
            } else if self.sample.after.parks % 2 == 1 {
                self.sample.after.parks += 1;
                self.moved_at = Nanos(self.sample.at.0 - wall * 1_000_000);
            }
            self.look();
        }

        fn parked(&mut self, wall: u64) {
            self.sample.at = self.sample.at.plus(ms(wall));
            self.look();
        }

        /// Blocked, and everything together, in milliseconds.
        fn figures(&self) -> (u128, u128) {
            let all: Duration = WorkerState::ALL
                .iter()
                .map(|state| self.time[*state as usize])
                .sum();
            (
                self.time[WorkerState::Blocked as usize].as_millis(),
                all.as_millis(),
            )
        }
    }

    #[test]
    fn a_thousand_small_sleeps_are_seen_and_everything_adds_up() {
        let mut life = Life::new();
        for _ in 0..1000 {
            life.busy(1, 0, 0, true);
            life.parked(1);
        }
        assert_eq!(life.figures(), (1000, 2000));
        assert_eq!(life.time[WorkerState::Parked as usize], ms(1000));
    }

    #[test]
    fn computing_and_waiting_for_a_cpu_are_not_blocking() {
        let mut life = Life::new();
        for _ in 0..100 {
            life.busy(10, 4, 6, true);
            life.parked(10);
        }
        assert_eq!(life.figures(), (0, 2000));
        assert_eq!(life.time[WorkerState::Contention as usize], ms(600));
    }

    #[test]
    fn a_stall_going_on_is_counted_while_it_lasts() {
        let mut life = Life::new();
        for _ in 0..400 {
            life.busy(10, 0, 0, false);
        }
        let (blocked, all) = life.figures();
        assert!(blocked >= 3000 && all == blocked, "{blocked} of {all} ms");
        assert!(life.unpublished >= ms(3990));
        // One sleep of a whole page, in which the thread is never put on a CPU anew.
        let mut life = Life::new();
        life.thread().state = ThreadState::Asleep(None);
        for _ in 0..400 {
            // What `busy` adds.
            life.thread().runs -= 1;
            life.busy(10, 0, 0, false);
        }
        let (blocked, all) = life.figures();
        assert!(blocked >= 3000 && all == blocked, "{blocked} of {all} ms");
    }

    #[test]
    fn a_page_does_not_end_in_a_wait_for_a_cpu() {
        let mut life = Life::new();
        life.thread().state = ThreadState::Waiting;
        life.busy(1600, 400, 0, false);
        assert_eq!(
            life.figures(),
            (0, 0),
            "the wait will be counted when it is over"
        );
        life.thread().state = ThreadState::OnCpu;
        life.busy(100, 100, 1200, false);
        assert_eq!(life.figures(), (0, 1700));
        life.thread().state = ThreadState::Waiting;
        life.busy(5000, 0, 0, false);
        assert_eq!(life.figures(), (0, 6700), "also if it does not end");
    }

    #[test]
    fn an_error_of_a_tick_is_not_counted_twice() {
        let mut life = Life::new();
        // A worker that computes all the time, and whose publications are seen up to a tick late.
        for turn in 0..200 {
            life.sample.at = life.sample.at.plus(ms(100));
            life.thread().cpu += ms(100);
            life.thread().runs += 1;
            life.sample.after.busy += ms(100);
            life.sample.after.parks = 2;
            let late = if turn % 2 == 0 { 0 } else { 5 };
            life.moved_at = Nanos(life.sample.at.0 - late * 1_000_000);
            life.look();
        }
        let (blocked, all) = life.figures();
        assert!(blocked <= 5, "{blocked} ms blocked");
        assert!(all >= 18_000);
    }

    #[test]
    fn a_thread_that_never_slept_was_not_blocked() {
        let mut life = Life::new();
        life.thread().state = ThreadState::OnCpu;
        life.sample.after.parks = 2;
        for _ in 0..40 {
            life.sample.at = life.sample.at.plus(ms(50));
            life.sample.after.busy += ms(50);
            life.moved_at = life.sample.at;
            life.thread().cpu += ms(30);
            life.look();
        }
        assert_eq!(life.figures().0, 0, "40 % of the CPU was stolen");
    }

    #[test]
    fn another_thread_s_time_is_not_mixed_in() {
        let mut life = Life::new();
        life.sample.slot.as_mut().unwrap().thread = (2, 1);
        life.busy(1000, 0, 0, true);
        assert_eq!(life.time[WorkerState::Unknown as usize], ms(1000));
        assert_eq!(life.figures(), (0, 1000));
    }

    #[test]
    fn a_runtime_that_nobody_drives_has_no_ledger() {
        let mut life = Life::new();
        life.driven = false;
        for _ in 0..100 {
            life.busy(100, 0, 0, false);
        }
        assert_eq!(life.figures(), (0, 0));
        assert_eq!(life.unpublished, Duration::ZERO);
    }
}
