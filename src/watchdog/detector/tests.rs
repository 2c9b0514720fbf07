//! The detector against samples made by hand: no clock, no threads, no sleeping.

use super::*;
use crate::capture::{Call, ThreadEvidence, ThreadState};
use crate::slot::LongPoll;
use proptest::prelude::*;

const TICK: Duration = Duration::from_millis(5);
const THRESHOLD: Duration = Duration::from_millis(10);
/// What the test thread's slot is called.
const THREAD: (usize, u64) = (0x1000, 1);
/// What it sleeps in.
const CALL: Call = Call {
    number: 35,
    first: 0,
    sp: 0x7000,
    pc: 0x4000,
};

fn rules() -> Rules {
    Rules {
        threshold: THRESHOLD,
        tick: TICK,
        polls_per_publication: 244,
        milestones: [ms(60), ms(1_000), ms(10_000)],
        always_driven: true,
    }
}

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn at(millis: u64) -> Nanos {
    Nanos(1_000_000_000).plus(ms(millis))
}

/// A worker that a test moves by hand, and a detector that watches it.
struct World {
    detector: Detector,
    now: u64,
    late: Duration,
    counters: Counters,
    slot: Option<SlotSeen>,
    thread: Option<ThreadEvidence>,
    ends: Ends,
    own_wait: Option<Duration>,
    signalled: bool,
    throttled: Duration,
}

impl World {
    /// A parked worker whose thread is known, with no mark made so far.
    fn parked() -> World {
        World {
            detector: Detector::new(rules()),
            now: 0,
            late: Duration::ZERO,
            counters: Counters {
                parks: 1,
                busy: Duration::ZERO,
            },
            slot: Some(SlotSeen {
                thread: THREAD,
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
                state: ThreadState::Unknown,
            }),
            ends: [None; 2],
            own_wait: None,
            signalled: false,
            throttled: Duration::ZERO,
        }
    }

    fn wake(mut self) -> World {
        self.counters.parks += 1;
        self
    }

    fn slot(&mut self) -> &mut SlotSeen {
        self.slot.as_mut().expect("the thread is known")
    }

    fn begin_poll(&mut self, started: Option<Nanos>) -> PollKey {
        let slot = self.slot();
        slot.epoch += 1;
        slot.started = started;
        slot.poll()
    }

    fn end_poll(&mut self, ended: Option<Nanos>) {
        let poll = self.slot().poll();
        self.slot().epoch += 1;
        self.ends = [ended.map(|ended| (poll, ended)), None];
    }

    /// The worker returns to its loop and publishes.
    fn publish(&mut self, busy: Duration) {
        self.counters.busy += busy;
    }

    fn park(&mut self) {
        self.counters.parks += 1;
    }

    /// Time passes in which the thread computes.
    fn compute(&mut self, time: Duration) -> Findings {
        let thread = self.thread.as_mut().expect("the thread is known");
        thread.cpu += time;
        thread.state = ThreadState::OnCpu;
        self.pass(time)
    }

    /// Time passes in which the thread sleeps in one call.
    fn sleep(&mut self, time: Duration) -> Findings {
        let thread = self.thread.as_mut().expect("the thread is known");
        let asleep = ThreadState::Asleep(Some(CALL));
        if thread.state != asleep {
            thread.runs += 1;
            thread.state = asleep;
        }
        self.pass(time)
    }

    /// Time passes in which the thread would run and has no CPU.
    fn starve(&mut self, time: Duration) -> Findings {
        self.thread.as_mut().expect("the thread is known").state = ThreadState::Waiting;
        self.pass(time)
    }

    /// Time passes of which the thread's clocks know nothing.
    fn pass(&mut self, time: Duration) -> Findings {
        self.now += u64::try_from(time.as_millis()).unwrap();
        let findings = self.detector.observe(&Sample {
            at: at(self.now),
            late: std::mem::take(&mut self.late),
            before: self.counters,
            after: self.counters,
            slot: self.slot,
            thread: self.thread,
            own_wait: self.own_wait.take(),
            signalled: std::mem::take(&mut self.signalled),
            throttled: self.throttled,
            ends: std::mem::take(&mut self.ends),
        });
        // A suspicion is not news for anybody but the reporter's look-up.
        findings
            .into_iter()
            .filter(|finding| !matches!(finding, Finding::Suspect(_)))
            .collect()
    }

    /// Ticks until something is found; the number of ticks and the findings.
    fn until_found(&mut self, mut step: impl FnMut(&mut World) -> Findings) -> (u32, Findings) {
        for ticks in 1..10_000 {
            let found = step(self);
            if !found.is_empty() {
                return (ticks, found);
            }
        }
        (10_000, Findings::new())
    }
}

fn began(findings: &[Finding]) -> Option<Stall> {
    findings.iter().find_map(|finding| match finding {
        Finding::Began(stall) => Some(*stall),
        _ => None,
    })
}

fn ended(findings: &[Finding]) -> Option<Stall> {
    findings.iter().find_map(|finding| match finding {
        Finding::Ended(stall) => Some(*stall),
        _ => None,
    })
}

#[test]
fn a_timed_poll_is_a_stall_at_the_threshold_and_not_before() {
    let mut world = World::parked().wake();
    world.compute(ms(5));
    world.begin_poll(Some(at(5)));
    assert_eq!(world.compute(ms(5)), []);
    assert_eq!(world.compute(ms(4)), []);
    let stall = began(&world.compute(ms(1))).expect("10 ms are reached");
    assert_eq!(stall.certainty, Certainty::Certain);
    assert_eq!((stall.duration, stall.error), (ms(10), Duration::ZERO));
}

#[test]
fn an_untimed_poll_is_certain_once_its_shortest_length_reaches_the_threshold() {
    let mut world = World::parked().wake();
    world.compute(ms(5));
    world.begin_poll(None);
    assert_eq!(world.compute(ms(5)), []);
    assert_eq!(world.compute(ms(5)), []);
    let stall = began(&world.compute(ms(5))).unwrap();
    assert_eq!(
        stall.error,
        Duration::from_micros(2_500),
        "it began somewhere within one tick"
    );
    assert_eq!(stall.duration, Duration::from_micros(12_500));
}

#[test]
fn a_stall_is_announced_again_at_doubling_ages_and_milestones_and_closed_exactly() {
    let mut world = World::parked().wake();
    world.compute(ms(5));
    world.begin_poll(Some(at(5)));
    let mut announced = Vec::new();
    for _ in 0..20 {
        announced.extend(world.compute(TICK));
    }
    let ages: Vec<_> = announced
        .iter()
        .map(|finding| match finding {
            Finding::Began(stall) | Finding::Ongoing(stall) => stall.duration,
            other => panic!("{other:?} while it lasts"),
        })
        .collect();
    assert_eq!(ages, [ms(10), ms(20), ms(40), ms(60), ms(80)]);
    world.end_poll(Some(at(107)));
    let stall = ended(&world.compute(TICK)).unwrap();
    assert_eq!((stall.duration, stall.error), (ms(102), Duration::ZERO));
}

#[test]
fn an_end_that_is_measured_late_is_still_exact() {
    let stalled = || {
        let mut world = World::parked().wake();
        world.compute(ms(5));
        let poll = world.begin_poll(Some(at(5)));
        while began(&world.compute(TICK)).is_none() {}
        world.end_poll(None);
        (world, poll)
    };
    // The thread lost its CPU between the end of its poll and the record of it.
    let (mut world, poll) = stalled();
    assert_eq!(world.compute(TICK), []);
    world.ends = [Some((poll, at(16))), None];
    assert_eq!(ended(&world.compute(TICK)).unwrap().duration, ms(11));
    // Without a record the end is known to within the tick in which it fell.
    let (mut world, _) = stalled();
    let (before, after) = (at(world.now), at(world.now).plus(TICK));
    assert_eq!(world.compute(TICK), []);
    let stall = ended(&world.compute(TICK)).unwrap();
    let end = stall.since.plus(stall.duration);
    assert_eq!(
        (end.minus(stall.error), end.plus(stall.error)),
        (before, after)
    );
}

#[test]
fn short_polls_one_after_another_are_none() {
    let mut world = World::parked().wake();
    for round in 0..1_000 {
        world.begin_poll(None);
        assert_eq!(world.compute(TICK), []);
        world.end_poll(None);
        assert_eq!(world.compute(TICK), []);
        if round % 61 == 0 {
            world.publish(TICK * 122);
        }
    }
}

#[test]
fn a_parked_worker_is_never_reported() {
    let mut world = World::parked();
    // Not even if its thread's slot shows a poll: a mark that leaked, or a thread that has moved on.
    world.begin_poll(None);
    for _ in 0..1_000 {
        assert_eq!(world.sleep(TICK), []);
    }
    // Positive control: the same marks on an active worker.
    let mut world = world.wake();
    assert!(began(&world.until_found(|world| world.sleep(TICK)).1).is_some());
}

#[test]
fn block_in_place_is_not_a_stall() {
    let mut world = World::parked().wake();
    world.compute(ms(5));
    world.begin_poll(Some(at(5)));
    assert_eq!(world.sleep(TICK), []);
    // Another thread has taken the worker: it parks, wakes, works.
    world.park();
    for _ in 0..1_000 {
        assert_eq!(world.sleep(TICK), []);
        world.counters.parks += 2;
        world.publish(Duration::from_micros(10));
    }
    // The poll comes back and ends; the busy counter has not counted it.
    world.end_poll(Some(at(world.now)));
    assert_eq!(world.compute(TICK), []);
}

#[test]
fn block_in_place_is_not_a_stall_when_the_worker_parks_and_comes_back() {
    let mut world = World::parked().wake();
    world.compute(ms(5));
    world.begin_poll(Some(at(5)));
    // By the first look at this poll its worker has gone on elsewhere, and is parked.
    world.park();
    assert_eq!(world.sleep(TICK), []);
    for _ in 0..20 {
        assert_eq!(world.sleep(TICK), []);
    }
    // It wakes for a task that takes a while, on a thread we do not know. Our thread's sleep proves
    // nothing about it.
    world.counters.parks += 1;
    for _ in 0..5 {
        assert_eq!(world.sleep(TICK), []);
    }
    world.publish(ms(25));
    // Positive control: a thread we do not know is found out as well, if it takes long enough.
    let (ticks, found) = world.until_found(|world| world.sleep(TICK));
    assert_eq!(began(&found).unwrap().certainty, Certainty::Likely);
    assert!(TICK * ticks >= THRESHOLD * UNKNOWN_THREAD);
}

#[test]
fn a_short_visit_to_block_in_place_between_two_ticks_is_not_a_stall() {
    let key = PollKey {
        thread: THREAD,
        epoch: 1,
    };
    let record = |ended| LongPoll {
        epoch: 1,
        started: Some(at(3)),
        ended,
        name: 0,
    };
    let unseen = |busy| {
        let mut world = World::parked();
        world.compute(ms(1));
        let previous = world.detector.last();
        world.slot().epoch += 2;
        world.counters.parks += 2;
        world.publish(busy);
        assert_eq!(world.compute(ms(25)), []);
        world.detector.ended_unseen(key, &record(at(20)), previous);
        (0..3)
            .flat_map(|_| {
                world.counters.parks += 2;
                world.compute(TICK)
            })
            .collect::<Vec<_>>()
    };
    assert_eq!(unseen(ms(1)), [], "the busy counter does not know of it");
    let stall = ended(&unseen(ms(18))).expect("the busy counter has counted it");
    assert_eq!(stall.duration, ms(17));
}

#[test]
fn one_sleep_without_marks_is_certain() {
    let mut world = World::parked().wake();
    world.compute(ms(5));
    let (ticks, found) = world.until_found(|world| world.sleep(TICK));
    let stall = began(&found).unwrap();
    assert_eq!(
        (stall.certainty, ticks),
        (Certainty::Certain, 3),
        "not likely first"
    );
    world.publish(ms(60));
    world.park();
    world.now += 40;
    assert!(ended(&world.compute(TICK)).is_some());
}

#[test]
fn many_short_sleeps_without_marks_are_only_likely() {
    let mut world = World::parked().wake();
    world.compute(ms(5));
    let (_, found) = world.until_found(|world| {
        world.thread.as_mut().unwrap().runs += 7;
        world.sleep(TICK)
    });
    assert_eq!(began(&found).unwrap().certainty, Certainty::Likely);
}

#[test]
fn computing_without_marks_is_likely_first_and_certain_when_counted_out() {
    let mut world = World::parked().wake();
    world.compute(ms(5));
    let (_, found) = world.until_found(|world| world.compute(TICK));
    assert_eq!(began(&found).unwrap().certainty, Certainty::Likely);
    let mut surer = None;
    while surer.is_none() {
        surer = world
            .compute(TICK)
            .into_iter()
            .find_map(|finding| match finding {
                Finding::Ongoing(stall) | Finding::Began(stall)
                    if stall.certainty == Certainty::Certain =>
                {
                    Some(stall)
                }
                Finding::Ended(stall) => panic!("{stall:?} does not end"),
                _ => None,
            });
    }
    let age = surer.unwrap().duration;
    assert!(
        age >= THRESHOLD * 244 && age < THRESHOLD * 244 + TICK * 3,
        "{age:?}"
    );
}

#[test]
fn a_worker_that_publishes_is_not_held() {
    let mut world = World::parked().wake();
    for _ in 0..1_000 {
        world.publish(TICK);
        assert_eq!(world.compute(TICK), []);
    }
}

#[test]
fn a_busy_worker_must_stand_out_from_its_own_usual_pace() {
    // 61 polls of a third of a millisecond: 20 ms between two publications, for ever.
    let mut world = World::parked().wake();
    let mut said = Vec::new();
    for round in 0..100u32 {
        for _ in 0..4 {
            said.extend(
                world
                    .compute(TICK)
                    .into_iter()
                    .map(|finding| (round, finding)),
            );
        }
        world.publish(ms(20));
    }
    let last = said.iter().map(|(round, _)| *round).max();
    assert!(
        last <= Some(OUTLIERS as u32 + 1),
        "only the first rounds can surprise, not round {last:?}"
    );
    assert!(said.iter().all(|(_, finding)| match finding {
        Finding::Began(stall) | Finding::Ongoing(stall) | Finding::Ended(stall) =>
            stall.certainty == Certainty::Likely,
        Finding::Suspect(_) => false,
    }));
    // Positive control: ten times as long does stand out.
    let (_, found) = world.until_found(|world| world.compute(TICK));
    assert!(began(&found).is_some());
}

#[test]
fn marks_that_come_and_go_are_a_sign_of_life() {
    let mut world = World::parked().wake();
    for _ in 0..200 {
        world.slot().epoch += 2;
        assert_eq!(world.compute(TICK), []);
    }
}

#[test]
fn inner_marks_do_not_hide_a_turn_that_never_ends() {
    // One unmarked task that enters and leaves spans in a loop and never returns.
    let mut world = World::parked().wake();
    world.compute(TICK);
    let (ticks, found) = world.until_found(|world| {
        world.slot().epoch += 2;
        world.compute(TICK)
    });
    let stall = began(&found).unwrap();
    assert_eq!(
        (stall.held_by, stall.certainty),
        (HeldBy::CountedOut, Certainty::Certain)
    );
    assert!(TICK * ticks >= THRESHOLD * 244);
    assert!(stall.duration >= THRESHOLD * 244);
    // A pulse received in between proves that the worker has come back to its loop.
    let mut world = World::parked().wake();
    for turn in 0..2_000 {
        world.slot().epoch += 2;
        world.slot().loops += u64::from(turn % 100 == 0);
        assert_eq!(world.compute(TICK), []);
    }
}

#[test]
fn waiting_for_a_cpu_is_not_a_stall() {
    let mut world = World::parked().wake();
    world.compute(ms(5));
    world.begin_poll(Some(at(5)));
    assert_eq!(world.compute(ms(3)), []);
    for _ in 0..1_000 {
        assert_eq!(world.starve(TICK), []);
    }
    // The kernel counts the wait when it ends; it must not be counted for the code then.
    world.thread.as_mut().unwrap().run_queue += TICK * 1_000;
    assert_eq!(world.compute(ms(5)), []);
    // Positive control: eight milliseconds of its own so far, and two more.
    assert!(began(&world.compute(ms(2))).is_some());
}

#[test]
fn a_wait_that_ended_between_two_ticks_is_not_blamed_either() {
    let mut world = World::parked().wake();
    world.compute(ms(5));
    world.begin_poll(Some(at(5)));
    for _ in 0..100 {
        let thread = world.thread.as_mut().unwrap();
        thread.run_queue += Duration::from_micros(4_950);
        thread.cpu += Duration::from_micros(50);
        thread.state = ThreadState::OnCpu;
        assert_eq!(world.pass(TICK), []);
    }
}

#[test]
fn nothing_is_blamed_for_the_time_before_the_first_look() {
    let mut world = World::parked().wake();
    world.begin_poll(Some(at(0)));
    world.now = 22;
    assert_eq!(
        world.compute(ms(1)),
        [],
        "it may have waited for a CPU all the time"
    );
    assert_eq!(world.compute(TICK), []);
    // Positive control: its age is known, once the rest is its own.
    let stall = began(&world.compute(TICK)).unwrap();
    assert_eq!(stall.duration, ms(33));
}

#[test]
fn a_process_that_stood_still_is_not_a_stall() {
    let mut world = World::parked().wake();
    world.compute(ms(5));
    world.begin_poll(Some(at(5)));
    assert_eq!(world.compute(ms(3)), []);
    // SIGSTOP: everything resumes 400 ms later, the watchdog as well.
    world.late = ms(397);
    world.now += 397;
    assert_eq!(world.compute(ms(3)), []);
    // Positive control: six milliseconds of its own so far, and five more.
    assert!(began(&world.compute(ms(5))).is_some());
}

#[test]
fn allowed_blocking_is_not_a_stall_and_does_not_count_towards_one() {
    let mut world = World::parked().wake();
    world.compute(ms(5));
    world.begin_poll(Some(at(5)));
    world.slot().allowed = true;
    for _ in 0..1_000 {
        assert_eq!(world.sleep(TICK), []);
    }
    let left = at(world.now);
    world.slot().allowed = false;
    world.slot().allowed_until = Some(left);
    assert_eq!(world.compute(TICK), []);
    let stall =
        began(&world.compute(TICK)).expect("ten milliseconds more are a stall of their own");
    assert_eq!((stall.since, stall.duration), (left, ms(10)));
}

#[test]
fn blocking_allowed_between_two_ticks_starts_the_count_again() {
    let mut world = World::parked().wake();
    world.compute(ms(5));
    world.begin_poll(Some(at(5)));
    assert_eq!(world.compute(ms(4)), []);
    world.slot().allowed_until = Some(at(13));
    assert_eq!(world.compute(TICK), []);
    assert_eq!(world.compute(TICK), []);
    assert_eq!(began(&world.compute(TICK)).unwrap().since, at(13));
}

fn current_thread() -> World {
    let mut world = World::parked().wake();
    world.detector = Detector::new(Rules {
        always_driven: false,
        ..rules()
    });
    world
}

#[test]
fn an_undriven_current_thread_runtime_is_not_reported() {
    let mut world = current_thread();
    for _ in 0..10_000 {
        assert_eq!(world.sleep(TICK), []);
    }
    // Driven again, it works for a moment: the busy counter shows that it had not been all the time.
    world.publish(ms(1));
    assert_eq!(world.compute(TICK), []);
    // Positive control: a mark is proof.
    world.begin_poll(None);
    assert!(began(&world.until_found(|world| world.sleep(TICK)).1).is_some());
}

#[test]
fn a_driven_current_thread_runtime_is_reported_when_its_busy_counter_proves_it() {
    let mut world = current_thread();
    world.compute(TICK);
    for _ in 0..40 {
        assert_eq!(world.sleep(TICK), []);
    }
    world.publish(ms(200));
    let stall = ended(&world.compute(TICK)).unwrap();
    assert_eq!(stall.certainty, Certainty::Certain);
    assert!(
        stall.duration >= ms(190) && stall.duration <= ms(205),
        "{stall:?}"
    );
}

#[test]
fn a_sleep_between_two_idle_ticks_is_found_afterwards() {
    let slept = |asleep: u64, runs: u64, seen_once: bool| {
        let mut world = World::parked();
        world.compute(ms(25));
        if seen_once {
            world.counters.parks += 1;
            world.sleep(TICK);
            world.counters.parks += 1;
        } else {
            world.counters.parks += 2;
        }
        world.publish(ms(20));
        let thread = world.thread.as_mut().unwrap();
        thread.runs += runs - u64::from(seen_once);
        thread.cpu += ms(20 - asleep);
        thread.state = ThreadState::Asleep(None);
        ended(&world.pass(ms(25))).map(|stall| (stall.certainty, stall.duration))
    };
    for seen_once in [false, true] {
        // Put on a CPU twice: once to wake, once after the only sleep.
        assert_eq!(slept(15, 2, seen_once), Some((Certainty::Certain, ms(20))));
        assert_eq!(
            slept(15, 7, seen_once),
            Some((Certainty::Likely, ms(20))),
            "six sleeps"
        );
        assert_eq!(slept(1, 2, seen_once), None, "a burst of work is none");
    }
}

#[test]
fn a_stall_says_what_its_time_was_spent_on() {
    let mut world = World::parked().wake();
    world.compute(ms(5));
    world.begin_poll(Some(at(5)));
    world.compute(ms(5));
    world.sleep(ms(20));
    world.sleep(ms(20));
    world.starve(ms(5));
    world.thread.as_mut().unwrap().run_queue += ms(5);
    world.late = ms(30);
    world.compute(ms(30)); // stopped for all of it: the CPU clock cannot have moved
    world.end_poll(Some(at(87)));
    let stall = ended(&world.compute(ms(4))).unwrap();
    assert_eq!((stall.duration, stall.call), (ms(82), Some(CALL)));
    let TimeSplit {
        cpu,
        asleep,
        run_queue,
        stopped,
        unknown,
        ..
    } = stall.split;
    assert_eq!(
        [cpu, asleep, run_queue, stopped, unknown],
        [ms(7), ms(40), ms(5), ms(30), ms(0)]
    );
}

#[test]
fn a_quota_is_told_from_other_work_and_from_a_stopped_process() {
    let split = |late: u64, waited: u64, throttled: u64| {
        let mut world = World::parked().wake();
        world.compute(ms(5));
        world.begin_poll(Some(at(5)));
        world.compute(ms(15));
        world.thread.as_mut().unwrap().run_queue += ms(waited);
        world.late = ms(late);
        world.throttled += ms(throttled);
        world.pass(ms(100));
        world.compute(TICK);
        world.end_poll(Some(at(125)));
        let split = ended(&world.compute(TICK)).unwrap().split;
        [split.run_queue, split.throttled, split.stopped].map(|part| part.as_millis())
    };
    assert_eq!(split(0, 80, 0), [80, 0, 0], "other work");
    assert_eq!(
        split(85, 80, 0),
        [80, 0, 5],
        "the watchdog had no CPU either"
    );
    assert_eq!(split(85, 80, 160), [0, 80, 5], "throttled on two CPUs");
    assert_eq!(split(0, 80, 30), [50, 30, 0], "partly");
    assert_eq!(split(100, 0, 0), [0, 0, 100], "stopped");
}

#[test]
fn a_watchdog_without_a_cpu_is_not_a_stopped_process() {
    let split = |late: u64, own_wait: u64, waited: u64| {
        let mut world = World::parked().wake();
        world.compute(ms(5));
        world.begin_poll(Some(at(5)));
        world.compute(ms(15));
        world.thread.as_mut().unwrap().run_queue += ms(waited);
        world.late = ms(late);
        world.own_wait = Some(ms(own_wait));
        world.pass(ms(100));
        world.compute(TICK);
        world.end_poll(Some(at(125)));
        let split = ended(&world.compute(TICK)).unwrap().split;
        [split.asleep, split.run_queue, split.stopped].map(|part| part.as_millis())
    };
    assert_eq!(split(90, 90, 0), [100, 0, 0], "only the watchdog waited");
    assert_eq!(split(90, 90, 60), [40, 60, 0], "both did");
    assert_eq!(split(95, 40, 40), [5, 40, 55], "stopped, then both waited");
    assert_eq!(split(95, 0, 0), [5, 0, 95], "stopped");
}

#[test]
fn what_a_thread_has_computed_is_blamed_though_the_watchdog_had_no_cpu() {
    let computed = |own_wait: u64| {
        let mut world = World::parked().wake();
        world.compute(ms(5));
        world.begin_poll(Some(at(5)));
        world.compute(TICK);
        world.late = ms(90);
        world.own_wait = Some(ms(own_wait));
        let found = world.compute(ms(100));
        began(&found).map(|stall| stall.split.cpu.as_millis())
    };
    assert_eq!(computed(90), Some(105));
    // A machine that stands still may let the CPU clock run on.
    assert_eq!(computed(0), Some(15));
}

#[test]
fn a_current_thread_runtime_is_believed_with_a_stack_that_shows_it_driven() {
    let slept = |shown: Option<Shown>| {
        let mut world = World::parked().wake();
        world.detector.rules.always_driven = false;
        let mut found = Findings::new();
        for tick in 0..6 {
            found.extend(world.sleep(TICK));
            if tick == 2 {
                let serial = world.detector.watches().unwrap();
                if let Some(shown) = shown {
                    world.detector.show(serial, shown);
                }
            }
        }
        began(&found).map(|stall| stall.certainty)
    };
    assert_eq!(slept(Some(Shown::Driving)), Some(Certainty::Certain));
    assert_eq!(slept(None), None, "nobody may be driving it");
}

#[test]
fn what_a_stack_shows_in_block_in_place_is_no_stall() {
    let polled = |shown: Option<Shown>| {
        let mut world = World::parked().wake();
        world.compute(TICK);
        world.begin_poll(Some(at(5)));
        world.compute(TICK);
        let serial = world.detector.watches().unwrap();
        if let Some(shown) = shown {
            world.detector.show(serial, shown);
        }
        let mut found = Findings::new();
        for _ in 0..6 {
            found.extend(world.sleep(TICK));
        }
        world.end_poll(Some(at(40)));
        found.extend(world.compute(TICK));
        found
    };
    assert_eq!(polled(Some(Shown::MovedAway)), Findings::new());
    assert!(began(&polled(None)).is_some());
}

#[test]
fn a_signal_of_ours_does_not_break_the_proof_of_a_sleep() {
    let mut world = World::parked().wake();
    world.sleep(TICK);
    world.sleep(TICK);
    // Woken once, by us, and back in the same call at the same place.
    world.signalled = true;
    world.thread.as_mut().unwrap().runs += 1;
    world.thread.as_mut().unwrap().cpu += Duration::from_micros(20);
    let stall = began(&world.sleep(TICK)).expect("it has slept for the threshold");
    assert_eq!(stall.certainty, Certainty::Certain);
    // Woken by somebody else: another sleep, as far as anybody knows.
    let mut world = World::parked().wake();
    world.sleep(TICK);
    world.sleep(TICK);
    world.thread.as_mut().unwrap().runs += 1;
    let stall = began(&world.sleep(TICK));
    assert!(stall.is_none_or(|stall| stall.certainty == Certainty::Likely));
}

#[test]
fn what_is_not_known_is_said_to_be_unknown() {
    let mut world = World::parked().wake();
    world.thread = None;
    world.pass(ms(5));
    world.begin_poll(Some(at(5)));
    let (_, found) = world.until_found(|world| world.pass(TICK));
    let stall = began(&found).unwrap();
    assert_eq!(stall.split, TimeSplit::unknown(stall.duration));
}

/// What a poll was made of, in milliseconds.
#[derive(Clone, Copy, Debug)]
enum Piece {
    Compute(u64),
    Sleep(u64),
    Starve(u64),
}

fn piece() -> impl Strategy<Value = Piece> {
    prop_oneof![
        (1..8u64).prop_map(Piece::Compute),
        (1..8u64).prop_map(Piece::Sleep),
        (1..30u64).prop_map(Piece::Starve),
    ]
}

proptest! {
    /// Against the obvious model: a timed poll is a stall if its own time, without the time it wanted a
    /// CPU, reaches the threshold. Seen at every millisecond the detector is never early, and late by at
    /// most a tick for each wait, whose end it cannot place within one.
    #[test]
    fn a_poll_is_a_stall_if_its_own_time_reaches_the_threshold(pieces in prop::collection::vec(piece(), 1..12)) {
        let mut world = World::parked().wake();
        world.compute(ms(1));
        world.begin_poll(Some(at(1)));
        let (mut own, mut waits, mut age) = (0, 0, 0);
        let mut reported = false;
        for piece in pieces {
            let (length, of_its_own): (u64, bool) = match piece {
                Piece::Compute(length) | Piece::Sleep(length) => (length, true),
                Piece::Starve(length) => (length, false),
            };
            for _ in 0..length {
                age += 1;
                own += u64::from(of_its_own);
                let found = match piece {
                    Piece::Compute(_) => world.compute(ms(1)),
                    Piece::Sleep(_) => world.sleep(ms(1)),
                    Piece::Starve(_) => world.starve(ms(1)),
                };
                if let Some(stall) = began(&found) {
                    reported = true;
                    prop_assert_eq!(stall.split.total(), ms(age), "the parts add up");
                }
                prop_assert!(!reported || own >= 10, "too early, after {} ms of its own", own);
                prop_assert!(reported || own < 10 + waits, "too late, after {} ms of its own", own);
            }
            if let Piece::Starve(length) = piece {
                waits += 1;
                world.thread.as_mut().unwrap().run_queue += ms(length);
            }
        }
    }

    /// Whatever a worker does, a stall that has begun ends before the next one begins.
    #[test]
    fn beginnings_and_ends_alternate(steps in prop::collection::vec(0..7u8, 1..400)) {
        let mut world = World::parked().wake();
        let mut open = false;
        for step in steps {
            let found = match step {
                0 => { world.begin_poll(None); world.compute(TICK) }
                1 => { world.end_poll(None); world.compute(TICK) }
                2 => world.sleep(TICK),
                3 => { world.publish(TICK); world.compute(TICK) }
                4 => { world.park(); world.sleep(TICK) }
                5 => world.sleep(TICK * 3),
                _ => world.compute(TICK),
            };
            for finding in found {
                match finding {
                    Finding::Began(_) => { prop_assert!(!open); open = true; }
                    Finding::Ongoing(_) => prop_assert!(open),
                    Finding::Ended(stall) => {
                        prop_assert!(open || stall.duration >= THRESHOLD);
                        open = false;
                    }
                    Finding::Suspect(_) => {}
                }
            }
        }
    }
}
