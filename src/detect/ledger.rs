//! The ledger: the account of a worker's whole time, by state, also if no stall is among it.
//!
//! *Runs on:* `stall-watchdog`, on samples that the detector has looked at anyway.
//! *Must not:* do anything but arithmetic. Each sample brings its time with it.
//!
//! Tokio counts the time for which a worker was busy. The kernel counts the time for which its
//! thread computed, and for which it waited for a CPU. The thread spent the rest of the busy time
//! asleep in a poll:
//!
//! > blocked = busy − CPU time − run-queue wait − time stopped
//!
//! It is a lower bound, since a worker also computes while tokio does not call it busy. The time
//! for which the whole process stood still is of no known state. Once a second each worker's
//! account is closed as a *page*.

use super::sample::{Rules, Sample};
use crate::clock::Nanos;
use crate::os::{ThreadEvidence, ThreadState};
use crate::slot::Thread;
use std::time::Duration;

/// The states that a worker spends its time in.
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

/// The age at which a page is closed if the worker is parked, so that everything is published.
const PAGE: Duration = Duration::from_secs(1);
/// The age at which a page is closed if the worker is at work and certainly driven.
const LONG_PAGE: Duration = Duration::from_millis(1500);
/// The age at which a page is closed in any case.
const LONGEST_PAGE: Duration = Duration::from_secs(5);

/// One worker's ledger.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    opened: Option<Reading>,
    /// The time of the last sample.
    last: Nanos,
    /// The time on this page for which the process stood still while the worker was at work.
    stopped: Duration,
    /// Busy time that was missing in earlier pages: the moment of a publication is known only to
    /// within a tick. The next excess of busy time pays it back first.
    owed: Duration,
    /// Stops that earlier pages have, and busy time may not have yet. A worker that is seen at work
    /// after a stop may have begun before it, and tokio publishes that when it parks.
    early_stops: Duration,
}

/// The figures at one moment. A page is the difference of two readings.
#[derive(Clone, Copy, Debug)]
struct Reading {
    at: Nanos,
    busy: Duration,
    parked: bool,
    thread: Option<(Thread, ThreadEvidence)>,
}

impl Reading {
    fn of(sample: &Sample, unpublished: Duration) -> Reading {
        Reading {
            at: sample.at,
            busy: sample.after.busy + unpublished,
            parked: sample.after.is_parked(),
            thread: sample.slot.map(|slot| slot.thread).zip(sample.thread),
        }
    }
}

/// The time of a page, by state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Page {
    cpu: Duration,
    blocked: Duration,
    contention: Duration,
    parked: Duration,
    unknown: Duration,
}

impl Page {
    fn unknown(wall: Duration) -> Page {
        Page {
            unknown: wall,
            ..Page::default()
        }
    }

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

/// The addition of one sample to the ledger.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Increment {
    /// The busy time that tokio has not published yet.
    pub(crate) unpublished: Duration,
    /// A page that has been closed.
    pub(crate) page: Option<Page>,
}

impl Ledger {
    /// Takes in a sample. `moved_at` is the tick at which the worker's counters were first seen as
    /// they are. By the rules, an active worker may be certainly driven.
    pub(crate) fn observe(&mut self, sample: &Sample, moved_at: Nanos, rules: &Rules) -> Increment {
        let driven = rules.always_driven;
        let parked = sample.after.is_parked();
        let moved = sample.at.since(moved_at);
        let is_busy = driven && !parked;
        let unpublished = if is_busy { moved } else { Duration::ZERO };
        let reading = Reading::of(sample, unpublished);
        // An active worker that may not be driven has no account until it moves on.
        let is_known = driven || parked || moved.is_zero();
        let opened = *self.opened.get_or_insert(reading);
        let last = std::mem::replace(&mut self.last, sample.at);
        if !parked || moved.is_zero() {
            let since_last = sample.at.since(last.max(opened.at));
            self.stopped += sample.stopped(rules, since_last);
        }
        let mut page = None;
        if is_time(&opened, sample, is_known) {
            self.opened = Some(reading);
            let stopped = std::mem::take(&mut self.stopped);
            page = is_known.then(|| self.page(&opened, &reading, stopped, rules.tick * 2));
        }
        Increment { unpublished, page }
    }

    /// The time between two readings, by state.
    fn page(
        &mut self,
        opened: &Reading,
        closed: &Reading,
        stopped: Duration,
        slack: Duration,
    ) -> Page {
        let wall = closed.at.since(opened.at);
        let (before, now) = match (opened.thread, closed.thread) {
            (Some((same, before)), Some((thread, now))) if same == thread => (before, now),
            _ => return Page::unknown(wall),
        };
        let busy = closed.busy.saturating_sub(opened.busy);
        let cpu = now.cpu.saturating_sub(before.cpu).min(wall);
        let contention = contention(before, now, busy.saturating_sub(cpu)).min(wall - cpu);
        let awake = cpu + contention;
        let (busy, stopped) = self.without_stops(busy, stopped, awake, closed.parked);
        let stopped = stopped.min(wall - awake);
        let is_asleep = matches!(now.state, ThreadState::Asleep(_));
        // A thread that was never put on a CPU anew has never slept. Its missing time was taken
        // from the whole machine, or is an error.
        let blocked = if now.runs == before.runs && !is_asleep {
            Duration::ZERO
        } else {
            self.excess(busy, awake, slack).min(wall - awake - stopped)
        };
        Page {
            cpu,
            blocked,
            contention,
            parked: wall - awake - blocked - stopped,
            unknown: stopped,
        }
    }

    /// The busy time without stops, and the time of stops that is of no known state. Tokio counts a
    /// stop in a poll as busy, and publishes it at the end of the turn.
    fn without_stops(
        &mut self,
        busy: Duration,
        stopped: Duration,
        awake: Duration,
        parked: bool,
    ) -> (Duration, Duration) {
        let early = self.early_stops.min(busy.saturating_sub(awake));
        let busy = busy - early;
        let published = stopped.min(busy.saturating_sub(awake));
        if parked {
            // All is published: the rest of the stop was one of a parked worker.
            self.early_stops = Duration::ZERO;
            return (busy - published, published);
        }
        self.early_stops = self.early_stops - early + (stopped - published);
        (busy - published, stopped)
    }

    /// The excess of the busy time over the time awake, less the time that is owed.
    fn excess(&mut self, busy: Duration, awake: Duration, slack: Duration) -> Duration {
        let found = busy.saturating_sub(awake);
        let excess = found.saturating_sub(self.owed);
        self.owed = (self.owed.saturating_sub(found) + awake.saturating_sub(busy)).min(slack);
        excess
    }
}

/// The time without a CPU. A wait that has not ended may have lasted for the whole page, and the
/// kernel has not counted it yet: then it is all the busy time in which the thread did not compute.
fn contention(before: ThreadEvidence, now: ThreadEvidence, off_cpu: Duration) -> Duration {
    let counted = now.run_queue.saturating_sub(before.run_queue);
    match now.state {
        ThreadState::Waiting => counted.max(off_cpu),
        _ => counted,
    }
}

/// Whether a page is to be closed at this sample. The kernel counts a wait for a CPU when it ends,
/// so a page must not end in one. Nor must it end while the thread is not known for a moment, as
/// one that loses its CPU between two polls: the figures of two pages would be unknown.
fn is_time(opened: &Reading, sample: &Sample, is_known: bool) -> bool {
    let waits = match sample.thread {
        Some(thread) => thread.state == ThreadState::Waiting,
        None => opened.thread.is_some(),
    };
    let long_enough = if sample.after.is_parked() && !waits {
        PAGE
    } else if is_known && !waits {
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

    /// A worker's life in steps, with a look at the end of each.
    struct Life {
        ledger: Ledger,
        time: [Duration; WorkerState::ALL.len()],
        unpublished: Duration,
        sample: Sample,
        moved_at: Nanos,
        rules: Rules,
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
                    usually_late: Duration::ZERO,
                    before: Counters::default(),
                    after: Counters {
                        parks: 1,
                        busy: Duration::ZERO,
                    },
                    slot: Some(SlotSeen {
                        claimed_at: Nanos(u64::MAX),
                        thread: (1, 1),
                        epoch: 0,
                        started: None,
                        task: 0,
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
                    blind: false,
                    own_wait: None,
                    clock: None,
                    preempted: false,
                    signalled: false,
                    unanswered: false,
                    throttled: Duration::ZERO,
                    turn: None,
                    settled: true,
                    still: true,
                },
                moved_at: at,
                rules: Rules {
                    threshold: ms(10),
                    tick: ms(5),
                    always_driven: true,
                    milestones: [Duration::MAX; 3],
                },
            };
            life.look();
            life
        }

        fn look(&mut self) {
            let entry = self
                .ledger
                .observe(&self.sample, self.moved_at, &self.rules);
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
            } else if self.sample.after.is_parked() {
                self.sample.after.parks += 1;
                self.moved_at = Nanos(self.sample.at.0 - wall * 1_000_000);
            }
            self.look();
        }

        fn parked(&mut self, wall: u64) {
            self.sample.at = self.sample.at.plus(ms(wall));
            self.look();
        }

        /// The blocked time, and the time of all states together, in milliseconds.
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
            // `busy` counts one run, and there is none.
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
    fn a_page_does_not_end_while_the_thread_is_not_known_for_a_moment() {
        let mut life = Life::new();
        life.busy(1000, 1000, 0, false);
        let thread = life.sample.thread.take();
        life.sample.at = life.sample.at.plus(ms(600));
        life.look();
        assert_eq!(life.figures(), (0, 0));
        life.sample.thread = thread;
        life.busy(100, 700, 0, false);
        assert_eq!(life.time[WorkerState::Cpu as usize], ms(1700));
        assert_eq!(life.time[WorkerState::Unknown as usize], ms(0));
        // A thread that stays away is unknown.
        life.sample.thread = None;
        life.sample.at = life.sample.at.plus(ms(5000));
        life.look();
        assert_eq!(life.time[WorkerState::Unknown as usize], ms(5000));
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

    /// A second of work in polls of which each is stopped for a second, or blocks for one.
    fn halted(late: u64, own_wait: Option<u64>) -> Life {
        let mut life = Life::new();
        for _ in 0..3 {
            for _ in 0..100 {
                life.busy(5, 4, 1, true);
                life.parked(5);
            }
            life.sample.late = ms(late);
            life.sample.own_wait = own_wait.map(ms);
            life.busy(1010, 10, 0, true);
            life.sample.late = Duration::ZERO;
        }
        life.parked(1000);
        life
    }

    #[test]
    fn a_stop_of_the_process_is_not_blocking() {
        let stopped = halted(995, Some(2));
        let (blocked, all) = stopped.figures();
        assert!(blocked <= 21 && all == 7030, "{blocked} of {all} ms");
        let unknown = stopped.time[WorkerState::Unknown as usize];
        assert!(unknown >= ms(2970), "{unknown:?}");
        // Controls: a watchdog that came in time was not stopped, nor was one without a CPU.
        assert_eq!(halted(0, Some(0)).figures(), (3000, 7030));
        assert_eq!(halted(995, Some(995)).figures(), (3000, 7030));
    }

    /// A stop of a second in a poll that is first seen after it, at the end of a page.
    #[test]
    fn a_stop_is_not_blocking_if_it_is_published_after_its_page() {
        for blocks in [false, true] {
            let mut life = Life::new();
            life.parked(900);
            life.sample.at = life.sample.at.plus(ms(1000));
            life.moved_at = life.sample.at;
            life.sample.after.parks += 1;
            life.sample.late = ms(if blocks { 0 } else { 990 });
            life.sample.own_wait = Some(Duration::ZERO);
            life.look();
            let pages: Duration = life.time.iter().sum();
            assert_eq!(pages, ms(1900), "the page ends here");
            life.sample.late = Duration::ZERO;
            life.busy(10, 4, 0, true);
            life.sample.after.busy += ms(1000);
            life.look();
            life.parked(2000);
            let unknown = life.time[WorkerState::Unknown as usize];
            let (blocked, all) = life.figures();
            assert_eq!(all, 3910);
            match blocks {
                false => assert!(blocked <= 16 && unknown == ms(990), "{blocked} {unknown:?}"),
                // The control: nothing was stopped.
                true => assert!(blocked >= 990 && unknown.is_zero(), "{blocked} {unknown:?}"),
            }
        }
    }

    #[test]
    fn a_stop_of_a_parked_worker_takes_nothing_from_the_time_it_blocks() {
        let mut life = Life::new();
        life.busy(500, 0, 0, true);
        life.sample.late = ms(900);
        life.parked(900);
        life.sample.late = Duration::ZERO;
        life.parked(1000);
        assert_eq!(life.figures(), (500, 2400));
        assert_eq!(life.time[WorkerState::Parked as usize], ms(1900));
    }

    #[test]
    fn a_runtime_that_nobody_drives_has_no_ledger() {
        let mut life = Life::new();
        life.rules.always_driven = false;
        for _ in 0..100 {
            life.busy(100, 0, 0, false);
        }
        assert_eq!(life.figures(), (0, 0));
        assert_eq!(life.unpublished, Duration::ZERO);
    }
}
